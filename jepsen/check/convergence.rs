//! Nodes that have applied the same log have the same state.

use super::Opinion;

/// The state's hash at one log index, node by node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Agreement {
    /// When it was asked, in words.
    pub(crate) when: String,
    pub(crate) index: u64,
    pub(crate) hashes: Vec<(u64, String)>,
}

/// Judges all of a run's.
pub(crate) fn judge(agreements: &[Agreement]) -> Opinion {
    let mut opinion = Opinion::new("convergence");
    opinion.looked_at = format!("{} log indices", agreements.len());
    for agreement in agreements {
        let first = agreement.hashes.first().map(|(_, hash)| hash);
        if agreement.hashes.iter().any(|(_, hash)| Some(hash) != first) {
            opinion.violated(format!(
                "{}: the state at log index {} differs: {:?}",
                agreement.when, agreement.index, agreement.hashes
            ));
        }
        if agreement.hashes.iter().any(|(_, hash)| hash.is_empty()) {
            let told = format!("{}: a node does not say its hash", agreement.when);
            opinion.undecided.push(told);
        }
    }
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_another_state_is_found() {
        let agreement = |hashes: [&str; 3]| Agreement {
            when: "at the end".to_owned(),
            index: 7,
            hashes: (1..).zip(hashes.map(str::to_owned)).collect(),
        };
        assert_eq!(judge(&[agreement(["a", "a", "a"])]).count, 0);
        assert_eq!(
            judge(&[agreement(["a", "b", "a"]), agreement(["a"; 3])]).count,
            1
        );
        assert_eq!(judge(&[agreement([""; 3])]).undecided.len(), 1);
    }
}
