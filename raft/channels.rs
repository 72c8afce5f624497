//! Connections to other nodes, shared by every group and by the mesh.
//!
//! One pool per node: per peer address and [`Lane`] there is one HTTP/2 connection, opened at the
//! first call and again at the first call after it broke. Peers that stop answering without closing
//! (a cut cable, a frozen machine) are found out by HTTP/2 pings within [`KEEPALIVE_INTERVAL`] plus
//! [`KEEPALIVE_TIMEOUT`], so that a healed partition does not wait for TCP's retransmission.
//! Callers put a deadline on every call.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::codegen::{Service, http::Uri};
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
};

use crate::auth::{Authenticated, Guarded, Secret};
pub use crate::connector::Tunnel;
use crate::connector::{Connector, Ways};

/// How often an HTTP/2 ping is sent. Falls: dead peers are found sooner, idle traffic rises.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(1000);
/// How long a ping may stay unanswered.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Peers remembered. A cluster has far fewer; seeds that were mistyped stay in the pool.
const PEERS_MAX: usize = 4096;
/// Receive window of a stream: a batch of log entries or snapshot chunks fits without a round trip.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How long calls under way may go on after a stop was asked for.
pub const STOP_GRACE: Duration = Duration::from_millis(1000);

/// A channel to a peer; generated gRPC clients take it.
pub type PeerChannel = Authenticated<Channel>;

/// What a connection is for. Bulk data has its own, so that heartbeats never queue behind it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    /// Consensus: appends, heartbeats, votes, forwarded commands, reads.
    Consensus,
    /// Snapshots.
    Bulk,
    /// The mesh between nodes.
    Mesh,
    /// Signs of life between nodes, which wait behind nothing.
    Pulse,
}

/// Certificates for mutual TLS between nodes, all PEM.
#[derive(Clone)]
pub struct Tls {
    /// Authority that signed every node's certificate.
    pub authority: String,
    /// This node's certificate chain.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// Name that every node's certificate carries as subject alternative name.
    pub name: String,
}

/// Settings of the pool.
#[derive(Clone)]
pub struct ChannelsConfig {
    /// The cluster's secret.
    pub secret: Secret,
    /// Certificates; `None`: plain TCP.
    pub tls: Option<Tls>,
    /// Longest time to open a connection.
    pub connect_timeout: Duration,
}

impl ChannelsConfig {
    /// Plain TCP with this secret and half a second to connect.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self {
            secret: Secret::new(secret),
            tls: None,
            connect_timeout: Duration::from_millis(500),
        }
    }
}

/// Why a channel cannot be made.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The address does not parse.
    #[error("{0:?} is not an address: expected host:port")]
    Address(String),
    /// Certificates do not parse.
    #[error("cluster certificates cannot be used: {0}")]
    Tls(String),
    /// The pool is full.
    #[error("more than {PEERS_MAX} peer addresses")]
    Full,
}

/// A connection, as bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> ByteStream for T {}

/// An open connection.
pub type Connection = Pin<Box<dyn ByteStream>>;

/// Opens a connection to `host:port`, in another way than by TCP.
pub type Dialer = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Connection>> + Send + Sync>;

/// A connection that was taken, as tonic wants it.
struct Taken(Connection);

impl Connected for Taken {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Taken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Taken {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(context)
    }
}

/// A dialer as tonic wants it.
struct Dialing(Dialer);

impl Service<Uri> for Dialing {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let connection = (self.0)(address);
        Box::pin(async move { connection.await.map(TokioIo::new) })
    }
}

/// The pool. Cheap to clone.
#[derive(Clone)]
pub struct Channels {
    shared: Arc<Shared>,
}

struct Shared {
    config: ChannelsConfig,
    dialer: Option<Dialer>,
    /// Shared by all tasks that call peers; held only to look a channel up.
    pool: Mutex<HashMap<(String, Lane), PeerChannel>>,
    ways: Ways,
}

impl Channels {
    /// An empty pool.
    #[must_use]
    pub fn new(config: ChannelsConfig) -> Self {
        Self::with(config, None)
    }

    /// An empty pool whose connections are opened by `dialer` instead of by TCP.
    #[must_use]
    pub fn dialed_by(config: ChannelsConfig, dialer: Dialer) -> Self {
        Self::with(config, Some(dialer))
    }

    fn with(config: ChannelsConfig, dialer: Option<Dialer>) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                dialer,
                pool: Mutex::default(),
                ways: Ways::default(),
            }),
        }
    }

    /// The channel to `address` (`host:port`); connects at its first call.
    pub fn get(&self, address: &str, lane: Lane) -> Result<PeerChannel, ChannelError> {
        let key = (address.to_owned(), lane);
        let mut pool = self
            .shared
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = pool.get(&key) {
            return Ok(channel.clone());
        }
        if pool.len() >= PEERS_MAX {
            return Err(ChannelError::Full);
        }
        let endpoint = self.endpoint(address)?;
        let channel = match &self.shared.dialer {
            Some(dialer) => endpoint.connect_with_connector_lazy(Dialing(dialer.clone())),
            None => endpoint.connect_with_connector_lazy(Connector {
                address: address.to_owned(),
                ways: self.shared.ways.clone(),
                is_direct: lane == Lane::Pulse,
            }),
        };
        let channel = Authenticated::new(channel, self.shared.config.secret.clone());
        pool.insert(key, channel.clone());
        Ok(channel)
    }

    /// Connections to `address` go by a tunnel from now on, or directly again: those that are open
    /// end at once. [`Lane::Pulse`] stays direct, since it measures that way.
    pub fn set_detour(&self, address: &str, tunnel: Option<Arc<dyn Tunnel>>) {
        self.shared.ways.set(address, tunnel);
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, ChannelError> {
        let bad = || ChannelError::Address(address.to_owned());
        if !address.contains(':') || address.contains('/') {
            return Err(bad());
        }
        let scheme = if self.shared.config.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| bad())?;
        let endpoint = endpoint
            .connect_timeout(self.shared.config.connect_timeout)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        match &self.shared.config.tls {
            None => Ok(endpoint),
            Some(tls) => endpoint
                .tls_config(
                    ClientTlsConfig::new()
                        .ca_certificate(Certificate::from_pem(&tls.authority))
                        .identity(Identity::from_pem(&tls.certificate, &tls.key))
                        .domain_name(&tls.name),
                )
                .map_err(|error| ChannelError::Tls(error.to_string())),
        }
    }

    /// Wraps a service of the cluster port so that it asks for the proof of the secret.
    #[must_use]
    pub fn guard<S>(&self, service: S) -> Guarded<S> {
        Guarded::new(service, self.shared.config.secret.clone())
    }

    /// A server with the settings that peers expect, TLS included.
    pub fn server(&self) -> Result<Server, ChannelError> {
        let server = Server::builder()
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        match &self.shared.config.tls {
            None => Ok(server),
            Some(tls) => server
                .tls_config(
                    ServerTlsConfig::new()
                        .identity(Identity::from_pem(&tls.certificate, &tls.key))
                        .client_ca_root(Certificate::from_pem(&tls.authority)),
                )
                .map_err(|error| ChannelError::Tls(error.to_string())),
        }
    }

    /// Serves `routes` on the cluster port until `stop` resolves, then lets calls under way end for
    /// at most [`STOP_GRACE`].
    pub async fn serve(
        &self,
        listener: TcpListener,
        routes: Routes,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        self.serve_on(incoming, routes, stop).await
    }

    /// [`Channels::serve`] over connections that come from anywhere.
    pub async fn serve_connections(
        &self,
        incoming: BoxStream<'static, io::Result<Connection>>,
        routes: Routes,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let incoming = incoming.map(|connection| connection.map(Taken));
        self.serve_on(incoming, routes, stop).await
    }

    async fn serve_on<C>(
        &self,
        incoming: impl Stream<Item = io::Result<C>> + Send,
        routes: Routes,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError>
    where
        C: ByteStream + Connected + Unpin + 'static,
    {
        let stopping = Arc::new(Notify::new());
        let signal = Arc::clone(&stopping);
        let serving = self
            .server()?
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, async move {
                stop.await;
                signal.notify_one();
            });
        tokio::select! {
            served = serving => Ok(served?),
            () = async {
                stopping.notified().await;
                tokio::time::sleep(STOP_GRACE).await;
            } => Ok(()),
        }
    }
}

/// Why the cluster port stopped being served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Settings.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The network.
    #[error("cluster port: {0}")]
    Transport(#[from] tonic::transport::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn channels_are_shared_per_address_and_lane() {
        let channels = Channels::new(ChannelsConfig::new("s"));
        for _ in 0..3 {
            channels.get("127.0.0.1:1", Lane::Consensus).expect("valid");
            channels.get("127.0.0.1:1", Lane::Bulk).expect("valid");
        }
        assert_eq!(channels.shared.pool.lock().expect("not poisoned").len(), 2);
    }

    #[tokio::test]
    async fn addresses_must_parse() {
        let channels = Channels::new(ChannelsConfig::new("s"));
        for bad in ["", "host", "http://h:1", "a b:1", "h:1/x"] {
            let result = channels.get(bad, Lane::Consensus);
            assert!(matches!(result, Err(ChannelError::Address(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn unusable_certificates_are_named() {
        let mut config = ChannelsConfig::new("s");
        config.tls = Some(Tls {
            authority: "x".into(),
            certificate: "x".into(),
            key: "x".into(),
            name: "flotilla".into(),
        });
        let result = Channels::new(config).get("127.0.0.1:1", Lane::Consensus);
        assert!(matches!(result, Err(ChannelError::Tls(_))));
    }
}
