//! Session descriptions: the text that clients and the engine exchange to agree on media.
//!
//! [`mod@parse`] turns a client's SDP into a [`Description`]; [`codec`] and [`extension`] say what of it
//! the engine can use; [`mod@write`] produces the engine's own offers and answers. Who asks for what, and
//! when, is decided in `peer/negotiation`. Nothing in here keeps state.
//! Sources: RFC 8866 (SDP), RFC 8829 (JSEP), RFC 8843 (BUNDLE), RFC 8853 (simulcast).

pub mod codec;
pub mod extension;
pub mod parse;
pub mod write;

use flotilla_model::track::Kind;

use crate::peer::dtls::Fingerprint;

pub use parse::{ParseError, parse};

/// Longest description accepted. A browser spends about 4.5 kB per video section.
pub const BYTES_MAX: usize = 1 << 20;
/// Most media sections of one description.
pub const SECTIONS_MAX: usize = 256;
/// Longest line accepted.
pub const LINE_BYTES_MAX: usize = 4096;
/// Most lines of one section: Chromium writes about 160 for a video section.
pub const SECTION_LINES_MAX: usize = 2048;

/// What a media section carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Media {
    /// Sound.
    Audio,
    /// Pictures.
    Video,
    /// Data channels.
    Application,
    /// Anything else, which is always refused; the word is kept because the answer repeats it.
    Other(String),
}

impl Media {
    /// The word in the `m=` line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Application => "application",
            Self::Other(word) => word,
        }
    }

    /// Audio or video; `None` for the rest.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Audio => Some(Kind::Audio),
            Self::Video => Some(Kind::Video),
            Self::Application | Self::Other(_) => None,
        }
    }
}

impl From<Kind> for Media {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Audio => Self::Audio,
            Kind::Video => Self::Video,
        }
    }
}

/// Which way media flows, as seen by whoever wrote the description.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Direction {
    /// Both ways; what SDP means when nothing is said.
    #[default]
    SendRecv,
    /// The writer only sends.
    SendOnly,
    /// The writer only receives.
    RecvOnly,
    /// Nothing flows.
    Inactive,
}

impl Direction {
    /// The attribute's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SendRecv => "sendrecv",
            Self::SendOnly => "sendonly",
            Self::RecvOnly => "recvonly",
            Self::Inactive => "inactive",
        }
    }

    /// Builds one from its two halves.
    #[must_use]
    pub fn new(send: bool, receive: bool) -> Self {
        match (send, receive) {
            (true, true) => Self::SendRecv,
            (true, false) => Self::SendOnly,
            (false, true) => Self::RecvOnly,
            (false, false) => Self::Inactive,
        }
    }

    /// The writer sends.
    #[must_use]
    pub fn sends(self) -> bool {
        matches!(self, Self::SendRecv | Self::SendOnly)
    }

    /// The writer receives.
    #[must_use]
    pub fn receives(self) -> bool {
        matches!(self, Self::SendRecv | Self::RecvOnly)
    }
}

/// DTLS role, `a=setup`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setup {
    /// Sends the ClientHello.
    Active,
    /// Waits for it.
    Passive,
    /// Either; the answer decides.
    ActPass,
}

impl Setup {
    /// The attribute's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::ActPass => "actpass",
        }
    }
}

/// How to reach and to authenticate the writer; at session level, per section, or partly each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TransportAttributes {
    /// ICE user name fragment.
    pub ufrag: Option<String>,
    /// ICE password.
    pub pwd: Option<String>,
    /// SHA-256 fingerprint of the DTLS certificate.
    pub fingerprint: Option<Fingerprint>,
    /// DTLS role.
    pub setup: Option<Setup>,
}

/// RTCP feedback agreed for one payload type (RFC 4585, RFC 5104).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Feedback {
    /// `nack`: single packets can be asked for again.
    pub nack: bool,
    /// `nack pli`: a key frame can be asked for.
    pub pli: bool,
    /// `ccm fir`: the same, older.
    pub fir: bool,
    /// `goog-remb`: the receiver estimates the bandwidth.
    pub remb: bool,
    /// `transport-cc`: the receiver reports arrival times.
    pub transport_cc: bool,
}

/// One payload type of a section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Codec {
    /// RTP payload type.
    pub pt: u8,
    /// Encoding name as written, e.g. `VP8`, `rtx`.
    pub name: String,
    /// RTP clock, per second.
    pub clock_rate: u32,
    /// Channels; 1 if not said.
    pub channels: u8,
    /// `a=fmtp` parameters, empty if there are none.
    pub fmtp: String,
    /// Feedback offered.
    pub feedback: Feedback,
}

/// An RTP header extension of a section (RFC 8285).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extmap {
    /// Number in the packets.
    pub id: u8,
    /// What it is.
    pub uri: String,
}

/// `a=msid`: which stream and track a section sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Msid {
    /// Stream id; `-` for none.
    pub stream: String,
    /// Track id; may be empty.
    pub track: String,
}

/// A media section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// What it carries.
    pub media: Media,
    /// Port of the `m=` line; 0 means refused or stopped (unless bundle-only).
    pub port: u16,
    /// `a=bundle-only`.
    pub bundle_only: bool,
    /// Transport protocol of the `m=` line.
    pub protocol: String,
    /// Formats of the `m=` line, in the writer's order of preference.
    pub formats: Vec<String>,
    /// `a=mid`.
    pub mid: String,
    /// Direction.
    pub direction: Direction,
    /// `a=msid`, the first if there are several.
    pub msid: Option<Msid>,
    /// Payload types with an `a=rtpmap`, in the order of the `m=` line.
    pub codecs: Vec<Codec>,
    /// Header extensions.
    pub extensions: Vec<Extmap>,
    /// Streams ids that the writer sends, in the order of `a=simulcast`.
    pub rids: Vec<String>,
    /// Synchronisation sources, in order, without those that only repair another.
    pub ssrcs: Vec<SsrcPair>,
    /// `a=rtcp-mux`.
    pub rtcp_mux: bool,
    /// Transport attributes of this section.
    pub transport: TransportAttributes,
    /// `a=sctp-port`.
    pub sctp_port: Option<u16>,
    /// `a=max-message-size`, bytes; 0: no limit.
    pub max_message_size: Option<u64>,
}

/// A source and the one that repairs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SsrcPair {
    /// Media.
    pub ssrc: u32,
    /// Retransmissions (`a=ssrc-group:FID`).
    pub repair: Option<u32>,
}

impl Section {
    /// The writer refuses or has stopped this section.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.port == 0 && !self.bundle_only
    }
}

/// A parsed session description.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// Mids of the BUNDLE group; the first one's transport serves all.
    pub bundle: Vec<String>,
    /// The writer is ICE-lite.
    pub ice_lite: bool,
    /// Transport attributes at session level.
    pub transport: TransportAttributes,
    /// Media sections, in order.
    pub sections: Vec<Section>,
}

impl Description {
    /// What serves the whole bundle: the tagged section's attributes, else the session's.
    #[must_use]
    pub fn bundle_transport(&self) -> TransportAttributes {
        let tagged = self
            .bundle
            .first()
            .and_then(|tag| self.sections.iter().find(|section| section.mid == *tag))
            .or_else(|| self.sections.iter().find(|section| !section.is_rejected()));
        let own = tagged
            .map(|section| section.transport.clone())
            .unwrap_or_default();
        TransportAttributes {
            ufrag: own.ufrag.or_else(|| self.transport.ufrag.clone()),
            pwd: own.pwd.or_else(|| self.transport.pwd.clone()),
            fingerprint: own.fingerprint.or(self.transport.fingerprint),
            setup: own.setup.or(self.transport.setup),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
