//! The codecs that the engine forwards, and how a client's payload types map to them.
//!
//! Opus, VP8 and H.264 (packetization mode 1) are agreed to. VP9 and AV1 come as layered streams
//! that the forwarding path does not take apart yet, so they are known here but not negotiated; RED
//! is not unwrapped, so it is left out as well.

use flotilla_model::track::Kind;

use super::{Codec, Feedback, Section};

/// A codec of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Opus, 48 kHz, two channels in its name whatever is sent.
    Opus,
    /// VP8.
    Vp8,
    /// H.264 in packetization mode 1.
    H264(Profile),
    /// VP9, not negotiated.
    Vp9,
    /// AV1, not negotiated.
    Av1,
}

/// H.264 profiles that differ in what a decoder must be able to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// Constrained baseline: decodes everywhere.
    ConstrainedBaseline,
    /// Baseline.
    Baseline,
    /// Main.
    Main,
    /// High and constrained high.
    High,
}

impl Format {
    /// MIME type in lower case.
    #[must_use]
    pub fn mime(self) -> &'static str {
        match self {
            Self::Opus => "audio/opus",
            Self::Vp8 => "video/vp8",
            Self::H264(_) => "video/h264",
            Self::Vp9 => "video/vp9",
            Self::Av1 => "video/av1",
        }
    }

    /// The engine can forward it.
    fn is_negotiated(self) -> bool {
        matches!(self, Self::Opus | Self::Vp8 | Self::H264(_))
    }

    /// Recognises a payload type of a section.
    fn of(codec: &Codec, kind: Kind) -> Option<Self> {
        let named = |name: &str| codec.name.eq_ignore_ascii_case(name);
        match (kind, codec.clock_rate) {
            (Kind::Audio, 48_000) if named("opus") && codec.channels == 2 => Some(Self::Opus),
            (Kind::Video, 90_000) if named("VP8") => Some(Self::Vp8),
            (Kind::Video, 90_000) if named("VP9") => Some(Self::Vp9),
            (Kind::Video, 90_000) if named("AV1") => Some(Self::Av1),
            (Kind::Video, 90_000) if named("H264") => h264(&codec.fmtp),
            _ => None,
        }
    }

    /// The format of a track, from its MIME type and parameters.
    #[must_use]
    pub fn from_mime(mime: &str, fmtp: &str) -> Option<Self> {
        let is = |name: &str| mime.eq_ignore_ascii_case(name);
        if is("audio/opus") {
            Some(Self::Opus)
        } else if is("video/vp8") {
            Some(Self::Vp8)
        } else if is("video/h264") {
            // A track whose parameters are not known yet is taken for the most common profile.
            Some(h264(fmtp).unwrap_or(Self::H264(Profile::ConstrainedBaseline)))
        } else if is("video/vp9") {
            Some(Self::Vp9)
        } else if is("video/av1") {
            Some(Self::Av1)
        } else {
            None
        }
    }
}

/// A payload type that both sides can use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// RTP payload type.
    pub pt: u8,
    /// Payload type of its retransmissions.
    pub rtx_pt: Option<u8>,
    /// What it is.
    pub format: Format,
    /// Name as the client wrote it.
    pub name: String,
    /// RTP clock, per second.
    pub clock_rate: u32,
    /// Channels.
    pub channels: u8,
    /// The client's parameters.
    pub fmtp: String,
    /// Feedback that both sides can use.
    pub feedback: Feedback,
}

impl Accepted {
    /// Parameters without `x-google-*`, which concern nobody but the encoder at hand.
    #[must_use]
    pub fn plain_fmtp(&self) -> String {
        let mut plain = String::with_capacity(self.fmtp.len());
        for parameter in parameters(&self.fmtp) {
            if !parameter.starts_with("x-google-") {
                if !plain.is_empty() {
                    plain.push(';');
                }
                plain.push_str(parameter);
            }
        }
        plain
    }
}

/// The payload types of a client's section that the engine can use, in the client's order.
#[must_use]
pub fn accept(section: &Section, kind: Kind) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    for codec in &section.codecs {
        let Some(format) = Format::of(codec, kind).filter(|format| format.is_negotiated()) else {
            continue;
        };
        let rtx = section.codecs.iter().find(|rtx| {
            rtx.name.eq_ignore_ascii_case("rtx")
                && rtx.clock_rate == codec.clock_rate
                && parameter(&rtx.fmtp, "apt").and_then(|apt| apt.parse().ok()) == Some(codec.pt)
        });
        accepted.push(Accepted {
            pt: codec.pt,
            rtx_pt: rtx.map(|rtx| rtx.pt),
            format,
            name: codec.name.clone(),
            clock_rate: codec.clock_rate,
            channels: codec.channels,
            fmtp: codec.fmtp.clone(),
            feedback: codec.feedback,
        });
    }
    accepted
}

/// What the engine offers to a client that is to receive tracks of this kind.
#[must_use]
pub fn offer(kind: Kind) -> Vec<Accepted> {
    let video = Feedback {
        nack: true,
        pli: true,
        fir: true,
        remb: true,
        transport_cc: false,
    };
    let h264 = |pt, profile, id| Accepted {
        pt,
        rtx_pt: Some(pt + 1),
        format: Format::H264(profile),
        name: "H264".to_owned(),
        clock_rate: 90_000,
        channels: 1,
        fmtp: format!("level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={id}"),
        feedback: video,
    };
    match kind {
        Kind::Audio => vec![Accepted {
            pt: 111,
            rtx_pt: None,
            format: Format::Opus,
            name: "opus".to_owned(),
            clock_rate: 48_000,
            channels: 2,
            fmtp: "minptime=10;useinbandfec=1".to_owned(),
            feedback: Feedback {
                nack: true,
                ..Feedback::default()
            },
        }],
        Kind::Video => vec![
            Accepted {
                pt: 96,
                rtx_pt: Some(97),
                format: Format::Vp8,
                name: "VP8".to_owned(),
                clock_rate: 90_000,
                channels: 1,
                fmtp: String::new(),
                feedback: video,
            },
            h264(102, Profile::ConstrainedBaseline, "42e01f"),
            h264(104, Profile::Baseline, "42001f"),
            h264(106, Profile::Main, "4d001f"),
            h264(108, Profile::High, "64001f"),
        ],
    }
}

/// The payload type to send a track of this format with: the same profile if the receiver has it,
/// else one whose decoders can do what the track needs.
#[must_use]
pub fn select(accepted: &[Accepted], format: Format) -> Option<&Accepted> {
    let exact = accepted.iter().find(|codec| codec.format == format);
    exact.or_else(|| {
        let Format::H264(profile) = format else {
            return None;
        };
        let capable: &[Profile] = match profile {
            // Publishers that say baseline send constrained baseline in practice.
            Profile::ConstrainedBaseline | Profile::Baseline => &[
                Profile::ConstrainedBaseline,
                Profile::Baseline,
                Profile::Main,
                Profile::High,
            ],
            Profile::Main => &[Profile::High],
            Profile::High => &[],
        };
        capable.iter().find_map(|profile| {
            accepted
                .iter()
                .find(|codec| codec.format == Format::H264(*profile))
        })
    })
}

/// `packetization-mode=1` and a profile that decoders have; without a profile RFC 6184 §8.1 means
/// baseline.
fn h264(fmtp: &str) -> Option<Format> {
    if parameter(fmtp, "packetization-mode") != Some("1") {
        return None;
    }
    let Some(id) = parameter(fmtp, "profile-level-id") else {
        return Some(Format::H264(Profile::Baseline));
    };
    let bits = u32::from_str_radix(id, 16).ok().filter(|_| id.len() == 6)?;
    let (profile, constraints) = (bits >> 16, (bits >> 8) & 0xff);
    Some(Format::H264(match profile {
        // Constraint set 1 makes baseline constrained.
        0x42 if constraints & 0x40 != 0 => Profile::ConstrainedBaseline,
        0x42 => Profile::Baseline,
        // Main with constraint set 0 and baseline-only tools is constrained baseline as well.
        0x4d if constraints & 0x80 != 0 => Profile::ConstrainedBaseline,
        0x4d => Profile::Main,
        0x64 => Profile::High,
        _ => return None,
    }))
}

fn parameters(fmtp: &str) -> impl Iterator<Item = &str> {
    fmtp.split(';')
        .map(str::trim)
        .filter(|parameter| !parameter.is_empty())
}

fn parameter<'a>(fmtp: &'a str, name: &str) -> Option<&'a str> {
    parameters(fmtp).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}
