//! Sessions that another node takes over.

use super::*;
use crate::data::DataOut;
use crate::session::{Claimed, Session};
use bytes::Bytes;
use flotilla_model::State;
use flotilla_model::command::Rehome;
use flotilla_model::id::{Epoch, NodeId, ParticipantSid, Version};
use std::sync::Arc;

fn home(world: &World, identity: &str) -> NodeId {
    world.room().participants[&Identity::from(identity)].home
}

/// What a client says of itself when it comes back.
fn sync_state(tracks: &[&TrackSid]) -> proto::SyncState {
    let description = |kind: &str| proto::SessionDescription {
        r#type: kind.into(),
        sdp: format!("v=0 {kind}"),
        ..proto::SessionDescription::default()
    };
    let channel = |label: &str, id, target: proto::SignalTarget| proto::DataChannelInfo {
        label: label.into(),
        id,
        target: target as i32,
    };
    proto::SyncState {
        offer: Some(description("offer")),
        answer: Some(description("answer")),
        publish_tracks: tracks
            .iter()
            .map(|sid| proto::TrackPublishedResponse {
                cid: String::new(),
                track: Some(proto::TrackInfo {
                    sid: sid.to_string(),
                    ..proto::TrackInfo::default()
                }),
            })
            .collect(),
        data_channels: vec![
            channel("_reliable", 1, proto::SignalTarget::Publisher),
            channel("_lossy", 4, proto::SignalTarget::Subscriber),
            channel("_unheard_of", 6, proto::SignalTarget::Subscriber),
            channel("_reliable", 70_000, proto::SignalTarget::Subscriber),
        ],
        ..proto::SyncState::default()
    }
}

#[test]
fn goes_on_from_the_record_and_nobody_else_notices() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let camera = world.publish(alice, camera());
    let microphone = world.publish(alice, microphone());
    let of_bob = world.publish(bob, crate::session::testing::microphone());
    world.ask(
        alice,
        Asked::Mute(proto::MuteTrackRequest {
            sid: microphone.to_string(),
            muted: true,
        }),
    );
    let sid = world.seats[alice].session.sid().clone();
    world.seats[bob].take();
    let next = world.adopt("alice", parameters(true));
    assert_eq!(home(&world, "alice"), NodeId(2));
    assert_eq!(*world.seats[next].session.sid(), sid);
    assert!(matches!(
        world.seats[alice].closed.last(),
        Some(Close::Session { .. })
    ));

    let replies = world.seats[next].take();
    assert!(matches!(&replies[0], Message::Reconnect(reconnect)
        if reconnect.server_info.is_some() && reconnect.last_message_seq == 7));
    let Message::Update(update) = &replies[1] else {
        panic!("everybody comes next, not {:?}", replies[1]);
    };
    let mut names: Vec<_> = update.participants.iter().map(|p| &p.identity).collect();
    names.sort_unstable();
    assert_eq!(names, ["alice", "bob"]);
    assert!(
        world.seats[next].take_media().is_empty(),
        "the client has not said what it has"
    );

    let state = sync_state(&[&camera, &microphone]);
    world.ask(next, Asked::SyncState(state));
    let media = world.seats[next].take_media();
    let [
        media::Command::CreatePeers {
            single: true,
            restore: Some(restore),
            ..
        },
        rest @ ..,
    ] = &media[..]
    else {
        panic!("unexpected: {media:?}");
    };
    assert_eq!(
        restore.descriptions,
        Some(("v=0 offer".into(), "v=0 answer".into()))
    );
    assert_eq!(
        restore.channels,
        [
            (Target::Publisher, Channel::Reliable, 1),
            (Target::Subscriber, Channel::Lossy, 4),
        ]
    );
    let epoch = world.room().participants[&Identity::from("alice")].epoch;
    let mut published = Vec::new();
    let mut subscribed = Vec::new();
    let mut muted = Vec::new();
    for command in rest {
        match command {
            media::Command::Publish { track, epoch: with } => {
                assert_eq!(*with, epoch, "with the new epoch");
                assert!(track.codecs.iter().all(|codec| !codec.mid.is_empty()));
                published.push(track.sid.clone());
            }
            media::Command::SetMuted { track, muted: true } => muted.push(track.clone()),
            media::Command::Subscribe { track, .. } => subscribed.push(track.clone()),
            other => panic!("unexpected: {other:?}"),
        }
    }
    published.sort_unstable();
    let mut both = [camera, microphone.clone()];
    both.sort_unstable();
    assert_eq!(published, both);
    assert_eq!((muted, subscribed), (vec![microphone], vec![of_bob]));
    world.ask(next, Asked::Offer(offer(3)));
    assert!(matches!(
        world.seats[next].take_media()[..],
        [media::Command::Offer { id: 3, .. }]
    ));
    assert!(world.seats[bob].take().is_empty(), "bob is told nothing");
    world.advance(Duration::from_secs(60));
    assert_eq!(world.room().participants.len(), 2);
    assert!(world.seats[next].closed.is_empty());
}

#[test]
fn v0_offers_once_everything_is_subscribed() {
    let mut world = World::new();
    let alice = world.join(claims("alice"), parameters(false));
    let bob = world.enter("bob");
    let track = world.publish(bob, microphone());
    world.input(alice, Input::SignalClosed);
    let next = world.adopt("alice", parameters(false));
    world.ask(next, Asked::SyncState(sync_state(&[])));
    let media = world.seats[next].take_media();
    assert!(
        matches!(&media[..], [
            media::Command::CreatePeers { single: false, restore: Some(_), .. },
            media::Command::Subscribe { track: subscribed, .. },
            media::Command::RestartIce,
        ] if *subscribed == track),
        "unexpected: {media:?}"
    );
}

#[test]
fn a_client_that_says_nothing_of_itself_gets_new_peers() {
    let mut world = World::new();
    world.enter("alice");
    let next = world.adopt("alice", parameters(true));
    world.ask(next, Asked::Offer(offer(3)));
    let media = world.seats[next].take_media();
    assert!(
        matches!(&media[..], [
            media::Command::CreatePeers { restore: Some(restore), .. },
            media::Command::Offer { .. },
        ] if restore.descriptions.is_none() && restore.channels.is_empty()),
        "unexpected: {media:?}"
    );
}

/// A message of somebody else, whose payload is its number.
fn said(from: &ParticipantSid, sequence: u32) -> Input<'static> {
    Input::Data(Arc::new(DataOut {
        from: from.clone(),
        from_identity: "bob".into(),
        channel: Channel::Reliable,
        destinations: Vec::new(),
        sequence,
        content: 2,
        payload: Bytes::copy_from_slice(&[sequence as u8]),
    }))
}

/// A client says up to which number it has somebody's messages, and its channel opens.
fn goes_on(world: &mut World, seat: usize, from: &ParticipantSid, last_seq: u32) {
    let state = proto::SyncState {
        datachannel_receive_states: vec![proto::DataChannelReceiveState {
            publisher_sid: from.to_string(),
            last_seq,
        }],
        ..sync_state(&[])
    };
    world.ask(seat, Asked::SyncState(state));
    let (target, channel) = (Target::Publisher, Channel::Reliable);
    world.media(seat, media::Event::ChannelOpen { target, channel });
}

/// Payloads of the messages handed to a client since this was asked last.
fn heard(world: &mut World, seat: usize) -> Vec<u8> {
    let commands = world.seats[seat].take_media().into_iter();
    let payloads = commands.filter_map(|command| match command {
        media::Command::SendData { payload, .. } => Some(payload[0]),
        _ => None,
    });
    payloads.collect()
}

#[test]
fn data_waits_until_the_client_has_said_what_it_has() {
    let mut world = World::new();
    world.enter("alice");
    let bob = world.enter("bob");
    let from = world.seats[bob].session.sid().clone();
    let next = world.begin_adopt("alice", parameters(true));
    world.run();
    let message = |sequence: u32| said(&from, sequence);
    // A new one comes before those that bob's node sends again.
    for sequence in [3, 1, 2, 3] {
        world.input(next, message(sequence));
    }
    world.input(next, Input::Claimed(Box::default()));
    world.input(next, message(4));
    assert!(world.seats[next].take_media().is_empty());
    goes_on(&mut world, next, &from, 1);
    assert_eq!(heard(&mut world, next), [2, 3, 4]);
    // What is new comes before what another node sends again on its own way.
    let sent = |world: &mut World| heard(world, next);
    for sequence in [7, 8, 5, 5] {
        world.input(next, message(sequence));
    }
    assert_eq!(sent(&mut world), [5]);
    world.input(next, message(6));
    assert_eq!(sent(&mut world), [6, 7, 8]);
    // What was meant for others never comes, and is not waited for in vain.
    for sequence in [12, 11] {
        world.input(next, message(sequence));
    }
    assert!(sent(&mut world).is_empty());
    world.advance(Duration::from_secs(1));
    assert_eq!(sent(&mut world), [11, 12]);
    world.input(next, message(20));
    assert_eq!(sent(&mut world), [20], "nothing is late any more");
}

#[test]
fn what_somebody_said_who_has_left_is_not_said_again() {
    let mut world = World::new();
    world.enter("alice");
    let next = world.begin_adopt("alice", parameters(true));
    world.run();
    world.input(next, Input::Claimed(Box::default()));
    let left = ParticipantSid("PA_left".into());
    for sequence in 1..=3 {
        world.input(next, said(&left, sequence));
    }
    goes_on(&mut world, next, &left, 2);
    assert_eq!(heard(&mut world, next), [3]);
}

#[test]
fn asks_again_with_the_epoch_that_holds() {
    let mut world = World::new();
    world.enter("alice");
    let before = world.room().participants[&Identity::from("alice")].clone();
    let next = world.begin_adopt("alice", parameters(true));
    // Its verdict on the former home comes first.
    world.command(Command::Rehome {
        moves: vec![Rehome {
            room: "room".into(),
            identity: "alice".into(),
            sid: before.sid.clone(),
            epoch: before.epoch,
            home: NodeId(1),
        }],
    });
    let claimed = world.seats[next].claimed.expect("the second time");
    let present = &world.room().participants[&Identity::from("alice")];
    assert_eq!((present.home, present.epoch), (NodeId(2), claimed));
    assert!(claimed > before.epoch);
}

fn assert_published_under(now: Epoch, sid: &TrackSid, media: &[media::Command]) {
    assert!(
        media.iter().any(|command| matches!(
            command,
            media::Command::Publish { track, epoch } if track.sid == *sid && *epoch == now
        )),
        "other nodes would refuse the track: {media:?}"
    );
}

#[test]
fn tracks_follow_a_new_epoch_of_the_same_home() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let camera = world.publish(alice, camera());
    let next = world.adopt("alice", parameters(true));
    world.ask(next, Asked::SyncState(sync_state(&[&camera])));
    world.seats[next].take_media();
    let present = world.room().participants[&Identity::from("alice")].clone();
    let moves = vec![Rehome {
        room: "room".into(),
        identity: "alice".into(),
        sid: present.sid.clone(),
        epoch: present.epoch,
        home: NodeId(2),
    }];
    world.command(Command::Rehome { moves });
    let now = world.room().participants[&Identity::from("alice")].epoch;
    assert!(now > present.epoch);
    let media = world.seats[next].take_media();
    assert_published_under(now, &camera, &media);
}

#[test]
fn tracks_follow_a_new_epoch_that_a_gap_of_the_events_hides() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let camera = world.publish(alice, camera());
    world.seats[alice].take_media();
    let mut room = (**world.room()).clone();
    room.version = Version(room.version.0 + 1);
    let mut own = (*room.participants[&Identity::from("alice")]).clone();
    own.epoch = Epoch(own.epoch.0 + 1);
    let now = own.epoch;
    room.participants.insert("alice".into(), own.into());
    let room = std::sync::Arc::new(room);
    world.input(alice, Input::Snapshot { room: Some(&room) });
    let media = world.seats[alice].take_media();
    assert_published_under(now, &camera, &media);
}

#[test]
fn who_was_removed_meanwhile_is_told_so() {
    let mut world = World::new();
    world.enter("alice");
    world.enter("bob");
    let next = world.begin_adopt("alice", parameters(true));
    world.command(remove("alice"));
    let told = leave(&world, next).expect("told of it");
    assert_eq!(told.action, Action::Disconnect as i32);
    assert_eq!(
        told.reason,
        proto::DisconnectReason::ParticipantRemoved as i32
    );
    assert!(matches!(
        world.seats[next].closed.last(),
        Some(Close::Session { .. })
    ));
    assert_eq!(world.room().participants.len(), 1);
}

#[test]
fn without_quorum_the_participant_stays_for_the_next_try() {
    let mut world = World::new();
    world.enter("alice");
    world.minority = true;
    let next = world.begin_adopt("alice", parameters(true));
    world.run();
    world.advance(Duration::from_secs(3));
    assert!(world.seats[next].closed.is_empty(), "it keeps asking");
    world.input(next, Input::SignalClosed);
    assert!(matches!(
        world.seats[next].closed.last(),
        Some(Close::Session { .. })
    ));
    world.minority = false;
    world.advance(Duration::from_secs(1));
    assert_eq!(home(&world, "alice"), NodeId(1));
    world.adopt("alice", parameters(true));
    assert_eq!(home(&world, "alice"), NodeId(2));
}

#[test]
fn how_tracks_are_wanted_moves_along() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let track = world.publish(bob, camera());
    let keepsake = |session: &mut Session| {
        let changed = session.take_keepsake_changed();
        changed.then(|| session.keepsake().expect("it is in the room"))
    };
    assert!(keepsake(&mut world.seats[alice].session).is_none());
    world.ask(
        alice,
        Asked::TrackSetting(proto::UpdateTrackSettings {
            track_sids: vec![track.to_string()],
            quality: proto::VideoQuality::Low as i32,
            ..proto::UpdateTrackSettings::default()
        }),
    );
    let kept = keepsake(&mut world.seats[alice].session).expect("changed");
    assert!(keepsake(&mut world.seats[alice].session).is_none());
    let next = world.begin_adopt("alice", parameters(true));
    world.run();
    let claimed = Claimed {
        keepsake: Some(kept.clone()),
        last_sequence: 0,
        acknowledged: 0,
    };
    world.input(next, Input::Claimed(Box::new(claimed)));
    world.ask(next, Asked::SyncState(sync_state(&[])));
    let media = world.seats[next].take_media();
    assert!(
        media.iter().any(|command| matches!(command,
            media::Command::Subscribe { settings, .. } if settings.quality == Quality::Low)),
        "unexpected: {media:?}"
    );
    assert_eq!(
        keepsake(&mut world.seats[next].session),
        Some(kept),
        "and on to the next"
    );
}

#[test]
fn clients_on_the_rust_core_are_asked_by_closing_alone() {
    let mut world = World::new();
    let mut python = parameters(true);
    python.client.sdk = proto::client_info::Sdk::Python as i32;
    let alice = world.join(claims("alice"), python);
    world.input(alice, Input::Drain);
    assert_eq!(leave(&world, alice), None);
    assert_eq!(world.seats[alice].closed, [Close::Signal]);
    world.input(alice, Input::SignalClosed);
    world.advance(Duration::from_secs(2));
    assert_eq!(home(&world, "alice"), NodeId(1));
}

#[test]
fn a_client_that_has_just_resumed_is_asked_a_little_later() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.input(alice, Input::SignalClosed);
    world.resume(alice, parameters(true));
    world.seats[alice].take();
    world.advance(Duration::from_secs(2));
    world.input(alice, Input::Drain);
    assert_eq!(leave(&world, alice), None);
    world.advance(Duration::from_secs(2));
    assert_eq!(leave(&world, alice), None);
    world.advance(Duration::from_secs(1));
    let told = leave(&world, alice).expect("told to resume");
    assert_eq!(told.action, Action::Resume as i32);
}

#[test]
fn a_drained_session_goes_on_until_another_node_has_it() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    world.seats[bob].take();
    world.input(alice, Input::Drain);
    let told = leave(&world, alice).expect("told to resume");
    assert_eq!(told.action, Action::Resume as i32);
    assert_eq!(world.seats[alice].closed, [Close::Farewell]);
    world.input(alice, Input::SignalClosed);
    world.advance(Duration::from_secs(2));
    assert_eq!(home(&world, "alice"), NodeId(1));
    world.adopt("alice", parameters(true));
    assert_eq!(home(&world, "alice"), NodeId(2));
    assert!(matches!(
        world.seats[alice].closed.last(),
        Some(Close::Session { .. })
    ));
    assert!(world.seats[bob].take().is_empty(), "bob is told nothing");
}

/// What the engine is told of a client that its node sent away.
fn quiet(world: &mut World, seat: usize) -> Vec<bool> {
    let commands = world.seats[seat].media.drain(..);
    let quiet = commands.filter_map(|command| match command {
        media::Command::SetQuiet { quiet } => Some(quiet),
        _ => None,
    });
    quiet.collect()
}

#[test]
fn who_is_sent_away_hears_nothing_from_here_until_it_is_back() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    world.seats[bob].take();
    world.input(alice, Input::LeaseLapsed);
    world.input(alice, Input::Drain);
    let told = leave(&world, alice).expect("told to resume");
    assert_eq!(told.action, Action::Resume as i32);
    // Its connection is left to it, and nobody says here when it has closed that.
    assert_eq!(world.seats[alice].closed, [Close::Farewell]);
    assert_eq!(quiet(&mut world, alice), [true]);
    // It found nobody, and goes on here.
    world.resume(alice, parameters(true));
    assert_eq!(quiet(&mut world, alice), [false]);
    // It has no connection now, and may be elsewhere by the time it has one.
    world.input(alice, Input::SignalClosed);
    assert_eq!(quiet(&mut world, alice), [true]);
    world.adopt("alice", parameters(true));
    assert_eq!(home(&world, "alice"), NodeId(2));
    assert!(world.seats[bob].take().is_empty(), "bob is told nothing");
}

#[test]
fn who_is_without_a_connection_hears_nothing_from_here_while_the_lease_is_over() {
    const NOTHING: [bool; 0] = [];
    let mut world = World::new();
    let alice = world.enter("alice");
    world.input(alice, Input::LeaseLapsed);
    assert_eq!(quiet(&mut world, alice), NOTHING, "it is still here");
    world.input(alice, Input::SignalClosed);
    assert_eq!(quiet(&mut world, alice), [true]);
    world.resume(alice, parameters(true));
    assert_eq!(quiet(&mut world, alice), [false], "it found nobody else");
    world.input(alice, Input::SignalClosed);
    world.input(alice, Input::LeaseLapsed);
    assert_eq!(quiet(&mut world, alice), [true], "once");
    // The log says that the participant's home is here: as any other, also when it is gone the next time.
    world.input(alice, Input::LeaseHolds);
    assert_eq!(quiet(&mut world, alice), [false]);
    world.resume(alice, parameters(true));
    world.input(alice, Input::SignalClosed);
    assert_eq!(quiet(&mut world, alice), NOTHING);
}

#[test]
fn only_its_own_client_may_have_a_session() {
    let mut world = World::new();
    world.enter("alice");
    let participant = world.room().participants[&Identity::from("alice")].clone();
    let asks = |sid: Option<&str>| crate::connect::Reconnect {
        sid: sid.map(|sid| ParticipantSid(sid.into())),
        reason: 0,
    };
    let may = |identity: &str, sid, room| {
        crate::session::may_adopt(&claims(identity), &asks(sid), room, &participant)
    };
    assert!(may("alice", None, "room"));
    assert!(may("alice", Some(participant.sid.as_str()), "room"));
    assert!(!may("alice", Some("PA_other"), "room"));
    assert!(!may("bob", None, "room"));
    assert!(!may("alice", None, "another room"));
}

/// A node wakes up: its log says that somebody has another home, and its session has not heard of it yet.
#[test]
fn who_is_at_home_elsewhere_changes_nothing_here_any_more() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let track = world.publish(alice, camera());
    let session = &world.seats[alice].session;
    let (room, identity) = (session.room().clone(), session.identity().clone());
    let unpublish = Command::UnpublishTrack {
        room: room.clone(),
        identity: identity.clone(),
        track,
    };
    let leave = Command::Leave {
        room: room.clone(),
        identity: identity.clone(),
        sid: Some(session.sid().clone()),
        reason: LeaveReason::ClientInitiated,
        revoke_before: None,
    };
    let here = world.state.clone();
    assert!(!session.comes_late(&unpublish, &here));
    let present = &here.rooms[&room].participants[&identity];
    world.command(Command::Rehome {
        moves: vec![Rehome {
            room,
            identity,
            sid: present.sid.clone(),
            epoch: present.epoch,
            home: NodeId(2),
        }],
    });
    let session = &world.seats[alice].session;
    assert!(session.comes_late(&unpublish, &world.state));
    assert!(
        !session.comes_late(&leave, &world.state),
        "that names the session"
    );
    assert!(
        !session.comes_late(&unpublish, &State::default()),
        "or who is not there"
    );
}
