//! A room: its options, its people and the routes between nodes that carry its tracks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Identity, NodeId, RoomName, RoomSid, TrackSid, UnixMillis, Version};
use crate::participant::Participant;

/// Options of a room (`CreateRoomRequest`, `RoomConfiguration`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct RoomOptions {
    /// Milliseconds that a room nobody ever joined is kept.
    pub empty_timeout_ms: u64,
    /// Milliseconds that a room is kept after the last participant left.
    pub departure_timeout_ms: u64,
    /// Most participants, agents and recorders not counted; 0: no limit.
    pub max_participants: u32,
    /// Application's tags.
    pub tags: BTreeMap<String, String>,
    /// Least playout delay, milliseconds.
    pub min_playout_delay_ms: u32,
    /// Greatest playout delay, milliseconds; 0: not set.
    pub max_playout_delay_ms: u32,
    /// Audio and video of a participant share a stream.
    pub sync_streams: bool,
}

/// One track on its way from one node to another. Intent: the nodes on both ends act on it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct Route {
    /// Sends.
    pub from: NodeId,
    /// Receives.
    pub to: NodeId,
    /// Epoch of the track's publisher.
    pub epoch: Epoch,
}

/// A room, as replicated.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Room {
    /// Its name.
    pub name: RoomName,
    /// This incarnation.
    pub sid: RoomSid,
    /// Its options.
    pub options: RoomOptions,
    /// Application's metadata.
    pub metadata: String,
    /// When it was created.
    pub created_at: UnixMillis,
    /// When it is to be closed for want of people; `None` while somebody is in.
    pub close_at: Option<UnixMillis>,
    /// Changes applied to it so far.
    pub version: Version,
    /// Who is in it.
    pub participants: BTreeMap<Identity, Arc<Participant>>,
    /// Which node relays which track to which; a function of homes and subscriptions, kept up by
    /// [`crate::placement`] as part of every change.
    pub routes: BTreeMap<TrackSid, BTreeSet<Route>>,
    /// Highest epoch given out in the room.
    pub epoch_max: Epoch,
}
