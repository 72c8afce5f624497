//! The one source of chance of a run: a seed gives the same numbers everywhere, forever.
//!
//! SplitMix64 (Steele, Lea, Flood 2014): written out here so that no dependency's change moves seeds.

/// A generator. Parts of the world that must not disturb each other fork their own.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    /// Another one that depends on this one's seed and a label only.
    #[must_use]
    pub const fn fork(&self, label: u64) -> Self {
        let mut forked = Self(self.0 ^ label.wrapping_mul(0xd134_2543_de82_ef95));
        forked.0 = forked.0.rotate_left(17) ^ label;
        forked
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number from `low` to `high`, both included.
    pub const fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in so many of a thousand cases.
    pub const fn per_mille(&mut self, count: u64) -> bool {
        self.below(1000) < count
    }

    /// One of them; `None` if there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() {
            return None;
        }
        of.get(self.below(of.len() as u64) as usize)
    }

    /// 32 bytes.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        for part in seed.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        seed
    }
}
