//! A made-up register with many clients, and each violation planted into its history.

use super::*;

/// Small and seeded: the tests need the same histories every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// A sound history: each operation takes effect at one moment between its call and its return.
fn sound(seed: u64, count: usize, clients: usize) -> Vec<Access> {
    sound_with(seed, count, clients, 200)
}

/// Of `one_in` writes one has an unknown outcome.
fn sound_with(seed: u64, count: usize, clients: usize, one_in: u64) -> Vec<Access> {
    let mut chance = Chance(seed);
    let mut free = vec![1_u64; clients];
    let mut effects = Vec::new();
    for number in 0..count {
        let client = chance.below(clients as u64) as usize;
        let call = free[client] + 1 + chance.below(100);
        let lasts = 10 + chance.below(1000);
        let effect = call + 1 + chance.below(lasts - 2);
        let write = chance.below(2) == 0;
        let unknown = write && chance.below(one_in) == 0;
        // What has an unknown outcome may happen later, or never.
        let effect = match (unknown, chance.below(2)) {
            (false, _) => Some(effect),
            (true, 0) => None,
            (true, _) => Some(effect + chance.below(5000)),
        };
        let ret = if unknown { u64::MAX } else { call + lasts };
        free[client] = call + lasts;
        let access = Access {
            write,
            value: format!("w{number}"),
            call,
            ret,
            version: None,
            node: client as u64 % 3 + 1,
        };
        effects.push((effect, access));
    }
    effects.sort_by_key(|(effect, _)| effect.unwrap_or(u64::MAX));
    let (mut version, mut value) = (1, "first".to_owned());
    let mut history = vec![Access {
        write: true,
        value: value.clone(),
        call: 0,
        ret: 1,
        version: Some(version),
        node: 1,
    }];
    for (effect, mut access) in effects {
        if access.write && effect.is_some() {
            version += 1;
            value.clone_from(&access.value);
        }
        if !access.write {
            access.value.clone_from(&value);
        }
        if access.ret != u64::MAX {
            access.version = Some(version);
        }
        history.push(access);
    }
    history.sort_by_key(|access| access.call);
    history
}

#[test]
fn a_sound_history_is_sound() {
    for seed in 0..20 {
        let history = sound(seed, 2000, 20);
        assert!(history.iter().any(Access::is_unknown));
        assert_eq!(check(&history, Versions::Dense), Vec::<String>::new());
        assert_eq!(check(&history, Versions::Sparse), Vec::<String>::new());
    }
}

/// Two hundred thousand operations are what a long run has; a test build has to be done in seconds.
#[test]
fn many_operations_take_little_time() {
    let history = sound(7, 200_000, 100);
    let begun = std::time::Instant::now();
    assert!(check(&history, Versions::Dense).is_empty());
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
}

/// The index of a read or write in the last tenth with a version.
fn late(history: &[Access], write: bool) -> usize {
    let from = history.len() * 9 / 10;
    from + history[from..]
        .iter()
        .position(|access| access.write == write && access.version.is_some())
        .expect("there are many")
}

fn finds(history: &[Access], what: &str) {
    for versions in [Versions::Dense, Versions::Sparse] {
        let found = check(history, versions);
        assert!(
            found.iter().any(|found| found.contains(what)),
            "{versions:?}: {what} not in {found:?}"
        );
    }
}

#[test]
fn a_stale_read_is_found() {
    let mut history = sound(1, 2000, 10);
    let old = history[history.len() / 2].clone();
    let at = late(&history, false);
    let (version, value) = (old.version.expect("known"), old.value);
    history[at].version = Some(version);
    history[at].value = value;
    finds(&history, "a stale read");
}

#[test]
fn a_lost_update_is_found() {
    let mut history = sound(2, 2000, 10);
    // As if a node had forgotten the last entries of its log: versions are given out again.
    let from = late(&history, true);
    for access in &mut history[from..] {
        access.version = access.version.map(|version| version - 40);
    }
    finds(&history, "is lost");
}

#[test]
fn one_version_for_two_writes_is_found() {
    let mut history = sound(3, 2000, 10);
    let one = late(&history, true);
    let other = history
        .iter()
        .position(|access| access.write && access.version.is_some_and(|version| version > 5))
        .expect("there are many");
    history[one].version = history[other].version;
    finds(&history, "two writes");
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    let mut history = sound(4, 2000, 10);
    let at = late(&history, false);
    history[at].value = "phantom".to_owned();
    finds(&history, "nobody wrote that");
}

#[test]
fn a_value_of_another_version_is_found() {
    let mut history = sound(5, 2000, 10);
    let at = late(&history, false);
    let old = history[at - 900..at]
        .iter()
        .find(|access| access.write && access.version.is_some())
        .expect("there are many")
        .value
        .clone();
    history[at].value = old;
    finds(&history, "is the write of");
}

#[test]
fn a_vanished_write_is_found() {
    let mut history = sound_with(6, 2000, 10, u64::MAX);
    assert!(history.iter().all(|access| !access.is_unknown()));
    let read = |value: &str| {
        let mut reads = history.iter().filter(|access| !access.write);
        reads.any(|access| access.value == value)
    };
    let at = history
        .iter()
        .position(|access| access.write && access.call > 1000 && !read(&access.value))
        .expect("most values are written over before they are read");
    history.remove(at);
    let found = check(&history, Versions::Dense);
    assert!(found[0].contains("no write that is known"), "{found:?}");
    assert!(check(&history, Versions::Sparse).is_empty());
}

#[test]
fn a_write_that_was_applied_twice_is_found() {
    let access = |write, value: &str, call, version: Option<u64>| Access {
        write,
        value: value.to_owned(),
        call,
        ret: if version.is_some() {
            call + 5
        } else {
            u64::MAX
        },
        version,
        node: 1,
    };
    let history = [
        access(true, "a", 0, Some(1)),
        access(true, "b", 10, None),
        access(false, "b", 20, Some(2)),
        access(true, "c", 30, Some(3)),
        access(false, "b", 40, Some(4)),
    ];
    let found = check(&history, Versions::Dense);
    assert!(
        found.iter().any(|found| found.contains("applied twice")),
        "{found:?}"
    );
}

#[test]
fn what_is_seen_before_its_write_is_found() {
    let mut history = sound(8, 2000, 10);
    let at = late(&history, true);
    let (version, value) = (history[at].version, history[at].value.clone());
    let early = history.len() / 3;
    let read = history[early..]
        .iter()
        .position(|access| !access.write)
        .expect("there are many")
        + early;
    history[read].version = version;
    history[read].value = value;
    finds(&history, "was seen before");
}
