//! How late this process itself is run: time in which others seemed silent because nobody listened.
//!
//! A machine that is short of processors, or stopped altogether, runs a watcher late; what arrived
//! meanwhile is read late, too. [`super::Signs`] keeps the record, failure detection feeds it, and
//! silence is counted without it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Lateness that any timer has; more counts as a delay.
const SLACK: Duration = Duration::from_millis(10);
/// Delays kept. With the expected interval of tens of milliseconds that is several seconds of a
/// machine that is late every time; the oldest go first.
const KEPT_MAX: usize = 256;
/// For so long a delay casts doubt on the others' punctuality.
const DOUBT: Duration = Duration::from_secs(3);
/// A shorter delay casts none: every machine has them.
const DOUBT_MIN: Duration = Duration::from_millis(100);

/// The record of this process's delays.
#[derive(Clone, Default)]
pub(super) struct Delays {
    looked: Option<Instant>,
    late: VecDeque<(Instant, Duration)>,
}

impl Delays {
    /// A watcher that should look every `expected` looks at `now`.
    pub(super) fn look(&mut self, now: Instant, expected: Duration) {
        let before = self.looked.replace(now);
        let Some(before) = before else {
            return;
        };
        let late = now.saturating_duration_since(before + expected);
        if late <= SLACK {
            return;
        }
        if self.late.len() >= KEPT_MAX {
            self.late.pop_front();
        }
        self.late.push_back((now, late));
    }

    /// The delays noticed after `at`, none of them counted from before it.
    pub(super) fn since(&self, at: Instant) -> Duration {
        self.late
            .iter()
            .rev()
            .take_while(|(noticed, _)| *noticed > at)
            .map(|(noticed, late)| (*late).min(noticed.saturating_duration_since(at)))
            .sum()
    }

    /// How much longer than usual others may be silent, since this process was late itself a moment ago.
    /// Processes that share a machine, or machines that share a host, are starved together and get
    /// their turns one after the other: who wakes up first must not condemn who wakes up last.
    pub(super) fn allowance(&self, now: Instant) -> Duration {
        let recent = self
            .late
            .iter()
            .rev()
            .take_while(|(noticed, _)| now.saturating_duration_since(*noticed) < DOUBT);
        let longest = recent.map(|(_, late)| *late).max().unwrap_or_default();
        if longest < DOUBT_MIN {
            Duration::ZERO
        } else {
            longest * 2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(25);

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_stopped_process_blames_nobody() {
        let start = Instant::now();
        let mut delays = Delays::default();
        delays.look(start, LOOK);
        delays.look(start + ms(25), LOOK);
        // Heard just before ten seconds in which nothing ran.
        let heard = start + ms(30);
        let awake = start + ms(10_000);
        delays.look(awake, LOOK);
        let silence = (awake - heard) - delays.since(heard);
        assert!(silence <= ms(25), "{silence:?}");
        // From here on silence counts again.
        let later = awake + ms(400);
        for step in 1..=16 {
            delays.look(awake + LOOK * step, LOOK);
        }
        assert!((later - heard) - delays.since(heard) >= ms(400));
        assert_eq!(delays.since(awake), Duration::ZERO);
    }

    #[test]
    fn a_busy_machine_is_given_what_it_was_late() {
        let start = Instant::now();
        let mut delays = Delays::default();
        // Every look comes 75 ms late: three quarters of the time do not count.
        for step in 0..=10 {
            delays.look(start + ms(100) * step, LOOK);
        }
        assert_eq!(delays.since(start), ms(750));
        assert_eq!(delays.since(start + ms(500)), ms(375));
    }

    #[test]
    fn what_any_timer_is_late_does_not_count() {
        let start = Instant::now();
        let mut delays = Delays::default();
        for step in 0..=100 {
            delays.look(start + ms(33) * step, LOOK);
        }
        assert_eq!(delays.since(start), Duration::ZERO);
    }

    #[test]
    fn who_was_late_itself_gives_others_time() {
        let start = Instant::now();
        let mut delays = Delays::default();
        delays.look(start, LOOK);
        delays.look(start + ms(75), LOOK);
        assert_eq!(delays.allowance(start + ms(75)), Duration::ZERO);
        let awake = start + ms(800);
        delays.look(awake, LOOK);
        assert_eq!(delays.allowance(awake), ms(1_400));
        delays.look(awake + ms(225), LOOK);
        assert_eq!(delays.allowance(awake + ms(2_999)), ms(1_400));
        assert_eq!(delays.allowance(awake + ms(3_100)), ms(400));
        assert_eq!(delays.allowance(awake + ms(3_300)), Duration::ZERO);
    }

    #[test]
    fn the_record_is_bounded() {
        let start = Instant::now();
        let mut delays = Delays::default();
        for step in 0..10_000 {
            delays.look(start + ms(100) * step, LOOK);
        }
        assert_eq!(delays.late.len(), KEPT_MAX);
    }
}
