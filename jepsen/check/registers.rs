//! Rooms' and participants' metadata as registers: every key by version, a sample of them by search.

use std::collections::BTreeMap;

use super::Opinion;
use super::versioned::{self, Access, Versions};
use super::wgl::{self, Verdict};
use crate::history::{Kind, Operation, spans};

/// Keys that begin so have versions of their own that nothing but writes makes.
pub(crate) const ROOMS: &str = "room ";
/// What a read shows that found no such key.
pub(crate) const ABSENT: &str = "(absent)";
/// Keys with more operations are left to the versions.
const SEARCHED_MAX: usize = 400;
/// Bounds the search of one key; some tenths of a second.
const STEPS_MAX: u64 = 400_000;

/// The accesses of each key: operations `read` and `write`.
pub(crate) fn accesses(operations: &[Operation]) -> BTreeMap<String, Vec<Access>> {
    let mut keys: BTreeMap<String, Vec<Access>> = BTreeMap::new();
    for span in spans(operations) {
        let write = match &*span.invoke.f {
            "write" => true,
            "read" => false,
            _ => continue,
        };
        let kind = span.kind();
        // What surely was not done, and a read without an answer, say nothing.
        if kind == Kind::Fail || (!write && kind != Kind::Ok) {
            continue;
        }
        let end = span.end.filter(|end| end.kind == Kind::Ok);
        let value = if write {
            span.invoke
        } else {
            end.unwrap_or(span.invoke)
        };
        keys.entry(span.invoke.key.clone())
            .or_default()
            .push(Access {
                write,
                value: value.value.clone(),
                call: span.invoke.time,
                ret: span.returned(),
                version: end.and_then(|end| end.version),
                node: span.invoke.node,
            });
    }
    keys
}

/// Judges all keys by version and as many as `searched` of them by search; the two must agree.
pub(crate) fn judge(operations: &[Operation], searched: usize) -> [Opinion; 2] {
    let keys = accesses(operations);
    let mut by_version = Opinion::new("registers by version");
    let mut by_search = Opinion::new("registers by search");
    let total: usize = keys.values().map(Vec::len).sum();
    by_version.looked_at = format!("{total} operations on {} keys", keys.len());
    let step = keys.len().div_ceil(searched.max(1)).max(1);
    let (mut tried, mut tried_operations) = (0, 0);
    for (number, (key, accesses)) in keys.iter().enumerate() {
        let versions = if key.starts_with(ROOMS) {
            Versions::Dense
        } else {
            Versions::Sparse
        };
        let found = versioned::check(accesses, versions);
        let is_bad = !found.is_empty();
        by_version.extend(found.into_iter().map(|what| format!("{key}: {what}")));
        if accesses.len() > SEARCHED_MAX || (!number.is_multiple_of(step) && !is_bad) {
            continue;
        }
        tried += 1;
        tried_operations += accesses.len();
        match wgl::check(accesses, STEPS_MAX) {
            Verdict::Linearizable => {}
            Verdict::Violated(what) => by_search.violated(format!("{key}: {what}")),
            Verdict::Undecided => by_search
                .undecided
                .push(format!("{key}: the search did not end")),
        }
    }
    by_search.looked_at = format!("{tried_operations} operations on {tried} keys");
    [by_version, by_search]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, History};

    fn history(lines: &[(&str, &'static str, &str, Kind, Option<u64>)]) -> Vec<Operation> {
        let history = History::new();
        for (process, f, value, kind, version) in lines {
            let action = Action {
                process: (*process).to_owned(),
                f,
                key: format!("{ROOMS}a"),
                value: (*value).to_owned(),
                node: 1,
            };
            history.add(&action, *kind, *version, None);
        }
        history.operations()
    }

    #[test]
    fn both_judges_find_a_stale_read() {
        let sound = [
            ("0", "write", "a", Kind::Invoke, None),
            ("0", "write", "a", Kind::Ok, Some(1)),
            ("0", "write", "b", Kind::Invoke, None),
            ("0", "write", "b", Kind::Ok, Some(2)),
            ("1", "read", "", Kind::Invoke, None),
            ("1", "read", "b", Kind::Ok, Some(2)),
        ];
        assert!(judge(&history(&sound), 10).iter().all(|one| one.count == 0));
        let mut stale = sound;
        stale[5] = ("1", "read", "a", Kind::Ok, Some(1));
        for opinion in judge(&history(&stale), 10) {
            assert!(opinion.count > 0, "{}", opinion.judge);
        }
    }

    #[test]
    fn a_key_that_is_gone_is_found_by_both() {
        let gone = [
            ("0", "write", "a", Kind::Invoke, None),
            ("0", "write", "a", Kind::Ok, Some(1)),
            ("1", "read", "", Kind::Invoke, None),
            ("1", "read", ABSENT, Kind::Ok, Some(0)),
        ];
        for opinion in judge(&history(&gone), 10) {
            assert!(opinion.count > 0, "{}", opinion.judge);
        }
    }

    #[test]
    fn an_unknown_write_counts_and_a_failed_one_does_not() {
        let lines = [
            ("0", "write", "a", Kind::Invoke, None),
            ("0", "write", "a", Kind::Ok, Some(1)),
            ("1", "write", "b", Kind::Invoke, None),
            ("1", "write", "b", Kind::Info, None),
            ("2", "read", "", Kind::Invoke, None),
            ("2", "read", "b", Kind::Ok, Some(2)),
        ];
        assert!(judge(&history(&lines), 10).iter().all(|one| one.count == 0));
        let mut failed = lines;
        failed[3] = ("1", "write", "b", Kind::Fail, None);
        for opinion in judge(&history(&failed), 10) {
            assert!(opinion.count > 0, "{}", opinion.judge);
        }
    }
}
