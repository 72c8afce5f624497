//! The WebSocket of a test client: binary protobuf frames.

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use prost::Message as _;
use proto::signal_request::Message as Ask;
use proto::signal_response::Message as Told;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::Options;

/// An open signal connection.
pub(super) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// Connects and reads the first message, which must be the join response.
pub(super) async fn open(options: &Options) -> Result<(Socket, Box<proto::JoinResponse>)> {
    let base = options.url.replacen("http", "ws", 1);
    let url = format!(
        "{base}/rtc?access_token={}&auto_subscribe={}&protocol=16&sdk=rust&version=1.0.0",
        options.token,
        u8::from(options.auto_subscribe),
    );
    let stream = match tokio_tungstenite::connect_async(&url).await {
        Ok((stream, _)) => stream,
        Err(Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            bail!("{}: {}", answer.status(), String::from_utf8_lossy(&body));
        }
        Err(failure) => return Err(failure).context("the signal connection failed"),
    };
    let mut socket = Socket(stream);
    match socket.next().await? {
        Some(Told::Join(join)) => Ok((socket, Box::new(join))),
        other => bail!("the first message is not a join response: {other:?}"),
    }
}

impl Socket {
    /// The next message; `None` when the server closed.
    pub(super) async fn next(&mut self) -> Result<Option<Told>> {
        while let Some(frame) = self.0.next().await {
            match frame {
                Ok(Message::Binary(bytes)) => {
                    let response = proto::SignalResponse::decode(bytes)?;
                    if let Some(message) = response.message {
                        return Ok(Some(message));
                    }
                }
                Ok(Message::Close(_)) => return Ok(None),
                Ok(_) => {}
                Err(failure) => return Err(failure).context("the signal connection broke"),
            }
        }
        Ok(None)
    }

    pub(super) async fn send(&mut self, ask: Ask) -> Result<()> {
        let request = proto::SignalRequest { message: Some(ask) };
        self.0
            .send(Message::Binary(request.encode_to_vec().into()))
            .await
            .context("the signal connection broke")
    }

    pub(super) async fn close(&mut self) {
        let _ = self.0.close(None).await;
    }
}
