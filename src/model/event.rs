//! What changed: the ordered feed that sessions, reconciler and watchers follow.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Identity, NodeId, RoomName, TrackSid, Version};
use crate::participant::{LeaveReason, Participant};
use crate::room::Room;
use crate::track::Track;

/// One change, in log order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Event {
    /// A node's record was written or its state changed.
    NodeChanged(NodeId),
    /// A node was removed.
    NodeRemoved(NodeId),
    /// A room's event.
    Room {
        /// Room.
        room: RoomName,
        /// Room's version after it. Several events of one entry share it.
        version: Version,
        /// What happened.
        change: RoomEvent,
    },
}

/// What happened in a room.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum RoomEvent {
    /// Created.
    Created(Arc<Room>),
    /// Metadata changed.
    Updated,
    /// Closed; every participant's `ParticipantLeft` came before.
    Closed(Arc<Room>),
    /// Joined.
    ParticipantJoined(Arc<Participant>),
    /// Any visible change of a participant (state, name, metadata, attributes, permission).
    ParticipantUpdated(Arc<Participant>),
    /// Left; carries the last record. Its tracks and subscriptions end with it: there is no
    /// `TrackUnpublished` for them.
    ParticipantLeft {
        /// Last record, with state `Disconnected`.
        participant: Arc<Participant>,
        /// Why.
        reason: LeaveReason,
    },
    /// Home or epoch changed.
    ParticipantMoved(Arc<Participant>),
    /// Track added.
    TrackPublished {
        /// Publisher after it.
        publisher: Arc<Participant>,
        /// Track.
        track: Arc<Track>,
    },
    /// Track's negotiated part or mute state changed.
    TrackUpdated {
        /// Publisher after it.
        publisher: Arc<Participant>,
        /// Track.
        track: Arc<Track>,
    },
    /// Track removed.
    TrackUnpublished {
        /// Publisher after it.
        publisher: Arc<Participant>,
        /// Track.
        track: Arc<Track>,
    },
    /// What a subscriber is to receive may have changed by its own wish or by a permission. That
    /// tracks came, went or were announced is told by `TrackPublished`, `TrackUpdated`,
    /// `TrackUnpublished` and `ParticipantLeft` alone, not once per subscriber; there, everybody
    /// looks at [`crate::placement::is_subscribed`] again.
    SubscriptionsChanged {
        /// Subscriber.
        identity: Identity,
    },
    /// A publisher's subscription permission changed for a subscriber and a track.
    SubscriptionPermissionChanged {
        /// Publisher.
        publisher: Identity,
        /// Subscriber.
        subscriber: Identity,
        /// Track.
        track: TrackSid,
        /// Now allowed.
        allowed: bool,
    },
    /// The set of routes changed; always the entry's last event for the room.
    RoutesChanged,
}
