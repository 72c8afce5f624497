//! From `propose` to the leader's log: batches what callers ask for, and tries again until it is
//! applied here or the callers give up.
//!
//! ```text
//! propose ─► queue ─► Driver ─► leads: one log entry per batch ─► openraft
//!    ▲                   └────► follows: forward stream ─► leader's service ─► openraft there
//!    └──────── pending ◄──────────────── machine (applied on this node)
//! ```
//! One driver per group owns the order: commands of one node reach the log in the order they were
//! proposed, unless a leader is lost. Few batches are under way at a time, so that commands which
//! arrive meanwhile share the next entry: the busier, the larger the batches.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotilla_model::id::{NodeId, UnixMillis};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock::Clock;
use crate::error::ProposeError;
use crate::forward::Forwarder;
use crate::network::Network;
use crate::pending::{Item, Pending};
use crate::stop::stopped;
use crate::types::{Batch, Member, Raft};

/// Most commands in an entry. Rises: fewer entries under load, longer wait behind a large one.
pub(crate) const BATCH_COMMANDS_MAX: usize = 512;
/// Bytes of commands after which a batch is closed.
pub(crate) const BATCH_BYTES: usize = 256 << 10;
/// Largest command: a failing node's participants move as one. A batch stays below the 8 MiB that the
/// storage takes as one entry.
pub(crate) const COMMAND_MAX: usize = 6 << 20;
/// Batches under way at once. With one, a command waits for up to two rounds; with many, batches
/// get small and each costs an append and a round of its own.
const WINDOW: usize = 3;
/// Wait after a refusal, when the leader is in doubt.
const PAUSE: Duration = Duration::from_millis(10);
/// How often to look for commands that the leader applied and this node did not see applied.
const OVERDUE_TICK: Duration = Duration::from_millis(500);
const OVERDUE_AFTER: Duration = Duration::from_secs(1);

/// What became of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Applied at the leader.
    Applied,
    /// Certainly not in the log.
    Refused,
    /// Perhaps in the log.
    Unknown,
    /// Certainly not in the log, and trying again will not help.
    Invalid(String),
}

/// Stamps batches with the leader's wall clock, which never falls nor jumps on one node. (Across leaders the
/// state machine sees to it.)
#[derive(Default)]
pub(crate) struct Stamp {
    clock: Clock,
    last: AtomicU64,
}

impl Stamp {
    pub(crate) fn new(clock: Clock) -> Self {
        // It goes on from the time at which the node starts.
        let _ = clock.steady();
        Self {
            clock,
            last: AtomicU64::new(0),
        }
    }

    /// A time not before `applied`.
    pub(crate) fn next(&self, applied: UnixMillis) -> UnixMillis {
        let now = self.clock.steady().max(applied).0;
        UnixMillis(self.last.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

/// Appends a batch to this node's log, if it leads, and waits until it is applied. The first
/// future resolves when openraft has it, in order; the second with the verdict.
pub(crate) async fn append(
    raft: &Raft,
    batch: Batch,
) -> impl Future<Output = Verdict> + Send + use<> {
    let (responder, completed) = ProgressResponder::complete_only();
    let taken = raft.client_write_ff(batch, Some(responder)).await;
    async move {
        if taken.is_err() {
            return Verdict::Refused;
        }
        match completed.await {
            Ok(Ok(_)) => Verdict::Applied,
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Verdict::Refused,
            Ok(Err(_)) | Err(_) => Verdict::Unknown,
        }
    }
}

struct Settled {
    items: Vec<Item>,
    verdict: Verdict,
}

type Under = Pin<Box<dyn Future<Output = Settled> + Send>>;

/// Who leads, as far as this node knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Leader {
    Unknown,
    This,
    Other(NodeId, Member),
}

impl Leader {
    pub(crate) fn of(raft: &Raft, node: NodeId) -> Self {
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            None => Self::Unknown,
            Some(leader) if leader == node => Self::This,
            Some(leader) => match metrics.membership_config.membership().get_node(&leader) {
                None => Self::Unknown,
                Some(member) => Self::Other(leader, member.clone()),
            },
        }
    }
}

pub(crate) struct Driver {
    pub(crate) raft: Raft,
    pub(crate) network: Network,
    pub(crate) pending: Arc<Pending>,
    pub(crate) stamp: Arc<Stamp>,
    pub(crate) applied_at: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// The driver at work.
struct Running {
    driver: Driver,
    queue: mpsc::Receiver<Item>,
    ready: VecDeque<Item>,
    under_way: FuturesUnordered<Under>,
    leader: Leader,
    forwarder: Option<Forwarder>,
    paused_until: Option<Instant>,
}

impl Driver {
    /// Runs until the group stops.
    pub(crate) async fn run(self, queue: mpsc::Receiver<Item>) {
        let mut stop = self.stop.clone();
        let leader = Leader::of(&self.raft, self.network.local.node);
        let running = Running {
            driver: self,
            queue,
            ready: VecDeque::new(),
            under_way: FuturesUnordered::new(),
            leader,
            forwarder: None,
            paused_until: None,
        };
        let pending = Arc::clone(&running.driver.pending);
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = running.run() => {}
        }
        pending.clear();
    }
}

impl Running {
    async fn run(mut self) {
        let mut leaders = self.driver.raft.server_metrics();
        let mut overdue = tokio::time::interval(OVERDUE_TICK);
        overdue.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.dispatch().await;
            let may_send = self.may_send();
            let paused = self.paused_until;
            tokio::select! {
                biased;
                Some(settled) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.settle(settled);
                }
                changed = leaders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.set_leader(Leader::of(&self.driver.raft, self.driver.network.local.node));
                }
                item = self.queue.recv(), if may_send => match item {
                    Some(item) => self.ready.push_back(item),
                    None => return,
                },
                () = tokio::time::sleep_until(paused.unwrap_or_else(Instant::now)),
                    if paused.is_some() => self.paused_until = None,
                _ = overdue.tick() => {
                    let now = Instant::now();
                    self.ready.extend(self.driver.pending.overdue(now, OVERDUE_AFTER));
                }
            }
        }
    }

    fn may_send(&self) -> bool {
        self.under_way.len() < WINDOW
            && self.leader != Leader::Unknown
            && self.paused_until.is_none()
    }

    fn set_leader(&mut self, leader: Leader) {
        if self.leader != leader {
            tracing::debug!(?leader, "leader changed");
            // What the old leader has not answered becomes unknown, and is sent to the new one.
            self.forwarder = None;
            self.paused_until = None;
            self.leader = leader;
        }
    }

    /// Sends what is ready as far as the window allows.
    async fn dispatch(&mut self) {
        while self.may_send() {
            let items = self.collect();
            if !items.is_empty() {
                self.send(items).await;
            } else if self.ready.is_empty() {
                return;
            }
        }
    }

    fn collect(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        let mut bytes = 0;
        while items.len() < BATCH_COMMANDS_MAX && bytes < BATCH_BYTES {
            let next = self.ready.pop_front();
            let Some(item) = next.or_else(|| self.queue.try_recv().ok()) else {
                break;
            };
            bytes += item.command.len();
            items.push(item);
        }
        self.driver.pending.sending(&mut items);
        items
    }

    async fn send(&mut self, items: Vec<Item>) {
        let commands: Vec<Bytes> = items.iter().map(|item| item.command.clone()).collect();
        match &self.leader {
            Leader::Unknown => self.settle(Settled {
                items,
                verdict: Verdict::Refused,
            }),
            Leader::This => {
                let at = self.driver.stamp.next((self.driver.applied_at)());
                let verdict = append(&self.driver.raft, Batch { at, commands }).await;
                self.under_way.push(Box::pin(async move {
                    Settled {
                        items,
                        verdict: verdict.await,
                    }
                }));
            }
            Leader::Other(leader, member) => {
                let forwarder = match &mut self.forwarder {
                    Some(forwarder) if forwarder.is_open() => forwarder,
                    slot => slot.insert(Forwarder::open(
                        self.driver.network.clone(),
                        *leader,
                        member.clone(),
                    )),
                };
                let verdict = forwarder.send(commands).await;
                self.under_way.push(Box::pin(async move {
                    Settled {
                        items,
                        verdict: verdict.await,
                    }
                }));
            }
        }
    }

    fn settle(&mut self, settled: Settled) {
        let Settled { items, verdict } = settled;
        match verdict {
            Verdict::Applied => {
                self.driver.pending.acknowledged(&items, Instant::now());
                return;
            }
            Verdict::Invalid(reason) => {
                self.driver
                    .pending
                    .fail(&items, &ProposeError::Refused(reason));
                return;
            }
            Verdict::Refused => self.driver.pending.refused(&items),
            Verdict::Unknown => {}
        }
        self.paused_until = Some(Instant::now() + PAUSE);
        // Back to the front, in their order.
        for item in items.into_iter().rev() {
            self.ready.push_front(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_never_fall() {
        let clock = Clock::default();
        let stamp = Stamp::new(clock.clone());
        let first = stamp.next(UnixMillis(0));
        clock.set_offset(-3_600_000);
        let second = stamp.next(UnixMillis(0));
        assert!(second >= first);
        let applied = UnixMillis(second.0 + 10_000_000);
        let third = stamp.next(applied);
        assert_eq!(third, applied);
        assert!(stamp.next(UnixMillis(0)) >= third);
    }
}
