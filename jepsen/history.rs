//! What happened, operation by operation: JSON lines in Jepsen's shape (`process`, `type`, `f`,
//! `value`, `time`, `index`), so that outside checkers can read it.
//!
//! An operation whose outcome is not known (a timeout, a broken connection) is `info`, never `fail`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// How an operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Operation {
    pub(crate) index: u64,
    /// Nanoseconds since the history began, one monotonic clock.
    pub(crate) time: u64,
    pub(crate) process: String,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    pub(crate) f: &'static str,
    pub(crate) value: String,
    pub(crate) node: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
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

    /// Appends one line.
    pub(crate) fn record(
        &self,
        process: &str,
        kind: Kind,
        f: &'static str,
        value: &str,
        node: u64,
        error: Option<String>,
    ) {
        let mut operations = self.operations.lock().expect("no holder panics");
        let time = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let index = operations.len() as u64;
        let process = process.to_owned();
        let value = value.to_owned();
        operations.push(Operation {
            index,
            time,
            process,
            kind,
            f,
            value,
            node,
            error,
        });
    }

    /// A copy of what stands in it.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.lock().expect("no holder panics").clone()
    }

    /// Writes it as JSON lines.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        for operation in self.operations() {
            serde_json::to_writer(&mut out, &operation)?;
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}
