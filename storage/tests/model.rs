//! Random operations against a model in memory, with reopening.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::support::open_probe;
use crate::probe::{Contents, Entry, Probe};
use crate::{SnapshotStore, Storage};

#[derive(Clone, Debug)]
enum Step {
    /// Appends this many entries with texts of this length; waits or leaves it in flight.
    Append {
        count: u64,
        length: usize,
        wait: bool,
    },
    /// Removes this many entries from the end.
    Truncate {
        back: u64,
    },
    /// Forgets entries; up to this many beyond the end.
    Purge {
        permille: u64,
        beyond: u64,
    },
    Vote,
    Commit,
    Snapshot {
        length: usize,
    },
    /// Reads a part of the log.
    Read {
        permille: u64,
        count: u64,
    },
    /// Closes everything and opens it again.
    Reopen,
    /// Drops the group's handles and opens it again in the open store.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 0..300usize, 1 => 5_000..30_000usize, 1 => 40_000..90_000usize];
    prop_oneof![
        8 => (1..40u64, length, any::<bool>())
            .prop_map(|(count, length, wait)| {
                // Long texts come in small numbers, to keep a case short.
                let count = if length > 1_000 { 1 + count % 3 } else { count };
                Step::Append { count, length, wait }
            }),
        3 => (0..40u64).prop_map(|back| Step::Truncate { back }),
        2 => (0..1200u64, 0..5u64)
            .prop_map(|(permille, beyond)| Step::Purge { permille, beyond }),
        1 => Just(Step::Vote),
        1 => Just(Step::Commit),
        1 => (0..700_000usize).prop_map(|length| Step::Snapshot { length }),
        4 => (0..1100u64, 0..60u64).prop_map(|(permille, count)| Step::Read { permille, count }),
        2 => Just(Step::Reopen),
        1 => Just(Step::Release),
    ]
}

/// What the store must show.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    purged: Option<(u64, u64)>,
    vote: Option<u64>,
    committed: Option<u64>,
    snapshot: Option<(Vec<u8>, Vec<u8>)>,
    term: u64,
}

impl Model {
    fn last(&self) -> Option<(u64, u64)> {
        let last = self
            .entries
            .values()
            .next_back()
            .map(|entry| (entry.term, entry.index));
        last.or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |(_, index)| index + 1)
    }

    fn first(&self) -> u64 {
        self.purged.map_or(0, |(_, index)| index + 1)
    }

    fn place(&self, permille: u64) -> u64 {
        self.first() + (self.next() - self.first()) * permille / 1000
    }

    fn contents(&self) -> Contents {
        Contents {
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
            last: self.last(),
            entries: self.entries.values().cloned().collect(),
        }
    }
}

async fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut open: (Storage, Probe) = open_probe(folder.path());
    let mut model = Model {
        term: 1,
        ..Model::default()
    };
    let mut in_flight = Vec::new();
    for step in steps {
        let probe = &mut open.1;
        match step {
            Step::Append {
                count,
                length,
                wait,
            } => {
                let first = model.next();
                let text = |index: u64| {
                    let mut text = format!("{index} in term {} ", model.term);
                    text.extend(std::iter::repeat_n('x', length));
                    text
                };
                let entries: Vec<Entry> = (first..first + count)
                    .map(|index| Entry {
                        index,
                        term: model.term,
                        text: text(index),
                    })
                    .collect();
                model
                    .entries
                    .extend(entries.iter().map(|entry| (entry.index, entry.clone())));
                let queued = probe.append(entries).await.expect("an append");
                if wait {
                    queued.await.expect("a working disk");
                } else {
                    in_flight.push(queued);
                }
            }
            Step::Truncate { back } => {
                let from = model.next().saturating_sub(back).max(model.first());
                model.entries.split_off(&from);
                probe
                    .truncate_after(model.last())
                    .await
                    .expect("a truncation");
                model.term += 1;
            }
            Step::Purge { permille, beyond } => {
                let upto = match model.place(permille) {
                    place if place >= model.next() => model.next() + beyond,
                    place => place,
                };
                let term = model
                    .entries
                    .get(&upto)
                    .map_or(model.term, |entry| entry.term);
                probe.purge(term, upto).await.expect("a purge");
                if model.purged.is_none_or(|(_, purged)| purged < upto) {
                    model.entries = model.entries.split_off(&(upto + 1));
                    model.purged = Some((term, upto));
                }
            }
            Step::Vote => {
                model.term += 1;
                model.vote = Some(model.term);
                probe.vote(model.term).await.expect("a vote");
            }
            Step::Commit => {
                if let Some((term, index)) = model.last() {
                    model.committed = Some(index);
                    probe.commit(term, index).await.expect("a commit");
                }
            }
            Step::Snapshot { length } => {
                let meta = format!("{length}").into_bytes();
                let data: Vec<u8> = (0..length).map(|byte| (byte * 7 % 253) as u8).collect();
                probe
                    .snapshots()
                    .save(&meta, &data[..])
                    .expect("a snapshot");
                model.snapshot = Some((meta, data));
            }
            Step::Read { permille, count } => {
                let from = model.place(permille);
                let read = probe.read(from, from + count).await.expect("a read");
                let range = model.entries.range(from..from + count);
                let expected: Vec<Entry> = range.map(|(_, entry)| entry.clone()).collect();
                assert_eq!(read, expected);
            }
            Step::Reopen => {
                drop(open);
                open = open_probe(folder.path());
                check_snapshot(open.1.snapshots(), &model);
                assert_eq!(
                    open.1.contents().await.expect("an intact log"),
                    model.contents()
                );
            }
            Step::Release => {
                let (storage, probe) = open;
                drop(probe);
                let probe = Probe::open(&storage, "home").expect("a free group");
                open = (storage, probe);
            }
        }
        for queued in in_flight.drain(..in_flight.len().saturating_sub(3)) {
            queued.await.expect("a working disk");
        }
    }
    for queued in in_flight {
        queued.await.expect("a working disk");
    }
    assert_eq!(
        open.1.contents().await.expect("an intact log"),
        model.contents()
    );
    drop(open);
    let (_storage, mut probe) = open_probe(folder.path());
    assert_eq!(
        probe.contents().await.expect("an intact log"),
        model.contents()
    );
    check_snapshot(probe.snapshots(), &model);
}

fn check_snapshot(snapshots: &SnapshotStore, model: &Model) {
    let stored = snapshots.load().expect("an intact file").map(|mut stored| {
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut stored.data, &mut data).expect("an intact file");
        (stored.meta, data)
    });
    assert!(stored == model.snapshot, "the snapshot differs");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..Default::default() })]

    #[test]
    fn any_sequence_reads_back_as_it_was(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(run(steps));
    }
}
