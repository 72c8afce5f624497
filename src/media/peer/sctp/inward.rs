//! What the client sends on an association that another node began, as the library expects it:
//! TSNs and sequence numbers from their beginning, once it is known where the client stands.
//!
//! ```text
//! client ─ DATA ─► search ─ held until found ─► settle ─► library
//!                  (nothing is acknowledged)    (at the beginning of a message)
//! ```

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::refill::{Refill, number_of};
use super::search::{Held, Search};
use super::wire::{self, Chunk, Data, Packet, is_before};

/// TSN that the library expects first. In the middle, since it cannot bear that they begin anew.
pub(super) const FIRST: u32 = 1 << 30;
/// Streams of a client; it has three channels.
const STREAMS_MAX: usize = 64;
/// The client sends again after 3 s at the latest, or 4 s where it has waited for a node that was cut off. When
/// data keeps coming and nothing comes twice for longer than this, the search has no end.
const SEARCH_MAX: Duration = Duration::from_secs(8);
/// A chunk that is missing for so long is not sent again: the former node had it and said so. Longer
/// than the timers of LiveKit's SDKs, which end after 3 s at the latest.
const GAP_MAX: Duration = Duration::from_secs(4);
/// Such a chunk is found this soon, or was never there.
const GAP_WATCH: Duration = Duration::from_secs(10);
/// Window that is advertised while the library has no say yet.
const WINDOW: u32 = 128 * 1024;

/// Where the client stands.
enum Base {
    /// Not known.
    Sought(Search),
    /// The chunk with this TSN is the next, and may be in the middle of a message.
    Found(u32),
    /// The library knows this TSN as [`FIRST`].
    Settled(u32),
}

/// The client's direction.
pub(super) struct Inward {
    base: Base,
    /// Stream of the reliable messages, and the number up to which they have been passed on.
    reliable: Option<(u16, u32)>,
    held: Held,
    /// What the library takes for 0, on each ordered stream.
    streams: Vec<(u16, u16)>,
    /// All TSNs before it have come, once settled.
    next: u32,
    /// Since when a chunk waits for the search to end, or for others after it.
    held_since: Option<Instant>,
    settled_at: Option<Instant>,
    /// Fills gaps, for as long as there may be some of when the path changed.
    refill: Option<Refill>,
    /// The cumulative TSN behind which something is missing, and since when.
    gap: Option<(u32, Instant)>,
    /// To be acknowledged by us, as the library does not know of it.
    acknowledge: Option<u32>,
    /// Messages whose beginning the former node had.
    torn: u64,
}

impl Inward {
    /// `floor`: the highest TSN that was surely acknowledged. `reliable`: the stream of the reliable
    /// messages, and the number up to which they have been passed on.
    pub(super) fn new(floor: u32, reliable: Option<(u16, u32)>) -> Self {
        Self {
            base: Base::Sought(Search::new(floor)),
            reliable,
            held: Held::default(),
            streams: Vec::new(),
            next: 0,
            held_since: None,
            settled_at: None,
            refill: reliable.map(|(stream, passed)| Refill::new(stream, passed)),
            gap: None,
            acknowledge: None,
            torn: 0,
        }
    }

    /// Messages of which only the end came.
    pub(super) const fn torn(&self) -> u64 {
        self.torn
    }

    /// The SACK that is due, with the cumulative TSN.
    pub(super) fn take_acknowledgement(&mut self) -> Option<[u8; 12]> {
        let cumulative = self.acknowledge.take()?;
        let mut value = [0; 12];
        wire::set_u32(&mut value, 0, cumulative);
        wire::set_u32(&mut value, 4, WINDOW);
        Some(value)
    }

    /// Takes a DATA chunk: into `out`, or among the held ones.
    pub(super) fn take_data(&mut self, now: Instant, chunk: &Chunk<'_>, out: &mut Packet) {
        let Some(data) = Data::of(chunk) else {
            return;
        };
        if matches!(self.base, Base::Settled(_)) {
            if !self.give(&data, chunk, out) {
                self.hold(now, data.tsn, chunk);
            }
            return;
        }
        let is_new = match &self.base {
            Base::Sought(search) if !search.is_plausible(data.tsn) => return,
            Base::Found(next) if is_before(data.tsn, *next) => {
                // Swallowed before; the client has not heard of it.
                self.acknowledge = Some(next.wrapping_sub(1));
                return;
            }
            _ => self.hold(now, data.tsn, chunk),
        };
        let follows = self.follows(&data, chunk);
        if let Base::Sought(search) = &mut self.base {
            if follows {
                self.held.drop_below(data.tsn);
                self.base = Base::Found(data.tsn);
            } else if let Some(lowest) = search.note(now, data.tsn, is_new, &self.held) {
                self.base = Base::Found(lowest);
            }
        }
        self.settle(now);
    }

    /// Writes a chunk as the library knows it, and whatever fills a gap now that it is there. False if
    /// it cannot have it yet.
    fn give(&mut self, data: &Data, chunk: &Chunk<'_>, out: &mut Packet) -> bool {
        let next = self.next;
        let Some(place) = self.place(data) else {
            return false;
        };
        place.write(out, chunk.bytes);
        let Base::Settled(first) = self.base else {
            return true;
        };
        let is_old = is_before(data.tsn, next);
        if let Some(mut refill) = self.refill.take_if(|_| !is_old)
            && refill.note(data.tsn.wrapping_sub(first), data, chunk)
        {
            self.refill_gaps(&mut refill, next.wrapping_sub(first), first, out);
            self.refill = Some(refill);
        }
        true
    }

    /// Fills gaps from place `next` on.
    fn refill_gaps(&mut self, refill: &mut Refill, next: u32, first: u32, out: &mut Packet) {
        let mut next = refill.advance(next);
        loop {
            self.next = first.wrapping_add(next);
            let chunks = refill.fill(next, first);
            if chunks.is_empty() {
                return;
            }
            tracing::debug!(count = chunks.len(), "what was sent again fills a gap");
            for bytes in chunks {
                if let Some((chunk, data)) = Data::parse(&bytes)
                    && let Some(place) = self.place(&data)
                {
                    place.write(out, &bytes);
                    refill.note(data.tsn.wrapping_sub(first), &data, &chunk);
                }
            }
            let filled = refill.advance(next);
            if filled == next {
                return;
            }
            next = filled;
        }
    }

    /// Takes a FORWARD TSN: the client gave up what is before.
    pub(super) fn take_forward(&mut self, now: Instant, chunk: &Chunk<'_>, out: &mut Packet) {
        let Some(cumulative) = chunk.u32(4) else {
            return;
        };
        let next = cumulative.wrapping_add(1);
        match &self.base {
            Base::Sought(search) if !search.is_plausible(cumulative) => return,
            Base::Found(found) if !is_before(*found, next) => return,
            Base::Sought(_) | Base::Found(_) => {
                self.base = Base::Found(next);
                self.held.drop_below(next);
                self.acknowledge = Some(cumulative);
                self.learn_skipped(chunk);
                self.settle(now);
                return;
            }
            Base::Settled(_) => {}
        }
        let Some(offset) = self.offset() else {
            return;
        };
        let streams = self.learn_skipped(chunk);
        let mut value = Vec::with_capacity(chunk.bytes.len());
        value.extend_from_slice(&cumulative.wrapping_add(offset).to_be_bytes());
        for (stream, ssn) in streams {
            value.extend_from_slice(&stream.to_be_bytes());
            value.extend_from_slice(&ssn.to_be_bytes());
        }
        out.push(wire::FORWARD_TSN, &value);
        if is_before(self.next, next) {
            self.next = next;
        }
    }

    /// Streams of a FORWARD TSN as the library knows them; those that it does not begin behind it.
    fn learn_skipped(&mut self, chunk: &Chunk<'_>) -> Vec<(u16, u16)> {
        let mut known = Vec::new();
        for at in (8..chunk.bytes.len()).step_by(4) {
            let (Some(stream), Some(ssn)) = (chunk.u16(at), chunk.u16(at + 2)) else {
                break;
            };
            match self.stream(stream) {
                Some(offset) => known.push((stream, ssn.wrapping_sub(offset))),
                None => self.learn(stream, ssn.wrapping_add(1)),
            }
        }
        known
    }

    /// The client begins these streams anew; all of them if there are none.
    pub(super) fn reset(&mut self, ids: &[u16]) {
        let is_reset = |refill: &mut Refill| ids.is_empty() || ids.contains(&refill.stream());
        self.refill.take_if(is_reset);
        for (stream, offset) in &mut self.streams {
            if ids.is_empty() || ids.contains(stream) {
                *offset = 0;
            }
        }
        for id in ids {
            if self.stream(*id).is_none() {
                self.learn(*id, 0);
            }
        }
    }

    /// What is added to the client's TSNs; `None` before that is known.
    pub(super) const fn offset(&self) -> Option<u32> {
        match self.base {
            Base::Settled(first) => Some(FIRST.wrapping_sub(first)),
            Base::Sought(_) | Base::Found(_) => None,
        }
    }

    /// Takes note of an acknowledgement on its way to the client.
    pub(super) fn note_sack(&mut self, now: Instant, cumulative: u32, has_gaps: bool) {
        let next = cumulative.wrapping_add(1);
        if is_before(self.next, next) {
            self.next = next;
        }
        // What was lost as the path changed has come by now.
        if self.settled_at.is_some_and(|at| now >= at + GAP_WATCH) {
            self.refill = None;
        }
        if !has_gaps {
            self.gap = None;
        } else if self.gap.is_none_or(|(known, _)| known != cumulative) {
            self.gap = Some((cumulative, now));
        }
    }

    /// Takes the held chunks that the library can have now.
    pub(super) fn take_held(&mut self, tag: u32, inbox: &mut impl Extend<Bytes>) {
        if self.held.is_empty() || !matches!(self.base, Base::Settled(_)) {
            return;
        }
        for (tsn, bytes) in self.held.take() {
            let mut packet = Packet::new(tag);
            let parsed = Data::parse(&bytes);
            if parsed.is_some_and(|(chunk, data)| self.give(&data, &chunk, &mut packet)) {
                inbox.extend(packet.seal());
            } else {
                self.held.insert(tsn, bytes);
            }
        }
        if self.held.is_empty() {
            self.held_since = None;
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let search = match &self.base {
            Base::Sought(search) => search.deadline(),
            Base::Found(_) | Base::Settled(_) => None,
        };
        let held = self.held_since.map(|since| since + SEARCH_MAX);
        let gap = self.watched_gap().map(|since| since + GAP_MAX);
        [search, held, gap].into_iter().flatten().min()
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// Why it does not go on like this.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), &'static str> {
        if let Base::Sought(search) = &mut self.base
            && let Some(lowest) = search.handle_timeout(now, &self.held)
        {
            self.base = Base::Found(lowest);
            self.settle(now);
        }
        if self
            .held_since
            .is_some_and(|since| now >= since + SEARCH_MAX)
        {
            return Err("the client's numbers do not become clear");
        }
        if self
            .watched_gap()
            .is_some_and(|since| now >= since + GAP_MAX)
        {
            return Err("the client does not send again what is missing");
        }
        Ok(())
    }

    /// Since when something is missing that the former node may have had.
    fn watched_gap(&self) -> Option<Instant> {
        let (_, since) = self.gap?;
        let until = self.settled_at? + GAP_WATCH;
        (since < until).then_some(since)
    }

    /// Begins where a message does. What is left of one before that is no good to anybody, and is
    /// acknowledged so that the client goes on.
    fn settle(&mut self, now: Instant) {
        let Base::Found(mut next) = self.base else {
            return;
        };
        let found = next;
        let settled = loop {
            let parsed = self.held.get(next).and_then(|bytes| Data::parse(bytes));
            let Some((_, data)) = parsed else {
                break false;
            };
            if data.begins() {
                break true;
            }
            next = next.wrapping_add(1);
            if data.ends() {
                self.torn += 1;
                tracing::warn!(
                    stream = data.stream,
                    "another node had the beginning of a message"
                );
                break true;
            }
        };
        if next != found {
            self.acknowledge = Some(next.wrapping_sub(1));
            self.held.drop_below(next);
            self.held_since = (!self.held.is_empty()).then_some(now);
        }
        self.base = if settled {
            tracing::debug!(
                found,
                next,
                held = self.held.len(),
                "the client's place is known"
            );
            self.next = next;
            self.settled_at = Some(now);
            Base::Settled(next)
        } else {
            Base::Found(next)
        };
    }

    /// Whether all reliable messages before this one have been passed on, and so whatever may come
    /// before it on the wire is not missed. SDKs send messages again of their own accord, some of them behind a
    /// newer one: then the first sending of this one has a lower TSN than both, and is yet to come.
    fn follows(&self, data: &Data, chunk: &Chunk<'_>) -> bool {
        let Some((stream, passed)) = self.reliable else {
            return false;
        };
        let number_on = |data: &Data, chunk: &Chunk<'_>| {
            let number = number_of(data, chunk);
            number.filter(|_| data.stream == stream)
        };
        let Some(number) = number_on(data, chunk) else {
            return false;
        };
        let before = self.held.before(data.tsn);
        let mut before = before.filter_map(|bytes| wire::parse(bytes));
        number <= passed.saturating_add(1)
            && before.all(|chunk| {
                let data = Data::of(&chunk);
                let number_before = data.and_then(|data| number_on(&data, &chunk));
                number_before.is_none_or(|before| before <= number)
            })
    }

    fn hold(&mut self, now: Instant, tsn: u32, chunk: &Chunk<'_>) -> bool {
        self.held_since.get_or_insert(now);
        self.held.insert(tsn, Bytes::copy_from_slice(chunk.bytes))
    }

    /// Where a chunk goes in the library's numbers. A stream's first ordered message must be the next
    /// of all, or one before it might still come.
    fn place(&mut self, data: &Data) -> Option<Place> {
        let tsn = data.tsn.wrapping_add(self.offset()?);
        let is_next = data.tsn == self.next;
        let is_old = is_before(data.tsn, self.next);
        let ssn = match self.stream(data.stream) {
            _ if !data.is_ordered() => data.ssn,
            Some(offset) => data.ssn.wrapping_sub(offset),
            // Only its TSN counts: it came before.
            None if is_old => data.ssn,
            None if is_next => {
                self.learn(data.stream, data.ssn);
                0
            }
            None => return None,
        };
        if is_next {
            self.next = self.next.wrapping_add(1);
        }
        Some(Place { tsn, ssn })
    }

    fn stream(&self, stream: u16) -> Option<u16> {
        let mut streams = self.streams.iter();
        streams.find(|(id, _)| *id == stream).map(|(_, ssn)| *ssn)
    }

    fn learn(&mut self, stream: u16, first: u16) {
        if self.streams.len() < STREAMS_MAX {
            self.streams.push((stream, first));
        }
    }
}

/// A chunk's numbers for the library.
struct Place {
    tsn: u32,
    ssn: u16,
}

impl Place {
    fn write(&self, out: &mut Packet, chunk: &[u8]) {
        let chunk = out.copy(chunk);
        wire::set_u32(chunk, Data::TSN_AT, self.tsn);
        wire::set_u16(chunk, Data::SSN_AT, self.ssn);
    }
}
