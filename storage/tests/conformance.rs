//! openraft's own suite against the store, also with the folder reopened between the steps.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt};
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::{
    EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft::{EntryPayload, OptionalSend, RaftLogReader, StorageError};
use tempfile::TempDir;

use super::support::{self, Log, Types};
use crate::{SnapshotStore, Storage};

#[tokio::test]
async fn the_store_conforms() {
    Suite::test_all(Direct).await.expect("openraft's suite");
}

#[tokio::test]
async fn the_store_conforms_when_reopened_after_every_step() {
    Suite::test_all(WithReopening)
        .await
        .expect("openraft's suite");
}

/// An open store that can be closed and opened again under its users.
struct Session {
    folder: TempDir,
    open: Mutex<Option<(Storage, Log, SnapshotStore)>>,
}

impl Session {
    fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = Mutex::new(Some(support::open(folder.path())));
        Arc::new(Self { folder, open })
    }

    fn log(&self) -> Log {
        let open = self.open.lock().expect("no test panicked");
        open.as_ref().expect("the store is open").1.clone()
    }

    fn snapshots(&self) -> SnapshotStore {
        let open = self.open.lock().expect("no test panicked");
        open.as_ref().expect("the store is open").2.clone()
    }

    fn reopen(&self) {
        let mut open = self.open.lock().expect("no test panicked");
        *open = None;
        *open = Some(support::open(self.folder.path()));
    }
}

struct Direct;

impl StoreBuilder<Types, Log, Machine, Arc<Session>> for Direct {
    async fn build(&self) -> Result<(Arc<Session>, Log, Machine), StorageError<Types>> {
        let session = Session::new();
        let log = session.log();
        Ok((Arc::clone(&session), log, Machine::new(session)))
    }
}

struct WithReopening;

impl StoreBuilder<Types, Reopening, Machine, Arc<Session>> for WithReopening {
    async fn build(&self) -> Result<(Arc<Session>, Reopening, Machine), StorageError<Types>> {
        let session = Session::new();
        let log = Reopening(Arc::clone(&session));
        Ok((Arc::clone(&session), log, Machine::new(session)))
    }
}

/// The log of a store that is reopened after every write.
#[derive(Clone)]
struct Reopening(Arc<Session>);

impl RaftLogReader<Types> for Reopening {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<EntryOf<Types>>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.0.log().try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        self.0.log().read_vote().await
    }
}

impl RaftLogStorage<Types> for Reopening {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        self.0.log().get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        self.0.log().save_vote(vote).await?;
        self.0.reopen();
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> io::Result<()> {
        self.0.log().save_committed(committed).await?;
        self.0.reopen();
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<Types>>> {
        self.0.log().read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        support::append(&mut self.0.log(), entries).await?;
        self.0.reopen();
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        self.0.log().truncate_after(last).await?;
        self.0.reopen();
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> io::Result<()> {
        self.0.log().purge(upto).await?;
        self.0.reopen();
        Ok(())
    }
}

type Standing = (Option<LogIdOf<Types>>, StoredMembershipOf<Types>);

/// A state machine that only knows where it stands; its snapshots are in the snapshot store.
#[derive(Clone)]
struct Machine {
    session: Arc<Session>,
    standing: Arc<Mutex<Standing>>,
}

impl Machine {
    fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            standing: Arc::default(),
        }
    }

    fn standing(&self) -> Standing {
        self.standing.lock().expect("no test panicked").clone()
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, Vec<u8>>> {
        let (last_log_id, last_membership) = self.standing();
        let meta = SnapshotMetaOf::<Types> {
            last_log_id,
            last_membership,
        };
        let bytes = postcard::to_allocvec(&meta).map_err(io::Error::other)?;
        self.session.snapshots().save(&bytes, &b"data"[..])?;
        Ok(SnapshotOf::<Types, Vec<u8>> {
            meta,
            snapshot: b"data".to_vec(),
        })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<Standing> {
        Ok(self.standing())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let mut standing = self.standing.lock().expect("no test panicked");
            standing.0 = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                standing.1 = StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(String::new());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: Vec<u8>,
    ) -> io::Result<()> {
        let bytes = postcard::to_allocvec(meta).map_err(io::Error::other)?;
        self.session.snapshots().save(&bytes, &snapshot[..])?;
        let mut standing = self.standing.lock().expect("no test panicked");
        *standing = (meta.last_log_id, meta.last_membership.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, Vec<u8>>>> {
        let Some(mut stored) = self.session.snapshots().load()? else {
            return Ok(None);
        };
        let meta = postcard::from_bytes(&stored.meta).map_err(io::Error::other)?;
        let mut snapshot = Vec::new();
        io::Read::read_to_end(&mut stored.data, &mut snapshot)?;
        Ok(Some(SnapshotOf::<Types, Vec<u8>> { meta, snapshot }))
    }
}
