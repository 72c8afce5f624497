//! The mesh: what nodes tell each other beside consensus and media.
//!
//! ```text
//! hub ─ send(node, body) ─ link task ══ ordered stream, acknowledged ══ service ─ inbound ─ hub
//! ```
//!
//! One stream per direction and pair of nodes. Reliable frames carry a sequence, are kept until
//! acknowledged and resent after a broken connection, so that data packets stay in order and none is
//! lost. Links also tell which nodes answer, which is what failure detection goes by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flotilla_model::cluster::Formats;
use flotilla_model::id::{BootId, NodeId};
use flotilla_raft::{Channels, Tunnel};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use queue::{Posted, Queue};

use crate::session::receipt::Receipt;
use crate::telemetry::Metrics;

mod delay;
pub mod enroll;
mod link;
mod pulse;
mod queue;
mod service;
mod sign;
mod tunnel;

pub use pulse::{Ailing, Signs};
pub use service::{Claims, MeshService, ServiceConfig, crash};
pub use sign::{Question, Sign, SignBook};

/// Generated from `proto/mesh.proto`.
#[expect(missing_docs, reason = "generated code")]
#[expect(
    clippy::large_enum_variant,
    reason = "generated code; frames are what a link mostly carries"
)]
pub mod proto {
    tonic::include_proto!("flotilla.mesh.v1");
}

pub use proto::Ailment;
pub use proto::frame::Body;
pub use proto::inquire_reply::Finding;

/// Version of what nodes tell each other beside the log: the mesh's messages, what they seal for each
/// other, relay packets. Rises with what a node of the version before could not pass over; that is then
/// sent only to nodes that registered it ([`flotilla_model::cluster::Formats`]).
const VERSION: u8 = 3;
/// The first version that carries other nodes' packets and connections.
pub const VERSION_OF_DETOURS: u8 = 2;
/// The first version that asks for what a participant that moves lacks ([`proto::Wanted`]).
pub const VERSION_OF_WANTED: u8 = 3;

/// This program's version with what it reads of other nodes, as it is registered.
#[must_use]
pub fn software_version() -> String {
    let formats = Formats {
        log: flotilla_model::encoding::VERSION,
        mesh: VERSION,
    };
    formats.tell(env!("CARGO_PKG_VERSION"))
}

/// Silence after which a node is unreachable, unless the configuration says otherwise.
const BOUND: Duration = Duration::from_millis(500);

/// Bodies from all nodes waiting for the hub. When it is full, links wait: the senders keep.
pub const INBOUND_MAX: usize = 8192;

/// A body from another node.
#[derive(Debug)]
pub struct Inbound {
    /// Who sent it.
    pub from: NodeId,
    /// What.
    pub body: Body,
}

/// What is known of a link.
#[derive(Clone, Copy, Default, Debug)]
pub struct Health {
    /// The stream is open and was welcomed.
    pub connected: bool,
    /// When the node last answered.
    pub heard: Option<Instant>,
    /// When the link was made.
    pub since: Option<Instant>,
    /// Time of the last heartbeat's return.
    pub round_trip: Option<Duration>,
    /// Process that answered last.
    pub boot: Option<BootId>,
}

/// Who we are on the mesh.
#[derive(Clone)]
pub struct Own {
    /// This node.
    pub node: NodeId,
    /// This start.
    pub boot: BootId,
    /// The cluster's id.
    pub cluster_id: String,
    /// Hash of the settings that must be equal.
    pub config_hash: [u8; 32],
}

/// The sending side; cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
}

struct Shared {
    own: Own,
    channels: Channels,
    metrics: Arc<Metrics>,
    /// Shared by the hub, which sends, and by the control task, which adds and removes nodes.
    links: Mutex<BTreeMap<NodeId, Link>>,
    /// Written by link tasks, read by failure detection and the admin API.
    health: Arc<Mutex<BTreeMap<NodeId, Health>>>,
    signs: Signs,
    bound: Duration,
}

struct Link {
    address: String,
    queue: Queue,
    /// Something is known of the node that is worth another try.
    hurry: Arc<Notify>,
    tasks: [AbortHandle; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Mesh {
    /// A mesh without links.
    #[must_use]
    pub fn new(own: Own, channels: Channels, metrics: Arc<Metrics>) -> Self {
        Self::bounded(own, channels, metrics, BOUND)
    }

    /// A mesh without links that looks for nodes silent for longer than `bound`.
    #[must_use]
    pub fn bounded(own: Own, channels: Channels, metrics: Arc<Metrics>, bound: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                own,
                channels,
                metrics,
                links: Mutex::default(),
                health: Arc::default(),
                signs: Signs::default(),
                bound,
            }),
        }
    }

    /// Sends to a node; `reliable` bodies arrive in order and once as long as the node lives, and at its
    /// next start if they were under way when it ended. Returns whether the link took it.
    pub fn send(&self, to: NodeId, body: Body, reliable: bool) -> bool {
        self.post(to, None, body, reliable, None)
    }

    /// As [`Mesh::send`], for one start of the node: another one does not get what was under way when it
    /// answered first. The receipt is held until the node has said that it has it.
    pub fn send_to_start(
        &self,
        to: NodeId,
        boot: BootId,
        body: Body,
        reliable: bool,
        receipt: Option<&Receipt>,
    ) -> bool {
        self.post(to, Some(boot), body, reliable, receipt)
    }

    fn post(
        &self,
        to: NodeId,
        boot: Option<BootId>,
        body: Body,
        reliable: bool,
        receipt: Option<&Receipt>,
    ) -> bool {
        let posted = Posted {
            body,
            reliable,
            boot,
            leg: receipt.map(Receipt::leg),
        };
        let taken = lock(&self.shared.links)
            .get(&to)
            .is_some_and(|link| link.queue.push(posted));
        if !taken {
            self.shared.metrics.mesh_dropped.inc();
        }
        taken
    }

    /// Makes the links fit: one to each of these nodes, at this address. Called whenever the log says something of
    /// nodes, so links that are down are tried at once: one of them may be back.
    pub fn set_nodes(&self, nodes: &BTreeMap<NodeId, String>) {
        let mut links = lock(&self.shared.links);
        links.retain(|node, link| {
            let keep = nodes.get(node) == Some(&link.address);
            if !keep {
                self.shared.channels.set_detour(&link.address, None);
                lock(&self.shared.health).remove(node);
                self.shared.signs.remove(*node);
            }
            keep
        });
        for (node, address) in nodes {
            if *node != self.shared.own.node && !links.contains_key(node) {
                links.insert(*node, self.open(*node, address));
            }
        }
        for link in links.values() {
            link.hurry.notify_one();
        }
    }

    fn open(&self, node: NodeId, address: &str) -> Link {
        let (queue, waiting) = Queue::new();
        let hurry = Arc::new(Notify::new());
        lock(&self.shared.health).insert(
            node,
            Health {
                since: Some(Instant::now()),
                ..Health::default()
            },
        );
        let task = tokio::spawn(
            link::LinkTask::new(
                self.shared.own.clone(),
                node,
                address.to_owned(),
                self.shared.channels.clone(),
                waiting,
                hurry.clone(),
                link::Notes {
                    health: self.shared.health.clone(),
                    signs: self.shared.signs.clone(),
                    metrics: self.shared.metrics.clone(),
                },
            )
            .run(),
        );
        self.shared.signs.insert(node);
        let pulse = pulse::PulseTask {
            own: self.shared.own.clone(),
            node,
            address: address.to_owned(),
            channels: self.shared.channels.clone(),
            signs: self.shared.signs.clone(),
            bound: self.shared.bound,
        };
        let pulse = tokio::spawn(pulse.run());
        Link {
            address: address.to_owned(),
            queue,
            hurry,
            tasks: [task.abort_handle(), pulse.abort_handle()],
        }
    }

    /// The other nodes' signs of life.
    #[must_use]
    pub fn signs(&self) -> &Signs {
        &self.shared.signs
    }

    /// Asks `whom` what it finds about a start of `node`. `None` if it is not known or does not
    /// answer.
    pub async fn inquire(
        &self,
        whom: NodeId,
        node: NodeId,
        boot: BootId,
        within: Duration,
    ) -> Option<Finding> {
        let address = lock(&self.shared.links).get(&whom)?.address.clone();
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let request = proto::InquireRequest {
            node: node.0,
            boot: boot.0,
            within_ms: millis(within),
            bound_ms: millis(self.shared.bound),
        };
        pulse::inquire(&self.shared.channels, &address, request).await
    }

    /// Connections to `node` go by way of `via` from now on, or directly again: those that are open
    /// end and are opened anew. Signs of life stay direct.
    pub fn set_detour(&self, node: NodeId, via: Option<NodeId>) {
        let links = lock(&self.shared.links);
        let Some(link) = links.get(&node) else {
            return;
        };
        let tunnel = via.and_then(|via| links.get(&via)).map(|via| {
            let through = tunnel::Through {
                channels: self.shared.channels.clone(),
                via: via.address.clone(),
                target: node,
            };
            Arc::new(through) as Arc<dyn Tunnel>
        });
        self.shared.channels.set_detour(&link.address, tunnel);
    }

    /// Where a node's cluster port is.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<String> {
        let links = lock(&self.shared.links);
        links.get(&node).map(|link| link.address.clone())
    }

    /// What is known of every link.
    #[must_use]
    pub fn health(&self) -> BTreeMap<NodeId, Health> {
        lock(&self.shared.health).clone()
    }

    /// Whether a node answered within this time; this node itself always does.
    #[must_use]
    pub fn is_alive(&self, node: NodeId, within: Duration) -> bool {
        node == self.shared.own.node
            || lock(&self.shared.health).get(&node).is_some_and(|health| {
                health
                    .heard
                    .or(health.since)
                    .is_some_and(|at| at.elapsed() < within)
            })
    }

    /// Nodes that answer at present.
    #[must_use]
    pub fn connected(&self) -> Vec<NodeId> {
        lock(&self.shared.health)
            .iter()
            .filter(|(_, health)| health.connected)
            .map(|(node, _)| *node)
            .collect()
    }

    /// Tells a node that a participant is served here now. `None` if it does not answer in time.
    pub async fn claim(
        &self,
        node: NodeId,
        request: proto::ClaimRequest,
        within: Duration,
    ) -> Option<proto::ClaimReply> {
        let address = lock(&self.shared.links).get(&node)?.address.clone();
        let channels = &self.shared.channels;
        let channel = channels.get(&address, flotilla_raft::Lane::Mesh).ok()?;
        let mut client = proto::mesh_client::MeshClient::new(channel);
        let reply = tokio::time::timeout(within, client.claim(request)).await;
        Some(reply.ok()?.ok()?.into_inner())
    }

    /// Asks a node to end its process at once (demo).
    ///
    /// # Errors
    /// The other node's refusal, or why it cannot be reached.
    pub async fn crash(&self, node: NodeId) -> Result<(), String> {
        let address = lock(&self.shared.links)
            .get(&node)
            .map(|link| link.address.clone())
            .ok_or_else(|| format!("node {node} is not known"))?;
        let channel = self
            .shared
            .channels
            .get(&address, flotilla_raft::Lane::Mesh)
            .map_err(|error| error.to_string())?;
        let mut client = proto::mesh_client::MeshClient::new(channel);
        let call = client.crash(proto::CrashRequest {});
        match tokio::time::timeout(Duration::from_secs(2), call).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == tonic::Code::PermissionDenied => {
                Err(status.message().to_owned())
            }
            // The connection broke: the process ended before it could answer.
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(format!("node {node} does not answer")),
        }
    }

    /// Ends all links.
    pub fn stop(&self) {
        self.set_nodes(&BTreeMap::new());
    }
}

/// A poisoned lock still guards usable values: each change under it is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
