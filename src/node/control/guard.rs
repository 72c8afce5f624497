//! What becomes of this node's lease at each look: pure decisions over signs of life and the log.
//!
//! [`super::fence`] calls [`Guard::look`] every few tens of milliseconds and carries out what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{LossCause, NodeState};
use flotilla_model::id::{BootId, NodeId};

use super::judge::View;
use super::lease::{Contact, Keeper, Lease, Step, contact};
use crate::mesh::Ailment;

/// How long a node that was handed over because it was unwell must have been well before it serves
/// again.
const WELL_FOR: Duration = Duration::from_secs(10);

/// A node whose lease has been over for so long keeps its clients no longer: whoever can take its participants
/// has done so.
pub const AWAY_AFTER: Duration = Duration::from_secs(3);
/// Clients that stay all the same are asked once more after this time.
const AGAIN: Duration = Duration::from_secs(10);

/// Who is guarded, and the bounds.
#[derive(Clone, Copy, Debug)]
pub struct GuardConfig {
    /// This node.
    pub node: NodeId,
    /// This start of its process.
    pub boot: BootId,
    /// Silence after which others may condemn this node.
    pub bound: Duration,
    /// How long it may be unwell, or out of the leader's reach, before others may.
    pub lost_after: Duration,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Nothing.
    None,
    /// The lease has just ended, for this reason.
    Lapsed(&'static str),
    /// The log is to be read, and [`way_back`] followed; then [`Guard::returned`].
    Read,
    /// The lease has just ended for the first reason, and the log is to be read.
    LapsedAndRead(&'static str),
    /// Clients are to be asked to resume elsewhere: they reach this node, and it has nothing of others for them.
    SendAway,
}

/// What a lapsed node does once it has read the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WayBack {
    /// It serves again as soon as sessions that belong elsewhere have ended.
    Serve,
    /// Others took it for lost: it writes its record anew first.
    Register,
    /// It serves nobody: not registered yet, another start of it is, or it is being stopped.
    Wait,
}

/// What the log says about the way back of a node's start; `is_open`: it takes participants.
#[must_use]
pub fn way_back(state: &State, node: NodeId, boot: BootId, is_open: bool) -> WayBack {
    match state.nodes.get(&node) {
        Some(own) if own.boot == boot && !own.state.is_lost() => WayBack::Serve,
        Some(own) if own.boot == boot && is_open => WayBack::Register,
        // Before its first start is registered, a node serves nobody.
        _ => WayBack::Wait,
    }
}

/// One node's guard.
pub struct Guard {
    config: GuardConfig,
    keeper: Keeper,
    unwell_since: Option<Instant>,
    well_since: Instant,
    /// When the leader was last known to know that this node lives.
    led_at: Instant,
    /// When clients are sent away, while the lease is over.
    away_at: Option<Instant>,
    /// Those that stay then are asked again.
    asks_again: bool,
}

impl Guard {
    /// Keeps `lease`, which has not begun.
    #[must_use]
    pub fn new(config: GuardConfig, lease: Lease, now: Instant) -> Self {
        Self {
            keeper: Keeper::new(lease, config.bound),
            config,
            unwell_since: None,
            well_since: now,
            led_at: now,
            away_at: None,
            asks_again: false,
        }
    }

    /// Looks at the lease. `ailment` is what this node says is wrong with itself.
    pub fn look(&mut self, view: &View<'_>, ailment: Ailment) -> Deed {
        let deed = self.look_at_lease(view, ailment);
        match deed {
            Deed::Lapsed(_) | Deed::LapsedAndRead(_) => {
                self.away_at = Some(view.now + AWAY_AFTER);
                self.asks_again = true;
            }
            // A node that can read the log is on its way back, or its sessions hear who has them.
            Deed::Read | Deed::SendAway => {}
            Deed::None => {
                if self.away_at.take_if(|at| *at <= view.now).is_some() {
                    let asks_again = std::mem::take(&mut self.asks_again);
                    self.away_at = asks_again.then(|| view.now + AGAIN);
                    return Deed::SendAway;
                }
            }
        }
        deed
    }

    fn look_at_lease(&mut self, view: &View<'_>, ailment: Ailment) -> Deed {
        let now = view.now;
        let contact = self.contact(view);
        let own = view.state.nodes.get(&self.config.node);
        let is_lost = own.is_none_or(|own| own.state.is_lost() || own.boot != self.config.boot);
        let cause = LossCause::Stalled;
        let was_unwell = own.is_some_and(|own| own.state == NodeState::Lost { cause });
        let mut lapsed = None;
        // Also while it is taken for lost: it comes back as soon as it is well.
        let is_unwell = self.is_unwell(now, ailment);
        if is_lost || is_unwell {
            if self.keeper.give_up() {
                lapsed = Some(if is_lost { "taken for lost" } else { "unwell" });
            }
            if self.unwell_since.is_some()
                || (was_unwell && now.saturating_duration_since(self.well_since) < WELL_FOR)
            {
                return lapsed.map_or(Deed::None, Deed::Lapsed);
            }
        }
        match (self.keeper.look(now, contact), lapsed) {
            (Step::Lapsed, _) => Deed::Lapsed("no contact with a majority"),
            (Step::Read, Some(reason)) => Deed::LapsedAndRead(reason),
            (Step::Read, None) => Deed::Read,
            (Step::Held | Step::Waiting, lapsed) => lapsed.map_or(Deed::None, Deed::Lapsed),
        }
    }

    /// The way back has ended well. Whether the lease holds again.
    pub fn returned(&mut self, view: &View<'_>) -> bool {
        let contact = self.contact(view);
        let holds = self.keeper.regain(view.now, contact);
        if holds {
            self.away_at = None;
        }
        holds
    }

    /// Contact with those who decide: a majority of the voters, and the leader at least now and then.
    fn contact(&mut self, view: &View<'_>) -> Contact {
        let (node, now) = (self.config.node, view.now);
        let signs = view.signs.all();
        let is_dead = |id: NodeId| signs.get(&id).is_some_and(|sign| sign.is_gone(now));
        let voters = view.voters.iter();
        let gone: BTreeSet<NodeId> = voters.filter(|id| is_dead(**id)).copied().collect();
        let contacts: BTreeMap<NodeId, Instant> = signs
            .iter()
            .filter_map(|(id, sign)| Some((*id, sign.contact?)))
            .collect();
        let found = contact(node, view.voters, &gone, &contacts, now);
        let led = match view.leader {
            // A leader that was cut off is none to the others, however long it takes itself for it.
            Some(leader) if leader == node => match found {
                Contact::Alone => Some(now),
                Contact::Since(since) => Some(since),
                Contact::None => None,
            },
            Some(leader) if !is_dead(leader) => {
                // By way of another node is enough: the leader counts it as well.
                let echoed = signs.get(&leader).and_then(|sign| sign.echoed);
                contacts.get(&leader).copied().max(echoed)
            }
            // Nobody leads and nobody decides.
            _ => Some(now),
        };
        self.led_at = self.led_at.max(led.unwrap_or(self.led_at));
        let is_led = found == Contact::Alone
            || now.saturating_duration_since(self.led_at) < self.own_patience();
        if is_led { found } else { Contact::None }
    }

    /// How long this node gives itself where others would give it `lost_after`.
    fn own_patience(&self) -> Duration {
        self.config.lost_after - self.config.lost_after / 10
    }

    /// Whether this node has been unable to follow the log for so long that others hand its people
    /// over without its knowing.
    fn is_unwell(&mut self, now: Instant, ailment: Ailment) -> bool {
        if ailment == Ailment::None {
            if self.unwell_since.take().is_some() {
                self.well_since = now;
            }
            return false;
        }
        let since = *self.unwell_since.get_or_insert(now);
        matches!(ailment, Ailment::Disk | Ailment::Log)
            && now.saturating_duration_since(since) >= self.own_patience()
    }
}

#[cfg(test)]
mod tests;
