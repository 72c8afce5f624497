//! What the tests share: a Raft type configuration and short names for common steps.

use std::io;
use std::path::Path;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::vote::RaftLeaderIdExt;
use openraft::{RaftTypeConfig, Vote};

use crate::{Identity, LogStore, SnapshotStore, Storage};

openraft::declare_raft_types!(
    /// Entries are text, nodes are numbers.
    pub(crate) Types: D = String, R = String
);

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

pub(crate) fn log_id(term: u64, index: u64) -> LogIdOf<Types> {
    LogIdOf::<Types>::new(
        <<Types as RaftTypeConfig>::LeaderId as RaftLeaderIdExt>::new_committed(term, 1),
        index,
    )
}

pub(crate) fn entry(term: u64, index: u64, text: &str) -> EntryOf<Types> {
    EntryOf::<Types>::new_normal(log_id(term, index), text.to_owned())
}

pub(crate) fn vote(term: u64) -> VoteOf<Types> {
    Vote::new(term, 1)
}

/// Appends and waits until it is durable.
pub(crate) async fn append(log: &mut Log, entries: Vec<EntryOf<Types>>) -> io::Result<()> {
    let (sender, receiver) = Types::oneshot();
    log.append(entries, IOFlushed::<Types>::signal(sender))
        .await?;
    receiver.await.expect("the callback is called")
}

/// Appends `range` in one call, text `entry N`.
pub(crate) async fn fill(log: &mut Log, term: u64, range: std::ops::Range<u64>) {
    let entries = range.map(|index| entry(term, index, &format!("entry {index}")));
    log.blocking_append(entries).await.expect("an append");
}
