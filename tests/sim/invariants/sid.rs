//! Sids are stable: a client that resumes gets its own session back, and is told to join anew only if it
//! was away for long, or there was nobody to decide.

use super::Invariant;
use crate::time::secs;
use crate::witness::{Fact, Scene};

/// So long a majority must have been able to decide.
const DECIDED: u64 = secs(25);
/// A client that was away for less must get its session back.
const AWAY: u64 = secs(15);

/// Looks at joins and resumes.
#[derive(Default)]
pub struct Stable;

impl Invariant for Stable {
    fn name(&self) -> &'static str {
        "sid-stable"
    }

    fn see(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Joined {
                client,
                sid,
                instead_of: Some(before),
            } => Err(format!("client {client} resumed {before} and is {sid} now")),
            Fact::ToldToRejoin {
                client,
                sid,
                unwell_since,
            } => {
                let away = unwell_since.map_or(0, |since| scene.now - since);
                if scene.had_quorum_for(DECIDED) && away < AWAY {
                    return Err(format!(
                        "client {client} ({sid}) is told to join anew after {} ms",
                        away / 1000
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
