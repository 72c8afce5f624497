//! What subscribers receive, of their own will, by permission and in which size.

use super::*;
use flotilla_model::id::ParticipantSid;

fn subscription(track: &TrackSid, subscribe: bool) -> Asked {
    Asked::Subscription(proto::UpdateSubscription {
        track_sids: vec![track.to_string()],
        subscribe,
        participant_tracks: Vec::new(),
    })
}

fn setting(track: &TrackSid) -> proto::UpdateTrackSettings {
    proto::UpdateTrackSettings {
        track_sids: vec![track.to_string()],
        quality: proto::VideoQuality::High as i32,
        ..proto::UpdateTrackSettings::default()
    }
}

/// The settings told last.
fn settings(world: &mut World, seat: usize) -> Option<media::Settings> {
    let media = world.seats[seat].take_media();
    media.into_iter().rev().find_map(|command| match command {
        media::Command::SetSettings { settings, .. }
        | media::Command::Subscribe { settings, .. } => Some(settings),
        _ => None,
    })
}

#[test]
fn selective_subscribers_get_what_they_ask_for() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let mut selective = parameters(true);
    selective.auto_subscribe = false;
    let bob = world.join(claims("bob"), selective);
    let track = world.publish(alice, camera());
    world.seats[alice].take();
    world.seats[bob].take();
    assert!(
        !world.seats[bob]
            .take_media()
            .iter()
            .any(|c| matches!(c, media::Command::Subscribe { .. }))
    );
    world.ask(bob, subscription(&track, true));
    assert!(matches!(
        world.seats[bob].take_media()[..],
        [media::Command::Subscribe { .. }]
    ));
    let told = world.seats[alice].take();
    assert!(matches!(&told[..], [Message::TrackSubscribed(_)]));
    world.ask(bob, subscription(&track, false));
    assert!(matches!(
        world.seats[bob].take_media()[..],
        [media::Command::Unsubscribe { .. }]
    ));
    world.seats[bob].take();
    world.ask(bob, subscription(&TrackSid::from("TR_gone"), true));
    assert!(
        matches!(&world.seats[bob].take()[..], [Message::SubscriptionResponse(response)]
        if response.err == proto::SubscriptionError::SeTrackNotfound as i32)
    );
}

#[test]
fn a_publisher_is_told_before_its_media() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let track = world.publish(alice, camera());
    // In one sequence of outputs: the update with the track, then the subscription.
    let replies = world.seats[bob].take_updates();
    assert!(
        replies
            .iter()
            .any(|info| info.tracks.iter().any(|t| t.sid == track.as_str()))
    );
    let target = Target::Publisher;
    world.media(alice, media::Event::Connected { target });
    assert_eq!(world.seats[bob].take_updates().len(), 1);
}

#[test]
fn publishers_decide_who_may_subscribe() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let carol = world.enter("carol");
    let track = world.publish(alice, camera());
    for seat in [bob, carol] {
        world.seats[seat].take();
        world.seats[seat].take_media();
    }
    let carol_sid = world.seats[carol].session.sid().to_string();
    let permission = proto::SubscriptionPermission {
        all_participants: false,
        track_permissions: vec![proto::TrackPermission {
            participant_sid: carol_sid,
            all_tracks: true,
            ..proto::TrackPermission::default()
        }],
    };
    world.ask(alice, Asked::SubscriptionPermission(permission));
    let told = world.seats[bob].take();
    assert!(
        matches!(&told[..], [Message::SubscriptionPermissionUpdate(update)]
        if !update.allowed && update.track_sid == track.as_str())
    );
    assert!(matches!(
        world.seats[bob].take_media()[..],
        [media::Command::Unsubscribe { .. }]
    ));
    assert!(world.seats[carol].take().is_empty() && world.seats[carol].take_media().is_empty());
    world.ask(bob, subscription(&track, true));
    assert!(world.seats[bob].take_media().is_empty());
    assert!(matches!(
        &world.seats[bob].take()[..],
        [Message::SubscriptionPermissionUpdate(_)]
    ));
    let all = proto::SubscriptionPermission {
        all_participants: true,
        track_permissions: Vec::new(),
    };
    world.ask(alice, Asked::SubscriptionPermission(all));
    let told = world.seats[bob].take();
    assert!(matches!(&told[..], [Message::SubscriptionPermissionUpdate(update)] if update.allowed));
    assert!(matches!(
        world.seats[bob].take_media()[..],
        [media::Command::Subscribe { .. }]
    ));
}

#[test]
fn an_administrator_takes_and_gives_the_right_to_subscribe() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    world.publish(alice, camera());
    world.seats[bob].take_media();
    let mut permission = claims("bob").permission();
    permission.can_subscribe = false;
    let change = |permission| ParticipantUpdate {
        permission: Some(permission),
        ..ParticipantUpdate::default()
    };
    world.command(update("bob", change(permission.clone())));
    assert!(matches!(
        world.seats[bob].take_media()[..],
        [media::Command::Unsubscribe { .. }]
    ));
    permission.can_subscribe = true;
    world.command(update("bob", change(permission)));
    assert!(matches!(
        world.seats[bob].take_media()[..],
        [media::Command::Subscribe { .. }]
    ));
}

#[test]
fn the_size_on_the_screen_chooses_the_layer() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let track = world.publish(alice, camera());
    assert_eq!(
        settings(&mut world, bob).map(|s| s.quality),
        Some(Quality::High)
    );
    for (width, height, quality) in [
        (160, 90, Quality::Low),
        (320, 180, Quality::Low),
        (400, 225, Quality::Medium),
        (360, 640, Quality::Medium),
        (1000, 562, Quality::High),
        (3840, 2160, Quality::High),
    ] {
        let setting = proto::UpdateTrackSettings {
            width,
            height,
            ..setting(&track)
        };
        world.ask(bob, Asked::TrackSetting(setting));
        if let Some(settings) = settings(&mut world, bob) {
            assert_eq!(settings.quality, quality, "{width}x{height}");
        }
    }
    let setting = proto::UpdateTrackSettings {
        disabled: true,
        fps: 10,
        quality: proto::VideoQuality::Low as i32,
        ..setting(&track)
    };
    world.ask(bob, Asked::TrackSetting(setting));
    let settings = settings(&mut world, bob).expect("told");
    assert_eq!(
        (settings.enabled, settings.quality, settings.fps_max),
        (false, Quality::Low, 10)
    );
}

#[test]
fn adaptive_subscribers_begin_with_the_lowest_layer() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let mut adaptive = parameters(true);
    adaptive.adaptive_stream = true;
    let bob = world.join(claims("bob"), adaptive);
    world.publish(alice, camera());
    assert_eq!(
        settings(&mut world, bob).map(|s| s.quality),
        Some(Quality::Low)
    );
    world.publish(alice, microphone());
    assert_eq!(
        settings(&mut world, bob).map(|s| s.quality),
        Some(Quality::High)
    );
}

#[test]
fn departures_end_subscriptions() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    world.publish(alice, camera());
    world.publish(alice, microphone());
    world.seats[bob].take_media();
    world.command(remove("alice"));
    let media = world.seats[bob].take_media();
    assert!(matches!(
        media[..],
        [
            media::Command::Unsubscribe { .. },
            media::Command::Unsubscribe { .. }
        ]
    ));
}

#[test]
fn missing_sections_are_asked_for() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.seats[alice].take();
    world.media(alice, media::Event::SectionsNeeded { audio: 0, video: 2 });
    let needed = proto::MediaSectionsRequirement {
        num_audios: 0,
        num_videos: 2,
    };
    assert_eq!(
        world.seats[alice].take(),
        [Message::MediaSectionsRequirement(needed)]
    );
}

#[test]
fn speakers_are_told_in_eighths_to_those_who_hear_them() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let mut deaf = claims("deaf");
    deaf.video.get_or_insert_default().can_subscribe = Some(false);
    let deaf = world.join(deaf, parameters(true));
    let track = world.publish(alice, microphone());
    for seat in [alice, bob, deaf] {
        world.seats[seat].take();
    }
    let mut speak = |level: f32| {
        let levels = [(track.clone(), level), (TrackSid::from("TR_gone"), 1.0)];
        for seat in [alice, bob, deaf] {
            world.input(seat, Input::Speakers(&levels));
        }
        [alice, bob, deaf].map(|seat| match &world.seats[seat].take()[..] {
            [Message::SpeakersChanged(changed)] => Some((
                ParticipantSid(changed.speakers[0].sid.clone()),
                changed.speakers[0].level,
            )),
            [] => None,
            other => panic!("unexpected: {other:?}"),
        })
    };
    let [to_alice, to_bob, to_deaf] = speak(0.51);
    assert_eq!(to_alice.as_ref().map(|(_, level)| *level), Some(0.5));
    assert_eq!(to_bob, to_alice);
    assert_eq!(to_deaf, None);
    assert_eq!(speak(0.49), [None, None, None], "the same eighth");
    assert_eq!(
        speak(0.001)[1].as_ref().map(|(_, level)| *level),
        Some(0.125)
    );
    assert_eq!(speak(0.0)[1].as_ref().map(|(_, level)| *level), Some(0.0));
    assert_eq!(speak(f32::NAN), [None, None, None]);
}

#[test]
fn a_gap_in_the_events_is_closed_by_a_snapshot() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let gone = world.publish(bob, microphone());
    for seat in [alice, bob] {
        world.seats[seat].take();
        world.seats[seat].take_media();
    }
    // The log goes on without alice's session hearing of it.
    let mut seats = std::mem::take(&mut world.seats);
    world.command(remove("bob"));
    let carol = world.join(claims("carol"), parameters(true));
    let track = world.publish(carol, camera());
    std::mem::swap(&mut seats, &mut world.seats);
    let room = std::sync::Arc::clone(world.room());
    world.input(alice, Input::Snapshot { room: Some(&room) });
    let updates = world.seats[alice].take_updates();
    let states: Vec<_> = updates
        .iter()
        .map(|info| (info.identity.as_str(), info.state))
        .collect();
    assert_eq!(states, [("bob", 3), ("carol", 1), ("alice", 1)]);
    let media = world.seats[alice].take_media();
    let [
        media::Command::Unsubscribe { track: old },
        media::Command::Subscribe { track: new, .. },
    ] = &media[..]
    else {
        panic!("unexpected: {media:?}");
    };
    assert_eq!((old, new), (&gone, &track));
    world.input(alice, Input::Snapshot { room: None });
    assert_eq!(
        leave(&world, alice).map(|l| l.action),
        Some(Action::Reconnect as i32)
    );
}
