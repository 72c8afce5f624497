//! The router's public face: commands, packets and time in; packets (through [`Wire`]) and events
//! out. Owns peers, tracks and links of one shard; everything per packet is in [`media`], RTCP in
//! [`feedback`], other nodes in [`relays`], whatever time brings in [`timer`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use flotilla_model::id::{BootId, Epoch, NodeId, TrackSid};
use flotilla_model::track::{Kind, Quality, Track as TrackInfo, TrackCodec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slab::Slab;

use crate::command::{PeerId, Settings};
use crate::discard::{Discard, DiscardCounts};
use crate::event::Event;
use crate::forward::Wire;
use crate::forward::parameters::{ReceiveSection, SendSection};
use crate::forward::peer::Peer;
use crate::forward::subscription::{Start, Subscription};
use crate::forward::track::{Outbound, REORDER_CLIENT, Track};
use crate::index::IdMap;
use crate::peer::passage::{STREAMS_MAX, SentStream};
use crate::receive::demux::Section;
use crate::relay::link::{Link, Local};
use crate::relay::loan::OnLoan;
use crate::relay::message::write_on_loan;
use crate::relay::transit::{Course, Passage};
use crate::rtp::twcc::Arrivals;
use crate::stats::{Stats, TrackSource};

mod describe;
mod detours;
mod feedback;
mod media;
mod relays;
mod snapshot;
mod timer;

use timer::Timers;

/// Most links: other nodes of the cluster.
const LINKS_MAX: usize = 1_024;

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
    /// Where the counters of sealed packets begin. An earlier router of the same start of this node and
    /// shard must have stayed below it, or other nodes take what comes for repeated.
    pub counters_from: u64,
    /// Seed for SSRCs and sequence numbers.
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
    /// The router's start: origin of send and arrival times.
    epoch: Instant,
    rng: ChaCha8Rng,
    peers: IdMap<PeerId, Peer>,
    tracks: Slab<Track>,
    by_sid: HashMap<TrackSid, usize>,
    by_hash: IdMap<u64, usize>,
    links: IdMap<NodeId, Link>,
    /// Nodes by the tag of the key that their packets are sealed with.
    tags: IdMap<u32, NodeId>,
    /// Detours by which this node is asked to send packets on. No more than pairs of links.
    passages: BTreeMap<Course, Passage>,
    packets_passed_on: u64,
    /// A client's datagram in the relay packet taken last: from which node, whose, where in the packet.
    on_loan: Option<(NodeId, OnLoan, Range<usize>)>,
    timers: Timers,
    /// Tracks with packets that subscribers are still to get, oldest first.
    waiting: VecDeque<usize>,
    events: VecDeque<Event>,
    discards: DiscardCounts,
}

impl Router {
    /// An empty router.
    #[must_use]
    pub fn new(now: Instant, config: RouterConfig) -> Self {
        let rng = ChaCha8Rng::from_seed(config.seed);
        Self {
            config,
            epoch: now,
            rng,
            peers: IdMap::default(),
            tracks: Slab::new(),
            by_sid: HashMap::new(),
            by_hash: IdMap::default(),
            links: IdMap::default(),
            tags: IdMap::default(),
            passages: BTreeMap::new(),
            packets_passed_on: 0,
            on_loan: None,
            timers: Timers::new(now),
            waiting: VecDeque::with_capacity(64),
            events: VecDeque::with_capacity(64),
            discards: DiscardCounts::default(),
        }
    }

    /// Replaces the sections on which a peer sends to us. Streams already identified stay known as
    /// long as their section carries the same track.
    pub fn set_receive(&mut self, now: Instant, peer: PeerId, sections: Vec<ReceiveSection>) {
        let mut known = Vec::with_capacity(sections.len());
        for negotiated in sections {
            let key = self.track_or_new(&negotiated.track, negotiated.kind);
            let track = &mut self.tracks[key];
            track.has_nack = negotiated.feedback.nack;
            track.has_pli = negotiated.feedback.pli;
            describe::note_section(track, peer, &negotiated, &mut self.events);
            let layers = describe::section_layers(track, &negotiated);
            known.push(Section::new(negotiated, key, layers));
        }
        let peer = self
            .peers
            .entry(peer)
            .or_insert_with(|| Peer::new(now, &mut self.rng));
        let wants_arrivals = known.iter().any(|section| {
            section.negotiated.feedback.twcc && section.negotiated.extensions.twcc.is_some()
        });
        if !wants_arrivals {
            peer.arrivals = None;
        } else if peer.arrivals.is_none() {
            peer.arrivals = Some(Arrivals::default());
        }
        peer.demux.set_sections(known);
        self.timers.hurry();
    }

    /// Replaces the sections on which we send to a peer.
    pub fn set_send(&mut self, now: Instant, peer: PeerId, sections: Vec<SendSection>) {
        let state = self
            .peers
            .entry(peer)
            .or_insert_with(|| Peer::new(now, &mut self.rng));
        let before = std::mem::replace(&mut state.sections, sections);
        state.sent.clear();
        for section in &state.sections {
            state.sent.insert(section.ssrc, section.track.clone());
            if section.rtx_pt.is_some() {
                state.sent.insert(section.rtx_ssrc, section.track.clone());
            }
        }
        let mut tracks: Vec<TrackSid> = state
            .sections
            .iter()
            .chain(&before)
            .map(|section| section.track.clone())
            .collect();
        tracks.sort();
        tracks.dedup();
        for track in tracks {
            self.bind(peer, &track);
        }
        self.timers.hurry();
    }

    /// Gives a subscription its negotiated section, if both exist.
    fn bind(&mut self, peer: PeerId, sid: &TrackSid) {
        let start = self.start();
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let section = state.sections.iter().find(|section| section.track == *sid);
        let Some(track) = self.by_sid.get(sid).map(|key| &mut self.tracks[*key]) else {
            return;
        };
        if let Some(subscription) = track.subscription_mut(peer) {
            subscription.set_section(section, start);
            let from = state.going_on.iter().find(|from| from.track == *sid);
            if let Some((from, since)) = from.zip(state.going_on_since) {
                subscription.go_on(since, from);
            }
            subscription.set_connected(state.is_connected);
        }
    }

    /// How far each stream to a peer was sent, see [`Subscription::sent`].
    #[must_use]
    pub fn sent(&self, now: Instant, peer: PeerId) -> Vec<SentStream> {
        let Some(state) = self.peers.get(&peer) else {
            return Vec::new();
        };
        let sections = state.sections.iter();
        let streams = sections.filter_map(|section| {
            let track = &self.tracks[*self.by_sid.get(&section.track)?];
            let index = track.find_subscription(peer).ok()?;
            track.subscriptions[index].sent(now, &section.track)
        });
        streams.take(STREAMS_MAX).collect()
    }

    /// The peer's streams began at another node: each goes on as soon as it has its section.
    pub fn go_on(&mut self, now: Instant, peer: PeerId, streams: Vec<SentStream>) {
        let state = self
            .peers
            .entry(peer)
            .or_insert_with(|| Peer::new(now, &mut self.rng));
        state.going_on = streams;
        state.going_on_since = Some(now);
    }

    fn start(&mut self) -> Start {
        Start {
            sequence: self.rng.random(),
            repair_sequence: self.rng.random(),
        }
    }

    /// The track with this sid; made if nothing has referred to it yet.
    fn track_or_new(&mut self, sid: &TrackSid, kind: Kind) -> usize {
        if let Some(key) = self.by_sid.get(sid) {
            return *key;
        }
        let track = Track::new(sid.clone(), kind);
        let hash = track.reference.hash;
        let key = self.tracks.insert(track);
        self.by_sid.insert(sid.clone(), key);
        self.by_hash.insert(hash, key);
        key
    }

    fn remove_if_unused(&mut self, key: usize) {
        if self.tracks.get(key).is_some_and(Track::is_unused) {
            let track = self.tracks.remove(key);
            self.by_sid.remove(&track.sid);
            self.by_hash.remove(&track.reference.hash);
        }
    }

    /// A peer publishes a track.
    pub fn publish(&mut self, now: Instant, peer: PeerId, track: &TrackInfo, epoch: Epoch) {
        let key = self.track_or_new(&track.sid, track.kind);
        let known = &mut self.tracks[key];
        known.set_source(now, TrackSource::Local(peer), track.kind, REORDER_CLIENT);
        known.reference.epoch = known.reference.epoch.max(epoch.0);
        known.is_muted = track.muted;
        describe::merge(known, &track.codecs);
        let state = self
            .peers
            .entry(peer)
            .or_insert_with(|| Peer::new(now, &mut self.rng));
        let sections = state.demux.sections().iter();
        for section in sections.filter(|section| section.negotiated.track == track.sid) {
            describe::note_section(known, peer, &section.negotiated, &mut self.events);
        }
        let layers = |section: &ReceiveSection| describe::section_layers(known, section);
        state.demux.rebind(&track.sid, key, layers);
        self.timers.hurry();
    }

    /// Ends a track, local or relayed, with its subscriptions and relays.
    pub fn unpublish(&mut self, _now: Instant, track: &TrackSid) {
        if let Some(key) = self.by_sid.remove(track) {
            let track = self.tracks.remove(key);
            self.by_hash.remove(&track.reference.hash);
            self.timers.hurry();
        }
    }

    /// A track was muted or unmuted.
    pub fn set_muted(&mut self, _now: Instant, track: &TrackSid, muted: bool) {
        if let Some(key) = self.by_sid.get(track) {
            self.tracks[*key].set_muted(muted);
            self.timers.hurry();
        }
    }

    /// A peer is to get a track; it need not be known yet.
    pub fn subscribe(&mut self, now: Instant, peer: PeerId, track: &TrackSid, settings: Settings) {
        let start = self.start();
        let key = self.track_or_new(track, Kind::Video);
        let known = &mut self.tracks[key];
        match known.find_subscription(peer) {
            Ok(index) => known.subscriptions[index].cold.settings = settings,
            Err(index) => known
                .subscriptions
                .insert(index, Subscription::new(now, peer, settings, start)),
        }
        self.bind(peer, track);
        self.timers.hurry();
    }

    /// Ends that.
    pub fn unsubscribe(&mut self, _now: Instant, peer: PeerId, track: &TrackSid) {
        let Some(&key) = self.by_sid.get(track) else {
            return;
        };
        let known = &mut self.tracks[key];
        if let Ok(index) = known.find_subscription(peer) {
            known.subscriptions.remove(index);
        }
        self.remove_if_unused(key);
        self.timers.hurry();
    }

    /// Changes what a subscriber wants.
    pub fn set_settings(
        &mut self,
        _now: Instant,
        peer: PeerId,
        track: &TrackSid,
        settings: Settings,
    ) {
        let known = self.by_sid.get(track).map(|key| &mut self.tracks[*key]);
        if let Some(subscription) = known.and_then(|known| known.subscription_mut(peer)) {
            subscription.cold.settings = settings;
            self.timers.hurry();
        }
    }

    /// A peer can receive media from now on.
    pub fn peer_connected(&mut self, now: Instant, peer: PeerId) {
        let state = self
            .peers
            .entry(peer)
            .or_insert_with(|| Peer::new(now, &mut self.rng));
        state.is_connected = true;
        for track in state.sections.iter().map(|section| &section.track) {
            let known = self.by_sid.get(track).map(|key| &mut self.tracks[*key]);
            if let Some(subscription) = known.and_then(|known| known.subscription_mut(peer)) {
                subscription.set_connected(true);
            }
        }
        self.timers.hurry();
    }

    /// A peer that was another node's can be reached: the layers it published there and that somebody
    /// wants are asked for key frames before their first packet is here, and what it receives is
    /// asked for again, however recently others asked. What it was last told is wanted is not known
    /// here and told anew.
    pub fn peer_resumed(&mut self, now: Instant, peer_id: PeerId) {
        let Some(peer) = self.peers.get_mut(&peer_id) else {
            return;
        };
        for (ssrc, binding) in peer.demux.media_streams() {
            let track = peer.demux.sections()[binding.section].track;
            let track = self.tracks.get_mut(track);
            let layer = track
                .filter(|t| t.kind == Kind::Video && t.source == TrackSource::Local(peer_id))
                .and_then(|track| track.layers.get_mut(binding.layer));
            if let Some(layer) = layer.filter(|layer| layer.stream.ssrc == 0) {
                // If it does not arrive, those that do tell.
                layer.stream.ssrc = ssrc;
                layer.is_live = true;
                peer.any_ssrc = ssrc;
            }
        }
        for (_, track) in &mut self.tracks {
            if track.subscription_mut(peer_id).is_some() {
                for layer in &mut track.layers {
                    layer.stream.key_frames.hasten();
                }
            }
            let is_local = track.source == TrackSource::Local(peer_id);
            if is_local {
                track.wanted.reported = Quality::Off;
            }
            if is_local || track.find_subscription(peer_id).is_ok() {
                track.select(now);
            }
        }
        self.timers.hurry();
    }

    /// A peer is gone: its tracks lose their source, its subscriptions end.
    pub fn remove_peer(&mut self, now: Instant, peer: PeerId) {
        self.peers.remove(&peer);
        let keys: Vec<usize> = self.tracks.iter().map(|(key, _)| key).collect();
        for key in keys {
            let track = &mut self.tracks[key];
            if track.source == TrackSource::Local(peer) {
                let kind = track.kind;
                track.set_source(now, TrackSource::Pending, kind, REORDER_CLIENT);
            }
            if let Ok(index) = track.find_subscription(peer) {
                track.subscriptions.remove(index);
            }
            self.remove_if_unused(key);
        }
        self.timers.hurry();
    }

    /// Another node (this start of it) can be reached for relays at `address`.
    pub fn set_link(&mut self, now: Instant, node: NodeId, boot: BootId, address: SocketAddr) {
        if let Some(link) = self.links.get_mut(&node)
            && link.remote.boot == boot
        {
            link.address = address;
            link.is_removed = false;
            self.renew_detours(now, node);
            self.timers.hurry();
            return;
        }
        if node == self.config.node || self.links.len() >= LINKS_MAX {
            return;
        }
        let counter = self.counter_from(now);
        let local = Local {
            end: self.local_end(),
            shard: self.config.shard,
            secret: &self.config.relay_secret,
        };
        let link = Link::new(now, local, node, boot, address, counter);
        let tag = link.tag();
        if let Some(before) = self.links.insert(node, link) {
            self.tags.remove(&before.tag());
        }
        self.tags.insert(tag, node);
        self.renew_detours(now, node);
        self.restart_relays(now, node);
        self.timers.hurry();
    }

    /// Another node is gone.
    pub fn remove_link(&mut self, now: Instant, node: NodeId) {
        if let Some(link) = self.links.get_mut(&node) {
            link.is_removed = true;
            self.restart_relays(now, node);
            self.timers.hurry();
        }
    }

    /// A track is to be sent to another node, as soon as that node asks.
    pub fn relay_to(&mut self, now: Instant, track: &TrackSid, node: NodeId) {
        let key = self.track_or_new(track, Kind::Video);
        let known = &mut self.tracks[key];
        if known.outbound.iter().all(|outbound| outbound.node != node) {
            known.outbound.push(Outbound::new(now, node));
        }
    }

    /// Stops that.
    pub fn stop_relay_to(&mut self, _now: Instant, track: &TrackSid, node: NodeId) {
        let Some(&key) = self.by_sid.get(track) else {
            return;
        };
        self.tracks[key]
            .outbound
            .retain(|outbound| outbound.node != node);
        self.remove_if_unused(key);
        self.timers.hurry();
    }

    /// A track comes from another node. A lower epoch than seen before is ignored.
    pub fn relay_from(&mut self, now: Instant, track: &TrackInfo, node: NodeId, epoch: Epoch) {
        let key = self.track_or_new(&track.sid, track.kind);
        self.expect_relay(now, key, track, node, epoch);
        self.timers.hurry();
    }

    /// A decrypted RTP packet from a peer. Subscribers get it with [`Self::forward`].
    ///
    /// # Errors
    /// Why it was not used; it has been counted in [`Stats::discards`].
    pub fn handle_rtp<W: Wire>(
        &mut self,
        now: Instant,
        peer: PeerId,
        packet: &mut [u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        let result = self.receive_rtp(now, peer, packet, wire);
        self.counted(result)
    }

    /// A decrypted RTCP (compound) packet from a peer.
    ///
    /// # Errors
    /// Why the rest of it was not used; it has been counted.
    pub fn handle_rtcp<W: Wire>(
        &mut self,
        now: Instant,
        peer: PeerId,
        packet: &[u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        let result = self.receive_rtcp(now, peer, packet, wire);
        self.counted(result)
    }

    /// A sealed relay packet from another node. Its source address means nothing, only its key.
    /// Subscribers get what it carries with [`Self::forward`].
    ///
    /// # Errors
    /// Why it was not used; it has been counted.
    pub fn handle_relay<W: Wire>(
        &mut self,
        now: Instant,
        _from: SocketAddr,
        bytes: &mut [u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        let result = self.receive_relay(now, bytes, wire);
        self.counted(result)
    }

    fn counted(&mut self, result: Result<(), Discard>) -> Result<(), Discard> {
        if let Err(reason) = result {
            self.discards.add(reason);
        }
        result
    }

    /// The client's datagram in the relay packet that was taken last, if it held one: from which node, whose
    /// it is, and where in the packet it lies in plain.
    pub fn take_on_loan(&mut self) -> Option<(NodeId, OnLoan, Range<usize>)> {
        self.on_loan.take()
    }

    /// Gives a client's datagram to another node; nothing happens if that is gone.
    pub fn carry<W: Wire>(&mut self, node: NodeId, loan: &OnLoan, datagram: &[u8], wire: &mut W) {
        if let Some(link) = self.links.get_mut(&node) {
            link.send(wire, |buffer| write_on_loan(buffer, loan, datagram));
        }
    }

    /// Whether another node can be sent to.
    #[must_use]
    pub fn has_link(&self, node: NodeId) -> bool {
        self.links.get(&node).is_some_and(|link| !link.is_removed)
    }

    /// Does what is due: feedback, retries, reports, selection.
    pub fn handle_timeout<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        self.run_timers(now, wire);
    }

    /// When `handle_timeout` wants to be called; `None`: nothing pending. May lie in the past after
    /// a command or packet: what it caused is sent then.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let is_idle = self.tracks.is_empty()
            && self.links.values().all(|link| link.is_removed)
            && self.peers.values().all(Peer::is_idle);
        if is_idle && !self.timers.is_hurried() {
            return None;
        }
        Some(self.timers.next())
    }

    /// Something that happened; call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A track as known here.
    #[must_use]
    pub fn track(&self, track: &TrackSid) -> Option<TrackView<'_>> {
        let known = &self.tracks[*self.by_sid.get(track)?];
        Some(TrackView {
            kind: known.kind,
            codecs: &known.codecs,
            started: known.is_started,
        })
    }

    /// Counters and states for metrics and the admin interface. Allocates: not for the hot path.
    #[must_use]
    pub fn stats(&self, now: Instant) -> Stats {
        self.snapshot(now)
    }
}

#[cfg(test)]
mod tests;
