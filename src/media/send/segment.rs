//! How a received stream's numbers become a subscriber's.
//!
//! Between two events (layer switch, dropped padding, resumption) every number of a subscription is
//! the received one plus a constant. A [`Segment`] holds these constants; what is sent is a pure
//! function of segment, template and stored packet. So a packet asked for again is rebuilt bit by
//! bit from the shared ring, and nothing per packet is kept per subscriber.

use crate::receive::ring::Stored;

/// Segments remembered behind the current one. Switches are seconds apart and padding comes in
/// runs, so this covers far more than the ring does.
const HISTORY: usize = 32;

/// A run of packets of one layer with constant offsets. All arithmetic wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Received layer.
    pub layer: u8,
    /// Its generation when the segment began.
    pub generation: u32,
    /// Headers carry the mid.
    pub has_mid: bool,
    /// First received number.
    pub first: u64,
    /// Last received number, inclusive; `u64::MAX` while the segment is current.
    pub last: u64,
    /// Sent sequence number less received.
    pub sequence_offset: u64,
    /// Sent timestamp less received.
    pub timestamp_offset: u32,
    /// Sent picture id less received.
    pub picture_offset: u16,
    /// Sent TL0PICIDX less received.
    pub tl0_offset: u8,
}

impl Segment {
    /// A segment that contains nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            layer: u8::MAX,
            generation: 0,
            has_mid: true,
            first: u64::MAX,
            last: 0,
            sequence_offset: 0,
            timestamp_offset: 0,
            picture_offset: 0,
            tl0_offset: 0,
        }
    }

    /// It can hold packets.
    #[must_use]
    pub fn is_something(&self) -> bool {
        self.first <= self.last
    }

    /// Sent sequence number of a received one.
    #[must_use]
    pub fn sent(&self, received: u64) -> u64 {
        received.wrapping_add(self.sequence_offset)
    }

    /// Received sequence number of a sent one, if it lies in this segment.
    #[must_use]
    pub fn received(&self, sent: u64) -> Option<u64> {
        let received = sent.wrapping_sub(self.sequence_offset);
        self.contains(received).then_some(received)
    }

    /// The received number belongs to it.
    #[must_use]
    pub fn contains(&self, received: u64) -> bool {
        (self.first..=self.last).contains(&received)
    }

    /// Sent timestamp of a packet.
    #[must_use]
    pub fn timestamp(&self, stored: &Stored) -> u32 {
        stored.timestamp.wrapping_add(self.timestamp_offset)
    }

    /// Sent picture id of a packet.
    #[must_use]
    pub fn picture(&self, stored: &Stored) -> u16 {
        stored.vp8.picture_id.wrapping_add(self.picture_offset) & 0x7fff
    }

    /// Sent TL0PICIDX of a packet.
    #[must_use]
    pub fn tl0(&self, stored: &Stored) -> u8 {
        stored.vp8.tl0.wrapping_add(self.tl0_offset)
    }
}

/// Past segments of a subscription, newest last; the oldest is forgotten.
#[derive(Debug)]
pub struct History {
    segments: [Segment; HISTORY],
    next: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            segments: [Segment::nothing(); HISTORY],
            next: 0,
        }
    }
}

impl History {
    /// Remembers a segment that ended.
    pub fn push(&mut self, segment: Segment) {
        if segment.is_something() {
            self.segments[self.next % HISTORY] = segment;
            self.next += 1;
        }
    }

    /// Forgets everything: nothing sent before can be rebuilt.
    pub fn clear(&mut self) {
        self.segments = [Segment::nothing(); HISTORY];
    }

    fn newest_first(&self) -> impl Iterator<Item = &Segment> {
        let (after, before) = self.segments.split_at(self.next % HISTORY);
        after.iter().rev().chain(before.iter().rev())
    }

    /// Segment that a received packet belongs to.
    #[must_use]
    pub fn find_received(&self, layer: u8, generation: u32, received: u64) -> Option<&Segment> {
        self.newest_first().find(|segment| {
            segment.layer == layer && segment.generation == generation && segment.contains(received)
        })
    }

    /// Segment in which a number was sent.
    #[must_use]
    pub fn find_sent(&self, sent: u64) -> Option<&Segment> {
        self.newest_first()
            .find(|segment| segment.received(sent).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(layer: u8, first: u64, last: u64, sent: u64) -> Segment {
        Segment {
            layer,
            first,
            last,
            sequence_offset: sent.wrapping_sub(first),
            ..Segment::nothing()
        }
    }

    #[test]
    fn numbers_map_both_ways() {
        let segment = segment(1, 1_000, 1_009, 500);
        assert_eq!(segment.sent(1_003), 503);
        assert_eq!(segment.received(503), Some(1_003));
        assert_eq!(segment.received(499), None);
        assert_eq!(segment.received(510), None);
        assert!(!Segment::nothing().contains(0));
        assert!(!Segment::nothing().contains(u64::MAX));
    }

    #[test]
    fn the_newest_segments_are_found() {
        let mut history = History::default();
        history.push(Segment::nothing());
        for index in 0..40_u64 {
            history.push(segment(0, index * 10, index * 10 + 9, 1_000 + index * 9));
        }
        assert_eq!(history.find_received(0, 0, 5), None);
        assert_eq!(
            history.find_received(0, 0, 395).map(|found| found.first),
            Some(390)
        );
        assert_eq!(history.find_received(1, 0, 395), None);
        assert_eq!(history.find_received(0, 1, 395), None);
        // Sent ranges overlap by one here: the newest wins.
        assert_eq!(
            history.find_sent(1_000 + 39 * 9).map(|found| found.first),
            Some(390)
        );
        history.clear();
        assert_eq!(history.find_received(0, 0, 395), None);
    }
}
