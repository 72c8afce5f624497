//! VP8's payload descriptor (RFC 7741 §4.2): parsing, key frames, and rewriting of the picture id
//! and TL0PICIDX so that a subscriber sees them count on across layer switches.

use flotilla_model::unit::Size;

use crate::codec::Inspection;

/// A parsed descriptor. Offsets point into the payload; 0 means that the field is absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Descriptor {
    /// Its length.
    pub len: u8,
    /// Where the picture id lies.
    pub picture_id_at: u8,
    /// The picture id has 15 bits instead of 7.
    pub is_wide: bool,
    /// The picture id.
    pub picture_id: u16,
    /// Where TL0PICIDX lies.
    pub tl0_at: u8,
    /// TL0PICIDX.
    pub tl0: u8,
    /// Temporal layer, 0 if absent.
    pub temporal: u8,
    /// First packet of the frame's first partition.
    pub is_frame_start: bool,
}

impl Descriptor {
    /// Parses the descriptor at the start of a payload; `None` if it is truncated.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let first = *payload.first()?;
        let mut descriptor = Self {
            len: 1,
            is_frame_start: first & 0x10 != 0 && first & 0x07 == 0,
            ..Self::default()
        };
        if first & 0x80 == 0 {
            return Some(descriptor);
        }
        let extended = *payload.get(1)?;
        let mut at = 2_u8;
        if extended & 0x80 != 0 {
            let high = *payload.get(usize::from(at))?;
            descriptor.picture_id_at = at;
            descriptor.picture_id = u16::from(high & 0x7f);
            at += 1;
            if high & 0x80 != 0 {
                let low = *payload.get(usize::from(at))?;
                descriptor.is_wide = true;
                descriptor.picture_id = descriptor.picture_id << 8 | u16::from(low);
                at += 1;
            }
        }
        if extended & 0x40 != 0 {
            descriptor.tl0 = *payload.get(usize::from(at))?;
            descriptor.tl0_at = at;
            at += 1;
        }
        if extended & 0x30 != 0 {
            let byte = *payload.get(usize::from(at))?;
            if extended & 0x20 != 0 {
                descriptor.temporal = byte >> 6;
            }
            at += 1;
        }
        descriptor.len = at;
        Some(descriptor)
    }

    /// Overwrites picture id and TL0PICIDX in a copy of the payload this was parsed from.
    pub fn rewrite(&self, payload: &mut [u8], picture_id: u16, tl0: u8) {
        if self.picture_id_at != 0 {
            let at = usize::from(self.picture_id_at);
            if self.is_wide {
                let bytes = (picture_id | 0x8000).to_be_bytes();
                payload[at..at + 2].copy_from_slice(&bytes);
            } else {
                payload[at] = picture_id as u8 & 0x7f;
            }
        }
        if self.tl0_at != 0 {
            payload[usize::from(self.tl0_at)] = tl0;
        }
    }
}

/// Looks at a payload: descriptor, key frame and its size.
#[must_use]
pub fn inspect(payload: &[u8]) -> Inspection {
    let Some(descriptor) = Descriptor::parse(payload) else {
        return Inspection::default();
    };
    let frame = &payload[usize::from(descriptor.len)..];
    let is_key_frame =
        descriptor.is_frame_start && frame.first().is_some_and(|first| first & 1 == 0);
    let size = match frame.first_chunk::<10>() {
        Some([_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1]) if is_key_frame => Some(Size {
            width: u32::from(u16::from_le_bytes([*w0, *w1]) & 0x3fff),
            height: u32::from(u16::from_le_bytes([*h0, *h1]) & 0x3fff),
        }),
        _ => None,
    };
    Inspection {
        is_key_frame,
        is_frame_start: descriptor.is_frame_start,
        size,
        vp8: Some(descriptor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 16] = [
        0x90, 0xf0, 0x92, 0x34, 0x07, 0x40, // descriptor
        0x10, 0x02, 0x00, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x41, // 640x360, scaled
    ];

    #[test]
    fn a_key_frame_shows_its_size() {
        let found = inspect(&KEY);
        assert!(found.is_key_frame && found.is_frame_start);
        assert_eq!(
            found.size,
            Some(Size {
                width: 640,
                height: 360
            })
        );
        let descriptor = found.vp8.expect("present");
        assert_eq!(descriptor.picture_id, 0x1234);
        assert_eq!(descriptor.tl0, 7);
        assert_eq!(descriptor.temporal, 1);
        assert_eq!(descriptor.len, 6);
    }

    #[test]
    fn later_packets_and_delta_frames_are_no_key_frames() {
        let mut later = KEY;
        later[0] = 0x80;
        assert!(!inspect(&later).is_key_frame);
        let mut partition = KEY;
        partition[0] = 0x91;
        assert!(!inspect(&partition).is_frame_start);
        let mut delta = KEY;
        delta[6] |= 1;
        assert!(!inspect(&delta).is_key_frame);
        assert!(inspect(&delta).is_frame_start);
    }

    #[test]
    fn both_widths_of_the_picture_id_are_rewritten() {
        let mut payload = KEY;
        let descriptor = Descriptor::parse(&payload).expect("well formed");
        descriptor.rewrite(&mut payload, 0x7fff, 200);
        let again = Descriptor::parse(&payload).expect("well formed");
        assert_eq!((again.picture_id, again.tl0), (0x7fff, 200));
        assert_eq!(&payload[5..], &KEY[5..]);

        let mut narrow = [0x90, 0xc0, 0x7f, 9, 1];
        let descriptor = Descriptor::parse(&narrow).expect("well formed");
        assert!(!descriptor.is_wide);
        descriptor.rewrite(&mut narrow, 0x1ff, 10);
        assert_eq!(narrow, [0x90, 0xc0, 0x7f, 10, 1]);
    }

    #[test]
    fn a_bare_descriptor_has_nothing_to_rewrite() {
        let mut payload = [0x10, 0, 0];
        let descriptor = Descriptor::parse(&payload).expect("well formed");
        assert_eq!(descriptor.len, 1);
        descriptor.rewrite(&mut payload, 5, 5);
        assert_eq!(payload, [0x10, 0, 0]);
    }
}
