//! The damage: what is done to whom, and how it is undone.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use testkit::cluster::{Cluster, binary};

use super::judge::Touched;
use crate::clock::{Ms, now_ms};
use crate::lab::{NODES, Network};

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// SIGKILL of a node that does not lead.
    KillFollower,
    /// SIGKILL of the leader.
    KillLeader,
    /// SIGSTOP of a node, SIGCONT after the others have taken over.
    Freeze,
    /// A node loses its network, peers and clients, for a while.
    CutNode,
    /// Two nodes lose each other; clients reach both.
    CutLink,
    /// A node hands its people over and stops.
    Drain,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] = [
        Self::KillFollower,
        Self::KillLeader,
        Self::Freeze,
        Self::CutNode,
        Self::CutLink,
        Self::Drain,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillFollower => "kill-follower",
            Self::KillLeader => "kill-leader",
            Self::Freeze => "freeze",
            Self::CutNode => "cut-node",
            Self::CutLink => "cut-link",
            Self::Drain => "drain",
        }
    }

    /// Why this fault cannot be had; `None` if it can.
    pub(crate) fn missing(self) -> Option<String> {
        if self != Self::Drain {
            return None;
        }
        let known = binary().ok().and_then(|binary| {
            std::process::Command::new(binary)
                .args(["node", "drain", "--help"])
                .output()
                .ok()
        });
        match known {
            Some(done) if done.status.success() => None,
            _ => Some("this flotilla has no `node drain`".to_owned()),
        }
    }

    /// How long it lasts before it is undone within the window; `None`: until the window is over.
    pub(crate) fn lasts(self) -> Option<Duration> {
        match self {
            Self::Freeze | Self::CutNode | Self::CutLink => Some(Duration::from_secs(4)),
            Self::KillFollower | Self::KillLeader | Self::Drain => None,
        }
    }

    /// Whom the round hits. Rounds go round the followers; others take leader and followers in turn.
    pub(crate) fn target(self, round: u32, leader: u64) -> Touched {
        let followers: Vec<u64> = (1..=NODES).filter(|id| *id != leader).collect();
        let turn = usize::try_from(round).unwrap_or(0);
        let follower = followers[turn % followers.len()];
        match self {
            Self::KillFollower => Touched::Node(follower),
            Self::KillLeader => Touched::Node(leader),
            Self::Freeze | Self::CutNode | Self::Drain => {
                let all = [followers[0], leader, followers[1]];
                Touched::Node(all[turn % all.len()])
            }
            Self::CutLink => {
                let links = [
                    (followers[0], followers[1]),
                    (leader, followers[0]),
                    (leader, followers[1]),
                ];
                let (a, b) = links[turn % links.len()];
                Touched::Link(a, b)
            }
        }
    }

    /// Does it; returns the moment it came.
    pub(crate) fn inject(
        self,
        touched: Touched,
        cluster: &mut Cluster,
        network: &Network,
    ) -> Result<Ms> {
        let at = now_ms();
        match (self, touched) {
            (Self::KillFollower | Self::KillLeader, Touched::Node(id)) => {
                cluster.node(id).kill()?
            }
            (Self::Freeze, Touched::Node(id)) => cluster.node(id).freeze()?,
            (Self::CutNode, Touched::Node(id)) => network.cut_node(id)?,
            (Self::CutLink, Touched::Link(a, b)) => network.cut_link(a, b)?,
            (Self::Drain, Touched::Node(id)) => drain(cluster, id)?,
            _ => bail!("{} cannot hit {touched:?}", self.name()),
        }
        Ok(at)
    }

    /// Ends a fault that lasts only a while.
    pub(crate) fn undo(
        self,
        touched: Touched,
        cluster: &mut Cluster,
        network: &Network,
    ) -> Result<()> {
        match (self, touched) {
            (Self::Freeze, Touched::Node(id)) => cluster.node(id).thaw(),
            (Self::CutNode | Self::CutLink, _) => network.heal(),
            _ => Ok(()),
        }
    }

    /// Brings the node back after the window.
    pub(crate) fn repair(
        self,
        touched: Touched,
        cluster: &mut Cluster,
        network: &Network,
    ) -> Result<()> {
        network.heal()?;
        let Touched::Node(id) = touched else {
            return Ok(());
        };
        if self == Self::Drain {
            cluster.node(id).terminate()?;
        }
        if cluster.node(id).pid().is_none() {
            cluster.node(id).start()?;
        }
        cluster.wait_until_answers(id)
    }
}

/// Begins a drain and does not wait for its end.
fn drain(cluster: &mut Cluster, id: u64) -> Result<()> {
    let asked = std::process::Command::new(binary()?)
        .args(["node", "drain", "--config"])
        .arg(cluster.node(id).config())
        .output()
        .context("flotilla node drain")?;
    ensure!(
        asked.status.success(),
        "flotilla node drain: {}",
        String::from_utf8_lossy(&asked.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_round_whom_they_may_hit() {
        let hit = |fault: Fault, round| match fault.target(round, 2) {
            Touched::Node(id) => id,
            other => panic!("{other:?}"),
        };
        let of = |fault| (0..3).map(|round| hit(fault, round)).collect::<Vec<_>>();
        assert_eq!(of(Fault::KillFollower), [1, 3, 1]);
        assert_eq!(of(Fault::KillLeader), [2, 2, 2]);
        assert_eq!(of(Fault::Freeze), [1, 2, 3]);
        assert!(matches!(Fault::CutLink.target(0, 2), Touched::Link(1, 3)));
    }
}
