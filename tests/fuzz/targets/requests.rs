//! Signal requests from choices: the fields that sessions look at, with values that mostly mean
//! something.

use flotilla_signal::proto;
use flotilla_signal::proto::signal_request::Message as Asked;

use super::draw::Draw;

fn track(draw: &mut Draw<'_>, tracks: &[String]) -> String {
    draw.pick(tracks).clone()
}

fn description(draw: &mut Draw<'_>) -> proto::SessionDescription {
    proto::SessionDescription {
        r#type: draw.pick(&["offer", "answer", "rollback", ""]).to_string(),
        sdp: draw.text(),
        id: u32::from(draw.byte()),
        ..Default::default()
    }
}

fn layers(draw: &mut Draw<'_>) -> Vec<proto::VideoLayer> {
    let layer = |draw: &mut Draw<'_>| proto::VideoLayer {
        quality: i32::from(draw.byte() % 6),
        width: u32::from(draw.u16()),
        height: u32::from(draw.u16()),
        bitrate: draw.u32(),
        ssrc: draw.u32(),
        ..Default::default()
    };
    (0..draw.number(5)).map(|_| layer(draw)).collect()
}

fn add_track(draw: &mut Draw<'_>, tracks: &[String]) -> proto::AddTrackRequest {
    let codec = |draw: &mut Draw<'_>| proto::SimulcastCodec {
        codec: draw.pick(&["vp8", "h264", "av1", "", "opus"]).to_string(),
        cid: draw.pick(&["cam", "cam2", "mic", ""]).to_string(),
        ..Default::default()
    };
    proto::AddTrackRequest {
        cid: draw.pick(&["cam", "mic", "screen", ""]).to_string(),
        name: draw.text(),
        r#type: i32::from(draw.byte() % 4),
        source: i32::from(draw.byte() % 6),
        width: draw.u32(),
        height: draw.u32(),
        muted: draw.flag(),
        layers: layers(draw),
        simulcast_codecs: (0..draw.number(4)).map(|_| codec(draw)).collect(),
        sid: if draw.flag() {
            track(draw, tracks)
        } else {
            String::new()
        },
        encryption: i32::from(draw.byte() % 4),
        ..Default::default()
    }
}

fn subscription(draw: &mut Draw<'_>, tracks: &[String]) -> proto::UpdateSubscription {
    proto::UpdateSubscription {
        track_sids: (0..draw.number(4)).map(|_| track(draw, tracks)).collect(),
        subscribe: draw.flag(),
        participant_tracks: vec![proto::ParticipantTracks {
            participant_sid: draw.pick(&["PA_x", ""]).to_string(),
            track_sids: vec![track(draw, tracks)],
        }],
    }
}

/// What a client says that has been somewhere else.
pub(crate) fn sync_state(draw: &mut Draw<'_>, tracks: &[String]) -> proto::SyncState {
    let channel = |draw: &mut Draw<'_>| proto::DataChannelInfo {
        label: draw
            .pick(&["_reliable", "_lossy", "_data_track", "x"])
            .to_string(),
        id: draw.u32(),
        target: i32::from(draw.byte() % 3),
    };
    proto::SyncState {
        answer: draw.flag().then(|| description(draw)),
        offer: draw.flag().then(|| description(draw)),
        subscription: draw.flag().then(|| subscription(draw, tracks)),
        data_channels: (0..draw.number(4)).map(|_| channel(draw)).collect(),
        track_sids_disabled: vec![track(draw, tracks)],
        ..Default::default()
    }
}

/// Any request, or none.
pub(crate) fn any(draw: &mut Draw<'_>, tracks: &[String], identities: &[&str]) -> Option<Asked> {
    let message = match draw.byte() % 20 {
        0 => Asked::Offer(description(draw)),
        1 => Asked::Answer(description(draw)),
        2 => Asked::Trickle(proto::TrickleRequest {
            candidate_init: draw.text(),
            target: i32::from(draw.byte() % 3),
            r#final: draw.flag(),
        }),
        3..=5 => Asked::AddTrack(add_track(draw, tracks)),
        6 => Asked::Mute(proto::MuteTrackRequest {
            sid: track(draw, tracks),
            muted: draw.flag(),
        }),
        7 => Asked::Subscription(subscription(draw, tracks)),
        8 => Asked::TrackSetting(proto::UpdateTrackSettings {
            track_sids: vec![track(draw, tracks)],
            disabled: draw.flag(),
            quality: i32::from(draw.byte() % 6),
            width: u32::from(draw.u16()),
            height: u32::from(draw.u16()),
            fps: u32::from(draw.byte()),
            priority: u32::from(draw.byte()),
        }),
        9 => Asked::Leave(proto::LeaveRequest {
            can_reconnect: draw.flag(),
            reason: i32::from(draw.byte() % 16),
            action: i32::from(draw.byte() % 4),
            ..Default::default()
        }),
        10 => Asked::SubscriptionPermission(proto::SubscriptionPermission {
            all_participants: draw.flag(),
            track_permissions: vec![proto::TrackPermission {
                participant_identity: draw.pick(identities).to_string(),
                all_tracks: draw.flag(),
                track_sids: vec![track(draw, tracks)],
                ..Default::default()
            }],
        }),
        11 => Asked::SyncState(sync_state(draw, tracks)),
        12 => Asked::Simulate(proto::SimulateScenario {
            scenario: Some(proto::simulate_scenario::Scenario::SpeakerUpdate(
                i32::from(draw.byte()),
            )),
        }),
        13 => Asked::Ping(i64::from(draw.u32())),
        14 => Asked::UpdateMetadata(proto::UpdateParticipantMetadata {
            metadata: draw.text(),
            name: draw.text(),
            attributes: [(draw.text(), draw.text())].into(),
            request_id: draw.u32(),
        }),
        15 => Asked::UpdateAudioTrack(proto::UpdateLocalAudioTrack {
            track_sid: track(draw, tracks),
            features: vec![i32::from(draw.byte())],
        }),
        16 => Asked::UpdateVideoTrack(proto::UpdateLocalVideoTrack {
            track_sid: track(draw, tracks),
            width: draw.u32(),
            height: draw.u32(),
        }),
        17 => return None,
        18 => {
            // Whatever the bytes say.
            let request = flotilla_signal::wire::Codec::new(1 << 20).decode_binary(draw.bytes());
            return request.ok().and_then(|request| request.message);
        }
        _ => return super::session::ping(),
    };
    Some(message)
}
