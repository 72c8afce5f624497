//! Snapshot of what the router does, for metrics and the admin interface. Made on request by
//! [`crate::forward::Router::stats`]; plain values, no connection to the live state.

use std::net::SocketAddr;
use std::time::Duration;

use flotilla_model::id::{Epoch, NodeId, TrackSid};
use flotilla_model::track::{Kind, Quality};
use flotilla_model::unit::{Bitrate, Size};

use crate::command::PeerId;
use crate::discard::DiscardCounts;

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Tracks that are published or relayed here, in no particular order.
    pub tracks: Vec<TrackStats>,
    /// Tracks sent to peers.
    pub subscriptions: Vec<SubscriptionStats>,
    /// Tracks sent to other nodes.
    pub relays: Vec<RelayStats>,
    /// Other nodes.
    pub links: Vec<LinkStats>,
    /// Packets of other nodes that were sent on to a third one, since the start.
    pub packets_passed_on: u64,
    /// Packets that were not used.
    pub discards: DiscardCounts,
}

/// Where a track comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrackSource {
    /// Nowhere yet: somebody subscribed before it was published.
    Pending,
    /// A peer of this shard.
    Local(PeerId),
    /// Another node.
    Relay(NodeId),
}

/// One track.
#[derive(Clone, Debug)]
pub struct TrackStats {
    /// Its sid.
    pub track: TrackSid,
    /// Audio or video.
    pub kind: Kind,
    /// Source.
    pub source: TrackSource,
    /// Publisher's epoch.
    pub epoch: Epoch,
    /// Muted by its publisher.
    pub is_muted: bool,
    /// Best quality that somebody wants.
    pub wanted: Quality,
    /// Layers, lowest first.
    pub layers: Vec<LayerStats>,
}

/// One layer of a track as received.
#[derive(Clone, Debug)]
pub struct LayerStats {
    /// RTP stream id; empty without simulcast.
    pub rid: String,
    /// Which quality it serves.
    pub quality: Quality,
    /// Picture size, once a key frame has shown it.
    pub size: Option<Size>,
    /// Packets arrive.
    pub is_live: bool,
    /// Distinct media packets.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Measured over about a second.
    pub bitrate: Bitrate,
    /// Packets never received.
    pub packets_lost: u64,
    /// Packets received by retransmission.
    pub packets_repaired: u64,
    /// Packets received twice.
    pub packets_duplicate: u64,
    /// Sequence numbers asked for again, repetitions included.
    pub nacks: u64,
    /// Key-frame requests sent.
    pub plis: u64,
    /// Key frames received.
    pub key_frames: u64,
    /// Interarrival jitter in RTP clock units (RFC 3550).
    pub jitter: u32,
}

/// One subscription as sent.
#[derive(Clone, Debug)]
pub struct SubscriptionStats {
    /// To whom.
    pub peer: PeerId,
    /// Which track.
    pub track: TrackSid,
    /// Quality of the layer being forwarded; `Off`: none.
    pub quality: Quality,
    /// Packets sent for the first time.
    pub packets: u64,
    /// Bytes of those, headers included, SRTP not.
    pub bytes: u64,
    /// Sequence numbers the subscriber asked for.
    pub nacks: u64,
    /// Packets sent again.
    pub retransmissions: u64,
    /// Key frames the subscriber asked for.
    pub plis: u64,
    /// Layer switches.
    pub switches: u64,
    /// Cumulative loss the subscriber reports.
    pub packets_lost: u32,
    /// Fraction lost in its last report, 0 to 1.
    pub fraction_lost: f32,
    /// Round trip by its last report.
    pub rtt: Option<Duration>,
}

/// One track sent to another node.
#[derive(Clone, Debug)]
pub struct RelayStats {
    /// To which node.
    pub to: NodeId,
    /// Which track.
    pub track: TrackSid,
    /// The other node asks for packets.
    pub is_active: bool,
    /// Best quality it wants.
    pub wanted: Quality,
    /// Packets sent for the first time.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Packets sent again.
    pub retransmissions: u64,
}

/// One other node.
#[derive(Clone, Debug)]
pub struct LinkStats {
    /// Which.
    pub node: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Authenticated packets arrived within the last seconds.
    pub is_up: bool,
    /// Round trip of the last ping.
    pub rtt: Option<Duration>,
    /// Packets sent.
    pub packets_sent: u64,
    /// Authentic packets received.
    pub packets_received: u64,
    /// Packets lost on the way here, by the gaps in the counter.
    pub packets_lost: u64,
}
