//! A track on this shard: its layers, who gets it, and what of it is wanted.
//!
//! A track exists as soon as anything refers to it (a publication, a route, a subscriber), so that
//! commands may come in any order. A layer's index is its quality, on every node: relays need not
//! agree on rid names.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotilla_model::id::{NodeId, TrackSid, fnv1a};
use flotilla_model::track::{Kind, Quality, TrackCodec};

use crate::command::PeerId;
use crate::event::Event;
use crate::forward::Wire;
use crate::forward::rewrite::{Shared, abs_send_time};
use crate::forward::select::{LAYERS_MAX, better, choose};
use crate::forward::subscription::{NO_LAYER, Subscription};
use crate::index::IdMap;
use crate::receive::audio_level::AudioLevel;
use crate::receive::nack::Reordering;
use crate::receive::stream::{Accepted, Stream};
use crate::relay::link::Link;
use crate::relay::message::{Media, TrackRef, write_media};
use crate::send::retransmit::Retransmissions;
use crate::stats::TrackSource;

/// A layer of several counts as silent after this: longer than the pauses of a slow screen share.
const SILENT_AFTER: Duration = Duration::from_millis(1_200);
/// A lower quality is reported only after this: people switch back, and publishers take seconds to
/// bring a layer up again.
const LOWER_AFTER: Duration = Duration::from_secs(5);
/// A relay whose receiver says nothing for so long stops.
pub const RELAY_SILENT_AFTER: Duration = Duration::from_secs(3);
/// Packets of a track that wait for [`Track::fan_out`]: more than a frame usually has, and far fewer
/// than a ring holds.
pub const WAITING_MAX: usize = 32;
/// How far packets of a client overtake each other.
pub const REORDER_CLIENT: Reordering = Reordering {
    time: Duration::from_millis(10),
    packets: 3,
};
/// How far packets between nodes do: bursts take several paths there.
pub const REORDER_RELAY: Reordering = Reordering {
    time: Duration::from_millis(15),
    packets: 24,
};

/// One layer.
pub struct Layer {
    /// Rid under which the publisher sends it; empty without simulcast.
    pub rid: String,
    /// Declared by the publisher (or seen on a relay).
    pub is_declared: bool,
    /// Packets arrive, or would if they were asked for.
    pub is_live: bool,
    /// Its packets.
    pub stream: Stream,
    /// Generation at the node it is relayed from, once known.
    pub remote_generation: Option<u8>,
}

/// A track being sent to another node.
pub struct Outbound {
    /// To which.
    pub node: NodeId,
    /// Layers it wants, a bit each.
    pub layers: u8,
    /// Best quality wanted there.
    pub quality: Quality,
    /// When it last said so.
    pub heard: Option<Instant>,
    /// When it is told the track's state next.
    pub status_at: Instant,
    /// Packets sent for the first time.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Budget of retransmissions, per layer.
    pub retransmissions: [Retransmissions; LAYERS_MAX],
}

/// State of a track that comes from another node.
#[derive(Debug)]
pub struct Inbound {
    /// Layers asked for, a bit each.
    pub asked: u8,
    /// When to ask next.
    pub ask_at: Instant,
    /// Layers live at the other node, once it has told.
    pub live: Option<u8>,
    /// How often it was asked without effect.
    pub repeated: u32,
    /// Somebody here is in the middle of a picture.
    pub in_haste: bool,
}

/// What of a track is wanted, as reported to the publisher.
#[derive(Debug)]
pub struct Wanted {
    /// Quality last reported; at first the publisher sends everything.
    pub reported: Quality,
    /// When a lower one is to be reported.
    pub lower_at: Option<Instant>,
}

/// A track.
pub struct Track {
    /// Its sid.
    pub sid: TrackSid,
    /// Its name on relays, with the highest epoch seen.
    pub reference: TrackRef,
    /// Audio or video.
    pub kind: Kind,
    /// Where it comes from.
    pub source: TrackSource,
    /// Muted by its publisher.
    pub is_muted: bool,
    /// Packets have arrived.
    pub is_started: bool,
    /// Encodings as known.
    pub codecs: Vec<TrackCodec>,
    /// One for audio, three for video, by quality.
    pub layers: Vec<Layer>,
    /// Subscribers, by peer.
    pub subscriptions: Vec<Subscription>,
    /// Packets that subscribers are still to get.
    waiting: Vec<Waiting>,
    /// The router has it among those with waiting packets.
    pub is_queued: bool,
    /// The subscriber to go on with, if the wire was full before all had them.
    resume: Option<PeerId>,
    /// Nodes it is sent to.
    pub outbound: Vec<Outbound>,
    /// If it is relayed here.
    pub inbound: Option<Inbound>,
    /// Loudness.
    pub level: AudioLevel,
    /// Loudness last reported.
    pub level_reported: f32,
    /// Live layers and mute state last told to other nodes.
    pub status_told: (u8, bool),
    /// Quality wanted.
    pub wanted: Wanted,
    /// Lost packets may be asked for.
    pub has_nack: bool,
    /// Key frames may be asked for.
    pub has_pli: bool,
}

/// A packet in a layer's ring that subscribers are still to get.
#[derive(Clone, Copy)]
struct Waiting {
    layer: u8,
    generation: u32,
    sequence: u64,
    /// Where a key frame begins that it completes so far.
    key_frame_start: Option<u64>,
    /// Newer ones came before it.
    is_late: bool,
}

/// What fan-out needs besides the track.
pub struct Surroundings<'a, W: Wire> {
    /// Now.
    pub now: Instant,
    /// The router's start.
    pub epoch: Instant,
    /// Other nodes.
    pub links: &'a mut IdMap<NodeId, Link>,
    /// Where packets go.
    pub wire: &'a mut W,
    /// Where events go.
    pub events: &'a mut VecDeque<Event>,
}

impl Track {
    /// A track that is only referred to so far.
    #[must_use]
    pub fn new(sid: TrackSid, kind: Kind) -> Self {
        let hash = fnv1a(sid.as_str().as_bytes());
        let mut track = Self {
            sid,
            reference: TrackRef { hash, epoch: 0 },
            kind,
            source: TrackSource::Pending,
            is_muted: false,
            is_started: false,
            codecs: vec![],
            layers: vec![],
            subscriptions: vec![],
            waiting: vec![],
            is_queued: false,
            resume: None,
            outbound: vec![],
            inbound: None,
            level: AudioLevel::default(),
            level_reported: 0.0,
            status_told: (0, false),
            wanted: Wanted {
                reported: Quality::High,
                lower_at: None,
            },
            has_nack: false,
            has_pli: false,
        };
        track.set_kind(kind, REORDER_CLIENT);
        track
    }

    /// Makes the layers anew, empty.
    fn set_kind(&mut self, kind: Kind, reordering: Reordering) {
        self.kind = kind;
        let qualities: &[Quality] = match kind {
            Kind::Audio => &[Quality::Low],
            Kind::Video => &[Quality::Low, Quality::Medium, Quality::High],
        };
        let generations: Vec<u32> = self
            .layers
            .iter()
            .map(|layer| layer.stream.generation)
            .collect();
        self.layers = qualities
            .iter()
            .enumerate()
            .map(|(index, quality)| {
                let mut stream = Stream::new(*quality, reordering);
                // Never a generation that a subscription may still refer to.
                stream.generation = generations.get(index).map_or(0, |before| before + 1);
                Layer {
                    rid: String::new(),
                    is_declared: false,
                    is_live: false,
                    stream,
                    remote_generation: None,
                }
            })
            .collect();
    }

    /// Gives the track another source: what was received before is void.
    pub fn set_source(
        &mut self,
        now: Instant,
        source: TrackSource,
        kind: Kind,
        reordering: Reordering,
    ) {
        if self.source == source && self.kind == kind {
            return;
        }
        self.source = source;
        self.is_started = false;
        self.level.silence();
        self.set_kind(kind, reordering);
        self.inbound = match source {
            TrackSource::Relay(_) => Some(Inbound {
                asked: 0,
                ask_at: now,
                live: None,
                repeated: 0,
                in_haste: false,
            }),
            TrackSource::Local(_) | TrackSource::Pending => None,
        };
        if self.subscriptions.iter().any(Subscription::has_begun) {
            // They are in the middle of a picture.
            for layer in &mut self.layers {
                layer.stream.key_frames.hasten();
            }
        }
    }

    /// Its relay starts anew, maybe in a higher epoch: what was received or agreed before is void.
    pub fn restart_relay(&mut self, epoch: u64) {
        self.reference.epoch = epoch;
        for layer in &mut self.layers {
            layer.remote_generation = None;
        }
        if let Some(inbound) = &mut self.inbound {
            inbound.asked = 0;
            inbound.live = None;
            inbound.repeated = 0;
        }
    }

    /// Its publisher muted or unmuted it.
    pub fn set_muted(&mut self, is_muted: bool) {
        if self.is_muted == is_muted {
            return;
        }
        self.is_muted = is_muted;
        self.level.silence();
        let needed = self.needed_layers();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            if is_muted {
                layer.stream.key_frames.cancel();
            } else if needed & 1 << index != 0 && self.kind == Kind::Video {
                // What was sent before the pause may be long gone at the subscribers.
                layer.stream.key_frames.want();
            }
        }
    }

    /// Nothing refers to it.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.source == TrackSource::Pending
            && self.subscriptions.is_empty()
            && self.outbound.is_empty()
    }

    /// A peer's subscription.
    pub fn subscription_mut(&mut self, peer: PeerId) -> Option<&mut Subscription> {
        let index = self.find_subscription(peer).ok()?;
        self.subscriptions.get_mut(index)
    }

    /// Where a peer's subscription is, or belongs.
    pub fn find_subscription(&self, peer: PeerId) -> Result<usize, usize> {
        self.subscriptions
            .binary_search_by_key(&peer, |subscription| subscription.peer)
    }

    /// A packet was accepted into a layer's ring: sends it to other nodes, and keeps it for the
    /// subscribers until [`Self::fan_out`]. Returns whether the track has to be queued for that.
    pub fn take<W: Wire>(
        &mut self,
        layer: usize,
        accepted: &Accepted,
        around: &mut Surroundings<'_, W>,
    ) -> bool {
        // Those who were served before the wire was full must not miss this one.
        if self.resume.is_some() || self.waiting.len() == WAITING_MAX {
            self.fan_out_to_all(around.epoch, around.wire, around.events);
        }
        self.relay(layer, accepted, around);
        if self.subscriptions.is_empty() {
            return false;
        }
        let stream = &self.layers[layer].stream;
        self.waiting.push(Waiting {
            layer: layer as u8,
            generation: stream.generation,
            sequence: accepted.sequence,
            key_frame_start: accepted.key_frame_start,
            is_late: stream.highest() != Some(accepted.sequence),
        });
        !std::mem::replace(&mut self.is_queued, true)
    }

    fn relay<W: Wire>(
        &mut self,
        layer: usize,
        accepted: &Accepted,
        around: &mut Surroundings<'_, W>,
    ) {
        let stream = &self.layers[layer].stream;
        let Some(packet) = shared(stream, accepted.sequence, around.epoch) else {
            return;
        };
        let reference = self.reference;
        for outbound in &mut self.outbound {
            if outbound.layers & 1 << layer != 0 {
                outbound.send(
                    reference,
                    layer,
                    stream,
                    &packet,
                    accepted.is_repair,
                    around,
                );
            }
        }
    }

    /// Datagrams that waiting packets are about to become.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len() * self.subscriptions.len()
    }

    /// Sends what waits to everyone who gets it, one subscriber after the other: its record and keys
    /// are read once for a whole frame, and the frame's datagrams lie back to back. Returns `false` if
    /// the wire was full before all were served; the next call goes on from there.
    pub fn fan_out<W: Wire>(
        &mut self,
        epoch: Instant,
        wire: &mut W,
        events: &mut VecDeque<Event>,
    ) -> bool {
        let mut packets = [None; WAITING_MAX];
        for (packet, waiting) in packets.iter_mut().zip(&self.waiting) {
            let layer = self.layers.get(usize::from(waiting.layer));
            *packet = layer
                .map(|layer| &layer.stream)
                .filter(|stream| stream.generation == waiting.generation)
                .and_then(|stream| shared(stream, waiting.sequence, epoch));
        }
        let from = self.resume.map_or(0, |peer| {
            self.subscriptions
                .partition_point(|subscription| subscription.peer < peer)
        });
        for subscription in &mut self.subscriptions[from..] {
            if wire.is_full() {
                self.resume = Some(subscription.peer);
                return false;
            }
            let frame = packets.iter().zip(&self.waiting);
            let frame = frame.filter_map(|(packet, waiting)| Some((waiting, packet.as_ref()?)));
            if serve(subscription, frame, &self.layers, epoch, wire) {
                events.push_back(Event::SubscriptionStarted {
                    peer: subscription.peer,
                    track: self.sid.clone(),
                });
            }
        }
        self.resume = None;
        self.waiting.clear();
        true
    }

    fn fan_out_to_all<W: Wire>(
        &mut self,
        epoch: Instant,
        wire: &mut W,
        events: &mut VecDeque<Event>,
    ) {
        let mut patient = Patient { wire };
        self.fan_out(epoch, &mut patient, events);
    }

    /// Decides which layers are live and what each subscription is to get, and asks for the key
    /// frames that takes. Cheap; called by the timer and whenever something changes.
    pub fn select(&mut self, now: Instant) {
        self.update_live(now);
        let layers = &mut self.layers;
        for subscription in &mut self.subscriptions {
            if !subscription.is_active() {
                subscription.pause();
                subscription.target = NO_LAYER;
                continue;
            }
            let live = layers
                .iter()
                .enumerate()
                .map(|(index, layer)| (quality_of(index), layer.is_live));
            // With nothing live (a pause of the publisher) everything stays as it is.
            let chosen = choose(live, subscription.wanted());
            if let Some(target) = chosen {
                subscription.target = target as u8;
            }
            let target = usize::from(subscription.target);
            let Some(layer) = layers.get_mut(target) else {
                continue;
            };
            let is_on = subscription.is_on(subscription.target, layer.stream.generation);
            let is_usable =
                layer.stream.highest().is_none() || subscription.accepts(layer.stream.codec);
            if !is_on && is_usable && self.kind == Kind::Video && layer.is_live && !self.is_muted {
                layer.stream.key_frames.want();
            }
        }
    }

    fn update_live(&mut self, now: Instant) {
        let told = self.inbound.as_ref().and_then(|inbound| inbound.live);
        let is_recent = |layer: &Layer| {
            layer
                .stream
                .last_arrival
                .is_some_and(|at| now.saturating_duration_since(at) < SILENT_AFTER)
        };
        let somebody = self.layers.iter().any(is_recent);
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.is_live = match told {
                Some(told) => told & 1 << index != 0,
                // If all layers pause together the publisher pauses: keep what was.
                None if !somebody => layer.is_live,
                None => is_recent(layer),
            };
        }
    }

    /// Layers that somebody here or behind an outgoing relay needs now, a bit each.
    #[must_use]
    pub fn needed_layers(&self) -> u8 {
        let bit = |layer: u8| if layer == NO_LAYER { 0 } else { 1 << layer };
        let local = self
            .subscriptions
            .iter()
            .filter(|subscription| subscription.is_active())
            .fold(0, |bits, subscription| {
                bits | bit(subscription.layer()) | bit(subscription.target)
            });
        self.outbound
            .iter()
            .fold(local, |bits, outbound| bits | outbound.layers)
    }

    /// Layers to ask another node for while it has not told which are live.
    #[must_use]
    pub fn hoped_layers(&self) -> u8 {
        match (self.kind, self.best_wanted()) {
            (_, Quality::Off) => 0,
            (Kind::Audio, _) => 1,
            (Kind::Video, best) => 1 << best as u8,
        }
    }

    /// Best quality that anybody wants.
    #[must_use]
    pub fn best_wanted(&self) -> Quality {
        let local = self
            .subscriptions
            .iter()
            .filter(|subscription| subscription.cold.settings.enabled)
            .fold(Quality::Off, |best, subscription| {
                better(best, subscription.cold.settings.quality)
            });
        self.outbound
            .iter()
            .fold(local, |best, outbound| better(best, outbound.quality))
    }

    /// Reports the wanted quality to a local publisher when it has changed; a lower one only after
    /// a while.
    pub fn report_wanted(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        let TrackSource::Local(peer) = self.source else {
            return;
        };
        if self.kind == Kind::Audio {
            return;
        }
        let best = self.best_wanted();
        let reported = self.wanted.reported;
        if best == reported {
            self.wanted.lower_at = None;
            return;
        }
        if better(best, reported) != best {
            let at = *self.wanted.lower_at.get_or_insert(now + LOWER_AFTER);
            if now < at {
                return;
            }
        }
        self.wanted.lower_at = None;
        self.wanted.reported = best;
        events.push_back(Event::QualityWanted {
            peer,
            track: self.sid.clone(),
            quality: best,
        });
    }

    /// Layers that arrive here, a bit each.
    #[must_use]
    pub fn live_layers(&self) -> u8 {
        self.layers
            .iter()
            .enumerate()
            .filter(|(_, layer)| layer.is_live)
            .fold(0, |bits, (index, _)| bits | 1 << index)
    }
}

/// Sends a subscriber what it gets of some packets; returns whether one was its very first.
fn serve<'p, W: Wire>(
    subscription: &mut Subscription,
    packets: impl Iterator<Item = (&'p Waiting, &'p Shared<'p>)>,
    layers: &[Layer],
    epoch: Instant,
    wire: &mut W,
) -> bool {
    let mut is_first = false;
    // A switch sends all that is here of the layer from its key frame on.
    let mut sent: Option<(u8, u64)> = None;
    for (waiting, packet) in packets {
        let number = waiting.layer;
        if sent.is_some_and(|(layer, start)| layer == number && waiting.sequence >= start) {
            continue;
        }
        if subscription.is_on(number, waiting.generation) {
            is_first |= subscription.forward(packet, wire);
        } else if let Some(start) = waiting.key_frame_start
            && subscription.target == number
            && subscription.is_active()
            && subscription.accepts(packet.stored.codec)
        {
            let before = subscription
                .last_layer()
                .and_then(|before| layers.get(before))
                .map(|before| &before.stream);
            let stream = &layers[usize::from(number)].stream;
            is_first |= subscription.switch(number, stream, before, start, epoch, wire);
            sent = Some((number, start));
        } else if waiting.is_late {
            subscription.forward_late(number, waiting.generation, packet, wire);
        }
    }
    is_first
}

/// A packet of a layer, ready to be written for many.
fn shared(stream: &Stream, sequence: u64, epoch: Instant) -> Option<Shared<'_>> {
    let (stored, payload) = stream.ring.get(sequence)?;
    Some(Shared {
        stored,
        payload,
        abs_send_time: abs_send_time(epoch, stored.arrived),
    })
}

/// A wire that is never full.
struct Patient<'a, W> {
    wire: &'a mut W,
}

impl<W: Wire> Wire for Patient<'_, W> {
    fn send_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.wire.send_rtp(peer, write);
    }

    fn repeat_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.wire.repeat_rtp(peer, write);
    }

    fn send_rtcp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.wire.send_rtcp(peer, write);
    }

    fn send_relay(&mut self, to: SocketAddr, write: impl FnOnce(&mut [u8]) -> usize) {
        self.wire.send_relay(to, write);
    }
}

/// Quality of the layer with this index.
#[must_use]
pub fn quality_of(layer: usize) -> Quality {
    match layer {
        0 => Quality::Low,
        1 => Quality::Medium,
        2 => Quality::High,
        _ => Quality::Off,
    }
}

impl Outbound {
    /// A relay that its receiver has not asked for yet.
    #[must_use]
    pub fn new(now: Instant, node: NodeId) -> Self {
        Self {
            node,
            layers: 0,
            quality: Quality::Off,
            heard: None,
            status_at: now,
            packets: 0,
            bytes: 0,
            retransmissions: Default::default(),
        }
    }

    /// Nothing is wanted until its receiver asks again.
    pub fn stop(&mut self) {
        self.layers = 0;
        self.quality = Quality::Off;
        self.heard = None;
    }

    fn send<W: Wire>(
        &mut self,
        track: TrackRef,
        layer: usize,
        stream: &Stream,
        packet: &Shared<'_>,
        is_repair: bool,
        around: &mut Surroundings<'_, W>,
    ) {
        let Some(link) = around.links.get_mut(&self.node) else {
            return;
        };
        let media = media_head(around.now, track, layer, stream, packet, is_repair);
        link.send(around.wire, |buffer| {
            write_media(buffer, &media, packet.payload)
        });
        self.packets += 1;
        self.bytes += packet.payload.len() as u64;
    }
}

/// Head of a relayed packet. `is_repair`: it is late because it was lost, here or before, so its
/// lateness tells nothing of the path.
#[must_use]
pub fn media_head(
    now: Instant,
    track: TrackRef,
    layer: usize,
    stream: &Stream,
    packet: &Shared<'_>,
    is_repair: bool,
) -> Media {
    Media {
        track,
        layer: layer as u8,
        generation: stream.generation as u8,
        codec: packet.stored.codec,
        clock_rate: stream.clock_rate,
        marker: packet.stored.marker,
        is_repair,
        carried: packet.stored.carried,
        sequence: packet.stored.sequence as u32,
        timestamp: packet.stored.timestamp,
        age: now.saturating_duration_since(packet.stored.arrived),
    }
}
