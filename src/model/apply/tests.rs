//! Commands applied one by one, and what must come of them.

mod formats;
mod nodes;
mod property;
mod routes;
mod tracks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::State;
use crate::apply::Applied;
use crate::cluster::{LossCause, Node, NodeState, Stint};
use crate::command::{
    Command, CreateRoom, Entry, Join, Outcome, ParticipantUpdate, Rehome, Rejection, Reply,
};
use crate::event::{Event, RoomEvent};
use crate::id::{
    BootId, Epoch, Identity, NodeId, ParticipantSid, Region, RequestId, RoomName, TrackSid,
    UnixMillis, Version,
};
use crate::limit;
use crate::participant::{Client, LeaveReason, Participant, ParticipantState};
use crate::permission::{Permission, SubscriptionPermission};
use crate::room::{Room, RoomOptions};
use crate::track::{Encryption, Kind, Source, Track};
use crate::unit::Size;

/// A state, and a clock and request ids for the entries given to it.
pub(crate) struct Replica {
    pub(crate) state: State,
    now: u64,
    request: u128,
}

impl Replica {
    /// A state with nodes 1 to 3.
    pub(crate) fn new() -> Self {
        let mut replica = Self {
            state: State::default(),
            now: 1_000_000,
            request: 0,
        };
        for id in 1..=3 {
            replica.done(Command::PutNode(node(id, 1)));
        }
        replica
    }

    fn entry(&mut self, command: Command) -> Entry {
        self.request += 1;
        Entry {
            at: UnixMillis(self.now),
            request: RequestId(self.request),
            command,
        }
    }

    fn apply(&mut self, command: Command) -> Applied {
        let entry = self.entry(command);
        self.state.apply(&entry)
    }

    pub(crate) fn done(&mut self, command: Command) -> (Reply, Vec<Event>) {
        let applied = self.apply(command);
        (applied.result.expect("is carried out"), applied.events)
    }

    fn refused(&mut self, command: Command) -> Rejection {
        let applied = self.apply(command);
        assert_eq!(applied.events, []);
        applied.result.expect_err("is refused")
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds;
    }

    fn room(&self, name: &str) -> &Arc<Room> {
        self.state.rooms.get(&RoomName::from(name)).expect("exists")
    }

    fn participant(&self, room: &str, identity: &str) -> &Arc<Participant> {
        let identity = Identity::from(identity);
        self.room(room).participants.get(&identity).expect("is in")
    }
}

pub(crate) fn node(id: u64, boot: u64) -> Node {
    Node {
        id: NodeId(id),
        region: Region::from("here"),
        boot: BootId(boot),
        cluster_address: format!("node{id}:7890"),
        admin_address: format!("node{id}:7891"),
        client_url: format!("http://node{id}:7880"),
        relay_addresses: vec![([10, 0, 0, id as u8], 7882).into()],
        capacity: 0,
        state: NodeState::Serving,
        version: "0.1.0".to_owned(),
    }
}

pub(crate) fn everything() -> Permission {
    Permission {
        can_subscribe: true,
        can_publish: true,
        can_publish_data: true,
        can_publish_sources: BTreeSet::new(),
        hidden: false,
        recorder: false,
        can_update_metadata: true,
        agent: false,
        can_subscribe_metrics: false,
    }
}

pub(crate) fn create(room: &str) -> CreateRoom {
    CreateRoom {
        name: room.into(),
        sid: format!("RM_{room}").into(),
        options: RoomOptions::default(),
        metadata: String::new(),
    }
}

pub(crate) fn join_of(room: &str, identity: &str, home: u64) -> Join {
    Join {
        room: room.into(),
        create: Some(create(room)),
        sid: format!("PA_{identity}").into(),
        identity: identity.into(),
        name: String::new(),
        metadata: String::new(),
        attributes: BTreeMap::new(),
        kind: 0,
        kind_details: Vec::new(),
        permission: everything(),
        token_issued_at: UnixMillis(500_000),
        auto_subscribe: true,
        client: Client::default(),
        home: NodeId(home),
    }
}

pub(crate) fn join(room: &str, identity: &str, home: u64) -> Command {
    Command::Join(Box::new(join_of(room, identity, home)))
}

pub(crate) fn leave(room: &str, identity: &str) -> Command {
    Command::Leave {
        room: room.into(),
        identity: identity.into(),
        sid: None,
        reason: LeaveReason::ClientInitiated,
        revoke_before: None,
    }
}

pub(crate) fn track(sid: &str, source: Source, announced: bool) -> Track {
    Track {
        sid: sid.into(),
        kind: Kind::Video,
        name: String::new(),
        source,
        muted: false,
        size: Size::default(),
        simulcast: false,
        disable_dtx: false,
        stereo: false,
        disable_red: false,
        encryption: Encryption::None,
        stream: String::new(),
        audio_features: Vec::new(),
        backup_codec_policy: 0,
        codecs: Vec::new(),
        announced,
    }
}

pub(crate) fn publish(room: &str, identity: &str, sid: &str, source: Source) -> Command {
    Command::PublishTrack {
        room: room.into(),
        identity: identity.into(),
        sid: format!("PA_{identity}").into(),
        track: Box::new(track(sid, source, true)),
    }
}

fn activate(room: &str, identity: &str) -> Command {
    Command::Activate {
        room: room.into(),
        identity: identity.into(),
        sid: format!("PA_{identity}").into(),
    }
}

fn permit(room: &str, identity: &str, permission: Permission) -> Command {
    Command::UpdateParticipant {
        room: room.into(),
        identity: identity.into(),
        update: ParticipantUpdate {
            permission: Some(permission),
            ..ParticipantUpdate::default()
        },
    }
}

/// The kinds of a room's events, and whom or what they are about.
fn told(events: &[Event]) -> Vec<String> {
    let tell = |event: &Event| match event {
        Event::NodeChanged(node) => format!("node {node} changed"),
        Event::NodeRemoved(node) => format!("node {node} removed"),
        Event::Room { change, .. } => match change {
            RoomEvent::Created(_) => "created".to_owned(),
            RoomEvent::Updated => "updated".to_owned(),
            RoomEvent::Closed(_) => "closed".to_owned(),
            RoomEvent::ParticipantJoined(p) => format!("{} joined", p.identity),
            RoomEvent::ParticipantUpdated(p) => format!("{} updated", p.identity),
            RoomEvent::ParticipantLeft {
                participant,
                reason,
            } => format!("{} left: {reason:?}", participant.identity),
            RoomEvent::ParticipantMoved(p) => format!("{} moved to {}", p.identity, p.home),
            RoomEvent::TrackPublished { track, .. } => format!("{} published", track.sid),
            RoomEvent::TrackUpdated { track, .. } => format!("{} changed", track.sid),
            RoomEvent::TrackUnpublished { track, .. } => format!("{} unpublished", track.sid),
            RoomEvent::SubscriptionsChanged { identity } => format!("{identity} looks again"),
            RoomEvent::SubscriptionPermissionChanged {
                subscriber,
                track,
                allowed,
                ..
            } => format!("{subscriber} may have {track}: {allowed}"),
            RoomEvent::RoutesChanged => "routes".to_owned(),
        },
    };
    events.iter().map(tell).collect()
}

#[test]
fn a_join_creates_the_room_and_shows_it() {
    let mut replica = Replica::new();
    let (reply, events) = replica.done(join("r", "a", 1));
    assert_eq!(told(&events), ["created", "a joined"]);
    let Outcome::Joined { room, participant } = reply.outcome else {
        panic!("a join is answered with the room");
    };
    assert!(Arc::ptr_eq(&room, replica.room("r")));
    assert_eq!(room.version, reply.version);
    assert_eq!(room.close_at, None);
    assert_eq!(participant.state, ParticipantState::Joined);
    assert_eq!(participant.epoch, room.epoch_max);
    let mut refused = join_of("other", "a", 1);
    refused.create = None;
    let refused = replica.refused(Command::Join(Box::new(refused)));
    assert_eq!(refused, Rejection::RoomNotFound);
    assert_eq!(replica.refused(join("r", "b", 9)), Rejection::NodeNotFound);
}

#[test]
fn a_second_session_replaces_the_first() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    let mut second = join_of("r", "a", 2);
    second.sid = "PA_second".into();
    let (reply, events) = replica.done(Command::Join(Box::new(second.clone())));
    assert_eq!(told(&events), ["a left: DuplicateIdentity", "a joined"]);
    let versions: BTreeSet<Version> = events
        .iter()
        .filter_map(|event| match event {
            Event::Room { version, .. } => Some(*version),
            _ => None,
        })
        .collect();
    assert_eq!(versions, BTreeSet::from([reply.version]));
    assert!(replica.room("r").publishers.is_empty());
    assert_eq!(replica.room("r").homes, BTreeMap::from([(NodeId(2), 1)]));

    // The first session's late commands are refused.
    assert_eq!(replica.refused(activate("r", "a")), Rejection::StaleSession);
    let late = publish("r", "a", "TR_2", Source::Camera);
    assert_eq!(replica.refused(late), Rejection::StaleSession);
    // The same session again, under another request id, changes nothing.
    let (again, events) = replica.done(Command::Join(Box::new(second)));
    assert_eq!((again, events), (reply, vec![]));
}

#[test]
fn a_full_room_takes_agents_and_replacements_only() {
    let mut replica = Replica::new();
    let mut first = join_of("r", "a", 1);
    if let Some(create) = &mut first.create {
        create.options.max_participants = 2;
    }
    replica.done(Command::Join(Box::new(first)));
    let mut agent = join_of("r", "agent", 1);
    agent.kind = 4;
    replica.done(Command::Join(Box::new(agent.clone())));
    replica.done(join("r", "b", 1));
    assert_eq!(replica.refused(join("r", "c", 1)), Rejection::RoomFull);
    let mut recorder = join_of("r", "recorder", 1);
    recorder.permission.recorder = true;
    replica.done(Command::Join(Box::new(recorder)));
    let mut again = join_of("r", "b", 2);
    again.sid = "PA_again".into();
    replica.done(Command::Join(Box::new(again)));
    replica.done(leave("r", "a"));
    replica.done(join("r", "c", 1));
    assert_eq!(replica.room("r").participants.len(), 4);
}

#[test]
fn rooms_close_when_nobody_came_or_everybody_left() {
    let mut replica = Replica::new();
    replica.done(Command::CreateRoom(create("empty")));
    replica.done(join("left", "a", 1));
    replica.done(activate("left", "a"));
    let empty = UnixMillis(replica.now + 300_000);
    assert_eq!(replica.state.next_deadline(), Some(empty));
    replica.done(leave("left", "a"));
    let left = UnixMillis(replica.now + 20_000);
    assert_eq!(replica.room("left").close_at, Some(left));
    assert_eq!(replica.state.next_deadline(), Some(left));

    replica.pass(19_999);
    let (reply, events) = replica.done(Command::Expire);
    assert_eq!(told(&events), [""; 0]);
    let nothing = Outcome::Expired {
        rooms: 0,
        participants: 0,
    };
    assert_eq!(reply.outcome, nothing);
    replica.pass(1);
    let (_, events) = replica.done(Command::Expire);
    assert_eq!(told(&events), ["closed"]);
    replica.pass(280_000);
    replica.done(Command::Expire);
    assert!(replica.state.rooms.is_empty());
    assert_eq!(replica.state.next_deadline(), None);
}

#[test]
fn a_participant_must_become_active_in_time() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(join("r", "b", 1));
    let (_, events) = replica.done(activate("r", "b"));
    assert_eq!(told(&events), ["b updated"]);
    assert_eq!(
        replica.participant("r", "b").state,
        ParticipantState::Active
    );
    replica.pass(limit::ACTIVATION_MS);
    let (_, events) = replica.done(Command::Expire);
    assert_eq!(told(&events), ["a left: JoinFailure"]);
    assert_eq!(replica.state.next_deadline(), None);
    let (_, events) = replica.done(Command::DeleteRoom { room: "r".into() });
    assert_eq!(told(&events), ["b left: RoomDeleted", "closed"]);
}

#[test]
fn an_epoch_is_above_those_of_earlier_rooms_of_the_name() {
    let mut replica = Replica::new();
    for identity in ["a", "b", "c"] {
        replica.done(join("r", identity, 1));
    }
    let before = replica.room("r").epoch_max;
    replica.done(Command::DeleteRoom { room: "r".into() });
    replica.done(join("r", "a", 1));
    assert!(replica.participant("r", "a").epoch > before);
}

#[test]
fn revoked_tokens_stay_out_until_the_revocation_ends() {
    let mut replica = Replica::new();
    let revoke = |identity: &str| Command::Leave {
        room: "r".into(),
        identity: identity.into(),
        sid: None,
        reason: LeaveReason::ParticipantRemoved,
        revoke_before: Some(UnixMillis(600_000)),
    };
    assert_eq!(replica.refused(leave("r", "a")), Rejection::RoomNotFound);
    replica.done(join("r", "a", 1));
    replica.done(revoke("a"));
    replica.done(revoke("not here yet"));
    for identity in ["a", "not here yet"] {
        let refused = replica.refused(join("r", identity, 1));
        assert_eq!(refused, Rejection::TokenRevoked);
    }
    let mut fresh = join_of("r", "a", 1);
    fresh.token_issued_at = UnixMillis(600_000);
    replica.done(Command::Join(Box::new(fresh)));
    replica.pass(limit::REVOCATION_MS);
    replica.done(Command::Expire);
    assert!(replica.state.revocations.is_empty());
    replica.done(join("r", "not here yet", 1));
}

#[test]
fn an_update_merges_attributes_and_raises_versions_once() {
    let mut replica = Replica::new();
    let mut first = join_of("r", "a", 1);
    first.attributes = BTreeMap::from([("k".into(), "v".into()), ("gone".into(), "x".into())]);
    replica.done(Command::Join(Box::new(first)));
    let (room, own) = (
        replica.room("r").version,
        replica.participant("r", "a").version,
    );
    let update = Command::UpdateParticipant {
        room: "r".into(),
        identity: "a".into(),
        update: ParticipantUpdate {
            name: Some("A".to_owned()),
            attributes: BTreeMap::from([("gone".into(), String::new()), ("n".into(), "1".into())]),
            ..ParticipantUpdate::default()
        },
    };
    let (reply, _) = replica.done(update.clone());
    assert_eq!(reply.version, Version(room.0 + 1));
    let (again, events) = replica.done(update);
    assert_eq!((again, events), (reply, vec![]));
    let after = replica.participant("r", "a");
    assert_eq!(after.version, own + 1);
    let attributes = BTreeMap::from([("k".into(), "v".into()), ("n".into(), "1".into())]);
    assert_eq!(after.attributes, attributes);

    let refused = replica.refused(Command::SetRoomMetadata {
        room: "r".into(),
        metadata: "x".repeat(limit::METADATA_BYTES_MAX + 1),
    });
    assert!(matches!(refused, Rejection::LimitExceeded(_)));
    let (_, events) = replica.done(Command::SetRoomMetadata {
        room: "r".into(),
        metadata: "m".to_owned(),
    });
    assert_eq!(told(&events), ["updated"]);
}

#[test]
fn a_subscription_permission_is_told_to_those_it_concerns() {
    let mut replica = Replica::new();
    for identity in ["a", "b", "c"] {
        replica.done(join("r", identity, 1));
    }
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    let only_b = SubscriptionPermission {
        all_participants: false,
        allowed: BTreeMap::from([("b".into(), Some(BTreeSet::from(["TR_1".into()])))]),
    };
    let (_, events) = replica.done(Command::SetSubscriptionPermission {
        room: "r".into(),
        identity: "a".into(),
        permission: only_b,
    });
    assert_eq!(told(&events), ["c may have TR_1: false", "c looks again"]);
}

#[test]
fn a_move_needs_the_epoch_it_knows() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(join("r", "b", 1));
    let to = |identity: &str, epoch: Epoch, home: u64| Rehome {
        room: "r".into(),
        identity: identity.into(),
        sid: ParticipantSid(format!("PA_{identity}")),
        epoch,
        home: NodeId(home),
    };
    let epoch_a = replica.participant("r", "a").epoch;
    let epoch_b = replica.participant("r", "b").epoch;
    let moves = vec![to("a", epoch_a, 2), to("b", Epoch(0), 2)];
    let (_, events) = replica.done(Command::Rehome { moves });
    assert_eq!(told(&events), ["a moved to 2"]);
    assert!(replica.participant("r", "a").epoch > epoch_b);
    let moves = vec![to("a", epoch_a, 3)];
    let refused = replica.refused(Command::Rehome { moves });
    assert_eq!(refused, Rejection::StaleEpoch);
    let moves = vec![to("b", epoch_b, 8)];
    let refused = replica.refused(Command::Rehome { moves });
    assert_eq!(refused, Rejection::NodeNotFound);
}

#[test]
fn only_the_present_home_takes_a_participant_for_gone() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(join("r", "b", 1));
    let before = replica.participant("r", "a").epoch;
    let depart = |epoch| Command::Depart {
        room: "r".into(),
        identity: "a".into(),
        sid: "PA_a".into(),
        epoch,
        reason: LeaveReason::ServerShutdown,
    };
    let moves = vec![Rehome {
        room: "r".into(),
        identity: "a".into(),
        sid: "PA_a".into(),
        epoch: before,
        home: NodeId(2),
    }];
    replica.done(Command::Rehome { moves });
    assert_eq!(replica.refused(depart(before)), Rejection::StaleEpoch);
    let now = replica.participant("r", "a").epoch;
    let (_, events) = replica.done(depart(now));
    assert_eq!(told(&events), ["a left: ServerShutdown"]);
    assert_eq!(replica.refused(depart(now)), Rejection::ParticipantNotFound);
    assert_eq!(
        depart(now).worded_for(2),
        Command::Leave {
            room: "r".into(),
            identity: "a".into(),
            sid: Some("PA_a".into()),
            reason: LeaveReason::ServerShutdown,
            revoke_before: None,
        }
    );
}

#[test]
fn a_request_applies_once() {
    let mut replica = Replica::new();
    let entry = replica.entry(join("r", "a", 1));
    let first = replica.state.apply(&entry);
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    let before = replica.state.clone();
    let again = replica.state.apply(&entry);
    assert_eq!(again.events, []);
    let (first, again) = (
        first.result.expect("joins"),
        again.result.expect("is answered alike"),
    );
    assert_eq!(first.version, again.version);
    let Outcome::Joined { room, participant } = again.outcome else {
        panic!("answered alike");
    };
    assert_eq!(participant.sid, ParticipantSid::from("PA_a"));
    assert!(room.publishers.contains_key(&TrackSid::from("TR_1")));
    let mut after = replica.state.clone();
    assert_eq!(after.revision.0, before.revision.0 + 1);
    after.revision = before.revision;
    assert_eq!(after, before);

    // What was joined has ended meanwhile: the answer says so and nothing comes back.
    replica.done(leave("r", "a"));
    let again = replica.state.apply(&entry);
    assert_eq!(again.result, Err(Rejection::ParticipantNotFound));
    assert!(replica.room("r").participants.is_empty());

    let refused = replica.entry(activate("r", "b"));
    let first = replica.state.apply(&refused);
    replica.done(join("r", "b", 1));
    assert_eq!(replica.state.apply(&refused), first);
}
