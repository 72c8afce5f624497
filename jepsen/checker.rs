//! What must hold of a history and the final state: nothing acknowledged is lost, nothing appears
//! that nobody asked for, operations go on within a bound after the fault.

use std::collections::BTreeSet;

use crate::history::{Kind, Operation};

/// Values of acknowledged operations `f` that the final state lacks.
pub(crate) fn lost(history: &[Operation], f: &str, present: &BTreeSet<String>) -> Vec<String> {
    history
        .iter()
        .filter(|operation| operation.f == f && operation.kind == Kind::Ok)
        .filter(|operation| !present.contains(&operation.value))
        .map(|operation| format!("acknowledged {f} of {} is lost", operation.value))
        .collect()
}

/// How many operations `f` were acknowledged.
pub(crate) fn acknowledged(history: &[Operation], f: &str) -> usize {
    history
        .iter()
        .filter(|operation| operation.f == f && operation.kind == Kind::Ok)
        .count()
}

/// Values in the final state that no operation `f` ever asked for.
pub(crate) fn phantoms(history: &[Operation], f: &str, present: &BTreeSet<String>) -> Vec<String> {
    let asked: BTreeSet<&str> = history
        .iter()
        .filter(|operation| operation.f == f && operation.kind == Kind::Invoke)
        .map(|operation| operation.value.as_str())
        .collect();
    present
        .iter()
        .filter(|value| !asked.contains(value.as_str()))
        .map(|value| format!("{value} is there, but nobody asked for it with {f}"))
        .collect()
}

/// Nanoseconds from `fault` to the first acknowledgement of an `f` that was begun after it.
pub(crate) fn recovery_ns(history: &[Operation], f: &str, fault: u64) -> Option<u64> {
    let begun: BTreeSet<(&str, &str)> = history
        .iter()
        .filter(|operation| operation.f == f && operation.kind == Kind::Invoke)
        .filter(|operation| operation.time >= fault)
        .map(|operation| (operation.process.as_str(), operation.value.as_str()))
        .collect();
    history
        .iter()
        .filter(|operation| operation.f == f && operation.kind == Kind::Ok)
        .find(|operation| begun.contains(&(operation.process.as_str(), operation.value.as_str())))
        .map(|operation| operation.time - fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(time: u64, kind: Kind, value: &str) -> Operation {
        Operation {
            index: time,
            time,
            process: "p".to_owned(),
            kind,
            f: "join".into(),
            key: String::new(),
            value: value.to_owned(),
            version: None,
            node: 1,
            error: None,
        }
    }

    #[test]
    fn an_acknowledged_value_that_is_gone_is_named() {
        let history = [operation(0, Kind::Invoke, "a"), operation(1, Kind::Ok, "a")];
        assert_eq!(lost(&history, "join", &BTreeSet::new()).len(), 1);
        assert!(lost(&history, "join", &BTreeSet::from(["a".to_owned()])).is_empty());
    }

    #[test]
    fn an_unknown_outcome_is_neither_lost_nor_a_phantom() {
        let history = [
            operation(0, Kind::Invoke, "a"),
            operation(1, Kind::Info, "a"),
        ];
        assert!(lost(&history, "join", &BTreeSet::new()).is_empty());
        assert!(phantoms(&history, "join", &BTreeSet::from(["a".to_owned()])).is_empty());
        assert_eq!(
            phantoms(&history, "join", &BTreeSet::from(["b".to_owned()])).len(),
            1
        );
    }

    #[test]
    fn recovery_counts_only_what_began_after_the_fault() {
        let history = [
            operation(0, Kind::Invoke, "early"),
            operation(10, Kind::Ok, "early"),
            operation(12, Kind::Invoke, "late"),
            operation(20, Kind::Ok, "late"),
        ];
        assert_eq!(recovery_ns(&history, "join", 5), Some(15));
        assert_eq!(recovery_ns(&history, "join", 15), None);
    }
}
