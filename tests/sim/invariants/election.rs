//! I14: voters that can talk to each other find a leader, however far apart they are (Raft §9.3: that is what
//! randomized timeouts are for).

use super::Invariant;
use crate::time::secs;
use crate::witness::{Fact, Scene};

/// So long it may take: two dozen rounds of the longest timeout, of which every second one ends well where each
/// message takes a third of the time by which timeouts differ.
const MOST: u64 = secs(15);

/// Looks at the whole.
#[derive(Default)]
pub struct Ends;

impl Invariant for Ends {
    fn name(&self) -> &'static str {
        "election-ends"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Watched { leaderless } if *leaderless > MOST => Err(format!(
                "nobody leads for {} ms, and a majority could talk",
                leaderless / 1000
            )),
            _ => Ok(()),
        }
    }
}
