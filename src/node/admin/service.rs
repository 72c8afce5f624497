//! The service's entry points: each hands over to the file that knows the subject.

use flotilla_raft::Applied;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::proto::admin_server::Admin;
use super::stream::{Changes, Streams};
use super::{AdminContext, error, proto};

/// The service's full name.
pub(super) const NAME: &str = "flotilla.admin.v1.Admin";

pub(super) struct AdminService {
    pub(super) context: AdminContext,
    pub(super) streams: Streams,
}

impl AdminService {
    /// `stopping` turns true when streams have to end.
    pub(super) fn new(context: AdminContext, stopping: watch::Receiver<bool>) -> Self {
        Self {
            context,
            streams: Streams::new(stopping),
        }
    }

    /// The state to answer from. After a confirmed read the newest applied one serves as well: it
    /// is the same or newer, and its place in the log is known.
    pub(super) async fn applied(&self, consistency: i32) -> Result<Applied, Status> {
        match proto::Consistency::try_from(consistency) {
            Ok(proto::Consistency::Stale) => {}
            Ok(proto::Consistency::Unspecified | proto::Consistency::Linearizable) => {
                let read = self.context.group.read().await;
                read.map_err(|error| error::of_read(&error))?;
            }
            Err(_) => return Err(Status::invalid_argument("unknown consistency")),
        }
        Ok(self.context.group.applied())
    }

    pub(super) fn position(&self, applied: &Applied) -> Option<proto::Position> {
        Some(proto::Position {
            node: self.context.node.0,
            log_index: applied.log_index.unwrap_or(0),
            revision: applied.state.revision.0,
            applied_at_ms: applied.at.0,
        })
    }

    /// Where the log is now; after a change of ours, at or behind it.
    pub(super) fn position_now(&self) -> Option<proto::Position> {
        self.position(&self.context.group.applied())
    }
}

/// Refuses a request without something it needs.
pub(super) fn needed<'a>(what: &str, value: &'a str) -> Result<&'a str, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{what} is needed")));
    }
    Ok(value)
}

#[tonic::async_trait]
impl Admin for AdminService {
    type WatchStream = Changes;

    async fn get_status(
        &self,
        _request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        Ok(Response::new(self.status()))
    }

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        self.nodes(request.into_inner()).await.map(Response::new)
    }

    async fn list_rooms(
        &self,
        request: Request<proto::ListRoomsRequest>,
    ) -> Result<Response<proto::ListRoomsResponse>, Status> {
        self.rooms(request.into_inner()).await.map(Response::new)
    }

    async fn get_room(
        &self,
        request: Request<proto::GetRoomRequest>,
    ) -> Result<Response<proto::GetRoomResponse>, Status> {
        self.room(request.into_inner()).await.map(Response::new)
    }

    async fn list_participants(
        &self,
        request: Request<proto::ListParticipantsRequest>,
    ) -> Result<Response<proto::ListParticipantsResponse>, Status> {
        self.participants(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_tracks(
        &self,
        request: Request<proto::ListTracksRequest>,
    ) -> Result<Response<proto::ListTracksResponse>, Status> {
        self.tracks(request.into_inner()).await.map(Response::new)
    }

    async fn list_routes(
        &self,
        request: Request<proto::ListRoutesRequest>,
    ) -> Result<Response<proto::ListRoutesResponse>, Status> {
        self.routes(request.into_inner()).await.map(Response::new)
    }

    async fn get_state_hash(
        &self,
        request: Request<proto::GetStateHashRequest>,
    ) -> Result<Response<proto::GetStateHashResponse>, Status> {
        self.state_hash(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_takeovers(
        &self,
        request: Request<proto::ListTakeoversRequest>,
    ) -> Result<Response<proto::ListTakeoversResponse>, Status> {
        self.takeovers(&request.into_inner()).map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Changes>, Status> {
        self.changes(request.into_inner()).map(Response::new)
    }

    async fn trigger_snapshot(
        &self,
        request: Request<proto::TriggerSnapshotRequest>,
    ) -> Result<Response<proto::TriggerSnapshotResponse>, Status> {
        let built = self.build_snapshot(request.into_inner()).await;
        built.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        self.move_leader(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn add_node(
        &self,
        request: Request<proto::AddNodeRequest>,
    ) -> Result<Response<proto::AddNodeResponse>, Status> {
        self.admit_node(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::DrainNodeResponse>, Status> {
        self.drain(&request.into_inner()).await.map(Response::new)
    }

    async fn resume_node(
        &self,
        request: Request<proto::ResumeNodeRequest>,
    ) -> Result<Response<proto::ResumeNodeResponse>, Status> {
        self.resume(&request.into_inner()).await.map(Response::new)
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Result<Response<proto::RemoveNodeResponse>, Status> {
        self.dismiss_node(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn close_room(
        &self,
        request: Request<proto::CloseRoomRequest>,
    ) -> Result<Response<proto::CloseRoomResponse>, Status> {
        self.end_room(request.into_inner()).await.map(Response::new)
    }

    async fn remove_participant(
        &self,
        request: Request<proto::RemoveParticipantRequest>,
    ) -> Result<Response<proto::RemoveParticipantResponse>, Status> {
        self.expel(request.into_inner()).await.map(Response::new)
    }
}
