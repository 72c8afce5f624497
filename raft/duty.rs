//! What a leader does by itself: meets deadlines, keeps the voters complete, has snapshots built.
//!
//! Runs on every node and acts only where the node leads. Nothing is decided outside the log:
//! deadlines are met by proposing `Command::Expire`, whose time the log carries, so that a leader
//! that was paused and woke up cannot evict anybody; changes of voters are log entries too. Every
//! node builds its own snapshots.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_model::command::Command;
use flotilla_model::id::{NodeId, RequestId};
use openraft::{ChangeMembers, Instant as _};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error::ProposeError;
use crate::group::Group;
use crate::membership::Done;
use crate::stop::stopped;
use crate::types::Metrics;

/// How late a deadline may be met.
const EXPIRE_TICK: Duration = Duration::from_millis(100);
/// How often the voters are looked at.
const VOTERS_TICK: Duration = Duration::from_millis(200);
/// A gap this long between two looks means that this process was paused; what it knows about other
/// nodes' silence is its own.
const PAUSED: Duration = Duration::from_secs(2);

pub(crate) struct Duty {
    group: Group,
}

impl Duty {
    pub(crate) fn new(group: Group) -> Self {
        Self { group }
    }

    /// Runs until the group stops.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let voters = Voters {
            group: self.group.clone(),
            watching: None,
        };
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = self.announce() => {}
            () = self.expire() => {}
            () = self.snapshots() => {}
            () = voters.keep() => {}
        }
    }

    async fn announce(&self) {
        self.group.announce().await;
        std::future::pending().await
    }

    async fn expire(&self) {
        let core = &self.group.core;
        let mut tick = interval(EXPIRE_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let due = core.history.state().next_deadline();
            if due.is_none_or(|due| due > core.config.clock.steady()) || !core.raft.is_leader() {
                continue;
            }
            let request = RequestId(rand::random());
            match self.group.propose(request, Command::Expire).await {
                Ok(_) => {}
                Err(ProposeError::Stopped) => return,
                Err(error) => tracing::warn!(%error, "deadlines could not be met yet"),
            }
        }
    }

    async fn snapshots(&self) {
        let core = &self.group.core;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let bytes = core.progress.bytes_since_snapshot.load(Ordering::Relaxed);
            if bytes >= core.config.snapshot_bytes
                && let Err(error) = self.group.trigger_snapshot().await
            {
                tracing::debug!(%error, "no snapshot");
                return;
            }
        }
    }
}

/// Keeps the set of voters complete while this node leads.
struct Voters {
    group: Group,
    /// Since when this node leads without a pause, and when it last looked.
    watching: Option<Watching>,
}

#[derive(Clone, Copy)]
struct Watching {
    term: u64,
    since: Instant,
    looked: Instant,
}

/// A change of voters that is due.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// A change that was begun has to be ended.
    Finish,
    Promote(NodeId),
    Replace {
        dead: NodeId,
        by: NodeId,
    },
}

impl Voters {
    async fn keep(mut self) {
        let mut tick = interval(VOTERS_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some((metrics, since)) = self.look() else {
                continue;
            };
            if let Some(step) = self.step(&metrics, since) {
                self.take(step).await;
            }
        }
    }

    /// The metrics and since when this node leads; `None` if it does not.
    fn look(&mut self) -> Option<(Metrics, Instant)> {
        let core = &self.group.core;
        if !core.raft.is_leader() {
            self.watching = None;
            return None;
        }
        let metrics = core.metrics();
        let now = Instant::now();
        let watching = match self.watching {
            Some(watching)
                if watching.term == metrics.current_term
                    && now.duration_since(watching.looked) < PAUSED =>
            {
                Watching {
                    looked: now,
                    ..watching
                }
            }
            _ => Watching {
                term: metrics.current_term,
                since: now,
                looked: now,
            },
        };
        self.watching = Some(watching);
        Some((metrics, watching.since))
    }

    fn step(&self, metrics: &Metrics, since: Instant) -> Option<Step> {
        let core = &self.group.core;
        let config = metrics.membership_config.membership();
        if metrics.membership_config.log_id() != metrics.committed_membership_config.log_id() {
            // A change is under way.
            return None;
        }
        if config.get_joint_config().len() > 1 {
            return Some(Step::Finish);
        }
        let voters: BTreeSet<NodeId> = config.voter_ids().collect();
        let ready = core.ready_learners(metrics).into_iter().next()?;
        if voters.len() < core.config.voters_target {
            return Some(Step::Promote(ready));
        }
        let silent = |id: &NodeId| {
            let confirmed = metrics
                .heartbeat
                .as_ref()
                .and_then(|heartbeat| heartbeat.get(id)?.as_ref())
                .map(|confirmed| confirmed.elapsed());
            let led = since.elapsed();
            confirmed.map_or(led, |silent| silent.min(led)) > core.config.replace_dead_after
        };
        let dead = voters
            .into_iter()
            .find(|id| *id != core.config.node && silent(id))?;
        Some(Step::Replace { dead, by: ready })
    }

    async fn take(&self, step: Step) {
        let core = &self.group.core;
        // An administrator's change goes first; the next look sees what it made.
        let Ok(_one_at_a_time) = core.changing.try_lock() else {
            return;
        };
        let change = match &step {
            Step::Finish => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Step::Promote(node) => ChangeMembers::AddVoterIds(BTreeSet::from([*node])),
            Step::Replace { dead, by } => ChangeMembers::Batch(vec![
                ChangeMembers::AddVoterIds(BTreeSet::from([*by])),
                ChangeMembers::RemoveVoters(BTreeSet::from([*dead])),
            ]),
        };
        // Whoever is replaced stays a learner: it may come back.
        match core.commit(change, true).await {
            Done::Yes => tracing::info!(?step, "voters changed"),
            Done::AskLeader => {}
            Done::Refused(reason) => tracing::warn!(?step, reason, "voters not changed"),
            Done::Busy(reason) => tracing::debug!(?step, reason, "voters not changed yet"),
        }
    }
}
