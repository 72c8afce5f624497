//! This node's right to serve: it stops by itself before others may take over what it serves.
//!
//! ```text
//! mesh signs ─ contact with the voters ─ Keeper ─ Lease ─ shards ask before they send
//!                                          └─ lapsed: read the log, then hold again
//! ```
//!
//! The lease is renewed by contact with a majority of the voters that live, counted from when the
//! pings were *sent* that they answered, and it is shorter than the silence for which a majority of
//! them may condemn this node: where both majorities meet, the lease has run out before the verdict.
//! It ends by this node's own monotonic clock, so that a process that was stopped finds it over when
//! it wakes up, before it sends anything. A lapsed lease comes back only after a linearizable read:
//! then this node knows what was decided meanwhile.
//!
//! Voters whose processes have ended decide nothing and are not counted: a majority lost by crash
//! leaves media running. Voters that are merely silent are counted: they may be deciding.
//! [`Keeper`] is pure; [`super::fence`] drives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_media::reach::Reach;
use flotilla_model::id::NodeId;

/// Never ends.
const FOREVER: u64 = u64::MAX;

/// Whether this node may serve. Cheap to clone; a look costs one atomic load.
#[derive(Clone, Debug)]
pub struct Lease {
    base: Instant,
    /// Nanoseconds after `base` at which it ends. Written by its [`Keeper`] alone.
    until: Arc<AtomicU64>,
    /// When a majority last heard this node. Written by the same.
    reach: Reach,
}

impl Lease {
    /// A lease that has not begun.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            base: now,
            until: Arc::new(AtomicU64::new(0)),
            reach: Reach::new(now),
        }
    }

    /// A lease that never ends, for engines that nobody can take over from.
    #[must_use]
    pub fn forever(now: Instant) -> Self {
        let lease = Self::new(now);
        lease.set(Until::Forever);
        lease.reach.alone();
        lease
    }

    /// When a majority last heard this node.
    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Whether this node may serve at `now`, which must be the caller's own present.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        #[cfg(feature = "planted-bugs")]
        if is_unfenced() {
            return true;
        }
        self.nanos(now) < self.until.load(Ordering::Acquire)
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.base);
        u64::try_from(since.as_nanos()).unwrap_or(FOREVER - 1)
    }

    fn set(&self, until: Until) {
        let until = match until {
            Until::Never => 0,
            Until::At(at) => self.nanos(at),
            Until::Forever => FOREVER,
        };
        self.until.store(until, Ordering::Release);
    }
}

/// Whether a test's environment asks for the defect that a lapsed lease is not heeded.
#[cfg(feature = "planted-bugs")]
fn is_unfenced() -> bool {
    static UNFENCED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *UNFENCED.get_or_init(|| std::env::var("FLOTILLA_PLANTED").as_deref() == Ok("no-fence"))
}

#[derive(Clone, Copy)]
enum Until {
    Never,
    At(Instant),
    Forever,
}

/// How far this node is in contact with those who could condemn it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contact {
    /// There is nobody but this node.
    Alone,
    /// A majority knew at this time, or later, that it lives.
    Since(Instant),
    /// A majority has never been in contact.
    None,
}

/// Contact of `node` with a majority of the `voters` that are not `gone`; `contacts` says when each
/// was last known to know that this node lives.
#[must_use]
pub fn contact(
    node: NodeId,
    voters: &BTreeSet<NodeId>,
    gone: &BTreeSet<NodeId>,
    contacts: &BTreeMap<NodeId, Instant>,
    now: Instant,
) -> Contact {
    if voters.len() == 1 && voters.contains(&node) {
        return Contact::Alone;
    }
    let mut times: Vec<Option<Instant>> = voters
        .difference(gone)
        .map(|voter| {
            if *voter == node {
                Some(now)
            } else {
                contacts.get(voter).copied()
            }
        })
        .collect();
    if times.is_empty() {
        // Every voter's process has ended: nobody decides anything.
        return Contact::Since(now);
    }
    times.sort_unstable_by(|one, other| other.cmp(one));
    // The majority's oldest contact counts.
    match times.get(times.len() / 2).copied().flatten() {
        Some(since) => Contact::Since(since),
        None => Contact::None,
    }
}

/// What a look at the lease gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// It goes on.
    Held,
    /// It has just ended: this node stops serving.
    Lapsed,
    /// It has ended and there is no contact.
    Waiting,
    /// It has ended, and there is contact again: the log is to be read, then
    /// [`Keeper::regain`] called.
    Read,
}

/// Keeps a lease.
#[derive(Debug)]
pub struct Keeper {
    lease: Lease,
    term: Duration,
    held: bool,
}

impl Keeper {
    /// Keeps a lease that has not begun. `bound` is the silence after which others may condemn this
    /// node; a tenth of it is the margin for clocks that do not run equally fast.
    #[must_use]
    pub fn new(lease: Lease, bound: Duration) -> Self {
        Self {
            lease,
            term: bound - bound / 10,
            held: false,
        }
    }

    /// The lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Renews the lease, or finds it over. To be called every few tens of milliseconds.
    pub fn look(&mut self, now: Instant, contact: Contact) -> Step {
        let until = self.until(now, contact);
        if !self.held {
            return if until.is_some() {
                Step::Read
            } else {
                Step::Waiting
            };
        }
        // The old end first: whoever slept past it does not renew by what it had heard before.
        if !self.lease.holds(now) {
            self.held = false;
            self.lease.set(Until::Never);
            return Step::Lapsed;
        }
        if let Some(until) = until {
            self.lease.set(until);
        }
        Step::Held
    }

    /// The log has been read, beginning while there was contact. Whether the lease holds again.
    pub fn regain(&mut self, now: Instant, contact: Contact) -> bool {
        if let Some(until) = self.until(now, contact) {
            self.lease.set(until);
            self.held = true;
        }
        self.held
    }

    /// Ends the lease now: this node does not work, whatever contact it has. Whether it had held.
    pub fn give_up(&mut self) -> bool {
        self.lease.set(Until::Never);
        std::mem::take(&mut self.held)
    }

    /// When a lease by this contact ends; `None` if that has passed.
    fn until(&self, now: Instant, contact: Contact) -> Option<Until> {
        match contact {
            Contact::Alone => {
                self.lease.reach.alone();
                Some(Until::Forever)
            }
            Contact::Since(since) => {
                self.lease.reach.heard(since);
                Some(since + self.term)
                    .filter(|until| *until > now)
                    .map(Until::At)
            }
            Contact::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(500);

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn held(start: Instant) -> Keeper {
        let mut keeper = Keeper::new(Lease::new(start), BOUND);
        assert_eq!(keeper.look(start, Contact::Since(start)), Step::Read);
        assert!(!keeper.lease().holds(start), "not before the log is read");
        assert!(keeper.regain(start, Contact::Since(start)));
        keeper
    }

    #[test]
    fn a_majority_of_the_living_counts() {
        let start = Instant::now();
        let now = start + ms(1000);
        let at = |id: u64| (NodeId(id), start + ms(id));
        let of = |node, voters: &[u64], gone: &[u64], contacts: &[u64]| {
            let contacts = contacts.iter().map(|id| at(*id)).collect();
            contact(NodeId(node), &nodes(voters), &nodes(gone), &contacts, now)
        };
        let since = |id: u64| Contact::Since(start + ms(id));
        assert_eq!(of(1, &[1], &[], &[]), Contact::Alone);
        // A voter of three needs one other; the later one counts.
        assert_eq!(of(1, &[1, 2, 3], &[], &[2, 3]), since(3));
        assert_eq!(of(1, &[1, 2, 3], &[], &[]), Contact::None);
        // A learner needs two of three, and the older of the two counts.
        assert_eq!(of(9, &[1, 2, 3], &[], &[2, 3]), since(2));
        assert_eq!(of(9, &[1, 2, 3], &[], &[3]), Contact::None);
        // Processes that ended do not count: the last one left goes on.
        assert_eq!(of(1, &[1, 2, 3], &[2, 3], &[2]), Contact::Since(now));
        assert_eq!(of(1, &[1, 2, 3], &[2], &[]), Contact::None);
        assert_eq!(of(1, &[1, 2, 3], &[2], &[3]), since(3));
        assert_eq!(of(9, &[1], &[1], &[]), Contact::Since(now));
    }

    #[test]
    fn it_lasts_as_long_as_contact_lasts() {
        let start = Instant::now();
        let mut keeper = held(start);
        for step in 1..100 {
            let now = start + ms(25) * step;
            assert_eq!(keeper.look(now, Contact::Since(now - ms(90))), Step::Held);
            assert!(keeper.lease().holds(now));
        }
        let last = start + ms(25) * 99;
        let contact = Contact::Since(last - ms(90));
        // Without further contact it ends by itself, nobody has to look.
        assert!(keeper.lease().holds(last + ms(359)));
        assert!(!keeper.lease().holds(last + ms(360)));
        assert_eq!(keeper.look(last + ms(360), contact), Step::Lapsed);
        assert_eq!(keeper.look(last + ms(385), contact), Step::Waiting);
        assert!(!keeper.lease().holds(last));
    }

    #[test]
    fn whoever_slept_reads_the_log_before_it_serves_again() {
        let start = Instant::now();
        let mut keeper = held(start);
        let awake = start + Duration::from_secs(10);
        // Nothing is sent on waking, and even fresh contact renews nothing by itself.
        assert!(!keeper.lease().holds(awake));
        let contact = Contact::Since(awake);
        assert_eq!(keeper.look(awake, contact), Step::Lapsed);
        assert_eq!(keeper.look(awake + ms(1), contact), Step::Read);
        assert!(!keeper.lease().holds(awake + ms(1)));
        assert!(keeper.regain(awake + ms(20), contact));
        assert!(keeper.lease().holds(awake + ms(20)));
        // A read that took longer than the contact lasts gives nothing.
        assert!(keeper.give_up());
        assert!(!keeper.regain(awake + ms(600), contact));
        assert!(!keeper.lease().holds(awake + ms(600)));
    }

    /// The rule that keeps two nodes from serving at once: whoever has contact with a majority until
    /// `t` cannot be condemned before the lease that follows from it has ended.
    #[test]
    fn it_ends_before_a_verdict_can_fall() {
        let start = Instant::now();
        let keeper = held(start);
        // The witness hears the ping when it is sent at the earliest, and counts from there.
        let verdict = start + BOUND;
        assert!(!keeper.lease().holds(verdict));
        assert!(!keeper.lease().holds(verdict - BOUND / 10));
    }

    #[test]
    fn alone_it_never_ends() {
        let start = Instant::now();
        let mut keeper = Keeper::new(Lease::new(start), BOUND);
        assert_eq!(keeper.look(start, Contact::Alone), Step::Read);
        assert!(keeper.regain(start, Contact::Alone));
        let later = start + Duration::from_secs(1_000_000);
        assert!(keeper.lease().holds(later));
        assert_eq!(keeper.look(later, Contact::Alone), Step::Held);
        assert!(Lease::forever(start).holds(later));
        // As soon as there are others, it ends like any.
        assert_eq!(keeper.look(later, Contact::Since(later)), Step::Held);
        assert!(!keeper.lease().holds(later + BOUND));
    }
}
