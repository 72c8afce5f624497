//! I11: numbered messages of a sender reach everybody who was there, without a gap and in order, whatever
//! becomes of homes on the way.
//!
//! Five limits of the promise are left out: messages are kept for twenty seconds for those who are away; what a former
//! home that slept hands on late may come to somebody who has just joined; what is kept for those who move is waited
//! for only for a moment, so that a way between nodes that was cut until a moment ago can leave a gap, and a network
//! that loses every eighth packet a gap for those who move; and what had gone with the processes of all nodes that had
//! it: two at least, or one if no majority of the nodes ran when it was sent.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_model::id::ParticipantSid;

use super::Invariant;
use crate::client::Phase;
use crate::time::{Time, ms, secs};
use crate::witness::{Fact, Scene};
use crate::world::World;

/// Whoever joined so recently may get something older first.
const JOINED: u64 = secs(5);
/// For so long messages are kept for those who move, and somewhat longer they are on their way.
const KEPT: u64 = secs(25);

/// A majority that was seen so long ago may have ended.
const SEEN: u64 = ms(500);

/// Looks at what clients get.
#[derive(Default)]
pub struct ExactlyOnce {
    joined: BTreeMap<ParticipantSid, Time>,
    homes: BTreeMap<ParticipantSid, u64>,
    messages: BTreeMap<(ParticipantSid, u32), Copies>,
}

/// Who has a message.
#[derive(Default)]
struct Copies {
    /// Nodes whose processes have had it since they started.
    holders: BTreeSet<u64>,
    /// It was on as many nodes as can be expected.
    enough: bool,
    sent: Time,
}

impl Copies {
    fn add(&mut self, node: u64) {
        self.holders.insert(node);
        self.enough |= self.holders.len() >= 2;
    }
}

impl ExactlyOnce {
    fn note(&mut self, scene: &Scene, fact: &Fact<'_>) {
        match fact {
            Fact::Joined { sid, .. } => {
                self.joined.insert((*sid).clone(), scene.now);
            }
            Fact::Serves { node, sid, .. } => {
                self.homes.insert((*sid).clone(), *node);
            }
            Fact::SentData { sid, sequence, .. } => {
                let message = ((*sid).clone(), *sequence);
                let copies = self.messages.entry(message).or_default();
                copies.enough |= !scene.had_quorum_for(SEEN);
                copies.sent = scene.now;
                if let Some(home) = self.homes.get(*sid) {
                    copies.add(*home);
                }
            }
            Fact::TakesData { node, from, data } if data.sequence != 0 => {
                let message = (ParticipantSid(data.from.clone()), data.sequence);
                let copies = self.messages.entry(message).or_default();
                copies.add(*from);
                copies.add(*node);
            }
            // What was sent to a home that had gone is not with its next process either.
            Fact::Ended { node, .. } | Fact::Started { node, .. } => {
                for copies in self.messages.values_mut() {
                    copies.holders.remove(node);
                }
            }
            _ => {}
        }
    }

    /// Whether a message need not come: all who had it are gone, or it was sent before the receiver joined.
    fn is_excused(&self, own: &ParticipantSid, sender: &ParticipantSid, sequence: u32) -> bool {
        let Some(copies) = self.messages.get(&(sender.clone(), sequence)) else {
            return false;
        };
        let is_gone = copies.enough && copies.holders.is_empty();
        is_gone || self.joined.get(own).is_some_and(|at| copies.sent < *at)
    }
}

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        "data-once"
    }

    fn see(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        self.note(scene, fact);
        let Fact::Received {
            client,
            own,
            sender,
            sequence,
            last: Some(last),
            away,
        } = fact
        else {
            return Ok(());
        };
        let is_new = self
            .joined
            .get(*own)
            .is_none_or(|at| scene.now - *at < JOINED);
        let was_cut = scene.last_cut.is_some_and(|at| scene.now - at < KEPT);
        let was_late = scene
            .last_lossy
            .is_some_and(|at| scene.now - at < KEPT && *away > 0);
        // It may have been told of less than it was away: its client looks several times a second.
        let was_away = *away >= secs(18);
        let is_excused = |missing| self.is_excused(own, sender, missing);
        if *sequence == last + 1
            || is_new
            || was_cut
            || was_late
            || was_away
            || (last + 1..*sequence).all(is_excused)
        {
            return Ok(());
        }
        Err(format!(
            "client {client} got message {sequence} of {sender} after {last}"
        ))
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let present = || {
            world
                .clients
                .iter()
                .filter(|client| matches!(client.phase, Phase::In(..)))
        };
        for receiver in present() {
            for sender in present().filter(|other| other.room == receiver.room) {
                let (Some(sid), Some((last, _))) = (&sender.sid, sender.sent.last()) else {
                    continue;
                };
                match receiver.received.get(sid) {
                    Some(got) if got + 2 < *last => {
                        return Err(format!(
                            "client {} has {got} of {last} messages of client {}",
                            receiver.number, sender.number
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
