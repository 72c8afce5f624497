//! Whatever clients and engines say, in whatever order, sessions neither panic nor disagree with the
//! room.

use super::*;
use flotilla_model::id::ParticipantSid;
use flotilla_model::placement;
use proptest::prelude::*;
use prost::Message as _;

/// One thing that happens to one of three seats.
#[derive(Clone, Debug)]
enum Step {
    Ask(u8, Box<Asked>),
    Bytes(u8, Vec<u8>),
    Media(u8, MediaStep),
    SignalClosed(u8),
    Resume(u8),
    Command(u8),
    Advance(u16),
    Minority(bool),
    Enter(u8),
}

#[derive(Clone, Debug)]
enum MediaStep {
    Connected,
    Failed,
    Lost,
    Restarted,
    Described(u8),
    Ended(u8),
    Open,
    Data(Vec<u8>),
    Wanted(u8, u8),
}

fn sid() -> impl Strategy<Value = String> {
    prop_oneof![Just("{0}".to_owned()), Just("{1}".to_owned()), "[A-Z]{0,3}"]
}

fn asked() -> impl Strategy<Value = Asked> {
    prop_oneof![
        (any::<u32>(), "[a-z=]{0,8}").prop_map(|(id, sdp)| Asked::Offer(
            proto::SessionDescription {
                r#type: "offer".into(),
                sdp,
                id,
                ..Default::default()
            }
        )),
        "[{}a-z\":]{0,20}".prop_map(|text| Asked::Trickle(proto::TrickleRequest {
            candidate_init: text,
            ..Default::default()
        })),
        (0..3i32, 0..6i32, any::<bool>()).prop_map(|(kind, source, muted)| Asked::AddTrack(
            proto::AddTrackRequest {
                r#type: kind,
                source,
                muted,
                ..camera()
            }
        )),
        (sid(), any::<bool>())
            .prop_map(|(sid, muted)| Asked::Mute(proto::MuteTrackRequest { sid, muted })),
        (sid(), any::<bool>()).prop_map(|(sid, subscribe)| Asked::Subscription(
            proto::UpdateSubscription {
                track_sids: vec![sid],
                subscribe,
                ..Default::default()
            }
        )),
        (sid(), any::<bool>(), 0..4i32, any::<u32>(), any::<u32>()).prop_map(
            |(sid, disabled, quality, width, height)| {
                Asked::TrackSetting(proto::UpdateTrackSettings {
                    track_sids: vec![sid],
                    disabled,
                    quality,
                    width,
                    height,
                    ..Default::default()
                })
            }
        ),
        any::<bool>().prop_map(|all| Asked::SubscriptionPermission(
            proto::SubscriptionPermission {
                all_participants: all,
                track_permissions: vec![proto::TrackPermission {
                    participant_identity: "p1".into(),
                    all_tracks: true,
                    ..Default::default()
                }],
            }
        )),
        (sid(), any::<bool>()).prop_map(|(sid, subscribe)| Asked::SyncState(proto::SyncState {
            subscription: Some(proto::UpdateSubscription {
                track_sids: vec![sid.clone()],
                subscribe,
                ..Default::default()
            }),
            track_sids_disabled: vec![sid],
            ..Default::default()
        })),
        (0..11u8, any::<i32>()).prop_map(|(which, number)| {
            use proto::simulate_scenario::Scenario;
            let scenario = match which {
                0 => Some(Scenario::SpeakerUpdate(number)),
                1 => Some(Scenario::Migration(true)),
                2 => Some(Scenario::DisconnectSignalOnResume(true)),
                3 => Some(Scenario::DisconnectSignalOnResumeNoMessages(true)),
                4 => Some(Scenario::SubscriberBandwidth(1)),
                _ => None,
            };
            Asked::Simulate(proto::SimulateScenario { scenario })
        }),
        "[a-z]{0,5}".prop_map(
            |metadata| Asked::UpdateMetadata(proto::UpdateParticipantMetadata {
                metadata,
                ..Default::default()
            })
        ),
        any::<i64>().prop_map(Asked::Ping),
        sid().prop_map(
            |track_sid| Asked::UpdateVideoTrack(proto::UpdateLocalVideoTrack {
                track_sid,
                width: 1,
                height: 2,
            })
        ),
        Just(Asked::PublishDataTrackRequest(
            proto::PublishDataTrackRequest::default()
        )),
        Just(Asked::Leave(proto::LeaveRequest::default())),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    let media = prop_oneof![
        Just(MediaStep::Connected),
        Just(MediaStep::Failed),
        Just(MediaStep::Lost),
        Just(MediaStep::Restarted),
        any::<u8>().prop_map(MediaStep::Described),
        any::<u8>().prop_map(MediaStep::Ended),
        Just(MediaStep::Open),
        bytes().prop_map(MediaStep::Data),
        (any::<u8>(), 0..4u8).prop_map(|(track, quality)| MediaStep::Wanted(track, quality)),
    ];
    prop_oneof![
        12 => (0..3u8, asked()).prop_map(|(seat, asked)| Step::Ask(seat, Box::new(asked))),
        2 => (0..3u8, bytes()).prop_map(|(seat, bytes)| Step::Bytes(seat, bytes)),
        6 => (0..3u8, media).prop_map(|(seat, media)| Step::Media(seat, media)),
        1 => (0..3u8).prop_map(Step::SignalClosed),
        2 => (0..3u8).prop_map(Step::Resume),
        2 => (0..6u8).prop_map(Step::Command),
        2 => (0..8000u16).prop_map(Step::Advance),
        1 => any::<bool>().prop_map(Step::Minority),
        1 => (0..3u8).prop_map(Step::Enter),
    ]
}

/// The track that a number stands for.
fn track(world: &World, number: u8) -> TrackSid {
    let Some(room) = world.state.rooms.get(&RoomName::from("room")) else {
        return TrackSid::from("TR_none");
    };
    let count = room.publishers.len().max(1);
    let sid = room.publishers.keys().nth(usize::from(number) % count);
    sid.cloned().unwrap_or_else(|| TrackSid::from("TR_none"))
}

/// Puts real sids where the strategy left places for them.
fn filled(world: &World, mut asked: Asked) -> Asked {
    let fill = |sid: &mut String| {
        if let Some(number) = sid
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        {
            *sid = track(world, number.parse().unwrap_or(0)).to_string();
        }
    };
    match &mut asked {
        Asked::Mute(request) => fill(&mut request.sid),
        Asked::Subscription(request) => request.track_sids.iter_mut().for_each(fill),
        Asked::TrackSetting(request) => request.track_sids.iter_mut().for_each(fill),
        Asked::UpdateVideoTrack(request) => fill(&mut request.track_sid),
        Asked::SyncState(state) => {
            state.track_sids_disabled.iter_mut().for_each(fill);
            let subscription = state.subscription.iter_mut();
            subscription.flat_map(|s| &mut s.track_sids).for_each(fill);
        }
        _ => {}
    }
    asked
}

fn take(world: &mut World, seats: &mut [usize; 3], step: Step) {
    let seat = |number: u8| seats[usize::from(number)];
    match step {
        Step::Ask(number, asked) => {
            let asked = filled(world, *asked);
            world.ask(seat(number), asked);
        }
        Step::Bytes(number, bytes) => {
            if let Ok(request) = proto::SignalRequest::decode(bytes.as_slice()) {
                world.input(seat(number), Input::Request(Box::new(request)));
            }
        }
        Step::Media(number, media) => {
            let target = Target::Publisher;
            let event = match media {
                MediaStep::Connected => media::Event::Connected { target },
                MediaStep::Failed => media::Event::Failed {
                    target,
                    reason: "test",
                },
                MediaStep::Lost => media::Event::Lost,
                MediaStep::Restarted => media::Event::Restarted,
                MediaStep::Described(number) => media::Event::TrackDescribed {
                    track: track(world, number),
                    codecs: described("cam", true),
                },
                MediaStep::Ended(number) => media::Event::TrackEnded {
                    track: track(world, number),
                },
                MediaStep::Open => media::Event::ChannelOpen {
                    target,
                    channel: Channel::Reliable,
                },
                MediaStep::Data(payload) => media::Event::Data {
                    channel: Channel::Reliable,
                    payload: payload.into(),
                },
                MediaStep::Wanted(number, quality) => media::Event::QualityWanted {
                    track: track(world, number),
                    quality: crate::convert::quality(i32::from(quality)),
                },
            };
            world.media(seat(number), event);
        }
        Step::SignalClosed(number) => world.input(seat(number), Input::SignalClosed),
        Step::Resume(number) => {
            let seat = seat(number);
            let reconnect = crate::connect::Reconnect {
                sid: None,
                reason: 0,
            };
            let claims = claims(world.seats[seat].session.identity().as_str());
            if world.seats[seat]
                .session
                .is_resumable_by(&claims, &reconnect)
            {
                world.resume(seat, parameters(seat % 2 == 0));
            }
        }
        Step::Command(number) => {
            let identity = format!("p{}", number % 3);
            if number < 3 {
                world.command(remove(&identity));
            } else {
                let mut permission = claims(&identity).permission();
                permission.can_publish = number % 2 == 0;
                permission.can_subscribe = number % 2 == 1;
                let permission = Some(permission);
                let change = ParticipantUpdate {
                    permission,
                    ..ParticipantUpdate::default()
                };
                world.command(update(&identity, change));
            }
        }
        Step::Advance(milliseconds) => world.advance(Duration::from_millis(milliseconds.into())),
        Step::Minority(minority) => world.minority = minority,
        Step::Enter(number) => {
            let parameters = parameters(number % 2 == 0);
            seats[usize::from(number)] = world.join(claims(&format!("p{number}")), parameters);
        }
    }
}

/// What a session's orders to the engine add up to.
fn subscriptions(commands: &[media::Command]) -> std::collections::BTreeSet<TrackSid> {
    let mut subscribed = std::collections::BTreeSet::new();
    for command in commands {
        match command {
            media::Command::Subscribe { track, .. } => assert!(subscribed.insert(track.clone())),
            media::Command::Unsubscribe { track } => assert!(subscribed.remove(track)),
            media::Command::SetSettings { track, .. } => assert!(subscribed.contains(track)),
            _ => {}
        }
    }
    subscribed
}

/// Who a session's client thinks is there.
fn present(replies: &[Message]) -> std::collections::BTreeMap<ParticipantSid, Vec<String>> {
    let mut present = std::collections::BTreeMap::new();
    for reply in replies {
        let infos = match reply {
            Message::Join(join) => &join.other_participants,
            Message::Update(update) => &update.participants,
            _ => continue,
        };
        for info in infos {
            let sid = ParticipantSid(info.sid.clone());
            if info.state == 3 {
                present.remove(&sid);
            } else {
                // One identity, one session.
                let tracks = info.tracks.iter().map(|track| track.sid.clone()).collect();
                present.insert(sid, tracks);
            }
        }
    }
    present
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_is_survived_and_ends_in_agreement(
        steps in proptest::collection::vec(step(), 1..80),
        outcome_first in any::<bool>(),
    ) {
        let mut world = World::new();
        world.outcome_first = outcome_first;
        let mut seats = [0, 1, 2].map(|n| world.join(claims(&format!("p{n}")), parameters(n % 2 == 0)));
        let mut handed_over = std::collections::BTreeSet::new();
        for step in steps {
            if let Step::Media(number, MediaStep::Restarted) = &step {
                handed_over.insert(seats[usize::from(*number)]);
            }
            take(&mut world, &mut seats, step);
        }
        // Once there is a quorum again, every session agrees with the room.
        world.minority = false;
        world.advance(Duration::from_secs(3));
        let Some(room) = world.state.rooms.get(&RoomName::from("room")) else {
            return Ok(());
        };
        for (number, seat) in world.seats.iter().enumerate() {
            let over = matches!(seat.closed.last(), Some(Close::Session { .. }));
            let me = room.participants.get(seat.session.identity());
            let Some(me) = me.filter(|me| me.sid == *seat.session.sid()) else {
                prop_assert!(over, "a session without place in the room is over");
                continue;
            };
            if over {
                // Its place waits for the client, who may resume on any node.
                prop_assert!(handed_over.contains(&number), "a session with a place goes on");
                continue;
            }
            let wanted = room
                .tracks()
                .filter(|(publisher, track)| placement::is_subscribed(me, publisher, track))
                .map(|(_, track)| track.sid.clone())
                .collect();
            prop_assert_eq!(subscriptions(&seat.media), wanted);
            if seat.connected {
                let told = present(&seat.replies);
                for other in room.participants.values().filter(|other| other.sid != me.sid) {
                    let announced: Vec<_> = other
                        .tracks
                        .values()
                        .filter(|track| track.announced)
                        .map(|track| track.sid.to_string())
                        .collect();
                    prop_assert_eq!(told.get(&other.sid), Some(&announced));
                }
            }
        }
    }
}
