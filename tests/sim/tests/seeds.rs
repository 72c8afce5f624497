//! Seeds hold every invariant, one seed is one run, and the runs met what they are meant to meet.

use sim::plan::Plan;
use sim::run::{run, run_seeds, shrink};

/// How many seeds run with every change.
const SEEDS: u64 = 500;

#[test]
#[expect(clippy::print_stdout, reason = "the record of the seeds")]
fn seeds_hold_every_invariant() {
    let record = run_seeds(0, SEEDS, 2, 1);
    println!("{}", record.line());
    if let Some((plan, violation)) = record.failed.first() {
        let (short, found) = shrink(plan, violation, 60);
        panic!(
            "seed {}: {violation}\nshortened: {found}\n{short}again: make sim FROM={} SEEDS=1",
            plan.seed, plan.seed
        );
    }
    let met = &record.coverage;
    for (what, count, least) in [
        ("joins", met.joins, 2000),
        ("resumes", met.resumes, 1000),
        ("takeovers", met.takeovers, 500),
        ("adoptions", met.adoptions, 500),
        ("elections", met.elections, 300),
        ("leaders hit by faults", met.leaders_hit, 300),
        ("snapshots installed", met.snapshots, 50),
        ("ways round cut links", met.detours, 100),
        ("leases lapsed", met.lapses, 200),
        ("times clients were sent away", met.sent_away, 20),
        ("messages received", met.received, 100_000),
        ("packets relayed", met.relayed, 50_000),
        ("revocations", met.revocations, 50),
        ("nodes removed", met.removed, 5),
        ("nodes added", met.added, 5),
    ] {
        assert!(
            count >= least,
            "only {count} {what}, {least} expected: the runs say little"
        );
    }
    for cause in ["crashed", "unreachable"] {
        let count = met.nodes_lost.get(cause).copied().unwrap_or(0);
        assert!(count >= 50, "only {count} nodes were {cause}");
    }
    for (kind, name) in sim::plan::Kind::ALL {
        assert!(met.faults.contains_key(name), "no {kind:?} at all");
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 17, 171, 1717] {
        let plan = Plan::of_seed(seed);
        let (one, other) = (run(&plan), run(&plan));
        assert_eq!(
            one.trace, other.trace,
            "seed {seed} gives two different runs"
        );
        assert_eq!(one.coverage.received, other.coverage.received);
    }
    let traces: std::collections::BTreeSet<u64> = (0..20)
        .map(|seed| run(&Plan::of_seed(seed)).trace)
        .collect();
    assert_eq!(traces.len(), 20, "different seeds, different runs");
}
