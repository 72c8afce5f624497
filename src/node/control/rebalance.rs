//! Evens out what nodes of a region serve: one that serves clearly more than its share for a while asks
//! some of its clients to resume, and a balancer that counts connections leads them to nodes with less,
//! such as one that has just come.
//!
//! Nothing is decided here but whom to ask: a client is served until another node has it, and one that
//! comes back stays. [`Plan`] is pure; [`watch`] follows the state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::NodeState;
use flotilla_model::id::{Identity, NodeId, ParticipantSid, RoomName};
use flotilla_raft::Group;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::hub::Hub;
use crate::session::inbox::Message;

/// How often loads are compared.
const STEP: Duration = Duration::from_secs(1);
/// By then a client that was asked is at its new home, or back.
const SETTLE: Duration = Duration::from_secs(10);
/// Nobody is asked more often than this. A node whose clients all come back pauses as long.
const AGAIN: Duration = Duration::from_secs(600);
/// What a node may serve above its share, in parts of it and in participants.
const TOLERANCE: f64 = 0.2;
const TOLERANCE_MIN: f64 = 2.0;
/// So many outcomes say whether the balancer leads clients elsewhere. Before it is known, no more are
/// asked.
const TRIALS: u32 = 8;

/// A client to be asked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Chosen {
    /// Its room.
    pub room: RoomName,
    /// Who.
    pub identity: Identity,
    /// Its session.
    pub sid: ParticipantSid,
}

/// Whom to ask, and when.
pub struct Plan {
    node: NodeId,
    /// Asked per second; 0: nobody ever.
    per_second: u32,
    /// How long a node must have had too much.
    after: Duration,
    uneven_since: Option<Instant>,
    /// Who was asked, and when.
    asked: BTreeMap<ParticipantSid, Instant>,
    /// Those of them whose outcome is not known yet.
    moving: BTreeMap<Chosen, Instant>,
    moved: u32,
    stayed: u32,
    /// Clients that were asked do go elsewhere.
    is_proven: bool,
    paused_until: Option<Instant>,
}

impl Plan {
    /// A plan for this node.
    #[must_use]
    pub fn new(node: NodeId, per_second: u32, after: Duration) -> Self {
        Self {
            node,
            per_second,
            after,
            uneven_since: None,
            asked: BTreeMap::new(),
            moving: BTreeMap::new(),
            moved: 0,
            stayed: 0,
            is_proven: false,
            paused_until: None,
        }
    }

    /// Whom to ask now. To be called about once a second.
    pub fn pick(&mut self, now: Instant, state: &State) -> Vec<Chosen> {
        if self.per_second == 0 {
            return Vec::new();
        }
        self.settle(now, state);
        // Once it has begun, it goes on until nothing is left to even out.
        let has_begun = |since: Instant| now.saturating_duration_since(since) >= self.after;
        let Some(surplus) = self.surplus(state, self.uneven_since.is_some_and(has_begun)) else {
            self.uneven_since = None;
            return Vec::new();
        };
        let since = *self.uneven_since.get_or_insert(now);
        let is_paused = self.paused_until.is_some_and(|until| now < until);
        if is_paused || !has_begun(since) {
            return Vec::new();
        }
        let mut wanted = surplus.saturating_sub(self.moving.len());
        wanted = wanted.min(self.per_second as usize);
        if !self.is_proven {
            let tried = (self.moved + self.stayed) as usize + self.moving.len();
            wanted = wanted.min((TRIALS as usize).saturating_sub(tried));
        }
        let rooms = state.rooms.values();
        let rooms = rooms.filter(|room| room.homes.contains_key(&self.node));
        let served = rooms.flat_map(|room| {
            let here = room.participants.values();
            let here = here.filter(|participant| participant.home == self.node);
            here.map(|participant| (&room.name, participant))
        });
        let chosen: Vec<Chosen> = served
            .filter(|(_, participant)| !self.asked.contains_key(&participant.sid))
            .take(wanted)
            .map(|(room, participant)| Chosen {
                room: room.clone(),
                identity: participant.identity.clone(),
                sid: participant.sid.clone(),
            })
            .collect();
        for one in &chosen {
            self.asked.insert(one.sid.clone(), now);
            self.moving.insert(one.clone(), now);
        }
        chosen
    }

    /// Whether clients that were asked went elsewhere. If they do not, asking more of them only costs
    /// them a resume.
    fn settle(&mut self, now: Instant, state: &State) {
        self.asked
            .retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        let node = self.node;
        let (mut moved, mut stayed) = (0, 0);
        self.moving.retain(|one, at| {
            let room = state.rooms.get(&one.room);
            let present = room.and_then(|room| room.participants.get(&one.identity));
            let is_here = present.is_some_and(|p| p.sid == one.sid && p.home == node);
            let is_over = now.saturating_duration_since(*at) >= SETTLE;
            moved += u32::from(!is_here);
            stayed += u32::from(is_here && is_over);
            is_here && !is_over
        });
        self.moved += moved;
        self.stayed += stayed;
        if self.moved + self.stayed < TRIALS {
            return;
        }
        self.is_proven = self.stayed <= self.moved;
        if !self.is_proven {
            warn!(
                moved = self.moved,
                stayed = self.stayed,
                "clients that were asked to go elsewhere came back: the balancer does not lead them to \
                 nodes with fewer connections"
            );
            self.paused_until = Some(now + AGAIN);
        }
        (self.moved, self.stayed) = (0, 0);
    }

    /// How many participants this node serves above its share, if that is too many.
    fn surplus(&self, state: &State, has_begun: bool) -> Option<usize> {
        let own = state.nodes.get(&self.node)?;
        let nodes: BTreeSet<NodeId> = state
            .nodes
            .values()
            .filter(|node| node.state == NodeState::Serving && node.region == own.region)
            .map(|node| node.id)
            .collect();
        if nodes.len() < 2 || !nodes.contains(&self.node) {
            return None;
        }
        let (mut all, mut here) = (0u64, 0u64);
        for (home, count) in state.rooms.values().flat_map(|room| &room.homes) {
            if nodes.contains(home) {
                all += u64::from(*count);
                here += u64::from(*count) * u64::from(*home == self.node);
            }
        }
        let share = all as f64 / nodes.len() as f64;
        let most = if has_begun {
            share.ceil()
        } else {
            (share * (1.0 + TOLERANCE)).max(share + TOLERANCE_MIN)
        };
        (here as f64 > most).then(|| (here as f64 - share.ceil()) as usize)
    }
}

/// Asks clients of this node while it serves too many, until the task is dropped.
pub async fn watch(mut plan: Plan, group: Group, hub: Hub) {
    let mut step = tokio::time::interval(STEP);
    step.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        step.tick().await;
        let chosen = plan.pick(Instant::now(), &group.state());
        let mut count = 0;
        for one in chosen {
            if let Some(session) = hub.find(&one.room, &one.identity, Some(&one.sid)) {
                session.deliver(Message::Drain);
                count += 1;
            }
        }
        if count > 0 {
            info!(
                count,
                "this node serves more than its share: clients are asked to resume elsewhere"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_model::command::{Command, Rehome};

    use super::super::testing::World;
    use super::*;

    const AFTER: Duration = Duration::from_secs(30);

    /// So many participants at node 1, none at node 2.
    fn crowd(count: u32) -> World {
        let mut world = World::new();
        for number in 1..count {
            world.join(&format!("p{number}"));
        }
        world
    }

    fn go(world: &mut World, chosen: &[Chosen]) {
        let moves = chosen.iter().map(|one| {
            let participant = &world.state.rooms[&one.room].participants[&one.identity];
            Rehome {
                room: one.room.clone(),
                identity: one.identity.clone(),
                sid: one.sid.clone(),
                epoch: participant.epoch,
                home: NodeId(2),
            }
        });
        let moves = moves.collect();
        world.apply(Command::Rehome { moves });
    }

    #[test]
    fn half_of_them_go_to_the_second_node() {
        let mut world = crowd(40);
        let mut plan = Plan::new(NodeId(1), 6, AFTER);
        let mut idle = Plan::new(NodeId(2), 6, AFTER);
        let start = Instant::now();
        let mut moved = 0;
        for second in 0..120 {
            let now = start + STEP * second;
            let chosen = plan.pick(now, &world.state);
            assert_eq!(idle.pick(now, &world.state), []);
            assert!(chosen.is_empty() || now - start >= AFTER);
            assert!(chosen.len() <= 6);
            moved += chosen.len();
            if !chosen.is_empty() {
                go(&mut world, &chosen);
            }
        }
        assert_eq!(moved, 20);
    }

    #[test]
    fn a_little_more_than_its_share_is_left_alone() {
        let mut world = crowd(20);
        let chosen: Vec<_> =
            Plan::new(NodeId(1), 9, Duration::ZERO).pick(Instant::now(), &world.state);
        go(&mut world, &chosen);
        let mut plan = Plan::new(NodeId(1), 100, Duration::ZERO);
        assert_eq!(plan.pick(Instant::now(), &world.state), [], "12 and 8");
    }

    #[test]
    fn clients_that_come_back_are_not_asked_again_and_nobody_else_is() {
        let world = crowd(100);
        let mut plan = Plan::new(NodeId(1), 5, Duration::ZERO);
        let start = Instant::now();
        let mut asked = Vec::new();
        for second in 0..300 {
            asked.extend(plan.pick(start + STEP * second, &world.state));
        }
        let all: BTreeSet<_> = asked.iter().collect();
        assert_eq!((all.len(), asked.len()), (8, 8));
        assert!(!plan.pick(start + AGAIN * 2, &world.state).is_empty());
    }

    #[test]
    fn nobody_is_asked_if_it_is_off_or_there_is_no_other_node() {
        let mut world = crowd(100);
        let now = Instant::now();
        let mut off = Plan::new(NodeId(1), 0, Duration::ZERO);
        assert_eq!(off.pick(now, &world.state), []);
        let mut plan = Plan::new(NodeId(1), 5, Duration::ZERO);
        assert_eq!(plan.pick(now, &world.state).len(), 5);
        world.apply(Command::SetNodeState {
            node: NodeId(2),
            state: NodeState::Draining,
        });
        assert_eq!(plan.pick(now + STEP, &world.state), []);
    }
}
