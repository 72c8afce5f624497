//! Answers as tables for people.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{Table, presets};

use super::client::StatusView;
use super::json::{kind, name, role};
use crate::admin::proto;
use crate::admin::proto::event::What;

/// Longest text in a cell.
const CELL_MAX: usize = 48;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header.iter().copied());
    table
}

fn row(table: &mut Table, cells: Vec<String>) {
    table.add_row(cells.into_iter().map(|cell| clean(&cell)));
}

fn print(table: &Table, nothing: &str) -> String {
    if table.is_empty() {
        format!("{nothing}\n")
    } else {
        format!("{table}\n")
    }
}

/// Texts come from users: no control characters reach the terminal, and none is endless.
fn clean(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(CELL_MAX + 1).map(printable).collect();
    if shown.chars().count() > CELL_MAX {
        shown.pop();
        shown.pop();
        shown.push('…');
    }
    shown
}

fn known<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "" }.to_owned()
}

/// How long ago a time was, in its largest unit.
fn ago(at_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_millis() as u64);
    let seconds = now.saturating_sub(at_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

pub(super) fn status(view: &StatusView) -> String {
    let group = view.group();
    let index = |id: Option<proto::LogId>| known(id.map(|id| id.index));
    let position = view.status.position.unwrap_or_default();
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        let _ = writeln!(text, "{what:<10}{value}");
    };
    line("cluster", &clean(&group.cluster));
    line("group", &clean(&group.group));
    let own = name(group.role().as_str_name(), "GROUP_ROLE_");
    line("asked", &format!("node {} ({own})", position.node));
    let leader = known(group.leader);
    line("leader", &format!("{leader}, term {}", group.term));
    line(
        "log",
        &format!(
            "last {}, committed {}, applied {}, snapshot {}, purged {}",
            known(group.last_log_index),
            index(group.committed),
            index(group.applied),
            index(group.snapshot),
            index(group.purged),
        ),
    );
    line("revision", &position.revision.to_string());
    if !group.fault.is_empty() {
        line("FAULT", &clean(&group.fault));
    }
    let mut table = table(&[
        "node",
        "role",
        "cluster port",
        "matched",
        "lag",
        "heard of",
        "state",
        "version",
    ]);
    for member in &group.members {
        let node = view.nodes.iter().find(|node| node.id == member.node);
        let leads = group.leader == Some(member.node);
        row(
            &mut table,
            vec![
                member.node.to_string(),
                if leads { "leader" } else { role(member) }.to_owned(),
                member.address.clone(),
                index(member.matched),
                known(member.lag),
                known(member.silent_ms.map(|ms| format!("{ms} ms ago"))),
                known(node.map(|node| name(node.state().as_str_name(), "NODE_STATE_"))),
                known(node.map(|node| node.version.clone())),
            ],
        );
    }
    text + &print(&table, "The node is in no cluster yet.")
}

pub(super) fn takeovers(takeovers: &[proto::Takeover]) -> String {
    let mut table = table(&[
        "number",
        "room",
        "participant",
        "cause",
        "from",
        "to",
        "epoch",
        "detected",
        "decided",
        "adopted",
        "first packet",
    ]);
    // Each step as milliseconds after the one that it waited for.
    let after = |at: Option<u64>, before: Option<u64>| match (at, before) {
        (Some(at), Some(before)) => format!("+{} ms", at.saturating_sub(before)),
        _ => String::new(),
    };
    for takeover in takeovers {
        let decided = Some(takeover.decided_at_ms);
        row(
            &mut table,
            vec![
                takeover.number.to_string(),
                takeover.room.clone(),
                takeover.sid.clone(),
                takeover.cause.clone(),
                takeover.from.to_string(),
                takeover.to.to_string(),
                takeover.epoch.to_string(),
                after(takeover.detected_at_ms, takeover.heard_at_ms),
                after(decided, takeover.detected_at_ms),
                format!(
                    "{} {}",
                    after(takeover.adopted_at_ms, decided),
                    takeover.adoption
                ),
                after(takeover.first_packet_at_ms, decided),
            ],
        );
    }
    print(&table, "No takeover.")
}

pub(super) fn nodes(nodes: &[proto::Node]) -> String {
    let mut table = table(&[
        "node",
        "region",
        "state",
        "participants",
        "rooms",
        "clients",
        "cluster port",
        "admin port",
        "relays",
        "version",
    ]);
    for node in nodes {
        let capacity = match node.capacity {
            0 => String::new(),
            capacity => format!(" of {capacity}"),
        };
        row(
            &mut table,
            vec![
                node.id.to_string(),
                node.region.clone(),
                name(node.state().as_str_name(), "NODE_STATE_"),
                format!("{}{capacity}", node.participants),
                node.rooms.to_string(),
                node.client_url.clone(),
                node.cluster_address.clone(),
                node.admin_address.clone(),
                node.relay_addresses.join(" "),
                node.version.clone(),
            ],
        );
    }
    print(&table, "No node.")
}

pub(super) fn rooms(rooms: &[proto::Room]) -> String {
    let mut table = table(&[
        "room",
        "sid",
        "version",
        "participants",
        "tracks",
        "relays",
        "nodes",
        "age",
    ]);
    for room in rooms {
        row(
            &mut table,
            vec![
                room.name.clone(),
                room.sid.clone(),
                room.version.to_string(),
                room.participants.to_string(),
                room.tracks.to_string(),
                room.routes.to_string(),
                homes(room),
                ago(room.created_at_ms),
            ],
        );
    }
    print(&table, "No room.")
}

fn homes(room: &proto::Room) -> String {
    let mut homes: Vec<_> = room.homes.iter().collect();
    homes.sort();
    let homes = homes
        .into_iter()
        .map(|(node, count)| format!("{node}:{count}"));
    homes.collect::<Vec<_>>().join(" ")
}

pub(super) fn room(
    shown: &proto::Room,
    present: &[proto::Participant],
    published: &[proto::Track],
) -> String {
    let routed: Vec<proto::Route> = published
        .iter()
        .flat_map(|track| track.routes.iter().cloned())
        .collect();
    [
        rooms(std::slice::from_ref(shown)),
        participants(present),
        tracks(published),
        routes(&routed),
    ]
    .join("\n")
}

pub(super) fn participants(participants: &[proto::Participant]) -> String {
    let mut table = table(&[
        "identity", "name", "sid", "state", "node", "epoch", "tracks", "client", "joined",
    ]);
    for participant in participants {
        row(
            &mut table,
            vec![
                participant.identity.clone(),
                participant.name.clone(),
                participant.sid.clone(),
                name(participant.state().as_str_name(), "PARTICIPANT_STATE_"),
                participant.home.to_string(),
                participant.epoch.to_string(),
                participant.tracks.len().to_string(),
                format!(
                    "{} {}",
                    participant.client_platform, participant.client_version
                ),
                ago(participant.joined_at_ms),
            ],
        );
    }
    print(&table, "No participant.")
}

pub(super) fn tracks(tracks: &[proto::Track]) -> String {
    let mut table = table(&[
        "track",
        "publisher",
        "kind",
        "source",
        "codec",
        "layers",
        "size",
        "muted",
        "node",
        "relayed to",
    ]);
    for track in tracks {
        let codecs: Vec<&str> = track
            .codecs
            .iter()
            .map(|codec| codec.mime.as_str())
            .collect();
        let layers = track.codecs.first().map_or(0, |codec| codec.layers.len());
        let to: Vec<String> = track
            .routes
            .iter()
            .map(|route| route.to.to_string())
            .collect();
        let size = match (track.width, track.height) {
            (0, 0) => String::new(),
            (width, height) => format!("{width}x{height}"),
        };
        row(
            &mut table,
            vec![
                track.sid.clone(),
                track.publisher.clone(),
                name(track.kind().as_str_name(), "TRACK_KIND_"),
                name(track.source().as_str_name(), "TRACK_SOURCE_"),
                codecs.join(" "),
                layers.to_string(),
                size,
                yes(track.muted),
                track.home.to_string(),
                to.join(" "),
            ],
        );
    }
    print(&table, "No track.")
}

pub(super) fn routes(routes: &[proto::Route]) -> String {
    let mut table = table(&[
        "room",
        "track",
        "publisher",
        "kind",
        "from",
        "to",
        "epoch",
        "flows",
        "wanted",
        "packets",
        "repaired",
        "lost",
    ]);
    for route in routes {
        let live = route.live.as_ref();
        let count = |count: fn(&proto::RelayCounters) -> u64| known(live.map(count));
        row(
            &mut table,
            vec![
                route.room.clone(),
                route.track.clone(),
                route.publisher.clone(),
                name(route.kind().as_str_name(), "TRACK_KIND_"),
                route.from.to_string(),
                route.to.to_string(),
                route.epoch.to_string(),
                known(live.map(|live| if live.active { "yes" } else { "no" })),
                known(live.map(|live| name(live.wanted().as_str_name(), "QUALITY_"))),
                count(|live| live.packets),
                count(|live| live.packets_repaired),
                count(|live| live.packets_lost),
            ],
        );
    }
    print(&table, "No track is relayed between nodes.")
}

pub(super) fn hash(answer: &proto::GetStateHashResponse) -> String {
    let at = answer.position.unwrap_or_default();
    format!(
        "node {}  log index {}  revision {}  state hash {}\n",
        at.node, at.log_index, at.revision, answer.state_hash
    )
}

pub(super) fn snapshot(snapshot: &proto::Snapshot) -> String {
    let at = snapshot.position.unwrap_or_default();
    let mut text = format!("at revision {}, log index {}\n", at.revision, at.log_index);
    if !snapshot.nodes.is_empty() {
        text += &nodes(&snapshot.nodes);
    }
    if !snapshot.rooms.is_empty() {
        text += &rooms(&snapshot.rooms);
    }
    if !snapshot.participants.is_empty() {
        text += &participants(&snapshot.participants);
    }
    if !snapshot.tracks.is_empty() {
        text += &tracks(&snapshot.tracks);
    }
    text
}

pub(super) fn change(change: &proto::Change) -> String {
    let at = change.position.unwrap_or_default();
    let mut text = String::new();
    for event in &change.events {
        let Some(what) = &event.what else { continue };
        let room = match event.room.as_str() {
            "" => "-".to_owned(),
            room => format!("{} v{}", clean(room), event.room_version),
        };
        let (kind, detail) = (kind(what).replace('_', " "), detail(what));
        let _ = writeln!(text, "{:>8}  {room:<24}  {kind:<22}  {detail}", at.revision);
    }
    text
}

fn detail(what: &What) -> String {
    match what {
        What::NodeChanged(node) => format!("{} {}", node.id, clean(&node.client_url)),
        What::NodeRemoved(id) => id.to_string(),
        What::RoomCreated(room) | What::RoomUpdated(room) | What::RoomClosed(room) => {
            clean(&room.sid)
        }
        What::ParticipantJoined(participant)
        | What::ParticipantUpdated(participant)
        | What::ParticipantMoved(participant) => format!(
            "{} {} on node {}",
            clean(&participant.identity),
            name(participant.state().as_str_name(), "PARTICIPANT_STATE_"),
            participant.home
        ),
        What::ParticipantLeft(left) => {
            let identity = left.participant.as_ref().map(|left| clean(&left.identity));
            let reason = name(left.reason().as_str_name(), "LEAVE_REASON_");
            format!("{}: {reason}", identity.unwrap_or_default())
        }
        What::TrackPublished(track) | What::TrackUpdated(track) | What::TrackUnpublished(track) => {
            format!(
                "{} {} of {}{}",
                clean(&track.sid),
                name(track.source().as_str_name(), "TRACK_SOURCE_"),
                clean(&track.publisher),
                if track.muted { ", muted" } else { "" }
            )
        }
        What::SubscriptionsChanged(identity) => clean(identity),
        What::SubscriptionPermissionChanged(changed) => format!(
            "{} {} have {} of {}",
            clean(&changed.subscriber),
            if changed.allowed { "may" } else { "may not" },
            clean(&changed.track),
            clean(&changed.publisher)
        ),
        What::RoutesChanged(routes) => match routes.count {
            0 => "none".to_owned(),
            _ if routes.routes.is_empty() => format!("{} relays", routes.count),
            _ => routes
                .routes
                .iter()
                .map(|route| format!("{} {}>{}", clean(&route.track), route.from, route.to))
                .collect::<Vec<_>>()
                .join(", "),
        },
    }
}
