//! The journal: torn tails, damage before intact records, crashes at every stage of a checkpoint,
//! a database that cannot keep up, and folders from before there was a journal.
//!
//! A copy of the folder of an open store is what a crash would have left.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::support::{copy_folder, entry, fill, identity, open_probe};
use crate::fault::Plant;
use crate::journal::FILES;
use crate::probe::{Contents, Entry, Probe};
use crate::{Damage, OpenError, Problem, Storage};

const BLOCK: usize = 4096;

fn crash(open: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    copy_folder(open, copy.path());
    copy
}

/// Keeps the database from being written while it is held.
struct Gate(Arc<AtomicBool>);

struct Held<'a>(&'a AtomicBool);

impl Gate {
    fn hold(&self) -> Held<'_> {
        self.0.store(true, Ordering::Relaxed);
        Held(&self.0)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn gated(folder: &Path) -> (Storage, Probe, Gate) {
    let gate = Gate(Arc::default());
    let plant = Plant::HoldCheckpoints(Arc::clone(&gate.0));
    let storage = Storage::open_planted(folder, identity(), plant).expect("the folder opens");
    let probe = Probe::open(&storage, "home").expect("the group opens");
    (storage, probe, gate)
}

async fn contents(folder: &Path) -> Contents {
    let (storage, mut probe) = open_probe(folder);
    let contents = probe.contents().await.expect("an intact log");
    drop(probe);
    storage.close();
    contents
}

fn read(folder: &Path) -> [Vec<u8>; 2] {
    FILES.map(|name| fs::read(folder.join("journal").join(name)).expect("a file"))
}

fn damage(folder: &Path) -> Damage {
    match Storage::open(folder, identity()) {
        Err(OpenError::Damaged(damage)) => damage,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the damage was not noticed"),
    }
}

/// The blocks in which two states of a file differ.
fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    let blocks = after.len().max(before.len()) / BLOCK;
    let block = |bytes: &[u8], index: usize| {
        let bytes = bytes.get(index * BLOCK..(index + 1) * BLOCK);
        bytes.map_or_else(|| vec![0; BLOCK], <[u8]>::to_vec)
    };
    (0..blocks)
        .filter(|&index| block(before, index) != block(after, index))
        .collect()
}

#[tokio::test]
async fn what_was_acknowledged_survives_without_the_database() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_storage, mut probe, gate) = gated(folder.path());
    let held = gate.hold();
    fill(&mut probe, 0..5).await;
    probe.vote(7).await.expect("a vote");
    fill(&mut probe, 5..9).await;
    probe.truncate_after(Some((1, 6))).await.expect("a cut");
    probe.purge(1, 1).await.expect("a purge");
    fill(&mut probe, 7..8).await;
    let copy = crash(folder.path());
    drop(held);
    // Twice: the replay itself may be interrupted, or happen again.
    for _ in 0..2 {
        let left = contents(copy.path()).await;
        assert_eq!((left.vote, left.purged), (Some(7), Some((1, 1))));
        assert_eq!(left.entries, (2..8).map(entry).collect::<Vec<_>>());
    }
}

/// Any prefix, and any selection, of the last record's blocks may have arrived.
#[tokio::test]
async fn a_torn_tail_is_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_storage, mut probe) = open_probe(folder.path());
    fill(&mut probe, 0..10).await;
    let before = read(folder.path());
    let text = "y".repeat(3_000);
    let more = (10..20).map(|index| Entry {
        index,
        term: 2,
        text: text.clone(),
    });
    let queued = probe.append(more.collect()).await.expect("an append");
    queued.await.expect("a working disk");
    let after = read(folder.path());
    let saved = crash(folder.path());

    let file = usize::from(before[0] == after[0]);
    let blocks = changed(&before[file], &after[file]);
    assert!(blocks.len() > 5, "a record of several blocks");
    // The first so many blocks; and all but one of them.
    let prefixes = (0..=blocks.len()).map(|count| blocks[..count].to_vec());
    let holes = blocks.iter().map(|hole| {
        let rest = blocks.iter().filter(|block| *block != hole);
        rest.copied().collect()
    });
    for arrived in prefixes.chain(holes).collect::<Vec<Vec<usize>>>() {
        let torn = crash(saved.path());
        let mut bytes = before[file].clone();
        bytes.resize(after[file].len(), 0);
        for block in &arrived {
            let place = block * BLOCK..(block + 1) * BLOCK;
            bytes[place.clone()].copy_from_slice(&after[file][place]);
        }
        fs::write(torn.path().join("journal").join(FILES[file]), bytes).expect("a write");
        let (storage, mut probe) = open_probe(torn.path());
        let left = probe.contents().await.expect("an intact log");
        let whole = arrived.len() == blocks.len();
        let last = if whole { (2, 19) } else { (1, 9) };
        assert_eq!(left.last, Some(last), "blocks {arrived:?}");
        assert_eq!(left.entries.len() as u64, last.1 + 1);
        fill(&mut probe, last.1 + 1..last.1 + 4).await;
        let again = crash(torn.path());
        drop(probe);
        storage.close();
        for folder in [torn.path(), again.path()] {
            assert_eq!(contents(folder).await.last, Some((1, last.1 + 3)));
        }
    }
}

#[tokio::test]
async fn damage_before_an_intact_record_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_storage, mut probe, gate) = gated(folder.path());
    let held = gate.hold();
    let mut places = Vec::new();
    for index in 0..4 {
        let before = read(folder.path());
        fill(&mut probe, index..index + 1).await;
        let after = read(folder.path());
        let file = usize::from(before[0] == after[0]);
        places.push((file, changed(&before[file], &after[file])[0] * BLOCK));
    }
    let saved = crash(folder.path());
    drop(held);
    for (number, &(file, byte)) in places.iter().enumerate() {
        for at in [0, 1, 3, 8, 12, 40] {
            let copy = crash(saved.path());
            let path = copy.path().join("journal").join(FILES[file]);
            let mut bytes = fs::read(&path).expect("the file");
            bytes[byte + at] ^= 0x10;
            fs::write(&path, bytes).expect("a write");
            if number + 1 == places.len() {
                // Nothing shows that the last one was acknowledged.
                let left = contents(copy.path()).await;
                assert_eq!(left.entries, (0..3).map(entry).collect::<Vec<_>>());
                continue;
            }
            let damage = damage(copy.path());
            assert!(damage.record.starts_with("record "), "{damage}");
            assert!(damage.record.ends_with(" of the journal"), "{damage}");
            assert!(matches!(damage.problem, Problem::Contents(_)), "{damage}");
        }
    }
}

#[tokio::test]
async fn a_journal_that_is_gone_is_a_loss() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, mut probe) = open_probe(folder.path());
    fill(&mut probe, 0..3).await;
    drop(probe);
    storage.close();
    for name in FILES {
        let copy = crash(folder.path());
        fs::remove_file(copy.path().join("journal").join(name)).expect("a removal");
        let refused = Storage::open(copy.path(), identity()).expect_err("a file is missing");
        assert!(matches!(refused, OpenError::Lost { .. }), "{refused}");
    }
    let copy = crash(folder.path());
    for name in FILES {
        fs::write(copy.path().join("journal").join(name), []).expect("a write");
    }
    let refused = damage(copy.path());
    assert_eq!(refused.record, "journal");
    assert_eq!(refused.problem, Problem::Missing);
    fs::remove_dir_all(copy.path().join("journal")).expect("a removal");
    let refused = Storage::open(copy.path(), identity()).expect_err("the folder is missing");
    assert!(refused.to_string().contains("`journal`"), "{refused}");
}

/// The journal is behind the database: the crash came after a checkpoint, before its files were
/// used again or a record said that they may be.
#[tokio::test]
async fn a_replay_over_a_newer_database_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, mut probe, gate) = gated(folder.path());
    let held = gate.hold();
    fill(&mut probe, 0..6).await;
    probe.vote(3).await.expect("a vote");
    probe.truncate_after(Some((1, 3))).await.expect("a cut");
    fill(&mut probe, 4..6).await;
    probe.vote(4).await.expect("a vote");
    probe.purge(1, 2).await.expect("a purge");
    probe.vote(5).await.expect("a vote");
    let expected = probe.contents().await.expect("an intact log");
    let saved = crash(folder.path());
    drop(held);
    drop(probe);
    storage.close();

    let newer = folder.path().join("log");
    fs::remove_dir_all(saved.path().join("log")).expect("a removal");
    copy_folder(&newer, &saved.path().join("log"));
    assert_eq!(contents(saved.path()).await, expected);
    assert_eq!(contents(saved.path()).await, expected);
    assert_eq!(contents(folder.path()).await, expected);
}

/// Crash upon crash, each before anything of its round is in the database, after both files have
/// been started over a few times.
#[tokio::test]
async fn crashes_may_follow_each_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, mut probe) = open_probe(folder.path());
    for index in 0..120 {
        fill(&mut probe, index..index + 1).await;
        if index % 30 == 29 {
            probe.purge(1, index - 20).await.expect("a purge");
            probe.vote(index).await.expect("a vote");
        }
    }
    drop(probe);
    storage.close();
    let mut next = 120;
    let mut from = crash(folder.path());
    for round in 0..6 {
        let (storage, mut probe, gate) = gated(from.path());
        let held = gate.hold();
        for _ in 0..5 + round * 3 {
            fill(&mut probe, next..next + 1).await;
            next += 1;
        }
        let left = crash(from.path());
        drop(held);
        drop(probe);
        storage.close();
        if round % 2 == 0 {
            // Opened and closed in an orderly way, or not at all, before the next round.
            assert_eq!(contents(left.path()).await.last, Some((1, next - 1)));
        }
        from = left;
    }
    let left = contents(from.path()).await;
    assert_eq!((left.last, left.vote), (Some((1, next - 1)), Some(119)));
}

#[tokio::test]
async fn a_full_journal_holds_callers_back_until_the_database_follows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, mut probe, gate) = gated(folder.path());
    let held = gate.hold();
    let mut queued = Vec::new();
    let mut acknowledged = 0;
    let stuck = loop {
        let next = probe.append(vec![entry(acknowledged)]);
        let next = tokio::spawn(next.await.expect("an append"));
        match tokio::time::timeout(Duration::from_secs(2), next).await {
            Ok(done) => done.expect("no panic").expect("a working disk"),
            Err(_) => break acknowledged,
        }
        acknowledged += 1;
        assert!(
            acknowledged < 200,
            "the journal takes more than it can hold"
        );
    };
    assert!(
        stuck >= 16,
        "only {stuck} records, so not even one file was full"
    );
    assert!(storage.health().pending.is_some(), "the writer waits");
    for index in stuck + 1..200 {
        queued.push(probe.append(vec![entry(index)]).await.expect("an append"));
    }
    // Reading goes on meanwhile, what is not durable yet included.
    assert_eq!(probe.read(0, 200).await.expect("a read").len(), 200);
    let copy = crash(folder.path());
    drop(held);
    for queued in queued {
        queued.await.expect("a working disk");
    }
    assert_eq!(
        probe.contents().await.expect("an intact log").last,
        Some((1, 199))
    );
    let last = contents(copy.path()).await.last.expect("entries").1;
    assert_eq!(last + 1, stuck, "what was acknowledged, and nothing else");
}

#[tokio::test]
async fn a_batch_larger_than_a_file_is_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_storage, mut probe) = open_probe(folder.path());
    for round in 0..4 {
        let long = Entry {
            index: round,
            term: 1,
            text: "x".repeat(300_000 + round as usize),
        };
        let queued = probe.append(vec![long]).await.expect("an append");
        queued.await.expect("a working disk");
        let left = contents(crash(folder.path()).path()).await;
        assert_eq!(left.last, Some((1, round)));
        assert_eq!(
            left.entries[round as usize].text.len() as u64,
            300_000 + round
        );
    }
}

#[tokio::test]
async fn a_failing_checkpoint_takes_the_store_down_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(open_probe(folder.path()));
    let plant = Plant::FailCheckpoint(2);
    let storage = Storage::open_planted(folder.path(), identity(), plant).expect("it opens");
    let mut probe = Probe::open(&storage, "home").expect("the group opens");
    let mut acknowledged = 0;
    loop {
        let Ok(queued) = probe.append(vec![entry(acknowledged)]).await else {
            break;
        };
        if queued.await.is_err() {
            break;
        }
        acknowledged += 1;
        assert!(acknowledged < 1_000, "the planted failure did not happen");
    }
    let failure = storage.health().failure.expect("the store is down");
    assert!(failure.to_string().contains("planted error"), "{failure}");
    drop(probe);
    storage.close();
    let left = contents(folder.path()).await;
    assert!(left.entries.len() as u64 >= acknowledged, "{acknowledged}");
}

/// A folder of format 1: everything is in the database, and the identity says so.
#[tokio::test]
async fn a_folder_from_before_the_journal_opens_and_gets_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, mut probe) = open_probe(folder.path());
    fill(&mut probe, 0..5).await;
    probe.vote(2).await.expect("a vote");
    let expected = probe.contents().await.expect("an intact log");
    drop(probe);
    storage.close();
    let body = "flotilla-storage 1\nnode 1\n";
    let crc = crc32c::crc32c(body.as_bytes());
    let identity = folder.path().join("identity");
    fs::write(&identity, format!("{body}crc32c {crc:08x}\n")).expect("a write");
    fs::remove_dir_all(folder.path().join("journal")).expect("a removal");

    assert_eq!(contents(folder.path()).await, expected);
    let text = fs::read_to_string(&identity).expect("the file");
    assert!(text.starts_with("flotilla-storage 2\n"), "{text}");
    assert_eq!(contents(folder.path()).await, expected);
}

#[tokio::test]
async fn a_journal_without_an_identity_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_storage, mut probe, gate) = gated(folder.path());
    let _held = gate.hold();
    fill(&mut probe, 0..3).await;
    let copy = crash(folder.path());
    fs::remove_file(copy.path().join("identity")).expect("a removal");
    let refused = Storage::open(copy.path(), identity()).expect_err("it holds a log");
    assert!(matches!(refused, OpenError::Lost { .. }), "{refused}");
}
