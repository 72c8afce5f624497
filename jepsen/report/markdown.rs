//! A run as Markdown: verdict, table, what each judge looked at and found.

use std::fmt::Write as _;

use super::table;
use crate::run::conduct::Outcome;
use crate::run::timeline::Outcome as Installation;

/// The page.
pub(crate) fn of(outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let mut text = format!(
        "# Run {}\n\nSeed {}, {} nodes, {} faults planned, {:.0} s; {:.0} operations a second before the first \
         fault. Again: `chaos run --plan plan.json`.\n\n",
        plan.name,
        plan.seed,
        plan.nodes,
        plan.steps().count(),
        outcome.lasted_s,
        outcome.baseline_rate
    );
    text.push_str(&table::markdown(&table::rows(&[outcome])));
    text.push_str("\n| judge | looked at | violations | undecided |\n|---|---|---|---|\n");
    for opinion in &outcome.opinions {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            opinion.judge,
            opinion.looked_at,
            opinion.count,
            opinion.undecided.len()
        );
    }
    for opinion in &outcome.opinions {
        for violation in &opinion.violations {
            let _ = writeln!(text, "\n- **violated** ({}): {violation}", opinion.judge);
        }
        for undecided in &opinion.undecided {
            let _ = writeln!(text, "\n- undecided ({}): {undecided}", opinion.judge);
        }
    }
    text.push_str("\n| fault | for, s | whole again after, s | remarks |\n|---|---|---|---|\n");
    for fault in &outcome.faults {
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        let mut remarks = fault.remarks.clone();
        match &fault.outcome {
            Installation::Installed => {}
            Installation::Missing(why) => remarks.push(format!("not covered: {why}")),
            Installation::Indeterminate(why) => remarks.push(format!("perhaps in force: {why}")),
        }
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.2} | {} |",
            fault.told,
            seconds(fault.at, fault.healed),
            seconds(fault.healed, fault.recovered),
            remarks.join("; ").replace('|', "\\|")
        );
    }
    for (error, times) in &outcome.errors {
        let _ = writeln!(text, "\n- logged as an error, {times} times: {error}");
    }
    for fault in &outcome.not_covered {
        let _ = writeln!(text, "\n- not covered here: {fault}");
    }
    text
}
