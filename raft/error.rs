//! What can go wrong, one type per operation of [`crate::Group`].

use std::time::Duration;

use flotilla_model::command::Rejection;
use flotilla_model::id::NodeId;
use thiserror::Error;

use crate::channels::ChannelError;

/// Why a command has no reply.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ProposeError {
    /// Applied, and refused by the state: the same on every node.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Not applied: no leader took it within the deadline.
    #[error("no leader took the change within {waited:?}: {reason}")]
    NoLeader {
        /// How long it was tried.
        waited: Duration,
        /// What this node knows about the group.
        reason: String,
    },
    /// Outcome unknown: a leader may have it in its log, but no majority confirmed it in time. The
    /// same request id may be proposed again and applies at most once.
    #[error("the change is not confirmed after {waited:?}, it may still take effect: {reason}")]
    Timeout {
        /// How long it was waited for.
        waited: Duration,
        /// What this node knows about the group.
        reason: String,
    },
    /// Not applied: too many commands are waiting on this node already.
    #[error("too many changes are waiting on this node")]
    Overloaded,
    /// Not applied: the command is larger than a log entry may be.
    #[error("the change takes {size} bytes, more than the {max} that an entry of the log may have")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// Most bytes.
        max: usize,
    },
    /// Not applied: there are nodes that could not read it yet.
    #[error(
        "this change has log version {version} and not every node reads it yet, only up to {active}: \
         upgrade the nodes that `flotilla admin nodes` shows with a lower version, or remove them"
    )]
    NotYet {
        /// The change's version.
        version: u8,
        /// What every node reads.
        active: u8,
    },
    /// Not applied: the leader will not take commands from this node.
    #[error("the leader refuses changes from this node: {0}")]
    Refused(String),
    /// The group stopped on this node; outcome unknown.
    #[error("the group stopped on this node")]
    Stopped,
}

/// Why a linearizable read failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReadError {
    /// No leader could confirm with a majority that it still leads.
    #[error("no up-to-date state could be confirmed within {waited:?}: {reason}")]
    NoLeader {
        /// How long it was tried.
        waited: Duration,
        /// What this node knows about the group.
        reason: String,
    },
    /// This node lags behind the leader by more than it could catch up.
    #[error("this node did not catch up with log index {index} within {waited:?}")]
    Lagging {
        /// How long it was waited for.
        waited: Duration,
        /// Index to reach.
        index: u64,
    },
    /// Too many reads are waiting on this node.
    #[error("too many reads are waiting on this node")]
    Overloaded,
    /// The group stopped on this node.
    #[error("the group stopped on this node")]
    Stopped,
}

/// Why a group could not be started on this node.
#[derive(Debug, Error)]
pub enum StartError {
    /// A setting is out of range.
    #[error("raft setting: {0}")]
    Config(String),
    /// The data folder cannot be used.
    #[error(transparent)]
    Storage(#[from] flotilla_storage::OpenError),
    /// A file beside the database cannot be used.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The log or snapshot cannot be read.
    #[error("the group's data cannot be read: {0}")]
    Data(String),
}

/// Why a cluster could not be founded.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BootstrapError {
    /// The node has data of a group already.
    #[error("this node is in a cluster already ({0}): nothing to found")]
    Initialized(String),
    /// The data folder cannot be written.
    #[error("the cluster's id cannot be kept: {0}")]
    Storage(String),
    /// The group stopped.
    #[error("the group stopped on this node: {0}")]
    Stopped(String),
}

/// Why a node could not join.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum JoinError {
    /// No seed was given.
    #[error("no address of a cluster member was given")]
    NoSeeds,
    /// An address does not parse.
    #[error("{0}")]
    Address(String),
    /// The secrets differ.
    #[error("{seed} refuses this node: {reason}")]
    WrongSecret {
        /// Who refused.
        seed: String,
        /// Its words.
        reason: String,
    },
    /// The node's data belongs to another cluster.
    #[error(
        "this node's data belongs to cluster {own}, but {seed} is in cluster {found}: use an empty \
         data folder, or the address of a member of {own}"
    )]
    OtherCluster {
        /// Whose data this is.
        own: String,
        /// Who was asked.
        seed: String,
        /// Its cluster.
        found: String,
    },
    /// The node is known to the cluster under another address or incarnation, or is alive.
    #[error("{0}")]
    DuplicateNode(String),
    /// The clocks differ too much.
    #[error(
        "this node's clock is {skew_ms} ms {direction} {seed}'s, at most {max_ms} ms are allowed: \
         set the clocks right (NTP) and try again"
    )]
    ClockSkew {
        /// Whose clock it was compared with.
        seed: String,
        /// Milliseconds between the clocks.
        skew_ms: u64,
        /// `ahead of` or `behind`.
        direction: &'static str,
        /// Most milliseconds.
        max_ms: u64,
    },
    /// Refused for another lasting reason.
    #[error("the cluster refuses this node: {0}")]
    Refused(String),
    /// Nobody who could add the node answered in time.
    #[error("not added to the cluster within {waited:?}; last answer: {last}")]
    Timeout {
        /// How long it was tried.
        waited: Duration,
        /// What happened last.
        last: String,
    },
}

impl From<ChannelError> for JoinError {
    fn from(error: ChannelError) -> Self {
        Self::Address(error.to_string())
    }
}

/// Why a change of membership or leader did not happen.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ChangeError {
    /// The node named is not what it has to be.
    #[error("{0}")]
    Refused(String),
    /// Nobody who could do it answered in time.
    #[error("not done within {waited:?}; last answer: {last}")]
    Timeout {
        /// How long it was tried.
        waited: Duration,
        /// What happened last.
        last: String,
    },
    /// The group stopped on this node.
    #[error("the group stopped on this node")]
    Stopped,
    /// The node is no member.
    #[error("node {0} is not a member of the group")]
    UnknownNode(NodeId),
}
