//! Opening a group: reading back and checking every record it has.
//!
//! Runs once per group at start, on the caller's thread. The checked index of runs goes to the
//! writer, what the log knows by heart goes to the [`LogStore`]. Whatever is damaged or missing is
//! reported by name; nothing is repaired by guessing. Runs that a purge had not deleted yet when
//! the process ended are handed to the writer as garbage.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use openraft::RaftTypeConfig;
use openraft::entry::RaftEntry;
use openraft::type_config::alias::{LogIdOf, VoteOf};
use serde::de::DeserializeOwned;
use sled::IVec;

use crate::database::{self, sled_failed};
use crate::fault::{OpenError, Problem, damage, describe};
use crate::keys::{GroupId, Key, Slot};
use crate::log::{LogStore, Membership, Shared, State};
use crate::queue::{Link, Op};
use crate::record::{self, Kind};
use crate::run::{decode, encode, read_run};
use crate::snapshot::{Pointer, SnapshotStore, open_error};
use crate::tree::Tree;
use crate::writer::Run;
use crate::{Inner, lock};

/// Longest group name, in bytes.
const NAME_MAX: usize = 64;

pub(crate) fn group<C: RaftTypeConfig>(
    inner: &Arc<Inner>,
    name: &str,
) -> Result<(LogStore<C>, SnapshotStore), OpenError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
        return Err(OpenError::GroupName {
            name: name.to_owned(),
        });
    }
    let mut groups = lock(&inner.groups);
    let tree = inner.reader()?;
    let group = number(inner, &tree, name)?;
    if !groups.insert(group) {
        return Err(OpenError::GroupOpen {
            name: name.to_owned(),
        });
    }
    drop(groups);
    // From here on the membership frees the group again, on every way out.
    let membership = Arc::new(Membership {
        inner: Arc::clone(inner),
        group,
        name: name.to_owned(),
    });
    // An earlier handle of this group may have left something for later, and the database is behind.
    inner.run(Op::Settle)?;

    let vote: Option<VoteOf<C>> = slot(&tree, group, Slot::Vote, Kind::Vote)?;
    let committed: Option<Option<LogIdOf<C>>> =
        slot(&tree, group, Slot::Committed, Kind::Committed)?;
    let purged: Option<LogIdOf<C>> = slot(&tree, group, Slot::Purged, Kind::Purged)?;
    let pointer: Option<Pointer> = slot(&tree, group, Slot::Snapshot, Kind::Snapshot)?;
    let scan = scan::<C>(&tree, &membership, purged.as_ref())?;

    let link = Arc::new(Link::default());
    let runs = scan.runs;
    let first = match (&purged, runs.first_key_value()) {
        (Some(purged), _) => purged.index + 1,
        (None, Some((&first, _))) => first,
        (None, None) => 0,
    };
    let last = scan.last.or_else(|| purged.clone());
    let adopt = Op::Adopt {
        group,
        link: Arc::clone(&link),
        runs,
        garbage: scan.garbage,
    };
    inner.run(adopt)?;
    let snapshots = SnapshotStore::open(Arc::clone(&membership), pointer)?;
    let state = Mutex::new(State::new(vote, committed.flatten(), purged, last, first));
    Ok((
        LogStore {
            shared: Arc::new(Shared {
                membership,
                link,
                state,
            }),
        },
        snapshots,
    ))
}

/// The group's number, given out durably if the name is new.
fn number(inner: &Inner, tree: &Tree, name: &str) -> Result<GroupId, OpenError> {
    let mut next = 1;
    for found in tree.scan_prefix(Key::groups_prefix()) {
        let (bytes, value) = found.map_err(|error| sled_failed("read", &error))?;
        let damaged = |key: &Key, problem| OpenError::Damaged(describe(key, &bytes, problem));
        let Some(key @ Key::Group(_)) = Key::decode(&bytes) else {
            let why = Problem::Contents("its name is not text".into());
            return Err(damaged(&Key::Group("?".into()), why));
        };
        let body =
            record::open(Kind::Group, &bytes, &value).map_err(|problem| damaged(&key, problem))?;
        let number: u32 = decode(&key, body).map_err(open_error)?;
        if key == Key::Group(name.to_owned()) {
            return Ok(GroupId(number));
        }
        next = next.max(number + 1);
    }
    let key = Key::Group(name.to_owned()).encode();
    let mut record = record::begin(Kind::Group, 5);
    encode(&next, &mut record)?;
    record::seal(&mut record, &key);
    inner.run(Op::Put { key, record })?;
    // The next name that is opened has to find this one in the database.
    inner.run(Op::Settle)?;
    Ok(GroupId(next))
}

fn slot<T: DeserializeOwned>(
    tree: &Tree,
    group: GroupId,
    slot: Slot,
    kind: Kind,
) -> Result<Option<T>, OpenError> {
    let key = Key::Slot(group, slot);
    let bytes = key.encode();
    let Some(record) = database::read(tree, &bytes)? else {
        return Ok(None);
    };
    let body = record::open(kind, &bytes, &record)
        .map_err(|problem| OpenError::Damaged(describe(&key, &bytes, problem)))?;
    decode(&key, body).map(Some).map_err(open_error)
}

struct Scan<C: RaftTypeConfig> {
    runs: BTreeMap<u64, Run>,
    garbage: Vec<IVec>,
    last: Option<LogIdOf<C>>,
}

/// Checks every run of a log, and that together they leave no gap.
fn scan<C: RaftTypeConfig>(
    tree: &Tree,
    membership: &Membership,
    purged: Option<&LogIdOf<C>>,
) -> Result<Scan<C>, OpenError> {
    let group = membership.group;
    let live = purged.map_or(0, |purged| purged.index + 1);
    let mut scan = Scan {
        runs: BTreeMap::new(),
        garbage: Vec::new(),
        last: None,
    };
    // Index that must come next; unknown only at the start of a log that was never purged.
    let mut expected = purged.map(|_| live);
    let failed = |error: sled::Error| sled_failed("read", &error);
    let mut records = tree.scan_prefix(Key::runs_prefix(group)).peekable();
    while let Some(found) = records.next() {
        let (bytes, value) = found.map_err(failed)?;
        if let Some(Key::Run { first, part, .. }) = Key::decode(&bytes)
            && part > 0
            && first < live
        {
            // The head of a long purged entry is deleted before its parts.
            scan.garbage.push(bytes);
            continue;
        }
        let further = || records.next_if(is_part).transpose().map_err(failed);
        let run = read_run(&bytes, &value, further).map_err(open_error)?;
        let mut count = 0;
        let mut last = None;
        for entry in run.entries() {
            let entry =
                entry.map_err(|problem| OpenError::Damaged(describe(&run.key, &bytes, problem)))?;
            last = Some(entry);
            count += 1;
        }
        let end = run.first + count;
        if end <= live {
            let keys = (0..run.parts).map(|part| {
                Key::Run {
                    group,
                    first: run.first,
                    part,
                }
                .encode()
            });
            scan.garbage.extend(keys);
            continue;
        }
        if let Some(expected) = expected
            && run.first != expected
            && (run.first > expected || !scan.runs.is_empty())
        {
            return Err(OpenError::Gap {
                group: membership.name.clone(),
                after: expected.saturating_sub(1),
                found: run.first,
            });
        }
        if let Some(entry) = last {
            scan.last = Some(last_log_id::<C>(&run.key, entry, end - 1)?);
        }
        scan.runs.insert(
            run.first,
            Run {
                count,
                parts: run.parts,
            },
        );
        expected = Some(end);
    }
    Ok(scan)
}

fn is_part(found: &Result<(IVec, IVec), sled::Error>) -> bool {
    match found {
        Ok((bytes, _)) => matches!(Key::decode(bytes), Some(Key::Run { part: 1.., .. })),
        Err(_) => true,
    }
}

/// The log id in the last entry of a run, which must fit the run's place in the log.
fn last_log_id<C: RaftTypeConfig>(
    key: &Key,
    entry: &[u8],
    index: u64,
) -> Result<LogIdOf<C>, OpenError> {
    let entry: C::Entry = decode(key, entry).map_err(open_error)?;
    let found = entry.index();
    if found != index {
        let why = format!("the entry at index {index} says it is at index {found}");
        let fault = damage(key, Problem::Contents(why));
        return Err(open_error(fault));
    }
    Ok(entry.log_id())
}
