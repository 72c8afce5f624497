//! A client's connections move from one engine to another by an ICE restart, with and without the
//! keys of the former home, planned and not.

use std::collections::BTreeSet;
use std::str::FromStr as _;

use proptest::prelude::*;

use super::*;
use crate::command::Restore;
use crate::peer::dtls::Fingerprint;
use crate::peer::transport::TransportSnapshot;
use crate::rtp::rtcp::{Packet, packets};

const V0_VIDEO_CID: &str = "b86d86f1-3479-4e06-b430-7fce90dad66f";
const V0_AUDIO_CID: &str = "9087e8d2-2268-4e86-8fba-7cab58891f06";
const V0_AUDIO_SSRC: u32 = 3_177_281_995;
/// Streams of the clients' data channels.
pub(super) const RELIABLE: u16 = 3;
const LOSSY: u16 = 1;

/// What tells the two kinds of LiveKit clients apart here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kinds {
    V0,
    V1,
}

impl Kinds {
    pub(super) const fn publisher(self) -> PeerRole {
        match self {
            Self::V0 => PeerRole::Publisher,
            Self::V1 => PeerRole::Single,
        }
    }

    pub(super) const fn subscriber(self) -> PeerRole {
        match self {
            Self::V0 => PeerRole::Subscriber,
            Self::V1 => PeerRole::Single,
        }
    }

    /// The publisher's description.
    const fn offer(self) -> &'static str {
        match self {
            Self::V0 => captures::JS_V0_DATA,
            Self::V1 => captures::JS_V1_BOTH,
        }
    }

    /// Sections and source of sound and pictures.
    const fn names(self) -> (&'static [u8], u32, &'static [u8]) {
        match self {
            Self::V0 => (b"1", V0_AUDIO_SSRC, b"0"),
            Self::V1 => (b"8", JS_AUDIO_SSRC, b"7"),
        }
    }
}

/// Rewrites a packet for the other kind of client; a client that has been told that its streams are
/// known no longer names them.
fn adapt(kinds: Kinds, packet: &[u8], is_named: bool) -> Vec<u8> {
    let (audio_mid, audio_ssrc, video_mid) = kinds.names();
    let seen = seen(packet);
    let marker = packet[1] & 0x80 != 0;
    let is_sound = seen.ssrc == JS_AUDIO_SSRC;
    let ssrc = if is_sound { audio_ssrc } else { seen.ssrc };
    let rid: &[u8] = [b"q", b"h", b"f"][seen.ssrc as usize % 4 % 3];
    let level: &[u8] = &[0x80 | 20];
    let extensions: Vec<(u8, &[u8])> = match (is_named, is_sound) {
        (true, true) => vec![(MID, audio_mid), (AUDIO_LEVEL, level)],
        (true, false) => vec![(MID, video_mid), (RID, rid)],
        (false, true) => vec![(AUDIO_LEVEL, level)],
        (false, false) => vec![],
    };
    rtp(
        seen.pt,
        marker,
        seen.sequence,
        seen.timestamp,
        ssrc,
        &extensions,
        &seen.payload,
    )
}

pub(super) struct Call {
    pub(super) world: World,
    pub(super) kinds: Kinds,
    pub(super) alice: usize,
    pub(super) bob: usize,
    description: Description,
    mids: world::Mids,
    is_named: bool,
}

impl Call {
    /// Alice publishes sound and simulcast pictures to Bob; both have data channels. All on the
    /// first engine.
    pub(super) fn new(kinds: Kinds) -> Self {
        Self::within(kinds, World::new(3))
    }

    /// The same between engines of `world`.
    pub(super) fn within(kinds: Kinds, mut world: World) -> Self {
        let alice = world.client(0, kinds.publisher());
        let (audio_cid, video_cid) = match kinds {
            Kinds::V0 => (V0_AUDIO_CID, V0_VIDEO_CID),
            Kinds::V1 => (JS_AUDIO_CID, JS_VIDEO_CID),
        };
        for (sid, kind, cid) in [
            ("TR_AM", Kind::Audio, audio_cid),
            ("TR_VC", Kind::Video, video_cid),
        ] {
            let command = Command::Publish {
                peer: peer(alice),
                track: track(sid, kind, cid),
                epoch: Epoch(1),
            };
            world.command(0, command);
        }
        world.offer(alice, kinds.offer());
        let bob = world.client(0, kinds.subscriber());
        world.subscribe(bob, "TR_AM");
        world.subscribe(bob, "TR_VC");
        let (description, mids) = match kinds {
            Kinds::V0 => world.answer(bob),
            Kinds::V1 => world.offer(bob, captures::PY_V1_JOIN),
        };
        world.run(MOMENT);
        let mut call = Self {
            world,
            kinds,
            alice,
            bob,
            description,
            mids,
            is_named: true,
        };
        for client in [alice, bob] {
            call.open_channels(client);
        }
        call
    }

    fn open_channels(&mut self, client: usize) {
        let at = self.world.now;
        self.world.clients[client].data(at, |_| ());
        self.world.run(MOMENT);
        // To a v0 subscriber the server opens them.
        if client == self.alice || self.kinds == Kinds::V1 {
            let at = self.world.now;
            self.world.clients[client].data(at, |sctp| {
                sctp.open(at, LOSSY, Channel::Lossy);
                sctp.open(at, RELIABLE, Channel::Reliable);
            });
        }
        self.world.run(MOMENT);
        assert_eq!(self.channels_opened(client), 2);
    }

    fn channels_opened(&self, client: usize) -> usize {
        let open = |event: &Event| matches!(event, Event::ChannelOpen { peer, .. } if peer.0 == client as u64);
        self.world.happened(open)
    }

    /// Streams of a client's channels: those that the server opens have numbers of its own.
    fn channels(&self, client: usize) -> Vec<(Channel, u16)> {
        if client == self.bob && self.kinds == Kinds::V0 {
            vec![(Channel::Reliable, 1), (Channel::Lossy, 3)]
        } else {
            vec![(Channel::Reliable, RELIABLE), (Channel::Lossy, LOSSY)]
        }
    }

    pub(super) fn play(&mut self, frames: std::ops::Range<u16>) {
        for number in frames {
            let mut packets = vec![audio(number)];
            packets.extend((0..3).map(|layer| video(layer, number)));
            for packet in packets {
                let packet = adapt(self.kinds, &packet, self.is_named);
                self.world.send_rtp(self.alice, &packet);
            }
            self.world.run(Duration::from_millis(20));
        }
    }

    fn restore(&self, client: usize, with_keys: bool) -> Restore {
        let descriptions = self.world.clients[client].agreed.clone();
        let is_v0_publisher = client == self.alice && self.kinds == Kinds::V0;
        Restore {
            transport: with_keys.then(|| self.world.snapshot(client).expect("a checkpoint")),
            descriptions: descriptions.filter(|_| !is_v0_publisher),
            channels: self.channels(client),
            sequence: 0,
        }
    }

    pub(super) fn publish(&mut self, engine: usize, sids: &[&str]) {
        for sid in sids {
            let command = Command::Publish {
                peer: peer(self.alice),
                track: replicated(&self.world, sid),
                epoch: Epoch(2),
            };
            self.world.command(engine, command);
        }
    }

    /// Both clients move to another engine.
    pub(super) fn move_all(&mut self, engine: usize, with_keys: bool) {
        for client in [self.alice, self.bob] {
            let restore = self.restore(client, with_keys);
            let role = if client == self.alice {
                self.kinds.publisher()
            } else {
                self.kinds.subscriber()
            };
            self.world.take_over(client, engine, role, restore);
        }
        self.publish(engine, &["TR_AM", "TR_VC"]);
        self.world.subscribe(self.bob, "TR_AM");
        self.world.subscribe(self.bob, "TR_VC");
        self.world.run(Duration::from_millis(20));
        // The clients restart ICE.
        self.world.offer(self.alice, self.kinds.offer());
        self.resume_bob(engine);
        self.is_named = false;
    }

    fn resume_bob(&mut self, engine: usize) {
        let (description, mids) = match self.kinds {
            Kinds::V0 => {
                let command = Command::RestartIce {
                    peer: peer(self.bob),
                };
                self.world.command(engine, command);
                self.world.answer(self.bob)
            }
            Kinds::V1 => self.world.offer(self.bob, captures::PY_V1_JOIN),
        };
        self.description = description;
        self.mids = mids;
    }

    /// A message each way on a client's reliable channel, several times.
    pub(super) fn assert_talk(&mut self, client: usize, engine: usize, round: u8) {
        let stream = self.channels(client)[0].1;
        let at = self.world.now;
        let before = self.world.clients[client].data(at, |sctp| sctp.received.len());
        let up: Vec<_> = (0..20).map(|number| vec![round, number]).collect();
        for message in &up {
            let at = self.world.now;
            self.world.clients[client].data(at, |sctp| sctp.send(at, stream, message));
            let down = Command::SendData {
                peer: peer(client),
                channel: Channel::Reliable,
                payload: message.clone().into(),
            };
            self.world.command(engine, down);
        }
        self.world.run(MOMENT);
        if self.arrived(client, engine, round).is_empty() {
            // The server waits until the client sends them again if the checkpoint is behind.
            self.world.run(Duration::from_secs(2));
        }
        assert_eq!(self.arrived(client, engine, round), up);
        let at = self.world.now;
        let received = self.world.clients[client].data(at, |sctp| sctp.received.clone());
        let received: Vec<_> = received[before..].iter().map(|(_, m)| m.to_vec()).collect();
        assert_eq!(received, up);
    }

    /// A client's messages of a round that came to an engine.
    fn arrived(&self, client: usize, engine: usize, round: u8) -> Vec<Vec<u8>> {
        let of_round = |(at, event): &(usize, Event)| match event {
            Event::Data { peer, payload, .. }
                if *at == engine && peer.0 == client as u64 && payload[0] == round =>
            {
                Some(payload.to_vec())
            }
            _ => None,
        };
        self.world.events.iter().filter_map(of_round).collect()
    }

    pub(super) fn hellos(&self) -> Vec<usize> {
        [self.alice, self.bob]
            .map(|client| self.world.clients[client].hellos)
            .into()
    }

    pub(super) fn assert_media(&self) -> Vec<u8> {
        assert_media(&self.world, self.bob, &self.description, &self.mids)
    }
}

/// What of a section must stay.
#[derive(PartialEq, Eq, Debug)]
struct Shape {
    mid: String,
    media: sdp::Media,
    payload_types: BTreeSet<u8>,
    extensions: Vec<u8>,
    track: Option<String>,
}

fn shape(description: &Description) -> Vec<Shape> {
    let section = |section: &sdp::Section| Shape {
        mid: section.mid.clone(),
        media: section.media.clone(),
        payload_types: section.codecs.iter().map(|codec| codec.pt).collect(),
        extensions: section.extensions.iter().map(|map| map.id).collect(),
        track: section.msid.as_ref().map(|msid| msid.track.clone()),
    };
    description.sections.iter().map(section).collect()
}

pub(super) fn key_frame_requests(world: &World, client: usize, from: usize) -> BTreeSet<u32> {
    let mut asked = BTreeSet::new();
    for compound in &world.clients[client].rtcp[from..] {
        for packet in packets(compound) {
            if let Ok(Packet::Pli { media }) = packet {
                asked.insert(media);
            }
        }
    }
    asked
}

fn a_call_continues(kinds: Kinds, with_keys: bool) {
    let mut call = Call::new(kinds);
    call.play(0..100);
    call.assert_media();
    call.assert_talk(call.alice, 0, 0);
    call.assert_talk(call.bob, 0, 0);
    let (before, mids, hellos) = (shape(&call.description), call.mids.clone(), call.hellos());
    let opened = [call.alice, call.bob].map(|client| call.channels_opened(client));

    call.world.dead.push(0);
    let rtcp = call.world.clients[call.alice].rtcp.len();
    call.move_all(1, with_keys);
    assert_eq!(call.mids, mids);
    assert_eq!(shape(&call.description), before);
    // Sent meanwhile, it waits for the channel.
    let early = Command::SendData {
        peer: peer(call.bob),
        channel: Channel::Reliable,
        payload: bytes::Bytes::from_static(b"\xffearly"),
    };
    call.world.command(1, early);
    call.world.run(MOMENT);

    for client in [call.alice, call.bob] {
        let connected =
            |event: &Event| matches!(event, Event::Connected { peer } if peer.0 == client as u64);
        assert_eq!(call.world.happened(connected), 2, "{client}");
        assert_eq!(call.channels_opened(client), opened[client] + 2);
    }
    if with_keys {
        assert_eq!(call.hellos(), hellos, "no handshake");
    } else {
        let begun = call
            .hellos()
            .iter()
            .zip(&hellos)
            .all(|(now, before)| now > before);
        assert!(begun, "a handshake each");
    }
    // Nothing has been sent yet, and the best layer is asked for.
    let asked = key_frame_requests(&call.world, call.alice, rtcp);
    assert_eq!(asked, BTreeSet::from([0x1002]));

    let wanted =
        |e: &Event| matches!(e, Event::QualityWanted { quality, .. } if *quality == Quality::High);
    let at_new = call
        .world
        .events
        .iter()
        .filter(|(engine, event)| *engine == 1 && wanted(event));
    assert_eq!(at_new.count(), 1, "the publisher is told again");
    call.play(120..220);
    let layers = call.assert_media();
    assert_eq!(layers.last(), Some(&2), "the best layer is reached");
    call.assert_talk(call.alice, 1, 1);
    call.assert_talk(call.bob, 1, 1);
    let at = call.world.now;
    let received = call.world.clients[call.bob].data(at, |sctp| sctp.received.clone());
    assert!(
        received
            .iter()
            .any(|(_, message)| &message[..] == b"\xffearly")
    );
    assert_eq!(
        call.world.happened(|e| matches!(e, Event::Failed { .. })),
        0
    );
    assert_eq!(
        call.world
            .happened(|e| matches!(e, Event::TrackEnded { .. })),
        0
    );
    if with_keys {
        let shared = call
            .world
            .sent_under
            .values()
            .filter(|engines| engines.len() > 1);
        assert_eq!(shared.count(), 0, "no source of one engine is another's");
    }
}

#[test]
fn a_v1_call_continues_with_keys() {
    a_call_continues(Kinds::V1, true);
}

#[test]
fn a_v1_call_continues_with_a_handshake() {
    a_call_continues(Kinds::V1, false);
}

#[test]
fn a_v0_call_continues_with_keys() {
    a_call_continues(Kinds::V0, true);
}

#[test]
fn a_v0_call_continues_with_a_handshake() {
    a_call_continues(Kinds::V0, false);
}

#[test]
fn a_call_moves_on_and_on() {
    for kinds in [Kinds::V0, Kinds::V1] {
        let mut call = Call::new(kinds);
        call.play(0..60);
        let mids = call.mids.clone();
        let mut first = 60;
        // With keys, with a handshake, and with the keys of that.
        for (round, (engine, with_keys)) in [(1, true), (2, false), (0, true), (1, true)]
            .into_iter()
            .enumerate()
        {
            for client in [call.alice, call.bob] {
                let from = call.world.clients[client].engine;
                let close = Command::ClosePeer { peer: peer(client) };
                call.world.command(from, close);
            }
            let hellos = call.hellos();
            call.move_all(engine, with_keys);
            call.world.run(MOMENT);
            assert_eq!(call.hellos() == hellos, with_keys, "{round}");
            assert_eq!(call.mids, mids);
            call.play(first..first + 90);
            first += 90;
            call.assert_media();
            call.assert_talk(call.bob, engine, round as u8 + 1);
        }
        assert_eq!(
            call.world.happened(|e| matches!(e, Event::Failed { .. })),
            0
        );
    }
}

#[test]
fn an_old_home_that_lives_on_shares_no_source_with_the_new_one() {
    let mut call = Call::new(Kinds::V0);
    call.play(0..60);
    link(&mut call.world);
    // Bob moves alone; his old home sends to him as before, for it has noticed nothing.
    let restore = call.restore(call.bob, true);
    call.world
        .take_over(call.bob, 1, PeerRole::Subscriber, restore);
    relay(&mut call.world);
    call.world.subscribe(call.bob, "TR_AM");
    call.world.subscribe(call.bob, "TR_VC");
    call.resume_bob(1);
    call.world.run(MOMENT);
    let before = call.world.clients[call.bob].rtp.len();
    call.play(60..160);
    call.assert_media();
    let both = call.world.clients[call.bob].rtp.len() - before;
    assert!(both > 300, "{both}: two homes send");
    let bob = call.world.clients[call.bob].address;
    let mut homes = BTreeSet::new();
    for ((to, is_rtcp, ssrc), engines) in &call.world.sent_under {
        if *to == bob {
            assert_eq!(engines.len(), 1, "{ssrc} rtcp={is_rtcp}");
            homes.extend(engines);
        }
    }
    assert_eq!(homes, BTreeSet::from([0, 1]));
}

#[test]
fn a_subscriber_that_comes_back_late_is_not_left_without_a_key_frame() {
    let mut call = Call::new(Kinds::V0);
    call.play(0..60);
    call.world.dead.push(0);
    let restore = call.restore(call.alice, true);
    call.world
        .take_over(call.alice, 1, PeerRole::Publisher, restore);
    call.publish(1, &["TR_AM", "TR_VC"]);
    let carol = call.world.client(1, PeerRole::Single);
    call.world.subscribe(carol, "TR_VC");
    call.world.offer(carol, captures::PY_V1_JOIN);
    call.world.offer(call.alice, call.kinds.offer());
    call.is_named = false;
    call.world.run(MOMENT);
    // Carol's request is answered here, and the next is not due for a second.
    call.play(60..62);
    let restore = call.restore(call.bob, true);
    call.world
        .take_over(call.bob, 1, PeerRole::Subscriber, restore);
    call.world.subscribe(call.bob, "TR_AM");
    call.world.subscribe(call.bob, "TR_VC");
    call.resume_bob(1);
    let rtcp = call.world.clients[call.alice].rtcp.len();
    call.play(62..80);
    let asked = key_frame_requests(&call.world, call.alice, rtcp);
    assert!(asked.contains(&0x1002), "{asked:?}");
}

#[test]
fn sections_of_tracks_that_nobody_wants_any_more_are_given_up() {
    for kinds in [Kinds::V0, Kinds::V1] {
        let mut call = Call::new(kinds);
        call.play(0..30);
        call.world.dead.push(0);
        let restore = call.restore(call.bob, true);
        let sections = call.description.sections.len();
        call.world
            .take_over(call.bob, 1, kinds.subscriber(), restore);
        call.world.subscribe(call.bob, "TR_AM");
        call.resume_bob(1);
        assert_eq!(call.description.sections.len(), sections);
        call.world.run(Duration::from_millis(1_100));
        let (description, mids) = match kinds {
            Kinds::V0 => call.world.answer(call.bob),
            Kinds::V1 => call.world.offer(call.bob, captures::PY_V1_JOIN),
        };
        let kept: Vec<_> = mids.values().map(TrackSid::as_str).collect();
        assert_eq!(kept, ["TR_AM"]);
        let of = |sid: &str| {
            let found = call.mids.iter().find(|(_, track)| track.as_str() == sid);
            found.expect("carried before").0.clone()
        };
        assert_eq!(mids.keys().next(), Some(&of("TR_AM")));
        let section = description.sections.iter().find(|s| s.mid == of("TR_VC"));
        assert_eq!(section.expect("kept").direction, Direction::Inactive);
        // It serves the next track of its kind.
        call.world.subscribe(call.bob, "TR_new");
        let new = track("TR_new", Kind::Video, "cid");
        let from = Command::RelayFrom {
            track: new,
            node: NodeId(3),
            epoch: Epoch(1),
        };
        call.world.command(1, from);
        let (description, mids) = match kinds {
            Kinds::V0 => call.world.answer(call.bob),
            Kinds::V1 => {
                call.world.run(Duration::from_millis(20));
                call.world.offer(call.bob, captures::PY_V1_JOIN)
            }
        };
        assert_eq!(description.sections.len(), sections);
        assert_eq!(mids.len(), 2);
    }
}

#[test]
fn nothing_is_offered_to_a_subscriber_before_it_is_back() {
    let mut call = Call::new(Kinds::V0);
    let restore = call.restore(call.bob, true);
    call.world
        .take_over(call.bob, 1, PeerRole::Subscriber, restore);
    call.world.subscribe(call.bob, "TR_AM");
    call.world.subscribe(call.bob, "TR_VC");
    let offers = |world: &World| {
        let at_new = |(engine, event): &&(usize, Event)| {
            *engine == 1 && matches!(event, Event::Offer { .. } | Event::Failed { .. })
        };
        world.events.iter().filter(at_new).count()
    };
    call.world.run(Duration::from_secs(60));
    assert_eq!(offers(&call.world), 0);
    call.resume_bob(1);
    assert_eq!(offers(&call.world), 1);
    assert_eq!(call.mids.len(), 2);
}

#[test]
fn checkpoints_come_with_news_and_as_long_as_packets_do() {
    let mut call = Call::new(Kinds::V1);
    let count = |world: &World, client: usize| {
        world.happened(|e| matches!(e, Event::Checkpoint { peer, .. } if peer.0 == client as u64))
    };
    call.world.run(Duration::from_secs(2));
    let (alice, bob) = (call.alice, call.bob);
    assert!(count(&call.world, alice) >= 1, "since it is connected");
    let rest = count(&call.world, alice);
    call.world.run(Duration::from_secs(10));
    assert_eq!(count(&call.world, alice), rest, "nothing moves");
    call.play(0..4);
    let heard = count(&call.world, alice);
    assert!(heard > rest, "streams are new");
    let snapshot = call.world.snapshot(alice).expect("there");
    let ssrcs: BTreeSet<u32> = snapshot.received().iter().map(|(ssrc, _)| *ssrc).collect();
    let expected = BTreeSet::from([JS_AUDIO_SSRC, 0x1000, 0x1001, 0x1002]);
    assert_eq!(ssrcs, expected);
    call.play(4..254);
    let moved = count(&call.world, alice) - heard;
    assert!((4..=8).contains(&moved), "{moved} in five seconds");
    assert!(count(&call.world, bob) > 0);

    // On order it comes at once, and leaving is silent.
    call.play(254..256);
    let before = count(&call.world, alice);
    call.world.command(0, Command::Export { peer: peer(alice) });
    assert_eq!(count(&call.world, alice), before + 1);
    let snapshot = call.world.snapshot(alice).expect("there");
    assert!(snapshot.received().contains(&(0x1000, 2255)));
    let at = call.world.now;
    call.world
        .command(0, Command::ClosePeer { peer: peer(alice) });
    assert!(!call.world.clients[alice].is_closed());
    call.world.run(MOMENT);
    assert!(!call.world.clients[alice].is_closed());
    let restarts = call.world.clients[alice].data(at, |sctp| (sctp.connected, sctp.restarts));
    assert_eq!(restarts, (true, 0));
    call.world.command(0, Command::Export { peer: peer(alice) });
    assert_eq!(
        count(&call.world, alice),
        before + 1,
        "there is nothing to export"
    );
}

#[test]
fn a_rollover_is_told_at_once() {
    let mut call = Call::new(Kinds::V1);
    let (mid, ssrc, _) = call.kinds.names();
    let extensions: [(u8, &[u8]); 1] = [(MID, mid)];
    for sequence in [65_534, 65_535, 0, 1_u16] {
        let packet = rtp(111, false, sequence, 7, ssrc, &extensions, &[0x78, 1]);
        call.world.send_rtp(call.alice, &packet);
        call.world.run(Duration::from_millis(60));
    }
    let snapshot = call.world.snapshot(call.alice).expect("there");
    let (_, index) = snapshot.received()[0];
    assert!(index >= 65_536, "{index}");
}

#[test]
fn unusable_restores_are_refused_or_done_without() {
    let mut call = Call::new(Kinds::V0);
    call.play(0..10);
    let (offer, answer) = call.world.clients[call.bob].agreed.clone().expect("agreed");
    let good = call.restore(call.bob, true);
    let failed = |world: &World| world.happened(|e| matches!(e, Event::Failed { .. }));
    for descriptions in [
        ("".to_owned(), "".to_owned()),
        (offer.clone(), "v=1\r\n".to_owned()),
        ("v=0\r\n".to_owned(), "v=0\r\n".to_owned()),
        ("v=0\r\n".repeat(10_000), answer.clone()),
        (
            offer.replace("a=mid:1", "a=mid:2"),
            answer.replace("a=mid:1", "a=mid:2"),
        ),
        (offer.clone(), answer.replace("m=audio", "m=video")),
        (captures::JS_V0_ANSWER.to_owned(), offer.clone()),
    ] {
        let before = failed(&call.world);
        let restore = Restore {
            descriptions: Some(descriptions),
            ..good.clone()
        };
        // A v0 subscriber cannot go on without its sections,
        call.world
            .take_over(call.bob, 1, PeerRole::Subscriber, restore.clone());
        assert_eq!(failed(&call.world), before + 1);
        call.world.command(
            1,
            Command::ClosePeer {
                peer: peer(call.bob),
            },
        );
        // a v1 client brings them again.
        call.world.take_over(call.bob, 1, PeerRole::Single, restore);
        assert_eq!(failed(&call.world), before + 1);
        let (_, mids) = call.world.offer(call.bob, captures::PY_V1_JOIN);
        assert!(mids.is_empty());
        call.world.command(
            1,
            Command::ClosePeer {
                peer: peer(call.bob),
            },
        );
    }
    // The snapshot of another session: its client has another certificate.
    let bytes = call.world.snapshot(call.bob).expect("there").to_bytes();
    let mut other = bytes.clone();
    let fingerprint = answer.split("sha-256 ").nth(1);
    let fingerprint = fingerprint.and_then(|rest| rest.split("\r\n").next());
    let fingerprint = Fingerprint::from_str(fingerprint.expect("a fingerprint"));
    let fingerprint = fingerprint.expect("well-formed");
    let at = bytes
        .windows(32)
        .position(|window| window == fingerprint.0)
        .expect("the client's certificate is part of it");
    other[at] ^= 1;
    let restore = Restore {
        transport: Some(TransportSnapshot::from_bytes(&other).expect("reads")),
        descriptions: None,
        channels: Vec::new(),
        sequence: 0,
    };
    call.world.take_over(call.bob, 1, PeerRole::Single, restore);
    let sdp = call.world.clients[call.bob].description(captures::PY_V1_JOIN);
    let refused = |e: &Event| matches!(e, Event::DescriptionRefused { .. });
    let offer = Command::Offer {
        peer: peer(call.bob),
        id: 9,
        sdp,
    };
    call.world.command(1, offer);
    assert_eq!(call.world.happened(refused), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_restores_do_no_harm(
        which in 0..4_usize,
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
        streams in proptest::collection::vec(any::<u16>(), 0..4),
    ) {
        thread_local! {
            static SAMPLES: (Vec<u8>, [(String, String); 2]) = {
                let bytes = Call::new(Kinds::V1);
                let v1 = bytes.world.clients[bytes.bob].agreed.clone().expect("agreed");
                let v0 = Call::new(Kinds::V0);
                let v0 = v0.world.clients[v0.bob].agreed.clone().expect("agreed");
                let snapshot = bytes.world.snapshot(bytes.bob).expect("there");
                (snapshot.to_bytes(), [v0, v1])
            };
        }
        let (mut snapshot, descriptions) = SAMPLES.with(Clone::clone);
        let (mut offer, mut answer) = descriptions[which % 2].clone();
        for (at, value, how) in cuts {
            let text = if which < 2 { &mut offer } else { &mut answer };
            let mut bytes = std::mem::take(text).into_bytes();
            for bytes in [&mut bytes, &mut snapshot] {
                if bytes.is_empty() {
                    continue;
                }
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = value,
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, value),
                    // Lines twice, or gone.
                    _ => {
                        let end = (at + usize::from(value)).min(bytes.len());
                        let part = bytes[at..end].to_vec();
                        if value % 2 == 0 {
                            bytes.drain(at..end);
                        } else {
                            bytes.splice(at..at, part);
                        }
                    }
                }
            }
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        let channels = [Channel::Reliable, Channel::Lossy, Channel::DataTrack, Channel::Lossy];
        let restore = Restore {
            transport: TransportSnapshot::from_bytes(&snapshot).ok(),
            descriptions: Some((offer, answer)),
            channels: channels.into_iter().zip(streams).collect(),
            sequence: 0,
        };
        let mut world = World::new(1);
        for (index, role) in [PeerRole::Subscriber, PeerRole::Single, PeerRole::Publisher]
            .into_iter()
            .enumerate()
        {
            let id = PeerId(100 + index as u64);
            let create = Command::CreatePeer {
                peer: id,
                role,
                negotiated_channels: false,
                restore: Some(Box::new(restore.clone())),
            };
            world.command(0, create);
            for track in ["TR_AM", "TR_VC", "TR_new"] {
                let subscribe = Command::Subscribe {
                    peer: id,
                    track: track.into(),
                    stream: "PA_x".to_owned(),
                    settings: Settings::default(),
                };
                world.command(0, subscribe);
            }
            world.command(0, Command::RestartIce { peer: id });
            let sdp = captures::JS_V1_BOTH.to_owned();
            world.command(0, Command::Offer { peer: id, id: 1, sdp });
        }
        world.run(Duration::from_secs(3));
    }
}
