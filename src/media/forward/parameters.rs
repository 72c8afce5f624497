//! What negotiation found out about a peer's media sections: the seam between the SDP code, which
//! fills these in, and the router, which receives and sends accordingly.

use flotilla_model::id::TrackSid;
use flotilla_model::track::Kind;

/// Ids of the header extensions negotiated in a section; `None`: not negotiated. With BUNDLE an id
/// means the same in all sections of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExtensionIds {
    /// `urn:ietf:params:rtp-hdrext:sdes:mid`.
    pub mid: Option<u8>,
    /// `urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id`.
    pub rid: Option<u8>,
    /// `urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id`.
    pub repaired_rid: Option<u8>,
    /// `urn:ietf:params:rtp-hdrext:ssrc-audio-level` (RFC 6464).
    pub audio_level: Option<u8>,
    /// `http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01`. Receive only:
    /// subscribers are paced by REMB.
    pub twcc: Option<u8>,
    /// `http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time`.
    pub abs_send_time: Option<u8>,
    /// `urn:3gpp:video-orientation`: passed through, phones need it.
    pub video_orientation: Option<u8>,
    /// `http://www.webrtc.org/experiments/rtp-hdrext/playout-delay`: passed through.
    pub playout_delay: Option<u8>,
}

impl ExtensionIds {
    /// Fills what is missing here from `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            mid: self.mid.or(other.mid),
            rid: self.rid.or(other.rid),
            repaired_rid: self.repaired_rid.or(other.repaired_rid),
            audio_level: self.audio_level.or(other.audio_level),
            twcc: self.twcc.or(other.twcc),
            abs_send_time: self.abs_send_time.or(other.abs_send_time),
            video_orientation: self.video_orientation.or(other.video_orientation),
            playout_delay: self.playout_delay.or(other.playout_delay),
        }
    }
}

/// One codec that a section may carry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReceiveCodec {
    /// Payload type.
    pub pt: u8,
    /// Payload type of its retransmissions (RFC 4588), if negotiated.
    pub rtx_pt: Option<u8>,
    /// MIME type in lower case, e.g. `video/vp8`.
    pub mime: String,
    /// RTP clock, Hz.
    pub clock_rate: u32,
    /// Audio channels; 0 for video.
    pub channels: u8,
    /// Format parameters (`a=fmtp` value), empty if none.
    pub fmtp: String,
}

/// RTCP feedback negotiated for a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Feedback {
    /// `nack`: lost packets may be asked for.
    pub nack: bool,
    /// `nack pli`: key frames may be asked for.
    pub pli: bool,
    /// `transport-cc`: arrival times are to be reported.
    pub twcc: bool,
    /// `goog-remb`: an estimate of the bandwidth is to be reported.
    pub remb: bool,
}

/// A section on which the peer sends us a track.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceiveSection {
    /// Media section id.
    pub mid: String,
    /// Track that it carries.
    pub track: TrackSid,
    /// Audio or video.
    pub kind: Kind,
    /// Codecs in order of preference.
    pub codecs: Vec<ReceiveCodec>,
    /// Header extensions.
    pub extensions: ExtensionIds,
    /// Simulcast stream ids as negotiated (`a=rid … send`), in SDP order; empty without simulcast.
    pub rids: Vec<String>,
    /// Declared SSRCs (`a=ssrc`) with their repair SSRC (`a=ssrc-group:FID`), lowest layer first
    /// (`a=ssrc-group:SIM`); empty when streams are identified by rid.
    pub ssrcs: Vec<(u32, Option<u32>)>,
    /// Streams that were identified by rid before, here or at another node: rid, SSRC, repair SSRC.
    pub learned: Vec<(String, u32, Option<u32>)>,
    /// RTCP feedback.
    pub feedback: Feedback,
}

/// A section on which we send the peer a track.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SendSection {
    /// Media section id.
    pub mid: String,
    /// Track that it carries.
    pub track: TrackSid,
    /// Audio or video.
    pub kind: Kind,
    /// Payload type to send.
    pub pt: u8,
    /// Payload type for retransmissions, if negotiated.
    pub rtx_pt: Option<u8>,
    /// SSRC to send. A section that is reused for another track needs a fresh one.
    pub ssrc: u32,
    /// SSRC for retransmissions; ignored without `rtx_pt`.
    pub rtx_ssrc: u32,
    /// Header extensions.
    pub extensions: ExtensionIds,
    /// MIME type of the codec, lower case.
    pub mime: String,
    /// RTP clock, Hz.
    pub clock_rate: u32,
    /// Its format parameters.
    pub fmtp: String,
}
