//! A node that its leader hears by way of another one only.

use flotilla_model::command::Command;

use super::super::testing::{World, heard_at, view};
use super::*;
use crate::mesh::SignBook;

const BOUND: Duration = Duration::from_millis(500);
const LOST_AFTER: Duration = Duration::from_secs(10);

const fn config() -> GuardConfig {
    GuardConfig {
        node: NodeId(2),
        boot: BootId(1),
        bound: BOUND,
        lost_after: LOST_AFTER,
    }
}

/// What a node does in the end that has had no direct answer of the leader for `since`, while node 3 answers, and
/// by way of that the leader up to `echoed` ago.
fn look(since: Duration, echoed: Option<Duration>) -> Deed {
    let start = Instant::now();
    let now = start + since;
    let (leader, other) = (NodeId(1), NodeId(3));
    let mut signs = heard_at(start, [leader, other]);
    let world = World::new();
    let mut guard = Guard::new(config(), Lease::new(start), start);
    let voters = BTreeSet::from([leader, NodeId(2), other]);
    // It holds its lease at first.
    guard.look(&view(start, &signs, &voters, &world.state), Ailment::None);
    assert!(guard.returned(&view(start, &signs, &voters, &world.state)));
    let mut at = start;
    let mut deed = Deed::None;
    while at < now && deed == Deed::None {
        at += BOUND / 5;
        signs.answered(other, BootId(1), at, Ailment::None, at);
        if echoed.is_some_and(|echoed| at + echoed <= now) {
            signs.reached(leader, BootId(1), Some(at), at);
        }
        deed = guard.look(&view(at, &signs, &voters, &world.state), Ailment::None);
    }
    deed
}

#[test]
fn contact_with_the_leader_may_lead_by_way_of_another() {
    assert_eq!(look(BOUND / 2, None), Deed::None);
    assert_eq!(look(LOST_AFTER, Some(BOUND)), Deed::None);
    assert!(matches!(look(LOST_AFTER, None), Deed::Lapsed(_)));
    let late = Some(LOST_AFTER - BOUND);
    assert!(matches!(look(LOST_AFTER, late), Deed::Lapsed(_)));
}

/// A node that nobody answers asks its clients to go elsewhere, once more if they stay, and not when it serves again.
#[test]
fn a_lease_that_stays_lapsed_keeps_no_clients() {
    let start = Instant::now();
    let (leader, other) = (NodeId(1), NodeId(3));
    let voters = BTreeSet::from([leader, NodeId(2), other]);
    let world = World::new();
    let mut guard = Guard::new(config(), Lease::new(start), start);
    let look = |at: Duration, answers: bool, guard: &mut Guard| {
        let now = start + at;
        let heard = if answers { now } else { start };
        let mut signs = SignBook::default();
        for node in [leader, other] {
            signs.insert(node, start);
            signs.answered(node, BootId(1), heard, Ailment::None, heard);
        }
        let view = view(now, &signs, &voters, &world.state);
        match guard.look(&view, Ailment::None) {
            Deed::Read => assert!(guard.returned(&view)),
            deed => return deed,
        }
        Deed::None
    };
    // It has no lease yet, and nobody to send away.
    assert_eq!(look(BOUND * 2, false, &mut guard), Deed::None);
    assert_eq!(look(BOUND * 2 + AWAY_AFTER, false, &mut guard), Deed::None);
    let begun = BOUND * 3 + AWAY_AFTER;
    assert_eq!(look(begun, true, &mut guard), Deed::None);
    let lapsed = begun + BOUND;
    assert!(matches!(look(lapsed, false, &mut guard), Deed::Lapsed(_)));
    let away = lapsed + AWAY_AFTER;
    let before = away - Duration::from_millis(1);
    assert_eq!(look(before, false, &mut guard), Deed::None);
    assert_eq!(look(away, false, &mut guard), Deed::SendAway);
    assert_eq!(look(away + BOUND, false, &mut guard), Deed::None);
    assert_eq!(look(away + AGAIN, false, &mut guard), Deed::SendAway);
    let stay = away + AGAIN * 2;
    assert_eq!(look(stay, false, &mut guard), Deed::None, "nobody else is");
    assert_eq!(look(stay + BOUND, true, &mut guard), Deed::None);
    let again = stay + BOUND * 2;
    assert!(matches!(look(again, false, &mut guard), Deed::Lapsed(_)));
    assert_eq!(look(again + BOUND, false, &mut guard), Deed::None);
}

/// A node is unwell, others take it for lost, and it is well again: it comes back, later where it was handed over for
/// being unwell.
#[test]
fn whoever_is_well_again_comes_back() {
    for (cause, after) in [
        (LossCause::Unreachable, Duration::from_millis(50)),
        (LossCause::Stalled, WELL_FOR),
    ] {
        let start = Instant::now();
        let (leader, other) = (NodeId(1), NodeId(3));
        let voters = BTreeSet::from([leader, NodeId(2), other]);
        let mut world = World::new();
        let mut guard = Guard::new(config(), Lease::new(start), start);
        let signs = |at: Instant| {
            let mut signs = SignBook::default();
            for node in [leader, other] {
                signs.insert(node, start);
                signs.answered(node, BootId(1), at, Ailment::None, at);
            }
            signs
        };
        let held = signs(start);
        guard.look(&view(start, &held, &voters, &world.state), Ailment::None);
        assert!(guard.returned(&view(start, &held, &voters, &world.state)));
        let unwell = guard.look(&view(start, &held, &voters, &world.state), Ailment::Disk);
        assert_eq!(unwell, Deed::None, "not for long yet");
        world.apply(Command::NodeLost {
            node: NodeId(2),
            boot: BootId(1),
            cause,
        });
        let lost = guard.look(&view(start, &held, &voters, &world.state), Ailment::Disk);
        assert!(matches!(lost, Deed::Lapsed(_)), "{lost:?}");
        let look = |guard: &mut Guard, at: Instant| {
            guard.look(&view(at, &signs(at), &voters, &world.state), Ailment::None)
        };
        let first = look(&mut guard, start);
        let later = look(&mut guard, start + after);
        assert_eq!(later, Deed::Read, "{cause:?}");
        let at_once = cause == LossCause::Unreachable;
        assert_eq!(first == Deed::Read, at_once, "{cause:?}: {first:?}");
    }
}
