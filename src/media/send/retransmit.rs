//! How much may be sent again, and what was just sent again.
//!
//! One per subscription and per outgoing relay. Without a bound, a receiver on a congested path
//! would multiply the load that congests it.

use std::time::{Duration, Instant};

use flotilla_model::unit::Bitrate;

/// Retransmissions remembered. A request for one of them within a round trip is a repetition.
const RECENT: usize = 64;
/// Bytes that may be sent again at once: a large key frame.
const BURST: u64 = 96 * 1_024;
/// Least rate of retransmissions, bytes per second: audio must always be repaired.
const RATE_MIN: u64 = 16 * 1_024;

/// Budget and memory of retransmissions.
#[derive(Debug)]
pub struct Retransmissions {
    recent: [(u64, Option<Instant>); RECENT],
    next: usize,
    tokens: u64,
    filled: Option<Instant>,
    sent: u64,
}

impl Default for Retransmissions {
    fn default() -> Self {
        Self {
            recent: [(0, None); RECENT],
            next: 0,
            tokens: BURST,
            filled: None,
            sent: 0,
        }
    }
}

impl Retransmissions {
    /// Packets sent again so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether `key`, a packet of `bytes`, may be sent again now; notes it if so. The budget fills
    /// with the stream's own `bitrate`: repair may cost as much again as the stream, not more.
    pub fn allow(
        &mut self,
        now: Instant,
        key: u64,
        bytes: usize,
        rtt: Duration,
        bitrate: Bitrate,
    ) -> bool {
        let pause = (rtt * 3 / 4).clamp(Duration::from_millis(5), Duration::from_millis(250));
        let is_repetition = self.recent.iter().any(|(known, at)| {
            *known == key && at.is_some_and(|at| now.saturating_duration_since(at) < pause)
        });
        if is_repetition {
            return false;
        }
        let since = self.filled.replace(now).unwrap_or(now);
        let passed_ms = now.saturating_duration_since(since).as_millis() as u64;
        let rate = (bitrate.0 / 8).max(RATE_MIN);
        self.tokens = (self.tokens + rate * passed_ms.min(10_000) / 1_000).min(BURST);
        if passed_ms == 0 {
            // Keep fractions of a millisecond from being lost call by call.
            self.filled = Some(since);
        }
        let bytes = bytes as u64;
        if self.tokens < bytes {
            return false;
        }
        self.tokens -= bytes;
        self.recent[self.next % RECENT] = (key, Some(now));
        self.next += 1;
        self.sent += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    #[test]
    fn repetitions_within_a_round_trip_are_ignored() {
        let now = crate::test_epoch();
        let mut again = Retransmissions::default();
        let mut ask = |at, key| again.allow(at, key, 1_000, RTT, Bitrate(1_000_000));
        assert!(ask(now, 7));
        assert!(!ask(now + RTT / 2, 7));
        assert!(ask(now + RTT / 2, 8));
        assert!(ask(now + RTT, 7));
        assert_eq!(again.sent(), 3);
    }

    #[test]
    fn the_rate_is_bounded_by_the_streams_own() {
        let mut now = crate::test_epoch();
        let mut again = Retransmissions::default();
        let mut bytes = 0;
        for key in 0..100_000 {
            if again.allow(now, key, 1_000, RTT, Bitrate(800_000)) {
                bytes += 1_000;
            }
            now += Duration::from_micros(100);
        }
        // Ten seconds at 100 kB/s and one burst.
        assert!((1_000_000..1_110_000).contains(&bytes), "{bytes}");
    }
}
