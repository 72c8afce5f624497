//! Finds the lowest TSN that a client still holds for us, when another node received what came
//! before. Everything below it was acknowledged there; nothing from it on may be acknowledged before
//! it is here. Fed by `inward` with what arrives while that is not known.
//!
//! A sender whose chunks are not acknowledged begins again with the lowest of them (RFC 9260 §6.3.3),
//! so the lowest TSN seen is it, as soon as something shows that a retransmission has begun.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::wire::is_before;

/// Chunks that wait until it is known what to do with them. Those of the highest TSNs go when there
/// are more: the client sends them again.
const HELD_MAX: usize = 256;
/// A network may change the order of packets by this much; a chunk that is later than that by its
/// TSN is a retransmission. Less would take such a change for one, more delays the finding.
const REORDER: Duration = Duration::from_millis(50);
/// A TSN farther ahead than this is none that the client got to in the meantime.
const AHEAD_MAX: u32 = 1 << 24;

/// Chunks in the order of their TSNs.
#[derive(Default)]
pub(super) struct Held(Vec<(u32, Bytes)>);

impl Held {
    /// Keeps a chunk; false if it is here already.
    pub(super) fn insert(&mut self, tsn: u32, chunk: Bytes) -> bool {
        let at = self.0.partition_point(|(held, _)| is_before(*held, tsn));
        if self.0.get(at).is_some_and(|(held, _)| *held == tsn) {
            return false;
        }
        self.0.insert(at, (tsn, chunk));
        self.0.truncate(HELD_MAX);
        true
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn lowest(&self) -> Option<u32> {
        self.0.first().map(|(tsn, _)| *tsn)
    }

    pub(super) fn get(&self, tsn: u32) -> Option<&Bytes> {
        let mut held = self.0.iter();
        held.find(|(held, _)| *held == tsn).map(|(_, chunk)| chunk)
    }

    /// Chunks below a TSN.
    pub(super) fn before(&self, tsn: u32) -> impl Iterator<Item = &Bytes> {
        let below = self
            .0
            .iter()
            .take_while(move |(held, _)| is_before(*held, tsn));
        below.map(|(_, chunk)| chunk)
    }

    /// Drops what is below a TSN.
    pub(super) fn drop_below(&mut self, tsn: u32) {
        self.0.retain(|(held, _)| !is_before(*held, tsn));
    }

    pub(super) fn take(&mut self) -> Vec<(u32, Bytes)> {
        std::mem::take(&mut self.0)
    }

    fn has_holes(&self) -> bool {
        self.0
            .windows(2)
            .any(|pair| matches!(pair, [(a, _), (b, _)] if a.wrapping_add(1) != *b))
    }
}

/// The search.
pub(super) struct Search {
    /// The former node acknowledged everything up to here, and possibly more.
    floor: u32,
    /// Highest TSN since, and when it came.
    highest: Option<(u32, Instant)>,
    /// Something came out of order a moment ago; this is when it will be clear what that was.
    doubt: Option<Instant>,
}

impl Search {
    pub(super) const fn new(floor: u32) -> Self {
        Self {
            floor,
            highest: None,
            doubt: None,
        }
    }

    /// Whether the client may be at this TSN.
    pub(super) const fn is_plausible(&self, tsn: u32) -> bool {
        is_before(self.floor, tsn) && tsn.wrapping_sub(self.floor) <= AHEAD_MAX
    }

    /// Notes a plausible TSN whose chunk has just been put among the held ones, `is_new` unless it
    /// was there already. Gives the lowest TSN that the client holds, if that is clear now.
    pub(super) fn note(
        &mut self,
        now: Instant,
        tsn: u32,
        is_new: bool,
        held: &Held,
    ) -> Option<u32> {
        let lowest = held.lowest()?;
        // Nothing below it can be outstanding; what came twice was sent again.
        if tsn == self.floor.wrapping_add(1) || !is_new {
            return Some(lowest);
        }
        match self.highest {
            Some((highest, at)) if is_before(tsn, highest) => {
                if now.saturating_duration_since(at) >= REORDER {
                    return Some(lowest);
                }
                self.doubt.get_or_insert(now + REORDER);
            }
            _ => self.highest = Some((tsn, now)),
        }
        None
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.doubt
    }

    /// Lets time pass; the result is that of [`Search::note`].
    pub(super) fn handle_timeout(&mut self, now: Instant, held: &Held) -> Option<u32> {
        self.doubt.take_if(|at| *at <= now)?;
        // Packets out of order leave no holes, once they are all here; the beginning of what is sent
        // again and something newer do.
        held.lowest().filter(|_| held.has_holes())
    }
}
