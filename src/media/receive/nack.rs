//! Which packets of a layer are missing and when to ask for them (again).
//!
//! Fed by [`crate::receive::stream`] with gaps and arrivals, retransmissions included, so that a
//! repaired packet is never asked for again. The router turns what is due into RTCP NACKs to a
//! publisher or repair requests to another node.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most packets missed at once. More than this is an outage: key frames help, repair does not.
pub const MISSING_MAX: usize = 512;
/// Most times one packet is asked for: at 5 % loss both ways the chance that all fail is 10^-10.
const TRIES_MAX: u8 = 10;
/// Least time between two requests for one packet; less repeats requests that are being answered.
const RETRY_MIN: Duration = Duration::from_millis(25);
/// Most reordering that is waited for: beyond this an early request costs less than waiting.
const REORDER_TIME_MAX: Duration = Duration::from_millis(40);
const REORDER_PACKETS_MAX: u64 = 96;
/// Oldest packet that is still asked for: a subscriber's jitter buffer has given up by then.
const AGE_MAX: Duration = Duration::from_secs(2);

/// How far packets may overtake each other before a gap counts as loss: whichever comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reordering {
    /// Time.
    pub time: Duration,
    /// Newer packets.
    pub packets: u64,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    sequence: u64,
    since: Instant,
    /// When it was asked for first and last.
    asked: Option<(Instant, Instant)>,
    tries: u8,
}

/// Whether a packet was sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The sender marks repairs (RTX, relays) and this is none.
    Original,
    /// It was sent again.
    Repair,
    /// The sender's repairs look like originals.
    Unknown,
}

/// What is known about a missing packet that arrived after all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repaired {
    /// Time since it was first asked for: a sample of the round trip. Too long where the first
    /// request or answer was lost; the other way, counting from the last request, an estimate that
    /// is too short would never see an answer to a single request again.
    pub round_trip: Option<Duration>,
    /// It was asked for.
    pub was_asked: bool,
}

/// Missing packets of one layer, in ascending order.
#[derive(Debug)]
pub struct NackGenerator {
    missing: VecDeque<Missing>,
    /// What is expected at least.
    reordering: Reordering,
    /// What was seen of late: more on paths that reorder, shrinking with every true loss.
    tolerance: Reordering,
    /// Highest number received.
    highest: u64,
    /// Lowest number that was not asked for yet.
    unasked: Option<u64>,
    next: Option<Instant>,
    /// True losses so far.
    losses: u32,
    given_up: u64,
    asked: u64,
}

impl NackGenerator {
    /// A generator for streams whose packets overtake each other that much.
    #[must_use]
    pub fn new(reordering: Reordering) -> Self {
        Self {
            missing: VecDeque::new(),
            reordering,
            tolerance: reordering,
            highest: 0,
            unasked: None,
            next: None,
            losses: 0,
            given_up: 0,
            asked: 0,
        }
    }

    /// Takes the memory it will ever need. Called when a stream starts.
    pub fn reserve(&mut self) {
        self.missing.reserve(MISSING_MAX);
    }

    /// Packets never received.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Sequence numbers asked for, repetitions included.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// Nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }

    /// When [`Self::due`] may have something; `None`: nothing is missing.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// The numbers from `first` up to but without `end` were skipped.
    pub fn lost(&mut self, now: Instant, first: u64, end: u64) {
        let count = end.saturating_sub(first);
        if count > MISSING_MAX as u64 {
            self.given_up += count + self.missing.len() as u64;
            self.clear();
            return;
        }
        for sequence in first..end {
            if self.missing.len() == MISSING_MAX {
                self.missing.pop_front();
                self.given_up += 1;
            }
            self.missing.push_back(Missing {
                sequence,
                since: now,
                asked: None,
                tries: 0,
            });
        }
        if first < end {
            self.unasked.get_or_insert(first);
            self.schedule(now + self.tolerance.time);
        }
    }

    /// The stream turned out to begin earlier: the numbers from `first` up to but without `end`, all
    /// below everything received before, are missing as well.
    pub fn lost_below(&mut self, now: Instant, first: u64, end: u64) {
        let room = (MISSING_MAX - self.missing.len()) as u64;
        for sequence in (first..end).rev().take(room.min(end - first) as usize) {
            self.missing.push_front(Missing {
                sequence,
                since: now,
                asked: None,
                tries: 0,
            });
            self.unasked = Some(sequence);
        }
        self.schedule(now + self.tolerance.time);
    }

    /// A packet above all others arrived: the gaps far enough behind it are losses.
    pub fn advanced(&mut self, now: Instant, highest: u64) {
        self.highest = highest;
        if let Some(unasked) = self.unasked
            && highest >= unasked + self.tolerance.packets
        {
            self.schedule(now);
        }
    }

    fn schedule(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// A packet below the highest number arrived.
    pub fn arrived(&mut self, now: Instant, sequence: u64, origin: Origin) -> Repaired {
        let found = self
            .missing
            .binary_search_by_key(&sequence, |missing| missing.sequence);
        let Ok(index) = found else {
            return Repaired {
                round_trip: None,
                was_asked: false,
            };
        };
        let Some(missing) = self.missing.remove(index) else {
            unreachable!("found there");
        };
        let waited = missing
            .asked
            .map(|(first, _)| now.saturating_duration_since(first));
        let was_overtaken = match origin {
            Origin::Original => true,
            Origin::Repair => false,
            Origin::Unknown => waited.is_none(),
        };
        self.learn(now, &missing, was_overtaken);
        if self.missing.is_empty() {
            self.next = None;
        }
        if self.unasked == Some(sequence) {
            self.unasked = self
                .missing
                .range(index..)
                .find(|missing| missing.asked.is_none())
                .map(|missing| missing.sequence);
        }
        Repaired {
            round_trip: waited.filter(|_| !was_overtaken && missing.tries <= 3),
            was_asked: waited.is_some() && !was_overtaken,
        }
    }

    /// Fits the tolerance to how far packets really overtake each other: quickly up, slowly down.
    fn learn(&mut self, now: Instant, missing: &Missing, was_overtaken: bool) {
        let tolerance = &mut self.tolerance;
        if was_overtaken {
            let late = now.saturating_duration_since(missing.since);
            let behind = self.highest.saturating_sub(missing.sequence);
            tolerance.time = tolerance.time.max(late + late / 4).min(REORDER_TIME_MAX);
            tolerance.packets = tolerance.packets.max(behind + 2).min(REORDER_PACKETS_MAX);
        } else {
            // Sixteen times as slow as it grew: a request too early costs a packet, waiting costs
            // milliseconds.
            self.losses = self.losses.wrapping_add(1);
            if self.losses.is_multiple_of(16) {
                let base = self.reordering;
                tolerance.time -= tolerance.time.saturating_sub(base.time) / 4;
                tolerance.packets -= tolerance.packets.saturating_sub(base.packets).div_ceil(4);
            }
        }
    }

    /// A packet came twice and its sender's repairs look like originals: it was asked for although
    /// it was only overtaken.
    pub fn answered_twice(&mut self) {
        let tolerance = &mut self.tolerance;
        tolerance.time = (tolerance.time + Duration::from_millis(1)).min(REORDER_TIME_MAX);
        tolerance.packets = (tolerance.packets + 2).min(REORDER_PACKETS_MAX);
    }

    /// Forgets everything that is missing.
    pub fn clear(&mut self) {
        self.missing.clear();
        self.next = None;
        self.unasked = None;
    }

    /// Collects what is to be asked for now, ascending, and notes that it was. `highest` is the
    /// highest number received. Returns how many were put into `out`; if that is all of it, call
    /// again.
    pub fn due(&mut self, now: Instant, rtt: Duration, highest: u64, out: &mut [u64]) -> usize {
        self.unasked = None;
        self.highest = highest;
        let mut count = 0;
        let mut index = 0;
        let mut next: Option<Instant> = None;
        while let Some(missing) = self.missing.get_mut(index) {
            let is_over = missing.tries >= TRIES_MAX || now > missing.since + AGE_MAX;
            let at = missing.due_at(now, rtt, self.tolerance, highest);
            if is_over && at <= now {
                self.missing.remove(index);
                self.given_up += 1;
                continue;
            }
            if at <= now && count < out.len() {
                out[count] = missing.sequence;
                count += 1;
                missing.asked = Some((missing.asked.map_or(now, |(first, _)| first), now));
                missing.tries += 1;
                self.asked += 1;
            }
            if missing.asked.is_none() {
                self.unasked.get_or_insert(missing.sequence);
            }
            let at = missing.due_at(now, rtt, self.tolerance, highest);
            next = Some(next.map_or(at, |next| next.min(at)));
            index += 1;
        }
        self.next = next;
        count
    }
}

impl Missing {
    fn due_at(&self, now: Instant, rtt: Duration, order: Reordering, highest: u64) -> Instant {
        match self.asked {
            None if highest >= self.sequence + order.packets => now,
            None => self.since + order.time,
            Some((_, asked)) => {
                let once = (rtt + rtt / 4 + Duration::from_millis(5)).max(RETRY_MIN);
                // After three failures the path is worse than thought.
                asked + once * if self.tries > 3 { 2 } else { 1 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REORDER: Reordering = Reordering {
        time: Duration::from_millis(10),
        packets: 3,
    };
    const RTT: Duration = Duration::from_millis(40);

    fn due(nack: &mut NackGenerator, now: Instant, highest: u64) -> Vec<u64> {
        let mut out = [0; 64];
        let count = nack.due(now, RTT, highest, &mut out);
        out[..count].to_vec()
    }

    #[test]
    fn reordering_is_waited_for() {
        let now = crate::test_epoch();
        let mut nack = NackGenerator::new(REORDER);
        nack.lost(now, 5, 6);
        assert_eq!(nack.deadline(), Some(now + REORDER.time));
        assert!(due(&mut nack, now, 6).is_empty());
        let repaired = nack.arrived(now, 5, Origin::Unknown);
        assert!(!repaired.was_asked);
        assert!(nack.is_empty());
        assert_eq!(nack.deadline(), None);
    }

    #[test]
    fn three_newer_packets_mean_loss() {
        let now = crate::test_epoch();
        let mut nack = NackGenerator::new(REORDER);
        nack.lost(now, 5, 7);
        assert_eq!(due(&mut nack, now, 8), [5]);
        assert_eq!(due(&mut nack, now, 9), [6]);
    }

    #[test]
    fn retries_are_spaced_by_the_round_trip_and_end() {
        let mut now = crate::test_epoch();
        let mut nack = NackGenerator::new(REORDER);
        nack.lost(now, 5, 6);
        let mut asked = vec![];
        for _ in 0..4_000 {
            if !due(&mut nack, now, 100).is_empty() {
                asked.push(now);
            }
            now += Duration::from_millis(1);
        }
        assert_eq!(asked.len(), usize::from(TRIES_MAX));
        assert_eq!(asked[1] - asked[0], Duration::from_millis(55));
        assert_eq!(nack.given_up(), 1);
        assert!(nack.is_empty());
    }

    #[test]
    fn a_repair_after_one_request_measures_the_round_trip() {
        let now = crate::test_epoch();
        let mut nack = NackGenerator::new(REORDER);
        nack.lost(now, 5, 6);
        assert_eq!(due(&mut nack, now, 50), [5]);
        let repaired = nack.arrived(now + RTT, 5, Origin::Repair);
        assert_eq!(repaired.round_trip, Some(RTT));
        assert!(due(&mut nack, now + RTT * 9, 60).is_empty());
    }

    #[test]
    fn an_outage_is_not_repaired() {
        let now = crate::test_epoch();
        let mut nack = NackGenerator::new(REORDER);
        nack.lost(now, 0, MISSING_MAX as u64 + 1);
        assert!(nack.is_empty());
        assert_eq!(nack.given_up(), MISSING_MAX as u64 + 1);
        for burst in 0..3 {
            nack.lost(now, 10_000 + burst * 300, 10_200 + burst * 300);
        }
        let mut out = [0; 1_024];
        assert_eq!(nack.due(now, RTT, 20_000, &mut out), MISSING_MAX);
    }

    #[test]
    fn tolerance_follows_the_path() {
        let mut now = crate::test_epoch();
        let mut nack = NackGenerator::new(REORDER);
        // Packets come 20 ms late, behind ten others, without being lost.
        for base in 0..10_u64 {
            let lost = base * 20 + 5;
            nack.lost(now, lost, lost + 1);
            nack.advanced(now, lost + 10);
            let asked = due(&mut nack, now, lost + 10);
            assert_eq!(asked.is_empty(), base > 0, "{base}");
            let repaired = nack.arrived(now + RTT / 2, lost, Origin::Original);
            assert!(!repaired.was_asked);
            now += RTT;
        }
        // True losses bring the early request back.
        for base in 20..220_u64 {
            let lost = base * 20 + 5;
            nack.lost(now, lost, lost + 1);
            nack.advanced(now, lost + 12);
            now += RTT;
            due(&mut nack, now, lost + 12);
            nack.arrived(now + RTT, lost, Origin::Repair);
            now += RTT * 2;
        }
        nack.lost(now, 5_000, 5_001);
        nack.advanced(now, 5_003);
        assert_eq!(due(&mut nack, now, 5_003), [5_000]);
    }

    #[test]
    fn a_stream_that_begins_earlier_lacks_what_lies_between() {
        let now = crate::test_epoch();
        let mut nack = NackGenerator::new(REORDER);
        nack.lost(now, 20, 21);
        nack.lost_below(now, 11, 14);
        assert_eq!(due(&mut nack, now, 40), [11, 12, 13, 20]);
    }
}
