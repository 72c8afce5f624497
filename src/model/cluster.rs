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
