//! Wall-clock time as the leader stamps it, with an offset for tests.
//!
//! Only [`crate::proposer`] (stamps), [`crate::membership`] (skew) and [`crate::duty`] (deadlines)
//! ask for it; agreement itself runs on the monotonic clock of the runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use flotilla_model::id::UnixMillis;

/// The machine's wall clock, shifted by an offset that is zero outside tests.
#[derive(Clone, Default, Debug)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        let shifted = now.saturating_add(self.offset_ms.load(Ordering::Relaxed));
        UnixMillis(u64::try_from(shifted).unwrap_or(0))
    }

    /// Shifts the clock by `offset_ms` from the machine's.
    pub fn set_offset(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
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
        clock.set_offset(i64::MIN);
        assert_eq!(clock.now(), UnixMillis(0));
    }
}
