//! `bench-commits`: how fast three nodes agree, side by side with etcd.
//!
//! Starts three node processes of ours (this program again, with `node`) and three of etcd from
//! Debian's packages, all on loopback, all with their data on the same disk and synced before
//! anything is acknowledged. One client process drives both through the same gRPC calls (etcd's
//! `KV.Put`, see [`kv`]) at whoever leads, with 1, 64 and 512 writers of 200 bytes, in alternating
//! rounds; prints operations per second, median and 99th percentile, and our ratio: the median over
//! the rounds, and the round in which we did worst.

mod cluster;
mod kv;
mod measure;
mod node;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use mimalloc::MiMalloc;

use crate::cluster::{Cluster, Kind};
use crate::measure::{Figures, Ratios, median, run};

/// The one that `flotilla` has.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Parser)]
#[command(about = "Commits per second of three nodes, beside etcd's")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Numbers of concurrent writers.
    #[arg(long, value_delimiter = ',', default_value = "1,64,512")]
    writers: Vec<usize>,
    /// Seconds per round.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Rounds per side and number of writers; the median round counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bytes of each value.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// Folder for the data of all six processes; removed afterwards.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Measures only one side.
    #[arg(long, value_enum)]
    only: Option<Kind>,
    /// Write the table as JSON too.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Role {
    /// A node process; started by the benchmark itself.
    Node(node::Arguments),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match arguments.role {
        Some(Role::Node(node)) => runtime.block_on(node::serve(node)),
        None => runtime.block_on(bench(&arguments)),
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
async fn bench(arguments: &Arguments) -> Result<()> {
    let folder = match &arguments.data {
        Some(path) => {
            std::fs::create_dir_all(path)?;
            tempfile::tempdir_in(path)?
        }
        None => tempfile::tempdir()?,
    };
    let mut sides = Vec::new();
    for kind in [Kind::Flotilla, Kind::Etcd] {
        if arguments.only.is_none_or(|only| only == kind) {
            let path = folder.path().join(kind.name());
            let cluster = Cluster::start(kind, &path).await;
            sides.push(cluster.with_context(|| format!("starting {}", kind.name()))?);
        }
    }
    println!(
        "3 voters on loopback, fsync, values of {} bytes",
        arguments.bytes
    );
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>10}",
        "writers", "side", "ops/s", "p50 µs", "p99 µs"
    );
    let mut rows = Vec::new();
    let mut ratios = Vec::new();
    let round = Duration::from_secs(arguments.seconds);
    for &writers in &arguments.writers {
        let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); sides.len()];
        for turn in 0..=arguments.rounds {
            for (side, figures) in sides.iter().zip(&mut figures) {
                // The first turn warms up and is not counted.
                let length = if turn == 0 { round / 4 } else { round };
                let measured = run(side, writers, arguments.bytes, length).await?;
                if turn > 0 {
                    figures.push(measured);
                }
            }
        }
        let medians: Vec<Figures> = figures.iter().map(|rounds| median(rounds)).collect();
        for (side, figures) in sides.iter().zip(&medians) {
            println!(
                "{writers:>8} {:>10} {:>10.0} {:>10} {:>10}",
                side.kind.name(),
                figures.per_second,
                figures.p50.as_micros(),
                figures.p99.as_micros(),
            );
            rows.push(serde_json::json!({
                "writers": writers,
                "side": side.kind.name(),
                "per_second": figures.per_second,
                "p50_us": figures.p50.as_micros() as u64,
                "p99_us": figures.p99.as_micros() as u64,
            }));
        }
        if let [ours, theirs] = &figures[..] {
            ratios.push((writers, Ratios::of(ours, theirs)));
        }
    }
    if !ratios.is_empty() {
        rows.extend(print_ratios(&ratios, arguments.rounds));
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(())
}

/// Prints our figures divided by theirs, a line per number of writers, and returns them.
#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn print_ratios(ratios: &[(usize, Ratios)], rounds: usize) -> Vec<serde_json::Value> {
    println!("\nours divided by etcd's, over {rounds} rounds");
    println!("{:>8} {:>17} {:>17} {:>17}", "", "throughput", "p50", "p99");
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "writers", "min", "median", "median", "max", "median", "max"
    );
    let mut rows = Vec::new();
    for (writers, ratios) in ratios {
        let [throughput, p50, p99] = [&ratios.throughput, &ratios.p50, &ratios.p99];
        println!(
            "{writers:>8} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2}",
            throughput.min, throughput.median, p50.median, p50.max, p99.median, p99.max,
        );
        rows.push(serde_json::json!({
            "writers": writers,
            "side": "ratio",
            "throughput_min": throughput.min,
            "throughput_median": throughput.median,
            "p50_median": p50.median,
            "p50_max": p50.max,
            "p99_median": p99.median,
            "p99_max": p99.max,
        }));
    }
    rows
}
