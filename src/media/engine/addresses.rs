//! Which peer a datagram's source address belongs to. Asked for every media packet.
//!
//! Clients choose the keys within limits, so the hash depends on a secret: nobody can fill one
//! bucket on purpose. Entries come from valid connectivity checks only, a few per peer.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;

use crate::command::PeerId;

/// The table.
pub(super) struct Addresses {
    map: HashMap<SocketAddr, PeerId, Secret>,
}

impl Addresses {
    pub(super) fn new(secret: u64) -> Self {
        Self {
            map: HashMap::with_hasher(Secret(secret)),
        }
    }

    pub(super) fn get(&self, address: SocketAddr) -> Option<PeerId> {
        self.map.get(&address).copied()
    }

    /// Gives an address to a peer, whoever had it.
    pub(super) fn insert(&mut self, address: SocketAddr, peer: PeerId) {
        self.map.insert(address, peer);
    }

    /// Takes an address from a peer, if it is still its own.
    pub(super) fn remove(&mut self, address: SocketAddr, peer: PeerId) {
        if self.get(address) == Some(peer) {
            self.map.remove(&address);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}

/// Builds hashers that start from a secret.
#[derive(Clone, Copy)]
struct Secret(u64);

impl BuildHasher for Secret {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded {
            state: self.0,
            secret: self.0,
        }
    }
}

/// Multiplies each word, spread by the secret, into 128 bits and folds the halves.
struct Folded {
    state: u64,
    secret: u64,
}

impl Folded {
    fn mix(&mut self, word: u64) {
        let left = u128::from(self.state ^ word);
        let right = u128::from(self.secret.rotate_left(29) | 1);
        let product = left * right;
        self.state = (product as u64) ^ ((product >> 64) as u64) ^ self.secret;
    }
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(u64::from(value));
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
    fn ports_of_one_host_spread() {
        let secret = Secret(0x1234_5678_9abc_def1);
        let hash = |port: u16| secret.hash_one(SocketAddr::from(([192, 0, 2, 7], port)));
        let low: std::collections::BTreeSet<u64> = (0..256).map(|p| hash(p) & 0xff).collect();
        let high: std::collections::BTreeSet<u64> = (0..256).map(|p| hash(p) >> 57).collect();
        assert!(low.len() > 120, "{}", low.len());
        assert!(high.len() > 90, "{}", high.len());
    }

    #[test]
    fn only_the_owner_gives_an_address_up() {
        let mut table = Addresses::new(7);
        let address = SocketAddr::from(([192, 0, 2, 7], 5));
        table.insert(address, PeerId(1));
        table.insert(address, PeerId(2));
        table.remove(address, PeerId(1));
        assert_eq!(table.get(address), Some(PeerId(2)));
        table.remove(address, PeerId(2));
        assert_eq!(table.len(), 0);
    }
}
