//! What waits for the writer thread: operations, their answers, and the queue they wait in.
//!
//! Log handles and snapshot stores push, the writer takes a commit's worth at a time. The queue is
//! bounded by bytes: an append waits for room before it is queued, everything else is small. The
//! order of pushes is the order of writes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sled::IVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::fault::{Fault, HealthCell};
use crate::keys::GroupId;
use crate::writer::Run;

/// Bytes that may wait in the queue, in KiB. Callers wait for room beyond it.
const QUEUE_KIB_MAX: u32 = 64 * 1024;

/// Bytes taken into one commit. Larger means fewer fdatasyncs under load, and longer waits for the
/// first in line.
const COMMIT_BYTES: usize = 1024 * 1024;

/// Called once with the outcome, on the writer thread.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Fault>) + Send>;

/// Consecutive log entries, each as a little-endian `u32` length and its bytes.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) first: u64,
    pub(crate) bytes: Vec<u8>,
    /// Where each entry ends in `bytes`.
    pub(crate) ends: Vec<usize>,
}

/// Something to write.
pub(crate) enum Op {
    /// Append entries; the handle has checked that they follow the last one.
    Append { group: GroupId, entries: Encoded },
    /// Remove all entries from an index on.
    Truncate { group: GroupId, from: u64 },
    /// Forget entries up to an index; `record` is the framed purged index.
    Purge {
        group: GroupId,
        upto: u64,
        record: Vec<u8>,
    },
    /// Write one framed record.
    Put { key: IVec, record: Vec<u8> },
    /// Take over a group's index as found on disk.
    Adopt {
        group: GroupId,
        link: Arc<Link>,
        runs: BTreeMap<u64, Run>,
        garbage: Vec<IVec>,
    },
    /// Write what is kept back for later as well, and bring the database up to date.
    Settle,
}

/// An operation with what follows from it.
pub(crate) struct Job {
    pub(crate) op: Op,
    /// Whether the commit must reach the disk before `done` is called.
    pub(crate) durable: bool,
    pub(crate) done: Option<Done>,
    /// Room in the queue, given back when the job ends.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

impl Job {
    fn size(&self) -> usize {
        match &self.op {
            Op::Append { entries, .. } => entries.bytes.len(),
            Op::Put { record, .. } | Op::Purge { record, .. } => record.len(),
            Op::Truncate { .. } | Op::Adopt { .. } | Op::Settle => 0,
        }
    }

    /// Gives the answer.
    pub(crate) fn finish(self, outcome: Result<(), Fault>) {
        drop(self.room);
        if let Some(done) = self.done {
            done(outcome);
        }
    }
}

/// What a group's handle and the writer share besides the queue.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Entries below this index can be read from the database; the others are in the handle's cache.
    pub(crate) applied: AtomicU64,
    /// The encoded committed log id and whether it is newer than the one on disk. Two owners: the
    /// handle replaces it with every commit, the writer picks it up now and then.
    pub(crate) committed: Mutex<(Vec<u8>, bool)>,
}

/// The way to the writer thread.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Two owners, handles and writer; held for a push or a take, never across I/O.
    state: Mutex<State>,
    wake: Condvar,
    /// Wakes the task that stands in for the writer thread under simulation.
    #[cfg(feature = "simulation")]
    woken: tokio::sync::Notify,
    room: Arc<Semaphore>,
    health: Arc<HealthCell>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// A committed index waits to be picked up.
    lazy: bool,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("jobs", &self.jobs.len())
            .finish_non_exhaustive()
    }
}

impl Queue {
    pub(crate) fn new(health: Arc<HealthCell>) -> Self {
        Self {
            state: Mutex::default(),
            wake: Condvar::new(),
            #[cfg(feature = "simulation")]
            woken: tokio::sync::Notify::new(),
            room: Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize)),
            health,
        }
    }

    /// Waits until `bytes` more fit in the queue.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Fault> {
        let kib = u32::try_from(bytes / 1024 + 1)
            .unwrap_or(u32::MAX)
            .min(QUEUE_KIB_MAX);
        Arc::clone(&self.room)
            .acquire_many_owned(kib)
            .await
            .map_err(|_| Fault::Closed)
    }

    /// Hands a job over. Jobs run in the order of their pushes.
    pub(crate) fn push(&self, job: Job) -> Result<(), Fault> {
        self.health.check()?;
        let mut state = self.lock();
        if state.closed {
            return Err(Fault::Closed);
        }
        state.jobs.push_back(job);
        drop(state);
        self.notify();
        Ok(())
    }

    fn notify(&self) {
        self.wake.notify_one();
        #[cfg(feature = "simulation")]
        self.woken.notify_one();
    }

    /// Waits for work, or for the end of it, under simulation.
    #[cfg(feature = "simulation")]
    pub(crate) async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Hands an operation over, lets `work` go on, and blocks until it is durable. Not for async
    /// callers.
    pub(crate) fn run(&self, op: Op, work: impl FnOnce()) -> Result<(), Fault> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let done: Done = Box::new(move |outcome| {
            // The waiting side blocks until this arrives.
            let _ = sender.send(outcome);
        });
        self.push(Job {
            op,
            durable: true,
            done: Some(done),
            room: None,
        })?;
        work();
        receiver.recv().unwrap_or(Err(Fault::Closed))
    }

    /// Tells the writer that some committed index changed.
    pub(crate) fn remind(&self) {
        let mut state = self.lock();
        if !state.lazy {
            state.lazy = true;
            drop(state);
            self.notify();
        }
    }

    /// Ends the writer after what is queued.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.notify();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work until `deadline` (for ever without one) and takes a commit's worth of it.
    pub(crate) fn take(&self, deadline: Option<Instant>, knows_lazy: bool) -> Taken {
        let mut state = self.lock();
        while state.jobs.is_empty() && !state.closed && (knows_lazy || !state.lazy) {
            let Some(deadline) = deadline else {
                state = self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.wake.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut size = 0;
        let mut count = 0;
        for job in &state.jobs {
            size += job.size();
            if count > 0 && size > COMMIT_BYTES {
                break;
            }
            count += 1;
        }
        let jobs = if count == state.jobs.len() {
            std::mem::take(&mut state.jobs).into()
        } else {
            state.jobs.drain(..count).collect()
        };
        Taken {
            jobs,
            lazy: state.lazy,
            closed: state.closed && state.jobs.is_empty(),
        }
    }

    /// The committed indexes were picked up.
    pub(crate) fn lazy_taken(&self) {
        self.lock().lazy = false;
    }
}

/// A commit's worth of work.
pub(crate) struct Taken {
    pub(crate) jobs: Vec<Job>,
    /// Some committed index waits.
    pub(crate) lazy: bool,
    /// Nothing will come any more.
    pub(crate) closed: bool,
}
