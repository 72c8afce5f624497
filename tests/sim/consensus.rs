//! A node's side of the log: proposals until they are applied here, linearizable reads, the feed, and what
//! a leader does by itself. Models `flotilla_raft`'s proposer, reader, feed and duty.

use std::sync::Arc;

use flotilla_media::command::Command as EngineCommand;
use flotilla_model::command::Command;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{NodeId, RequestId, UnixMillis};

use crate::bug::Bug;
use crate::message::Message;
use crate::net::End;
use crate::node::{Failure, Pending, Read, Reader, Waiter};
use crate::raft::{Advance, Members, Out, RaftMessage, Replica};
use crate::rng::Rng;
use crate::time::{Time, ms, secs};
use crate::witness::Fact;
use crate::world::{What, World};

/// How long a proposal is tried.
const PROPOSE_MAX: u64 = secs(5);
/// How long a read is tried.
const READ_MAX: u64 = secs(5);
/// A leader that says nothing for so long is asked again.
const STALL: u64 = ms(1500);
/// How long a voter may be unreachable before a learner takes its place. The product's default is a minute.
const REPLACE_AFTER: u64 = secs(20);

impl World {
    /// Runs something on a replica and carries out what follows.
    pub fn replica(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Replica, Time, &mut Rng, &mut Vec<Out>),
    ) {
        let mut out = Vec::new();
        let now = self.now;
        let mut rng = self.rng.fork(self.now.0 ^ id << 48);
        self.rng.next();
        act(&mut self.node(id).replica, now, &mut rng, &mut out);
        for out in out {
            self.replica_out(id, out);
        }
    }

    fn replica_out(&mut self, id: u64, out: Out) {
        match out {
            Out::Send(to, message) => {
                self.datagram(End::Node(id), End::Node(to), Message::Raft(message));
            }
            Out::Sync(index) => {
                let (low, high) = self.node(id).disk;
                let takes = self.rng.range(low, high);
                let now = self.now;
                if let Some(process) = &mut self.node(id).process {
                    process.syncing.get_or_insert(now);
                    let boot = process.boot;
                    self.after(takes, What::Synced(id, boot, index));
                }
            }
            Out::Applied(advance) => self.applied(id, *advance),
            Out::Replaced => {
                if let Some(process) = &mut self.node(id).process {
                    process.feed.clear();
                    process.feed_restart = true;
                }
                let index = self.node(id).replica.applied();
                let state = Arc::clone(self.node(id).replica.state());
                self.fact(&Fact::Installed {
                    node: id,
                    index,
                    state: &state,
                });
                self.feed_soon(id);
                self.resolve_reads(id);
            }
            Out::ReadIndex(number, index) => {
                if let Some(process) = &mut self.node(id).process
                    && let Some(read) = process.reads.get_mut(&number)
                {
                    read.index.get_or_insert(index);
                }
                self.resolve_reads(id);
            }
            Out::Elected(term) => self.fact(&Fact::Elected { node: id, term }),
            Out::Committed(entry) => self.fact(&Fact::Committed {
                node: id,
                entry: &entry,
            }),
        }
    }

    /// The disk has done.
    pub fn disk_synced(&mut self, id: u64, index: u64) {
        self.process(id).syncing = None;
        self.replica(id, |replica, _, _, out| replica.synced(index, out));
    }

    fn applied(&mut self, id: u64, advance: Advance) {
        if self.witness.is_first(advance.entry.index) {
            self.note_first(&advance);
        }
        self.fact(&Fact::Applied {
            node: id,
            advance: &advance,
            hash: advance.hash,
        });
        self.witness.coverage.note(self.now, &advance);
        let Some(process) = &mut self.node(id).process else {
            return;
        };
        process.feed.extend(advance.changes.iter().cloned());
        let mut decided = Vec::new();
        for (request, result) in &advance.outcomes {
            if let Some(pending) = process.pending.remove(request) {
                decided.push((*request, pending.waiter, result.clone()));
            }
        }
        self.feed_soon(id);
        for (request, waiter, result) in decided {
            self.decided(id, request, waiter, result.map_err(Failure::Rejected));
        }
        self.resolve_reads(id);
    }

    /// An entry is applied somewhere for the first time: what it says of the world as it is.
    fn note_first(&mut self, advance: &Advance) {
        for ((_, command), (_, result)) in advance.entry.commands.iter().zip(&advance.outcomes) {
            if let Command::NodeLostIn {
                node, stint, cause, ..
            } = command
                && result.is_ok()
            {
                let suspect = &self.nodes[&node.0];
                let process = suspect
                    .process
                    .as_ref()
                    .filter(|process| process.boot == stint.boot);
                let holds = process.is_some_and(|process| process.lease.holds(self.instant()));
                let fact = Fact::Condemned {
                    node: node.0,
                    cause: *cause,
                    alive: process.is_some(),
                    holds,
                };
                self.fact(&fact);
            }
        }
        for event in advance.changes.iter().flat_map(|change| &change.events) {
            if let Event::Room {
                change:
                    RoomEvent::ParticipantLeft {
                        participant,
                        reason,
                    },
                ..
            } = event
            {
                let is_its =
                    |client: &&crate::client::Client| client.sid.as_ref() == Some(&participant.sid);
                let Some(client) = self
                    .clients
                    .iter()
                    .find(is_its)
                    .filter(|client| !client.gave_up)
                else {
                    continue;
                };
                let unwell = client.unwell_since.map(|since| self.now - since);
                let fact = Fact::LeftInLog {
                    client: client.number,
                    sid: &participant.sid,
                    reason: *reason,
                    unwell,
                };
                self.fact(&fact);
            }
        }
    }

    /// Proposes a change.
    pub fn propose(&mut self, id: u64, command: Command, waiter: Waiter) -> RequestId {
        let request = self.new_request();
        self.propose_as(id, request, command, waiter);
        request
    }

    /// A request's id.
    pub fn new_request(&mut self) -> RequestId {
        RequestId(u128::from(self.rng.next()) << 64 | u128::from(self.rng.next()))
    }

    /// Proposes a change under an id.
    pub fn propose_as(&mut self, id: u64, request: RequestId, command: Command, waiter: Waiter) {
        let only_in = matches!(waiter, Waiter::Verdict(_)).then(|| self.node(id).replica.term());
        let pending = Pending {
            command,
            waiter,
            deadline: self.now + PROPOSE_MAX,
            sent: None,
            only_in,
        };
        self.process(id).pending.insert(request, pending);
        self.send_proposals(id);
    }

    /// Verdicts of a term in which this node does not lead any more come to nothing.
    fn drop_verdicts(&mut self, id: u64) {
        let node = self.node(id);
        let (leads, term) = (node.replica.leads(), node.replica.term());
        let Some(process) = &mut node.process else {
            return;
        };
        let is_over = |pending: &Pending| pending.only_in.is_some_and(|of| !leads || of != term);
        let over: Vec<RequestId> = process
            .pending
            .iter()
            .filter(|(_, pending)| is_over(pending))
            .map(|(request, _)| *request)
            .collect();
        for request in over {
            if let Some(pending) = self.process(id).pending.remove(&request) {
                self.decided(id, request, pending.waiter, Err(Failure::Unavailable));
            }
        }
    }

    fn send_proposals(&mut self, id: u64) {
        self.drop_verdicts(id);
        let now = self.now;
        let node = self.node(id);
        let leader = node.replica.leader();
        let Some(process) = &mut node.process else {
            return;
        };
        if process.leader != leader {
            process.leader = leader;
            for pending in process.pending.values_mut() {
                pending.sent = None;
            }
        }
        let Some(leader) = leader else {
            return;
        };
        let mut again = Vec::new();
        let mut commands = Vec::new();
        for (request, pending) in &mut process.pending {
            if pending.sent.is_some_and(|sent| now - sent < STALL) {
                continue;
            }
            if pending.sent.is_some() {
                again.push(*request);
            }
            pending.sent = Some(now);
            commands.push((*request, pending.command.clone()));
        }
        if commands.is_empty() {
            return;
        }
        if self.bug == Some(Bug::RetryUnderNewId) && !again.is_empty() {
            commands = self.renamed(id, commands, &again);
        }
        if leader == id {
            let wall = self.node(id).wall.at(now);
            self.replica(id, |replica, _, _, out| {
                replica.propose(wall, commands, out);
            });
        } else {
            let message = Message::Raft(RaftMessage::Forward { commands });
            self.datagram(End::Node(id), End::Node(leader), message);
        }
    }

    fn renamed(
        &mut self,
        id: u64,
        commands: Vec<(RequestId, Command)>,
        again: &[RequestId],
    ) -> Vec<(RequestId, Command)> {
        let mut renamed = Vec::new();
        for (request, command) in commands {
            let mut name = request;
            if again.contains(&request) {
                name = self.new_request();
                self.fact(&Fact::SameAs {
                    request,
                    other: name,
                });
                let process = self.process(id);
                if let Some(pending) = process.pending.get(&request) {
                    let copy = Pending {
                        command: pending.command.clone(),
                        waiter: Waiter::Orphan,
                        deadline: pending.deadline,
                        sent: pending.sent,
                        only_in: pending.only_in,
                    };
                    process.pending.insert(name, copy);
                }
            }
            renamed.push((name, command));
        }
        renamed
    }

    /// A message of another replica, or of its node.
    pub fn raft_receives(&mut self, id: u64, from: u64, message: RaftMessage) {
        match message {
            RaftMessage::Forward { commands } => {
                let wall = self.node(id).wall.at(self.now);
                let requests: Vec<RequestId> = commands.iter().map(|(id, _)| *id).collect();
                let mut taken = false;
                self.replica(id, |replica, _, _, out| {
                    taken = replica.propose(wall, commands, out);
                });
                if !taken {
                    let message = Message::Raft(RaftMessage::NotLeader { requests });
                    self.datagram(End::Node(id), End::Node(from), message);
                }
            }
            RaftMessage::NotLeader { requests } => {
                let process = self.process(id);
                for request in requests {
                    if let Some(pending) = process.pending.get_mut(&request) {
                        pending.sent = None;
                    }
                }
            }
            other => {
                self.replica(id, |replica, now, rng, out| {
                    replica.handle(now, from, other, rng, out);
                });
            }
        }
    }

    /// Asks for a state that has everything acknowledged so far.
    pub fn read(&mut self, id: u64, reader: Reader, within: Option<u64>) {
        let floor = self.witness.acknowledged_index();
        let deadline = self.now + within.unwrap_or(READ_MAX);
        let index =
            (self.bug == Some(Bug::ReadWithoutIndex)).then(|| self.node(id).replica.applied());
        let process = self.process(id);
        let number = process.number();
        process.reads.insert(
            number,
            Read {
                reader,
                deadline,
                index,
                sent: None,
                floor,
            },
        );
        self.send_reads(id);
        self.resolve_reads(id);
    }

    fn send_reads(&mut self, id: u64) {
        let now = self.now;
        let node = self.node(id);
        let Some(leader) = node.replica.leader() else {
            return;
        };
        let Some(process) = &mut node.process else {
            return;
        };
        let mut due = Vec::new();
        for (number, read) in &mut process.reads {
            let waits = read.sent.is_some_and(|sent| now - sent < ms(300));
            if read.index.is_none() && !waits {
                read.sent = Some(now);
                due.push(*number);
            }
        }
        for number in due {
            if leader == id {
                self.replica(id, |replica, now, _, out| {
                    replica.read(number, None, now, out)
                });
            } else {
                let message = Message::Raft(RaftMessage::AskIndex { id: number });
                self.datagram(End::Node(id), End::Node(leader), message);
            }
        }
    }

    fn resolve_reads(&mut self, id: u64) {
        let now = self.now;
        let node = self.node(id);
        let applied = node.replica.applied();
        let Some(process) = &mut node.process else {
            return;
        };
        let is_over =
            |read: &Read| read.index.is_some_and(|index| applied >= index) || read.deadline <= now;
        let over: Vec<u64> = process
            .reads
            .iter()
            .filter(|(_, read)| is_over(read))
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            let Some(read) = self.process(id).reads.remove(&number) else {
                continue;
            };
            let done = read.index.is_some_and(|index| applied >= index);
            if done {
                self.fact(&Fact::Read {
                    node: id,
                    applied,
                    floor: read.floor,
                });
            }
            match read.reader {
                Reader::Return => self.return_read(id, done),
                Reader::Orphans(due) => self.orphans_read(id, due, done),
                Reader::Resume {
                    client,
                    connection,
                    connect,
                } => self.resume_read(id, client, connection, connect, done),
            }
        }
    }

    /// The log's share of a node's tick.
    pub fn consensus_tick(&mut self, id: u64) {
        self.replica(id, |replica, now, rng, out| replica.tick(now, rng, out));
        self.send_proposals(id);
        self.send_reads(id);
        self.resolve_reads(id);
        let now = self.now;
        let process = self.process(id);
        let late: Vec<RequestId> = process
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(request, _)| *request)
            .collect();
        for request in late {
            if let Some(pending) = self.process(id).pending.remove(&request) {
                self.decided(id, request, pending.waiter, Err(Failure::Unavailable));
            }
        }
        if self.process(id).ticks.is_multiple_of(4) && self.node(id).replica.leads() {
            self.expire(id);
            self.keep_voters(id);
        }
    }

    fn expire(&mut self, id: u64) {
        let wall = self.node(id).wall.at(self.now);
        let due = self.node(id).replica.full_state().next_deadline();
        let is_due = due.is_some_and(|due| due <= wall);
        if is_due && !self.process(id).expiring {
            self.process(id).expiring = true;
            self.propose(id, Command::Expire, Waiter::Expire);
        }
    }

    /// A live learner takes the place of a voter that has been silent for long, and learners fill up.
    fn keep_voters(&mut self, id: u64) {
        let now = self.now;
        let target = self.plan.voters as usize;
        let replica = &self.node(id).replica;
        let Members { voters, learners } = replica.members().clone();
        let is_ready = |learner: &&u64| {
            replica.lag(**learner).is_some_and(|lag| lag < 50)
                && replica
                    .silent_since(**learner)
                    .is_some_and(|heard| now - heard < ms(500))
        };
        let ready = learners.iter().find(is_ready).copied();
        let is_silent = |voter: &&u64| {
            **voter != id
                && replica
                    .silent_since(**voter)
                    .is_some_and(|heard| now - heard > REPLACE_AFTER)
        };
        let dead = voters.iter().find(is_silent).copied();
        let (mut voters, mut learners) = (voters.clone(), learners.clone());
        match (ready, dead) {
            (Some(ready), _) if voters.len() < target => {
                learners.remove(&ready);
                voters.insert(ready);
            }
            // One at a time: the dead one first, so that the majority stays what it is or falls.
            (Some(_), Some(dead)) if voters.len() >= target && voters.len() > 1 => {
                voters.remove(&dead);
                learners.insert(dead);
            }
            _ => return,
        }
        self.replica(id, |replica, _, _, out| {
            replica.change_members(Members { voters, learners }, out);
        });
    }

    /// The feed has something to pass on.
    pub fn feed_soon(&mut self, id: u64) {
        let (least, most) = self.node(id).feed;
        let wait = self.rng.range(least, most);
        if let Some(process) = &mut self.node(id).process
            && !process.feed_due
        {
            process.feed_due = true;
            let boot = process.boot;
            self.after(wait, What::Feed(id, boot));
        }
    }

    /// One step of a node's follower: `control::Follower::run` with its parts.
    pub fn follow_feed(&mut self, id: u64) {
        let now = self.instant();
        let state = Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        process.feed_due = false;
        if process.feed_restart {
            process.feed_restart = false;
            process.feed.clear();
            process.fed = state.revision.0;
            process.fed_state = Arc::clone(&state);
            let orders = process.reconciler.everything(&state);
            process.rooms.restart(now, Arc::clone(&state));
            let boot = process.boot;
            self.link_nodes(id, &state);
            self.order_engine(id, orders.into_iter().map(|order| order.command).collect());
            self.fact(&Fact::FedAnew {
                node: id,
                boot,
                state: &state,
            });
            self.rooms_changed(id);
            return;
        }
        let skips = self.bug == Some(Bug::FeedSkips) && self.rng.per_mille(10);
        let process = self.process(id);
        if skips {
            process.feed.pop_front();
        }
        let Some(change) = process.feed.pop_front() else {
            return;
        };
        process.fed = change.revision.0;
        process.fed_state = Arc::clone(&change.state);
        let of_nodes = change
            .events
            .iter()
            .any(|event| matches!(event, Event::NodeChanged(_) | Event::NodeRemoved(_)));
        let orders = process.reconciler.change(&change.events, &change.state);
        if of_nodes {
            let state = Arc::clone(&change.state);
            self.link_nodes(id, &state);
        }
        self.order_engine(id, orders.into_iter().map(|order| order.command).collect());
        let process = self.process(id);
        process.rooms.pass_on(now, &change);
        let boot = process.boot;
        let more = !process.feed.is_empty();
        self.fact(&Fact::Fed {
            node: id,
            boot,
            change: &change,
        });
        self.rooms_changed(id);
        if more {
            self.feed_soon(id);
        }
    }

    fn order_engine(&mut self, id: u64, commands: Vec<EngineCommand>) {
        let keeps_relays = self.bug == Some(Bug::RelayLeaked);
        let process = self.process(id);
        for command in commands {
            if keeps_relays && matches!(command, EngineCommand::StopRelayTo { .. }) {
                continue;
            }
            process.engine.order(command);
        }
    }

    /// Whether the state applied at a node says that it drains.
    #[must_use]
    pub fn is_serving(&self, id: u64) -> bool {
        let state = self.nodes[&id].replica.state();
        let record = state.nodes.get(&NodeId(id));
        record.is_some_and(|record| record.state == flotilla_model::cluster::NodeState::Serving)
    }

    /// Wall clock of a node.
    #[must_use]
    pub fn wall(&self, id: u64) -> UnixMillis {
        self.nodes[&id].wall.at(self.now)
    }
}
