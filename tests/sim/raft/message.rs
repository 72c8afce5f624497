//! What a log holds and what replicas say to each other.

use std::collections::BTreeSet;
use std::sync::Arc;

use flotilla_model::command::{Command, Rejection, Reply};
use flotilla_model::id::{RequestId, UnixMillis};
use flotilla_raft::Change;

/// Who decides and who listens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Decide.
    pub voters: BTreeSet<u64>,
    /// Listen.
    pub learners: BTreeSet<u64>,
}

/// One log entry.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Term of the leader that wrote it.
    pub term: u64,
    /// Its place.
    pub index: u64,
    /// Leader's wall clock.
    pub at: UnixMillis,
    /// Commands that share it.
    pub commands: Vec<(RequestId, Command)>,
    /// New members from here on.
    pub members: Option<Members>,
}

/// A state that takes the place of a log's beginning.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Place of the last entry in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// That entry's time.
    pub at: UnixMillis,
    /// Members as of then.
    pub members: Members,
    /// The product's own encoding.
    pub bytes: Arc<Vec<u8>>,
}

/// Between replicas.
#[derive(Clone, Debug)]
pub enum RaftMessage {
    /// Leader to everybody.
    Append {
        /// Leader's term.
        term: u64,
        /// Place and term of the entry before.
        prev: (u64, u64),
        /// What follows.
        entries: Vec<Arc<Logged>>,
        /// Committed so far.
        commit: u64,
        /// Which heartbeat.
        round: u64,
    },
    /// The answer.
    Appended {
        /// Follower's term.
        term: u64,
        /// The log fits.
        fits: bool,
        /// Synced and equal up to here; where it does not fit, where to try.
        matched: u64,
        /// Which heartbeat.
        round: u64,
    },
    /// A candidate asks.
    Vote {
        /// Its term, or the one it would have.
        term: u64,
        /// Place and term of its last entry.
        last: (u64, u64),
        /// Only asks whether it would be elected.
        pre: bool,
        /// The leader whose process has ended.
        gone: Option<u64>,
    },
    /// The answer.
    Voted {
        /// Voter's term.
        term: u64,
        /// Yes.
        granted: bool,
        /// To a [`RaftMessage::Vote`] with `pre`, of this term.
        pre: Option<u64>,
    },
    /// A whole state.
    Install {
        /// Leader's term.
        term: u64,
        /// The state.
        snapshot: Snapshot,
    },
    /// A follower passes proposals on.
    Forward {
        /// The proposals.
        commands: Vec<(RequestId, Command)>,
    },
    /// Not taken: whoever was asked does not lead.
    NotLeader {
        /// Which.
        requests: Vec<RequestId>,
    },
    /// A follower asks how far the log certainly is.
    AskIndex {
        /// Number of the question.
        id: u64,
    },
    /// The answer.
    Index {
        /// Number of the question.
        id: u64,
        /// So far.
        index: u64,
    },
}

/// For the world to do.
#[derive(Debug)]
pub enum Out {
    /// To another replica.
    Send(u64, RaftMessage),
    /// The disk is to sync up to this place; then [`super::Replica::synced`].
    Sync(u64),
    /// An entry was applied: its outcomes, and what changed.
    Applied(Box<Advance>),
    /// A snapshot was installed: what led to it is not known here.
    Replaced,
    /// An answer to [`super::Replica::read`]: the log certainly has this much.
    ReadIndex(u64, u64),
    /// This node leads.
    Elected(u64),
    /// An entry is committed as far as this leader knows.
    Committed(Arc<Logged>),
}

/// An applied entry.
#[derive(Debug)]
pub struct Advance {
    /// Hash of the state after it, now and then.
    pub hash: Option<u64>,
    /// The entry.
    pub entry: Arc<Logged>,
    /// Per command.
    pub outcomes: Vec<(RequestId, Result<Reply, Rejection>)>,
    /// As the feed has them.
    pub changes: Vec<Arc<Change>>,
}
