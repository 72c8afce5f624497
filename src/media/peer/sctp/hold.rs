//! Acknowledgements that wait until what they acknowledge is somewhere else as well.
//!
//! A client keeps what was not acknowledged and sends it again, also to the node that goes on with its association
//! (`continuation`). What was acknowledged lives on the server's side alone, and dies with this process if nobody
//! else has it yet. So messages are numbered as they are given out, whoever takes them says when they are safe,
//! and packets with a SACK wait for those that came before them. Owned by `Sctp`.
//!
//! Somebody who is to have a message may be gone, so there is an end to the waiting; but not for a node that
//! may be cut off itself: what it acknowledged then, it could give to nobody. Nor at once when others hear it
//! again: what went out meanwhile is sent again by TCP in its own time.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::wire::{self, SACK};
use crate::reach::Reach;

/// How often it is looked whether others hear this node again.
const LOOK: Duration = Duration::from_millis(20);
/// TCP, whose timer doubles, is silent for as long again as others did not hear it; nodes give a connection up that was
/// silent for longer than this, and make it anew.
const AGAIN_MAX: Duration = Duration::from_secs(3);

/// Packets that wait for the messages before them.
pub(super) struct Hold {
    /// How long one waits at most; zero: none does.
    max: Duration,
    /// Who is not heard since the packet was to go waits longer.
    reach: Option<Reach>,
    /// Number of the last message that was given out.
    given: u64,
    /// Those of them that are not safe yet.
    open: BTreeSet<u64>,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    /// For messages up to this one.
    after: u64,
    since: Instant,
    by: Instant,
    /// Others had not heard this node when it was looked last.
    unheard: bool,
    packet: Bytes,
}

impl Hold {
    pub(super) const fn new(max: Duration, reach: Option<Reach>) -> Self {
        Self {
            max,
            reach,
            given: 0,
            open: BTreeSet::new(),
            waiting: VecDeque::new(),
        }
    }

    /// A message is given out: its number, from 1; 0 if nobody has to say anything of it.
    pub(super) fn give(&mut self) -> u64 {
        if self.max.is_zero() {
            return 0;
        }
        self.given += 1;
        self.open.insert(self.given);
        self.given
    }

    /// A message is safe.
    pub(super) fn take(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// All are.
    pub(super) fn take_all(&mut self) {
        self.open.clear();
    }

    /// A packet is to go out: now, or from [`Hold::poll`] later.
    pub(super) fn pass(&mut self, now: Instant, packet: Bytes) -> Option<Bytes> {
        if self.open.is_empty() || !wire::chunks(&packet).any(|chunk| chunk.kind == SACK) {
            return Some(packet);
        }
        self.waiting.push_back(Waiting {
            after: self.given,
            since: now,
            by: now + self.max,
            unheard: false,
            packet,
        });
        None
    }

    /// A packet that need not wait any more.
    pub(super) fn poll(&mut self) -> Option<Bytes> {
        let after = self.waiting.front()?.after;
        if self.open.first().is_some_and(|open| *open <= after) {
            return None;
        }
        self.waiting.pop_front().map(|waiting| waiting.packet)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.by)
    }

    /// Whether others may lack what the client said last: something waits for longer than it would at a node that
    /// they hear, or is not safe at one that was cut off until now.
    pub(super) fn may_lose(&self, now: Instant, was_cut_off: bool) -> bool {
        let first = self.waiting.front();
        let is_late = |waiting: &Waiting| waiting.unheard || waiting.since + self.max < now;
        first.is_some_and(is_late) || was_cut_off && !self.open.is_empty()
    }

    /// What is not safe by now is waited for no longer, unless this node may be cut off.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let reach = self.reach.as_ref();
        let is_heard = |since| reach.is_none_or(|reach| reach.is_heard_since(since));
        let mut given_up = 0;
        for waiting in &mut self.waiting {
            if waiting.by > now {
                break;
            }
            if !is_heard(waiting.since) {
                waiting.unheard = true;
                waiting.by = now + LOOK;
            } else if std::mem::take(&mut waiting.unheard) {
                let unheard = now.saturating_duration_since(waiting.since);
                waiting.by = now + unheard.min(AGAIN_MAX);
            } else {
                given_up = waiting.after;
            }
        }
        if given_up > 0 {
            self.open = self.open.split_off(&(given_up + 1));
        }
    }

    /// The association is gone, and its packets with it.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(100);

    fn packet(kind: u8, value: u8) -> Bytes {
        let mut packet = wire::Packet::new(7);
        packet.push(kind, &[value; 12]);
        packet.seal().expect("it has a chunk")
    }

    fn polled(hold: &mut Hold) -> Vec<Bytes> {
        std::iter::from_fn(|| hold.poll()).collect()
    }

    #[test]
    fn a_sack_waits_for_all_messages_before_it() {
        let now = crate::test_epoch();
        let mut hold = Hold::new(MAX, None);
        let sacks = [packet(SACK, 1), packet(SACK, 2)];
        assert_eq!(hold.pass(now, sacks[0].clone()), Some(sacks[0].clone()));
        assert_eq!((hold.give(), hold.give()), (1, 2));
        assert_eq!(hold.pass(now, sacks[0].clone()), None);
        let other = packet(wire::DATA, 3);
        assert_eq!(hold.pass(now, other.clone()), Some(other));
        assert_eq!(hold.give(), 3);
        assert_eq!(hold.pass(now, sacks[1].clone()), None);
        hold.take(2);
        assert_eq!(polled(&mut hold), [] as [Bytes; 0], "1 is not safe");
        hold.take(1);
        assert_eq!(polled(&mut hold), sacks[..1]);
        hold.take(3);
        assert_eq!(polled(&mut hold), sacks[1..]);
        assert_eq!(hold.deadline(), None);
    }

    #[test]
    fn nothing_waits_for_ever() {
        let now = crate::test_epoch();
        let mut hold = Hold::new(MAX, None);
        let sack = packet(SACK, 1);
        let one = std::slice::from_ref(&sack);
        assert_eq!((hold.give(), hold.pass(now, sack.clone())), (1, None));
        let later = now + MAX / 2;
        assert_eq!((hold.give(), hold.pass(later, sack.clone())), (2, None));
        assert_eq!(hold.deadline(), Some(now + MAX));
        hold.handle_timeout(now + MAX);
        assert_eq!(polled(&mut hold), one);
        assert_eq!(hold.deadline(), Some(later + MAX));
        // What is said too late is of no interest.
        hold.take(1);
        hold.take(2);
        assert_eq!(polled(&mut hold), one);
        let mut off = Hold::new(Duration::ZERO, None);
        assert_eq!((off.give(), off.pass(now, sack.clone())), (0, Some(sack)));
    }

    #[test]
    fn who_may_be_cut_off_acknowledges_nothing() {
        let now = crate::test_epoch();
        let reach = Reach::new(now);
        let mut hold = Hold::new(MAX, Some(reach.clone()));
        let sack = packet(SACK, 1);
        let later = now + MAX / 2;
        assert_eq!((hold.give(), hold.pass(later, sack.clone())), (1, None));
        reach.heard(later - MAX / 4);
        hold.handle_timeout(later + MAX);
        assert_eq!(polled(&mut hold), [] as [Bytes; 0]);
        assert_eq!(hold.deadline(), Some(later + MAX + LOOK));
        // Who has it can be asked all the same.
        assert_eq!(
            (hold.give(), hold.pass(later + MAX, sack.clone())),
            (2, None)
        );
        hold.take(1);
        assert_eq!(polled(&mut hold), std::slice::from_ref(&sack));
        reach.heard(later + MAX);
        hold.handle_timeout(later + MAX * 2);
        assert_eq!(polled(&mut hold), [sack]);
        assert_eq!(hold.deadline(), None);
    }

    #[test]
    fn who_was_cut_off_waits_for_as_long_again() {
        let now = crate::test_epoch();
        let reach = Reach::new(now);
        let mut hold = Hold::new(MAX, Some(reach.clone()));
        let sack = packet(SACK, 1);
        let sent = now + MAX;
        assert_eq!((hold.give(), hold.pass(sent, sack.clone())), (1, None));
        assert!(
            !hold.may_lose(sent + MAX / 2, false),
            "it is about to be safe"
        );
        assert!(hold.may_lose(sent + MAX / 2, true));
        hold.handle_timeout(sent + MAX);
        assert!(hold.may_lose(sent + MAX, false));
        let back = sent + MAX * 10;
        reach.heard(back);
        hold.handle_timeout(back);
        assert!(
            hold.may_lose(back, false),
            "what was said meanwhile is on its way"
        );
        assert_eq!(hold.deadline(), Some(back + MAX * 10));
        hold.handle_timeout(back + MAX * 10);
        assert_eq!(polled(&mut hold), std::slice::from_ref(&sack));
        assert!(!hold.may_lose(back + MAX * 10, true));

        // For three seconds at most, and no longer than until others have it.
        let sent = back + MAX * 20;
        assert_eq!((hold.give(), hold.pass(sent, sack.clone())), (2, None));
        hold.handle_timeout(sent + MAX);
        let back = sent + MAX * 100;
        reach.heard(back);
        hold.handle_timeout(back);
        assert_eq!(hold.deadline(), Some(back + AGAIN_MAX));
        hold.take(2);
        assert_eq!(polled(&mut hold), [sack]);
        assert!(!hold.may_lose(back, true));
    }
}
