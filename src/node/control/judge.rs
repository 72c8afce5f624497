//! Whom to suspect, whom to ask, whom to condemn and when to stand for election: pure decisions over
//! signs of life.
//!
//! ```text
//! View ─ Judge::look ─ Ask ─ (witnesses) ─ Judge::judge ─┬─ Condemn   (leader)
//!                                                        ├─ Campaign  (the leader is gone)
//!                                                        └─ Pause
//! ```
//! [`super::failure`] carries the steps out. The leader judges every node, the others only the leader, and
//! only whether its process is gone: silence of a leader is what elections by timeout are for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{LossCause, Stint};
use flotilla_model::id::NodeId;

use super::detector::{Case, Impression, place_in_line};
use super::drain::has_successor;
use crate::mesh::{Sign, SignBook};

/// Pause before a node is asked about again.
pub const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long witnesses may take to find out whether a process is gone.
const GONE_WITHIN: Duration = Duration::from_millis(150);
/// How long each voter in line waits for the one before it to be elected. An election takes two
/// writes and a round trip.
const STAGGER: Duration = Duration::from_millis(80);

/// Failure detection's settings.
#[derive(Clone, Copy, Debug)]
pub struct FailureConfig {
    /// Silence that makes a node unreachable.
    pub bound: Duration,
    /// How long a node may be unwell, or out of the leader's reach alone.
    pub patience: Duration,
}

/// What a node knows of its cluster at a moment.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The moment.
    pub now: Instant,
    /// Who leads, as far as it is known.
    pub leader: Option<NodeId>,
    /// The group's voters.
    pub voters: &'a BTreeSet<NodeId>,
    /// The newest state applied here.
    pub state: &'a State,
    /// Signs of life.
    pub signs: &'a SignBook,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Ask the case's witnesses; [`Judge::judge`] takes what they find.
    Ask {
        /// The case.
        case: Case,
        /// How long they may take.
        within: Duration,
    },
    /// Propose that a node is lost; [`Judge::settled`] once that is decided.
    Condemn {
        /// Who.
        suspect: NodeId,
        /// Which stint of it.
        stint: Stint,
        /// Why.
        cause: LossCause,
        /// When it was last heard.
        heard: Instant,
    },
    /// Let a suspect alone for [`ASK_AGAIN`], then [`Judge::settled`].
    Pause(NodeId),
    /// Stand for election in place of this leader.
    Campaign(NodeId),
}

/// One node's judgement.
pub struct Judge {
    node: NodeId,
    config: FailureConfig,
    /// Suspects that others are being asked about, that a verdict is on its way for, or that are to
    /// be let alone for a moment.
    busy: BTreeSet<NodeId>,
    /// The leader whose place this node is about to stand for, and when.
    standing: Option<(NodeId, Instant)>,
    /// Stints of nodes that were not lost when this was looked at last.
    serving: BTreeMap<NodeId, Stint>,
    /// When nodes came back into service, as seen here: silence before that counts no more.
    back: BTreeMap<NodeId, Instant>,
}

impl Judge {
    /// Suspects nobody yet.
    #[must_use]
    pub const fn new(node: NodeId, config: FailureConfig) -> Self {
        Self {
            node,
            config,
            busy: BTreeSet::new(),
            standing: None,
            serving: BTreeMap::new(),
            back: BTreeMap::new(),
        }
    }

    /// To be called every few tens of milliseconds.
    pub fn look(&mut self, view: &View<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        self.notice_returns(view);
        self.suspect(view, &mut steps);
        self.relieve(view, &mut steps);
        self.stand(view, &mut steps);
        steps
    }

    /// Notes who has begun another stint: it lives, although nothing else of it may have come here yet.
    fn notice_returns(&mut self, view: &View<'_>) {
        let nodes = view.state.nodes.iter();
        let serving: BTreeMap<NodeId, Stint> = nodes
            .filter(|(_, record)| !record.state.is_lost())
            .map(|(node, record)| (*node, record.stint()))
            .collect();
        for (node, stint) in &serving {
            if self.serving.get(node) != Some(stint) {
                self.back.insert(*node, view.now);
            }
        }
        self.back.retain(|node, _| serving.contains_key(node));
        self.serving = serving;
    }

    /// A verdict is decided, or a pause is over.
    pub fn settled(&mut self, suspect: NodeId) {
        self.busy.remove(&suspect);
    }

    /// Silence that makes a node unreachable at present.
    fn bound(&self, view: &View<'_>) -> Duration {
        let patient = self.config.bound + view.signs.allowance(view.now);
        patient.min(self.config.patience.max(self.config.bound))
    }

    fn impression(&self, view: &View<'_>, node: NodeId, sign: &Sign) -> Impression {
        if sign.is_gone(view.now) {
            return Impression::Gone;
        }
        let mut silence = view.signs.silence(sign, view.now);
        if let Some(back) = self.back.get(&node) {
            silence = silence.min(view.now.saturating_duration_since(*back));
        }
        // One bad link condemns nobody as long as there is a way round it; and what comes that way shows that a
        // node lives, whatever witnesses found a moment ago.
        let patience = self.config.patience;
        if let Some(at) = sign.reached {
            let since = view.now.saturating_duration_since(at);
            if since < self.bound(view) {
                silence = silence.min(since);
            } else if silence >= patience && since < patience {
                silence = patience.saturating_sub(Duration::from_millis(1));
            }
        }
        if silence < self.bound(view) / 2 {
            Impression::Lives
        } else {
            Impression::Silent(silence)
        }
    }

    /// Asks the other voters about everybody who gives reason to.
    fn suspect(&mut self, view: &View<'_>, steps: &mut Vec<Step>) {
        let leads = view.leader == Some(self.node);
        for (suspect, sign) in view.signs.all() {
            let Some(record) = view.state.nodes.get(suspect) else {
                continue;
            };
            let impression = self.impression(view, *suspect, sign);
            let concerns = match impression {
                Impression::Lives => false,
                // Whoever answers under another boot is about to write its record itself.
                _ if leads => {
                    sign.boot.is_none_or(|boot| boot == record.boot)
                        && is_loss(view.state, *suspect)
                }
                Impression::Gone => view.leader == Some(*suspect),
                Impression::Silent(_) => false,
            };
            if concerns && self.busy.insert(*suspect) {
                let case = Case {
                    judge: self.node,
                    suspect: *suspect,
                    stint: record.stint(),
                    impression,
                    voters: view.voters.clone(),
                    gone: gone(view.voters, view),
                    findings: BTreeMap::new(),
                    bound: self.bound(view),
                    patience: self.config.patience,
                };
                let within = match impression {
                    Impression::Gone => GONE_WITHIN,
                    _ => case.bound,
                };
                steps.push(Step::Ask { case, within });
            }
        }
    }

    /// Hands over the people of nodes that have been unwell for long and say so still: for those that are
    /// silent, silence counts. If most are unwell, the cause is not the nodes, and nobody is better off
    /// elsewhere.
    fn relieve(&mut self, view: &View<'_>, steps: &mut Vec<Step>) {
        if view.leader != Some(self.node) {
            return;
        }
        let signs = view.signs.all();
        let unwell: BTreeMap<NodeId, Instant> = signs
            .iter()
            .filter_map(|(node, sign)| Some((*node, sign.ailment?.1)))
            .collect();
        let well = 1 + signs
            .iter()
            .filter(|(node, sign)| !unwell.contains_key(node) && !sign.is_gone(view.now))
            .count();
        if unwell.len() >= well {
            return;
        }
        for (node, since) in unwell {
            let Some(record) = view.state.nodes.get(&node) else {
                continue;
            };
            let says_so = view.signs.silence(&signs[&node], view.now) < self.bound(view);
            if says_so
                && !record.state.is_lost()
                && view.now.saturating_duration_since(since) >= self.config.patience
                && self.busy.insert(node)
            {
                steps.push(Step::Condemn {
                    suspect: node,
                    stint: record.stint(),
                    cause: LossCause::Stalled,
                    heard: signs[&node].last(),
                });
            }
        }
    }

    /// Decides by what the witnesses said and by how things look now.
    pub fn judge(&mut self, view: &View<'_>, mut case: Case) -> Vec<Step> {
        let suspect = case.suspect;
        self.notice_returns(view);
        let Some(sign) = view.signs.of(suspect) else {
            self.busy.remove(&suspect);
            return Vec::new();
        };
        case.impression = self.impression(view, suspect, sign);
        case.bound = self.bound(view);
        case.gone = gone(&case.voters, view);
        let mut steps = Vec::new();
        match case.verdict() {
            Some(cause) if view.leader == Some(self.node) => {
                let heard = sign.last();
                return vec![Step::Condemn {
                    suspect,
                    stint: case.stint,
                    cause,
                    heard,
                }];
            }
            Some(LossCause::Crashed) if view.leader == Some(suspect) => {
                self.queue_up(suspect, &case, view.now);
                self.stand(view, &mut steps);
            }
            _ => {}
        }
        steps.push(Step::Pause(suspect));
        steps
    }

    fn queue_up(&mut self, leader: NodeId, case: &Case, now: Instant) {
        if self.standing.is_some_and(|(gone, _)| gone == leader) {
            return;
        }
        if let Some(place) = place_in_line(self.node, leader, &case.voters, &case.gone) {
            self.standing = Some((leader, now + STAGGER * place));
        }
    }

    /// Stands for election when it is this node's turn and the leader is gone still.
    fn stand(&mut self, view: &View<'_>, steps: &mut Vec<Step>) {
        let Some((leader, at)) = self.standing else {
            return;
        };
        let sign = view.signs.of(leader);
        if view.leader != Some(leader) || !sign.is_some_and(|sign| sign.is_gone(view.now)) {
            self.standing = None;
        } else if view.now >= at {
            self.standing = None;
            steps.push(Step::Campaign(leader));
        }
    }
}

/// Whether anything would be gained by a verdict on a node.
fn is_loss(state: &State, node: NodeId) -> bool {
    let serves = || {
        let mut rooms = state.rooms.values();
        rooms.any(|room| room.homes.contains_key(&node))
    };
    match state.nodes.get(&node) {
        None => false,
        Some(record) if record.state.is_lost() => has_successor(state, node) && serves(),
        Some(_) => true,
    }
}

fn gone(voters: &BTreeSet<NodeId>, view: &View<'_>) -> BTreeSet<NodeId> {
    let is_gone = |node: &&NodeId| {
        let sign = view.signs.of(**node);
        sign.is_some_and(|sign| sign.is_gone(view.now))
    };
    voters.iter().filter(is_gone).copied().collect()
}

#[cfg(test)]
mod tests;
