//! Nodes that are lost, come back, drain and go: who takes over, and that nobody leaves.

use proptest::prelude::*;

use super::*;

fn lost(node: u64, boot: u64) -> Command {
    Command::NodeLost {
        node: NodeId(node),
        boot: BootId(boot),
        cause: LossCause::Crashed,
    }
}

#[test]
fn a_lost_nodes_participants_move_to_their_standby() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    replica.done(join("r", "b", 2));
    assert_eq!(replica.refused(lost(1, 7)), Rejection::StaleEpoch);
    let before = replica.participant("r", "a").clone();
    let standby = replica.state.standby(&before).expect("two others serve");
    let (_, events) = replica.done(lost(1, 1));
    let mut expected = vec![
        "node 1 changed".to_owned(),
        format!("a moved to {standby}"),
        "routes".to_owned(),
    ];
    assert_eq!(told(&events), expected);
    let after = replica.participant("r", "a");
    assert_eq!((after.home, &after.sid), (standby, &before.sid));
    assert!(after.epoch > before.epoch);
    assert_eq!(after.tracks, before.tracks);

    // Said again, it changes nothing, and nobody is placed there any more.
    let (_, events) = replica.done(lost(1, 1));
    assert_eq!(told(&events), [""; 0]);
    assert_eq!(replica.refused(join("r", "c", 1)), Rejection::NodeNotFound);
    let resume = Command::SetNodeState {
        node: NodeId(1),
        state: NodeState::Serving,
    };
    assert_eq!(replica.refused(resume), Rejection::NodeNotFound);

    // Once it has written its record it serves again; who moved stays moved.
    let (_, events) = replica.done(Command::PutNode(node(1, 1)));
    assert_eq!(told(&events), ["node 1 changed"]);
    replica.done(join("r", "c", 1));
    assert_eq!(replica.participant("r", "a").home, standby);

    // Now the standby goes, too.
    let before = replica.participant("r", "a").clone();
    let next = replica.state.standby(&before).expect("two others serve");
    let (_, events) = replica.done(lost(standby.0, 1));
    expected[0] = format!("node {standby} changed");
    expected[1] = format!("a moved to {next}");
    assert_eq!(told(&events)[..2], expected[..2]);
}

/// A node whose program reads the log of today.
fn up_to_date(id: u64, boot: u64) -> Node {
    let formats = crate::cluster::Formats {
        log: crate::encoding::VERSION,
        mesh: 1,
    };
    Node {
        version: formats.tell("0.1.0"),
        ..node(id, boot)
    }
}

fn stint(replica: &Replica, id: u64) -> Stint {
    replica.state.nodes[&NodeId(id)].stint()
}

#[test]
fn a_verdict_is_void_once_another_stint_has_begun() {
    let mut replica = Replica::new();
    for id in 1..=3 {
        replica.done(Command::PutNode(up_to_date(id, 1)));
    }
    replica.done(join("r", "a", 1));
    let lost = |stint| Command::NodeLostIn {
        node: NodeId(1),
        stint,
        cause: LossCause::Unreachable,
        taker: None,
    };
    let returns = |boot| Command::NodeReturns {
        node: NodeId(1),
        boot: BootId(boot),
    };
    let first = stint(&replica, 1);
    assert_eq!(replica.refused(returns(7)), Rejection::StaleEpoch);
    let (_, events) = replica.done(returns(1));
    assert_eq!(told(&events), ["node 1 changed"]);
    let second = stint(&replica, 1);
    assert!(second > first);
    assert_eq!(replica.refused(lost(first)), Rejection::StaleEpoch);
    assert_eq!(replica.participant("r", "a").home, NodeId(1));

    // Its record, said again, begins nothing.
    replica.done(Command::PutNode(up_to_date(1, 1)));
    assert_eq!(stint(&replica, 1), second);
    replica.done(lost(second));
    assert_ne!(replica.participant("r", "a").home, NodeId(1));
    assert_eq!(replica.refused(returns(1)), Rejection::NodeNotFound);

    // Whoever was lost returns by its record.
    replica.done(Command::PutNode(up_to_date(1, 1)));
    assert!(stint(&replica, 1) > second);
    assert_eq!(replica.refused(lost(second)), Rejection::StaleEpoch);
    replica.done(Command::PutNode(up_to_date(1, 2)));
    assert_eq!(stint(&replica, 1).returns, 0, "of another start");
}

#[test]
fn stints_are_not_counted_before_every_node_knows_them() {
    let mut replica = Replica::new();
    replica.done(Command::PutNode(up_to_date(1, 1)));
    replica.done(lost(1, 1));
    let version = replica.state.nodes[&NodeId(1)].version.clone();
    replica.done(Command::PutNode(up_to_date(1, 1)));
    assert_eq!(replica.state.nodes[&NodeId(1)].version, version);
    let lost = Command::NodeLostIn {
        node: NodeId(1),
        stint: stint(&replica, 1),
        cause: LossCause::Crashed,
        taker: Some(NodeId(2)),
    };
    assert!(matches!(
        lost.clone().worded_for(4),
        Command::NodeLostTo { .. }
    ));
    assert!(matches!(
        lost.clone().worded_for(3),
        Command::NodeLost { .. }
    ));
    assert_eq!(lost.clone().worded_for(5), lost);
    let returns = Command::NodeReturns {
        node: NodeId(1),
        boot: BootId(1),
    };
    assert_eq!(returns.clone().worded_for(4), Command::Expire);
    assert_eq!(returns.clone().worded_for(5), returns);
}

fn moving(id: u64, boot: u64, addresses: &[[u8; 4]]) -> Command {
    let formats = crate::cluster::Formats { log: 4, mesh: 1 };
    let record = Node {
        version: formats.tell("0.1.0"),
        ..node(id, boot)
    };
    let addresses: Vec<std::net::IpAddr> = addresses.iter().map(|a| (*a).into()).collect();
    Command::PutNode(record.with_moving_addresses(&addresses))
}

fn addresses(replica: &Replica, id: u64) -> Vec<std::net::IpAddr> {
    let node = replica.state.nodes.get(&NodeId(id)).expect("it is there");
    node.moving_addresses()
}

#[test]
fn where_the_address_moves_one_node_takes_everybody() {
    let mut replica = Replica::new();
    for id in 1..=3 {
        replica.done(moving(id, 1, &[[10, 0, 0, id as u8]]));
    }
    for name in ["a", "b", "c", "d"] {
        replica.done(join("r", name, 1));
    }
    let taker = replica.state.taker(NodeId(1)).expect("two others serve");
    let a = replica.participant("r", "a").clone();
    assert_eq!(replica.state.successor(&a), Some(taker));
    let lost_to = |node, taker| Command::NodeLostTo {
        node: NodeId(node),
        boot: BootId(1),
        cause: LossCause::Crashed,
        taker,
    };
    let (_, events) = replica.done(lost_to(1, taker));
    assert_eq!(
        told(&events)[..2],
        ["node 1 changed".to_owned(), format!("node {taker} changed")]
    );
    for name in ["a", "b", "c", "d"] {
        assert_eq!(replica.participant("r", name).home, taker);
    }
    let own: std::net::IpAddr = [10, 0, 0, taker.0 as u8].into();
    let first: std::net::IpAddr = [10, 0, 0, 1].into();
    assert_eq!(addresses(&replica, taker.0), [own, first]);
    assert!(addresses(&replica, 1).is_empty());

    // The owner comes back: both name the address until the taker lets it go.
    replica.done(moving(1, 1, &[[10, 0, 0, 1]]));
    assert_eq!(addresses(&replica, 1), [first]);
    let release = |boot| Command::ReleaseAddresses {
        node: taker,
        boot: BootId(boot),
        addresses: vec![first],
    };
    assert_eq!(replica.refused(release(7)), Rejection::StaleEpoch);
    replica.done(release(1));
    assert_eq!(addresses(&replica, taker.0), [own]);
    let (_, events) = replica.done(release(1));
    assert_eq!(told(&events), [""; 0]);

    // Who takes over has the addresses of whom it had taken over, too. Whoever cannot take them leaves
    // them to the standbys.
    replica.done(lost_to(1, taker));
    let last = replica.state.taker(taker).expect("one other serves");
    replica.done(lost_to(taker.0, last));
    assert_eq!(addresses(&replica, last.0).len(), 3);
    assert_eq!(replica.participant("r", "a").home, last);
    replica.done(moving(taker.0, 1, &[]));
    replica.done(lost_to(last.0, NodeId(9)));
    assert_eq!(replica.participant("r", "a").home, taker);
    assert_eq!(
        addresses(&replica, last.0).len(),
        3,
        "nobody has taken them"
    );
}

#[test]
fn an_address_moves_only_when_every_node_knows_how() {
    let mut replica = Replica::new();
    replica.done(moving(1, 1, &[[10, 0, 0, 1]]));
    replica.done(join("r", "a", 1));
    assert_eq!(replica.state.taker(NodeId(1)), None);
    let a = replica.participant("r", "a").clone();
    assert_eq!(replica.state.successor(&a), replica.state.standby(&a));
}

#[test]
fn without_another_node_everybody_stays() {
    let mut replica = Replica::new();
    for id in [2, 3] {
        replica.done(Command::SetNodeState {
            node: NodeId(id),
            state: NodeState::Draining,
        });
    }
    replica.done(join("r", "a", 1));
    let (_, events) = replica.done(lost(1, 1));
    assert_eq!(told(&events), ["node 1 changed"]);
    assert_eq!(replica.participant("r", "a").home, NodeId(1));
    // As soon as somebody can take over, the repeated verdict moves them.
    replica.done(Command::SetNodeState {
        node: NodeId(3),
        state: NodeState::Serving,
    });
    let (_, events) = replica.done(lost(1, 1));
    assert_eq!(told(&events), ["a moved to 3"]);
}

#[test]
fn a_new_start_keeps_its_participants_under_a_new_epoch() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    replica.done(join("r", "b", 2));
    let before = replica.participant("r", "a").clone();
    let (_, events) = replica.done(Command::PutNode(node(1, 2)));
    let expected = ["node 1 changed", "a moved to 1", "routes"];
    assert_eq!(told(&events), expected);
    let after = replica.participant("r", "a");
    assert_eq!((after.home, &after.sid), (NodeId(1), &before.sid));
    assert!(after.epoch > before.epoch);
    let (_, events) = replica.done(Command::PutNode(node(1, 2)));
    assert_eq!(told(&events), [""; 0]);
}

#[test]
fn a_removed_nodes_participants_move_unless_it_was_the_last() {
    let mut replica = Replica::new();
    replica.done(join("r", "b", 2));
    let standby = replica.state.standby(replica.participant("r", "b"));
    let standby = standby.expect("two others serve");
    let remove = |id| Command::RemoveNode { node: NodeId(id) };
    let (_, events) = replica.done(remove(2));
    let moved = format!("b moved to {standby}");
    assert_eq!(told(&events), [moved.as_str(), "node 2 removed"]);
    assert_eq!(replica.refused(remove(2)), Rejection::NodeNotFound);
    let other = if standby == NodeId(1) { 3 } else { 1 };
    replica.done(remove(other));
    let (_, events) = replica.done(remove(standby.0));
    let removed = format!("node {standby} removed");
    assert_eq!(told(&events), ["b left: ServerShutdown", removed.as_str()]);
}

#[test]
fn what_version_1_wrote_means_what_it_meant() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(join("r", "b", 2));
    let (_, events) = replica.done(Command::NodeLostV1 {
        node: NodeId(1),
        boot: BootId(1),
    });
    assert_eq!(told(&events), ["a left: SignalClose"]);
    let (_, events) = replica.done(Command::RemoveNodeV1 { node: NodeId(2) });
    assert_eq!(told(&events), ["b left: ServerShutdown", "node 2 removed"]);
}

#[test]
fn the_standby_serves_in_the_same_region() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    let mut far = node(2, 1);
    far.region = Region::from("there");
    replica.done(Command::PutNode(far));
    let standby = |replica: &Replica| replica.state.standby(replica.participant("r", "a"));
    assert_eq!(standby(&replica), Some(NodeId(3)));
    let (_, events) = replica.done(Command::SetNodeState {
        node: NodeId(3),
        state: NodeState::Draining,
    });
    assert_eq!(told(&events), ["node 3 changed"]);
    assert_eq!(standby(&replica), None);
}

#[test]
fn five_nodes_keep_a_checkpoint_twice() {
    let keepers = |nodes: u64| {
        let (state, crowd) = crowd(nodes, 1, 7);
        let participant = &crowd[0];
        let keepers: Vec<NodeId> = state.keepers(participant).collect();
        assert_eq!(keepers.first().copied(), state.standby(participant));
        assert!(!keepers.contains(&participant.home));
        // Who follows when the standby is gone, too.
        let mut without = state.clone();
        without.apply(&Entry {
            at: UnixMillis(1),
            request: RequestId(u128::MAX),
            command: lost(keepers[0].0, 1),
        });
        let next = without.standby(participant);
        (keepers.len(), keepers.get(1).copied() == next)
    };
    assert_eq!(keepers(3), (1, false));
    assert_eq!(keepers(4), (1, false));
    assert_eq!(keepers(5), (2, true));
    assert_eq!(keepers(7), (2, true));
}

/// A state with these nodes, and participants who are all at node 1.
fn crowd(nodes: u64, participants: u32, seed: u64) -> (State, Vec<Participant>) {
    let mut replica = Replica::new();
    for id in 4..=nodes {
        replica.done(Command::PutNode(node(id, 1)));
    }
    replica.done(join("r", "a", 1));
    let model = replica.participant("r", "a").clone();
    let crowd = (0..participants).map(|number| {
        let mut participant = Participant::clone(&model);
        participant.sid = ParticipantSid(format!("PA_{seed:x}{number}"));
        participant
    });
    (replica.state.clone(), crowd.collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// With a thousand participants per standby, the share of each is within a fifth of the mean:
    /// more than six standard deviations.
    #[test]
    fn standbys_are_spread_evenly(nodes in 3u64..9, seed in any::<u64>()) {
        let standbys = nodes - 1;
        let (state, crowd) = crowd(nodes, 1000 * standbys as u32, seed);
        let mut shares: BTreeMap<NodeId, i32> = BTreeMap::new();
        for participant in &crowd {
            let standby = state.standby(participant).expect("others serve");
            prop_assert_ne!(standby, participant.home);
            *shares.entry(standby).or_default() += 1;
        }
        prop_assert_eq!(shares.len() as u64, standbys);
        for share in shares.values() {
            prop_assert!((share - 1000).abs() < 200, "{:?}", shares);
        }
    }

    /// A node that goes moves only those whose standby it was; one that comes takes only for itself.
    #[test]
    fn standbys_stay_when_other_nodes_change(nodes in 4u64..9, gone in 2u64..9, seed in any::<u64>()) {
        prop_assume!(gone <= nodes);
        let (mut state, crowd) = crowd(nodes, 300, seed);
        let standbys = |state: &State| -> Vec<_> {
            crowd.iter().map(|participant| state.standby(participant)).collect()
        };
        let before = standbys(&state);
        state.apply(&Entry {
            at: UnixMillis(1),
            request: RequestId(u128::MAX),
            command: lost(gone, 1),
        });
        let without = standbys(&state);
        for (before, without) in before.iter().zip(&without) {
            prop_assert_ne!(*without, Some(NodeId(gone)));
            prop_assert!(before == without || *before == Some(NodeId(gone)));
        }
        state.apply(&Entry {
            at: UnixMillis(2),
            request: RequestId(u128::MAX - 1),
            command: Command::PutNode(node(gone, 2)),
        });
        prop_assert_eq!(standbys(&state), before);
    }
}
