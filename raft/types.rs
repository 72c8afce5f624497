//! The types that openraft is instantiated with, and the members of a group.
//!
//! A log entry carries a [`Batch`] of encoded commands rather than one: under load one entry, one
//! append and one round of replication serve many writers, which is where most of the throughput
//! comes from. Answers do not travel through openraft: every node applies every command, so each
//! node answers its own callers from its own state (see [`crate::pending`]).

use std::fmt;

use bytes::Bytes;
use flotilla_model::id::{NodeId, UnixMillis};
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// What a Flotilla group agrees on.
    pub TypeConfig:
        D = Batch,
        R = (),
        NodeId = NodeId,
        Node = Member,
);

pub(crate) type LeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<NodeId, Member>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Bytes>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::machine::Machine>;

/// A member of a group, voter or learner.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Member {
    /// Where its cluster port is (`host:port`).
    pub address: String,
    /// Drawn when its data folder was created. Messages for another incarnation are refused, so
    /// that a node which lost its data can never vote under its old id.
    pub incarnation: u64,
}

/// Commands that share one log entry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Leader's wall clock when it accepted them.
    pub at: UnixMillis,
    /// `flotilla_model::encoding::encode_entry` of each; its own `at` is not used.
    pub commands: Vec<Bytes>,
}

impl Batch {
    /// Bytes of all commands.
    #[must_use]
    pub fn size(&self) -> usize {
        self.commands.iter().map(Bytes::len).sum()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Batch({} commands, {} bytes)",
            self.commands.len(),
            self.size()
        )
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
