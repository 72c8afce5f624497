//! Says which nodes are lost, and has a dead leader replaced.
//!
//! ```text
//! mesh signs ─ Judge::look ─ suspect? ─ other voters asked ─ Judge::judge ─┬─ leader: NodeLost in the log
//!                                                                          └─ leader gone: campaign
//! ```
//! Runs everywhere and carries out what [`super::judge`] decides.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flotilla_model::command::{Command, Rejection};
use flotilla_model::id::NodeId;
use flotilla_raft::{Group, ProposeError, Status};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::detector::Case;
pub use super::judge::FailureConfig;
use super::judge::{ASK_AGAIN, Judge, Step, View};
use super::takeovers::Takeovers;
use crate::mesh::Mesh;
use crate::session::new_request;

/// How often the signs are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// The watcher.
pub struct Watch {
    group: Group,
    mesh: Mesh,
    takeovers: Takeovers,
    judge: Judge,
    /// Cases that witnesses are being asked about.
    answers: JoinSet<Case>,
    /// Verdicts on their way into the log, and pauses; each ends with whom it was about.
    steps: JoinSet<NodeId>,
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
            group,
            mesh,
            takeovers,
            judge: Judge::new(node, config),
            answers: JoinSet::new(),
            steps: JoinSet::new(),
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
                    if let Ok(case) = answer {
                        let steps = self.decide(|judge, view| judge.judge(view, case));
                        self.carry_out(steps).await;
                    }
                    continue;
                }
                Some(step) = self.steps.join_next() => {
                    if let Ok(suspect) = step {
                        self.judge.settled(suspect);
                    }
                    continue;
                }
            }
            let steps = self.decide(Judge::look);
            self.carry_out(steps).await;
        }
    }

    fn decide(&mut self, decide: impl FnOnce(&mut Judge, &View<'_>) -> Vec<Step>) -> Vec<Step> {
        let judge = &mut self.judge;
        with_view(&self.group, &self.mesh, |view| decide(judge, view))
    }

    async fn carry_out(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Ask { case, within } => self.ask(case, within),
                condemn @ Step::Condemn { .. } => self.condemn(condemn),
                Step::Pause(suspect) => {
                    self.steps.spawn(async move {
                        tokio::time::sleep(ASK_AGAIN).await;
                        suspect
                    });
                }
                Step::Campaign(leader) => {
                    info!(peer = %leader, "the leader's process is gone; standing for election");
                    if let Err(error) = self.group.campaign(leader).await {
                        warn!(%error, "no election");
                    }
                }
            }
        }
    }

    fn ask(&mut self, mut case: Case, within: Duration) {
        let mesh = self.mesh.clone();
        self.answers.spawn(async move {
            let mut questions = JoinSet::new();
            for witness in case.witnesses() {
                let (mesh, suspect, boot) = (mesh.clone(), case.suspect, case.stint.boot);
                questions.spawn(async move {
                    let finding = mesh.inquire(witness, suspect, boot, within).await;
                    (witness, finding)
                });
            }
            while let Some(answer) = questions.join_next().await {
                if let Ok((witness, Some(finding))) = answer {
                    case.findings.insert(witness, finding);
                }
                if case.is_clear() {
                    break;
                }
            }
            case
        });
    }

    fn condemn(&mut self, condemn: Step) {
        let Step::Condemn {
            suspect,
            stint,
            cause,
            heard,
        } = condemn
        else {
            return;
        };
        info!(
            peer = %suspect,
            cause = cause.name(),
            silent_ms = heard.elapsed().as_millis(),
            "node is lost; its participants move"
        );
        self.takeovers.detected(suspect, cause, heard);
        let group = self.group.clone();
        // Another leader judges by what it sees itself: what this one saw may be long over by then.
        let term = group.status().term;
        self.steps.spawn(async move {
            let lost = Command::NodeLostIn {
                node: suspect,
                stint,
                cause,
                taker: group.state().taker(suspect),
            };
            let begun = Instant::now();
            match group.propose_in_term(term, new_request(), lost).await {
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
}

/// Decides by what this node knows of its cluster now.
pub(super) fn with_view<T>(group: &Group, mesh: &Mesh, decide: impl FnOnce(&View<'_>) -> T) -> T {
    let status = group.status();
    decide(&View {
        now: Instant::now(),
        leader: status.leader,
        voters: &voters(&status),
        state: &group.state(),
        signs: &mesh.signs().book(),
    })
}

/// The voters among the members.
fn voters(status: &Status) -> BTreeSet<NodeId> {
    let members = status.members.iter();
    members
        .filter(|member| member.voter)
        .map(|member| member.node)
        .collect()
}
