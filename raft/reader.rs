//! Linearizable reads: which log index a read has to wait for.
//!
//! Reads that arrive while a round of confirmation runs share the next round, so their number does
//! not matter. A round asks the leader (this node or another) for its read index; the leader
//! confirms with a majority, after the question came, that it still leads. So a leader that was
//! paused and woke up cannot answer with what it had before.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::linearizable_read::LinearizerOption;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tonic::Status;

use crate::channels::Lane;
use crate::network::{Network, within};
use crate::proposer::Leader;
use crate::proto;
use crate::stop::stopped;
use crate::types::Raft;

/// Reads that may wait on this node at once.
pub(crate) const READS_MAX: usize = 16_384;
/// Rounds of confirmation under way at once.
const ROUNDS_MAX: usize = 2;
/// Wait after a failed round.
const PAUSE: Duration = Duration::from_millis(20);

/// A read that waits for its index.
pub(crate) type Waiting = oneshot::Sender<u64>;

#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) raft: Raft,
    pub(crate) network: Network,
}

impl Reader {
    /// Runs until the group stops.
    pub(crate) async fn run(
        self,
        mut queue: mpsc::Receiver<Waiting>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut rounds = JoinSet::new();
        loop {
            let first = tokio::select! {
                () = stopped(&mut stop) => return,
                Some(_) = rounds.join_next(), if !rounds.is_empty() => continue,
                first = queue.recv(), if rounds.len() < ROUNDS_MAX => match first {
                    Some(first) => first,
                    None => return,
                },
            };
            let mut waiting = vec![first];
            while let Ok(next) = queue.try_recv() {
                waiting.push(next);
            }
            rounds.spawn(self.clone().round(waiting));
        }
    }

    /// Finds an index for the reads; tries again while any of them still waits.
    async fn round(self, mut waiting: Vec<Waiting>) {
        // One receiver for all tries: a new one takes whatever happened before for a change.
        let mut leaders = self.raft.server_metrics();
        loop {
            match self.index().await {
                Ok(index) => {
                    for read in waiting {
                        // A reader that gave up meanwhile is of no concern.
                        let _ = read.send(index);
                    }
                    return;
                }
                Err(status) => tracing::debug!(%status, "read index not confirmed"),
            }
            waiting.retain(|read| !read.is_closed());
            if waiting.is_empty() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                // It fails at once when openraft has ended; the pause counts all the same.
                Ok(()) = leaders.changed() => {}
            }
        }
    }

    async fn index(&self) -> Result<u64, Status> {
        match Leader::of(&self.raft, self.network.local.node) {
            Leader::Unknown => Err(Status::unavailable("no leader known")),
            Leader::This => confirmed_index(&self.raft, self.network.deadlines.call).await,
            Leader::Other(leader, member) => {
                let mut client = self.network.client(&member.address, Lane::Consensus)?;
                let request =
                    self.network
                        .local
                        .request(leader, &member, proto::ReadIndexRequest {});
                let answer = within(self.network.deadlines.call, client.read_index(request));
                Ok(answer.await?.index)
            }
        }
    }
}

/// The index that a read which starts now has to wait for, if this node leads.
pub(crate) async fn confirmed_index(raft: &Raft, deadline: Duration) -> Result<u64, Status> {
    // No age: only an acknowledgement of a heartbeat sent after this moment counts.
    let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(deadline);
    raft.get_read_linearizer(option)
        .await
        .map(|linearizer| linearizer.read_log_id().index())
        .map_err(|error| Status::unavailable(error.to_string()))
}
