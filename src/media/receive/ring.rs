//! The packets of one layer, each stored once for all its receivers.
//!
//! Filled by [`crate::receive::stream`], read when a packet is forwarded, asked for again by a
//! subscriber or another node, and when a subscriber starts at a key frame that is already here.
//! Payloads are plain; headers are written anew for every receiver.

use std::time::Instant;

use crate::codec::{Codec, vp8};
use crate::rtp::extension::Carried;

/// Longest payload stored. Larger packets do not occur: clients keep to an MTU of 1,200.
pub const PAYLOAD_LEN_MAX: usize = 1_408;

/// What is known of a stored packet.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Its extended sequence number; `u64::MAX`: the slot is empty.
    pub sequence: u64,
    /// When it arrived at the first node.
    pub arrived: Instant,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Length of the payload; 0 for packets of padding only.
    pub len: u16,
    /// RTP marker.
    pub marker: bool,
    /// See [`crate::codec::Inspection::is_key_frame`].
    pub is_key_frame: bool,
    /// See [`crate::codec::Inspection::is_frame_start`].
    pub is_frame_start: bool,
    /// How its payload is read.
    pub codec: Codec,
    /// Extension values that go with it.
    pub carried: Carried,
    /// VP8's descriptor, all zero for other codecs.
    pub vp8: vp8::Descriptor,
}

impl Stored {
    /// Carries no media.
    #[must_use]
    pub fn is_padding(&self) -> bool {
        self.len == 0
    }
}

/// Fixed-size slots by sequence number. A newer packet overwrites the one a whole ring before it.
pub struct Ring {
    slots: Vec<Stored>,
    payloads: Box<[u8]>,
}

impl Ring {
    /// An empty ring that takes no memory; it refuses packets until it has grown.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            slots: vec![],
            payloads: Box::default(),
        }
    }

    /// Number of slots: 0 or a power of two.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Grows to `capacity` slots (rounded up to a power of two), keeping what is stored.
    pub fn grow(&mut self, capacity: usize, now: Instant) {
        let capacity = capacity.next_power_of_two();
        if capacity <= self.slots.len() {
            return;
        }
        let vacant = Stored {
            sequence: u64::MAX,
            arrived: now,
            timestamp: 0,
            len: 0,
            marker: false,
            is_key_frame: false,
            is_frame_start: false,
            codec: Codec::Other,
            carried: Carried::default(),
            vp8: vp8::Descriptor::default(),
        };
        let bigger = Self {
            slots: vec![vacant; capacity],
            payloads: vec![0; capacity * PAYLOAD_LEN_MAX].into_boxed_slice(),
        };
        let smaller = std::mem::replace(self, bigger);
        for stored in &smaller.slots {
            if let Some((stored, payload)) = smaller.get(stored.sequence) {
                self.insert(*stored, payload);
            }
        }
    }

    /// Forgets every packet, keeps the memory.
    pub fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.sequence = u64::MAX;
        }
    }

    fn index(&self, sequence: u64) -> usize {
        sequence as usize & (self.slots.len() - 1)
    }

    /// Stores a packet; `stored.len` is set from the payload, which must not be longer than
    /// [`PAYLOAD_LEN_MAX`]. Returns whether there was room.
    pub fn insert(&mut self, mut stored: Stored, payload: &[u8]) -> bool {
        if self.slots.is_empty() || payload.len() > PAYLOAD_LEN_MAX {
            return false;
        }
        let index = self.index(stored.sequence);
        stored.len = payload.len() as u16;
        self.slots[index] = stored;
        let start = index * PAYLOAD_LEN_MAX;
        self.payloads[start..start + payload.len()].copy_from_slice(payload);
        true
    }

    /// What is known of a packet, if it is still here.
    #[must_use]
    pub fn find(&self, sequence: u64) -> Option<&Stored> {
        if self.slots.is_empty() || sequence == u64::MAX {
            return None;
        }
        let stored = &self.slots[self.index(sequence)];
        (stored.sequence == sequence).then_some(stored)
    }

    /// A packet and its payload, if it is still here.
    #[must_use]
    pub fn get(&self, sequence: u64) -> Option<(&Stored, &[u8])> {
        let stored = self.find(sequence)?;
        let start = self.index(sequence) * PAYLOAD_LEN_MAX;
        let payload = &self.payloads[start..start + usize::from(stored.len)];
        Some((stored, payload))
    }

    /// First packet of the frame that `sequence` belongs to, provided everything from there on is
    /// here. `None` if the frame's start is missing.
    ///
    /// `first_of_stream` is the lowest number the stream ever had: nothing can lie before it.
    #[must_use]
    pub fn frame_start(&self, sequence: u64, first_of_stream: u64) -> Option<u64> {
        let mut at = sequence;
        let timestamp = self.find(at)?.timestamp;
        for _ in 0..self.slots.len() {
            if self.find(at)?.is_frame_start || at <= first_of_stream {
                return Some(at);
            }
            match self.find(at - 1) {
                Some(before) if before.timestamp == timestamp && !before.is_padding() => at -= 1,
                Some(_) => return Some(at),
                None => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(now: Instant, sequence: u64, timestamp: u32) -> Stored {
        Stored {
            sequence,
            arrived: now,
            timestamp,
            len: 0,
            marker: false,
            is_key_frame: false,
            is_frame_start: false,
            codec: Codec::Opus,
            carried: Carried::default(),
            vp8: vp8::Descriptor::default(),
        }
    }

    #[test]
    fn newer_packets_replace_those_a_ring_before() {
        let now = crate::test_epoch();
        let mut ring = Ring::empty();
        assert!(!ring.insert(stored(now, 1, 0), b"x"));
        ring.grow(6, now);
        assert_eq!(ring.capacity(), 8);
        for sequence in 100..112_u64 {
            assert!(ring.insert(stored(now, sequence, 0), &sequence.to_be_bytes()));
        }
        assert!(ring.get(103).is_none());
        assert!(ring.get(112).is_none());
        assert_eq!(
            ring.get(104).map(|(_, payload)| payload),
            Some(&104_u64.to_be_bytes()[..])
        );
        assert!(!ring.insert(stored(now, 112, 0), &[0; PAYLOAD_LEN_MAX + 1]));
    }

    #[test]
    fn growing_keeps_what_is_there() {
        let now = crate::test_epoch();
        let mut ring = Ring::empty();
        ring.grow(4, now);
        for sequence in 5..9_u64 {
            ring.insert(stored(now, sequence, 0), &[sequence as u8]);
        }
        ring.grow(16, now);
        for sequence in 5..9_u64 {
            assert_eq!(
                ring.get(sequence).map(|(_, payload)| payload.to_vec()),
                Some(vec![sequence as u8])
            );
        }
        ring.clear();
        assert!(ring.get(5).is_none());
    }

    #[test]
    fn the_start_of_a_frame_needs_every_packet_before() {
        let now = crate::test_epoch();
        let mut ring = Ring::empty();
        ring.grow(16, now);
        for (sequence, timestamp) in [(10, 1), (11, 2), (12, 2), (14, 3)] {
            ring.insert(stored(now, sequence, timestamp), b"x");
        }
        assert_eq!(ring.frame_start(12, 10), Some(11));
        assert_eq!(ring.frame_start(10, 10), Some(10));
        assert_eq!(ring.frame_start(10, 9), None);
        assert_eq!(ring.frame_start(14, 10), None);
    }
}
