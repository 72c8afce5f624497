//! Numbers, padding, late packets and retransmissions of one subscription.

use std::net::SocketAddr;

use flotilla_model::track::Kind;

use super::*;
use crate::forward::parameters::ExtensionIds;
use crate::forward::track::REORDER_CLIENT;
use crate::receive::nack::Origin;
use crate::receive::stream::{Arrival, Numbering};
use crate::rtp::extension::Carried;
use crate::rtp::packet::Header;

#[derive(Default)]
struct Recorder(Vec<Vec<u8>>);

impl Wire for Recorder {
    fn send_rtp(&mut self, _: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut buffer = [0; 1_472];
        let len = write(&mut buffer);
        self.0.push(buffer[..len].to_vec());
    }

    fn send_rtcp(&mut self, _: PeerId, _: impl FnOnce(&mut [u8]) -> usize) {}

    fn send_relay(&mut self, _: SocketAddr, _: impl FnOnce(&mut [u8]) -> usize) {}
}

struct Bench {
    now: Instant,
    stream: Stream,
    subscription: Subscription,
    wire: Recorder,
}

impl Bench {
    fn new(rtx_pt: Option<u8>) -> Self {
        let now = crate::test_epoch();
        let section = SendSection {
            mid: "0".to_owned(),
            track: "TR_a".into(),
            kind: Kind::Video,
            pt: 96,
            rtx_pt,
            ssrc: 1,
            rtx_ssrc: 2,
            extensions: ExtensionIds {
                mid: Some(4),
                abs_send_time: Some(2),
                ..ExtensionIds::default()
            },
            mime: "video/vp8".to_owned(),
            clock_rate: 90_000,
            fmtp: String::new(),
        };
        let start = Start {
            sequence: 99,
            repair_sequence: 500,
        };
        let mut subscription = Subscription::new(now, PeerId(1), Settings::default(), start);
        subscription.set_section(Some(&section), start);
        subscription.set_connected(true);
        Self {
            now,
            stream: Stream::new(Quality::High, REORDER_CLIENT),
            subscription,
            wire: Recorder::default(),
        }
    }

    /// Receives a packet and forwards (or starts with) it.
    fn take(&mut self, sequence: u16, payload: &[u8]) {
        self.now += Duration::from_millis(3);
        let arrival = Arrival {
            numbering: Numbering::Wire(sequence),
            timestamp: u32::from(sequence) * 10,
            marker: true,
            codec: Codec::Vp8,
            clock_rate: 90_000,
            carried: Carried::default(),
            origin: Origin::Unknown,
            arrived: self.now,
        };
        let accepted = self
            .stream
            .receive(self.now, &arrival, payload, true)
            .expect("fits");
        let (stored, payload) = self.stream.ring.get(accepted.sequence).expect("stored");
        let packet = Shared {
            stored,
            payload,
            abs_send_time: abs_send_time(self.now, stored.arrived),
        };
        if self.subscription.is_on(2, 0) {
            self.subscription.forward(&packet, &mut self.wire);
        } else if let Some(start) = accepted.key_frame_start {
            let stream = &self.stream;
            let epoch = self.now;
            self.subscription
                .switch(2, stream, None, start, epoch, &mut self.wire);
        }
    }

    fn ask(&mut self, sequence: u16) {
        self.now += Duration::from_millis(500);
        let ring = &self.stream.ring;
        let epoch = self.now;
        self.subscription.retransmit(
            self.now,
            sequence,
            epoch,
            Bitrate(1_000_000),
            |_, _| Some(ring),
            &mut self.wire,
        );
    }

    fn sent(&self) -> Vec<(u8, u16, usize)> {
        self.wire
            .0
            .iter()
            .map(|bytes| {
                let header = Header::parse(bytes).expect("well formed");
                (header.payload_type, header.sequence, header.payload.len())
            })
            .collect()
    }
}

const KEY: [u8; 8] = [0x90, 0x80, 0x05, 0x30, 0, 0, 0x9d, 0x01];
const DELTA: [u8; 8] = [0x90, 0x80, 0x06, 0x31, 0, 0, 0, 0];

#[test]
fn it_starts_at_a_key_frame_and_counts_on() {
    let mut bench = Bench::new(None);
    bench.take(1_000, &DELTA);
    bench.take(1_001, &KEY);
    bench.take(1_002, &DELTA);
    assert_eq!(bench.sent(), [(96, 100, 8), (96, 101, 8)]);
}

#[test]
fn padding_leaves_no_gap() {
    let mut bench = Bench::new(None);
    bench.take(1_000, &KEY);
    bench.take(1_001, &[]);
    bench.take(1_002, &[]);
    bench.take(1_003, &DELTA);
    bench.take(1_004, &[]);
    bench.take(1_005, &DELTA);
    assert_eq!(bench.sent(), [(96, 100, 8), (96, 101, 8), (96, 102, 8)]);
}

#[test]
fn padding_behind_a_gap_keeps_its_number() {
    let mut bench = Bench::new(None);
    bench.take(1_000, &KEY);
    bench.take(1_002, &[]);
    bench.take(1_003, &[]);
    bench.take(1_004, &DELTA);
    bench.take(1_001, &DELTA);
    assert_eq!(
        bench.sent(),
        [(96, 100, 8), (96, 102, 0), (96, 103, 8), (96, 101, 8)]
    );
}

#[test]
fn a_late_packet_of_an_earlier_segment_finds_its_number() {
    let mut bench = Bench::new(None);
    bench.take(1_000, &KEY);
    bench.take(1_002, &DELTA);
    bench.take(1_003, &[]);
    bench.take(1_004, &DELTA);
    bench.take(1_001, &DELTA);
    assert_eq!(
        bench.sent(),
        [(96, 100, 8), (96, 102, 8), (96, 103, 8), (96, 101, 8)]
    );
}

#[test]
fn a_retransmission_without_rtx_repeats_every_bit() {
    let mut bench = Bench::new(None);
    bench.take(1_000, &KEY);
    bench.take(1_001, &DELTA);
    bench.subscription.drop_mid();
    bench.take(1_002, &DELTA);
    for (index, sequence) in [100, 101, 102].into_iter().enumerate() {
        bench.ask(sequence);
        // The send time is the packet's own, so the fixture's moving epoch cancels out.
        let again = bench.wire.0.last().expect("sent");
        let first = &bench.wire.0[index];
        assert_eq!(again.len(), first.len());
        let without_time = |bytes: &[u8]| [&bytes[..17], &bytes[20..]].concat();
        assert_eq!(without_time(again), without_time(first));
    }
    let (with_mid, without) = (bench.wire.0[0].len(), bench.wire.0[2].len());
    assert!(without < with_mid);
    bench.ask(99);
    bench.ask(103);
    assert_eq!(bench.wire.0.len(), 6);
}

#[test]
fn with_rtx_a_retransmission_has_its_own_stream() {
    let mut bench = Bench::new(Some(97));
    bench.take(1_000, &KEY);
    bench.ask(100);
    bench.ask(100);
    assert_eq!(bench.sent(), [(96, 100, 8), (97, 500, 10), (97, 501, 10)]);
}

#[test]
fn a_pause_ends_what_is_sent_and_numbers_go_on() {
    let mut bench = Bench::new(None);
    bench.take(1_000, &KEY);
    bench.subscription.pause();
    bench.take(1_001, &DELTA);
    bench.take(1_002, &KEY);
    let sent = bench.sent();
    assert_eq!(sent, [(96, 100, 8), (96, 101, 8)]);
    let timestamps: Vec<u32> = bench
        .wire
        .0
        .iter()
        .map(|bytes| Header::parse(bytes).expect("well formed").timestamp)
        .collect();
    assert!(timestamps[1] > timestamps[0]);
}
