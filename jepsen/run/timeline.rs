//! What was done to the cluster, when, and how long it took to be well again.

use serde::{Deserialize, Serialize};

use crate::history::{Kind, Operation};
use crate::nemesis::{Class, Role};

/// What became of an injection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It was in force.
    Installed,
    /// This machine or this cluster cannot have it.
    Missing(String),
    /// Nobody knows whether it was.
    Indeterminate(String),
}

/// One fault of a run. Times are nanoseconds of the history's clock.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    pub(crate) role: Role,
    pub(crate) hit: Vec<u64>,
    /// Who led when it began.
    pub(crate) leader: u64,
    pub(crate) told: String,
    pub(crate) outcome: Outcome,
    pub(crate) at: u64,
    pub(crate) healed: u64,
    /// When every node read and wrote again; the part's.
    pub(crate) recovered: u64,
    /// Others were in force meanwhile.
    pub(crate) combined: bool,
    pub(crate) remarks: Vec<String>,
}

impl Fault {
    /// The longest time without an acknowledged write anywhere, between the fault and the recovery: what a
    /// client sees that asks whoever answers.
    pub(crate) fn unavailable_ns(&self, operations: &[Operation]) -> u64 {
        let mut last = self.at;
        let mut longest = 0;
        let acknowledged = operations
            .iter()
            .filter(|operation| operation.kind == Kind::Ok && operation.f == "write")
            .map(|operation| operation.time)
            .filter(|time| (self.at..=self.recovered).contains(time));
        for time in acknowledged {
            longest = longest.max(time - last);
            last = time;
        }
        longest.max(self.recovered.saturating_sub(last))
    }

    /// The same up to the end of the fault alone.
    pub(crate) fn unavailable_during_ns(&self, operations: &[Operation]) -> u64 {
        let during = Self {
            recovered: self.healed,
            ..self.clone()
        };
        during.unavailable_ns(operations)
    }

    /// Operations acknowledged while it was in force.
    pub(crate) fn acknowledged_during(&self, operations: &[Operation]) -> usize {
        operations
            .iter()
            .filter(|operation| operation.kind == Kind::Ok)
            .filter(|operation| (self.at..=self.healed).contains(&operation.time))
            .count()
    }
}

/// n, median, 99th percentile and greatest of some figures.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) n: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of milliseconds, or whatever they are.
    pub(crate) fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (figures.len() as f64 * share).ceil() as usize;
            figures.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self {
            n: figures.len(),
            p50: at(0.5),
            p99: at(0.99),
            max: figures.last().copied().unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, History};

    #[test]
    fn the_longest_time_without_a_write_is_found() {
        let history = History::new();
        let action = Action {
            process: "0".to_owned(),
            f: "write",
            key: String::new(),
            value: String::new(),
            node: 1,
        };
        for _ in 0..3 {
            history.add(&action, Kind::Ok, None, None);
        }
        let mut operations = history.operations();
        for (operation, time) in operations.iter_mut().zip([100, 180, 900]) {
            operation.time = time;
        }
        let fault = Fault {
            class: Class::Kill,
            role: Role::Leader,
            hit: vec![1],
            leader: 1,
            told: String::new(),
            outcome: Outcome::Installed,
            at: 150,
            healed: 500,
            recovered: 1000,
            combined: false,
            remarks: Vec::new(),
        };
        assert_eq!(fault.unavailable_ns(&operations), 720);
        assert_eq!(fault.unavailable_during_ns(&operations), 320);
        assert_eq!(fault.acknowledged_during(&operations), 1);
        assert_eq!(fault.unavailable_ns(&[]), 850);
    }

    #[test]
    fn percentiles_are_figures_that_were_seen() {
        let spread = Spread::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(
            (spread.n, spread.p50, spread.p99, spread.max),
            (100, 50.0, 99.0, 100.0)
        );
        assert_eq!(Spread::of(vec![]), Spread::default());
    }
}
