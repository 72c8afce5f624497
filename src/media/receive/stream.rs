//! One layer of a track as it arrives, from a publisher or another node.
//!
//! Fed by the router with parsed packets, retransmissions already unwrapped. Numbers them, drops
//! duplicates, stores them in the ring, notes gaps. Owns everything about the layer that does not
//! depend on who receives it.

use std::time::{Duration, Instant};

use flotilla_model::track::Quality;
use flotilla_model::unit::{Bitrate, Size};

use crate::codec::{Codec, inspect};
use crate::discard::Discard;
use crate::receive::keyframe::KeyFrameRequests;
use crate::receive::nack::{NackGenerator, Origin, Reordering};
use crate::receive::report::{Reception, SenderClock, to_ticks};
use crate::receive::ring::{PAYLOAD_LEN_MAX, Ring, Stored};
use crate::rtp::extension::Carried;
use crate::rtp::sequence::{extend_16, first_extended};

/// Slots a video layer starts with: more than the largest key frame of a camera.
const VIDEO_SLOTS: usize = 256;
/// Slots of an audio stream: over two seconds of 20 ms packets.
const AUDIO_SLOTS: usize = 128;
/// Most slots of a layer: three seconds at 3 Mb/s, 1.4 MB.
const SLOTS_MAX: usize = 1_024;
/// Time that a ring is to cover.
const RING_SPAN: Duration = Duration::from_millis(1_500);
/// A jump ahead by more than this is a new stream under an old name.
const JUMP_MAX: u64 = 4_096;
/// So many packets in a row from long ago are a new stream as well.
const STALE_MAX: u32 = 32;
/// Time over which the bitrate is measured.
const METER: Duration = Duration::from_millis(500);

/// How a packet is numbered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbering {
    /// By its RTP sequence number.
    Wire(u16),
    /// By the number the first node gave it.
    Extended(u64),
}

/// A packet for a layer.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its number.
    pub numbering: Numbering,
    /// RTP timestamp.
    pub timestamp: u32,
    /// RTP marker.
    pub marker: bool,
    /// How its payload is read.
    pub codec: Codec,
    /// Clock of its timestamps, Hz.
    pub clock_rate: u32,
    /// Extension values to pass on.
    pub carried: Carried,
    /// Whether it was sent again.
    pub origin: Origin,
    /// When it arrived at the first node.
    pub arrived: Instant,
}

/// A packet that was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Its extended number; the ring has it.
    pub sequence: u64,
    /// It was lost at first.
    pub is_repair: bool,
    /// Round trip to the source, if this packet measured it.
    pub round_trip: Option<Duration>,
    /// Where a key frame begins that this packet completes so far, if it does.
    pub key_frame_start: Option<u64>,
}

/// Counters of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Distinct packets.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Received by retransmission.
    pub repaired: u64,
    /// Received twice.
    pub duplicates: u64,
    /// Key frames begun.
    pub key_frames: u64,
}

/// One layer.
pub struct Stream {
    /// SSRC it arrives under; 0 from another node.
    pub ssrc: u32,
    /// SSRC of its retransmissions; 0: unknown.
    pub repair_ssrc: u32,
    /// Codec of its packets.
    pub codec: Codec,
    /// Clock of its timestamps, Hz.
    pub clock_rate: u32,
    /// Counts up when the numbers start anew: what was derived from older ones is void.
    pub generation: u32,
    /// Its packets.
    pub ring: Ring,
    /// What is missing.
    pub nack: NackGenerator,
    /// Requests for key frames.
    pub key_frames: KeyFrameRequests,
    /// Statistics for reports to the source.
    pub reception: Reception,
    /// The source's clock, once it has told.
    pub clock: Option<SenderClock>,
    /// Picture size, once a key frame has shown it.
    pub size: Option<Size>,
    /// Counters.
    pub counters: Counters,
    /// Newest packet's arrival here.
    pub last_arrival: Option<Instant>,
    /// Bits per second.
    pub bitrate: Bitrate,
    first: u64,
    highest: Option<u64>,
    stale: u32,
    /// The next gap is no loss: the source was told to pause in between.
    pub expects_gap: bool,
    started: Option<Instant>,
    metered_bytes: u64,
    metered_since: Option<Instant>,
    metered_packets: u32,
    packets_per_second: u32,
}

impl Stream {
    /// A layer that has not started.
    #[must_use]
    pub fn new(quality: Quality, reordering: Reordering) -> Self {
        Self {
            ssrc: 0,
            repair_ssrc: 0,
            codec: Codec::Other,
            clock_rate: 90_000,
            generation: 0,
            ring: Ring::empty(),
            nack: NackGenerator::new(reordering),
            key_frames: KeyFrameRequests::new(quality),
            reception: Reception::default(),
            clock: None,
            size: None,
            counters: Counters::default(),
            last_arrival: None,
            bitrate: Bitrate(0),
            first: 0,
            highest: None,
            stale: 0,
            expects_gap: false,
            started: None,
            metered_bytes: 0,
            metered_since: None,
            metered_packets: 0,
            packets_per_second: 0,
        }
    }

    /// Highest number received; `None` before the first packet.
    #[must_use]
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }

    /// Numbers start anew with the next packet: another source, or another stream of it.
    pub fn restart(&mut self) {
        self.highest = None;
        self.clock = None;
        self.stale = 0;
        self.expects_gap = false;
        self.nack.clear();
        self.ring.clear();
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether a retransmission of this sequence number is awaited.
    #[must_use]
    pub fn lacks(&self, sequence: u16) -> bool {
        self.highest.is_some_and(|highest| {
            let number = extend_16(highest, sequence);
            number < highest
                && number >= self.first
                && highest - number < self.ring.capacity() as u64
                && self.ring.find(number).is_none()
        })
    }

    /// Takes a packet in. `use_nack`: gaps are to be repaired.
    ///
    /// # Errors
    /// `Duplicate`, `TooOld`, `TooLarge`.
    pub fn receive(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        payload: &[u8],
        use_nack: bool,
    ) -> Result<Accepted, Discard> {
        if payload.len() > PAYLOAD_LEN_MAX {
            return Err(Discard::TooLarge);
        }
        let sequence = self.number(now, arrival)?;
        let (is_repair, round_trip) = self.note_gap(now, sequence, arrival, use_nack)?;
        let found = inspect(arrival.codec, payload);
        let stored = Stored {
            sequence,
            arrived: arrival.arrived,
            timestamp: arrival.timestamp,
            len: 0,
            marker: arrival.marker,
            is_key_frame: found.is_key_frame && !payload.is_empty(),
            is_frame_start: found.is_frame_start,
            codec: arrival.codec,
            carried: arrival.carried,
            vp8: found.vp8.unwrap_or_default(),
        };
        self.ring.insert(stored, payload);
        self.codec = arrival.codec;
        self.clock_rate = arrival.clock_rate;
        self.size = found.size.or(self.size);
        self.counters.packets += 1;
        self.counters.bytes += payload.len() as u64;
        self.metered_bytes += payload.len() as u64;
        self.metered_packets += 1;
        self.last_arrival = Some(now);
        let key_frame_start = if stored.is_key_frame {
            self.ring.frame_start(sequence, self.first)
        } else {
            None
        };
        if arrival.codec.has_key_frames() && key_frame_start == Some(sequence) {
            self.counters.key_frames += 1;
            self.key_frames.arrived();
        }
        Ok(Accepted {
            sequence,
            is_repair,
            round_trip,
            key_frame_start,
        })
    }

    /// Extends the packet's number; starts the stream, or starts it anew, where it has to.
    fn number(&mut self, now: Instant, arrival: &Arrival) -> Result<u64, Discard> {
        let extended = |highest: u64| match arrival.numbering {
            Numbering::Wire(sequence) => extend_16(highest, sequence),
            Numbering::Extended(number) => number,
        };
        if let Some(highest) = self.highest {
            let number = extended(highest);
            let is_old = number + self.ring.capacity() as u64 <= highest;
            let is_jump = number > highest + JUMP_MAX && !self.expects_gap;
            self.stale = if is_old && arrival.origin != Origin::Repair {
                self.stale + 1
            } else {
                0
            };
            if is_old && self.stale <= STALE_MAX {
                return Err(Discard::TooOld);
            }
            if !is_old && !is_jump {
                return Ok(number);
            }
            self.restart();
        }
        let number = match arrival.numbering {
            Numbering::Wire(sequence) => first_extended(sequence),
            Numbering::Extended(number) => number,
        };
        let slots = if arrival.codec.has_key_frames() {
            VIDEO_SLOTS
        } else {
            AUDIO_SLOTS
        };
        self.ring.grow(slots, now);
        self.nack.reserve();
        self.first = number;
        self.reception = Reception::starting_at(number);
        self.expects_gap = false;
        Ok(number)
    }

    /// Books the packet's place in the sequence; returns whether it had been lost, and a sample of
    /// the round trip if it gives one.
    fn note_gap(
        &mut self,
        now: Instant,
        sequence: u64,
        arrival: &Arrival,
        use_nack: bool,
    ) -> Result<(bool, Option<Duration>), Discard> {
        let mut round_trip = None;
        let mut is_repair = arrival.origin == Origin::Repair;
        match self.highest {
            Some(highest) if sequence <= highest => {
                if self.ring.find(sequence).is_some() {
                    self.counters.duplicates += 1;
                    if arrival.origin == Origin::Unknown {
                        self.nack.answered_twice();
                    }
                    return Err(Discard::Duplicate);
                }
                if sequence < self.first {
                    if use_nack {
                        self.nack.lost_below(now, sequence + 1, self.first);
                    }
                    self.first = sequence;
                }
                let repaired = self.nack.arrived(now, sequence, arrival.origin);
                is_repair |= repaired.was_asked;
                round_trip = repaired.round_trip;
            }
            Some(highest) => {
                if sequence > highest + 1 && use_nack && !self.expects_gap {
                    self.nack.lost(now, highest + 1, sequence);
                }
                self.highest = Some(sequence);
                self.expects_gap = false;
                self.nack.advanced(now, sequence);
            }
            None => self.highest = Some(sequence),
        }
        self.counters.repaired += u64::from(is_repair);
        let transit = (!is_repair).then(|| self.transit(now, arrival));
        self.reception.received(sequence, transit);
        Ok((is_repair, round_trip))
    }

    /// Arrival in RTP clock units less the timestamp, up to a constant.
    fn transit(&mut self, now: Instant, arrival: &Arrival) -> u32 {
        let origin = *self.started.get_or_insert(now);
        self.metered_since.get_or_insert(now);
        to_ticks(now.saturating_duration_since(origin), arrival.clock_rate)
            .wrapping_sub(arrival.timestamp)
    }

    /// Measures the bitrate and grows the ring to what the packet rate needs. Called by the
    /// router's timer.
    pub fn housekeep(&mut self, now: Instant) {
        let Some(since) = self.metered_since else {
            return;
        };
        let passed = now.saturating_duration_since(since);
        if passed < METER {
            return;
        }
        let per_second = |count: u64| count * 1_000_000 / passed.as_micros() as u64;
        let measured = per_second(self.metered_bytes * 8);
        // A weight of one half: about a second of memory.
        self.bitrate = Bitrate(if self.bitrate.0 == 0 {
            measured
        } else {
            u64::midpoint(self.bitrate.0, measured)
        });
        self.packets_per_second = per_second(u64::from(self.metered_packets)) as u32;
        self.metered_bytes = 0;
        self.metered_packets = 0;
        self.metered_since = Some(now);
        let needed = u64::from(self.packets_per_second) * RING_SPAN.as_millis() as u64 / 1_000;
        if needed > self.ring.capacity() as u64 && self.highest.is_some() {
            self.ring.grow((needed as usize).min(SLOTS_MAX), now);
        }
    }
}

#[cfg(test)]
mod tests;
