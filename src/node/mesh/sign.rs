//! Signs of life as values: what was heard of other nodes, when, and what that makes of them.
//!
//! [`super::pulse`] feeds a [`SignBook`] from its streams; [`crate::control`] decides by it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flotilla_model::id::{BootId, NodeId};

use super::delay::Delays;
use super::proto::{Ailment, inquire_reply::Finding};

/// Refusals in a row that make a process gone. The first may fall into the moment in which a dying
/// process has lost one socket but not yet the other.
const REFUSALS: u32 = 2;
/// A refusal older than this says nothing of the present.
const REFUSAL_AGE: Duration = Duration::from_secs(1);

/// What is known of another node's life.
#[derive(Clone, Copy, Debug)]
pub struct Sign {
    /// Since when it is listened to.
    pub since: Instant,
    /// The start that answered last.
    pub boot: Option<BootId>,
    /// When anything of it arrived last.
    pub heard: Option<Instant>,
    /// When the newest of our pings that it answered was sent: at that time or later it knew that
    /// this node lives.
    pub contact: Option<Instant>,
    /// When anything of it arrived last over the mesh's links, which may lead by way of another node.
    pub reached: Option<Instant>,
    /// When the newest heartbeat of a link was sent that it answered: as `contact`, but maybe by way of
    /// another node.
    pub echoed: Option<Instant>,
    /// When its open stream broke; `None` while one is open.
    pub broke: Option<Instant>,
    /// How often in a row nobody listened at its port.
    pub refusals: u32,
    /// When that was last.
    pub refused_at: Option<Instant>,
    /// What it says is wrong with itself, and since when.
    pub ailment: Option<(Ailment, Instant)>,
}

impl Sign {
    /// Nothing known yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            since: now,
            boot: None,
            heard: None,
            contact: None,
            reached: None,
            echoed: None,
            broke: None,
            refusals: 0,
            refused_at: None,
            ailment: None,
        }
    }

    /// Whether its process is certainly gone: it was connected, the connection was reset, and since
    /// then nobody listens at its port. A refusal alone does not count: a filter on the way can
    /// refuse, too, but leaves open streams silent.
    #[must_use]
    pub fn is_gone(&self, now: Instant) -> bool {
        self.broke.is_some()
            && self.refusals >= REFUSALS
            && self
                .refused_at
                .is_some_and(|at| now.saturating_duration_since(at) < REFUSAL_AGE)
    }

    /// When it was last known to live: heard, or begun to be listened to.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.heard.map_or(self.since, |heard| heard.max(self.since))
    }
}

/// What was asked about a node.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// About whom.
    pub node: NodeId,
    /// About which start of it.
    pub boot: BootId,
    /// Silence that counts.
    pub bound: Duration,
    /// How long the answer may take.
    pub within: Duration,
    /// When it was asked.
    pub asked: Instant,
}

/// The signs of all nodes, and this process's own delays.
#[derive(Clone, Default)]
pub struct SignBook {
    signs: BTreeMap<NodeId, Sign>,
    delays: Delays,
}

impl SignBook {
    /// All of them.
    #[must_use]
    pub const fn all(&self) -> &BTreeMap<NodeId, Sign> {
        &self.signs
    }

    /// One node's.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Option<&Sign> {
        self.signs.get(&node)
    }

    /// A node is listened to from now on.
    pub fn insert(&mut self, node: NodeId, now: Instant) {
        self.signs.entry(node).or_insert_with(|| Sign::new(now));
    }

    /// A node is no longer listened to.
    pub fn remove(&mut self, node: NodeId) {
        self.signs.remove(&node);
    }

    /// A watcher that should look every `expected` looks now. What it is late is this process's own
    /// delay and will be nobody's silence.
    pub fn look(&mut self, now: Instant, expected: Duration) {
        self.delays.look(now, expected);
    }

    /// How long a node has been silent, this process's own delays taken off.
    #[must_use]
    pub fn silence(&self, sign: &Sign, now: Instant) -> Duration {
        let last = sign.last();
        let own = self.delays.since(last);
        now.saturating_duration_since(last).saturating_sub(own)
    }

    /// How much longer than usual others may be silent at present, because this process was late a moment
    /// ago and they may be starved as it was.
    #[must_use]
    pub fn allowance(&self, now: Instant) -> Duration {
        self.delays.allowance(now)
    }

    /// Something of a node arrived: its own ping.
    pub fn heard(&mut self, node: NodeId, boot: BootId, now: Instant) {
        if let Some(sign) = self.signs.get_mut(&node)
            && sign.boot.is_none_or(|known| known == boot)
        {
            sign.heard = Some(now);
        }
    }

    /// Something of it arrived over a link of the mesh, maybe by way of another node; `echo` is when the
    /// heartbeat was sent that it answers, if it answers one.
    pub fn reached(&mut self, node: NodeId, boot: BootId, echo: Option<Instant>, now: Instant) {
        if let Some(sign) = self.signs.get_mut(&node)
            && sign.boot.is_none_or(|known| known == boot)
        {
            sign.reached = Some(now);
            // An echo from the future is nonsense.
            sign.echoed = sign.echoed.max(echo.filter(|sent| *sent <= now));
        }
    }

    /// Its port was tried.
    pub fn knocked(&mut self, node: NodeId, refused: bool, now: Instant) {
        if let Some(sign) = self.signs.get_mut(&node) {
            if refused {
                sign.refusals = sign.refusals.saturating_add(1);
                sign.refused_at = Some(now);
            } else {
                sign.refusals = 0;
            }
        }
    }

    /// Its open stream broke.
    pub fn broke(&mut self, node: NodeId, now: Instant) {
        if let Some(sign) = self.signs.get_mut(&node) {
            sign.broke = Some(now);
        }
    }

    /// It answered a ping that was sent at `sent`.
    pub fn answered(
        &mut self,
        node: NodeId,
        boot: BootId,
        sent: Instant,
        ailment: Ailment,
        now: Instant,
    ) {
        let Some(sign) = self.signs.get_mut(&node) else {
            return;
        };
        sign.boot = Some(boot);
        sign.heard = Some(now);
        // A token is an echo: one from the future is nonsense.
        if sent <= now {
            sign.contact = Some(sign.contact.map_or(sent, |contact| contact.max(sent)));
        }
        sign.broke = None;
        sign.refusals = 0;
        sign.ailment = match ailment {
            Ailment::None => None,
            ailment => Some(match sign.ailment {
                Some((known, since)) if known == ailment => (known, since),
                _ => (ailment, now),
            }),
        };
    }

    /// What this node finds about another one: as soon as it is clear, and when the time for the answer
    /// is over.
    #[must_use]
    pub fn find(&self, question: &Question, now: Instant) -> Option<Finding> {
        let Some(sign) = self.of(question.node) else {
            return Some(Finding::Unknown);
        };
        if sign.is_gone(now) || sign.boot.is_some_and(|other| other != question.boot) {
            return Some(Finding::Gone);
        }
        // Only what arrives after the question proves life.
        if sign.heard.is_some_and(|heard| heard >= question.asked) {
            return Some(Finding::Heard);
        }
        if self.silence(sign, now) >= question.bound {
            return Some(Finding::Silent);
        }
        (now.saturating_duration_since(question.asked) >= question.within)
            .then_some(Finding::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_only_after_a_reset() {
        let now = Instant::now();
        let mut sign = Sign::new(now);
        sign.refusals = 5;
        sign.refused_at = Some(now);
        assert!(!sign.is_gone(now), "it was never connected");
        sign.broke = Some(now);
        assert!(sign.is_gone(now));
        assert!(!sign.is_gone(now + REFUSAL_AGE), "that was long ago");
        sign.refusals = 1;
        assert!(!sign.is_gone(now), "once may be chance");
    }

    #[test]
    fn signs_of_another_start_do_not_count() {
        let now = Instant::now();
        let mut book = SignBook::default();
        book.insert(NodeId(2), now);
        book.answered(NodeId(2), BootId(7), now, Ailment::None, now);
        let later = now + Duration::from_secs(1);
        let heard = |book: &SignBook| book.of(NodeId(2)).and_then(|sign| sign.heard);
        book.heard(NodeId(2), BootId(8), later);
        assert_eq!(heard(&book), Some(now));
        book.heard(NodeId(2), BootId(7), later);
        assert_eq!(heard(&book), Some(later));
        book.heard(NodeId(3), BootId(1), later);
        assert!(book.of(NodeId(3)).is_none(), "no such node");
    }

    #[test]
    fn a_finding_waits_until_it_is_clear() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let question = |boot| Question {
            node: NodeId(2),
            boot: BootId(boot),
            bound: ms(500),
            within: ms(200),
            asked: start + ms(100),
        };
        let mut book = SignBook::default();
        book.insert(NodeId(2), start);
        book.answered(NodeId(2), BootId(7), start, Ailment::None, start);
        assert_eq!(book.find(&question(7), start + ms(150)), None);
        assert_eq!(
            book.find(&question(8), start + ms(150)),
            Some(Finding::Gone)
        );
        let late = book.find(&question(7), start + ms(300));
        assert_eq!(late, Some(Finding::Unknown));
        let silent = book.find(&question(7), start + ms(500));
        assert_eq!(silent, Some(Finding::Silent));
        book.heard(NodeId(2), BootId(7), start + ms(110));
        let heard = book.find(&question(7), start + ms(150));
        assert_eq!(heard, Some(Finding::Heard));
    }
}
