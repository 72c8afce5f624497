//! I4: a room's epochs do not fall and each participant's rise: each names one owner.

use std::collections::BTreeMap;

use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{Epoch, ParticipantSid, RoomName};

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Highest epochs.
#[derive(Default)]
pub struct One {
    rooms: BTreeMap<RoomName, Epoch>,
    people: BTreeMap<ParticipantSid, Epoch>,
    seen: u64,
}

impl Invariant for One {
    fn name(&self) -> &'static str {
        "one-owner"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied { advance, .. } = fact else {
            return Ok(());
        };
        if advance.entry.index <= self.seen {
            return Ok(());
        }
        self.seen = advance.entry.index;
        for event in advance.changes.iter().flat_map(|change| &change.events) {
            let Event::Room { room, change, .. } = event else {
                continue;
            };
            let (RoomEvent::ParticipantJoined(of) | RoomEvent::ParticipantMoved(of)) = change
            else {
                continue;
            };
            let highest = self.rooms.entry(room.clone()).or_default();
            let own = self.people.get(&of.sid);
            if of.epoch < *highest || own.is_some_and(|own| *own >= of.epoch) {
                return Err(format!(
                    "{} has epoch {} after {own:?}, {highest} in {room}",
                    of.sid, of.epoch
                ));
            }
            self.people.insert(of.sid.clone(), of.epoch);
            *highest = of.epoch;
        }
        Ok(())
    }
}
