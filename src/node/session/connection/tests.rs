//! A signal connection over a real socket.

use axum::Router;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::any;
use flotilla_model::id::NodeId;
use flotilla_signal::proto::{self, SignalRequest, signal_request, signal_response};
use futures_util::SinkExt;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn response() -> SignalResponse {
    let pong = proto::Pong::default();
    SignalResponse {
        message: Some(signal_response::Message::PongResp(pong)),
    }
}

fn farewell() -> Vec<u8> {
    let leave = proto::LeaveRequest::default();
    SignalRequest {
        message: Some(signal_request::Message::Leave(leave)),
    }
    .encode_to_vec()
}

/// A listener whose sockets come out of the receiver.
async fn sockets() -> (std::net::SocketAddr, mpsc::Receiver<WebSocket>) {
    let (taken, sockets) = mpsc::channel(1);
    let accept = |State(taken): State<mpsc::Sender<WebSocket>>, upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(async move |socket| taken.send(socket).await.expect("the test waits"))
    };
    let router = Router::new().route("/", any(accept)).with_state(taken);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, sockets)
}

#[tokio::test]
async fn a_farewell_is_heard_from_a_client_that_has_stopped_reading() {
    let (address, mut sockets) = sockets().await;
    let ids = ConnectionIds::default();
    let config = SocketConfig {
        message_bytes_max: 1 << 20,
        silence_max: Duration::from_secs(60),
        metrics: Metrics::new(NodeId(1)).expect("metrics"),
    };
    // Which of a failing write and a waiting farewell comes first is chance: both must do, every time.
    for round in 0..24 {
        let stream = TcpStream::connect(address).await.expect("connects");
        let (mut client, _) = tokio_tungstenite::client_async(format!("ws://{address}/"), stream)
            .await
            .expect("upgrades");
        let mut socket = sockets.recv().await.expect("accepted");
        let unread = encode(&Codec::new(1 << 20), &response());
        socket.send(unread).await.expect("sent");
        let mut byte = [0];
        client.get_ref().peek(&mut byte).await.expect("it has come");
        client
            .send(tungstenite::Message::Binary(farewell().into()))
            .await
            .expect("sent");
        // With a message unread this resets the connection.
        drop(client);

        let (inbox, mut outlet) = Inbox::new();
        let connection = ids.open(socket, inbox, config.clone());
        let _ = connection.send(Box::new(response()));
        let _ = connection.send(Box::new(response()));
        let first = tokio::time::timeout(PATIENCE, outlet.receive())
            .await
            .expect("the connection ends")
            .expect("with a message");
        let left = matches!(&first, Message::Request { request, .. }
            if matches!(request.message, Some(signal_request::Message::Leave(_))));
        assert!(left, "round {round}: {first:?}");
        let last = tokio::time::timeout(PATIENCE, outlet.receive())
            .await
            .expect("the connection ends");
        assert!(
            matches!(last, Some(Message::SignalClosed { .. })),
            "{last:?}"
        );
    }
}
