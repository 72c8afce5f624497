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
    /// Version of the software; what formats it reads stands behind the `+`, see [`Formats`].
    pub version: String,
}

impl Node {
    /// What its program reads.
    #[must_use]
    pub fn formats(&self) -> Formats {
        Formats::of(&self.version)
    }
}

/// Newest versions of what nodes write for each other that a program reads; it reads the one before
/// each as well.
///
/// A node registers them as the build metadata of its software's version, `0.1.0+log2.mesh1`: the
/// record's layout stays what it was, so that nodes of any version read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Formats {
    /// Of the log's commands and of snapshots, [`crate::encoding::VERSION`].
    pub log: u8,
    /// Of the messages between nodes.
    pub mesh: u8,
}

impl Formats {
    /// What programs read that were released before nodes registered it.
    pub const UNTOLD: Self = Self { log: 2, mesh: 1 };

    /// What a registered version says; where it says nothing, [`Formats::UNTOLD`].
    #[must_use]
    pub fn of(version: &str) -> Self {
        let mut formats = Self::UNTOLD;
        let metadata = version.split_once('+').map_or("", |(_, metadata)| metadata);
        for part in metadata.split('.') {
            let number = |name| {
                part.strip_prefix(name)
                    .and_then(|text: &str| text.parse().ok())
            };
            if let Some(log) = number("log") {
                formats.log = log;
            } else if let Some(mesh) = number("mesh") {
                formats.mesh = mesh;
            }
        }
        formats
    }

    /// A software's version with what it reads.
    #[must_use]
    pub fn tell(self, version: &str) -> String {
        let joint = if version.contains('+') { '.' } else { '+' };
        format!("{version}{joint}log{}.mesh{}", self.log, self.mesh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tells_what_its_program_reads() {
        let formats = Formats { log: 7, mesh: 3 };
        assert_eq!(formats.tell("1.2.3-rc1"), "1.2.3-rc1+log7.mesh3");
        assert_eq!(Formats::of("1.2.3-rc1+log7.mesh3"), formats);
        assert_eq!(formats.tell("1.2.3+abc"), "1.2.3+abc.log7.mesh3");
        assert_eq!(Formats::of("1.2.3+abc.log7.mesh3"), formats);
        for silent in [
            "",
            "0.1.0",
            "0.1.0+",
            "log9",
            "0.1.0+log.mesh",
            "0.1.0+log256",
        ] {
            assert_eq!(Formats::of(silent), Formats::UNTOLD, "{silent}");
        }
    }
}
