//! Clients as the tests need them: a publisher with simulcast, repair and key frames on request,
//! and a subscriber that asks for what it lacks and judges every frame it gets.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use flotilla_model::track::{Encryption, Kind, Quality, Source, Track as TrackInfo};
use flotilla_model::unit::Size;

use crate::codec::vp8;
use crate::command::{PeerId, Settings};
use crate::forward::parameters::{
    ExtensionIds, Feedback, ReceiveCodec, ReceiveSection, SendSection,
};
use crate::rtp::packet::{Fields, HEADER_LEN, Header};
use crate::rtp::rtcp::{self, Packet, ReportBlock, SenderInfo, Writer};
use crate::rtp::sequence::{distance_32, extend_16, first_extended};

pub(super) const IDS: ExtensionIds = ExtensionIds {
    mid: Some(4),
    rid: Some(10),
    repaired_rid: Some(11),
    audio_level: Some(1),
    twcc: Some(3),
    abs_send_time: Some(2),
    video_orientation: None,
    playout_delay: None,
};

/// Wall time of the publishers' clock at the start of the world, 32.32 seconds.
const NTP_START: u64 = 3_900_000_000 << 32;

pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    pub(super) is_rtcp: bool,
}

/// One encoding.
pub(super) struct Encoding {
    rid: &'static str,
    ssrc: u32,
    rtx_ssrc: u32,
    packets_per_frame: u16,
    sequence: u16,
    rtx_sequence: u16,
    timestamp_start: u32,
    picture: u16,
    tl0: u8,
    needs_key_frame: bool,
    pub(super) is_paused: bool,
    history: VecDeque<(u16, Vec<u8>)>,
    pub(super) plis: Vec<Instant>,
    pub(super) nacked: u64,
    pub(super) reports: u64,
}

pub(super) struct Publisher {
    pub(super) peer: PeerId,
    pub(super) info: TrackInfo,
    pub(super) section: ReceiveSection,
    pub(super) encodings: Vec<Encoding>,
    has_rtx: bool,
    /// Sends rid and mid; stops at the first RTCP.
    names_itself: bool,
    /// Sends the repaired rid on retransmissions.
    pub(super) names_repair: bool,
    pub(super) sends_reports: bool,
    pub(super) is_stopped: bool,
    frame: u32,
    twcc: u16,
    next_frame: Option<Instant>,
    next_report: Option<Instant>,
    out: Vec<Outgoing>,
    pub(super) twcc_reported: u64,
    pub(super) remb: Option<u64>,
    pub(super) audio_level: Option<u8>,
    start: Option<Instant>,
    /// Padding-only packets after each frame.
    pub(super) padding: u16,
}

pub(super) fn track_info(sid: &str, kind: Kind) -> TrackInfo {
    TrackInfo {
        sid: sid.into(),
        kind,
        name: String::new(),
        source: Source::Camera,
        muted: false,
        size: Size::default(),
        simulcast: kind == Kind::Video,
        disable_dtx: false,
        stereo: false,
        disable_red: false,
        encryption: Encryption::None,
        stream: String::new(),
        audio_features: vec![],
        backup_codec_policy: 0,
        codecs: vec![],
        announced: true,
    }
}

impl Publisher {
    /// Simulcast video with three layers.
    pub(super) fn video(peer: u64, sid: &str, has_rtx: bool) -> Self {
        let layers = [("q", 1), ("h", 3), ("f", 7)];
        let mut publisher = Self::new(peer, sid, Kind::Video, has_rtx);
        publisher.section.rids = layers.iter().map(|(rid, _)| (*rid).to_owned()).collect();
        publisher.encodings = layers
            .iter()
            .enumerate()
            .map(|(index, (rid, packets))| {
                Encoding::new(rid, peer as u32 * 1_000 + index as u32 * 10 + 1, *packets)
            })
            .collect();
        publisher
    }

    /// One video layer with declared SSRCs.
    pub(super) fn single(peer: u64, sid: &str) -> Self {
        let mut publisher = Self::new(peer, sid, Kind::Video, true);
        let encoding = Encoding::new("", peer as u32 * 1_000, 5);
        publisher.section.ssrcs = vec![(encoding.ssrc, Some(encoding.rtx_ssrc))];
        publisher.encodings = vec![encoding];
        publisher
    }

    /// Sound, a packet every 20 ms.
    pub(super) fn audio(peer: u64, sid: &str) -> Self {
        let mut publisher = Self::new(peer, sid, Kind::Audio, false);
        let encoding = Encoding::new("", peer as u32 * 1_000, 1);
        publisher.section.ssrcs = vec![(encoding.ssrc, None)];
        publisher.encodings = vec![encoding];
        publisher
    }

    fn new(peer: u64, sid: &str, kind: Kind, has_rtx: bool) -> Self {
        let codec = match kind {
            Kind::Video => ReceiveCodec {
                pt: 96,
                rtx_pt: has_rtx.then_some(97),
                mime: "video/vp8".to_owned(),
                clock_rate: 90_000,
                ..ReceiveCodec::default()
            },
            Kind::Audio => ReceiveCodec {
                pt: 111,
                rtx_pt: None,
                mime: "audio/opus".to_owned(),
                clock_rate: 48_000,
                channels: 2,
                ..ReceiveCodec::default()
            },
        };
        Self {
            peer: PeerId(peer),
            info: track_info(sid, kind),
            section: ReceiveSection {
                mid: "1".to_owned(),
                track: sid.into(),
                kind,
                codecs: vec![codec],
                extensions: IDS,
                rids: vec![],
                ssrcs: vec![],
                learned: vec![],
                feedback: Feedback {
                    nack: true,
                    pli: true,
                    twcc: true,
                    remb: true,
                },
            },
            encodings: vec![],
            has_rtx,
            names_itself: true,
            names_repair: true,
            sends_reports: true,
            is_stopped: false,
            frame: 0,
            twcc: 60_000,
            next_frame: None,
            next_report: None,
            out: vec![],
            twcc_reported: 0,
            remb: None,
            audio_level: None,
            start: None,
            padding: 0,
        }
    }

    pub(super) fn step(&mut self, now: Instant, start: Instant) -> Vec<Outgoing> {
        self.start = Some(start);
        if !self.is_stopped && self.next_frame.is_none_or(|at| at <= now) {
            let interval = match self.info.kind {
                Kind::Video => 33,
                Kind::Audio => 20,
            };
            self.next_frame = Some(now + Duration::from_millis(interval));
            self.frame += 1;
            for index in 0..self.encodings.len() {
                if !self.encodings[index].is_paused {
                    self.send_frame(now, index);
                }
            }
        }
        if self.sends_reports && self.next_report.is_none_or(|at| at <= now) {
            if self.next_report.is_some() && !self.is_stopped {
                self.send_reports(now);
            }
            self.next_report = Some(now + Duration::from_millis(700));
        }
        std::mem::take(&mut self.out)
    }

    fn clock_rate(&self) -> u32 {
        self.section.codecs[0].clock_rate
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start.expect("stepped"))
    }

    fn timestamp(&self, now: Instant, index: usize) -> u32 {
        let ticks = self.elapsed(now).as_millis() as u32 * (self.clock_rate() / 1_000);
        self.encodings[index].timestamp_start.wrapping_add(ticks)
    }

    fn send_frame(&mut self, now: Instant, index: usize) {
        let timestamp = self.timestamp(now, index);
        let captured = self.elapsed(now).as_millis() as u32;
        let frame = self.frame;
        let kind = self.info.kind;
        let encoding = &mut self.encodings[index];
        let is_key = std::mem::take(&mut encoding.needs_key_frame) || kind == Kind::Audio;
        encoding.picture = (encoding.picture + 1) & 0x7fff;
        let is_base = is_key || frame.is_multiple_of(2);
        encoding.tl0 = encoding.tl0.wrapping_add(u8::from(is_base));
        let count = encoding.packets_per_frame * if is_key { 2 } else { 1 };
        for part in 0..count {
            let mut payload = vec![];
            if kind == Kind::Video {
                let encoding = &self.encodings[index];
                let [high, low] = (encoding.picture | 0x8000).to_be_bytes();
                let first = if part == 0 { 0x90 } else { 0x80 };
                payload.extend_from_slice(&[first, 0xe0, high, low, encoding.tl0]);
                payload.push(if is_base { 0 } else { 0x40 });
                payload.extend_from_slice(&[u8::from(!is_key), 0, 0]);
                if is_key && part == 0 {
                    payload.extend_from_slice(&[0x9d, 0x01, 0x2a]);
                    payload.extend_from_slice(&(160_u16 << index).to_le_bytes());
                    payload.extend_from_slice(&(90_u16 << index).to_le_bytes());
                }
            } else {
                payload.push(0xfc); // CELT, 20 ms
            }
            payload.extend_from_slice(&frame.to_be_bytes());
            payload.extend_from_slice(&part.to_be_bytes());
            payload.extend_from_slice(&count.to_be_bytes());
            payload.extend_from_slice(&[index as u8, u8::from(is_key)]);
            payload.extend_from_slice(&captured.to_be_bytes());
            self.send_packet(index, timestamp, part + 1 == count, &payload);
        }
        for _ in 0..self.padding {
            self.send_packet(index, timestamp, false, &[]);
        }
    }

    fn send_packet(&mut self, index: usize, timestamp: u32, marker: bool, payload: &[u8]) {
        let encoding = &mut self.encodings[index];
        encoding.sequence = encoding.sequence.wrapping_add(1);
        let fields = Fields {
            marker,
            payload_type: self.section.codecs[0].pt,
            sequence: encoding.sequence,
            timestamp,
            ssrc: encoding.ssrc,
        };
        if !payload.is_empty() {
            let kept = build(fields, &[], payload);
            encoding.history.push_back((encoding.sequence, kept));
            if encoding.history.len() > 1_000 {
                encoding.history.pop_front();
            }
        }
        let rid = encoding.rid;
        let mut elements = vec![(3, self.next_twcc())];
        if self.names_itself {
            elements.push((4, b"1".to_vec()));
            if !rid.is_empty() {
                elements.push((10, rid.as_bytes().to_vec()));
            }
        }
        if let Some(level) = self.audio_level {
            elements.push((1, vec![level]));
        }
        let mut bytes = build(fields, &elements, payload);
        if payload.is_empty() {
            bytes[0] |= 0x20;
            bytes.extend_from_slice(&[0, 0, 0, 4]);
        }
        self.out.push(Outgoing {
            bytes,
            is_rtcp: false,
        });
    }

    fn next_twcc(&mut self) -> Vec<u8> {
        self.twcc = self.twcc.wrapping_add(1);
        self.twcc.to_be_bytes().to_vec()
    }

    fn send_reports(&mut self, now: Instant) {
        let elapsed = self.elapsed(now);
        for index in 0..self.encodings.len() {
            let info = SenderInfo {
                ntp: NTP_START + crate::receive::report::to_ntp(elapsed),
                rtp: self.timestamp(now, index),
                packets: 1,
                bytes: 1,
            };
            let ssrc = self.encodings[index].ssrc;
            let mut buffer = [0; 100];
            let mut writer = Writer::new(&mut buffer);
            writer.sender_report(ssrc, &info, &[]);
            let len = writer.len();
            self.out.push(Outgoing {
                bytes: buffer[..len].to_vec(),
                is_rtcp: true,
            });
        }
    }

    pub(super) fn receive_rtcp(&mut self, now: Instant, bytes: &[u8]) {
        self.names_itself = false;
        for packet in rtcp::packets(bytes) {
            match packet.expect("well formed") {
                Packet::Pli { media } => {
                    let encoding = self.encoding(media);
                    encoding.plis.push(now);
                    encoding.needs_key_frame = true;
                }
                Packet::Nack { media, pairs } => {
                    let mut sequences = vec![];
                    pairs.for_each_sequence(|sequence| sequences.push(sequence));
                    for sequence in sequences {
                        self.resend(media, sequence);
                    }
                }
                Packet::Twcc(whole) => {
                    crate::rtp::twcc::read(whole, |_, at| {
                        self.twcc_reported += u64::from(at.is_some());
                    });
                }
                Packet::ReceiverReport { blocks, .. } => {
                    for block in blocks {
                        self.encoding(block.ssrc).reports += 1;
                    }
                }
                Packet::Remb { bitrate_bps, .. } => self.remb = Some(bitrate_bps),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn encoding(&mut self, ssrc: u32) -> &mut Encoding {
        self.encodings
            .iter_mut()
            .find(|encoding| encoding.ssrc == ssrc)
            .expect("feedback about a stream that exists")
    }

    fn resend(&mut self, media: u32, sequence: u16) {
        let has_rtx = self.has_rtx;
        let names_repair = self.names_repair;
        let stamp = self.next_twcc();
        let encoding = self.encoding(media);
        encoding.nacked += 1;
        let Some((_, kept)) = encoding
            .history
            .iter()
            .find(|(known, _)| *known == sequence)
        else {
            return;
        };
        let header = Header::parse(kept).expect("own packet");
        let mut fields = Fields {
            marker: header.marker,
            payload_type: header.payload_type,
            sequence,
            timestamp: header.timestamp,
            ssrc: encoding.ssrc,
        };
        let mut payload = kept[header.payload].to_vec();
        let mut elements = vec![(3, stamp)];
        if has_rtx {
            encoding.rtx_sequence = encoding.rtx_sequence.wrapping_add(1);
            fields.payload_type = 97;
            fields.sequence = encoding.rtx_sequence;
            fields.ssrc = encoding.rtx_ssrc;
            payload.splice(0..0, sequence.to_be_bytes());
            if names_repair && !encoding.rid.is_empty() {
                elements.push((4, b"1".to_vec()));
                elements.push((11, encoding.rid.as_bytes().to_vec()));
            }
        }
        let bytes = build(fields, &elements, &payload);
        self.out.push(Outgoing {
            bytes,
            is_rtcp: false,
        });
    }
}

impl Encoding {
    fn new(rid: &'static str, ssrc: u32, packets_per_frame: u16) -> Self {
        Self {
            rid,
            ssrc,
            rtx_ssrc: ssrc + 1,
            packets_per_frame,
            sequence: (ssrc as u16).wrapping_mul(40_503),
            rtx_sequence: 7,
            timestamp_start: ssrc.wrapping_mul(0x9e37_79b9),
            picture: (ssrc as u16).wrapping_mul(911) & 0x7fff,
            tl0: ssrc as u8,
            needs_key_frame: true,
            is_paused: false,
            history: VecDeque::new(),
            plis: vec![],
            nacked: 0,
            reports: 0,
        }
    }
}

fn build(fields: Fields, elements: &[(u8, Vec<u8>)], payload: &[u8]) -> Vec<u8> {
    let mut head = [0; HEADER_LEN];
    fields.write(&mut head, !elements.is_empty());
    let mut bytes = head.to_vec();
    if !elements.is_empty() {
        let mut block = vec![];
        for (id, value) in elements {
            block.push(id << 4 | (value.len() - 1) as u8);
            block.extend_from_slice(value);
        }
        block.resize(block.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(&[0xbe, 0xde, 0, (block.len() / 4) as u8]);
        bytes.extend_from_slice(&block);
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A media packet as a subscriber got it.
#[derive(Clone, Debug)]
struct Got {
    timestamp: u32,
    marker: bool,
    payload: Vec<u8>,
}

/// A frame put together by a subscriber.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) layer: u8,
    pub(super) is_key: bool,
    pub(super) number: u32,
    pub(super) captured_ms: u32,
    timestamp: u32,
    picture: Option<(u16, u8)>,
    is_complete: bool,
}

pub(super) struct Subscriber {
    pub(super) peer: PeerId,
    pub(super) section: SendSection,
    pub(super) settings: Settings,
    packets: BTreeMap<u64, Got>,
    highest: Option<u64>,
    missing: BTreeMap<u64, (Instant, u32)>,
    pub(super) uses_nack: bool,
    /// Sends a PLI this often.
    pub(super) pli_every: Option<Duration>,
    next_pli: Option<Instant>,
    next_report: Option<Instant>,
    pub(super) sender_reports: Vec<(Instant, SenderInfo)>,
    /// Bandwidth it claims.
    pub(super) remb: Option<u64>,
    /// Packets per sending number, as on the wire: none may differ from an earlier one.
    by_sequence: BTreeMap<(u32, u16), Vec<u8>>,
    pub(super) arrived: Vec<(Instant, u32)>,
}

impl Subscriber {
    pub(super) fn new(peer: u64, sid: &str, kind: Kind, has_rtx: bool) -> Self {
        Self {
            peer: PeerId(peer),
            section: SendSection {
                mid: "5".to_owned(),
                track: sid.into(),
                kind,
                pt: match kind {
                    Kind::Video => 120,
                    Kind::Audio => 111,
                },
                rtx_pt: (has_rtx && kind == Kind::Video).then_some(121),
                ssrc: peer as u32 * 1_000 + 7,
                rtx_ssrc: peer as u32 * 1_000 + 8,
                extensions: IDS,
                mime: match kind {
                    Kind::Video => "video/VP8".to_owned(),
                    Kind::Audio => "audio/opus".to_owned(),
                },
                clock_rate: 90_000,
                fmtp: String::new(),
            },
            settings: Settings::default(),
            packets: BTreeMap::new(),
            highest: None,
            missing: BTreeMap::new(),
            uses_nack: true,
            pli_every: None,
            next_pli: None,
            next_report: None,
            sender_reports: vec![],
            remb: None,
            by_sequence: BTreeMap::new(),
            arrived: vec![],
        }
    }

    pub(super) fn with_quality(mut self, quality: Quality) -> Self {
        self.settings.quality = quality;
        self
    }

    pub(super) fn receive_rtp(&mut self, now: Instant, bytes: &[u8]) {
        let header = Header::parse(bytes).expect("well formed");
        let key = (header.ssrc, header.sequence);
        let known = self
            .by_sequence
            .entry(key)
            .or_insert_with(|| bytes.to_vec());
        assert_eq!(known, bytes, "one index protects two different packets");
        let mut payload = &bytes[header.payload.clone()];
        let mut sequence = header.sequence;
        if header.ssrc == self.section.rtx_ssrc {
            assert_eq!(Some(header.payload_type), self.section.rtx_pt);
            let (original, rest) = payload.split_first_chunk().expect("original number");
            sequence = u16::from_be_bytes(*original);
            payload = rest;
        } else {
            assert_eq!(header.payload_type, self.section.pt);
            assert_eq!(header.ssrc, self.section.ssrc);
        }
        let number = self
            .highest
            .map_or_else(|| first_extended(sequence), |h| extend_16(h, sequence));
        self.arrived.push((now, header.timestamp));
        if let Some(highest) = self.highest {
            for missing in highest + 1..number {
                self.missing.insert(missing, (now, 0));
            }
        }
        self.missing.remove(&number);
        self.highest = Some(self.highest.map_or(number, |highest| highest.max(number)));
        self.packets.entry(number).or_insert_with(|| Got {
            timestamp: header.timestamp,
            marker: header.marker,
            payload: payload.to_vec(),
        });
    }

    pub(super) fn receive_rtcp(&mut self, now: Instant, bytes: &[u8]) {
        for packet in rtcp::packets(bytes) {
            match packet.expect("well formed") {
                Packet::SenderReport { ssrc, info, .. } => {
                    assert_eq!(ssrc, self.section.ssrc);
                    self.sender_reports.push((now, info));
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub(super) fn step(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut out = vec![];
        let (sender, media) = (99, self.section.ssrc);
        let mut rtcp = |build: &dyn Fn(&mut Writer<'_>)| {
            let mut buffer = [0; 1_200];
            let mut writer = Writer::new(&mut buffer);
            build(&mut writer);
            let len = writer.len();
            out.push(buffer[..len].to_vec());
        };
        if self.uses_nack {
            let mut due = vec![];
            self.missing.retain(|number, (at, tries)| {
                if now.saturating_duration_since(*at) > Duration::from_millis(60) && *tries > 0
                    || *tries == 0 && now.saturating_duration_since(*at) > Duration::from_millis(15)
                {
                    due.push(*number as u16);
                    *at = now;
                    *tries += 1;
                }
                *tries < 12
            });
            if !due.is_empty() {
                rtcp(&|writer| {
                    writer.nack(sender, media, &due);
                });
            }
        }
        if self.next_report.is_none_or(|at| at <= now) {
            self.next_report = Some(now + Duration::from_millis(500));
            if let Some(highest) = self.highest {
                let last = self.sender_reports.last();
                let block = ReportBlock {
                    ssrc: media,
                    highest_sequence: highest as u32,
                    last_report: last.map_or(0, |(_, info)| (info.ntp >> 16) as u32),
                    delay: last.map_or(0, |(at, _)| {
                        (crate::receive::report::to_ntp(now - *at) >> 16) as u32
                    }),
                    ..ReportBlock::default()
                };
                let remb = self.remb;
                rtcp(&|writer| {
                    writer.receiver_report(sender, &[block]);
                    if let Some(remb) = remb {
                        writer.remb(sender, remb, &[media]);
                    }
                });
            }
        }
        if let Some(every) = self.pli_every
            && self.next_pli.is_none_or(|at| at <= now)
        {
            self.next_pli = Some(now + every);
            rtcp(&|writer| {
                writer.pli(sender, media);
            });
        }
        out
    }

    /// Share of sequence numbers that arrived, the last half second left out.
    pub(super) fn delivered(&self) -> f64 {
        let first = *self.packets.keys().next().expect("something arrived");
        let last = *self.packets.keys().next_back().expect("something arrived");
        let end = last.saturating_sub(100).max(first + 1);
        let got = self.packets.range(first..end).count();
        got as f64 / (end - first) as f64
    }

    pub(super) fn packets(&self) -> usize {
        self.packets.len()
    }

    /// Sequence numbers never received between the first and the last.
    pub(super) fn gaps(&self) -> usize {
        let first = self.packets.keys().next().copied().unwrap_or(0);
        let last = self.packets.keys().next_back().copied().unwrap_or(0);
        (last - first + 1) as usize - self.packets.len()
    }

    /// Puts frames together in order of sequence numbers.
    pub(super) fn frames(&self) -> Vec<Frame> {
        let mut frames: Vec<Frame> = vec![];
        let mut parts = 0;
        for got in self.packets.values() {
            let Some((descriptor, tail)) = parse(&got.payload) else {
                continue;
            };
            let [
                n0,
                n1,
                n2,
                n3,
                p0,
                p1,
                c0,
                c1,
                layer,
                is_key,
                t0,
                t1,
                t2,
                t3,
            ] = tail;
            let part = u16::from_be_bytes([p0, p1]);
            let count = u16::from_be_bytes([c0, c1]);
            let is_new = frames
                .last()
                .is_none_or(|frame| frame.timestamp != got.timestamp);
            if is_new {
                parts = 0;
                frames.push(Frame {
                    layer,
                    is_key: is_key == 1,
                    number: u32::from_be_bytes([n0, n1, n2, n3]),
                    captured_ms: u32::from_be_bytes([t0, t1, t2, t3]),
                    timestamp: got.timestamp,
                    picture: descriptor.map(|d| (d.picture_id, d.tl0)),
                    is_complete: false,
                });
            }
            let frame = frames.last_mut().expect("just pushed");
            assert_eq!(frame.layer, layer, "a frame mixes layers");
            if part == parts {
                parts += 1;
            }
            assert_eq!(got.marker, part + 1 == count, "marker");
            frame.is_complete = parts == count;
        }
        frames
    }

    /// The judge: what a decoder needs holds for every frame. Returns the frames.
    pub(super) fn judge(&self) -> Vec<Frame> {
        let frames = self.frames();
        assert!(!frames.is_empty(), "nothing arrived");
        assert!(frames[0].is_key, "starts without a key frame");
        // Nobody misses what was lost before the first packet: a decoder asks for another key frame.
        let first = self.packets.values().next();
        let part = first
            .and_then(|got| parse(&got.payload))
            .map(|(_, tail)| [tail[4], tail[5]]);
        let begins_late = part != Some([0, 0]);
        for (index, pair) in frames.windows(2).enumerate() {
            let [before, after] = pair else {
                unreachable!()
            };
            assert!(
                distance_32(before.timestamp, after.timestamp) > 0,
                "time runs backwards: {before:?} {after:?}"
            );
            if before.layer != after.layer || after.number != before.number + 1 {
                assert!(
                    after.is_key,
                    "switches inside a sequence: {before:?} {after:?}"
                );
            } else {
                let is_excused = index == 0 && begins_late;
                assert!(before.is_complete || is_excused, "a hole: {before:?}");
            }
            if let (Some(before), Some(after)) = (before.picture, after.picture) {
                assert_eq!((before.0 + 1) & 0x7fff, after.0, "picture ids {pair:?}");
                let step = after.1.wrapping_sub(before.1);
                assert!(step <= 1, "TL0PICIDX jumps by {step}");
            }
        }
        frames
    }

    /// Greatest difference between the time that passed in the stream and at the camera, ms.
    pub(super) fn drift_ms(&self, clock_rate: u32) -> i64 {
        let frames = self.frames();
        let first = &frames[0];
        frames
            .iter()
            .map(|frame| {
                let stream = i64::from(distance_32(first.timestamp, frame.timestamp)) * 1_000
                    / i64::from(clock_rate);
                let camera = i64::from(frame.captured_ms) - i64::from(first.captured_ms);
                (stream - camera).abs()
            })
            .max()
            .unwrap_or(0)
    }

    pub(super) fn layers(&self) -> Vec<u8> {
        let mut layers: Vec<u8> = self.frames().iter().map(|frame| frame.layer).collect();
        layers.dedup();
        layers
    }
}

/// Splits a test payload into descriptor and tail.
fn parse(payload: &[u8]) -> Option<(Option<vp8::Descriptor>, [u8; 14])> {
    let tail = *payload.last_chunk::<14>()?;
    let descriptor = if payload[0] == 0xfc {
        None
    } else {
        vp8::Descriptor::parse(payload)
    };
    Some((descriptor, tail))
}
