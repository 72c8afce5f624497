//! What goes on in a cluster while it is hurt: clients that do one thing after the other through the
//! public API and write into the history what they did and what came of it.
//!
//! A worker asks one node, as a client of that node would, and never takes back what it has written: an operation
//! without an answer stays unknown, and the worker goes on as another process.

pub(crate) mod churn;
pub(crate) mod registers;
pub(crate) mod revoke;
pub(crate) mod stream;
pub(crate) mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::history::{Action, History, Kind};

/// What all workers of a run share.
#[derive(Clone)]
pub(crate) struct Shift {
    pub(crate) history: History,
    stop: Arc<AtomicBool>,
    release: Arc<AtomicBool>,
    /// Workers that still change things; each takes itself off when it has done its last.
    busy: Arc<AtomicU64>,
    processes: Arc<AtomicU64>,
}

impl Shift {
    pub(crate) fn new(history: History) -> Self {
        Self {
            history,
            stop: Arc::default(),
            release: Arc::default(),
            busy: Arc::default(),
            processes: Arc::default(),
        }
    }

    /// Whether to go on.
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Lets every worker finish what it is doing and end.
    pub(crate) fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// One more worker whose end of changes is waited for.
    pub(crate) fn begins(&self) {
        self.busy.fetch_add(1, Ordering::AcqRel);
    }

    /// It changes nothing any more.
    pub(crate) fn is_done(&self) {
        self.busy.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether none of them changes anything any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0
    }

    /// Lets those who are in a room leave it.
    pub(crate) fn release(&self) {
        self.release.store(true, Ordering::Relaxed);
    }

    /// Whether to leave.
    pub(crate) fn is_released(&self) -> bool {
        self.release.load(Ordering::Relaxed)
    }

    /// Waits until it is time to leave.
    pub(crate) async fn released(&self) {
        while !self.is_released() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A process of its own for a worker.
    pub(crate) fn process(&self, node: u64) -> Process {
        let mut process = Process {
            shift: self.clone(),
            name: String::new(),
            node,
        };
        process.rename();
        process
    }

    /// Sleeps, but not beyond the end.
    pub(crate) fn pause(&self, time: Duration) {
        let until = std::time::Instant::now() + time;
        while self.goes_on() {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// Runs a worker that talks to nodes asynchronously, on a thread and a runtime of its own, so that one that
/// has much to do does not hold up the others.
pub(crate) fn on_thread<T, F>(
    name: String,
    work: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<anyhow::Result<T>>>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    std::thread::Builder::new().name(name).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(work()))
    })
}

/// One logical process: does one operation at a time, and none after an unknown one.
pub(crate) struct Process {
    shift: Shift,
    name: String,
    node: u64,
}

impl Process {
    fn rename(&mut self) {
        let number = self.shift.processes.fetch_add(1, Ordering::Relaxed);
        self.name = number.to_string();
    }

    /// Another node from now on.
    pub(crate) fn ask(&mut self, node: u64) {
        self.node = node;
    }

    /// Writes the beginning of an operation.
    pub(crate) fn begin(&self, f: &'static str, key: &str, value: &str) -> Action {
        let action = Action {
            process: self.name.clone(),
            f,
            key: key.to_owned(),
            value: value.to_owned(),
            node: self.node,
        };
        self.shift.history.invoke(&action);
        action
    }

    /// Writes its end.
    pub(crate) fn end(
        &mut self,
        action: &Action,
        kind: Kind,
        version: Option<u64>,
        error: Option<String>,
    ) {
        self.shift.history.add(action, kind, version, error);
        if kind == Kind::Info {
            self.rename();
        }
    }
}
