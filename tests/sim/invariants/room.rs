//! I16: a name has one room at a time, and no room is closed over people who have not left. Source:
//! LiveKit #4316, #3317.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_model::command::Command;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{ParticipantSid, RoomName, RoomSid};

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Open rooms and who is in them.
#[derive(Default)]
pub struct One {
    open: BTreeMap<RoomName, (RoomSid, BTreeSet<ParticipantSid>)>,
    seen: u64,
}

impl Invariant for One {
    fn name(&self) -> &'static str {
        "one-room"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied { advance, .. } = fact else {
            return Ok(());
        };
        if advance.entry.index <= self.seen {
            return Ok(());
        }
        self.seen = advance.entry.index;
        let commands = advance.entry.commands.iter();
        for ((_, command), change) in commands.zip(&advance.changes) {
            for event in &change.events {
                let Event::Room { room, change, .. } = event else {
                    continue;
                };
                match change {
                    RoomEvent::Created(created) => {
                        let new = (created.sid.clone(), BTreeSet::new());
                        if let Some((old, _)) = self.open.insert(room.clone(), new) {
                            return Err(format!("{room} is created while {old} is open"));
                        }
                    }
                    RoomEvent::ParticipantJoined(joined) => {
                        if let Some((_, people)) = self.open.get_mut(room) {
                            people.insert(joined.sid.clone());
                        }
                    }
                    RoomEvent::ParticipantLeft { participant, .. } => {
                        if let Some((_, people)) = self.open.get_mut(room) {
                            people.remove(&participant.sid);
                        }
                        // Nobody in these runs deletes rooms.
                        if matches!(command, Command::DeleteRoom { .. }) {
                            return Err(format!("{room} is closed over {}", participant.sid));
                        }
                    }
                    RoomEvent::Closed(_) => {
                        if let Some((_, people)) = self.open.remove(room)
                            && !people.is_empty()
                        {
                            return Err(format!("{room} is closed over {} people", people.len()));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
