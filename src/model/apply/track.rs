//! Tracks that are published, described, muted and unpublished.

use std::sync::Arc;

use super::participant::may_publish;
use super::{Context, State, done};
use crate::command::{Outcome, Rejection, Reply};
use crate::id::{Identity, ParticipantSid, RoomName, TrackSid, Version};
use crate::limit;
use crate::participant::Participant;
use crate::track::Track;

impl State {
    pub(super) fn publish_track(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        (identity, sid): (&Identity, &ParticipantSid),
        track: &Track,
    ) -> Result<Reply, Rejection> {
        let (present, participant) = self.session(room, identity, sid)?;
        if let Some(published) = participant.tracks.get(&track.sid) {
            return Ok(track_reply(present.version, published));
        }
        if present.publishers.contains_key(&track.sid) {
            return Err(Rejection::TrackExists);
        }
        check_permission(participant, track)?;
        limit::check_track(track)?;
        limit::check("tracks", participant.tracks.len() + 1, limit::TRACKS_MAX)?;
        let mut edit = self.edit(room, context.at);
        let track = edit.put_track(identity, track.clone());
        Ok(track_reply(edit.finish(context), &track))
    }

    /// What was checked at publication stays: kind and source are not taken from the command.
    pub(super) fn update_track(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        (identity, sid): (&Identity, &ParticipantSid),
        track: &Track,
    ) -> Result<Reply, Rejection> {
        let (present, participant) = self.session(room, identity, sid)?;
        let before = participant
            .tracks
            .get(&track.sid)
            .ok_or(Rejection::TrackNotFound)?;
        limit::check_track(track)?;
        let mut after = track.clone();
        after.muted = before.muted;
        after.kind = before.kind;
        after.source = before.source;
        if after == **before {
            return Ok(track_reply(present.version, before));
        }
        let mut edit = self.edit(room, context.at);
        let track = edit.put_track(identity, after);
        Ok(track_reply(edit.finish(context), &track))
    }

    pub(super) fn unpublish_track(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        identity: &Identity,
        track: &TrackSid,
    ) -> Result<Reply, Rejection> {
        let (_, participant) = self.present(room, identity)?;
        if !participant.tracks.contains_key(track) {
            return Err(Rejection::TrackNotFound);
        }
        let mut edit = self.edit(room, context.at);
        edit.remove_track(identity, track);
        Ok(done(edit.finish(context)))
    }

    pub(super) fn set_track_muted(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        (identity, track): (&Identity, &TrackSid),
        muted: bool,
    ) -> Result<Reply, Rejection> {
        let (present, participant) = self.present(room, identity)?;
        let before = participant
            .tracks
            .get(track)
            .ok_or(Rejection::TrackNotFound)?;
        if before.muted == muted {
            return Ok(track_reply(present.version, before));
        }
        let mut after = Track::clone(before);
        after.muted = muted;
        let mut edit = self.edit(room, context.at);
        let track = edit.put_track(identity, after);
        Ok(track_reply(edit.finish(context), &track))
    }
}

fn check_permission(participant: &Participant, track: &Track) -> Result<(), Rejection> {
    if !participant.permission.can_publish {
        return Err(Rejection::NotPermitted("may not publish tracks".to_owned()));
    }
    if !may_publish(&participant.permission, track.source) {
        return Err(Rejection::NotPermitted(format!(
            "may not publish from source {:?}",
            track.source
        )));
    }
    Ok(())
}

fn track_reply(version: Version, track: &Arc<Track>) -> Reply {
    Reply {
        version,
        outcome: Outcome::Track(Arc::clone(track)),
    }
}
