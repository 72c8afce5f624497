//! Header extensions (RFC 8285), one-byte and two-byte form: reading what we understand, and the
//! values that travel on to subscribers.
//!
//! Read once per received packet by `receive`; written from a template by `forward::rewrite`.

use crate::forward::parameters::ExtensionIds;

/// Profile of the one-byte form.
pub const PROFILE_ONE_BYTE: u16 = 0xbede;

/// Elements of a header extension block: id and value.
pub struct Elements<'a> {
    rest: &'a [u8],
    is_two_byte: bool,
}

/// Iterates over the elements of a block. An unknown profile has none; a truncated element ends it.
#[must_use]
pub fn elements(profile: u16, bytes: &[u8]) -> Elements<'_> {
    let is_two_byte = profile & 0xfff0 == 0x1000;
    let known = is_two_byte || profile == PROFILE_ONE_BYTE;
    Elements {
        rest: if known { bytes } else { &[] },
        is_two_byte,
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&first, rest) = self.rest.split_first()?;
            if first == 0 {
                self.rest = rest;
                continue;
            }
            let (id, len, rest) = if self.is_two_byte {
                let (&len, rest) = rest.split_first()?;
                (first, usize::from(len), rest)
            } else {
                if first >> 4 == 15 {
                    // Reserved id: RFC 8285 §4.2 says to stop here.
                    return None;
                }
                (first >> 4, usize::from(first & 0x0f) + 1, rest)
            };
            let (value, rest) = rest.split_at_checked(len)?;
            self.rest = rest;
            return Some((id, value));
        }
    }
}

/// Values that say where a packet belongs and how it travelled; of use on its arrival only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity<'a> {
    /// Media section.
    pub mid: Option<&'a [u8]>,
    /// Simulcast stream.
    pub rid: Option<&'a [u8]>,
    /// Simulcast stream that this retransmission repairs.
    pub repaired_rid: Option<&'a [u8]>,
    /// Transport-wide sequence number.
    pub twcc: Option<u16>,
}

/// Values that travel with the packet to subscribers and other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Carried {
    /// RFC 6464 byte: voice-activity bit and level in −dBov.
    pub audio_level: Option<u8>,
    /// 3GPP video orientation byte.
    pub video_orientation: Option<u8>,
    /// Playout delay: 12 bits least and 12 bits greatest, in 10 ms.
    pub playout_delay: Option<[u8; 3]>,
}

/// Reads the elements that `ids` names.
#[must_use]
pub fn read<'a>(ids: &ExtensionIds, profile: u16, bytes: &'a [u8]) -> (Identity<'a>, Carried) {
    let mut identity = Identity::default();
    let mut carried = Carried::default();
    for (id, value) in elements(profile, bytes) {
        let id = Some(id);
        if id == ids.twcc {
            identity.twcc = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        } else if id == ids.audio_level {
            carried.audio_level = value.first().copied();
        } else if id == ids.mid {
            identity.mid = Some(trimmed(value));
        } else if id == ids.rid {
            identity.rid = Some(trimmed(value));
        } else if id == ids.repaired_rid {
            identity.repaired_rid = Some(trimmed(value));
        } else if id == ids.video_orientation {
            carried.video_orientation = value.first().copied();
        } else if id == ids.playout_delay {
            carried.playout_delay = value.first_chunk().copied();
        }
    }
    (identity, carried)
}

/// Some stacks pad texts with zero bytes.
fn trimmed(value: &[u8]) -> &[u8] {
    let end = value
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    &value[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDS: ExtensionIds = ExtensionIds {
        mid: Some(4),
        rid: Some(10),
        repaired_rid: Some(11),
        audio_level: Some(1),
        twcc: Some(3),
        abs_send_time: Some(2),
        video_orientation: Some(13),
        playout_delay: Some(5),
    };

    #[test]
    fn one_byte_elements_with_padding_between() {
        let bytes = [
            0x40, b'0', 0, 0, 0x31, 0x12, 0x34, 0xa0, b'q', 0x10, 0xb0, 0x52, 1, 2, 3,
        ];
        let (identity, carried) = read(&IDS, PROFILE_ONE_BYTE, &bytes);
        assert_eq!(identity.mid, Some(&b"0"[..]));
        assert_eq!(identity.rid, Some(&b"q"[..]));
        assert_eq!(identity.repaired_rid, None);
        assert_eq!(identity.twcc, Some(0x1234));
        assert_eq!(carried.audio_level, Some(0xb0));
        assert_eq!(carried.playout_delay, Some([1, 2, 3]));
    }

    #[test]
    fn two_byte_elements_may_be_long_or_empty() {
        let mut bytes = vec![11, 18];
        bytes.extend_from_slice(b"a-rather-long-rid\0");
        bytes.extend_from_slice(&[10, 0, 13, 1, 3]);
        let (identity, carried) = read(&IDS, 0x1000, &bytes);
        assert_eq!(identity.repaired_rid, Some(&b"a-rather-long-rid"[..]));
        assert_eq!(identity.rid, Some(&b""[..]));
        assert_eq!(carried.video_orientation, Some(3));
    }

    #[test]
    fn the_reserved_id_and_a_truncated_element_end_the_block() {
        assert_eq!(elements(PROFILE_ONE_BYTE, &[0xf0, 1, 0x10, 1]).count(), 0);
        assert_eq!(elements(PROFILE_ONE_BYTE, &[0x10, 1, 0x43, 1]).count(), 1);
        assert_eq!(elements(0x1234, &[0x10, 1]).count(), 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            profile in any::<u16>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            for profile in [profile, PROFILE_ONE_BYTE, 0x1005] {
                let total: usize = elements(profile, &bytes).map(|(_, value)| value.len()).sum();
                prop_assert!(total <= bytes.len());
                let _ = read(&IDS, profile, &bytes);
            }
        }
    }
}
