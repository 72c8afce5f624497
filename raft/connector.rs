//! How connections to other nodes are made: directly, or through a node on the way while the direct
//! way is cut.
//!
//! A connection belongs to the way it was made on. When the way changes, it fails at once, and
//! whoever used it opens it again on the new one: HTTP/2 would take seconds to notice by itself.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::codegen::http::Uri;
use tower_service::Service;

type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// A way to an address that leads through another node.
pub trait Tunnel: Send + Sync {
    /// Opens a stream of bytes to the address.
    fn open(&self) -> Opening<DuplexStream>;
}

/// The ways that are not direct. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Ways {
    /// Written when a way changes, read when a connection is made.
    ways: Arc<Mutex<HashMap<String, Way>>>,
}

struct Way {
    tunnel: Option<Arc<dyn Tunnel>>,
    /// Changes with the way; connections made before end then.
    turn: watch::Sender<()>,
}

impl Ways {
    /// Connections to `address` go by this tunnel from now on, or directly.
    pub(crate) fn set(&self, address: &str, tunnel: Option<Arc<dyn Tunnel>>) {
        let mut ways = self.lock();
        let way = Self::way(&mut ways, address);
        if way.tunnel.is_some() || tunnel.is_some() {
            way.tunnel = tunnel;
            way.turn.send_replace(());
        }
    }

    fn of(&self, address: &str) -> (Option<Arc<dyn Tunnel>>, watch::Receiver<()>) {
        let mut ways = self.lock();
        let way = Self::way(&mut ways, address);
        (way.tunnel.clone(), way.turn.subscribe())
    }

    fn way<'a>(ways: &'a mut HashMap<String, Way>, address: &str) -> &'a mut Way {
        let direct = || Way {
            tunnel: None,
            turn: watch::Sender::new(()),
        };
        ways.entry(address.to_owned()).or_insert_with(direct)
    }

    /// A poisoned lock still guards usable values: each change under it is a single assignment.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Way>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes connections; what gRPC's channels are given.
#[derive(Clone)]
pub(crate) struct Connector {
    /// The address as the pool knows it, `host:port`.
    pub(crate) address: String,
    pub(crate) ways: Ways,
    /// Only the direct way counts: what is carried measures it.
    pub(crate) is_direct: bool,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Line>;
    type Error = io::Error;
    type Future = Opening<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self {
            address,
            ways,
            is_direct,
        } = self.clone();
        Box::pin(async move {
            let (tunnel, mut turn) = ways.of(&address);
            let stream: Box<dyn Stream> = match tunnel.filter(|_| !is_direct) {
                Some(tunnel) => Box::new(tunnel.open().await?),
                None => {
                    let stream = TcpStream::connect(&address).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            };
            let turned: Pin<Box<dyn Future<Output = ()> + Send>> = if is_direct {
                Box::pin(std::future::pending())
            } else {
                Box::pin(async move {
                    // An error says that the pool is gone, and its connections with it.
                    let _ = turn.changed().await;
                })
            };
            Ok(TokioIo::new(Line {
                stream,
                turned,
                is_over: false,
            }))
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that fails when its way changes.
pub(crate) struct Line {
    stream: Box<dyn Stream>,
    turned: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
}

impl Line {
    /// Fails once the way has changed, and wakes whoever asked then.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_over = self.is_over || self.turned.as_mut().poll(context).is_ready();
        if self.is_over {
            let error = "the way to the node has changed";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, error));
        }
        Ok(())
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

/// Writing alone does not wait for a change of way: gRPC's connections always read as well.
impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Answers with one byte, which tells tunnels apart.
    struct Answers(u8);

    impl Tunnel for Answers {
        fn open(&self) -> Opening<DuplexStream> {
            let byte = self.0;
            Box::pin(async move {
                let (near, mut far) = tokio::io::duplex(16);
                tokio::spawn(async move {
                    let _ = far.write_all(&[byte]).await;
                    std::future::pending::<()>().await;
                });
                Ok(near)
            })
        }
    }

    async fn connect(connector: &Connector) -> Line {
        let mut connector = connector.clone();
        let line = connector.call(Uri::from_static("http://node")).await;
        line.expect("connects").into_inner()
    }

    async fn read(line: &mut Line) -> io::Result<u8> {
        let read = tokio::time::timeout(PATIENCE, line.read_u8());
        read.await.expect("something comes of it")
    }

    #[tokio::test]
    async fn connections_end_when_their_way_changes_and_come_back_on_the_new_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(&[1]).await;
                kept.push(stream);
            }
        });
        let ways = Ways::default();
        let connector = |is_direct| Connector {
            address: address.clone(),
            ways: ways.clone(),
            is_direct,
        };
        let (usual, direct) = (connector(false), connector(true));
        let (mut line, mut pulse) = (connect(&usual).await, connect(&direct).await);
        assert_eq!(read(&mut line).await.expect("direct"), 1);
        assert_eq!(read(&mut pulse).await.expect("direct"), 1);

        // One that waits is told as well.
        let waiting = tokio::spawn(async move { read(&mut line).await });
        ways.set(&address, Some(Arc::new(Answers(2))));
        let ended = waiting.await.expect("no panic").expect_err("ended");
        assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
        let mut line = connect(&usual).await;
        assert_eq!(read(&mut line).await.expect("by the tunnel"), 2);
        assert_eq!(read(&mut connect(&direct).await).await.expect("direct"), 1);

        ways.set(&address, None);
        assert!(read(&mut line).await.is_err());
        let mut line = connect(&usual).await;
        assert_eq!(read(&mut line).await.expect("direct again"), 1);
        ways.set(&address, None);
        let more = tokio::time::timeout(Duration::from_millis(50), line.read_u8()).await;
        assert!(more.is_err(), "nothing has changed");
        let more = tokio::time::timeout(Duration::from_millis(50), pulse.read_u8()).await;
        assert!(more.is_err(), "it never changed for what is direct");
    }
}
