//! Participants who are at home here without a session: their client may still come.
//!
//! They were moved here when their node was lost, or this node (or the whole cluster) started again.
//! Whoever's client has not resumed anywhere after the time that clients get for it leaves, as if its
//! signal connection had gone away and not returned. [`Orphans`] is pure; [`watch`] is its driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::command::Command;
use flotilla_model::id::{Epoch, Identity, NodeId, ParticipantSid, RoomName};
use flotilla_model::participant::{LeaveReason, Participant};
use flotilla_raft::Group;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::hub::Hub;
use crate::session::new_request;
use crate::telemetry::Metrics;

/// How often the participants at home here are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Orphans that leave after one look; the others at the next.
const LEAVES_MAX: usize = 256;

/// A participant without a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Orphan {
    /// Its room.
    pub room: RoomName,
    /// Who.
    pub identity: Identity,
    /// Which session.
    pub sid: ParticipantSid,
    /// The epoch under which it has no session here.
    pub epoch: Epoch,
}

impl Orphan {
    /// Whether the state still says what it said when the orphan was found.
    #[must_use]
    pub fn is_still(&self, state: &State, node: NodeId) -> bool {
        state
            .rooms
            .get(&self.room)
            .and_then(|room| room.participants.get(&self.identity))
            .is_some_and(|participant| {
                participant.sid == self.sid
                    && participant.epoch == self.epoch
                    && participant.home == node
            })
    }
}

/// Who has no session here, and since when.
pub struct Orphans {
    node: NodeId,
    timeout: Duration,
    since: BTreeMap<(RoomName, ParticipantSid), (Epoch, Instant)>,
}

impl Orphans {
    /// None yet; `timeout` is how long clients get to resume.
    #[must_use]
    pub fn new(node: NodeId, timeout: Duration) -> Self {
        Self {
            node,
            timeout,
            since: BTreeMap::new(),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.since.len()
    }

    /// Looks at everybody at home here; those whose time is over. They are named again at each look
    /// until they have left or have a session.
    pub fn look(
        &mut self,
        now: Instant,
        state: &State,
        has_session: impl Fn(&RoomName, &ParticipantSid) -> bool,
    ) -> Vec<Orphan> {
        let mut since = BTreeMap::new();
        let mut due = Vec::new();
        for room in state.rooms.values() {
            if !room.homes.contains_key(&self.node) {
                continue;
            }
            for participant in room.participants.values() {
                if participant.home != self.node || has_session(&room.name, &participant.sid) {
                    continue;
                }
                let key = (room.name.clone(), participant.sid.clone());
                // A new epoch is a new beginning: the client was told of another node meanwhile.
                let begun = match self.since.get(&key) {
                    Some((epoch, begun)) if *epoch == participant.epoch => *begun,
                    _ => now,
                };
                if now.saturating_duration_since(begun) >= self.timeout {
                    due.push(orphan(&room.name, participant));
                }
                since.insert(key, (participant.epoch, begun));
            }
        }
        self.since = since;
        due
    }
}

fn orphan(room: &RoomName, participant: &Participant) -> Orphan {
    Orphan {
        room: room.clone(),
        identity: participant.identity.clone(),
        sid: participant.sid.clone(),
        epoch: participant.epoch,
    }
}

/// Watches until the task is dropped.
pub async fn watch(node: NodeId, group: Group, hub: Hub, timeout: Duration, metrics: Arc<Metrics>) {
    let mut orphans = Orphans::new(node, timeout);
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let mut due = orphans.look(Instant::now(), &group.state(), |room, sid| {
            hub.has_session(room, sid)
        });
        let count = i64::try_from(orphans.count()).unwrap_or(i64::MAX);
        metrics.orphans.set(count);
        if due.is_empty() {
            continue;
        }
        due.truncate(LEAVES_MAX);
        // What is old here may be decided otherwise by now: somebody else may have adopted them.
        let state = match group.read().await {
            Ok(state) => state,
            Err(error) => {
                debug!(%error, "orphans stay until the log can be read");
                continue;
            }
        };
        for orphan in due {
            if orphan.is_still(&state, node) && !hub.has_session(&orphan.room, &orphan.sid) {
                leave(&group, orphan).await;
            }
        }
    }
}

async fn leave(group: &Group, orphan: Orphan) {
    let command = Command::Depart {
        room: orphan.room.clone(),
        identity: orphan.identity,
        sid: orphan.sid.clone(),
        epoch: orphan.epoch,
        reason: LeaveReason::SignalClose,
    };
    match group.propose(new_request(), command).await {
        Ok(_) => info!(
            room = %orphan.room,
            participant = %orphan.sid,
            epoch = orphan.epoch.0,
            "nobody resumed this session; the participant left"
        ),
        Err(error) => warn!(participant = %orphan.sid, %error, "an orphan remains"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn whoever_is_not_resumed_in_time_is_due() {
        let world = World::new();
        let mut orphans = Orphans::new(NodeId(1), TIMEOUT);
        let start = Instant::now();
        let mut look = |after, has: bool| orphans.look(start + after, &world.state, |_, _| has);
        assert_eq!(look(Duration::ZERO, false), []);
        assert_eq!(look(TIMEOUT - Duration::from_millis(1), false), []);
        let due = look(TIMEOUT, false);
        assert_eq!(due.len(), 1);
        assert!(due[0].is_still(&world.state, NodeId(1)));
        // A session in between starts the time anew.
        assert_eq!(look(TIMEOUT, true), []);
        assert_eq!(look(TIMEOUT, false), []);
        assert_eq!(look(TIMEOUT * 2, false).len(), 1);
        assert_eq!(orphans.count(), 1);
    }

    #[test]
    fn a_move_in_between_lifts_the_sentence() {
        let mut world = World::new();
        let mut orphans = Orphans::new(NodeId(1), TIMEOUT);
        let start = Instant::now();
        assert_eq!(orphans.look(start, &world.state, |_, _| false), []);
        let due = orphans.look(start + TIMEOUT, &world.state, |_, _| false);
        world.rehome(2);
        assert!(!due[0].is_still(&world.state, NodeId(1)));
        assert_eq!(
            orphans.look(start + TIMEOUT, &world.state, |_, _| false),
            []
        );
        assert_eq!(orphans.count(), 0);
        // Back here under a newer epoch, it has its full time, and the old sentence stays lifted.
        world.rehome(1);
        assert!(!due[0].is_still(&world.state, NodeId(1)));
        assert_eq!(
            orphans.look(start + TIMEOUT, &world.state, |_, _| false),
            []
        );
        let after = start + TIMEOUT * 2;
        assert_eq!(orphans.look(after, &world.state, |_, _| false).len(), 1);
        // At another node it is nobody's business here.
        let mut others = Orphans::new(NodeId(2), TIMEOUT);
        assert_eq!(others.look(after, &world.state, |_, _| false), []);
        assert_eq!(others.count(), 0);
    }
}
