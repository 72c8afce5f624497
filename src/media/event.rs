//! What the engine reports. Goes to the peer's session or to the reconciler.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_model::id::{NodeId, TrackSid};
use flotilla_model::track::{Quality, TrackCodec};

use crate::command::{Channel, PeerId};
use crate::peer::passage::Passage;
use crate::peer::transport::TransportSnapshot;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Answer to a client's offer.
    Answer {
        /// Which peer.
        peer: PeerId,
        /// Number of the offer.
        id: u32,
        /// SDP.
        sdp: String,
        /// Media section → track sent on it.
        mid_to_track: BTreeMap<String, TrackSid>,
    },
    /// Offer to a client (v0 subscriber).
    Offer {
        /// Which peer.
        peer: PeerId,
        /// Our number for it.
        id: u32,
        /// SDP.
        sdp: String,
        /// Media section → track sent on it.
        mid_to_track: BTreeMap<String, TrackSid>,
    },
    /// v1: the client must offer again, with this many more receiving sections ({0, 0}: the spare
    /// ones are enough).
    SectionsNeeded {
        /// Which peer.
        peer: PeerId,
        /// More audio sections.
        audio: u32,
        /// More video sections.
        video: u32,
    },
    /// A description could not be used.
    DescriptionRefused {
        /// Which peer.
        peer: PeerId,
        /// Number of the offer or answer.
        id: u32,
        /// Why.
        reason: String,
    },
    /// ICE and DTLS are up (first time or again after an ICE restart).
    Connected {
        /// Which peer.
        peer: PeerId,
    },
    /// No consent for longer than the timeout, or the DTLS handshake failed.
    Failed {
        /// Which peer.
        peer: PeerId,
        /// Why.
        reason: &'static str,
    },
    /// A published track's sections are negotiated, or its SSRCs became known. Sent whenever
    /// `codecs` gained something; the first time with `first` set.
    TrackDescribed {
        /// Publisher's peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
        /// Its encodings as known now.
        codecs: Vec<TrackCodec>,
    },
    /// First media packet of a track arrived.
    TrackStarted {
        /// Publisher's peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
    },
    /// The client no longer sends a published track: its section went inactive in a later offer.
    TrackEnded {
        /// Publisher's peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
    },
    /// First media packet of a subscription was sent.
    SubscriptionStarted {
        /// Which peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
    },
    /// A data channel is open both ways.
    ChannelOpen {
        /// Which peer.
        peer: PeerId,
        /// Which channel.
        channel: Channel,
    },
    /// A message arrived on a data channel.
    Data {
        /// Which peer.
        peer: PeerId,
        /// Which channel.
        channel: Channel,
        /// `livekit.DataPacket` bytes.
        payload: Bytes,
        /// Number to be given to [`crate::command::Command::DataSafe`] once the message is kept elsewhere
        /// too, or known not to matter; 0: that is not waited for.
        number: u64,
    },
    /// Loudness of local audio tracks that are or were just active, a few times a second.
    AudioLevels {
        /// Track → level, 0 (silent) to 1 (loudest); 0 means it fell silent.
        levels: Vec<(TrackSid, f32)>,
    },
    /// Best quality that anybody here or behind a relay wants of a local video track changed.
    QualityWanted {
        /// Publisher's peer.
        peer: PeerId,
        /// Which track.
        track: TrackSid,
        /// Best quality; `Off`: nobody watches.
        quality: Quality,
    },
    /// What another node needs to continue this peer connection: when it connects, when something new
    /// appears (an SSRC, a rollover of a sequence number), and at least every
    /// `EngineConfig::checkpoint_interval` while packets come. Holds keys.
    Checkpoint {
        /// Which peer.
        peer: PeerId,
        /// Its transport.
        snapshot: Box<TransportSnapshot>,
        /// Its path and streams, if the node's address moves.
        passage: Option<Box<Passage>>,
        /// Its last offer and answer, under the same condition and when they are new.
        descriptions: Option<Box<(String, String)>>,
    },
    /// A relay started to carry packets, for the admin view.
    RelayStarted {
        /// Which track.
        track: TrackSid,
        /// From which node.
        from: NodeId,
    },
}
