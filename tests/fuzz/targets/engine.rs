//! A media engine on a virtual clock between clients and another node, both played from a script.
//!
//! What they send is well-formed and authentic, so that it gets past the first checks: ICE checks signed
//! with the password of the engine's own answer, relay packets sealed with the link's key. Fields,
//! order, commands and pauses come from the input. What must hold: nothing panics, time goes on, and what
//! the engine sends is of bounded size.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use flotilla_media::codec::Codec;
use flotilla_media::command::{Channel, Command, PeerId, PeerRole, Settings};
use flotilla_media::engine::Engine;
use flotilla_media::event::Event;
use flotilla_media::relay::keys::{DirectionKey, End, HEAD_LEN};
use flotilla_media::relay::message::{self, Clock, Media, Status, TrackRef, Want};
use flotilla_media::rtp::extension::Carried;
use flotilla_model::id::{BootId, Epoch, NodeId, TrackSid, fnv1a};
use flotilla_model::track::{Encryption, Kind, Layer, Quality, Source, Track, TrackCodec};
use flotilla_model::unit::Size;

use super::draw::Draw;

const OFFER: &str = include_str!("../../../src/media/peer/sdp/captures/js-happy-07-offer.sdp");
const TRACKS: [&str; 4] = ["TR_AM", "TR_VC", "TR_x", "TR_y"];
const PEERS: usize = 4;
/// Datagrams that a step may lead to.
const TRANSMITS_MAX: usize = 100_000;

struct World {
    now: Instant,
    engine: Engine,
    link: DirectionKey,
    counter: u64,
    ufrags: [Option<(String, String)>; PEERS],
    offer: u32,
}

/// The target.
pub(crate) fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let now = Instant::now();
    let end = |node| End {
        node: NodeId(node),
        boot: BootId(node),
    };
    let mut world = World {
        now,
        engine: super::engine(now),
        link: DirectionKey::derive(&[1; 32], 0, end(2), end(1)),
        counter: 1,
        ufrags: Default::default(),
        offer: 0,
    };
    world.command(Command::SetLink {
        node: NodeId(2),
        boot: BootId(2),
        address: node_address(),
    });
    while !draw.is_empty() {
        world.step(&mut draw);
        world.settle();
    }
}

fn node_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 7882))
}

fn client_address(peer: usize, path: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 1, peer as u8], 5000 + u16::from(path % 3)))
}

impl World {
    fn command(&mut self, command: Command) {
        self.engine.handle_command(self.now, command);
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        match draw.byte() % 12 {
            0..=2 => self.order(draw),
            3 => self.check(draw),
            4 => {
                let from = client_address(draw.number(PEERS), draw.byte());
                let mut bytes = draw.bytes().to_vec();
                self.engine.handle_datagram(self.now, from, &mut bytes);
            }
            5 => self.time(Duration::from_millis(u64::from(draw.byte()))),
            6 => self.time(Duration::from_millis(u64::from(draw.u16()))),
            _ => self.relay(draw),
        }
    }

    fn order(&mut self, draw: &mut Draw<'_>) {
        let peer = PeerId(draw.number(PEERS) as u64);
        let sid = TrackSid::from(*draw.pick(&TRACKS));
        let settings = Settings {
            enabled: draw.flag(),
            quality: *draw.pick(&[Quality::High, Quality::Medium, Quality::Low, Quality::Off]),
            fps_max: u32::from(draw.byte()),
        };
        let command = match draw.byte() % 19 {
            0 | 1 => Command::CreatePeer {
                peer,
                role: *draw.pick(&[PeerRole::Single, PeerRole::Subscriber, PeerRole::Publisher]),
                negotiated_channels: draw.flag(),
                restore: None,
            },
            2 => Command::ClosePeer { peer },
            3 | 4 => {
                self.offer += 1;
                Command::Offer {
                    peer,
                    id: self.offer,
                    sdp: edited(draw),
                }
            }
            5 => Command::Answer {
                peer,
                id: u32::from(draw.byte()),
                sdp: edited(draw),
            },
            6 => Command::RestartIce { peer },
            7 => Command::Candidate {
                peer,
                candidate: draw.text(),
            },
            8 => Command::Publish {
                peer,
                track: track(sid, draw),
                epoch: Epoch(u64::from(draw.byte() % 4)),
            },
            9 => Command::Unpublish { track: sid },
            10 => Command::SetMuted {
                track: sid,
                muted: draw.flag(),
            },
            11 | 12 => Command::Subscribe {
                peer,
                track: sid,
                stream: "PA_x|TR".to_owned(),
                settings,
            },
            13 => Command::Unsubscribe { peer, track: sid },
            14 => Command::SetSettings {
                peer,
                track: sid,
                settings,
            },
            15 => Command::SendData {
                peer,
                channel: *draw.pick(&[Channel::Reliable, Channel::Lossy, Channel::DataTrack]),
                payload: draw.bytes().to_vec().into(),
            },
            16 => match draw.byte() % 4 {
                0 => Command::RemoveLink { node: NodeId(2) },
                1 => Command::Export { peer },
                _ => Command::SetLink {
                    node: NodeId(2),
                    boot: BootId(2),
                    address: node_address(),
                },
            },
            17 => Command::RelayFrom {
                track: track(sid, draw),
                node: NodeId(2),
                epoch: Epoch(u64::from(draw.byte() % 4)),
            },
            _ if draw.flag() => Command::RelayTo {
                track: sid,
                node: NodeId(2),
            },
            _ => Command::StopRelayTo {
                track: sid,
                node: NodeId(2),
            },
        };
        self.command(command);
    }

    /// An ICE check that the engine takes for its client's.
    fn check(&mut self, draw: &mut Draw<'_>) {
        let peer = draw.number(PEERS);
        let Some((ufrag, password)) = self.ufrags[peer].clone() else {
            return;
        };
        let mut check = check(&ufrag, &password, draw.flag(), draw);
        let from = client_address(peer, draw.byte());
        self.engine.handle_datagram(self.now, from, &mut check);
    }

    /// A sealed packet of the other node.
    fn relay(&mut self, draw: &mut Draw<'_>) {
        let mut packet = [0; 2048];
        let room = &mut packet[HEAD_LEN..];
        let sid = draw.pick(&TRACKS);
        let track = TrackRef {
            hash: fnv1a(sid.as_bytes()),
            epoch: u64::from(draw.byte() % 4),
        };
        let layer = draw.byte() % 4;
        let length = match draw.byte() % 8 {
            0..=3 => {
                let media = Media {
                    track,
                    layer,
                    generation: draw.byte() % 4,
                    codec: Codec::from_number(draw.byte() % 6).unwrap_or(Codec::Opus),
                    clock_rate: u32::from(draw.byte()) * 1000,
                    marker: draw.flag(),
                    is_repair: draw.flag(),
                    carried: carried(draw),
                    sequence: if draw.flag() {
                        draw.u32()
                    } else {
                        u32::from(draw.byte())
                    },
                    timestamp: draw.u32(),
                    age: Duration::from_micros(u64::from(draw.u16())),
                };
                message::write_media(room, &media, draw.bytes())
            }
            4 => {
                let wants: Vec<Want> = (0..draw.number(4))
                    .map(|_| Want {
                        track,
                        layers: draw.byte(),
                        key_frames: draw.byte(),
                        quality: draw.byte(),
                        fraction_lost: draw.byte(),
                    })
                    .collect();
                message::write_wants(room, &wants)
            }
            5 => {
                let first = u64::from(draw.u32());
                let numbers = [first, first + 1 + u64::from(draw.byte())];
                message::write_nack(room, track, layer, &numbers).0
            }
            6 => {
                let status = Status {
                    track,
                    live: draw.byte(),
                    is_muted: draw.flag(),
                    clock: draw.flag().then(|| Clock {
                        layer,
                        ntp: u64::from(draw.u32()) << 32,
                        rtp: draw.u32(),
                        age: Duration::from_micros(u64::from(draw.u16())),
                    }),
                };
                message::write_status(room, &status)
            }
            _ => {
                // Whatever the bytes say, under a good seal.
                let plain = draw.bytes();
                room[..plain.len()].copy_from_slice(plain);
                plain.len()
            }
        };
        self.counter += 1 + u64::from(draw.byte() % 4);
        let length = self.link.seal(&mut packet, length, self.counter);
        let bytes = &mut packet[..length];
        self.engine.handle_datagram(self.now, node_address(), bytes);
    }

    fn time(&mut self, by: Duration) {
        let end = self.now + by;
        let mut turns = 0;
        while let Some(due) = self.engine.deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.engine.handle_timeout(self.now);
            self.settle();
            turns += 1;
            assert!(turns < 100_000, "time stands still");
        }
        self.now = end;
    }

    fn settle(&mut self) {
        let mut sent = 0;
        loop {
            let done = self.engine.forward();
            let transmits = self.engine.transmits();
            for datagram in transmits.datagrams() {
                assert!(transmits.bytes(datagram).len() <= 1500);
                sent += 1;
            }
            transmits.clear();
            assert!(sent < TRANSMITS_MAX, "there is no end to it");
            if done {
                break;
            }
        }
        while let Some(event) = self.engine.poll_event() {
            let (Event::Answer { peer, sdp, .. } | Event::Offer { peer, sdp, .. }) = event else {
                continue;
            };
            let value = |name: &str| {
                let found = sdp.lines().find_map(|line| line.strip_prefix(name));
                found.map(|value| value.trim().to_owned())
            };
            if let (Some(ufrag), Some(password)) = (value("a=ice-ufrag:"), value("a=ice-pwd:"))
                && let Some(known) = self.ufrags.get_mut(peer.0 as usize)
            {
                *known = Some((ufrag, password));
            }
        }
    }
}

/// A browser's offer, a few lines of it left out or changed.
fn edited(draw: &mut Draw<'_>) -> String {
    let mut lines: Vec<String> = OFFER.lines().map(ToOwned::to_owned).collect();
    for _ in 0..draw.number(4) {
        let at = usize::from(draw.u16()) % lines.len();
        match draw.byte() % 4 {
            0 => drop(lines.remove(at)),
            1 => lines[at] = draw.text(),
            2 => {
                let line = lines[at].clone();
                lines.insert(at, line);
            }
            _ => lines[at].push_str(&draw.text()),
        }
    }
    lines.join("\r\n") + "\r\n"
}

fn carried(draw: &mut Draw<'_>) -> Carried {
    let mut carried = Carried::default();
    if draw.flag() {
        carried.audio_level = Some(draw.byte());
    }
    if draw.flag() {
        carried.video_orientation = Some(draw.byte());
    }
    carried
}

fn track(sid: TrackSid, draw: &mut Draw<'_>) -> Box<Track> {
    let kind = *draw.pick(&[Kind::Video, Kind::Audio]);
    let mime = match kind {
        Kind::Audio => "audio/opus",
        Kind::Video => *draw.pick(&["video/vp8", "video/h264", "video/vp9", "video/av1", ""]),
    };
    let layer = |quality| Layer {
        quality,
        size: Size {
            width: 320,
            height: 180,
        },
        bitrate_bps: 100_000,
        rid: String::new(),
        ssrc: 0,
        repair_ssrc: 0,
    };
    let layers = [Quality::Low, Quality::Medium, Quality::High];
    let count = draw.number(4);
    Box::new(Track {
        sid,
        kind,
        name: String::new(),
        source: Source::Unknown,
        muted: draw.flag(),
        size: Size {
            width: 1280,
            height: 720,
        },
        simulcast: count > 1,
        disable_dtx: false,
        stereo: false,
        disable_red: false,
        encryption: Encryption::None,
        stream: String::new(),
        audio_features: Vec::new(),
        backup_codec_policy: 0,
        codecs: vec![TrackCodec {
            mime: mime.to_owned(),
            fmtp: String::new(),
            cid: "cid".to_owned(),
            mid: String::new(),
            layers: layers.into_iter().take(count).map(layer).collect(),
        }],
        announced: false,
    })
}

/// A STUN binding request (RFC 8489) with user name, role, integrity and fingerprint.
fn check(ufrag: &str, password: &str, nominate: bool, draw: &mut Draw<'_>) -> Vec<u8> {
    let mut packet = vec![0x00, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    packet.extend([draw.byte(); 12]);
    let attribute = |packet: &mut Vec<u8>, kind: u16, value: &[u8]| {
        packet.extend(kind.to_be_bytes());
        packet.extend((value.len() as u16).to_be_bytes());
        packet.extend(value);
        packet.resize(packet.len().next_multiple_of(4), 0);
    };
    attribute(&mut packet, 0x0006, format!("{ufrag}:them").as_bytes());
    attribute(&mut packet, 0x802a, &[1; 8]);
    attribute(&mut packet, 0x0024, &draw.u32().to_be_bytes());
    if nominate {
        attribute(&mut packet, 0x0025, &[]);
    }
    if draw.flag() {
        let kind = draw.u16();
        let value = draw.bytes();
        attribute(&mut packet, kind, value);
    }
    let set_length = |packet: &mut Vec<u8>, more: usize| {
        let length = (packet.len() - 20 + more) as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
    };
    set_length(&mut packet, 24);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
    let tag = hmac::sign(&key, &packet);
    attribute(&mut packet, 0x0008, tag.as_ref());
    set_length(&mut packet, 8);
    let sum = crc32(&packet) ^ 0x5354_554e;
    attribute(&mut packet, 0x8028, &sum.to_be_bytes());
    packet
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}
