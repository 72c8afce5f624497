//! The judges: each reads what clients and the admin API saw and says what of it cannot be.
//!
//! A judge is a pure function of observations. Its tests plant each violation into a made-up history,
//! where it must be found, beside a sound one, where nothing must be. [`crate::run`] feeds them.

pub(crate) mod convergence;
pub(crate) mod coverage;
pub(crate) mod data;
pub(crate) mod feed;
pub(crate) mod leak;
pub(crate) mod media;
pub(crate) mod owner;
pub(crate) mod registers;
pub(crate) mod revocation;
pub(crate) mod sets;
pub(crate) mod versioned;
pub(crate) mod wgl;

use serde::Serialize;

/// Of one kind so many violations are told; the rest is counted.
const TOLD_MAX: usize = 20;

/// What one judge says of a run.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Opinion {
    /// Who says it.
    pub(crate) judge: &'static str,
    /// How much was looked at, in words: "12,000 operations on 90 keys".
    pub(crate) looked_at: String,
    /// What must not be, the first of each kind.
    pub(crate) violations: Vec<String>,
    /// How many there are altogether.
    pub(crate) count: usize,
    /// Why this judge could not decide; an undecided run is not a passed one.
    pub(crate) undecided: Vec<String>,
}

impl Opinion {
    /// Of a judge that has seen nothing wrong yet.
    pub(crate) fn new(judge: &'static str) -> Self {
        Self {
            judge,
            ..Self::default()
        }
    }

    /// Adds a violation.
    pub(crate) fn violated(&mut self, what: String) {
        self.count += 1;
        if self.violations.len() < TOLD_MAX {
            self.violations.push(what);
        }
    }

    /// Adds several.
    pub(crate) fn extend(&mut self, violations: impl IntoIterator<Item = String>) {
        for violation in violations {
            self.violated(violation);
        }
    }
}

/// Nanoseconds as seconds with milliseconds, for messages.
pub(crate) fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}
