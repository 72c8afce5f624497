//! What may be wrong with a directed link, and how faults that overlap add up.

use std::collections::BTreeMap;

use super::End;

/// What happens to packets of one direction of a link.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(crate) struct Impairment {
    /// Nothing arrives.
    pub(crate) cut: bool,
    /// Nanoseconds that each packet takes longer.
    pub(crate) delay_ns: u64,
    /// Spread of that around its mean, in nanoseconds; about half of it is a standard deviation.
    pub(crate) jitter_ns: u64,
    /// Share of packets that are lost, 0 to 1.
    pub(crate) loss: f64,
    /// Share that arrives twice.
    pub(crate) duplicate: f64,
    /// Share in which one bit is flipped.
    pub(crate) corrupt: f64,
    /// Share that overtakes all that wait.
    pub(crate) reorder: f64,
    /// Bits per second; 0: not limited.
    pub(crate) rate_bps: u64,
    /// Bytes that may wait for the rate; what comes on top is dropped.
    pub(crate) queue_bytes: u64,
}

/// Where a rate's queue ends if the fault does not say: a home router's, so that delay grows first.
const QUEUE_BYTES: u64 = 64 * 1024;

impl Impairment {
    /// Nothing passes.
    pub(crate) const CUT: Self = Self {
        cut: true,
        delay_ns: 0,
        jitter_ns: 0,
        loss: 0.0,
        duplicate: 0.0,
        corrupt: 0.0,
        reorder: 0.0,
        rate_bps: 0,
        queue_bytes: 0,
    };

    /// Of two faults at one time: delays add up, of probabilities and rates the worse one counts.
    fn and(self, other: Self) -> Self {
        let rate_bps = match (self.rate_bps, other.rate_bps) {
            (0, rate) | (rate, 0) => rate,
            (one, other) => one.min(other),
        };
        Self {
            cut: self.cut || other.cut,
            delay_ns: self.delay_ns + other.delay_ns,
            jitter_ns: self.jitter_ns + other.jitter_ns,
            loss: self.loss.max(other.loss),
            duplicate: self.duplicate.max(other.duplicate),
            corrupt: self.corrupt.max(other.corrupt),
            reorder: self.reorder.max(other.reorder),
            rate_bps,
            queue_bytes: match self.queue_bytes.max(other.queue_bytes) {
                0 if rate_bps > 0 => QUEUE_BYTES,
                bytes => bytes,
            },
        }
    }
}

/// Directed pairs: from, to.
pub(crate) type Pairs = Vec<(End, End)>;

/// Both directions between each of `some` and each of `others`.
pub(crate) fn between(some: &[End], others: &[End]) -> Pairs {
    let pairs = some
        .iter()
        .flat_map(|one| others.iter().map(move |other| (*one, *other)));
    pairs
        .filter(|(one, other)| one != other)
        .flat_map(|(one, other)| [(one, other), (other, one)])
        .collect()
}

/// The faults in force, each with the pairs it concerns.
#[derive(Clone, Default, Debug)]
pub(crate) struct Effects {
    next: u64,
    effects: BTreeMap<u64, (Pairs, Impairment)>,
}

impl Effects {
    /// Adds one; the number takes it away again.
    pub(crate) fn add(&mut self, pairs: Pairs, impairment: Impairment) -> u64 {
        self.next += 1;
        self.effects.insert(self.next, (pairs, impairment));
        self.next
    }

    /// Takes one away.
    pub(crate) fn remove(&mut self, number: u64) {
        self.effects.remove(&number);
    }

    /// Whether none is in force.
    pub(crate) fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// What all of them together do to each pair.
    pub(crate) fn links(&self) -> BTreeMap<(End, End), Impairment> {
        let mut links: BTreeMap<(End, End), Impairment> = BTreeMap::new();
        for (pairs, impairment) in self.effects.values() {
            for pair in pairs {
                let link = links.entry(*pair).or_default();
                *link = link.and(*impairment);
            }
        }
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_faults_add_up_and_go_one_by_one() {
        let (a, b, c) = (End(1), End(2), End(3));
        let mut effects = Effects::default();
        let delay = Impairment {
            delay_ns: 50,
            loss: 0.1,
            ..Impairment::default()
        };
        let cut = effects.add(between(&[a], &[b, c]), Impairment::CUT);
        let slow = effects.add(vec![(a, b)], delay);
        effects.add(vec![(a, b)], delay);
        let links = effects.links();
        assert_eq!(links.len(), 4);
        assert!(links[&(a, b)].cut && links[&(a, b)].delay_ns == 100);
        assert!(links[&(c, a)].cut && !links.contains_key(&(b, c)));
        effects.remove(cut);
        effects.remove(slow);
        let links = effects.links();
        assert_eq!(links[&(a, b)], delay);
        assert_eq!(links.len(), 1);
    }

    #[test]
    fn a_rate_has_a_queue() {
        let rate = Impairment {
            rate_bps: 1000,
            ..Impairment::default()
        };
        let faster = Impairment {
            rate_bps: 2000,
            ..Impairment::default()
        };
        let both = rate.and(faster);
        assert_eq!((both.rate_bps, both.queue_bytes), (1000, QUEUE_BYTES));
        assert_eq!(
            Impairment::default().and(Impairment::default()),
            Impairment::default()
        );
    }
}
