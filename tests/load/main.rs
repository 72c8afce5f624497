//! `bench-forward`: what forwarding costs, measured from outside.
//!
//! Two network namespaces joined by a veth pair: a server pinned to one core in one, one publisher
//! and N subscribers (the test client, real ICE, DTLS and SRTP) pinned to the other core in the
//! other. The server's CPU time is read from the scheduler, packets are counted where they arrive; the
//! clients' CPU time is not part of any figure. Runs Flotilla, and in turns with it any other
//! LiveKit-compatible server whose binary is named (`--livekit PATH`), with the same clients, the same
//! packets and the same rates.

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
mod lab;
mod measure;
mod network;
mod table;

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
    /// Seconds of traffic before that.
    #[arg(long, default_value_t = 5)]
    warmup: u64,
    /// Rounds over all figures, servers in turns; the summary gives medians.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Runs servers and clients alike in the real-time class, for machines that others use: packets are
    /// lost and batches grow where either waits for its core.
    #[arg(long)]
    realtime: bool,
    /// Clients that agree to no feedback: neither NACK nor transport-wide numbers, which browsers and
    /// SDKs all have. Cheaper for servers that use them.
    #[arg(long)]
    bare: bool,
    /// Binary of a LiveKit server to measure beside.
    #[arg(long, env = "LIVEKIT_SERVER")]
    livekit: Option<PathBuf>,
    /// JSON merged into that server's configuration; `null` takes a key out.
    #[arg(long, default_value = "")]
    livekit_config: String,
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
