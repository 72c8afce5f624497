//! The last flight of handshake messages, to be sent again until the handshake moves on
//! (RFC 6347 §4.2.4). rtc-dtls disarms its own timer on any handshake record, also on one that
//! does not help it, so that a lost flight is never repeated.
//!
//! The datagrams are repeated byte by byte. A client that has them drops them by their record
//! numbers and is not led to believe that something new arrived.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// First wait of ours; doubles with each repetition. Shorter repairs a loss sooner and, on paths
/// slower than it, sends flights that were not lost.
pub(super) const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longest wait.
const INTERVAL_MAX: Duration = Duration::from_millis(800);
/// Shortest time between two repetitions that the client asks for by repeating itself.
const REPEAT_MIN: Duration = Duration::from_millis(20);
/// Repetitions of one flight.
const REPEATS_MAX: u32 = 50;
/// Repetitions of the last flight that the client did not ask for. They spare it a wait of its own
/// when the flight is lost; its first data ends them.
const UNASKED_MAX: u32 = 3;
/// Datagrams of one flight; ours have two or three.
const DATAGRAMS_MAX: usize = 16;

/// A flight under way.
pub(super) struct Flight {
    interval_min: Duration,
    datagrams: Vec<Bytes>,
    sent: Option<Instant>,
    due: Option<Instant>,
    interval: Duration,
    repeats: u32,
    is_last: bool,
}

impl Flight {
    /// No flight yet; the first repetition of each comes after `interval_min`.
    pub(super) const fn new(interval_min: Duration) -> Self {
        Self {
            interval_min,
            datagrams: Vec::new(),
            sent: None,
            due: None,
            interval: Duration::ZERO,
            repeats: 0,
            is_last: false,
        }
    }

    /// A new flight was sent; the handshake moved on.
    pub(super) fn begin(&mut self, now: Instant, datagrams: &[Bytes]) {
        self.datagrams.clear();
        self.datagrams
            .extend(datagrams.iter().take(DATAGRAMS_MAX).cloned());
        self.interval = self.interval_min;
        self.sent = Some(now);
        self.due = Some(now + self.interval);
        self.repeats = 0;
    }

    /// The flight just begun is the last one.
    pub(super) const fn mark_last(&mut self) {
        self.is_last = true;
    }

    /// The other side has all it needs.
    pub(super) fn end(&mut self) {
        *self = Self::new(self.interval_min);
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Sends the flight again if it is time.
    pub(super) fn handle_timeout(&mut self, now: Instant, transmits: &mut VecDeque<Bytes>) {
        if self.due.is_some_and(|due| now >= due) {
            self.interval = (self.interval * 2).min(INTERVAL_MAX);
            self.resend(now, transmits);
        }
    }

    /// Sends the flight again because the client repeated its own: it lacks ours.
    pub(super) fn resend_for_repeat(&mut self, now: Instant, transmits: &mut VecDeque<Bytes>) {
        if self
            .sent
            .is_some_and(|sent| now.saturating_duration_since(sent) >= REPEAT_MIN)
        {
            self.resend(now, transmits);
        }
    }

    fn resend(&mut self, now: Instant, transmits: &mut VecDeque<Bytes>) {
        self.repeats += 1;
        if self.repeats > REPEATS_MAX {
            self.due = None;
            return;
        }
        transmits.extend(self.datagrams.iter().cloned());
        self.sent = Some(now);
        let again = !self.is_last || self.repeats < UNASKED_MAX;
        self.due = again.then(|| now + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn repeats_with_growing_waits_until_it_ends() {
        let start = crate::test_epoch();
        let mut flight = Flight::new(INTERVAL_MIN);
        let mut out = VecDeque::new();
        flight.begin(start, &[Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
        let mut now = start;
        let mut waits = vec![];
        for _ in 0..6 {
            let due = flight.deadline().expect("armed");
            waits.push((due - now).as_millis());
            now = due;
            flight.handle_timeout(now, &mut out);
        }
        assert_eq!(waits, [100, 200, 400, 800, 800, 800]);
        assert_eq!(out.len(), 12);
        flight.end();
        assert_eq!(flight.deadline(), None);
        flight.resend_for_repeat(now + ms(500), &mut out);
        assert_eq!(out.len(), 12);
    }

    #[test]
    fn repetition_on_demand_is_bounded() {
        let start = crate::test_epoch();
        let mut flight = Flight::new(INTERVAL_MIN);
        let mut out = VecDeque::new();
        flight.begin(start, &[Bytes::from_static(b"a")]);
        flight.resend_for_repeat(start + ms(5), &mut out);
        assert!(out.is_empty());
        for step in 1..1000_u64 {
            flight.resend_for_repeat(start + ms(20 * step), &mut out);
        }
        assert_eq!(out.len(), REPEATS_MAX as usize);
    }
}
