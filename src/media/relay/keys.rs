//! Keys of a link and the sealing of its packets.
//!
//! ```text
//! byte 0      1..5   5..13     13..          last 16
//! first byte  tag    counter   ciphertext    authentication tag
//! ```
//!
//! Each direction between two starts of two nodes has its own AES-128-GCM key, salt and tag, derived
//! with HKDF-SHA256 from the cluster's relay secret. The nonce is salt and counter. The counter
//! starts at a random place, so that even a key derived twice would not repeat a nonce.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use flotilla_model::id::{BootId, NodeId};

use crate::discard::Discard;

/// First byte of a relay packet: at or above 192, where no client protocol starts (RFC 7983).
pub const FIRST_BYTE: u8 = 0xc1;
/// Bytes before the ciphertext.
pub const HEAD_LEN: usize = 13;
/// Bytes behind it.
pub const TAG_LEN: usize = 16;

/// One end of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Node.
    pub node: NodeId,
    /// Its start.
    pub boot: BootId,
}

impl End {
    /// How keys are told which end they are for.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.node.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.boot.0.to_be_bytes());
        bytes
    }
}

/// An AES-128-GCM key with its salt, derived with HKDF-SHA256.
pub(super) struct SaltedKey {
    pub(super) key: LessSafeKey,
    salt: [u8; 4],
}

impl SaltedKey {
    /// Derives the key of this purpose for what `info` names; and a tag that names the key.
    pub(super) fn derive(secret: &[u8; 32], purpose: &[u8], info: &[u8]) -> (Self, u32) {
        let mut material = [0; 24];
        Salt::new(HKDF_SHA256, purpose)
            .extract(secret)
            .expand(&[info], Length(material.len()))
            .and_then(|output| output.fill(&mut material))
            .expect("24 bytes are far below HKDF's limit");
        let key = UnboundKey::new(&AES_128_GCM, &material[..16])
            .expect("16 bytes are the length of an AES-128 key");
        let [a, b, c, d, tag @ ..] = *material.last_chunk::<8>().expect("24 bytes have a tail");
        let key = Self {
            key: LessSafeKey::new(key),
            salt: [a, b, c, d],
        };
        (key, u32::from_be_bytes(tag))
    }

    /// Salt and counter. A counter must never seal twice.
    pub(super) fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Key material of one direction.
pub struct DirectionKey {
    key: SaltedKey,
    /// Names the key on the wire.
    pub tag: u32,
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl DirectionKey {
    /// Derives the key for packets from one end to the other. `shard` separates the shards of a
    /// node, which seal without knowing of each other.
    #[must_use]
    pub fn derive(secret: &[u8; 32], shard: u16, from: End, to: End) -> Self {
        let mut info = [0; 34];
        info[..16].copy_from_slice(&from.to_bytes());
        info[16..32].copy_from_slice(&to.to_bytes());
        info[32..].copy_from_slice(&shard.to_be_bytes());
        let (key, tag) = SaltedKey::derive(secret, b"flotilla relay v1", &info);
        Self { key, tag }
    }

    /// Seals `len` plain bytes that lie behind the head in `packet`; returns the packet's length, 0
    /// if there is no room for the authentication tag. A counter must never be used twice.
    pub fn seal(&self, packet: &mut [u8], len: usize, counter: u64) -> usize {
        let total = HEAD_LEN + len + TAG_LEN;
        if total > packet.len() {
            return 0;
        }
        let (head, rest) = packet.split_at_mut(HEAD_LEN);
        head[0] = FIRST_BYTE;
        head[1..5].copy_from_slice(&self.tag.to_be_bytes());
        head[5..13].copy_from_slice(&counter.to_be_bytes());
        let (plain, tag) = rest.split_at_mut(len);
        let sealed = self.key.key.seal_in_place_separate_tag(
            self.key.nonce(counter),
            Aad::from(&*head),
            plain,
        );
        match sealed {
            Ok(sealed) => {
                tag[..TAG_LEN].copy_from_slice(sealed.as_ref());
                total
            }
            Err(_) => 0,
        }
    }

    /// Opens a packet in place; returns the plain bytes and the counter.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn open<'a>(&self, packet: &'a mut [u8]) -> Result<(u64, &'a [u8]), Discard> {
        let (_, counter) = head(packet)?;
        let (head, sealed) = packet.split_at_mut(HEAD_LEN);
        let plain = self
            .key
            .key
            .open_in_place(self.key.nonce(counter), Aad::from(&*head), sealed)
            .map_err(|_| Discard::Unauthenticated)?;
        Ok((counter, plain))
    }
}

/// Tag and counter of a packet.
///
/// # Errors
/// `Truncated`, or `Malformed` if it is no relay packet of this version.
pub fn head(packet: &[u8]) -> Result<(u32, u64), Discard> {
    let head: &[u8; HEAD_LEN] = packet.first_chunk().ok_or(Discard::Truncated)?;
    if head[0] != FIRST_BYTE {
        return Err(Discard::Malformed);
    }
    let [_, a, b, c, d, counter @ ..] = *head;
    Ok((
        u32::from_be_bytes([a, b, c, d]),
        u64::from_be_bytes(counter),
    ))
}

/// Counters of received packets: which were seen, and how far back is told apart. Relays reorder
/// more than clients do, so the window is wide.
pub struct ReplayWindow {
    highest: Option<u64>,
    seen: [u64; REPLAY_WORDS],
}

const REPLAY_WORDS: usize = 32;
const REPLAY_SPAN: u64 = REPLAY_WORDS as u64 * 64;

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            highest: None,
            seen: [0; REPLAY_WORDS],
        }
    }
}

impl ReplayWindow {
    /// Highest counter accepted.
    #[must_use]
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }

    /// Accepts an authenticated packet's counter once.
    ///
    /// # Errors
    /// `Replayed` if it was seen or is too old to tell.
    pub fn accept(&mut self, counter: u64) -> Result<(), Discard> {
        match self.highest {
            Some(highest) if counter <= highest => {
                if highest - counter >= REPLAY_SPAN || self.is_seen(counter) {
                    return Err(Discard::Replayed);
                }
            }
            Some(highest) => {
                if counter - highest >= REPLAY_SPAN {
                    self.seen = [0; REPLAY_WORDS];
                } else {
                    for skipped in highest + 1..=counter {
                        *self.word(skipped) &= !(1 << (skipped % 64));
                    }
                }
                self.highest = Some(counter);
            }
            None => self.highest = Some(counter),
        }
        *self.word(counter) |= 1 << (counter % 64);
        Ok(())
    }

    fn is_seen(&self, counter: u64) -> bool {
        self.seen[(counter / 64) as usize % REPLAY_WORDS] & 1 << (counter % 64) != 0
    }

    fn word(&mut self, counter: u64) -> &mut u64 {
        &mut self.seen[(counter / 64) as usize % REPLAY_WORDS]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn end(node: u64, boot: u64) -> End {
        End {
            node: NodeId(node),
            boot: BootId(boot),
        }
    }

    fn sealed(key: &DirectionKey, plain: &[u8], counter: u64) -> Vec<u8> {
        let mut packet = vec![0; HEAD_LEN + plain.len() + TAG_LEN];
        packet[HEAD_LEN..HEAD_LEN + plain.len()].copy_from_slice(plain);
        let len = key.seal(&mut packet, plain.len(), counter);
        assert_eq!(len, packet.len());
        packet
    }

    #[test]
    fn only_the_same_direction_boots_secret_and_shard_open() {
        let secret = [7; 32];
        let key = DirectionKey::derive(&secret, 0, end(1, 10), end(2, 20));
        let packet = sealed(&key, b"hello", 99);
        let same = DirectionKey::derive(&secret, 0, end(1, 10), end(2, 20));
        assert_eq!(
            same.open(&mut packet.clone()),
            Ok((99, b"hello".as_slice()))
        );
        let others = [
            DirectionKey::derive(&secret, 0, end(2, 20), end(1, 10)),
            DirectionKey::derive(&secret, 0, end(1, 11), end(2, 20)),
            DirectionKey::derive(&secret, 0, end(1, 10), end(2, 21)),
            DirectionKey::derive(&secret, 1, end(1, 10), end(2, 20)),
            DirectionKey::derive(&[8; 32], 0, end(1, 10), end(2, 20)),
        ];
        for other in others {
            assert_ne!(other.tag, key.tag);
            assert_eq!(
                other.open(&mut packet.clone()),
                Err(Discard::Unauthenticated)
            );
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let key = DirectionKey::derive(&[7; 32], 0, end(1, 10), end(2, 20));
        let packet = sealed(&key, b"hello", 99);
        for bit in 8..packet.len() * 8 {
            let mut bad = packet.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(&mut bad), Err(Discard::Unauthenticated));
        }
        let mut short = packet[..HEAD_LEN + 3].to_vec();
        assert!(key.open(&mut short).is_err());
        assert_eq!(key.seal(&mut [0; 30], 5, 1), 0);
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(
            start in 0_u64..1 << 62,
            steps in proptest::collection::vec(-3_000_i64..3_000, 1..200)
        ) {
            let mut window = ReplayWindow::default();
            let mut seen = HashSet::new();
            let mut highest = 0;
            let mut at = start + (1 << 30);
            for step in steps {
                at = at.saturating_add_signed(step);
                let is_fresh = seen.is_empty() || (at + REPLAY_SPAN > highest && !seen.contains(&at));
                prop_assert_eq!(window.accept(at).is_ok(), is_fresh);
                if is_fresh {
                    seen.insert(at);
                    highest = highest.max(at);
                }
            }
        }
    }
}
