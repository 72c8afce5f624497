//! Signal connections that break and come back, media that fails, takeovers.

use super::*;
use crate::connect::Reconnect;
use flotilla_model::command::Rehome;
use flotilla_model::id::NodeId;

fn reconnect(world: &World, seat: usize) -> Reconnect {
    Reconnect {
        sid: Some(world.seats[seat].session.sid().clone()),
        reason: 0,
    }
}

#[test]
fn a_resume_brings_reconnect_first_and_then_everything() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let carol = world.enter("carol");
    let track = world.publish(bob, microphone());
    world.input(alice, Input::SignalClosed);
    world.seats[alice].take();
    world.ask(carol, Asked::Leave(proto::LeaveRequest::default()));
    world.enter("dave");
    assert!(
        world.seats[alice].take().is_empty(),
        "there is nobody to tell"
    );
    assert!(
        world.seats[alice]
            .session
            .is_resumable_by(&claims("alice"), &reconnect(&world, alice))
    );
    assert!(
        !world.seats[alice]
            .session
            .is_resumable_by(&claims("bob"), &reconnect(&world, alice))
    );
    assert!(
        !world.seats[alice]
            .session
            .is_resumable_by(&claims("alice"), &reconnect(&world, bob))
    );
    world.resume(alice, parameters(true));
    let replies = world.seats[alice].take();
    assert!(matches!(&replies[0], Message::Reconnect(reconnect)
        if reconnect.server_info.is_some() && reconnect.last_message_seq == 0));
    let Message::Update(update) = &replies[1] else {
        panic!("everybody comes next, not {:?}", replies[1]);
    };
    let mut states: Vec<_> = update
        .participants
        .iter()
        .map(|p| (p.identity.as_str(), p.state))
        .collect();
    states.sort_unstable();
    assert_eq!(
        states,
        [("alice", 1), ("bob", 1), ("carol", 3), ("dave", 1)]
    );
    assert!(matches!(replies[2], Message::RoomUpdate(_)));
    // The session stays: nothing is subscribed anew and nothing expires.
    world.advance(Duration::from_secs(60));
    assert!(world.seats[alice].closed.is_empty());
    assert!(world.room().track(&track).is_some());
}

#[test]
fn who_does_not_come_back_leaves() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.input(alice, Input::SignalClosed);
    world.advance(Duration::from_secs(19));
    assert_eq!(world.room().participants.len(), 1);
    world.advance(Duration::from_secs(1));
    assert!(world.room().participants.is_empty());
    let reason = LeaveReason::SignalClose;
    assert_eq!(world.seats[alice].closed, [Close::Session { reason }]);
}

#[test]
fn failed_media_asks_for_a_resume_and_waits_briefly() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let target = Target::Publisher;
    world.media(
        alice,
        media::Event::Failed {
            target,
            reason: "consent",
        },
    );
    let told = leave(&world, alice).expect("told to resume");
    assert_eq!(told.action, Action::Resume as i32);
    assert!(!told.can_reconnect);
    assert_eq!(world.seats[alice].closed, [Close::Farewell]);
    world.input(alice, Input::SignalClosed);
    world.advance(Duration::from_secs(4));
    world.resume(alice, parameters(true));
    world.media(alice, media::Event::Connected { target });
    world.advance(Duration::from_secs(60));
    assert_eq!(world.room().participants.len(), 1);
    world.media(
        alice,
        media::Event::Failed {
            target,
            reason: "consent",
        },
    );
    world.advance(Duration::from_secs(5));
    assert!(world.room().participants.is_empty());
    let reason = LeaveReason::MediaFailure;
    assert_eq!(
        world.seats[alice].closed.last(),
        Some(&Close::Session { reason })
    );
}

#[test]
fn old_clients_are_not_told_of_actions_they_do_not_know() {
    let mut world = World::new();
    let mut old = parameters(false);
    old.client.protocol = 12;
    let alice = world.join(claims("alice"), old);
    let target = Target::Subscriber;
    world.media(
        alice,
        media::Event::Failed {
            target,
            reason: "consent",
        },
    );
    assert!(leave(&world, alice).is_none());
    assert_eq!(world.seats[alice].closed, [Close::Signal]);
}

#[test]
fn sync_state_restores_wishes_and_exposes_strangers() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let wanted = world.publish(alice, camera());
    let unwanted = world.publish(alice, microphone());
    world.input(bob, Input::SignalClosed);
    world.resume(bob, parameters(true));
    world.seats[bob].take_media();
    let state = proto::SyncState {
        subscription: Some(proto::UpdateSubscription {
            track_sids: vec![unwanted.to_string()],
            subscribe: false,
            participant_tracks: Vec::new(),
        }),
        track_sids_disabled: vec![wanted.to_string()],
        datachannel_receive_states: vec![proto::DataChannelReceiveState {
            publisher_sid: world.seats[alice].session.sid().to_string(),
            last_seq: 5,
        }],
        ..proto::SyncState::default()
    };
    world.ask(bob, Asked::SyncState(state));
    let media = world.seats[bob].take_media();
    let [
        media::Command::SetSettings { track, settings },
        media::Command::Unsubscribe { track: gone },
    ] = &media[..]
    else {
        panic!("unexpected: {media:?}");
    };
    assert_eq!((track, settings.enabled, gone), (&wanted, false, &unwanted));

    let published = |sid: &TrackSid| proto::SyncState {
        publish_tracks: vec![proto::TrackPublishedResponse {
            cid: "cam".into(),
            track: Some(proto::TrackInfo {
                sid: sid.to_string(),
                ..proto::TrackInfo::default()
            }),
        }],
        ..proto::SyncState::default()
    };
    world.ask(alice, Asked::SyncState(published(&wanted)));
    assert!(leave(&world, alice).is_none());
    world.ask(
        alice,
        Asked::SyncState(published(&TrackSid::from("TR_stranger"))),
    );
    let told = leave(&world, alice).expect("told to start over");
    assert_eq!(told.reason, proto::DisconnectReason::StateMismatch as i32);
    assert_eq!(told.action, Action::Reconnect as i32);
}

#[test]
fn v0_gets_a_new_offer_after_a_resume() {
    let mut world = World::new();
    let alice = world.join(claims("alice"), parameters(false));
    world.seats[alice].take_media();
    world.input(alice, Input::SignalClosed);
    world.resume(alice, parameters(false));
    assert!(matches!(
        world.seats[alice].take_media()[..],
        [media::Command::RestartIce]
    ));
}

#[test]
fn a_session_that_moved_to_another_node_ends_without_a_word_to_the_room() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    world.seats[bob].take();
    let participant = world
        .room()
        .participants
        .get(&Identity::from("alice"))
        .cloned();
    let participant = participant.expect("in the room");
    world.command(Command::Rehome {
        moves: vec![Rehome {
            room: "room".into(),
            identity: "alice".into(),
            sid: participant.sid.clone(),
            epoch: participant.epoch,
            home: NodeId(2),
        }],
    });
    assert_eq!(
        leave(&world, alice).map(|l| l.action),
        Some(Action::Resume as i32)
    );
    assert!(matches!(
        world.seats[alice].closed[..],
        [Close::Farewell, Close::Session { .. }]
    ));
    assert_eq!(world.room().participants.len(), 2);
    assert!(world.seats[bob].take_updates().is_empty());
}

#[test]
fn unknown_sessions_start_over() {
    let refusal = crate::session::resume_refusal();
    let Some(Message::Leave(leave)) = refusal.message else {
        panic!("a leave");
    };
    assert_eq!(leave.reason, proto::DisconnectReason::StateMismatch as i32);
    assert_eq!(leave.action, Action::Reconnect as i32);
}

#[test]
fn a_reply_that_got_lost_is_repeated() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.seats[alice].connected = false;
    let now = world.now;
    let request = proto::SignalRequest {
        message: Some(Asked::AddTrack(microphone())),
    };
    let session = &mut world.seats[alice].session;
    session.handle(now, Input::Request(Box::new(request)));
    session.handle(now, Input::SignalClosed);
    world.run();
    world.seats[alice].take();
    world.resume(alice, parameters(true));
    let replies = world.seats[alice].take();
    assert!(
        replies
            .iter()
            .any(|reply| matches!(reply, Message::TrackPublished(published)
        if published.cid == "mic"))
    );
}

#[test]
fn a_session_whose_engine_has_started_anew_is_resumed_and_nobody_leaves() {
    let mut world = World::new();
    let (alice, bob) = (world.enter("alice"), world.enter("bob"));
    let before = world.room().participants[&"alice".into()].clone();
    world.seats[bob].take();
    world.media(alice, media::Event::Restarted);
    let told = leave(&world, alice).expect("asked to resume");
    assert_eq!(told.action, Action::Resume as i32);
    assert!(matches!(
        world.seats[alice].closed.last(),
        Some(Close::Session { .. })
    ));
    // The same node takes the session over from itself.
    let again = world.adopt("alice", parameters(true));
    let replies = world.seats[again].take();
    assert!(matches!(replies.first(), Some(Message::Reconnect(_))));
    let after = &world.room().participants[&"alice".into()];
    assert_eq!(after.sid, before.sid);
    assert!(after.epoch > before.epoch);
    let seen = world.seats[bob].take();
    assert!(
        !seen
            .iter()
            .any(|message| matches!(message, Message::Update(_))),
        "{seen:?}"
    );
}

#[test]
fn without_its_peers_a_session_starts_over() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.media(alice, media::Event::Lost);
    let told = leave(&world, alice).expect("told to start over");
    assert_eq!(told.action, Action::Reconnect as i32);
    assert!(world.room().participants.is_empty());
}
