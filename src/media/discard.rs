//! Why a packet was not used. Every per-packet refusal is one of these: a value that is counted,
//! never an error that is logged or a panic. Returned by the transport, the router and the relay;
//! counted by whoever owns the [`DiscardCounts`] and shown in the metrics.

/// Reason for a discarded packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Discard {
    /// Shorter than its headers say.
    Truncated,
    /// Breaks the format of its protocol.
    Malformed,
    /// First byte belongs to no protocol we speak.
    UnknownProtocol,
    /// No peer at this address or with this name.
    UnknownPeer,
    /// STUN without a valid username, integrity or fingerprint.
    StunRefused,
    /// DTLS that does not fit the session or its fingerprint.
    DtlsRefused,
    /// Media before the keys are there, or to a peer that is gone.
    NotConnected,
    /// SRTP or relay authentication failed.
    Unauthenticated,
    /// Seen before, or too old to tell.
    Replayed,
    /// RTP stream that no negotiated section claims.
    UnknownStream,
    /// Payload type that was not negotiated.
    UnknownPayloadType,
    /// Media packet that arrived already.
    Duplicate,
    /// Older than the window kept of its stream.
    TooOld,
    /// Larger than a slot of the packet ring.
    TooLarge,
    /// Relay packet of a link that is not known (yet), or of an earlier start of its node.
    UnknownLink,
    /// Relay packet of a track that is not expected (yet) from its node.
    UnknownTrack,
    /// Relay packet of a lower epoch than seen for its track.
    StaleEpoch,
    /// A fixed limit (streams per peer, layers per track) is reached.
    LimitReached,
    /// Retransmission that carries nothing (a probe of the sender's bandwidth estimator).
    Probe,
}

impl Discard {
    /// All reasons, in counting order.
    pub const ALL: [Self; 19] = [
        Self::Truncated,
        Self::Malformed,
        Self::UnknownProtocol,
        Self::UnknownPeer,
        Self::StunRefused,
        Self::DtlsRefused,
        Self::NotConnected,
        Self::Unauthenticated,
        Self::Replayed,
        Self::UnknownStream,
        Self::UnknownPayloadType,
        Self::Duplicate,
        Self::TooOld,
        Self::TooLarge,
        Self::UnknownLink,
        Self::UnknownTrack,
        Self::StaleEpoch,
        Self::LimitReached,
        Self::Probe,
    ];

    /// Name for metrics: stable, lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::UnknownProtocol => "unknown_protocol",
            Self::UnknownPeer => "unknown_peer",
            Self::StunRefused => "stun_refused",
            Self::DtlsRefused => "dtls_refused",
            Self::NotConnected => "not_connected",
            Self::Unauthenticated => "unauthenticated",
            Self::Replayed => "replayed",
            Self::UnknownStream => "unknown_stream",
            Self::UnknownPayloadType => "unknown_payload_type",
            Self::Duplicate => "duplicate",
            Self::TooOld => "too_old",
            Self::TooLarge => "too_large",
            Self::UnknownLink => "unknown_link",
            Self::UnknownTrack => "unknown_track",
            Self::StaleEpoch => "stale_epoch",
            Self::LimitReached => "limit_reached",
            Self::Probe => "probe",
        }
    }
}

/// How often each reason occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscardCounts {
    counts: [u64; Discard::ALL.len()],
}

impl DiscardCounts {
    /// Counts one.
    pub fn add(&mut self, reason: Discard) {
        self.counts[reason as usize] += 1;
    }

    /// Count of one reason.
    #[must_use]
    pub fn get(&self, reason: Discard) -> u64 {
        self.counts[reason as usize]
    }

    /// Sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Discard, u64)> + '_ {
        Discard::ALL
            .iter()
            .map(|reason| (*reason, self.get(*reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut counts = DiscardCounts::default();
        let mut names = std::collections::BTreeSet::new();
        for (index, reason) in Discard::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(names.insert(reason.name()));
            counts.add(reason);
            assert_eq!(counts.get(reason), 1);
        }
        assert_eq!(counts.total(), Discard::ALL.len() as u64);
    }
}
