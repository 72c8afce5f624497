//! What follows from signs of life and from what other nodes find: pure decisions.
//!
//! [`super::failure`] collects the facts and carries out what is decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_model::cluster::{LossCause, Stint};
use flotilla_model::id::NodeId;

use crate::mesh::Finding;

/// What one node thinks of another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Impression {
    /// It is heard, or not silent for long.
    Lives,
    /// Nothing was heard of it for this long.
    Silent(Duration),
    /// Its process has ended.
    Gone,
}

/// The facts about one suspect.
#[derive(Clone, Debug)]
pub struct Case {
    /// Who judges.
    pub judge: NodeId,
    /// Who is suspected.
    pub suspect: NodeId,
    /// The stint of the suspect in which the log had it when it was first suspected: everything that is found
    /// says something of that alone.
    pub stint: Stint,
    /// What the judge thinks itself.
    pub impression: Impression,
    /// The group's voters.
    pub voters: BTreeSet<NodeId>,
    /// Voters whose processes have ended, as far as the judge knows.
    pub gone: BTreeSet<NodeId>,
    /// What voters found that were asked; who did not answer is absent.
    pub findings: BTreeMap<NodeId, Finding>,
    /// Silence that makes a node unreachable.
    pub bound: Duration,
    /// Silence to the judge alone that does, although others hear it: it is of no use without the
    /// leader.
    pub patience: Duration,
}

impl Case {
    /// Whom to ask: the voters that live, without the judge and the suspect.
    #[must_use]
    pub fn witnesses(&self) -> BTreeSet<NodeId> {
        let known = [self.judge, self.suspect];
        self.voters
            .difference(&self.gone)
            .copied()
            .filter(|node| !known.contains(node))
            .collect()
    }

    /// The verdict; `None`: not lost, or not certainly.
    ///
    /// *Gone* needs a second node that does not hear it either, unless no other voter lives, and
    /// nobody who hears it. *Silent* needs a majority of the living voters for which it has been
    /// silent as long: the suspect keeps its lease while it is in contact with a majority of them, so
    /// the two exclude each other, whatever else is cut. Silence to the judge alone needs a majority that
    /// answers the judge.
    #[must_use]
    pub fn verdict(&self) -> Option<LossCause> {
        match self.impression {
            Impression::Lives => None,
            Impression::Gone => self.is_confirmed_gone().then_some(LossCause::Crashed),
            Impression::Silent(silence) if silence < self.bound => None,
            Impression::Silent(silence) if silence >= self.patience && self.is_heard() => {
                Some(LossCause::Unreachable)
            }
            Impression::Silent(_) => {
                let electorate = self.voters.difference(&self.gone).count();
                let mut confirmed = usize::from(self.voters.contains(&self.judge));
                for finding in self.findings.values() {
                    confirmed += usize::from(is_missing(*finding));
                }
                (confirmed > electorate / 2).then_some(LossCause::Unreachable)
            }
        }
    }

    /// Whether the judge is in contact with a majority of the living voters. One that is not has been cut off
    /// itself: others are silent for that reason, and decide without it.
    fn is_heard(&self) -> bool {
        let electorate = self.voters.difference(&self.gone).count();
        let own = usize::from(self.voters.contains(&self.judge));
        own + self.findings.len() > electorate / 2
    }

    /// Whether the verdict stands, whatever witnesses who have not answered yet would say.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.impression == Impression::Gone && self.verdict().is_some()
    }

    fn is_confirmed_gone(&self) -> bool {
        let heard = self.findings.values().any(|f| *f == Finding::Heard);
        let missing = self.findings.values().any(|f| is_missing(*f));
        !heard && (missing || self.witnesses().is_empty())
    }
}

const fn is_missing(finding: Finding) -> bool {
    matches!(finding, Finding::Silent | Finding::Gone)
}

/// How many living voters stand for election before this node when the leader has gone: the lowest
/// id goes first. `None` if this node does not vote.
#[must_use]
pub fn place_in_line(
    node: NodeId,
    leader: NodeId,
    voters: &BTreeSet<NodeId>,
    gone: &BTreeSet<NodeId>,
) -> Option<u32> {
    let line = voters
        .difference(gone)
        .filter(|voter| **voter != leader)
        .position(|voter| *voter == node)?;
    u32::try_from(line).ok()
}

#[cfg(test)]
mod tests {
    use flotilla_model::id::BootId;

    use super::*;

    const BOUND: Duration = Duration::from_millis(500);

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Node 1 judges node 2 among these voters.
    fn case(impression: Impression, voters: &[u64], findings: &[(u64, Finding)]) -> Case {
        Case {
            judge: NodeId(1),
            suspect: NodeId(2),
            stint: Stint {
                boot: BootId(1),
                returns: 0,
            },
            impression,
            voters: nodes(voters),
            gone: BTreeSet::new(),
            findings: findings.iter().map(|(id, f)| (NodeId(*id), *f)).collect(),
            bound: BOUND,
            patience: BOUND * 20,
        }
    }

    #[test]
    fn one_bad_link_condemns_nobody() {
        let silent = Impression::Silent(BOUND);
        let heard = [(3, Finding::Heard)];
        assert_eq!(case(silent, &[1, 2, 3], &heard).verdict(), None);
        assert_eq!(case(silent, &[1, 2, 3], &[]).verdict(), None);
        let unknown = [(3, Finding::Unknown)];
        assert_eq!(case(silent, &[1, 2, 3], &unknown).verdict(), None);
        let missing = [(3, Finding::Silent)];
        let verdict = case(silent, &[1, 2, 3], &missing).verdict();
        assert_eq!(verdict, Some(LossCause::Unreachable));
        let soon = Impression::Silent(BOUND - Duration::from_millis(1));
        assert_eq!(case(soon, &[1, 2, 3], &missing).verdict(), None);
        assert_eq!(
            case(Impression::Lives, &[1, 2, 3], &missing).verdict(),
            None
        );
    }

    #[test]
    fn a_node_that_never_hears_the_leader_is_of_no_use() {
        let silent = |silence| {
            case(
                Impression::Silent(silence),
                &[1, 2, 3],
                &[(3, Finding::Heard)],
            )
        };
        assert_eq!(silent(BOUND * 19).verdict(), None);
        let lost = Some(LossCause::Unreachable);
        assert_eq!(silent(BOUND * 20).verdict(), lost);
    }

    #[test]
    fn a_leader_that_nobody_answers_condemns_nobody() {
        let long = Impression::Silent(BOUND * 30);
        assert_eq!(case(long, &[1, 2, 3], &[]).verdict(), None);
        let one = [(3, Finding::Unknown)];
        assert_eq!(case(long, &[1, 2, 3, 4, 5], &one).verdict(), None);
        let two = [(3, Finding::Heard), (4, Finding::Heard)];
        let lost = Some(LossCause::Unreachable);
        assert_eq!(case(long, &[1, 2, 3, 4, 5], &two).verdict(), lost);
    }

    #[test]
    fn silence_needs_a_majority_of_the_living_voters() {
        let silent = Impression::Silent(BOUND * 2);
        let one = [(3, Finding::Silent), (4, Finding::Heard)];
        assert_eq!(case(silent, &[1, 2, 3, 4, 5], &one).verdict(), None);
        let two = [
            (3, Finding::Silent),
            (4, Finding::Gone),
            (5, Finding::Heard),
        ];
        let lost = Some(LossCause::Unreachable);
        assert_eq!(case(silent, &[1, 2, 3, 4, 5], &two).verdict(), lost);
        // Voters whose process ended count neither way.
        let mut case = case(silent, &[1, 2, 3, 4, 5], &[(3, Finding::Silent)]);
        assert_eq!(case.verdict(), None);
        case.gone = nodes(&[4, 5]);
        assert_eq!(case.verdict(), lost);
        assert_eq!(case.witnesses(), nodes(&[3]));
    }

    #[test]
    fn a_learner_is_judged_by_the_voters() {
        let silent = Impression::Silent(BOUND);
        let lost = Some(LossCause::Unreachable);
        assert_eq!(case(silent, &[1], &[]).verdict(), lost);
        assert_eq!(case(silent, &[1, 3, 4], &[]).verdict(), None);
        let one = [(3, Finding::Silent), (4, Finding::Heard)];
        assert_eq!(case(silent, &[1, 3, 4], &one).verdict(), lost);
    }

    #[test]
    fn a_dead_process_needs_a_second_node_if_there_is_one() {
        let gone = Impression::Gone;
        let crashed = Some(LossCause::Crashed);
        assert_eq!(case(gone, &[1, 2], &[]).verdict(), crashed);
        assert_eq!(case(gone, &[1, 2, 3], &[]).verdict(), None);
        for finding in [Finding::Gone, Finding::Silent] {
            let found = [(3, finding)];
            assert_eq!(case(gone, &[1, 2, 3], &found).verdict(), crashed);
        }
        let heard = [(3, Finding::Gone), (4, Finding::Heard)];
        assert_eq!(case(gone, &[1, 2, 3, 4], &heard).verdict(), None);
        let mut last = case(gone, &[1, 2, 3], &[]);
        last.gone = nodes(&[2, 3]);
        assert_eq!(last.verdict(), crashed);
    }

    #[test]
    fn living_voters_stand_in_order() {
        let voters = nodes(&[1, 2, 3]);
        let place =
            |node, gone: &[u64]| place_in_line(NodeId(node), NodeId(1), &voters, &nodes(gone));
        assert_eq!(place(2, &[1]), Some(0));
        assert_eq!(place(3, &[1]), Some(1));
        assert_eq!(place(3, &[1, 2]), Some(0));
        assert_eq!(place(4, &[1]), None, "a learner does not stand");
    }
}
