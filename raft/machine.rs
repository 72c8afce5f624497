//! The replicated state machine: committed entries in, published state and answers out.
//!
//! openraft's worker task calls [`Machine::apply`] with committed entries in log order; the machine
//! alone owns the [`State`]. After each chunk it publishes to [`crate::feed`] and answers waiting
//! callers through [`crate::pending`]. The state lives in memory: snapshots of it are kept by
//! `flotilla-storage`, and a restart loads the last one and applies the log after it.

use std::fmt::Display;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_model::State;
use flotilla_model::command::Entry;
use flotilla_model::encoding::{decode_entry, decode_snapshot, encode_snapshot};
use flotilla_model::id::{RequestId, UnixMillis};
use flotilla_model::request::Requests;
use flotilla_storage::{SnapshotStore, Storage};
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use tonic::Status;

use crate::blocking::blocking;
use crate::feed::{Applied, Change, History};
use crate::pending::{CommandResult, Pending};
use crate::proto;
use crate::types::{
    Batch, LogId, Membership, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
};

/// Commands applied before their results are published. Rises: less work per command when a node
/// catches up; falls: readers and callers see results sooner.
const CHUNK: usize = 512;
/// First byte of a snapshot.
const SNAPSHOT_VERSION: u8 = 1;

/// What the machine shares with the group's tasks.
#[derive(Default)]
pub(crate) struct Progress {
    /// Bytes of commands applied since the last snapshot; decides when the next is built.
    pub(crate) bytes_since_snapshot: AtomicU64,
}

pub(crate) struct Machine {
    history: Arc<History>,
    pending: Arc<Pending>,
    progress: Arc<Progress>,
    snapshots: Snapshots,
    state: State,
    at: UnixMillis,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// The snapshot on disk, as far as this machine has loaded or installed it.
    stored: Option<SnapshotMeta>,
}

/// Results of a chunk, not yet shown.
#[derive(Default)]
struct Chunk {
    changes: Vec<Arc<Change>>,
    results: Vec<(RequestId, CommandResult)>,
    responders: Vec<openraft::storage::ApplyResponder<TypeConfig>>,
}

impl Chunk {
    /// The state after what has been applied.
    fn state(&self, history: &History) -> Arc<State> {
        let last = self.changes.last();
        last.map_or_else(|| history.state(), |change| Arc::clone(&change.state))
    }
}

impl Machine {
    pub(crate) fn new(
        history: Arc<History>,
        pending: Arc<Pending>,
        progress: Arc<Progress>,
        snapshots: SnapshotStore,
        storage: Storage,
    ) -> Self {
        Self {
            history,
            pending,
            progress,
            snapshots: Snapshots {
                store: snapshots,
                storage,
            },
            state: State::default(),
            at: UnixMillis(0),
            applied: None,
            membership: StoredMembership::default(),
            stored: None,
        }
    }

    fn apply_batch(&mut self, id: LogId, batch: &Batch, chunk: &mut Chunk) -> io::Result<()> {
        // The same on every node, because `self.at` is part of the state that snapshots carry.
        self.at = self.at.max(batch.at);
        let mut events = Vec::with_capacity(batch.commands.len());
        for command in &batch.commands {
            let mut entry = read(id, command)?;
            entry.at = self.at;
            let applied = self.state.apply(&entry);
            events.push((self.state.revision, applied.events));
            chunk.results.push((entry.request, applied.result));
        }
        let before = chunk.state(&self.history);
        // One copy per entry, not per command: while nobody holds a copy, maps change in place.
        let state = Arc::new(shown(&self.state));
        chunk
            .changes
            .extend(events.into_iter().map(|(revision, events)| {
                Arc::new(Change {
                    revision,
                    log_index: id.index,
                    at: self.at,
                    events,
                    before: Arc::clone(&before),
                    state: Arc::clone(&state),
                })
            }));
        let size = u64::try_from(batch.size()).unwrap_or(u64::MAX);
        self.progress
            .bytes_since_snapshot
            .fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Shows what was applied, then answers: whoever gets an answer finds the change in the state.
    fn publish(&self, chunk: &mut Chunk) {
        let state = chunk.state(&self.history);
        let applied = Applied {
            state,
            log_index: self.applied.map(|id| id.index),
            at: self.at,
        };
        self.history
            .publish(std::mem::take(&mut chunk.changes), applied);
        self.pending.complete(chunk.results.drain(..));
        for responder in chunk.responders.drain(..) {
            responder.send(());
        }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunk = Chunk::default();
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(batch) => {
                    self.apply_batch(entry.log_id, batch, &mut chunk)?;
                }
                EntryPayload::Membership(membership) => {
                    self.set_membership(entry.log_id, membership);
                }
            }
            self.applied = Some(entry.log_id);
            chunk.responders.extend(responder);
            if chunk.results.len() >= CHUNK {
                self.publish(&mut chunk);
            }
        }
        self.publish(&mut chunk);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.progress
            .bytes_since_snapshot
            .store(0, Ordering::Relaxed);
        Builder {
            state: self.state.clone(),
            at: self.at,
            meta: self.meta(),
            snapshots: self.snapshots.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: Bytes) -> io::Result<()> {
        let (at, state) = decode(&data)?;
        // At a restart openraft installs what is on disk already.
        if self.stored.as_ref() != Some(meta) {
            self.snapshots.save(meta.clone(), data).await?;
            self.stored = Some(meta.clone());
        }
        self.progress
            .bytes_since_snapshot
            .store(0, Ordering::Relaxed);
        self.state = state;
        self.at = at;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.history.replace(Applied {
            state: Arc::new(shown(&self.state)),
            log_index: self.applied.map(|id| id.index),
            at,
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshot = self.snapshots.load().await?;
        self.stored = snapshot.as_ref().map(|snapshot| snapshot.meta.clone());
        Ok(snapshot)
    }
}

impl Machine {
    fn set_membership(&mut self, id: LogId, membership: &Membership) {
        self.membership = StoredMembership::new(Some(id), membership.clone());
    }
}

/// A command of an entry. One that this program does not know is no command to pass over: the other
/// nodes apply it. openraft stops the group on the error.
fn read(id: impl Display, command: &[u8]) -> io::Result<Entry> {
    decode_entry(command).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("log entry {id} cannot be read by this program: {error}"),
        )
    })
}

/// Builds a snapshot of the state as it was, while the machine goes on.
pub(crate) struct Builder {
    state: State,
    at: UnixMillis,
    meta: SnapshotMeta,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (at, state) = (self.at, self.state.clone());
        let data = self.snapshots.apart(move || Ok(encode(at, &state))).await?;
        self.snapshots.save(self.meta.clone(), data.clone()).await?;
        tracing::info!(
            index = self.meta.last_log_id.map(|id| id.index),
            bytes = data.len(),
            "snapshot built"
        );
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: data,
        })
    }
}

/// What readers get: the state without the remembered requests. They are most of what changes with
/// every command; as long as only the machine has them, they change in place.
fn shown(state: &State) -> State {
    let mut shown = state.clone();
    shown.requests = Requests::default();
    shown
}

/// The snapshots on disk, reached from tasks.
#[derive(Clone)]
struct Snapshots {
    store: SnapshotStore,
    storage: Storage,
}

impl Snapshots {
    /// Does what takes long apart from the tasks.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        blocking(&self.storage, work)
            .await
            .map_err(io::Error::other)?
    }

    async fn save(&self, meta: SnapshotMeta, data: Bytes) -> io::Result<()> {
        let meta = proto::SnapshotMeta::from(&meta).encode_to_vec();
        let store = self.store.clone();
        self.apart(move || Ok(store.save(&meta, &data[..])?)).await
    }

    async fn load(&self) -> io::Result<Option<Snapshot>> {
        let store = self.store.clone();
        self.apart(move || read_snapshot(&store)).await
    }
}

fn read_snapshot(store: &SnapshotStore) -> io::Result<Option<Snapshot>> {
    let Some(mut stored) = store.load()? else {
        return Ok(None);
    };
    let meta = proto::SnapshotMeta::decode(&stored.meta[..])
        .map_err(io::Error::other)?
        .try_into()
        .map_err(|status: Status| io::Error::other(status.message().to_owned()))?;
    let mut data = Vec::with_capacity(usize::try_from(stored.length).unwrap_or_default());
    stored.data.read_to_end(&mut data)?;
    Ok(Some(Snapshot {
        meta,
        snapshot: Bytes::from(data),
    }))
}

fn encode(at: UnixMillis, state: &State) -> Bytes {
    let body = encode_snapshot(state);
    let mut bytes = BytesMut::with_capacity(9 + body.len());
    bytes.put_u8(SNAPSHOT_VERSION);
    bytes.put_u64(at.0);
    bytes.put_slice(&body);
    bytes.freeze()
}

fn decode(bytes: &[u8]) -> io::Result<(UnixMillis, State)> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let Some((head, body)) = bytes.split_at_checked(9) else {
        return Err(invalid("snapshot is too short".to_owned()));
    };
    if head[0] != SNAPSHOT_VERSION {
        return Err(invalid(format!(
            "snapshot has version {}, this program reads {SNAPSHOT_VERSION}",
            head[0]
        )));
    }
    let mut at = [0; 8];
    at.copy_from_slice(&head[1..]);
    let state = decode_snapshot(body).map_err(|error| invalid(format!("snapshot: {error}")))?;
    Ok((UnixMillis(u64::from_be_bytes(at)), state))
}

#[cfg(test)]
mod tests {
    use flotilla_model::command::Command;
    use flotilla_model::encoding::{VERSION, encode_entry};

    use super::*;

    #[test]
    fn a_command_of_a_newer_version_is_refused_by_name() {
        let entry = Entry {
            at: UnixMillis(1),
            request: RequestId(1),
            command: Command::Noop,
        };
        let mut bytes = encode_entry(&entry);
        assert_eq!(read("T1-N1.7", &bytes).expect("is known"), entry);
        bytes[0] = VERSION + 1;
        let error = read("T1-N1.7", &bytes).expect_err("is not known");
        let text = error.to_string();
        assert!(
            text.contains("T1-N1.7 cannot be read by this program"),
            "{text}"
        );
        assert!(
            text.contains(&format!("version {} is not known", VERSION + 1)),
            "{text}"
        );
    }

    #[test]
    fn a_snapshot_of_a_newer_version_is_refused_by_name() {
        let mut bytes = encode(UnixMillis(7), &State::default()).to_vec();
        assert_eq!(decode(&bytes).expect("is known").0, UnixMillis(7));
        bytes[9] = VERSION + 1;
        let error = decode(&bytes).expect_err("is not known");
        assert!(error.to_string().contains("is not known"), "{error}");
    }
}
