//! The RTP header extensions that the engine understands, by name and by where they are of use.

use flotilla_model::track::Kind;

use super::Section;

/// A header extension known to the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Extension {
    /// Media section of a packet (RFC 8843 §15).
    Mid,
    /// Simulcast layer of a packet (RFC 8852).
    Rid,
    /// Simulcast layer that a retransmission belongs to (RFC 8852).
    RepairedRid,
    /// Loudness (RFC 6464).
    AudioLevel,
    /// Time of sending, for REMB.
    AbsSendTime,
    /// Running number over all packets, for transport-cc.
    TransportCc,
    /// Wanted delay at the receiver.
    PlayoutDelay,
    /// Rotation of the picture (3GPP TS 26.114 §7.4.5).
    VideoOrientation,
}

impl Extension {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Mid,
        Self::Rid,
        Self::RepairedRid,
        Self::AudioLevel,
        Self::AbsSendTime,
        Self::TransportCc,
        Self::PlayoutDelay,
        Self::VideoOrientation,
    ];

    /// Its URI.
    #[must_use]
    pub fn uri(self) -> &'static str {
        match self {
            Self::Mid => "urn:ietf:params:rtp-hdrext:sdes:mid",
            Self::Rid => "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id",
            Self::RepairedRid => "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id",
            Self::AudioLevel => "urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            Self::AbsSendTime => "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
            Self::TransportCc => {
                "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
            }
            Self::PlayoutDelay => "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
            Self::VideoOrientation => "urn:3gpp:video-orientation",
        }
    }

    /// The extension of a URI, if known.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|extension| extension.uri() == uri)
    }

    /// Worth having in a section of this kind.
    fn suits(self, kind: Kind) -> bool {
        match self {
            Self::Mid | Self::AbsSendTime | Self::TransportCc => true,
            Self::AudioLevel => kind == Kind::Audio,
            Self::Rid | Self::RepairedRid | Self::PlayoutDelay | Self::VideoOrientation => {
                kind == Kind::Video
            }
        }
    }
}

/// What of a client's section the engine agrees to. Numbers above 14 need two-byte headers, which
/// the engine never asks for.
///
/// All that suits the kind is agreed to whichever way media flows: Chromium leaves out of its later
/// offers what one answer left out, and a section may change its direction.
#[must_use]
pub fn accept(section: &Section, kind: Kind) -> Vec<(Extension, u8)> {
    let mut accepted: Vec<(Extension, u8)> = Vec::new();
    for extmap in &section.extensions {
        if let Some(extension) = Extension::from_uri(&extmap.uri)
            && extension.suits(kind)
            && (1..=14).contains(&extmap.id)
            && !accepted
                .iter()
                .any(|(other, id)| *other == extension || *id == extmap.id)
        {
            accepted.push((extension, extmap.id));
        }
    }
    accepted
}

/// What the engine offers to v0 subscribers, with numbers of its own. They report their bandwidth by
/// REMB, for which abs-send-time is enough.
#[must_use]
pub fn offer(kind: Kind) -> Vec<(Extension, u8)> {
    const OFFERED: [(Extension, u8); 5] = [
        (Extension::AudioLevel, 1),
        (Extension::AbsSendTime, 2),
        (Extension::Mid, 4),
        (Extension::PlayoutDelay, 5),
        (Extension::VideoOrientation, 13),
    ];
    OFFERED
        .into_iter()
        .filter(|(extension, _)| extension.suits(kind))
        .collect()
}
