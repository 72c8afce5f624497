//! The Raft log of one group, as openraft sees it.
//!
//! A [`LogStore`] encodes entries once, keeps the newest of them decoded for replication and
//! apply, and hands the bytes to the writer thread. Vote, purged and last log id are answered from
//! memory; older entries are read from the database. The state has one lock, held for memory work
//! only, shared by the clones that openraft's core, replication and apply tasks own.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::type_config::alias::{LogIdOf, VoteOf};
use openraft::{OptionalSend, RaftLogReader, RaftTypeConfig};

use crate::Inner;
use crate::database;
use crate::fault::{Fault, Problem, damage};
use crate::keys::{GroupId, Key, Slot};
use crate::queue::{Done, Encoded, Job, Link, Op};
use crate::record::{self, Kind};
use crate::run::{decode, encode, read_run};
use crate::writer::ENTRY_MAX;

/// Encoded size of the entries kept decoded in memory. Followers further behind than this are fed
/// from the database.
///
/// Tests use little, so that they meet both sources in one answer.
const CACHE_BYTES: usize = if cfg!(test) { 4096 } else { 16 * 1024 * 1024 };

/// Encoded size of one answer to a reader that takes a part of what it asked for.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The log of one group. Clones share it.
pub struct LogStore<C: RaftTypeConfig> {
    pub(crate) shared: Arc<Shared<C>>,
}

impl<C: RaftTypeConfig> Clone for LogStore<C> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<C: RaftTypeConfig> Debug for LogStore<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore")
            .field("group", &self.shared.membership.name)
            .finish_non_exhaustive()
    }
}

/// Marks a group as open until the last handle is gone.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) inner: Arc<Inner>,
    pub(crate) group: GroupId,
    pub(crate) name: String,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.inner.release(self.group);
    }
}

pub(crate) struct Shared<C: RaftTypeConfig> {
    pub(crate) membership: Arc<Membership>,
    pub(crate) link: Arc<Link>,
    pub(crate) state: Mutex<State<C>>,
}

/// What is known about the log without reading it.
pub(crate) struct State<C: RaftTypeConfig> {
    pub(crate) vote: Option<VoteOf<C>>,
    pub(crate) committed: Option<LogIdOf<C>>,
    pub(crate) purged: Option<LogIdOf<C>>,
    /// The last entry, or what was purged if there is none.
    pub(crate) last: Option<LogIdOf<C>>,
    /// Index of the first entry that is present, if any is.
    pub(crate) first: u64,
    /// The newest entries without a hole, up to the last one.
    cache: VecDeque<Cached<C>>,
    cache_bytes: usize,
    /// Counts what makes entries disappear, so that a reader notices.
    removals: u64,
}

struct Cached<C: RaftTypeConfig> {
    size: usize,
    entry: C::Entry,
}

impl<C: RaftTypeConfig> State<C> {
    pub(crate) fn new(
        vote: Option<VoteOf<C>>,
        committed: Option<LogIdOf<C>>,
        purged: Option<LogIdOf<C>>,
        last: Option<LogIdOf<C>>,
        first: u64,
    ) -> Self {
        let cache = VecDeque::new();
        Self {
            vote,
            committed,
            purged,
            last,
            first,
            cache,
            cache_bytes: 0,
            removals: 0,
        }
    }

    /// Index after the last entry; `None` while the log has never held any.
    fn next(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.index + 1)
    }

    fn cache_first(&self) -> u64 {
        match self.cache.front() {
            Some(cached) => cached.entry.index(),
            None => self.next().unwrap_or(0),
        }
    }

    fn pop_front(&mut self) {
        if let Some(cached) = self.cache.pop_front() {
            self.cache_bytes -= cached.size;
        }
    }

    fn pop_back(&mut self) {
        if let Some(cached) = self.cache.pop_back() {
            self.cache_bytes -= cached.size;
        }
    }
}

impl<C: RaftTypeConfig> LogStore<C> {
    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> &Inner {
        &self.shared.membership.inner
    }

    fn group(&self) -> GroupId {
        self.shared.membership.group
    }

    /// Hands a job to the writer and waits until it is durable.
    async fn durably(&self, op: Op) -> Result<(), Fault> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |outcome| {
            // The receiver is gone only if the caller gave up waiting.
            let _ = sender.send(outcome);
        });
        self.inner().queue.push(Job {
            op,
            durable: true,
            done: Some(done),
            room: None,
        })?;
        receiver.await.unwrap_or(Err(Fault::Closed))
    }

    /// Entries of `[from, to)` that left the cache, in log order.
    fn read_database(&self, from: u64, to: u64, limit: usize) -> Result<Vec<C::Entry>, Fault> {
        let tree = self.inner().reader()?;
        let group = self.group();
        let failed = |error: sled::Error| database::sled_failed("read", &error);
        let start = Key::Run {
            group,
            first: from,
            part: u16::MAX,
        }
        .encode();
        let prefix = Key::runs_prefix(group);
        let mut first = from;
        if let Some(found) = tree.range(&prefix[..]..=&start[..]).next_back() {
            let (key, _) = found.map_err(failed)?;
            if let Some(Key::Run { first: head, .. }) = Key::decode(&key) {
                first = head;
            }
        }
        let mut entries = Vec::new();
        let mut size = 0;
        let start = Key::Run {
            group,
            first,
            part: 0,
        }
        .encode();
        let end = Key::Run {
            group,
            first: to,
            part: 0,
        }
        .encode();
        let mut records = tree.range(&start[..]..&end[..]);
        while let Some(found) = records.next() {
            let (bytes, value) = found.map_err(failed)?;
            let run = read_run(&bytes, &value, || {
                records.next().transpose().map_err(failed)
            })?;
            for (index, entry) in (run.first..).zip(run.entries()) {
                let entry = entry.map_err(|problem| damage(&run.key, problem))?;
                if (from..to).contains(&index) {
                    if size > 0 && size + entry.len() > limit {
                        return Ok(entries);
                    }
                    size += entry.len();
                    entries.push(decode(&run.key, entry)?);
                }
            }
        }
        Ok(entries)
    }

    fn read(&self, range: impl RangeBounds<u64>, limit: usize) -> Result<Vec<C::Entry>, Fault>
    where
        C::Entry: Clone,
    {
        let from = match range.start_bound() {
            Bound::Included(&from) => from,
            Bound::Excluded(&from) => from.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&to) => to.saturating_add(1),
            Bound::Excluded(&to) => to,
            Bound::Unbounded => u64::MAX,
        };
        self.inner().health.check()?;
        loop {
            let state = self.state();
            let from = from.max(state.first);
            let to = to.min(state.next().unwrap_or(0));
            if from >= to {
                return Ok(Vec::new());
            }
            let boundary = state.cache_first();
            if from >= boundary {
                return Ok(cached_entries(&state, from, to, limit));
            }
            let removals = state.removals;
            drop(state);

            let cold_to = to.min(boundary);
            let mut entries = self.read_database(from, cold_to, limit)?;
            let state = self.state();
            if state.removals != removals {
                continue;
            }
            let read_to = from + entries.len() as u64;
            if read_to < cold_to && (limit == usize::MAX || entries.is_empty()) {
                // Nothing was removed meanwhile, so the entry should have been there.
                let key = Key::Run {
                    group: self.group(),
                    first: read_to,
                    part: 0,
                };
                return Err(damage(&key, Problem::Missing));
            }
            if read_to == cold_to && cold_to < to && limit == usize::MAX {
                if state.cache_first() > cold_to {
                    // The cache moved on while the database was read.
                    continue;
                }
                entries.extend(cached_entries(&state, cold_to, to, limit));
            }
            return Ok(entries);
        }
    }
}

fn cached_entries<C: RaftTypeConfig>(
    state: &State<C>,
    from: u64,
    to: u64,
    limit: usize,
) -> Vec<C::Entry>
where
    C::Entry: Clone,
{
    let skip = usize::try_from(from - state.cache_first()).unwrap_or(usize::MAX);
    let count = usize::try_from(to - from).unwrap_or(usize::MAX);
    let mut size = 0usize;
    state
        .cache
        .iter()
        .skip(skip)
        .take(count)
        .take_while(|cached| {
            let first = size == 0;
            size = size.saturating_add(cached.size);
            first || size <= limit
        })
        .map(|cached| cached.entry.clone())
        .collect()
}

impl<C> RaftLogReader<C> for LogStore<C>
where
    C: RaftTypeConfig,
    C::Entry: Clone,
{
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<C::Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.read(range, usize::MAX)?)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<C>>, io::Error> {
        self.inner().health.check()?;
        Ok(self.state().vote.clone())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<C::Entry>, io::Error> {
        Ok(self.read(start..end, ANSWER_BYTES)?)
    }
}

impl<C> RaftLogStorage<C> for LogStore<C>
where
    C: RaftTypeConfig,
    C::Entry: Clone,
{
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<C>, io::Error> {
        self.inner().health.check()?;
        let state = self.state();
        Ok(LogState {
            last_purged_log_id: state.purged.clone(),
            last_log_id: state.last.clone(),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> Result<(), io::Error> {
        let key = Key::Slot(self.group(), Slot::Vote).encode();
        let mut record = record::begin(Kind::Vote, 16);
        encode(vote, &mut record)?;
        record::seal(&mut record, &key);
        self.durably(Op::Put { key, record }).await?;
        self.state().vote = Some(vote.clone());
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        self.inner().health.check()?;
        {
            let link = &self.shared.link;
            let mut lazy = link
                .committed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            lazy.0.clear();
            encode(&committed, &mut lazy.0)?;
            lazy.1 = true;
        }
        self.state().committed = committed;
        self.inner().queue.remind();
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<C>>, io::Error> {
        self.inner().health.check()?;
        Ok(self.state().committed.clone())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = C::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Encoded::default();
        let mut fresh: Vec<Cached<C>> = Vec::new();
        for entry in entries {
            let start = encoded.bytes.len();
            encoded.bytes.extend_from_slice(&[0; 4]);
            encode(&entry, &mut encoded.bytes)?;
            let size = encoded.bytes.len() - start - 4;
            let length = u32::try_from(size).ok().filter(|_| size <= ENTRY_MAX);
            let length = length.ok_or(Fault::TooLarge {
                size,
                limit: ENTRY_MAX,
            })?;
            encoded.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
            encoded.ends.push(encoded.bytes.len());
            fresh.push(Cached { size, entry });
        }
        let Some((first, last)) = fresh.first().zip(fresh.last()) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        encoded.first = first.entry.index();
        let last = last.entry.log_id();
        let room = self.inner().queue.reserve(encoded.bytes.len()).await?;
        let done: Done =
            Box::new(move |outcome| callback.io_completed(outcome.map_err(io::Error::from)));

        let mut state = self.state();
        check_order(&state, &fresh)?;
        let op = Op::Append {
            group: self.group(),
            entries: encoded,
        };
        self.inner().queue.push(Job {
            op,
            durable: true,
            done: Some(done),
            room: Some(room),
        })?;
        if state.last.is_none() {
            state.first = fresh.first().map_or(0, |cached| cached.entry.index());
        }
        state.last = Some(last);
        state.cache_bytes += fresh.iter().map(|cached| cached.size).sum::<usize>();
        state.cache.extend(fresh);
        let applied = self.shared.link.applied.load(Ordering::Acquire);
        while state.cache_bytes > CACHE_BYTES
            && state
                .cache
                .front()
                .is_some_and(|cached| cached.entry.index() < applied)
        {
            state.pop_front();
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        let from = {
            let mut state = self.state();
            let purged = state.purged.as_ref().map_or(0, |purged| purged.index + 1);
            let from = last_log_id
                .as_ref()
                .map_or(0, |last| last.index + 1)
                .max(purged);
            if state.next().is_none_or(|next| from >= next) {
                return Ok(());
            }
            while state
                .cache
                .back()
                .is_some_and(|cached| cached.entry.index() >= from)
            {
                state.pop_back();
            }
            state.last = if from > purged {
                last_log_id
            } else {
                state.purged.clone()
            };
            state.removals += 1;
            from
        };
        Ok(self
            .durably(Op::Truncate {
                group: self.group(),
                from,
            })
            .await?)
    }

    async fn purge(&mut self, log_id: LogIdOf<C>) -> Result<(), io::Error> {
        let key = Key::Slot(self.group(), Slot::Purged).encode();
        let mut record = record::begin(Kind::Purged, 16);
        encode(&log_id, &mut record)?;
        record::seal(&mut record, &key);

        let upto = log_id.index;
        let mut state = self.state();
        if state
            .purged
            .as_ref()
            .is_some_and(|purged| purged.index >= upto)
        {
            return Ok(());
        }
        // Later writes are queued behind this one, so it need not be waited for.
        let op = Op::Purge {
            group: self.group(),
            upto,
            record,
        };
        self.inner().queue.push(Job {
            op,
            durable: false,
            done: None,
            room: None,
        })?;
        while state
            .cache
            .front()
            .is_some_and(|cached| cached.entry.index() <= upto)
        {
            state.pop_front();
        }
        if state.next().is_none_or(|next| upto >= next) {
            state.last = Some(log_id.clone());
        }
        state.first = state.first.max(upto + 1);
        state.purged = Some(log_id);
        state.removals += 1;
        Ok(())
    }
}

/// Refuses entries that do not follow the last one, or each other, without a hole.
fn check_order<C: RaftTypeConfig>(state: &State<C>, fresh: &[Cached<C>]) -> Result<(), Fault> {
    let mut expected = state.next();
    for cached in fresh {
        let found = cached.entry.index();
        match expected {
            Some(expected) if expected != found => return Err(Fault::Hole { expected, found }),
            _ => expected = Some(found + 1),
        }
    }
    Ok(())
}
