//! A published track, with everything that another node needs to take it over or to relay it.

use serde::{Deserialize, Serialize};

use crate::id::TrackSid;
use crate::unit::Size;

/// Audio or video.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum Kind {
    /// Sound.
    Audio,
    /// Pictures.
    Video,
}

/// `livekit.TrackSource`, same numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum Source {
    /// Not said.
    Unknown = 0,
    /// Camera.
    Camera = 1,
    /// Microphone.
    Microphone = 2,
    /// Screen.
    ScreenShare = 3,
    /// Sound of the shared screen.
    ScreenShareAudio = 4,
}

/// `livekit.VideoQuality`, same numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum Quality {
    /// Lowest layer.
    Low = 0,
    /// Middle layer.
    Medium = 1,
    /// Highest layer.
    High = 2,
    /// No picture.
    Off = 3,
}

/// End-to-end encryption of a track (`livekit.Encryption.Type`, same numbers).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum Encryption {
    /// None.
    None = 0,
    /// AES-GCM.
    Gcm = 1,
    /// Application's own.
    Custom = 2,
}

/// One layer of a codec: a simulcast stream.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Layer {
    /// Which quality it serves.
    pub quality: Quality,
    /// Picture size the publisher announced.
    pub size: Size,
    /// Announced bits per second.
    pub bitrate_bps: u32,
    /// RTP stream id (`q`, `h`, `f`), empty without simulcast.
    pub rid: String,
    /// Synchronisation source; 0 until the first packet is seen.
    pub ssrc: u32,
    /// Of the retransmission stream; 0 if none or unknown.
    pub repair_ssrc: u32,
}

/// One encoding of a track.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct TrackCodec {
    /// MIME type in lower case, e.g. `video/vp8`; empty until negotiated.
    pub mime: String,
    /// Format parameters as negotiated with the publisher (`a=fmtp`), needed to relay H.264.
    pub fmtp: String,
    /// Client's id for this encoding's track: the msid track id in its SDP.
    pub cid: String,
    /// Media section in the publisher's SDP; empty until negotiated.
    pub mid: String,
    /// Simulcast layers, lowest first; one without simulcast.
    pub layers: Vec<Layer>,
}

/// A published track; mirrors `livekit.TrackInfo`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Track {
    /// Its sid.
    pub sid: TrackSid,
    /// Audio or video.
    pub kind: Kind,
    /// Name chosen by the publisher.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// Muted by publisher or administrator.
    pub muted: bool,
    /// Announced picture size.
    pub size: Size,
    /// Published as several layers.
    pub simulcast: bool,
    /// Opus discontinuous transmission is off.
    pub disable_dtx: bool,
    /// Two channels.
    pub stereo: bool,
    /// RED is off.
    pub disable_red: bool,
    /// End-to-end encryption.
    pub encryption: Encryption,
    /// Stream it belongs to, for synchronised playback.
    pub stream: String,
    /// `livekit.AudioTrackFeature` numbers.
    pub audio_features: Vec<i32>,
    /// `livekit.BackupCodecPolicy` number.
    pub backup_codec_policy: i32,
    /// Encodings; the first is the primary.
    pub codecs: Vec<TrackCodec>,
    /// Media has been seen or the SDP negotiated: others are told of the track.
    pub announced: bool,
}
