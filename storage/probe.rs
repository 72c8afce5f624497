//! A group in plain words, for tests that must not know openraft: the power-cut test and the bench.
//!
//! Entries are text with a term and an index; everything else goes through [`LogStore`] and
//! [`SnapshotStore`] exactly as openraft would drive them. Only exists with the feature
//! `planted-bugs`.

use std::future::Future;
use std::io;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{EntryOf, LogIdOf};
use openraft::vote::RaftLeaderIdExt;
use openraft::{EntryPayload, RaftLogReader, RaftTypeConfig, Vote};

use crate::{LogStore, OpenError, SnapshotStore, Storage};

openraft::declare_raft_types!(
    /// Entries are text, nodes are numbers.
    pub Types: D = String, R = String
);

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What it says.
    pub text: String,
}

/// All that a group remembers, besides its snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Term of the last vote.
    pub vote: Option<u64>,
    /// Last index known to be committed.
    pub committed: Option<u64>,
    /// Term and index of what was purged last.
    pub purged: Option<(u64, u64)>,
    /// Term and index of the end of the log, as answered without reading it.
    pub last: Option<(u64, u64)>,
    /// The entries, read one and all.
    pub entries: Vec<Entry>,
}

/// An open group. Clones share it.
#[derive(Clone, Debug)]
pub struct Probe {
    log: LogStore<Types>,
    snapshots: SnapshotStore,
}

impl Probe {
    /// Opens a group.
    pub fn open(storage: &Storage, name: &str) -> Result<Self, OpenError> {
        let (log, snapshots) = storage.group(name)?;
        Ok(Self { log, snapshots })
    }

    /// Appends entries. The outer future ends when they are queued and readable, the inner one when
    /// they are durable.
    pub async fn append(
        &mut self,
        entries: Vec<Entry>,
    ) -> io::Result<impl Future<Output = io::Result<()>> + Send + use<>> {
        let (sender, receiver) = Types::oneshot();
        let entries = entries
            .into_iter()
            .map(|entry| EntryOf::<Types>::new_normal(log_id(entry.term, entry.index), entry.text));
        self.log
            .append(
                entries.collect::<Vec<_>>(),
                IOFlushed::<Types>::signal(sender),
            )
            .await?;
        Ok(async move {
            let gone = |_| io::Error::other("the acknowledgement was dropped");
            receiver.await.map_err(gone)?
        })
    }

    /// Removes all entries after this one, durably.
    pub async fn truncate_after(&mut self, last: Option<(u64, u64)>) -> io::Result<()> {
        self.log
            .truncate_after(last.map(|(term, index)| log_id(term, index)))
            .await
    }

    /// Forgets all entries up to this one.
    pub async fn purge(&mut self, term: u64, index: u64) -> io::Result<()> {
        self.log.purge(log_id(term, index)).await
    }

    /// Saves a vote, durably.
    pub async fn vote(&mut self, term: u64) -> io::Result<()> {
        self.log.save_vote(&Vote::new(term, NODE)).await
    }

    /// Notes what is committed; becomes durable some time later.
    pub async fn commit(&mut self, term: u64, index: u64) -> io::Result<()> {
        self.log.save_committed(Some(log_id(term, index))).await
    }

    /// Reads everything back.
    pub async fn contents(&mut self) -> io::Result<Contents> {
        let state = self.log.get_log_state().await?;
        let plain = |id: LogIdOf<Types>| (id.leader_id.term, id.index);
        let read = self.log.try_get_log_entries(..).await?;
        Ok(Contents {
            vote: self.log.read_vote().await?.map(|vote| vote.leader_id.term),
            committed: self.log.read_committed().await?.map(|id| id.index),
            purged: state.last_purged_log_id.map(plain),
            last: state.last_log_id.map(plain),
            entries: read.into_iter().map(entry).collect(),
        })
    }

    /// Some entries, as a replication task reads them.
    pub async fn read(&mut self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let read = self.log.try_get_log_entries(from..to).await?;
        Ok(read.into_iter().map(entry).collect())
    }

    /// The snapshots of the group.
    pub fn snapshots(&self) -> &SnapshotStore {
        &self.snapshots
    }
}

const NODE: u64 = 1;

pub(crate) fn log_id(term: u64, index: u64) -> LogIdOf<Types> {
    let leader =
        <<Types as RaftTypeConfig>::LeaderId as RaftLeaderIdExt>::new_committed(term, NODE);
    LogIdOf::<Types>::new(leader, index)
}

fn entry(entry: EntryOf<Types>) -> Entry {
    let text = match entry.payload {
        EntryPayload::Normal(text) => text,
        other => format!("not an entry of a probe: {other}"),
    };
    Entry {
        index: entry.log_id.index,
        term: entry.log_id.leader_id.term,
        text,
    }
}
