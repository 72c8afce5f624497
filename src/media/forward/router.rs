//! The router's public face: commands, packets and time in; events out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use flotilla_model::id::{BootId, Epoch, NodeId, TrackSid};
use flotilla_model::track::{Kind, Track, TrackCodec};

use crate::command::{PeerId, Settings};
use crate::discard::Discard;
use crate::event::Event;
use crate::forward::Wire;
use crate::forward::parameters::{ReceiveSection, SendSection};
use crate::stats::Stats;

/// What a router needs to know about itself.
#[derive(Clone)]
pub struct RouterConfig {
    /// This node.
    pub node: NodeId,
    /// This start of it.
    pub boot: BootId,
    /// Which shard of the node this router runs on. Part of the relay keys: two shards must never
    /// seal with one key.
    pub shard: u16,
    /// Secret shared by the cluster's nodes, from which relay keys are derived.
    pub relay_secret: [u8; 32],
    /// Seed for SSRCs, sequence numbers and counters.
    pub seed: [u8; 32],
}

/// What the SDP code needs to know of a track to offer it to a subscriber.
#[derive(Clone, Copy, Debug)]
pub struct TrackView<'a> {
    /// Audio or video.
    pub kind: Kind,
    /// Encodings as known now.
    pub codecs: &'a [TrackCodec],
    /// Whether packets have arrived.
    pub started: bool,
}

/// Publications, subscriptions and relays of one shard.
pub struct Router {
    config: RouterConfig,
    events: VecDeque<Event>,
}

impl Router {
    /// An empty router.
    #[must_use]
    pub fn new(_now: Instant, config: RouterConfig) -> Self {
        Self {
            config,
            events: VecDeque::new(),
        }
    }

    /// Replaces the sections on which a peer sends to us. Streams already identified stay known as
    /// long as their section carries the same track.
    pub fn set_receive(&mut self, _now: Instant, _peer: PeerId, _sections: Vec<ReceiveSection>) {}

    /// Replaces the sections on which we send to a peer.
    pub fn set_send(&mut self, _now: Instant, _peer: PeerId, _sections: Vec<SendSection>) {}

    /// A peer publishes a track.
    pub fn publish(&mut self, _now: Instant, _peer: PeerId, _track: &Track, _epoch: Epoch) {}

    /// Ends a track, local or relayed, with its subscriptions and relays.
    pub fn unpublish(&mut self, _now: Instant, _track: &TrackSid) {}

    /// A track was muted or unmuted.
    pub fn set_muted(&mut self, _now: Instant, _track: &TrackSid, _muted: bool) {}

    /// A peer is to get a track; it need not be known yet.
    pub fn subscribe(&mut self, _now: Instant, _peer: PeerId, _track: &TrackSid, _s: Settings) {}

    /// Ends that.
    pub fn unsubscribe(&mut self, _now: Instant, _peer: PeerId, _track: &TrackSid) {}

    /// Changes what a subscriber wants.
    pub fn set_settings(&mut self, _now: Instant, _peer: PeerId, _track: &TrackSid, _s: Settings) {}

    /// A peer can receive media from now on.
    pub fn peer_connected(&mut self, _now: Instant, _peer: PeerId) {}

    /// A peer is gone: its tracks lose their source, its subscriptions end.
    pub fn remove_peer(&mut self, _now: Instant, _peer: PeerId) {}

    /// Another node can be reached for relays.
    pub fn set_link(&mut self, _now: Instant, _node: NodeId, _boot: BootId, _to: SocketAddr) {}

    /// Another node is gone.
    pub fn remove_link(&mut self, _now: Instant, _node: NodeId) {}

    /// A track is to be sent to another node, as soon as that node asks.
    pub fn relay_to(&mut self, _now: Instant, _track: &TrackSid, _node: NodeId) {}

    /// Stops that.
    pub fn stop_relay_to(&mut self, _now: Instant, _track: &TrackSid, _node: NodeId) {}

    /// A track comes from another node.
    pub fn relay_from(&mut self, _now: Instant, _track: &Track, _node: NodeId, _epoch: Epoch) {}

    /// A decrypted RTP packet from a peer.
    ///
    /// # Errors
    /// Why it was not used.
    pub fn handle_rtp<W: Wire>(
        &mut self,
        _now: Instant,
        _peer: PeerId,
        _packet: &mut [u8],
        _wire: &mut W,
    ) -> Result<(), Discard> {
        Err(Discard::UnknownStream)
    }

    /// A decrypted RTCP (compound) packet from a peer.
    ///
    /// # Errors
    /// Why it was not used.
    pub fn handle_rtcp<W: Wire>(
        &mut self,
        _now: Instant,
        _peer: PeerId,
        _packet: &[u8],
        _wire: &mut W,
    ) -> Result<(), Discard> {
        Err(Discard::UnknownStream)
    }

    /// A sealed relay packet from another node.
    ///
    /// # Errors
    /// Why it was not used.
    pub fn handle_relay<W: Wire>(
        &mut self,
        _now: Instant,
        _from: SocketAddr,
        _bytes: &mut [u8],
        _wire: &mut W,
    ) -> Result<(), Discard> {
        Err(Discard::UnknownLink)
    }

    /// Does what is due: feedback, retries, reports, selection.
    pub fn handle_timeout<W: Wire>(&mut self, _now: Instant, _wire: &mut W) {}

    /// When `handle_timeout` wants to be called; `None`: nothing pending. May lie in the past after
    /// a command: what it caused is sent then.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Something that happened; call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A track as known here.
    #[must_use]
    pub fn track(&self, _track: &TrackSid) -> Option<TrackView<'_>> {
        None
    }

    /// Counters and states for metrics and the admin interface. Allocates: not for the hot path.
    #[must_use]
    pub fn stats(&self, _now: Instant) -> Stats {
        let _ = self.config.shard;
        Stats::default()
    }
}
