//! `sim`: runs seeds and says what they gave; replays a seed or a plan; shortens what fails.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use sim::bug::Bug;
use sim::plan::Plan;
use sim::planted::{catch, hunt, plan_of};
use sim::run::{Record, run, run_seeds, run_telling, shrink};

/// Runs of simulated clusters.
#[derive(Parser)]
struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Simulated cluster-hours after which no more seeds are begun, in steps of a thousand seeds.
    #[arg(long)]
    hours: Option<f64>,
    /// Runs one plan instead of seeds.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Runs the plan under so many seeds, until one breaks an invariant; with a planted bug, one that does not
    /// without it.
    #[arg(long, default_value_t = 0)]
    vary: u64,
    /// Tells what happens, line by line, on standard error.
    #[arg(long)]
    tell: bool,
    /// Runs the planted bugs' plans of this folder and prints a table.
    #[arg(long)]
    bugs: Option<PathBuf>,
    /// Looks for plans that catch planted bugs and writes those into the folder that are missing there.
    #[arg(long)]
    hunt: Option<PathBuf>,
    /// Runs of a failing plan to shorten it; 0: it is printed as it is.
    #[arg(long, default_value_t = 150)]
    shrink: u32,
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(path) = &options.plan {
        let plan: Plan = std::fs::read_to_string(path)?
            .parse()
            .map_err(anyhow::Error::msg)?;
        if options.vary > 0 {
            return vary_plan(&plan, options.from, options.vary, options.shrink);
        }
        let outcome = run_telling(&plan, options.tell);
        println!("trace {:016x}", outcome.trace);
        return match outcome.violation {
            Some(violation) => Err(anyhow::anyhow!("{violation}")),
            None => Ok(()),
        };
    }
    if let Some(folder) = &options.bugs {
        return print_bugs(folder);
    }
    if let Some(folder) = &options.hunt {
        return hunt_bugs(folder, options.from, options.seeds);
    }
    let began = Instant::now();
    let mut record = Record::default();
    let mut from = options.from;
    loop {
        let count = if options.hours.is_some() {
            1000
        } else {
            options.seeds
        };
        record.merge(run_seeds(from, count, options.threads, 5));
        from += count;
        println!("seeds {}..{from}: {}", options.from, record.line());
        let hours = record.simulated as f64 / 3.6e9;
        if options.hours.is_none_or(|most| hours >= most) || record.failed.len() >= 5 {
            break;
        }
    }
    println!(
        "{:.0} s; met: {:#?}",
        began.elapsed().as_secs_f64(),
        record.coverage
    );
    for (plan, violation) in &record.failed {
        println!("\nseed {}: {violation}", plan.seed);
        if options.shrink > 0 {
            let (plan, violation) = shrink(plan, violation, options.shrink);
            println!("shortened: {violation}\n{plan}");
        }
        println!("again: sim --from {} --seeds 1", plan.seed);
    }
    anyhow::ensure!(
        record.failed.is_empty(),
        "{} violations",
        record.failed.len()
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn vary_plan(plan: &Plan, from: u64, seeds: u64, tries: u32) -> anyhow::Result<()> {
    for seed in from..from + seeds {
        let plan = Plan {
            seed,
            ..plan.clone()
        };
        let Some(violation) = run(&plan).violation else {
            continue;
        };
        let passes_without = |plan: &Plan| {
            let clean = Plan {
                bug: None,
                ..plan.clone()
            };
            plan.bug.is_none() || run(&clean).violation.is_none()
        };
        if !passes_without(&plan) {
            println!("# seed {seed} breaks without the bug as well");
            continue;
        }
        let (short, found) = shrink(&plan, &violation, tries);
        let (plan, violation) = if passes_without(&short) {
            (short, found)
        } else {
            (plan, violation)
        };
        println!("# {violation}\n{plan}");
        anyhow::bail!("{violation}");
    }
    println!("no violation under {seeds} seeds");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn print_bugs(folder: &Path) -> anyhow::Result<()> {
    println!("| planted bug | caught by | after simulated | seeds | runs for |");
    println!("|---|---|---|---|---|");
    let mut missed = Vec::new();
    let mut planless = 0;
    for bug in Bug::ALL {
        if plan_of(folder, *bug).is_err() {
            planless += 1;
            println!("| {bug} | no plan yet | | | |");
            continue;
        }
        match catch(folder, *bug) {
            Ok(caught) => println!(
                "| {bug} | {} | {:.1} s | {} | {} ms |",
                caught.violation.invariant,
                caught.violation.at.0 as f64 / 1e6,
                caught.seeds,
                caught.took.as_millis(),
            ),
            Err(reason) => missed.push(reason),
        }
    }
    println!(
        "\n{} of {} caught",
        Bug::ALL.len() - missed.len() - planless,
        Bug::ALL.len()
    );
    anyhow::ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn hunt_bugs(folder: &Path, from: u64, seeds: u64) -> anyhow::Result<()> {
    for bug in Bug::ALL {
        if plan_of(folder, *bug).is_ok() && catch(folder, *bug).is_ok() {
            continue;
        }
        match hunt(*bug, from, seeds) {
            Some((plan, violation, tried)) => {
                println!("{bug}: seed {} ({tried} tried): {violation}", plan.seed);
                let text = format!(
                    "# Caught by {}: {}\n{plan}",
                    violation.invariant, violation.text
                );
                std::fs::write(folder.join(format!("{bug}.plan")), text)?;
            }
            None => println!("{bug}: not caught by {seeds} seeds"),
        }
    }
    Ok(())
}
