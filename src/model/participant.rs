//! A participant of a room and its home node.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Identity, NodeId, ParticipantSid, TrackSid, UnixMillis};
use crate::permission::{Permission, SubscriptionPermission};
use crate::track::Track;

/// `livekit.ParticipantInfo.State`, same numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum ParticipantState {
    /// Signalling has begun.
    Joining = 0,
    /// Has received the join response.
    Joined = 1,
    /// Media transport is up.
    Active = 2,
    /// Gone.
    Disconnected = 3,
}

/// What the client said about itself, kept for quirks and for display.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Client {
    /// `livekit.ClientInfo.SDK` number.
    pub sdk: i32,
    /// SDK version.
    pub version: String,
    /// Signal protocol version.
    pub protocol: u32,
    /// Client-to-client protocol version.
    pub client_protocol: i32,
    /// `livekit.ClientInfo.Capability` numbers.
    pub capabilities: Vec<i32>,
    /// Operating system.
    pub os: String,
    /// Browser name.
    pub browser: String,
    /// Single peer connection (`/rtc/v1`) instead of two.
    pub single_peer_connection: bool,
    /// Adapts to the size of its video elements.
    pub adaptive_stream: bool,
}

/// Which tracks a participant wants.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Subscriptions {
    /// Everything, unless said otherwise in `explicit`.
    pub auto: bool,
    /// Said otherwise, per track.
    pub explicit: BTreeMap<TrackSid, bool>,
}

/// A participant, as replicated.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Participant {
    /// Its sid; a new one for each full join.
    pub sid: ParticipantSid,
    /// Its identity.
    pub identity: Identity,
    /// Display name.
    pub name: String,
    /// Application's metadata.
    pub metadata: String,
    /// Application's attributes.
    pub attributes: BTreeMap<String, String>,
    /// `livekit.ParticipantInfo.Kind` number.
    pub kind: i32,
    /// `livekit.ParticipantInfo.KindDetail` numbers.
    pub kind_details: Vec<i32>,
    /// Where it is in its life.
    pub state: ParticipantState,
    /// When it leaves with [`LeaveReason::JoinFailure`] unless it has become active; `None` once it
    /// has.
    pub activate_by: Option<UnixMillis>,
    /// When it joined.
    pub joined_at: UnixMillis,
    /// When the token it joined with was issued (`nbf`/`iat`), for revocation.
    pub token_issued_at: UnixMillis,
    /// Rises with every change others see (`ParticipantInfo.version`).
    pub version: u32,
    /// What it may do.
    pub permission: Permission,
    /// What it allows its subscribers.
    pub subscription_permission: SubscriptionPermission,
    /// What it wants to receive.
    pub subscriptions: Subscriptions,
    /// What it publishes.
    pub tracks: BTreeMap<TrackSid, Arc<Track>>,
    /// The client.
    pub client: Client,
    /// Node that serves it.
    pub home: NodeId,
    /// Generation of that.
    pub epoch: Epoch,
}

/// `livekit.ParticipantInfo.Kind` of egress.
const KIND_EGRESS: i32 = 2;
/// `livekit.ParticipantInfo.Kind` of agents.
const KIND_AGENT: i32 = 4;

impl Participant {
    /// Whether it counts toward the room's `max_participants`.
    #[must_use]
    pub fn takes_place(&self) -> bool {
        takes_place(self.kind, &self.permission)
    }
}

/// Whether a participant of this kind counts toward `max_participants`: agents, egress and
/// recorders do not.
#[must_use]
pub fn takes_place(kind: i32, permission: &Permission) -> bool {
    !(permission.agent || permission.recorder || kind == KIND_EGRESS || kind == KIND_AGENT)
}

/// Why a participant left; `livekit.DisconnectReason` numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum LeaveReason {
    /// Not known.
    Unknown = 0,
    /// Its own wish.
    ClientInitiated = 1,
    /// Replaced by a newer session of the same identity.
    DuplicateIdentity = 2,
    /// Its node was stopped.
    ServerShutdown = 3,
    /// Removed by an administrator.
    ParticipantRemoved = 4,
    /// Its room was deleted.
    RoomDeleted = 5,
    /// Client and cluster disagree.
    StateMismatch = 6,
    /// Never became active.
    JoinFailure = 7,
    /// Its signal connection went away and did not return.
    SignalClose = 9,
    /// Its room was closed.
    RoomClosed = 10,
    /// Media never connected or went silent.
    ConnectionTimeout = 14,
    /// Media transport failed.
    MediaFailure = 15,
}
