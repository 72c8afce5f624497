//! One run from its plan to its verdict: faults with every invariant checked at every step, then healing,
//! and what has to hold once all has settled. And the shortening of plans that fail.

use std::time::Instant;

use crate::plan::Plan;
use crate::time::{Time, ms};
use crate::witness::{Coverage, Violation};
use crate::world::World;

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
    /// Hash of everything that happened.
    pub trace: u64,
    /// Simulated microseconds.
    pub simulated: u64,
    /// What it met.
    pub coverage: Coverage,
}

/// Runs a plan to its end, or to the first violation.
#[must_use]
pub fn run(plan: &Plan) -> Outcome {
    run_telling(plan, false)
}

/// The same, told in lines on standard error if wanted.
#[must_use]
pub fn run_telling(plan: &Plan, tells: bool) -> Outcome {
    let end = Time(ms(plan.end_ms()));
    let mut world = World::new(plan.clone());
    world.witness.tells = tells;
    let violation = match world.run_until(end) {
        Err(violation) => Some(violation),
        Ok(()) => {
            let mut witness = std::mem::take(&mut world.witness);
            let violation = witness.end(&world);
            world.witness = witness;
            violation
        }
    };
    for node in world.nodes.values() {
        let hash = flotilla_model::encoding::state_hash(node.replica.full_state());
        let place = node.replica.applied();
        world_mark(&mut world.trace_end, hash ^ place);
    }
    Outcome {
        violation,
        trace: world.trace() ^ world.trace_end,
        simulated: world.now.0,
        coverage: world.witness.coverage,
    }
}

const fn world_mark(trace: &mut u64, value: u64) {
    *trace = (*trace ^ value)
        .wrapping_mul(0x0000_0100_0000_01b3)
        .rotate_left(5);
}

/// A plan with fewer, shorter faults and less around them that breaks the same invariant. Tries until
/// nothing can be left out or `tries` runs have been made.
#[must_use]
pub fn shrink(plan: &Plan, violation: &Violation, tries: u32) -> (Plan, Violation) {
    let mut best = (plan.clone(), violation.clone());
    let mut left = tries;
    loop {
        let before = best.0.clone();
        for candidate in smaller(&best.0) {
            if left == 0 {
                return best;
            }
            left -= 1;
            if let Some(found) = run(&candidate).violation
                && found.invariant == violation.invariant
            {
                best = (candidate, found);
                break;
            }
        }
        if best.0 == before {
            return best;
        }
    }
}

fn smaller(plan: &Plan) -> Vec<Plan> {
    let mut candidates = Vec::new();
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut candidate = plan.clone();
        change(&mut candidate);
        candidate
    };
    let count = plan.faults.len();
    if count > 1 {
        candidates.push(with(&|plan| {
            plan.faults.truncate(count / 2);
        }));
        candidates.push(with(&|plan| {
            plan.faults.drain(..count / 2);
        }));
    }
    for number in 0..count {
        candidates.push(with(&|plan| {
            plan.faults.remove(number);
        }));
    }
    if plan.clients > 2 {
        candidates.push(with(&|plan| plan.clients -= 1));
    }
    if plan.nodes > 3 {
        candidates.push(with(&|plan| plan.nodes -= 1));
    }
    for number in 0..count {
        if plan.faults[number].for_ms > 200 {
            candidates.push(with(&|plan| plan.faults[number].for_ms /= 2));
        }
    }
    candidates
}

/// What a range of seeds gave.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Runs.
    pub runs: u64,
    /// Simulated microseconds.
    pub simulated: u64,
    /// Seconds of a processor.
    pub seconds: f64,
    /// Runs that broke an invariant.
    pub failed: Vec<(Plan, Violation)>,
    /// What they met.
    pub coverage: Coverage,
}

impl Record {
    /// Takes a run.
    pub fn add(&mut self, plan: &Plan, outcome: Outcome, began: Instant) {
        self.runs += 1;
        self.simulated += outcome.simulated;
        self.seconds += began.elapsed().as_secs_f64();
        self.coverage.add(&outcome.coverage);
        if let Some(violation) = outcome.violation {
            self.failed.push((plan.clone(), violation));
        }
    }

    /// Adds another one's.
    pub fn merge(&mut self, other: Self) {
        self.runs += other.runs;
        self.simulated += other.simulated;
        self.seconds += other.seconds;
        self.failed.extend(other.failed);
        self.coverage.add(&other.coverage);
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let simulated = self.simulated as f64 / 1e6;
        format!(
            "{} runs, {:.2} simulated cluster-hours, {:.0} simulated seconds per second of a thread, {} violations",
            self.runs,
            simulated / 3600.0,
            simulated / self.seconds.max(1e-9),
            self.failed.len(),
        )
    }
}

/// Runs seeds on so many threads. Stops early once `most` runs have failed.
#[must_use]
pub fn run_seeds(from: u64, count: u64, threads: u64, most: usize) -> Record {
    let threads = threads.max(1);
    let work = |thread: u64| {
        let mut record = Record::default();
        let mut seed = from + thread;
        while seed < from + count && record.failed.len() < most {
            let plan = Plan::of_seed(seed);
            let began = Instant::now();
            let outcome = run(&plan);
            record.add(&plan, outcome, began);
            seed += threads;
        }
        record
    };
    let mut record = Record::default();
    std::thread::scope(|scope| {
        let under_way: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        for thread in under_way {
            match thread.join() {
                Ok(part) => record.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    record.failed.sort_by_key(|(plan, _)| plan.seed);
    record
}
