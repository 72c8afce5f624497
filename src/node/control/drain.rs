//! Empties this node: at a chosen rate, everybody it serves moves to their standby.
//!
//! It begins when the log says that this node is draining (`flotilla node drain`), or when the process
//! is asked to stop. [`Plan`] says who is next and is pure; [`watch`] follows the log and proposes the
//! moves: a client is asked to resume, and becomes the participant of the node that it reaches.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::NodeState;
use flotilla_model::command::{Command, Rehome};
use flotilla_model::id::{Epoch, NodeId, ParticipantSid, RoomName};
use flotilla_raft::Group;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::hub::Hub;
use crate::session::inbox::Message;
use crate::session::new_request;

/// How often participants are picked.
const STEP: Duration = Duration::from_millis(50);
/// After this time a move that has not happened is asked for again.
const AGAIN: Duration = Duration::from_secs(10);
/// Moves per command.
const MOVES_MAX: usize = 256;
/// Moves that wait for whoever carries them out. When it is full, picking waits.
pub const MOVES_WAITING_MAX: usize = 256;

/// Who is to move where, and when.
pub struct Plan {
    node: NodeId,
    per_second: u32,
    /// How long balancers have to take this node out before the first move: a client that is asked to
    /// resume would be led back here.
    notice: Duration,
    /// Since when it drains.
    since: Option<Instant>,
    /// Moves earned since the last pick, in parts of one.
    earned: f64,
    picked_at: Option<Instant>,
    /// Asked to move already, under which epoch and when.
    asked: BTreeMap<(RoomName, ParticipantSid), (Epoch, Instant)>,
}

impl Plan {
    /// A plan for this node at a rate.
    #[must_use]
    pub fn new(node: NodeId, per_second: u32, notice: Duration) -> Self {
        Self {
            node,
            per_second,
            notice,
            since: None,
            earned: 0.0,
            picked_at: None,
            asked: BTreeMap::new(),
        }
    }

    /// Who moves next: nobody unless this node is draining and another one can take them.
    pub fn pick(&mut self, now: Instant, state: &State) -> Vec<Rehome> {
        let is_draining = state
            .nodes
            .get(&self.node)
            .is_some_and(|node| node.state == NodeState::Draining);
        if !is_draining {
            self.since = None;
            self.picked_at = None;
            self.earned = 0.0;
            self.asked.clear();
            return Vec::new();
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.notice {
            return Vec::new();
        }
        let rate = f64::from(self.per_second);
        // The first pick takes one step's worth; nothing is saved up for longer than a second.
        let since = self
            .picked_at
            .replace(now)
            .map_or(STEP, |before| now.saturating_duration_since(before));
        self.earned = (self.earned + since.as_secs_f64() * rate).min(rate.max(1.0));
        self.asked
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < AGAIN);
        let mut moves = Vec::new();
        let rooms = state.rooms.values();
        let rooms = rooms.filter(|room| room.homes.contains_key(&self.node));
        for (room, participant) in rooms.flat_map(|room| {
            let present = room.participants.values();
            present.map(move |participant| (room, participant))
        }) {
            if self.earned < 1.0 || moves.len() >= MOVES_MAX {
                break;
            }
            let key = (room.name.clone(), participant.sid.clone());
            let asked = self.asked.get(&key);
            if participant.home != self.node
                || asked.is_some_and(|(epoch, _)| *epoch == participant.epoch)
            {
                continue;
            }
            let Some(home) = state.standby(participant) else {
                break;
            };
            self.earned -= 1.0;
            self.asked.insert(key, (participant.epoch, now));
            moves.push(Rehome {
                room: room.name.clone(),
                identity: participant.identity.clone(),
                sid: participant.sid.clone(),
                epoch: participant.epoch,
                home,
            });
        }
        moves
    }
}

/// Picks moves while this node is draining and gives them to `moves`, until the task is dropped.
pub async fn watch(mut plan: Plan, group: Group, moves: mpsc::Sender<Vec<Rehome>>) {
    let mut step = tokio::time::interval(STEP);
    step.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        step.tick().await;
        let picked = plan.pick(Instant::now(), &group.state());
        if !picked.is_empty() && moves.send(picked).await.is_err() {
            return;
        }
    }
}

/// Carries moves out. Clients that are connected are asked to resume, which takes them to another
/// node while their media goes on here; who has no session here is moved in the log.
pub async fn carry_out(group: Group, hub: Hub, mut moves: mpsc::Receiver<Vec<Rehome>>) {
    while let Some(mut moves) = moves.recv().await {
        moves.retain(|rehome| {
            let session = hub.find(&rehome.room, &rehome.identity, Some(&rehome.sid));
            if let Some(session) = &session {
                session.deliver(Message::Drain);
            }
            session.is_none()
        });
        if moves.is_empty() {
            continue;
        }
        let count = moves.len();
        let command = Command::Rehome { moves };
        match group.propose(new_request(), command).await {
            Ok(_) => info!(count, "participants moved off this node"),
            Err(error) => warn!(count, %error, "participants stay for now"),
        }
    }
}

/// Whether another node could take what this one serves.
#[must_use]
pub fn has_successor(state: &State, node: NodeId) -> bool {
    let Some(own) = state.nodes.get(&node) else {
        return false;
    };
    let mut nodes = state.nodes.values();
    nodes.any(|other| {
        other.id != node && other.state == NodeState::Serving && other.region == own.region
    })
}

/// Whether this node still has somebody at home.
#[must_use]
pub fn is_empty(state: &State, node: NodeId) -> bool {
    let mut rooms = state.rooms.values();
    !rooms.any(|room| room.homes.contains_key(&node))
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    /// A hundred participants at node 1, which is draining.
    fn crowd() -> World {
        let mut world = World::new();
        for number in 1..100 {
            world.join(&format!("p{number}"));
        }
        set(&mut world, NodeState::Draining);
        world
    }

    fn set(world: &mut World, state: NodeState) {
        world.apply(Command::SetNodeState {
            node: NodeId(1),
            state,
        });
    }

    #[test]
    fn everybody_moves_at_the_rate() {
        let mut world = crowd();
        let mut plan = Plan::new(NodeId(1), 40, Duration::ZERO);
        let start = Instant::now();
        let mut moved = 0;
        for step in 0..200 {
            let moves = plan.pick(start + STEP * step, &world.state);
            assert!(moves.len() <= 3, "two per step");
            moved += moves.len();
            if !moves.is_empty() {
                assert!(moves.iter().all(|rehome| rehome.home == NodeId(2)));
                world.apply(Command::Rehome { moves });
            }
            if step == 19 {
                assert!((38..=42).contains(&moved), "{moved} in a second");
            }
        }
        assert_eq!(moved, 100);
        assert!(is_empty(&world.state, NodeId(1)));
    }

    #[test]
    fn a_move_that_does_not_happen_is_asked_for_again() {
        let world = crowd();
        let mut plan = Plan::new(NodeId(1), 100_000, Duration::ZERO);
        let start = Instant::now();
        assert_eq!(plan.pick(start, &world.state).len(), 100);
        assert_eq!(plan.pick(start + AGAIN / 2, &world.state), []);
        assert_eq!(plan.pick(start + AGAIN * 2, &world.state).len(), 100);
    }

    #[test]
    fn balancers_have_their_time_first() {
        let mut world = crowd();
        let notice = Duration::from_secs(2);
        let mut plan = Plan::new(NodeId(1), 100_000, notice);
        let start = Instant::now();
        assert_eq!(plan.pick(start, &world.state), []);
        assert_eq!(plan.pick(start + notice - STEP, &world.state), []);
        assert_eq!(plan.pick(start + notice, &world.state).len(), 100);
        // The next drain has its own.
        set(&mut world, NodeState::Serving);
        assert_eq!(plan.pick(start + notice * 2, &world.state), []);
        set(&mut world, NodeState::Draining);
        assert_eq!(plan.pick(start + notice * 3, &world.state), []);
        assert_eq!(plan.pick(start + notice * 4, &world.state).len(), 100);
    }

    #[test]
    fn nobody_moves_unless_it_drains_and_another_serves() {
        let mut world = crowd();
        let mut plan = Plan::new(NodeId(1), 1000, Duration::ZERO);
        let start = Instant::now();
        set(&mut world, NodeState::Serving);
        assert_eq!(plan.pick(start, &world.state), []);
        assert!(has_successor(&world.state, NodeId(1)));
        set(&mut world, NodeState::Draining);
        world.apply(Command::RemoveNode { node: NodeId(2) });
        assert!(!has_successor(&world.state, NodeId(1)));
        assert_eq!(plan.pick(start + STEP, &world.state), []);
        assert!(!is_empty(&world.state, NodeId(1)));
    }
}
