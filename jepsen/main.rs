//! `chaos`: faults in real clusters, judged only by what clients and the admin API saw.
//!
//! A run is: start a cluster, run a workload that records every operation, inject the fault, let the
//! cluster settle, read everything back, check. The history is written as JSON lines in Jepsen's
//! shape. Exit code 0: the promise held; 1: a violation; 2: the run proves nothing.

mod api;
mod check;
mod checker;
mod clock;
mod doctor;
mod export;
mod failover;
mod front;
mod history;
mod kill_leader;
mod lab;
mod nemesis;
mod net;
mod outside;
mod power;
mod probe;
mod report;
mod rolling;
mod run;
mod shim;
mod wire;
mod workers;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Faults in real clusters.
#[derive(Parser)]
#[command(name = "chaos")]
struct Arguments {
    #[command(subcommand)]
    plan: Plan,
    /// Folder for histories; nothing is written without it.
    #[arg(long, global = true)]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Plan {
    /// SIGKILL of the Raft leader while people join, publish and rooms are written.
    KillLeader {
        /// How many times.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// People on three SDKs, while nodes die, freeze, are cut off or drained; needs root.
    Failover(failover::Options),
    /// People on three SDKs, while one node after the other gets another version; needs root.
    RollingUpgrade(rolling::Options),
    /// The power of all nodes goes at one moment, under people on three SDKs; needs root.
    PowerLoss(power::Options),
    /// What this machine can do to a cluster.
    Doctor,
    /// A plan drawn from a seed, carried out and judged; needs root.
    Run(run::Options),
    /// Kills, pauses and partitions: the run that `make test` has; needs root.
    Smoke(run::Smoke),
    /// Every kind of fault alone and overlapping, on three and on five nodes; needs root.
    Matrix(run::matrix::Options),
    /// Programs that are broken on purpose: each must be found out; needs root.
    Broken(run::broken::Options),
    /// Histories as other checkers read them.
    Export(export::Options),
}

/// Verdict of a run.
enum Verdict {
    /// Every check held and the run had enough to check.
    Holds,
    /// What was violated.
    Violated(Vec<String>),
    /// What was violated in a run that only reports.
    Reported(Vec<String>),
    /// Why the run proves nothing.
    Vacuous(String),
    /// Another process of this program has told it and ended with this code.
    Told(Option<i32>),
}

impl Verdict {
    /// Of a run that found these violations.
    fn of(violations: Vec<String>, report_only: bool) -> Self {
        match (violations.is_empty(), report_only) {
            (true, _) => Self::Holds,
            (false, true) => Self::Reported(violations),
            (false, false) => Self::Violated(violations),
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let verdict = match arguments.plan {
        Plan::KillLeader { rounds } => kill_leader::run(rounds, arguments.out.as_deref()).await?,
        Plan::Failover(options) => failover::run(options, arguments.out).await?,
        Plan::RollingUpgrade(options) => rolling::run(options, arguments.out).await?,
        Plan::PowerLoss(options) => power::run(options, arguments.out).await?,
        Plan::Doctor => examine(),
        Plan::Run(options) => run::run(options).await?,
        Plan::Smoke(options) => run::smoke(options).await?,
        Plan::Matrix(options) => run::matrix::run(options).await?,
        Plan::Broken(options) => run::broken::run(options).await?,
        Plan::Export(options) => export::run(&options)?,
    };
    Ok(print(&verdict))
}

/// Tells what this machine can do.
fn examine() -> Verdict {
    let doctor = doctor::Doctor::examine();
    say(&doctor.told());
    if doctor.is_content() {
        Verdict::Told(Some(0))
    } else {
        Verdict::Vacuous("some faults cannot be injected on this machine".to_owned())
    }
}

#[expect(clippy::print_stdout, reason = "this is a command-line tool")]
fn print(verdict: &Verdict) -> ExitCode {
    match verdict {
        Verdict::Holds => {
            println!("verdict: every check held");
            ExitCode::SUCCESS
        }
        Verdict::Violated(violations) => {
            for violation in violations {
                println!("violated: {violation}");
            }
            ExitCode::from(1)
        }
        Verdict::Reported(violations) => {
            for violation in violations {
                println!("violated: {violation}");
            }
            println!("verdict: reported only");
            ExitCode::SUCCESS
        }
        Verdict::Vacuous(why) => {
            println!("verdict unknown, the run proves nothing: {why}");
            ExitCode::from(2)
        }
        Verdict::Told(code) => {
            ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(2))
        }
    }
}

#[expect(clippy::print_stdout, reason = "progress of a command-line tool")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
