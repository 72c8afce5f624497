//! Plan: people on LiveKit's own SDKs talk on three nodes while nodes die, freeze, are cut off or drained.
//!
//! Promise: nobody leaves, nothing is lost, media is back in a fraction of a second. The clients say what
//! they saw ([`agents`]), [`judge`] turns that into figures, [`report`] prints them; [`mod@run`] does the
//! rounds and [`faults`] the damage. Runs in the namespaces of a [`Lab`](crate::lab::Lab).

pub(crate) mod agents;
mod detection;
mod faults;
pub(crate) mod judge;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod stage;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::Verdict;
use crate::lab::{self, Names};
use faults::Fault;
use stage::Cast;

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
    /// Milliseconds between two messages of a client to all others.
    #[arg(long, default_value_t = 50)]
    pause: u64,
    /// Seconds without a fault at the start, that show what the machine does by itself.
    #[arg(long, default_value_t = 10.0)]
    quiet: f64,
    /// Report violations, but do not fail.
    #[arg(long)]
    report_only: bool,
    /// Where the report goes as JSON.
    #[arg(long, default_value = "artifacts/failover.json")]
    json: PathBuf,
    /// Each node has an address for media that moves to another node when it dies.
    #[arg(long)]
    floating: bool,
    /// Do not capture packets, and so prove nothing from the wire.
    #[arg(long)]
    no_capture: bool,
    /// Number of the namespaces; given by the process that made them.
    #[arg(long, hide = true)]
    lab: Option<u32>,
}

impl Options {
    fn cast(&self) -> Cast {
        Cast {
            python: self.python,
            node: self.node,
            chromium: self.chromium,
            hears: self.hears,
            pause_ms: self.pause,
        }
    }
}

/// Runs the plan: makes namespaces and starts itself in them, or does the rounds.
pub(crate) async fn run(options: Options, out: Option<PathBuf>) -> Result<Verdict> {
    match options.lab {
        Some(lab) => run::run(options, Names(lab), out).await,
        None => lab::play_in(options.cast().clients()).await,
    }
}
