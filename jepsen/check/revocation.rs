//! What was taken away stays away: after the acknowledgement of a removal no node lets the token in, and
//! nothing that its participant sends is forwarded beyond a bound; after that of a permission's end
//! nothing is published.

use std::collections::HashMap;

use super::{Opinion, seconds};
use crate::history::{Kind, Operation, spans};

/// What somebody says so long after the acknowledgement of its removal may still be forwarded, in nanoseconds.
pub(crate) const FORWARDED_MAX: u64 = 2_000_000_000;

/// The last that a removed participant said and anybody heard, whenever that was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LastHeard {
    pub(crate) identity: String,
    /// Nanoseconds of the history's clock.
    pub(crate) said: u64,
}

/// Operations: `revoke` and `forbid` of a key, and `enter` and `publish` that use what the key stands for.
pub(crate) fn judge(operations: &[Operation], heard: &[LastHeard]) -> Opinion {
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
        if last.said > acknowledged + FORWARDED_MAX {
            opinion.violated(format!(
                "what {} said {} after it had been removed was heard",
                last.identity,
                seconds(last.said - acknowledged)
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
        assert_eq!(judge(&history(&lines), &[]).count, 1);
        let mut refused = lines;
        refused[3].1 = Kind::Fail;
        assert_eq!(judge(&history(&refused), &[]).count, 0);
    }

    #[test]
    fn a_race_or_an_unknown_removal_proves_nothing() {
        let race = [
            ("enter", Kind::Invoke),
            ("revoke", Kind::Invoke),
            ("revoke", Kind::Ok),
            ("enter", Kind::Ok),
        ];
        assert_eq!(judge(&history(&race), &[]).count, 0);
        let unknown = [
            ("revoke", Kind::Invoke),
            ("revoke", Kind::Info),
            ("enter", Kind::Invoke),
            ("enter", Kind::Ok),
        ];
        assert_eq!(judge(&history(&unknown), &[]).count, 0);
    }

    #[test]
    fn who_publishes_without_permission_is_found() {
        let lines = [
            ("forbid", Kind::Invoke),
            ("forbid", Kind::Ok),
            ("publish", Kind::Invoke),
            ("publish", Kind::Ok),
        ];
        assert_eq!(judge(&history(&lines), &[]).count, 1);
    }

    #[test]
    fn who_speaks_long_after_the_removal_and_is_heard_is_found() {
        let operations = history(&[("revoke", Kind::Invoke), ("revoke", Kind::Ok)]);
        let heard = |after| LastHeard {
            identity: "mallory".to_owned(),
            said: operations[1].time + after,
        };
        assert_eq!(judge(&operations, &[heard(FORWARDED_MAX)]).count, 0);
        assert_eq!(judge(&operations, &[heard(FORWARDED_MAX + 1)]).count, 1);
    }
}
