//! What operators have the cluster do.

use std::time::Duration;

use flotilla_model::cluster::NodeState;
use flotilla_model::command::{Command, Rejection, Reply};
use flotilla_model::id::{Identity, NodeId, RequestId, RoomName, UnixMillis};
use flotilla_model::participant::LeaveReason;
use flotilla_raft::{Member, Position, ProposeError, Status as GroupView};
use tonic::Status;
use tracing::info;

use super::read::log_id;
use super::service::{AdminService, needed};
use super::{error, proto};
use crate::control::drain;

/// Longest wait for a snapshot.
const SNAPSHOT_MAX: Duration = Duration::from_secs(60);
/// How often it is looked for.
const SNAPSHOT_POLL: Duration = Duration::from_millis(20);

impl AdminService {
    pub(super) async fn build_snapshot(
        &self,
        request: proto::TriggerSnapshotRequest,
    ) -> Result<proto::TriggerSnapshotResponse, Status> {
        let group = &self.context.group;
        let wanted = group.status().applied;
        let triggered = group.trigger_snapshot().await;
        triggered.map_err(|error| error::of_proposal(&error))?;
        let snapshot = self
            .reached("snapshot", wanted, |status| status.snapshot)
            .await?;
        if request.purge_log
            && let Some(snapshot) = snapshot
        {
            let purged = group.purge_log(snapshot.index).await;
            purged.map_err(|error| error::of_proposal(&error))?;
            self.reached("purge of the log", Some(snapshot), |status| status.purged)
                .await?;
            info!(
                up_to = snapshot.index,
                "log before the snapshot forgotten, as an operator asked"
            );
        }
        Ok(proto::TriggerSnapshotResponse {
            position: self.position_now(),
            snapshot: snapshot.map(log_id),
            purged: group.status().purged.map(log_id),
        })
    }

    /// Waits until the group on this node is that far. Gives how far it is.
    async fn reached(
        &self,
        what: &str,
        wanted: Option<Position>,
        of: impl Fn(&GroupView) -> Option<Position>,
    ) -> Result<Option<Position>, Status> {
        let group = &self.context.group;
        let reached = tokio::time::timeout(SNAPSHOT_MAX, async {
            loop {
                let at = of(&group.status());
                if at >= wanted {
                    return at;
                }
                tokio::time::sleep(SNAPSHOT_POLL).await;
            }
        });
        reached
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no {what} within {SNAPSHOT_MAX:?}")))
    }

    pub(super) async fn move_leader(
        &self,
        request: proto::TransferLeaderRequest,
    ) -> Result<proto::TransferLeaderResponse, Status> {
        let to = node_id(request.node)?;
        let group = &self.context.group;
        let moved = group.transfer_leader(to).await;
        moved.map_err(|error| error::of_change(&error))?;
        info!(node = %to, "leader moved by an operator");
        Ok(proto::TransferLeaderResponse {
            position: self.position_now(),
            leader: to.0,
            term: group.status().term,
        })
    }

    pub(super) async fn admit_node(
        &self,
        request: proto::AddNodeRequest,
    ) -> Result<proto::AddNodeResponse, Status> {
        let node = node_id(request.node)?;
        let address = needed("cluster_address", &request.cluster_address)?.to_owned();
        if request.incarnation == 0 {
            return Err(Status::invalid_argument(
                "incarnation is needed: the file `incarnation` in the node's data folder holds it. \
                 A node that runs joins by itself (`flotilla cluster join`)",
            ));
        }
        let member = Member {
            address,
            incarnation: request.incarnation,
        };
        let added = self.context.group.add_learner(node, member).await;
        added.map_err(|error| error::of_change(&error))?;
        info!(%node, "node added by an operator");
        Ok(proto::AddNodeResponse {
            position: self.position_now(),
        })
    }

    pub(super) async fn drain(
        &self,
        request: &proto::DrainNodeRequest,
    ) -> Result<proto::DrainNodeResponse, Status> {
        let node = node_id(request.node)?;
        if !drain::has_successor(&self.context.group.state(), node) {
            return Err(Status::failed_precondition(format!(
                "node {node} cannot be drained: no other node of its region serves"
            )));
        }
        self.set_state(node, NodeState::Draining).await?;
        info!(%node, "node drained by an operator");
        Ok(proto::DrainNodeResponse {
            position: self.position_now(),
        })
    }

    pub(super) async fn resume(
        &self,
        request: &proto::ResumeNodeRequest,
    ) -> Result<proto::ResumeNodeResponse, Status> {
        let node = node_id(request.node)?;
        self.set_state(node, NodeState::Serving).await?;
        info!(%node, "node resumed by an operator");
        Ok(proto::ResumeNodeResponse {
            position: self.position_now(),
        })
    }

    async fn set_state(&self, node: NodeId, state: NodeState) -> Result<(), Status> {
        let changed = self.propose(Command::SetNodeState { node, state }).await;
        changed.map_err(|error| error::of_proposal(&error))?;
        Ok(())
    }

    /// Out of the group first: from then on it can no longer write itself into the state again.
    pub(super) async fn dismiss_node(
        &self,
        request: proto::RemoveNodeRequest,
    ) -> Result<proto::RemoveNodeResponse, Status> {
        let node = node_id(request.node)?;
        if node == self.context.node {
            return Err(Status::failed_precondition(format!(
                "node {node} cannot remove itself: ask another node"
            )));
        }
        let group = &self.context.group;
        let was_member = group
            .status()
            .members
            .iter()
            .any(|member| member.node == node);
        if was_member {
            let removed = group.remove_node(node).await;
            removed.map_err(|error| error::of_change(&error))?;
        }
        let was_registered = match self.propose(Command::RemoveNode { node }).await {
            Ok(_) => true,
            Err(ProposeError::Rejected(Rejection::NodeNotFound)) => false,
            Err(error) => return Err(error::of_proposal(&error)),
        };
        if !was_member && !was_registered {
            return Err(Status::not_found(format!("node {node} does not exist")));
        }
        info!(%node, "node removed by an operator");
        Ok(proto::RemoveNodeResponse {
            position: self.position_now(),
            was_member,
            was_registered,
        })
    }

    pub(super) async fn end_room(
        &self,
        request: proto::CloseRoomRequest,
    ) -> Result<proto::CloseRoomResponse, Status> {
        let room = RoomName::from(needed("room", &request.room)?);
        let closed = self
            .propose(Command::DeleteRoom { room: room.clone() })
            .await;
        let reply = closed.map_err(|error| error::of_proposal(&error))?;
        info!(%room, "room closed by an operator");
        Ok(proto::CloseRoomResponse {
            position: self.position_now(),
            room_version: reply.version.0,
        })
    }

    pub(super) async fn expel(
        &self,
        request: proto::RemoveParticipantRequest,
    ) -> Result<proto::RemoveParticipantResponse, Status> {
        let room = RoomName::from(needed("room", &request.room)?);
        let identity = Identity::from(needed("identity", &request.identity)?);
        let leave = Command::Leave {
            room: room.clone(),
            identity,
            sid: None,
            reason: LeaveReason::ParticipantRemoved,
            revoke_before: request.revoke_tokens.then(|| self.next_second()),
        };
        let removed = self.propose(leave).await;
        let reply = removed.map_err(|error| error::of_proposal(&error))?;
        info!(%room, "participant removed by an operator");
        Ok(proto::RemoveParticipantResponse {
            position: self.position_now(),
            room_version: reply.version.0,
        })
    }

    /// Tokens are dated in seconds: the second that has begun is over for them.
    fn next_second(&self) -> UnixMillis {
        let seconds = self.context.group.time().0 / 1000;
        UnixMillis((seconds + 1) * 1000)
    }

    async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        let request = RequestId(rand::random());
        self.context.group.propose(request, command).await
    }
}

fn node_id(id: u64) -> Result<NodeId, Status> {
    if id == 0 {
        return Err(Status::invalid_argument(
            "node is needed: its number, from 1 up",
        ));
    }
    Ok(NodeId(id))
}
