//! Answers as JSON, with names instead of numbers where the service has enumerations.

use serde_json::{Map, Value, json};

use super::client::{List, StatusView};
use crate::admin::proto;
use crate::admin::proto::event::What;
use crate::admin::proto::watch_response::Message;

/// `GROUP_ROLE_LEADER` → `leader`.
pub(super) fn name(full: &str, prefix: &str) -> String {
    full.strip_prefix(prefix).unwrap_or(full).to_lowercase()
}

pub(super) fn status(view: &StatusView) -> Value {
    let group = view.group();
    let index = |id: Option<proto::LogId>| id.map(|id| id.index);
    let term = |id: Option<proto::LogId>| id.map(|id| id.term);
    let members: Vec<Value> = group
        .members
        .iter()
        .map(|member| {
            let node = view.nodes.iter().find(|node| node.id == member.node);
            json!({
                "node": member.node,
                "role": role(member),
                "leader": group.leader == Some(member.node),
                "cluster_address": member.address,
                "matched": index(member.matched),
                "lag": member.lag,
                "silent_ms": member.silent_ms,
                "state": node.map(|node| name(node.state().as_str_name(), "NODE_STATE_")),
                "version": node.map(|node| node.version.clone()),
            })
        })
        .collect();
    let asked = view.status.position.map(|position| position.node);
    json!({
        "cluster": group.cluster,
        "group": group.group,
        "node": asked,
        "role": name(group.role().as_str_name(), "GROUP_ROLE_"),
        "leader": group.leader,
        "term": group.term,
        "last_log": group.last_log_index,
        "committed": index(group.committed),
        "applied": index(group.applied),
        "snapshot": index(group.snapshot),
        "purged": index(group.purged),
        "terms": {
            "committed": term(group.committed),
            "applied": term(group.applied),
            "snapshot": term(group.snapshot),
        },
        "waiting": group.waiting,
        "quorum_silent_ms": group.quorum_silent_ms,
        "fault": (!group.fault.is_empty()).then_some(&group.fault),
        "nodes": members,
        "position": position(view.status.position),
    })
}

/// `voter` or `learner`.
pub(super) fn role(member: &proto::Member) -> &'static str {
    if member.voter { "voter" } else { "learner" }
}

pub(super) fn nodes(answer: &proto::ListNodesResponse) -> Value {
    json!({
        "nodes": answer.nodes.iter().map(node).collect::<Vec<_>>(),
        "position": position(answer.position),
    })
}

pub(super) fn takeovers(list: &List<proto::Takeover>) -> Value {
    json!({
        "takeovers": list.entries.iter().map(takeover).collect::<Vec<_>>(),
        "position": position(list.position),
    })
}

fn takeover(takeover: &proto::Takeover) -> Value {
    json!({
        "number": takeover.number,
        "room": takeover.room,
        "sid": takeover.sid,
        "cause": takeover.cause,
        "from": takeover.from,
        "to": takeover.to,
        "epoch": takeover.epoch,
        "heard_at_ms": takeover.heard_at_ms,
        "detected_at_ms": takeover.detected_at_ms,
        "decided_at_ms": takeover.decided_at_ms,
        "adopted_at_ms": takeover.adopted_at_ms,
        "adoption": (!takeover.adoption.is_empty()).then_some(&takeover.adoption),
        "first_packet_at_ms": takeover.first_packet_at_ms,
    })
}

pub(super) fn rooms(rooms: &[proto::Room], at: Option<proto::Position>) -> Value {
    json!({
        "rooms": rooms.iter().map(room).collect::<Vec<_>>(),
        "position": position(at),
    })
}

pub(super) fn whole_room(
    shown: &proto::Room,
    participants: &List<proto::Participant>,
    tracks: &List<proto::Track>,
    at: Option<proto::Position>,
) -> Value {
    let routes: Vec<Value> = tracks
        .entries
        .iter()
        .flat_map(|track| track.routes.iter().map(route))
        .collect();
    json!({
        "room": room(shown),
        "participants": participants.entries.iter().map(participant).collect::<Vec<_>>(),
        "tracks": tracks.entries.iter().map(track).collect::<Vec<_>>(),
        "routes": routes,
        "position": position(at),
    })
}

pub(super) fn participants(list: &List<proto::Participant>) -> Value {
    json!({
        "participants": list.entries.iter().map(participant).collect::<Vec<_>>(),
        "room_version": list.room_version,
        "position": position(list.position),
    })
}

pub(super) fn tracks(list: &List<proto::Track>) -> Value {
    json!({
        "tracks": list.entries.iter().map(track).collect::<Vec<_>>(),
        "room_version": list.room_version,
        "position": position(list.position),
    })
}

pub(super) fn routes(list: &List<proto::Route>) -> Value {
    json!({
        "routes": list.entries.iter().map(route).collect::<Vec<_>>(),
        "room_version": (list.room_version > 0).then_some(list.room_version),
        "position": position(list.position),
    })
}

pub(super) fn hash(answer: &proto::GetStateHashResponse) -> Value {
    let at = answer.position.unwrap_or_default();
    json!({
        "node": at.node,
        "applied": at.log_index,
        "revision": at.revision,
        "state_hash": answer.state_hash,
        "position": position(answer.position),
    })
}

pub(super) fn snapshot(answer: &proto::TriggerSnapshotResponse) -> Value {
    json!({
        "snapshot": answer.snapshot.map(|snapshot| snapshot.index),
        "purged": answer.purged.map(|purged| purged.index),
        "position": position(answer.position),
    })
}

pub(super) fn leader(answer: &proto::TransferLeaderResponse) -> Value {
    json!({
        "leader": answer.leader,
        "term": answer.term,
        "position": position(answer.position),
    })
}

pub(super) fn removed(answer: &proto::RemoveNodeResponse) -> Value {
    json!({
        "was_member": answer.was_member,
        "was_registered": answer.was_registered,
        "position": position(answer.position),
    })
}

pub(super) fn done(at: Option<proto::Position>, room_version: Option<u64>) -> Value {
    json!({
        "room_version": room_version,
        "position": position(at),
    })
}

/// One line of `watch`.
pub(super) fn message(message: &Message) -> Value {
    match message {
        Message::Snapshot(snapshot) => json!({
            "snapshot": {
                "nodes": snapshot.nodes.iter().map(node).collect::<Vec<_>>(),
                "rooms": snapshot.rooms.iter().map(room).collect::<Vec<_>>(),
                "participants": snapshot.participants.iter().map(participant).collect::<Vec<_>>(),
                "tracks": snapshot.tracks.iter().map(track).collect::<Vec<_>>(),
                "more": snapshot.more,
            },
            "position": position(snapshot.position),
        }),
        Message::Change(change) => json!({
            "events": change.events.iter().map(event).collect::<Vec<_>>(),
            "position": position(change.position),
        }),
        Message::Progress(progress) => json!({
            "progress": {},
            "position": position(progress.position),
        }),
    }
}

fn event(event: &proto::Event) -> Value {
    let (kind, what) = match &event.what {
        None => ("unknown", Value::Null),
        Some(what) => (kind(what), content(what)),
    };
    let mut object = Map::new();
    object.insert("event".to_owned(), kind.into());
    if !event.room.is_empty() {
        object.insert("room".to_owned(), event.room.as_str().into());
        object.insert("room_version".to_owned(), event.room_version.into());
    }
    object.insert("what".to_owned(), what);
    Value::Object(object)
}

/// The event's name, as in the protocol.
pub(super) fn kind(what: &What) -> &'static str {
    match what {
        What::NodeChanged(_) => "node_changed",
        What::NodeRemoved(_) => "node_removed",
        What::RoomCreated(_) => "room_created",
        What::RoomUpdated(_) => "room_updated",
        What::RoomClosed(_) => "room_closed",
        What::ParticipantJoined(_) => "participant_joined",
        What::ParticipantUpdated(_) => "participant_updated",
        What::ParticipantLeft(_) => "participant_left",
        What::ParticipantMoved(_) => "participant_moved",
        What::TrackPublished(_) => "track_published",
        What::TrackUpdated(_) => "track_updated",
        What::TrackUnpublished(_) => "track_unpublished",
        What::SubscriptionsChanged(_) => "subscriptions_changed",
        What::SubscriptionPermissionChanged(_) => "subscription_permission_changed",
        What::RoutesChanged(_) => "routes_changed",
    }
}

fn content(what: &What) -> Value {
    match what {
        What::NodeChanged(changed) => node(changed),
        What::NodeRemoved(id) => json!({ "id": id }),
        What::RoomCreated(changed) | What::RoomUpdated(changed) | What::RoomClosed(changed) => {
            room(changed)
        }
        What::ParticipantJoined(changed)
        | What::ParticipantUpdated(changed)
        | What::ParticipantMoved(changed) => participant(changed),
        What::ParticipantLeft(left) => json!({
            "participant": left.participant.as_ref().map(participant),
            "reason": name(left.reason().as_str_name(), "LEAVE_REASON_"),
        }),
        What::TrackPublished(changed)
        | What::TrackUpdated(changed)
        | What::TrackUnpublished(changed) => track(changed),
        What::SubscriptionsChanged(identity) => json!({ "identity": identity }),
        What::SubscriptionPermissionChanged(changed) => json!({
            "publisher": changed.publisher,
            "subscriber": changed.subscriber,
            "track": changed.track,
            "allowed": changed.allowed,
        }),
        What::RoutesChanged(changed) => json!({
            "routes": changed.routes.iter().map(route).collect::<Vec<_>>(),
            "count": changed.count,
        }),
    }
}

fn position(position: Option<proto::Position>) -> Value {
    position.map_or(Value::Null, |position| {
        json!({
            "node": position.node,
            "log_index": position.log_index,
            "revision": position.revision,
            "applied_at_ms": position.applied_at_ms,
        })
    })
}

fn node(node: &proto::Node) -> Value {
    json!({
        "id": node.id,
        "region": node.region,
        "state": name(node.state().as_str_name(), "NODE_STATE_"),
        "boot": format!("{:016x}", node.boot),
        "cluster_address": node.cluster_address,
        "admin_address": node.admin_address,
        "client_url": node.client_url,
        "relay_addresses": node.relay_addresses,
        "capacity": node.capacity,
        "version": node.version,
        "participants": node.participants,
        "rooms": node.rooms,
    })
}

fn room(room: &proto::Room) -> Value {
    json!({
        "name": room.name,
        "sid": room.sid,
        "version": room.version,
        "metadata": room.metadata,
        "created_at_ms": room.created_at_ms,
        "close_at_ms": room.close_at_ms,
        "participants": room.participants,
        "tracks": room.tracks,
        "routes": room.routes,
        "homes": room.homes.iter().map(|(node, count)| (node.to_string(), *count)).collect::<std::collections::BTreeMap<_, _>>(),
        "empty_timeout_ms": room.empty_timeout_ms,
        "departure_timeout_ms": room.departure_timeout_ms,
        "max_participants": room.max_participants,
        "tags": room.tags,
    })
}

fn participant(participant: &proto::Participant) -> Value {
    json!({
        "identity": participant.identity,
        "sid": participant.sid,
        "name": participant.name,
        "metadata": participant.metadata,
        "attributes": participant.attributes,
        "kind": participant.kind,
        "state": name(participant.state().as_str_name(), "PARTICIPANT_STATE_"),
        "joined_at_ms": participant.joined_at_ms,
        "activate_by_ms": participant.activate_by_ms,
        "version": participant.version,
        "permission": participant.permission.as_ref().map(permission),
        "auto_subscribe": participant.auto_subscribe,
        "tracks": participant.tracks,
        "home": participant.home,
        "epoch": participant.epoch,
        "client": {
            "sdk": participant.client_sdk,
            "version": participant.client_version,
            "platform": participant.client_platform,
            "single_peer_connection": participant.single_peer_connection,
        },
    })
}

fn permission(permission: &proto::Permission) -> Value {
    let sources: Vec<String> = permission
        .can_publish_sources()
        .map(|source| name(source.as_str_name(), "TRACK_SOURCE_"))
        .collect();
    json!({
        "can_subscribe": permission.can_subscribe,
        "can_publish": permission.can_publish,
        "can_publish_data": permission.can_publish_data,
        "can_publish_sources": sources,
        "hidden": permission.hidden,
        "recorder": permission.recorder,
        "can_update_metadata": permission.can_update_metadata,
        "agent": permission.agent,
        "can_subscribe_metrics": permission.can_subscribe_metrics,
    })
}

fn track(track: &proto::Track) -> Value {
    let layer = |layer: &proto::Layer| {
        json!({
            "rid": layer.rid,
            "ssrc": layer.ssrc,
            "width": layer.width,
            "height": layer.height,
            "bitrate_bps": layer.bitrate_bps,
        })
    };
    let codec = |codec: &proto::Codec| {
        json!({
            "mime": codec.mime,
            "mid": codec.mid,
            "layers": codec.layers.iter().map(layer).collect::<Vec<_>>(),
        })
    };
    json!({
        "sid": track.sid,
        "publisher": track.publisher,
        "kind": name(track.kind().as_str_name(), "TRACK_KIND_"),
        "source": name(track.source().as_str_name(), "TRACK_SOURCE_"),
        "name": track.name,
        "muted": track.muted,
        "announced": track.announced,
        "simulcast": track.simulcast,
        "width": track.width,
        "height": track.height,
        "codecs": track.codecs.iter().map(codec).collect::<Vec<_>>(),
        "home": track.home,
        "routes": track.routes.iter().map(route).collect::<Vec<_>>(),
    })
}

fn route(route: &proto::Route) -> Value {
    json!({
        "room": route.room,
        "track": route.track,
        "publisher": route.publisher,
        "kind": name(route.kind().as_str_name(), "TRACK_KIND_"),
        "from": route.from,
        "to": route.to,
        "epoch": route.epoch,
        "room_version": route.room_version,
        "live": route.live.as_ref().map(counters),
    })
}

fn counters(live: &proto::RelayCounters) -> Value {
    json!({
        "side": name(live.side().as_str_name(), "RELAY_SIDE_"),
        "active": live.active,
        "wanted": name(live.wanted().as_str_name(), "QUALITY_"),
        "packets": live.packets,
        "payload_bytes": live.payload_bytes,
        "packets_repaired": live.packets_repaired,
        "packets_lost": live.packets_lost,
    })
}
