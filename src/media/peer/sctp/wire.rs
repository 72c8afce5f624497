//! Chunks inside packets, read and written in place (RFC 9260 §3). What the ledger reads, the
//! translator changes and the continuation forges goes through here; limits are those of `packet`,
//! which has checked every packet that comes in.

use bytes::{Bytes, BytesMut};

use super::packet::{CHECKSUM, HEADER_LEN, checksum};

/// Chunk types.
pub(super) const DATA: u8 = 0;
pub(super) const INIT: u8 = 1;
pub(super) const INIT_ACK: u8 = 2;
pub(super) const SACK: u8 = 3;
pub(super) const ABORT: u8 = 6;
pub(super) const SHUTDOWN: u8 = 7;
pub(super) const COOKIE_ECHO: u8 = 10;
pub(super) const COOKIE_ACK: u8 = 11;
pub(super) const RE_CONFIG: u8 = 130;
pub(super) const FORWARD_TSN: u8 = 192;

/// Flags of DATA: the message ends here, begins here, and may overtake others.
pub(super) const END: u8 = 1;
pub(super) const BEGIN: u8 = 2;
pub(super) const UNORDERED: u8 = 4;

/// Parameters of RE-CONFIG (RFC 6525 §4): its own numbers come first in each.
pub(super) const RESET_OUTGOING: u16 = 13;
pub(super) const RESET_INCOMING: u16 = 14;
pub(super) const RESET_RESPONSE: u16 = 16;

/// Type, flags and length.
pub(super) const CHUNK_HEADER_LEN: usize = 4;
/// Where a packet carries its receiver's tag.
const TAG_AT: usize = 4;
/// SCTP's port inside DTLS, by convention, at both ends.
const PORT: u16 = 5000;

/// Whether `a` comes before `b` (RFC 1982).
pub(super) const fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

/// As [`is_before`], for stream sequence numbers.
pub(super) const fn is_before_16(a: u16, b: u16) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 15
}

/// A chunk's place in its packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// Header and value, without padding.
    pub(super) bytes: &'a [u8],
}

impl Chunk<'_> {
    /// A number of the chunk, counted from its header.
    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        u32_at(self.bytes, at)
    }

    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        u16_at(self.bytes, at)
    }
}

/// A DATA chunk's numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub(super) tsn: u32,
    pub(super) stream: u16,
    pub(super) ssn: u16,
    pub(super) flags: u8,
}

impl Data {
    /// Where a DATA chunk has its numbers.
    pub(super) const TSN_AT: usize = 4;
    pub(super) const SSN_AT: usize = 10;
    pub(super) const PAYLOAD_AT: usize = 16;

    /// The DATA chunk that these bytes are, and its numbers.
    pub(super) fn parse(bytes: &[u8]) -> Option<(Chunk<'_>, Self)> {
        let chunk = parse(bytes)?;
        Some((chunk, Self::of(&chunk)?))
    }

    pub(super) fn of(chunk: &Chunk<'_>) -> Option<Self> {
        if chunk.kind != DATA {
            return None;
        }
        Some(Self {
            tsn: chunk.u32(Self::TSN_AT)?,
            stream: chunk.u16(8)?,
            ssn: chunk.u16(Self::SSN_AT)?,
            flags: chunk.flags,
        })
    }

    pub(super) const fn is_ordered(&self) -> bool {
        self.flags & UNORDERED == 0
    }

    pub(super) const fn begins(&self) -> bool {
        self.flags & BEGIN != 0
    }

    pub(super) const fn ends(&self) -> bool {
        self.flags & END != 0
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// Overwrites a number; nothing happens where there is none.
pub(super) fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_be_bytes();
    }
}

pub(super) fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_be_bytes();
    }
}

/// Adds to a number, modulo its width.
pub(super) fn add_u32(bytes: &mut [u8], at: usize, offset: u32) {
    if let Some(value) = u32_at(bytes, at) {
        set_u32(bytes, at, value.wrapping_add(offset));
    }
}

/// The tag in a packet's header.
pub(super) fn tag(packet: &[u8]) -> Option<u32> {
    u32_at(packet, TAG_AT)
}

/// A packet's chunks, up to the first that is not whole.
pub(super) fn chunks(packet: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = packet.get(HEADER_LEN..).unwrap_or_default();
    std::iter::from_fn(move || {
        let &[kind, flags, l0, l1] = rest.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if len < CHUNK_HEADER_LEN {
            return None;
        }
        let bytes = rest.get(..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Chunk { kind, flags, bytes })
    })
}

/// Bytes that are one chunk.
pub(super) fn parse(bytes: &[u8]) -> Option<Chunk<'_>> {
    let &[kind, flags, ..] = bytes.first_chunk::<CHUNK_HEADER_LEN>()?;
    Some(Chunk { kind, flags, bytes })
}

/// Type, place from the chunk's header on, and length of each parameter behind a chunk's fixed part.
pub(super) fn parameters(
    chunk: &[u8],
    fixed: usize,
) -> impl Iterator<Item = (u16, usize, usize)> + '_ {
    let mut at = fixed;
    std::iter::from_fn(move || {
        let kind = u16_at(chunk, at)?;
        let len = usize::from(u16_at(chunk, at + 2)?);
        if len < 4 || at + len > chunk.len() {
            return None;
        }
        let here = at;
        at += len.next_multiple_of(4);
        Some((kind, here, len))
    })
}

/// A packet being written.
pub(super) struct Packet(BytesMut);

impl Packet {
    /// An empty packet to the end that has this tag.
    pub(super) fn new(tag: u32) -> Self {
        let mut bytes = BytesMut::with_capacity(64);
        bytes.extend_from_slice(&PORT.to_be_bytes());
        bytes.extend_from_slice(&PORT.to_be_bytes());
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        Self(bytes)
    }

    /// An empty packet with the header of another, to the end that has this tag.
    pub(super) fn like(packet: &[u8], tag: u32) -> Self {
        let mut bytes = BytesMut::with_capacity(packet.len().next_multiple_of(4));
        bytes.extend_from_slice(packet.get(..HEADER_LEN).unwrap_or_default());
        set_u32(&mut bytes, TAG_AT, tag);
        Self(bytes)
    }

    /// Appends a chunk made of a type and a value.
    pub(super) fn push(&mut self, kind: u8, value: &[u8]) {
        let len = u16::try_from(CHUNK_HEADER_LEN + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&[kind, 0]);
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }

    /// Appends a chunk as it is, for the caller to change.
    pub(super) fn copy(&mut self, chunk: &[u8]) -> &mut [u8] {
        let at = self.0.len();
        self.0.extend_from_slice(chunk);
        self.pad();
        self.0.get_mut(at..at + chunk.len()).unwrap_or_default()
    }

    /// The packet with its checksum; `None` if it has no chunk.
    pub(super) fn seal(mut self) -> Option<Bytes> {
        if self.0.len() <= HEADER_LEN {
            return None;
        }
        let checksum = checksum(&self.0).to_le_bytes();
        if let Some(place) = self.0.get_mut(CHECKSUM) {
            place.copy_from_slice(&checksum);
        }
        Some(self.0.freeze())
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
