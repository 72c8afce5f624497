//! Connections to a node by way of another one, while the direct way is cut.
//!
//! ```text
//! caller ══ parts on a stream of the mesh ══ node on the way ══ TCP ══ cluster port of the third
//! ```
//!
//! The node on the way sees bytes only: with `cluster.tls` they are encrypted between the two ends. It
//! connects to nodes of the cluster alone, named by id.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use flotilla_model::id::NodeId;
use flotilla_raft::{Channels, Lane, Tunnel};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::proto::TunnelPart;
use super::proto::mesh_client::MeshClient;

/// Bytes of one part.
const PART_MAX: usize = 16 * 1024;
/// Parts handed to the stream ahead of its flow control.
const PARTS_AHEAD: usize = 16;
/// Bytes that wait at the caller's end.
const BUFFER: usize = 64 * 1024;
/// Longest time to open a tunnel, at each of its two ends.
const OPEN_MAX: Duration = Duration::from_millis(500);
/// Longest time that a node on the way waits for its target to take what it was sent.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// The way to `target` by the node at `via`.
pub(super) struct Through {
    pub(super) channels: Channels,
    pub(super) via: String,
    pub(super) target: NodeId,
}

impl Tunnel for Through {
    fn open(&self) -> Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>> {
        let (channels, via, target) = (self.channels.clone(), self.via.clone(), self.target);
        Box::pin(async move {
            let channel = channels.get(&via, Lane::Mesh).map_err(io::Error::other)?;
            let (parts, outgoing) = mpsc::channel(PARTS_AHEAD);
            let first = TunnelPart {
                node: target.0,
                data: Bytes::new(),
            };
            let _ = parts.try_send(first);
            let mut client = MeshClient::new(channel);
            let opening = client.tunnel(ReceiverStream::new(outgoing));
            let incoming = tokio::time::timeout(OPEN_MAX, opening)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                .map_err(|status| io::Error::other(status.message().to_owned()))?
                .into_inner();
            let (near, far) = tokio::io::duplex(BUFFER);
            tokio::spawn(async move {
                let (read, mut write) = tokio::io::split(far);
                // The first end to finish ends the other: nothing here speaks one way only.
                tokio::select! {
                    () = send(read, |part| send_part(&parts, part)) => {}
                    () = receive(incoming, &mut write) => {}
                }
            });
            Ok(near)
        })
    }
}

async fn send_part(parts: &mpsc::Sender<TunnelPart>, part: TunnelPart) -> bool {
    parts.send(part).await.is_ok()
}

async fn reply_part(parts: &mpsc::Sender<Result<TunnelPart, Status>>, part: TunnelPart) -> bool {
    parts.send(Ok(part)).await.is_ok()
}

/// Hands bytes on as parts until there are no more, or nobody takes them.
async fn send<R, T>(mut from: R, mut hand_on: impl FnMut(TunnelPart) -> T)
where
    R: AsyncRead + Unpin,
    T: Future<Output = bool>,
{
    let mut buffer = vec![0; PART_MAX];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        let part = TunnelPart {
            node: 0,
            data: Bytes::copy_from_slice(&buffer[..len]),
        };
        if !hand_on(part).await {
            return;
        }
    }
}

/// Writes parts out until there are no more, or nobody takes them.
async fn receive<W: AsyncWrite + Unpin>(mut parts: Streaming<TunnelPart>, to: &mut W) {
    while let Ok(Some(part)) = parts.message().await {
        let writing = tokio::time::timeout(WRITE_MAX, to.write_all(&part.data));
        if !matches!(writing.await, Ok(Ok(()))) {
            return;
        }
    }
}

/// The node on the way: connects to `address` and carries bytes until either end is done.
///
/// # Errors
/// `Unavailable` if the target cannot be reached.
pub(super) async fn carry(
    parts: Streaming<TunnelPart>,
    address: &str,
    replies: mpsc::Sender<Result<TunnelPart, Status>>,
    permit: OwnedSemaphorePermit,
) -> Result<(), Status> {
    let stream = tokio::time::timeout(OPEN_MAX, TcpStream::connect(address))
        .await
        .map_err(|_| Status::unavailable("the node does not answer"))?
        .map_err(|error| Status::unavailable(format!("the node cannot be reached: {error}")))?;
    let _ = stream.set_nodelay(true);
    let (read, mut write) = stream.into_split();
    tokio::spawn(async move {
        let _permit = permit;
        tokio::select! {
            () = send(read, |part| reply_part(&replies, part)) => {}
            () = receive(parts, &mut write) => {}
        }
    });
    Ok(())
}
