//! Who serves a participant: one node at each epoch, and epochs only grow. Read from the change feeds, so
//! from the committed log as each node told it.

use std::collections::BTreeMap;

use super::Opinion;

/// A participant's home as a feed told it, in the feed's order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Served {
    /// Node whose feed told it.
    pub(crate) teller: u64,
    /// The participant's sid.
    pub(crate) sid: String,
    pub(crate) epoch: u64,
    pub(crate) home: u64,
}

/// Judges all of a run's; each feed's in its order.
pub(crate) fn judge(served: &[Served]) -> Opinion {
    let mut opinion = Opinion::new("ownership");
    let mut homes: BTreeMap<(&str, u64), &Served> = BTreeMap::new();
    let mut newest: BTreeMap<(u64, &str), u64> = BTreeMap::new();
    let mut moves = 0;
    for one in served {
        let key = (one.sid.as_str(), one.epoch);
        let known = homes.entry(key).or_insert(one);
        if known.home != one.home {
            opinion.violated(format!(
                "{} belongs to node {} and to node {} in epoch {} (told by nodes {} and {})",
                one.sid, known.home, one.home, one.epoch, known.teller, one.teller
            ));
        }
        let last = newest.entry((one.teller, &one.sid)).or_insert(one.epoch);
        if one.epoch < *last {
            opinion.violated(format!(
                "{}'s epoch goes from {last} back to {} in node {}'s feed",
                one.sid, one.epoch, one.teller
            ));
        }
        moves += usize::from(one.epoch > *last);
        *last = one.epoch.max(*last);
    }
    opinion.looked_at = format!("{} homes told, {moves} moves", served.len());
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(teller: u64, epoch: u64, home: u64) -> Served {
        Served {
            teller,
            sid: "PA_a".to_owned(),
            epoch,
            home,
        }
    }

    #[test]
    fn a_move_to_a_higher_epoch_is_sound() {
        let told = [
            served(1, 1, 1),
            served(1, 2, 2),
            served(2, 1, 1),
            served(2, 2, 2),
        ];
        assert_eq!(judge(&told).count, 0);
    }

    #[test]
    fn two_owners_of_one_epoch_are_found() {
        let opinion = judge(&[served(1, 1, 1), served(2, 1, 3)]);
        assert!(opinion.violations[0].contains("node 1 and to node 3"));
    }

    #[test]
    fn an_epoch_that_goes_back_is_found() {
        assert_eq!(judge(&[served(1, 2, 2), served(1, 1, 1)]).count, 1);
    }
}
