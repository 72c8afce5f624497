//! What the router has to know of a payload: where frames start, which are key frames, and the
//! counters that must stay contiguous for a subscriber.
//!
//! Fed by `receive` with every new packet; the findings are stored beside it in the packet ring.

pub mod h264;
pub mod opus;
pub mod vp8;

use flotilla_model::unit::Size;

/// Codecs that are told apart. Others are forwarded unseen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Codec {
    /// Audio or data without special treatment; every packet is a place to start.
    Other = 0,
    /// Opus (RFC 7587).
    Opus = 1,
    /// VP8 (RFC 7741).
    Vp8 = 2,
    /// H.264 (RFC 6184).
    H264 = 3,
    /// VP9 (RFC 9628); whole streams only, no spatial layers.
    Vp9 = 4,
    /// AV1 (AOM RTP specification); whole streams only.
    Av1 = 5,
}

impl Codec {
    /// By MIME type, in any case.
    #[must_use]
    pub fn from_mime(mime: &str) -> Self {
        let known = [
            ("audio/opus", Self::Opus),
            ("video/vp8", Self::Vp8),
            ("video/h264", Self::H264),
            ("video/vp9", Self::Vp9),
            ("video/av1", Self::Av1),
        ];
        known
            .into_iter()
            .find(|(name, _)| mime.eq_ignore_ascii_case(name))
            .map_or(Self::Other, |(_, codec)| codec)
    }

    /// By the number it has on relays.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::Other,
            Self::Opus,
            Self::Vp8,
            Self::H264,
            Self::Vp9,
            Self::Av1,
        ]
        .into_iter()
        .find(|codec| *codec as u8 == number)
    }

    /// A subscriber can start at key frames only.
    #[must_use]
    pub fn has_key_frames(self) -> bool {
        !matches!(self, Self::Opus | Self::Other)
    }
}

/// What a payload turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Inspection {
    /// Belongs to a key frame, as far as this packet shows: its first packet does, others may not.
    pub is_key_frame: bool,
    /// Is certainly the first packet of a frame. Without it the frame's start is found by the
    /// timestamp of the packet before.
    pub is_frame_start: bool,
    /// Picture size, where the first packet of a key frame says it.
    pub size: Option<Size>,
    /// VP8's payload descriptor.
    pub vp8: Option<vp8::Descriptor>,
}

/// Looks at a payload.
#[must_use]
pub fn inspect(codec: Codec, payload: &[u8]) -> Inspection {
    match codec {
        Codec::Opus | Codec::Other => Inspection {
            is_key_frame: true,
            is_frame_start: true,
            ..Inspection::default()
        },
        Codec::Vp8 => vp8::inspect(payload),
        Codec::H264 => h264::inspect(payload),
        Codec::Vp9 => inspect_vp9(payload),
        Codec::Av1 => inspect_av1(payload),
    }
}

/// RFC 9628 §4.2: bit P (inter-picture predicted) is clear and bit B (start of frame) is set.
fn inspect_vp9(payload: &[u8]) -> Inspection {
    let first = payload.first().copied().unwrap_or(0x40);
    let is_frame_start = first & 0x08 != 0;
    Inspection {
        is_key_frame: is_frame_start && first & 0x40 == 0,
        is_frame_start,
        ..Inspection::default()
    }
}

/// AV1 aggregation header: bit N (first packet of a coded video sequence), bit Z (continues).
fn inspect_av1(payload: &[u8]) -> Inspection {
    let first = payload.first().copied().unwrap_or(0x80);
    let is_key_frame = first & 0x88 == 0x08;
    Inspection {
        is_key_frame,
        is_frame_start: is_key_frame,
        ..Inspection::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for number in 0..6 {
            let codec = Codec::from_number(number).expect("in range");
            assert_eq!(codec as u8, number);
        }
        assert_eq!(Codec::from_number(6), None);
        assert_eq!(Codec::from_mime("Video/VP8"), Codec::Vp8);
        assert_eq!(Codec::from_mime("audio/red"), Codec::Other);
    }

    #[test]
    fn key_frames_of_vp9_and_av1() {
        assert!(inspect(Codec::Vp9, &[0x8c, 1]).is_key_frame);
        assert!(!inspect(Codec::Vp9, &[0xcc, 1]).is_key_frame);
        assert!(!inspect(Codec::Vp9, &[0x84, 1]).is_key_frame);
        assert!(inspect(Codec::Av1, &[0x18, 1]).is_key_frame);
        assert!(!inspect(Codec::Av1, &[0x90, 1]).is_key_frame);
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(
            number in 0_u8..6,
            payload in proptest::collection::vec(any::<u8>(), 0..60)
        ) {
            let codec = Codec::from_number(number).expect("in range");
            let found = inspect(codec, &payload);
            if let Some(descriptor) = found.vp8 {
                prop_assert!(usize::from(descriptor.len) <= payload.len());
            }
        }
    }
}
