//! One track on its way to one peer: the compact record that fan-out walks over.
//!
//! Lives in its track's list, ordered by peer, so that a packet's fan-out reads memory front to
//! back. What is not needed per packet (history, reports, budgets) sits behind one pointer.

use std::time::{Duration, Instant};

use flotilla_model::id::TrackSid;
use flotilla_model::track::Quality;
use flotilla_model::unit::Bitrate;

use crate::codec::Codec;
use crate::command::{PeerId, Settings};
use crate::forward::Wire;
use crate::forward::parameters::SendSection;
use crate::forward::rewrite::{Shared, Template, abs_send_time, write_media, write_repair};
use crate::forward::select::lower;
use crate::peer::passage::{JUMP, SentStream};
use crate::receive::report::{SenderClock, to_ticks};
use crate::receive::ring::{Ring, Stored};
use crate::receive::stream::Stream;
use crate::rtp::sequence::{distance_32, extend_16};
use crate::send::report::Reports;
use crate::send::retransmit::Retransmissions;
use crate::send::segment::{History, Segment};

/// No layer.
pub const NO_LAYER: u8 = u8::MAX;
/// Sender clocks that disagree with the time of arrival by more than this are not trusted.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(3);
/// Round trip assumed until the subscriber reports.
const RTT_DEFAULT: Duration = Duration::from_millis(100);

/// A subscription. The fields before `cold` are read for every packet.
pub struct Subscription {
    /// Subscriber.
    pub peer: PeerId,
    /// Layer being forwarded.
    layer: u8,
    /// Layer to be forwarded from its next key frame on.
    pub target: u8,
    /// A section is negotiated and the peer is connected.
    is_ready: bool,
    is_started: bool,
    /// Its stream began at another node.
    goes_on: bool,
    /// The hot template carries the mid; the other one lies in the cold part.
    has_mid: bool,
    segment: Segment,
    /// Received number after the newest one forwarded.
    next: u64,
    /// Highest number sent.
    last_sent: u64,
    last_timestamp: u32,
    last_picture: u16,
    last_tl0: u8,
    template: Template,
    last_arrived: Instant,
    /// Packets sent for the first time.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// The rest.
    pub cold: Box<Cold>,
}

/// The part of a subscription that packets do not touch.
pub struct Cold {
    /// What is wanted.
    pub settings: Settings,
    /// Bound by the peer's path: see [`crate::send::congestion`].
    pub cap: Quality,
    /// Reports to and from the subscriber.
    pub reports: Reports,
    /// Sequence numbers it asked for.
    pub nacks: u64,
    /// Key frames it asked for.
    pub plis: u64,
    /// Layer switches, the first start not counted.
    pub switches: u64,
    /// Budget of retransmissions.
    pub retransmissions: Retransmissions,
    history: History,
    /// The template with the mid, once it is no longer needed; before, the one without.
    other: Template,
    repair: Option<Template>,
    repair_sequence: u16,
    section: Option<SendSection>,
    codec: Codec,
    connected: bool,
}

/// Memory of a subscription outside its `Box`, in bytes: what fan-out reads per subscriber.
pub const HOT_LEN: usize = size_of::<Subscription>();
const _: () = assert!(HOT_LEN <= 512, "the hot record outgrew its cache lines");

/// Random numbers a subscription starts with.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First sequence number less one; below 2^15, so that SRTP's index is never in doubt.
    pub sequence: u16,
    /// First sequence number of retransmissions.
    pub repair_sequence: u16,
}

impl Subscription {
    /// A subscription that has no section yet.
    #[must_use]
    pub fn new(now: Instant, peer: PeerId, settings: Settings, start: Start) -> Self {
        let nothing = Template::nothing();
        Self {
            peer,
            layer: NO_LAYER,
            target: NO_LAYER,
            is_ready: false,
            is_started: false,
            goes_on: false,
            has_mid: true,
            segment: Segment::nothing(),
            next: 0,
            last_sent: (1 << 16) + u64::from(start.sequence & 0x7fff),
            last_timestamp: 0,
            last_picture: 0,
            last_tl0: 0,
            template: nothing,
            last_arrived: now,
            packets: 0,
            bytes: 0,
            cold: Box::new(Cold {
                settings,
                cap: Quality::High,
                reports: Reports::default(),
                nacks: 0,
                plis: 0,
                switches: 0,
                retransmissions: Retransmissions::default(),
                history: History::default(),
                other: nothing,
                repair: None,
                repair_sequence: start.repair_sequence & 0x7fff,
                section: None,
                codec: Codec::Other,
                connected: false,
            }),
        }
    }

    /// Layer being forwarded; [`NO_LAYER`]: none.
    #[must_use]
    pub fn layer(&self) -> u8 {
        self.layer
    }

    /// It can send: negotiated, connected, enabled.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.is_ready && self.cold.settings.enabled && self.cold.settings.quality != Quality::Off
    }

    /// SSRC it sends under, if negotiated.
    #[must_use]
    pub fn ssrc(&self) -> Option<u32> {
        self.cold.section.as_ref().map(|section| section.ssrc)
    }

    /// Best quality it may get now.
    #[must_use]
    pub fn wanted(&self) -> Quality {
        if self.cold.settings.enabled {
            lower(self.cold.settings.quality, self.cold.cap)
        } else {
            Quality::Off
        }
    }

    /// Binds it to a negotiated section. Another SSRC, payload type or extension starts anew: what
    /// was sent before can no longer be rebuilt.
    pub fn set_section(&mut self, section: Option<&SendSection>, start: Start) {
        if self.cold.section.as_ref() == section {
            return;
        }
        let is_new_stream = match (&self.cold.section, section) {
            (Some(before), Some(after)) => before.ssrc != after.ssrc,
            _ => true,
        };
        self.cold.history.clear();
        self.segment = Segment::nothing();
        self.layer = NO_LAYER;
        self.cold.section = section.cloned();
        if let Some(section) = section {
            self.template = Template::new(section, true);
            self.cold.other = Template::new(section, false);
            self.has_mid = true;
            self.cold.repair = section
                .rtx_pt
                .map(|payload_type| Template::for_repair(section, payload_type));
            self.cold.codec = Codec::from_mime(&section.mime);
            if is_new_stream {
                self.last_sent = (1 << 16) + u64::from(start.sequence & 0x7fff);
                self.cold.repair_sequence = start.repair_sequence & 0x7fff;
                self.cold.reports = Reports::default();
                self.is_started = false;
                self.goes_on = false;
            }
        }
        self.update_ready();
    }

    /// How far its stream was sent. SRTP indices are those before the first packet: whoever protects
    /// knows better after it. `None` without a section.
    #[must_use]
    pub fn sent(&self, now: Instant, track: &TrackSid) -> Option<SentStream> {
        let section = self.cold.section.as_ref()?;
        let age = now.saturating_duration_since(self.last_arrived).as_millis();
        let has_sent = self.has_begun();
        Some(SentStream {
            track: track.clone(),
            ssrc: section.ssrc,
            repair_ssrc: section.rtx_ssrc,
            index: self.last_sent % (1 << 16),
            repair_index: u64::from(self.cold.repair_sequence.saturating_sub(1)),
            timestamp: self.last_timestamp,
            age_ms: u32::try_from(age).ok().filter(|_| has_sent),
            picture: self.last_picture,
            tl0: self.last_tl0,
            settings: self.cold.settings,
        })
    }

    /// Goes on with a stream of another node where it was, [`JUMP`] packets later. Has no effect under
    /// another SSRC.
    pub fn go_on(&mut self, now: Instant, from: &SentStream) {
        if self.ssrc() != Some(from.ssrc) || self.packets > 0 {
            return;
        }
        // Only the low half is sent; the rollover counter is SRTP's.
        self.last_sent = (1 << 16) + (from.index + JUMP) % (1 << 16);
        self.cold.repair_sequence = ((from.repair_index + JUMP) as u16).wrapping_add(1);
        let Some(age_ms) = from.age_ms else {
            return;
        };
        self.last_timestamp = from.timestamp;
        self.last_picture = from.picture;
        self.last_tl0 = from.tl0;
        let age = Duration::from_millis(age_ms.into());
        self.last_arrived = now.checked_sub(age).unwrap_or(now);
        self.goes_on = true;
    }

    /// Its client has been sent something, here or at the node before.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.packets > 0 || self.goes_on
    }

    /// The peer's connection came up or went away.
    pub fn set_connected(&mut self, is_connected: bool) {
        self.cold.connected = is_connected;
        self.update_ready();
    }

    fn update_ready(&mut self) {
        self.is_ready = self.cold.connected && self.cold.section.is_some();
        if !self.is_ready {
            self.pause();
        }
    }

    /// Stops forwarding until a key frame of the target (audio: the next packet).
    pub fn pause(&mut self) {
        if self.layer != NO_LAYER {
            self.close_segment();
            self.layer = NO_LAYER;
        }
    }

    /// Round trip to the subscriber.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.cold.reports.rtt().unwrap_or(RTT_DEFAULT)
    }

    /// It can take packets of this codec.
    #[must_use]
    pub fn accepts(&self, codec: Codec) -> bool {
        self.cold.codec == codec
    }

    /// The layer, in this generation, is being forwarded.
    #[inline]
    #[must_use]
    pub fn is_on(&self, layer: u8, generation: u32) -> bool {
        self.layer == layer && self.segment.generation == generation
    }

    /// Sends a packet of the layer being forwarded. Returns whether it was the subscription's very
    /// first.
    #[inline]
    pub fn forward<W: Wire>(&mut self, packet: &Shared<'_>, wire: &mut W) -> bool {
        let sequence = packet.stored.sequence;
        if sequence >= self.next {
            if packet.stored.is_padding() && sequence == self.next {
                self.skip();
                return false;
            }
            self.next = sequence + 1;
            self.advance(packet.stored);
            self.send(packet, self.segment, wire)
        } else if self.segment.contains(sequence) {
            self.send(packet, self.segment, wire)
        } else {
            let Segment {
                layer, generation, ..
            } = self.segment;
            self.forward_late(layer, generation, packet, wire);
            false
        }
    }

    /// Sends a packet that fills a gap left in an earlier segment, of whatever layer.
    #[cold]
    pub fn forward_late<W: Wire>(
        &mut self,
        layer: u8,
        generation: u32,
        packet: &Shared<'_>,
        wire: &mut W,
    ) {
        let found = self
            .cold
            .history
            .find_received(layer, generation, packet.stored.sequence)
            .copied();
        if let Some(segment) = found
            && self.is_active()
        {
            self.send(packet, segment, wire);
        }
    }

    fn advance(&mut self, stored: &Stored) {
        self.last_sent = self.segment.sent(stored.sequence);
        let timestamp = self.segment.timestamp(stored);
        if distance_32(self.last_timestamp, timestamp) > 0 {
            self.last_timestamp = timestamp;
            self.last_arrived = stored.arrived;
        }
        if !stored.is_padding() {
            self.last_picture = self.segment.picture(stored);
            self.last_tl0 = self.segment.tl0(stored);
        }
    }

    fn send<W: Wire>(&mut self, packet: &Shared<'_>, segment: Segment, wire: &mut W) -> bool {
        let template = self.template_of(&segment);
        let mut sent = 0;
        wire.send_rtp(self.peer, |buffer| {
            sent = write_media(buffer, template, &segment, packet);
            sent
        });
        self.packets += 1;
        self.bytes += sent as u64;
        !std::mem::replace(&mut self.is_started, true)
    }

    fn template_of(&self, segment: &Segment) -> &Template {
        if segment.has_mid == self.has_mid {
            &self.template
        } else {
            &self.cold.other
        }
    }

    /// Leaves out a packet without media: the numbers behind it move up.
    fn skip(&mut self) {
        if self.segment.first == self.next {
            self.segment.first += 1;
        } else {
            let mut ended = self.segment;
            ended.last = self.next - 1;
            self.cold.history.push(ended);
            self.segment.first = self.next + 1;
        }
        self.segment.sequence_offset = self.segment.sequence_offset.wrapping_sub(1);
        self.next += 1;
    }

    fn close_segment(&mut self) {
        if self.next > self.segment.first {
            let mut ended = self.segment;
            ended.last = self.next - 1;
            self.cold.history.push(ended);
        }
    }

    /// Switches to (or starts with) a layer at the packet numbered `start`, which begins a frame
    /// that needs no other, and sends everything of the layer from there on that is here. `before`
    /// is the stream forwarded last, if its clock still means something. Returns whether this was
    /// the subscription's first packet.
    pub fn switch<W: Wire>(
        &mut self,
        layer: u8,
        stream: &Stream,
        before: Option<&Stream>,
        start: u64,
        epoch: Instant,
        wire: &mut W,
    ) -> bool {
        let Some(first) = stream.ring.find(start).copied() else {
            return false;
        };
        let has_sent = self.has_begun();
        if self.layer != NO_LAYER {
            self.close_segment();
            self.cold.switches += 1;
        }
        let mut segment = Segment {
            layer,
            generation: stream.generation,
            has_mid: self.has_mid,
            first: start,
            last: u64::MAX,
            sequence_offset: (self.last_sent + 1).wrapping_sub(start),
            timestamp_offset: 0,
            picture_offset: 0,
            tl0_offset: 0,
        };
        if has_sent {
            let timestamp = self.align(&first, stream, before);
            segment.timestamp_offset = timestamp.wrapping_sub(first.timestamp);
            segment.picture_offset = self
                .last_picture
                .wrapping_add(1)
                .wrapping_sub(first.vp8.picture_id);
            segment.tl0_offset = self.last_tl0.wrapping_add(1).wrapping_sub(first.vp8.tl0);
        } else {
            self.last_timestamp = first.timestamp.wrapping_sub(1);
        }
        self.layer = layer;
        self.segment = segment;
        self.next = start;
        let mut is_first = false;
        for sequence in start..=stream.highest().unwrap_or(start) {
            if let Some((stored, payload)) = stream.ring.get(sequence) {
                let packet = Shared {
                    stored,
                    payload,
                    abs_send_time: abs_send_time(epoch, stored.arrived),
                };
                is_first |= self.forward(&packet, wire);
            }
        }
        is_first
    }

    /// Timestamp to send for the first packet of another layer, so that the picture's clock goes
    /// on: by the sender reports of both layers if they are known, else by the time that passed
    /// between arrivals. Always later than what was sent.
    fn align(&self, first: &Stored, stream: &Stream, before: Option<&Stream>) -> u32 {
        let clock_rate = stream.clock_rate;
        let passed = first.arrived.saturating_duration_since(self.last_arrived);
        let by_arrival = self
            .last_timestamp
            .wrapping_add(to_ticks(passed, clock_rate));
        let is_same = before.is_some_and(|before| {
            std::ptr::eq(before, stream) && self.segment.generation == stream.generation
        });
        let by_clock = if is_same {
            Some(self.segment.timestamp(first))
        } else {
            before.and_then(|before| self.by_clocks(first, stream, before))
        };
        let error_max = to_ticks(CLOCK_ERROR_MAX, clock_rate);
        let timestamp = by_clock
            .filter(|by_clock| distance_32(by_arrival, *by_clock).unsigned_abs() < error_max)
            .unwrap_or(by_arrival);
        if distance_32(self.last_timestamp, timestamp) > 0 {
            timestamp
        } else {
            self.last_timestamp.wrapping_add(1)
        }
    }

    fn by_clocks(&self, first: &Stored, stream: &Stream, before: &Stream) -> Option<u32> {
        let (new, old): (&SenderClock, &SenderClock) =
            (stream.clock.as_ref()?, before.clock.as_ref()?);
        if before.generation != self.segment.generation || before.clock_rate != stream.clock_rate {
            return None;
        }
        let captured = new.ntp_of(first.timestamp, stream.clock_rate);
        let timestamp = old.rtp_of(captured, before.clock_rate);
        Some(timestamp.wrapping_add(self.segment.timestamp_offset))
    }

    /// Layer that the newest segment came from, for its clock.
    #[must_use]
    pub fn last_layer(&self) -> Option<usize> {
        self.segment
            .is_something()
            .then_some(usize::from(self.segment.layer))
    }

    /// RTP time of the subscription that corresponds to a layer's.
    #[must_use]
    pub fn timestamp_of(&self, received: u32) -> u32 {
        received.wrapping_add(self.segment.timestamp_offset)
    }

    /// The generation of the layer being forwarded.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.segment.generation
    }

    /// Leaves out the mid from now on: the subscriber has reported, so it knows the SSRC. Headers
    /// of one segment are all alike.
    pub fn drop_mid(&mut self) {
        if !self.has_mid || self.cold.section.is_none() {
            return;
        }
        std::mem::swap(&mut self.template, &mut self.cold.other);
        self.has_mid = false;
        if self.layer != NO_LAYER {
            self.close_segment();
            self.segment.first = self.next;
            self.segment.has_mid = false;
        }
    }

    /// Sends a packet again that the subscriber lacks, from the layers' rings.
    pub fn retransmit<'r, W: Wire>(
        &mut self,
        now: Instant,
        sequence: u16,
        epoch: Instant,
        bitrate: Bitrate,
        ring: impl FnOnce(u8, u32) -> Option<&'r Ring>,
        wire: &mut W,
    ) {
        self.cold.nacks += 1;
        let sent = extend_16(self.last_sent, sequence);
        if sent > self.last_sent || !self.is_active() {
            return;
        }
        let current = self.segment.received(sent).map(|_| &self.segment);
        let found = current.or_else(|| self.cold.history.find_sent(sent));
        let Some(segment) = found.copied() else {
            return;
        };
        let packet = segment
            .received(sent)
            .and_then(|received| ring(segment.layer, segment.generation)?.get(received));
        let Some((stored, payload)) = packet else {
            return;
        };
        let rtt = self.rtt();
        let len = payload.len() + self.template.header_len();
        let allowed = self
            .cold
            .retransmissions
            .allow(now, sent, len, rtt, bitrate);
        if !allowed {
            return;
        }
        let packet = Shared {
            stored,
            payload,
            abs_send_time: abs_send_time(epoch, stored.arrived),
        };
        match &self.cold.repair {
            Some(repair) => {
                let number = self.cold.repair_sequence;
                self.cold.repair_sequence = number.wrapping_add(1);
                let stamp = abs_send_time(epoch, now);
                wire.send_rtp(self.peer, |buffer| {
                    write_repair(buffer, repair, &segment, &packet, number, stamp)
                });
            }
            None => {
                let template = self.template_of(&segment);
                wire.repeat_rtp(self.peer, |buffer| {
                    write_media(buffer, template, &segment, &packet)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
