//! Carries a plan's faults out, takes them back, heals; and the administrator, whose changes race with
//! them.

use std::collections::BTreeSet;

use flotilla_model::cluster::NodeState;
use flotilla_model::command::{Command, ParticipantUpdate, Reply};
use flotilla_model::id::{Identity, NodeId, RoomName, UnixMillis};
use flotilla_model::participant::LeaveReason;

use crate::net::{CLEAR, End};
use crate::node::{DISK, FEED, Failure, Waiter};
use crate::plan::{Kind, Target};
use crate::raft::Members;
use crate::time::{Time, WallClock, ms};
use crate::witness::Fact;
use crate::world::{What, World};

/// What is to be taken back.
#[derive(Debug)]
pub enum Undo {
    /// Processes that start again.
    Start(Vec<u64>),
    /// A process that goes on.
    Thaw(u64),
    /// Ways that are free again.
    Mend(Vec<(End, End)>),
    /// On and off: the ways, and whether they are cut now.
    Flap(Vec<(End, End)>, bool),
    /// A process that comes and goes.
    Crashes(u64),
    /// The network is clear again.
    Clear,
    /// A disk is quick again.
    Disk(u64),
    /// A follower is in time again.
    Feed(u64),
    /// A node serves again.
    Serve(u64),
    /// A new node joins.
    Join,
}

/// Most difference between clocks that the product accepts of a node that joins.
const CLOCK_SKEW_MS: u64 = 5_000;
/// How often a flapping way changes.
const FLAP: (u64, u64) = (ms(200), ms(1500));
/// How long a process that crashes again and again is away, mostly and at most, and how long it lives.
const AWAY: [(u64, u64); 2] = [(ms(1), ms(20)), (ms(20), ms(300))];
const LIVES: (u64, u64) = (ms(1), ms(1500));

impl World {
    fn find(&mut self, target: Target) -> u64 {
        let running: Vec<u64> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| self.nodes[id].runs())
            .collect();
        let leads = |id: &u64| self.nodes[id].replica.leads();
        let leader = running
            .iter()
            .copied()
            .filter(leads)
            .max_by_key(|id| self.nodes[id].replica.term());
        let found = match target {
            Target::Node(node) => Some(node).filter(|node| self.nodes.contains_key(node)),
            Target::Leader => leader,
            Target::Follower => {
                let others: Vec<u64> = running
                    .iter()
                    .copied()
                    .filter(|id| Some(*id) != leader)
                    .collect();
                self.rng.pick(&others).copied()
            }
            Target::Home(client) => {
                self.clients
                    .get(client)
                    .and_then(|client| match client.phase {
                        crate::client::Phase::In(_, node) => Some(node),
                        _ => None,
                    })
            }
        };
        found.or_else(|| running.first().copied()).unwrap_or(1)
    }

    fn ends(&self) -> (Vec<End>, Vec<End>) {
        let nodes = self.nodes.keys().map(|id| End::Node(*id)).collect();
        let clients = (0..self.clients.len()).map(End::Client).collect();
        (nodes, clients)
    }

    fn cut(&mut self, ways: Vec<(End, End)>) -> Undo {
        for (from, to) in &ways {
            self.net.cut(self.now, *from, *to);
        }
        Undo::Mend(ways)
    }

    fn ways(&mut self, kind: Kind, id: u64) -> Vec<(End, End)> {
        let (nodes, clients) = self.ends();
        let own = End::Node(id);
        let others: Vec<End> = nodes.iter().copied().filter(|end| *end != own).collect();
        let there = |ends: &[End]| ends.iter().map(|end| (own, *end)).collect::<Vec<_>>();
        let back = |ends: &[End]| ends.iter().map(|end| (*end, own)).collect::<Vec<_>>();
        match kind {
            Kind::Isolate | Kind::Flap => [there(&others), back(&others)].concat(),
            Kind::Vanish => [
                there(&others),
                back(&others),
                there(&clients),
                back(&clients),
            ]
            .concat(),
            Kind::Clients => [there(&clients), back(&clients)].concat(),
            Kind::Mute => there(&others),
            Kind::Deaf => back(&others),
            Kind::Link => {
                let other = self.rng.pick(&others).copied();
                other.map_or_else(Vec::new, |other| vec![(own, other), (other, own)])
            }
            Kind::Offline => {
                let client = self.rng.pick(&clients).copied();
                client.map_or_else(Vec::new, |client| {
                    nodes
                        .iter()
                        .flat_map(|node| [(client, *node), (*node, client)])
                        .collect()
                })
            }
            _ => {
                // Halves; each client is on one side.
                let mut side = BTreeSet::from([own]);
                let all: Vec<End> = others.iter().chain(&clients).copied().collect();
                for end in &all {
                    if self.rng.per_mille(450) {
                        side.insert(*end);
                    }
                }
                let mut ways = Vec::new();
                for one in nodes.iter().chain(&clients) {
                    for other in nodes.iter().chain(&clients) {
                        if side.contains(one) != side.contains(other) {
                            ways.push((*one, *other));
                        }
                    }
                }
                ways
            }
        }
    }

    /// A fault begins.
    pub fn begin_fault(&mut self, number: usize) {
        if self.healed {
            return;
        }
        let fault = self.plan.faults[number];
        let id = self.find(fault.target);
        self.mark(id);
        self.witness
            .coverage
            .fault(fault.kind, self.nodes[&id].replica.leads());
        let undo = match fault.kind {
            Kind::Kill | Kind::Power => {
                self.kill(id, fault.kind == Kind::Power);
                Undo::Start(vec![id])
            }
            Kind::Blackout => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                for id in &all {
                    self.kill(*id, true);
                }
                Undo::Start(all)
            }
            Kind::Pause => {
                let node = self.node(id);
                if node.process.is_none() || node.stalled.is_some() {
                    return;
                }
                node.stalled = Some(Vec::new());
                Undo::Thaw(id)
            }
            Kind::Flap => {
                let ways = self.ways(fault.kind, id);
                self.after(0, What::Flap(number, true));
                Undo::Flap(ways, false)
            }
            Kind::Crashes => {
                self.after(0, What::Flap(number, true));
                Undo::Crashes(id)
            }
            Kind::Slow => {
                self.net.weather.delay = (ms(20), ms(120));
                Undo::Clear
            }
            Kind::Far => {
                self.net.weather.delay = (ms(50), ms(50));
                Undo::Clear
            }
            Kind::Lossy => {
                self.net.weather = crate::net::Weather {
                    delay: (300, ms(60)),
                    loss: 120,
                    double: 60,
                    late: 10,
                };
                Undo::Clear
            }
            Kind::Clock => {
                // As far apart as nodes may be that join, and a crystal a hundred times worse than others.
                let offset_ms = self.rng.below(2 * CLOCK_SKEW_MS) as i64 - CLOCK_SKEW_MS as i64;
                let drift_ppm = self.rng.below(20_000) as i64 - 10_000;
                self.node(id).wall = WallClock {
                    offset_ms,
                    drift_ppm,
                };
                return;
            }
            Kind::Disk => {
                self.node(id).disk = (ms(50), ms(2_500));
                Undo::Disk(id)
            }
            Kind::Behind => {
                self.node(id).feed = (ms(1), ms(400));
                Undo::Feed(id)
            }
            Kind::Drain => {
                self.set_state(id, NodeState::Draining);
                Undo::Serve(id)
            }
            Kind::Replace => {
                if !self.remove(id) {
                    return;
                }
                Undo::Join
            }
            Kind::Lag => {
                if let Some(process) = &mut self.node(id).process {
                    process.feed_restart = true;
                    process.feed.clear();
                }
                return;
            }
            kind => {
                let ways = self.ways(kind, id);
                self.cut(ways)
            }
        };
        self.undo.insert(number, undo);
        self.after(ms(fault.for_ms), What::Undo(number));
    }

    /// A way that flaps changes, or a process that comes and goes.
    pub fn flap(&mut self, number: usize, on: bool) {
        if let Some(Undo::Crashes(id)) = self.undo.get(&number) {
            let id = *id;
            let (least, most) = if on {
                AWAY[usize::from(self.rng.per_mille(300))]
            } else {
                LIVES
            };
            if on {
                self.kill(id, false);
            } else {
                self.start(id);
            }
            let wait = self.rng.range(least, most);
            self.after(wait, What::Flap(number, !on));
            return;
        }
        let Some(Undo::Flap(ways, is_cut)) = self.undo.get_mut(&number) else {
            return;
        };
        if *is_cut != on {
            *is_cut = on;
            let ways = ways.clone();
            for (from, to) in ways {
                if on {
                    self.net.cut(self.now, from, to);
                } else {
                    self.net.mend(from, to);
                }
            }
            self.free_streams();
        }
        let wait = self.rng.range(FLAP.0, FLAP.1);
        self.after(wait, What::Flap(number, !on));
    }

    /// A fault ends.
    pub fn end_fault(&mut self, number: usize) {
        let Some(undo) = self.undo.remove(&number) else {
            return;
        };
        match undo {
            Undo::Start(nodes) => {
                for id in nodes {
                    self.start(id);
                }
            }
            Undo::Crashes(id) => self.start(id),
            Undo::Thaw(id) => self.thaw(id),
            Undo::Mend(ways) => {
                for (from, to) in ways {
                    self.net.mend(from, to);
                }
            }
            Undo::Flap(ways, is_cut) => {
                for (from, to) in ways.into_iter().filter(|_| is_cut) {
                    self.net.mend(from, to);
                }
            }
            Undo::Clear => self.net.weather = CLEAR,
            Undo::Disk(id) => self.node(id).disk = DISK,
            Undo::Feed(id) => self.node(id).feed = FEED,
            Undo::Serve(id) => self.set_state(id, NodeState::Serving),
            Undo::Join => self.join_new(),
        }
        self.free_streams();
    }

    fn thaw(&mut self, id: u64) {
        if let Some(stalled) = self.node(id).stalled.take() {
            for what in stalled {
                self.after(0, what);
            }
        }
    }

    /// Everything is healed.
    pub fn heal(&mut self) {
        let open: Vec<usize> = self.undo.keys().copied().collect();
        for number in open {
            self.end_fault(number);
        }
        self.net.mend_all();
        self.net.weather = CLEAR;
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        for id in all {
            self.thaw(id);
            self.node(id).disk = DISK;
            self.node(id).feed = FEED;
            self.start(id);
            self.set_state(id, NodeState::Serving);
        }
        self.free_streams();
        self.healed = true;
        let now = self.now;
        self.fact(&Fact::Healed { at: now });
    }

    /// The newest leader that runs.
    fn newest_leader(&self) -> Option<u64> {
        let leading = self
            .nodes
            .values()
            .filter(|node| node.runs() && node.replica.leads());
        let newest = leading.max_by_key(|node| node.replica.term());
        newest.map(|node| node.id)
    }

    /// Whoever has added or removed a node asks again until the members are what they are to be: a leader that was
    /// cut off may have taken the change without a majority.
    fn keep_members(&mut self) {
        let Some(leader) = self.newest_leader() else {
            return;
        };
        let Members {
            mut voters,
            mut learners,
        } = self.node(leader).replica.members().clone();
        let known: BTreeSet<u64> = voters.union(&learners).copied().collect();
        let mut wrong = None;
        for node in self.nodes.values() {
            let is_known = known.contains(&node.id);
            if node.removed == is_known {
                wrong = Some((node.id, node.removed));
            }
        }
        match wrong {
            Some((id, true)) => {
                voters.remove(&id);
                learners.remove(&id);
                let command = Command::RemoveNode { node: NodeId(id) };
                self.propose(leader, command, Waiter::Admin(0));
            }
            Some((id, false)) => {
                learners.insert(id);
            }
            None => return,
        }
        self.replica(leader, |replica, _, _, out| {
            replica.change_members(Members { voters, learners }, out);
        });
    }

    fn any_running(&mut self) -> Option<u64> {
        let running: Vec<u64> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| self.nodes[id].runs())
            .collect();
        self.rng.pick(&running).copied()
    }

    fn set_state(&mut self, id: u64, state: NodeState) {
        if let Some(at) = self.any_running() {
            let command = Command::SetNodeState {
                node: NodeId(id),
                state,
            };
            self.propose(at, command, Waiter::Admin(0));
        }
    }

    /// An operator takes a node out of the cluster for good; a voter only if enough are left.
    fn remove(&mut self, id: u64) -> bool {
        let present = self.nodes.values().filter(|node| !node.removed).count();
        let leader = self.newest_leader();
        let Some(leader) = leader.filter(|leader| *leader != id && present > 3) else {
            return false;
        };
        let Members {
            mut voters,
            mut learners,
        } = self.node(leader).replica.members().clone();
        voters.remove(&id);
        learners.remove(&id);
        let mut changed = false;
        self.replica(leader, |replica, _, _, out| {
            changed = replica.change_members(Members { voters, learners }, out);
        });
        if !changed {
            return false;
        }
        self.propose(
            leader,
            Command::RemoveNode { node: NodeId(id) },
            Waiter::Admin(0),
        );
        self.kill(id, false);
        self.node(id).removed = true;
        self.witness.coverage.removed += 1;
        true
    }

    /// A node with an empty disk joins.
    fn join_new(&mut self) {
        let Some(leader) = self.newest_leader() else {
            return;
        };
        let id = self.nodes.keys().max().copied().unwrap_or(0) + 1;
        let Members {
            voters,
            mut learners,
        } = self.node(leader).replica.members().clone();
        learners.insert(id);
        let mut changed = false;
        self.replica(leader, |replica, _, _, out| {
            changed = replica.change_members(Members { voters, learners }, out);
        });
        if changed {
            let bug = self.bug;
            self.nodes
                .insert(id, crate::node::Node::new(id, Members::default(), bug));
            self.start(id);
            self.witness.coverage.added += 1;
        }
    }

    /// Notes whether a majority of the voters could decide at present.
    pub fn note_quorum(&mut self) {
        if !self.net.joins_nodes() {
            self.witness.cut(self.now);
        }
        let is_lossy = self.net.weather.loss >= 50;
        if is_lossy {
            self.witness.lossy(self.now);
        }
        let leader = self
            .nodes
            .values()
            .max_by_key(|node| node.replica.applied());
        let voters = leader
            .map(|node| node.replica.members().voters.clone())
            .unwrap_or_default();
        let reaches = |one: &u64, other: &u64| {
            one == other
                || !self.net.is_cut(End::Node(*one), End::Node(*other))
                    && !self.net.is_cut(End::Node(*other), End::Node(*one))
        };
        let works = |id: &u64| {
            let node = self.nodes.get(id);
            node.is_some_and(|node| node.runs() && node.disk.1 < ms(100))
        };
        let working: Vec<u64> = voters.iter().copied().filter(works).collect();
        let can = working.iter().any(|one| {
            let reached = working.iter().filter(|other| reaches(one, other)).count();
            reached > voters.len() / 2
        });
        let calm = !is_lossy && self.net.weather.delay.1 < ms(50);
        let all_well = working.len()
            == self
                .nodes
                .values()
                .filter(|node| !node.removed)
                .count()
                .min(voters.len())
            && self.net.is_whole();
        self.witness.quorum(self.now, can && calm, all_well && calm);
        let leads = |one: &u64| {
            let reached = working.iter().filter(|other| reaches(one, other)).count();
            self.nodes[one].replica.leads() && reached > voters.len() / 2
        };
        let is_led = working.iter().any(leads);
        let leaderless = self.witness.leaderless(self.now, can && !is_led);
        self.fact(&Fact::Watched { leaderless });
    }

    /// An administrator does something now and then.
    pub fn administrate(&mut self) {
        self.keep_members();
        let roll = self.rng.below(1000);
        let number = self.rng.below(self.clients.len() as u64) as usize;
        let (room, identity) = {
            let client = &self.clients[number];
            (
                RoomName(client.room.clone()),
                Identity(client.identity.clone()),
            )
        };
        let Some(at) = self.any_running() else {
            return;
        };
        let stamp = self.now.0;
        let command = match roll {
            0..30 => Command::UpdateParticipant {
                room,
                identity,
                update: ParticipantUpdate {
                    metadata: Some(format!("a{stamp}")),
                    ..ParticipantUpdate::default()
                },
            },
            30..50 => Command::SetRoomMetadata {
                room,
                metadata: format!("r{stamp}"),
            },
            50..56 if !self.healed => {
                // Tokens carry true time in seconds; whoever revokes means those issued so far.
                let before = UnixMillis((1_700_000_000 + stamp / 1_000_000 + 1) * 1000);
                self.fact(&Fact::Removes { client: number });
                Command::Leave {
                    room,
                    identity,
                    sid: None,
                    reason: LeaveReason::ParticipantRemoved,
                    revoke_before: Some(before),
                }
            }
            _ => return,
        };
        self.propose(at, command, Waiter::Admin(stamp));
    }

    /// What came of an administrator's change.
    pub fn admin_decided(&mut self, _operation: u64, result: &Result<Reply, Failure>) {
        if result.is_ok() {
            self.witness.coverage.administered += 1;
        }
    }

    /// The moment of a plan's time.
    #[must_use]
    pub const fn at_ms(&self, at: u64) -> Time {
        Time(ms(at))
    }
}
