//! How bytes are kept: Raft log, vote, committed index and snapshots of every group of a node.
//!
//! ```text
//! raft ──► LogStore ──► writer thread ──► journal, fdatasync ──► acknowledgement
//!     │                        └──► now and then: checkpoint thread ──► sled, fdatasync
//!     └──► SnapshotStore ──► file, fsync ──► writer thread (which file is current)
//! ```
//! `flotilla-raft` opens one [`Storage`] per node and one [`LogStore`] and [`SnapshotStore`] per
//! group; all groups share one journal, one database and the threads that write them. Nothing is
//! acknowledged before it is on the disk, nothing is read back unchecked, and nothing here knows what the
//! entries mean.

mod checkpoint;
mod database;
mod disk;
pub mod fault;
mod identity;
mod journal;
mod keys;
mod log;
mod open;
#[cfg(any(test, feature = "planted-bugs"))]
pub mod probe;
mod queue;
mod record;
mod run;
#[cfg(feature = "simulation")]
pub mod simulation;
mod snapshot;
mod tree;
mod writer;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use openraft::RaftTypeConfig;
use tokio::sync::watch;

use crate::checkpoint::Backlog;
use crate::database::Database;
use crate::disk::Disk;
use crate::fault::HealthCell;
pub use crate::fault::{Damage, Fault, Health, OpenError, Problem};
pub use crate::identity::Identity;
use crate::identity::{Known, Layout};
use crate::journal::Journal;
use crate::keys::GroupId;
pub use crate::log::LogStore;
use crate::queue::{Op, Queue};
pub use crate::snapshot::{SnapshotReader, SnapshotStore, SnapshotWriter, StoredSnapshot};
use crate::tree::Tree;
use crate::writer::Writer;

/// A node's data folder, open and locked. Clones share it.
///
/// The folder is closed by [`Storage::close`], or when the last clone and the last handle of a
/// group are dropped; both wait for the disk.
#[derive(Clone, Debug)]
pub struct Storage {
    inner: Arc<Inner>,
}

/// What all handles share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) queue: Arc<Queue>,
    pub(crate) health: Arc<HealthCell>,
    /// The read side; `None` once closed.
    tree: RwLock<Option<Tree>>,
    /// What ends with the store: the thread, and the lock of the folder. Taken by whoever closes.
    ending: Mutex<Option<(Hands, Option<File>)>>,
    /// Who writes under simulation; `None` for a thread.
    #[cfg(feature = "simulation")]
    here: Option<Arc<Mutex<Writer>>>,
    /// Open groups; held while a group is being opened.
    groups: Mutex<BTreeSet<GroupId>>,
    identity: Mutex<Identity>,
}

/// Who commits.
#[derive(Debug)]
enum Hands {
    /// A thread of its own.
    Thread(JoinHandle<()>),
    /// Whoever pushes or, for what nobody waits for, a task.
    #[cfg(feature = "simulation")]
    Here,
}

impl Storage {
    /// Opens a node's data folder, or makes it. Checks what it reads; blocks on the disk.
    pub fn open(path: impl AsRef<Path>, identity: Identity) -> Result<Self, OpenError> {
        Self::open_with(path.as_ref(), Disk::System, identity, |_, _| {})
    }

    /// Opens a data folder with a defect, to prove that a test finds it.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub fn open_planted(
        path: impl AsRef<Path>,
        identity: Identity,
        plant: fault::Plant,
    ) -> Result<Self, OpenError> {
        Self::open_with(
            path.as_ref(),
            Disk::System,
            identity,
            |journal, database| {
                journal.plant(plant.clone());
                database.plant(plant);
            },
        )
    }

    /// Opens a node's data folder on a disk in memory. Everything is done on the threads of the current
    /// runtime, in its time; without one it panics.
    #[cfg(feature = "simulation")]
    pub fn open_simulated(
        path: impl AsRef<Path>,
        disk: &simulation::SimulatedDisk,
        identity: Identity,
    ) -> Result<Self, OpenError> {
        let disk = Disk::Simulated(disk.clone());
        Self::open_with(path.as_ref(), disk, identity, |_, _| {})
    }

    fn open_with(
        path: &Path,
        disk: Disk,
        identity: Identity,
        prepare: impl FnOnce(&mut Journal, &mut Database),
    ) -> Result<Self, OpenError> {
        if let Some(cluster) = &identity.cluster {
            identity::check_cluster(cluster)?;
        }
        let layout = Layout {
            root: path.to_owned(),
            disk,
        };
        let lock = identity::lock(&layout)?;
        let known = identity::read(&layout)?;
        if let Some(known) = &known {
            identity::check(&layout, &known.identity, &identity)?;
        }
        let mut database = Database::open(&layout, known.is_some())?;
        let has_journal = known.as_ref().is_some_and(|known| known.journal);
        let (mut journal, writes) = Journal::open(&layout, has_journal)?;
        if known.is_none() && !writes.is_empty() {
            let what = "it holds a journal, but the file `identity` is missing";
            return Err(identity::lost(&layout, what));
        }
        let cluster = known
            .as_ref()
            .and_then(|known| known.identity.cluster.clone());
        let known_now = Known {
            identity: Identity {
                cluster: identity.cluster.or(cluster),
                node: identity.node,
            },
            journal: true,
        };
        if known.as_ref() != Some(&known_now) {
            // From here on an older build refuses the folder, before the journal has anything.
            identity::write(&layout, &known_now.identity)?;
        }
        // What the last process did not get around to.
        database.store(writes.iter().map(|(key, record)| (key, record.as_deref())))?;
        journal.settle(journal.next());
        journal.close()?;
        prepare(&mut journal, &mut database);

        let health = Arc::new(HealthCell::new());
        let queue = Arc::new(Queue::new(Arc::clone(&health)));
        let tree = database.reader();
        #[cfg(feature = "simulation")]
        let mut here = None;
        let hands = match &layout.disk {
            Disk::System => {
                let starting = "cannot start a thread for";
                let backlog = Backlog::start(database, Arc::clone(&health))
                    .map_err(identity::failed(starting, path))?;
                let writer = Writer::new(journal, backlog, Arc::clone(&queue), Arc::clone(&health));
                let thread = std::thread::Builder::new()
                    .name("storage-writer".into())
                    .spawn(move || writer.run())
                    .map_err(identity::failed(starting, path))?;
                Hands::Thread(thread)
            }
            #[cfg(feature = "simulation")]
            Disk::Simulated(disk) => {
                let backlog = Backlog::simulated(database, disk.clone());
                let writer = Writer::new(journal, backlog, Arc::clone(&queue), Arc::clone(&health));
                let writer = Arc::new(Mutex::new(writer));
                here = Some(Arc::clone(&writer));
                tokio::spawn(write_here(disk.clone(), Arc::clone(&queue), writer));
                Hands::Here
            }
        };
        let inner = Inner {
            layout,
            queue,
            health,
            tree: RwLock::new(Some(tree)),
            ending: Mutex::new(Some((hands, lock))),
            #[cfg(feature = "simulation")]
            here,
            groups: Mutex::default(),
            identity: Mutex::new(known_now.identity),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Opens a group: its log and its snapshots. Every record of the group is checked.
    ///
    /// A group can be open once; it is free again when all its handles are dropped.
    pub fn group<C: RaftTypeConfig>(
        &self,
        name: &str,
    ) -> Result<(LogStore<C>, SnapshotStore), OpenError> {
        open::group(&self.inner, name)
    }

    /// Binds the folder to a cluster, durably. Fails if it belongs to another one already.
    pub fn set_cluster(&self, cluster: &str) -> Result<(), OpenError> {
        identity::check_cluster(cluster)?;
        let mut identity = lock(&self.inner.identity);
        let fresh = Identity {
            cluster: Some(cluster.to_owned()),
            node: identity.node,
        };
        identity::check(&self.inner.layout, &identity, &fresh)?;
        if *identity != fresh {
            identity::write(&self.inner.layout, &fresh)?;
            *identity = fresh;
        }
        Ok(())
    }

    /// Whose folder this is.
    pub fn identity(&self) -> Identity {
        lock(&self.inner.identity).clone()
    }

    /// A small text beside the store's own files, or `None` if there is none of this name.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn note(&self, name: &str) -> io::Result<Option<String>> {
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let layout = &self.inner.layout;
        let bytes = match layout.disk.read(&layout.root.join(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        match identity::unseal(&text) {
            Some(Ok(body)) => Ok(Some(body.to_owned())),
            Some(Err(problem)) => Err(damaged(problem.to_string())),
            // Versions before 2026-11-29 wrote no checksum.
            None => Ok(Some(text)),
        }
    }

    /// Writes a small text of whole lines beside the store's own files, durably, in the place of the one before.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_note(&self, name: &str, text: &str) -> io::Result<()> {
        use std::io::Write as _;
        let layout = &self.inner.layout;
        let fresh = layout.root.join(format!("{name}.new"));
        let mut file = layout.disk.create(&fresh)?;
        file.write_all(identity::seal(text.to_owned()).as_bytes())?;
        file.sync_all()?;
        layout.disk.rename(&fresh, &layout.root.join(name))?;
        layout.disk.sync_folder(&layout.root)
    }

    /// Whether this store is on a simulated disk. Then its blocking calls are short, and must not be given
    /// to other threads, which are outside of the simulated time.
    pub fn is_simulated(&self) -> bool {
        self.inner.layout.disk.is_simulated()
    }

    /// Whether the store works, and how fast the disk is.
    pub fn health(&self) -> Health {
        self.inner.health.report()
    }

    /// Changes once, from `None` to the reason, when the store has failed and refuses all work.
    pub fn watch_failure(&self) -> watch::Receiver<Option<Fault>> {
        self.inner.health.watch()
    }

    /// Writes what is waiting, brings the database up to date, and closes the folder. Handles that still exist get
    /// [`Fault::Closed`].
    pub fn close(self) {
        self.inner.close();
    }
}

impl Inner {
    /// Hands an operation over and blocks until it is durable. Not for async callers.
    pub(crate) fn run(&self, op: Op) -> Result<(), Fault> {
        self.queue.run(op, || {
            #[cfg(feature = "simulation")]
            self.write_now();
        })
    }

    /// Does what waits, under simulation; tells whether that was the last.
    #[cfg(feature = "simulation")]
    fn write_now(&self) -> bool {
        self.here
            .as_ref()
            .is_none_or(|writer| lock(writer).run_once(virtual_now()))
    }

    /// The database for reading.
    pub(crate) fn reader(&self) -> Result<Tree, Fault> {
        self.health.check()?;
        let tree = self.tree.read().unwrap_or_else(PoisonError::into_inner);
        tree.clone().ok_or(Fault::Closed)
    }

    /// Frees a group whose handles are gone.
    pub(crate) fn release(&self, group: GroupId) {
        lock(&self.groups).remove(&group);
    }

    fn close(&self) {
        let Some((hands, folder_lock)) = lock(&self.ending).take() else {
            return;
        };
        self.queue.close();
        match hands {
            Hands::Thread(thread) => {
                if thread.join().is_err() {
                    tracing::error!("the storage writer ended in a panic");
                }
            }
            #[cfg(feature = "simulation")]
            Hands::Here => while !self.write_now() {},
        }
        *self.tree.write().unwrap_or_else(PoisonError::into_inner) = None;
        drop(folder_lock);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Stands in for the writer thread: commits after the time that the disk takes.
#[cfg(feature = "simulation")]
async fn write_here(
    disk: simulation::SimulatedDisk,
    queue: Arc<Queue>,
    writer: Arc<Mutex<Writer>>,
) {
    loop {
        let due = lock(&writer).lazy_due();
        let late = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = queue.woken() => {}
            () = late => {}
        }
        tokio::time::sleep(disk.latency()).await;
        if lock(&writer).run_once(virtual_now()) {
            return;
        }
    }
}

/// The runtime's time, which a simulation sets; at the end of a runtime, the machine's.
#[cfg(feature = "simulation")]
fn virtual_now() -> std::time::Instant {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => tokio::time::Instant::now().into_std(),
        Err(_) => std::time::Instant::now(),
    }
}

#[cfg(test)]
mod tests;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
