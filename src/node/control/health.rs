//! What is wrong with this node although it runs: its disk, its log, its sessions.
//!
//! [`Checkup`] judges, [`watch`] collects the facts and lets the pulses carry the result to the other
//! nodes, whose leader hands this node's people over if it lasts. Sessions are judged by outcome:
//! participants that joined here and became active, or never did.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::NodeId;
use flotilla_model::participant::{LeaveReason, ParticipantState};
use flotilla_raft::Group;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::mesh::{Ailing, Ailment};

/// How often the node looks at itself.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A write to the disk that takes longer does not end. Ordinary ones take milliseconds, on a busy
/// disk tenths of a second.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// Committed entries that are not applied for longer do not get applied.
const APPLY_MAX: Duration = Duration::from_secs(2);
/// Joins are judged by those of this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Fewer say nothing: a few clients may be behind a wall of their own.
const JOINS_MIN: usize = 10;
/// Outcomes kept.
const OUTCOMES_MAX: usize = 4096;

/// How joins at this node came out lately. Cheap to clone.
#[derive(Clone, Default)]
pub struct Outcomes {
    /// Written by the feed task, read by the checkup.
    recent: Arc<Mutex<VecDeque<(Instant, bool)>>>,
}

impl Outcomes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, bool)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whose joins came out by a change: `before` is the state before it.
    pub fn note(&self, now: Instant, node: NodeId, before: &State, events: &[Event]) {
        for event in events {
            let Event::Room { room, change, .. } = event else {
                continue;
            };
            let connected = match change {
                RoomEvent::ParticipantUpdated(participant)
                    if participant.home == node
                        && participant.state == ParticipantState::Active =>
                {
                    let known = before.rooms.get(room);
                    let known = known.and_then(|room| room.participants.get(&participant.identity));
                    if known.is_none_or(|known| known.state == ParticipantState::Active) {
                        continue;
                    }
                    true
                }
                RoomEvent::ParticipantLeft {
                    participant,
                    reason: LeaveReason::JoinFailure,
                } if participant.home == node => false,
                _ => continue,
            };
            self.push(now, connected);
        }
    }

    fn push(&self, now: Instant, connected: bool) {
        let mut recent = self.lock();
        if recent.len() >= OUTCOMES_MAX {
            recent.pop_front();
        }
        recent.push_back((now, connected));
    }

    /// Joins of the window, and how many of them never connected.
    fn count(&self, now: Instant) -> (usize, usize) {
        let mut recent = self.lock();
        while recent
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW)
        {
            recent.pop_front();
        }
        let failed = recent.iter().filter(|(_, connected)| !connected).count();
        (recent.len(), failed)
    }
}

/// Facts about this node.
#[derive(Clone, Copy, Debug)]
pub struct Vitals {
    /// How long the write under way has taken.
    pub writing: Option<Duration>,
    /// Last entry known to be committed.
    pub committed: Option<u64>,
    /// Last entry applied.
    pub applied: Option<u64>,
    /// Joins lately, and how many of them never connected.
    pub joins: (usize, usize),
}

/// Judges vitals over time.
#[derive(Default)]
pub struct Checkup {
    /// What was applied last, and since when nothing more is although there is more.
    stuck: Option<(Option<u64>, Instant)>,
}

impl Checkup {
    /// What is wrong now.
    pub fn judge(&mut self, now: Instant, vitals: Vitals) -> Ailment {
        let is_behind = vitals.committed > vitals.applied;
        self.stuck = match self.stuck {
            _ if !is_behind => None,
            Some((applied, since)) if applied == vitals.applied => Some((applied, since)),
            _ => Some((vitals.applied, now)),
        };
        let (joins, failed) = vitals.joins;
        if vitals.writing.is_some_and(|writing| writing > WRITE_MAX) {
            Ailment::Disk
        } else if self
            .stuck
            .is_some_and(|(_, since)| now.saturating_duration_since(since) > APPLY_MAX)
        {
            Ailment::Log
        } else if joins >= JOINS_MIN && failed > joins / 2 {
            Ailment::Sessions
        } else {
            Ailment::None
        }
    }
}

/// Looks at this node until the task is dropped.
pub async fn watch(group: Group, outcomes: Outcomes, ailing: Ailing) {
    let mut checkup = Checkup::default();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let now = Instant::now();
        let status = group.status();
        let vitals = Vitals {
            writing: group.health().pending,
            committed: status.committed.map(|committed| committed.index),
            applied: status.applied.map(|applied| applied.index),
            joins: outcomes.count(now),
        };
        let ailment = checkup.judge(now, vitals);
        if ailment != ailing.get() {
            match ailment {
                Ailment::None => info!("this node works again"),
                ailment => warn!(
                    ailment = ailment.as_str_name(),
                    ?vitals,
                    "this node is unwell"
                ),
            }
            ailing.set(ailment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Vitals = Vitals {
        writing: None,
        committed: Some(7),
        applied: Some(7),
        joins: (0, 0),
    };

    #[test]
    fn a_write_that_does_not_end_is_the_disk() {
        let mut checkup = Checkup::default();
        let now = Instant::now();
        assert_eq!(checkup.judge(now, WELL), Ailment::None);
        let writing = |time| Vitals {
            writing: Some(time),
            ..WELL
        };
        assert_eq!(checkup.judge(now, writing(WRITE_MAX)), Ailment::None);
        assert_eq!(checkup.judge(now, writing(WRITE_MAX * 2)), Ailment::Disk);
    }

    #[test]
    fn entries_that_are_not_applied_are_the_log() {
        let mut checkup = Checkup::default();
        let start = Instant::now();
        let mut judge = |after: u64, committed, applied| {
            let vitals = Vitals {
                committed: Some(committed),
                applied: Some(applied),
                ..WELL
            };
            checkup.judge(start + Duration::from_millis(after), vitals)
        };
        // Behind, but moving.
        for step in 0..20 {
            assert_eq!(judge(step * 1000, 100 + step, 10 + step), Ailment::None);
        }
        assert_eq!(judge(20_000, 130, 40), Ailment::None);
        assert_eq!(judge(22_000, 130, 40), Ailment::None);
        assert_eq!(judge(22_001, 130, 40), Ailment::Log);
        assert_eq!(judge(22_002, 130, 41), Ailment::None);
        assert_eq!(judge(40_000, 130, 130), Ailment::None);
    }

    #[test]
    fn sessions_are_judged_by_outcome() {
        let outcomes = Outcomes::default();
        let start = Instant::now();
        let mut checkup = Checkup::default();
        let mut judge = |now: Instant| {
            let joins = outcomes.count(now);
            checkup.judge(now, Vitals { joins, ..WELL })
        };
        for count in 1..JOINS_MIN {
            outcomes.push(start, false);
            assert_eq!(judge(start), Ailment::None, "{count} say nothing");
        }
        outcomes.push(start, false);
        assert_eq!(judge(start), Ailment::Sessions);
        for _ in 0..JOINS_MIN {
            outcomes.push(start, true);
        }
        assert_eq!(judge(start), Ailment::None, "half of them connect");
        outcomes.push(start + WINDOW, false);
        assert_eq!(judge(start + WINDOW), Ailment::Sessions);
        assert_eq!(judge(start + WINDOW * 2), Ailment::None);
        for _ in 0..OUTCOMES_MAX * 2 {
            outcomes.push(start, true);
        }
        assert_eq!(outcomes.lock().len(), OUTCOMES_MAX);
    }
}
