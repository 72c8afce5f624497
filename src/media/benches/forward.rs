//! What forwarding a packet costs: the router, header rewriting and SRTP, without the kernel.
//!
//! One publisher, 1 to 800 subscribers, frames of eight packets of 1,200 bytes; each forwarded packet
//! is sealed with its subscriber's own key in the transmit queue, as the engine does. Prints the
//! nanoseconds per forwarded packet, the best of several runs, since the machine is shared.
//!
//! `cargo bench -p flotilla-media --bench forward`

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotilla_media::command::{PeerId, Settings};
use flotilla_media::forward::parameters::{
    ExtensionIds, Feedback, ReceiveCodec, ReceiveSection, SendSection,
};
use flotilla_media::forward::subscription::HOT_LEN;
use flotilla_media::forward::{Router, RouterConfig, Wire};
use flotilla_media::index::IdMap;
use flotilla_media::peer::srtp::{Profile, RTP_OVERHEAD_MAX, SrtpSender, server_ends};
use flotilla_media::rtp::packet::{Fields, HEADER_LEN};
use flotilla_media::transmit::TransmitQueue;
use flotilla_model::id::{BootId, Epoch, NodeId};
use flotilla_model::track::{Encryption, Kind, Source, Track};
use flotilla_model::unit::Size;

const PUBLISHER: PeerId = PeerId(1);
const PAYLOAD_LEN: usize = 1_180;
const PACKETS_PER_FRAME: usize = 8;
const RUNS: usize = 9;
/// Forwarded packets per run: a few milliseconds, short enough to fall between others' slices.
const FORWARDED_PER_RUN: usize = 24_000;

/// Seals into a queue, like the engine.
struct Sealing {
    senders: IdMap<PeerId, (SocketAddr, Option<SrtpSender>)>,
    queue: TransmitQueue,
    sent: usize,
}

impl Wire for Sealing {
    fn send_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        let Some((to, sender)) = self.senders.get_mut(&peer) else {
            return;
        };
        self.sent += 1;
        self.queue.push_with(*to, |buffer| {
            let room = buffer.len() - RTP_OVERHEAD_MAX;
            let len = write(&mut buffer[..room]);
            match sender {
                Some(sender) if len > 0 => sender.protect_rtp(buffer, len).unwrap_or(0),
                _ => len,
            }
        });
    }

    fn is_full(&self) -> bool {
        self.queue.is_nearly_full()
    }

    fn send_rtcp(&mut self, _: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut buffer = [0; 1_472];
        black_box(write(&mut buffer));
    }

    fn send_relay(&mut self, _: SocketAddr, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut buffer = [0; 1_472];
        black_box(write(&mut buffer));
    }
}

struct Bench {
    now: Instant,
    router: Router,
    wire: Sealing,
    sequence: u16,
    timestamp: u32,
    packet: Vec<u8>,
}

impl Bench {
    fn new(start: Instant, subscribers: u64, profile: Option<Profile>) -> Self {
        let config = RouterConfig {
            node: NodeId(1),
            boot: BootId(1),
            shard: 0,
            counters_from: 0,
            relay_secret: [1; 32],
            seed: [2; 32],
        };
        let mut router = Router::new(start, config);
        router.publish(start, PUBLISHER, &track(), Epoch(1));
        router.set_receive(start, PUBLISHER, vec![receive_section()]);
        let mut senders = IdMap::default();
        for index in 0..subscribers {
            let peer = PeerId(2 + index);
            router.subscribe(start, peer, &"TR_v".into(), Settings::default());
            router.set_send(start, peer, vec![send_section(index as u32)]);
            router.peer_connected(start, peer);
            let to = SocketAddr::from(([10, 0, (index >> 8) as u8, index as u8], 5_000));
            senders.insert(peer, (to, profile.map(|profile| sender(profile, index))));
        }
        let mut packet = vec![0; HEADER_LEN];
        packet.extend_from_slice(&[0xbe, 0xde, 0, 1, 0x31, 0, 0, 0]);
        packet.extend_from_slice(&[0x5a; PAYLOAD_LEN]);
        Self {
            now: start,
            router,
            wire: Sealing {
                senders,
                queue: TransmitQueue::new(256),
                sent: 0,
            },
            sequence: 0,
            timestamp: 0,
            packet,
        }
    }

    fn frame(&mut self, is_key: bool) {
        self.now += Duration::from_millis(33);
        self.timestamp = self.timestamp.wrapping_add(2_970);
        for part in 0..PACKETS_PER_FRAME {
            self.sequence = self.sequence.wrapping_add(1);
            let fields = Fields {
                marker: part + 1 == PACKETS_PER_FRAME,
                payload_type: 96,
                sequence: self.sequence,
                timestamp: self.timestamp,
                ssrc: 1_000,
            };
            if let Some(header) = self.packet.first_chunk_mut() {
                fields.write(header, true);
            }
            self.packet[17..19].copy_from_slice(&self.sequence.to_be_bytes());
            let first = if part == 0 { 0x90 } else { 0x80 };
            let [high, low] = (self.timestamp as u16 | 0x8000).to_be_bytes();
            let descriptor = [first, 0x80, high, low, u8::from(!is_key)];
            self.packet[20..25].copy_from_slice(&descriptor);
            let result =
                self.router
                    .handle_rtp(self.now, PUBLISHER, &mut self.packet, &mut self.wire);
            assert_eq!(result, Ok(()));
        }
        while !self.router.forward(&mut self.wire) {
            black_box(self.wire.queue.arena());
            self.wire.queue.clear();
        }
        if self.router.deadline().is_some_and(|at| at <= self.now) {
            self.router.handle_timeout(self.now, &mut self.wire);
        }
        while self.router.poll_event().is_some() {}
    }

    /// Nanoseconds per forwarded packet.
    fn run(&mut self, clock: impl Fn() -> Instant) -> f64 {
        let subscribers = self.wire.senders.len();
        let frames = (FORWARDED_PER_RUN / subscribers / PACKETS_PER_FRAME).max(4);
        let frames = frames.min(1_000);
        let before = self.wire.sent;
        let start = clock();
        for _ in 0..frames {
            self.frame(false);
        }
        let passed = clock() - start;
        let sent = self.wire.sent - before;
        assert_eq!(sent, frames * PACKETS_PER_FRAME * subscribers);
        passed.as_nanos() as f64 / sent as f64
    }
}

fn track() -> Track {
    Track {
        sid: "TR_v".into(),
        kind: Kind::Video,
        name: String::new(),
        source: Source::Camera,
        muted: false,
        size: Size::default(),
        simulcast: false,
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

fn receive_section() -> ReceiveSection {
    ReceiveSection {
        mid: "0".to_owned(),
        track: "TR_v".into(),
        kind: Kind::Video,
        codecs: vec![ReceiveCodec {
            pt: 96,
            rtx_pt: Some(97),
            mime: "video/vp8".to_owned(),
            clock_rate: 90_000,
            ..ReceiveCodec::default()
        }],
        extensions: ExtensionIds {
            twcc: Some(3),
            ..ExtensionIds::default()
        },
        rids: vec![],
        ssrcs: vec![(1_000, Some(1_001))],
        learned: vec![],
        feedback: Feedback {
            nack: true,
            pli: true,
            twcc: true,
            remb: true,
        },
    }
}

fn send_section(index: u32) -> SendSection {
    SendSection {
        mid: "1".to_owned(),
        track: "TR_v".into(),
        kind: Kind::Video,
        pt: 96,
        rtx_pt: Some(97),
        ssrc: 10_000 + index * 2,
        rtx_ssrc: 10_001 + index * 2,
        extensions: ExtensionIds {
            mid: Some(4),
            abs_send_time: Some(2),
            ..ExtensionIds::default()
        },
        mime: "video/vp8".to_owned(),
        clock_rate: 90_000,
        fmtp: String::new(),
    }
}

fn sender(profile: Profile, index: u64) -> SrtpSender {
    let mut material = vec![0; profile.material_len()];
    for (place, byte) in material.iter_mut().enumerate() {
        *byte = (index as usize * 31 + place * 7) as u8;
    }
    let (sender, _) = server_ends(profile, &material).expect("the profile's own length");
    sender
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn main() {
    let profiles = [
        ("no SRTP", None),
        ("AES-128-GCM", Some(Profile::Aes128Gcm)),
        ("AES-CM, SHA1", Some(Profile::Aes128CmSha1_80)),
    ];
    println!("ns per forwarded packet (1,200 bytes; hot record {HOT_LEN} bytes), best of {RUNS}");
    print!("{:>12}", "subscribers");
    for (name, _) in profiles {
        print!("{name:>15}");
    }
    println!();
    for subscribers in [1, 50, 250, 800] {
        print!("{subscribers:>12}");
        for (_, profile) in profiles {
            let mut bench = Bench::new(Instant::now(), subscribers, profile);
            // Two frames start everybody: the first makes the layer live, the second is a key
            // frame for all.
            bench.frame(true);
            bench.frame(true);
            let best = (0..RUNS)
                .map(|_| bench.run(Instant::now))
                .fold(f64::INFINITY, f64::min);
            print!("{best:>15.0}");
        }
        println!();
    }
}
