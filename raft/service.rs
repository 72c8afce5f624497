//! The receiving end of calls between nodes: finds the group, checks that the message is for this
//! node, and hands it to openraft, to the log or to [`crate::membership`].

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flotilla_model::encoding::decode_entry;
use flotilla_model::id::NodeId;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, FuturesUnordered};
use openraft::raft::{AppendEntriesRequest, StreamAppendError};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::envelope;
use crate::group::{Core, Group};
use crate::groups::Groups;
use crate::proposer::{BATCH_BYTES, BATCH_COMMANDS_MAX, COMMAND_MAX, Verdict, append};
use crate::proto;
use crate::proto::append_response::Result as AppendResult;
use crate::proto::consensus_server::Consensus;
use crate::proto::membership_server::Membership;
use crate::proto::propose_response::Outcome;
use crate::proto::snapshot_chunk::Part;
use crate::reader::confirmed_index;
use crate::stop::stopped;
use crate::types::{Batch, Snapshot, TypeConfig};

/// Forwarded batches of one node that are under way; further ones wait in its stream.
const FORWARDED_MAX: usize = 16;
/// Longest wait for the next part of a snapshot.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// Room made in advance for a snapshot.
const SNAPSHOT_RESERVE: usize = 64 << 20;

/// All groups of this node, as other nodes call them.
#[derive(Clone)]
pub(crate) struct Service {
    groups: Groups,
}

impl Service {
    pub(crate) fn new(groups: Groups) -> Self {
        Self { groups }
    }

    fn group(&self, metadata: &MetadataMap) -> Result<Group, Status> {
        let name = envelope::group(metadata)?;
        let group = self.groups.named(name);
        group.ok_or_else(|| Status::not_found(format!("this node has no group {name}")))
    }

    /// The group a consensus message is for, and its sender.
    fn addressed(&self, metadata: &MetadataMap) -> Result<(Arc<Core>, NodeId), Status> {
        let core = self.group(metadata)?.core;
        let from = core.local.check(metadata)?;
        Ok((core, from))
    }
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the group stopped on this node: {error}"))
}

#[tonic::async_trait]
impl Consensus for Service {
    type AppendStream = BoxStream<'static, Result<proto::AppendResponse, Status>>;
    type ProposeStream = BoxStream<'static, Result<proto::ProposeResponse, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (core, from) = self.addressed(request.metadata())?;
        let requests = tokio_stream::StreamExt::map_while(request.into_inner(), move |request| {
            let request = request.ok()?;
            AppendEntriesRequest::<TypeConfig>::try_from(request)
                .inspect_err(|error| tracing::warn!(peer = %from, %error, "append refused"))
                .ok()
        });
        let results = core.raft.stream_append(requests);
        Ok(Response::new(
            results
                .map(|result| match result {
                    Ok(result) => Ok(append_response(result)),
                    Err(error) => Err(fatal(error)),
                })
                .boxed(),
        ))
    }

    async fn heartbeat(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendResponse>, Status> {
        let (core, _) = self.addressed(request.metadata())?;
        let request: AppendEntriesRequest<TypeConfig> = request.into_inner().try_into()?;
        let previous = request.prev_log_id;
        let last = request
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(previous);
        let response = core.raft.append_entries(request).await.map_err(fatal)?;
        let result = match response {
            openraft::raft::AppendEntriesResponse::Conflict if previous.is_none() => {
                return Err(Status::internal("conflict with nothing"));
            }
            response => response.into_stream_result(previous, last),
        };
        Ok(Response::new(append_response(result)))
    }

    async fn vote(
        &self,
        request: Request<proto::VoteRequest>,
    ) -> Result<Response<proto::VoteResponse>, Status> {
        let (core, _) = self.addressed(request.metadata())?;
        let request = request.into_inner().try_into()?;
        let response = core.raft.vote(request).await.map_err(fatal)?;
        Ok(Response::new(response.into()))
    }

    async fn pre_vote(
        &self,
        request: Request<proto::VoteRequest>,
    ) -> Result<Response<proto::VoteResponse>, Status> {
        let (core, _) = self.addressed(request.metadata())?;
        let request = request.into_inner().try_into()?;
        let response = core.raft.pre_vote(request).await.map_err(fatal)?;
        Ok(Response::new(response.into()))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferRequest>,
    ) -> Result<Response<proto::TransferResponse>, Status> {
        let (core, _) = self.addressed(request.metadata())?;
        let request = request.into_inner().try_into()?;
        let transferred = core.raft.handle_transfer_leader(request).await;
        let refused = match transferred.map_err(fatal)? {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        Ok(Response::new(proto::TransferResponse { refused }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::SnapshotResponse>, Status> {
        let (core, from) = self.addressed(request.metadata())?;
        let Ok(_one_at_a_time) = core.receiving.try_lock() else {
            return Err(Status::unavailable("another snapshot is arriving"));
        };
        let (header, data) =
            receive_snapshot(request.into_inner(), core.config.snapshot_bytes_max).await?;
        let (vote, meta) = header.into_parts()?;
        tracing::info!(peer = %from, bytes = data.len(), "snapshot received");
        let snapshot = Snapshot {
            meta,
            snapshot: data.freeze(),
        };
        let installed = core.raft.install_full_snapshot(vote, snapshot).await;
        Ok(Response::new(installed.map_err(fatal)?.into()))
    }

    async fn propose(
        &self,
        request: Request<Streaming<proto::ProposeRequest>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        let (core, from) = self.addressed(request.metadata())?;
        let (responses, stream) = mpsc::channel(FORWARDED_MAX);
        tokio::spawn(serve_forwarded(core, from, request.into_inner(), responses));
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        let (core, _) = self.addressed(request.metadata())?;
        let index = confirmed_index(&core.raft, core.config.call_timeout).await?;
        Ok(Response::new(proto::ReadIndexResponse { index }))
    }
}

fn append_response(
    result: Result<Option<crate::types::LogId>, StreamAppendError<TypeConfig>>,
) -> proto::AppendResponse {
    let result = match result {
        Ok(id) => AppendResult::Matched(proto::Matched {
            id: id.map(Into::into),
        }),
        Err(StreamAppendError::Conflict(id)) => AppendResult::Conflict(id.into()),
        Err(StreamAppendError::HigherVote(vote)) => AppendResult::HigherVote(vote.into()),
    };
    proto::AppendResponse {
        result: Some(result),
    }
}

async fn receive_snapshot(
    mut chunks: Streaming<proto::SnapshotChunk>,
    bytes_max: u64,
) -> Result<(proto::SnapshotHeader, BytesMut), Status> {
    let malformed = || Status::invalid_argument("snapshot does not fit its header");
    let Some(Part::Header(header)) = next_part(&mut chunks).await? else {
        return Err(malformed());
    };
    if header.length > bytes_max {
        return Err(Status::resource_exhausted(format!(
            "snapshot has {} bytes, at most {bytes_max} are accepted",
            header.length
        )));
    }
    let length = usize::try_from(header.length).map_err(|_| malformed())?;
    let mut data = BytesMut::with_capacity(length.min(SNAPSHOT_RESERVE));
    while let Some(part) = next_part(&mut chunks).await? {
        let Part::Data(chunk) = part else {
            return Err(malformed());
        };
        if chunk.len() > length - data.len() {
            return Err(malformed());
        }
        data.extend_from_slice(&chunk);
    }
    if data.len() < length {
        return Err(malformed());
    }
    Ok((header, data))
}

async fn next_part(chunks: &mut Streaming<proto::SnapshotChunk>) -> Result<Option<Part>, Status> {
    match timeout(CHUNK_TIMEOUT, chunks.message()).await {
        Ok(chunk) => Ok(chunk?.and_then(|chunk| chunk.part)),
        Err(_) => Err(Status::deadline_exceeded(
            "the rest of the snapshot is missing",
        )),
    }
}

/// Appends what a follower forwards, in its order, and answers when it is applied or refused.
async fn serve_forwarded(
    core: Arc<Core>,
    from: NodeId,
    mut requests: Streaming<proto::ProposeRequest>,
    responses: mpsc::Sender<Result<proto::ProposeResponse, Status>>,
) {
    let mut stop = core.stop.subscribe();
    let mut under_way = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() {
        let response = tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = responses.closed() => return,
            Some(response) = under_way.next(), if !under_way.is_empty() => response,
            request = requests.message(), if open && under_way.len() < FORWARDED_MAX => {
                let Ok(Some(request)) = request else {
                    open = false;
                    continue;
                };
                let sequence = request.sequence;
                match admit(&core, from, request) {
                    Ok(batch) => {
                        let verdict = append(&core.raft, batch).await;
                        under_way.push(async move { respond(sequence, verdict.await) });
                        continue;
                    }
                    Err(reason) => respond(sequence, Verdict::Invalid(reason)),
                }
            }
        };
        if responses.send(Ok(response)).await.is_err() {
            return;
        }
    }
}

/// A batch of commands that a member may send and that every node can apply.
fn admit(core: &Core, from: NodeId, request: proto::ProposeRequest) -> Result<Batch, String> {
    let metrics = core.metrics();
    if metrics.membership_config.get_node(&from).is_none() {
        return Err(format!("node {from} is not a member of the cluster"));
    }
    if request.commands.is_empty() || request.commands.len() > BATCH_COMMANDS_MAX {
        return Err(format!("batch of {} commands", request.commands.len()));
    }
    let size: usize = request.commands.iter().map(Bytes::len).sum();
    if size > BATCH_BYTES + COMMAND_MAX {
        return Err(format!("batch of {size} bytes"));
    }
    for command in &request.commands {
        decode_entry(command).map_err(|error| error.to_string())?;
    }
    Ok(Batch {
        at: core.stamp.next(core.history.applied().at),
        commands: request.commands,
    })
}

fn respond(sequence: u64, verdict: Verdict) -> proto::ProposeResponse {
    let (outcome, reason) = match verdict {
        Verdict::Applied => (Outcome::Applied, String::new()),
        Verdict::Refused => (Outcome::Refused, String::new()),
        Verdict::Unknown => (Outcome::Unknown, String::new()),
        Verdict::Invalid(reason) => (Outcome::Invalid, reason),
    };
    proto::ProposeResponse {
        sequence,
        outcome: outcome.into(),
        reason,
    }
}

#[tonic::async_trait]
impl Membership for Service {
    async fn hello(
        &self,
        request: Request<proto::HelloRequest>,
    ) -> Result<Response<proto::HelloResponse>, Status> {
        let core = self.group(request.metadata())?.core;
        Ok(Response::new(proto::HelloResponse {
            node: core.config.node.0,
            cluster: core
                .local
                .cluster
                .id()
                .map(|id| id.to_string())
                .unwrap_or_default(),
            clock_ms: core.config.clock.now().0,
            leader_address: core.leader_address(),
            incarnation: core.local.incarnation,
        }))
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let core = self.group(request.metadata())?.core;
        Ok(Response::new(core.add_member(request.into_inner()).await))
    }

    async fn change(
        &self,
        request: Request<proto::ChangeRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let (core, _) = self.addressed(request.metadata())?;
        let change = request.into_inner().change;
        let change = change.ok_or_else(|| Status::invalid_argument("no change named"))?;
        let done = core.change(change).await;
        Ok(Response::new(core.respond(done)))
    }
}
