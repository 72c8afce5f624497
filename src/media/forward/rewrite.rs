//! The bytes a subscriber gets: its own header in front of the shared payload.
//!
//! Everything fixed about a subscription's headers (payload type, SSRC, extension elements) is
//! prepared once as a [`Template`]; per packet a copy of it is patched. The result depends only on
//! template, segment and stored packet, so that a retransmission without RTX repeats the first
//! transmission bit by bit: one SRTP index never protects two different packets.

use std::time::{Duration, Instant};

use crate::forward::parameters::{ExtensionIds, SendSection};
use crate::receive::ring::Stored;
use crate::rtp::extension::PROFILE_ONE_BYTE;
use crate::rtp::packet::{Fields, HEADER_LEN};
use crate::send::segment::Segment;

/// Longest header: fixed part, extension head, all elements with the longest mid.
const TEMPLATE_LEN: usize = 64;
/// Longest value of a one-byte element.
const ELEMENT_LEN_MAX: usize = 16;

/// A subscription's header, with the places of what changes. Place 0: not there.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    bytes: [u8; TEMPLATE_LEN],
    len: u8,
    abs_send_time_at: u8,
    audio_level_at: u8,
    video_orientation_at: u8,
    playout_delay_at: u8,
    payload_type: u8,
    ssrc: u32,
}

impl Template {
    /// Prepares the header of a section; with or without the mid element.
    #[must_use]
    pub fn new(section: &SendSection, has_mid: bool) -> Self {
        Self::build(
            &section.extensions,
            section.pt,
            section.ssrc,
            if has_mid { &section.mid } else { "" },
        )
    }

    /// Prepares the header of a section's retransmissions.
    #[must_use]
    pub fn for_repair(section: &SendSection, payload_type: u8) -> Self {
        Self::build(
            &section.extensions,
            payload_type,
            section.rtx_ssrc,
            &section.mid,
        )
    }

    /// A header for nobody, until a section is negotiated.
    #[must_use]
    pub fn nothing() -> Self {
        Self::build(&ExtensionIds::default(), 0, 0, "")
    }

    fn build(ids: &ExtensionIds, payload_type: u8, ssrc: u32, mid: &str) -> Self {
        let mut template = Self {
            bytes: [0; TEMPLATE_LEN],
            len: HEADER_LEN as u8,
            abs_send_time_at: 0,
            audio_level_at: 0,
            video_orientation_at: 0,
            playout_delay_at: 0,
            payload_type,
            ssrc,
        };
        let start = HEADER_LEN + 4;
        let mut at = start;
        let mut element = |id: Option<u8>, value: &[u8]| -> u8 {
            let fits = !value.is_empty() && value.len() <= ELEMENT_LEN_MAX;
            let Some(id) = id.filter(|id| (1..=14).contains(id) && fits) else {
                return 0;
            };
            let place = at as u8;
            template.bytes[at] = id << 4 | (value.len() - 1) as u8;
            template.bytes[at + 1..at + 1 + value.len()].copy_from_slice(value);
            at += 1 + value.len();
            place
        };
        template.abs_send_time_at = element(ids.abs_send_time, &[0; 3]);
        template.audio_level_at = element(ids.audio_level, &[0]);
        template.video_orientation_at = element(ids.video_orientation, &[0]);
        template.playout_delay_at = element(ids.playout_delay, &[0; 3]);
        element(ids.mid, mid.as_bytes());
        if at > start {
            let end = at.next_multiple_of(4);
            template.bytes[HEADER_LEN..HEADER_LEN + 2]
                .copy_from_slice(&PROFILE_ONE_BYTE.to_be_bytes());
            template.bytes[HEADER_LEN + 3] = ((end - start) / 4) as u8;
            template.len = end as u8;
        }
        template
    }

    /// Length of the header.
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.len)
    }

    /// Writes the header; `buffer` must have room for it. Elements whose value the packet lacks
    /// become padding, so that the length stays and frames travel in equal datagrams.
    fn write(&self, buffer: &mut [u8], fields: Fields, stored: &Stored, abs_send_time: [u8; 3]) {
        let len = self.header_len();
        buffer[..len].copy_from_slice(&self.bytes[..len]);
        if let Some(header) = buffer.first_chunk_mut::<HEADER_LEN>() {
            fields.write(header, len > HEADER_LEN);
        }
        fill(buffer, self.abs_send_time_at, Some(abs_send_time));
        let carried = &stored.carried;
        fill(
            buffer,
            self.audio_level_at,
            carried.audio_level.map(|v| [v]),
        );
        fill(
            buffer,
            self.video_orientation_at,
            carried.video_orientation.map(|v| [v]),
        );
        fill(buffer, self.playout_delay_at, carried.playout_delay);
    }
}

/// Puts a value behind the element head at `place`, or blanks the element.
fn fill<const N: usize>(buffer: &mut [u8], place: u8, value: Option<[u8; N]>) {
    if place == 0 {
        return;
    }
    let at = usize::from(place);
    match value {
        Some(value) => buffer[at + 1..=at + N].copy_from_slice(&value),
        None => buffer[at..=at + N].fill(0),
    }
}

/// A packet about to be sent to many.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// What is known of it.
    pub stored: &'a Stored,
    /// Its payload.
    pub payload: &'a [u8],
    /// When it arrived, as the extension writes it: it is sent on at once, and must look the same
    /// when it is sent again.
    pub abs_send_time: [u8; 3],
}

/// 24 bits of 6.18 fixed point seconds since the router's start.
#[must_use]
pub fn abs_send_time(start: Instant, at: Instant) -> [u8; 3] {
    let passed: Duration = at.saturating_duration_since(start);
    let value = (passed.as_micros() << 18) / 1_000_000;
    let [_, bytes @ ..] = (value as u32).to_be_bytes();
    bytes
}

/// Writes a packet under the numbers of `segment`; returns its length, 0 if it does not fit.
pub fn write_media(
    buffer: &mut [u8],
    template: &Template,
    segment: &Segment,
    packet: &Shared<'_>,
) -> usize {
    let fields = Fields {
        marker: packet.stored.marker,
        payload_type: template.payload_type,
        sequence: segment.sent(packet.stored.sequence) as u16,
        timestamp: segment.timestamp(packet.stored),
        ssrc: template.ssrc,
    };
    let start = template.header_len();
    let end = start + packet.payload.len();
    if end > buffer.len() {
        return 0;
    }
    template.write(buffer, fields, packet.stored, packet.abs_send_time);
    write_payload(&mut buffer[start..end], segment, packet);
    end
}

/// Writes a retransmission (RFC 4588 §4): the original sequence number leads the payload. `sequence`
/// counts the repair stream, `now` is stamped as its sending time.
pub fn write_repair(
    buffer: &mut [u8],
    template: &Template,
    segment: &Segment,
    packet: &Shared<'_>,
    sequence: u16,
    now: [u8; 3],
) -> usize {
    let fields = Fields {
        marker: packet.stored.marker,
        payload_type: template.payload_type,
        sequence,
        timestamp: segment.timestamp(packet.stored),
        ssrc: template.ssrc,
    };
    let start = template.header_len() + 2;
    let end = start + packet.payload.len();
    if end > buffer.len() {
        return 0;
    }
    template.write(buffer, fields, packet.stored, now);
    let original = segment.sent(packet.stored.sequence) as u16;
    buffer[start - 2..start].copy_from_slice(&original.to_be_bytes());
    write_payload(&mut buffer[start..end], segment, packet);
    end
}

fn write_payload(buffer: &mut [u8], segment: &Segment, packet: &Shared<'_>) {
    buffer.copy_from_slice(packet.payload);
    let vp8 = &packet.stored.vp8;
    if vp8.picture_id_at != 0 || vp8.tl0_at != 0 {
        vp8.rewrite(
            buffer,
            segment.picture(packet.stored),
            segment.tl0(packet.stored),
        );
    }
}

#[cfg(test)]
mod tests {
    use flotilla_model::track::Kind;

    use super::*;
    use crate::codec::{Codec, vp8};
    use crate::rtp::extension::{self, Carried};
    use crate::rtp::packet::Header;

    fn section() -> SendSection {
        SendSection {
            mid: "12".to_owned(),
            track: "TR_a".into(),
            kind: Kind::Video,
            pt: 96,
            rtx_pt: Some(97),
            ssrc: 0x0102_0304,
            rtx_ssrc: 0x0506_0708,
            extensions: ExtensionIds {
                mid: Some(4),
                abs_send_time: Some(2),
                audio_level: Some(1),
                video_orientation: Some(13),
                ..ExtensionIds::default()
            },
            mime: "video/vp8".to_owned(),
            clock_rate: 90_000,
            fmtp: String::new(),
        }
    }

    fn stored(now: Instant) -> Stored {
        Stored {
            sequence: 70_000,
            arrived: now,
            timestamp: 1_000,
            len: 8,
            marker: true,
            is_key_frame: true,
            is_frame_start: true,
            codec: Codec::Vp8,
            carried: Carried {
                video_orientation: Some(3),
                ..Carried::default()
            },
            vp8: vp8::Descriptor::parse(&PAYLOAD).expect("well formed"),
        }
    }

    const PAYLOAD: [u8; 8] = [0x90, 0xc0, 0x81, 0x00, 0x09, 0x10, 0xaa, 0xbb];

    fn segment() -> Segment {
        Segment {
            sequence_offset: 5_u64.wrapping_sub(70_000),
            timestamp_offset: 50,
            picture_offset: 1,
            tl0_offset: 250,
            ..Segment::nothing()
        }
    }

    #[test]
    fn numbers_and_extensions_are_the_subscribers() {
        let now = crate::test_epoch();
        let stored = stored(now);
        let shared = Shared {
            stored: &stored,
            payload: &PAYLOAD,
            abs_send_time: [1, 2, 3],
        };
        let mut buffer = [0xff; 200];
        let template = Template::new(&section(), true);
        let len = write_media(&mut buffer, &template, &segment(), &shared);
        let header = Header::parse(&buffer[..len]).expect("well formed");
        assert!(header.marker);
        assert_eq!(header.payload_type, 96);
        assert_eq!(header.sequence, 5);
        assert_eq!(header.timestamp, 1_050);
        assert_eq!(header.ssrc, 0x0102_0304);
        let (profile, elements) = header.extension.expect("negotiated");
        let elements = &buffer[elements];
        let (identity, carried) = extension::read(&section().extensions, profile, elements);
        assert_eq!(identity.mid, Some(&b"12"[..]));
        assert_eq!(carried, stored.carried);
        assert!(extension::elements(profile, elements).any(|e| e == (2, &[1, 2, 3][..])));
        let payload = &buffer[header.payload];
        let descriptor = vp8::Descriptor::parse(payload).expect("well formed");
        assert_eq!((descriptor.picture_id, descriptor.tl0), (0x101, 3));
        assert_eq!(payload[5..], PAYLOAD[5..]);
    }

    #[test]
    fn a_retransmission_names_the_original_number() {
        let now = crate::test_epoch();
        let stored = stored(now);
        let shared = Shared {
            stored: &stored,
            payload: &PAYLOAD,
            abs_send_time: [1, 2, 3],
        };
        let mut buffer = [0xff; 200];
        let template = Template::for_repair(&section(), 97);
        let len = write_repair(&mut buffer, &template, &segment(), &shared, 77, [0; 3]);
        let header = Header::parse(&buffer[..len]).expect("well formed");
        assert_eq!(header.payload_type, 97);
        assert_eq!(header.ssrc, 0x0506_0708);
        assert_eq!(header.sequence, 77);
        let payload = &buffer[header.payload];
        assert_eq!(payload[..2], 5_u16.to_be_bytes());
        assert_eq!(payload.len(), PAYLOAD.len() + 2);
    }

    #[test]
    fn without_extensions_there_is_no_block() {
        let mut bare = section();
        bare.extensions = ExtensionIds::default();
        let template = Template::new(&bare, true);
        assert_eq!(template.header_len(), HEADER_LEN);
        let now = crate::test_epoch();
        let stored = stored(now);
        let shared = Shared {
            stored: &stored,
            payload: &PAYLOAD,
            abs_send_time: [0; 3],
        };
        let mut buffer = [0; 200];
        let len = write_media(&mut buffer, &template, &segment(), &shared);
        let header = Header::parse(&buffer[..len]).expect("well formed");
        assert_eq!(header.extension, None);
        assert_eq!(
            write_media(&mut buffer[..15], &template, &segment(), &shared),
            0
        );
    }

    #[test]
    fn the_send_time_wraps_after_64_seconds() {
        let start = crate::test_epoch();
        assert_eq!(abs_send_time(start, start), [0, 0, 0]);
        let half = start + Duration::from_millis(500);
        assert_eq!(abs_send_time(start, half), [2, 0, 0]);
        let wrapped = half + Duration::from_secs(64);
        assert_eq!(abs_send_time(start, wrapped), [2, 0, 0]);
    }
}
