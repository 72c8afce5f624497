//! Reliable messages: each arrives once and in order at everybody who is there, unless its sender was told
//! that it could not be sent.

use std::collections::{BTreeMap, BTreeSet};

use super::Opinion;

/// What one receiver got of one sender's session, in the order of arrival.
#[derive(Clone, Default, Debug)]
pub(crate) struct Received {
    /// Who sent to whom.
    pub(crate) stream: String,
    pub(crate) numbers: Vec<u64>,
    /// The numbers that the sender handed over while the receiver was surely there: from, to. None: nothing
    /// is promised of losses, since one of them joined anew.
    pub(crate) promised: Option<(u64, u64)>,
}

/// What was found of them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) received: usize,
    pub(crate) lost: usize,
    pub(crate) duplicates: usize,
    pub(crate) reordered: usize,
}

/// Counts of one stream.
pub(crate) fn count(received: &Received) -> Counts {
    let mut counts = Counts {
        received: received.numbers.len(),
        ..Counts::default()
    };
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    let mut highest = None;
    for number in &received.numbers {
        let times = seen.entry(*number).or_insert(0);
        *times += 1;
        if *times > 1 {
            counts.duplicates += 1;
        } else if highest.is_some_and(|highest| *number < highest) {
            counts.reordered += 1;
        }
        highest = highest.max(Some(*number));
    }
    counts.lost = missing(received).count();
    counts
}

/// The numbers that were promised and did not come.
fn missing(received: &Received) -> impl Iterator<Item = u64> {
    let seen: BTreeSet<u64> = received.numbers.iter().copied().collect();
    let promised = received.promised.into_iter();
    let promised = promised.flat_map(|(from, to)| from..=to);
    promised.filter(move |number| !seen.contains(number))
}

/// Judges all streams; where losses are allowed, they are only counted.
pub(crate) fn judge(all: &[Received], losses_allowed: bool) -> Opinion {
    let mut opinion = Opinion::new("reliable data");
    let mut total = Counts::default();
    for received in all {
        let counts = count(received);
        total.received += counts.received;
        total.lost += counts.lost;
        if counts.duplicates > 0 {
            opinion.violated(format!(
                "{}: {} messages came twice",
                received.stream, counts.duplicates
            ));
        }
        if counts.reordered > 0 {
            opinion.violated(format!(
                "{}: {} messages came too late",
                received.stream, counts.reordered
            ));
        }
        if let Some((from, to)) = received.promised
            && counts.lost > 0
            && !losses_allowed
        {
            let first: Vec<String> = missing(received).take(10).map(|n| n.to_string()).collect();
            opinion.violated(format!(
                "{}: {} of the messages {from} to {to} never came, the first of them {}",
                received.stream,
                counts.lost,
                first.join(", ")
            ));
        }
    }
    opinion.looked_at = format!(
        "{} messages on {} streams, {} lost",
        total.received,
        all.len(),
        total.lost
    );
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(numbers: &[u64]) -> Received {
        Received {
            stream: "a to b".to_owned(),
            numbers: numbers.to_vec(),
            promised: Some((1, 4)),
        }
    }

    #[test]
    fn once_and_in_order_is_sound() {
        assert_eq!(judge(&[received(&[1, 2, 3, 4, 5])], false).count, 0);
    }

    #[test]
    fn duplicates_reordering_and_losses_are_found() {
        let duplicate = count(&received(&[1, 2, 2, 3, 4]));
        assert_eq!(
            (duplicate.duplicates, duplicate.reordered, duplicate.lost),
            (1, 0, 0)
        );
        let reordered = count(&received(&[1, 3, 2, 4]));
        assert_eq!(
            (reordered.duplicates, reordered.reordered, reordered.lost),
            (0, 1, 0)
        );
        let lost = count(&received(&[1, 2, 4]));
        assert_eq!((lost.duplicates, lost.reordered, lost.lost), (0, 0, 1));
        for numbers in [&[1, 2, 2, 3, 4][..], &[1, 3, 2, 4], &[1, 2, 4]] {
            assert_eq!(judge(&[received(numbers)], false).count, 1);
        }
        assert_eq!(judge(&[received(&[1, 2, 4])], true).count, 0);
    }
}
