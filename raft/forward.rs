//! Commands on their way to another node that leads: one pipelined gRPC stream per group.
//!
//! [`crate::proposer`] opens a [`Forwarder`] per leader it knows and drops it when the leader
//! changes. What was handed over and not answered by then is of unknown outcome.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use flotilla_model::id::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::channels::Lane;
use crate::network::{Network, within};
use crate::proposer::Verdict;
use crate::proto;
use crate::proto::propose_response::Outcome;
use crate::types::Member;

/// Batches handed over and not yet on the stream.
const HANDOVER_MAX: usize = 8;
/// A leader that answers nothing for this long is asked again on a new stream.
const STALL: Duration = Duration::from_secs(2);

struct Handover {
    commands: Vec<Bytes>,
    verdict: oneshot::Sender<Verdict>,
}

pub(crate) struct Forwarder {
    handovers: mpsc::Sender<Handover>,
    task: JoinHandle<()>,
}

impl Forwarder {
    pub(crate) fn open(network: Network, leader: NodeId, member: Member) -> Self {
        let (handovers, queue) = mpsc::channel(HANDOVER_MAX);
        let task = tokio::spawn(async move {
            let mut stream = Stream {
                queue,
                outstanding: HashMap::new(),
                sequence: 0,
            };
            if let Err(status) = stream.run(&network, leader, &member).await {
                tracing::debug!(%leader, %status, "forwarding ended");
            }
            stream.refuse_rest();
        });
        Self { handovers, task }
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.handovers.is_closed()
    }

    /// Hands a batch over; the future it gives resolves with what became of it.
    pub(crate) async fn send(
        &self,
        commands: Vec<Bytes>,
    ) -> impl Future<Output = Verdict> + Send + use<> {
        let (verdict, answer) = oneshot::channel();
        let taken = self.handovers.send(Handover { commands, verdict }).await;
        async move {
            match taken {
                Ok(()) => answer.await.unwrap_or(Verdict::Unknown),
                Err(_) => Verdict::Refused,
            }
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Stream {
    queue: mpsc::Receiver<Handover>,
    outstanding: HashMap<u64, oneshot::Sender<Verdict>>,
    sequence: u64,
}

impl Stream {
    async fn run(
        &mut self,
        network: &Network,
        leader: NodeId,
        member: &Member,
    ) -> Result<(), Status> {
        let mut client = network.client(&member.address, Lane::Consensus)?;
        let (outgoing, body) = mpsc::channel(HANDOVER_MAX);
        let request = network
            .local
            .request(leader, member, ReceiverStream::new(body));
        let mut responses = within(network.deadlines.call, client.propose(request)).await?;
        let mut stalled_at = Instant::now() + STALL;
        loop {
            tokio::select! {
                biased;
                response = responses.message() => match response? {
                    Some(response) => {
                        stalled_at = Instant::now() + STALL;
                        self.answer(response);
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(stalled_at), if !self.outstanding.is_empty() => {
                    return Err(Status::deadline_exceeded("the leader answers nothing"));
                }
                handover = self.queue.recv() => {
                    let Some(handover) = handover else {
                        return Ok(());
                    };
                    if self.outstanding.is_empty() {
                        stalled_at = Instant::now() + STALL;
                    }
                    self.sequence += 1;
                    self.outstanding.insert(self.sequence, handover.verdict);
                    let request = proto::ProposeRequest {
                        sequence: self.sequence,
                        commands: handover.commands,
                    };
                    if outgoing.send(request).await.is_err() {
                        return Err(Status::unavailable("the leader ended the stream"));
                    }
                }
            }
        }
    }

    fn answer(&mut self, response: proto::ProposeResponse) {
        let Some(waiting) = self.outstanding.remove(&response.sequence) else {
            return;
        };
        let verdict = match response.outcome() {
            Outcome::Applied => Verdict::Applied,
            Outcome::Refused => Verdict::Refused,
            Outcome::Unknown => Verdict::Unknown,
            Outcome::Invalid => Verdict::Invalid(response.reason),
        };
        // The proposer may have stopped waiting.
        let _ = waiting.send(verdict);
    }

    /// What never got onto the stream is certainly not in the log.
    fn refuse_rest(&mut self) {
        self.queue.close();
        while let Ok(handover) = self.queue.try_recv() {
            let _ = handover.verdict.send(Verdict::Refused);
        }
    }
}
