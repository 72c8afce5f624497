//! The RTP header (RFC 3550 §5.1), parsed in place.
//!
//! Fed with decrypted packets by the router; the offsets it returns point into the packet.

use std::ops::Range;

use crate::discard::Discard;

/// Length of the fixed header.
pub const HEADER_LEN: usize = 12;

/// A parsed header: values and where the variable parts lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Marker: last packet of a frame (video), first of a talk spurt (audio).
    pub marker: bool,
    /// Payload type.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
    /// Profile and elements of the header extension.
    pub extension: Option<(u16, Range<usize>)>,
    /// Payload without padding; empty for packets of nothing but padding.
    pub payload: Range<usize>,
}

impl Header {
    /// Parses a packet.
    ///
    /// # Errors
    /// `Truncated` if it is shorter than it says, `Malformed` if it is not RTP version 2 or its
    /// padding makes no sense.
    pub fn parse(packet: &[u8]) -> Result<Self, Discard> {
        let fixed: &[u8; HEADER_LEN] = packet.first_chunk().ok_or(Discard::Truncated)?;
        if fixed[0] >> 6 != 2 {
            return Err(Discard::Malformed);
        }
        let mut start = HEADER_LEN + usize::from(fixed[0] & 0x0f) * 4;
        let extension = if fixed[0] & 0x10 == 0 {
            None
        } else {
            let head: &[u8; 4] = packet
                .get(start..)
                .and_then(|rest| rest.first_chunk())
                .ok_or(Discard::Truncated)?;
            let profile = u16::from_be_bytes([head[0], head[1]]);
            let len = usize::from(u16::from_be_bytes([head[2], head[3]])) * 4;
            let elements = start + 4..start + 4 + len;
            start = elements.end;
            Some((profile, elements))
        };
        if start > packet.len() {
            return Err(Discard::Truncated);
        }
        let mut end = packet.len();
        if fixed[0] & 0x20 != 0 {
            let padding = usize::from(packet[end - 1]);
            if padding == 0 || start + padding > end {
                return Err(Discard::Malformed);
            }
            end -= padding;
        }
        Ok(Self {
            marker: fixed[1] & 0x80 != 0,
            payload_type: fixed[1] & 0x7f,
            sequence: u16::from_be_bytes([fixed[2], fixed[3]]),
            timestamp: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ssrc: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            extension,
            payload: start..end,
        })
    }
}

/// The fields that change from packet to packet of a stream being sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fields {
    /// Marker.
    pub marker: bool,
    /// Payload type.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
}

impl Fields {
    /// Writes the fixed header; `has_extension` sets the X bit.
    pub fn write(self, header: &mut [u8; HEADER_LEN], has_extension: bool) {
        header[0] = if has_extension { 0x90 } else { 0x80 };
        header[1] = (u8::from(self.marker) << 7) | (self.payload_type & 0x7f);
        header[2..4].copy_from_slice(&self.sequence.to_be_bytes());
        header[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        header[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first, 0xe0, 0x12, 0x34, 0, 0, 0, 9, 1, 2, 3, 4];
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn fields_survive_writing_and_parsing() {
        let fields = Fields {
            marker: true,
            payload_type: 96,
            sequence: 65_535,
            timestamp: 0xdead_beef,
            ssrc: 7,
        };
        let mut header = [0; HEADER_LEN];
        fields.write(&mut header, false);
        let parsed = Header::parse(&header).expect("just written");
        assert!(parsed.marker);
        assert_eq!(parsed.payload_type, 96);
        assert_eq!(parsed.sequence, 65_535);
        assert_eq!(parsed.timestamp, 0xdead_beef);
        assert_eq!(parsed.ssrc, 7);
        assert_eq!(parsed.payload, 12..12);
    }

    #[test]
    fn contributing_sources_extension_and_padding_are_skipped() {
        let mut rest = vec![0, 0, 0, 1]; // one CSRC
        rest.extend_from_slice(&[0xbe, 0xde, 0, 1, 0x10, 0xaa, 0, 0]);
        rest.extend_from_slice(b"payload");
        rest.extend_from_slice(&[0, 2]);
        let header = Header::parse(&packet(0xb1, &rest)).expect("well formed");
        assert_eq!(header.extension, Some((0xbede, 20..24)));
        assert_eq!(header.payload, 24..31);
    }

    #[test]
    fn padding_may_fill_the_packet_but_not_the_header() {
        let header = Header::parse(&packet(0xa0, &[0, 0, 3])).expect("padding only");
        assert!(header.payload.is_empty());
        assert_eq!(
            Header::parse(&packet(0xa0, &[0, 0, 4])),
            Err(Discard::Malformed)
        );
        assert_eq!(
            Header::parse(&packet(0xa0, &[0, 0, 0])),
            Err(Discard::Malformed)
        );
    }

    #[test]
    fn short_packets_are_refused() {
        assert_eq!(Header::parse(&[0x80; 11]), Err(Discard::Truncated));
        assert_eq!(Header::parse(&packet(0x8f, &[])), Err(Discard::Truncated));
        assert_eq!(
            Header::parse(&packet(0x90, &[0xbe, 0xde, 0, 1])),
            Err(Discard::Truncated)
        );
        assert_eq!(Header::parse(&packet(0x40, &[])), Err(Discard::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_ranges_inside_the_packet(
            bytes in proptest::collection::vec(any::<u8>(), 0..80)
        ) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!(header.payload.start <= header.payload.end);
                prop_assert!(header.payload.end <= bytes.len());
                if let Some((_, elements)) = header.extension {
                    prop_assert!(elements.end <= header.payload.start);
                }
            }
        }
    }
}
