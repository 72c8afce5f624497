//! I4: epochs of a room's participants rise and are given out once: each names one owner.

use std::collections::BTreeMap;

use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{Epoch, RoomName};

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Highest epochs.
#[derive(Default)]
pub struct One {
    epochs: BTreeMap<RoomName, Epoch>,
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
            let highest = self.epochs.entry(room.clone()).or_default();
            if of.epoch <= *highest {
                return Err(format!(
                    "{} has epoch {} after {highest} in {room}",
                    of.sid, of.epoch
                ));
            }
            *highest = of.epoch;
        }
        Ok(())
    }
}
