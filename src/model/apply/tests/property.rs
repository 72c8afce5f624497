//! Whatever the commands: replicas agree, snapshots lose nothing, and the invariants hold.

use proptest::prelude::*;

use super::*;
use crate::encoding::{decode_entry, decode_snapshot, encode_entry, encode_snapshot, state_hash};
use crate::placement;

const SOURCES: [Source; 3] = [Source::Camera, Source::Microphone, Source::ScreenShare];

fn rooms() -> impl Strategy<Value = RoomName> {
    prop::sample::select(vec!["r1", "r2"]).prop_map(RoomName::from)
}

fn identities() -> impl Strategy<Value = Identity> {
    prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(Identity::from)
}

/// Two sessions per identity, so that some commands are late.
fn sids() -> impl Strategy<Value = ParticipantSid> {
    prop::sample::select(vec!["PA_1", "PA_2"]).prop_map(ParticipantSid::from)
}

fn track_sids() -> impl Strategy<Value = TrackSid> {
    (0u8..6).prop_map(|number| TrackSid(format!("TR_{number}")))
}

fn homes() -> impl Strategy<Value = NodeId> {
    (1u64..=4).prop_map(NodeId)
}

fn permissions() -> impl Strategy<Value = Permission> {
    let sources = prop::collection::btree_set(prop::sample::select(SOURCES.to_vec()), 0..2);
    (any::<[bool; 3]>(), sources).prop_map(|([subscribe, publish, agent], sources)| Permission {
        can_subscribe: subscribe,
        can_publish: publish,
        can_publish_sources: sources,
        agent,
        ..everything()
    })
}

fn joins() -> impl Strategy<Value = Command> {
    let who = (rooms(), identities(), sids(), homes());
    let how = (
        permissions(),
        any::<bool>(),
        any::<bool>(),
        0u32..4,
        0u64..3,
    );
    (who, how).prop_map(|((room, identity, sid, home), how)| {
        let (permission, auto_subscribe, may_create, max_participants, issued) = how;
        let mut join = join_of(room.as_str(), identity.as_str(), home.0);
        join.sid = sid;
        join.permission = permission;
        join.auto_subscribe = auto_subscribe;
        join.token_issued_at = UnixMillis(issued);
        if let Some(create) = &mut join.create {
            create.options.max_participants = max_participants;
        }
        join.create = join.create.filter(|_| may_create);
        Command::Join(Box::new(join))
    })
}

fn published() -> impl Strategy<Value = Box<Track>> {
    (
        track_sids(),
        prop::sample::select(SOURCES.to_vec()),
        any::<bool>(),
    )
        .prop_map(|(sid, source, announced)| Box::new(track(sid.as_str(), source, announced)))
}

fn of_participants() -> impl Strategy<Value = Command> {
    let who = || (rooms(), identities());
    let session = || (rooms(), identities(), sids());
    prop_oneof![
        session().prop_map(|(room, identity, sid)| Command::Activate {
            room,
            identity,
            sid
        }),
        (who(), prop::option::of(sids()), prop::option::of(0u64..3)).prop_map(
            |((room, identity), sid, revoke)| Command::Leave {
                room,
                identity,
                sid,
                reason: LeaveReason::ClientInitiated,
                revoke_before: revoke.map(UnixMillis),
            }
        ),
        (who(), sids(), 0u64..12).prop_map(|((room, identity), sid, epoch)| Command::Depart {
            room,
            identity,
            sid,
            epoch: Epoch(epoch),
            reason: LeaveReason::MediaFailure,
        }),
        (who(), prop::option::of(permissions()), "[ab]{0,1}").prop_map(
            |((room, identity), permission, text)| Command::UpdateParticipant {
                room,
                identity,
                update: ParticipantUpdate {
                    metadata: Some(text.clone()),
                    attributes: BTreeMap::from([("key".to_owned(), text)]),
                    permission,
                    ..ParticipantUpdate::default()
                },
            }
        ),
        (session(), published()).prop_map(|((room, identity, sid), track)| {
            Command::PublishTrack {
                room,
                identity,
                sid,
                track,
            }
        }),
        (session(), published()).prop_map(|((room, identity, sid), track)| {
            Command::UpdateTrack {
                room,
                identity,
                sid,
                track,
            }
        }),
        (who(), track_sids()).prop_map(|((room, identity), track)| Command::UnpublishTrack {
            room,
            identity,
            track,
        }),
        (who(), track_sids(), any::<bool>()).prop_map(|((room, identity), track, muted)| {
            Command::SetTrackMuted {
                room,
                identity,
                track,
                muted,
            }
        }),
    ]
}

fn of_subscriptions() -> impl Strategy<Value = Command> {
    let who = || (rooms(), identities());
    let wishes = prop::collection::btree_map(track_sids(), any::<bool>(), 0..4);
    let tracks = prop::option::of(prop::collection::btree_set(track_sids(), 0..3));
    let allowed = prop::collection::btree_map(identities(), tracks, 0..3);
    prop_oneof![
        (who(), wishes).prop_map(|((room, identity), tracks)| Command::UpdateSubscriptions {
            room,
            identity,
            tracks,
        }),
        (who(), any::<bool>(), allowed).prop_map(
            |((room, identity), all_participants, allowed)| Command::SetSubscriptionPermission {
                room,
                identity,
                permission: SubscriptionPermission {
                    all_participants,
                    allowed,
                },
            }
        ),
    ]
}

fn states() -> impl Strategy<Value = NodeState> {
    prop::sample::select(vec![
        NodeState::Serving,
        NodeState::Draining,
        NodeState::Lost {
            cause: LossCause::Crashed,
        },
    ])
}

fn causes() -> impl Strategy<Value = LossCause> {
    prop::sample::select(LossCause::ALL.to_vec())
}

fn of_nodes_and_rooms() -> impl Strategy<Value = Command> {
    let boot = || (1u64..3).prop_map(BootId);
    let moves = (rooms(), identities(), sids(), 1u64..40, homes()).prop_map(
        |(room, identity, sid, epoch, home)| Rehome {
            room,
            identity,
            sid,
            epoch: Epoch(epoch),
            home,
        },
    );
    prop_oneof![
        2 => (homes(), boot()).prop_map(|(id, boot)| Command::PutNode(node(id.0, boot.0))),
        1 => (homes(), states()).prop_map(|(node, state)| Command::SetNodeState { node, state }),
        1 => homes().prop_map(|node| Command::RemoveNode { node }),
        1 => homes().prop_map(|node| Command::RemoveNodeV1 { node }),
        1 => (homes(), boot()).prop_map(|(node, boot)| Command::NodeLostV1 { node, boot }),
        3 => (homes(), boot(), causes()).prop_map(|(node, boot, cause)| Command::NodeLost {
            node,
            boot,
            cause
        }),
        1 => (homes(), boot()).prop_map(|(id, boot)| {
            let address = [10, 0, 0, id.0 as u8].into();
            Command::PutNode(node(id.0, boot.0).with_moving_addresses(&[address]))
        }),
        2 => (homes(), boot(), causes(), homes()).prop_map(|(node, boot, cause, taker)| {
            Command::NodeLostTo { node, boot, cause, taker }
        }),
        2 => (homes(), boot(), 0u32..3, causes(), prop::option::of(homes())).prop_map(
            |(node, boot, returns, cause, taker)| Command::NodeLostIn {
                node,
                stint: Stint { boot, returns },
                cause,
                taker,
            }
        ),
        2 => (homes(), boot()).prop_map(|(node, boot)| Command::NodeReturns { node, boot }),
        1 => (homes(), boot(), homes()).prop_map(|(node, boot, of)| Command::ReleaseAddresses {
            node,
            boot,
            addresses: vec![[10, 0, 0, of.0 as u8].into()],
        }),
        1 => rooms().prop_map(|room| Command::CreateRoom(create(room.as_str()))),
        1 => rooms().prop_map(|room| Command::DeleteRoom { room }),
        1 => (rooms(), "[ab]{0,1}")
            .prop_map(|(room, metadata)| Command::SetRoomMetadata { room, metadata }),
        1 => prop::collection::vec(moves, 0..40).prop_map(|moves| Command::Rehome { moves }),
        1 => Just(Command::Expire),
        1 => Just(Command::Noop),
    ]
}

/// All sorts of commands.
pub(super) fn commands() -> impl Strategy<Value = Command> {
    prop_oneof![
        4 => joins(),
        6 => of_participants(),
        3 => of_subscriptions(),
        2 => of_nodes_and_rooms(),
    ]
}

/// Commands with the milliseconds since the one before, and whether the request id of an earlier
/// one is used again.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let step = (commands(), 0u64..15_000, 0u8..12);
    prop::collection::vec(step, 1..120).prop_map(|steps| {
        let mut at = 1_000;
        let mut entries: Vec<Entry> = Vec::new();
        for (index, (command, pause, again)) in steps.into_iter().enumerate() {
            at += pause;
            let earlier = entries.len().checked_sub(1 + usize::from(again));
            let mut entry = Entry {
                at: UnixMillis(at),
                request: RequestId(index as u128),
                command,
            };
            if let Some(earlier) = earlier.filter(|_| again < 2) {
                entry.request = entries[earlier].request;
                entry.command = entries[earlier].command.clone();
            }
            entries.push(entry);
        }
        entries
    })
}

fn start() -> State {
    Replica::new().state
}

fn check_invariants(state: &State) {
    let mut deadlines = Vec::new();
    for room in state.rooms.values() {
        assert_eq!(room.close_at.is_some(), room.participants.is_empty());
        assert_eq!(room.routes, placement::routes(room));
        deadlines.extend(room.close_at);
        let mut homes = BTreeMap::new();
        let mut published = 0;
        for (identity, participant) in &room.participants {
            assert_eq!(*identity, participant.identity);
            assert!(state.nodes.contains_key(&participant.home));
            assert!(participant.epoch <= room.epoch_max);
            assert_eq!(
                participant.activate_by.is_some(),
                participant.state == ParticipantState::Joined
            );
            *homes.entry(participant.home).or_insert(0) += 1;
            deadlines.extend(participant.activate_by);
            for (sid, track) in &participant.tracks {
                assert_eq!(room.publishers.get(sid), Some(identity));
                assert_eq!(*sid, track.sid);
                let allowed = &participant.permission;
                assert!(crate::apply::participant::may_publish(
                    allowed,
                    track.source
                ));
                published += 1;
            }
        }
        assert_eq!(room.homes, homes);
        assert_eq!(room.publishers.len(), published);
    }
    deadlines.extend(
        state
            .revocations
            .values()
            .map(|revocation| revocation.until),
    );
    assert_eq!(state.next_deadline(), deadlines.into_iter().min());
}

/// Versions of one incarnation of a room only grow, and rooms differ exactly if their versions do.
/// Every change has an event, except a subscription permission that concerns nobody present.
fn check_versions(before: &State, after: &State, entry: &Entry, applied: &Applied) {
    let told: BTreeSet<&RoomName> = applied
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Room { room, .. } => Some(room),
            _ => None,
        })
        .collect();
    for (name, room) in &after.rooms {
        let Some(earlier) = before.rooms.get(name) else {
            assert!(told.contains(name));
            continue;
        };
        if earlier == room {
            assert!(!told.contains(name));
        } else {
            assert!(room.version > earlier.version);
            let silent = matches!(entry.command, Command::SetSubscriptionPermission { .. });
            assert!(told.contains(name) || silent);
        }
    }
}

/// Everybody who is in a room, with what must survive a takeover.
fn present(state: &State) -> BTreeMap<(RoomName, Identity), (ParticipantSid, Vec<TrackSid>)> {
    let mut present = BTreeMap::new();
    for room in state.rooms.values() {
        for participant in room.participants.values() {
            let key = (room.name.clone(), participant.identity.clone());
            let tracks = participant.tracks.keys().cloned().collect();
            present.insert(key, (participant.sid.clone(), tracks));
        }
    }
    present
}

/// Nobody leaves because a node is lost, starts again or is removed while others can take over; who
/// moved has a higher epoch, and where another node serves, nobody stays behind.
fn check_takeover(before: &State, after: &State, entry: &Entry) {
    let mut named = None;
    let node = match &entry.command {
        Command::NodeLost { node, .. } | Command::RemoveNode { node } => *node,
        Command::NodeLostTo { node, taker, .. } => {
            let serves = |other: &Arc<Node>| other.state == NodeState::Serving && other.id != *node;
            named = before
                .nodes
                .get(taker)
                .filter(|taker| serves(taker))
                .map(|taker| taker.id);
            *node
        }
        Command::PutNode(node) => node.id,
        _ => return,
    };
    let others = |state: &State| {
        state
            .nodes
            .values()
            .any(|other| other.id != node && other.state == NodeState::Serving)
    };
    if others(before) || !matches!(entry.command, Command::RemoveNode { .. }) {
        assert_eq!(present(before), present(after));
    }
    for room in after.rooms.values() {
        for participant in room.participants.values() {
            let earlier = &before.rooms.get(&room.name).expect("there is no new room");
            let earlier = earlier.participants.get(&participant.identity);
            let earlier = earlier.expect("nobody joins by it");
            let moved = earlier.home != participant.home;
            assert!(!moved || earlier.home == node);
            assert!(!moved || participant.epoch > earlier.epoch);
            let expected = named.or_else(|| before.standby(earlier));
            assert!(!moved || Some(participant.home) == expected);
        }
        let is_lost = after
            .nodes
            .get(&node)
            .is_some_and(|node| node.state.is_lost());
        assert!(!(is_lost && others(after) && room.homes.contains_key(&node)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn replicas_agree_and_invariants_hold(entries in entries()) {
        let (mut one, mut other) = (start(), start());
        for entry in &entries {
            let before = one.clone();
            let known = one.requests.answer(entry.request).is_some();
            let applied = one.apply(entry);
            let decoded = decode_entry(&encode_entry(entry)).expect("decodes");
            prop_assert_eq!(&decoded, entry);
            prop_assert_eq!(&applied, &other.apply(&decoded));
            check_invariants(&one);
            check_versions(&before, &one, entry, &applied);
            if !known && applied.result.is_ok() {
                check_takeover(&before, &one, entry);
            }
            if known || applied.result.is_err() {
                prop_assert!(applied.events.is_empty());
                prop_assert_eq!(&one.rooms, &before.rooms);
                prop_assert_eq!(&one.nodes, &before.nodes);
                prop_assert_eq!(&one.revocations, &before.revocations);
            }
        }
        prop_assert_eq!(&one, &other);
        prop_assert_eq!(state_hash(&one), state_hash(&other));
    }

    #[test]
    fn a_snapshot_and_the_tail_equal_the_log(entries in entries(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(entries.len());
        let mut whole = start();
        let mut snapshot = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            if index == cut {
                snapshot = encode_snapshot(&whole);
            }
            whole.apply(entry);
        }
        let mut resumed = decode_snapshot(&snapshot).expect("decodes");
        prop_assert_eq!(&encode_snapshot(&resumed), &snapshot);
        for entry in &entries[cut..] {
            resumed.apply(entry);
        }
        prop_assert_eq!(&resumed, &whole);
        prop_assert_eq!(state_hash(&resumed), state_hash(&whole));
        check_invariants(&resumed);
    }
}
