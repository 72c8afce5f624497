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

use std::collections::BTreeMap;
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

use super::delay::Delays;
use super::proto::mesh_client::MeshClient;
use super::proto::{Ailment, InquireRequest, PulseReply, PulseRequest, inquire_reply::Finding};
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
/// Refusals in a row that make a process gone. The first may fall into the moment in which a dying
/// process has lost one socket but not yet the other.
const REFUSALS: u32 = 2;
/// A refusal older than this says nothing of the present.
const REFUSAL_AGE: Duration = Duration::from_secs(1);

/// What is known of another node's life.
#[derive(Clone, Copy, Debug)]
pub struct Sign {
    /// Since when it is listened to.
    pub since: Instant,
    /// The start that answered last.
    pub boot: Option<BootId>,
    /// When anything of it arrived last.
    pub heard: Option<Instant>,
    /// When the newest of our pings that it answered was sent: at that time or later it knew that
    /// this node lives.
    pub contact: Option<Instant>,
    /// When anything of it arrived last over the mesh's links, which may lead by way of another node.
    pub reached: Option<Instant>,
    /// When the newest heartbeat of a link was sent that it answered: as `contact`, but maybe by way of
    /// another node.
    pub answered: Option<Instant>,
    /// When its open stream broke; `None` while one is open.
    pub broke: Option<Instant>,
    /// How often in a row nobody listened at its port.
    pub refusals: u32,
    /// When that was last.
    pub refused_at: Option<Instant>,
    /// What it says is wrong with itself, and since when.
    pub ailment: Option<(Ailment, Instant)>,
}

impl Sign {
    /// Nothing known yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            since: now,
            boot: None,
            heard: None,
            contact: None,
            reached: None,
            answered: None,
            broke: None,
            refusals: 0,
            refused_at: None,
            ailment: None,
        }
    }

    /// Whether its process is certainly gone: it was connected, the connection was reset, and since
    /// then nobody listens at its port. A refusal alone does not count: a filter on the way can
    /// refuse, too, but leaves open streams silent.
    #[must_use]
    pub fn is_gone(&self, now: Instant) -> bool {
        self.broke.is_some()
            && self.refusals >= REFUSALS
            && self
                .refused_at
                .is_some_and(|at| now.saturating_duration_since(at) < REFUSAL_AGE)
    }

    /// When it was last known to live: heard, or begun to be listened to.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.heard.map_or(self.since, |heard| heard.max(self.since))
    }
}

/// The signs of all nodes. Cheap to clone.
#[derive(Clone, Default)]
pub struct Signs {
    /// Written by pulse tasks and by the service, read by the control tasks.
    signs: Arc<Mutex<BTreeMap<NodeId, Sign>>>,
    /// Written by failure detection, read by whoever judges silence.
    delays: Arc<Mutex<Delays>>,
    changed: Arc<Notify>,
}

impl Signs {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> BTreeMap<NodeId, Sign> {
        lock(&self.signs).clone()
    }

    /// One node's.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Option<Sign> {
        lock(&self.signs).get(&node).copied()
    }

    /// A watcher that should look every `expected` looks now. What it is late is this process's own
    /// delay and will be nobody's silence.
    pub fn look(&self, now: Instant, expected: Duration) {
        lock(&self.delays).look(now, expected);
    }

    /// How long a node has been silent, this process's own delays taken off.
    #[must_use]
    pub fn silence(&self, sign: &Sign, now: Instant) -> Duration {
        let last = sign.last();
        let own = lock(&self.delays).since(last);
        now.saturating_duration_since(last).saturating_sub(own)
    }

    /// How much longer than usual others may be silent at present, because this process was late a moment
    /// ago and they may be starved as it was.
    #[must_use]
    pub fn allowance(&self, now: Instant) -> Duration {
        lock(&self.delays).allowance(now)
    }

    /// Resolves when a process has been found gone or has come back.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Something of a node arrived: its own ping.
    pub(super) fn heard(&self, node: NodeId, boot: BootId) {
        if let Some(sign) = lock(&self.signs).get_mut(&node)
            && sign.boot.is_none_or(|known| known == boot)
        {
            sign.heard = Some(Instant::now());
        }
    }

    /// A link's heartbeat of a node arrived, maybe by way of another one.
    pub(super) fn reached(&self, node: NodeId, boot: BootId) {
        if let Some(sign) = lock(&self.signs).get_mut(&node)
            && sign.boot.is_none_or(|known| known == boot)
        {
            sign.reached = Some(Instant::now());
        }
    }

    /// A node answered a link's heartbeat that was sent at `sent`, maybe by way of another one.
    pub(super) fn answered(&self, node: NodeId, boot: BootId, sent: Instant) {
        self.reached(node, boot);
        // An echo from the future is nonsense.
        if sent <= Instant::now()
            && let Some(sign) = lock(&self.signs).get_mut(&node)
            && sign.boot.is_none_or(|known| known == boot)
        {
            sign.answered = sign.answered.max(Some(sent));
        }
    }

    pub(super) fn insert(&self, node: NodeId) {
        let sign = Sign::new(Instant::now());
        lock(&self.signs).entry(node).or_insert(sign);
    }

    pub(super) fn remove(&self, node: NodeId) {
        lock(&self.signs).remove(&node);
    }

    fn note(&self, node: NodeId, change: impl FnOnce(&mut Sign)) {
        let now = Instant::now();
        let mut signs = lock(&self.signs);
        let Some(sign) = signs.get_mut(&node) else {
            return;
        };
        let before = sign.is_gone(now);
        change(sign);
        if sign.is_gone(now) != before {
            drop(signs);
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
        let asked = Instant::now();
        loop {
            let Some(sign) = self.of(node) else {
                return Finding::Unknown;
            };
            let now = Instant::now();
            if sign.is_gone(now) || sign.boot.is_some_and(|other| other != boot) {
                return Finding::Gone;
            }
            // Only what arrives after the question proves life.
            if sign.heard.is_some_and(|heard| heard >= asked) {
                return Finding::Heard;
            }
            if self.silence(&sign, now) >= bound {
                return Finding::Silent;
            }
            if now.saturating_duration_since(asked) >= within {
                return Finding::Unknown;
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
                            .note(self.node, |sign| sign.broke = Some(Instant::now()));
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
        self.signs.note(self.node, |sign| {
            if refused {
                sign.refusals = sign.refusals.saturating_add(1);
                sign.refused_at = Some(Instant::now());
            } else {
                sign.refusals = 0;
            }
        });
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
        let now = Instant::now();
        let sent = started + Duration::from_micros(reply.token);
        self.signs.note(self.node, |sign| {
            sign.boot = Some(BootId(reply.boot));
            sign.heard = Some(now);
            // A token is an echo: one from the future is nonsense.
            if sent <= now {
                sign.contact = Some(sign.contact.map_or(sent, |contact| contact.max(sent)));
            }
            sign.broke = None;
            sign.refusals = 0;
            sign.ailment = match reply.ailment() {
                Ailment::None => None,
                ailment => Some(match sign.ailment {
                    Some((known, since)) if known == ailment => (known, since),
                    _ => (ailment, now),
                }),
            };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_only_after_a_reset() {
        let now = Instant::now();
        let mut sign = Sign::new(now);
        sign.refusals = 5;
        sign.refused_at = Some(now);
        assert!(!sign.is_gone(now), "it was never connected");
        sign.broke = Some(now);
        assert!(sign.is_gone(now));
        assert!(!sign.is_gone(now + REFUSAL_AGE), "that was long ago");
        sign.refusals = 1;
        assert!(!sign.is_gone(now), "once may be chance");
    }

    #[test]
    fn signs_of_another_start_do_not_count() {
        let signs = Signs::default();
        signs.insert(NodeId(2));
        signs.note(NodeId(2), |sign| sign.boot = Some(BootId(7)));
        signs.heard(NodeId(2), BootId(8));
        assert_eq!(signs.of(NodeId(2)).and_then(|sign| sign.heard), None);
        signs.heard(NodeId(2), BootId(7));
        assert!(signs.of(NodeId(2)).is_some_and(|sign| sign.heard.is_some()));
        signs.heard(NodeId(3), BootId(1));
        assert!(signs.of(NodeId(3)).is_none(), "no such node");
    }
}
