//! What the library sends on an association that another node began, in the numbers that the client
//! expects: far enough beyond what the other node can have used.

use std::cmp::Ordering;

use super::ledger::Standing;
use super::wire::{self, Chunk, Data, Packet};

/// How far TSNs go on beyond the checkpoint: farther than a node sends between two checkpoints, and
/// less than the 100,000 that dcsctp lets a TSN be ahead.
const TSN_SKIP: u32 = 1 << 16;
/// The same for a stream's sequence numbers, of which half the circle counts as ahead.
const SSN_SKIP: u16 = 1 << 14;

/// Our direction.
pub(super) struct Outward {
    /// Our first TSN.
    start: u32,
    /// The last one that the former node is known to have used.
    former: u32,
    tsn: u32,
    /// Number of the first message, on each stream that the client has.
    streams: Vec<(u16, u16)>,
    /// Of RE-CONFIG requests.
    request: u32,
}

impl Outward {
    /// `initial`: the library's first TSN, and the number of its first request.
    pub(super) fn new(standing: &Standing, ids: impl Iterator<Item = u16>, initial: u32) -> Self {
        let start = standing.sent.wrapping_add(TSN_SKIP);
        Self {
            start,
            former: standing.sent,
            tsn: start.wrapping_sub(initial),
            streams: ids
                .map(|id| (id, standing.next_ssn(id).wrapping_add(SSN_SKIP)))
                .collect(),
            request: standing.next_request.wrapping_sub(initial),
        }
    }

    /// Marks in a ledger what is skipped.
    pub(super) fn skip(&self, standing: &mut Standing) {
        standing.sent = self.start.wrapping_sub(1);
        for (id, first) in &self.streams {
            standing.skip_ssn(*id, *first);
        }
    }

    /// Tells the client to wait for nothing before our first TSN. The skip is made in two steps, as
    /// the client may be as far behind the checkpoint as its window is large; and the last step is
    /// there twice, since what is known already is acknowledged without delay.
    pub(super) fn write_skip(&self, packet: &mut Packet) {
        packet.push(wire::FORWARD_TSN, &self.former.to_be_bytes());
        let mut value = Vec::with_capacity(4 + 4 * self.streams.len());
        value.extend_from_slice(&self.start.wrapping_sub(1).to_be_bytes());
        for (id, first) in &self.streams {
            value.extend_from_slice(&id.to_be_bytes());
            value.extend_from_slice(&first.wrapping_sub(1).to_be_bytes());
        }
        packet.push(wire::FORWARD_TSN, &value);
        packet.push(wire::FORWARD_TSN, &value);
    }

    /// Where the client is that acknowledges this, compared to just behind the skip.
    pub(super) fn compare_to_skip(&self, cumulative: u32) -> Ordering {
        let skipped = self.start.wrapping_sub(1);
        if cumulative == skipped {
            Ordering::Equal
        } else if wire::is_before(cumulative, skipped) {
            Ordering::Less
        } else {
            Ordering::Greater
        }
    }

    /// What is taken off TSNs that the client acknowledges.
    pub(super) const fn offset(&self) -> u32 {
        self.tsn
    }

    /// What is added to the numbers of our requests.
    pub(super) const fn request_offset(&self) -> u32 {
        self.request
    }

    /// The first number of a stream; streams that the client did not have begin at 0.
    fn first(&self, stream: u16) -> u16 {
        let mut streams = self.streams.iter();
        streams
            .find(|(id, _)| *id == stream)
            .map_or(0, |(_, first)| *first)
    }

    /// These streams begin anew.
    pub(super) fn reset(&mut self, ids: &[u16]) {
        self.streams
            .retain(|(id, _)| !ids.is_empty() && !ids.contains(id));
    }

    pub(super) fn write_data(&self, chunk: &Chunk<'_>, out: &mut Packet) {
        let Some(data) = Data::of(chunk) else {
            return;
        };
        let bytes = out.copy(chunk.bytes);
        wire::set_u32(bytes, Data::TSN_AT, data.tsn.wrapping_add(self.tsn));
        if data.is_ordered() {
            let ssn = data.ssn.wrapping_add(self.first(data.stream));
            wire::set_u16(bytes, Data::SSN_AT, ssn);
        }
    }

    pub(super) fn write_forward(&self, chunk: &Chunk<'_>, out: &mut Packet) {
        let bytes = out.copy(chunk.bytes);
        wire::add_u32(bytes, 4, self.tsn);
        for at in (8..chunk.bytes.len()).step_by(4) {
            if let (Some(stream), Some(ssn)) = (chunk.u16(at), chunk.u16(at + 2)) {
                wire::set_u16(bytes, at + 2, ssn.wrapping_add(self.first(stream)));
            }
        }
    }
}
