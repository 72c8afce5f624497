//! Nothing is left over: when everybody has left, what a node holds is what it held before.

use super::Opinion;

/// What a node holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub(crate) struct Holding {
    pub(crate) node: u64,
    /// The process's number: a node that was started anew holds less for another reason.
    pub(crate) process: u32,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    /// Resident bytes.
    pub(crate) memory: u64,
    /// Participants, tracks and relays that the cluster says it serves.
    pub(crate) participants: u64,
    pub(crate) tracks: u64,
    pub(crate) routes: u64,
}

/// Sockets to clients of the server API that are kept open, and databases that open files as they grow.
const DESCRIPTORS_MORE_MAX: u64 = 40;
/// Threads that are started when first needed.
const THREADS_MORE_MAX: u64 = 16;
/// A small process may grow by this much for caches, a log of changes and requests that are remembered.
const MEMORY_MORE_MAX: u64 = 192 << 20;

/// Judges each node: before the load, and after everybody has left.
pub(crate) fn judge(before: &[Holding], after: &[Holding]) -> Opinion {
    let mut opinion = Opinion::new("leaks");
    let mut greatest = Holding::default();
    for now in after {
        for (what, count) in [
            ("participants", now.participants),
            ("tracks", now.tracks),
            ("relays", now.routes),
        ] {
            if count > 0 {
                opinion.violated(format!("node {}: {count} {what} are left", now.node));
            }
        }
        let Some(then) = before.iter().find(|then| then.node == now.node) else {
            continue;
        };
        for (what, then, now_has, more_max) in [
            (
                "descriptors",
                then.descriptors,
                now.descriptors,
                DESCRIPTORS_MORE_MAX,
            ),
            ("threads", then.threads, now.threads, THREADS_MORE_MAX),
            ("bytes of memory", then.memory, now.memory, MEMORY_MORE_MAX),
        ] {
            if now_has > then + more_max {
                opinion.violated(format!(
                    "node {}: {now_has} {what}, {then} before",
                    now.node
                ));
            }
        }
        greatest.descriptors = greatest.descriptors.max(now.descriptors);
        greatest.memory = greatest.memory.max(now.memory);
    }
    opinion.looked_at = format!(
        "{} nodes, at most {} descriptors and {} MiB",
        after.len(),
        greatest.descriptors,
        greatest.memory >> 20
    );
    if after.is_empty() {
        opinion.undecided.push("no node was asked".to_owned());
    }
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_found() {
        let clean = Holding {
            node: 1,
            descriptors: 30,
            threads: 10,
            memory: 50 << 20,
            ..Holding::default()
        };
        assert_eq!(
            judge(std::slice::from_ref(&clean), std::slice::from_ref(&clean)).count,
            0
        );
        let left = [
            Holding {
                participants: 1,
                ..clean.clone()
            },
            Holding {
                routes: 1,
                ..clean.clone()
            },
            Holding {
                descriptors: 30 + DESCRIPTORS_MORE_MAX + 1,
                ..clean.clone()
            },
            Holding {
                memory: 51 << 28,
                ..clean.clone()
            },
        ];
        for one in left {
            assert_eq!(judge(std::slice::from_ref(&clean), &[one]).count, 1);
        }
        assert_eq!(judge(&[clean], &[]).undecided.len(), 1);
    }
}
