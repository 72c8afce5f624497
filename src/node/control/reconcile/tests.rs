//! A log is applied, and three nodes' reconcilers follow it.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_model::cluster::{Node, NodeState};
use flotilla_model::command::{Command as Change, CreateRoom, Entry, Join};
use flotilla_model::id::{Region, RequestId, UnixMillis};
use flotilla_model::participant::{Client, LeaveReason};
use flotilla_model::permission::Permission;
use flotilla_model::room::RoomOptions;
use flotilla_model::track::{Encryption, Kind, Source};
use flotilla_model::unit::Size;

use super::*;

struct Log {
    state: State,
    request: u128,
    reconciler: Reconciler,
}

/// What an engine's orders come to, as short texts.
fn told(orders: &[ShardOrder]) -> Vec<String> {
    orders
        .iter()
        .map(|order| match &order.command {
            Command::SetLink { node, boot, .. } => format!("link {node}/{boot}"),
            Command::RemoveLink { node } => format!("unlink {node}"),
            Command::RelayTo { track, node } => format!("{track} to {node}"),
            Command::StopRelayTo { track, node } => format!("stop {track} to {node}"),
            Command::RelayFrom { track, node, .. } => format!("{} from {node}", track.sid),
            Command::Unpublish { track } => format!("end {track}"),
            Command::SetMuted { track, muted } => format!("{track} muted: {muted}"),
            other => format!("{other:?}"),
        })
        .collect()
}

impl Log {
    fn new(node: u64) -> Self {
        let mut log = Self {
            state: State::default(),
            request: 0,
            reconciler: Reconciler::new(NodeId(node), 1),
        };
        for id in 1..=3 {
            log.put_node(id, 1);
        }
        log
    }

    fn apply(&mut self, command: Change) -> Vec<String> {
        self.request += 1;
        let entry = Entry {
            at: UnixMillis(1_000_000),
            request: RequestId(self.request),
            command,
        };
        let applied = self.state.apply(&entry);
        applied.result.expect("is carried out");
        told(&self.reconciler.change(&applied.events, &self.state))
    }

    fn put_node(&mut self, id: u64, boot: u64) -> Vec<String> {
        self.apply(Change::PutNode(Node {
            id: NodeId(id),
            region: Region::from("here"),
            boot: BootId(boot),
            cluster_address: format!("node{id}:7890"),
            admin_address: String::new(),
            client_url: String::new(),
            relay_addresses: vec![([10, 0, 0, id as u8], 7882).into()],
            capacity: 0,
            state: NodeState::Serving,
            version: String::new(),
        }))
    }

    fn join(&mut self, identity: &str, home: u64) -> Vec<String> {
        self.apply(Change::Join(Box::new(Join {
            room: "r".into(),
            create: Some(CreateRoom {
                name: "r".into(),
                sid: "RM_r".into(),
                options: RoomOptions::default(),
                metadata: String::new(),
            }),
            sid: format!("PA_{identity}").into(),
            identity: identity.into(),
            name: String::new(),
            metadata: String::new(),
            attributes: BTreeMap::new(),
            kind: 0,
            kind_details: Vec::new(),
            permission: Permission {
                can_subscribe: true,
                can_publish: true,
                can_publish_data: true,
                can_publish_sources: BTreeSet::new(),
                hidden: false,
                recorder: false,
                can_update_metadata: false,
                agent: false,
                can_subscribe_metrics: false,
            },
            token_issued_at: UnixMillis(0),
            auto_subscribe: true,
            client: Client::default(),
            home: NodeId(home),
        })))
    }

    fn publish(&mut self, identity: &str) -> Vec<String> {
        self.apply(Change::PublishTrack {
            room: "r".into(),
            identity: identity.into(),
            sid: format!("PA_{identity}").into(),
            track: Box::new(Track {
                sid: format!("TR_{identity}").into(),
                kind: Kind::Video,
                name: String::new(),
                source: Source::Camera,
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
                announced: true,
            }),
        })
    }

    fn mute(&mut self, identity: &str, muted: bool) -> Vec<String> {
        self.apply(Change::SetTrackMuted {
            room: "r".into(),
            identity: identity.into(),
            track: format!("TR_{identity}").into(),
            muted,
        })
    }

    fn leave(&mut self, identity: &str) -> Vec<String> {
        self.apply(Change::Leave {
            room: "r".into(),
            identity: identity.into(),
            sid: None,
            reason: LeaveReason::ClientInitiated,
            revoke_before: None,
        })
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn links_follow_the_nodes_records() {
    let mut log = Log::new(1);
    let orders = log.reconciler.everything(&log.state.clone());
    assert_eq!(told(&orders), NOTHING, "told already");
    assert_eq!(log.put_node(2, 7), ["link 2/7"]);
    assert_eq!(
        log.apply(Change::RemoveNode { node: NodeId(3) }),
        ["unlink 3"]
    );
}

#[test]
fn both_ends_of_a_route_are_told_once() {
    let (mut origin, mut receiver, mut other) = (Log::new(1), Log::new(2), Log::new(3));
    for log in [&mut origin, &mut receiver, &mut other] {
        assert_eq!(log.join("a", 1), NOTHING);
        assert_eq!(log.publish("a"), NOTHING, "nobody elsewhere wants it");
    }
    assert_eq!(origin.join("b", 2), ["TR_a to 2"]);
    assert_eq!(receiver.join("b", 2), ["TR_a from 1"]);
    assert_eq!(other.join("b", 2), NOTHING);
    for log in [&mut origin, &mut receiver, &mut other] {
        assert_eq!(log.join("b2", 2), NOTHING, "one relay per track and node");
    }
    assert_eq!(receiver.mute("a", true), ["TR_a muted: true"]);
    assert_eq!(
        origin.mute("a", true),
        NOTHING,
        "the publisher's session does it"
    );
    for log in [&mut origin, &mut receiver] {
        assert_eq!(log.leave("b"), NOTHING, "somebody there still wants it");
    }
    assert_eq!(origin.leave("b2"), ["stop TR_a to 2"]);
    assert_eq!(receiver.leave("b2"), ["end TR_a"]);
}

#[test]
fn a_publisher_that_leaves_ends_its_relays() {
    let (mut origin, mut receiver) = (Log::new(1), Log::new(2));
    for log in [&mut origin, &mut receiver] {
        log.join("a", 1);
        log.join("b", 2);
        log.publish("a");
    }
    assert_eq!(origin.leave("a"), ["stop TR_a to 2"]);
    assert_eq!(receiver.leave("a"), ["end TR_a"]);
}

#[test]
fn a_new_engine_is_told_everything_again() {
    let mut log = Log::new(2);
    log.join("a", 1);
    log.join("b", 2);
    log.publish("a");
    log.mute("a", true);
    log.reconciler.forget_shard(0);
    let state = log.state.clone();
    assert_eq!(
        told(&log.reconciler.everything(&state)),
        ["link 1/1", "link 3/1", "TR_a from 1", "TR_a muted: true"]
    );
    assert_eq!(told(&log.reconciler.everything(&state)), NOTHING);
}

#[test]
fn only_what_is_still_there_may_end_later_and_not_if_it_is_wanted_again() {
    let mut log = Log::new(1);
    log.join("alice", 2);
    log.publish("alice");
    log.join("bob", 1);
    let moved = |log: &mut Log, epoch: u64, home: u64| {
        log.request += 1;
        let entry = Entry {
            at: UnixMillis(1_000_000),
            request: RequestId(log.request),
            command: Change::Rehome {
                moves: vec![flotilla_model::command::Rehome {
                    room: "r".into(),
                    identity: "bob".into(),
                    sid: "PA_bob".into(),
                    epoch: Epoch(epoch),
                    home: NodeId(home),
                }],
            },
        };
        let applied = log.state.apply(&entry);
        applied.result.expect("is carried out");
        log.reconciler.change(&applied.events, &log.state)
    };
    let epoch = |log: &Log| {
        let room = &log.state.rooms[&RoomName::from("r")];
        room.participants[&"bob".into()].epoch.0
    };
    let away = epoch(&log);
    let orders = moved(&mut log, away, 3);
    assert_eq!(told(&orders), ["end TR_alice"]);
    assert!(Reconciler::may_wait(&orders[0], &log.state));
    assert!(!log.reconciler.is_wanted_again(&orders[0], &log.state));
    let back = epoch(&log);
    let again = moved(&mut log, back, 1);
    assert_eq!(told(&again), ["TR_alice from 2"]);
    assert!(!Reconciler::may_wait(&again[0], &log.state));
    assert!(log.reconciler.is_wanted_again(&orders[0], &log.state));
    // Nothing is left of a track that ended.
    log.request += 1;
    let entry = Entry {
        at: UnixMillis(1_000_000),
        request: RequestId(log.request),
        command: Change::Leave {
            room: "r".into(),
            identity: "alice".into(),
            sid: None,
            reason: LeaveReason::ClientInitiated,
            revoke_before: None,
        },
    };
    let applied = log.state.apply(&entry);
    let orders = log.reconciler.change(&applied.events, &log.state);
    assert_eq!(told(&orders), ["end TR_alice"]);
    assert!(!Reconciler::may_wait(&orders[0], &log.state));
}
