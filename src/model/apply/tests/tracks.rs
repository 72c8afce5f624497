//! Tracks published, changed and taken away.

use super::*;

#[test]
fn publishing_needs_permission_and_a_new_sid() {
    let mut replica = Replica::new();
    let mut camera_only = join_of("r", "a", 1);
    camera_only.permission.can_publish_sources = BTreeSet::from([Source::Camera]);
    replica.done(Command::Join(Box::new(camera_only)));
    let mut viewer = join_of("r", "b", 1);
    viewer.permission.can_publish = false;
    replica.done(Command::Join(Box::new(viewer)));
    replica.done(join("r", "c", 1));

    let (first, events) = replica.done(publish("r", "a", "TR_1", Source::Camera));
    assert_eq!(told(&events), ["TR_1 published"]);
    let (again, events) = replica.done(publish("r", "a", "TR_1", Source::Camera));
    assert_eq!((again, events), (first, vec![]));
    let refused = replica.refused(publish("r", "a", "TR_2", Source::Microphone));
    let text = "permission denied: may not publish from source Microphone";
    assert_eq!(refused.to_string(), text);
    let refused = replica.refused(publish("r", "b", "TR_3", Source::Camera));
    assert!(matches!(refused, Rejection::NotPermitted(_)));
    let refused = replica.refused(publish("r", "c", "TR_1", Source::Camera));
    assert_eq!(refused, Rejection::TrackExists);
    for number in 0..limit::TRACKS_MAX {
        replica.done(publish("r", "c", &format!("TR_c{number}"), Source::Camera));
    }
    let refused = replica.refused(publish("r", "c", "TR_more", Source::Camera));
    assert!(matches!(refused, Rejection::LimitExceeded(_)));
}

#[test]
fn updating_a_track_leaves_mute_kind_and_source_alone() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    let muted = |muted| Command::SetTrackMuted {
        room: "r".into(),
        identity: "a".into(),
        track: "TR_1".into(),
        muted,
    };
    let (_, events) = replica.done(muted(true));
    assert_eq!(told(&events), ["TR_1 changed"]);
    let (_, events) = replica.done(muted(true));
    assert_eq!(told(&events), [""; 0]);
    let mut changed = track("TR_1", Source::ScreenShare, true);
    changed.kind = Kind::Audio;
    changed.name = "new".to_owned();
    let (reply, _) = replica.done(Command::UpdateTrack {
        room: "r".into(),
        identity: "a".into(),
        sid: "PA_a".into(),
        track: Box::new(changed),
    });
    let Outcome::Track(track) = reply.outcome else {
        panic!("answered with the track");
    };
    let kept = (track.muted, track.kind, track.source);
    assert_eq!(kept, (true, Kind::Video, Source::Camera));
    assert_eq!(track.name, "new");
    let (_, events) = replica.done(Command::UnpublishTrack {
        room: "r".into(),
        identity: "a".into(),
        track: "TR_1".into(),
    });
    assert_eq!(told(&events), ["TR_1 unpublished"]);
    assert_eq!(replica.refused(muted(false)), Rejection::TrackNotFound);
}

#[test]
fn a_narrower_permission_unpublishes() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    replica.done(publish("r", "a", "TR_2", Source::Microphone));
    let mut permission = everything();
    permission.can_publish_sources = BTreeSet::from([Source::Microphone]);
    permission.can_subscribe = false;
    let (_, events) = replica.done(permit("r", "a", permission));
    let expected = ["TR_1 unpublished", "a updated", "a looks again"];
    assert_eq!(told(&events), expected);
    assert_eq!(replica.participant("r", "a").tracks.len(), 1);
}
