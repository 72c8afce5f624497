//! What a subscriber's path can take: a simple response to its bandwidth estimate (REMB) and loss.
//!
//! One per subscribing peer, asked once a second. If the estimate stays well below what is sent,
//! one video track is to go down a layer; after a while without trouble one may try to go up again,
//! and a failed try makes the next one wait longer. An estimate of the receiver cannot grow far
//! above what it receives, so going up has to be tried, not computed.

use std::time::{Duration, Instant};

use flotilla_model::unit::Bitrate;

/// The estimate must lie below this share of the sent rate, in percent, to count as too low.
const LOW_PERCENT: u64 = 80;
/// Loss above which the path is taken to be full, 1/256: 15 %.
const LOSS_HIGH: u8 = 38;
/// Checks in a row that must agree before a layer is given up.
const STRIKES: u32 = 3;
/// First and longest pause before trying to go up.
const RAISE_AFTER: Duration = Duration::from_secs(8);
const RAISE_AFTER_MAX: Duration = Duration::from_secs(120);
/// A fall within this time of a rise is blamed on the rise.
const BLAME: Duration = Duration::from_secs(10);
/// An estimate older than this says nothing.
const STALE: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Nothing.
    Stay,
    /// One track down one layer.
    Lower,
    /// One track up one layer.
    Raise,
}

/// State of one subscriber's path.
#[derive(Debug)]
pub struct Congestion {
    estimate: Option<(Bitrate, Instant)>,
    strikes: u32,
    pause: Duration,
    /// When something last went wrong or was changed.
    changed: Option<Instant>,
    raised: Option<Instant>,
}

impl Default for Congestion {
    fn default() -> Self {
        Self {
            estimate: None,
            strikes: 0,
            pause: RAISE_AFTER,
            changed: None,
            raised: None,
        }
    }
}

impl Congestion {
    /// The subscriber reported an estimate.
    pub fn estimated(&mut self, now: Instant, bitrate: Bitrate) {
        self.estimate = Some((bitrate, now));
    }

    /// Judges once a second: `sent` is what goes to the peer, `fraction_lost` the worst of its
    /// reports, `is_lowered` whether a track stands below what is wanted.
    pub fn judge(
        &mut self,
        now: Instant,
        sent: Bitrate,
        fraction_lost: u8,
        is_lowered: bool,
    ) -> Advice {
        let estimate = self
            .estimate
            .filter(|(_, at)| now.saturating_duration_since(*at) < STALE)
            .map(|(bitrate, _)| bitrate);
        let is_low = estimate.is_some_and(|estimate| estimate.0 * 100 < sent.0 * LOW_PERCENT);
        if is_low || (estimate.is_some() && fraction_lost > LOSS_HIGH) {
            self.strikes += 1;
            if self.strikes >= STRIKES {
                self.strikes = 0;
                let is_failed_rise = self
                    .raised
                    .take()
                    .is_some_and(|at| now.saturating_duration_since(at) < BLAME);
                if is_failed_rise {
                    self.pause = (self.pause * 2).min(RAISE_AFTER_MAX);
                }
                self.changed = Some(now);
                return Advice::Lower;
            }
            return Advice::Stay;
        }
        self.strikes = 0;
        let is_calm = self
            .changed
            .is_none_or(|at| now.saturating_duration_since(at) >= self.pause);
        if is_lowered && is_calm {
            self.changed = Some(now);
            self.raised = Some(now);
            return Advice::Raise;
        }
        if !is_lowered && is_calm {
            self.pause = RAISE_AFTER;
        }
        Advice::Stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of fixed capacity whose estimate is what a receiver would report, and a sender with
    /// three layers that follows the advice.
    fn simulate(capacity: u64, seconds: u64) -> Vec<usize> {
        let layers = [150_000, 500_000, 1_700_000];
        let mut now = crate::test_epoch();
        let mut congestion = Congestion::default();
        let mut layer = 2;
        let mut history = vec![];
        for _ in 0..seconds {
            let sent: u64 = layers[layer];
            let received = sent.min(capacity);
            let estimate = (received * 3 / 2).min(capacity);
            let lost = (sent - received) * 256 / sent;
            congestion.estimated(now, Bitrate(estimate));
            match congestion.judge(now, Bitrate(sent), lost as u8, layer < 2) {
                Advice::Lower => layer = layer.saturating_sub(1),
                Advice::Raise => layer += 1,
                Advice::Stay => (),
            }
            history.push(layer);
            now += Duration::from_secs(1);
        }
        history
    }

    #[test]
    fn a_wide_path_is_left_alone() {
        assert!(simulate(5_000_000, 120).iter().all(|layer| *layer == 2));
    }

    #[test]
    fn a_narrow_path_settles_on_the_layer_that_fits() {
        let history = simulate(700_000, 600);
        assert_eq!(history[4], 1);
        let at_top = history[60..].iter().filter(|layer| **layer == 2).count();
        assert!(at_top < 40, "tries too often: {at_top} s of 540");
        assert!(history[60..].iter().all(|layer| *layer >= 1));
    }

    #[test]
    fn without_an_estimate_nothing_is_lowered() {
        let mut now = crate::test_epoch();
        let mut congestion = Congestion::default();
        for _ in 0..20 {
            assert_eq!(
                congestion.judge(now, Bitrate(1_000_000), 200, false),
                Advice::Stay
            );
            now += Duration::from_secs(1);
        }
    }
}
