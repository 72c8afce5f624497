//! The changes that can be asked for, and the answers.
//!
//! Proposed by sessions, the API and the reconciler through `flotilla-raft`; applied by
//! [`crate::State::apply`]. Encoded by [`crate::encoding`], which carries a version.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cluster::{LossCause, Node, NodeState, Stint};
use crate::id::{
    BootId, Epoch, Identity, NodeId, ParticipantSid, RequestId, RoomName, RoomSid, TrackSid,
    UnixMillis, Version,
};
use crate::participant::{Client, LeaveReason, Participant};
use crate::permission::{Permission, SubscriptionPermission};
use crate::room::{Room, RoomOptions};
use crate::track::Track;

/// One entry of the log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Entry {
    /// Leader's wall clock when it accepted the command.
    pub at: UnixMillis,
    /// Who asks; the same id is applied once and answered alike afterwards.
    pub request: RequestId,
    /// What to do.
    pub command: Command,
}

/// A participant that wants to join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Join {
    /// Room to join.
    pub room: RoomName,
    /// If the room does not exist: create it with these, or refuse if `None`.
    pub create: Option<CreateRoom>,
    /// Sid of the new session.
    pub sid: ParticipantSid,
    /// Identity; a present participant with the same one is replaced.
    pub identity: Identity,
    /// Display name.
    pub name: String,
    /// Metadata.
    pub metadata: String,
    /// Attributes.
    pub attributes: BTreeMap<String, String>,
    /// `livekit.ParticipantInfo.Kind` number.
    pub kind: i32,
    /// Kind details.
    pub kind_details: Vec<i32>,
    /// Permissions from the token.
    pub permission: Permission,
    /// When the token was issued.
    pub token_issued_at: UnixMillis,
    /// Wants everything by itself.
    pub auto_subscribe: bool,
    /// The client.
    pub client: Client,
    /// Node that serves it.
    pub home: NodeId,
}

/// A room to create.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct CreateRoom {
    /// Its name.
    pub name: RoomName,
    /// Sid to use if it does not exist yet.
    pub sid: RoomSid,
    /// Options.
    pub options: RoomOptions,
    /// Metadata.
    pub metadata: String,
}

/// Changes to a participant; `None` leaves a field as it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct ParticipantUpdate {
    /// New name.
    pub name: Option<String>,
    /// New metadata.
    pub metadata: Option<String>,
    /// Attributes to set; an empty value removes the key.
    pub attributes: BTreeMap<String, String>,
    /// New permissions.
    pub permission: Option<Permission>,
}

/// A change.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Command {
    /// A node says where it is.
    PutNode(Node),
    /// A node starts or stops taking participants.
    SetNodeState {
        /// Node.
        node: NodeId,
        /// New state.
        state: NodeState,
    },
    /// What encoding version 1 meant by [`Command::RemoveNode`]: the node's participants leave. Read
    /// from older logs, never proposed.
    RemoveNodeV1 {
        /// Node.
        node: NodeId,
    },
    /// What encoding version 1 meant by [`Command::NodeLost`]: the node's participants leave. Read
    /// from older logs, never proposed.
    NodeLostV1 {
        /// Node.
        node: NodeId,
        /// Start that was lost.
        boot: BootId,
    },
    /// Creates a room, or returns the present one.
    CreateRoom(CreateRoom),
    /// Closes a room; its participants leave.
    DeleteRoom {
        /// Room.
        room: RoomName,
    },
    /// Sets a room's metadata.
    SetRoomMetadata {
        /// Room.
        room: RoomName,
        /// Metadata.
        metadata: String,
    },
    /// A participant joins.
    Join(Box<Join>),
    /// Media of a participant is up.
    Activate {
        /// Room.
        room: RoomName,
        /// Participant.
        identity: Identity,
        /// Its session; another one is left alone.
        sid: ParticipantSid,
    },
    /// A participant leaves.
    Leave {
        /// Room.
        room: RoomName,
        /// Participant.
        identity: Identity,
        /// Its session; `None`: whichever (an administrator's removal).
        sid: Option<ParticipantSid>,
        /// Why.
        reason: LeaveReason,
        /// Refuse tokens of this identity issued before this time from now on.
        revoke_before: Option<UnixMillis>,
    },
    /// Changes name, metadata, attributes or permissions.
    UpdateParticipant {
        /// Room.
        room: RoomName,
        /// Participant.
        identity: Identity,
        /// Change.
        update: ParticipantUpdate,
    },
    /// Adds a track.
    PublishTrack {
        /// Room.
        room: RoomName,
        /// Publisher.
        identity: Identity,
        /// Publisher's session.
        sid: ParticipantSid,
        /// Track.
        track: Box<Track>,
    },
    /// Replaces a track's negotiated part (codecs, mids, ssrcs, `announced`) once it is known.
    UpdateTrack {
        /// Room.
        room: RoomName,
        /// Publisher.
        identity: Identity,
        /// Publisher's session.
        sid: ParticipantSid,
        /// Track; `muted` is not taken from it.
        track: Box<Track>,
    },
    /// Removes a track.
    UnpublishTrack {
        /// Room.
        room: RoomName,
        /// Publisher.
        identity: Identity,
        /// Track.
        track: TrackSid,
    },
    /// Mutes or unmutes.
    SetTrackMuted {
        /// Room.
        room: RoomName,
        /// Publisher.
        identity: Identity,
        /// Track.
        track: TrackSid,
        /// New state.
        muted: bool,
    },
    /// Wants or no longer wants tracks.
    UpdateSubscriptions {
        /// Room.
        room: RoomName,
        /// Subscriber.
        identity: Identity,
        /// Per track: wanted or not.
        tracks: BTreeMap<TrackSid, bool>,
    },
    /// Says who may subscribe.
    SetSubscriptionPermission {
        /// Room.
        room: RoomName,
        /// Publisher.
        identity: Identity,
        /// Permission.
        permission: SubscriptionPermission,
    },
    /// Moves participants to new homes; one command for everybody a failing node served.
    Rehome {
        /// Room, participant, its session, the epoch it is believed to have, new home.
        moves: Vec<Rehome>,
    },
    /// Proposed by the leader when deadlines have passed; `Entry::at` decides which.
    Expire,
    /// Does nothing; marks a point in the log.
    Noop,
    /// A node is taken for dead: everybody it served moves to their standby and it takes nobody until
    /// it writes its record again. Nobody leaves; if no other node can take them, they stay. `boot`
    /// guards against a node that has come back meanwhile. Since encoding version 2.
    NodeLost {
        /// Node.
        node: NodeId,
        /// Start that was lost.
        boot: BootId,
        /// What the verdict rests on.
        cause: LossCause,
    },
    /// A node is gone for good: its participants move to their standby, or leave if there is no
    /// other node. Since encoding version 2.
    RemoveNode {
        /// Node.
        node: NodeId,
    },
    /// A participant's home takes it for gone. Refused if it has another home by now, which knows
    /// better. Since encoding version 3.
    Depart {
        /// Room.
        room: RoomName,
        /// Participant.
        identity: Identity,
        /// Its session.
        sid: ParticipantSid,
        /// Epoch that must still hold.
        epoch: Epoch,
        /// Why.
        reason: LeaveReason,
    },
    /// As [`Command::NodeLost`], for a node whose address moves: everybody it served, and its moving
    /// addresses, go to one node. If that cannot take them, this is a `NodeLost`. Since encoding version
    /// 4.
    NodeLostTo {
        /// Node.
        node: NodeId,
        /// Start that was lost.
        boot: BootId,
        /// What the verdict rests on.
        cause: LossCause,
        /// Who takes its place.
        taker: NodeId,
    },
    /// A node serves nobody at these moving addresses any more: they are whose they were. Since
    /// encoding version 4.
    ReleaseAddresses {
        /// Node that held them.
        node: NodeId,
        /// Its start.
        boot: BootId,
        /// Addresses.
        addresses: Vec<IpAddr>,
    },
    /// As [`Command::NodeLost`] and, with a taker, [`Command::NodeLostTo`], by what was seen of one stint
    /// of the node: refused if another has begun since. Since encoding version 5.
    NodeLostIn {
        /// Node.
        node: NodeId,
        /// Stint that was seen to end.
        stint: Stint,
        /// What the verdict rests on.
        cause: LossCause,
        /// Who takes its place, if its address moves.
        taker: Option<NodeId>,
    },
    /// A node whose lease had ended begins another stint: it knows everything in the log before this, and
    /// no verdict that rests on what was seen of it before follows. Refused if it is taken for lost. Since
    /// encoding version 5.
    NodeReturns {
        /// Node.
        node: NodeId,
        /// Its start.
        boot: BootId,
    },
}

impl Command {
    /// The same for a log of `version`: what newer versions say more exactly in the words that this one
    /// has for it. A command that has none there stays what it is.
    #[must_use]
    pub fn worded_for(self, version: u8) -> Self {
        match self {
            Self::Depart {
                room,
                identity,
                sid,
                epoch: _,
                reason,
            } if version < 3 => Self::Leave {
                room,
                identity,
                sid: Some(sid),
                reason,
                revoke_before: None,
            },
            Self::NodeLostTo {
                node,
                boot,
                cause,
                taker: _,
            } if version < 4 => Self::NodeLost { node, boot, cause },
            Self::NodeLostIn {
                node,
                stint: Stint { boot, .. },
                cause,
                taker,
            } if version < 5 => match taker {
                Some(taker) => Self::NodeLostTo {
                    node,
                    boot,
                    cause,
                    taker,
                }
                .worded_for(version),
                None => Self::NodeLost { node, boot, cause },
            },
            // What has no effect but its place in the log.
            Self::NodeReturns { .. } if version < 5 => Self::Expire,
            other => other,
        }
    }

    /// The encoding version that first knew this command with what is in it. It is not proposed before
    /// every node reads that version ([`crate::State::log_version`]).
    #[must_use]
    pub const fn since_version(&self) -> u8 {
        // Every command stands here, so that a new one cannot be forgotten.
        match self {
            Self::NodeLostIn { .. } | Self::NodeReturns { .. } => 5,
            Self::NodeLostTo { .. } | Self::ReleaseAddresses { .. } => 4,
            Self::Depart { .. } => 3,
            Self::NodeLost { .. } | Self::RemoveNode { .. } => 2,
            Self::PutNode(Node { state, .. }) | Self::SetNodeState { state, .. } => {
                if state.is_lost() { 2 } else { 1 }
            }
            Self::RemoveNodeV1 { .. }
            | Self::NodeLostV1 { .. }
            | Self::CreateRoom(_)
            | Self::DeleteRoom { .. }
            | Self::SetRoomMetadata { .. }
            | Self::Join(_)
            | Self::Activate { .. }
            | Self::Leave { .. }
            | Self::UpdateParticipant { .. }
            | Self::PublishTrack { .. }
            | Self::UpdateTrack { .. }
            | Self::UnpublishTrack { .. }
            | Self::SetTrackMuted { .. }
            | Self::UpdateSubscriptions { .. }
            | Self::SetSubscriptionPermission { .. }
            | Self::Rehome { .. }
            | Self::Expire
            | Self::Noop => 1,
        }
    }
}

/// One participant's move to another node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Rehome {
    /// Room.
    pub room: RoomName,
    /// Participant.
    pub identity: Identity,
    /// Its session.
    pub sid: ParticipantSid,
    /// Epoch that must still hold.
    pub epoch: Epoch,
    /// New home.
    pub home: NodeId,
}

/// Outcome of an applied command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Reply {
    /// Room's version after the command; 0 where no room is meant.
    pub version: Version,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Outcome {
    /// Done, nothing to say.
    Done,
    /// The room, after creation or as it was.
    Room(Arc<Room>),
    /// Joined: the room as the participant finds it, itself included.
    Joined {
        /// Room.
        room: Arc<Room>,
        /// The participant.
        participant: Arc<Participant>,
    },
    /// The participant after the change.
    Participant(Arc<Participant>),
    /// The track after the change.
    Track(Arc<Track>),
    /// How many deadlines were met.
    Expired {
        /// Rooms closed.
        rooms: u32,
        /// Participants that left.
        participants: u32,
    },
}

/// Why a command was not applied. Part of the log's outcome: the same on every node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Error)]
pub enum Rejection {
    /// No such room (and the command may not create it).
    #[error("requested room does not exist")]
    RoomNotFound,
    /// No such participant.
    #[error("participant does not exist")]
    ParticipantNotFound,
    /// The session named is not the present one.
    #[error("session is no longer the participant's present one")]
    StaleSession,
    /// The epoch named is not the present one.
    #[error("epoch is no longer the present one")]
    StaleEpoch,
    /// No such track.
    #[error("track does not exist")]
    TrackNotFound,
    /// Another participant publishes a track of the same sid.
    #[error("a track of this sid exists already")]
    TrackExists,
    /// The room is full.
    #[error("room is full")]
    RoomFull,
    /// Permission does not allow it.
    #[error("permission denied: {0}")]
    NotPermitted(String),
    /// Tokens of this identity issued before a certain time are revoked.
    #[error("token has been revoked")]
    TokenRevoked,
    /// No such node, or one that is taken for lost.
    #[error("node does not exist or is lost")]
    NodeNotFound,
    /// A limit would be passed.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
}

/// Sources that a permission check names, kept here so that rejections read alike.
pub type Sources = BTreeSet<crate::track::Source>;
