//! The WebSocket of a test client: binary protobuf frames.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use prost::Message as _;
use proto::signal_request::Message as Ask;
use proto::signal_response::Message as Told;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::Options;

/// An open signal connection.
pub(super) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// Connects and reads the first message, which must be the join response.
pub(super) async fn open(options: &Options) -> Result<(Socket, Box<proto::JoinResponse>)> {
    let mut socket = connect(options, &options.url, "").await?;
    match socket.next().await? {
        Some(Told::Join(join)) => Ok((socket, Box::new(join))),
        other => bail!("the first message is not a join response: {other:?}"),
    }
}

/// Asks a node for a session that lost its connection. `Ok(None)`: it is gone, or somebody else's.
pub(super) async fn reopen(
    options: &Options,
    url: &str,
    sid: &str,
) -> Result<Option<(Socket, proto::ReconnectResponse)>> {
    let mut socket = connect(options, url, &format!("&reconnect=1&sid={sid}")).await?;
    match socket.next().await? {
        Some(Told::Reconnect(reconnect)) => Ok(Some((socket, reconnect))),
        Some(Told::Leave(_)) => Ok(None),
        other => bail!("the first message is not a reconnect response: {other:?}"),
    }
}

async fn connect(options: &Options, url: &str, more: &str) -> Result<Socket> {
    let base = url.replacen("http", "ws", 1);
    let full = format!(
        "{base}/rtc?access_token={}&auto_subscribe={}&protocol=16&sdk=rust&version=1.0.0{more}",
        options.token,
        u8::from(options.auto_subscribe),
    );
    let server: SocketAddr = url
        .trim_start_matches("http://")
        .parse()
        .context("the URL of a node is an address and a port")?;
    let stream = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Signalling comes from where media comes from: a client has one address.
    if let Ok(own) = options.bind.parse::<SocketAddr>()
        && own.is_ipv4() == server.is_ipv4()
    {
        stream.bind(SocketAddr::new(own.ip(), 0))?;
    }
    let stream = stream
        .connect(server)
        .await
        .context("the signal connection")?;
    stream.set_nodelay(true)?;
    match tokio_tungstenite::client_async(&full, MaybeTlsStream::Plain(stream)).await {
        Ok((stream, _)) => Ok(Socket(stream)),
        Err(Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            bail!("{}: {}", answer.status(), String::from_utf8_lossy(&body));
        }
        Err(failure) => Err(failure).context("the signal connection failed"),
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
