//! What happened, operation by operation: JSON lines in Jepsen's shape (`process`, `type`, `f`, `key`,
//! `value`, `time`, `index`), so that outside checkers can read it; [`edn`] writes the same for those in
//! Clojure.
//!
//! An operation whose outcome is not known (a timeout, a broken connection) is `info`, never `fail`, and
//! its process does nothing more: whoever goes on takes a new name.

pub(crate) mod edn;

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How an operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Begun.
    Invoke,
    /// Acknowledged.
    Ok,
    /// Surely not done.
    Fail,
    /// Outcome unknown, or the nemesis speaking.
    Info,
}

/// One line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) index: u64,
    /// Nanoseconds since the history began, one monotonic clock.
    pub(crate) time: u64,
    pub(crate) process: String,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    pub(crate) f: Cow<'static, str>,
    /// What it is done to, where histories are checked key by key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) key: String,
    pub(crate) value: String,
    /// Version of the key that the answer spoke of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u64>,
    pub(crate) node: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// What an operation is, from its beginning to its end.
#[derive(Clone, Debug)]
pub(crate) struct Action {
    pub(crate) process: String,
    pub(crate) f: &'static str,
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) node: u64,
}

/// Recorder shared by all processes of a run. The lock has many owners because operations of all
/// clients must get one order; it is held for a push only.
#[derive(Clone)]
pub(crate) struct History {
    start: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            operations: Arc::default(),
        }
    }

    /// Appends one line of an operation without key and version.
    pub(crate) fn record(
        &self,
        process: &str,
        kind: Kind,
        f: &'static str,
        value: &str,
        node: u64,
        error: Option<String>,
    ) {
        let action = Action {
            process: process.to_owned(),
            f,
            key: String::new(),
            value: value.to_owned(),
            node,
        };
        self.add(&action, kind, None, error);
    }

    /// Appends the beginning of an operation.
    pub(crate) fn invoke(&self, action: &Action) {
        self.add(action, Kind::Invoke, None, None);
    }

    /// Appends one line.
    pub(crate) fn add(
        &self,
        action: &Action,
        kind: Kind,
        version: Option<u64>,
        error: Option<String>,
    ) {
        let mut operations = self.operations.lock().expect("no holder panics");
        let time = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let index = operations.len() as u64;
        operations.push(Operation {
            index,
            time,
            process: action.process.clone(),
            kind,
            f: Cow::Borrowed(action.f),
            key: action.key.clone(),
            value: action.value.clone(),
            version,
            node: action.node,
            error,
        });
    }

    /// Nanoseconds since it began.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How many lines stand in it.
    pub(crate) fn len(&self) -> usize {
        self.operations.lock().expect("no holder panics").len()
    }

    /// What was appended after the first `from` lines.
    pub(crate) fn since(&self, from: usize) -> Vec<Operation> {
        let operations = self.operations.lock().expect("no holder panics");
        operations.get(from..).unwrap_or_default().to_vec()
    }

    /// A copy of what stands in it.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.lock().expect("no holder panics").clone()
    }

    /// Writes it as JSON lines.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        write(path, &self.operations())
    }
}

/// Writes operations as JSON lines.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(path: &Path, operations: &[Operation]) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for operation in operations {
        serde_json::to_writer(&mut out, operation)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Reads JSON lines.
///
/// # Errors
/// The line that is none.
pub(crate) fn read(path: &Path) -> Result<Vec<Operation>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut operations = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let operation = serde_json::from_str(&line?)
            .with_context(|| format!("{}, line {number}", path.display()))?;
        operations.push(operation);
    }
    Ok(operations)
}

/// One history of several that share a clock, in the order of time and with new indices; lines of one
/// time stay in the order of their files.
pub(crate) fn merge(histories: Vec<Vec<Operation>>) -> Vec<Operation> {
    let mut all: Vec<Operation> = histories.into_iter().flatten().collect();
    all.sort_by_key(|operation| operation.time);
    for (index, operation) in (0..).zip(&mut all) {
        operation.index = index;
    }
    all
}

/// A whole operation: beginning and end of one process's line pair.
#[derive(Clone, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) invoke: &'a Operation,
    /// None: it had no end when the history ended, which is an unknown outcome.
    pub(crate) end: Option<&'a Operation>,
}

impl Span<'_> {
    /// How it ended.
    pub(crate) fn kind(&self) -> Kind {
        self.end.map_or(Kind::Info, |end| end.kind)
    }

    /// When it returned; never for an unknown outcome.
    pub(crate) fn returned(&self) -> u64 {
        match self.end {
            Some(end) if end.kind != Kind::Info => end.time,
            _ => u64::MAX,
        }
    }
}

/// Pairs beginnings with ends, process by process. The nemesis has no pairs.
pub(crate) fn spans(operations: &[Operation]) -> Vec<Span<'_>> {
    let mut open: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    let mut spans: Vec<Span<'_>> = Vec::new();
    for operation in operations {
        if operation.kind == Kind::Invoke {
            open.insert(&operation.process, spans.len());
            spans.push(Span {
                invoke: operation,
                end: None,
            });
        } else if let Some(at) = open.remove(operation.process.as_str()) {
            spans[at].end = Some(operation);
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> History {
        let history = History::new();
        let mut action = Action {
            process: "0".to_owned(),
            f: "write",
            key: "room".to_owned(),
            value: "a".to_owned(),
            node: 1,
        };
        history.invoke(&action);
        history.add(&action, Kind::Ok, Some(3), None);
        action.process = "1".to_owned();
        history.invoke(&action);
        history.add(&action, Kind::Info, None, Some("timeout".to_owned()));
        history
    }

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let file = folder.path().join("history.jsonl");
        let history = recorded();
        history.write(&file)?;
        assert_eq!(read(&file)?, history.operations());
        let text = std::fs::read_to_string(&file)?;
        assert!(text.lines().count() == 4 && text.contains("\"type\":\"invoke\""));
        Ok(())
    }

    #[test]
    fn an_unknown_outcome_never_returns() {
        let operations = recorded().operations();
        let spans = spans(&operations);
        assert_eq!(spans.len(), 2);
        assert_eq!(spans[0].returned(), operations[1].time);
        assert_eq!(spans[1].returned(), u64::MAX);
    }

    #[test]
    fn merging_keeps_the_order_of_time() {
        let operations = recorded().operations();
        let (one, other) = operations.split_at(2);
        let merged = merge(vec![other.to_vec(), one.to_vec()]);
        assert_eq!(merged, operations);
    }
}
