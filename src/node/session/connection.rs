//! One signal connection: a WebSocket, pumped by its own task between the client and its session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket};
use flotilla_signal::proto::SignalResponse;
use flotilla_signal::wire::{self, Codec};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::inbox::{Inbox, Message};
use crate::telemetry::Metrics;

/// Responses waiting for a socket. A client that does not read this many is cut off and may resume.
const OUTGOING_MAX: usize = 1024;
/// How often the server pings.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Longest time that one write may take.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Longest time for the last responses before the socket closes.
const FLUSH_MAX: Duration = Duration::from_millis(250);
/// Longest wait for the client's answer to our close frame.
const CLOSE_MAX: Duration = Duration::from_secs(1);
const NORMAL: u16 = 1000;
const TOO_LARGE: u16 = 1009;

/// What goes to a socket.
#[derive(Debug)]
enum Outgoing {
    Response(Box<SignalResponse>),
    /// Flush, then close with 1000.
    Close,
}

/// The session's end of a signal connection.
#[derive(Clone, Debug)]
pub struct Connection {
    id: u64,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Connection {
    /// Tells it from the session's other connections.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Sends; `false` if the socket is gone or its client does not read.
    #[must_use]
    pub fn send(&self, response: Box<SignalResponse>) -> bool {
        self.outgoing.try_send(Outgoing::Response(response)).is_ok()
    }

    /// Closes with code 1000 after what was sent.
    pub fn close(&self) {
        // A full queue closes when the last sender is dropped.
        let _ = self.outgoing.try_send(Outgoing::Close);
    }
}

/// Limits of a socket, and where its counters are.
#[derive(Clone)]
pub struct SocketConfig {
    /// Bytes of a message.
    pub message_bytes_max: usize,
    /// Silence after which a client is taken to be gone.
    pub silence_max: Duration,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Numbers connections, so that a late farewell of an old one is not taken for the new one's.
#[derive(Debug)]
pub struct ConnectionIds(AtomicU64);

impl Default for ConnectionIds {
    fn default() -> Self {
        Self(AtomicU64::new(1))
    }
}

impl ConnectionIds {
    /// Starts to pump a socket for a session.
    pub fn open(&self, socket: WebSocket, inbox: Inbox, config: SocketConfig) -> Connection {
        let id = self.0.fetch_add(1, Ordering::Relaxed);
        let (outgoing, responses) = mpsc::channel(OUTGOING_MAX);
        tokio::spawn(async move {
            let mut pump = Pump {
                id,
                socket,
                codec: Codec::new(config.message_bytes_max),
                inbox,
                config,
            };
            let reason = pump.run(responses).await;
            debug!(connection = id, reason, "signal connection ended");
            pump.inbox
                .send(Message::SignalClosed { connection: id })
                .await;
        });
        Connection { id, outgoing }
    }
}

/// Sends one response on a socket that gets no session, then closes it.
pub async fn send_and_close(mut socket: WebSocket, response: &SignalResponse, bytes_max: usize) {
    let frame = encode(&Codec::new(bytes_max), response);
    let _ = tokio::time::timeout(WRITE_MAX, socket.send(frame)).await;
    close(&mut socket, NORMAL, "").await;
}

struct Pump {
    id: u64,
    socket: WebSocket,
    codec: Codec,
    inbox: Inbox,
    config: SocketConfig,
}

impl Pump {
    async fn run(&mut self, mut responses: mpsc::Receiver<Outgoing>) -> &'static str {
        let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                frame = self.socket.recv() => {
                    heard = Instant::now();
                    match frame {
                        Some(Ok(frame)) => if let Some(end) = self.take(frame).await {
                            return end;
                        },
                        Some(Err(error)) => return self.failed(&error).await,
                        None => return "closed by the client",
                    }
                }
                response = responses.recv() => match response {
                    Some(Outgoing::Response(response)) => {
                        if !self.write(&response).await {
                            return self.last_words().await;
                        }
                    }
                    Some(Outgoing::Close) => {
                        close(&mut self.socket, NORMAL, "").await;
                        return "closed by the session";
                    }
                    None => {
                        close(&mut self.socket, NORMAL, "").await;
                        return "the session let go";
                    }
                },
                _ = ping.tick() => {
                    if heard.elapsed() > self.config.silence_max {
                        close(&mut self.socket, NORMAL, "").await;
                        return "silent";
                    }
                    let ping = self.socket.send(Frame::Ping(Default::default()));
                    if !matches!(tokio::time::timeout(WRITE_MAX, ping).await, Ok(Ok(()))) {
                        return self.last_words().await;
                    }
                }
            }
        }
    }

    /// Takes what the client had sent before it stopped reading. One that leaves and closes its
    /// socket with our messages unread resets the connection: the write fails while its farewell
    /// still waits to be read, and without it the participant would stay until nobody resumes.
    async fn last_words(&mut self) -> &'static str {
        let reading = async {
            while let Some(Ok(frame)) = self.socket.recv().await {
                if let Some(end) = self.take(frame).await {
                    return end;
                }
            }
            "the client does not read"
        };
        tokio::time::timeout(FLUSH_MAX, reading)
            .await
            .unwrap_or("the client does not read")
    }

    /// Takes a frame; returns why the connection ends, if it does.
    async fn take(&mut self, frame: Frame) -> Option<&'static str> {
        let request = match frame {
            Frame::Binary(bytes) => self.codec.decode_binary(&bytes),
            Frame::Text(text) => self.codec.decode_text(text.as_bytes()),
            Frame::Close(_) => return Some("closed by the client"),
            Frame::Ping(_) | Frame::Pong(_) => return None,
        };
        match request {
            Ok(request) => {
                let message = Message::Request {
                    connection: self.id,
                    request: Box::new(request),
                };
                (!self.inbox.send(message).await).then_some("the session is gone")
            }
            Err(error) => {
                self.config
                    .metrics
                    .signal_refused
                    .with_label_values(&[error.label()])
                    .inc();
                close(&mut self.socket, error.close_code(), &error.to_string()).await;
                Some("refused message")
            }
        }
    }

    async fn failed(&mut self, error: &axum::Error) -> &'static str {
        let text = error.to_string();
        if text.contains("too long") || text.contains("Space limit") {
            let label = wire::WireError::TooLarge { bytes: 0, limit: 0 }.label();
            self.config
                .metrics
                .signal_refused
                .with_label_values(&[label])
                .inc();
            let frame = close_frame(TOO_LARGE, "message too large");
            let _ = tokio::time::timeout(WRITE_MAX, self.socket.send(frame)).await;
            return "refused message";
        }
        "connection broke"
    }

    async fn write(&mut self, response: &SignalResponse) -> bool {
        let frame = encode(&self.codec, response);
        matches!(
            tokio::time::timeout(WRITE_MAX, self.socket.send(frame)).await,
            Ok(Ok(()))
        )
    }
}

fn encode(codec: &Codec, response: &SignalResponse) -> Frame {
    match codec.encode(response) {
        wire::Frame::Binary(bytes) => Frame::Binary(bytes),
        wire::Frame::Text(text) => Frame::Text(text.into()),
    }
}

fn close_frame(code: u16, reason: &str) -> Frame {
    // A close frame's reason has at most 123 bytes (RFC 6455 §5.5).
    let end = (0..=reason.len().min(123))
        .rev()
        .find(|end| reason.is_char_boundary(*end))
        .unwrap_or(0);
    Frame::Close(Some(CloseFrame {
        code,
        reason: reason[..end].into(),
    }))
}

/// Sends a close frame and gives the client a moment to answer it, so that everything sent before
/// has been read when the connection goes.
async fn close(socket: &mut WebSocket, code: u16, reason: &str) {
    let sent = tokio::time::timeout(FLUSH_MAX, socket.send(close_frame(code, reason))).await;
    if matches!(sent, Ok(Ok(()))) {
        let _ = tokio::time::timeout(CLOSE_MAX, async {
            while let Some(Ok(frame)) = socket.recv().await {
                if matches!(frame, Frame::Close(_)) {
                    break;
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
