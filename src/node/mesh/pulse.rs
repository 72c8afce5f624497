//! Signs of life: one small stream to every other node, on a connection of its own, so that they wait
//! behind nothing.
//!
//! ```text
//! pulse task ══ ping, answered at once ══ service of the other node
//!     └─ signs ─ control/failure (verdicts), control/lease (this node's own fence)
//! ```
//!
//! A stream that breaks is followed by knocking at the other node's port: if nobody listens there any
//! more, the process is gone. The signs are facts; what follows from them is decided in `control`.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flotilla_model::id::{BootId, NodeId};
use flotilla_raft::{Channels, Lane};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::debug;

use super::proto::mesh_client::MeshClient;
use super::proto::{Ailment, InquireRequest, PulseReply, PulseRequest, inquire_reply::Finding};
use super::sign::{Question, Sign, SignBook};
use super::{Own, lock};

/// Pings per bound of silence: one or two may be lost or late before a node is suspected.
const PINGS_PER_BOUND: u32 = 5;
/// Pings handed to the stream ahead of its flow control. One that does not fit is left out.
const STREAM_QUEUE: usize = 4;
/// Pause between knocks at first. Falls: a dead process is known sooner, at more connections.
const KNOCK_FIRST: Duration = Duration::from_millis(10);
/// Longest pause between knocks.
const KNOCK_LAST: Duration = Duration::from_millis(100);
/// Longest wait for a knock to be answered.
const KNOCK_MAX: Duration = Duration::from_millis(250);
/// The signs of all nodes. Cheap to clone.
#[derive(Clone, Default)]
pub struct Signs {
    /// Written by pulse tasks, the service and failure detection; read by the control tasks.
    book: Arc<Mutex<SignBook>>,
    changed: Arc<Notify>,
}

impl Signs {
    /// The signs as they are now.
    #[must_use]
    pub fn book(&self) -> SignBook {
        lock(&self.book).clone()
    }

    /// One node's.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Option<Sign> {
        lock(&self.book).of(node).copied()
    }

    /// A watcher that should look every `expected` looks now. What it is late is this process's own
    /// delay and will be nobody's silence.
    pub fn look(&self, now: Instant, expected: Duration) {
        lock(&self.book).look(now, expected);
    }

    /// Resolves when a process has been found gone or has come back.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Something of a node arrived: its own ping.
    pub(super) fn heard(&self, node: NodeId, boot: BootId) {
        lock(&self.book).heard(node, boot, Instant::now());
    }

    /// A link's heartbeat of a node arrived, maybe by way of another one.
    pub(super) fn reached(&self, node: NodeId, boot: BootId) {
        lock(&self.book).reached(node, boot, None, Instant::now());
    }

    /// A node answered a link's heartbeat that was sent at `sent`, maybe by way of another one.
    pub(super) fn echoed(&self, node: NodeId, boot: BootId, sent: Instant) {
        lock(&self.book).reached(node, boot, Some(sent), Instant::now());
    }

    pub(super) fn insert(&self, node: NodeId) {
        lock(&self.book).insert(node, Instant::now());
    }

    pub(super) fn remove(&self, node: NodeId) {
        lock(&self.book).remove(node);
    }

    fn note(&self, node: NodeId, change: impl FnOnce(&mut SignBook, Instant)) {
        let now = Instant::now();
        let mut book = lock(&self.book);
        let is_gone = |book: &SignBook| book.of(node).map(|sign| sign.is_gone(now));
        let before = is_gone(&book);
        change(&mut book, now);
        if is_gone(&book) != before {
            drop(book);
            self.changed.notify_waiters();
        }
    }

    /// What this node finds about another one: at once if it is clear, otherwise when it is, and
    /// after `within` at the latest.
    pub async fn find(
        &self,
        node: NodeId,
        boot: BootId,
        bound: Duration,
        within: Duration,
    ) -> Finding {
        /// How often the signs are looked at meanwhile.
        const LOOK: Duration = Duration::from_millis(10);
        let question = Question {
            node,
            boot,
            bound,
            within,
            asked: Instant::now(),
        };
        loop {
            let finding = lock(&self.book).find(&question, Instant::now());
            if let Some(finding) = finding {
                return finding;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What this node says is wrong with itself; cheap to clone.
#[derive(Clone, Default)]
pub struct Ailing {
    ailment: Arc<AtomicI32>,
}

impl Ailing {
    /// What is wrong now.
    #[must_use]
    pub fn get(&self) -> Ailment {
        Ailment::try_from(self.ailment.load(Ordering::Relaxed)).unwrap_or(Ailment::None)
    }

    /// Says what is wrong from now on.
    pub fn set(&self, ailment: Ailment) {
        self.ailment.store(ailment as i32, Ordering::Relaxed);
    }
}

/// Asks a node what it finds about another one. `None` if it does not answer in time.
pub(super) async fn inquire(
    channels: &Channels,
    address: &str,
    request: InquireRequest,
) -> Option<Finding> {
    let channel = channels.get(address, Lane::Pulse).ok()?;
    // Half as long again for the way there and back.
    let patience = Duration::from_millis(u64::from(request.within_ms) * 3 / 2 + 50);
    let mut client = MeshClient::new(channel);
    let call = client.inquire(request);
    let reply = tokio::time::timeout(patience, call).await.ok()?.ok()?;
    Some(reply.into_inner().finding())
}

/// The task that pings one node.
pub(super) struct PulseTask {
    pub(super) own: Own,
    pub(super) node: NodeId,
    pub(super) address: String,
    pub(super) channels: Channels,
    pub(super) signs: Signs,
    /// Silence after which a node is unreachable.
    pub(super) bound: Duration,
}

impl PulseTask {
    pub(super) async fn run(self) {
        let mut pause = KNOCK_FIRST;
        loop {
            if self.knock().await {
                match self.open().await {
                    Ok((requests, replies, started)) => {
                        pause = KNOCK_FIRST;
                        self.pump(requests, replies, started).await;
                        self.signs
                            .note(self.node, |book, now| book.broke(self.node, now));
                        continue;
                    }
                    Err(reason) => debug!(peer = %self.node, %reason, "no pulse stream"),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(KNOCK_LAST);
        }
    }

    /// Whether it may be that somebody listens at the node's port.
    async fn knock(&self) -> bool {
        let connected = tokio::time::timeout(KNOCK_MAX, TcpStream::connect(&self.address)).await;
        let refused = matches!(
            &connected,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused
        );
        self.signs
            .note(self.node, |book, now| book.knocked(self.node, refused, now));
        !refused
    }

    async fn open(
        &self,
    ) -> Result<(mpsc::Sender<PulseRequest>, Streaming<PulseReply>, Instant), String> {
        let channel = self
            .channels
            .get(&self.address, Lane::Pulse)
            .map_err(|error| error.to_string())?;
        let (requests, outgoing) = mpsc::channel(STREAM_QUEUE);
        let started = Instant::now();
        let mut client = MeshClient::new(channel);
        let _ = requests.try_send(self.ping(started));
        let opening = client.pulse(ReceiverStream::new(outgoing));
        let replies = tokio::time::timeout(self.bound, opening)
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|status| status.message().to_owned())?;
        Ok((requests, replies.into_inner(), started))
    }

    fn ping(&self, started: Instant) -> PulseRequest {
        PulseRequest {
            node: self.own.node.0,
            boot: self.own.boot.0,
            cluster_id: self.own.cluster_id.clone(),
            token: u64::try_from(started.elapsed().as_micros()).unwrap_or_default(),
        }
    }

    /// Pings until the stream breaks. Silence does not end it: only a reset says something.
    async fn pump(
        &self,
        requests: mpsc::Sender<PulseRequest>,
        mut replies: Streaming<PulseReply>,
        started: Instant,
    ) {
        let mut due = tokio::time::interval(self.bound / PINGS_PER_BOUND);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                reply = replies.message() => match reply {
                    Ok(Some(reply)) if reply.node == self.node.0 => self.take(&reply, started),
                    _ => return,
                },
                _ = due.tick() => {
                    // A full stream has pings on their way already.
                    let _ = requests.try_send(self.ping(started));
                }
            }
        }
    }

    fn take(&self, reply: &PulseReply, started: Instant) {
        let sent = started + Duration::from_micros(reply.token);
        let boot = BootId(reply.boot);
        self.signs.note(self.node, |book, now| {
            book.answered(self.node, boot, sent, reply.ailment(), now);
        });
    }
}
