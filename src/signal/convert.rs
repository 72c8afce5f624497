//! Model ↔ LiveKit's messages, field by field. Used by sessions and by the room service.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_model::id::{Identity, NodeId, RoomSid, TrackSid, UnixMillis, fnv1a};
use flotilla_model::participant::{Client, LeaveReason, Participant};
use flotilla_model::permission::{Permission, SubscriptionPermission};
use flotilla_model::room::{Room, RoomOptions};
use flotilla_model::track::{Encryption, Kind, Layer, Quality, Source, Track, TrackCodec};
use flotilla_model::unit::Size;
use livekit_protocol as proto;

use crate::config::{EnabledCodec, PROTOCOL, SessionConfig};
use crate::connect::JoinParameters;

mod track;

pub use track::{codecs, track_info, track_of};

/// A room as clients and the API see it. Costs a walk over its participants.
#[must_use]
pub fn room(room: &Room, enabled_codecs: &[EnabledCodec]) -> proto::Room {
    let people = room.participants.values().filter(|p| p.takes_place());
    let publishers = room
        .participants
        .values()
        .filter(|participant| !participant.tracks.is_empty());
    proto::Room {
        sid: room.sid.to_string(),
        name: room.name.to_string(),
        empty_timeout: seconds(room.options.empty_timeout_ms),
        departure_timeout: seconds(room.options.departure_timeout_ms),
        max_participants: room.options.max_participants,
        creation_time: (room.created_at.0 / 1000) as i64,
        creation_time_ms: room.created_at.0 as i64,
        enabled_codecs: enabled_codecs.iter().map(codec).collect(),
        metadata: room.metadata.clone(),
        num_participants: people.count() as u32,
        num_publishers: publishers.count() as u32,
        version: Some(proto::TimedVersion {
            unix_micro: room.created_at.0.saturating_mul(1000) as i64,
            ticks: room.version.0 as i32,
        }),
        ..proto::Room::default()
    }
}

fn seconds(milliseconds: u64) -> u32 {
    u32::try_from(milliseconds / 1000).unwrap_or(u32::MAX)
}

/// A codec as the server enables it.
#[must_use]
pub fn codec(codec: &EnabledCodec) -> proto::Codec {
    proto::Codec {
        mime: codec.mime.clone(),
        fmtp_line: codec.fmtp.clone(),
    }
}

/// A participant as others see it: with the tracks that have been announced.
#[must_use]
pub fn participant_info(participant: &Participant) -> proto::ParticipantInfo {
    let announced = participant.tracks.values().filter(|track| track.announced);
    proto::ParticipantInfo {
        sid: participant.sid.to_string(),
        identity: participant.identity.to_string(),
        state: participant.state as i32,
        tracks: announced.map(|track| track_info(track)).collect(),
        metadata: participant.metadata.clone(),
        joined_at: (participant.joined_at.0 / 1000) as i64,
        joined_at_ms: participant.joined_at.0 as i64,
        name: participant.name.clone(),
        version: participant.version,
        permission: Some(permission_info(&participant.permission)),
        is_publisher: !participant.tracks.is_empty(),
        kind: participant.kind,
        attributes: participant.attributes.clone().into_iter().collect(),
        kind_details: participant.kind_details.clone(),
        client_protocol: participant.client.client_protocol,
        capabilities: participant.client.capabilities.clone(),
        ..proto::ParticipantInfo::default()
    }
}

/// A participant that has left.
#[must_use]
pub fn departed_info(participant: &Participant, reason: LeaveReason) -> proto::ParticipantInfo {
    proto::ParticipantInfo {
        state: proto::participant_info::State::Disconnected as i32,
        disconnect_reason: reason as i32,
        ..participant_info(participant)
    }
}

/// A permission as messages carry it.
#[must_use]
#[expect(deprecated, reason = "older clients read `recorder` and `agent`")]
pub fn permission_info(permission: &Permission) -> proto::ParticipantPermission {
    proto::ParticipantPermission {
        can_subscribe: permission.can_subscribe,
        can_publish: permission.can_publish,
        can_publish_data: permission.can_publish_data,
        can_publish_sources: permission
            .can_publish_sources
            .iter()
            .map(|source| *source as i32)
            .collect(),
        hidden: permission.hidden,
        recorder: permission.recorder,
        can_update_metadata: permission.can_update_metadata,
        agent: permission.agent,
        can_subscribe_metrics: permission.can_subscribe_metrics,
        can_manage_agent_session: false,
    }
}

/// A permission as an administrator sets it.
#[must_use]
#[expect(deprecated, reason = "older API clients set `recorder` and `agent`")]
pub fn permission(info: &proto::ParticipantPermission) -> Permission {
    Permission {
        can_subscribe: info.can_subscribe,
        can_publish: info.can_publish,
        can_publish_data: info.can_publish_data,
        can_publish_sources: info
            .can_publish_sources
            .iter()
            .map(|number| source(*number))
            .collect(),
        hidden: info.hidden,
        recorder: info.recorder,
        can_update_metadata: info.can_update_metadata,
        agent: info.agent,
        can_subscribe_metrics: info.can_subscribe_metrics,
    }
}

/// A publisher's subscription permission. Sids are looked up in the room; unknown ones are left out.
#[must_use]
pub fn subscription_permission(
    info: &proto::SubscriptionPermission,
    room: &Room,
) -> SubscriptionPermission {
    let mut allowed: BTreeMap<Identity, Option<BTreeSet<TrackSid>>> = BTreeMap::new();
    for entry in &info.track_permissions {
        let identity = if entry.participant_identity.is_empty() {
            room.participants
                .values()
                .find(|participant| participant.sid.as_str() == entry.participant_sid)
                .map(|participant| participant.identity.clone())
        } else {
            Some(Identity(entry.participant_identity.clone()))
        };
        let Some(identity) = identity else { continue };
        let tracks = (!entry.all_tracks).then(|| {
            entry
                .track_sids
                .iter()
                .map(|sid| TrackSid(sid.clone()))
                .collect()
        });
        allowed.insert(identity, tracks);
    }
    SubscriptionPermission {
        all_participants: info.all_participants,
        allowed,
    }
}

/// The client as replicated.
#[must_use]
pub fn client(parameters: &JoinParameters) -> Client {
    let info = &parameters.client;
    Client {
        sdk: info.sdk,
        version: info.version.clone(),
        protocol: u32::try_from(info.protocol).unwrap_or(0),
        client_protocol: info.client_protocol,
        capabilities: info.capabilities.clone(),
        os: info.os.clone(),
        browser: info.browser.clone(),
        single_peer_connection: parameters.single_peer_connection,
        adaptive_stream: parameters.adaptive_stream,
    }
}

/// What this server says of itself.
#[must_use]
pub fn server_info(config: &SessionConfig) -> proto::ServerInfo {
    proto::ServerInfo {
        edition: proto::server_info::Edition::Standard as i32,
        version: config.server_version.clone(),
        protocol: PROTOCOL,
        region: config.region.clone(),
        node_id: NodeId::livekit(config.node),
        debug_info: config.debug_info.clone(),
        agent_protocol: 0,
    }
}

/// Bytes by which clients with end-to-end encryption know frames that the server made. The same for
/// all sessions of a room, whichever node serves them.
#[must_use]
pub fn sif_trailer(room: &RoomSid) -> Vec<u8> {
    let first = fnv1a(room.as_str().as_bytes());
    let second = fnv1a(&first.to_be_bytes());
    [first.to_be_bytes(), second.to_be_bytes()].concat()
}

/// A source from its number; unknown ones count as `Unknown`.
#[must_use]
pub fn source(number: i32) -> Source {
    match number {
        1 => Source::Camera,
        2 => Source::Microphone,
        3 => Source::ScreenShare,
        4 => Source::ScreenShareAudio,
        _ => Source::Unknown,
    }
}

/// A quality from its number; unknown ones count as `High`.
#[must_use]
pub fn quality(number: i32) -> Quality {
    match number {
        0 => Quality::Low,
        1 => Quality::Medium,
        3 => Quality::Off,
        _ => Quality::High,
    }
}

/// Options of a room from a `CreateRoomRequest`-like set; zero means the default.
#[must_use]
pub fn room_options(request: &proto::CreateRoomRequest, defaults: &RoomOptions) -> RoomOptions {
    let or_default = |seconds: u32, default: u64| match seconds {
        0 => default,
        seconds => u64::from(seconds) * 1000,
    };
    RoomOptions {
        empty_timeout_ms: or_default(request.empty_timeout, defaults.empty_timeout_ms),
        departure_timeout_ms: or_default(request.departure_timeout, defaults.departure_timeout_ms),
        max_participants: match request.max_participants {
            0 => defaults.max_participants,
            most => most,
        },
        tags: request.tags.clone().into_iter().collect(),
        min_playout_delay_ms: request.min_playout_delay,
        max_playout_delay_ms: request.max_playout_delay,
        sync_streams: request.sync_streams || defaults.sync_streams,
    }
}

/// Milliseconds as messages carry them.
#[must_use]
pub fn millis(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}
