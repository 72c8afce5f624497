//! A room: its options, its people and the routes between nodes that carry its tracks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Identity, NodeId, RoomName, RoomSid, TrackSid, UnixMillis, Version};
use crate::map::Map;
use crate::participant::Participant;
use crate::track::Track;

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
    pub participants: Map<Identity, Arc<Participant>>,
    /// How many of them each node serves; nodes that serve none are absent.
    pub homes: BTreeMap<NodeId, u32>,
    /// Who publishes each track.
    pub publishers: Map<TrackSid, Identity>,
    /// Which node relays which track to which; a function of homes and subscriptions, kept up by
    /// [`crate::placement`] as part of every change.
    pub routes: Map<TrackSid, BTreeSet<Route>>,
    /// Highest epoch given out in the room. Starts at the revision that created the room, so that
    /// it is above every epoch of an earlier incarnation.
    pub epoch_max: Epoch,
}

impl Default for RoomOptions {
    /// LiveKit's defaults: 5 minutes for somebody to come, 20 seconds after the last one left.
    fn default() -> Self {
        Self {
            empty_timeout_ms: 300_000,
            departure_timeout_ms: 20_000,
            max_participants: 0,
            tags: BTreeMap::new(),
            min_playout_delay_ms: 0,
            max_playout_delay_ms: 0,
            sync_streams: false,
        }
    }
}

impl Room {
    /// A room nobody has joined yet.
    #[must_use]
    pub fn new(name: RoomName, sid: RoomSid, options: RoomOptions, created_at: UnixMillis) -> Self {
        let close_at = UnixMillis(created_at.0.saturating_add(options.empty_timeout_ms));
        Self {
            name,
            sid,
            options,
            metadata: String::new(),
            created_at,
            close_at: Some(close_at),
            version: Version(0),
            participants: Map::new(),
            homes: BTreeMap::new(),
            publishers: Map::new(),
            routes: Map::new(),
            epoch_max: Epoch(0),
        }
    }

    /// Publisher of a track and the track, announced or not.
    #[must_use]
    pub fn track(&self, sid: &TrackSid) -> Option<(&Arc<Participant>, &Arc<Track>)> {
        let publisher = self.participants.get(self.publishers.get(sid)?)?;
        Some((publisher, publisher.tracks.get(sid)?))
    }

    /// Every track in the room with its publisher, in order of track sids.
    pub fn tracks(&self) -> impl Iterator<Item = (&Arc<Participant>, &Arc<Track>)> {
        self.publishers.iter().filter_map(|(sid, identity)| {
            let publisher = self.participants.get(identity)?;
            Some((publisher, publisher.tracks.get(sid)?))
        })
    }

    /// Whether one more participant that counts toward the limit may come, when `leaving` goes.
    #[must_use]
    pub fn has_place(&self, leaving: Option<&Identity>) -> bool {
        let limit = self.options.max_participants as usize;
        if limit == 0 || self.participants.len() < limit {
            return true;
        }
        let counted = self
            .participants
            .values()
            .filter(|present| present.takes_place() && Some(&present.identity) != leaving)
            .count();
        counted < limit
    }
}
