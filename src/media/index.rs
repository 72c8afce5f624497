//! Hash tables for small trusted keys on the hot path: peer ids, SSRCs, track hashes.
//!
//! One multiplication instead of SipHash. Where a client chooses the keys (SSRCs), the table it can
//! fill is its own and its size is limited, so that collisions cost nobody else anything.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Map with the fast hasher.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;
/// Set with the fast hasher.
pub type IdSet<K> = HashSet<K, BuildHasherDefault<IdHasher>>;

/// Hasher for keys that are one integer.
#[derive(Clone, Copy, Default, Debug)]
pub struct IdHasher(u64);

impl IdHasher {
    fn mix(&mut self, value: u64) {
        // 2^64 / golden ratio: spreads consecutive ids over the whole range.
        let product = u128::from(self.0 ^ value) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte) + 1);
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_ids_spread_over_both_ends_of_the_hash() {
        let hash = |value: u64| {
            let mut hasher = IdHasher::default();
            hasher.write_u64(value);
            hasher.finish()
        };
        let top: HashSet<u64> = (0..128).map(|id| hash(id) >> 57).collect();
        let bottom: HashSet<u64> = (0..128).map(|id| hash(id) & 0x7f).collect();
        assert!(top.len() > 64, "{}", top.len());
        assert!(bottom.len() > 64, "{}", bottom.len());
    }
}
