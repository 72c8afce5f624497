//! Replays the corpus of every fuzz target, and seeded mutations of it.

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[path = "fuzz/targets.rs"]
mod targets;

/// Mutations tried of each input. More find more and take longer.
const MUTATIONS: u32 = 200;

#[test]
fn every_target_survives_its_corpus_and_mutations_of_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let mut inputs = Vec::new();
        for entry in fs::read_dir(corpus.join(name)).expect("every target has a corpus") {
            inputs.push(fs::read(entry.expect("entry").path()).expect("input is readable"));
        }
        assert!(!inputs.is_empty(), "the corpus of {name} is empty");
        // Whole engines, sessions and stores take longer: fewer of those.
        let mutations = if ["datagrams", "engine", "session", "store"].contains(name) {
            MUTATIONS / 10
        } else {
            MUTATIONS
        };
        let seed = 0x00f1_0711_1a00;
        let mut rng = StdRng::seed_from_u64(seed);
        for input in &inputs {
            target(input);
            for _ in 0..mutations {
                target(&mutate(&mut rng, input, &inputs));
            }
        }
    }
}

#[test]
fn targets_names_and_corpus_agree() {
    for (name, _) in targets::TARGETS {
        let _ = targets::target(name);
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/fuzz_targets/{name}.rs"));
        assert!(file.is_file(), "{} is missing", file.display());
    }
}

fn mutate(rng: &mut StdRng, input: &[u8], all: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, rng.random()),
            4 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let other = &all[rng.random_range(0..all.len())];
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}
