//! The store on a simulated disk: appends, cuts of the log, votes, snapshots, power cuts in the middle of
//! all that; and in the end, bytes changed by hand.
//!
//! Through power cuts nothing acknowledged may be missing, whatever was not may be there or not, and
//! nothing else may appear. Changed bytes may be found out or be of no account, but never give an entry
//! that nobody wrote.

use std::collections::BTreeMap;

use flotilla_storage::probe::{Entry, Probe};
use flotilla_storage::simulation::SimulatedDisk;
use flotilla_storage::{Identity, Storage};
use tokio::runtime::Runtime;

use super::draw::Draw;

/// Everything that was ever to be written, by term and index.
type Written = BTreeMap<(u64, u64), Vec<String>>;

/// What a group has to have.
#[derive(Clone, Default, PartialEq, Debug)]
struct Expected {
    entries: BTreeMap<u64, (u64, String)>,
    purged: u64,
    vote: Option<u64>,
    snapshot: Option<Vec<u8>>,
}

impl Expected {
    fn last(&self) -> u64 {
        let last = self.entries.last_key_value().map_or(0, |(index, _)| *index);
        last.max(self.purged)
    }
}

/// The target.
pub(crate) fn run(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(play(Draw::new(bytes))));
}

fn open(disk: &SimulatedDisk) -> Result<(Storage, Probe), String> {
    let identity = Identity {
        cluster: None,
        node: 1,
    };
    let storage = Storage::open_simulated("data", disk, identity);
    let storage = storage.map_err(|error| error.to_string())?;
    let probe = Probe::open(&storage, "home").map_err(|error| error.to_string())?;
    Ok((storage, probe))
}

async fn play(mut draw: Draw<'_>) {
    let disk = SimulatedDisk::new(u64::from(draw.u16()));
    let mut expected = Expected::default();
    // What may be there as well: an operation that the power went in.
    let mut perhaps = expected.clone();
    let mut seen = Written::new();
    for _ in 0..64 {
        if draw.is_empty() {
            break;
        }
        if draw.byte().is_multiple_of(3) {
            disk.cut_after(u64::from(draw.byte() % 40));
        }
        let opened = open(&disk);
        let alive = disk.is_on();
        match opened {
            Ok((storage, mut probe)) => {
                check(&mut probe, &expected, &perhaps, alive).await;
                let mut more = true;
                while more && !draw.is_empty() {
                    let mut after = expected.clone();
                    let done = operation(&mut draw, &mut probe, &mut after, &mut seen).await;
                    match done {
                        Ok(go_on) => {
                            expected = after.clone();
                            perhaps = after;
                            more = go_on;
                        }
                        Err(_) => {
                            assert!(!disk.is_on(), "an operation failed on a working disk");
                            perhaps = after;
                            more = false;
                        }
                    }
                }
                if draw.flag() {
                    disk.cut();
                }
                drop(probe);
                storage.close();
            }
            Err(error) => assert!(!alive, "a store does not open: {error}"),
        }
        disk.halt();
        disk.power_on();
        // What was uncertain is decided by now, one way or the other.
        if let Ok((storage, mut probe)) = open(&disk) {
            check(&mut probe, &expected, &perhaps, true).await;
            expected = found(&mut probe, &expected, &perhaps).await;
            perhaps = expected.clone();
            storage.close();
        } else {
            panic!("a store does not open after a power cut");
        }
    }
    tamper(&mut draw, &disk, &seen).await;
}

/// Letters that no other entry has. A sector that two torn records have in common would make either of them whole,
/// which does no harm, but is not what is looked for here.
fn filler(of: u64, size: usize) -> String {
    let mut random = of;
    let letters = std::iter::repeat_with(|| {
        // Knuth's MMIX generator.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (random >> 60) as u8)
    });
    letters.take(size).collect()
}

/// One thing; whether to go on with the same store.
async fn operation(
    draw: &mut Draw<'_>,
    probe: &mut Probe,
    after: &mut Expected,
    seen: &mut Written,
) -> std::io::Result<bool> {
    match draw.byte() % 12 {
        0..=4 => {
            let term = after.vote.unwrap_or(1);
            let size = match draw.byte() % 64 {
                0 => 30_000,
                1 => 6_000,
                small => usize::from(small) * 20,
            };
            let count = 1 + draw.number(6);
            let first = after.last() + 1;
            let mut entries = Vec::new();
            for index in (first..).take(count) {
                let written = seen.values().map(Vec::len).sum::<usize>();
                let text = format!("{term}.{index}.{}", filler(written as u64, size));
                seen.entry((term, index)).or_default().push(text.clone());
                after.entries.insert(index, (term, text.clone()));
                entries.push(Entry { index, term, text });
            }
            probe.append(entries).await?.await?;
        }
        5 => {
            let last = after.last();
            let keep = last - (u64::from(draw.byte()) % 5).min(last - after.purged);
            let id = after.entries.get(&keep).map(|(term, _)| (*term, keep));
            if id.is_some() {
                after.entries.retain(|index, _| *index <= keep);
                // What comes instead is of another term.
                after.vote = Some(after.vote.unwrap_or(1) + 1);
                let term = after.vote.unwrap_or(1);
                probe.vote(term).await?;
                probe.truncate_after(id).await?;
            }
        }
        6 => {
            let last = after.last();
            let upto = (after.purged + u64::from(draw.byte()) % 6).min(last);
            if let Some((term, _)) = after.entries.get(&upto).cloned() {
                after.entries.retain(|index, _| *index > upto);
                after.purged = upto;
                probe.purge(term, upto).await?;
            }
        }
        7 => {
            let term = after.vote.unwrap_or(1) + 1;
            after.vote = Some(term);
            probe.vote(term).await?;
        }
        8 => {
            if let Some((index, (term, _))) = after.entries.last_key_value() {
                probe.commit(*term, *index).await?;
            }
        }
        9 => {
            let data = vec![draw.byte(); usize::from(draw.u16())];
            after.snapshot = Some(data.clone());
            probe.snapshots().save(b"meta", &data[..])?;
        }
        10 => tokio::time::sleep(std::time::Duration::from_millis(600)).await,
        _ => return Ok(false),
    }
    Ok(true)
}

/// What there is lies between what has to be and what may be.
async fn check(probe: &mut Probe, expected: &Expected, perhaps: &Expected, alive: bool) {
    let contents = match probe.contents().await {
        Ok(contents) => contents,
        Err(error) => {
            assert!(!alive, "it cannot be read: {error}");
            return;
        }
    };
    let votes = [expected.vote, perhaps.vote];
    assert!(votes.contains(&contents.vote), "{contents:?} {votes:?}");
    let purged = contents.purged.map_or(0, |(_, index)| index);
    assert!(purged <= perhaps.purged.max(expected.purged));
    let last = contents.last.map_or(0, |(_, index)| index);
    let lasts = [expected.last(), perhaps.last()];
    assert!(lasts.contains(&last), "{last} is none of {lasts:?}");
    for (index, (term, text)) in &expected.entries {
        // A cut of the log that nobody answered for may have happened.
        let kept = perhaps.entries.get(index) == Some(&(*term, text.clone()));
        let found = contents.entries.iter().find(|entry| entry.index == *index);
        match found {
            Some(entry) => assert_eq!((entry.term, &entry.text), (*term, text)),
            None => assert!(!kept || *index <= purged, "entry {index} is gone"),
        }
    }
    for entry in &contents.entries {
        let known = [expected, perhaps].into_iter().any(|known| {
            let known_entry = known.entries.get(&entry.index);
            known_entry == Some(&(entry.term, entry.text.clone())) || entry.index <= known.purged
        });
        assert!(known, "nobody wrote {}.{}", entry.term, entry.index);
    }
}

/// What was decided.
async fn found(probe: &mut Probe, expected: &Expected, perhaps: &Expected) -> Expected {
    let contents = probe.contents().await.expect("it was read before");
    let purged = contents.purged.map_or(0, |(_, index)| index);
    let snapshot = probe
        .snapshots()
        .load()
        .expect("a sound snapshot")
        .map(|mut stored| {
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut stored.data, &mut data).expect("a sound snapshot");
            data
        });
    let snapshots = [&expected.snapshot, &perhaps.snapshot];
    assert!(snapshots.contains(&&snapshot), "another snapshot");
    Expected {
        entries: contents
            .entries
            .into_iter()
            .map(|entry| (entry.index, (entry.term, entry.text)))
            .collect(),
        purged,
        vote: contents.vote,
        snapshot,
    }
}

async fn tamper(draw: &mut Draw<'_>, disk: &SimulatedDisk, seen: &Written) {
    if draw.is_empty() {
        return;
    }
    let mut edit = |bytes: &mut Vec<u8>| {
        if bytes.is_empty() || !draw.byte().is_multiple_of(4) {
            return;
        }
        let at = (draw.u32() as usize) % bytes.len();
        match draw.byte() % 4 {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= draw.byte(),
            2 => {
                let new = draw.bytes();
                let end = bytes.len().min(at + new.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            _ => {
                // A block somewhere else.
                let from = (draw.u16() as usize * 512) % bytes.len();
                let end = bytes.len().min(from + 4096);
                let block = bytes[from..end].to_vec();
                let to = at / 512 * 512;
                let end = bytes.len().min(to + block.len());
                bytes[to..end].copy_from_slice(&block[..end - to]);
            }
        }
    };
    disk.damage(|_, bytes| edit(bytes));
    disk.damage_records(|_, bytes| edit(bytes));
    let Ok((_storage, mut probe)) = open(disk) else {
        return;
    };
    let Ok(contents) = probe.contents().await else {
        return;
    };
    for entry in contents.entries {
        let known = seen.get(&(entry.term, entry.index));
        let known = known.is_some_and(|known| known.contains(&entry.text));
        assert!(known, "nobody wrote {}.{}", entry.term, entry.index);
    }
}
