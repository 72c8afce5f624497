//! What a simulation saw, and what must hold of it at every moment.
//!
//! Nodes, writers, readers and watchers report here as things happen; whatever contradicts what was
//! reported before becomes a violation at once. Registers are rooms that only `SetRoomMetadata` changes:
//! every value is written by one request alone, and the room's version counts the writes. So the
//! history is linearizable if versions follow real time, each version has one value, and each value has
//! one version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_model::State;
use flotilla_model::encoding::state_hash;
use flotilla_raft::{Position, Role, Status};

use crate::trace::Trace;

/// Names of registers begin with this.
pub(crate) const REGISTER: &str = "register-";

/// What the whole simulation shares. One thread runs it all.
#[derive(Clone)]
pub(crate) struct Record {
    seen: Arc<Mutex<Seen>>,
}

/// Figures of a run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Figures {
    pub(crate) writes: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    pub(crate) reads: u64,
    pub(crate) reads_failed: u64,
    pub(crate) changes: u64,
    pub(crate) lags: u64,
    pub(crate) starts: u64,
    pub(crate) leaders: u64,
    /// Leaders who were not the first of their term.
    pub(crate) leaders_of_a_term: u64,
    pub(crate) membership: u64,
    pub(crate) sessions: u64,
    pub(crate) replies: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
}

/// A register as far as the history goes.
#[derive(Default)]
struct Register {
    /// Incarnation of the room; there must be one.
    sid: String,
    /// Value by version.
    values: BTreeMap<u64, String>,
    /// Version by value.
    versions: BTreeMap<String, u64>,
    /// The highest version that somebody was told of.
    floor: u64,
    /// The version before the first write.
    base: Option<u64>,
}

/// What had been seen when an operation began.
#[derive(Clone, Debug)]
pub(crate) struct Floor {
    revision: u64,
    registers: BTreeMap<String, u64>,
}

pub(crate) struct Seen {
    pub(crate) trace: Trace,
    pub(crate) figures: Figures,
    violations: Vec<String>,
    /// Revision, hash of the state and first node, by log index.
    states: BTreeMap<u64, (u64, u64, u64)>,
    registers: BTreeMap<String, Register>,
    /// Values whose writers were told that they will never be applied.
    refused: BTreeMap<String, String>,
    /// Who has led, by term and node: openraft orders leaders by both, so a term may have several.
    leaders: BTreeSet<(u64, u64)>,
    /// Term of the entry, by log index, as far as anybody called it committed.
    committed: BTreeMap<u64, u64>,
    /// The highest revision that anybody was shown.
    revision: u64,
}

impl Record {
    pub(crate) fn new(trace: Trace) -> Self {
        let seen = Seen {
            trace,
            figures: Figures::default(),
            violations: Vec::new(),
            states: BTreeMap::new(),
            registers: BTreeMap::new(),
            refused: BTreeMap::new(),
            leaders: BTreeSet::new(),
            committed: BTreeMap::new(),
            revision: 0,
        };
        Self {
            seen: Arc::new(Mutex::new(seen)),
        }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happened, for the trace.
    pub(crate) fn note(&self, text: std::fmt::Arguments<'_>) {
        self.seen().trace.line(now(), text);
    }

    /// Something that must not be.
    pub(crate) fn violation(&self, text: String) {
        self.seen().violation(text);
    }

    /// What must not be, so far.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.seen().violations.clone()
    }

    /// What has been shown to anybody by now.
    pub(crate) fn floor(&self) -> Floor {
        let seen = self.seen();
        let registers = seen.registers.iter();
        Floor {
            revision: seen.revision,
            registers: registers
                .map(|(name, register)| (name.clone(), register.floor))
                .collect(),
        }
    }

    /// A node has this state after this entry of the log.
    pub(crate) fn state(&self, node: u64, index: u64, state: &State) {
        let hash = state_hash(state);
        let mut seen = self.seen();
        let revision = state.revision.0;
        seen.revision = seen.revision.max(revision);
        match seen.states.get(&index).copied() {
            None => {
                seen.states.insert(index, (revision, hash, node));
            }
            Some((expected, same, other)) if (expected, same) != (revision, hash) => {
                seen.violation(format!(
                    "node {node} has another state at index {index} than node {other}: \
                     revision {revision} hash {hash:016x}, not {expected} {same:016x}"
                ));
            }
            Some(_) => {}
        }
        seen.look_at(state);
    }

    /// A linearizable read, begun when `floor` was seen, gave this state.
    pub(crate) fn read(&self, node: u64, floor: &Floor, state: &State) {
        let mut seen = self.seen();
        seen.figures.reads += 1;
        let revision = state.revision.0;
        if revision < floor.revision {
            seen.violation(format!(
                "a read at node {node} gave revision {revision}, but {} had been seen before it began",
                floor.revision
            ));
        }
        seen.revision = seen.revision.max(revision);
        seen.look_at(state);
        for (name, version) in &floor.registers {
            let found = version_of(state, name);
            if found < *version {
                seen.violation(format!(
                    "a read at node {node} gave version {found} of {name}, but {version} had been \
                     seen before it began"
                ));
            }
        }
        for room in state.rooms.values() {
            if let Some(register) = seen.registers.get_mut(room.name.as_str()) {
                register.floor = register.floor.max(room.version.0);
            }
        }
    }

    /// A write, begun when `floor` was seen, was acknowledged with this version.
    pub(crate) fn written(&self, name: &str, value: &str, floor: &Floor, version: u64) {
        let mut seen = self.seen();
        seen.figures.writes += 1;
        let before = floor.registers.get(name).copied().unwrap_or_default();
        if version <= before {
            seen.violation(format!(
                "the write of {value} to {name} got version {version}, but {before} had been seen \
                 before it began"
            ));
        }
        seen.value(name, version, value);
        let register = seen.registers.entry(name.to_owned()).or_default();
        register.floor = register.floor.max(version);
    }

    /// A register exists, in this incarnation.
    pub(crate) fn created(&self, name: &str, sid: &str) {
        self.seen().incarnation(name, sid);
    }

    /// The writer of a value was told that it is certainly not in the log.
    pub(crate) fn refused(&self, name: &str, value: &str) {
        let mut seen = self.seen();
        seen.figures.refused += 1;
        let known = seen.registers.get(name);
        if known.is_some_and(|register| register.versions.contains_key(value)) {
            seen.violation(format!(
                "{value} was applied to {name}, but its writer was told that it was not"
            ));
        }
        seen.refused.insert(value.to_owned(), name.to_owned());
    }

    /// What a node says of itself: the log is the same everywhere as far as it is committed, and who
    /// leads has everything that was committed in the terms before its own.
    pub(crate) fn status(&self, node: u64, status: &Status) {
        let mut seen = self.seen();
        if let Some(Position { term, index }) = status.committed {
            let other = *seen.committed.entry(index).or_insert(term);
            if other != term {
                seen.violation(format!(
                    "node {node} has an entry of term {term} committed at index {index}, somebody \
                     else one of term {other}"
                ));
            }
        }
        if status.role != Role::Leader || !seen.leaders.insert((status.term, node)) {
            return;
        }
        seen.figures.leaders += 1;
        let term = status.term;
        let others = seen.leaders.range((term, 0)..=(term, u64::MAX)).count();
        if others > 1 {
            seen.figures.leaders_of_a_term += 1;
        }
        seen.trace
            .line(now(), format_args!("node {node} leads in term {term}"));
        let before = seen.committed.iter().rev().find(|(_, of)| **of < term);
        let last = status.last_log.unwrap_or_default();
        if let Some((index, of)) = before.map(|(index, of)| (*index, *of))
            && last < index
        {
            seen.violation(format!(
                "node {node} leads in term {term} with a log up to {last}, but index {index} was \
                 committed in term {of}"
            ));
        }
    }

    /// At the end, when everything is healed and every write was answered: `applied` are the writes to
    /// the register, each acknowledged once at least; `state` is what a node has.
    pub(crate) fn finish(&self, node: u64, name: &str, applied: u64, state: &State) {
        let mut seen = self.seen();
        let version = version_of(state, name);
        let Some(base) = seen.registers.get(name).and_then(|register| register.base) else {
            return;
        };
        if version != base + applied {
            seen.violation(format!(
                "{name} has version {version} on node {node}; with {applied} writes applied once each \
                 it would have {}",
                base + applied
            ));
        }
    }
}

impl Seen {
    pub(crate) fn violation(&mut self, text: String) {
        self.trace.line(now(), format_args!("VIOLATION {text}"));
        self.violations.push(text);
    }

    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.figures.faults.entry(kind).or_default() += 1;
    }

    fn look_at(&mut self, state: &State) {
        let registers = state.rooms.values();
        let registers = registers.filter(|room| room.name.as_str().starts_with(REGISTER));
        for room in registers {
            self.incarnation(room.name.as_str(), room.sid.as_str());
            let version = room.version.0;
            if room.metadata.is_empty() {
                let register = self.registers.entry(room.name.to_string()).or_default();
                register.base = Some(version);
            } else {
                self.value(room.name.as_str(), version, &room.metadata);
            }
        }
    }

    fn incarnation(&mut self, name: &str, sid: &str) {
        let register = self.registers.entry(name.to_owned()).or_default();
        if register.sid.is_empty() {
            sid.clone_into(&mut register.sid);
        } else if register.sid != sid {
            let text = format!("{name} is {sid}, and was {} before", register.sid);
            self.violation(text);
        }
    }

    /// At this version the register had this value.
    fn value(&mut self, name: &str, version: u64, value: &str) {
        if self.refused.contains_key(value) {
            self.violation(format!(
                "{value} is in {name}, but its writer was told that it never would be"
            ));
        }
        let register = self.registers.entry(name.to_owned()).or_default();
        let other = register
            .values
            .insert(version, value.to_owned())
            .filter(|other| other != value);
        let elsewhere = register
            .versions
            .insert(value.to_owned(), version)
            .filter(|elsewhere| *elsewhere != version);
        if let Some(other) = other {
            self.violation(format!(
                "version {version} of {name} is {value} to one and {other} to another"
            ));
        }
        if let Some(elsewhere) = elsewhere {
            self.violation(format!(
                "{value} was written to {name} twice, as versions {elsewhere} and {version}"
            ));
        }
    }
}

fn version_of(state: &State, name: &str) -> u64 {
    let room = state.rooms.values().find(|room| room.name.as_str() == name);
    room.map_or(0, |room| room.version.0)
}

/// Simulated time.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}
