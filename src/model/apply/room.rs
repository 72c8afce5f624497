//! Rooms that are made, changed and closed.

use std::sync::Arc;

use super::{Context, State, done};
use crate::command::{CreateRoom, Outcome, Rejection, Reply};
use crate::deadline::Due;
use crate::event::{Event, RoomEvent};
use crate::id::{Epoch, RoomName, Version};
use crate::limit;
use crate::participant::LeaveReason;
use crate::room::Room;

impl State {
    pub(super) fn create_room(
        &mut self,
        context: &mut Context<'_>,
        create: &CreateRoom,
    ) -> Result<Reply, Rejection> {
        if let Some(present) = self.rooms.get(&create.name) {
            return Ok(room_reply(present));
        }
        self.check_new_room(&create.name, create)?;
        self.add_room(context, &create.name, create);
        Ok(room_reply(self.room(&create.name)?))
    }

    pub(super) fn delete_room(
        &mut self,
        context: &mut Context<'_>,
        name: &RoomName,
    ) -> Result<Reply, Rejection> {
        self.room(name)?;
        Ok(done(self.close_room(
            context,
            name,
            LeaveReason::RoomDeleted,
        )))
    }

    pub(super) fn set_room_metadata(
        &mut self,
        context: &mut Context<'_>,
        name: &RoomName,
        metadata: &str,
    ) -> Result<Reply, Rejection> {
        limit::check_metadata(metadata)?;
        if self.room(name)?.metadata != metadata {
            let mut edit = self.edit(name, context.at);
            metadata.clone_into(&mut edit.room.metadata);
            edit.push(RoomEvent::Updated);
            edit.finish(context);
        }
        Ok(room_reply(self.room(name)?))
    }

    /// Whether a room that does not exist may be made.
    pub(super) fn check_new_room(
        &self,
        name: &RoomName,
        create: &CreateRoom,
    ) -> Result<(), Rejection> {
        limit::check_name("bytes of a room's name", name.as_str())?;
        limit::check_name("bytes of a room's sid", create.sid.as_str())?;
        limit::check_metadata(&create.metadata)?;
        limit::check_attributes(&create.options.tags)?;
        limit::check("rooms", self.rooms.len() + 1, limit::ROOMS_MAX)
    }

    /// Makes a room; the caller has checked that it may be.
    pub(super) fn add_room(
        &mut self,
        context: &mut Context<'_>,
        name: &RoomName,
        create: &CreateRoom,
    ) {
        let mut room = Room::new(
            name.clone(),
            create.sid.clone(),
            create.options.clone(),
            context.at,
        );
        room.metadata.clone_from(&create.metadata);
        room.version = Version(1);
        room.epoch_max = Epoch(self.revision.0);
        self.deadlines
            .change(Due::Room(name.clone()), None, room.close_at);
        let room = Arc::new(room);
        context.events.push(Event::Room {
            room: name.clone(),
            version: room.version,
            change: RoomEvent::Created(Arc::clone(&room)),
        });
        let before = self.rooms.insert(name.clone(), room);
        assert!(before.is_none(), "the caller saw that there is none");
    }

    /// Lets everybody go and forgets the room. Returns its last version.
    pub(super) fn close_room(
        &mut self,
        context: &mut Context<'_>,
        name: &RoomName,
        reason: LeaveReason,
    ) -> Version {
        let mut edit = self.edit(name, context.at);
        edit.close(reason);
        // Nobody is left to care for routes: the closing says it all.
        edit.routes_changed = false;
        let version = edit.finish(context);
        if let Some(room) = self.rooms.remove(name) {
            context.events.push(Event::Room {
                room: name.clone(),
                version,
                change: RoomEvent::Closed(room),
            });
        }
        version
    }
}

fn room_reply(room: &Arc<Room>) -> Reply {
    Reply {
        version: room.version,
        outcome: Outcome::Room(Arc::clone(room)),
    }
}
