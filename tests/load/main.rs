//! `bench-forward`: what forwarding costs, measured from outside.
//!
//! Two network namespaces joined by a veth pair: a server pinned to one core in one, one publisher
//! and N subscribers (the test client) pinned to the other core in the other. CPU is read from the
//! server's `/proc/<pid>/task/*/schedstat`, packets are counted where they arrive. Runs Flotilla, and
//! in the same run any other LiveKit-compatible server whose binary is named (`--livekit PATH`).

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
mod lab;
mod measure;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// What to measure.
#[derive(Parser)]
struct Arguments {
    /// Subscribers, one figure for each.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 250, 800])]
    subscribers: Vec<usize>,
    /// Packets delivered per second, all subscribers together.
    #[arg(long, default_value_t = 40_000)]
    rate: usize,
    /// Seconds measured for each figure.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Binary of a LiveKit server to measure beside.
    #[arg(long, env = "LIVEKIT_SERVER")]
    livekit: Option<PathBuf>,
    /// Used by the program itself: run the clients in this process.
    #[arg(long, hide = true)]
    client: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.client {
        Some(url) => measure::clients(url, &arguments),
        None => lab::run(&arguments),
    }
}
