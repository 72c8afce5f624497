//! Joins, both ways, and how sessions end.

use super::*;
use crate::token::{VideoGrant, verify};

fn join_response(replies: &[Message]) -> &proto::JoinResponse {
    match replies.first() {
        Some(Message::Join(join)) => join,
        other => panic!("join comes first, not {other:?}"),
    }
}

#[test]
fn v0_gets_two_connections_and_waits_for_our_offer() {
    let mut world = World::new();
    let alice = world.join(claims("alice"), parameters(false));
    let replies = world.seats[alice].take();
    let join = join_response(&replies);
    assert!(join.subscriber_primary && join.fast_publish);
    let info = join.server_info.as_ref().expect("server info");
    assert_eq!((info.protocol, info.edition), (17, 0));
    assert!(!info.version.is_empty() && join.server_version == info.version);
    assert_eq!((join.ping_interval, join.ping_timeout), (5, 15));
    assert_eq!(
        join.room.as_ref().map(|room| room.num_participants),
        Some(1)
    );
    let me = join.participant.as_ref().expect("participant");
    assert_eq!((me.identity.as_str(), me.state), ("alice", 1));
    assert!(
        matches!(&replies[1], Message::RefreshToken(token) if verify(
        token, &world.config.keys, world.wall()).is_ok())
    );
    assert_eq!(replies.len(), 2);
    let media = world.seats[alice].take_media();
    assert!(matches!(
        media[..],
        [media::Command::CreatePeers { single: false, .. }]
    ));

    // Our offer out, the client's answer in, and only the subscriber connection counts.
    world.media(
        alice,
        media::Event::Offer {
            target: Target::Subscriber,
            id: 77,
            sdp: "v=0".into(),
            mid_to_track: Default::default(),
        },
    );
    let replies = world.seats[alice].take();
    assert!(matches!(&replies[..], [Message::Offer(offer)] if offer.id == 77));
    let answer = proto::SessionDescription {
        r#type: "answer".into(),
        id: 77,
        ..offer(77)
    };
    world.ask(alice, Asked::Answer(answer));
    let media = world.seats[alice].take_media();
    assert!(matches!(
        media[..],
        [media::Command::Answer {
            target: Target::Subscriber,
            id: 77,
            ..
        }]
    ));
    let state = |world: &World| world.room().participants.values().next().map(|p| p.state);
    let target = Target::Publisher;
    world.media(alice, media::Event::Connected { target });
    assert_eq!(state(&world), Some(ParticipantState::Joined));
    let target = Target::Subscriber;
    world.media(alice, media::Event::Connected { target });
    assert_eq!(state(&world), Some(ParticipantState::Active));
}

#[test]
fn v1_offer_and_tracks_of_the_join_request_reach_the_engine_at_once() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let track = world.publish(alice, camera());
    let mut parameters = parameters(true);
    parameters.publisher_offer = Some(offer(1));
    parameters.add_tracks = vec![microphone()];
    let bob = world.join(claims("bob"), parameters);
    let media = world.seats[bob].take_media();
    let [
        media::Command::CreatePeers {
            single: true,
            negotiated_channels: false,
            restore: None,
        },
        media::Command::Publish {
            track: published, ..
        },
        media::Command::Subscribe {
            track: subscribed, ..
        },
        media::Command::Offer {
            target: Target::Publisher,
            id: 1,
            ..
        },
    ] = &media[..]
    else {
        panic!("unexpected: {media:?}");
    };
    assert_eq!(published.codecs[0].cid, "mic");
    assert_eq!(*subscribed, track);
    let replies = world.seats[bob].take();
    let join = join_response(&replies);
    assert!(!join.subscriber_primary && join.fast_publish);
    assert_eq!(join.other_participants.len(), 1);
    assert_eq!(join.other_participants[0].tracks[0].sid, track.as_str());
    assert!(matches!(&replies[2], Message::TrackPublished(published) if published.cid == "mic"));
    world.media(
        bob,
        media::Event::Answer {
            target: Target::Publisher,
            id: 1,
            sdp: "v=0".into(),
            mid_to_track: [("3".to_owned(), track.clone())].into(),
        },
    );
    let replies = world.seats[bob].take();
    assert!(matches!(&replies[..], [Message::Answer(answer)]
        if answer.id == 1 && answer.mid_to_track_id["3"] == track.as_str()));
}

#[test]
fn others_hear_of_comings_and_goings() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.seats[alice].take();
    let bob = world.enter("bob");
    let updates = world.seats[alice].take_updates();
    assert_eq!(updates.len(), 1);
    assert_eq!((updates[0].identity.as_str(), updates[0].state), ("bob", 1));
    let target = Target::Publisher;
    world.media(bob, media::Event::Connected { target });
    assert_eq!(world.seats[alice].take_updates()[0].state, 2);
    world.ask(bob, Asked::Leave(proto::LeaveRequest::default()));
    let updates = world.seats[alice].take_updates();
    assert_eq!((updates[0].identity.as_str(), updates[0].state), ("bob", 3));
    assert_eq!(updates[0].disconnect_reason, 1);
    let reason = LeaveReason::ClientInitiated;
    assert_eq!(
        world.seats[bob].closed,
        [Close::Signal, Close::Session { reason }]
    );
    assert_eq!(world.room().participants.len(), 1);
}

#[test]
fn whichever_comes_first_outcome_or_events_a_joiner_sees_everybody_once() {
    for outcome_first in [false, true] {
        let mut world = World::new();
        world.outcome_first = outcome_first;
        world.enter("alice");
        // The two joins are in the log one after the other before either session hears of its own.
        let bob = world.begin_join(claims("bob"), parameters(true));
        let carol = world.begin_join(claims("carol"), parameters(true));
        world.run();
        for (seat, other) in [(bob, "carol"), (carol, "bob")] {
            let replies = world.seats[seat].take();
            let joined = join_response(&replies).other_participants.iter();
            let updated = replies.iter().filter_map(|reply| match reply {
                Message::Update(update) => Some(&update.participants),
                _ => None,
            });
            let mut seen: Vec<_> = joined
                .chain(updated.flatten())
                .map(|p| &p.identity)
                .collect();
            seen.sort();
            assert_eq!(seen, ["alice", other]);
        }
    }
}

#[test]
fn hidden_participants_are_not_shown() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let mut ghost = claims("ghost");
    ghost.video.get_or_insert_default().hidden = true;
    world.seats[alice].take();
    let ghost = world.join(ghost, parameters(true));
    assert!(world.seats[alice].take_updates().is_empty());
    let replies = world.seats[ghost].take();
    assert_eq!(join_response(&replies).other_participants.len(), 1);
    let bob = world.enter("bob");
    let replies = world.seats[bob].take();
    let others = &join_response(&replies).other_participants;
    assert_eq!(others.len(), 1);
    assert_eq!(others[0].identity, "alice");
}

#[test]
fn the_newest_session_of_an_identity_stays() {
    let mut world = World::new();
    let watcher = world.enter("watcher");
    let old = world.enter("alice");
    world.seats[watcher].take();
    let new = world.enter("alice");
    let told = leave(&world, old).expect("told to leave");
    assert_eq!(
        told.reason,
        proto::DisconnectReason::DuplicateIdentity as i32
    );
    assert_eq!(told.action, Action::Disconnect as i32);
    let reason = LeaveReason::DuplicateIdentity;
    assert_eq!(
        world.seats[old].closed.last(),
        Some(&Close::Session { reason })
    );
    assert!(leave(&world, new).is_none());
    // The others see one identity whose sid changes.
    let updates = world.seats[watcher].take_updates();
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].sid, world.seats[new].session.sid().as_str());
}

#[test]
fn removal_and_deletion_are_final() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    world.command(remove("alice"));
    let told = leave(&world, alice).expect("told to leave");
    assert_eq!(
        told.reason,
        proto::DisconnectReason::ParticipantRemoved as i32
    );
    assert_eq!(told.action, Action::Disconnect as i32);
    world.command(Command::DeleteRoom {
        room: "room".into(),
    });
    let told = leave(&world, bob).expect("told to leave");
    assert_eq!(told.reason, proto::DisconnectReason::RoomDeleted as i32);
    assert!(
        world
            .seats
            .iter()
            .all(|seat| seat.session.deadline().is_none())
    );
}

#[test]
fn a_join_that_the_log_refuses_is_an_http_error() {
    let mut world = World::with(crate::config::SessionConfig {
        auto_create: false,
        ..config()
    });
    let alice = world.enter("alice");
    let refused = world.seats[alice].refused.clone().expect("refused");
    assert_eq!(
        (refused.status, refused.text.as_str()),
        (404, "requested room does not exist")
    );
    assert!(world.seats[alice].replies.is_empty());
    assert!(matches!(
        world.seats[alice].closed[..],
        [Close::Session { .. }]
    ));
}

#[test]
fn a_join_without_quorum_is_refused_and_undone_later() {
    let mut world = World::new();
    world.minority = true;
    let alice = world.enter("alice");
    assert_eq!(
        world.seats[alice].refused.as_ref().map(|e| e.status),
        Some(503)
    );
    assert!(world.seats[alice].closed.is_empty());
    world.minority = false;
    world.advance(Duration::from_secs(2));
    assert!(matches!(
        world.seats[alice].closed[..],
        [Close::Session { .. }]
    ));
}

#[test]
fn a_client_that_went_away_during_its_join_leaves_again() {
    let mut world = World::new();
    let alice = world.begin_join(claims("alice"), parameters(true));
    let now = world.now;
    world.seats[alice].session.handle(now, Input::SignalClosed);
    world.run();
    assert!(world.seats[alice].replies.is_empty());
    assert!(world.room().participants.is_empty());
}

#[test]
fn room_configuration_of_the_token_makes_the_room() {
    let mut world = World::new();
    let mut alice = claims("alice");
    alice.room_config = serde_json::from_str(
        r#"{"maxParticipants":3,"departure_timeout":7,"metadata":"m","tags":{"a":"b"},"agents":[{}]}"#,
    )
    .expect("a room configuration");
    world.join(alice, parameters(true));
    let room = world.room();
    assert_eq!(room.options.max_participants, 3);
    assert_eq!(room.options.departure_timeout_ms, 7000);
    assert_eq!(room.options.empty_timeout_ms, 300_000);
    assert_eq!(room.metadata, "m");
}

#[test]
fn tokens_are_renewed_in_time_and_when_the_claims_change() {
    let mut world = World::new();
    let mut alice = claims("alice");
    alice.exp = Some(world.wall().0 / 1000 + 30);
    let alice = world.join(alice, parameters(true));
    let token = |world: &mut World| {
        let tokens = world.seats[alice]
            .take()
            .into_iter()
            .filter_map(|reply| match reply {
                Message::RefreshToken(token) => Some(token),
                _ => None,
            });
        let tokens: Vec<_> = tokens.collect();
        assert_eq!(tokens.len(), 1);
        verify(&tokens[0], &world.config.keys, world.wall()).expect("valid")
    };
    let first = token(&mut world);
    assert_eq!(first.exp, Some(world.wall().0 / 1000 + 600));
    world.advance(Duration::from_secs(301));
    let second = token(&mut world);
    assert_eq!(second.exp, Some(first.exp.unwrap_or(0) + 300));
    assert_eq!(second.joinable_room(None), Ok("room"));
    let mut permission = second.permission();
    permission.can_publish = false;
    world.command(update(
        "alice",
        ParticipantUpdate {
            metadata: Some("new".into()),
            permission: Some(permission),
            ..ParticipantUpdate::default()
        },
    ));
    let third = token(&mut world);
    assert_eq!(third.metadata, "new");
    assert_eq!(
        third.video.as_ref().and_then(|video| video.can_publish),
        Some(false)
    );
}

#[test]
fn a_node_that_stops_sends_its_clients_elsewhere() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.input(alice, Input::Shutdown);
    let told = leave(&world, alice).expect("told to leave");
    assert_eq!(told.action, Action::Reconnect as i32);
    assert!(world.room().participants.is_empty());
    let joining = world.begin_join(claims("bob"), parameters(true));
    let now = world.now;
    world.seats[joining].session.handle(now, Input::Shutdown);
    world.run();
    assert_eq!(
        world.seats[joining].refused.as_ref().map(|e| e.status),
        Some(503)
    );
}

#[test]
fn a_departure_is_asked_for_until_there_is_a_quorum() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.minority = true;
    world.ask(alice, Asked::Leave(proto::LeaveRequest::default()));
    assert_eq!(world.seats[alice].closed, [Close::Signal]);
    world.advance(Duration::from_secs(30));
    assert_eq!(world.seats[alice].closed, [Close::Signal]);
    world.minority = false;
    world.advance(Duration::from_secs(1));
    assert!(world.room().participants.is_empty());
    assert_eq!(world.seats[alice].closed.len(), 2);
}

#[test]
fn metadata_changes_need_permission_and_are_answered() {
    let mut world = World::new();
    let mut new = parameters(true);
    new.client.protocol = 18;
    let alice = world.join(claims("alice"), new.clone());
    let bob = world.enter("bob");
    let mut mallory = claims("mallory");
    mallory.video = Some(VideoGrant {
        can_update_own_metadata: None,
        ..mallory.video.unwrap_or_default()
    });
    let mallory = world.join(mallory, new);
    let request = |id, metadata: &str| {
        Asked::UpdateMetadata(proto::UpdateParticipantMetadata {
            metadata: metadata.into(),
            attributes: [("mood".to_owned(), "good".to_owned())].into(),
            request_id: id,
            ..proto::UpdateParticipantMetadata::default()
        })
    };
    let answer = |world: &mut World, seat: usize| {
        let reply = world.seats[seat]
            .take()
            .into_iter()
            .find_map(|reply| match reply {
                Message::RequestResponse(response) => Some(response),
                _ => None,
            });
        let response = reply.expect("an answer");
        (response.request_id, response.reason())
    };
    world.seats[bob].take();
    world.ask(alice, request(5, "hello"));
    assert_eq!(answer(&mut world, alice), (5, Reason::Ok));
    let updates = world.seats[bob].take_updates();
    assert_eq!(updates[0].metadata, "hello");
    assert_eq!(updates[0].attributes["mood"], "good");
    world.ask(mallory, request(6, "hello"));
    assert_eq!(answer(&mut world, mallory), (6, Reason::NotAllowed));
    world.ask(alice, request(7, &"x".repeat(600 << 10)));
    assert_eq!(answer(&mut world, alice), (7, Reason::LimitExceeded));
    world.minority = true;
    world.ask(alice, request(8, "later"));
    assert_eq!(answer(&mut world, alice), (8, Reason::UnclassifiedError));
}

#[test]
fn large_rooms_hear_of_spectators_in_batches() {
    let mut world = World::with(crate::config::SessionConfig {
        update_batch_above: 2,
        ..config()
    });
    let alice = world.enter("alice");
    world.enter("bob");
    world.seats[alice].take();
    world.enter("carol");
    let dave = world.enter("dave");
    assert!(world.seats[alice].take_updates().is_empty());
    // One who publishes is told at once, before anybody subscribes to it.
    world.publish(dave, camera());
    let updates = world.seats[alice].take_updates();
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].identity, "dave");
    world.advance(Duration::from_secs(1));
    let updates = world.seats[alice].take_updates();
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].identity, "carol");
}

#[test]
fn room_updates_carry_metadata_at_once_and_counts_after_a_while() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let rooms = |world: &mut World| -> Vec<proto::Room> {
        let replies = world.seats[alice].take().into_iter();
        let rooms = replies.filter_map(|reply| match reply {
            Message::RoomUpdate(update) => update.room,
            _ => None,
        });
        rooms.collect()
    };
    world.enter("bob");
    assert!(rooms(&mut world).is_empty());
    world.advance(Duration::from_secs(5));
    assert_eq!(rooms(&mut world)[0].num_participants, 2);
    world.command(Command::SetRoomMetadata {
        room: "room".into(),
        metadata: "topic".into(),
    });
    assert_eq!(rooms(&mut world)[0].metadata, "topic");
}

#[test]
fn pings_are_answered_both_ways() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.seats[alice].take();
    world.advance(Duration::from_millis(1500));
    world.ask(alice, Asked::Ping(1));
    world.ask(
        alice,
        Asked::PingReq(proto::Ping {
            timestamp: 42,
            rtt: 3,
        }),
    );
    let replies = world.seats[alice].take();
    let at = world.wall().0 as i64;
    assert_eq!(replies[0], Message::Pong(at));
    let pong = proto::Pong {
        last_ping_timestamp: 42,
        timestamp: at,
    };
    assert_eq!(replies[1], Message::PongResp(pong));
}

#[test]
fn a_simulated_speech_begins_and_ends() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.seats[alice].take();
    let scenario = Some(proto::simulate_scenario::Scenario::SpeakerUpdate(3));
    world.ask(alice, Asked::Simulate(proto::SimulateScenario { scenario }));
    let levels = |world: &mut World| -> Vec<bool> {
        let replies = world.seats[alice].take().into_iter();
        let speakers = replies.filter_map(|reply| match reply {
            Message::SpeakersChanged(changed) => Some(changed.speakers[0].active),
            _ => None,
        });
        speakers.collect()
    };
    assert_eq!(levels(&mut world), [true]);
    world.advance(Duration::from_secs(4));
    assert_eq!(levels(&mut world), [false]);
    let scenario = Some(proto::simulate_scenario::Scenario::SubscriberBandwidth(1));
    world.ask(alice, Asked::Simulate(proto::SimulateScenario { scenario }));
    assert!(
        matches!(&world.seats[alice].take()[..], [Message::RequestResponse(response)]
        if response.reason() == Reason::UnsupportedType)
    );
}

#[test]
fn a_departure_that_happened_in_a_gap_of_the_events_is_over() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.enter("bob");
    world.minority = true;
    world.ask(alice, Asked::Leave(proto::LeaveRequest::default()));
    let room = std::sync::Arc::clone(world.room());
    world.input(alice, Input::Snapshot { room: Some(&room) });
    assert_eq!(world.seats[alice].closed, [Close::Signal], "still in");
    let mut without = (*room).clone();
    without.participants.remove(&Identity("alice".to_owned()));
    let without = std::sync::Arc::new(without);
    world.input(
        alice,
        Input::Snapshot {
            room: Some(&without),
        },
    );
    assert!(matches!(
        world.seats[alice].closed[..],
        [Close::Signal, Close::Session { .. }]
    ));
}

#[test]
fn a_join_without_an_answer_is_undone_though_a_gap_of_the_events_does_not_show_it() {
    let mut world = World::new();
    world.enter("bob");
    world.minority = true;
    let alice = world.begin_join(claims("alice"), parameters(true));
    let now = world.now;
    world.seats[alice].session.handle(now, Input::Shutdown);
    let room = std::sync::Arc::clone(world.room());
    world.input(alice, Input::Snapshot { room: Some(&room) });
    assert_eq!(world.seats[alice].closed, []);
    world.minority = false;
    world.advance(Duration::from_secs(1));
    assert_eq!(world.room().participants.len(), 1);
    assert_eq!(world.seats[alice].closed.len(), 1);
}
