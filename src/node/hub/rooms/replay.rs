//! What is sent again to those who join or move.
//!
//! ```text
//! joined ─ replay ───────────── the last moments, from the senders' homes
//! moved ── replay_moved ─────── what was on its way to the former home, from the new home itself, and, as it asks for it,
//!                              from the senders' homes, or, if one has forgotten it, from whom it was sent again
//! a home has forgotten ──────── replay_forgotten: what came from it, from everybody else, to those who moved meanwhile
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use flotilla_model::State;
use flotilla_model::cluster::Formats;
use flotilla_model::id::{BootId, Identity, NodeId, ParticipantSid, Revision, RoomName};
use flotilla_model::participant::Participant;
use flotilla_signal::data::{Cache, DataOut, Sent};
use tracing::trace;

use super::{LocalSession, Outgoing, Rooms, to_proto};
use crate::mesh::{Body, VERSION_OF_WANTED, proto};
use crate::session::inbox::Message;

/// Runs of numbers that are told of each sender and cache, at most, when others are asked for the rest. What is not told is
/// sent once more than needed.
const RUNS_PER_SENDER: usize = 16;
/// Of all senders.
const RUNS_MAX: usize = 1024;

/// Where a message came from: a node, and which start of it. Another start of it has nothing to send again.
pub(super) type Origin = (NodeId, BootId);

/// Why others are asked for what a participant lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    /// It has come from this node, and been given all that is kept here.
    Moved(NodeId),
    /// This node is lost, and what came from it has been given.
    Lost(NodeId),
    /// This node was lost when the others were asked, and is back. What came from it meanwhile may not have been
    /// given, since it did not know of the move.
    Back(NodeId),
}

/// Sends kept messages once more.
struct Again<'a> {
    now: Instant,
    node: NodeId,
    state: &'a State,
    revision: Revision,
    outgoing: &'a mut Vec<Outgoing>,
}

impl Again<'_> {
    /// To one participant, wherever it is at home; `sessions` are those of the room here.
    fn send(
        &mut self,
        name: &RoomName,
        sent: &Sent,
        to: &Participant,
        sessions: &BTreeMap<ParticipantSid, LocalSession>,
    ) {
        if to.home != self.node {
            self.hand_on(name, sent, to.home, &to.sid);
        } else if let Some(session) = sessions.get(&to.sid) {
            let message = Arc::clone(&sent.message);
            session.inbox.deliver(Message::Data(message));
        }
    }

    /// To another node, for this participant alone.
    fn hand_on(&mut self, name: &RoomName, sent: &Sent, to: NodeId, only: &ParticipantSid) {
        let data = to_proto(self.now, name, sent, Some(only), self.revision);
        let outgoing = Outgoing::new(self.state, to, Body::Data(data), true);
        self.outgoing.push(outgoing);
    }
}

impl Rooms {
    /// Somebody joined, here or elsewhere: recent messages of participants here are for them too. What people said who
    /// have left is not: clients would not know who they were.
    pub(super) fn replay(&mut self, now: Instant, name: &RoomName, joined: &Participant) {
        let is_here = joined.home == self.node;
        let revision = self.revision;
        let mut again = Again {
            now,
            node: self.node,
            state: &self.state,
            revision,
            outgoing: &mut self.outgoing,
        };
        let local = if is_here {
            self.rooms.entry(name.clone()).or_default()
        } else {
            match self.rooms.get_mut(name) {
                Some(local) => local,
                None => return,
            }
        };
        let room = self.state.rooms.get(name);
        for sent in local.cache.replay(now) {
            let message = &sent.message;
            let sender = room.and_then(|room| room.participants.get(&message.from_identity));
            let is_there = sender.is_some_and(|sender| sender.sid == message.from);
            if is_there && message.is_for(&joined.identity) {
                again.send(name, sent, joined, &local.sessions);
            }
        }
        if let Some(session) = local.sessions.get_mut(&joined.sid) {
            trace!(participant = %joined.sid, ?revision, "who has joined hears data");
            session.joined = true;
            session.since = revision;
        }
    }

    /// A participant has a new home: what was on its way to the former one is sent again. Sessions
    /// drop what their client has. The new home takes whatever it has, and asks the others for what it lacks.
    pub(super) fn replay_moved(
        &mut self,
        now: Instant,
        name: &RoomName,
        moved: &Participant,
        former: NodeId,
    ) {
        let is_here = moved.home == self.node;
        if is_here {
            self.rooms.entry(name.clone()).or_default();
        }
        let Some(local) = self.rooms.get_mut(name) else {
            return;
        };
        local
            .moved
            .insert(moved.identity.clone(), (moved.sid.clone(), now));
        if is_here || !asks(&self.state, moved.home) {
            self.replay_kept(now, name, moved, former, None);
        }
        if is_here {
            let local = self.rooms.get_mut(name);
            let session = local.and_then(|local| local.sessions.get_mut(&moved.sid));
            if let Some(session) = session {
                session.joined = true;
                session.since = self.revision;
            }
            self.ask(name, moved, Why::Moved(former));
        }
    }

    /// Sends a participant again what it may lack after the loss of `former`. At its home that is all that is kept here.
    /// Others give what they alone are sure to have: the messages of participants here, and those that came from a home
    /// that its sender has lost as well, be it that its process has started anew since. A former home that is asked gives all
    /// that is kept there: the participant may not have got it, and a sender's home may be silent without being lost yet.
    fn replay_kept(
        &mut self,
        now: Instant,
        name: &RoomName,
        moved: &Participant,
        former: NodeId,
        has: Option<&Runs<'_>>,
    ) {
        let (state, revision) = (self.state.clone(), self.revision);
        let room = state.rooms.get(name);
        let Some(local) = self.rooms.get_mut(name) else {
            return;
        };
        let is_here = moved.home == self.node;
        let gives_all = is_here || (has.is_some() && former == self.node);
        let is_due = |sent: &Sent| {
            let message = &sent.message;
            let is_there = has.is_some_and(|has| has.contain(&message.from, message.sequence));
            is_for(message, moved) && !is_there
        };
        let mut kept: Vec<Sent> = Vec::new();
        for ((origin, boot), cache) in &mut local.moves {
            let has_it_still = boot_of(&state, *origin) == *boot;
            for sent in cache.replay_since(now, moved.joined_at) {
                let message = &sent.message;
                let sender = room.and_then(|room| room.participants.get(&message.from_identity));
                let is_ours = gives_all
                    || *origin == self.node
                    || *origin == former
                    || !has_it_still
                    || sender.is_none_or(|sender| sender.home != *origin);
                if is_ours && is_due(sent) {
                    kept.push(sent.clone());
                }
            }
        }
        for ((origin, boot), cache) in &mut local.again {
            let record = state.nodes.get(origin);
            let has_it_still =
                record.is_some_and(|record| record.boot == *boot && !record.state.is_lost());
            if gives_all || *origin == former || !has_it_still {
                let due = cache.replay_since(now, moved.joined_at);
                kept.extend(due.filter(|sent| is_due(sent)).cloned());
            }
        }
        let mut again = Again {
            now,
            node: self.node,
            state: &state,
            revision,
            outgoing: &mut self.outgoing,
        };
        let mut known = BTreeSet::new();
        for sent in &kept {
            let message = &sent.message;
            if known.insert((&message.from, message.sequence)) {
                again.send(name, sent, moved, &local.sessions);
            }
        }
    }

    /// Asks others for what they keep for a participant that is at home here, beside what this node has given it or
    /// has from a node that does.
    fn ask(&mut self, name: &RoomName, moved: &Participant, why: Why) {
        let Some(local) = self.rooms.get(name) else {
            return;
        };
        let again = matches!(why, Why::Moved(_)).then_some(&local.again);
        let caches = local.moves.iter().chain(again.into_iter().flatten());
        let caches = caches.filter(|((origin, _), _)| why != Why::Back(*origin));
        let runs = caches.flat_map(|(_, cache)| cache.runs(RUNS_PER_SENDER));
        let has = runs.take(RUNS_MAX).map(|(from, first, last)| proto::Run {
            from: from.0.clone(),
            first,
            last,
        });
        let (Why::Moved(former) | Why::Lost(former) | Why::Back(former)) = why;
        let wanted = proto::Wanted {
            room: name.0.clone(),
            sid: moved.sid.0.clone(),
            identity: moved.identity.0.clone(),
            former: former.0,
            revision: self.revision.0,
            has: has.collect(),
        };
        for (node, record) in self.state.nodes.iter() {
            let is_meant = match why {
                Why::Back(back) => *node == back,
                Why::Moved(_) | Why::Lost(_) => *node != self.node,
            };
            if is_meant && !record.state.is_lost() && asks(&self.state, *node) {
                let body = Body::Wanted(wanted.clone());
                let outgoing = Outgoing::new(&self.state, *node, body, true);
                self.outgoing.push(outgoing);
            }
        }
    }

    /// Another node wants what is kept here for one of its participants.
    pub(super) fn answer(&mut self, now: Instant, from: NodeId, wanted: &proto::Wanted) {
        let name = RoomName(wanted.room.clone());
        let state = Arc::clone(&self.state);
        let present = state.rooms.get(&name).and_then(|room| {
            let identity = Identity(wanted.identity.clone());
            room.participants.get(&identity)
        });
        // If it has gone on, its next home asks.
        if let Some(moved) = present.filter(|p| p.sid.0 == wanted.sid && p.home == from) {
            let has = Runs::of(&wanted.has);
            self.replay_kept(now, &name, moved, NodeId(wanted.former), Some(&has));
        }
    }

    /// Whoever joined or moved in a gap of the feed gets what is kept for them, as without the gap.
    pub(super) fn replay_missed(&mut self, now: Instant, before: &State) {
        let state = Arc::clone(&self.state);
        let names: Vec<RoomName> = self.rooms.keys().cloned().collect();
        for name in names {
            let known = before.rooms.get(&name);
            let Some(room) = state.rooms.get(&name) else {
                continue;
            };
            for participant in room.participants.values() {
                let former = known
                    .and_then(|known| known.participants.get(&participant.identity))
                    .filter(|former| former.sid == participant.sid);
                match former {
                    Some(former) if former.epoch != participant.epoch => {
                        self.replay_moved(now, &name, participant, former.home);
                    }
                    Some(_) => {}
                    None => self.replay(now, &name, participant),
                }
            }
        }
    }

    /// What a node had to send again is gone with its process, or cannot be had from it: those who moved since get
    /// it from here. A node may have been gone for a while before the log says so.
    pub(super) fn replay_forgotten(&mut self, now: Instant, node: NodeId, before: &State) {
        let state = Arc::clone(&self.state);
        let Some(known) = before.nodes.get(&node) else {
            return;
        };
        if node == self.node {
            return;
        }
        let record = state.nodes.get(&node);
        match record.filter(|record| record.boot == known.boot) {
            Some(record) if known.state.is_lost() => {
                if !record.state.is_lost() {
                    self.ask_back(now, node);
                }
                return;
            }
            Some(record) if !record.state.is_lost() => return,
            _ => {}
        }
        self.keep_elsewhere(now, node, before);
        for (name, moved) in self.recently_moved(now) {
            let is_here = moved.home == self.node;
            if is_here || !asks(&state, moved.home) {
                self.replay_of(now, &name, &moved, (node, known.boot));
            }
            if is_here {
                self.ask(&name, &moved, Why::Lost(node));
            }
        }
    }

    /// A node is back with all that it had, and was not asked while it was lost.
    fn ask_back(&mut self, now: Instant, node: NodeId) {
        for (name, moved) in self.recently_moved(now) {
            if moved.home == self.node {
                self.ask(&name, &moved, Why::Back(node));
            }
        }
    }

    /// Who has moved a moment ago and is still there, by room.
    fn recently_moved(&self, now: Instant) -> Vec<(RoomName, Arc<Participant>)> {
        let recently = |at: &Instant| now.saturating_duration_since(*at) < Cache::MOVE_AGE_MAX;
        let mut found = Vec::new();
        for (name, local) in &self.rooms {
            let Some(room) = self.state.rooms.get(name) else {
                continue;
            };
            for (identity, (sid, at)) in &local.moved {
                let present = room.participants.get(identity);
                if let Some(present) = present.filter(|p| p.sid == *sid && recently(at)) {
                    found.push((name.clone(), Arc::clone(present)));
                }
            }
        }
        found
    }

    /// Sends a participant again what came from one start of a node.
    fn replay_of(&mut self, now: Instant, name: &RoomName, moved: &Participant, origin: Origin) {
        let state = Arc::clone(&self.state);
        let Some(local) = self.rooms.get_mut(name) else {
            return;
        };
        let mut again = Again {
            now,
            node: self.node,
            state: &state,
            revision: self.revision,
            outgoing: &mut self.outgoing,
        };
        for caches in [&mut local.moves, &mut local.again] {
            let cache = caches.get_mut(&origin).into_iter();
            for sent in cache.flat_map(|cache| cache.replay_since(now, moved.joined_at)) {
                if is_for(&sent.message, moved) {
                    again.send(name, sent, moved, &local.sessions);
                }
            }
        }
    }

    /// A node is gone: rooms that it shared with this one alone have a keeper from now on, also of what was sent
    /// while nobody knew yet.
    fn keep_elsewhere(&mut self, now: Instant, gone: NodeId, before: &State) {
        let own = self.origin(self.node);
        let is_alone = |name: &&RoomName| {
            let room = self.state.rooms.get(*name);
            let known = before.rooms.get(*name);
            known.is_some_and(|known| known.homes.contains_key(&gone))
                && room.is_some_and(|room| room.homes.keys().all(|home| *home == self.node))
        };
        let names: Vec<RoomName> = self.rooms.keys().filter(is_alone).cloned().collect();
        for name in names {
            let local = self.rooms.get_mut(&name);
            let sent = local.and_then(|local| local.moves.get_mut(&own));
            let sent: Vec<Sent> = sent
                .map(|cache| cache.replay(now).cloned().collect())
                .unwrap_or_default();
            for sent in &sent {
                if let Some(keeper) = self.keeper(&name, &sent.message) {
                    let mut again = Again {
                        now,
                        node: self.node,
                        state: &self.state,
                        revision: self.revision,
                        outgoing: &mut self.outgoing,
                    };
                    again.hand_on(&name, sent, keeper, &sent.message.from);
                }
            }
        }
    }

    /// Where a message comes from that is taken now.
    pub(super) fn origin(&self, node: NodeId) -> Origin {
        (node, boot_of(&self.state, node))
    }
}

/// Numbers that another node has.
struct Runs<'a>(BTreeMap<&'a str, Vec<(u32, u32)>>);

impl<'a> Runs<'a> {
    fn of(has: &'a [proto::Run]) -> Self {
        let mut runs: BTreeMap<&str, Vec<(u32, u32)>> = BTreeMap::new();
        for run in has {
            let of_sender = runs.entry(&run.from).or_default();
            of_sender.push((run.first, run.last));
        }
        Self(runs)
    }

    fn contain(&self, sender: &ParticipantSid, number: u32) -> bool {
        let runs = self.0.get(&*sender.0).into_iter().flatten();
        runs.into_iter()
            .any(|(first, last)| (*first..=*last).contains(&number))
    }
}

/// Whether a message is meant for a participant, and not its own.
fn is_for(message: &DataOut, to: &Participant) -> bool {
    message.from != to.sid && message.is_for(&to.identity)
}

/// Whether a node asks for what its participants lack. Others are sent all of it.
fn asks(state: &State, node: NodeId) -> bool {
    let record = state.nodes.get(&node);
    record.is_some_and(|record| Formats::of(&record.version).mesh >= VERSION_OF_WANTED)
}

/// The start of a node that the state knows.
pub(super) fn boot_of(state: &State, node: NodeId) -> BootId {
    let record = state.nodes.get(&node);
    record.map(|record| record.boot).unwrap_or_default()
}
