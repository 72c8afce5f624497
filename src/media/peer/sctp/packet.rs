//! Packets as they come in, rid of chunks that the library cannot bear (RFC 9260 §3.2-3.3).
//!
//! rtc-sctp ends the association on an ERROR chunk, though it only tells of something that was
//! ignored, drops whole packets for chunks it does not know, and panics on error causes that are
//! longer than their chunk.

use bytes::{Bytes, BytesMut};

use crate::discard::Discard;

/// Bytes of the common header: ports, verification tag, checksum.
pub(super) const HEADER_LEN: usize = 12;
/// Where the checksum is.
pub(super) const CHECKSUM: std::ops::Range<usize> = 8..12;
const CHUNK_HEADER_LEN: usize = 4;
/// Chunks in one packet.
const CHUNKS_MAX: usize = 64;

const ABORT: u8 = 6;
/// DATA to SHUTDOWN ACK without HEARTBEAT ACK (none was asked for), COOKIE ECHO, COOKIE ACK,
/// SHUTDOWN COMPLETE, RE-CONFIG, FORWARD TSN.
const KNOWN: [u8; 13] = [0, 1, 2, 3, 4, ABORT, 7, 8, 10, 11, 14, 130, 192];
/// Not known, and better ignored than to stop at them.
const HEARTBEAT_ACK: u8 = 5;
const ERROR: u8 = 9;

/// The packet with the chunks that can be used; `None` if there are none.
pub(super) fn sanitize(packet: Bytes) -> Result<Option<Bytes>, Discard> {
    let mut kept: Option<BytesMut> = None;
    let mut at = HEADER_LEN;
    let mut count = 0;
    if packet.len() < HEADER_LEN + CHUNK_HEADER_LEN {
        return Err(Discard::Truncated);
    }
    while at < packet.len() {
        count += 1;
        if count > CHUNKS_MAX {
            return Err(Discard::LimitReached);
        }
        let chunk = packet.get(at..).unwrap_or_default();
        let &[kind, _, l0, l1] = chunk.first_chunk().ok_or(Discard::Malformed)?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if len < CHUNK_HEADER_LEN {
            return Err(Discard::Malformed);
        }
        let body = chunk.get(CHUNK_HEADER_LEN..len).ok_or(Discard::Malformed)?;
        if kind == ABORT && !has_sound_causes(body) {
            return Err(Discard::Malformed);
        }
        // The last chunk may lack its padding.
        let end = (at + len.next_multiple_of(4)).min(packet.len());
        let known = KNOWN.contains(&kind);
        if known && let Some(kept) = &mut kept {
            kept.extend_from_slice(packet.get(at..end).unwrap_or_default());
        }
        if !known && kept.is_none() {
            kept = Some(BytesMut::from(packet.get(..at).unwrap_or_default()));
        }
        // The highest bit of an unknown type says whether to go on behind it.
        let goes_on = known || kind & 0x80 != 0 || matches!(kind, HEARTBEAT_ACK | ERROR);
        if !goes_on {
            break;
        }
        at = end;
    }
    let Some(mut kept) = kept else {
        return Ok(Some(packet));
    };
    if kept.len() == HEADER_LEN || !has_checksum(&packet) {
        return Ok(None);
    }
    let checksum = checksum(&kept).to_le_bytes();
    if let Some(place) = kept.get_mut(CHECKSUM) {
        place.copy_from_slice(&checksum);
    }
    Ok(Some(kept.freeze()))
}

/// Whether error causes fill their chunk and no more.
fn has_sound_causes(mut causes: &[u8]) -> bool {
    while causes.len() >= CHUNK_HEADER_LEN {
        let &[_, _, l0, l1, ..] = causes else {
            return false;
        };
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if len < CHUNK_HEADER_LEN || len > causes.len() {
            return false;
        }
        causes = causes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

/// Whether a packet has the right checksum. DTLS has checked the bytes already; this only keeps a
/// new checksum from hiding a wrong old one.
pub(super) fn has_checksum(packet: &[u8]) -> bool {
    packet.get(CHECKSUM) == Some(&checksum(packet).to_le_bytes())
}

/// CRC32c with the checksum's own field as zeros.
pub(super) fn checksum(packet: &[u8]) -> u32 {
    let (front, rest) = packet
        .split_at_checked(CHECKSUM.start)
        .unwrap_or((packet, &[]));
    let crc = crc32c::crc32c_append(crc32c::crc32c(front), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(chunks: &[(u8, &[u8])]) -> Bytes {
        let mut packet = vec![0x13, 0x88, 0x13, 0x88, 1, 2, 3, 4, 0, 0, 0, 0];
        for (kind, body) in chunks {
            packet.extend_from_slice(&[*kind, 0]);
            packet.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
            packet.extend_from_slice(body);
            packet.resize(packet.len().next_multiple_of(4), 0);
        }
        let checksum = checksum(&packet).to_le_bytes();
        packet[CHECKSUM].copy_from_slice(&checksum);
        packet.into()
    }

    #[test]
    fn useful_chunks_pass_and_others_are_cut_out() {
        let whole = packet(&[(0, b"data"), (3, b"sacks")]);
        assert_eq!(sanitize(whole.clone()), Ok(Some(whole)));
        let mixed = packet(&[
            (9, &[0, 8, 0, 4]),
            (0, b"data"),
            (132, b"pad"),
            (3, b"sacks"),
        ]);
        assert_eq!(
            sanitize(mixed),
            Ok(Some(packet(&[(0, b"data"), (3, b"sacks")])))
        );
        let stopped = packet(&[(0, b"data"), (64, b"x"), (3, b"sacks")]);
        assert_eq!(sanitize(stopped), Ok(Some(packet(&[(0, b"data")]))));
        assert_eq!(sanitize(packet(&[(9, &[0, 1, 0xff, 0xff])])), Ok(None));
    }

    #[test]
    fn broken_packets_are_refused() {
        assert_eq!(sanitize(packet(&[])), Err(Discard::Truncated));
        assert_eq!(
            sanitize(packet(&[(6, &[0, 1, 0xff, 0xff])])),
            Err(Discard::Malformed)
        );
        assert!(matches!(
            sanitize(packet(&[(6, &[0, 12, 0, 6, 1, 2])])),
            Ok(Some(_))
        ));
        assert_eq!(
            sanitize(packet(&[(0, &[][..]); CHUNKS_MAX + 1])),
            Err(Discard::LimitReached)
        );
        let mut longer = packet(&[(0, b"data")]).to_vec();
        longer[15] = 20;
        assert_eq!(sanitize(longer.into()), Err(Discard::Malformed));
        let mut wrong = packet(&[(9, b""), (0, b"data")]).to_vec();
        wrong[9] ^= 1;
        assert_eq!(sanitize(wrong.into()), Ok(None));
    }
}
