//! Change feeds: every watcher, at whichever node, is told the same changes in the same order, without a gap
//! and each once, also across a broken stream that goes on where it ended.
//!
//! Source: what etcd's watch promises (ordered, unique, reliable, atomic, resumable).

use std::collections::BTreeMap;

use super::Opinion;

/// One message of a feed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    /// Commands applied by then.
    pub(crate) revision: u64,
    pub(crate) what: What,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// The state as a whole: the feed begins anew.
    Snapshot,
    /// The events of one command, as text without the position.
    Change(String),
    /// Nothing of interest happened up to here.
    Progress,
}

/// What one watcher was told.
#[derive(Clone, Default, Debug)]
pub(crate) struct Feed {
    /// Node that was watched.
    pub(crate) node: u64,
    pub(crate) told: Vec<Told>,
}

/// A feed's stretches: revisions from, to, and the changes in between.
struct Stretch {
    after: u64,
    until: u64,
    changes: BTreeMap<u64, String>,
}

/// Judges all feeds of a run.
pub(crate) fn judge(feeds: &[Feed]) -> Opinion {
    let mut opinion = Opinion::new("feeds");
    let mut all: BTreeMap<u64, (u64, String)> = BTreeMap::new();
    let mut stretches: Vec<(u64, Stretch)> = Vec::new();
    let mut count = 0;
    for feed in feeds {
        for stretch in split(feed, &mut opinion) {
            count += stretch.changes.len();
            for (revision, change) in &stretch.changes {
                match all.get(revision) {
                    Some((node, other)) if other != change => opinion.violated(format!(
                        "revision {revision} is one thing at node {node} and another at node {}: {other} / {change}",
                        feed.node
                    )),
                    Some(_) => {}
                    None => {
                        all.insert(*revision, (feed.node, change.clone()));
                    }
                }
            }
            stretches.push((feed.node, stretch));
        }
    }
    for (node, stretch) in stretches.iter().filter(|(_, one)| one.after < one.until) {
        let span = stretch.after + 1..=stretch.until;
        for (revision, (teller, change)) in all.range(span) {
            if !stretch.changes.contains_key(revision) {
                opinion.violated(format!(
                    "node {node}'s feed lacks revision {revision}, which node {teller} tells: {change}"
                ));
            }
        }
    }
    opinion.looked_at = format!(
        "{count} changes in {} feeds, {} begun anew",
        feeds.len(),
        stretches.len().saturating_sub(feeds.len())
    );
    opinion
}

fn split(feed: &Feed, opinion: &mut Opinion) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for told in &feed.told {
        let Told { revision, what } = told;
        let Some(last) = stretches.last_mut().filter(|_| *what != What::Snapshot) else {
            if *what != What::Snapshot {
                opinion.violated(format!(
                    "node {}'s feed begins without the state",
                    feed.node
                ));
            }
            // A snapshot in several parts has one revision.
            if stretches.last().is_none_or(|last| last.until != *revision) {
                stretches.push(Stretch {
                    after: *revision,
                    until: *revision,
                    changes: BTreeMap::new(),
                });
            }
            continue;
        };
        let moves_on = match what {
            What::Change(change) => {
                let moves_on = *revision > last.until;
                if moves_on {
                    last.changes.insert(*revision, change.clone());
                }
                moves_on
            }
            _ => *revision >= last.until,
        };
        if !moves_on {
            opinion.violated(format!(
                "node {}'s feed tells revision {revision} after {}",
                feed.node, last.until
            ));
        }
        last.until = last.until.max(*revision);
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, what: &str) -> Told {
        Told {
            revision,
            what: What::Change(what.to_owned()),
        }
    }

    fn begin(revision: u64) -> Told {
        Told {
            revision,
            what: What::Snapshot,
        }
    }

    fn judged(feeds: &[&[Told]]) -> Opinion {
        let feeds: Vec<Feed> = (1..)
            .zip(feeds)
            .map(|(node, told)| Feed {
                node,
                told: told.to_vec(),
            })
            .collect();
        judge(&feeds)
    }

    #[test]
    fn equal_feeds_that_begin_at_different_times_are_sound() {
        let progress = Told {
            revision: 9,
            what: What::Progress,
        };
        let one = [
            begin(1),
            change(2, "a"),
            change(4, "b"),
            progress.clone(),
            change(10, "c"),
        ];
        let other = [begin(3), begin(3), change(4, "b"), progress, begin(12)];
        assert_eq!(judged(&[&one, &other]).count, 0);
    }

    #[test]
    fn a_gap_is_found() {
        let one = [begin(1), change(2, "a"), change(3, "b"), change(4, "c")];
        let other = [begin(1), change(2, "a"), change(4, "c")];
        let opinion = judged(&[&one, &other]);
        assert!(
            opinion.violations[0].contains("lacks revision 3"),
            "{opinion:?}"
        );
    }

    #[test]
    fn a_repeated_or_reordered_change_is_found() {
        assert_eq!(
            judged(&[&[begin(1), change(2, "a"), change(2, "a")]]).count,
            1
        );
        assert_eq!(
            judged(&[&[begin(1), change(3, "b"), change(2, "a")]]).count,
            1
        );
    }

    #[test]
    fn different_contents_of_one_revision_are_found() {
        let one = [begin(1), change(2, "a")];
        let other = [begin(1), change(2, "x")];
        assert_eq!(judged(&[&one, &other]).count, 1);
    }

    #[test]
    fn a_feed_without_a_beginning_is_found() {
        assert!(judged(&[&[change(2, "a")]]).count >= 1);
    }
}
