//! I19: time in the log never falls, whatever leaders' clocks do.

use flotilla_model::id::UnixMillis;

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Newest time in the log.
#[derive(Default)]
pub struct Rises {
    at: UnixMillis,
    seen: u64,
}

impl Invariant for Rises {
    fn name(&self) -> &'static str {
        "log-time"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied { advance, .. } = fact else {
            return Ok(());
        };
        let entry = &advance.entry;
        if entry.index <= self.seen {
            return Ok(());
        }
        self.seen = entry.index;
        if entry.at < self.at {
            return Err(format!(
                "entry {} is of {}, after {}",
                entry.index, entry.at, self.at
            ));
        }
        self.at = entry.at;
        Ok(())
    }
}
