//! The receiving end of the mesh: welcomes links, hands frames on in order and once, and lets
//! new nodes in.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_model::id::{BootId, NodeId};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::enroll::Doorkeeper;
use super::proto::mesh_server::Mesh;
use super::proto::{
    Acknowledgement, ClaimReply, ClaimRequest, CrashReply, CrashRequest, EnrollReply,
    EnrollRequest, Frame, HeartbeatReply, Hello, InquireReply, InquireRequest, LinkReply,
    LinkRequest, PulseReply, PulseRequest, TunnelPart, Welcome, link_reply, link_request,
};
use super::{Ailing, Body, Inbound, Own, lock, tunnel};
use crate::telemetry::Metrics;

/// Answers handed to a stream ahead of its flow control.
const REPLIES_MAX: usize = 64;
/// Frames after which an acknowledgement goes out at the latest.
const ACKNOWLEDGE_EVERY: u64 = 64;
/// Time after which one goes out for data: clients are told no sooner that it arrived.
const ACKNOWLEDGE_DATA_AFTER: Duration = Duration::from_millis(1);
/// Time after which one goes out at the latest.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(50);
/// Answers to pings that wait for the stream. A caller that reads nothing gets no more.
const PULSES_MAX: usize = 4;
/// Longest that a caller may have its question wait for clarity.
const INQUIRY_MAX: Duration = Duration::from_secs(5);
/// Connections of other nodes that are carried at a time: three for each pair that is cut.
const TUNNELS_MAX: usize = 1024;
/// Nodes remembered.
const NODES_MAX: usize = 4096;

/// What the service needs.
pub struct ServiceConfig {
    /// Who we are.
    pub own: Own,
    /// Where frames go.
    pub inbound: mpsc::Sender<Inbound>,
    /// Decides who gets in.
    pub doorkeeper: Doorkeeper,
    /// Lets go of sessions.
    pub claims: Arc<dyn Claims>,
    /// The sending side: where other nodes are, and where their pings are noted.
    pub mesh: super::Mesh,
    /// What this node says is wrong with itself.
    pub ailing: Ailing,
    /// Whether `Crash` is allowed.
    pub may_crash: bool,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Who lets go of sessions that another node has taken over.
#[tonic::async_trait]
pub trait Claims: Send + Sync {
    /// Ends the session here and says what is held of it.
    async fn claim(&self, request: ClaimRequest) -> ClaimReply;
}

/// Implements the gRPC service.
#[derive(Clone)]
pub struct MeshService {
    shared: Arc<Shared>,
}

struct Shared {
    config: ServiceConfig,
    /// One entry per sending node, shared by its successive streams.
    senders: Mutex<BTreeMap<NodeId, Arc<AsyncMutex<Sender>>>>,
    /// How many more connections of other nodes may be carried.
    tunnels: Arc<Semaphore>,
}

/// How far a sending node has got. Held locked from the check of a frame's sequence until the frame
/// is handed on, so that two streams of one sender cannot overtake each other.
#[derive(Default)]
struct Sender {
    boot: BootId,
    sequence: u64,
    /// Counts streams; an older stream ends when a newer one has come.
    stream: u64,
}

impl MeshService {
    /// A service without senders.
    #[must_use]
    pub fn new(config: ServiceConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                senders: Mutex::default(),
                tunnels: Arc::new(Semaphore::new(TUNNELS_MAX)),
            }),
        }
    }
}

impl Shared {
    fn sender(&self, node: NodeId) -> Result<Arc<AsyncMutex<Sender>>, Status> {
        let mut senders = lock(&self.senders);
        if senders.len() >= NODES_MAX && !senders.contains_key(&node) {
            return Err(Status::resource_exhausted("too many nodes"));
        }
        Ok(senders.entry(node).or_default().clone())
    }

    fn check(&self, hello: &Hello) -> Result<(), Status> {
        let own = &self.config.own;
        if hello.cluster_id != own.cluster_id {
            return Err(Status::failed_precondition(
                "this node belongs to another cluster",
            ));
        }
        if hello.node == own.node.0 {
            return Err(Status::already_exists(format!(
                "node {} is this node; give each node its own cluster.node_id",
                hello.node
            )));
        }
        if hello.config_hash[..] != own.config_hash {
            warn!(
                peer = hello.node,
                "settings that must be equal on all nodes differ; see the keys marked cluster in docs/config.md"
            );
        }
        Ok(())
    }

    async fn serve(
        self: Arc<Self>,
        hello: Hello,
        mut requests: Streaming<LinkRequest>,
        replies: mpsc::Sender<Result<LinkReply, Status>>,
    ) -> Result<(), Status> {
        let node = NodeId(hello.node);
        let sender = self.sender(node)?;
        let (stream, sequence) = {
            let mut sender = sender.lock().await;
            if sender.boot != BootId(hello.boot) {
                sender.boot = BootId(hello.boot);
                sender.sequence = 0;
            }
            sender.stream += 1;
            (sender.stream, sender.sequence)
        };
        let welcome = Welcome {
            node: self.config.own.node.0,
            boot: self.config.own.boot.0,
            sequence,
        };
        reply(&replies, link_reply::Message::Welcome(welcome)).await?;
        let (mut handled, mut acknowledged) = (sequence, sequence);
        let mut is_soon = false;
        let mut due = tokio::time::interval(ACKNOWLEDGE_AFTER);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = requests.message() => message?,
                _ = due.tick(), if handled > acknowledged => {
                    is_soon = false;
                    acknowledged = handled;
                    acknowledge(&replies, handled).await?;
                    continue;
                }
            };
            match message.and_then(|request| request.message) {
                Some(link_request::Message::Frame(frame)) => {
                    let is_data = frame.sequence != 0 && matches!(frame.body, Some(Body::Data(_)));
                    if is_data && !std::mem::replace(&mut is_soon, true) {
                        due.reset_after(ACKNOWLEDGE_DATA_AFTER);
                    }
                    match self.take(node, &sender, stream, frame).await {
                        Some(sequence) => handled = handled.max(sequence),
                        None => return Ok(()),
                    }
                    if handled - acknowledged >= ACKNOWLEDGE_EVERY {
                        is_soon = false;
                        acknowledged = handled;
                        acknowledge(&replies, handled).await?;
                    }
                }
                Some(link_request::Message::Heartbeat(beat)) => {
                    let signs = self.config.mesh.signs();
                    signs.reached(node, BootId(hello.boot));
                    let beat = HeartbeatReply { token: beat.token };
                    reply(&replies, link_reply::Message::Heartbeat(beat)).await?;
                }
                Some(link_request::Message::Hello(_)) => {
                    return Err(Status::invalid_argument("a second hello"));
                }
                None => return Ok(()),
            }
        }
    }

    /// Hands a frame on; `None` when this stream has been replaced or the node is stopping.
    async fn take(
        &self,
        from: NodeId,
        sender: &AsyncMutex<Sender>,
        stream: u64,
        frame: Frame,
    ) -> Option<u64> {
        let mut sender = sender.lock().await;
        if sender.stream != stream {
            return None;
        }
        let sequence = frame.sequence;
        if sequence != 0 && sequence <= sender.sequence {
            return Some(sender.sequence);
        }
        self.config.metrics.mesh_received.inc();
        if let Some(body) = frame.body {
            let inbound = Inbound { from, body };
            if sequence == 0 {
                if self.config.inbound.try_send(inbound).is_err() {
                    self.config.metrics.mesh_dropped.inc();
                }
            } else {
                // The place first: a frame counts as taken only once it is certainly handed on.
                self.config.inbound.reserve().await.ok()?.send(inbound);
            }
        }
        if sequence != 0 {
            sender.sequence = sequence;
        }
        Some(sequence)
    }
}

async fn acknowledge(
    replies: &mpsc::Sender<Result<LinkReply, Status>>,
    sequence: u64,
) -> Result<(), Status> {
    let message = link_reply::Message::Acknowledgement(Acknowledgement { sequence });
    reply(replies, message).await
}

async fn reply(
    replies: &mpsc::Sender<Result<LinkReply, Status>>,
    message: link_reply::Message,
) -> Result<(), Status> {
    replies
        .send(Ok(LinkReply {
            message: Some(message),
        }))
        .await
        .map_err(|_| Status::cancelled("the caller is gone"))
}

#[tonic::async_trait]
impl Mesh for MeshService {
    type LinkStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<LinkReply, Status>> + Send + 'static>>;

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollReply>, Status> {
        let request = request.into_inner();
        let node = request.node;
        match self.shared.config.doorkeeper.enroll(request) {
            Ok(reply) => Ok(Response::new(reply)),
            Err(refusal) => {
                warn!(peer = node, %refusal, "a node is not let in");
                Err(Status::failed_precondition(refusal.to_string()))
            }
        }
    }

    async fn link(
        &self,
        request: Request<Streaming<LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests
            .message()
            .await?
            .and_then(|request| request.message);
        let Some(link_request::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message must be hello"));
        };
        self.shared.check(&hello)?;
        let (replies, outgoing) = mpsc::channel(REPLIES_MAX);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            // An error ends the stream; the caller opens it again.
            if let Err(status) = shared.serve(hello, requests, replies.clone()).await {
                let _ = replies.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let claims = &self.shared.config.claims;
        Ok(Response::new(claims.claim(request.into_inner()).await))
    }

    type TunnelStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<TunnelPart, Status>> + Send>>;
    type PulseStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<PulseReply, Status>> + Send + 'static>>;

    async fn pulse(
        &self,
        request: Request<Streaming<PulseRequest>>,
    ) -> Result<Response<Self::PulseStream>, Status> {
        let mut requests = request.into_inner();
        let (replies, outgoing) = mpsc::channel(PULSES_MAX);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            // An error ends the stream; the caller opens it again.
            while let Ok(Some(ping)) = requests.message().await {
                let config = &shared.config;
                if ping.cluster_id != config.own.cluster_id {
                    return;
                }
                config
                    .mesh
                    .signs()
                    .heard(NodeId(ping.node), BootId(ping.boot));
                let reply = PulseReply {
                    token: ping.token,
                    node: config.own.node.0,
                    boot: config.own.boot.0,
                    ailment: config.ailing.get().into(),
                };
                if replies.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn inquire(
        &self,
        request: Request<InquireRequest>,
    ) -> Result<Response<InquireReply>, Status> {
        let request = request.into_inner();
        let millis = |count: u32| Duration::from_millis(count.into());
        let finding = self.shared.config.mesh.signs().find(
            NodeId(request.node),
            BootId(request.boot),
            millis(request.bound_ms),
            millis(request.within_ms).min(INQUIRY_MAX),
        );
        Ok(Response::new(InquireReply {
            finding: finding.await.into(),
        }))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelPart>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let permit = self.shared.tunnels.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted("too many tunnels"))?;
        let mut parts = request.into_inner();
        let first = parts.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("no part names the node"))?;
        let node = NodeId(first.node);
        let address = self.shared.config.mesh.address(node);
        let address = address.ok_or_else(|| Status::not_found(format!("no node {node}")))?;
        let (replies, outgoing) = mpsc::channel(REPLIES_MAX);
        tunnel::carry(parts, &address, replies, permit).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn crash(&self, _: Request<CrashRequest>) -> Result<Response<CrashReply>, Status> {
        if !self.shared.config.may_crash {
            return Err(Status::permission_denied("only in demo mode"));
        }
        info!("ending this process, as the demo page asked");
        crash();
    }
}

/// Ends the process as a crash does: no destructor runs, no peer is told.
#[expect(
    unsafe_code,
    reason = "only the system can end a process without a trace"
)]
pub fn crash() -> ! {
    // SAFETY: no memory is involved; the call ends this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}
