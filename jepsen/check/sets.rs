//! Who is in a room: whoever was let in and did not leave is there, whoever left is not, and nobody is
//! there who did not ask to be.

use std::collections::BTreeSet;

use super::Opinion;
use crate::history::{Kind, Operation, spans};

/// What a node says is there at the end.
#[derive(Clone, Default, Debug)]
pub(crate) struct Scan {
    pub(crate) node: u64,
    /// Identities in the room.
    pub(crate) present: BTreeSet<String>,
    /// Those of them that publish.
    pub(crate) publishing: BTreeSet<String>,
}

/// Operations `join`, `publish` and `leave` of unique identities (`value`) against a scan of every node;
/// `stayed` are those whose client was connected to the end.
pub(crate) fn judge(
    operations: &[Operation],
    stayed: &BTreeSet<String>,
    scans: &[Scan],
) -> Opinion {
    let mut opinion = Opinion::new("membership");
    let (mut asked, mut joined, mut left, mut published) = Default::default();
    type Set<'a> = BTreeSet<&'a str>;
    let sets: [&mut Set<'_>; 4] = [&mut asked, &mut joined, &mut left, &mut published];
    let [asked, joined, left, published] = sets;
    for span in spans(operations) {
        let value = span.invoke.value.as_str();
        let is_done = span.kind() == Kind::Ok;
        match (&*span.invoke.f, is_done) {
            ("join", done) => {
                asked.insert(value);
                if done {
                    joined.insert(value);
                }
            }
            ("leave", true) => {
                left.insert(value);
            }
            ("announce", true) => {
                published.insert(value);
            }
            _ => {}
        }
    }
    for scan in scans {
        let node = scan.node;
        for identity in stayed {
            let identity = identity.as_str();
            if joined.contains(identity) && !scan.present.contains(identity) {
                opinion.violated(format!(
                    "{identity} joined and did not leave, but node {node} does not know"
                ));
            }
            if published.contains(identity) && !scan.publishing.contains(identity) {
                opinion.violated(format!(
                    "{identity} publishes, but node {node} does not know"
                ));
            }
        }
        for identity in &scan.present {
            if left.contains(identity.as_str()) {
                opinion.violated(format!("{identity} left, but is there as node {node} says"));
            }
            if !asked.contains(identity.as_str()) {
                opinion.violated(format!(
                    "{identity} is there as node {node} says, but never joined"
                ));
            }
        }
    }
    opinion.looked_at = format!(
        "{} joins, {} leaves, {} who stayed, {} scans",
        joined.len(),
        left.len(),
        stayed.len(),
        scans.len()
    );
    if scans.is_empty() {
        opinion.undecided.push("no node was asked".to_owned());
    }
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, History};

    fn history(lines: &[(&'static str, &str, Kind)]) -> Vec<Operation> {
        let history = History::new();
        for (f, value, kind) in lines {
            let action = Action {
                process: (*value).to_owned(),
                f,
                key: String::new(),
                value: (*value).to_owned(),
                node: 1,
            };
            history.invoke(&action);
            history.add(&action, *kind, None, None);
        }
        history.operations()
    }

    fn scan(present: &[&str]) -> Scan {
        Scan {
            node: 1,
            present: present.iter().map(|one| (*one).to_owned()).collect(),
            publishing: BTreeSet::new(),
        }
    }

    fn stayed(who: &[&str]) -> BTreeSet<String> {
        who.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn who_stayed_is_there_and_who_left_is_not() {
        let operations = history(&[
            ("join", "a", Kind::Ok),
            ("join", "b", Kind::Ok),
            ("leave", "b", Kind::Ok),
            ("join", "c", Kind::Info),
        ]);
        let sound = |present: &[&str]| judge(&operations, &stayed(&["a"]), &[scan(present)]).count;
        assert_eq!(sound(&["a"]), 0);
        assert_eq!(sound(&["a", "c"]), 0);
        assert_eq!(sound(&[]), 1);
        assert_eq!(sound(&["a", "b"]), 1);
        assert_eq!(sound(&["a", "nobody"]), 1);
    }

    #[test]
    fn a_lost_track_is_found() {
        let operations = history(&[("join", "a", Kind::Ok), ("announce", "a", Kind::Ok)]);
        assert_eq!(
            judge(&operations, &stayed(&["a"]), &[scan(&["a"])]).count,
            1
        );
        assert_eq!(judge(&operations, &stayed(&[]), &[]).undecided.len(), 1);
    }
}
