//! Wall-clock time as the leader stamps it, with an offset for tests.
//!
//! Only [`crate::proposer`] (stamps), [`crate::membership`] (skew) and [`crate::duty`] (deadlines)
//! ask for it; agreement itself runs on the monotonic clock of the runtime.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flotilla_model::id::UnixMillis;

/// Stamps follow a wall clock that was set by at most one second in so many. A greater number makes a
/// wrong clock do less harm, and a right one take longer to be followed.
const SLEW: u32 = 20;

/// The machine's wall clock, shifted by an offset that is zero outside tests.
#[derive(Clone, Default, Debug)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
    /// Shared by all who stamp, so that what they say never contradicts; held for a few additions.
    steady: Arc<Mutex<Option<Steady>>>,
}

impl Clock {
    /// Now, as the machine says.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.shifted(wall())
    }

    /// Now, for stamps and deadlines: goes on with the monotonic clock from where it began and follows the wall
    /// clock slowly, so that a clock that jumps neither closes a room nor ends a revocation.
    #[must_use]
    pub fn steady(&self) -> UnixMillis {
        let (now, wall) = (Instant::now(), wall());
        let mut steady = self.steady.lock().unwrap_or_else(|held| held.into_inner());
        let steady = steady.get_or_insert(Steady {
            at: now,
            told: wall,
        });
        self.shifted(steady.advance(now, wall))
    }

    fn shifted(&self, time: Duration) -> UnixMillis {
        let now = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let shifted = now.saturating_add(self.offset_ms.load(Ordering::Relaxed));
        UnixMillis(u64::try_from(shifted).unwrap_or(0))
    }

    /// Shifts the clock by `offset_ms` from the machine's.
    pub fn set_offset(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

fn wall() -> Duration {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap_or_default()
}

/// A wall clock that does not jump: what it told last, and when.
#[derive(Clone, Copy, Debug)]
struct Steady {
    at: Instant,
    told: Duration,
}

impl Steady {
    /// The time at `now`, when the machine's wall clock says `wall`.
    fn advance(&mut self, now: Instant, wall: Duration) -> Duration {
        let elapsed = now.saturating_duration_since(self.at);
        let expected = self.told + elapsed;
        let slew = elapsed / SLEW;
        self.told = wall.clamp(expected.saturating_sub(slew), expected + slew);
        self.at = self.at.max(now);
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_shifts_both_ways() {
        let clock = Clock::default();
        let straight = clock.now().0;
        clock.set_offset(60_000);
        assert!(clock.now().0 >= straight + 60_000);
        assert!(clock.steady().0 >= straight + 60_000);
        clock.set_offset(i64::MIN);
        assert_eq!(clock.now(), UnixMillis(0));
    }

    /// A wall clock that is ahead by `jump` from the first second to the third; what is told at each second.
    fn told(jump: i64) -> Vec<i64> {
        let (start, epoch) = (Instant::now(), 1_000_000_000);
        let mut steady = Steady {
            at: start,
            told: Duration::from_secs(epoch),
        };
        (0..6)
            .map(|second: i64| {
                let ahead = if (1..3).contains(&second) { jump } else { 0 };
                let wall = epoch.saturating_add_signed(second + ahead);
                let now = start + Duration::from_secs(second.unsigned_abs());
                let told = steady.advance(now, Duration::from_secs(wall));
                told.as_millis() as i64 - epoch as i64 * 1000 - second * 1000
            })
            .collect()
    }

    #[test]
    fn a_jump_is_followed_slowly_and_back() {
        assert_eq!(told(86_400), [0, 50, 100, 50, 0, 0]);
        assert_eq!(told(-86_400), [0, -50, -100, -50, 0, 0]);
    }

    #[test]
    fn a_small_step_is_followed_at_once() {
        let start = Instant::now();
        let mut steady = Steady {
            at: start,
            told: Duration::from_secs(100),
        };
        let now = start + Duration::from_secs(10);
        let wall = Duration::from_millis(110_400);
        assert_eq!(steady.advance(now, wall), wall);
    }
}
