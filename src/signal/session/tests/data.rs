//! Data messages between sessions: numbered, addressed, permitted, queued.

use super::*;
use prost::Message as _;

fn packet(sequence: u32, to: &[&str], payload: &str) -> bytes::Bytes {
    let packet = proto::DataPacket {
        sequence,
        destination_identities: to.iter().map(|to| (*to).to_owned()).collect(),
        value: Some(proto::data_packet::Value::User(proto::UserPacket {
            payload: payload.as_bytes().to_vec(),
            ..proto::UserPacket::default()
        })),
        ..proto::DataPacket::default()
    };
    packet.encode_to_vec().into()
}

fn send(world: &mut World, seat: usize, channel: Channel, payload: bytes::Bytes) {
    world.media(seat, media::Event::Data { channel, payload });
}

fn open(world: &mut World, seat: usize) {
    for channel in [Channel::Reliable, Channel::Lossy] {
        let target = Target::Publisher;
        world.media(seat, media::Event::ChannelOpen { target, channel });
    }
    world.seats[seat].take_media();
}

fn received(world: &mut World, seat: usize) -> Vec<(Channel, proto::DataPacket)> {
    let media = world.seats[seat].take_media();
    let packets = media.into_iter().filter_map(|command| match command {
        media::Command::SendData { channel, payload } => Some((
            channel,
            proto::DataPacket::decode(payload).expect("a packet"),
        )),
        _ => None,
    });
    packets.collect()
}

fn payloads(world: &mut World, seat: usize) -> Vec<String> {
    let packets = received(world, seat)
        .into_iter()
        .map(|(_, packet)| match packet.value {
            Some(proto::data_packet::Value::User(user)) => {
                String::from_utf8(user.payload).expect("a text")
            }
            other => panic!("unexpected: {other:?}"),
        });
    packets.collect()
}

fn three() -> (World, [usize; 3]) {
    let mut world = World::new();
    let seats = ["alice", "bob", "carol"].map(|name| world.enter(name));
    for seat in seats {
        open(&mut world, seat);
        world.seats[seat].take();
    }
    (world, seats)
}

#[test]
fn packets_are_stamped_and_go_to_everybody_else() {
    let (mut world, [alice, bob, carol]) = three();
    send(&mut world, alice, Channel::Reliable, packet(1, &[], "hi"));
    assert!(received(&mut world, alice).is_empty());
    for seat in [bob, carol] {
        let packets = received(&mut world, seat);
        let [(Channel::Reliable, packet)] = &packets[..] else {
            panic!("unexpected: {packets:?}");
        };
        assert_eq!(packet.participant_identity, "alice");
        assert_eq!(
            packet.participant_sid,
            world.seats[alice].session.sid().as_str()
        );
        assert_eq!(packet.sequence, 1);
    }
    send(
        &mut world,
        alice,
        Channel::Lossy,
        packet(0, &["carol"], "hi"),
    );
    assert!(received(&mut world, bob).is_empty());
    assert_eq!(received(&mut world, carol)[0].0, Channel::Lossy);
}

#[test]
fn a_number_counts_once_and_only_upwards() {
    let (mut world, [alice, bob, _]) = three();
    for (sequence, payload) in [(1, "a"), (2, "b"), (2, "b"), (1, "a"), (4, "d"), (3, "c")] {
        send(
            &mut world,
            alice,
            Channel::Reliable,
            packet(sequence, &[], payload),
        );
    }
    assert_eq!(payloads(&mut world, bob), ["a", "b", "d"]);
    assert_eq!(world.seats[alice].session.discards().duplicate_data, 3);
    // A message that comes by another way as well is handed over once.
    let again = std::sync::Arc::clone(&world.data[0]);
    world.input(bob, Input::Data(again));
    assert!(payloads(&mut world, bob).is_empty());
    // Without numbers, every message counts.
    send(&mut world, alice, Channel::Reliable, packet(0, &[], "x"));
    send(&mut world, alice, Channel::Reliable, packet(0, &[], "x"));
    assert_eq!(payloads(&mut world, bob), ["x", "x"]);
}

#[test]
fn ten_thousand_messages_arrive_in_order_once_each() {
    let (mut world, [alice, bob, _]) = three();
    for number in 1..=10_000u32 {
        send(
            &mut world,
            alice,
            Channel::Reliable,
            packet(number, &[], &number.to_string()),
        );
    }
    let got = payloads(&mut world, bob);
    assert_eq!(got.len(), 10_000);
    assert!(
        got.iter()
            .enumerate()
            .all(|(index, payload)| *payload == (index + 1).to_string())
    );
}

#[test]
fn whoever_may_not_send_does_not() {
    let mut world = World::new();
    let mut mute = claims("mute");
    mute.video.get_or_insert_default().can_publish_data = Some(false);
    let mute = world.join(mute, parameters(true));
    send(&mut world, mute, Channel::Reliable, packet(1, &[], "no"));
    let alice = world.enter("alice");
    let speaker = proto::DataPacket {
        value: Some(proto::data_packet::Value::Transcription(
            proto::Transcription::default(),
        )),
        ..proto::DataPacket::default()
    };
    send(
        &mut world,
        alice,
        Channel::Reliable,
        speaker.encode_to_vec().into(),
    );
    send(&mut world, alice, Channel::Reliable, vec![0xff; 9].into());
    send(&mut world, alice, Channel::DataTrack, packet(1, &[], "no"));
    send(&mut world, alice, Channel::Lossy, vec![0; 300 << 10].into());
    assert!(world.data.is_empty());
    assert_eq!(world.seats[mute].session.discards().refused_data, 1);
    let discards = world.seats[alice].session.discards();
    assert_eq!((discards.refused_data, discards.malformed_data), (2, 2));
}

#[test]
fn agents_speak_for_others_and_the_hidden_for_nobody() {
    let mut world = World::new();
    let mut agent = claims("agent");
    agent.kind = "agent".into();
    let agent = world.join(agent, parameters(true));
    let mut ghost = claims("ghost");
    ghost.video.get_or_insert_default().hidden = true;
    let ghost = world.join(ghost, parameters(true));
    let bob = world.enter("bob");
    open(&mut world, bob);
    let transcription = proto::DataPacket {
        participant_identity: "alice".into(),
        value: Some(proto::data_packet::Value::Transcription(
            proto::Transcription::default(),
        )),
        ..proto::DataPacket::default()
    };
    send(
        &mut world,
        agent,
        Channel::Reliable,
        transcription.encode_to_vec().into(),
    );
    assert_eq!(received(&mut world, bob)[0].1.participant_identity, "alice");
    send(
        &mut world,
        agent,
        Channel::Reliable,
        packet(1, &[], "as myself"),
    );
    assert_eq!(received(&mut world, bob)[0].1.participant_identity, "agent");
    send(&mut world, ghost, Channel::Reliable, packet(1, &[], "boo"));
    let packet = &received(&mut world, bob)[0].1;
    assert_eq!(
        (packet.participant_identity.as_str(), packet.sequence),
        ("", 0)
    );
    assert_eq!(packet.participant_sid, "");
}

#[test]
#[expect(deprecated, reason = "older clients address by sid")]
fn old_clients_address_by_sid() {
    let (mut world, [alice, bob, carol]) = three();
    let to = |sids: Vec<String>| -> bytes::Bytes {
        let packet = proto::DataPacket {
            value: Some(proto::data_packet::Value::User(proto::UserPacket {
                payload: b"hi".to_vec(),
                destination_sids: sids,
                ..proto::UserPacket::default()
            })),
            ..proto::DataPacket::default()
        };
        packet.encode_to_vec().into()
    };
    let carol_sid = world.seats[carol].session.sid().to_string();
    send(&mut world, alice, Channel::Reliable, to(vec![carol_sid]));
    assert!(received(&mut world, bob).is_empty());
    assert_eq!(
        received(&mut world, carol)[0].1.destination_identities,
        ["carol"]
    );
    send(
        &mut world,
        alice,
        Channel::Reliable,
        to(vec!["PA_gone".into()]),
    );
    assert!(received(&mut world, bob).is_empty() && received(&mut world, carol).is_empty());
}

#[test]
fn messages_wait_for_the_channel_up_to_a_limit() {
    let mut config = config();
    config.limits.data_queue_bytes_max = 1000;
    let mut world = World::with(config);
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    for number in 1..=3 {
        send(
            &mut world,
            alice,
            Channel::Reliable,
            packet(number, &[], &number.to_string()),
        );
    }
    assert!(received(&mut world, bob).is_empty());
    let (target, channel) = (Target::Publisher, Channel::Reliable);
    world.media(bob, media::Event::ChannelOpen { target, channel });
    assert_eq!(payloads(&mut world, bob), ["1", "2", "3"]);

    let carol = world.enter("carol");
    for number in 4..=7 {
        let payload = number.to_string().repeat(300);
        send(
            &mut world,
            alice,
            Channel::Reliable,
            packet(number, &[], &payload),
        );
    }
    world.media(carol, media::Event::ChannelOpen { target, channel });
    let got = payloads(&mut world, carol);
    assert!(
        got.len() < 4 && got.last().is_some_and(|last| last.starts_with('7')),
        "{got:?}"
    );
    assert_eq!(
        world.seats[carol].session.discards().overflown_data,
        4 - got.len() as u64
    );
}

#[test]
fn v0_receives_on_its_subscriber_connection() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.join(claims("bob"), parameters(false));
    send(&mut world, alice, Channel::Reliable, packet(1, &[], "hi"));
    let channel = Channel::Reliable;
    let target = Target::Publisher;
    world.media(bob, media::Event::ChannelOpen { target, channel });
    assert!(received(&mut world, bob).is_empty());
    let target = Target::Subscriber;
    world.media(bob, media::Event::ChannelOpen { target, channel });
    assert_eq!(payloads(&mut world, bob), ["hi"]);
}

#[test]
fn what_comes_during_the_join_is_handed_over_after_it() {
    let (mut world, [alice, ..]) = three();
    send(
        &mut world,
        alice,
        Channel::Reliable,
        packet(1, &[], "before"),
    );
    let message = std::sync::Arc::clone(&world.data[0]);
    let dave = world.begin_join(claims("dave"), parameters(true));
    let now = world.now;
    world.seats[dave]
        .session
        .handle(now, Input::Data(std::sync::Arc::clone(&message)));
    world.run();
    world.input(dave, Input::Data(message));
    let (target, channel) = (Target::Publisher, Channel::Reliable);
    world.media(dave, media::Event::ChannelOpen { target, channel });
    assert_eq!(payloads(&mut world, dave), ["before"]);
}

/// The client's connection has acknowledged a message that its session had not seen when another node took it over.
#[test]
fn the_last_messages_before_a_move_are_passed_on_and_those_of_the_removed_are_not() {
    let (mut world, [alice, bob, carol]) = three();
    world.adopt("alice", parameters(true));
    world.command(remove("carol"));
    world.seats[bob].take_media();
    for (seat, said) in [(alice, "moved"), (carol, "removed")] {
        let payload = packet(1, &[], said);
        world.seats[seat].session.take_last_data(&payload);
        // It comes once, however often.
        world.seats[seat].session.take_last_data(&payload);
    }
    world.run();
    assert_eq!(payloads(&mut world, bob), ["moved"]);
}
