//! Compares what is left after a cut with what was begun and acknowledged before it.
//!
//! Operations of a group are written in the order in which they began, each as a whole. So what is
//! left must be the state after some number of them, and that number must cover every acknowledged
//! one. Snapshots have an order of their own, one at a time.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, bail};

/// One operation on a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Operation {
    Append { first: u64, count: u64, term: u64 },
    Truncate { from: u64 },
    Purge { upto: u64, term: u64 },
    Vote { term: u64 },
}

/// What a group's child said.
#[derive(Debug, Default)]
struct GroupHistory {
    operations: Vec<Operation>,
    /// So many operations, from the first on, must be there.
    kept: usize,
    snapshots: Vec<u64>,
    /// So many snapshots were acknowledged.
    saved: usize,
    acknowledgements: u64,
}

/// What the child said, as read from its pipe:
///
/// ```text
/// ready
/// GROUP begin NUMBER append FIRST COUNT TERM | truncate FROM | purge UPTO TERM | vote TERM
/// GROUP done NUMBER
/// GROUP snapshot+ NUMBER      before it is saved
/// GROUP snapshot! NUMBER      when it is durable
/// ```
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) ready: bool,
    groups: BTreeMap<String, GroupHistory>,
}

impl History {
    /// Takes one line of the child.
    pub(crate) fn read(&mut self, line: &str) -> anyhow::Result<()> {
        if line == "ready" {
            self.ready = true;
            return Ok(());
        }
        let mut words = Words(line.split(' '));
        let group = self.groups.entry(words.word()?.to_owned()).or_default();
        match words.word()? {
            "begin" => {
                let number: usize = words.number()?;
                if number != group.operations.len() {
                    bail!("operation {number} began out of order");
                }
                let operation = match words.word()? {
                    "append" => Operation::Append {
                        first: words.number()?,
                        count: words.number()?,
                        term: words.number()?,
                    },
                    "truncate" => Operation::Truncate {
                        from: words.number()?,
                    },
                    "purge" => Operation::Purge {
                        upto: words.number()?,
                        term: words.number()?,
                    },
                    "vote" => Operation::Vote {
                        term: words.number()?,
                    },
                    other => bail!("unknown operation `{other}`"),
                };
                group.operations.push(operation);
            }
            "done" => {
                let number: usize = words.number()?;
                group.kept = group.kept.max(number + 1);
                group.acknowledgements += 1;
            }
            "snapshot+" => group.snapshots.push(words.number()?),
            "snapshot!" => {
                group.saved = group.snapshots.len();
                group.acknowledgements += 1;
            }
            other => bail!("unknown line `{other}`"),
        }
        Ok(())
    }

    /// Operations and snapshots that were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.groups
            .values()
            .map(|group| group.acknowledgements)
            .sum()
    }

    /// Operations and snapshots that were begun, purges aside: they are never acknowledged.
    pub(crate) fn begun(&self) -> u64 {
        let purges = |operation: &&Operation| !matches!(operation, Operation::Purge { .. });
        let count = |group: &GroupHistory| {
            group.operations.iter().filter(purges).count() + group.snapshots.len()
        };
        self.groups.values().map(|group| count(group) as u64).sum()
    }
}

/// What one group holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    vote: Option<u64>,
    purged: Option<(u64, u64)>,
    /// Term by index.
    entries: BTreeMap<u64, u64>,
    snapshot: Option<u64>,
}

impl Group {
    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Append { first, count, term } => {
                self.entries
                    .extend((first..first + count).map(|index| (index, term)));
            }
            Operation::Truncate { from } => {
                self.entries.split_off(&from);
            }
            Operation::Purge { upto, term } => {
                self.entries = self.entries.split_off(&(upto + 1));
                self.purged = Some((upto, term));
            }
            Operation::Vote { term } => self.vote = Some(term),
        }
    }

    /// The first difference to what should be there, in words.
    fn difference(&self, found: &Self) -> String {
        if self.vote != found.vote {
            return format!("vote {:?}, found {:?}", self.vote, found.vote);
        }
        if self.purged != found.purged {
            return format!("purged {:?}, found {:?}", self.purged, found.purged);
        }
        let end = |group: &Self| {
            group
                .entries
                .last_key_value()
                .map(|(index, term)| (*index, *term))
        };
        let (expected, got) = (end(self), end(found));
        if expected != got {
            return format!("log up to {expected:?}, found {got:?}");
        }
        format!(
            "{} entries, found {}",
            self.entries.len(),
            found.entries.len()
        )
    }
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    groups: BTreeMap<String, Group>,
}

impl Left {
    /// Reads the lines of an inspection.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut left = Self::default();
        for line in text.lines() {
            let mut words = Words(line.split(' '));
            let group = left.groups.entry(words.word()?.to_owned()).or_default();
            match words.word()? {
                "vote" => group.vote = Some(words.number()?),
                "purged" => group.purged = Some((words.number()?, words.number()?)),
                "entry" => {
                    group.entries.insert(words.number()?, words.number()?);
                }
                "snapshot" => group.snapshot = Some(words.number()?),
                other => bail!("unknown line `{other}`"),
            }
        }
        Ok(left)
    }
}

/// Whether `after` is a state that the history allows, starting from `before`.
pub(crate) fn check(before: &Left, history: &History, after: &Left) -> Result<(), String> {
    let nothing = GroupHistory::default();
    let mut names: Vec<&String> = before.groups.keys().chain(history.groups.keys()).collect();
    names.extend(after.groups.keys());
    names.sort_unstable();
    names.dedup();
    for name in names {
        let start = before.groups.get(name).cloned().unwrap_or_default();
        let said = history.groups.get(name).unwrap_or(&nothing);
        let found = after.groups.get(name).cloned().unwrap_or_default();
        check_log(start.clone(), said, &found).map_err(|what| format!("group {name}: {what}"))?;
        check_snapshot(&start, said, &found).map_err(|what| format!("group {name}: {what}"))?;
    }
    Ok(())
}

fn check_log(start: Group, said: &GroupHistory, found: &Group) -> Result<(), String> {
    let mut state = start;
    state.snapshot = found.snapshot;
    let mut acknowledged = state.clone();
    let mut matching = (state == *found).then_some(0);
    for (number, operation) in (1..).zip(&said.operations) {
        state.apply(operation);
        if number == said.kept {
            acknowledged = state.clone();
        }
        if state == *found {
            matching = Some(number);
        }
    }
    match matching {
        Some(number) if number >= said.kept => Ok(()),
        Some(number) => Err(format!(
            "it is as after {number} operations, but {} were acknowledged: {}",
            said.kept,
            acknowledged.difference(found)
        )),
        None => Err(format!(
            "it never was like this; after the {} acknowledged operations it had {}",
            said.kept,
            acknowledged.difference(found)
        )),
    }
}

fn check_snapshot(start: &Group, said: &GroupHistory, found: &Group) -> Result<(), String> {
    let (must, may) = said.snapshots.split_at(said.saved);
    let newest = must.last().copied().or(start.snapshot);
    if found.snapshot == newest || found.snapshot.is_some_and(|number| may.contains(&number)) {
        return Ok(());
    }
    Err(format!(
        "expected snapshot {newest:?} or one of {may:?}, found {:?}",
        found.snapshot
    ))
}

/// The words of a line, one after the other.
struct Words<'a>(std::str::Split<'a, char>);

impl<'a> Words<'a> {
    fn word(&mut self) -> anyhow::Result<&'a str> {
        self.0.next().context("a line ends too early")
    }

    fn number<T: FromStr>(&mut self) -> anyhow::Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let word = self.word()?;
        word.parse()
            .with_context(|| format!("`{word}` is not a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lines: &[&str]) -> History {
        let mut history = History::default();
        for line in lines {
            history.read(line).expect("a line of the child");
        }
        history
    }

    fn left(text: &str) -> Left {
        Left::parse(text).expect("lines of an inspection")
    }

    const SAID: &[&str] = &[
        "ready",
        "east begin 0 append 0 3 1",
        "east begin 1 vote 2",
        "east done 0",
        "east done 1",
        "east begin 2 truncate 2",
        "east begin 3 append 2 1 3",
        "east snapshot+ 7",
        "east snapshot! 7",
        "east snapshot+ 8",
    ];

    #[test]
    fn every_state_from_the_acknowledged_one_on_is_allowed() {
        let before = Left::default();
        for text in [
            "east vote 2\neast entry 0 1\neast entry 1 1\neast entry 2 1\neast snapshot 7",
            "east vote 2\neast entry 0 1\neast entry 1 1\neast snapshot 7",
            "east vote 2\neast entry 0 1\neast entry 1 1\neast entry 2 3\neast snapshot 8",
        ] {
            assert_eq!(
                check(&before, &history(SAID), &left(text)),
                Ok(()),
                "{text}"
            );
        }
    }

    #[test]
    fn losses_and_mixtures_are_found() {
        let before = Left::default();
        for text in [
            "",
            "east entry 0 1\neast entry 1 1\neast entry 2 1\neast snapshot 7",
            "east vote 2\neast entry 0 1\neast snapshot 7",
            "east vote 2\neast entry 0 1\neast entry 1 1\neast entry 2 1",
            "east vote 2\neast entry 0 1\neast entry 2 3\neast snapshot 7",
            "east vote 2\neast entry 0 1\neast entry 1 1\neast entry 2 1\neast snapshot 9",
        ] {
            assert!(
                check(&before, &history(SAID), &left(text)).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn what_was_there_before_the_run_counts() {
        let before = left("west vote 4\nwest purged 9 3\nwest entry 10 3");
        let said = history(&["west begin 0 purge 10 3"]);
        assert_eq!(check(&before, &said, &before), Ok(()));
        assert_eq!(
            check(&before, &said, &left("west vote 4\nwest purged 10 3")),
            Ok(())
        );
        assert!(check(&before, &said, &left("west purged 10 3")).is_err());
    }
}
