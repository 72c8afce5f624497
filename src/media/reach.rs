//! Whether others hear this node, as far as it can know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When this node was last known to be heard by those who decide. Cheap to clone; a look costs one
/// atomic load.
#[derive(Clone, Debug)]
pub struct Reach {
    base: Instant,
    /// Nanoseconds after `base`.
    heard: Arc<AtomicU64>,
}

impl Reach {
    /// Nobody has heard this node yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            base: now,
            heard: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Others heard what this node sent at this time.
    pub fn heard(&self, sent: Instant) {
        self.heard.store(self.nanos(sent), Ordering::Relaxed);
    }

    /// There is nobody who would have to hear this node.
    pub fn alone(&self) {
        self.heard.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether others have heard something that was sent at this time or later.
    #[must_use]
    pub fn is_heard_since(&self, at: Instant) -> bool {
        self.nanos(at) <= self.heard.load(Ordering::Relaxed)
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since: Duration = at.saturating_duration_since(self.base);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_newer_than_the_last_answer_is_in_doubt() {
        let start = crate::test_epoch();
        let reach = Reach::new(start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(!reach.is_heard_since(at(1)));
        reach.heard(at(50));
        assert!(reach.is_heard_since(at(50)) && !reach.is_heard_since(at(51)));
        reach.alone();
        assert!(reach.is_heard_since(at(1_000_000)));
        reach.heard(at(60));
        assert!(reach.is_heard_since(at(60)) && !reach.is_heard_since(at(61)));
    }
}
