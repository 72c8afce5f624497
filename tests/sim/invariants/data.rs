//! I11: numbered messages of a sender reach everybody who was there, without a gap and in order, whatever
//! becomes of homes on the way.
//!
//! Three limits of the promise are left out: messages are kept for twenty seconds for those who are away; what a former
//! home that slept hands on late may come to somebody who has just joined; and what is kept for those who move is waited
//! for only for a moment, so that a way between nodes that was cut until a moment ago can leave a gap.

use std::collections::BTreeMap;

use flotilla_model::id::ParticipantSid;

use super::Invariant;
use crate::client::Phase;
use crate::time::{Time, secs};
use crate::witness::{Fact, Scene};
use crate::world::World;

/// Whoever joined so recently may get something older first.
const JOINED: u64 = secs(5);
/// For so long messages are kept for those who move, and somewhat longer they are on their way.
const KEPT: u64 = secs(25);

/// Looks at what clients get.
#[derive(Default)]
pub struct ExactlyOnce(BTreeMap<ParticipantSid, Time>);

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        "data-once"
    }

    fn see(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        if let Fact::Joined { sid, .. } = fact {
            self.0.insert((*sid).clone(), scene.now);
        }
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
        let is_new = self.0.get(*own).is_none_or(|at| scene.now - *at < JOINED);
        let was_cut = scene.last_cut.is_some_and(|at| scene.now - at < KEPT);
        // It may have been told of less than it was away: its client looks several times a second.
        let was_away = *away >= secs(18);
        if *sequence == last + 1 || is_new || was_cut || was_away {
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
