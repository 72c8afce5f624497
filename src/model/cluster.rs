//! The nodes, as replicated.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{BootId, NodeId, Region};

/// Whether a node takes participants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum NodeState {
    /// Takes everything.
    Serving,
    /// Takes nobody new, is being emptied.
    Draining,
    /// Taken for dead: whom it served has moved, nobody new is placed on it, until it writes its
    /// record again. Set by `Command::NodeLost` alone. Since encoding version 2.
    Lost {
        /// What the verdict rested on.
        cause: LossCause,
    },
}

impl NodeState {
    /// Whether it is taken for dead.
    #[must_use]
    pub const fn is_lost(self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Why a node was taken for lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum LossCause {
    /// Its process has ended: its connections were reset and new ones are refused.
    Crashed,
    /// It was silent for longer than the bound, to a majority of the voters.
    Unreachable,
    /// It answers but does not work: its disk stalls, its log lags or its sessions cannot connect.
    Stalled,
    /// It said goodbye.
    Stopped,
}

impl LossCause {
    /// Every cause, in order.
    pub const ALL: [Self; 4] = [
        Self::Crashed,
        Self::Unreachable,
        Self::Stalled,
        Self::Stopped,
    ];

    /// One word for metrics, logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crashed => "crashed",
            Self::Unreachable => "unreachable",
            Self::Stalled => "stalled",
            Self::Stopped => "stopped",
        }
    }
}

/// A node. It writes its own record at every start.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its region.
    pub region: Region,
    /// This start of its process.
    pub boot: BootId,
    /// Where other nodes reach its gRPC (`host:port`): consensus and mesh.
    pub cluster_address: String,
    /// Where its admin gRPC listens (`host:port`).
    pub admin_address: String,
    /// Where clients reach its HTTP and WebSocket (`http://host:port`).
    pub client_url: String,
    /// UDP addresses for media relays, one per shard, in shard order.
    pub relay_addresses: Vec<SocketAddr>,
    /// Participants it can take; 0: not limited.
    pub capacity: u32,
    /// Whether it takes participants.
    pub state: NodeState,
    /// Version of the software.
    pub version: String,
}
