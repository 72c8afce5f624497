//! Participants that join.

use std::sync::Arc;

use super::{Context, State};
use crate::command::{Join, Outcome, Rejection, Reply};
use crate::id::{Epoch, UnixMillis};
use crate::limit;
use crate::participant::{LeaveReason, Participant, ParticipantState, Subscriptions, takes_place};
use crate::permission::SubscriptionPermission;
use crate::room::Room;

impl State {
    pub(super) fn join(
        &mut self,
        context: &mut Context<'_>,
        join: &Join,
    ) -> Result<Reply, Rejection> {
        check_limits(join)?;
        if self.is_revoked(&join.room, &join.identity, join.token_issued_at) {
            return Err(Rejection::TokenRevoked);
        }
        self.check_home(join.home)?;
        match (self.rooms.get(&join.room), &join.create) {
            (Some(room), _) => {
                let present = room.participants.get(&join.identity);
                if let Some(present) = present.filter(|present| present.sid == join.sid) {
                    return Ok(joined(room, present));
                }
                check_place(room, join)?;
            }
            (None, Some(create)) => {
                self.check_new_room(&join.room, create)?;
                self.add_room(context, &join.room, create);
            }
            (None, None) => return Err(Rejection::RoomNotFound),
        }
        Ok(self.admit(context, join))
    }

    fn admit(&mut self, context: &mut Context<'_>, join: &Join) -> Reply {
        let mut edit = self.edit(&join.room, context.at);
        if edit.room.participants.contains_key(&join.identity) {
            edit.remove(&join.identity, LeaveReason::DuplicateIdentity);
        }
        let epoch = edit.new_epoch();
        let participant = edit.add(participant(join, context.at, epoch));
        edit.finish(context);
        let room = self.rooms.get(&join.room).expect("it was just changed");
        joined(room, &participant)
    }
}

fn check_limits(join: &Join) -> Result<(), Rejection> {
    limit::check_name("bytes of an identity", join.identity.as_str())?;
    limit::check_name("bytes of a participant's sid", join.sid.as_str())?;
    limit::check_name("bytes of a participant's name", &join.name)?;
    limit::check_metadata(&join.metadata)?;
    limit::check_attributes(&join.attributes)?;
    limit::check("kind details", join.kind_details.len(), 64)?;
    limit::check("capabilities", join.client.capabilities.len(), 64)?;
    for text in [&join.client.version, &join.client.os, &join.client.browser] {
        limit::check_name("bytes of a client's description", text)?;
    }
    Ok(())
}

/// An earlier session of the same identity makes room for the new one.
fn check_place(room: &Room, join: &Join) -> Result<(), Rejection> {
    let replaces = room.participants.contains_key(&join.identity);
    let after = room.participants.len() + usize::from(!replaces);
    limit::check("participants", after, limit::PARTICIPANTS_MAX)?;
    if takes_place(join.kind, &join.permission) && !room.has_place(Some(&join.identity)) {
        return Err(Rejection::RoomFull);
    }
    Ok(())
}

fn participant(join: &Join, at: UnixMillis, epoch: Epoch) -> Participant {
    Participant {
        sid: join.sid.clone(),
        identity: join.identity.clone(),
        name: join.name.clone(),
        metadata: join.metadata.clone(),
        attributes: join.attributes.clone(),
        kind: join.kind,
        kind_details: join.kind_details.clone(),
        state: ParticipantState::Joined,
        activate_by: Some(UnixMillis(at.0.saturating_add(limit::ACTIVATION_MS))),
        joined_at: at,
        token_issued_at: join.token_issued_at,
        version: 1,
        permission: join.permission.clone(),
        subscription_permission: SubscriptionPermission::default(),
        subscriptions: Subscriptions {
            auto: join.auto_subscribe,
            explicit: std::collections::BTreeMap::new(),
        },
        tracks: std::collections::BTreeMap::new(),
        client: join.client.clone(),
        home: join.home,
        epoch,
    }
}

fn joined(room: &Arc<Room>, participant: &Arc<Participant>) -> Reply {
    Reply {
        version: room.version,
        outcome: Outcome::Joined {
            room: Arc::clone(room),
            participant: Arc::clone(participant),
        },
    }
}
