//! The engine as a whole, with clients that are real below their SDP.

mod allocations;
mod going_on;
mod loans;
mod takeover;
mod world;

use std::time::Duration;

use flotilla_model::id::{BootId, Epoch, NodeId, TrackSid};
use flotilla_model::track::{Kind, Quality, Track, TrackCodec};

use super::*;
use crate::command::{Channel, Settings};
use crate::peer::sdp::tests::captures;
use crate::peer::sdp::{self, Description, Direction};
use world::{Seen, World, engine_address, rtp, seen, track};

const JS_VIDEO_CID: &str = "1c40ce2e-9acf-467d-b58f-8595be7a2456";
const JS_AUDIO_CID: &str = "bb08be43-dfa6-4423-9113-aa30e25b48f5";
const JS_AUDIO_SSRC: u32 = 2_480_357_381;
/// Header-extension numbers of the captured browser.
const MID: u8 = 4;
const RID: u8 = 10;
const AUDIO_LEVEL: u8 = 1;

/// A moment in which everything connects.
const MOMENT: Duration = Duration::from_millis(400);

fn peer(client: usize) -> PeerId {
    PeerId(client as u64)
}

/// A browser that publishes audio and simulcast video, connected.
fn publisher(world: &mut World, engine: usize) -> usize {
    let client = world.client(engine, PeerRole::Single);
    for (sid, kind, cid) in [
        ("TR_AM", Kind::Audio, JS_AUDIO_CID),
        ("TR_VC", Kind::Video, JS_VIDEO_CID),
    ] {
        let command = Command::Publish {
            peer: peer(client),
            track: track(sid, kind, cid),
            epoch: Epoch(1),
        };
        world.command(engine, command);
    }
    world.offer(client, captures::JS_V1_BOTH);
    world.run(MOMENT);
    assert!(world.clients[client].is_connected());
    client
}

fn audio(number: u16) -> Vec<u8> {
    let extensions: [(u8, &[u8]); 2] = [(MID, b"8"), (AUDIO_LEVEL, &[0x80 | 20])];
    let payload = [0x78, (number >> 8) as u8, number as u8, 1, 2, 3];
    rtp(
        111,
        number == 0,
        1000 + number,
        u32::from(number) * 960,
        JS_AUDIO_SSRC,
        &extensions,
        &payload,
    )
}

/// One VP8 frame of one packet per layer: `[q, h, f]` are told apart by their last byte.
fn video(layer: usize, number: u16) -> Vec<u8> {
    let rid: &[u8] = [b"q", b"h", b"f"][layer];
    let extensions: [(u8, &[u8]); 2] = [(MID, b"7"), (RID, rid)];
    let picture = 0x8000 | (300 + number);
    let mut payload = vec![0x90, 0x80, (picture >> 8) as u8, picture as u8];
    if number.is_multiple_of(30) {
        // A key frame: frame tag, start code, 320x180.
        payload.extend([0x50, 0x01, 0x00, 0x9d, 0x01, 0x2a, 0x40, 0x01, 0xb4, 0x00]);
    } else {
        payload.extend([0x51, 0x01, 0x00]);
    }
    payload.extend([0xaa; 200]);
    payload.extend([(number >> 8) as u8, number as u8, layer as u8]);
    let ssrc = 0x1000 + layer as u32;
    let timestamp = 90_000 + u32::from(number) * 3000;
    rtp(
        96,
        true,
        2000 + number,
        timestamp,
        ssrc,
        &extensions,
        &payload,
    )
}

/// Sends media for a while, in real time of the world.
fn play(world: &mut World, client: usize, frames: std::ops::Range<u16>) {
    for number in frames {
        world.send_rtp(client, &audio(number));
        for layer in 0..3 {
            world.send_rtp(client, &video(layer, number));
        }
        world.run(Duration::from_millis(20));
    }
}

/// Packets that a client got on the section that carries a track.
fn received(world: &World, client: usize, description: &Description, mid: &str) -> Vec<Seen> {
    let section = description
        .sections
        .iter()
        .find(|section| section.mid == mid);
    let ssrc = section.expect("the section").ssrcs[0].ssrc;
    world.clients[client]
        .rtp
        .iter()
        .map(|p| seen(p))
        .filter(|s| s.ssrc == ssrc)
        .collect()
}

fn assert_contiguous(packets: &[Seen], at_least: usize) {
    assert!(packets.len() >= at_least, "{} of {at_least}", packets.len());
    for pair in packets.windows(2) {
        assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1));
    }
}

/// Asserts that what arrived is what was played, without gaps, and says which layers it came from.
fn assert_media(
    world: &World,
    client: usize,
    description: &Description,
    mids: &world::Mids,
) -> Vec<u8> {
    let mid = |track: &str| {
        let sid = TrackSid::from(track);
        let found = mids.iter().find(|(_, carried)| **carried == sid);
        found.expect("carried").0.clone()
    };
    let sound = received(world, client, description, &mid("TR_AM"));
    assert_contiguous(&sound, 40);
    for pair in sound.windows(2) {
        let number = |s: &Seen| u16::from_be_bytes([s.payload[1], s.payload[2]]);
        assert_eq!(number(&pair[1]), number(&pair[0]) + 1);
        assert_eq!(pair[1].timestamp.wrapping_sub(pair[0].timestamp), 960);
        assert_eq!(pair[0].pt, 111);
    }
    let pictures = received(world, client, description, &mid("TR_VC"));
    assert_contiguous(&pictures, 20);
    let mut layers = Vec::new();
    for (index, picture) in pictures.iter().enumerate() {
        assert_eq!(picture.pt, 96);
        let layer = *picture.payload.last().expect("a payload");
        if index == 0 || layers.last() != Some(&layer) {
            assert_eq!(picture.payload[4] & 1, 0, "a layer begins with a key frame");
            layers.push(layer);
        }
    }
    layers
}

#[test]
fn media_flows_between_v1_clients() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let bob = world.client(0, PeerRole::Single);
    world.offer(bob, captures::PY_V1_JOIN);
    world.run(MOMENT);
    assert_eq!(
        world.happened(|event| matches!(event, Event::Connected { .. })),
        2
    );
    world.subscribe(bob, "TR_AM");
    world.subscribe(bob, "TR_VC");
    world.run(Duration::from_millis(20));
    let asked = world.happened(|event| {
        matches!(
            event,
            Event::SectionsNeeded {
                peer: PeerId(1),
                audio: 0,
                video: 0
            }
        )
    });
    assert_eq!(asked, 1);
    let (description, mids) = world.offer(bob, captures::PY_V1_JOIN);
    assert_eq!(mids.len(), 2);
    play(&mut world, alice, 0..100);
    let layers = assert_media(&world, bob, &description, &mids);
    assert_eq!(
        layers.last(),
        Some(&2),
        "the best layer is reached: {layers:?}"
    );
    for track in ["TR_AM", "TR_VC"] {
        let sid = TrackSid::from(track);
        let is = |found: &TrackSid| *found == sid;
        assert_eq!(
            world.happened(|e| matches!(e, Event::TrackStarted { track, .. } if is(track))),
            1
        );
        assert_eq!(
            world.happened(
                |e| matches!(e, Event::SubscriptionStarted { peer: PeerId(1), track } if is(track))
            ),
            1
        );
    }
    // The layers' sources became known by their packets.
    let described = world
        .events
        .iter()
        .rev()
        .find_map(|(_, event)| match event {
            Event::TrackDescribed { track, codecs, .. } if *track == "TR_VC".into() => Some(codecs),
            _ => None,
        });
    let layers: Vec<_> = described.expect("described")[0]
        .layers
        .iter()
        .map(|layer| (layer.rid.as_str(), layer.quality, layer.ssrc))
        .collect();
    assert_eq!(
        layers,
        [
            ("q", Quality::Low, 0x1000),
            ("h", Quality::Medium, 0x1001),
            ("f", Quality::High, 0x1002)
        ]
    );
    assert!(
        !world.clients[alice].rtcp.is_empty(),
        "the publisher hears of its packets"
    );
}

#[test]
fn media_flows_to_v0_clients() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let bob = world.client(0, PeerRole::Subscriber);
    let (offer, mids) = world.answer(bob);
    assert_eq!((offer.sections.len(), mids.len()), (1, 0));
    world.run(MOMENT);
    assert!(world.clients[bob].is_connected());
    world.subscribe(bob, "TR_AM");
    world.subscribe(bob, "TR_VC");
    let (offer, mids) = world.answer(bob);
    assert_eq!((offer.sections.len(), mids.len()), (3, 2));
    play(&mut world, alice, 0..100);
    assert_media(&world, bob, &offer, &mids);
    // Unsubscribed, it falls silent and is offered as inactive.
    let unsubscribe = Command::Unsubscribe {
        peer: peer(bob),
        track: "TR_VC".into(),
    };
    world.command(0, unsubscribe);
    let (offer, mids) = world.answer(bob);
    assert_eq!(mids.len(), 1);
    let video = offer
        .sections
        .iter()
        .find(|s| s.media == sdp::Media::Video)
        .expect("video");
    assert_eq!(video.direction, Direction::Inactive);
    world.run(MOMENT);
    let before = world.clients[bob].rtp.len();
    play(&mut world, alice, 100..110);
    let after = world.clients[bob].rtp[before..].iter().map(|p| seen(p).pt);
    assert!(after.clone().count() >= 10 && after.clone().all(|pt| pt == 111));
}

#[test]
fn a_track_subscribed_before_it_is_published_arrives() {
    let mut world = World::new(1);
    let bob = world.client(0, PeerRole::Single);
    world.subscribe(bob, "TR_AM");
    world.offer(bob, captures::JS_V1_JOIN);
    world.run(MOMENT);
    let alice = publisher(&mut world, 0);
    world.run(Duration::from_millis(20));
    let asked = world.happened(|event| {
        matches!(
            event,
            Event::SectionsNeeded {
                peer: PeerId(0),
                ..
            }
        )
    });
    assert_eq!(asked, 1);
    let (description, mids) = world.offer(bob, captures::JS_V1_JOIN);
    play(&mut world, alice, 0..20);
    let mid = mids.keys().next().expect("a section");
    assert_contiguous(&received(&world, bob, &description, mid), 15);
}

/// What the log makes of a described track.
fn replicated(world: &World, sid: &str) -> Box<Track> {
    let kind = if sid == "TR_AM" {
        Kind::Audio
    } else {
        Kind::Video
    };
    let mut track = track(sid, kind, "");
    let described = world
        .events
        .iter()
        .rev()
        .find_map(|(_, event)| match event {
            Event::TrackDescribed { track, codecs, .. } if *track == sid.into() => Some(codecs),
            _ => None,
        });
    let codecs: Vec<TrackCodec> = described.expect("described").clone();
    track.codecs = codecs;
    track
}

fn link(world: &mut World) {
    for (engine, other) in [(0, 1), (1, 0)] {
        let command = Command::SetLink {
            node: NodeId(other as u64 + 1),
            boot: BootId(100 + other as u64),
            address: engine_address(other),
        };
        world.command(engine, command);
    }
}

fn relay(world: &mut World) {
    for sid in ["TR_AM", "TR_VC"] {
        let to = Command::RelayTo {
            track: sid.into(),
            node: NodeId(2),
        };
        world.command(0, to);
        let track = replicated(world, sid);
        let from = Command::RelayFrom {
            track,
            node: NodeId(1),
            epoch: Epoch(1),
        };
        world.command(1, from);
    }
}

#[test]
fn a_relay_carries_tracks_to_another_engine() {
    let mut world = World::new(2);
    link(&mut world);
    let alice = publisher(&mut world, 0);
    let bob = world.client(1, PeerRole::Single);
    world.offer(bob, captures::NODE_V1_JOIN);
    world.subscribe(bob, "TR_AM");
    world.subscribe(bob, "TR_VC");
    relay(&mut world);
    world.run(MOMENT);
    let (description, mids) = world.offer(bob, captures::NODE_V1_JOIN);
    assert_eq!(mids.len(), 2);
    play(&mut world, alice, 0..150);
    assert_media(&world, bob, &description, &mids);
    let started = world.happened(|e| {
        matches!(
            e,
            Event::RelayStarted {
                from: NodeId(1),
                ..
            }
        )
    });
    assert_eq!(started, 2);
    let relays = world.engines[0].stats(world.now).router.relays;
    assert_eq!(relays.len(), 2, "each track crosses once");
    // Ended at the origin, it ends there.
    for engine in 0..2 {
        world.command(
            engine,
            Command::Unpublish {
                track: "TR_VC".into(),
            },
        );
    }
    let relays = world.engines[0].stats(world.now).router.relays;
    assert_eq!(relays.len(), 1);
}

#[test]
fn a_relay_repairs_its_losses() {
    let mut world = World::new(2);
    link(&mut world);
    let alice = publisher(&mut world, 0);
    let bob = world.client(1, PeerRole::Single);
    world.offer(bob, captures::NODE_V1_JOIN);
    world.subscribe(bob, "TR_AM");
    relay(&mut world);
    world.run(MOMENT);
    let (description, mids) = world.offer(bob, captures::NODE_V1_JOIN);
    play(&mut world, alice, 0..30);
    world.relay_losses = 3;
    play(&mut world, alice, 30..120);
    world.run(MOMENT);
    assert_eq!(world.relay_losses, 0);
    let mid = mids.keys().next().expect("a section");
    let mut sound = received(&world, bob, &description, mid);
    sound.sort_by_key(|packet| packet.timestamp);
    assert_contiguous(&sound, 110);
}

#[test]
fn data_channels_carry_messages_both_ways() {
    let mut world = World::new(1);
    let now = |world: &World| world.now;
    let alice = world.client(0, PeerRole::Single);
    world.offer(alice, captures::JS_V1_JOIN);
    world.run(MOMENT);
    let at = now(&world);
    world.clients[alice].data(at, |_| ());
    world.run(MOMENT);
    let at = now(&world);
    let stats = world.engines[0].stats(at).discards;
    world.clients[alice].data(at, |sctp| {
        assert!(sctp.connected, "{:?}", stats);
        sctp.open(at, 1, Channel::Lossy);
        sctp.open(at, 3, Channel::Reliable);
    });
    world.run(MOMENT);
    for wanted in [Channel::Lossy, Channel::Reliable] {
        let open = |event: &Event| matches!(event, Event::ChannelOpen { channel, .. } if *channel == wanted);
        assert_eq!(world.happened(open), 1);
    }
    let at = now(&world);
    world.clients[alice].data(at, |sctp| sctp.send(at, 3, b"up"));
    let down = Command::SendData {
        peer: peer(alice),
        channel: Channel::Reliable,
        payload: bytes::Bytes::from_static(b"down"),
    };
    world.command(0, down);
    world.run(MOMENT);
    let up = |event: &Event| matches!(event, Event::Data { channel: Channel::Reliable, payload, .. } if &payload[..] == b"up");
    assert_eq!(world.happened(up), 1);
    let at = now(&world);
    let received = world.clients[alice].data(at, |sctp| sctp.received.clone());
    assert_eq!(received, [(3, bytes::Bytes::from_static(b"down"))]);
}

#[test]
fn an_ice_restart_of_the_client_keeps_media_flowing_on_the_new_path() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let bob = world.client(0, PeerRole::Single);
    world.subscribe(bob, "TR_AM");
    let (_, mids) = world.offer(bob, captures::PY_V1_JOIN);
    assert_eq!(mids.len(), 1);
    world.run(MOMENT);
    play(&mut world, alice, 0..10);
    let now = world.now;
    world.clients[bob].move_to(now, ([10, 0, 9, 9], 6000).into(), "movedUFRAG");
    let (description, mids) = world.offer(bob, captures::PY_V1_JOIN);
    world.run(MOMENT);
    let connected = |e: &Event| matches!(e, Event::Connected { peer: PeerId(1) });
    assert_eq!(world.happened(connected), 2);
    let before = world.clients[bob].rtp.len();
    play(&mut world, alice, 10..40);
    assert!(world.clients[bob].rtp.len() >= before + 25);
    let mid = mids.keys().next().expect("a section");
    assert!(received(&world, bob, &description, mid).len() >= 30);
}

#[test]
fn a_resumed_v0_subscriber_is_offered_new_credentials() {
    let mut world = World::new(1);
    let bob = world.client(0, PeerRole::Subscriber);
    let (first, _) = world.answer(bob);
    world.run(MOMENT);
    world.command(0, Command::RestartIce { peer: peer(bob) });
    let now = world.now;
    world.clients[bob].move_to(now, ([10, 0, 9, 9], 6000).into(), "movedUFRAG");
    let (second, _) = world.answer(bob);
    let ufrag = |description: &Description| description.bundle_transport().ufrag;
    assert_ne!(ufrag(&first), ufrag(&second));
    world.run(MOMENT);
    let connected = |e: &Event| matches!(e, Event::Connected { .. });
    assert_eq!(world.happened(connected), 2);
}

#[test]
fn a_quiet_peer_is_sent_nothing_until_it_is_served_again() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let bob = world.client(0, PeerRole::Single);
    world.subscribe(bob, "TR_AM");
    world.offer(bob, captures::PY_V1_JOIN);
    world.run(MOMENT);
    play(&mut world, alice, 0..10);
    let before = world.clients[bob].rtp.len();
    assert!(before > 0);
    let quiet = |quiet| Command::SetQuiet {
        peer: peer(bob),
        quiet,
    };
    world.command(0, quiet(true));
    play(&mut world, alice, 10..40);
    world.run(Duration::from_secs(3));
    assert_eq!(world.clients[bob].rtp.len(), before, "not even reports");
    world.command(0, quiet(false));
    play(&mut world, alice, 40..60);
    assert!(world.clients[bob].rtp.len() >= before + 15);
}

#[test]
fn a_closed_peer_leaves_nothing_behind() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let bob = world.client(0, PeerRole::Single);
    world.subscribe(bob, "TR_AM");
    world.subscribe(bob, "TR_unknown");
    world.offer(bob, captures::PY_V1_JOIN);
    world.run(MOMENT);
    play(&mut world, alice, 0..5);
    for client in [alice, bob] {
        world.command(0, Command::ClosePeer { peer: peer(client) });
    }
    let engine = &world.engines[0];
    assert!(engine.peers.is_empty() && engine.ufrags.is_empty());
    assert_eq!((engine.addresses.len(), engine.tracks.len()), (0, 0));
    // What the clients still send is counted, no more.
    world.run(Duration::from_secs(1));
    let discards = world.engines[0].stats(world.now).discards;
    assert!(discards.get(Discard::UnknownPeer) > 0);
}

#[test]
fn a_forged_source_address_does_not_take_a_live_peers_place() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let mallory = world.client(0, PeerRole::Single);
    world.offer(mallory, captures::PY_V1_JOIN);
    world.run(MOMENT);
    let target = world.clients[alice].address;
    let now = world.now;
    world.clients[mallory].move_to(now, target, "themUFRAG");
    world.run(MOMENT);
    assert_eq!(world.engines[0].addresses.get(target), Some(peer(alice)));
}

#[test]
fn too_many_peers_fail_alone_and_silence_is_noticed() {
    let mut world = World::new(1);
    for _ in 0..8 {
        world.client(0, PeerRole::Publisher);
    }
    let failed = |e: &Event| matches!(e, Event::Failed { .. });
    assert_eq!(world.happened(failed), 0);
    world.client(0, PeerRole::Publisher);
    assert_eq!(world.happened(failed), 1);
    // A v0 subscriber that never answers is given up.
    let mut world = World::new(1);
    world.client(0, PeerRole::Subscriber);
    world.run(Duration::from_secs(16));
    assert_eq!(world.happened(failed), 1);
}

#[test]
fn refused_descriptions_say_why() {
    let mut world = World::new(1);
    let alice = world.client(0, PeerRole::Single);
    let offer = Command::Offer {
        peer: peer(alice),
        id: 3,
        sdp: "v=1\r\n".to_owned(),
    };
    world.command(0, offer);
    let answer = Command::Answer {
        peer: peer(alice),
        id: 4,
        sdp: "v=0\r\n".to_owned(),
    };
    world.command(0, answer);
    for (number, text) in [
        (3, "the description does not begin with v=0"),
        (4, "does not take answers"),
    ] {
        let refused = |event: &Event| {
            matches!(event, Event::DescriptionRefused { id, reason, .. }
                if *id == number && reason.contains(text))
        };
        assert_eq!(world.happened(refused), 1, "{text}");
    }
    // The peer is none the worse for it.
    world.offer(alice, captures::JS_V1_JOIN);
}

#[test]
fn unlikely_datagrams_and_commands_do_no_harm() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let from = world.clients[alice].address;
    let now = world.now;
    for first in 0..=255_u8 {
        for len in [0, 1, 2, 12, 20, 40, 200] {
            let mut bytes = vec![first; len];
            world.engines[0].handle_datagram(now, from, &mut bytes);
        }
    }
    assert!(world.engines[0].stats(now).discards.total() > 1000);
    let nobody = PeerId(99);
    let settings = Settings::default();
    for command in [
        Command::ClosePeer { peer: nobody },
        Command::RestartIce { peer: nobody },
        Command::Unsubscribe {
            peer: nobody,
            track: "TR_x".into(),
        },
        Command::Subscribe {
            peer: nobody,
            track: "TR_x".into(),
            stream: String::new(),
            settings,
        },
        Command::Unpublish {
            track: "TR_x".into(),
        },
        Command::SetMuted {
            track: "TR_x".into(),
            muted: true,
        },
        Command::RemoveLink { node: NodeId(9) },
        Command::StopRelayTo {
            track: "TR_x".into(),
            node: NodeId(9),
        },
        Command::CreatePeer {
            peer: peer(alice),
            role: PeerRole::Single,
            negotiated_channels: false,
            restore: None,
        },
    ] {
        world.command(0, command);
    }
    world.run(MOMENT);
    play(&mut world, alice, 0..3);
    assert_eq!(world.engines[0].stats(world.now).peers_connected, 1);
}
