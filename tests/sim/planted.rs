//! Whether planted bugs are caught: each has a plan, kept as a file, under which an invariant breaks with
//! the bug and none without it, with one of the first seeds from the plan's on.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bug::Bug;
use crate::plan::Plan;
use crate::run::{run, shrink};
use crate::witness::Violation;

/// Seeds that a plan is tried with. When a timing changes anywhere, another seed than the plan's may be the one that
/// shows the bug; a plan that none of so many does not show it with does not aim at it any more.
const SEEDS_MAX: u64 = 400;

/// A bug that was caught.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Which.
    pub bug: Bug,
    /// By what.
    pub violation: Violation,
    /// How many seeds were tried.
    pub seeds: u64,
    /// How long all of them took on this machine.
    pub took: Duration,
}

/// The plan kept for a bug.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn plan_of(folder: &Path, bug: Bug) -> Result<Plan, String> {
    let path = folder.join(format!("{bug}.plan"));
    let text =
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let plan: Plan = text.parse()?;
    if plan.bug == Some(bug) {
        Ok(plan)
    } else {
        Err(format!("{} is not a plan for {bug}", path.display()))
    }
}

/// Runs a bug's plan with and without it.
///
/// # Errors
/// It is not caught by any seed under which the plan passes without it.
pub fn catch(folder: &Path, bug: Bug) -> Result<Caught, String> {
    let plan = plan_of(folder, bug)?;
    let began = Instant::now();
    for tried in 0..SEEDS_MAX {
        let plan = Plan {
            seed: plan.seed + tried,
            ..plan.clone()
        };
        let Some(violation) = run(&plan).violation else {
            continue;
        };
        let took = began.elapsed();
        let clean = Plan { bug: None, ..plan };
        if run(&clean).violation.is_none() {
            return Ok(Caught {
                bug,
                violation,
                seeds: tried + 1,
                took,
            });
        }
    }
    Err(format!(
        "{bug} is not caught by its plan under {SEEDS_MAX} seeds"
    ))
}

/// Looks for a seed that catches a bug and passes without it; gives the shortened plan and how many seeds
/// it took.
#[must_use]
pub fn hunt(bug: Bug, from: u64, seeds: u64) -> Option<(Plan, Violation, u64)> {
    for seed in from..from + seeds {
        let plan = Plan {
            bug: Some(bug),
            ..Plan::of_seed(seed)
        };
        let Some(violation) = run(&plan).violation else {
            continue;
        };
        let (plan, violation) = shrink(&plan, &violation, 60);
        let clean = Plan {
            bug: None,
            ..plan.clone()
        };
        if run(&clean).violation.is_none() {
            return Some((plan, violation, seed - from + 1));
        }
    }
    None
}
