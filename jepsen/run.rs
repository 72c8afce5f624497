//! A run: a seed becomes a plan, the plan is carried out on a real cluster under load, and what clients saw
//! is judged.
//!
//! doctor, setup, baseline; part by part: faults in which only nothing wrong may happen, then heal, proof that nothing is
//! left of them, and recovery within a bound; at the end every judge, and a report. Exit codes are those of the
//! program: 1 for a violation, 2 for a run that proves nothing.

pub(crate) mod broken;
pub(crate) mod conduct;
pub(crate) mod matrix;
pub(crate) mod plan;
pub(crate) mod timeline;
pub(crate) mod work;
pub(crate) mod world;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::doctor::Doctor;
use crate::lab::{self, Names};
use crate::nemesis::Class;
use crate::{Verdict, outside, report, say};
use plan::Plan;

/// Options of `chaos run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What to draw the plan from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Parts of the plan: some faults, then recovery.
    #[arg(long, default_value_t = 8)]
    parts: u32,
    /// Only these faults, each alone and `parts` times; without it, overlapping ones of all kinds.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Class>,
    /// A saved plan instead.
    #[arg(long)]
    plan: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What all runs share.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Where plans, histories and reports go.
    #[arg(long, default_value = "artifacts/chaos")]
    reports: PathBuf,
    /// Media packets a second of each probe.
    #[arg(long, default_value_t = 200)]
    probe_hz: u32,
    /// Reliable messages a second of each probe.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    message_hz: u32,
    /// Number of the namespaces; given by the process that made them.
    #[arg(long, hide = true)]
    lab: Option<u32>,
}

/// Options of `chaos smoke`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Smoke {
    /// What to draw the plan from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each fault is injected.
    #[arg(long, default_value_t = 3)]
    times: u32,
    #[command(flatten)]
    common: Common,
}

/// Runs one plan.
pub(crate) async fn run(options: Options) -> Result<Verdict> {
    let plan = match (&options.plan, options.faults.is_empty()) {
        (Some(path), _) => Plan::read(path)?,
        (None, true) => {
            let classes = Class::all();
            Plan::combined(options.seed, options.nodes, &classes, options.parts)
        }
        (None, false) => Plan::alone(
            &format!("alone-{}", options.seed),
            options.seed,
            options.nodes,
            &options.faults,
            options.parts,
        ),
    };
    play(plan, options.common).await
}

/// The run that `make test` has: kills, pauses and partitions.
pub(crate) async fn smoke(options: Smoke) -> Result<Verdict> {
    let classes = [Class::Kill, Class::Pause, Class::Halves];
    let plan = Plan::alone("smoke", options.seed, 3, &classes, options.times);
    play(plan, options.common).await
}

/// Makes the namespaces and starts this program in them again, or carries the plan out.
async fn play(plan: Plan, common: Common) -> Result<Verdict> {
    let Some(lab) = common.lab else {
        outside::build()?;
        return lab::play_bare(plan.nodes, &[]).await;
    };
    let doctor = Doctor::examine();
    tokio::task::block_in_place(|| {
        let outcome = carry_out(plan, Names(lab), &common, &doctor)?;
        Ok(outcome.verdict())
    })
}

/// Carries a plan out and writes its report.
fn carry_out(
    plan: Plan,
    names: Names,
    common: &Common,
    doctor: &Doctor,
) -> Result<conduct::Outcome> {
    let folder = common.reports.join(&plan.name);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    say(&plan.told());
    plan.write(&folder.join("plan.json"))?;
    let mut outcome = conduct::conduct(&plan, names, common, doctor, &folder)?;
    let history = folder.join("history.jsonl");
    outcome.history.write(&history)?;
    outcome.opinions.push(outside::judge(&history));
    report::write(&folder, &outcome)?;
    report::print(&outcome, &folder);
    Ok(outcome)
}
