//! What the engine can be told. Fed by the shard thread, from sessions and from the reconciler.

use std::net::SocketAddr;

use bytes::Bytes;
use flotilla_model::id::{BootId, Epoch, NodeId, TrackSid};
use flotilla_model::track::{Kind, Quality, Track};
use serde::{Deserialize, Serialize};

use crate::peer::passage::Passage;
use crate::peer::transport::TransportSnapshot;

/// One peer connection, chosen by the shell; unique within a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u64);

/// Which peer connection of LiveKit's protocol this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerRole {
    /// v0: the client offers and sends its tracks.
    Publisher,
    /// v0: the server offers and sends others' tracks; it opens the data channels.
    Subscriber,
    /// v1: one connection for both, the client always offers.
    Single,
}

/// Data channels of LiveKit's protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Channel {
    /// `_reliable`: ordered, reliable.
    Reliable,
    /// `_lossy`: unordered, never sent twice.
    Lossy,
    /// `_data_track`: as lossy.
    DataTrack,
}

/// What a subscriber wants of a track.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Settings {
    /// Wants packets at all.
    pub enabled: bool,
    /// Best quality wanted; the engine forwards the best live layer up to it.
    pub quality: Quality,
    /// Most frames per second wanted; 0: all.
    pub fps_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            quality: Quality::High,
            fps_max: 0,
        }
    }
}

/// What a peer connection had at its former home. The client keeps its end of it: sections, data
/// channels, and as long as the fingerprint in our description is the same, its DTLS session.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The DTLS session with its indices. `None`: the keys are not at hand; the connection starts
    /// with a handshake under a certificate that the client has not seen
    /// (`EngineConfig::fresh_certificate`), because a client keeps its old session as long as the
    /// fingerprint is the same.
    pub transport: Option<TransportSnapshot>,
    /// Last offer and answer that client and former home agreed on for this connection. v0
    /// subscriber: the server's offer, the client's answer; v1: the client's offer, the server's
    /// answer. `None` for a v0 publisher, whose next offer says everything, or if nothing was
    /// agreed on yet.
    pub descriptions: Option<(String, String)>,
    /// Data channels that are open at the client, with their SCTP stream ids.
    pub channels: Vec<(Channel, u16)>,
    /// Number of the client's reliable messages up to which they have been passed on. The message
    /// behind it shows where the client stands.
    pub sequence: u32,
}

/// A peer connection whose client does not know that its node is gone: the address has moved here, or is
/// lent.
#[derive(Clone, Debug)]
pub struct Continuation {
    /// Keys and indices, of the last checkpoint or the last moment.
    pub transport: TransportSnapshot,
    /// Path and streams, of the same.
    pub passage: Passage,
    /// Last offer and answer.
    pub descriptions: (String, String),
}

/// An order to the engine.
#[derive(Clone, Debug)]
pub enum Command {
    /// Creates a peer connection.
    CreatePeer {
        /// Its id.
        peer: PeerId,
        /// Its role.
        role: PeerRole,
        /// v1 clients of protocol 18 and up negotiate data channels by fixed id (100 reliable, 101
        /// lossy, 102 data track) instead of in-band.
        negotiated_channels: bool,
        /// The client has this peer connection already, with a node that no longer serves it.
        /// Nothing is offered to a v0 subscriber before [`Command::RestartIce`] then.
        restore: Option<Box<Restore>>,
    },
    /// Goes on with a peer connection on the path and the SSRCs that its client knows, at once. The old
    /// home must be fenced. Tracks that were sent are subscribed to; what the client publishes is still
    /// to be ordered. Data waits until [`Command::CreatePeer`] with the same id says what the client
    /// has; the connection stays the same then, if both sides have the same sections.
    GoOn {
        /// Its id.
        peer: PeerId,
        /// Its role.
        role: PeerRole,
        /// As with [`Command::CreatePeer`].
        negotiated_channels: bool,
        /// The former home, if that lives and lends the path
        /// ([`crate::engine::Engine::lend`]); `None`: its address is here.
        lender: Option<NodeId>,
        /// What it goes on from.
        from: Box<Continuation>,
    },
    /// Reports at once what another node needs to continue a peer connection
    /// ([`crate::event::Event::Checkpoint`]); nothing happens before it is connected.
    Export {
        /// Which.
        peer: PeerId,
    },
    /// Ends a peer connection: its tracks, subscriptions and memory.
    ClosePeer {
        /// Which.
        peer: PeerId,
    },
    /// A client's offer; answered by `Event::Answer` or `Event::DescriptionRefused`.
    Offer {
        /// Which peer.
        peer: PeerId,
        /// The client's number for it, echoed.
        id: u32,
        /// SDP.
        sdp: String,
    },
    /// A client's answer to `Event::Offer`.
    Answer {
        /// Which peer.
        peer: PeerId,
        /// Number of the offer it answers.
        id: u32,
        /// SDP.
        sdp: String,
    },
    /// v0 subscriber: offer again with new ICE credentials, after the client resumed its session.
    RestartIce {
        /// Which peer.
        peer: PeerId,
    },
    /// Nothing is sent to a client any more that another node may serve by now, and none of its data messages is taken; or
    /// all of it again, what waited included.
    SetQuiet {
        /// Which peer.
        peer: PeerId,
        /// Nothing is sent.
        quiet: bool,
    },
    /// A client's trickled candidate (`a=candidate` value). ICE-lite learns addresses from checks,
    /// so this is only checked and counted.
    Candidate {
        /// Which peer.
        peer: PeerId,
        /// Candidate line.
        candidate: String,
    },
    /// A track that the peer is going to publish. Matched to a media section by msid track id
    /// against `track.codecs[].cid`, else by the first free section of its kind.
    Publish {
        /// Which peer.
        peer: PeerId,
        /// The track as announced by the client.
        track: Box<Track>,
        /// The publisher's epoch, carried on relays.
        epoch: Epoch,
    },
    /// Ends a local or relayed track: subscriptions and relays of it end.
    Unpublish {
        /// Which track.
        track: TrackSid,
    },
    /// Publisher muted or unmuted; while muted no key frames are asked for.
    SetMuted {
        /// Which track.
        track: TrackSid,
        /// State.
        muted: bool,
    },
    /// Sends a track (local or relayed here) to a peer. Triggers negotiation.
    Subscribe {
        /// Which peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
        /// Stream id for `a=msid`, e.g. `PA_xxx|TR_xxx`.
        stream: String,
        /// What is wanted.
        settings: Settings,
    },
    /// Stops that; its media section becomes inactive and free.
    Unsubscribe {
        /// Which peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
    },
    /// Changes what is wanted.
    SetSettings {
        /// Which peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
        /// What is wanted.
        settings: Settings,
    },
    /// Sends a message on a data channel.
    SendData {
        /// Which peer.
        peer: PeerId,
        /// Which channel.
        channel: Channel,
        /// `livekit.DataPacket` bytes.
        payload: Bytes,
    },
    /// A message that arrived ([`crate::event::Event::Data`]) is kept elsewhere too: the client is told that
    /// it arrived, and forgets it. Without it that is said after [`crate::peer::sctp::DataLimits::hold_max`].
    DataSafe {
        /// Which peer.
        peer: PeerId,
        /// The message's number.
        number: u64,
    },
    /// Another node (this start of it) can be reached for relays at this address: the one of its
    /// shards that serves the same rooms. Replaces what was known of the node.
    SetLink {
        /// Which node.
        node: NodeId,
        /// Its start.
        boot: BootId,
        /// Where.
        address: SocketAddr,
    },
    /// Packets to a node go by way of another one, or directly again.
    SetDetour {
        /// Which node.
        node: NodeId,
        /// By which other one.
        via: Option<NodeId>,
    },
    /// Forgets a node: relays from and to it end.
    RemoveLink {
        /// Which node.
        node: NodeId,
    },
    /// Sends a local track to another node.
    RelayTo {
        /// Which track.
        track: TrackSid,
        /// Which node.
        node: NodeId,
    },
    /// Stops that.
    StopRelayTo {
        /// Which track.
        track: TrackSid,
        /// Which node.
        node: NodeId,
    },
    /// Expects a track from another node; makes it available for `Subscribe` here. A lower epoch
    /// than seen before is refused. Repeated with another node or epoch it moves the relay.
    RelayFrom {
        /// The track as replicated: codecs, layers, sizes.
        track: Box<Track>,
        /// Which node.
        node: NodeId,
        /// Publisher's epoch.
        epoch: Epoch,
    },
}

/// A track's kind and codec as its description says.
#[must_use]
pub fn primary_mime(track: &Track) -> &str {
    track.codecs.first().map_or(
        match track.kind {
            Kind::Audio => "audio/opus",
            Kind::Video => "video/vp8",
        },
        |codec| codec.mime.as_str(),
    )
}
