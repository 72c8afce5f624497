//! What is sent again to those who join or move.
//!
//! ```text
//! joined ─ replay ───────────── the last moments, from the senders' homes
//! moved ── replay_moved ─────── what was on its way to the former home, from the senders' homes, or, if one has
//!                              forgotten it, from whom it was sent again
//! a home has forgotten ──────── replay_forgotten: what came from it, from everybody else, to those who moved meanwhile
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use flotilla_model::State;
use flotilla_model::id::{BootId, NodeId, ParticipantSid, Revision, RoomName};
use flotilla_model::participant::Participant;
use flotilla_signal::data::{Cache, Sent};

use super::{LocalSession, Outgoing, Rooms, to_proto};
use crate::mesh::Body;
use crate::session::inbox::Message;

/// Where a message came from: a node, and which start of it. Another start of it has nothing to send again.
pub(super) type Origin = (NodeId, BootId);

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
    /// Somebody joined, here or elsewhere: recent messages of participants here are for them too.
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
        for sent in local.cache.replay(now) {
            if sent.message.is_for(&joined.identity) {
                again.send(name, sent, joined, &local.sessions);
            }
        }
        if let Some(session) = local.sessions.get_mut(&joined.sid) {
            session.joined = true;
            session.since = revision;
        }
    }

    /// A participant has a new home: what was on its way to the former one is sent again. Sessions
    /// drop what their client has. The new home itself takes whatever it has. Others get from here the messages of
    /// participants here, and those that came from a home that its sender has lost as well, be it that its process
    /// has started anew since.
    pub(super) fn replay_moved(
        &mut self,
        now: Instant,
        name: &RoomName,
        moved: &Participant,
        former: NodeId,
    ) {
        let (state, revision) = (self.state.clone(), self.revision);
        let room = state.rooms.get(name);
        let Some(local) = self.rooms.get_mut(name) else {
            return;
        };
        local
            .moved
            .insert(moved.identity.clone(), (moved.sid.clone(), now));
        let is_here = moved.home == self.node;
        let mut kept: Vec<Sent> = Vec::new();
        for ((origin, boot), cache) in &mut local.moves {
            let has_it_still = boot_of(&state, *origin) == *boot;
            for sent in cache.replay_since(now, moved.joined_at) {
                let message = &sent.message;
                let sender = room.and_then(|room| room.participants.get(&message.from_identity));
                let is_ours = is_here
                    || *origin == self.node
                    || *origin == former
                    || !has_it_still
                    || sender.is_none_or(|sender| sender.home != *origin);
                if is_ours {
                    kept.push(sent.clone());
                }
            }
        }
        for ((origin, boot), cache) in &mut local.again {
            let record = state.nodes.get(origin);
            let has_it_still =
                record.is_some_and(|record| record.boot == *boot && !record.state.is_lost());
            if is_here || *origin == former || !has_it_still {
                kept.extend(cache.replay_since(now, moved.joined_at).cloned());
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
            let is_due = message.from != moved.sid && message.is_for(&moved.identity);
            if is_due && known.insert((&message.from, message.sequence)) {
                again.send(name, sent, moved, &local.sessions);
            }
        }
        if is_here && let Some(session) = local.sessions.get_mut(&moved.sid) {
            session.joined = true;
            session.since = revision;
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
        let has_it_still = state.nodes.get(&node).is_some_and(|record| {
            record.boot == known.boot && (known.state.is_lost() || !record.state.is_lost())
        });
        if has_it_still || node == self.node {
            return;
        }
        self.keep_elsewhere(now, node, before);
        let origin = (node, known.boot);
        let mut again = Again {
            now,
            node: self.node,
            state: &state,
            revision: self.revision,
            outgoing: &mut self.outgoing,
        };
        for (name, local) in &mut self.rooms {
            let mut kept: Vec<Sent> = Vec::new();
            for caches in [&mut local.moves, &mut local.again] {
                let cache = caches.get_mut(&origin);
                kept.extend(cache.into_iter().flat_map(|c| c.replay(now)).cloned());
            }
            let room = state.rooms.get(name);
            let moved: Vec<&Arc<Participant>> = local
                .moved
                .iter()
                .filter(|(_, (_, at))| now.saturating_duration_since(*at) < Cache::MOVE_AGE_MAX)
                .filter_map(|(identity, (sid, _))| {
                    let present = room?.participants.get(identity);
                    present.filter(|present| present.sid == *sid)
                })
                .collect();
            for sent in &kept {
                let message = &sent.message;
                for moved in &moved {
                    let is_own = message.from == moved.sid;
                    if !is_own
                        && message.is_for(&moved.identity)
                        && !sent.is_before(moved.joined_at)
                    {
                        again.send(name, sent, moved, &local.sessions);
                    }
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

/// The start of a node that the state knows.
pub(super) fn boot_of(state: &State, node: NodeId) -> BootId {
    let record = state.nodes.get(&node);
    record.map(|record| record.boot).unwrap_or_default()
}
