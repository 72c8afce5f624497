//! How fast entries become durable: one group with batches of 1, 16 and 256 entries of 200 bytes,
//! and 1, 8 and 64 groups that append one entry at a time and share each fdatasync.
//!
//! `cargo bench --package flotilla-storage --features planted-bugs [-- FOLDER]`; FOLDER chooses the
//! disk. Prints entries per second and the time of one append at p50 and p99.
#![expect(clippy::print_stdout, reason = "the table is what a bench is for")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use flotilla_storage::probe::{Entry, Probe};
use flotilla_storage::{Identity, Storage};

/// Longer runs vary less.
const RUN: Duration = Duration::from_secs(3);

fn main() {
    let folder = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let folder = folder.map_or_else(std::env::temp_dir, PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build();
    let runtime = runtime.expect("a runtime");
    println!(
        "{:>6} {:>6} {:>12} {:>10} {:>10}",
        "groups", "batch", "entries/s", "p50 us", "p99 us"
    );
    for (groups, batch) in [(1, 1), (1, 16), (1, 256), (8, 1), (64, 1)] {
        let dir = tempfile::tempdir_in(&folder).expect("a writable folder");
        let storage = Storage::open(
            dir.path(),
            Identity {
                cluster: None,
                node: 1,
            },
        );
        let storage = storage.expect("a fresh folder");
        let tasks: Vec<_> = (0..groups)
            .map(|group| {
                let probe = Probe::open(&storage, &format!("group{group}"));
                runtime.spawn(append(probe.expect("a fresh group"), batch))
            })
            .collect();
        let mut times: Vec<Duration> = runtime.block_on(async {
            let mut times = Vec::new();
            for task in tasks {
                times.extend(task.await.expect("a task that ends"));
            }
            times
        });
        times.sort_unstable();
        let rate = times.len() as f64 * batch as f64 / RUN.as_secs_f64();
        let at = |percent: usize| times[times.len() * percent / 100].as_micros();
        println!(
            "{groups:>6} {batch:>6} {rate:>12.0} {:>10} {:>10}",
            at(50),
            at(99)
        );
        storage.close();
    }
}

async fn append(mut probe: Probe, batch: u64) -> Vec<Duration> {
    let text = "x".repeat(200);
    let began = Instant::now();
    let mut times = Vec::new();
    let mut next = 0;
    while began.elapsed() < RUN {
        let entries = (next..next + batch)
            .map(|index| Entry {
                index,
                term: 1,
                text: text.clone(),
            })
            .collect();
        next += batch;
        let start = Instant::now();
        let queued = probe.append(entries).await.expect("an append");
        queued.await.expect("a working disk");
        times.push(start.elapsed());
        // What a state machine does after a snapshot, so that the log does not only grow.
        if next % 4096 < batch && next > 20_000 {
            probe.purge(1, next - 20_000).await.expect("a purge");
        }
        probe.commit(1, next - 1).await.expect("a commit");
    }
    times
}
