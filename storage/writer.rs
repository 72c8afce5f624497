//! The one thread that writes: it takes everything that waits, from all groups, puts it into one
//! batch, makes the batch durable, and only then acknowledges.
//!
//! ```text
//! log handles ──► queue (bounded by bytes) ──► stage ──► sled batch ──► flush ──► fdatasync ──► done
//! ```
//! The thread owns the database's write side and, per group, the index of runs on disk. Consecutive
//! appends of a group become one run, so a commit of many entries costs few keys. Purged runs are
//! deleted in small steps when nothing waits; the committed index rides along at most every
//! [`LAZY`]. After the first failure nothing is written or acknowledged any more.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use sled::IVec;

use crate::database::{self, Database, VALUE_MAX, Write, panic_text};
use crate::fault::{Fault, HealthCell, Problem, damage};
use crate::keys::{GroupId, Key, Slot};
use crate::queue::{Encoded, Job, Link, Op, Queue};
use crate::record::{self, HEADER, Kind, split_entry};

/// How long the committed index and deletions may stay in memory. Longer saves writes; after a
/// crash a node re-learns that much from its peers.
const LAZY: Duration = Duration::from_millis(500);

/// Purged runs deleted after a commit, and in one step while idle. Sled needs up to 10 µs per key,
/// and a step is what the next commit may have to wait for.
const GARBAGE_PER_COMMIT: usize = 8;
const GARBAGE_PER_STEP: usize = 32;

/// Largest body of a one-record run, and bytes of an entry in each part of a long one.
const RUN_BODY_MAX: usize = VALUE_MAX - HEADER;
const PART_MAX: usize = RUN_BODY_MAX - 2;

/// Largest log entry, encoded. Bounds the memory and the time that one commit takes.
pub(crate) const ENTRY_MAX: usize = 8 * 1024 * 1024;

/// A run on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Entries in it.
    pub(crate) count: u64,
    /// Records it is spread over; more than one only for a single long entry.
    pub(crate) parts: u16,
}

/// The writer's side of one group.
#[derive(Default)]
struct GroupLog {
    link: Arc<Link>,
    runs: BTreeMap<u64, Run>,
    /// Keys of purged runs that are still in the database, oldest first.
    garbage: VecDeque<IVec>,
    building: Option<Building>,
    /// Index after the last entry staged.
    next: u64,
}

/// A run that still grows.
struct Building {
    first: u64,
    count: u64,
    record: Vec<u8>,
}

/// The thread's state.
pub(crate) struct Writer {
    queue: Arc<Queue>,
    health: Arc<HealthCell>,
    database: Database,
    groups: BTreeMap<GroupId, GroupLog>,
    /// Writes in their order, to be applied as a whole.
    staged: Vec<Write>,
    /// When lazily kept data is written at the latest; `None` when there is none.
    lazy_due: Option<Instant>,
}

impl Writer {
    pub(crate) fn new(database: Database, queue: Arc<Queue>, health: Arc<HealthCell>) -> Self {
        Self {
            queue,
            health,
            database,
            groups: BTreeMap::new(),
            staged: Vec::new(),
            lazy_due: None,
        }
    }

    /// Works until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        loop {
            let garbage = self.groups.values().any(|group| !group.garbage.is_empty());
            let deadline = if garbage {
                Some(Instant::now())
            } else {
                self.lazy_due
            };
            let taken = self.queue.take(deadline, self.lazy_due.is_some());
            let now = Instant::now();
            if taken.lazy {
                self.lazy_due.get_or_insert(now + LAZY);
            }
            self.turn(taken.jobs, taken.closed, now);
            if taken.closed {
                return;
            }
        }
    }

    /// One commit, the answers, and then a little tidying.
    fn turn(&mut self, mut jobs: Vec<Job>, closed: bool, now: Instant) {
        let swept = if jobs.is_empty() {
            GARBAGE_PER_STEP
        } else {
            GARBAGE_PER_COMMIT
        };
        let outcome = self.guarded(|writer| writer.commit(&mut jobs, closed, now));
        for job in jobs {
            job.finish(outcome.clone());
        }
        if outcome.is_ok() && !closed {
            // A failure shows in the health; nobody waits for this.
            self.guarded(|writer| writer.sweep(swept, now)).ok();
        }
    }

    /// Does some work unless the store has failed; a failure takes the store down.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<(), Fault>) -> Result<(), Fault> {
        self.health.check()?;
        let result = catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|panic| {
            Err(Fault::Failed(
                format!("the writer panicked: {}", panic_text(&*panic)).into(),
            ))
        });
        result.map_err(|fault| {
            tracing::error!(%fault, "storage failed, refusing all further work");
            let fault = match fault {
                failed @ Fault::Failed(_) => failed,
                other => Fault::Failed(other.to_string().into()),
            };
            self.health.fail(&fault);
            fault
        })
    }

    fn commit(&mut self, jobs: &mut [Job], closed: bool, now: Instant) -> Result<(), Fault> {
        let settle = closed || jobs.iter().any(|job| matches!(job.op, Op::Settle));
        let lazy = settle || self.lazy_due.is_some_and(|due| due <= now);
        let durable = lazy || jobs.iter().any(|job| job.durable);
        if durable {
            self.health.commit_began(now);
        }
        for job in jobs.iter_mut() {
            // The operation is consumed; what remains of the job is its answer.
            let op = std::mem::replace(&mut job.op, Op::Settle);
            self.stage(op)?;
        }
        if lazy {
            self.stage_committed();
        }
        self.apply()?;
        if durable {
            self.database.commit()?;
            self.lazy_due = None;
            self.health.commit_ended(now, Instant::now());
        } else if !jobs.is_empty() {
            self.lazy_due.get_or_insert(now + LAZY);
        }
        Ok(())
    }

    /// Deletes some purged runs. It need not be durable: what a crash brings back is deleted again.
    fn sweep(&mut self, limit: usize, now: Instant) -> Result<(), Fault> {
        let mut left = limit;
        for log in self.groups.values_mut() {
            while left > 0 {
                let Some(key) = log.garbage.pop_front() else {
                    break;
                };
                self.database.apply(vec![(key, None)])?;
                left -= 1;
            }
        }
        if left < limit {
            self.lazy_due.get_or_insert(now + LAZY);
        }
        Ok(())
    }

    fn stage(&mut self, op: Op) -> Result<(), Fault> {
        match op {
            Op::Append { group, entries } => self.stage_append(group, &entries),
            Op::Truncate { group, from } => self.stage_truncate(group, from)?,
            Op::Purge {
                group,
                upto,
                record,
            } => self.stage_purge(group, upto, record),
            Op::Put { key, record } => self.insert(key, record),
            Op::Adopt {
                group,
                link,
                runs,
                garbage,
            } => {
                let next = runs
                    .last_key_value()
                    .map_or(0, |(first, run)| first + run.count);
                link.applied.store(next, Ordering::Release);
                let garbage = garbage.into();
                let log = GroupLog {
                    link,
                    runs,
                    garbage,
                    building: None,
                    next,
                };
                self.groups.insert(group, log);
            }
            Op::Settle => {}
        }
        Ok(())
    }

    fn stage_append(&mut self, group: GroupId, entries: &Encoded) {
        let mut start = 0;
        for (index, &end) in (entries.first..).zip(&entries.ends) {
            let entry = &entries.bytes[start..end];
            start = end;
            if entry.len() > RUN_BODY_MAX {
                self.close_run(group);
                self.stage_long(group, index, entry);
            } else {
                self.stage_short(group, index, entry);
            }
        }
    }

    fn stage_short(&mut self, group: GroupId, index: u64, entry: &[u8]) {
        let log = self.groups.entry(group).or_default();
        let full = |run: &mut Building| run.record.len() + entry.len() > VALUE_MAX;
        if log.building.as_mut().is_some_and(full) {
            self.close_run(group);
        }
        let log = self.groups.entry(group).or_default();
        let run = log.building.get_or_insert_with(|| Building {
            first: index,
            count: 0,
            record: record::begin(Kind::Run, entry.len()),
        });
        debug_assert_eq!(run.first + run.count, index, "appends follow each other");
        run.record.extend_from_slice(entry);
        run.count += 1;
        log.next = index + 1;
    }

    /// An entry that does not fit in one record becomes a run of its own, over several records.
    fn stage_long(&mut self, group: GroupId, index: u64, entry: &[u8]) {
        let parts = entry.len().div_ceil(PART_MAX);
        let parts = u16::try_from(parts).expect("ENTRY_MAX keeps entries below 65,536 parts");
        for (part, piece) in (0..parts).zip(entry.chunks(PART_MAX)) {
            let key = Key::Run {
                group,
                first: index,
                part,
            }
            .encode();
            let kind = if part == 0 {
                Kind::RunHead
            } else {
                Kind::RunPart
            };
            let mut record = record::begin(kind, 2 + piece.len());
            record.extend_from_slice(&parts.to_le_bytes());
            record.extend_from_slice(piece);
            record::seal(&mut record, &key);
            self.insert(key, record);
        }
        let log = self.groups.entry(group).or_default();
        log.runs.insert(index, Run { count: 1, parts });
        log.next = index + 1;
    }

    fn close_run(&mut self, group: GroupId) {
        let log = self.groups.entry(group).or_default();
        let Some(mut run) = log.building.take() else {
            return;
        };
        log.runs.insert(
            run.first,
            Run {
                count: run.count,
                parts: 1,
            },
        );
        let key = Key::Run {
            group,
            first: run.first,
            part: 0,
        }
        .encode();
        record::seal(&mut run.record, &key);
        self.insert(key, run.record);
    }

    /// Cuts the log. What was staged before is applied first, so that the cut sees one state.
    fn stage_truncate(&mut self, group: GroupId, from: u64) -> Result<(), Fault> {
        self.apply()?;
        let log = self.groups.entry(group).or_default();
        log.next = log.next.min(from);
        log.link.applied.fetch_min(from, Ordering::AcqRel);
        let removed = log.runs.split_off(&from);
        let cut = match log.runs.last_entry() {
            Some(mut last) if last.key() + last.get().count > from => {
                let first = *last.key();
                last.get_mut().count = from - first;
                Some(first)
            }
            _ => None,
        };
        for (first, run) in removed {
            for part in 0..run.parts {
                self.remove(Key::Run { group, first, part }.encode());
            }
        }
        if let Some(first) = cut {
            let key = Key::Run {
                group,
                first,
                part: 0,
            };
            let record = self.shortened(&key, from - first)?;
            self.insert(key.encode(), record);
        }
        Ok(())
    }

    /// The run under `key`, reduced to its first `count` entries.
    fn shortened(&self, key: &Key, count: u64) -> Result<Vec<u8>, Fault> {
        let bytes = key.encode();
        let damaged = |problem| damage(key, problem);
        let record = database::read(&self.database.reader(), &bytes)?;
        let record = record.ok_or_else(|| damaged(Problem::Missing))?;
        let body = record::open(Kind::Run, &bytes, &record).map_err(damaged)?;
        let mut rest = body;
        for _ in 0..count {
            (_, rest) = split_entry(rest).map_err(damaged)?;
        }
        let kept = &body[..body.len() - rest.len()];
        Ok(record::frame(Kind::Run, &bytes, kept))
    }

    fn stage_purge(&mut self, group: GroupId, upto: u64, record: Vec<u8>) {
        self.close_run(group);
        let log = self.groups.entry(group).or_default();
        while let Some(run) = log.runs.first_entry() {
            if run.key() + run.get().count - 1 > upto {
                break;
            }
            let (first, run) = run.remove_entry();
            let keys = (0..run.parts).map(|part| Key::Run { group, first, part }.encode());
            log.garbage.extend(keys);
        }
        log.next = log.next.max(upto + 1);
        self.insert(Key::Slot(group, Slot::Purged).encode(), record);
    }

    fn stage_committed(&mut self) {
        self.queue.lazy_taken();
        let mut records = Vec::new();
        for (&group, log) in &self.groups {
            let mut committed = log
                .link
                .committed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let (body, fresh) = &mut *committed;
            if std::mem::take(fresh) {
                let key = Key::Slot(group, Slot::Committed).encode();
                let record = record::frame(Kind::Committed, &key, body);
                records.push((key, record));
            }
        }
        for (key, record) in records {
            self.insert(key, record);
        }
    }

    fn insert(&mut self, key: IVec, record: Vec<u8>) {
        debug_assert!(
            record.len() <= VALUE_MAX,
            "larger values leave the database file"
        );
        self.staged.push((key, Some(record)));
    }

    fn remove(&mut self, key: IVec) {
        self.staged.push((key, None));
    }

    /// Puts what is staged into the database, where it can be read but is not yet durable.
    fn apply(&mut self) -> Result<(), Fault> {
        let open: Vec<GroupId> = self
            .groups
            .iter()
            .filter_map(|(&group, log)| log.building.is_some().then_some(group))
            .collect();
        for group in open {
            self.close_run(group);
        }
        if !self.staged.is_empty() {
            self.database.apply(std::mem::take(&mut self.staged))?;
            for log in self.groups.values() {
                log.link.applied.store(log.next, Ordering::Release);
            }
        }
        Ok(())
    }
}
