//! The table of `jepsen/README.md`: for each kind of fault how often, and how long what was missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::nemesis::Class;
use crate::run::conduct::Outcome;
use crate::run::timeline::{Outcome as Installation, Spread};

/// One kind of fault on clusters of one size.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) fault: String,
    pub(crate) nodes: u64,
    /// Faults surely in force.
    pub(crate) n: usize,
    /// Faults of which that is not known.
    pub(crate) indeterminate: usize,
    /// Why none was: it is not covered.
    pub(crate) missing: Option<String>,
    /// Longest time without an acknowledged write, in milliseconds, from the fault to the recovery.
    pub(crate) unavailable: Spread,
    /// From the end of the fault until every node reads and writes, in milliseconds.
    pub(crate) recovery: Spread,
    /// Longest silence of each media probe, less its cadence, in milliseconds.
    pub(crate) media: Spread,
    /// Violations of runs that had this fault.
    pub(crate) violations: usize,
}

/// The rows of some runs; overlapping faults are one row.
pub(crate) fn rows(outcomes: &[&Outcome]) -> Vec<Row> {
    let mut found: BTreeMap<(Option<Class>, u64), Group> = BTreeMap::new();
    for outcome in outcomes {
        let violations: usize = outcome.opinions.iter().map(|one| one.count).sum();
        let mut keys = Vec::new();
        for (fault, gaps) in outcome.faults.iter().zip(&outcome.gaps_ms) {
            let key = ((!fault.combined).then_some(fault.class), outcome.plan.nodes);
            let group = found.entry(key).or_default();
            keys.push(key);
            match &fault.outcome {
                Installation::Installed => {
                    group
                        .unavailable
                        .push(fault.unavailable_ns(&outcome.operations) as f64 / 1e6);
                    let recovery = fault.recovered.saturating_sub(fault.healed);
                    group.recovery.push(recovery as f64 / 1e6);
                    group.media.extend(gaps);
                }
                Installation::Missing(why) => group.missing = Some(why.clone()),
                Installation::Indeterminate(_) => group.indeterminate += 1,
            }
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            found.entry(key).or_default().violations += violations;
        }
    }
    found
        .into_iter()
        .map(|((class, nodes), group)| Row {
            fault: class.map_or_else(|| "combined".to_owned(), Class::name),
            nodes,
            n: group.unavailable.len(),
            indeterminate: group.indeterminate,
            missing: group.missing.filter(|_| group.unavailable.is_empty()),
            unavailable: Spread::of(group.unavailable),
            recovery: Spread::of(group.recovery),
            media: Spread::of(group.media),
            violations: group.violations,
        })
        .collect()
}

#[derive(Default)]
struct Group {
    unavailable: Vec<f64>,
    recovery: Vec<f64>,
    media: Vec<f64>,
    missing: Option<String>,
    indeterminate: usize,
    violations: usize,
}

fn spread(spread: Spread) -> String {
    format!("{:.0} / {:.0} / {:.0}", spread.p50, spread.p99, spread.max)
}

/// The table in Markdown.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| fault | nodes | n | no write acknowledged, ms (p50 / p99 / max) | whole again after, ms | media silent, ms \
         (n streams) | violations |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = match &row.missing {
            Some(why) => writeln!(
                text,
                "| {} | {} | **not covered** | {why} | | | |",
                row.fault, row.nodes
            ),
            None => writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} ({}) | {} |",
                row.fault,
                row.nodes,
                row.n,
                spread(row.unavailable),
                spread(row.recovery),
                spread(row.media),
                row.media.n,
                row.violations
            ),
        };
    }
    text
}

/// The table for a terminal.
pub(crate) fn text(rows: &[Row]) -> String {
    let head = |cells: [&str; 7]| {
        let [fault, nodes, n, unavailable, recovery, media, violations] = cells;
        format!(
            "{fault:18} {nodes:>5} {n:>4}  {unavailable:>20}  {recovery:>20}  {media:>20}  {violations}\n"
        )
    };
    let figures = "p50 / p99 / max, ms";
    let mut text = head([
        "fault",
        "nodes",
        "n",
        "no write for",
        "whole again after",
        "media silent",
        "violations",
    ]);
    text.push_str(&head(["", "", "", figures, figures, figures, ""]));
    for row in rows {
        match &row.missing {
            Some(why) => {
                let _ = writeln!(
                    text,
                    "{:18} {:>5}    -  NOT COVERED: {why}",
                    row.fault, row.nodes
                );
            }
            None => text.push_str(&head([
                &row.fault,
                &row.nodes.to_string(),
                &row.n.to_string(),
                &spread(row.unavailable),
                &spread(row.recovery),
                &spread(row.media),
                &row.violations.to_string(),
            ])),
        }
    }
    text
}
