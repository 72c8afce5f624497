//! openraft's network: how a leader or candidate reaches the other members of its group.
//!
//! openraft makes one [`Connection`] per peer and purpose; all use the pool in [`crate::channels`].
//! Replication is one long gRPC stream per peer, so that the next append is on its way while the
//! peer still writes the last one to disk; heartbeats, votes and transfers are single calls;
//! snapshots go in chunks on a connection of their own. Every call has a deadline, and a peer that
//! answers late holds up nobody but itself, because each has its own task.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use flotilla_model::id::NodeId;
use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::channels::{Channels, Lane, PeerChannel};
use crate::envelope::Local;
use crate::proto;
use crate::proto::consensus_client::ConsensusClient;
use crate::types::{LogId, Member, Snapshot, TypeConfig, Vote};

/// Appends on their way to a peer that are not answered yet.
const APPENDS_IN_FLIGHT_MAX: usize = 32;
/// Bytes of a snapshot per message.
const SNAPSHOT_CHUNK: usize = 256 << 10;
/// Largest message between nodes: a full append of the largest commands.
pub(crate) const MESSAGE_MAX: usize = 32 << 20;
/// First and longest wait before a peer that cannot be reached is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Deadlines of calls between members.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines {
    /// Single calls and the opening of streams.
    pub(crate) call: Duration,
    /// An append that a peer has not confirmed; it may have to wait for a slow disk.
    pub(crate) append: Duration,
    /// A whole snapshot.
    pub(crate) snapshot: Duration,
}

type Answer<T> = Result<T, RPCError<TypeConfig>>;
type AppendResult = Result<Option<LogId>, StreamAppendError<TypeConfig>>;

/// Makes connections to the members of one group.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) local: Local,
    pub(crate) channels: Channels,
    pub(crate) deadlines: Arc<Deadlines>,
    pub(crate) addresses: Addresses,
}

/// Where members are now. openraft keeps a connection for as long as it keeps a member, so the
/// address it was made with may be an old one. Two owners: the group's task that follows the
/// membership writes it, calls read it.
#[derive(Clone, Default)]
pub(crate) struct Addresses {
    members: Arc<RwLock<BTreeMap<NodeId, Member>>>,
}

impl Addresses {
    /// Takes over the members of a configuration.
    pub(crate) fn set<'a>(&self, members: impl Iterator<Item = (&'a NodeId, &'a Member)>) {
        let fresh = members.map(|(id, member)| (*id, member.clone())).collect();
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// The address of `member`, which is `known` under an address of some time.
    fn of(&self, member: NodeId, known: &Member) -> String {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let current = members.get(&member);
        // Another incarnation is another node's data, for which no message is meant.
        let current = current.filter(|current| current.incarnation == known.incarnation);
        current.unwrap_or(known).address.clone()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Replication,
    Heartbeat,
    Snapshot,
}

/// One peer, for one purpose.
pub(crate) struct Connection {
    network: Network,
    target: NodeId,
    member: Member,
    purpose: Purpose,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> Connection {
        self.connection(target, member, Purpose::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, member: &Member) -> Connection {
        self.connection(target, member, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, member: &Member) -> Connection {
        self.connection(target, member, Purpose::Snapshot)
    }
}

impl Network {
    fn connection(&self, target: NodeId, member: &Member, purpose: Purpose) -> Connection {
        Connection {
            network: self.clone(),
            target,
            member: member.clone(),
            purpose,
        }
    }

    /// A client of the consensus service at `address`.
    pub(crate) fn client(
        &self,
        address: &str,
        lane: Lane,
    ) -> Result<ConsensusClient<PeerChannel>, Status> {
        let channel = self
            .channels
            .get(address, lane)
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(ConsensusClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX))
    }
}

/// Awaits a call, at most until its deadline.
pub(crate) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {deadline:?}"
        ))),
    }
}

impl Connection {
    fn client(&self) -> Result<ConsensusClient<PeerChannel>, Status> {
        let lane = match self.purpose {
            Purpose::Replication | Purpose::Heartbeat => Lane::Consensus,
            Purpose::Snapshot => Lane::Bulk,
        };
        let address = self.network.addresses.of(self.target, &self.member);
        self.network.client(&address, lane)
    }

    fn request<T>(&self, body: T) -> Request<T> {
        self.network.local.request(self.target, &self.member, body)
    }

    fn failed(&self, action: RPCTypes, timeout: Duration, status: &Status) -> RPCError<TypeConfig> {
        match status.code() {
            Code::DeadlineExceeded => Timeout {
                action,
                id: self.network.local.node,
                target: self.target,
                timeout,
            }
            .into(),
            Code::Cancelled => NetworkError::new(status).into(),
            _ => Unreachable::from_string(format!("{:?}: {}", status.code(), status.message()))
                .into(),
        }
    }

    /// Opens the replication stream once there is a request, and answers its responses in order.
    ///
    /// openraft's pause after failures comes before a request. Whoever connects without waiting for one
    /// connects to a peer that refuses as fast as it can refuse.
    async fn pipeline<S>(
        &mut self,
        mut requests: S,
    ) -> Answer<stream::BoxStream<'_, Answer<AppendResult>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let Some(first) = requests.next().await else {
            return Ok(stream::empty().boxed());
        };
        let deadlines = Arc::clone(&self.network.deadlines);
        let failed =
            |status: &Status| self.failed(RPCTypes::AppendEntries, deadlines.append, status);
        let mut client = self.client().map_err(|status| failed(&status))?;
        let (outgoing, body) = mpsc::channel(APPENDS_IN_FLIGHT_MAX);
        let mut in_flight = VecDeque::with_capacity(APPENDS_IN_FLIGHT_MAX);
        in_flight.push_back(Instant::now());
        // There is room, and the other end is `body`.
        let _ = outgoing.send(first.into()).await;
        let opening = client.append(self.request(ReceiverStream::new(body)));
        let responses = within(deadlines.call, opening)
            .await
            .map_err(|status| failed(&status))?;
        let pipeline = Pipeline {
            requests: Some(requests),
            outgoing: Some(outgoing),
            responses,
            in_flight,
            deadline: deadlines.append,
        };
        let this = &*self;
        Ok(stream::unfold(Some(pipeline), move |pipeline| async move {
            let mut pipeline = pipeline?;
            match pipeline.next().await? {
                Ok(result) => {
                    let last = result.is_err();
                    Some((Ok(result), (!last).then_some(pipeline)))
                }
                Err(status) => {
                    let error = this.failed(RPCTypes::AppendEntries, pipeline.deadline, &status);
                    Some((Err(error), None))
                }
            }
        })
        .boxed())
    }
}

/// A replication stream. Requests are pulled only while this is polled: once openraft drops it, no
/// request can get lost in a transport buffer that still pulls from openraft's log.
struct Pipeline<S> {
    requests: Option<S>,
    outgoing: Option<mpsc::Sender<proto::AppendRequest>>,
    responses: Streaming<proto::AppendResponse>,
    in_flight: VecDeque<Instant>,
    deadline: Duration,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// The next answer; `None` when all requests are answered and there will be no more.
    async fn next(&mut self) -> Option<Result<AppendResult, Status>> {
        loop {
            if self.requests.is_none() {
                // Tells the peer that no request follows.
                self.outgoing = None;
                if self.in_flight.is_empty() {
                    return None;
                }
            }
            let overdue = self.in_flight.front().map(|sent| *sent + self.deadline);
            let room = self.in_flight.len() < APPENDS_IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                response = self.responses.message() => return Some(self.answer(response)),
                () = sleep_until(overdue) => {
                    return Some(Err(Status::deadline_exceeded("appends are not confirmed")));
                }
                request = next(&mut self.requests), if room => match request {
                    None => self.requests = None,
                    Some(request) => {
                        let sent = match &self.outgoing {
                            Some(outgoing) => outgoing.send(request.into()).await.is_ok(),
                            None => false,
                        };
                        if !sent {
                            // The response stream says why.
                            let response = self.responses.message().await;
                            return Some(self.answer(response));
                        }
                        self.in_flight.push_back(Instant::now());
                    }
                },
            }
        }
    }

    fn answer(
        &mut self,
        response: Result<Option<proto::AppendResponse>, Status>,
    ) -> Result<AppendResult, Status> {
        self.in_flight.pop_front();
        let response = response?.ok_or_else(|| Status::unavailable("peer ended the stream"))?;
        append_result(response)
    }
}

async fn next<S: Stream + Unpin>(stream: &mut Option<S>) -> Option<S::Item> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn append_result(response: proto::AppendResponse) -> Result<AppendResult, Status> {
    use proto::append_response::Result as Wire;
    match response.result {
        Some(Wire::Matched(matched)) => Ok(Ok(matched.id.map(Into::into))),
        Some(Wire::Conflict(id)) => Ok(Err(StreamAppendError::Conflict(id.into()))),
        Some(Wire::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(vote.into()))),
        None => Err(Status::data_loss("append response without result")),
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<AppendEntriesResponse<TypeConfig>> {
        let last = request
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(request.prev_log_id);
        let deadline = option.hard_ttl();
        let call = async {
            let mut client = self.client()?;
            let request = self.request(proto::AppendRequest::from(request));
            let response = within(deadline, client.heartbeat(request)).await?;
            append_result(response)
        };
        match call.await {
            Ok(Ok(matched)) if matched == last => Ok(AppendEntriesResponse::Success),
            Ok(Ok(matched)) => Ok(AppendEntriesResponse::PartialSuccess(matched)),
            Ok(Err(StreamAppendError::Conflict(_))) => Ok(AppendEntriesResponse::Conflict),
            Ok(Err(StreamAppendError::HigherVote(vote))) => {
                Ok(AppendEntriesResponse::HigherVote(vote))
            }
            Err(status) => Err(self.failed(RPCTypes::AppendEntries, deadline, &status)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> openraft::base::BoxFuture<'s, Answer<openraft::base::BoxStream<'s, Answer<AppendResult>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.purpose == Purpose::Heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(self.pipeline(input))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        let deadline = option.soft_ttl();
        let call = async {
            let request = self.request(proto::VoteRequest::from(request));
            let response = within(deadline, self.client()?.vote(request)).await?;
            response.try_into()
        };
        call.await
            .map_err(|status: Status| self.failed(RPCTypes::Vote, deadline, &status))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        let deadline = option.soft_ttl();
        let call = async {
            let request = self.request(proto::VoteRequest::from(request));
            let response = within(deadline, self.client()?.pre_vote(request)).await?;
            response.try_into()
        };
        call.await
            .map_err(|status: Status| self.failed(RPCTypes::Vote, deadline, &status))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let deadline = self.network.deadlines.snapshot;
        let mut cancel = pin!(cancel);
        let call = async {
            let chunks = self.request(stream::iter(chunks(vote, snapshot)));
            let response = within(deadline, self.client()?.install_snapshot(chunks)).await?;
            response.try_into()
        };
        tokio::select! {
            closed = &mut cancel => Err(closed.into()),
            answer = call => answer.map_err(|status: Status| {
                self.failed(RPCTypes::InstallSnapshot, deadline, &status).into()
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<TransferLeaderResponse<TypeConfig>> {
        let deadline = option.soft_ttl();
        let wire = self.request(proto::TransferRequest::from(&request));
        let call = async { within(deadline, self.client()?.transfer_leader(wire)).await };
        match call.await {
            Ok(response) if response.refused.is_empty() => Ok(Ok(())),
            Ok(response) => {
                tracing::warn!(
                    peer = %self.target,
                    reason = response.refused,
                    "leadership transfer refused"
                );
                // openraft only tells done from not done.
                Ok(Err(TransferLeaderError::LogNotFlushed {
                    expected: request.last_log_id().copied(),
                    actual: None,
                }))
            }
            Err(status) => Err(self.failed(RPCTypes::TransferLeader, deadline, &status)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let (first, longest) = BACKOFF;
        Some(Backoff::new((0..).map(move |try_number: u32| {
            first.saturating_mul(1 << try_number.min(10)).min(longest)
        })))
    }
}

/// The messages that carry a snapshot.
fn chunks(vote: Vote, snapshot: Snapshot) -> impl Iterator<Item = proto::SnapshotChunk> + Send {
    use proto::snapshot_chunk::Part;
    let data = snapshot.snapshot;
    let length = data.len();
    let header = proto::SnapshotHeader::new(
        vote,
        &snapshot.meta,
        u64::try_from(length).unwrap_or(u64::MAX),
    );
    let bodies = (0..length)
        .step_by(SNAPSHOT_CHUNK)
        .map(move |start| Part::Data(data.slice(start..length.min(start + SNAPSHOT_CHUNK))));
    std::iter::once(Part::Header(header))
        .chain(bodies)
        .map(|part| proto::SnapshotChunk { part: Some(part) })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};

    use flotilla_storage::{Identity, Storage};
    use futures_util::FutureExt;

    use super::*;
    use crate::channels::{ChannelsConfig, Dialer};
    use crate::envelope::Cluster;
    use crate::types::SnapshotMeta;

    #[tokio::test]
    async fn a_peer_that_refuses_is_called_at_the_pace_of_the_requests() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identity = Identity {
            cluster: None,
            node: 1,
        };
        let storage = Storage::open(folder.path(), identity).expect("opens");
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let dialer: Dialer = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
        });
        let network = Network {
            local: Local {
                node: NodeId(1),
                group: Arc::from("region-default"),
                incarnation: 1,
                cluster: Cluster::new(storage),
            },
            channels: Channels::dialed_by(ChannelsConfig::new("secret"), dialer),
            deadlines: Arc::new(Deadlines {
                call: Duration::from_secs(30),
                append: Duration::from_secs(30),
                snapshot: Duration::from_secs(30),
            }),
            addresses: Addresses::default(),
        };
        let member = Member {
            address: "n2:1".to_owned(),
            incarnation: 2,
        };
        let mut connection = network.connection(NodeId(2), &member, Purpose::Replication);
        let (requests, waiting) = mpsc::channel(1);
        let mut opening = Box::pin(connection.pipeline(ReceiverStream::new(waiting)));
        for _ in 0..100 {
            assert!((&mut opening).now_or_never().is_none(), "no request came");
            tokio::task::yield_now().await;
        }
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, NodeId(1)),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        requests.send(request).await.expect("it is waited for");
        let refused = opening.await.err();
        assert!(
            matches!(refused, Some(RPCError::Unreachable(_))),
            "{refused:?}"
        );
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_snapshot_is_cut_and_fits_together_again() {
        let bytes: Vec<u8> = (0..SNAPSHOT_CHUNK * 2 + 17).map(|n| n as u8).collect();
        let snapshot = Snapshot {
            meta: SnapshotMeta::default(),
            snapshot: Bytes::from(bytes.clone()),
        };
        let vote = Vote::new_committed(1, NodeId(1));
        let mut joined = Vec::new();
        let mut headers = 0;
        for chunk in chunks(vote, snapshot) {
            match chunk.part.expect("never empty") {
                proto::snapshot_chunk::Part::Header(header) => {
                    assert_eq!(header.length, bytes.len() as u64);
                    headers += 1;
                }
                proto::snapshot_chunk::Part::Data(data) => joined.extend_from_slice(&data),
            }
        }
        assert_eq!(headers, 1);
        assert_eq!(joined, bytes);
    }
}
