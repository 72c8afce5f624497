//! Reliable messages: each arrives once and in order at everybody who is there, unless its sender was told
//! that it could not be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Opinion, seconds};

/// What nodes had in memory is gone with their power. So messages are not promised from so long before a loss of power,
/// nanoseconds: what is on its way, and what a client gives again.
const BEFORE: u64 = 5_000_000_000;
/// To so long after the cluster is well again: by then every session has gone on elsewhere or begun anew.
const AFTER: u64 = 5_000_000_000;

/// What one receiver got of one sender's session, in the order of arrival.
#[derive(Clone, Default, Debug)]
pub(crate) struct Received {
    /// Who sent to whom.
    pub(crate) stream: String,
    pub(crate) numbers: Vec<u64>,
    /// The numbers that the sender handed over while the receiver was surely there: from, to. None: nothing
    /// is promised of losses, since one of them joined anew.
    pub(crate) promised: Option<(u64, u64)>,
    /// When each message was handed over, by number from 1; nanoseconds of the history's clock.
    pub(crate) sent: Arc<[u64]>,
}

impl Received {
    /// When a message was handed over.
    fn sent(&self, number: u64) -> u64 {
        let at = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
        at.and_then(|at| self.sent.get(at)).copied().unwrap_or(0)
    }
}

/// What was found of them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) received: usize,
    pub(crate) lost: usize,
    pub(crate) duplicates: usize,
    pub(crate) reordered: usize,
}

/// Counts of one stream; `lost` are those of it.
fn count(received: &Received, lost: &[u64]) -> Counts {
    let mut counts = Counts {
        received: received.numbers.len(),
        lost: lost.len(),
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
    counts
}

/// Whether something that was promised did not come.
pub(crate) fn has_losses(received: &Received) -> bool {
    !missing(received).is_empty()
}

/// The numbers that were promised and did not come.
fn missing(received: &Received) -> Vec<u64> {
    let seen: BTreeSet<u64> = received.numbers.iter().copied().collect();
    let promised = received.promised.into_iter();
    let promised = promised.flat_map(|(from, to)| from..=to);
    promised.filter(|number| !seen.contains(number)).collect()
}

/// Judges all streams. What was sent about a loss of power (from when, until the cluster was well again) may be lost, and is
/// only counted. Whatever had happened, messages come again afterwards: `unread` says of which streams none did.
pub(crate) fn judge(all: &[Received], power: &[(u64, u64)], unread: &[String]) -> Opinion {
    let is_excused = |at: u64| {
        let within =
            |(from, to): &(u64, u64)| (from.saturating_sub(BEFORE)..to + AFTER).contains(&at);
        power.iter().any(within)
    };
    let mut opinion = Opinion::new("reliable data");
    let mut total = Counts::default();
    let mut worst = (0, String::new());
    for told in unread {
        opinion.violated(format!("a stream is silent: {told}"));
    }
    for received in all {
        let mut lost = missing(received);
        let counts = count(received, &lost);
        if counts.lost > worst.0 {
            let first = lost.first().copied().unwrap_or(0);
            let of = format!(
                ", most of {} from {first} on, sent at {}",
                received.stream,
                seconds(received.sent(first))
            );
            worst = (counts.lost, of);
        }
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
        lost.retain(|number| !is_excused(received.sent(*number)));
        if let Some((from, to)) = received.promised
            && let Some(first) = lost.first()
        {
            let numbers: Vec<String> = lost.iter().take(10).map(u64::to_string).collect();
            opinion.violated(format!(
                "{}: {} of the messages {from} to {to} never came, the first of them {}, sent at {}",
                received.stream,
                lost.len(),
                numbers.join(", "),
                seconds(received.sent(*first))
            ));
        }
    }
    opinion.looked_at = format!(
        "{} messages on {} streams, {} lost{}",
        total.received,
        all.len(),
        total.lost,
        worst.1
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
            sent: (0..5).map(|second| second * 1_000_000_000).collect(),
        }
    }

    #[test]
    fn once_and_in_order_is_sound() {
        assert_eq!(judge(&[received(&[1, 2, 3, 4, 5])], &[], &[]).count, 0);
    }

    #[test]
    fn a_stream_that_stays_silent_is_found() {
        let told = "10 of 20 messages".to_owned();
        assert_eq!(judge(&[received(&[1, 2, 3, 4])], &[], &[told]).count, 1);
    }

    fn counted(received: &Received) -> Counts {
        count(received, &missing(received))
    }

    #[test]
    fn duplicates_reordering_and_losses_are_found() {
        let duplicate = counted(&received(&[1, 2, 2, 3, 4]));
        assert_eq!(
            (duplicate.duplicates, duplicate.reordered, duplicate.lost),
            (1, 0, 0)
        );
        let reordered = counted(&received(&[1, 3, 2, 4]));
        assert_eq!(
            (reordered.duplicates, reordered.reordered, reordered.lost),
            (0, 1, 0)
        );
        let lost = counted(&received(&[1, 2, 4]));
        assert_eq!((lost.duplicates, lost.reordered, lost.lost), (0, 0, 1));
        for numbers in [&[1, 2, 2, 3, 4][..], &[1, 3, 2, 4], &[1, 2, 4]] {
            assert_eq!(judge(&[received(numbers)], &[], &[]).count, 1);
        }
    }

    #[test]
    fn what_is_lost_with_the_power_is_counted_and_nothing_else() {
        let second = 1_000_000_000;
        let after = |at: u64| {
            let mut stream = received(&[1, 2, 4]);
            stream.sent = stream.sent.iter().map(|sent| sent + at).collect();
            judge(&[stream], &[(20 * second, 30 * second)], &[])
        };
        // The third message is sent two seconds later than the first.
        for (at, violations) in [(12, 1), (13, 0), (32, 0), (33, 1)] {
            let opinion = after(at * second);
            assert_eq!(opinion.count, violations, "from {at} s on");
            assert!(opinion.looked_at.contains("1 lost"));
        }
    }
}
