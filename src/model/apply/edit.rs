//! One entry's changes to one room.
//!
//! Begun when it is certain that something changes: it raises the room's version at once. Every
//! change goes through a method here or in [`super::route`], which together keep deadlines, counts,
//! the publishers' index and the routes in step; [`Edit::finish`] hands the events out in order.

use std::sync::Arc;

use super::{Context, State};
use crate::deadline::{Deadlines, Due};
use crate::event::{Event, RoomEvent};
use crate::id::{Epoch, Identity, RoomName, TrackSid, UnixMillis, Version};
use crate::participant::{LeaveReason, Participant, ParticipantState};
use crate::room::Room;
use crate::track::Track;

pub(super) struct Edit<'a> {
    pub(super) room: &'a mut Room,
    pub(super) routes_changed: bool,
    deadlines: &'a mut Deadlines,
    at: UnixMillis,
    epoch: Option<Epoch>,
    changes: Vec<RoomEvent>,
}

impl State {
    /// Begins to change a room that is known to exist.
    pub(super) fn edit(&mut self, name: &RoomName, at: UnixMillis) -> Edit<'_> {
        let room = self.rooms.get_mut(name).expect("the caller looked it up");
        let room = Arc::make_mut(room);
        room.version.0 += 1;
        Edit {
            room,
            routes_changed: false,
            deadlines: &mut self.deadlines,
            at,
            epoch: None,
            changes: Vec::new(),
        }
    }
}

impl Edit<'_> {
    /// Ends the change: the room's new version.
    pub(super) fn finish(mut self, context: &mut Context<'_>) -> Version {
        if self.routes_changed {
            self.changes.push(RoomEvent::RoutesChanged);
        }
        let version = self.room.version;
        let events = self.changes.into_iter().map(|change| Event::Room {
            room: self.room.name.clone(),
            version,
            change,
        });
        context.events.extend(events);
        version
    }

    pub(super) fn push(&mut self, change: RoomEvent) {
        self.changes.push(change);
    }

    /// The epoch for whoever changes its home by this entry.
    pub(super) fn new_epoch(&mut self) -> Epoch {
        *self.epoch.get_or_insert_with(|| {
            self.room.epoch_max.0 += 1;
            self.room.epoch_max
        })
    }

    /// Changes what others see of a participant: raises the record's version.
    pub(super) fn participant(
        &mut self,
        identity: &Identity,
        change: impl FnOnce(&mut Participant),
    ) -> Arc<Participant> {
        self.participant_unseen(identity, |participant| {
            participant.version = participant.version.saturating_add(1);
            change(participant);
        })
    }

    /// Changes what others do not see of a participant.
    pub(super) fn participant_unseen(
        &mut self,
        identity: &Identity,
        change: impl FnOnce(&mut Participant),
    ) -> Arc<Participant> {
        let present = self
            .room
            .participants
            .get_mut(identity)
            .expect("the caller looked it up");
        let participant = Arc::make_mut(present);
        let deadline = participant.activate_by;
        change(participant);
        let due = Due::Participant(self.room.name.clone(), identity.clone());
        self.deadlines
            .change(due, deadline, participant.activate_by);
        Arc::clone(present)
    }

    /// Lets a participant in.
    pub(super) fn add(&mut self, participant: Participant) -> Arc<Participant> {
        let participant = Arc::new(participant);
        let due = Due::Participant(self.room.name.clone(), participant.identity.clone());
        self.deadlines.change(due, None, participant.activate_by);
        self.set_close_at(None);
        *self.room.homes.entry(participant.home).or_default() += 1;
        let before = self
            .room
            .participants
            .insert(participant.identity.clone(), Arc::clone(&participant));
        assert!(before.is_none(), "an earlier session has left before");
        self.push(RoomEvent::ParticipantJoined(Arc::clone(&participant)));
        self.subscriber_came(&participant);
        participant
    }

    /// Lets a participant go.
    pub(super) fn remove(&mut self, identity: &Identity, reason: LeaveReason) {
        let participant = self.take_out(identity, reason);
        self.subscriber_went(&participant);
    }

    /// Lets several participants go; looks at the routes once.
    pub(super) fn remove_all(&mut self, identities: &[Identity], reason: LeaveReason) {
        if let [identity] = identities {
            return self.remove(identity, reason);
        }
        for identity in identities {
            self.take_out(identity, reason);
        }
        self.route_everything();
    }

    /// Everything about a participant that leaves but its own routes. Returns its last record.
    fn take_out(&mut self, identity: &Identity, reason: LeaveReason) -> Arc<Participant> {
        let mut participant = self
            .room
            .participants
            .remove(identity)
            .expect("the caller looked it up");
        let due = Due::Participant(self.room.name.clone(), identity.clone());
        self.deadlines.change(due, participant.activate_by, None);
        self.leave_home(&participant);
        for track in participant.tracks.keys() {
            self.room.publishers.remove(track);
            self.unroute(track);
        }
        if self.room.participants.is_empty() {
            let timeout = self.room.options.departure_timeout_ms;
            self.set_close_at(Some(UnixMillis(self.at.0.saturating_add(timeout))));
        }
        let record = Arc::make_mut(&mut participant);
        record.state = ParticipantState::Disconnected;
        record.activate_by = None;
        record.version = record.version.saturating_add(1);
        self.push(RoomEvent::ParticipantLeft {
            participant: Arc::clone(&participant),
            reason,
        });
        participant
    }

    /// Adds a track or replaces it.
    pub(super) fn put_track(&mut self, identity: &Identity, track: Track) -> Arc<Track> {
        let track = Arc::new(track);
        let added = Arc::clone(&track);
        let publisher = self.participant(identity, |participant| {
            participant.tracks.insert(added.sid.clone(), added);
        });
        let before = self
            .room
            .publishers
            .insert(track.sid.clone(), identity.clone());
        let (announced, track_after) = (track.announced, Arc::clone(&track));
        self.push(if before.is_none() {
            RoomEvent::TrackPublished {
                publisher: Arc::clone(&publisher),
                track,
            }
        } else {
            RoomEvent::TrackUpdated {
                publisher: Arc::clone(&publisher),
                track,
            }
        });
        if announced || before.is_some() {
            self.route(&publisher, &track_after);
        }
        track_after
    }

    /// Removes a track.
    pub(super) fn remove_track(&mut self, identity: &Identity, sid: &TrackSid) {
        let mut removed = None;
        let publisher = self.participant(identity, |participant| {
            removed = participant.tracks.remove(sid);
        });
        let track = removed.expect("the caller looked it up");
        self.room.publishers.remove(sid);
        self.unroute(sid);
        self.push(RoomEvent::TrackUnpublished { publisher, track });
    }

    /// Forgets the room's own deadline and lets everybody go.
    pub(super) fn close(&mut self, reason: LeaveReason) {
        let present: Vec<Identity> = self.room.participants.keys().cloned().collect();
        self.remove_all(&present, reason);
        self.set_close_at(None);
    }

    pub(super) fn leave_home(&mut self, participant: &Participant) {
        let homes = &mut self.room.homes;
        let count = homes
            .get_mut(&participant.home)
            .expect("everybody present is counted");
        *count -= 1;
        if *count == 0 {
            homes.remove(&participant.home);
        }
    }

    fn set_close_at(&mut self, close_at: Option<UnixMillis>) {
        let due = Due::Room(self.room.name.clone());
        self.deadlines.change(due, self.room.close_at, close_at);
        self.room.close_at = close_at;
    }
}
