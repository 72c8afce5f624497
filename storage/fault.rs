//! What can go wrong, and what follows from it.
//!
//! Opening fails with an [`OpenError`] that names the culprit and the way out. At run time the rule
//! is one sentence: after a write, flush or fdatasync has failed nothing is known about the disk
//! any more, so the store refuses everything from then on, for good. [`HealthCell`] is the one
//! place that remembers this; the writer sets it, everybody else reads it, and the node watches it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::keys::Key;
pub use crate::record::Problem;

/// A record that cannot be trusted, by name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{record} ({place}) is damaged: {problem}")]
pub struct Damage {
    /// What the record is, in words.
    pub record: String,
    /// Its key in hexadecimal, or its file.
    pub place: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// A damaged record as an error.
pub(crate) fn damage(key: &Key, problem: Problem) -> Fault {
    Fault::Damaged(describe(key, &key.encode(), problem))
}

/// A damaged record by name.
pub(crate) fn describe(key: &Key, bytes: &[u8], problem: Problem) -> Damage {
    let place = bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    Damage {
        record: key.to_string(),
        place: format!("key {place}"),
        problem,
    }
}

/// What to do about a folder that lost or damaged something a vote was based on.
const REJOIN: &str = "this node must not vote with it. Keep a copy of the folder for analysis, \
    check the disk, remove the node from the cluster (`flotilla cluster remove`), and let it join \
    again with an empty data folder; the other members hold everything it knew";

/// Why a data folder could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another part of this one) has the folder open.
    #[error(
        "the data folder {} is in use by {holder}: stop that process, or give this one its own \
         data folder",
        path.display()
    )]
    Locked {
        /// The data folder.
        path: PathBuf,
        /// Who holds it, as far as its lock file says.
        holder: String,
    },
    /// The folder belongs to another node.
    #[error(
        "the data folder {} belongs to node {found}, but this node is {expected}: correct the node \
         id or the data folder in the configuration",
        path.display()
    )]
    OtherNode {
        /// The data folder.
        path: PathBuf,
        /// The node that opens it.
        expected: u64,
        /// The node that made it.
        found: u64,
    },
    /// The folder belongs to another cluster.
    #[error(
        "the data folder {} belongs to cluster `{found}`, but this node is of cluster \
         `{expected}`: correct the configuration, or start with an empty data folder to join \
         `{expected}`",
        path.display()
    )]
    OtherCluster {
        /// The data folder.
        path: PathBuf,
        /// The cluster that the node expects.
        expected: String,
        /// The cluster that the folder belongs to.
        found: String,
    },
    /// Written by a version of this program that keeps data differently.
    #[error(
        "the data folder {} has format {found}, this program reads format {supported}: start it \
         with the version that wrote it, or update this program",
        path.display()
    )]
    Format {
        /// The data folder.
        path: PathBuf,
        /// Format found.
        found: u64,
        /// Format of this build.
        supported: u64,
    },
    /// The folder once held data that is not there any more.
    #[error("the data folder {} lost data: {what}; {REJOIN}", path.display())]
    Lost {
        /// The data folder.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// A record is damaged.
    #[error("{0}; {REJOIN}")]
    Damaged(#[from] Damage),
    /// Entries are missing in the middle of a log.
    #[error("the log of group `{group}` has a gap: after index {after} comes {found}; {REJOIN}")]
    Gap {
        /// The group.
        group: String,
        /// The last index before the gap.
        after: u64,
        /// The first index behind it.
        found: u64,
    },
    /// The database under the records does not open.
    #[error("the database in {} does not open: {reason}; {REJOIN}", path.display())]
    Database {
        /// The database's folder.
        path: PathBuf,
        /// Its own words.
        reason: String,
    },
    /// The operating system refused something.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The group's name cannot be used.
    #[error("the group name `{name}` is not 1 to 64 letters, digits, `-`, `_` or `.`")]
    GroupName {
        /// The name.
        name: String,
    },
    /// The cluster id cannot be used.
    #[error("the cluster id {cluster:?} is not one line of 1 to 128 bytes without outer spaces")]
    ClusterId {
        /// The id.
        cluster: String,
    },
    /// The group is already open in this process.
    #[error("group `{name}` is already open: drop every handle of it before opening it again")]
    GroupOpen {
        /// The name.
        name: String,
    },
    /// The store is closed or has failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Why an operation on an open store was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Something failed on the way to the disk; the store refuses everything from now on.
    #[error(
        "storage failed and refuses all work: {0}. Nothing that was not acknowledged may be \
         relied on. Check the disk (space, cables, kernel log), then restart the node"
    )]
    Failed(Arc<str>),
    /// The store was closed.
    #[error("storage is closed")]
    Closed,
    /// A record is damaged.
    #[error("{0}; {REJOIN}")]
    Damaged(#[from] Damage),
    /// An append would leave a hole in the log.
    #[error("the log ends before index {expected}, appending {found} would leave a hole")]
    Hole {
        /// The only index that may follow.
        expected: u64,
        /// The index that was given.
        found: u64,
    },
    /// A single log entry is larger than the store takes.
    #[error("a log entry of {size} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Encoded size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A value does not encode.
    #[error("a value cannot be encoded: {0}")]
    Encoding(String),
    /// Reading or writing a file failed; only this operation is affected.
    #[error("{what}: {reason}")]
    File {
        /// What was attempted, and where.
        what: String,
        /// The system's answer.
        reason: String,
    },
}

impl Fault {
    pub(crate) fn file(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::File {
            what: what.to_string(),
            reason: error.to_string(),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match &fault {
            Fault::Hole { .. } | Fault::TooLarge { .. } | Fault::Encoding(_) => {
                io::ErrorKind::InvalidInput
            }
            Fault::Damaged(_) => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, fault)
    }
}

/// How the disk is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// `None` while everything works; otherwise why the store refuses all work.
    pub failure: Option<Fault>,
    /// Commits made durable since opening.
    pub commits: u64,
    /// Time from the start of the newest commit until it was durable.
    pub latency_last: Duration,
    /// Moving average of the same over roughly the last 16 commits.
    pub latency_mean: Duration,
    /// Worst commit since opening.
    pub latency_max: Duration,
    /// How long the commit under way has been running; a disk that hangs shows here.
    pub pending: Option<Duration>,
}

/// Health as the writer keeps it. Figures are atomics, because they change with every commit and
/// are read rarely; the failure is a watch, because it changes once and must wake somebody.
#[derive(Debug)]
pub(crate) struct HealthCell {
    failure: watch::Sender<Option<Fault>>,
    opened: Instant,
    commits: AtomicU64,
    last_us: AtomicU64,
    mean_us: AtomicU64,
    max_us: AtomicU64,
    /// Microseconds after `opened` at which the running commit began, plus one; 0 when none runs.
    began_us: AtomicU64,
}

impl HealthCell {
    pub(crate) fn new() -> Self {
        Self {
            failure: watch::Sender::new(None),
            opened: Instant::now(),
            commits: AtomicU64::new(0),
            last_us: AtomicU64::new(0),
            mean_us: AtomicU64::new(0),
            max_us: AtomicU64::new(0),
            began_us: AtomicU64::new(0),
        }
    }

    /// The reason why the store is down, if it is.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        match &*self.failure.borrow() {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        }
    }

    /// Takes the store down. The first reason stays.
    pub(crate) fn fail(&self, fault: &Fault) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| fault.clone());
            first
        });
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Option<Fault>> {
        self.failure.subscribe()
    }

    pub(crate) fn commit_began(&self, now: Instant) {
        self.began_us
            .store(micros(now - self.opened) + 1, Ordering::Relaxed);
    }

    pub(crate) fn commit_ended(&self, began: Instant, now: Instant) {
        let took = micros(now - began);
        self.began_us.store(0, Ordering::Relaxed);
        self.last_us.store(took, Ordering::Relaxed);
        self.max_us.fetch_max(took, Ordering::Relaxed);
        // Only the writer thread stores, so load and store need not be one step.
        let mean = self.mean_us.load(Ordering::Relaxed);
        let first = self.commits.fetch_add(1, Ordering::Relaxed) == 0;
        let mean = if first { took } else { (mean * 15 + took) / 16 };
        self.mean_us.store(mean, Ordering::Relaxed);
    }

    pub(crate) fn report(&self) -> Health {
        let micros_of = |cell: &AtomicU64| Duration::from_micros(cell.load(Ordering::Relaxed));
        let began = self.began_us.load(Ordering::Relaxed);
        Health {
            failure: self.failure.borrow().clone(),
            commits: self.commits.load(Ordering::Relaxed),
            latency_last: micros_of(&self.last_us),
            latency_mean: micros_of(&self.mean_us),
            latency_max: micros_of(&self.max_us),
            pending: began.checked_sub(1).map(|began| {
                self.opened
                    .elapsed()
                    .saturating_sub(Duration::from_micros(began))
            }),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A defect on purpose, to prove that tests find it. Only exists with the feature `planted-bugs`.
#[cfg(any(test, feature = "planted-bugs"))]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Plant {
    /// Acknowledge without an fdatasync of the journal: nothing is sure to have reached the disk.
    SkipFdatasync,
    /// Let this fdatasync of the journal, counted from 0, report an error.
    FailFdatasync(u64),
    /// Let this fdatasync of the database, counted from 0, report an error.
    FailCheckpoint(u64),
    /// Take a file of the journal for full at this size, so that the files change often.
    JournalSize(u64),
    /// Let the database wait for as long as this is set, as if it were slow.
    HoldCheckpoints(Arc<std::sync::atomic::AtomicBool>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stays_and_wakes_watchers_once() {
        let cell = HealthCell::new();
        let mut watch = cell.watch();
        assert_eq!(cell.check(), Ok(()));
        let first = Fault::Failed("fdatasync: EIO".into());
        cell.fail(&first);
        assert!(watch.has_changed().expect("the cell lives"));
        watch.mark_unchanged();
        cell.fail(&Fault::Failed("later".into()));
        assert!(!watch.has_changed().expect("the cell lives"));
        assert_eq!(cell.check(), Err(first));
    }

    #[test]
    fn latency_is_averaged_and_a_hanging_commit_shows() {
        let cell = HealthCell::new();
        let began = cell.opened;
        cell.commit_began(began);
        assert!(cell.report().pending.is_some());
        cell.commit_ended(began, began + Duration::from_micros(1600));
        cell.commit_ended(began, began + Duration::from_micros(3200));
        let report = cell.report();
        assert_eq!(report.pending, None);
        assert_eq!(report.commits, 2);
        assert_eq!(report.latency_last, Duration::from_micros(3200));
        assert_eq!(report.latency_max, Duration::from_micros(3200));
        assert_eq!(report.latency_mean, Duration::from_micros(1700));
    }
}
