//! Linearizability of a register without looking at versions, after Wing and Gong with Lowe's memory of
//! configurations: a second opinion that a server cannot talk out of its mind.
//!
//! The search is exponential in how many operations are open at once, so it is given keys of some
//! hundred operations by a few clients. Where it does not end within its steps it says so: undecided
//! is not passed.

use std::collections::HashSet;

use super::versioned::Access;

/// What the search came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none. The operation at which every attempt got stuck that came furthest.
    Violated(String),
    /// The search did not end within so many steps.
    Undecided,
}

/// A call or a return, in a list that operations leave when they are placed.
#[derive(Clone, Copy)]
struct Entry {
    operation: usize,
    is_call: bool,
    previous: usize,
    next: usize,
}

/// Head of the list.
const HEAD: usize = 0;

struct List {
    entries: Vec<Entry>,
    /// Entry of each operation's call and return.
    places: Vec<(usize, usize)>,
}

impl List {
    fn new(accesses: &[Access]) -> Self {
        let mut moments: Vec<(u64, bool, usize)> = Vec::new();
        for (operation, access) in accesses.iter().enumerate() {
            moments.push((access.call, true, operation));
            moments.push((access.ret, false, operation));
        }
        // Of one moment calls come first: such operations overlap.
        moments.sort_by_key(|(at, is_call, _)| (*at, !is_call));
        let mut places = vec![(0, 0); accesses.len()];
        let mut entries = vec![Entry {
            operation: usize::MAX,
            is_call: false,
            previous: HEAD,
            next: 1,
        }];
        let count = moments.len();
        for (number, (_, is_call, operation)) in (1..).zip(moments) {
            let place = &mut places[operation];
            *if is_call { &mut place.0 } else { &mut place.1 } = number;
            entries.push(Entry {
                operation,
                is_call,
                previous: number - 1,
                next: if number == count { HEAD } else { number + 1 },
            });
        }
        entries[HEAD].previous = count;
        if count == 0 {
            entries[HEAD].next = HEAD;
        }
        Self { entries, places }
    }

    fn unlink(&mut self, at: usize) {
        let Entry { previous, next, .. } = self.entries[at];
        self.entries[previous].next = next;
        self.entries[next].previous = previous;
    }

    fn relink(&mut self, at: usize) {
        let Entry { previous, next, .. } = self.entries[at];
        self.entries[previous].next = at;
        self.entries[next].previous = at;
    }

    fn lift(&mut self, operation: usize) {
        let (call, ret) = self.places[operation];
        self.unlink(call);
        self.unlink(ret);
    }

    fn put_back(&mut self, operation: usize) {
        let (call, ret) = self.places[operation];
        self.relink(ret);
        self.relink(call);
    }
}

/// Looks for an order of the accesses of one key. The register is empty at first; `steps_max` bounds the search.
pub(crate) fn check(accesses: &[Access], steps_max: u64) -> Verdict {
    let mut values: Vec<&str> = vec![""];
    let numbers: Vec<usize> = accesses
        .iter()
        .map(|access| {
            let known = values.iter().position(|value| *value == access.value);
            known.unwrap_or_else(|| {
                values.push(&access.value);
                values.len() - 1
            })
        })
        .collect();
    let mut list = List::new(accesses);
    let mut seen: HashSet<(Vec<u64>, usize)> = HashSet::new();
    let mut placed = vec![0_u64; accesses.len().div_ceil(64)];
    let mut stack: Vec<(usize, usize)> = Vec::new();
    let (mut state, mut steps, mut furthest) = (0, 0, (0, 0));
    // Operations of unknown outcome need not be placed.
    let mut missing = accesses.iter().filter(|one| one.ret != u64::MAX).count();
    let mut at = list.entries[HEAD].next;
    while missing > 0 {
        steps += 1;
        if steps > steps_max {
            return Verdict::Undecided;
        }
        let entry = list.entries[at];
        if at != HEAD && entry.is_call {
            let access = &accesses[entry.operation];
            let number = numbers[entry.operation];
            let is_legal = access.write || number == state;
            let next_state = if access.write { number } else { state };
            let mut with = placed.clone();
            with[entry.operation / 64] |= 1 << (entry.operation % 64);
            if is_legal && seen.insert((with.clone(), next_state)) {
                placed = with;
                stack.push((entry.operation, state));
                state = next_state;
                missing -= usize::from(access.ret != u64::MAX);
                list.lift(entry.operation);
                at = list.entries[HEAD].next;
            } else {
                at = entry.next;
            }
            continue;
        }
        // The return of an operation that is not placed, or the end: the last choice was wrong.
        if stack.len() >= furthest.0 {
            furthest = (stack.len(), entry.operation);
        }
        let Some((operation, before)) = stack.pop() else {
            return Verdict::Violated(stuck(accesses, furthest.1));
        };
        placed[operation / 64] &= !(1 << (operation % 64));
        state = before;
        missing += usize::from(accesses[operation].ret != u64::MAX);
        list.put_back(operation);
        at = list.entries[list.places[operation].0].next;
    }
    Verdict::Linearizable
}

fn stuck(accesses: &[Access], operation: usize) -> String {
    match accesses.get(operation) {
        Some(access) => format!("no order explains {access:?}"),
        None => "no order explains all answers".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 200_000;

    fn access(write: bool, value: &str, call: u64, ret: u64) -> Access {
        Access {
            write,
            value: value.to_owned(),
            call,
            ret,
            version: None,
            node: 1,
        }
    }

    #[test]
    fn overlapping_writes_may_take_either_order() {
        let history = [
            access(true, "a", 0, 10),
            access(true, "b", 5, 15),
            access(false, "a", 16, 20),
        ];
        assert_eq!(check(&history, STEPS), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = [
            access(true, "a", 0, 1),
            access(true, "b", 2, 3),
            access(false, "a", 4, 5),
        ];
        assert!(matches!(check(&history, STEPS), Verdict::Violated(why) if why.contains("\"a\"")));
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never() {
        let never = [
            access(true, "a", 0, 1),
            access(true, "b", 2, u64::MAX),
            access(false, "a", 4, 5),
        ];
        assert_eq!(check(&never, STEPS), Verdict::Linearizable);
        let late = [
            access(true, "a", 0, 1),
            access(true, "b", 2, u64::MAX),
            access(false, "a", 4, 5),
            access(false, "b", 6, 7),
        ];
        assert_eq!(check(&late, STEPS), Verdict::Linearizable);
        let back = [
            access(true, "a", 0, 1),
            access(true, "b", 2, u64::MAX),
            access(false, "b", 4, 5),
            access(false, "a", 6, 7),
        ];
        assert!(matches!(check(&back, STEPS), Verdict::Violated(_)));
    }

    #[test]
    fn a_lost_update_is_found_among_many() {
        let mut history = Vec::new();
        for number in 0..60_u64 {
            let value = format!("v{number}");
            history.push(access(true, &value, number * 10, number * 10 + 12));
            history.push(access(false, &value, number * 10 + 13, number * 10 + 14));
        }
        // Reads and the writes after them overlap, so this holds.
        history.retain(|one| one.write || one.call % 20 == 3);
        assert_eq!(check(&history, STEPS), Verdict::Linearizable);
        history.push(access(false, "v7", 900, 901));
        assert!(matches!(check(&history, STEPS), Verdict::Violated(_)));
    }

    #[test]
    fn a_search_that_takes_too_long_is_undecided() {
        let mut history: Vec<Access> = (0..40)
            .map(|number| access(true, &format!("v{number}"), 0, 100))
            .collect();
        history.push(access(false, "nothing", 200, 201));
        assert_eq!(check(&history, 10_000), Verdict::Undecided);
    }
}
