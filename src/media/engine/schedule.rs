//! When which peer is due: a heap of deadlines, so that nobody is asked who has nothing to do.
//!
//! An entry is never moved. A peer that must be woken earlier gets another entry, one that may sleep
//! longer keeps its own and is asked once in vain; the peer itself remembers which entry counts
//! (`Peer::scheduled`), the others are dropped as they come up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::command::PeerId;

#[derive(Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Reverse<(Instant, PeerId)>>,
}

impl Schedule {
    pub(super) fn push(&mut self, at: Instant, peer: PeerId) {
        self.heap.push(Reverse((at, peer)));
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// The earliest entry, which may turn out not to count.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out a peer whose time has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<PeerId> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, peer))| peer)
    }
}
