//! What nodes say to each other on a link: the plain text of a relay packet.
//!
//! Big-endian fields, first byte is the kind. Media leaves RTP's header behind: numbers are the
//! first node's extended ones, extension values are carried by name, so that both ends need no
//! agreement but this file. Parsing allocates nothing and never panics.

use std::time::Duration;

use crate::codec::Codec;
use crate::discard::Discard;
use crate::relay::loan::{OnLoan, Way};
use crate::rtp::extension::Carried;

const MEDIA: u8 = 1;
const WANT: u8 = 2;
const NACK: u8 = 3;
const STATUS: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const CLIENT_UP: u8 = 7;
const CLIENT_DOWN: u8 = 8;
const CLIENT_DONE: u8 = 9;

const FLAG_MARKER: u8 = 1;
const FLAG_REPAIR: u8 = 2;
const FLAG_AUDIO_LEVEL: u8 = 4;
const FLAG_ORIENTATION: u8 = 8;
const FLAG_PLAYOUT_DELAY: u8 = 16;

/// Entries of one want message: 20 bytes each.
pub const WANTS_MAX: usize = 48;
/// Pairs of one NACK message: 8 bytes each.
pub const NACK_PAIRS_MAX: usize = 64;

/// A track on a link: the hash of its sid, and the epoch of its publisher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrackRef {
    /// `fnv1a(sid)`.
    pub hash: u64,
    /// Epoch. A lower one than seen before is refused.
    pub epoch: u64,
}

/// Head of a media message; the payload follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Media {
    /// Track.
    pub track: TrackRef,
    /// Layer.
    pub layer: u8,
    /// Low bits of the layer's generation at the sender: a change starts the numbers anew.
    pub generation: u8,
    /// Codec.
    pub codec: Codec,
    /// RTP clock, Hz; whole kilohertz up to 255.
    pub clock_rate: u32,
    /// RTP marker.
    pub marker: bool,
    /// Sent because it was asked for.
    pub is_repair: bool,
    /// Extension values.
    pub carried: Carried,
    /// Low 32 bits of the extended sequence number.
    pub sequence: u32,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Time since the packet arrived at the first node, known hops included.
    pub age: Duration,
}

/// In [`Want::key_frames`]: somebody was cut off in the middle of a picture and is back, so the source
/// is to be asked even if it was a moment ago. No layer has this bit.
pub const IN_HASTE: u8 = 1 << 7;

/// What a node wants of one track. Sent when it changes and repeated, since it may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// Track.
    pub track: TrackRef,
    /// Layers to send, a bit each.
    pub layers: u8,
    /// Layers of which a key frame is needed, a bit each, and [`IN_HASTE`].
    pub key_frames: u8,
    /// Best quality that somebody there wants, as a number; 3: nobody wants any.
    pub quality: u8,
    /// Share of packets lost on the link, 1/256.
    pub fraction_lost: u8,
}

/// State of one track at the sending node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Track.
    pub track: TrackRef,
    /// Layers that arrive there, a bit each.
    pub live: u8,
    /// The publisher muted it.
    pub is_muted: bool,
    /// Clock of one layer, if one is told.
    pub clock: Option<Clock>,
}

/// A sender report, carried over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Layer.
    pub layer: u8,
    /// Publisher's wall time.
    pub ntp: u64,
    /// RTP time at that moment.
    pub rtp: u32,
    /// Time since the report arrived at the first node.
    pub age: Duration,
}

/// A message.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// A packet of a track.
    Media(Media, &'a [u8]),
    /// What the other node wants.
    Want(Wants<'a>),
    /// Packets the other node lacks.
    Nack {
        /// Track.
        track: TrackRef,
        /// Layer.
        layer: u8,
        /// Low bits of extended numbers.
        sequences: Sequences<'a>,
    },
    /// State of a track at the other node.
    Status(Status),
    /// To be answered with the same number.
    Ping(u64),
    /// The answer.
    Pong(u64),
    /// A datagram of a client whose path one of the two nodes lends to the other.
    OnLoan(OnLoan, &'a [u8]),
}

/// Entries of a want message.
#[derive(Clone, Copy, Debug)]
pub struct Wants<'a>(&'a [u8]);

impl Iterator for Wants<'_> {
    type Item = Want;

    fn next(&mut self) -> Option<Want> {
        let mut reader = Reader(self.0);
        let want = Want {
            track: reader.track()?,
            layers: reader.byte()?,
            key_frames: reader.byte()?,
            quality: reader.byte()?,
            fraction_lost: reader.byte()?,
        };
        self.0 = reader.0;
        Some(want)
    }
}

/// Pairs of a NACK message: a number and a mask of the 32 behind it.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a>(&'a [u8]);

impl Sequences<'_> {
    /// Calls `each` with the low 32 bits of every number asked for.
    pub fn for_each(self, mut each: impl FnMut(u32)) {
        let mut reader = Reader(self.0);
        while let (Some(first), Some(mut mask)) = (reader.u32(), reader.u32()) {
            each(first);
            while mask != 0 {
                each(first.wrapping_add(mask.trailing_zeros() + 1));
                mask &= mask - 1;
            }
        }
    }
}

/// Parses a message.
///
/// # Errors
/// `Truncated` or `Malformed`.
pub fn parse(plain: &[u8]) -> Result<Message<'_>, Discard> {
    let (&kind, body) = plain.split_first().ok_or(Discard::Truncated)?;
    let mut reader = Reader(body);
    match kind {
        MEDIA => parse_media(reader),
        WANT => Ok(Message::Want(Wants(body))),
        NACK => {
            let track = reader.track().ok_or(Discard::Truncated)?;
            let layer = reader.byte().ok_or(Discard::Truncated)?;
            Ok(Message::Nack {
                track,
                layer,
                sequences: Sequences(reader.0),
            })
        }
        STATUS => parse_status(reader)
            .map(Message::Status)
            .ok_or(Discard::Truncated),
        PING => reader.u64().map(Message::Ping).ok_or(Discard::Truncated),
        PONG => reader.u64().map(Message::Pong).ok_or(Discard::Truncated),
        CLIENT_UP => parse_on_loan(Way::Up, reader),
        CLIENT_DOWN => parse_on_loan(Way::Down, reader),
        CLIENT_DONE => parse_on_loan(Way::Done, reader),
        _ => Err(Discard::Malformed),
    }
}

fn parse_media(mut reader: Reader<'_>) -> Result<Message<'_>, Discard> {
    let mut head = || {
        let track = reader.track()?;
        let [layer, generation, codec, clock, flags] = reader.array()?;
        let media = Media {
            track,
            layer,
            generation,
            codec: Codec::from_number(codec).unwrap_or(Codec::Other),
            clock_rate: u32::from(clock) * 1_000,
            marker: flags & FLAG_MARKER != 0,
            is_repair: flags & FLAG_REPAIR != 0,
            sequence: reader.u32()?,
            timestamp: reader.u32()?,
            age: Duration::from_micros(u64::from(reader.u32()?)),
            carried: Carried {
                audio_level: reader.flagged(flags & FLAG_AUDIO_LEVEL)?.map(|[v]| v),
                video_orientation: reader.flagged(flags & FLAG_ORIENTATION)?.map(|[v]| v),
                playout_delay: reader.flagged(flags & FLAG_PLAYOUT_DELAY)?,
            },
        };
        Some(media)
    };
    let media = head().ok_or(Discard::Truncated)?;
    if media.clock_rate == 0 {
        return Err(Discard::Malformed);
    }
    Ok(Message::Media(media, reader.0))
}

fn parse_on_loan(way: Way, mut reader: Reader<'_>) -> Result<Message<'_>, Discard> {
    let head = reader.array().ok_or(Discard::Truncated)?;
    Ok(Message::OnLoan(OnLoan::read(way, head), reader.0))
}

fn parse_status(mut reader: Reader<'_>) -> Option<Status> {
    let track = reader.track()?;
    let [live, flags] = reader.array()?;
    let clock = if flags & 2 == 0 {
        None
    } else {
        Some(Clock {
            layer: reader.byte()?,
            ntp: reader.u64()?,
            rtp: reader.u32()?,
            age: Duration::from_micros(u64::from(reader.u32()?)),
        })
    };
    Some(Status {
        track,
        live,
        is_muted: flags & 1 != 0,
        clock,
    })
}

/// Writes a media message; returns its length, 0 if it does not fit.
pub fn write_media(buffer: &mut [u8], media: &Media, payload: &[u8]) -> usize {
    let carried = &media.carried;
    let flags = flag(media.marker, FLAG_MARKER)
        | flag(media.is_repair, FLAG_REPAIR)
        | flag(carried.audio_level.is_some(), FLAG_AUDIO_LEVEL)
        | flag(carried.video_orientation.is_some(), FLAG_ORIENTATION)
        | flag(carried.playout_delay.is_some(), FLAG_PLAYOUT_DELAY);
    let mut writer = Writer::new(buffer, MEDIA);
    writer.track(media.track);
    writer.put(&[
        media.layer,
        media.generation,
        media.codec as u8,
        (media.clock_rate / 1_000) as u8,
        flags,
    ]);
    writer.put(&media.sequence.to_be_bytes());
    writer.put(&media.timestamp.to_be_bytes());
    writer.put(&micros(media.age));
    if let Some(level) = carried.audio_level {
        writer.put(&[level]);
    }
    if let Some(orientation) = carried.video_orientation {
        writer.put(&[orientation]);
    }
    if let Some(delay) = carried.playout_delay {
        writer.put(&delay);
    }
    writer.put(payload);
    writer.finish()
}

/// Writes a want message from up to [`WANTS_MAX`] entries.
pub fn write_wants(buffer: &mut [u8], wants: &[Want]) -> usize {
    let mut writer = Writer::new(buffer, WANT);
    for want in &wants[..wants.len().min(WANTS_MAX)] {
        writer.track(want.track);
        writer.put(&[
            want.layers,
            want.key_frames,
            want.quality,
            want.fraction_lost,
        ]);
    }
    writer.finish()
}

/// Writes a NACK message for ascending extended numbers; returns its length and how many of them it
/// covers.
pub fn write_nack(
    buffer: &mut [u8],
    track: TrackRef,
    layer: u8,
    sequences: &[u64],
) -> (usize, usize) {
    let mut writer = Writer::new(buffer, NACK);
    writer.track(track);
    writer.put(&[layer]);
    let mut taken = 0;
    for _ in 0..NACK_PAIRS_MAX {
        let Some(&first) = sequences.get(taken) else {
            break;
        };
        taken += 1;
        let mut mask = 0_u32;
        while let Some(next) = sequences.get(taken).map(|next| next - first)
            && next <= 32
        {
            mask |= 1 << (next - 1);
            taken += 1;
        }
        writer.put(&(first as u32).to_be_bytes());
        writer.put(&mask.to_be_bytes());
    }
    (writer.finish(), taken)
}

/// Writes a status message.
pub fn write_status(buffer: &mut [u8], status: &Status) -> usize {
    let mut writer = Writer::new(buffer, STATUS);
    writer.track(status.track);
    writer.put(&[
        status.live,
        flag(status.is_muted, 1) | flag(status.clock.is_some(), 2),
    ]);
    if let Some(clock) = &status.clock {
        writer.put(&[clock.layer]);
        writer.put(&clock.ntp.to_be_bytes());
        writer.put(&clock.rtp.to_be_bytes());
        writer.put(&micros(clock.age));
    }
    writer.finish()
}

/// Writes a ping.
pub fn write_ping(buffer: &mut [u8], number: u64) -> usize {
    let mut writer = Writer::new(buffer, PING);
    writer.put(&number.to_be_bytes());
    writer.finish()
}

/// Writes the answer to a ping.
pub fn write_pong(buffer: &mut [u8], number: u64) -> usize {
    let mut writer = Writer::new(buffer, PONG);
    writer.put(&number.to_be_bytes());
    writer.finish()
}

/// Writes a client's datagram; returns the length, 0 if it does not fit.
pub fn write_on_loan(buffer: &mut [u8], loan: &OnLoan, datagram: &[u8]) -> usize {
    let kind = match loan.way {
        Way::Up => CLIENT_UP,
        Way::Down => CLIENT_DOWN,
        Way::Done => CLIENT_DONE,
    };
    let mut writer = Writer::new(buffer, kind);
    writer.put(&loan.head());
    writer.put(datagram);
    writer.finish()
}

fn flag(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

fn micros(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_micros())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    /// `Some(None)`: not there and not expected; `None`: expected but truncated.
    fn flagged<const N: usize>(&mut self, is_there: u8) -> Option<Option<[u8; N]>> {
        if is_there == 0 {
            Some(None)
        } else {
            self.array().map(Some)
        }
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn track(&mut self) -> Option<TrackRef> {
        Some(TrackRef {
            hash: self.u64()?,
            epoch: self.u64()?,
        })
    }
}

struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    fits: bool,
}

impl<'a> Writer<'a> {
    fn new(buffer: &'a mut [u8], kind: u8) -> Self {
        let mut writer = Self {
            buffer,
            len: 0,
            fits: true,
        };
        writer.put(&[kind]);
        writer
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        match self.buffer.get_mut(self.len..end) {
            Some(slot) => {
                slot.copy_from_slice(bytes);
                self.len = end;
            }
            None => self.fits = false,
        }
    }

    fn track(&mut self, track: TrackRef) {
        self.put(&track.hash.to_be_bytes());
        self.put(&track.epoch.to_be_bytes());
    }

    fn finish(self) -> usize {
        if self.fits { self.len } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACK: TrackRef = TrackRef {
        hash: 0x0102_0304_0506_0708,
        epoch: 9,
    };

    #[test]
    fn media_survives() {
        for flags in 0..8_u8 {
            let media = Media {
                track: TRACK,
                layer: 2,
                generation: 200,
                codec: Codec::Vp8,
                clock_rate: 90_000,
                marker: flags & 1 != 0,
                is_repair: flags & 2 != 0,
                carried: Carried {
                    audio_level: (flags & 1 != 0).then_some(7),
                    video_orientation: (flags & 2 != 0).then_some(3),
                    playout_delay: (flags & 4 != 0).then_some([1, 2, 3]),
                },
                sequence: 70_000,
                timestamp: u32::MAX,
                age: Duration::from_micros(1_234),
            };
            let mut buffer = [0; 100];
            let len = write_media(&mut buffer, &media, b"payload");
            let Ok(Message::Media(read, payload)) = parse(&buffer[..len]) else {
                panic!("not media");
            };
            assert_eq!(read, media);
            assert_eq!(payload, b"payload");
            assert_eq!(write_media(&mut buffer[..40], &media, b"payload"), 0);
        }
    }

    #[test]
    fn status_wants_and_pings_survive() {
        let mut buffer = [0; 1_200];
        let clock = Clock {
            layer: 1,
            ntp: 5,
            rtp: 6,
            age: Duration::from_millis(7),
        };
        for clock in [None, Some(clock)] {
            let status = Status {
                track: TRACK,
                live: 5,
                is_muted: clock.is_none(),
                clock,
            };
            let len = write_status(&mut buffer, &status);
            assert!(matches!(parse(&buffer[..len]), Ok(Message::Status(read)) if read == status));
        }
        let want = Want {
            track: TRACK,
            layers: 4,
            key_frames: 4,
            quality: 2,
            fraction_lost: 12,
        };
        let len = write_wants(&mut buffer, &[want; WANTS_MAX + 3]);
        let Ok(Message::Want(wants)) = parse(&buffer[..len]) else {
            panic!("not wants");
        };
        assert_eq!(wants.collect::<Vec<_>>(), vec![want; WANTS_MAX]);
        let len = write_ping(&mut buffer, 77);
        assert!(matches!(parse(&buffer[..len]), Ok(Message::Ping(77))));
        let len = write_pong(&mut buffer, 78);
        assert!(matches!(parse(&buffer[..len]), Ok(Message::Pong(78))));
    }

    proptest! {
        #[test]
        fn any_nack_list_survives(start in 0_u64..1 << 40, steps in proptest::collection::vec(1_u64..60, 1..100)) {
            let mut next = start;
            let sequences: Vec<u64> = steps.iter().map(|step| { next += step; next }).collect();
            let mut buffer = [0; 1_200];
            let (len, taken) = write_nack(&mut buffer, TRACK, 1, &sequences);
            prop_assert!(taken > 0);
            let Ok(Message::Nack { track: TRACK, layer: 1, sequences: read }) = parse(&buffer[..len]) else {
                return Err(TestCaseError::fail("not a NACK"));
            };
            let mut all = vec![];
            read.for_each(|sequence| all.push(sequence));
            let expected: Vec<u32> = sequences[..taken].iter().map(|s| *s as u32).collect();
            prop_assert_eq!(all, expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(kind in 0_u8..11, mut bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            match parse(&bytes) {
                Ok(Message::Want(wants)) => { wants.count(); }
                Ok(Message::Nack { sequences, .. }) => sequences.for_each(|_| ()),
                _ => (),
            }
        }
    }
}
