//! The matrix: every kind of fault alone, so many times that percentiles mean something, and runs of
//! overlapping ones, on clusters of three and of five nodes.
//!
//! Kinds that hurt the same part of a machine share a cluster, one fault after the other: what one of them leaves
//! behind is met by the next. Each run has its own report; the table is over all of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::plan::Plan;
use super::{Common, carry_out};
use crate::doctor::Doctor;
use crate::lab::{self, Names};
use crate::nemesis::Class;
use crate::report::table::{self, Row};
use crate::{Verdict, outside, say};

/// Options of `chaos matrix`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What to draw the plans from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each kind of fault is injected alone, over all sizes.
    #[arg(long, default_value_t = 20)]
    times: u32,
    /// Runs of overlapping faults, over all sizes.
    #[arg(long, default_value_t = 10)]
    combined: u32,
    /// Sizes of clusters.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 5])]
    sizes: Vec<u64>,
    /// Only these families of faults.
    #[arg(long, value_delimiter = ',')]
    families: Vec<String>,
    /// The size that the process in the namespaces does.
    #[arg(long, hide = true)]
    size: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Kinds of faults that share a cluster.
const FAMILIES: [(&str, &[Class]); 8] = [
    (
        "process",
        &[Class::Kill, Class::Pause, Class::RollingRestart],
    ),
    (
        "partition",
        &[
            Class::Halves,
            Class::Ring,
            Class::Bridge,
            Class::OneWay,
            Class::Link,
            Class::Flapping,
            Class::ClientCut,
        ],
    ),
    (
        "network",
        &[
            Class::Delay,
            Class::Jitter,
            Class::Loss,
            Class::Duplication,
            Class::Reorder,
            Class::Corruption,
            Class::Bandwidth,
        ],
    ),
    ("clock", &[Class::ClockJump, Class::ClockDrift]),
    (
        "power",
        &[
            Class::PowerOne,
            Class::PowerQuorum,
            Class::PowerAll,
            Class::TornTail,
        ],
    ),
    (
        "disk",
        &[
            Class::WriteError,
            Class::SyncError,
            Class::DiskFull,
            Class::SlowDisk,
            Class::StalledDisk,
            Class::FlippedBit,
        ],
    ),
    ("starvation", &[Class::CpuStarved, Class::MemoryStarved]),
    (
        "members",
        &[
            Class::Drain,
            Class::LeaderTransfer,
            Class::Replace,
            Class::SnapshotCatchUp,
        ],
    ),
];

/// Parts of a run of overlapping faults.
const COMBINED_PARTS: u32 = 6;

impl Options {
    /// How many of `all` are done at this size; the first size gets the greater share, and kinds that need
    /// more nodes are done where they can be. Of restarts of one node after the other, which take half a minute with
    /// five, half as many are done at each further size.
    fn share(&self, all: u32, size: u64, class: Option<Class>) -> u32 {
        let able: Vec<u64> = self
            .sizes
            .iter()
            .copied()
            .filter(|size| class.is_none_or(|class| class.missing_with(*size).is_none()))
            .collect();
        let Some(place) = able.iter().position(|able| *able == size) else {
            return 0;
        };
        let count = u32::try_from(able.len()).unwrap_or(1);
        let (even, rest) = (all / count, all % count);
        let share = even + u32::from(place < rest as usize);
        let fewer = match class {
            Some(Class::RollingRestart) => even / 2,
            _ => 0,
        };
        if place == 0 {
            share + fewer * (count - 1)
        } else {
            share - fewer
        }
    }

    fn plans(&self, size: u64) -> Vec<Plan> {
        let mut plans = Vec::new();
        let wanted =
            |name: &str| self.families.is_empty() || self.families.iter().any(|one| one == name);
        for (number, (name, classes)) in (0..).zip(FAMILIES).filter(|(_, (name, _))| wanted(name)) {
            let mut parts = Vec::new();
            for class in classes {
                let times = self.share(self.times, size, Some(*class));
                let seed = self.seed * 1000 + number;
                parts.extend(Plan::alone(name, seed + size, size, &[*class], times).parts);
            }
            if !parts.is_empty() {
                plans.push(Plan {
                    name: format!("{name}-{size}"),
                    seed: self.seed * 1000 + number * 10 + size,
                    nodes: size,
                    parts,
                });
            }
        }
        if wanted("combined") {
            for number in 0..u64::from(self.share(self.combined, size, None)) {
                let seed = self.seed * 100 + size * 10 + number;
                plans.push(Plan::combined(seed, size, &Class::all(), COMBINED_PARTS));
            }
        }
        plans
    }

    fn rows_file(&self, size: u64) -> PathBuf {
        self.common.reports.join(format!("rows-{size}.json"))
    }
}

/// Does all sizes, or in the namespaces one of them.
pub(crate) async fn run(options: Options) -> Result<Verdict> {
    if let (Some(lab), Some(size)) = (options.common.lab, options.size) {
        return tokio::task::block_in_place(|| one_size(&options, size, Names(lab)));
    }
    outside::build()?;
    std::fs::create_dir_all(&options.common.reports)?;
    let mut worst = Verdict::Holds;
    for size in &options.sizes {
        let more = ["--size".to_owned(), size.to_string()];
        let verdict = lab::play_bare(*size, &more).await?;
        let code = |verdict: &Verdict| match verdict {
            Verdict::Told(Some(0)) | Verdict::Holds => 0,
            Verdict::Told(Some(1)) => 2,
            _ => 1,
        };
        if code(&verdict) > code(&worst) {
            worst = verdict;
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for size in &options.sizes {
        let path = options.rows_file(*size);
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        rows.extend(serde_json::from_slice::<Vec<Row>>(&bytes)?);
    }
    rows.sort_by(|one, other| (&one.fault, one.nodes).cmp(&(&other.fault, other.nodes)));
    say(&table::text(&rows));
    let path = options.common.reports.join("matrix.md");
    std::fs::write(&path, table::markdown(&rows))?;
    say(&format!("table: {}", path.display()));
    Ok(worst)
}

fn one_size(options: &Options, size: u64, names: Names) -> Result<Verdict> {
    let doctor = Doctor::examine();
    let mut outcomes = Vec::new();
    let mut violations = Vec::new();
    let mut undecided = Vec::new();
    for plan in options.plans(size) {
        let name = plan.name.clone();
        match carry_out(plan, names, &options.common, &doctor) {
            Ok(mut outcome) => {
                match outcome.verdict() {
                    Verdict::Violated(found) => {
                        violations.extend(found.iter().map(|what| format!("{name}: {what}")));
                    }
                    Verdict::Vacuous(why) => undecided.push(format!("{name}: {why}")),
                    _ => {}
                }
                outcome.forget_details();
                outcomes.push(outcome);
            }
            Err(failure) => {
                say(&format!("{name} broke: {failure:#}"));
                undecided.push(format!("{name} broke: {failure:#}"));
            }
        }
        write_rows(&options.rows_file(size), &outcomes)?;
    }
    for what in &undecided {
        say(&format!("undecided: {what}"));
    }
    Ok(if !violations.is_empty() {
        Verdict::Violated(violations)
    } else if undecided.is_empty() && !outcomes.is_empty() {
        Verdict::Holds
    } else {
        Verdict::Vacuous(undecided.join("; "))
    })
}

fn write_rows(path: &Path, outcomes: &[super::conduct::Outcome]) -> Result<()> {
    let all: Vec<_> = outcomes.iter().collect();
    std::fs::write(path, serde_json::to_vec_pretty(&table::rows(&all))?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::BTreeMap;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn every_kind_of_fault_is_in_one_family() {
        let mut in_families: Vec<Class> =
            FAMILIES.iter().flat_map(|(_, all)| all.to_vec()).collect();
        in_families.sort_unstable();
        let mut all = Class::all();
        all.sort_unstable();
        assert_eq!(in_families, all);
    }

    #[test]
    fn every_kind_comes_at_least_twenty_times_and_ten_runs_are_combined() {
        let options = Line::parse_from(["matrix"]).options;
        let plans: Vec<Plan> = options
            .sizes
            .iter()
            .flat_map(|size| options.plans(*size))
            .collect();
        let mut times: BTreeMap<Class, usize> = BTreeMap::new();
        let (alone, combined): (Vec<_>, Vec<_>) = plans
            .iter()
            .partition(|plan| !plan.name.starts_with("combined"));
        for step in alone.iter().flat_map(|plan| plan.steps()) {
            *times.entry(step.class).or_default() += 1;
        }
        assert_eq!(times.len(), Class::all().len());
        assert!(times.values().all(|times| *times >= 20), "{times:?}");
        assert_eq!(combined.len(), 10);
    }
}
