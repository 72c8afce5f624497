//! Says which nodes are lost, and has a dead leader replaced.
//!
//! ```text
//! mesh signs ─ look ─ suspect? ─ other voters asked ─ detector::Case ─┬─ leader: NodeLost in the log
//!                                                                     └─ leader gone: campaign
//! ```
//! Runs everywhere. The leader judges every node, the others only the leader, and only whether its
//! process is gone: silence of a leader is what elections by timeout are for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::LossCause;
use flotilla_model::command::{Command, Rejection};
use flotilla_model::id::{BootId, NodeId};
use flotilla_raft::{Group, ProposeError, Status};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::detector::{Case, Impression, place_in_line};
use super::drain::has_successor;
use super::takeovers::Takeovers;
use crate::mesh::{Mesh, Sign};
use crate::session::new_request;

/// How often the signs are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// Pause before a node is asked about again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
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

/// What came of asking about a suspect.
struct Heard {
    boot: BootId,
    case: Case,
    asked: Instant,
}

/// The watcher.
pub struct Watch {
    node: NodeId,
    group: Group,
    mesh: Mesh,
    takeovers: Takeovers,
    config: FailureConfig,
    /// Suspects that others are being asked about, that a verdict is on its way for, or that are to
    /// be let alone for a moment.
    busy: BTreeSet<NodeId>,
    answers: JoinSet<Heard>,
    /// Verdicts on their way into the log, and pauses; each ends with whom it was about.
    steps: JoinSet<NodeId>,
    /// The leader whose place this node is about to stand for, and when.
    standing: Option<(NodeId, Instant)>,
}

impl Watch {
    /// A watcher for this node.
    #[must_use]
    pub fn new(
        node: NodeId,
        group: Group,
        mesh: Mesh,
        takeovers: Takeovers,
        config: FailureConfig,
    ) -> Self {
        Self {
            node,
            group,
            mesh,
            takeovers,
            config,
            busy: BTreeSet::new(),
            answers: JoinSet::new(),
            steps: JoinSet::new(),
            standing: None,
        }
    }

    /// Watches until the task is dropped.
    pub async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let signs = self.mesh.signs().clone();
        loop {
            tokio::select! {
                _ = look.tick() => signs.look(Instant::now(), LOOK_INTERVAL),
                () = signs.changed() => {}
                Some(answer) = self.answers.join_next() => {
                    if let Ok(heard) = answer {
                        self.judge(heard).await;
                    }
                    continue;
                }
                Some(step) = self.steps.join_next() => {
                    if let Ok(suspect) = step {
                        self.busy.remove(&suspect);
                    }
                    continue;
                }
            }
            let status = self.group.status();
            self.suspect(&status);
            self.relieve(&status);
            self.stand(&status).await;
        }
    }

    /// Silence that makes a node unreachable at present.
    fn bound(&self, now: Instant) -> Duration {
        let patient = self.config.bound + self.mesh.signs().allowance(now);
        patient.min(self.config.patience.max(self.config.bound))
    }

    fn impression(&self, sign: &Sign, now: Instant) -> Impression {
        if sign.is_gone(now) {
            return Impression::Gone;
        }
        let mut silence = self.mesh.signs().silence(sign, now);
        // One bad link condemns nobody as long as there is a way round it.
        let patience = self.config.patience;
        let is_near = |at: Instant| now.saturating_duration_since(at) < patience;
        if silence >= patience && sign.reached.is_some_and(is_near) {
            silence = patience.saturating_sub(Duration::from_millis(1));
        }
        if silence < self.bound(now) / 2 {
            Impression::Lives
        } else {
            Impression::Silent(silence)
        }
    }

    /// Asks the other voters about everybody who gives reason to.
    fn suspect(&mut self, status: &Status) {
        let now = Instant::now();
        let state = self.group.state();
        let leads = status.leader == Some(self.node);
        let signs = self.mesh.signs().all();
        for (suspect, sign) in &signs {
            let Some(record) = state.nodes.get(suspect) else {
                continue;
            };
            let impression = self.impression(sign, now);
            let concerns = match impression {
                Impression::Lives => false,
                // Whoever answers under another boot is about to write its record itself.
                _ if leads => {
                    sign.boot.is_none_or(|boot| boot == record.boot) && is_loss(&state, *suspect)
                }
                Impression::Gone => status.leader == Some(*suspect),
                Impression::Silent(_) => false,
            };
            if concerns && self.busy.insert(*suspect) {
                let case = self.case(*suspect, impression, status, &signs, now);
                self.ask(case, record.boot);
            }
        }
    }

    /// Hands over the people of nodes that have been unwell for long. If most are unwell, the cause
    /// is not the nodes, and nobody is better off elsewhere.
    fn relieve(&mut self, status: &Status) {
        if status.leader != Some(self.node) {
            return;
        }
        let now = Instant::now();
        let state = self.group.state();
        let signs = self.mesh.signs().all();
        let unwell: BTreeMap<NodeId, Instant> = signs
            .iter()
            .filter_map(|(node, sign)| Some((*node, sign.ailment?.1)))
            .collect();
        let well = 1 + signs
            .iter()
            .filter(|(node, sign)| !unwell.contains_key(node) && !sign.is_gone(now))
            .count();
        if unwell.len() >= well {
            return;
        }
        for (node, since) in unwell {
            let Some(record) = state.nodes.get(&node) else {
                continue;
            };
            if !record.state.is_lost()
                && now.saturating_duration_since(since) >= self.config.patience
                && self.busy.insert(node)
            {
                self.condemn(node, record.boot, LossCause::Stalled, &signs[&node], now);
            }
        }
    }

    fn case(
        &self,
        suspect: NodeId,
        impression: Impression,
        status: &Status,
        signs: &BTreeMap<NodeId, Sign>,
        now: Instant,
    ) -> Case {
        let voters = voters(status);
        let gone = gone(&voters, signs, now);
        Case {
            judge: self.node,
            suspect,
            impression,
            voters,
            gone,
            findings: BTreeMap::new(),
            bound: self.bound(now),
            patience: self.config.patience,
        }
    }

    fn ask(&mut self, mut case: Case, boot: BootId) {
        let within = match case.impression {
            Impression::Gone => GONE_WITHIN,
            _ => case.bound,
        };
        let mesh = self.mesh.clone();
        self.answers.spawn(async move {
            let asked = Instant::now();
            let mut questions = JoinSet::new();
            for witness in case.witnesses() {
                let (mesh, suspect) = (mesh.clone(), case.suspect);
                questions.spawn(async move {
                    let finding = mesh.inquire(witness, suspect, boot, within).await;
                    (witness, finding)
                });
            }
            while let Some(answer) = questions.join_next().await {
                if let Ok((witness, Some(finding))) = answer {
                    case.findings.insert(witness, finding);
                }
                // Whatever the others say, it would be the same.
                if case.verdict().is_some() && case.impression == Impression::Gone {
                    break;
                }
            }
            Heard { boot, case, asked }
        });
    }

    /// Decides by what the witnesses said and by how things look now.
    async fn judge(&mut self, heard: Heard) {
        let Heard {
            boot,
            mut case,
            asked,
        } = heard;
        let suspect = case.suspect;
        let now = Instant::now();
        let signs = self.mesh.signs().all();
        let Some(sign) = signs.get(&suspect) else {
            self.busy.remove(&suspect);
            return;
        };
        case.impression = self.impression(sign, now);
        case.bound = self.bound(now);
        case.gone = gone(&case.voters, &signs, now);
        let status = self.group.status();
        match case.verdict() {
            Some(cause) if status.leader == Some(self.node) => {
                return self.condemn(suspect, boot, cause, sign, asked);
            }
            Some(LossCause::Crashed) if status.leader == Some(suspect) => {
                self.queue_up(suspect, &case, now);
                self.stand(&status).await;
            }
            _ => {}
        }
        self.steps.spawn(async move {
            tokio::time::sleep(ASK_AGAIN).await;
            suspect
        });
    }

    fn condemn(
        &mut self,
        suspect: NodeId,
        boot: BootId,
        cause: LossCause,
        sign: &Sign,
        asked: Instant,
    ) {
        info!(
            peer = %suspect,
            cause = cause.name(),
            silent_ms = sign.last().elapsed().as_millis(),
            asked_ms = asked.elapsed().as_millis(),
            "node is lost; its participants move"
        );
        self.takeovers.detected(suspect, cause, sign.last());
        let group = self.group.clone();
        self.steps.spawn(async move {
            let lost = Command::NodeLost {
                node: suspect,
                boot,
                cause,
            };
            let begun = Instant::now();
            match group.propose(new_request(), lost).await {
                Ok(_) => info!(
                    peer = %suspect,
                    cause = cause.name(),
                    decided_ms = begun.elapsed().as_millis(),
                    "a lost node's participants have new homes"
                ),
                // It has come back meanwhile.
                Err(ProposeError::Rejected(Rejection::StaleEpoch)) => {}
                Err(error) => warn!(peer = %suspect, %error, "a lost node's participants wait"),
            }
            suspect
        });
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
    async fn stand(&mut self, status: &Status) {
        let Some((leader, at)) = self.standing else {
            return;
        };
        let now = Instant::now();
        let sign = self.mesh.signs().of(leader);
        if status.leader != Some(leader) || !sign.is_some_and(|sign| sign.is_gone(now)) {
            self.standing = None;
        } else if now >= at {
            self.standing = None;
            info!(peer = %leader, "the leader's process is gone; standing for election");
            if let Err(error) = self.group.campaign(leader).await {
                warn!(%error, "no election");
            }
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

fn voters(status: &Status) -> BTreeSet<NodeId> {
    let members = status.members.iter();
    members
        .filter(|member| member.voter)
        .map(|member| member.node)
        .collect()
}

fn gone(
    voters: &BTreeSet<NodeId>,
    signs: &BTreeMap<NodeId, Sign>,
    now: Instant,
) -> BTreeSet<NodeId> {
    let is_gone = |node: &&NodeId| signs.get(node).is_some_and(|sign| sign.is_gone(now));
    voters.iter().filter(is_gone).copied().collect()
}
