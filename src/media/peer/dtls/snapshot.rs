//! An established DTLS session as another node needs it to continue, about 200 bytes.
//!
//! rtc-dtls exports its state in a format of its own (rkyv), whose sequence number has no setter and
//! which holds the client's whole certificate. It is taken apart here into what matters and put
//! together again; the mirrored structure is checked against the library by a test.

use rkyv::rancor;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::Fingerprint;

/// Record numbers have 48 bits (RFC 6347 §4.1).
const SEQUENCE_MAX: u64 = (1 << 48) - 1;
/// The epoch of the keys that a handshake agrees on; there is no second one.
const EPOCH: u16 = 1;

/// An established session that can continue elsewhere. It holds the master secret: never to be
/// written in the clear.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DtlsSnapshot {
    cipher_suite: u16,
    srtp_profile: u16,
    server_random: [u8; 32],
    client_random: [u8; 32],
    /// In halves, because that is as long as arrays may be.
    master_secret: [[u8; 24]; 2],
    /// Number of the next record to send.
    sequence: u64,
    /// SHA-256 of the client's certificate.
    client: [u8; 32],
}

impl Drop for DtlsSnapshot {
    fn drop(&mut self) {
        self.master_secret.zeroize();
    }
}

impl std::fmt::Debug for DtlsSnapshot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "DtlsSnapshot(record {})", self.sequence)
    }
}

/// The library's structure: same fields, same order.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct LibraryState {
    local_epoch: u16,
    remote_epoch: u16,
    local_random: [u8; 32],
    remote_random: [u8; 32],
    cipher_suite_id: u16,
    master_secret: Vec<u8>,
    sequence_number: u64,
    srtp_protection_profile: u16,
    peer_certificates: Vec<Vec<u8>>,
    identity_hint: Vec<u8>,
    is_client: bool,
}

impl Drop for LibraryState {
    fn drop(&mut self) {
        self.master_secret.zeroize();
    }
}

impl DtlsSnapshot {
    /// From what the library exports of a server's established connection.
    pub(super) fn read(exported: &[u8], client: Fingerprint) -> Option<Self> {
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(exported.len());
        aligned.extend_from_slice(exported);
        let state = rkyv::from_bytes::<LibraryState, rancor::Error>(&aligned).ok()?;
        aligned.as_mut_slice().zeroize();
        if state.is_client || state.local_epoch != EPOCH || state.remote_epoch != EPOCH {
            return None;
        }
        let (front, back) = state.master_secret.split_at_checked(24)?;
        Some(Self {
            cipher_suite: state.cipher_suite_id,
            srtp_profile: state.srtp_protection_profile,
            server_random: state.local_random,
            client_random: state.remote_random,
            master_secret: [front.try_into().ok()?, back.try_into().ok()?],
            sequence: state.sequence_number,
            client: client.0,
        })
    }

    /// What the library imports. `None`: no record number is left.
    pub(super) fn write(&self) -> Option<rkyv::util::AlignedVec<16>> {
        if self.sequence >= SEQUENCE_MAX {
            return None;
        }
        let state = LibraryState {
            local_epoch: EPOCH,
            remote_epoch: EPOCH,
            local_random: self.server_random,
            remote_random: self.client_random,
            cipher_suite_id: self.cipher_suite,
            master_secret: self.master_secret.as_flattened().to_vec(),
            sequence_number: self.sequence,
            srtp_protection_profile: self.srtp_profile,
            peer_certificates: Vec::new(),
            identity_hint: Vec::new(),
            is_client: false,
        };
        let mut bytes = rkyv::util::AlignedVec::new();
        rkyv::api::high::to_bytes_in::<_, rancor::Error>(&state, &mut bytes).ok()?;
        Some(bytes)
    }

    /// The client's certificate.
    pub(in crate::peer) fn client(&self) -> Fingerprint {
        Fingerprint(self.client)
    }

    /// Number of the next record to send.
    pub(in crate::peer) const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The same session when its next record has this number.
    pub(super) fn at(&self, sequence: u64) -> Self {
        let mut this = self.clone();
        this.sequence = sequence;
        this
    }

    /// Leaves out record numbers that the former home may have used.
    pub(super) fn skip(&self, records: u32) -> Self {
        self.at(self.sequence.saturating_add(u64::from(records)))
    }
}

/// Number after the highest of the encrypted records in a datagram of ours.
pub(super) fn sequence_after(datagram: &[u8]) -> Option<u64> {
    const HEADER_LEN: usize = 13;
    let mut rest = datagram;
    let mut after = None;
    while let Some((header, body)) = rest.split_first_chunk::<HEADER_LEN>() {
        let &[_, _, _, e0, e1, s0, s1, s2, s3, s4, s5, l0, l1] = header;
        if u16::from_be_bytes([e0, e1]) == EPOCH {
            let sequence = u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]);
            after = after.max(Some(sequence + 1));
        }
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        rest = body.get(len..).unwrap_or_default();
    }
    after
}
