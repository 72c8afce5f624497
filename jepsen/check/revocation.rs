//! What was taken away stays away: after the acknowledgement of a removal no node lets the token in, and
//! nothing that its participant sends is forwarded beyond a bound; after that of a permission's end
//! nothing is published.
//!
//! A node that is cut off from the majority keeps its calls and hears of no removal before it is back, so that the bound
//! does not run meanwhile.

use std::collections::HashMap;

use super::{Opinion, seconds};
use crate::history::{Kind, Operation, spans};

/// What somebody says so long after the acknowledgement of its removal may still be forwarded, in nanoseconds; time in
/// which a node is cut off from the majority does not count.
pub(crate) const FORWARDED_MAX: u64 = 2_000_000_000;

/// The last that a removed participant said and anybody heard, whenever that was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LastHeard {
    pub(crate) identity: String,
    /// Nanoseconds of the history's clock.
    pub(crate) said: u64,
}

/// How long between two times a node was cut off. Each cut: from when to when; they may overlap.
fn cut_between(cuts: &[(u64, u64)], from: u64, to: u64) -> u64 {
    let mut sorted = cuts.to_vec();
    sorted.sort_unstable();
    let (mut total, mut counted) = (0, from);
    for (began, over) in sorted {
        let (began, over) = (began.max(counted), over.min(to));
        if began < over {
            total += over - began;
            counted = over;
        }
    }
    total
}

/// Operations: `revoke` and `forbid` of a key, and `enter` and `publish` that use what the key stands for.
/// `cuts`: when nodes were cut off from the majority, until all were well again.
pub(crate) fn judge(operations: &[Operation], heard: &[LastHeard], cuts: &[(u64, u64)]) -> Opinion {
    let mut opinion = Opinion::new("revocation");
    let spans = spans(operations);
    let mut revoked: HashMap<&str, u64> = HashMap::new();
    let mut forbidden: HashMap<&str, u64> = HashMap::new();
    for span in spans.iter().filter(|span| span.kind() == Kind::Ok) {
        let ended = match &*span.invoke.f {
            "revoke" => &mut revoked,
            "forbid" => &mut forbidden,
            _ => continue,
        };
        let at = ended.entry(&span.invoke.key).or_insert(u64::MAX);
        *at = span.returned().min(*at);
    }
    let mut tries = 0;
    for span in &spans {
        let ended = match &*span.invoke.f {
            "enter" => &revoked,
            "publish" => &forbidden,
            _ => continue,
        };
        let Some(acknowledged) = ended.get(span.invoke.key.as_str()) else {
            continue;
        };
        if span.invoke.time <= *acknowledged {
            continue;
        }
        tries += 1;
        if span.kind() == Kind::Ok {
            opinion.violated(format!(
                "{} {} was allowed at node {} at {}, {} after it had been taken away",
                span.invoke.f,
                span.invoke.key,
                span.invoke.node,
                seconds(span.invoke.time),
                seconds(span.invoke.time - acknowledged)
            ));
        }
    }
    for last in heard {
        let Some(acknowledged) = revoked.get(last.identity.as_str()) else {
            continue;
        };
        let after = last.said.saturating_sub(*acknowledged);
        let cut = cut_between(cuts, *acknowledged, last.said);
        if after - cut > FORWARDED_MAX {
            opinion.violated(format!(
                "what {} said {} after it had been removed was heard; nodes were cut off for {} of it",
                last.identity,
                seconds(after),
                seconds(cut)
            ));
        }
    }
    opinion.looked_at = format!(
        "{} removals, {} ended permissions, {tries} later tries, {} last words",
        revoked.len(),
        forbidden.len(),
        heard.len()
    );
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, History};

    fn history(lines: &[(&'static str, Kind)]) -> Vec<Operation> {
        let history = History::new();
        for (f, kind) in lines {
            let action = Action {
                process: (*f).to_owned(),
                f,
                key: "mallory".to_owned(),
                value: String::new(),
                node: 2,
            };
            history.add(&action, *kind, None, None);
        }
        history.operations()
    }

    #[test]
    fn who_comes_in_after_the_removal_is_found() {
        let lines = [
            ("revoke", Kind::Invoke),
            ("revoke", Kind::Ok),
            ("enter", Kind::Invoke),
            ("enter", Kind::Ok),
        ];
        assert_eq!(judge(&history(&lines), &[], &[]).count, 1);
        let mut refused = lines;
        refused[3].1 = Kind::Fail;
        assert_eq!(judge(&history(&refused), &[], &[]).count, 0);
    }

    #[test]
    fn a_race_or_an_unknown_removal_proves_nothing() {
        let race = [
            ("enter", Kind::Invoke),
            ("revoke", Kind::Invoke),
            ("revoke", Kind::Ok),
            ("enter", Kind::Ok),
        ];
        assert_eq!(judge(&history(&race), &[], &[]).count, 0);
        let unknown = [
            ("revoke", Kind::Invoke),
            ("revoke", Kind::Info),
            ("enter", Kind::Invoke),
            ("enter", Kind::Ok),
        ];
        assert_eq!(judge(&history(&unknown), &[], &[]).count, 0);
    }

    #[test]
    fn who_publishes_without_permission_is_found() {
        let lines = [
            ("forbid", Kind::Invoke),
            ("forbid", Kind::Ok),
            ("publish", Kind::Invoke),
            ("publish", Kind::Ok),
        ];
        assert_eq!(judge(&history(&lines), &[], &[]).count, 1);
    }

    #[test]
    fn who_speaks_long_after_the_removal_and_is_heard_is_found() {
        let operations = history(&[("revoke", Kind::Invoke), ("revoke", Kind::Ok)]);
        let heard = |after| LastHeard {
            identity: "mallory".to_owned(),
            said: operations[1].time + after,
        };
        assert_eq!(judge(&operations, &[heard(FORWARDED_MAX)], &[]).count, 0);
        assert_eq!(
            judge(&operations, &[heard(FORWARDED_MAX + 1)], &[]).count,
            1
        );
    }

    #[test]
    fn the_bound_does_not_run_while_a_node_is_cut_off() {
        let operations = history(&[("revoke", Kind::Invoke), ("revoke", Kind::Ok)]);
        let acknowledged = operations[1].time;
        let heard = |after| LastHeard {
            identity: "mallory".to_owned(),
            said: acknowledged + after,
        };
        let second = 1_000_000_000;
        // The second one overlaps the first; together they last for the four seconds that follow.
        let cuts = [
            (acknowledged + second, acknowledged + 4 * second),
            (0, acknowledged + 2 * second),
        ];
        assert_eq!(
            cut_between(&cuts, acknowledged, acknowledged + 10 * second),
            4 * second
        );
        let bound = FORWARDED_MAX + 4 * second;
        assert_eq!(judge(&operations, &[heard(bound)], &cuts).count, 0);
        assert_eq!(judge(&operations, &[heard(bound + 1)], &cuts).count, 1);
        // A cut that was over before, or that began afterwards, excuses nothing.
        let others = [(0, acknowledged), (acknowledged + 9 * second, u64::MAX)];
        let late = heard(FORWARDED_MAX + 1);
        assert_eq!(judge(&operations, &[late], &others).count, 1);
    }
}
