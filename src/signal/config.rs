//! What sessions and the room service are told by the node's configuration. Immutable.

use std::time::Duration;

use flotilla_model::id::NodeId;
use flotilla_model::room::RoomOptions;

use crate::token::Keys;

/// LiveKit's server version whose wire behaviour we keep. Clients switch features on it, so it is
/// not our own version.
pub const COMPATIBLE_VERSION: &str = "1.13.5";

/// Signal protocol version we speak.
pub const PROTOCOL: i32 = 17;

/// Sizes and counts a client may reach. Each one that falls refuses clients that lived with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// Bytes of one signal message, on the wire and inflated.
    pub signal_message_bytes_max: usize,
    /// Bytes of an inflated `join_request`.
    pub join_request_bytes_max: usize,
    /// Bytes of a room's or participant's metadata.
    pub metadata_bytes_max: usize,
    /// Bytes of a participant's attributes, keys and values together.
    pub attributes_bytes_max: usize,
    /// Bytes of a room's name.
    pub room_name_bytes_max: usize,
    /// Bytes of an identity.
    pub identity_bytes_max: usize,
    /// Bytes of a participant's or track's name.
    pub name_bytes_max: usize,
    /// Tracks that a participant may have published at once.
    pub tracks_max: usize,
    /// Changes that wait for the log, per session. Beyond it requests are refused.
    pub proposals_max: usize,
    /// Bytes of data messages kept per channel until it opens. Beyond it the oldest go.
    pub data_queue_bytes_max: usize,
    /// Bytes of one data message.
    pub data_message_bytes_max: usize,
    /// Bytes of one participant update; larger ones are split.
    pub update_bytes_max: usize,
    /// Tracks that one client request may name.
    pub tracks_per_request_max: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            signal_message_bytes_max: 2 << 20,
            join_request_bytes_max: 1 << 20,
            metadata_bytes_max: 512 << 10,
            attributes_bytes_max: 64 << 10,
            room_name_bytes_max: 256,
            identity_bytes_max: 256,
            name_bytes_max: 256,
            tracks_max: 100,
            proposals_max: 256,
            data_queue_bytes_max: 4 << 20,
            data_message_bytes_max: 256 << 10,
            update_bytes_max: 128 << 10,
            tracks_per_request_max: 10_000,
        }
    }
}

/// A codec as `Room.enabled_codecs` and `JoinResponse.enabled_publish_codecs` name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnabledCodec {
    /// MIME type, e.g. `video/VP8`.
    pub mime: String,
    /// Format parameters, mostly empty.
    pub fmtp: String,
}

/// Everything a session needs to know of its node.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// This node.
    pub node: NodeId,
    /// Its region's name.
    pub region: String,
    /// Version told to clients; see [`COMPATIBLE_VERSION`].
    pub server_version: String,
    /// Free text in `ServerInfo.debug_info`.
    pub debug_info: String,
    /// API keys; the first one signs refreshed tokens.
    pub keys: Keys,
    /// Sizes and counts.
    pub limits: SessionLimits,
    /// How often clients ping. When it falls, dead nodes are noticed sooner.
    pub ping_interval: Duration,
    /// How long clients wait for any message before they reconnect.
    pub ping_timeout: Duration,
    /// Rooms come into being when the first participant joins.
    pub auto_create: bool,
    /// Options of rooms that are created by a join.
    pub room_defaults: RoomOptions,
    /// Administrators may unmute tracks.
    pub remote_unmute: bool,
    /// Codecs that may be published, video first.
    pub enabled_codecs: Vec<EnabledCodec>,
    /// How often a client gets a new token.
    pub refresh_interval: Duration,
    /// How long a refreshed token lives, unless the original one lives longer.
    pub refresh_lifetime: Duration,
    /// How long a session whose signal connection went away waits for the client.
    pub resume_timeout: Duration,
    /// The same after its media failed as well.
    pub media_failed_timeout: Duration,
    /// Rooms with more participants than this get the comings and goings of pure subscribers in
    /// batches.
    pub update_batch_above: usize,
    /// How long such a batch collects.
    pub update_batch_interval: Duration,
    /// Least time between two `room_update`s that only carry new counts.
    pub room_update_interval: Duration,
    /// Pause before a change that found no quorum is asked for again.
    pub proposal_retry_interval: Duration,
}

impl SessionConfig {
    /// LiveKit's defaults for a node and its keys.
    #[must_use]
    pub fn new(node: NodeId, keys: Keys) -> Self {
        let codec = |mime: &str| EnabledCodec {
            mime: mime.to_owned(),
            fmtp: String::new(),
        };
        Self {
            node,
            region: String::new(),
            server_version: COMPATIBLE_VERSION.to_owned(),
            debug_info: String::new(),
            keys,
            limits: SessionLimits::default(),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(15),
            auto_create: true,
            room_defaults: RoomOptions {
                empty_timeout_ms: 300_000,
                departure_timeout_ms: 20_000,
                max_participants: 0,
                tags: Default::default(),
                min_playout_delay_ms: 0,
                max_playout_delay_ms: 0,
                sync_streams: false,
            },
            remote_unmute: false,
            enabled_codecs: vec![codec("video/VP8"), codec("video/H264"), codec("audio/opus")],
            refresh_interval: Duration::from_secs(300),
            refresh_lifetime: Duration::from_secs(600),
            resume_timeout: Duration::from_secs(20),
            media_failed_timeout: Duration::from_secs(5),
            update_batch_above: 100,
            update_batch_interval: Duration::from_secs(1),
            room_update_interval: Duration::from_secs(5),
            proposal_retry_interval: Duration::from_secs(1),
        }
    }
}
