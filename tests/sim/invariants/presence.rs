//! I2, I15: nobody is given up who is well, or has been unwell for less than clients get; and nobody is
//! shown as gone who has not left in the log.

use std::collections::BTreeSet;

use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::ParticipantSid;
use flotilla_model::participant::LeaveReason;

use super::Invariant;
use crate::time::secs;
use crate::witness::{Fact, Scene};

/// Least time that a client has to come back: a session without media is kept for five seconds.
const LEAST: u64 = secs(4);

/// Who left.
#[derive(Default)]
pub struct True {
    left: BTreeSet<ParticipantSid>,
    willing: BTreeSet<ParticipantSid>,
    seen: u64,
}

impl Invariant for True {
    fn name(&self) -> &'static str {
        "presence"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { advance, .. } if advance.entry.index > self.seen => {
                self.seen = advance.entry.index;
                for event in advance.changes.iter().flat_map(|change| &change.events) {
                    if let Event::Room {
                        change: RoomEvent::ParticipantLeft { participant, .. },
                        ..
                    } = event
                    {
                        self.left.insert(participant.sid.clone());
                    }
                }
            }
            Fact::Leaves { sid, .. } => {
                self.willing.insert((*sid).clone());
            }
            Fact::LeftInLog {
                client,
                sid,
                reason,
                unwell,
            } => {
                let is_wish = matches!(
                    reason,
                    LeaveReason::ClientInitiated
                        | LeaveReason::DuplicateIdentity
                        | LeaveReason::ParticipantRemoved
                        | LeaveReason::RoomDeleted
                );
                let too_soon = unwell.is_none_or(|unwell| unwell < LEAST);
                if !is_wish && too_soon && !self.willing.contains(*sid) {
                    let unwell = unwell.unwrap_or(0) / 1000;
                    return Err(format!(
                        "client {client} was given up ({reason:?}), unwell for {unwell} ms"
                    ));
                }
            }
            Fact::SeenLeaving { client, sid } if !self.left.contains(*sid) => {
                return Err(format!(
                    "client {client} sees {sid} leave, who has not left"
                ));
            }
            _ => {}
        }
        Ok(())
    }
}
