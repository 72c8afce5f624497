//! What an operator wants to know about a group, as one node sees it.

use std::time::Duration;

use flotilla_model::id::{NodeId, Revision, UnixMillis};
use openraft::Instant as _;

use crate::group::Group;
use crate::types::{LogId, Metrics};

/// A place in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Position {
    /// Term of the leader that wrote it.
    pub term: u64,
    /// Index.
    pub index: u64,
}

impl From<LogId> for Position {
    fn from(id: LogId) -> Self {
        Self {
            term: id.leader_id.term,
            index: id.index,
        }
    }
}

/// What a node is in the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// In no cluster yet.
    None,
    /// Follows, does not vote.
    Learner,
    /// Votes.
    Follower,
    /// Votes and stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Stopped, by itself if the storage failed.
    Stopped,
}

/// A member as the asked node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    /// Its id.
    pub node: NodeId,
    /// Its cluster port.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
    /// The last entry it has on disk; only the leader knows.
    pub matched: Option<Position>,
    /// Entries it is behind the leader; only the leader knows.
    pub lag: Option<u64>,
    /// How long ago it last confirmed anything; only the leader knows.
    pub silent: Option<Duration>,
}

/// A group as one node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Cluster, once the node is in one.
    pub cluster: Option<String>,
    /// Group's name.
    pub group: String,
    /// The node that was asked.
    pub node: NodeId,
    /// What it is in the group.
    pub role: Role,
    /// Who leads, if the node knows.
    pub leader: Option<NodeId>,
    /// The node's term.
    pub term: u64,
    /// Members by id; voters and learners.
    pub members: Vec<MemberStatus>,
    /// Whether a change of the members is under way: the node knows of one that is not committed,
    /// or of two sets of voters that both have to agree.
    pub changing: bool,
    /// Last entry in the node's log.
    pub last_log: Option<u64>,
    /// Last entry the node knows to be committed.
    pub committed: Option<Position>,
    /// Last entry applied on the node.
    pub applied: Option<Position>,
    /// Last entry in the node's newest snapshot.
    pub snapshot: Option<Position>,
    /// Last entry that is gone from the node's log.
    pub purged: Option<Position>,
    /// Revision of the applied state.
    pub revision: Revision,
    /// Time of the last applied command.
    pub applied_at: UnixMillis,
    /// Commands of this node that wait to be applied.
    pub waiting: usize,
    /// How long ago a majority last confirmed this leader; only the leader knows.
    pub quorum_silent: Option<Duration>,
    /// What stopped the group on this node, if something did.
    pub fault: Option<String>,
}

/// Hash of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateHash {
    /// Revision of the state.
    pub revision: Revision,
    /// Last log entry in it.
    pub log_index: Option<u64>,
    /// The hash; nodes with equal log indices have equal hashes.
    pub hash: u64,
}

impl Group {
    /// Now, and no earlier than anything that has happened here: the wall clock, unless the last applied command is
    /// stamped later. What is to reach everything up to now must not go by a clock that is behind.
    #[must_use]
    pub fn time(&self) -> UnixMillis {
        let applied = self.core.history.applied().at;
        self.core.config.clock.now().max(applied)
    }

    /// The group as this node sees it. Cheap; see [`Group::state_hash`] for the hash.
    #[must_use]
    pub fn status(&self) -> Status {
        let core = &self.core;
        let metrics = core.metrics();
        let applied = core.history.applied();
        let fault = metrics
            .running_state
            .as_ref()
            .err()
            .map(ToString::to_string);
        Status {
            cluster: self.cluster_id(),
            group: core.local.group.to_string(),
            node: core.config.node,
            role: role(&metrics),
            leader: metrics.current_leader,
            term: metrics.current_term,
            members: members(&metrics),
            changing: changing(&metrics),
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(Into::into),
            applied: metrics.last_applied.map(Into::into),
            snapshot: metrics.snapshot.map(Into::into),
            purged: metrics.purged.map(Into::into),
            revision: applied.state.revision,
            applied_at: applied.at,
            waiting: core.pending.len(),
            quorum_silent: metrics.last_quorum_acked.map(|acked| acked.elapsed()),
            fault,
        }
    }
}

fn role(metrics: &Metrics) -> Role {
    use openraft::ServerState;
    if metrics.running_state.is_err() {
        return Role::Stopped;
    }
    let config = metrics.membership_config.membership();
    match metrics.state {
        _ if config.nodes().next().is_none() => Role::None,
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}

fn changing(metrics: &Metrics) -> bool {
    let config = &metrics.membership_config;
    config.log_id() != metrics.committed_membership_config.log_id()
        || config.membership().get_joint_config().len() > 1
}

fn members(metrics: &Metrics) -> Vec<MemberStatus> {
    let config = metrics.membership_config.membership();
    let voters: Vec<NodeId> = config.voter_ids().collect();
    let last = metrics.last_log_index;
    config
        .nodes()
        .map(|(id, member)| {
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|replication| replication.get(id).copied().flatten());
            let silent = metrics
                .heartbeat
                .as_ref()
                .and_then(|heartbeat| heartbeat.get(id)?.as_ref())
                .map(|confirmed| confirmed.elapsed());
            MemberStatus {
                node: *id,
                address: member.address.clone(),
                voter: voters.contains(id),
                matched: matched.map(Into::into),
                lag: matched.and_then(|matched| Some(last?.saturating_sub(matched.index))),
                silent,
            }
        })
        .collect()
}
