//! Datagrams on their way out: one arena that the engine fills and the shell empties.
//!
//! Filled by the engine (sealed media, RTCP, STUN, DTLS, relay packets), read by the shard thread,
//! which groups neighbours with the same destination into GSO messages and sends everything with
//! `sendmmsg`, then calls [`TransmitQueue::clear`]. Nothing is allocated while it is in use.

use std::net::SocketAddr;

/// Longest datagram: Ethernet's MTU less IPv6 and UDP headers, rounded up to a cache line.
pub const DATAGRAM_LEN_MAX: usize = 1_472;

/// One datagram in the queue.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Destination.
    pub to: SocketAddr,
    /// Where it starts in the arena.
    pub start: u32,
    /// Its length in bytes.
    pub len: u16,
}

/// Bounded queue of outgoing datagrams. When it is full new datagrams are dropped and counted: the
/// shell empties it after every call into the engine, and at once when it is nearly full.
pub struct TransmitQueue {
    arena: Box<[u8]>,
    used: usize,
    datagrams: Vec<Datagram>,
    datagrams_max: usize,
    dropped: u64,
}

impl TransmitQueue {
    /// A queue for `datagrams_max` datagrams of average size.
    #[must_use]
    pub fn new(datagrams_max: usize) -> Self {
        let datagrams_max = datagrams_max.max(16);
        Self {
            arena: vec![0; datagrams_max * DATAGRAM_LEN_MAX].into_boxed_slice(),
            used: 0,
            datagrams: Vec::with_capacity(datagrams_max),
            datagrams_max,
            dropped: 0,
        }
    }

    /// What is queued, oldest first.
    #[must_use]
    pub fn datagrams(&self) -> &[Datagram] {
        &self.datagrams
    }

    /// Bytes of one queued datagram.
    #[must_use]
    pub fn bytes(&self, datagram: &Datagram) -> &[u8] {
        let start = datagram.start as usize;
        &self.arena[start..start + usize::from(datagram.len)]
    }

    /// The arena itself: consecutive datagrams lie back to back in it, so that a run of them to
    /// one destination is one slice for GSO.
    #[must_use]
    pub fn arena(&self) -> &[u8] {
        &self.arena[..self.used]
    }

    /// Nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Less than a quarter is free: send before giving the engine more.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        self.datagrams.len() >= self.datagrams_max / 4 * 3
    }

    /// Datagrams dropped because the queue was full, since it was made.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Forgets the datagrams to addresses that `keep` does not name. Returns how many those are.
    pub fn retain(&mut self, mut keep: impl FnMut(SocketAddr) -> bool) -> usize {
        let before = self.datagrams.len();
        self.datagrams.retain(|datagram| keep(datagram.to));
        before - self.datagrams.len()
    }

    /// Forgets everything queued.
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.used = 0;
    }

    /// Queues a datagram that `write` builds in place: it gets [`DATAGRAM_LEN_MAX`] bytes with
    /// arbitrary content and returns the length used; 0 queues nothing. Returns whether a
    /// datagram was queued.
    pub fn push_with(&mut self, to: SocketAddr, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if self.datagrams.len() >= self.datagrams_max {
            self.dropped += 1;
            return false;
        }
        // Cannot be out of range: every datagram takes at most its share of the arena.
        let slot = &mut self.arena[self.used..self.used + DATAGRAM_LEN_MAX];
        let len = write(slot).min(DATAGRAM_LEN_MAX);
        if len == 0 {
            return false;
        }
        self.datagrams.push(Datagram {
            to,
            start: self.used as u32,
            len: len as u16,
        });
        self.used += len;
        true
    }

    /// Queues a copy of ready bytes. Returns whether it was queued: not if it is too long or the
    /// queue is full.
    pub fn push(&mut self, to: SocketAddr, bytes: &[u8]) -> bool {
        if bytes.len() > DATAGRAM_LEN_MAX {
            self.dropped += 1;
            return false;
        }
        self.push_with(to, |buffer| {
            buffer[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn datagrams_lie_back_to_back() {
        let mut queue = TransmitQueue::new(16);
        assert!(queue.push(address(1), b"abc"));
        assert!(queue.push_with(address(2), |buffer| {
            buffer[..2].copy_from_slice(b"de");
            2
        }));
        assert!(!queue.push_with(address(3), |_| 0));
        assert_eq!(queue.arena(), b"abcde");
        let second = queue.datagrams()[1];
        assert_eq!(second.to, address(2));
        assert_eq!(queue.bytes(&second), b"de");
        queue.clear();
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let mut queue = TransmitQueue::new(16);
        for _ in 0..16 {
            assert!(queue.push_with(address(1), |_| DATAGRAM_LEN_MAX));
        }
        assert!(queue.is_nearly_full());
        assert!(!queue.push(address(1), b"x"));
        assert!(!queue.push(address(1), &[0; DATAGRAM_LEN_MAX + 1]));
        assert_eq!(queue.dropped(), 2);
        assert_eq!(queue.datagrams().len(), 16);
    }
}
