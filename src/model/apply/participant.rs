//! Participants that become active, change and leave.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Context, State, done};
use crate::command::{Outcome, ParticipantUpdate, Rejection, Reply};
use crate::deadline::Due;
use crate::event::RoomEvent;
use crate::id::{Epoch, Identity, ParticipantSid, RoomName, TrackSid, UnixMillis, Version};
use crate::limit;
use crate::participant::{LeaveReason, Participant, ParticipantState};
use crate::permission::{Permission, Revocation};
use crate::track::Source;

/// How somebody leaves.
pub(super) struct Leave<'a> {
    pub(super) sid: Option<&'a ParticipantSid>,
    pub(super) reason: LeaveReason,
    pub(super) revoke_before: Option<UnixMillis>,
}

impl State {
    pub(super) fn activate(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        identity: &Identity,
        sid: &ParticipantSid,
    ) -> Result<Reply, Rejection> {
        let (present, participant) = self.session(room, identity, sid)?;
        if participant.state == ParticipantState::Active {
            return Ok(participant_reply(present.version, participant));
        }
        let mut edit = self.edit(room, context.at);
        let participant = edit.participant(identity, |participant| {
            participant.state = ParticipantState::Active;
            participant.activate_by = None;
        });
        edit.push(RoomEvent::ParticipantUpdated(Arc::clone(&participant)));
        Ok(participant_reply(edit.finish(context), &participant))
    }

    /// Tokens are revoked even if nobody of that identity is present: it may be about to come back.
    pub(super) fn leave(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        identity: &Identity,
        leave: &Leave<'_>,
    ) -> Result<Reply, Rejection> {
        limit::check_name("bytes of a room's name", room.as_str())?;
        limit::check_name("bytes of an identity", identity.as_str())?;
        let present = match leave.sid {
            Some(sid) => self.session(room, identity, sid),
            None => self.present(room, identity),
        };
        let version = match present {
            Ok(_) => {
                let mut edit = self.edit(room, context.at);
                edit.remove(identity, leave.reason);
                edit.finish(context)
            }
            Err(Rejection::RoomNotFound | Rejection::ParticipantNotFound)
                if leave.revoke_before.is_some() =>
            {
                self.rooms.get(room).map_or(Version(0), |room| room.version)
            }
            Err(rejection) => return Err(rejection),
        };
        if let Some(before) = leave.revoke_before {
            self.revoke(room, identity, before, context.at);
        }
        Ok(done(version))
    }

    /// Whoever has a newer epoch is at another node, or came back.
    pub(super) fn depart(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        (identity, sid, epoch): (&Identity, &ParticipantSid, Epoch),
        reason: LeaveReason,
    ) -> Result<Reply, Rejection> {
        limit::check_name("bytes of a room's name", room.as_str())?;
        limit::check_name("bytes of an identity", identity.as_str())?;
        let (_, participant) = self.session(room, identity, sid)?;
        if participant.epoch != epoch {
            return Err(Rejection::StaleEpoch);
        }
        let mut edit = self.edit(room, context.at);
        edit.remove(identity, reason);
        Ok(done(edit.finish(context)))
    }

    pub(super) fn update_participant(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        identity: &Identity,
        update: &ParticipantUpdate,
    ) -> Result<Reply, Rejection> {
        let (present, before) = self.present(room, identity)?;
        let after = updated(before, update)?;
        if after == **before {
            return Ok(participant_reply(present.version, before));
        }
        let before = Arc::clone(before);
        let mut edit = self.edit(room, context.at);
        for track in no_longer_allowed(&before, &after.permission) {
            edit.remove_track(identity, &track);
        }
        let may_subscribe = after.permission.can_subscribe;
        let participant = edit.participant(identity, |participant| {
            participant.name = after.name;
            participant.metadata = after.metadata;
            participant.attributes = after.attributes;
            participant.permission = after.permission;
        });
        edit.push(RoomEvent::ParticipantUpdated(Arc::clone(&participant)));
        if before.permission.can_subscribe != may_subscribe {
            if may_subscribe {
                edit.subscriber_came(&participant);
            } else {
                edit.subscriber_went(&before);
            }
            edit.push(RoomEvent::SubscriptionsChanged {
                identity: identity.clone(),
            });
        }
        Ok(participant_reply(edit.finish(context), &participant))
    }

    /// Forgets a revocation whose time has come.
    pub(super) fn end_revocation(&mut self, room: &RoomName, identity: &Identity) {
        let removed = self.revocations.remove(&(room.clone(), identity.clone()));
        if let Some(revocation) = removed {
            let due = Due::Revocation(room.clone(), identity.clone());
            self.deadlines.change(due, Some(revocation.until), None);
        }
    }

    fn revoke(&mut self, room: &RoomName, identity: &Identity, before: UnixMillis, at: UnixMillis) {
        let key = (room.clone(), identity.clone());
        let earlier = self.revocations.get(&key).copied();
        if earlier.is_none() && self.revocations.len() >= limit::REVOCATIONS_MAX {
            self.end_first_revocation();
        }
        let before = earlier.map_or(before, |earlier| earlier.before.max(before));
        let until = UnixMillis(at.0.saturating_add(limit::REVOCATION_MS));
        let due = Due::Revocation(room.clone(), identity.clone());
        self.deadlines
            .change(due, earlier.map(|earlier| earlier.until), Some(until));
        self.revocations.insert(key, Revocation { before, until });
    }

    fn end_first_revocation(&mut self) {
        let first = self
            .revocations
            .iter()
            .min_by_key(|(_, revocation)| revocation.until)
            .map(|(key, _)| key.clone());
        if let Some((room, identity)) = first {
            self.end_revocation(&room, &identity);
        }
    }
}

/// The record after an update, if that is within limits.
fn updated(before: &Participant, update: &ParticipantUpdate) -> Result<Participant, Rejection> {
    let mut after = before.clone();
    if let Some(name) = &update.name {
        limit::check_name("bytes of a participant's name", name)?;
        after.name.clone_from(name);
    }
    if let Some(metadata) = &update.metadata {
        limit::check_metadata(metadata)?;
        after.metadata.clone_from(metadata);
    }
    set_attributes(&mut after.attributes, &update.attributes);
    limit::check_attributes(&after.attributes)?;
    if let Some(permission) = &update.permission {
        after.permission = permission.clone();
    }
    Ok(after)
}

fn set_attributes(attributes: &mut BTreeMap<String, String>, update: &BTreeMap<String, String>) {
    for (key, value) in update {
        if value.is_empty() {
            attributes.remove(key);
        } else {
            attributes.insert(key.clone(), value.clone());
        }
    }
}

/// Tracks that a participant may not publish under its new permission.
fn no_longer_allowed(participant: &Participant, permission: &Permission) -> Vec<TrackSid> {
    participant
        .tracks
        .values()
        .filter(|track| !may_publish(permission, track.source))
        .map(|track| track.sid.clone())
        .collect()
}

/// Whether a permission covers publishing from a source.
pub(super) fn may_publish(permission: &Permission, source: Source) -> bool {
    let sources = &permission.can_publish_sources;
    permission.can_publish && (sources.is_empty() || sources.contains(&source))
}

pub(super) fn participant_reply(version: Version, participant: &Arc<Participant>) -> Reply {
    Reply {
        version,
        outcome: Outcome::Participant(Arc::clone(participant)),
    }
}
