//! The gRPC admin service: what operators see of a cluster and tell it to do.
//!
//! ```text
//! flotilla admin, grpcurl ═ admin port ─ gate (token) ─ service ─┬─ group: reads, feed, commands
//!                                                                └─ shards: counters of relays
//! ```
//! [`crate::run`] makes an [`AdminContext`] and lets [`serve`] have a port of its own, with server
//! reflection and the standard health service beside. No state is kept here: answers come from the
//! group's state and carry the place in the log they were taken at.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flotilla_media::stats::Stats;
use flotilla_model::id::NodeId;
use flotilla_raft::{Group, Role};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::info;

use self::gate::Gate;
use self::proto::admin_server::AdminServer;
use self::service::AdminService;
use crate::control::takeovers::Takeovers;

mod change;
mod convert;
mod error;
mod gate;
mod live;
mod page;
mod read;
mod service;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

#[cfg(feature = "fuzzing")]
pub use page::check_page;

/// Generated from `proto/admin.proto`, which documents it.
#[expect(missing_docs, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("flotilla.admin.v1");
}

/// `proto/admin.proto`, compiled: what reflection serves.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/admin.bin"));

/// Largest request; the longest field is a room's name or a metadata-sized token of a page.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Longest call, streams not counted: above every deadline of the group.
const CALL_MAX: Duration = Duration::from_secs(90);
/// Calls at once on one connection.
const CALLS_PER_CONNECTION_MAX: usize = 64;
/// How often idle connections are checked, so that watchers that vanished are noticed.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How often the health service is told how the group is.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// How long calls under way may take when the port closes.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Gives the counters of this node's media engines, one [`Stats`] per shard that answers.
pub type MediaStats = Arc<dyn Fn() -> StatsFuture + Send + Sync>;

/// What [`MediaStats`] returns.
pub type StatsFuture = Pin<Box<dyn Future<Output = Vec<Stats>> + Send>>;

/// What the admin service needs of its node.
#[derive(Clone)]
pub struct AdminContext {
    /// This node.
    pub node: NodeId,
    /// The region's group.
    pub group: Group,
    /// The media engines' counters.
    pub media: MediaStats,
    /// Who was taken over.
    pub takeovers: Takeovers,
}

/// Who may call.
#[derive(Clone, Default)]
pub struct AdminAccess {
    /// Token that calls must carry. Needed also with TLS if set.
    pub token: Option<String>,
    /// TLS of the port.
    pub tls: Option<AdminTls>,
}

/// TLS of the admin port, all of it PEM.
#[derive(Clone)]
pub struct AdminTls {
    /// Certificate chain.
    pub certificate: String,
    /// Private key.
    pub key: String,
    /// Authority whose certificates callers must show; `None`: callers need no certificate.
    pub client_authority: Option<String>,
}

/// Why the admin port is not served.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Anybody who reaches the port could do anything.
    #[error(
        "the admin port {address} is open to other hosts: set `admin.token`, or \
         `admin.tls.client_ca_file`, or bind it to a loopback address"
    )]
    Unprotected {
        /// Where it listens.
        address: std::net::SocketAddr,
    },
    /// The certificate, the key or the connection cannot be used.
    #[error("the admin port cannot be served: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The listener has no address.
    #[error("the admin port cannot be served: {0}")]
    Listener(#[from] std::io::Error),
    /// The service's description cannot be used.
    #[error("the admin service's description: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves the admin port until `stopped` resolves; then watch streams end and calls under way get a
/// moment.
///
/// # Errors
/// The port would be open to everybody, or cannot be served.
pub async fn serve(
    listener: TcpListener,
    context: AdminContext,
    access: AdminAccess,
    stopped: impl Future<Output = ()> + Send,
) -> Result<(), AdminError> {
    let address = listener.local_addr()?;
    check_access(address, &access)?;
    let (stop, stopping) = watch::channel(false);
    let gate = Gate::new(access.token.as_deref());
    let (health, health_service) = tonic_health::server::health_reporter();
    let group = context.group.clone();
    // Before the first call can ask.
    tell_health(&health, status(&group)).await;
    let admin = AdminServer::new(AdminService::new(context, stopping))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (begin_stop, begun) = oneshot::channel::<()>();
    let serving = server(access.tls)?
        .add_service(InterceptedService::new(admin, gate.clone()))
        .add_service(InterceptedService::new(v1, gate.clone()))
        .add_service(InterceptedService::new(v1alpha, gate))
        .add_service(health_service)
        .serve_with_incoming_shutdown(incoming, async {
            let _ = begun.await;
        });
    info!(%address, "admin port is open");
    let stop_in_order = async {
        stopped.await;
        stop.send_replace(true);
        let _ = begin_stop.send(());
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = stop_in_order => Ok(()),
        never = report_health(&health, &group) => match never {},
    }
}

fn check_access(address: std::net::SocketAddr, access: &AdminAccess) -> Result<(), AdminError> {
    let certified = access
        .tls
        .as_ref()
        .is_some_and(|tls| tls.client_authority.is_some());
    if access.token.is_some() || certified || address.ip().is_loopback() {
        return Ok(());
    }
    Err(AdminError::Unprotected { address })
}

fn server(tls: Option<AdminTls>) -> Result<Server, AdminError> {
    let mut server = Server::builder()
        .timeout(CALL_MAX)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    if let Some(tls) = tls {
        let mut config =
            ServerTlsConfig::new().identity(Identity::from_pem(tls.certificate, tls.key));
        if let Some(authority) = tls.client_authority {
            config = config.client_ca_root(Certificate::from_pem(authority));
        }
        server = server.tls_config(config)?;
    }
    Ok(server)
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn status(group: &Group) -> ServingStatus {
    match group.status().role {
        Role::Stopped => ServingStatus::NotServing,
        _ => ServingStatus::Serving,
    }
}

async fn tell_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(service::NAME, status).await;
}

/// The node is healthy for administration as long as its group runs here.
async fn report_health(health: &HealthReporter, group: &Group) -> std::convert::Infallible {
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    let mut before = None;
    loop {
        interval.tick().await;
        let status = status(group);
        if before != Some(status) {
            tell_health(health, status).await;
            before = Some(status);
        }
    }
}
