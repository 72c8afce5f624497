//! Plan: people on LiveKit's own SDKs talk on three nodes while nodes die, freeze, are cut off or drained.
//!
//! Promise: nobody leaves, nothing is lost, media is back in a fraction of a second. The clients say what
//! they saw ([`agents`]), [`judge`] turns that into figures, [`report`] prints them; [`mod@run`] does the
//! rounds and [`faults`] the damage. Runs in the namespaces of a [`Lab`].

mod agents;
mod detection;
mod faults;
mod judge;
mod report;
mod run;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::Verdict;
use crate::lab::{Lab, Names};
use faults::Fault;

/// Options of the plan.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Which faults, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Fault::ALL)]
    faults: Vec<Fault>,
    /// How many of each.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Clients on the Python SDK; spread over the nodes, like those of the other kinds.
    #[arg(long, default_value_t = 3)]
    python: usize,
    /// Clients on rtc-node.
    #[arg(long, default_value_t = 3)]
    node: usize,
    /// Clients in Chromium; of every three rounds the first is on the hit node in two.
    #[arg(long, default_value_t = 1)]
    chromium: usize,
    /// To how many others each client subscribes, 0: to all; decoding is what fills a small machine.
    #[arg(long, default_value_t = 3)]
    hears: usize,
    /// Seconds without a fault at the start, that show what the machine does by itself.
    #[arg(long, default_value_t = 10.0)]
    quiet: f64,
    /// Report violations, but do not fail.
    #[arg(long)]
    report_only: bool,
    /// Where the report goes as JSON.
    #[arg(long, default_value = "artifacts/failover.json")]
    json: PathBuf,
    /// Do not capture packets, and so prove nothing from the wire.
    #[arg(long)]
    no_capture: bool,
    /// Number of the namespaces; given by the process that made them.
    #[arg(long, hide = true)]
    lab: Option<u32>,
}

impl Options {
    fn clients(&self) -> usize {
        self.python + self.node + self.chromium
    }
}

/// Runs the plan: makes namespaces and starts itself in them, or does the rounds.
pub(crate) async fn run(options: Options, out: Option<PathBuf>) -> Result<Verdict> {
    match options.lab {
        Some(lab) => run::run(options, Names(lab), out).await,
        None => outer(&options).await,
    }
}

async fn outer(options: &Options) -> Result<Verdict> {
    let lab = Lab::new(options.clients())?;
    // Above whatever else runs on the machine, which is not what is measured.
    let mut child = Command::new("nice")
        .args(["-n", "-5", "ip", "netns", "exec", &lab.names.switch()])
        .arg(std::env::current_exe().context("where is this program?")?)
        .args(std::env::args_os().skip(1))
        .args(["--lab", &lab.names.0.to_string()])
        .kill_on_drop(true)
        .spawn()
        .context("ip (package iproute2)")?;
    let mut terminate = signal(SignalKind::terminate())?;
    let status = tokio::select! {
        status = child.wait() => status?,
        _ = terminate.recv() => return Ok(Verdict::Vacuous("ended from outside".to_owned())),
        _ = tokio::signal::ctrl_c() => return Ok(Verdict::Vacuous("ended from outside".to_owned())),
    };
    Ok(Verdict::Told(status.code()))
}
