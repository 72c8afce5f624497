//! A node that its leader hears by way of another one only.

use flotilla_model::State;

use super::super::testing::World;
use super::*;
use crate::mesh::SignBook;

const BOUND: Duration = Duration::from_millis(500);
const LOST_AFTER: Duration = Duration::from_secs(10);

fn view<'a>(
    now: Instant,
    signs: &'a SignBook,
    voters: &'a BTreeSet<NodeId>,
    state: &'a State,
) -> View<'a> {
    View {
        now,
        leader: Some(NodeId(1)),
        voters,
        state,
        signs,
    }
}

/// What a node does in the end that has had no direct answer of the leader for `since`, while node 3 answers, and
/// by way of that the leader up to `echoed` ago.
fn look(since: Duration, echoed: Option<Duration>) -> Deed {
    let start = Instant::now();
    let now = start + since;
    let (leader, other) = (NodeId(1), NodeId(3));
    let mut signs = SignBook::default();
    for node in [leader, other] {
        signs.insert(node, start);
        signs.answered(node, BootId(1), start, Ailment::None, start);
    }
    let world = World::new();
    let config = GuardConfig {
        node: NodeId(2),
        boot: BootId(1),
        bound: BOUND,
        lost_after: LOST_AFTER,
    };
    let mut guard = Guard::new(config, Lease::new(start), start);
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
