//! The process under whose feet the power goes: two groups in one store, at full speed.
//!
//! Each group is one task that keeps several appends in flight among truncations, purges and votes;
//! a thread per group saves snapshots. Before an operation begins, and again when it is
//! acknowledged, a line goes into the pipe; see [`crate::verify::History`] for the lines.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use flotilla_storage::fault::Plant;
use flotilla_storage::probe::{Contents, Entry, Probe};
use flotilla_storage::{Identity, Storage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The groups of every store.
pub(crate) const GROUPS: [&str; 2] = ["east", "west"];

/// Bytes of a journal file in a third of the runs.
const SMALL_JOURNAL: u64 = 256 * 1024;

/// Appends in flight per group.
const FLIGHT: usize = 8;

/// Works until it is killed, or until the store fails because the power is gone.
pub(crate) fn work(folder: &Path, seed: u64, no_fdatasync: bool) -> anyhow::Result<()> {
    let storage = if no_fdatasync {
        Storage::open_planted(folder, identity(), Plant::SkipFdatasync)?
    } else if seed.is_multiple_of(3) {
        // A run is over before the journal's files are full at their usual size.
        Storage::open_planted(folder, identity(), Plant::JournalSize(SMALL_JOURNAL))?
    } else {
        Storage::open(folder, identity())?
    };
    let mut probes = Vec::new();
    for group in GROUPS {
        probes.push(Probe::open(&storage, group)?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()?;
    let mut tasks = Vec::new();
    for ((group, mut probe), salt) in GROUPS.into_iter().zip(probes).zip(0..) {
        let contents = runtime.block_on(probe.contents())?;
        let snapshots = probe.clone();
        let random = StdRng::seed_from_u64(seed ^ salt ^ 0x5eed);
        // Every fsync of a snapshot pushes out the log's blocks as well, on ext4. Half of the runs
        // do without, or they would hide a log that forgets to.
        if seed.is_multiple_of(2) {
            std::thread::spawn(move || save_snapshots(group, &snapshots, random));
        }
        let rng = StdRng::seed_from_u64(seed ^ salt);
        let worker = Worker::new(group, probe, &contents, rng);
        tasks.push(runtime.spawn(worker.run()));
    }
    say("ready");
    for task in tasks {
        // An error is what the cut looks like from here.
        let ended = runtime.block_on(task).context("a worker panicked")?;
        if let Err(error) = ended {
            eprintln!("{error}");
        }
    }
    Ok(())
}

pub(crate) fn identity() -> Identity {
    Identity {
        cluster: Some("powercut".into()),
        node: 1,
    }
}

/// The text of an entry, which its place and term decide.
pub(crate) fn text(group: &str, index: u64, term: u64) -> String {
    let mut rng = StdRng::seed_from_u64(index.wrapping_mul(0x9e37_79b9).wrapping_add(term << 40));
    let length = match rng.random_range(0..200) {
        0 => rng.random_range(20_000..90_000),
        1..10 => rng.random_range(1_000..12_000),
        _ => rng.random_range(10..400),
    };
    let mut text = format!("{group} {index} {term} ");
    let letter = char::from(rng.random_range(b'a'..=b'z'));
    text.extend(std::iter::repeat_n(letter, length));
    text
}

/// The data of a snapshot, which its number decides.
pub(crate) fn snapshot_data(number: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(number);
    let length = rng.random_range(0..1_500_000);
    let mut data = vec![0; length];
    rng.fill(&mut data[..]);
    data
}

/// Puts one line into the pipe as a whole.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    // The pipe is gone only when the parent is.
    writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .ok();
}

fn save_snapshots(group: &str, probe: &Probe, mut rng: StdRng) {
    loop {
        let number: u64 = rng.random_range(1..u64::MAX);
        say(&format!("{group} snapshot+ {number}"));
        let data = snapshot_data(number);
        if probe
            .snapshots()
            .save(number.to_string().as_bytes(), &data[..])
            .is_err()
        {
            return;
        }
        say(&format!("{group} snapshot! {number}"));
        std::thread::sleep(std::time::Duration::from_millis(rng.random_range(0..100)));
    }
}

/// One group's operations. Numbers them from 0; the writer keeps their order.
struct Worker {
    group: &'static str,
    probe: Probe,
    rng: StdRng,
    operation: u64,
    /// Terms of the entries present; the first is at index `first`.
    terms: VecDeque<u64>,
    first: u64,
    purged: Option<(u64, u64)>,
    term: u64,
}

impl Worker {
    fn new(group: &'static str, probe: Probe, contents: &Contents, rng: StdRng) -> Self {
        let newest = contents.entries.iter().map(|entry| entry.term);
        let newest = newest
            .chain(contents.vote)
            .chain(contents.purged.map(|(term, _)| term));
        Self {
            group,
            probe,
            rng,
            operation: 0,
            terms: contents.entries.iter().map(|entry| entry.term).collect(),
            first: contents.purged.map_or(0, |(_, index)| index + 1),
            purged: contents.purged,
            term: newest.max().unwrap_or(0) + 1,
        }
    }

    async fn run(mut self) -> std::io::Result<()> {
        let mut flight = tokio::task::JoinSet::new();
        loop {
            match self.rng.random_range(0..100) {
                0..4 => self.truncate().await?,
                4..10 => self.purge().await?,
                10..14 => self.vote().await?,
                14..30 => {
                    if let Some((term, index)) = self.last() {
                        self.probe.commit(term, index).await?;
                    }
                }
                _ => {
                    let (operation, entries) = self.next_append();
                    let queued = self.probe.append(entries).await?;
                    let group = self.group;
                    flight.spawn(async move {
                        if queued.await.is_ok() {
                            say(&format!("{group} done {operation}"));
                        }
                    });
                }
            }
            while flight.len() >= FLIGHT {
                flight.join_next().await;
            }
        }
    }

    fn next_append(&mut self) -> (u64, Vec<Entry>) {
        let count = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(30..200),
            1..4 => self.rng.random_range(2..30),
            _ => 1,
        };
        let first = self.next();
        let (group, term) = (self.group, self.term);
        let entries = (first..first + count)
            .map(|index| Entry {
                index,
                term,
                text: text(group, index, term),
            })
            .collect();
        self.terms.extend((0..count).map(|_| term));
        (
            self.begin(&format!("append {first} {count} {term}")),
            entries,
        )
    }

    async fn truncate(&mut self) -> std::io::Result<()> {
        // A truncation of nothing returns at once and says nothing about what came before it.
        let back = self.rng.random_range(1..30).min(self.terms.len() as u64);
        if back == 0 {
            return Ok(());
        }
        self.terms.truncate(self.terms.len() - back as usize);
        self.term += 1;
        let operation = self.begin(&format!("truncate {}", self.next()));
        self.probe.truncate_after(self.last()).await?;
        self.done(operation);
        Ok(())
    }

    async fn purge(&mut self) -> std::io::Result<()> {
        let keep = match self.rng.random_range(0..20) {
            0 => 0,
            1..10 => self.rng.random_range(0..100),
            _ => self.rng.random_range(200..2_000),
        };
        let Some(gone) = (self.terms.len() as u64)
            .checked_sub(keep)
            .filter(|gone| *gone > 0)
        else {
            return Ok(());
        };
        let term = self
            .terms
            .drain(..gone as usize)
            .next_back()
            .unwrap_or(self.term);
        self.first += gone;
        let upto = self.first - 1;
        self.purged = Some((term, upto));
        // Its own return promises nothing, so it is never reported as done.
        self.begin(&format!("purge {upto} {term}"));
        self.probe.purge(term, upto).await
    }

    async fn vote(&mut self) -> std::io::Result<()> {
        self.term += 1;
        let operation = self.begin(&format!("vote {}", self.term));
        self.probe.vote(self.term).await?;
        self.done(operation);
        Ok(())
    }

    fn begin(&mut self, what: &str) -> u64 {
        let operation = self.operation;
        self.operation += 1;
        say(&format!("{} begin {operation} {what}", self.group));
        operation
    }

    fn done(&self, operation: u64) {
        say(&format!("{} done {operation}", self.group));
    }

    fn next(&self) -> u64 {
        self.first + self.terms.len() as u64
    }

    fn last(&self) -> Option<(u64, u64)> {
        let term = self.terms.back().map(|term| (*term, self.next() - 1));
        term.or(self.purged)
    }
}
