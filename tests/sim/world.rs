//! A whole cluster with its clients and its network on one queue of events.
//!
//! ```text
//! queue ─ World::step ─┬─ node ticks, feeds, sessions ─ consensus.rs, detect.rs, links.rs, sessions.rs
//!                      ├─ arrivals ─ node or client
//!                      ├─ clients ─ client.rs
//!                      └─ faults ─ faults.rs
//!                 facts ─► witness.rs ─► invariants/*
//! ```
//! Single-threaded. All chance comes from the seed; nothing reads a clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use flotilla_model::id::{BootId, fnv1a};
use flotilla_signal::media;

use crate::bug::Bug;
use crate::client::{Client, Timer};
use crate::message::Message;
use crate::net::{End, Lane, Net};
use crate::node::Node;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::time::{Base, Time, ms};
use crate::witness::{Fact, Violation, Witness};

/// Something that happens at a moment.
#[derive(Debug)]
pub enum What {
    /// A node's timers.
    Tick(u64, BootId),
    /// A node's disk is done up to a place.
    Synced(u64, BootId, u64),
    /// A node follows its feed.
    Feed(u64, BootId),
    /// A node runs sessions that have something to do.
    Sessions(u64, BootId),
    /// A node's engine says something to a session.
    Engine(u64, BootId, u64, Box<media::Event>),
    /// A node's engine tries to reach a client.
    Check(u64, BootId, u64),
    /// A message arrives.
    Arrive(End, End, Option<u64>, Time, Box<Message>),
    /// A message arrives by way of another node.
    Carried(End, u64, End, Box<Message>),
    /// A held stream goes on.
    Flush(Lane),
    /// A client's timer.
    Client(usize, Timer),
    /// The plan's fault of this number begins.
    Fault(usize),
    /// It ends.
    Undo(usize),
    /// Between its beginning and its end it changes sides.
    Flap(usize, bool),
    /// A node's process starts.
    Start(u64),
    /// Everything is healed.
    Heal,
}

impl What {
    /// The node that has to run for it.
    const fn node(&self) -> Option<u64> {
        match self {
            Self::Tick(node, _)
            | Self::Synced(node, ..)
            | Self::Feed(node, _)
            | Self::Sessions(node, _)
            | Self::Engine(node, ..)
            | Self::Check(node, ..)
            | Self::Arrive(_, End::Node(node), ..)
            | Self::Carried(_, _, End::Node(node), _) => Some(*node),
            _ => None,
        }
    }

    fn digest(&self) -> u64 {
        let (kind, one, other) = match self {
            Self::Tick(node, _) => (1, *node, 0),
            Self::Synced(node, _, index) => (2, *node, *index),
            Self::Feed(node, _) => (3, *node, 0),
            Self::Sessions(node, _) => (4, *node, 0),
            Self::Engine(node, _, key, _) => (5, *node, *key),
            Self::Check(node, _, key) => (6, *node, *key),
            Self::Arrive(from, to, lane, ..) => (7, end(*from) << 8 | end(*to), lane.unwrap_or(0)),
            Self::Flush(lane) => (8, end(lane.0) << 8 | end(lane.1), lane.2),
            Self::Client(client, _) => (9, *client as u64, 0),
            Self::Fault(number) => (10, *number as u64, 0),
            Self::Undo(number) => (11, *number as u64, 0),
            Self::Flap(number, on) => (12, *number as u64, *on as u64),
            Self::Start(node) => (13, *node, 0),
            Self::Heal => (14, 0, 0),
            Self::Carried(from, via, to, _) => (15, end(*from) << 8 | end(*to), *via),
        };
        kind << 56 ^ one << 32 ^ other
    }
}

const fn end(end: End) -> u64 {
    match end {
        End::Node(node) => node,
        End::Client(client) => 128 + client as u64,
    }
}

struct Queued {
    at: Time,
    serial: u64,
    what: What,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// A run under way.
pub struct World {
    /// Now.
    pub now: Time,
    /// Where instants count from.
    pub base: Base,
    /// Chance.
    pub rng: Rng,
    /// The network.
    pub net: Net,
    /// Nodes by id, also those that are down.
    pub nodes: BTreeMap<u64, Node>,
    /// Clients.
    pub clients: Vec<Client>,
    /// Who watches.
    pub witness: Witness,
    /// The plan.
    pub plan: Plan,
    /// The bug that is planted.
    pub bug: Option<Bug>,
    /// Everything has been healed.
    pub healed: bool,
    /// Processes started so far; also the next start's number.
    pub boots: u64,
    /// Signal connections so far.
    pub connections: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    serial: u64,
    trace: u64,
    /// Hash of the states in the end.
    pub trace_end: u64,
    /// What faults have done, to be undone.
    pub undo: BTreeMap<usize, crate::faults::Undo>,
}

impl World {
    /// The cluster of a plan, before anything has happened.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let mut world = Self {
            now: Time(0),
            base: Base::new(),
            rng: Rng::new(plan.seed),
            net: Net::default(),
            nodes: BTreeMap::new(),
            clients: Vec::new(),
            witness: Witness::new(),
            bug: plan.bug,
            healed: false,
            boots: 0,
            connections: 0,
            queue: BinaryHeap::new(),
            serial: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            trace_end: 0,
            undo: BTreeMap::new(),
            plan,
        };
        world.found();
        world
    }

    fn found(&mut self) {
        let members = crate::raft::Members {
            voters: (1..=self.plan.voters.min(self.plan.nodes)).collect(),
            learners: (self.plan.voters + 1..=self.plan.nodes).collect(),
        };
        for id in 1..=self.plan.nodes {
            self.nodes
                .insert(id, Node::new(id, members.clone(), self.bug));
            let at = self.rng.range(0, ms(100));
            self.at(Time(at), What::Start(id));
        }
        let mut rng = self.rng.fork(7);
        for number in 0..self.plan.clients {
            self.clients.push(Client::new(number, &mut rng));
            let at = Time(ms(1500) + rng.range(0, ms(2500)));
            self.at(at, What::Client(number, Timer::Join));
            let beat = Time(rng.range(0, ms(400)));
            self.at(beat, What::Client(number, Timer::Beat));
        }
        for (number, timed) in self.plan.faults.clone().iter().enumerate() {
            self.at(Time(ms(timed.at_ms)), What::Fault(number));
        }
        let heal = Time(ms(self.plan.heal_ms()));
        self.at(heal, What::Heal);
    }

    /// Lets something happen later.
    pub fn at(&mut self, at: Time, what: What) {
        self.serial += 1;
        self.queue.push(Reverse(Queued {
            at: at.max(self.now),
            serial: self.serial,
            what,
        }));
    }

    /// Lets something happen after so many microseconds.
    pub fn after(&mut self, micros: u64, what: What) {
        self.at(self.now + micros, what);
    }

    /// A hash of everything that happened so far.
    #[must_use]
    pub const fn trace(&self) -> u64 {
        self.trace
    }

    /// Adds to the hash of what happened.
    pub fn mark(&mut self, value: u64) {
        self.trace = (self.trace ^ value)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(5);
    }

    /// Runs to a moment, or to the first violation.
    pub fn run_until(&mut self, end: Time) -> Result<(), Violation> {
        while let Some(Reverse(next)) = self.queue.peek()
            && next.at <= end
        {
            let Some(Reverse(Queued { at, what, .. })) = self.queue.pop() else {
                break;
            };
            self.now = at;
            self.step(what);
            if let Some(violation) = self.witness.violation() {
                return Err(violation);
            }
        }
        self.now = end;
        Ok(())
    }

    fn step(&mut self, what: What) {
        if let Some(node) = what.node()
            && let Some(node) = self.nodes.get_mut(&node)
            && let Some(stalled) = &mut node.stalled
        {
            stalled.push(what);
            return;
        }
        self.mark(self.now.0 ^ what.digest());
        match what {
            What::Tick(node, boot) => self.with(node, boot, |world| world.tick(node)),
            What::Synced(node, boot, index) => {
                self.with(node, boot, |world| world.disk_synced(node, index));
            }
            What::Feed(node, boot) => self.with(node, boot, |world| world.follow_feed(node)),
            What::Sessions(node, boot) => self.with(node, boot, |world| world.run_sessions(node)),
            What::Engine(node, boot, key, event) => {
                self.with(node, boot, |world| world.engine_says(node, key, *event));
            }
            What::Check(node, boot, key) => {
                self.with(node, boot, |world| world.engine_checks(node, key));
            }
            What::Arrive(from, to, lane, sent, message) => {
                if lane.is_none() || !self.net.is_lost(self.now, from, sent) {
                    self.arrive(from, to, lane, *message);
                }
            }
            What::Carried(from, via, to, message) => self.carried(from, via, to, *message),
            What::Flush(lane) => {
                for message in self.net.flush(self.now, lane) {
                    self.arrive(lane.0, lane.1, Some(lane.2), message);
                }
            }
            What::Client(client, timer) => self.client_timer(client, timer),
            What::Fault(number) => self.begin_fault(number),
            What::Undo(number) => self.end_fault(number),
            What::Flap(number, on) => self.flap(number, on),
            What::Start(node) => self.start(node),
            What::Heal => self.heal(),
        }
    }

    /// Runs something at a node if this start of its process is still there.
    fn with(&mut self, node: u64, boot: BootId, act: impl FnOnce(&mut Self)) {
        let process = self.nodes.get(&node).and_then(|node| node.process.as_ref());
        if process.is_some_and(|process| process.boot == boot) {
            act(self);
        }
    }

    /// Sends what may be lost.
    pub fn datagram(&mut self, from: End, to: End, message: Message) {
        if let Some(via) = self.by_way_of(from, to, &message) {
            self.carry(from, via, to, message);
            return;
        }
        for at in self.net.datagram(self.now, &mut self.rng, from, to) {
            let message = Box::new(message.clone());
            self.at(at, What::Arrive(from, to, None, self.now, message));
        }
    }

    /// Sends in order.
    pub fn stream(&mut self, from: End, to: End, lane: u64, message: Message) {
        if let Some(via) = self.by_way_of(from, to, &message) {
            self.carry(from, via, to, message);
            return;
        }
        let way = (from, to, lane);
        let at = self.net.stream(self.now, &mut self.rng, way);
        let arrives = What::Arrive(from, to, Some(lane), self.now, Box::new(message));
        self.at(at, arrives);
    }

    /// Streams that are free again go on after a while.
    pub fn free_streams(&mut self) {
        for lane in self.net.freed(self.now) {
            let wait = self.rng.range(ms(5), ms(300));
            self.after(wait, What::Flush(lane));
        }
    }

    fn arrive(&mut self, from: End, to: End, lane: Option<u64>, message: Message) {
        let message = match lane {
            Some(lane) => match self.net.hold(self.now, (from, to, lane), message) {
                Some(message) => message,
                None => return,
            },
            None if self.net.is_cut(from, to) => return,
            // Consensus goes over TCP, too; what is late is sent anew there.
            None if matches!(message, Message::Raft(_))
                && self.net.is_stalled(self.now, from, to) =>
            {
                return;
            }
            None => message,
        };
        match to {
            End::Node(node) => self.node_receives(node, from, message),
            End::Client(client) => self.client_receives(client, from, message),
        }
    }

    /// Something happened that invariants may want to know.
    pub fn fact(&mut self, fact: &Fact<'_>) {
        self.witness.see(self.now, fact);
    }

    /// A hash of a text, for the trace.
    pub fn mark_text(&mut self, text: &str) {
        self.mark(fnv1a(text.as_bytes()));
    }
}
