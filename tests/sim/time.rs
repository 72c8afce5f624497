//! Virtual time: microseconds since a run began, and the instants and wall clocks made of them.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

use flotilla_model::id::UnixMillis;

/// A moment of a run, in microseconds since its beginning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);

/// Milliseconds as a span of virtual time.
#[must_use]
pub const fn ms(count: u64) -> u64 {
    count * 1000
}

/// Seconds as a span of virtual time.
#[must_use]
pub const fn secs(count: u64) -> u64 {
    count * 1_000_000
}

impl Add<u64> for Time {
    type Output = Self;

    fn add(self, micros: u64) -> Self {
        Self(self.0 + micros)
    }
}

impl Sub for Time {
    type Output = u64;

    fn sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where a run's instants count from. Only differences between them matter.
#[derive(Clone, Copy, Debug)]
pub struct Base(Instant);

impl Base {
    /// A base far enough from the machine's beginning that earlier instants exist.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(3600))
    }

    /// The instant of a moment.
    #[must_use]
    pub fn instant(self, time: Time) -> Instant {
        self.0 + Duration::from_micros(time.0)
    }

    /// The moment of an instant; the beginning for earlier ones.
    #[must_use]
    pub fn time(self, instant: Instant) -> Time {
        let since = instant.saturating_duration_since(self.0);
        // Up, so that a timer never comes a fraction too early and is set once more.
        Time(since.as_nanos().div_ceil(1000) as u64)
    }
}

impl Default for Base {
    fn default() -> Self {
        Self::new()
    }
}

/// Wall clock at the beginning of every run.
const WALL: u64 = 1_700_000_000_000;

/// A node's wall clock: it runs at another rate and may jump; nothing but stamps may depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock {
    /// Ahead of true time, milliseconds.
    pub offset_ms: i64,
    /// Gains so many microseconds per second.
    pub drift_ppm: i64,
}

impl WallClock {
    /// What it shows.
    #[must_use]
    pub const fn at(self, time: Time) -> UnixMillis {
        let drifted = (time.0 / 1000) as i64 * self.drift_ppm / 1_000_000;
        let shown = WALL as i64 + (time.0 / 1000) as i64 + drifted + self.offset_ms;
        UnixMillis(shown as u64)
    }
}
