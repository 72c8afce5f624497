//! When to ask a layer's source for a key frame.
//!
//! Many subscribers want key frames of one layer; the source gets one request per interval, and
//! another until a key frame arrives. Owned by the layer's stream, driven by the router's timer.

use std::time::{Duration, Instant};

use flotilla_model::track::Quality;

/// Time after which an unanswered request is repeated.
const RETRY: Duration = Duration::from_millis(350);
/// Least time between a request that was answered and one in haste. Senders on libwebrtc ignore requests within 300 ms
/// of the one before; such a request would only be followed by the next retry.
const HASTE: Duration = Duration::from_millis(320);

/// Requests for key frames of one layer.
#[derive(Debug)]
pub struct KeyFrameRequests {
    is_wanted: bool,
    asked: Option<Instant>,
    /// A key frame has come since the last request.
    is_answered: bool,
    /// Least time between a request that was answered and the next. Each key frame costs the
    /// publisher several times a normal frame, more so in upper layers.
    interval: Duration,
    /// The next request must not wait for the whole interval.
    is_hasty: bool,
    sent: u64,
}

impl KeyFrameRequests {
    /// For a layer of this quality.
    #[must_use]
    pub fn new(quality: Quality) -> Self {
        let interval = match quality {
            Quality::Low => Duration::from_millis(500),
            _ => Duration::from_secs(1),
        };
        Self {
            is_wanted: false,
            asked: None,
            is_answered: true,
            interval,
            is_hasty: false,
            sent: 0,
        }
    }

    /// Somebody cannot go on (or start) without one.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Somebody who was cut off in the middle of a picture is back: the next request is not to wait
    /// until one is due again.
    pub fn hasten(&mut self) {
        self.is_hasty = true;
    }

    /// Whether the next request must not wait.
    #[must_use]
    pub fn is_hasty(&self) -> bool {
        self.is_hasty
    }

    /// Somebody waits for one.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Nobody waits any more.
    pub fn cancel(&mut self) {
        self.is_wanted = false;
    }

    /// A key frame began.
    pub fn arrived(&mut self) {
        self.is_wanted = false;
        self.is_answered = true;
    }

    /// Requests sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// When the next request is to be sent; `None`: nobody waits.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.is_wanted {
            return None;
        }
        let pause = match (self.is_answered, self.is_hasty) {
            (true, true) => HASTE,
            (true, false) => self.interval,
            (false, _) => RETRY,
        };
        Some(self.asked.map_or(now, |asked| asked + pause))
    }

    /// Whether a request is to be sent now; notes that it was.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.deadline(now).is_some_and(|at| at <= now);
        if is_due {
            self.asked = Some(now);
            self.is_answered = false;
            self.is_hasty = false;
            self.sent += 1;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_until_answered_and_throttled_after() {
        let start = crate::test_epoch();
        let ms = Duration::from_millis;
        let mut requests = KeyFrameRequests::new(Quality::High);
        assert!(!requests.take_due(start));
        requests.want();
        assert!(requests.take_due(start));
        assert!(!requests.take_due(start + ms(349)));
        assert!(requests.take_due(start + ms(350)));
        requests.arrived();
        assert_eq!(requests.deadline(start + ms(600)), None);
        requests.want();
        assert!(!requests.take_due(start + ms(1_349)));
        assert!(requests.take_due(start + ms(1_350)));
        assert_eq!(requests.sent(), 3);
    }

    #[test]
    fn haste_shortens_the_pause_once() {
        let start = crate::test_epoch();
        let ms = Duration::from_millis;
        let mut requests = KeyFrameRequests::new(Quality::High);
        requests.want();
        assert!(requests.take_due(start));
        requests.arrived();
        requests.hasten();
        requests.want();
        assert!(!requests.take_due(start + ms(319)));
        assert!(requests.take_due(start + ms(320)));
        requests.arrived();
        requests.want();
        assert!(!requests.take_due(start + ms(1_319)));
        assert!(requests.take_due(start + ms(1_320)));
    }

    #[test]
    fn the_lowest_layer_may_be_asked_more_often() {
        let start = crate::test_epoch();
        let mut requests = KeyFrameRequests::new(Quality::Low);
        requests.want();
        assert!(requests.take_due(start));
        requests.arrived();
        requests.want();
        assert!(requests.take_due(start + Duration::from_millis(500)));
    }
}
