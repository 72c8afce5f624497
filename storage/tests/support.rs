//! Short names for the steps that many tests take.

use std::path::Path;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::EntryOf;

pub(crate) use crate::probe::Types;
use crate::probe::{Entry, Probe};
use crate::{Identity, LogStore, SnapshotStore, Storage};

pub(crate) type Log = LogStore<Types>;

pub(crate) fn identity() -> Identity {
    Identity {
        cluster: None,
        node: 1,
    }
}

pub(crate) fn open(path: &Path) -> (Storage, Log, SnapshotStore) {
    let storage = Storage::open(path, identity()).expect("the folder opens");
    let (log, snapshots) = storage.group("home").expect("the group opens");
    (storage, log, snapshots)
}

pub(crate) fn open_probe(path: &Path) -> (Storage, Probe) {
    let storage = Storage::open(path, identity()).expect("the folder opens");
    let probe = Probe::open(&storage, "home").expect("the group opens");
    (storage, probe)
}

/// Appends and waits until it is durable.
pub(crate) async fn append(log: &mut Log, entries: Vec<EntryOf<Types>>) -> std::io::Result<()> {
    let (sender, receiver) = Types::oneshot();
    log.append(entries, IOFlushed::<Types>::signal(sender))
        .await?;
    receiver.await.expect("the callback is called")
}

pub(crate) fn entry(index: u64) -> Entry {
    Entry {
        index,
        term: 1,
        text: format!("entry {index}"),
    }
}

/// Appends `range` at once and waits until it is durable.
pub(crate) async fn fill(probe: &mut Probe, range: std::ops::Range<u64>) {
    let queued = probe
        .append(range.map(entry).collect())
        .await
        .expect("an append");
    queued.await.expect("a working disk");
}

/// Every file under a folder with its contents, to put back later.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry").path();
        let target = to.join(entry.file_name().expect("a name"));
        if entry.is_dir() {
            copy_folder(&entry, &target);
        } else {
            std::fs::copy(&entry, &target).expect("a copy");
        }
    }
}
