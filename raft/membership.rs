//! Who is in the group: joining, adding, removing, and handing over leadership.
//!
//! A node asks any member; whoever is asked either leads or names the leader. The leader's part is
//! in [`Core::add_member`] and [`Core::change`], called by [`crate::service`] and, for itself, from
//! here. What the leader changes by itself is in [`crate::duty`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use flotilla_model::id::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::TransferLeaderRequest;
use openraft::{ChangeMembers, Instant as _};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use crate::channels::{Lane, PeerChannel};
use crate::error::{ChangeError, JoinError};
use crate::group::{Core, Group, is_with_data};
use crate::network::within;
use crate::proposer::Leader;
use crate::proto;
use crate::proto::change_request::Change;
use crate::proto::change_response::Outcome;
use crate::proto::membership_client::MembershipClient;
use crate::types::{Member, Metrics};

/// How long a node tries to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a change of membership is tried.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before a question is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// Wait before a new address is announced again.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(300);
/// A member that confirmed something within this time is alive.
pub(crate) const ALIVE: Duration = Duration::from_secs(2);
/// Addresses tried per join, redirections included.
const TARGETS_MAX: usize = 64;

/// How a request for a change ended.
pub(crate) enum Done {
    Yes,
    AskLeader,
    Refused(String),
    Busy(String),
}

impl Group {
    /// Joins the cluster that one of `seeds` (`host:port`) is a member of, as a learner; the leader
    /// makes a voter of it if there are too few. Returns when this node has the group's membership.
    pub async fn join(&self, seeds: &[String]) -> Result<(), JoinError> {
        let core = &self.core;
        let mut targets: VecDeque<String> = seeds.iter().take(TARGETS_MAX).cloned().collect();
        if targets.is_empty() {
            return Err(JoinError::NoSeeds);
        }
        let deadline = Instant::now() + JOIN_TIMEOUT;
        let mut last = "none".to_owned();
        while Instant::now() < deadline {
            // What a leader has written without a majority may be gone with the leader: not a membership yet.
            if core.is_member() {
                return Ok(());
            }
            let Some(target) = targets.pop_front() else {
                break;
            };
            match core.join_by(&target).await? {
                Done::Yes => return self.await_membership(deadline).await,
                Done::AskLeader => last = format!("{target} named another leader"),
                Done::Refused(reason) => return Err(JoinError::Refused(reason)),
                Done::Busy(reason) => {
                    last = format!("{target}: {reason}");
                    sleep(PAUSE).await;
                }
            }
            targets.push_back(target);
        }
        Err(JoinError::Timeout {
            waited: JOIN_TIMEOUT,
            last,
        })
    }

    /// Tells the cluster this node's address, if it is another one than before the restart.
    pub(crate) async fn announce(&self) {
        let core = &self.core;
        loop {
            let own = core.known(core.config.node);
            if own.is_none_or(|own| own.address == core.config.address) {
                return;
            }
            let metrics = core.metrics();
            let others = metrics.membership_config.nodes();
            let others: Vec<String> = others
                .filter(|(id, _)| **id != core.config.node)
                .map(|(_, member)| member.address.clone())
                .collect();
            if core.leader() == Leader::This {
                let member = proto::Member::new(core.config.node, &core.member());
                core.change(Change::AddLearner(member)).await;
            }
            for member in others {
                match core.join_by(&member).await {
                    Ok(Done::Yes) => break,
                    Ok(_) => {}
                    Err(error) => tracing::warn!(member, %error, "new address not taken"),
                }
            }
            sleep(ANNOUNCE_PAUSE).await;
        }
    }

    async fn await_membership(&self, deadline: Instant) -> Result<(), JoinError> {
        let mut metrics = self.core.raft.server_metrics();
        loop {
            if self.core.is_initialized() {
                return Ok(());
            }
            let changed = tokio::time::timeout_at(deadline, metrics.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(JoinError::Timeout {
                    waited: JOIN_TIMEOUT,
                    last: format!(
                        "added, but the leader does not reach this node at {}",
                        self.core.config.address
                    ),
                });
            }
        }
    }

    /// Adds a node as a learner. Nodes that [`Group::join`] do this themselves.
    pub async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), ChangeError> {
        self.change(Change::AddLearner(proto::Member::new(node, &member)))
            .await
    }

    /// Removes a node from the group; a live learner takes its place if it was a voter, and a leader
    /// hands over first. Its id may be used again, by other data: messages name their receiver's, and a
    /// node does not stand for election before the log has it with its own. What the state says about the
    /// node is changed by `Command::RemoveNode`.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change(Change::RemoveNode(node.0)).await
    }

    /// Makes `to`, a voter, the leader.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), ChangeError> {
        self.change(Change::TransferLeader(to.0)).await
    }

    /// Stands for election at once in the place of a leader whose process is known to be gone, with
    /// the rights of a successor that the leader chose itself: the others grant their vote although
    /// they have heard the leader a moment ago. Returns once the election has begun; does nothing if
    /// `gone` is not the leader this node follows, or if this node does not vote.
    ///
    /// Whether a leader is gone is the caller's judgement. A wrong one costs an election, never
    /// agreement: terms, votes and logs are compared as ever.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn campaign(&self, gone: NodeId) -> Result<(), ChangeError> {
        let core = &self.core;
        let metrics = core.metrics();
        let members = &metrics.membership_config;
        let votes = members.voter_ids().any(|id| id == core.config.node)
            && is_with_data(members, core.config.node, core.local.incarnation);
        if metrics.current_leader != Some(gone) || gone == core.config.node || !votes {
            return Ok(());
        }
        // Without a last entry: whether this node's log suffices is for the voters to judge.
        let request = TransferLeaderRequest::new(metrics.vote, core.config.node, None);
        match core.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => Ok(()),
            // Another vote came in between: somebody stands already.
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(ChangeError::Stopped),
        }
    }

    /// Has the leader make a change, whoever that is.
    async fn change(&self, change: Change) -> Result<(), ChangeError> {
        let core = &self.core;
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let mut last = "none".to_owned();
        while Instant::now() < deadline {
            if *core.stop.borrow() {
                return Err(ChangeError::Stopped);
            }
            let done = match core.leader() {
                Leader::Unknown => Done::Busy(core.situation()),
                Leader::This => core.change(change.clone()).await,
                Leader::Other(leader, member) => core.ask(leader, &member, change.clone()).await,
            };
            match done {
                Done::Yes => return Ok(()),
                Done::Refused(reason) => return Err(ChangeError::Refused(reason)),
                Done::AskLeader => {}
                Done::Busy(reason) => last = reason,
            }
            sleep(PAUSE).await;
        }
        Err(ChangeError::Timeout {
            waited: CHANGE_TIMEOUT,
            last,
        })
    }
}

impl Core {
    fn membership_client(&self, address: &str) -> Result<MembershipClient<PeerChannel>, String> {
        let channel = self.network.channels.get(address, Lane::Consensus);
        channel
            .map(MembershipClient::new)
            .map_err(|error| error.to_string())
    }

    /// Asks a member who it is.
    async fn hello(&self, address: &str) -> Result<proto::HelloResponse, Status> {
        let mut client = self
            .membership_client(address)
            .map_err(Status::unavailable)?;
        let request = self.local.introduction(proto::HelloRequest {
            node: self.config.node.0,
        });
        within(self.config.call_timeout, client.hello(request)).await
    }

    /// One try to join: greet `seed`, compare clusters and clocks, then ask the leader it names.
    async fn join_by(&self, seed: &str) -> Result<Done, JoinError> {
        self.membership_client(seed).map_err(JoinError::Address)?;
        let asked_at = self.config.clock.now();
        let hello = match self.hello(seed).await {
            Ok(hello) => hello,
            Err(status) if status.code() == Code::Unauthenticated => {
                return Err(JoinError::WrongSecret {
                    seed: seed.to_owned(),
                    reason: status.message().to_owned(),
                });
            }
            Err(status) => return Ok(Done::Busy(status.message().to_owned())),
        };
        let answered_at = self.config.clock.now();
        if hello.node == self.config.node.0 && hello.incarnation != self.local.incarnation {
            return Err(JoinError::DuplicateNode(format!(
                "node id {} is in use by the node at {seed}: give this node another id",
                self.config.node
            )));
        }
        if hello.cluster.is_empty() {
            return Ok(Done::Busy("it is in no cluster itself".to_owned()));
        }
        if let Some(own) = self.local.cluster.id()
            && *own != *hello.cluster
        {
            return Err(JoinError::OtherCluster {
                own: own.to_string(),
                seed: seed.to_owned(),
                found: hello.cluster,
            });
        }
        self.check_skew(seed, asked_at.0, answered_at.0, hello.clock_ms)?;
        if hello.leader_address.is_empty() {
            return Ok(Done::Busy("it knows no leader".to_owned()));
        }
        self.ask_to_join(&hello.leader_address, hello.cluster).await
    }

    async fn ask_to_join(&self, leader: &str, cluster: String) -> Result<Done, JoinError> {
        let mut client = self.membership_client(leader).map_err(JoinError::Address)?;
        let request = self.local.introduction(proto::JoinRequest {
            cluster: cluster.clone(),
            member: Some(proto::Member::new(self.config.node, &self.member())),
            clock_ms: self.config.clock.now().0,
        });
        let deadline = self.config.propose_timeout + self.config.call_timeout;
        let response = match within(deadline, client.join(request)).await {
            Ok(response) => response,
            Err(status) => {
                return Ok(Done::Busy(format!("leader {leader}: {}", status.message())));
            }
        };
        match response.outcome() {
            Outcome::Duplicate => Err(JoinError::DuplicateNode(response.reason)),
            Outcome::Done => {
                self.local
                    .cluster
                    .adopt(&cluster)
                    .map_err(JoinError::Refused)?;
                Ok(Done::Yes)
            }
            _ => Ok(Done::from(response)),
        }
    }

    /// Compares the peer's clock with this node's at the time it answered, give or take the time
    /// of the call.
    fn check_skew(
        &self,
        seed: &str,
        asked: u64,
        answered: u64,
        peer: u64,
    ) -> Result<(), JoinError> {
        let (skew_ms, direction) = if peer < asked {
            (asked - peer, "ahead of")
        } else {
            (peer.saturating_sub(answered), "behind")
        };
        let max_ms = self.skew_max_ms();
        if skew_ms <= max_ms {
            return Ok(());
        }
        Err(JoinError::ClockSkew {
            seed: seed.to_owned(),
            skew_ms,
            direction,
            max_ms,
        })
    }

    fn skew_max_ms(&self) -> u64 {
        u64::try_from(self.config.clock_skew_max.as_millis()).unwrap_or(u64::MAX)
    }

    async fn ask(&self, leader: NodeId, member: &Member, change: Change) -> Done {
        let mut client = match self.membership_client(&member.address) {
            Ok(client) => client,
            Err(reason) => return Done::Busy(reason),
        };
        let body = proto::ChangeRequest {
            change: Some(change),
        };
        let request = self.local.request(leader, member, body);
        let deadline = self.config.propose_timeout + self.config.call_timeout;
        match within(deadline, client.change(request)).await {
            Ok(response) => Done::from(response),
            Err(status) => Done::Busy(format!("leader {leader}: {}", status.message())),
        }
    }

    /// The leader's side of a join.
    pub(crate) async fn add_member(&self, request: proto::JoinRequest) -> proto::ChangeResponse {
        let Some(member) = request.member else {
            return self.respond(Done::Refused("no member named".to_owned()));
        };
        let (node, member) = member.into_parts();
        if self.leader() != Leader::This {
            return self.respond(Done::AskLeader);
        }
        let own = self.local.cluster.id();
        if own.as_deref() != Some(request.cluster.as_str()) {
            let own = own.unwrap_or_default();
            return self.respond(Done::Refused(format!(
                "this is cluster {own}, not {}",
                request.cluster
            )));
        }
        let now = self.config.clock.now().0;
        let skew = now.abs_diff(request.clock_ms);
        // The request was under way for a while.
        if skew > self.skew_max_ms() + self.call_timeout_ms() {
            return self.respond(Done::Refused(format!(
                "node {node}'s clock differs from the leader's by {skew} ms: set the clocks right \
                 (NTP) and try again"
            )));
        }
        if let Some(known) = self.known(node)
            && known.incarnation != member.incarnation
        {
            let mut response = self.respond(Done::Refused(
                self.why_duplicate(node, &known, &member).await,
            ));
            response.set_outcome(Outcome::Duplicate);
            return response;
        }
        let added = self.change(Change::AddLearner(proto::Member::new(node, &member)));
        self.respond(added.await)
    }

    fn call_timeout_ms(&self) -> u64 {
        u64::try_from(self.config.call_timeout.as_millis()).unwrap_or(u64::MAX)
    }

    fn known(&self, node: NodeId) -> Option<Member> {
        let metrics = self.metrics();
        metrics.membership_config.get_node(&node).cloned()
    }

    async fn why_duplicate(&self, node: NodeId, known: &Member, asking: &Member) -> String {
        if known.address == asking.address {
            return format!(
                "node {node} at {} is a member already, but with other data: its data folder was \
                 lost or replaced. Remove node {node} from the cluster, then let this node join \
                 under a new id",
                known.address
            );
        }
        let alive = matches!(self.hello(&known.address).await, Ok(hello) if hello.node == node.0);
        if alive {
            format!(
                "node id {node} is in use by the node at {}, which is alive: give this node another id",
                known.address
            )
        } else {
            format!(
                "node id {node} belongs to the node at {}, which does not answer now: give this node \
                 another id, and remove node {node} if it is gone",
                known.address
            )
        }
    }

    /// Makes a change, if this node leads.
    pub(crate) async fn change(&self, change: Change) -> Done {
        let _one_at_a_time = self.changing.lock().await;
        match change {
            Change::AddLearner(member) => {
                let (node, member) = member.into_parts();
                if node.0 == 0 || member.address.is_empty() {
                    return Done::Refused("a member needs an id above 0 and an address".to_owned());
                }
                match self.known(node) {
                    Some(known) if known == member => self.confirmed(node, &member),
                    Some(known) if known.incarnation != member.incarnation => {
                        Done::Refused(format!("node {node} is a member already"))
                    }
                    // The same data at another address: openraft warns of changing addresses,
                    // because messages could reach another node's data; the incarnation they
                    // carry rules that out.
                    Some(_) => {
                        let nodes = BTreeMap::from([(node, member)]);
                        self.commit(ChangeMembers::SetNodes(nodes), true).await
                    }
                    None => {
                        let nodes = BTreeMap::from([(node, member)]);
                        self.commit(ChangeMembers::AddNodes(nodes), true).await
                    }
                }
            }
            Change::RemoveNode(node) => self.remove(NodeId(node)).await,
            Change::TransferLeader(to) => self.hand_over(NodeId(to)).await,
        }
    }

    /// Whether a majority has agreed to a member that the newest membership has.
    fn confirmed(&self, node: NodeId, member: &Member) -> Done {
        let metrics = self.metrics();
        if metrics.committed_membership_config.get_node(&node) == Some(member) {
            Done::Yes
        } else {
            Done::Busy(format!("a majority has not confirmed node {node} yet"))
        }
    }

    async fn remove(&self, node: NodeId) -> Done {
        // Whoever leads since a moment ago, or was stopped, has not heard the others yet.
        let deadline = Instant::now() + ALIVE;
        loop {
            let metrics = self.metrics();
            let config = metrics.membership_config.membership();
            if self.leader() != Leader::This {
                return Done::AskLeader;
            }
            if config.get_node(&node).is_none() {
                return Done::Refused(format!("node {node} is not a member of the group"));
            }
            let mut voters: BTreeSet<NodeId> = config.voter_ids().collect();
            if !voters.remove(&node) {
                let change = ChangeMembers::RemoveNodes(BTreeSet::from([node]));
                return self.commit(change, false).await;
            }
            voters.extend(self.ready_learners(&metrics).into_iter().next());
            if voters.is_empty() {
                return Done::Refused(format!(
                    "node {node} is the only voter: add another node before it is removed"
                ));
            }
            let alive = voters
                .iter()
                .filter(|id| **id == self.config.node || self.is_alive(&metrics, **id))
                .count();
            if alive > voters.len() / 2 {
                return self.replace_voters(node, voters).await;
            }
            if Instant::now() >= deadline {
                return Done::Refused(format!(
                    "without node {node} only {alive} of {} voters would be alive, no majority: \
                     bring the others back first",
                    voters.len()
                ));
            }
            sleep(PAUSE).await;
        }
    }

    /// Removes `gone`, a voter; `voters` are those that stay and who votes in its place.
    async fn replace_voters(&self, gone: NodeId, voters: BTreeSet<NodeId>) -> Done {
        if gone == self.config.node {
            return match self.successor() {
                Some(successor) => match self.hand_over(successor).await {
                    Done::Yes => Done::AskLeader,
                    other => other,
                },
                None => Done::Busy("no voter can take over yet".to_owned()),
            };
        }
        self.commit(ChangeMembers::ReplaceAllVoters(voters), false)
            .await
    }

    /// Writes a membership to the log and waits until it holds.
    pub(crate) async fn commit(&self, change: ChangeMembers<NodeId, Member>, retain: bool) -> Done {
        let text = change.to_string();
        let written = self.raft.change_membership(change, retain);
        let Ok(written) = timeout(self.config.propose_timeout, written).await else {
            return Done::Busy("a majority does not confirm the change".to_owned());
        };
        match written {
            Ok(_) => {
                tracing::info!(change = text, "membership changed");
                Done::Yes
            }
            Err(RaftError::Fatal(error)) => Done::Refused(error.to_string()),
            Err(RaftError::APIError(error)) => match error {
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_) => {
                    Done::AskLeader
                }
                ClientWriteError::ChangeMembershipError(
                    error @ (ChangeMembershipError::InProgress(_)
                    | ChangeMembershipError::UncommittedLeaderLog(_)),
                ) => Done::Busy(error.to_string()),
                error => Done::Refused(error.to_string()),
            },
        }
    }

    async fn hand_over(&self, to: NodeId) -> Done {
        let metrics = self.metrics();
        if to == self.config.node {
            return match self.leader() {
                Leader::This => Done::Yes,
                _ => Done::AskLeader,
            };
        }
        if self.leader() != Leader::This {
            return Done::AskLeader;
        }
        if !metrics.membership_config.voter_ids().any(|id| id == to) {
            return Done::Refused(format!("node {to} is not a voter, so it cannot lead"));
        }
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            return Done::Refused("the group stopped on this node".to_owned());
        }
        let taken = self
            .raft
            .wait(Some(self.config.call_timeout))
            .metrics(
                |metrics| metrics.current_leader == Some(to),
                "another node leads",
            )
            .await;
        match taken {
            Ok(_) => Done::Yes,
            Err(_) => Done::Busy(format!("node {to} did not take over in time")),
        }
    }

    /// Learners that are alive and have nearly the whole log; only the leader knows.
    pub(crate) fn ready_learners(&self, metrics: &Metrics) -> Vec<NodeId> {
        let Some(replication) = &metrics.replication else {
            return Vec::new();
        };
        let last = metrics.last_log_index.unwrap_or(0);
        let config = metrics.membership_config.membership();
        config
            .learner_ids()
            .filter(|id| self.is_alive(metrics, *id))
            .filter(|id| {
                let matched = replication.get(id).copied().flatten();
                matched.is_some_and(|matched| matched.index + LAG_MAX >= last)
            })
            .collect()
    }

    pub(crate) fn is_alive(&self, metrics: &Metrics, node: NodeId) -> bool {
        let heartbeat = metrics.heartbeat.as_ref();
        let confirmed = heartbeat.and_then(|heartbeat| heartbeat.get(&node)?.as_ref());
        confirmed.is_some_and(|confirmed| confirmed.elapsed() < ALIVE)
    }

    pub(crate) fn respond(&self, done: Done) -> proto::ChangeResponse {
        let (outcome, reason) = match done {
            Done::Yes => (Outcome::Done, String::new()),
            Done::AskLeader => (Outcome::AskLeader, String::new()),
            Done::Refused(reason) => (Outcome::Refused, reason),
            Done::Busy(reason) => (Outcome::Busy, reason),
        };
        proto::ChangeResponse {
            outcome: outcome.into(),
            reason,
        }
    }
}

/// A learner this many entries behind the leader may become a voter.
const LAG_MAX: u64 = 1000;

impl From<proto::ChangeResponse> for Done {
    fn from(response: proto::ChangeResponse) -> Self {
        match response.outcome() {
            Outcome::Done => Self::Yes,
            Outcome::AskLeader => Self::AskLeader,
            Outcome::Refused | Outcome::Duplicate => Self::Refused(response.reason),
            Outcome::Busy => Self::Busy(response.reason),
        }
    }
}
