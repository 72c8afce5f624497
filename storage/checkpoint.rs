//! What is in the journal and not yet in the database, and the thread that moves it there.
//!
//! ```text
//! writer ──► active ──(a journal file is full)──► frozen ──► checkpoint thread ──► sled, fdatasync
//! ```
//! The writer thread owns a [`Backlog`]. Writes of durable batches gather in its active part, later
//! ones over earlier ones. When a journal file is full, the active part is frozen and handed to the
//! thread, which alone writes the database; once that is done, the journal's other file may be
//! started over. So the database is always a few seconds behind, never on the way of a commit, and a
//! record that was replaced or purged meanwhile never gets there.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use sled::IVec;

use crate::database::{self, Database, Write, panic_text};
use crate::fault::{Fault, HealthCell};
use crate::keys::GroupId;
use crate::tree::Tree;

/// Commits that may pass, under simulation, before a part reaches the database: fewer than this.
#[cfg(feature = "simulation")]
const PATIENCE: u64 = 12;

/// Writes by key; `None` deletes.
type Writes = BTreeMap<IVec, Option<Vec<u8>>>;

/// What the database does not have yet.
pub(crate) struct Backlog {
    active: Writes,
    frozen: Option<Frozen>,
    tree: Tree,
    hands: Hands,
}

/// Who writes the database.
enum Hands {
    /// A thread of its own.
    Thread {
        work: Option<SyncSender<Arc<Writes>>>,
        outcomes: Receiver<Result<(), Fault>>,
        thread: Option<JoinHandle<()>>,
    },
    /// Under simulation: whoever harvests, but not at once.
    #[cfg(feature = "simulation")]
    Harvester {
        database: Database,
        disk: crate::simulation::SimulatedDisk,
        /// Times to look in vain before the work is done.
        patience: u64,
    },
}

struct Frozen {
    writes: Arc<Writes>,
    mark: Mark,
}

/// Where everything stood when a part was frozen.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// Number of the journal's next record.
    pub(crate) journal: u64,
    /// Per group, the index after its last entry.
    pub(crate) next: BTreeMap<GroupId, u64>,
}

impl Backlog {
    /// Starts the thread.
    pub(crate) fn start(database: Database, health: Arc<HealthCell>) -> std::io::Result<Self> {
        let tree = database.reader();
        let (work, parts) = sync_channel(1);
        let (report, outcomes) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("storage-checkpoint".into())
            .spawn(move || run(database, &parts, &report, &health))?;
        Ok(Self {
            active: Writes::new(),
            frozen: None,
            tree,
            hands: Hands::Thread {
                work: Some(work),
                outcomes,
                thread: Some(thread),
            },
        })
    }

    /// One whose work is done by whoever asks for it, on a simulated disk.
    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(database: Database, disk: crate::simulation::SimulatedDisk) -> Self {
        Self {
            active: Writes::new(),
            frozen: None,
            tree: database.reader(),
            hands: Hands::Harvester {
                database,
                disk,
                patience: 0,
            },
        }
    }

    /// Takes over writes that the journal has.
    pub(crate) fn add(&mut self, writes: impl IntoIterator<Item = Write>) {
        self.active.extend(writes);
    }

    /// Whether the database has everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.active.is_empty() && self.frozen.is_none()
    }

    /// The record under a key, as it will be in the database.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<IVec>, Fault> {
        let frozen = self.frozen.as_ref().map(|frozen| &*frozen.writes);
        for writes in [Some(&self.active), frozen].into_iter().flatten() {
            if let Some(record) = writes.get(key) {
                return Ok(record.as_deref().map(IVec::from));
            }
        }
        database::read(&self.tree, key)
    }

    /// Hands the active part to the thread. The last part has to be [harvested](Self::harvest).
    pub(crate) fn freeze(&mut self, mark: Mark) {
        assert!(self.frozen.is_none(), "one part at a time");
        let writes = Arc::new(std::mem::take(&mut self.active));
        match &mut self.hands {
            Hands::Thread { work, .. } => {
                if let Some(work) = work {
                    // The thread is gone only after a failure that its outcome reports.
                    let _ = work.send(Arc::clone(&writes));
                }
            }
            #[cfg(feature = "simulation")]
            Hands::Harvester { disk, patience, .. } => *patience = disk.draw(PATIENCE),
        }
        self.frozen = Some(Frozen { writes, mark });
    }

    /// Entries from an index on are gone, and so whoever reads must not look for them in the
    /// database, whatever the part under way puts there.
    pub(crate) fn truncated(&mut self, group: GroupId, from: u64) {
        if let Some(frozen) = &mut self.frozen
            && let Some(next) = frozen.mark.next.get_mut(&group)
        {
            *next = from.min(*next);
        }
    }

    /// The mark of a part that has reached the database, if one has by now or, with `wait`, as soon
    /// as it has.
    pub(crate) fn harvest(&mut self, wait: bool) -> Result<Option<Mark>, Fault> {
        if self.frozen.is_none() {
            return Ok(None);
        }
        match &mut self.hands {
            Hands::Thread { outcomes, .. } => {
                let gone = || Fault::Failed("the checkpoint thread is gone".into());
                let outcome = if wait {
                    outcomes.recv().map_err(|_| gone())?
                } else {
                    match outcomes.try_recv() {
                        Ok(outcome) => outcome,
                        Err(TryRecvError::Empty) => return Ok(None),
                        Err(TryRecvError::Disconnected) => return Err(gone()),
                    }
                };
                outcome?;
            }
            #[cfg(feature = "simulation")]
            Hands::Harvester {
                database, patience, ..
            } => {
                if *patience > 0 && !wait {
                    *patience -= 1;
                    return Ok(None);
                }
                if let Some(frozen) = &self.frozen {
                    let writes = frozen.writes.iter();
                    database.store(writes.map(|(key, record)| (key, record.as_deref())))?;
                }
            }
        }
        Ok(self.frozen.take().map(|frozen| frozen.mark))
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        match &mut self.hands {
            Hands::Thread { work, thread, .. } => {
                *work = None;
                if let Some(thread) = thread.take()
                    && thread.join().is_err()
                {
                    tracing::error!("the checkpoint thread ended in a panic");
                }
            }
            #[cfg(feature = "simulation")]
            Hands::Harvester { .. } => {}
        }
    }
}

fn run(
    mut database: Database,
    parts: &Receiver<Arc<Writes>>,
    report: &SyncSender<Result<(), Fault>>,
    health: &HealthCell,
) {
    while let Ok(writes) = parts.recv() {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let writes = writes.iter();
            database.store(writes.map(|(key, record)| (key, record.as_deref())))
        }))
        .unwrap_or_else(|panic| {
            let why = format!("the checkpoint panicked: {}", panic_text(&*panic));
            Err(Fault::Failed(why.into()))
        });
        drop(writes);
        if let Err(fault) = &outcome {
            tracing::error!(%fault, "storage failed, refusing all further work");
            health.fail(fault);
        }
        let failed = outcome.is_err();
        if report.send(outcome).is_err() || failed {
            return;
        }
    }
}
