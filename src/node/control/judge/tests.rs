//! Verdicts on a node that the leader does not hear itself.

use super::super::testing::{World, heard_at, view};
use super::*;
use crate::mesh::Finding;
use flotilla_model::command::{Command, Rejection};
use flotilla_model::id::BootId;

const BOUND: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(10);
const SUSPECT: NodeId = NodeId(2);
const WITNESS: NodeId = NodeId(3);

const CONFIG: FailureConfig = FailureConfig {
    bound: BOUND,
    patience: PATIENCE,
};

/// What the leader decides about node 2, heard `silent` ago on the direct way, `reached` ago by way of node 3,
/// which hears it.
fn decide(silent: Duration, reached: Option<Duration>) -> Vec<Step> {
    let start = Instant::now();
    let now = start + silent;
    let mut signs = heard_at(start, [SUSPECT, WITNESS]);
    signs.heard(WITNESS, BootId(1), now);
    if let Some(reached) = reached {
        signs.reached(SUSPECT, BootId(1), None, now - reached);
    }
    let world = World::new();
    let voters = BTreeSet::from([NodeId(1), SUSPECT, WITNESS]);
    let view = view(now, &signs, &voters, &world.state);
    let mut judge = Judge::new(NodeId(1), CONFIG);
    judge.look(&View { now: start, ..view });
    let steps = judge.look(&view);
    let [Step::Ask { case, .. }] = &steps[..] else {
        panic!("its silence is asked about: {steps:?}");
    };
    let mut case = case.clone();
    case.findings.insert(WITNESS, Finding::Heard);
    judge.judge(&view, case)
}

#[test]
fn whoever_is_reached_by_way_of_another_is_not_condemned() {
    let second = Duration::from_secs(1);
    let steps = decide(PATIENCE * 3, Some(second));
    assert!(matches!(steps[..], [Step::Pause(SUSPECT)]), "{steps:?}");
}

#[test]
fn whoever_is_out_of_the_leaders_reach_for_long_is() {
    for reached in [None, Some(PATIENCE)] {
        let steps = decide(PATIENCE * 3, reached);
        assert!(
            matches!(
                steps[..],
                [Step::Condemn {
                    suspect: SUSPECT,
                    cause: LossCause::Unreachable,
                    ..
                }]
            ),
            "{steps:?}"
        );
    }
    let steps = decide(BOUND * 2, None);
    assert!(matches!(steps[..], [Step::Pause(SUSPECT)]), "{steps:?}");
}

/// A witness said that it does not hear the suspect; before the leader decides, the suspect comes back by way of it.
#[test]
fn what_witnesses_found_does_not_outweigh_what_comes_by_way_of_them_since() {
    let start = Instant::now();
    let now = start + BOUND * 2;
    let mut signs = heard_at(start, [SUSPECT, WITNESS]);
    signs.heard(WITNESS, BootId(1), now);
    let world = World::new();
    let voters = BTreeSet::from([NodeId(1), SUSPECT, WITNESS]);
    let mut judge = Judge::new(NodeId(1), CONFIG);
    let (state, all) = (&world.state, &voters);
    judge.look(&view(start, &signs, all, state));
    let steps = judge.look(&view(now, &signs, all, state));
    let [Step::Ask { case, .. }] = &steps[..] else {
        panic!("its silence is asked about: {steps:?}");
    };
    let mut case = case.clone();
    case.findings.insert(WITNESS, Finding::Silent);
    let steps = judge.judge(&view(now, &signs, all, state), case.clone());
    assert!(matches!(steps[..], [Step::Condemn { .. }]), "{steps:?}");
    signs.reached(SUSPECT, BootId(1), None, now - BOUND / 2);
    let steps = judge.judge(&view(now, &signs, all, state), case);
    assert!(matches!(steps[..], [Step::Pause(SUSPECT)]), "{steps:?}");
    judge.settled(SUSPECT);
    signs.reached(SUSPECT, BootId(1), None, now - BOUND / 4);
    assert!(
        judge.look(&view(now, &signs, all, state)).is_empty(),
        "it lives"
    );
}

/// A node that was lost writes its record again, which the leader applies before it hears the node itself.
#[test]
fn silence_from_before_its_return_condemns_nobody() {
    let start = Instant::now();
    let back = start + PATIENCE * 2;
    let mut signs = heard_at(start, [SUSPECT, WITNESS]);
    let voters = BTreeSet::from([NodeId(1), SUSPECT, WITNESS]);
    let mut world = World::new();
    let serving = (*world.state.nodes[&SUSPECT]).clone();
    world.apply(Command::NodeLost {
        node: SUSPECT,
        boot: serving.boot,
        cause: LossCause::Unreachable,
    });
    let lost = world.state.clone();
    world.apply(Command::PutNode(serving));
    let mut judge = Judge::new(NodeId(1), CONFIG);
    judge.look(&view(start, &signs, &voters, &lost));
    signs.heard(WITNESS, BootId(1), back);
    assert!(judge.look(&view(back, &signs, &voters, &lost)).is_empty());
    assert!(
        judge
            .look(&view(back, &signs, &voters, &world.state))
            .is_empty()
    );
    let soon = back + BOUND / 3;
    assert!(
        judge
            .look(&view(soon, &signs, &voters, &world.state))
            .is_empty()
    );
    let later = back + BOUND;
    signs.heard(WITNESS, BootId(1), later);
    let steps = judge.look(&view(later, &signs, &voters, &world.state));
    assert!(matches!(steps[..], [Step::Ask { .. }]), "{steps:?}");
}

/// The suspect's lease had ended, it has read the log and serves again: what witnesses found before condemns
/// nobody, and neither does the silence that the judge remembers.
#[test]
fn findings_from_before_a_return_condemn_nobody() {
    let start = Instant::now();
    let now = start + BOUND;
    let mut signs = heard_at(start, [SUSPECT, WITNESS]);
    signs.heard(WITNESS, BootId(1), now);
    let voters = BTreeSet::from([NodeId(1), SUSPECT, WITNESS]);
    let mut world = World::new();
    let before = world.state.clone();
    let boot = before.nodes[&SUSPECT].boot;
    let node = SUSPECT;
    world.apply(Command::NodeReturns { node, boot });
    let mut judge = Judge::new(NodeId(1), CONFIG);
    judge.look(&view(start, &signs, &voters, &before));
    let steps = judge.look(&view(now, &signs, &voters, &before));
    let [Step::Ask { case, .. }] = &steps[..] else {
        panic!("its silence is asked about: {steps:?}");
    };
    let mut case = case.clone();
    case.findings.insert(WITNESS, Finding::Silent);
    let condemned = judge.judge(&view(now, &signs, &voters, &before), case.clone());
    let [Step::Condemn { stint, cause, .. }] = condemned[..] else {
        panic!("it is silent to both: {condemned:?}");
    };
    // The verdict comes to the log behind the return: it is void.
    let refused = world.refuse(Command::NodeLostIn {
        node,
        stint,
        cause,
        taker: None,
    });
    assert_eq!(refused, Rejection::StaleEpoch);
    let steps = judge.judge(&view(now, &signs, &voters, &world.state), case);
    assert!(matches!(steps[..], [Step::Pause(SUSPECT)]), "{steps:?}");
    judge.settled(SUSPECT);
    let later = now + BOUND / 4;
    signs.heard(WITNESS, BootId(1), later);
    let steps = judge.look(&view(later, &signs, &voters, &world.state));
    assert!(steps.is_empty(), "{steps:?}");
}
