//! The one thread that commits: it takes everything that waits, from all groups, puts it into one
//! record of the journal, makes that durable, and only then acknowledges.
//!
//! ```text
//! log handles ──► queue (bounded by bytes) ──► stage ──► journal ──► fdatasync ──► done
//!                                                           └──► backlog ──► database, later
//! ```
//! The thread owns the journal, the backlog of what the database does not have yet and, per group,
//! the index of runs. Consecutive appends of a group become one run, so a commit of many entries
//! costs few keys. Deletions of purged runs are not in the journal, because opening a group finds
//! such runs again; the committed index rides along at most every [`LAZY`]. When the journal's files
//! are full and the database is still behind, commits wait for it, and callers for room in the
//! queue. After the first failure nothing is written or acknowledged any more.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use sled::IVec;

use crate::checkpoint::{Backlog, Mark};
use crate::database::{VALUE_MAX, Write, panic_text};
use crate::fault::{Fault, HealthCell, Problem, damage};
use crate::journal::Journal;
use crate::keys::{GroupId, Key, Slot};
use crate::queue::{Encoded, Job, Link, Op, Queue, Taken};
use crate::record::{self, HEADER, Kind, split_entry};

/// How long the committed index and purges may stay in memory. Longer saves writes; after a
/// crash a node re-learns that much from its peers.
const LAZY: Duration = Duration::from_millis(500);

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
    building: Option<Building>,
    /// Index after the last entry staged.
    next: u64,
    /// Index after the last entry that has reached the backlog and is still in the log.
    logged: u64,
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
    journal: Journal,
    backlog: Backlog,
    groups: BTreeMap<GroupId, GroupLog>,
    /// Writes in their order, for the next record of the journal.
    staged: Vec<Write>,
    /// Keys of purged runs, to be deleted from the database. None of them is written again.
    garbage: Vec<IVec>,
    /// When lazily kept data is written at the latest; `None` when there is none.
    lazy_due: Option<Instant>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn new(
        journal: Journal,
        backlog: Backlog,
        queue: Arc<Queue>,
        health: Arc<HealthCell>,
    ) -> Self {
        Self {
            queue,
            health,
            journal,
            backlog,
            groups: BTreeMap::new(),
            staged: Vec::new(),
            garbage: Vec::new(),
            lazy_due: None,
        }
    }

    /// Works until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        loop {
            let taken = self.queue.take(self.lazy_due, self.lazy_due.is_some());
            if self.take_turn(taken, Instant::now()) {
                return;
            }
        }
    }

    /// Does what waits, without waiting for more, at a time that is not the machine's; tells whether the
    /// queue is closed and empty.
    #[cfg(feature = "simulation")]
    pub(crate) fn run_once(&mut self, now: Instant) -> bool {
        let taken = self.queue.take(Some(Instant::now()), true);
        self.take_turn(taken, now)
    }

    /// When lazily kept data is to be written, if there is any.
    #[cfg(feature = "simulation")]
    pub(crate) fn lazy_due(&self) -> Option<Instant> {
        self.lazy_due
    }

    fn take_turn(&mut self, taken: Taken, now: Instant) -> bool {
        if taken.lazy {
            self.lazy_due.get_or_insert(now + LAZY);
        }
        self.turn(taken.jobs, taken.closed, now);
        taken.closed
    }

    /// One commit, the answers, and then a little tidying.
    fn turn(&mut self, mut jobs: Vec<Job>, closed: bool, now: Instant) {
        let settle = closed || jobs.iter().any(|job| matches!(job.op, Op::Settle));
        let outcome = self.guarded(|writer| {
            writer.commit(&mut jobs, settle, now)?;
            if settle { writer.settle() } else { Ok(()) }
        });
        for job in jobs {
            job.finish(outcome.clone());
        }
        if outcome.is_ok() {
            // A failure shows in the health; nobody waits for this.
            self.guarded(|writer| writer.harvest(false)).ok();
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

    fn commit(&mut self, jobs: &mut [Job], settle: bool, now: Instant) -> Result<(), Fault> {
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
        self.close_runs();
        if durable {
            self.write()?;
            self.lazy_due = None;
            self.health.commit_ended(now, Instant::now());
        } else if !jobs.is_empty() {
            self.lazy_due.get_or_insert(now + LAZY);
        }
        Ok(())
    }

    /// Makes what is staged durable, as a whole or not at all.
    fn write(&mut self) -> Result<(), Fault> {
        if !self.staged.is_empty() {
            if !self.journal.fits(&self.staged) {
                self.harvest(true)?;
                self.journal.release_other()?;
                self.freeze()?;
                self.journal.change_files()?;
            }
            self.journal.append(&self.staged)?;
        }
        self.backlog.add(self.staged.drain(..));
        self.backlog
            .add(self.garbage.drain(..).map(|key| (key, None)));
        for log in self.groups.values_mut() {
            log.logged = log.next;
        }
        Ok(())
    }

    /// Begins to bring the database up to date, once the last time is over.
    fn freeze(&mut self) -> Result<(), Fault> {
        self.harvest(true)?;
        if self.backlog.is_empty() {
            self.journal.settle(self.journal.next());
        } else {
            let next = self.groups.iter().map(|(&group, log)| (group, log.logged));
            self.backlog.freeze(Mark {
                journal: self.journal.next(),
                next: next.collect(),
            });
        }
        Ok(())
    }

    /// Brings the database up to date.
    fn settle(&mut self) -> Result<(), Fault> {
        self.freeze()?;
        self.harvest(true)?;
        // A record that only frees a file is not part of any mark.
        self.journal.settle(self.journal.next());
        self.journal.close()
    }

    /// Takes note of what has reached the database.
    fn harvest(&mut self, wait: bool) -> Result<(), Fault> {
        if let Some(mark) = self.backlog.harvest(wait)? {
            self.journal.settle(mark.journal);
            for (group, next) in mark.next {
                if let Some(log) = self.groups.get(&group) {
                    log.link.applied.store(next, Ordering::Release);
                }
            }
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
                self.garbage.extend(garbage);
                let log = GroupLog {
                    link,
                    runs,
                    building: None,
                    next,
                    logged: next,
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

    /// Cuts the log.
    fn stage_truncate(&mut self, group: GroupId, from: u64) -> Result<(), Fault> {
        self.close_run(group);
        self.backlog.truncated(group, from);
        let log = self.groups.entry(group).or_default();
        log.next = log.next.min(from);
        log.logged = log.logged.min(from);
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
        let staged = self.staged.iter().rev().find(|(key, _)| *key == bytes);
        let record = match staged {
            Some((_, record)) => record.as_deref().map(IVec::from),
            None => self.backlog.get(&bytes)?,
        };
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
            self.garbage.extend(keys);
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

    /// Ends all runs: a record of the journal has whole ones only.
    fn close_runs(&mut self) {
        let open = self.groups.iter();
        let open = open.filter_map(|(&group, log)| log.building.is_some().then_some(group));
        for group in open.collect::<Vec<_>>() {
            self.close_run(group);
        }
    }
}
