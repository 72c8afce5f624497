//! Stored bytes of every version are still understood, and today's are what they were.
//!
//! `FLOTILLA_WRITE_FIXTURES=1 cargo test -p flotilla-model fixtures` writes the files, which is needed once after [`VERSION`] was raised.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::apply::tests::{Replica, create, join, join_of, leave, node, publish, track};
use crate::cluster::{LossCause, NodeState, Stint};
use crate::command::{Command, ParticipantUpdate, Rejection};
use crate::id::{Epoch, RequestId, UnixMillis};
use crate::participant::LeaveReason;
use crate::permission::SubscriptionPermission;
use crate::track::{Layer, Quality, Source, Track, TrackCodec};
use crate::unit::Size;

/// One of every command of version 1 but `Expire` and `Noop`, some of them refused.
fn commands_v1() -> Vec<Command> {
    let mut described = track("TR_1", Source::Camera, true);
    described.codecs = vec![TrackCodec {
        mime: "video/vp8".to_owned(),
        fmtp: "max-fs=12288".to_owned(),
        cid: "cid".to_owned(),
        mid: "1".to_owned(),
        layers: vec![Layer {
            quality: Quality::Low,
            size: Size {
                width: 320,
                height: 180,
            },
            bitrate_bps: 150_000,
            rid: "q".to_owned(),
            ssrc: 1234,
            repair_ssrc: 1235,
        }],
    }];
    let mut named = join_of("hall", "b", 2);
    named.name = "Bo".to_owned();
    named.auto_subscribe = false;
    named.attributes = [("key".to_owned(), "value".to_owned())].into();
    vec![
        Command::PutNode(node(1, 10)),
        Command::PutNode(node(2, 20)),
        Command::PutNode(node(3, 30)),
        Command::SetNodeState {
            node: node(3, 30).id,
            state: NodeState::Draining,
        },
        Command::CreateRoom(create("empty")),
        join("hall", "a", 1),
        Command::Join(Box::new(named)),
        join("hall", "c", 3),
        Command::Activate {
            room: "hall".into(),
            identity: "a".into(),
            sid: "PA_a".into(),
        },
        publish("hall", "a", "TR_1", Source::Camera),
        publish("hall", "a", "TR_2", Source::Microphone),
        update_track(described),
        Command::SetTrackMuted {
            room: "hall".into(),
            identity: "a".into(),
            track: "TR_2".into(),
            muted: true,
        },
        Command::UpdateSubscriptions {
            room: "hall".into(),
            identity: "b".into(),
            tracks: [("TR_1".into(), true)].into(),
        },
        Command::SetSubscriptionPermission {
            room: "hall".into(),
            identity: "a".into(),
            permission: SubscriptionPermission {
                all_participants: false,
                allowed: [
                    ("b".into(), None),
                    ("c".into(), Some(["TR_2".into()].into())),
                ]
                .into(),
            },
        },
        Command::UpdateParticipant {
            room: "hall".into(),
            identity: "c".into(),
            update: ParticipantUpdate {
                metadata: Some("{}".to_owned()),
                ..ParticipantUpdate::default()
            },
        },
        Command::SetRoomMetadata {
            room: "hall".into(),
            metadata: "notes".to_owned(),
        },
        Command::UnpublishTrack {
            room: "hall".into(),
            identity: "a".into(),
            track: "TR_9".into(),
        },
        Command::Leave {
            room: "hall".into(),
            identity: "d".into(),
            sid: None,
            reason: LeaveReason::ParticipantRemoved,
            revoke_before: Some(UnixMillis(77_000)),
        },
        leave("hall", "c"),
        Command::Rehome { moves: Vec::new() },
        Command::NodeLostV1 {
            node: node(3, 30).id,
            boot: node(3, 31).boot,
        },
        Command::RemoveNodeV1 {
            node: node(3, 30).id,
        },
        Command::DeleteRoom {
            room: "nowhere".into(),
        },
    ]
}

fn update_track(track: Track) -> Command {
    Command::UpdateTrack {
        room: "hall".into(),
        identity: "a".into(),
        sid: "PA_a".into(),
        track: Box::new(track),
    }
}

/// What version 2 added.
fn commands_v2() -> Vec<Command> {
    vec![
        Command::NodeLost {
            node: node(1, 10).id,
            boot: node(1, 10).boot,
            cause: LossCause::Unreachable,
        },
        Command::PutNode(node(4, 40)),
        Command::RemoveNode {
            node: node(4, 40).id,
        },
    ]
}

/// What version 3 added.
fn commands_v3() -> Vec<Command> {
    let depart = |epoch| Command::Depart {
        room: "hall".into(),
        identity: "b".into(),
        sid: "PA_b".into(),
        epoch: Epoch(epoch),
        reason: LeaveReason::ConnectionTimeout,
    };
    vec![depart(u64::MAX), depart(7)]
}

/// What version 4 added.
fn commands_v4() -> Vec<Command> {
    let moving = [[10, 79, 0, 202].into()];
    let two = node(2, 21).with_moving_addresses(&moving);
    vec![
        Command::PutNode(node(1, 11)),
        Command::PutNode(two),
        Command::NodeLostTo {
            node: node(2, 21).id,
            boot: node(2, 21).boot,
            cause: LossCause::Crashed,
            taker: node(1, 11).id,
        },
        Command::ReleaseAddresses {
            node: node(1, 11).id,
            boot: node(1, 11).boot,
            addresses: vec![
                [10, 79, 0, 203].into(),
                "2001:db8::7".parse().expect("an address"),
            ],
        },
    ]
}

/// What version 5 added.
fn commands_v5() -> Vec<Command> {
    let (one, boot) = (node(1, 11).id, node(1, 11).boot);
    let lost = |returns, taker| Command::NodeLostIn {
        node: one,
        stint: Stint { boot, returns },
        cause: LossCause::Unreachable,
        taker,
    };
    vec![
        Command::NodeReturns { node: one, boot },
        lost(0, None),
        lost(1, Some(node(2, 21).id)),
    ]
}

/// Entries that a version could write.
fn entries_of(version: u8) -> Vec<Entry> {
    let later = [commands_v2, commands_v3, commands_v4, commands_v5];
    let mut commands = commands_v1();
    commands.extend([Command::Expire, Command::Noop]);
    let later = later.iter().take(usize::from(version) - 1);
    commands.extend(later.flat_map(|added| added()));
    numbered(commands)
}

fn entries() -> Vec<Entry> {
    entries_of(VERSION)
}

fn numbered(commands: Vec<Command>) -> Vec<Entry> {
    commands
        .into_iter()
        .enumerate()
        .map(|(index, command)| Entry {
            at: UnixMillis(1_700_000_000_000 + index as u64 * 100),
            request: RequestId(u128::MAX / 7 * (index as u128 % 6) + index as u128),
            command,
        })
        .collect()
}

fn state() -> State {
    state_after(&entries())
}

fn state_after(entries: &[Entry]) -> State {
    let mut state = State::default();
    for entry in entries {
        state.apply(entry);
    }
    state
}

/// Entries one after the other, each with its length in front.
fn join_entries(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let encoded = encode_entry(entry);
        bytes.extend((encoded.len() as u32).to_be_bytes());
        bytes.extend(encoded);
    }
    bytes
}

fn split_entries(mut bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (encoded, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        entries.push(decode_entry(encoded).expect("a stored entry decodes"));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    entries
}

fn fixture(name: &str, now: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name);
    #[expect(
        clippy::disallowed_methods,
        reason = "asks whether to write the current version's fixtures"
    )]
    if std::env::var("FLOTILLA_WRITE_FIXTURES").is_ok() {
        std::fs::write(&path, now()).expect("the fixture can be written");
    }
    std::fs::read(&path).expect("the fixture can be read")
}

/// Version 1's bytes are read as ever, and what it could write is still written as it did, so that
/// its nodes read along.
#[test]
fn reads_fixtures_of_version_1() {
    let state = state_after(&entries_of(1));
    let entries_v1_bytes = fixture("entries-v1.bin", || join_entries(&entries_of(1)));
    let snapshot_v1 = fixture("snapshot-v1.bin", || encode_snapshot(&state));
    assert_eq!(split_entries(&entries_v1_bytes), entries_of(1));
    let decoded = decode_snapshot(&snapshot_v1).expect("a stored snapshot decodes");
    assert_eq!(decoded, state);
    assert_eq!(decoded.next_deadline(), state.next_deadline());
    assert_eq!(join_entries(&entries_of(1)), entries_v1_bytes);
    assert_eq!(encode_snapshot(&state), snapshot_v1);
}

#[test]
fn reads_fixtures_of_version_2() {
    let state = state_after(&entries_of(2));
    let entries_v2_bytes = fixture("entries-v2.bin", || join_entries(&entries_of(2)));
    let snapshot_v2 = fixture("snapshot-v2.bin", || encode_snapshot(&state));
    assert_eq!(split_entries(&entries_v2_bytes), entries_of(2));
    let decoded = decode_snapshot(&snapshot_v2).expect("a stored snapshot decodes");
    assert_eq!(decoded, state);
    assert_eq!(snapshot_v2[0], 2, "it has a lost node");
    let lost = decoded.nodes.get(&node(1, 10).id).expect("still known");
    let cause = LossCause::Unreachable;
    assert_eq!(lost.state, NodeState::Lost { cause });
    assert_eq!(join_entries(&entries_of(2)), entries_v2_bytes);
    assert_eq!(encode_snapshot(&state), snapshot_v2);
}

/// Version 3 has no snapshots of its own: nothing new stays in a state.
#[test]
fn reads_fixtures_of_version_3() {
    let stored = fixture("entries-v3.bin", || join_entries(&entries_of(3)));
    assert_eq!(split_entries(&stored), entries_of(3));
    assert_eq!(join_entries(&entries_of(3)), stored);
}

/// Nor has version 4: who holds which address stands in a text that was always there.
#[test]
fn reads_fixtures_of_version_4() {
    let stored = fixture("entries-v4.bin", || join_entries(&entries_of(4)));
    assert_eq!(split_entries(&stored), entries_of(4));
    assert_eq!(join_entries(&entries_of(4)), stored);
}

/// Nor has version 5: a node's returns stand in the same text.
#[test]
fn reads_fixtures_of_version_5() {
    let stored = fixture("entries-v5.bin", || join_entries(&entries()));
    assert_eq!(split_entries(&stored), entries());

    // The layout must not change under a version's name.
    assert_eq!(VERSION, 5, "a new version needs fixtures of its own");
    assert_eq!(join_entries(&entries()), stored);
}

#[test]
fn the_hash_is_that_of_the_snapshot() {
    let state = state();
    let digest = Sha256::digest(encode_snapshot(&state));
    let first: [u8; 8] = digest[..8].try_into().expect("has 32 bytes");
    assert_eq!(state_hash(&state), u64::from_be_bytes(first));
    assert_ne!(state_hash(&state), state_hash(&State::default()));
}

#[test]
fn refuses_what_is_not_an_encoding() {
    let snapshot = encode_snapshot(&Replica::new().state);
    assert_eq!(decode_snapshot(&[]), Err(DecodeError::Empty));
    let mut newer = snapshot.clone();
    newer[0] = VERSION + 1;
    let error = decode_snapshot(&newer).expect_err("is not known");
    let text = "encoding version 6 is not known, this program reads up to 5";
    assert_eq!(error.to_string(), text);
    for length in 1..snapshot.len() {
        let error = decode_snapshot(&snapshot[..length]).expect_err("is cut off");
        assert!(matches!(error, DecodeError::Malformed { version: 1, .. }));
    }
    let mut longer = snapshot;
    longer.push(0);
    let error = decode_snapshot(&longer).expect_err("is too long");
    assert_eq!(error, DecodeError::Trailing { count: 1 });
}

#[test]
fn rejections_are_remembered_across_a_snapshot() {
    let mut state = state();
    let refused = entries()
        .into_iter()
        .find(|entry| matches!(entry.command, Command::UnpublishTrack { .. }))
        .expect("is among them");
    let mut decoded = decode_snapshot(&encode_snapshot(&state)).expect("decodes");
    let answer = state.apply(&refused).result;
    assert_eq!(answer, Err(Rejection::TrackNotFound));
    assert_eq!(decoded.apply(&refused).result, answer);
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        if let Some(version) = bytes.first_mut() {
            *version = VERSION;
        }
        let _ = decode_entry(&bytes);
        let _ = decode_snapshot(&bytes);
        let mut snapshot = encode_snapshot(&state());
        for (index, value) in flips {
            let index = index.index(snapshot.len());
            snapshot[index] = value;
        }
        // A damaged snapshot that still decodes is a state like any other: it hashes and encodes.
        if let Ok(state) = decode_snapshot(&snapshot) {
            let _ = (state_hash(&state), encode_snapshot(&state));
        }
    }
}
