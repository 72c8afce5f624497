//! Decisions about ways round cut links.

use super::*;

const BOUND: Duration = Duration::from_millis(500);

fn peer(silent_ms: u64) -> Peer {
    Peer {
        silence: Duration::from_millis(silent_ms),
        is_gone: false,
        can_carry: true,
        round_trip: Duration::from_millis(1),
    }
}

fn peers(silent_ms: &[(u64, u64)]) -> BTreeMap<NodeId, Peer> {
    let peers = silent_ms.iter();
    peers.map(|(id, ms)| (NodeId(*id), peer(*ms))).collect()
}

const NODE: NodeId = NodeId(2);
const VIA: NodeId = NodeId(3);

/// Node 2 is cut off, node 3 carries packets and connections.
fn gone_round(now: Instant) -> Detours {
    let mut detours = Detours::new(BOUND);
    let asked = detours.look(now, &peers(&[(2, 300), (3, 50)]));
    assert_eq!(asked, [Step::Ask(NODE, vec![VIA])]);
    let steps = detours.heard(now, NODE, &[VIA]);
    assert_eq!(steps, [Step::Packets(NODE, Some(VIA))]);
    let steps = detours.look(now, &peers(&[(2, 500), (3, 50)]));
    assert_eq!(steps, [Step::Connections(NODE, Some(VIA))]);
    detours
}

#[test]
fn packets_go_round_first_and_connections_once_the_node_is_unreachable() {
    let now = Instant::now();
    let mut detours = Detours::new(BOUND);
    assert!(detours.look(now, &peers(&[(2, 290), (3, 290)])).is_empty());
    let detours = gone_round(now);
    assert_eq!(detours.ways().collect::<Vec<_>>(), [(NODE, VIA)]);
}

#[test]
fn the_direct_way_is_used_again_when_it_has_been_well_for_a_while() {
    let mut now = Instant::now();
    let mut detours = gone_round(now);
    for _ in 0..2 {
        // A sign of life, and silence again.
        assert!(detours.look(now, &peers(&[(2, 0), (3, 50)])).is_empty());
        now += WELL_FOR / 2;
        let steps = detours.look(now, &peers(&[(2, 260), (3, 50)]));
        assert!(steps.iter().all(|step| matches!(step, Step::Ask(..))));
        detours.heard(now, NODE, &[VIA]);
    }
    assert!(detours.look(now, &peers(&[(2, 0), (3, 50)])).is_empty());
    now += WELL_FOR;
    let steps = detours.look(now, &peers(&[(2, 0), (3, 50)]));
    assert_eq!(
        steps,
        [Step::Packets(NODE, None), Step::Connections(NODE, None)]
    );
    assert_eq!(detours.ways().count(), 0);
}

#[test]
fn nobody_is_sent_by_who_does_not_hear_the_node_either() {
    let now = Instant::now();
    let mut detours = Detours::new(BOUND);
    let cut_off = peers(&[(2, 300), (3, 50)]);
    assert_eq!(detours.look(now, &cut_off).len(), 1);
    assert!(detours.look(now, &cut_off).is_empty(), "asked once");
    assert!(detours.heard(now, NODE, &[]).is_empty());
    assert!(detours.look(now, &cut_off).is_empty(), "not at once again");
    let steps = detours.look(now + ASK_AGAIN, &cut_off);
    assert_eq!(steps, [Step::Ask(NODE, vec![VIA])]);
}

#[test]
fn a_node_on_the_way_that_loses_the_other_is_replaced_or_left() {
    let now = Instant::now();
    let mut detours = gone_round(now);
    let all = peers(&[(2, 900), (3, 50), (4, 50)]);
    let later = now + CONFIRM_INTERVAL;
    let asked = detours.look(later, &all);
    assert_eq!(asked, [Step::Ask(NODE, vec![VIA, NodeId(4)])]);
    let steps = detours.heard(later, NODE, &[NodeId(4)]);
    let by_four = Some(NodeId(4));
    assert_eq!(
        steps,
        [
            Step::Packets(NODE, by_four),
            Step::Connections(NODE, by_four)
        ]
    );
    let later = later + CONFIRM_INTERVAL;
    assert_eq!(detours.look(later, &all).len(), 1);
    let steps = detours.heard(later, NODE, &[]);
    assert_eq!(
        steps,
        [Step::Packets(NODE, None), Step::Connections(NODE, None)]
    );
}

#[test]
fn a_node_on_the_way_that_falls_silent_is_not_waited_for() {
    let now = Instant::now();
    let mut detours = gone_round(now);
    let steps = detours.look(now, &peers(&[(2, 900), (3, 350), (4, 50)]));
    let asked = [
        Step::Ask(NODE, vec![NodeId(4)]),
        Step::Ask(VIA, vec![NodeId(4)]),
    ];
    assert_eq!(steps, asked);
}

#[test]
fn carriers_are_near_and_new_enough() {
    let mut all = peers(&[(2, 900), (3, 50), (4, 50), (5, 50)]);
    all.get_mut(&NodeId(3)).expect("there").can_carry = false;
    all.get_mut(&NodeId(4)).expect("there").round_trip = Duration::from_millis(9);
    let found = carriers(&all, NODE, Duration::from_millis(300));
    assert_eq!(found, [NodeId(5), NodeId(4)]);
}

#[test]
fn a_dead_or_removed_node_is_not_looked_for() {
    let now = Instant::now();
    let mut detours = Detours::new(BOUND);
    let mut dead = peers(&[(2, 900), (3, 50)]);
    dead.get_mut(&NODE).expect("there").is_gone = true;
    assert!(detours.look(now, &dead).is_empty());
    let mut detours = gone_round(now);
    let steps = detours.look(now, &peers(&[(3, 50)]));
    assert_eq!(steps, [Step::Packets(NODE, None)]);
}
