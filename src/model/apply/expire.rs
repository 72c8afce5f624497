//! Deadlines that have passed by the leader's clock, as stamped on the entry.

use std::collections::BTreeMap;

use super::{Context, State};
use crate::command::{Outcome, Reply};
use crate::deadline::Due;
use crate::id::{Identity, RoomName, Version};
use crate::limit::EXPIRED_MAX;
use crate::participant::LeaveReason;

impl State {
    /// Meets the deadlines at or before the entry's time, a limited number at once.
    pub(super) fn expire(&mut self, context: &mut Context<'_>) -> Reply {
        let due: Vec<Due> = self
            .deadlines
            .due(context.at)
            .take(EXPIRED_MAX)
            .cloned()
            .collect();
        let mut late: BTreeMap<RoomName, Vec<Identity>> = BTreeMap::new();
        let (mut rooms, mut participants) = (0, 0);
        for due in due {
            match due {
                Due::Participant(room, identity) => late.entry(room).or_default().push(identity),
                Due::Room(room) => {
                    self.close_room(context, &room, LeaveReason::RoomClosed);
                    rooms += 1;
                }
                Due::Revocation(room, identity) => self.end_revocation(&room, &identity),
            }
        }
        for (room, identities) in late {
            let mut edit = self.edit(&room, context.at);
            edit.remove_all(&identities, LeaveReason::JoinFailure);
            edit.finish(context);
            participants += identities.len() as u32;
        }
        Reply {
            version: Version(0),
            outcome: Outcome::Expired {
                rooms,
                participants,
            },
        }
    }
}
