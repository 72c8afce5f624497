//! A node's ticks, its pulses, verdicts and lease: drives the product's `SignBook`, `Judge`, `Guard`,
//! `Orphans` and plans as its tasks do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotilla_model::State;
use flotilla_model::cluster::{LossCause, Stint};
use flotilla_model::command::Command;
use flotilla_model::id::NodeId;
use flotilla_model::participant::LeaveReason;
use flotilla_node::control::guard::{Deed, Guard, WayBack, way_back};
use flotilla_node::control::judge::{ASK_AGAIN, Judge, Step, View};
use flotilla_node::control::orphans::Orphan;
use flotilla_node::mesh::{Ailment, Question};
use flotilla_node::session::inbox::Message as Inward;

use crate::bug::Bug;
use crate::message::Message;
use crate::net::End;
use crate::node::{Answering, Asked, BOUND, Pulse, Reader, Return, TICK, Waiter};
use crate::time::{Time, ms, secs};
use crate::witness::Fact;
use crate::world::{What, World};

/// Pings per bound of silence, as the product sends them.
const PING: u64 = BOUND.as_micros() as u64 / 5;
/// Shortest and longest pause between knocks.
const KNOCK: (u64, u64) = (ms(10), ms(100));
/// How long a knock may go unanswered.
const KNOCK_MAX: u64 = ms(250);
/// A disk that is not done for so long is an ailment.
const AILING_AFTER: u64 = secs(1);
/// Lane of pulses.
const PULSE: u64 = 1;

impl World {
    /// A node's timers.
    pub fn tick(&mut self, id: u64) {
        let boot = self.process(id).boot;
        self.after(TICK, What::Tick(id, boot));
        self.process(id).ticks += 1;
        let now = self.instant();
        self.process(id).book.look(now, Duration::from_micros(TICK));
        self.consensus_tick(id);
        self.register(id);
        self.pulse(id);
        self.answer_questions(id);
        self.close_cases(id);
        let steps = self.decide(id, Judge::look);
        self.carry_out(id, steps);
        self.guard(id);
        self.look_for_ways(id);
        self.links_tick(id);
        self.claims_tick(id);
        self.sessions_tick(id);
        self.duties(id);
    }

    fn register(&mut self, id: u64) {
        let process = self.process(id);
        if process.registered || !process.ticks.is_multiple_of(8) {
            return;
        }
        let waits = process
            .pending
            .values()
            .any(|pending| matches!(pending.waiter, Waiter::Register));
        if !waits {
            let record = process.record.clone();
            self.propose(id, Command::PutNode(record), Waiter::Register);
        }
    }

    /// Asks the judge or the guard, with everything the node knows.
    fn view<T>(
        &mut self,
        id: u64,
        decide: impl FnOnce(&View<'_>, &mut Judge, &mut Guard) -> T,
    ) -> T {
        let now = self.instant();
        let node = self.node(id);
        let state: Arc<State> = Arc::clone(node.replica.state());
        let voters: BTreeSet<NodeId> = node
            .replica
            .members()
            .voters
            .iter()
            .map(|id| NodeId(*id))
            .collect();
        let leader = node.replica.leader().map(NodeId);
        let process = node.process.as_mut().expect("it runs");
        let view = View {
            now,
            leader,
            voters: &voters,
            state: &state,
            signs: &process.book,
        };
        decide(&view, &mut process.judge, &mut process.guard)
    }

    fn decide(
        &mut self,
        id: u64,
        decide: impl FnOnce(&mut Judge, &View<'_>) -> Vec<Step>,
    ) -> Vec<Step> {
        self.view(id, |view, judge, _| decide(judge, view))
    }

    fn carry_out(&mut self, id: u64, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Ask { case, within } => {
                    let boot = case.stint.boot;
                    if self.bug == Some(Bug::VerdictAlone) && self.node(id).replica.leads() {
                        self.condemn(id, case.suspect, case.stint, LossCause::Unreachable);
                        continue;
                    }
                    let open: BTreeSet<u64> = case.witnesses().iter().map(|node| node.0).collect();
                    let number = self.process(id).number();
                    for witness in &open {
                        let message = Message::Inquire {
                            id: number,
                            node: case.suspect.0,
                            boot,
                            bound: BOUND,
                            within,
                        };
                        self.datagram(End::Node(id), End::Node(*witness), message);
                    }
                    let patience = within.as_micros() as u64 * 3 / 2 + ms(50);
                    let deadline = self.now + patience;
                    self.process(id).cases.insert(
                        number,
                        Asked {
                            case,
                            open,
                            deadline,
                        },
                    );
                }
                Step::Condemn {
                    suspect,
                    stint,
                    cause,
                    ..
                } => self.condemn(id, suspect, stint, cause),
                Step::Pause(suspect) => {
                    let until = self.now + ASK_AGAIN.as_micros() as u64;
                    self.process(id).pauses.push((until, suspect));
                }
                Step::Campaign(leader) => {
                    self.witness.coverage.campaigns += 1;
                    self.replica(id, |replica, now, rng, out| {
                        replica.campaign(now, leader.0, rng, out);
                    });
                }
            }
        }
    }

    fn condemn(&mut self, id: u64, suspect: NodeId, stint: Stint, cause: LossCause) {
        let command = Command::NodeLostIn {
            node: suspect,
            stint,
            cause,
            taker: None,
        };
        self.propose(id, command, Waiter::Verdict(suspect));
    }

    fn close_cases(&mut self, id: u64) {
        let now = self.now;
        let process = self.process(id);
        let settled: Vec<NodeId> = process
            .pauses
            .iter()
            .filter(|(until, _)| *until <= now)
            .map(|(_, node)| *node)
            .collect();
        process.pauses.retain(|(until, _)| *until > now);
        for node in settled {
            process.judge.settled(node);
        }
        let over: Vec<u64> = process
            .cases
            .iter()
            .filter(|(_, asked)| {
                asked.open.is_empty() || asked.deadline <= now || asked.case.is_clear()
            })
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            if let Some(asked) = self.process(id).cases.remove(&number) {
                let steps = self.decide(id, |judge, view| judge.judge(view, asked.case));
                self.carry_out(id, steps);
            }
        }
    }

    fn answer_questions(&mut self, id: u64) {
        let now = self.instant();
        let process = self.process(id);
        let mut answers = Vec::new();
        process.answering.retain(|answering| {
            let finding = process.book.find(&answering.question, now);
            if let Some(finding) = finding {
                answers.push((answering.from, answering.id, finding));
            }
            finding.is_none()
        });
        for (to, number, finding) in answers {
            let message = Message::Found {
                id: number,
                finding,
            };
            self.datagram(End::Node(id), End::Node(to), message);
        }
    }

    /// Signs of life and questions about them.
    pub fn sign_receives(&mut self, id: u64, from: u64, message: Message) {
        let now = self.instant();
        let here = self.now;
        let ailing = self.is_ailing(id);
        let process = self.process(id);
        let (own, other) = (End::Node(id), End::Node(from));
        match message {
            Message::Ping { boot, to, sent } => {
                if to != process.boot {
                    self.datagram(own, other, Message::Refused { broke: true });
                    return;
                }
                process.book.heard(NodeId(from), boot, now);
                let boot = process.boot;
                self.stream(own, other, PULSE, Message::Pong { boot, sent, ailing });
            }
            Message::Pong { boot, sent, ailing } => {
                let is_open =
                    matches!(process.pulses.get(&from), Some(Pulse::Open(to, _)) if *to == boot);
                if is_open {
                    let ailment = if ailing { Ailment::Disk } else { Ailment::None };
                    let sent = self.base.instant(sent);
                    self.process(id)
                        .book
                        .answered(NodeId(from), boot, sent, ailment, now);
                }
            }
            Message::Knock => {
                let boot = process.boot;
                self.datagram(own, other, Message::Answer(boot));
            }
            Message::Answer(boot) => {
                if matches!(process.pulses.get(&from), Some(Pulse::Knocking(..))) {
                    process.book.knocked(NodeId(from), false, now);
                    process.pulses.insert(from, Pulse::Open(boot, here));
                }
            }
            Message::Refused { broke: true } => {
                if matches!(process.pulses.get(&from), Some(Pulse::Open(..))) {
                    process.book.broke(NodeId(from), now);
                    process
                        .pulses
                        .insert(from, Pulse::Knocking(KNOCK.0, here, None));
                }
                self.link_broke(id, from);
            }
            Message::Refused { broke: false } => {
                if let Some(Pulse::Knocking(pause, next, sent @ Some(_))) =
                    process.pulses.get_mut(&from)
                {
                    *sent = None;
                    *next = here + *pause;
                    *pause = (*pause * 2).min(KNOCK.1);
                    process.book.knocked(NodeId(from), true, now);
                }
            }
            Message::Inquire {
                id: number,
                node,
                boot,
                bound,
                within,
            } => {
                process.answering.push(Answering {
                    from,
                    id: number,
                    question: Question {
                        node: NodeId(node),
                        boot,
                        bound,
                        within,
                        asked: now,
                    },
                });
            }
            Message::Found {
                id: number,
                finding,
            } => {
                if self.found_way(id, from, number, finding) {
                    return;
                }
                if let Some(asked) = self.process(id).cases.get_mut(&number) {
                    asked.open.remove(&from);
                    asked.case.findings.insert(NodeId(from), finding);
                }
                self.close_cases(id);
            }
            _ => {}
        }
    }

    fn pulse(&mut self, id: u64) {
        let (now, here) = (self.instant(), self.now);
        let process = self.process(id);
        let boot = process.boot;
        let mut sends = Vec::new();
        for (other, pulse) in &mut process.pulses {
            match pulse {
                Pulse::Open(to, next) if *next <= here => {
                    *next = here + PING;
                    let (to, sent) = (*to, here);
                    sends.push((*other, Some(Message::Ping { boot, to, sent })));
                }
                Pulse::Open(..) => {}
                Pulse::Knocking(pause, next, sent) => match *sent {
                    Some(at) if here - at >= KNOCK_MAX => {
                        *sent = None;
                        *next = here + *pause;
                        *pause = (*pause * 2).min(KNOCK.1);
                        process.book.knocked(NodeId(*other), false, now);
                    }
                    None if *next <= here => {
                        *sent = Some(here);
                        sends.push((*other, None));
                    }
                    _ => {}
                },
            }
        }
        for (other, message) in sends {
            match message {
                Some(ping) => self.stream(End::Node(id), End::Node(other), PULSE, ping),
                None => self.datagram(End::Node(id), End::Node(other), Message::Knock),
            }
        }
    }

    /// Whether a node says that it is unwell.
    fn is_ailing(&self, id: u64) -> bool {
        let process = self.nodes[&id].process.as_ref();
        let since = process.and_then(|process| process.syncing);
        since.is_some_and(|since| self.now - since > AILING_AFTER)
    }

    /// Signs are kept of these nodes.
    pub fn listen_to(&mut self, id: u64, others: &BTreeSet<u64>) {
        let (now, here) = (self.instant(), self.now);
        let process = self.process(id);
        process.pulses.retain(|other, _| others.contains(other));
        for other in others {
            process.book.insert(NodeId(*other), now);
            process
                .pulses
                .entry(*other)
                .or_insert(Pulse::Knocking(KNOCK.0, here, None));
        }
        let known: Vec<NodeId> = process.book.all().keys().copied().collect();
        for node in known {
            if !others.contains(&node.0) {
                process.book.remove(node);
            }
        }
    }

    fn guard(&mut self, id: u64) {
        let ailment = if self.is_ailing(id) {
            Ailment::Disk
        } else {
            Ailment::None
        };
        let deed = self.view(id, |view, _, guard| guard.look(view, ailment));
        match deed {
            Deed::None => {}
            Deed::Lapsed(_) => self.lapsed(id),
            Deed::Read => self.go_back(id),
            Deed::LapsedAndRead(_) => {
                self.lapsed(id);
                self.go_back(id);
            }
            Deed::SendAway => {
                let rooms = &mut self.process(id).rooms;
                rooms.broadcast(|| Inward::LeaseLapsed);
                rooms.broadcast(|| Inward::Drain);
                self.rooms_changed(id);
                self.witness.coverage.sent_away += 1;
            }
        }
        if let Return::Strays(since) = self.process(id).returning {
            let state = Arc::clone(self.node(id).replica.state());
            let late = self.now - since > secs(3);
            if late || !self.process(id).rooms.has_strays(&state) {
                self.returned(id);
            }
        }
    }

    fn lapsed(&mut self, id: u64) {
        let process = self.process(id);
        process.holds = false;
        process.rooms.broadcast(|| Inward::LeaseLapsed);
        self.rooms_changed(id);
        self.witness.coverage.lapses += 1;
    }

    fn go_back(&mut self, id: u64) {
        let now = self.now;
        let process = self.process(id);
        match process.returning {
            Return::No => {}
            Return::Pause(until) if until <= now => {}
            _ => return,
        }
        process.returning = Return::UnderWay;
        self.read(id, Reader::Return, None);
    }

    /// The log has been read on the way back.
    pub fn return_read(&mut self, id: u64, done: bool) {
        let state = Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        if !done {
            self.return_fails(id);
            return;
        }
        match way_back(&state, NodeId(id), process.boot, process.open) {
            WayBack::Serve => {
                let (node, boot) = (NodeId(id), process.boot);
                self.propose(id, Command::NodeReturns { node, boot }, Waiter::Barrier);
            }
            WayBack::Wait => self.return_fails(id),
            WayBack::Register => {
                let record = process.record.clone();
                self.propose(id, Command::PutNode(record), Waiter::Return);
            }
        }
    }

    /// Nothing is on its way into the log any more that the read did not show.
    pub fn return_written(&mut self, id: u64, done: bool) {
        let now = self.now;
        let state = Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        let way = way_back(&state, NodeId(id), process.boot, process.open);
        if done && way == WayBack::Serve {
            process.returning = Return::Strays(now);
        } else {
            self.return_fails(id);
        }
    }

    /// The record has been written on the way back.
    pub fn return_registered(&mut self, id: u64, done: bool) {
        if done {
            self.process(id).returning = Return::Strays(self.now);
        } else {
            self.return_fails(id);
        }
    }

    fn return_fails(&mut self, id: u64) {
        self.process(id).returning = Return::Pause(self.now + ms(100));
    }

    fn returned(&mut self, id: u64) {
        self.process(id).returning = Return::No;
        if self.view(id, |view, _, guard| guard.returned(view)) {
            let process = self.process(id);
            process.holds = true;
            process.rooms.broadcast(|| Inward::LeaseHolds);
            let boot = process.boot;
            self.rooms_changed(id);
            self.fact(&Fact::LeaseHeld { node: id, boot });
        }
    }

    /// Whether a node may send now, by its own clock.
    #[must_use]
    pub fn may_send(&self, id: u64) -> bool {
        let lease = self.nodes[&id]
            .process
            .as_ref()
            .map(|process| &process.lease);
        self.bug == Some(Bug::LeaseNotAsked)
            || lease.is_some_and(|lease| lease.holds(self.instant()))
    }

    /// Orphans, drains and balance, at their intervals.
    fn duties(&mut self, id: u64) {
        let ticks = self.process(id).ticks;
        if ticks.is_multiple_of(20) {
            self.look_for_orphans(id);
        }
        if ticks.is_multiple_of(2) {
            self.drain(id);
        }
        if ticks.is_multiple_of(40) {
            self.rebalance(id);
            let now = self.instant();
            self.process(id).rooms.forget_old(now);
        }
    }

    fn look_for_orphans(&mut self, id: u64) {
        let now = self.instant();
        let state = Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        let rooms = &process.rooms;
        let due = process
            .orphans
            .look(now, &state, |room, sid| rooms.has_session(room, sid));
        let under_way = process
            .reads
            .values()
            .any(|read| matches!(read.reader, Reader::Orphans(_)));
        if !due.is_empty() && !under_way {
            self.read(id, Reader::Orphans(due), None);
        }
    }

    /// The log has been read for orphans whose time is over.
    pub fn orphans_read(&mut self, id: u64, due: Vec<Orphan>, done: bool) {
        if !done {
            return;
        }
        let state = Arc::clone(self.node(id).replica.state());
        for orphan in due {
            let process = self.process(id);
            if orphan.is_still(&state, NodeId(id))
                && !process.rooms.has_session(&orphan.room, &orphan.sid)
            {
                self.witness.coverage.orphans_left += 1;
                let command = Command::Depart {
                    room: orphan.room,
                    identity: orphan.identity,
                    sid: orphan.sid,
                    epoch: orphan.epoch,
                    reason: LeaveReason::SignalClose,
                };
                self.propose(id, command, Waiter::Orphan);
            }
        }
    }

    fn drain(&mut self, id: u64) {
        let now = self.instant();
        let state = Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        let mut moves = process.drain.pick(now, &state);
        if moves.is_empty() {
            return;
        }
        moves.retain(|rehome| {
            let session = process
                .rooms
                .find(&rehome.room, &rehome.identity, Some(&rehome.sid));
            if let Some(session) = &session {
                session.deliver(Inward::Drain);
            }
            session.is_none()
        });
        if !moves.is_empty() {
            self.propose(id, Command::Rehome { moves }, Waiter::Moves);
        }
        self.rooms_changed(id);
    }

    fn rebalance(&mut self, id: u64) {
        let now = self.instant();
        let state = Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        let mut asked = 0;
        for chosen in process.rebalance.pick(now, &state) {
            let session = process
                .rooms
                .find(&chosen.room, &chosen.identity, Some(&chosen.sid));
            if let Some(session) = session {
                session.deliver(Inward::Drain);
                asked += 1;
            }
        }
        self.witness.coverage.rebalanced += asked;
        if asked > 0 {
            self.rooms_changed(id);
        }
    }

    /// When a moment is, for the product's parts.
    #[must_use]
    pub fn moment(&self, time: Time) -> std::time::Instant {
        self.base.instant(time)
    }
}
