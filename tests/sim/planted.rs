//! Whether planted bugs are caught: each has a plan, kept as a file, under which an invariant breaks with
//! the bug and none without it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bug::Bug;
use crate::plan::Plan;
use crate::run::{run, shrink};
use crate::witness::Violation;

/// A bug that was caught.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Which.
    pub bug: Bug,
    /// By what.
    pub violation: Violation,
    /// How long it took on this machine.
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
/// It is not caught, or the plan fails without it as well.
pub fn catch(folder: &Path, bug: Bug) -> Result<Caught, String> {
    let plan = plan_of(folder, bug)?;
    let began = Instant::now();
    let outcome = run(&plan);
    let took = began.elapsed();
    let violation = outcome
        .violation
        .ok_or_else(|| format!("{bug} is not caught by its plan"))?;
    let clean = Plan { bug: None, ..plan };
    match run(&clean).violation {
        None => Ok(Caught {
            bug,
            violation,
            took,
        }),
        Some(violation) => Err(format!("the plan of {bug} fails without it: {violation}")),
    }
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
