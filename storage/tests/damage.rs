//! What happens to a store whose bytes were changed behind its back, whose disk fails, or that is
//! opened by the wrong one.

use std::fs;
use std::path::Path;

use super::support::{copy_folder, entry, fill, identity, open_probe};
use crate::database::Database;
use crate::disk::Disk;
use crate::fault::Plant;
use crate::identity::Layout;
use crate::keys::{GroupId, Key, Slot};
use crate::probe::{Entry, Probe};
use crate::writer::ENTRY_MAX;
use crate::{Damage, Fault, Identity, OpenError, Problem, Storage};

/// Changes the database of a closed store.
fn tamper(folder: &Path, key: &Key, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
    let mut database = Database::open(
        &Layout {
            root: folder.to_owned(),
            disk: Disk::System,
        },
        true,
    )
    .expect("an intact database");
    let bytes = key.encode();
    let value = database
        .reader()
        .get(&bytes)
        .expect("a read")
        .expect("the record is there");
    let changed = change(value.to_vec());
    let stored = database.store([(&bytes, changed.as_deref())]);
    stored.expect("a working disk");
}

fn flip_last(mut record: Vec<u8>) -> Option<Vec<u8>> {
    *record.last_mut().expect("records have a header") ^= 1;
    Some(record)
}

fn refusal(folder: &Path) -> OpenError {
    let storage = Storage::open(folder, identity()).expect("the damage is in the group");
    Probe::open(&storage, "home").expect_err("the damage was not noticed")
}

fn slot(slot: Slot) -> Key {
    Key::Slot(GroupId(1), slot)
}

fn run(first: u64, part: u16) -> Key {
    Key::Run {
        group: GroupId(1),
        first,
        part,
    }
}

/// A store with a vote, a purge, a long entry and several runs: 2–3, 4, 5–8.
async fn filled(folder: &Path) {
    let (storage, mut probe) = open_probe(folder);
    probe.vote(3).await.expect("a vote");
    fill(&mut probe, 0..2).await;
    fill(&mut probe, 2..4).await;
    let long = Entry {
        index: 4,
        term: 1,
        text: "x".repeat(100_000),
    };
    probe
        .append(vec![long])
        .await
        .expect("an append")
        .await
        .expect("a working disk");
    fill(&mut probe, 5..9).await;
    probe.purge(1, 1).await.expect("a purge");
    probe.commit(1, 5).await.expect("a commit");
    storage.close();
}

#[tokio::test]
async fn a_damaged_record_is_named_and_nothing_opens() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    filled(folder.path()).await;
    let cases = [
        (slot(Slot::Vote), "vote of group number 1"),
        (slot(Slot::Purged), "purged index of group number 1"),
        (slot(Slot::Committed), "committed index of group number 1"),
        (run(2, 0), "log entries from index 2 of group number 1"),
        (run(4, 2), "part 2 of log entry 4 of group number 1"),
        (Key::Group("home".into()), "name record of group `home`"),
    ];
    for (key, name) in cases {
        let copy = tempfile::tempdir().expect("a temporary folder");
        copy_folder(folder.path(), copy.path());
        tamper(copy.path(), &key, flip_last);
        let refused = refusal(copy.path());
        let OpenError::Damaged(Damage {
            record, problem, ..
        }) = &refused
        else {
            panic!("{refused}")
        };
        assert_eq!(record, name);
        assert!(matches!(problem, Problem::Checksum { .. }), "{problem}");
        assert!(refused.to_string().contains("cluster remove"), "{refused}");
    }
}

#[tokio::test]
async fn a_record_under_anothers_name_is_damage() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    filled(folder.path()).await;
    let mut vote = Vec::new();
    tamper(folder.path(), &slot(Slot::Vote), |record| {
        vote.clone_from(&record);
        Some(record)
    });
    tamper(folder.path(), &slot(Slot::Purged), |_| Some(vote));
    assert!(matches!(
        refusal(folder.path()),
        OpenError::Damaged(Damage {
            problem: Problem::Checksum { .. },
            ..
        })
    ));
}

#[tokio::test]
async fn missing_entries_are_a_gap_and_missing_parts_are_damage() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    filled(folder.path()).await;
    for (key, after, found) in [(run(2, 0), 1, 4), (run(5, 0), 0, 0)] {
        let copy = tempfile::tempdir().expect("a temporary folder");
        copy_folder(folder.path(), copy.path());
        tamper(copy.path(), &key, |_| None);
        if key == run(5, 0) {
            // The end of the log cannot be told from entries never written: nothing to report.
            drop(open_probe(copy.path()));
            continue;
        }
        match refusal(copy.path()) {
            OpenError::Gap {
                after: a, found: f, ..
            } => assert_eq!((a, f), (after, found)),
            other => panic!("{other}"),
        }
    }
    tamper(folder.path(), &run(4, 3), |_| None);
    match refusal(folder.path()) {
        OpenError::Damaged(damage) => {
            assert_eq!(damage.record, "part 3 of log entry 4 of group number 1");
            assert_eq!(damage.problem, Problem::Missing);
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn after_a_failed_fdatasync_everything_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(open_probe(folder.path()));
    let storage = Storage::open_planted(folder.path(), identity(), Plant::FailFdatasync(4))
        .expect("the folder opens");
    let mut probe = Probe::open(&storage, "home").expect("the group opens");
    let mut failure = storage.watch_failure();
    let mut acknowledged = 0;
    loop {
        let queued = probe
            .append(vec![entry(acknowledged)])
            .await
            .expect("an append");
        match queued.await {
            Ok(()) => acknowledged += 1,
            Err(error) => {
                assert!(error.to_string().contains("planted error"), "{error}");
                break;
            }
        }
        assert!(acknowledged < 10, "the planted failure did not happen");
    }
    assert!(failure.has_changed().expect("the store lives"));
    assert!(failure.borrow_and_update().is_some());
    assert!(probe.append(vec![entry(acknowledged + 1)]).await.is_err());
    assert!(probe.vote(9).await.is_err());
    assert!(probe.truncate_after(None).await.is_err());
    assert!(probe.purge(1, 0).await.is_err());
    assert!(probe.commit(1, 0).await.is_err());
    assert!(probe.contents().await.is_err());
    assert!(probe.snapshots().save(b"", &b""[..]).is_err());
    assert!(probe.snapshots().load().is_err());
    let health = storage.health();
    assert!(
        matches!(health.failure, Some(Fault::Failed(_))),
        "{health:?}"
    );
    drop(probe);
    storage.close();

    let (_storage, mut probe) = open_probe(folder.path());
    let contents = probe.contents().await.expect("an intact log");
    assert!(contents.entries.len() as u64 >= acknowledged);
}

#[tokio::test]
async fn a_snapshot_whose_record_may_be_on_the_disk_stays() {
    let mut failures = 0;
    for sync in 0..6 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        drop(open_probe(folder.path()));
        let plant = Plant::FailFdatasync(sync);
        let storage =
            Storage::open_planted(folder.path(), identity(), plant).expect("the folder opens");
        let probe = Probe::open(&storage, "home").expect("the group opens");
        let mut saved = 0;
        for number in 1..=4 {
            if probe.snapshots().save(&[number], &b"data"[..]).is_err() {
                failures += 1;
                break;
            }
            saved = number;
        }
        drop(probe);
        storage.close();

        let (_storage, probe) = open_probe(folder.path());
        let snapshot = probe.snapshots().load().expect("an intact snapshot");
        let found = snapshot.map_or(0, |snapshot| snapshot.meta[0]);
        assert!(
            [saved, saved + 1].contains(&found),
            "{found}, after {saved}"
        );
    }
    assert!(failures > 2, "{failures} planted failures");
}

#[tokio::test]
async fn a_folder_opens_once_for_its_owner_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = |cluster: Option<&str>, node| {
        Storage::open(
            folder.path(),
            Identity {
                cluster: cluster.map(str::to_owned),
                node,
            },
        )
    };
    let storage = open(None, 1).expect("a fresh folder");
    assert!(matches!(open(None, 1), Err(OpenError::Locked { .. })));
    storage.set_cluster("harbour").expect("a first cluster");
    storage.set_cluster("harbour").expect("the same cluster");
    assert!(matches!(
        storage.set_cluster("port"),
        Err(OpenError::OtherCluster { .. })
    ));
    assert!(matches!(
        storage.set_cluster("a\nb"),
        Err(OpenError::ClusterId { .. })
    ));
    storage.close();

    assert!(matches!(
        open(None, 2),
        Err(OpenError::OtherNode {
            expected: 2,
            found: 1,
            ..
        })
    ));
    assert!(matches!(
        open(Some("port"), 1),
        Err(OpenError::OtherCluster { .. })
    ));
    let storage = open(None, 1).expect("the owner");
    assert_eq!(storage.identity().cluster.as_deref(), Some("harbour"));
    drop(storage);
    open(Some("harbour"), 1).expect("the owner");

    fs::remove_file(folder.path().join("identity")).expect("a removal");
    drop(open(Some("harbour"), 1).expect("nothing was ever kept"));
    let storage = open(None, 1).expect("the owner");
    drop(Probe::open(&storage, "home").expect("a fresh group"));
    storage.close();
    fs::remove_file(folder.path().join("identity")).expect("a removal");
    assert!(matches!(open(None, 1), Err(OpenError::Lost { .. })));
}

#[tokio::test]
async fn a_group_opens_once_and_is_free_after_its_last_handle() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, mut probe) = open_probe(folder.path());
    assert!(matches!(
        Probe::open(&storage, "home"),
        Err(OpenError::GroupOpen { .. })
    ));
    assert!(matches!(
        Probe::open(&storage, "no/slash"),
        Err(OpenError::GroupName { .. })
    ));
    assert!(matches!(
        Probe::open(&storage, ""),
        Err(OpenError::GroupName { .. })
    ));
    fill(&mut probe, 0..3).await;
    probe.purge(1, 0).await.expect("a purge");
    probe.commit(1, 2).await.expect("a commit");
    let clone = probe.clone();
    drop(probe);
    assert!(matches!(
        Probe::open(&storage, "home"),
        Err(OpenError::GroupOpen { .. })
    ));
    drop(clone);
    let mut probe = Probe::open(&storage, "home").expect("a free group");
    let contents = probe.contents().await.expect("an intact log");
    assert_eq!(contents.purged, Some((1, 0)));
    assert_eq!(contents.committed, Some(2));
    assert_eq!(contents.entries, [entry(1), entry(2)]);
    let mut other = Probe::open(&storage, "away").expect("a second group");
    assert_eq!(other.contents().await.expect("an empty log").entries, []);
}

#[tokio::test]
async fn misuse_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, mut probe) = open_probe(folder.path());
    fill(&mut probe, 0..3).await;
    let hole = probe.append(vec![entry(4)]).await.err().expect("a hole");
    assert!(hole.to_string().contains("leave a hole"), "{hole}");
    let hole = probe
        .append(vec![entry(3), entry(5)])
        .await
        .err()
        .expect("a hole");
    assert!(hole.to_string().contains("leave a hole"), "{hole}");
    let large = Entry {
        index: 3,
        term: 1,
        text: "z".repeat(ENTRY_MAX + 1),
    };
    let large = probe.append(vec![large]).await.err().expect("too large");
    assert!(large.to_string().contains("exceeds the limit"), "{large}");
    assert_eq!(
        probe.contents().await.expect("an intact log").last,
        Some((1, 2))
    );
    probe
        .append(Vec::new())
        .await
        .expect("nothing")
        .await
        .expect("nothing to wait for");

    storage.close();
    let closed = probe
        .append(vec![entry(3)])
        .await
        .err()
        .expect("a closed store");
    assert!(closed.to_string().contains("closed"), "{closed}");
    assert!(probe.vote(1).await.is_err());
}

#[tokio::test]
async fn a_damaged_snapshot_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (storage, probe) = open_probe(folder.path());
    let data: Vec<u8> = (0..600_000u32).map(|byte| (byte % 251) as u8).collect();
    probe
        .snapshots()
        .save(b"first", &data[..1000])
        .expect("a snapshot");
    probe
        .snapshots()
        .save(b"about", &data[..])
        .expect("a snapshot");
    // A snapshot that never becomes one.
    let mut unfinished = probe.snapshots().create(b"unfinished").expect("a snapshot");
    std::io::Write::write_all(&mut unfinished, &data).expect("a write");
    std::mem::forget(unfinished);
    drop(probe);
    storage.close();
    // The forgotten writer keeps the folder locked, as a killed process would not.
    let copy = tempfile::tempdir().expect("a temporary folder");
    copy_folder(folder.path(), copy.path());
    let files = || -> Vec<_> {
        let listed = fs::read_dir(copy.path().join("snapshots")).expect("a folder");
        listed
            .map(|entry| entry.expect("an entry").path())
            .collect()
    };
    assert_eq!(files().len(), 2);

    let (storage, probe) = open_probe(copy.path());
    assert_eq!(files().len(), 1);
    let mut loaded = probe
        .snapshots()
        .load()
        .expect("an intact file")
        .expect("a snapshot");
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut loaded.data, &mut read).expect("an intact file");
    assert_eq!((loaded.meta, loaded.length), (b"about".to_vec(), 600_000));
    assert!(read == data);
    drop(probe);
    storage.close();

    let path = files().remove(0);
    let intact = fs::read(&path).expect("the file");
    for change in 0..5 {
        let mut bytes = intact.clone();
        match change {
            0 => bytes[400_000] ^= 4,
            1 => bytes.truncate(300_000),
            2 => bytes.push(0),
            3 => bytes[2] = 0xff,
            _ => {
                bytes.drain(30..262_184);
            }
        }
        fs::write(&path, bytes).expect("a write");
        match refusal(copy.path()) {
            OpenError::Damaged(damage) => {
                assert_eq!(damage.record, "snapshot of group `home`", "change {change}");
            }
            other => panic!("{other}"),
        }
    }
    fs::remove_file(&path).expect("a removal");
    assert!(matches!(
        refusal(copy.path()),
        OpenError::Damaged(Damage {
            problem: Problem::Missing,
            ..
        })
    ));
}
