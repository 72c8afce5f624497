//! The HTTP port: signalling, server API, health and demo page, on axum.
//!
//! `run` starts it on the node's own port and, if configured, on one that several nodes of a machine
//! share. It decides nothing: [`rtc`] hands upgrade requests to `signal` and `session`, [`twirp`]
//! hands API calls to `signal::room_service`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use flotilla_model::cluster::NodeState;
use flotilla_model::id::NodeId;
use flotilla_raft::{Group, Role, Status};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::config::Config;
use crate::control::takeovers::Takeovers;
use crate::mesh::Mesh;
use crate::session::Sessions;
use crate::session::connection::ConnectionIds;
use crate::telemetry::Metrics;

mod demo;
mod metrics;
mod rtc;
mod twirp;

pub use metrics::router as metrics_router;

/// How long browsers may remember the answer to a preflight request.
const PREFLIGHT_AGE: Duration = Duration::from_secs(86_400);
/// How long a leader may go without a majority's answer before its node takes nobody more. Elections
/// are through by then, and a busy machine does not come near it.
const QUORUM_SILENT_MAX: Duration = Duration::from_secs(2);
/// Connections the kernel holds before they are accepted.
const BACKLOG: i32 = 1024;

/// What the handlers work with.
pub struct Shared {
    /// Configuration.
    pub config: Arc<Config>,
    /// This node.
    pub node: NodeId,
    /// Sessions.
    pub sessions: Arc<Sessions>,
    /// The region's group.
    pub group: Group,
    /// Links to other nodes.
    pub mesh: Mesh,
    /// Who was taken over.
    pub takeovers: Takeovers,
    /// Numbers signal connections.
    pub connections: ConnectionIds,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether the process takes new participants; see [`Shared::is_open`].
    pub open: Arc<AtomicBool>,
}

impl Shared {
    /// Whether new participants are welcome: the process is not stopping, and the log says that this node
    /// serves. A draining one takes nobody, and balancers are to know.
    fn is_open(&self) -> bool {
        let state = self.group.state();
        let own = state.nodes.get(&self.node);
        self.open.load(Ordering::Relaxed) && own.is_none_or(|own| own.state == NodeState::Serving)
    }
}

/// All routes of the HTTP port.
pub fn router(shared: Arc<Shared>) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::any())
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .max_age(PREFLIGHT_AGE);
    Router::new()
        .route("/", get(health))
        .merge(rtc::routes())
        .merge(twirp::routes(
            shared.config.cluster.limit.max_api_request_body_size,
        ))
        .merge(demo::routes(&shared.config))
        .layer(cors)
        .with_state(shared)
}

/// 200 while this node can take participants, 406 otherwise, as load balancers know it.
async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let open = shared.is_open();
    let led = can_change(&shared.group.status());
    if open && led {
        (StatusCode::OK, "OK").into_response()
    } else if open {
        (
            StatusCode::NOT_ACCEPTABLE,
            "Not Ready: the region's group has no leader with a majority",
        )
            .into_response()
    } else {
        (StatusCode::NOT_ACCEPTABLE, "Not Ready").into_response()
    }
}

/// Whether changes can be expected to go through.
pub(crate) fn can_change(status: &Status) -> bool {
    let voters = status.members.iter().filter(|member| member.voter).count();
    let leads = status.role == Role::Leader;
    status.leader.is_some() && !(leads && is_cut_off(voters, status.quorum_silent))
}

/// Whether a leader of so many voters, not confirmed by a majority for so long, is cut off from them.
/// It goes on calling itself leader then.
fn is_cut_off(voters: usize, quorum_silent: Option<Duration>) -> bool {
    voters > 1 && quorum_silent.is_some_and(|silent| silent > QUORUM_SILENT_MAX)
}

/// Opens a listening TCP port. `shared`: other processes of this machine may open it too, and the
/// kernel deals new connections out among them.
///
/// # Errors
/// The system's, for example `AddrInUse`.
pub fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Addresses that HTTP listens on.
#[must_use]
pub fn addresses(bind: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    if bind.is_empty() {
        return vec![SocketAddr::from(([0, 0, 0, 0], port))];
    }
    bind.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
}

/// Serves until the task is dropped.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // Signal messages are small and wait for nothing.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await
}

/// A plain text answer.
fn text(status: u16, text: impl Into<String>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, text.into()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_cut_off_when_its_majority_is_silent() {
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(9));
        assert!(!is_cut_off(3, Some(short)));
        assert!(is_cut_off(3, Some(long)));
        assert!(!is_cut_off(1, Some(long)), "its own majority");
        assert!(!is_cut_off(3, None), "has just begun");
    }
}
