//! Tells from its first bytes what a datagram is (RFC 7983, RFC 5761).
//!
//! The engine calls it for every datagram of the shard's socket, before it knows the peer. Nothing
//! is kept here. Relays between nodes share the socket: they begin with a byte of 192 and above,
//! which RFC 7983 leaves unassigned.

/// What a datagram is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A STUN message, for ICE.
    Stun,
    /// DTLS records.
    Dtls,
    /// An SRTP packet.
    Rtp,
    /// An SRTCP packet.
    Rtcp,
    /// A packet of another node.
    Relay,
    /// None of these, or too short to be one.
    Unknown,
}

/// Shortest message of each class: a header, and for SRTP no less than its tag behind it.
const STUN_LEN_MIN: usize = 20;
const DTLS_LEN_MIN: usize = 13;
const RTP_LEN_MIN: usize = 12;
const RTCP_LEN_MIN: usize = 8;

/// Classifies a datagram.
#[must_use]
pub fn classify(datagram: &[u8]) -> Class {
    let (Some(&first), Some(&second)) = (datagram.first(), datagram.get(1)) else {
        return Class::Unknown;
    };
    let len = datagram.len();
    match first {
        0..=3 if len >= STUN_LEN_MIN => Class::Stun,
        20..=63 if len >= DTLS_LEN_MIN => Class::Dtls,
        // RTCP packet types 192..=223 are where an RTP packet has its marker bit and payload type,
        // which RFC 5761 §4 keeps free of 64..=95.
        128..=191 if (192..=223).contains(&second) => {
            if len >= RTCP_LEN_MIN {
                Class::Rtcp
            } else {
                Class::Unknown
            }
        }
        128..=191 if len >= RTP_LEN_MIN => Class::Rtp,
        192..=255 => Class::Relay,
        _ => Class::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(first: u8, second: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        if let [a, b, ..] = bytes.as_mut_slice() {
            (*a, *b) = (first, second);
        }
        bytes
    }

    #[test]
    fn classes_follow_rfc_7983() {
        for (first, second, class) in [
            (0, 1, Class::Stun),
            (3, 1, Class::Stun),
            (4, 0, Class::Unknown),
            (16, 0, Class::Unknown),
            (19, 0, Class::Unknown),
            (20, 254, Class::Dtls),
            (63, 254, Class::Dtls),
            (64, 0, Class::Unknown),
            (127, 0, Class::Unknown),
            (128, 111, Class::Rtp),
            (144, 96 | 0x80, Class::Rtp),
            (144, 111 | 0x80, Class::Rtp),
            (128, 200, Class::Rtcp),
            (129, 223, Class::Rtcp),
            (129, 224, Class::Rtp),
            (191, 191, Class::Rtp),
            (192, 0, Class::Relay),
            (255, 255, Class::Relay),
        ] {
            assert_eq!(
                classify(&datagram(first, second, 40)),
                class,
                "{first} {second}"
            );
        }
    }

    #[test]
    fn short_datagrams_are_unknown() {
        assert_eq!(classify(&[]), Class::Unknown);
        assert_eq!(classify(&[0]), Class::Unknown);
        assert_eq!(classify(&datagram(0, 1, 19)), Class::Unknown);
        assert_eq!(classify(&datagram(22, 254, 12)), Class::Unknown);
        assert_eq!(classify(&datagram(128, 96, 11)), Class::Unknown);
        assert_eq!(classify(&datagram(128, 200, 7)), Class::Unknown);
    }
}
