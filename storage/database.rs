//! The sled database and the one thing it does not do itself: reach the disk.
//!
//! It gets everything that [`crate::journal`] has made durable, some time later and in larger pieces.
//! sled 0.34's `flush` ends in `sync_file_range`, which writes neither the file's metadata nor the
//! disk's cache; after a power cut acknowledged records are gone. So [`Database::commit`] follows
//! it with fdatasync on a descriptor of its own. sled's background flusher stays off: with it off
//! the checkpoint thread is the only one who writes, and nothing sled reuses was freed by bytes that
//! an fdatasync has not covered yet. That thread owns commits; readers share the handle.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(any(test, feature = "simulation"))]
use crate::disk::Disk;
use crate::fault::{Damage, Fault, OpenError, Problem};
use crate::identity::{Layout, failed, lost, sync_folder};
use crate::keys::Key;
use crate::record::{self, Kind};
use crate::tree::Tree;

/// Size of the pieces that sled cuts its file into and reuses as a whole.
///
/// A value is kept inside the file only if the tree node that holds it, up to 19 of them, fits in
/// a quarter of this; larger nodes become separate files that sled never syncs. See
/// [`VALUE_MAX`].
const SEGMENT: usize = 2 * 1024 * 1024;

/// Largest value to hand to sled: 20 of them, with keys, fit in a quarter of [`SEGMENT`].
pub(crate) const VALUE_MAX: usize = 24 * 1024;

/// Memory for sled's own cache. The log's recent entries are kept decoded elsewhere.
const CACHE: u64 = 32 * 1024 * 1024;

/// Bytes and writes stored before they are made durable. Larger means fewer fdatasyncs, and more that
/// sled writes and may reuse before one has covered it.
const PIECE_BYTES: usize = 1024 * 1024;
const PIECE_WRITES: usize = 1024;

/// How long sled's own threads may hold on to a database that was closed.
const LET_GO: Duration = Duration::from_secs(5);

/// What the anchor record says.
const ANCHOR: &[u8] = b"flotilla log";

/// A record to write, or a key to delete.
pub(crate) type Write = (sled::IVec, Option<Vec<u8>>);

/// An open database together with the descriptor that makes it durable.
#[derive(Debug)]
pub(crate) struct Database {
    tree: Tree,
    /// What makes sled durable; a simulated map does it itself.
    file: Option<File>,
    #[cfg(any(test, feature = "planted-bugs"))]
    plant: Option<crate::fault::Plant>,
    #[cfg(any(test, feature = "planted-bugs"))]
    commits: u64,
}

impl Database {
    /// Opens the folder's database, or makes it if the folder has no identity yet.
    ///
    /// `known` tells whether the folder has an identity: then a missing or empty database is not a
    /// fresh start but a loss.
    pub(crate) fn open(layout: &Layout, known: bool) -> Result<Self, OpenError> {
        #[cfg(feature = "simulation")]
        if let Disk::Simulated(disk) = &layout.disk {
            return Self::open_simulated(layout, disk, known);
        }
        let path = layout.database();
        let unfinished = layout.database_in_creation();
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(failed("cannot remove", &unfinished))?;
        }
        if !path.exists() {
            if known {
                return Err(lost(layout, "its folder `log` is missing"));
            }
            create(&unfinished)?;
            fs::rename(&unfinished, &path).map_err(failed("cannot rename", &unfinished))?;
            sync_folder(&layout.root).map_err(failed("cannot sync", &layout.root))?;
        }
        // sled makes whatever is missing and starts empty; after creation that is never right.
        for file in ["db", "conf"] {
            let present = fs::metadata(path.join(file)).is_ok_and(|meta| meta.len() > 0);
            if !present {
                return Err(lost(
                    layout,
                    &format!("the file `log/{file}` is missing or empty"),
                ));
            }
        }
        let database = open_sled(&path)?;
        database.check_anchor(layout)?;
        if !known && database.has_groups(&path)? {
            return Err(lost(
                layout,
                "it holds a log, but the file `identity` is missing",
            ));
        }
        sync_tree(&path)?;
        Ok(database)
    }

    #[cfg(feature = "simulation")]
    fn open_simulated(
        layout: &Layout,
        disk: &crate::simulation::SimulatedDisk,
        known: bool,
    ) -> Result<Self, OpenError> {
        let mut database = Self {
            tree: Tree::Simulated(disk.clone()),
            file: None,
            #[cfg(any(test, feature = "planted-bugs"))]
            plant: None,
            #[cfg(any(test, feature = "planted-bugs"))]
            commits: 0,
        };
        if !known && database.tree.range(..).next().is_none() {
            database.store_anchor()?;
        }
        database.check_anchor(layout)?;
        if !known && database.has_groups(&layout.root)? {
            return Err(lost(
                layout,
                "it holds a log, but the file `identity` is missing",
            ));
        }
        Ok(database)
    }

    fn store_anchor(&mut self) -> Result<(), Fault> {
        let key = Key::Anchor.encode();
        let record = record::frame(Kind::Anchor, &key, ANCHOR);
        self.store([(&key, Some(&record[..]))])
    }

    /// Plants a defect, for tests of tests.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub(crate) fn plant(&mut self, plant: crate::fault::Plant) {
        self.plant = Some(plant);
    }

    /// A handle for reading.
    pub(crate) fn reader(&self) -> Tree {
        self.tree.clone()
    }

    /// Stores writes durably, piece by piece. If it is interrupted, some of them are there; whoever
    /// calls can repeat it.
    pub(crate) fn store<'a>(
        &mut self,
        writes: impl IntoIterator<Item = (&'a sled::IVec, Option<&'a [u8]>)>,
    ) -> Result<(), Fault> {
        #[cfg(any(test, feature = "planted-bugs"))]
        if let Some(crate::fault::Plant::HoldCheckpoints(held)) = &self.plant {
            while held.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (mut bytes, mut count) = (0, 0);
        for (key, record) in writes {
            let written = self.tree.put(key, record);
            written.map_err(|error| sled_failed("write", &error))?;
            count += 1;
            bytes += key.len() + record.map_or(0, <[u8]>::len);
            if bytes >= PIECE_BYTES || count == PIECE_WRITES {
                self.commit()?;
                (bytes, count) = (0, 0);
            }
        }
        if count > 0 {
            self.commit()?;
        }
        Ok(())
    }

    /// Makes everything applied so far durable.
    fn commit(&mut self) -> Result<(), Fault> {
        let synced = match &self.tree {
            Tree::Sled(tree) => {
                let flushed = tree.flush();
                flushed.map_err(|error| sled_failed("flush", &error))?;
                self.fdatasync()
            }
            #[cfg(feature = "simulation")]
            Tree::Simulated(disk) => disk.commit_records(),
        };
        synced.map_err(|error| Fault::Failed(format!("fdatasync of the database: {error}").into()))
    }

    fn sync_file(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    #[cfg(any(test, feature = "planted-bugs"))]
    fn fdatasync(&mut self) -> io::Result<()> {
        use crate::fault::Plant;
        let commit = self.commits;
        self.commits += 1;
        match self.plant {
            Some(Plant::FailCheckpoint(planted)) if planted == commit => {
                Err(io::Error::other("planted error"))
            }
            _ => self.sync_file(),
        }
    }

    #[cfg(not(any(test, feature = "planted-bugs")))]
    fn fdatasync(&mut self) -> io::Result<()> {
        self.sync_file()
    }

    fn check_anchor(&self, layout: &Layout) -> Result<(), OpenError> {
        let damage = |problem| {
            OpenError::Damaged(Damage {
                record: Key::Anchor.to_string(),
                place: layout.database().display().to_string(),
                problem,
            })
        };
        let key = Key::Anchor.encode();
        let record = read(&self.tree, &key)?;
        // A database that opens without its anchor has lost everything since its creation.
        let record = record.ok_or_else(|| damage(Problem::Missing))?;
        let body = record::open(Kind::Anchor, &key, &record).map_err(damage)?;
        if body != ANCHOR {
            return Err(damage(Problem::Contents("it is not of a log".into())));
        }
        Ok(())
    }

    fn has_groups(&self, path: &Path) -> Result<bool, OpenError> {
        let first = self.tree.scan_prefix(Key::groups_prefix()).next();
        first
            .transpose()
            .map(|found| found.is_some())
            .map_err(|error| OpenError::Database {
                path: path.to_owned(),
                reason: error.to_string(),
            })
    }
}

/// Reads one record.
pub(crate) fn read(tree: &Tree, key: &[u8]) -> Result<Option<sled::IVec>, Fault> {
    tree.get(key).map_err(|error| sled_failed("read", &error))
}

pub(crate) fn sled_failed(what: &str, error: &sled::Error) -> Fault {
    Fault::Failed(format!("{what} of the database: {error}").into())
}

fn create(path: &Path) -> Result<(), OpenError> {
    let mut database = open_sled(path)?;
    database.store_anchor()?;
    drop(database);
    sync_tree(path)
}

fn open_sled(path: &Path) -> Result<Database, OpenError> {
    let refused = |reason: String| OpenError::Database {
        path: path.to_owned(),
        reason,
    };
    let config = sled::Config::new()
        .path(path)
        .segment_size(SEGMENT)
        .cache_capacity(CACHE)
        .flush_every_ms(None);
    // sled panics on some kinds of damage; to the operator that is the same as an error.
    let open = || {
        catch_unwind(AssertUnwindSafe(|| config.open()))
            .map_err(|panic| format!("it panicked: {}", panic_text(&*panic)))?
            .map_err(|error| error.to_string())
    };
    let began = Instant::now();
    let tree = loop {
        match open() {
            Ok(tree) => break tree,
            // The folder is locked by us, so this can only be a thread of a database that was just
            // closed and has not let go of its file yet.
            Err(reason) if reason.contains("could not acquire lock") => {
                if began.elapsed() > LET_GO {
                    return Err(refused(reason));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(reason) => return Err(refused(reason)),
        }
    };
    let file = path.join("db");
    let file = File::options()
        .write(true)
        .open(&file)
        .map_err(failed("cannot open", &file))?;
    Ok(Database {
        tree: Tree::Sled(tree),
        file: Some(file),
        #[cfg(any(test, feature = "planted-bugs"))]
        plant: None,
        #[cfg(any(test, feature = "planted-bugs"))]
        commits: 0,
    })
}

/// Syncs every file and folder of the database, and the folder that holds it.
fn sync_tree(path: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(path).map_err(failed("cannot list", path))? {
        let entry = entry.map_err(failed("cannot list", path))?.path();
        if entry.is_dir() {
            for inner in fs::read_dir(&entry).map_err(failed("cannot list", &entry))? {
                let inner = inner.map_err(failed("cannot list", &entry))?.path();
                sync_folder(&inner).map_err(failed("cannot sync", &inner))?;
            }
        }
        // Opening for reading is enough for fsync, for files as for folders.
        sync_folder(&entry).map_err(failed("cannot sync", &entry))?;
    }
    sync_folder(path).map_err(failed("cannot sync", path))?;
    let parent = path.parent().unwrap_or(path);
    sync_folder(parent).map_err(failed("cannot sync", parent))
}

/// The message of a caught panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "without a message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let layout = Layout {
            root: folder.path().to_owned(),
            disk: Disk::System,
        };
        (folder, layout)
    }

    #[test]
    fn values_of_the_largest_size_never_leave_the_file() {
        let (_folder, layout) = layout();
        let mut database = Database::open(&layout, false).expect("a fresh folder");
        let key = |first| {
            let group = crate::keys::GroupId(1);
            Key::Run {
                group,
                first,
                part: 0,
            }
            .encode()
        };
        for round in 0..40u64 {
            let firsts = round * 10..round * 10 + 10;
            for first in firsts {
                let value = vec![first as u8; VALUE_MAX];
                let written = database.store([(&key(first), Some(&value[..]))]);
                written.expect("a working disk");
            }
        }
        // Purging makes sled merge nodes, which is when they are fullest.
        for first in (0..400u64).filter(|first| first % 5 != 0) {
            database
                .store([(&key(first), None)])
                .expect("a working disk");
        }
        let blobs = fs::read_dir(layout.database().join("blobs"))
            .expect("sled's folder")
            .count();
        assert_eq!(blobs, 0);
    }

    #[test]
    fn a_known_folder_without_its_database_is_a_loss() {
        let (_folder, layout) = layout();
        assert!(matches!(
            Database::open(&layout, true),
            Err(OpenError::Lost { .. })
        ));
        drop(Database::open(&layout, false).expect("a fresh folder"));
        drop(Database::open(&layout, true).expect("the same folder"));
        fs::write(layout.database().join("db"), []).expect("a write");
        assert!(matches!(
            Database::open(&layout, true),
            Err(OpenError::Lost { .. })
        ));
        fs::write(layout.database().join("db"), vec![0; 100_000]).expect("a write");
        assert!(matches!(
            Database::open(&layout, true),
            Err(OpenError::Damaged(_) | OpenError::Database { .. })
        ));
    }

    #[test]
    fn an_interrupted_creation_is_started_over() {
        let (_folder, layout) = layout();
        let unfinished = layout.database_in_creation();
        fs::create_dir_all(unfinished.join("blobs")).expect("a folder");
        fs::write(unfinished.join("db"), [7; 100]).expect("a write");
        drop(Database::open(&layout, false).expect("a fresh folder"));
        assert!(!unfinished.exists());
    }

    #[test]
    fn a_failing_fdatasync_fails_the_commit() {
        let (_folder, layout) = layout();
        let mut database = Database::open(&layout, false).expect("a fresh folder");
        database.plant(crate::fault::Plant::FailCheckpoint(1));
        assert_eq!(database.commit(), Ok(()));
        assert!(matches!(database.commit(), Err(Fault::Failed(_))));
    }
}
