//! Simulates the shell: real openraft, tonic, groups and stores under turmoil, from seeds.
//!
//! ```text
//! cargo test --workspace --test turmoil                              what `make test` runs
//! cargo test --workspace --test turmoil -- --seeds 1000..2000        more
//! cargo test --workspace --test turmoil -- --seeds 1234 --trace FILE one, with its trace
//! ```
//! Each seed runs in a process of its own, because a process has one source of chance and one clock
//! ([`entropy`]); the same seed does the same again, line for line, which the first check here shows.
//! Without arguments it checks that, then that a disk which lies is found out, then 50 seeds.

mod entropy;
mod network;
mod node;
mod plan;
mod record;
mod sessions;
mod sweep;
mod trace;
mod work;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::plan::Plan;
use crate::trace::Trace;

/// Simulates clusters from seeds.
#[derive(Parser)]
struct Options {
    /// Seeds: `7` or `1..200`.
    #[arg(long, value_parser = seeds)]
    seeds: Option<std::ops::Range<u64>>,
    /// Simulated seconds of each.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many run at once; as many as there are processors by default.
    #[arg(long)]
    jobs: Option<usize>,
    /// Writes the trace to a file; for one seed.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Makes every log line part of the trace.
    #[arg(long)]
    logs: bool,
    /// Lets all disks lie about syncs.
    #[arg(long)]
    lying_disks: bool,
    /// Runs one seed in this process.
    #[arg(long, hide = true)]
    child: Option<u64>,
    /// What `cargo test` hands to every test: which ones to run.
    #[arg(hide = true)]
    filters: Vec<String>,
    /// Of other tests; everything is shown here.
    #[arg(long, hide = true)]
    nocapture: bool,
    /// Of other tests.
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

impl Options {
    /// Whether this test is among those that are to run.
    fn is_wanted(&self) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|name| "turmoil".contains(name))
    }
}

fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    match text.split_once("..") {
        Some((from, to)) => Ok(number(from)?..number(to)?),
        None => number(text).map(|seed| seed..seed + 1),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.child {
        Some(seed) => simulate(seed, &options),
        None if options.is_wanted() => sweep::run(&options),
        None => ExitCode::SUCCESS,
    }
}

/// One seed, here and now. Prints a report that [`sweep`] reads.
fn simulate(seed: u64, options: &Options) -> ExitCode {
    entropy::end_with_parent();
    entropy::limit_processor_time(sweep::PROCESSOR_MAX);
    entropy::begin(seed);
    let trace = match Trace::new(options.trace.as_deref()) {
        Ok(trace) => trace,
        Err(error) => {
            eprintln!("the trace cannot be written: {error}");
            return ExitCode::from(2);
        }
    };
    if options.logs {
        trace.follow_logs();
    }
    let plan = Plan::new(seed, Duration::from_secs(options.seconds));
    let outcome = world::run(plan, &trace, options.lying_disks);
    let report = sweep::Report::new(seed, &outcome, entropy::processor_time());
    sweep::say(&report.to_line());
    if outcome.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
