//! What a session tells the media engine and hears from it.
//!
//! `signal` does not know the engine's crate; `flotilla-node` translates one to one.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_model::id::{Epoch, TrackSid};
use flotilla_model::track::{Quality, Track, TrackCodec};

/// Which of the client's peer connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Target {
    /// The one it publishes on; in v1 the only one.
    Publisher,
    /// The one it receives on (v0).
    Subscriber,
}

/// Data channels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Channel {
    /// Ordered, reliable.
    Reliable,
    /// Unordered, never sent twice.
    Lossy,
    /// As lossy, for data tracks.
    DataTrack,
}

/// What a subscriber wants of a track.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Wants packets at all.
    pub enabled: bool,
    /// Best quality wanted.
    pub quality: Quality,
    /// Most frames per second; 0: all.
    pub fps_max: u32,
}

/// What a client says of the connections it had at its session's former home. It keeps them while
/// another node takes the session over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restore {
    /// Last offer and answer on the connection that it receives on.
    pub descriptions: Option<(String, String)>,
    /// Its open data channels: connection, channel, SCTP stream id.
    pub channels: Vec<(Target, Channel, u16)>,
    /// Number of its reliable messages up to which every node of the room has them.
    pub sequence: u32,
}

/// Orders to the engine; see `flotilla_media::command` for their meaning.
#[derive(Clone, Debug)]
pub enum Command {
    /// Create the session's peers. In v0 the subscriber connection offers at once.
    CreatePeers {
        /// One connection (v1) instead of two.
        single: bool,
        /// Data channels by fixed id.
        negotiated_channels: bool,
        /// The client has its side of them already, from the session's former home. In v0 the
        /// subscriber connection then waits for [`Command::RestartIce`] with its offer.
        restore: Option<Box<Restore>>,
    },
    /// Client's offer.
    Offer {
        /// Which connection.
        target: Target,
        /// Its number.
        id: u32,
        /// SDP.
        sdp: String,
    },
    /// Client's answer.
    Answer {
        /// Which connection.
        target: Target,
        /// Number of the offer answered.
        id: u32,
        /// SDP.
        sdp: String,
    },
    /// v0: offer again on the subscriber connection with new ICE credentials.
    RestartIce,
    /// Another node may serve the client by now: nothing is sent to it, and no data message of it is taken.
    SetQuiet {
        /// As said; otherwise it is served again.
        quiet: bool,
    },
    /// Client's candidate.
    Candidate {
        /// Which connection.
        target: Target,
        /// Candidate line.
        candidate: String,
    },
    /// Expect a track.
    Publish {
        /// The track.
        track: Box<Track>,
        /// Publisher's epoch.
        epoch: Epoch,
    },
    /// A track ends.
    Unpublish {
        /// Which.
        track: TrackSid,
    },
    /// A track is muted.
    SetMuted {
        /// Which.
        track: TrackSid,
        /// State.
        muted: bool,
    },
    /// Send a track to this client.
    Subscribe {
        /// Which.
        track: TrackSid,
        /// msid stream id.
        stream: String,
        /// What is wanted.
        settings: Settings,
    },
    /// Stop sending.
    Unsubscribe {
        /// Which.
        track: TrackSid,
    },
    /// Change what is wanted.
    SetSettings {
        /// Which.
        track: TrackSid,
        /// What is wanted.
        settings: Settings,
    },
    /// Send a `DataPacket` to this client, on its subscriber connection in v0.
    SendData {
        /// Which channel.
        channel: Channel,
        /// Bytes.
        payload: Bytes,
    },
}

/// Reports of the engine about this session's peers; see `flotilla_media::event`.
#[derive(Clone, Debug)]
pub enum Event {
    /// Answer for the client.
    Answer {
        /// Which connection.
        target: Target,
        /// Number of its offer.
        id: u32,
        /// SDP.
        sdp: String,
        /// Section → track.
        mid_to_track: BTreeMap<String, TrackSid>,
    },
    /// Offer for the client.
    Offer {
        /// Which connection.
        target: Target,
        /// Its number.
        id: u32,
        /// SDP.
        sdp: String,
        /// Section → track.
        mid_to_track: BTreeMap<String, TrackSid>,
    },
    /// Client must offer again.
    SectionsNeeded {
        /// More audio sections.
        audio: u32,
        /// More video sections.
        video: u32,
    },
    /// Client's description was unusable.
    DescriptionRefused {
        /// Which connection.
        target: Target,
        /// Why.
        reason: String,
    },
    /// Transport is up.
    Connected {
        /// Which connection.
        target: Target,
    },
    /// Transport failed.
    Failed {
        /// Which connection.
        target: Target,
        /// Why.
        reason: &'static str,
    },
    /// The engine was restarted: nothing is left of the session's peers, and they are not to be made
    /// again from what is kept of them.
    Lost,
    /// The engine was restarted. What is kept of the session's peers is enough to go on from.
    Restarted,
    /// Encodings of a published track are known better.
    TrackDescribed {
        /// Which.
        track: TrackSid,
        /// Encodings.
        codecs: Vec<TrackCodec>,
    },
    /// First packet of a published track.
    TrackStarted {
        /// Which.
        track: TrackSid,
    },
    /// The client no longer sends a published track: its section went inactive in a later offer.
    TrackEnded {
        /// Which.
        track: TrackSid,
    },
    /// First packet of a subscription was sent.
    SubscriptionStarted {
        /// Which.
        track: TrackSid,
    },
    /// Data channel is open.
    ChannelOpen {
        /// On which connection. The client receives on its subscriber connection in v0, on the only
        /// one in v1; the session waits for that one.
        target: Target,
        /// Which.
        channel: Channel,
    },
    /// A `DataPacket` from the client.
    Data {
        /// Which channel.
        channel: Channel,
        /// Bytes.
        payload: Bytes,
    },
    /// Best quality anybody wants of a published video track.
    QualityWanted {
        /// Which.
        track: TrackSid,
        /// Best.
        quality: Quality,
    },
}
