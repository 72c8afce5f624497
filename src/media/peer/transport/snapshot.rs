//! An established transport as another node needs it to continue: reported by the engine, sealed and
//! carried by the shell, read again by the engine of another node.

use serde::{Deserialize, Deserializer, Serialize};

use crate::discard::Discard;
use crate::peer::dtls::{DtlsSnapshot, Fingerprint};
use crate::peer::sctp::Standing;

/// Most SSRCs of each kind that a snapshot names; the transport forgets or refuses more as well.
pub(super) const STREAMS_MAX: usize = 1024;
/// RTP indices have 48 bits, SRTCP indices 31.
const RTP_INDEX_MAX: u64 = (1 << 48) - 1;
const RTCP_INDEX_MAX: u64 = (1 << 31) - 1;
/// Longest encoding accepted: both lists full is about half of it.
const BYTES_MAX: usize = 64 * 1024;
/// First byte of the encoding.
const VERSION: u8 = 1;

/// An established transport that can continue on another node. It holds keys: never to be written in
/// the clear. About 200 bytes, and ten for each stream.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct TransportSnapshot(Fields);

/// What a snapshot says, before it is checked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fields {
    /// The DTLS session.
    pub(super) dtls: DtlsSnapshot,
    /// SHA-256 of the certificate that the client was shown. It is shown no other, or it would begin
    /// a handshake.
    pub(super) shown: [u8; 32],
    /// SSRCs that were sent under. None is used again: that is how no two packets ever get one nonce.
    pub(super) sent: Vec<u32>,
    /// Highest SRTCP index sent.
    pub(super) rtcp_sent: u32,
    /// SSRC and highest index received.
    pub(super) received: Vec<(u32, u64)>,
    /// The same for SRTCP.
    pub(super) rtcp_received: Vec<(u32, u64)>,
    /// The data channels' association. Last, since former releases do not write it and do not read
    /// so far.
    #[serde(deserialize_with = "none_if_absent")]
    pub(super) sctp: Option<Standing>,
}

/// What former releases wrote ends before this field.
fn none_if_absent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Standing>, D::Error> {
    Ok(Option::deserialize(from).unwrap_or_default())
}

/// A snapshot says what cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a transport's snapshot")]
pub(super) struct Impossible;

impl TryFrom<Fields> for TransportSnapshot {
    type Error = Impossible;

    fn try_from(fields: Fields) -> Result<Self, Impossible> {
        let lens = [
            fields.sent.len(),
            fields.received.len(),
            fields.rtcp_received.len(),
        ];
        let sane = lens.iter().all(|len| *len <= STREAMS_MAX)
            && u64::from(fields.rtcp_sent) <= RTCP_INDEX_MAX
            && fields.sctp.as_ref().is_none_or(Standing::is_sane)
            && fields
                .received
                .iter()
                .all(|(_, index)| *index <= RTP_INDEX_MAX)
            && fields
                .rtcp_received
                .iter()
                .all(|(_, index)| *index <= RTCP_INDEX_MAX);
        if sane {
            Ok(Self(fields))
        } else {
            Err(Impossible)
        }
    }
}

impl From<TransportSnapshot> for Fields {
    fn from(snapshot: TransportSnapshot) -> Self {
        snapshot.0
    }
}

impl TransportSnapshot {
    /// Reads what [`TransportSnapshot::to_bytes`] gave.
    ///
    /// # Errors
    /// [`Discard::TooLarge`], [`Discard::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Discard> {
        if bytes.len() > BYTES_MAX {
            return Err(Discard::TooLarge);
        }
        let Some((&VERSION, body)) = bytes.split_first() else {
            return Err(Discard::Malformed);
        };
        match postcard::take_from_bytes(body) {
            Ok((snapshot, [])) => Ok(snapshot),
            _ => Err(Discard::Malformed),
        }
    }

    /// The bytes of it: a version and postcard's encoding. They hold keys.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let body = postcard::to_stdvec(&self.0).expect("a Vec takes everything");
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The certificate that the client was shown.
    #[must_use]
    pub fn shown(&self) -> Fingerprint {
        Fingerprint(self.0.shown)
    }

    /// SSRCs that were sent under, with these keys.
    #[must_use]
    pub fn sent(&self) -> &[u32] {
        &self.0.sent
    }

    /// SSRC and highest index received of each stream.
    #[must_use]
    pub fn received(&self) -> &[(u32, u64)] {
        &self.0.received
    }

    pub(super) const fn new(fields: Fields) -> Self {
        Self(fields)
    }

    pub(super) const fn fields(&self) -> &Fields {
        &self.0
    }
}

impl std::fmt::Debug for TransportSnapshot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TransportSnapshot")
            .field("dtls", &self.0.dtls)
            .field("sent", &self.0.sent.len())
            .field("received", &self.0.received.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An encoding made by hand: what is written must stay readable from one release to the next.
    fn encoded(sent: &[u8], rtcp_sent: &[u8], received: &[u8]) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        // Cipher suite 0xc02b, SRTP profile 7, as variable-length numbers.
        bytes.extend([0xab, 0x80, 0x03, 7]);
        bytes.extend([1; 32 + 32 + 48]);
        // Record 300; certificates of client and server.
        bytes.extend([0xac, 0x02]);
        bytes.extend([2; 32]);
        bytes.extend([3; 32]);
        for part in [sent, rtcp_sent, received, &[0]] {
            bytes.extend(part);
        }
        bytes
    }

    #[test]
    fn the_encoding_is_fixed() {
        let bytes = encoded(&[2, 7, 0x80, 1], &[5], &[1, 9, 0x80, 0x80, 4]);
        let snapshot = TransportSnapshot::from_bytes(&bytes).expect("reads");
        assert_eq!(snapshot.sent(), [7, 128]);
        assert_eq!(snapshot.received(), [(9, 65_536)]);
        assert_eq!(snapshot.fields().rtcp_sent, 5);
        assert_eq!(snapshot.fields().dtls.sequence(), 300);
        assert_eq!(snapshot.shown(), Fingerprint([3; 32]));
        // A release without data channels in it wrote this, and reads no farther.
        let written = snapshot.to_bytes();
        assert_eq!(written.strip_prefix(&bytes[..]), Some(&[0][..]));
        let text = format!("{snapshot:?}");
        assert!(text.len() < 120, "keys do not show: {text}");
    }

    #[test]
    fn an_association_is_behind_all_else() {
        let good = encoded(&[0], &[5], &[0]);
        // Tags 1 and 2, FORWARD TSN, streams 3 and 4, window 5, TSNs 6, 7 and 8, stream 9 at 10.
        let association = [1, 1, 2, 1, 3, 4, 5, 6, 7, 8, 1, 9, 10];
        let bytes = [&good[..], &association].concat();
        let snapshot = TransportSnapshot::from_bytes(&bytes).expect("reads");
        assert!(snapshot.fields().sctp.is_some());
        assert_eq!(snapshot.to_bytes(), bytes);
        // What a former release does, which ignores what is behind its last field.
        let former = TransportSnapshot::from_bytes(&good).expect("reads");
        assert_eq!(former.fields().sctp, None);
        // One that was damaged is no better than none; one that cannot be is refused.
        let cut = TransportSnapshot::from_bytes(&bytes[..bytes.len() - 1]).expect("reads");
        assert_eq!(cut.fields().sctp, None);
        let mut no_tag = bytes;
        no_tag[good.len() + 1] = 0;
        assert_eq!(
            TransportSnapshot::from_bytes(&no_tag),
            Err(Discard::Malformed)
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = encoded(&[0], &[5], &[0]);
        assert!(TransportSnapshot::from_bytes(&good).is_ok());
        for len in 0..good.len() {
            let cut = TransportSnapshot::from_bytes(&good[..len]);
            assert_eq!(cut, Err(Discard::Malformed), "{len}");
        }
        let mut longer = good.clone();
        longer.extend([0, 0]);
        let mut other = good.clone();
        other[0] = VERSION + 1;
        // 1,025 SSRCs; an SRTCP index of 2^31; an RTP index of 2^48.
        let mut many = vec![0x81, 0x08];
        many.extend([1; STREAMS_MAX + 1]);
        let many = encoded(&many, &[5], &[0]);
        let rtcp = encoded(&[0], &[0x80, 0x80, 0x80, 0x80, 8], &[0]);
        let rtp = encoded(
            &[0],
            &[5],
            &[1, 9, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40],
        );
        for bytes in [longer, other, many, rtcp, rtp] {
            let refused = TransportSnapshot::from_bytes(&bytes);
            assert_eq!(refused, Err(Discard::Malformed));
        }
        let huge = vec![VERSION; BYTES_MAX + 1];
        assert_eq!(TransportSnapshot::from_bytes(&huge), Err(Discard::TooLarge));
    }
}
