//! The model's records as messages.

use flotilla_model::State;
use flotilla_model::cluster::{Node, NodeState};
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{NodeId, TrackSid, Version};
use flotilla_model::participant::{LeaveReason, Participant, ParticipantState};
use flotilla_model::permission::Permission;
use flotilla_model::room::{Room, Route};
use flotilla_model::track::{Kind, Source, Track};

use super::live::Live;
use super::proto;
use super::proto::event::What;
use crate::control::takeovers::Takeover;

/// Most routes told with a change of a room's routes.
const ROUTES_TOLD_MAX: usize = 1000;

pub(super) fn takeover(takeover: &Takeover) -> proto::Takeover {
    proto::Takeover {
        number: takeover.number,
        room: takeover.room.to_string(),
        sid: takeover.sid.to_string(),
        cause: takeover.cause.name().to_owned(),
        from: takeover.from.0,
        to: takeover.to.0,
        epoch: takeover.epoch.0,
        heard_at_ms: takeover.heard_at.map(|at| at.0),
        detected_at_ms: takeover.detected_at.map(|at| at.0),
        decided_at_ms: takeover.decided_at.0,
        adopted_at_ms: takeover.adopted.map(|(at, _)| at.0),
        adoption: takeover
            .adopted
            .map_or_else(String::new, |(_, how)| how.name().to_owned()),
        first_packet_at_ms: takeover.first_packet_at.map(|at| at.0),
    }
}

pub(super) fn node(node: &Node, state: &State) -> proto::Node {
    let served = state
        .rooms
        .values()
        .filter_map(|room| room.homes.get(&node.id));
    let (rooms, participants) = served.fold((0, 0), |(rooms, participants), count| {
        (rooms + 1, participants + count)
    });
    proto::Node {
        id: node.id.0,
        region: node.region.to_string(),
        state: match node.state {
            NodeState::Serving => proto::NodeState::Serving,
            NodeState::Draining => proto::NodeState::Draining,
            NodeState::Lost { .. } => proto::NodeState::Lost,
        }
        .into(),
        boot: node.boot.0,
        cluster_address: node.cluster_address.clone(),
        admin_address: node.admin_address.clone(),
        client_url: node.client_url.clone(),
        relay_addresses: node
            .relay_addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        capacity: node.capacity,
        version: node.version.clone(),
        participants,
        rooms,
    }
}

pub(super) fn room(room: &Room) -> proto::Room {
    let routes: usize = room
        .routes
        .values()
        .map(std::collections::BTreeSet::len)
        .sum();
    proto::Room {
        name: room.name.to_string(),
        sid: room.sid.to_string(),
        version: room.version.0,
        metadata: room.metadata.clone(),
        created_at_ms: room.created_at.0,
        close_at_ms: room.close_at.map(|at| at.0),
        participants: count(room.participants.len()),
        tracks: count(room.publishers.len()),
        routes: count(routes),
        homes: room
            .homes
            .iter()
            .map(|(node, count)| (node.0, *count))
            .collect(),
        empty_timeout_ms: room.options.empty_timeout_ms,
        departure_timeout_ms: room.options.departure_timeout_ms,
        max_participants: room.options.max_participants,
        tags: room.options.tags.clone().into_iter().collect(),
    }
}

pub(super) fn participant(participant: &Participant) -> proto::Participant {
    let client = &participant.client;
    let platform = [client.browser.as_str(), client.os.as_str()];
    let platform = platform.into_iter().find(|text| !text.is_empty());
    proto::Participant {
        identity: participant.identity.to_string(),
        sid: participant.sid.to_string(),
        name: participant.name.clone(),
        metadata: participant.metadata.clone(),
        attributes: participant.attributes.clone().into_iter().collect(),
        kind: participant.kind,
        state: match participant.state {
            ParticipantState::Joining => proto::ParticipantState::Joining,
            ParticipantState::Joined => proto::ParticipantState::Joined,
            ParticipantState::Active => proto::ParticipantState::Active,
            ParticipantState::Disconnected => proto::ParticipantState::Disconnected,
        }
        .into(),
        joined_at_ms: participant.joined_at.0,
        activate_by_ms: participant.activate_by.map(|at| at.0),
        version: participant.version,
        permission: Some(permission(&participant.permission)),
        auto_subscribe: participant.subscriptions.auto,
        tracks: participant.tracks.keys().map(ToString::to_string).collect(),
        home: participant.home.0,
        epoch: participant.epoch.0,
        client_sdk: client.sdk,
        client_version: client.version.clone(),
        client_platform: platform.unwrap_or_default().to_owned(),
        single_peer_connection: client.single_peer_connection,
    }
}

fn permission(permission: &Permission) -> proto::Permission {
    proto::Permission {
        can_subscribe: permission.can_subscribe,
        can_publish: permission.can_publish,
        can_publish_data: permission.can_publish_data,
        can_publish_sources: permission
            .can_publish_sources
            .iter()
            .map(|allowed| source(*allowed).into())
            .collect(),
        hidden: permission.hidden,
        recorder: permission.recorder,
        can_update_metadata: permission.can_update_metadata,
        agent: permission.agent,
        can_subscribe_metrics: permission.can_subscribe_metrics,
    }
}

/// A track without its routes, as its publisher shows it.
pub(super) fn track(publisher: &Participant, track: &Track) -> proto::Track {
    let codec = |codec: &flotilla_model::track::TrackCodec| proto::Codec {
        mime: codec.mime.clone(),
        mid: codec.mid.clone(),
        layers: codec
            .layers
            .iter()
            .map(|layer| proto::Layer {
                rid: layer.rid.clone(),
                ssrc: layer.ssrc,
                width: layer.size.width,
                height: layer.size.height,
                bitrate_bps: layer.bitrate_bps,
            })
            .collect(),
    };
    proto::Track {
        sid: track.sid.to_string(),
        publisher: publisher.identity.to_string(),
        kind: kind(track.kind).into(),
        source: source(track.source).into(),
        name: track.name.clone(),
        muted: track.muted,
        announced: track.announced,
        simulcast: track.simulcast,
        width: track.size.width,
        height: track.size.height,
        codecs: track.codecs.iter().map(codec).collect(),
        home: publisher.home.0,
        routes: Vec::new(),
    }
}

/// A node's own view of relays.
pub(super) struct Counters<'a> {
    pub(super) node: NodeId,
    pub(super) live: &'a Live,
}

/// The routes of one track, with counters if given.
pub(super) fn routes(
    room: &Room,
    sid: &TrackSid,
    counters: Option<&Counters<'_>>,
) -> Vec<proto::Route> {
    let Some((publisher, track)) = room.track(sid) else {
        return Vec::new();
    };
    let route = |route: &Route| proto::Route {
        room: room.name.to_string(),
        track: sid.to_string(),
        publisher: publisher.identity.to_string(),
        kind: kind(track.kind).into(),
        from: route.from.0,
        to: route.to.0,
        epoch: route.epoch.0,
        room_version: room.version.0,
        live: counters.and_then(|counters| counters.live.route(counters.node, sid, route)),
    };
    room.routes
        .get(sid)
        .into_iter()
        .flatten()
        .map(route)
        .collect()
}

/// An event as of the state right after its change; `None` if what it is about went in the same
/// change.
pub(super) fn event(event: &Event, state: &State) -> Option<proto::Event> {
    let (room, version, what) = match event {
        Event::NodeChanged(id) => {
            let what = What::NodeChanged(node(state.nodes.get(id)?, state));
            (String::new(), Version(0), what)
        }
        Event::NodeRemoved(id) => (String::new(), Version(0), What::NodeRemoved(id.0)),
        Event::Room {
            room: name,
            version,
            change,
        } => {
            let room = state.rooms.get(name).map(|room| &**room);
            (name.to_string(), *version, room_event(change, room)?)
        }
    };
    Some(proto::Event {
        room,
        room_version: version.0,
        what: Some(what),
    })
}

fn room_event(change: &RoomEvent, after: Option<&Room>) -> Option<What> {
    Some(match change {
        RoomEvent::Created(created) => What::RoomCreated(room(created)),
        RoomEvent::Updated => What::RoomUpdated(room(after?)),
        RoomEvent::Closed(closed) => What::RoomClosed(room(closed)),
        RoomEvent::ParticipantJoined(joined) => What::ParticipantJoined(participant(joined)),
        RoomEvent::ParticipantUpdated(updated) => What::ParticipantUpdated(participant(updated)),
        RoomEvent::ParticipantLeft {
            participant: left,
            reason,
        } => What::ParticipantLeft(proto::ParticipantLeft {
            participant: Some(participant(left)),
            reason: leave_reason(*reason).into(),
        }),
        RoomEvent::ParticipantMoved(moved) => What::ParticipantMoved(participant(moved)),
        RoomEvent::TrackPublished {
            publisher,
            track: published,
        } => What::TrackPublished(track(publisher, published)),
        RoomEvent::TrackUpdated {
            publisher,
            track: updated,
        } => What::TrackUpdated(track(publisher, updated)),
        RoomEvent::TrackUnpublished {
            publisher,
            track: unpublished,
        } => What::TrackUnpublished(track(publisher, unpublished)),
        RoomEvent::SubscriptionsChanged { identity } => {
            What::SubscriptionsChanged(identity.to_string())
        }
        RoomEvent::SubscriptionPermissionChanged {
            publisher,
            subscriber,
            track,
            allowed,
        } => What::SubscriptionPermissionChanged(proto::SubscriptionPermission {
            publisher: publisher.to_string(),
            subscriber: subscriber.to_string(),
            track: track.to_string(),
            allowed: *allowed,
        }),
        RoomEvent::RoutesChanged => What::RoutesChanged(routes_after(after?)),
    })
}

fn routes_after(room: &Room) -> proto::Routes {
    let total: usize = room
        .routes
        .values()
        .map(std::collections::BTreeSet::len)
        .sum();
    let mut told = proto::Routes {
        routes: Vec::new(),
        count: count(total),
    };
    if total <= ROUTES_TOLD_MAX {
        told.routes = room
            .routes
            .keys()
            .flat_map(|sid| routes(room, sid, None))
            .collect();
    }
    told
}

fn kind(kind: Kind) -> proto::TrackKind {
    match kind {
        Kind::Audio => proto::TrackKind::Audio,
        Kind::Video => proto::TrackKind::Video,
    }
}

fn source(source: Source) -> proto::TrackSource {
    match source {
        Source::Unknown => proto::TrackSource::Unknown,
        Source::Camera => proto::TrackSource::Camera,
        Source::Microphone => proto::TrackSource::Microphone,
        Source::ScreenShare => proto::TrackSource::ScreenShare,
        Source::ScreenShareAudio => proto::TrackSource::ScreenShareAudio,
    }
}

fn leave_reason(reason: LeaveReason) -> proto::LeaveReason {
    match reason {
        LeaveReason::Unknown => proto::LeaveReason::Unknown,
        LeaveReason::ClientInitiated => proto::LeaveReason::ClientInitiated,
        LeaveReason::DuplicateIdentity => proto::LeaveReason::DuplicateIdentity,
        LeaveReason::ServerShutdown => proto::LeaveReason::ServerShutdown,
        LeaveReason::ParticipantRemoved => proto::LeaveReason::ParticipantRemoved,
        LeaveReason::RoomDeleted => proto::LeaveReason::RoomDeleted,
        LeaveReason::StateMismatch => proto::LeaveReason::StateMismatch,
        LeaveReason::JoinFailure => proto::LeaveReason::JoinFailure,
        LeaveReason::SignalClose => proto::LeaveReason::SignalClose,
        LeaveReason::RoomClosed => proto::LeaveReason::RoomClosed,
        LeaveReason::ConnectionTimeout => proto::LeaveReason::ConnectionTimeout,
        LeaveReason::MediaFailure => proto::LeaveReason::MediaFailure,
    }
}

/// Counts in the state are limited far below this.
fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
