//! Tracks from the request to the announcement, muted, watched and ended.

use super::*;

fn published(world: &mut World, seat: usize) -> Vec<proto::TrackPublishedResponse> {
    let replies = world.seats[seat].take().into_iter();
    let published = replies.filter_map(|reply| match reply {
        Message::TrackPublished(published) => Some(published),
        _ => None,
    });
    published.collect()
}

fn refusals(world: &mut World, seat: usize) -> Vec<Reason> {
    let replies = world.seats[seat].take().into_iter();
    let refused = replies.filter_map(|reply| match reply {
        Message::RequestResponse(response) => Some(response.reason()),
        _ => None,
    });
    refused.collect()
}

#[test]
fn a_track_is_announced_once_it_is_described() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    world.seats[alice].take_media();
    world.seats[bob].take();
    world.ask(alice, Asked::AddTrack(camera()));
    let media = world.seats[alice].take_media();
    assert!(matches!(&media[..], [media::Command::Publish { epoch, .. }] if epoch.0 > 0));
    let published = published(&mut world, alice);
    assert_eq!((published.len(), published[0].cid.as_str()), (1, "cam"));
    let info = published[0].track.clone().expect("track");
    assert!(info.sid.starts_with("TR_VC"));
    assert_eq!(info.codecs[0].mime_type, "video/vp8");
    assert!(world.seats[bob].take_updates().is_empty());
    assert!(
        world.seats[bob]
            .take_media()
            .iter()
            .all(|c| !matches!(c, media::Command::Subscribe { .. }))
    );

    let track = TrackSid(info.sid);
    let codecs = described("cam", true);
    world.media(
        alice,
        media::Event::TrackDescribed {
            track: track.clone(),
            codecs,
        },
    );
    let updates = world.seats[bob].take_updates();
    assert_eq!(updates[0].tracks.len(), 1);
    assert_eq!(updates[0].tracks[0].mid, "7");
    assert_eq!(
        updates[0].tracks[0].codecs[0].layers[1].width, 640,
        "announced sizes are kept"
    );
    let media = world.seats[bob].take_media();
    let stream = format!("{}|{track}", world.seats[alice].session.sid());
    assert!(matches!(&media[..], [media::Command::Subscribe { stream: s, .. }] if *s == stream));
    // The first subscriber is told to the publisher.
    let told = world.seats[alice].take();
    assert!(told.iter().any(
        |reply| matches!(reply, Message::TrackSubscribed(t) if t.track_sid == track.as_str())
    ));
    // The log has what a takeover needs.
    let (_, replicated) = world.room().track(&track).expect("in the room");
    assert_eq!(replicated.codecs[0].layers[2].ssrc, 3);
}

#[test]
fn stream_numbers_alone_are_no_news() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let track = world.publish(alice, camera());
    world.seats[bob].take();
    let mut codecs = described("cam", true);
    codecs[0].layers[0].ssrc = 1234;
    world.media(
        alice,
        media::Event::TrackDescribed {
            track: track.clone(),
            codecs,
        },
    );
    let (_, replicated) = world.room().track(&track).expect("in the room");
    assert_eq!(replicated.codecs[0].layers[0].ssrc, 1234);
    assert!(world.seats[bob].take_updates().is_empty());
}

#[test]
fn whoever_may_not_publish_is_told_so() {
    let mut world = World::new();
    let mut alice = claims("alice");
    alice.video.get_or_insert_default().can_publish_sources = vec!["microphone".into()];
    let alice = world.join(alice, parameters(true));
    world.ask(alice, Asked::AddTrack(camera()));
    assert_eq!(refusals(&mut world, alice), [Reason::NotAllowed]);
    world.ask(alice, Asked::AddTrack(microphone()));
    assert_eq!(published(&mut world, alice).len(), 1);
    let mut bob = claims("bob");
    bob.video.get_or_insert_default().can_publish = Some(false);
    let bob = world.join(bob, parameters(true));
    world.ask(bob, Asked::AddTrack(microphone()));
    assert_eq!(refusals(&mut world, bob), [Reason::NotAllowed]);
    assert!(
        world
            .room()
            .participants
            .get(&Identity::from("bob"))
            .is_some_and(|b| b.tracks.is_empty())
    );
}

#[test]
fn without_quorum_publishing_fails_and_a_late_success_is_undone() {
    let mut world = World::new();
    let alice = world.enter("alice");
    world.seats[alice].take_media();
    world.minority = true;
    world.ask(alice, Asked::AddTrack(microphone()));
    assert_eq!(refusals(&mut world, alice), [Reason::UnclassifiedError]);
    let media = world.seats[alice].take_media();
    let [
        media::Command::Publish { track, .. },
        media::Command::Unpublish { .. },
    ] = &media[..]
    else {
        panic!("unexpected: {media:?}");
    };
    world.minority = false;
    world.command(Command::PublishTrack {
        room: "room".into(),
        identity: "alice".into(),
        sid: world.seats[alice].session.sid().clone(),
        track: track.clone(),
    });
    assert!(world.room().publishers.get(&track.sid).is_none());
}

#[test]
fn mutes_reach_everybody() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let track = world.publish(alice, microphone());
    world.seats[alice].take();
    world.seats[alice].take_media();
    world.seats[bob].take();
    let mute = |muted| {
        Asked::Mute(proto::MuteTrackRequest {
            sid: track.to_string(),
            muted,
        })
    };
    world.ask(alice, mute(true));
    assert!(world.seats[bob].take_updates()[0].tracks[0].muted);
    let media = world.seats[alice].take_media();
    assert!(matches!(
        media[..],
        [media::Command::SetMuted { muted: true, .. }]
    ));
    let replies = world.seats[alice].take();
    assert!(
        replies
            .iter()
            .all(|reply| !matches!(reply, Message::Mute(_))),
        "its own doing"
    );
    world.ask(alice, mute(false));
    assert!(!world.seats[bob].take_updates()[0].tracks[0].muted);
    world.seats[alice].take();
    world.command(Command::SetTrackMuted {
        room: "room".into(),
        identity: "alice".into(),
        track: track.clone(),
        muted: true,
    });
    let replies = world.seats[alice].take();
    assert!(
        replies
            .iter()
            .any(|reply| matches!(reply, Message::Mute(mute) if mute.muted))
    );
}

#[test]
fn a_mute_during_publication_is_not_undone_by_it() {
    let mut world = World::new();
    world.outcome_first = true;
    let alice = world.enter("alice");
    let track = world.publish(alice, microphone());
    let mute = |muted| {
        Asked::Mute(proto::MuteTrackRequest {
            sid: track.to_string(),
            muted,
        })
    };
    let now = world.now;
    for muted in [true, false, true] {
        let request = proto::SignalRequest {
            message: Some(mute(muted)),
        };
        world.seats[alice]
            .session
            .handle(now, Input::Request(Box::new(request)));
    }
    world.run();
    assert!(
        world
            .room()
            .track(&track)
            .is_some_and(|(_, track)| track.muted)
    );
    let replies = world.seats[alice].take();
    assert!(
        replies
            .iter()
            .all(|reply| !matches!(reply, Message::Mute(_)))
    );
}

#[test]
fn an_ended_track_leaves_the_room_and_a_removed_one_its_publisher() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let camera = world.publish(alice, camera());
    let microphone = world.publish(alice, microphone());
    world.seats[bob].take();
    world.seats[bob].take_media();
    world.seats[alice].take();
    world.media(
        alice,
        media::Event::TrackEnded {
            track: camera.clone(),
        },
    );
    assert_eq!(world.seats[bob].take_updates()[0].tracks.len(), 1);
    let media = world.seats[bob].take_media();
    assert!(matches!(&media[..], [media::Command::Unsubscribe { track }] if *track == camera));
    let replies = world.seats[alice].take();
    assert!(
        replies
            .iter()
            .all(|reply| !matches!(reply, Message::TrackUnpublished(_)))
    );

    let mut permission = claims("alice").permission();
    permission.can_publish = false;
    let permission = Some(permission);
    world.command(update(
        "alice",
        ParticipantUpdate {
            permission,
            ..ParticipantUpdate::default()
        },
    ));
    let replies = world.seats[alice].take();
    assert!(
        replies
            .iter()
            .any(|reply| matches!(reply, Message::TrackUnpublished(gone)
        if gone.track_sid == microphone.as_str()))
    );
    assert!(matches!(
        world.seats[alice].take_media().last(),
        Some(media::Command::Unpublish { .. })
    ));
}

#[test]
fn a_backup_codec_joins_its_track() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let track = world.publish(alice, camera());
    world.seats[alice].take();
    let mut backup = camera();
    backup.cid = "cam2".into();
    backup.sid = track.to_string();
    backup.simulcast_codecs[0].codec = "h264".into();
    backup.simulcast_codecs[0].cid = "cam2".into();
    world.ask(alice, Asked::AddTrack(backup));
    let published = published(&mut world, alice);
    let info = published[0].track.as_ref().expect("track");
    assert_eq!((info.sid.as_str(), info.codecs.len()), (track.as_str(), 2));
    assert_eq!(
        world.room().track(&track).map(|(_, t)| t.codecs.len()),
        Some(2)
    );
}

#[test]
fn layers_are_wanted_at_once_and_unwanted_after_a_while() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let track = world.publish(alice, camera());
    world.seats[alice].take();
    let wanted = |world: &mut World, quality| {
        let track = track.clone();
        world.media(alice, media::Event::QualityWanted { track, quality });
    };
    let enabled = |world: &mut World| -> Vec<usize> {
        let replies = world.seats[alice].take().into_iter();
        let updates = replies.filter_map(|reply| match reply {
            Message::SubscribedQualityUpdate(update) => {
                assert_eq!(update.subscribed_codecs[0].codec, "vp8");
                let qualities = &update.subscribed_codecs[0].qualities;
                Some(qualities.iter().filter(|quality| quality.enabled).count())
            }
            _ => None,
        });
        updates.collect()
    };
    wanted(&mut world, Quality::Off);
    assert!(enabled(&mut world).is_empty());
    world.advance(Duration::from_secs(5));
    assert_eq!(enabled(&mut world), [0]);
    wanted(&mut world, Quality::Medium);
    assert_eq!(enabled(&mut world), [2]);
    wanted(&mut world, Quality::Low);
    world.advance(Duration::from_secs(4));
    wanted(&mut world, Quality::Medium);
    world.advance(Duration::from_secs(5));
    assert!(
        enabled(&mut world).is_empty(),
        "it was wanted again in time"
    );
    wanted(&mut world, Quality::High);
    assert_eq!(enabled(&mut world), [3]);
}

#[test]
fn audio_and_video_settings_reach_the_others() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let bob = world.enter("bob");
    let camera = world.publish(alice, camera());
    let microphone = world.publish(alice, microphone());
    world.seats[bob].take();
    world.ask(
        alice,
        Asked::UpdateVideoTrack(proto::UpdateLocalVideoTrack {
            track_sid: camera.to_string(),
            width: 720,
            height: 1280,
        }),
    );
    let updates = world.seats[bob].take_updates();
    assert!(updates[0].tracks.iter().any(|track| track.width == 720));
    world.ask(
        alice,
        Asked::UpdateAudioTrack(proto::UpdateLocalAudioTrack {
            track_sid: microphone.to_string(),
            features: vec![proto::AudioTrackFeature::TfStereo as i32],
        }),
    );
    let updates = world.seats[bob].take_updates();
    assert!(
        updates[0]
            .tracks
            .iter()
            .any(|track| track.audio_features == [0])
    );
    world.ask(
        alice,
        Asked::UpdateAudioTrack(proto::UpdateLocalAudioTrack::default()),
    );
    assert_eq!(refusals(&mut world, alice), [Reason::NotFound]);
}
