//! The nodes, as replicated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

/// A spell of a node's service: one of its starts, and how often that has come back into service after
/// its lease had ended. What others see of a node says something of the stint that they knew it in alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct Stint {
    /// Start of its process.
    pub boot: BootId,
    /// Times that it has come back; 0 for all stints of a start before every node read encoding version 5.
    pub returns: u32,
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

    /// What it is in now.
    #[must_use]
    pub fn stint(&self) -> Stint {
        let returns = metadata(&self.version).find_map(returns_of);
        Stint {
            boot: self.boot,
            returns: returns.unwrap_or(0),
        }
    }

    /// The record in another stint of the same start. `returns` stand where moving addresses do.
    #[must_use]
    pub(crate) fn with_returns(self, returns: u32) -> Self {
        let told = (returns > 0).then(|| format!("{RETURNS}{returns}"));
        self.with_metadata(|part| returns_of(part).is_none(), told)
    }

    /// Addresses that clients reach its media at and that move to whoever takes its people over: its
    /// own, and those of lost nodes that it holds. At most [`MOVING_MAX`].
    ///
    /// They stand in the build metadata of the version, as what the program reads does, so that the
    /// record's layout is the one that every node reads.
    #[must_use]
    pub fn moving_addresses(&self) -> Vec<IpAddr> {
        metadata(&self.version)
            .filter_map(moving_of)
            .take(MOVING_MAX)
            .collect()
    }

    /// The record with other moving addresses.
    #[must_use]
    pub fn with_moving_addresses(self, addresses: &[IpAddr]) -> Self {
        let moving = addresses
            .iter()
            .take(MOVING_MAX)
            .map(|address| moving_text(*address));
        self.with_metadata(|part| moving_of(part).is_none(), moving)
    }

    /// The record with the parts of its version's build metadata that are to be kept, and others behind them.
    fn with_metadata(
        mut self,
        is_kept: impl Fn(&str) -> bool,
        others: impl IntoIterator<Item = String>,
    ) -> Self {
        let (software, _) = self.version.split_once('+').unwrap_or((&self.version, ""));
        let kept = metadata(&self.version).filter(|part| is_kept(part));
        let parts: Vec<String> = kept.map(str::to_owned).chain(others).collect();
        self.version = if parts.is_empty() {
            software.to_owned()
        } else {
            format!("{software}+{}", parts.join("."))
        };
        self
    }
}

/// Moving addresses of one node at most: its own and those of some that were lost before they came back.
pub const MOVING_MAX: usize = 4;

/// What a moving address begins with in a version's build metadata; its bytes follow in hexadecimal.
const MOVING: &str = "moving";

/// What the number of returns begins with there.
const RETURNS: &str = "returns";

fn returns_of(part: &str) -> Option<u32> {
    part.strip_prefix(RETURNS)?.parse().ok()
}

fn metadata(version: &str) -> impl Iterator<Item = &str> {
    let metadata = version.split_once('+').map_or("", |(_, metadata)| metadata);
    metadata.split('.').filter(|part| !part.is_empty())
}

fn moving_of(part: &str) -> Option<IpAddr> {
    let digits = part.strip_prefix(MOVING)?;
    let is_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match digits.len() {
        8 if is_hexadecimal => {
            let bits = u32::from_str_radix(digits, 16).ok()?;
            Some(IpAddr::V4(Ipv4Addr::from_bits(bits)))
        }
        32 if is_hexadecimal => {
            let bits = u128::from_str_radix(digits, 16).ok()?;
            Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
        _ => None,
    }
}

fn moving_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{MOVING}{:08x}", address.to_bits()),
        IpAddr::V6(address) => format!("{MOVING}{:032x}", address.to_bits()),
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
        for part in metadata(version) {
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
    fn moving_addresses_stand_beside_what_a_program_reads() {
        let record = |version: &str| Node {
            version: version.to_owned(),
            ..crate::apply::tests::node(1, 1)
        };
        let formats = Formats { log: 4, mesh: 1 };
        let addresses: [IpAddr; 2] = [[10, 79, 0, 201].into(), "2001:db8::7".parse().expect("one")];
        let told = record("0.1.0+log4.mesh1").with_moving_addresses(&addresses);
        assert_eq!(
            told.version,
            "0.1.0+log4.mesh1.moving0a4f00c9.moving20010db8000000000000000000000007"
        );
        assert_eq!(told.moving_addresses(), addresses);
        assert_eq!(told.formats(), formats);
        let fewer = told.with_moving_addresses(&addresses[..1]);
        assert_eq!(fewer.moving_addresses(), addresses[..1]);
        assert_eq!(fewer.with_moving_addresses(&[]).version, "0.1.0+log4.mesh1");
        assert_eq!(record("0.1.0").with_moving_addresses(&[]).version, "0.1.0");
        for other in [
            "0.1.0",
            "0.1.0+moving",
            "0.1.0+movingfffff",
            "0.1.0+moving+a4f00c9",
        ] {
            assert_eq!(
                record(other).moving_addresses(),
                [] as [IpAddr; 0],
                "{other}"
            );
        }
    }

    #[test]
    fn returns_stand_beside_moving_addresses() {
        let moving = [IpAddr::from([10, 79, 0, 201])];
        let first = Node {
            version: "0.1.0+log5.mesh1".to_owned(),
            ..crate::apply::tests::node(1, 7)
        };
        let boot = BootId(7);
        assert_eq!(first.stint(), Stint { boot, returns: 0 });
        let second = first.clone().with_returns(1).with_moving_addresses(&moving);
        assert_eq!(second.stint(), Stint { boot, returns: 1 });
        assert_eq!(second.moving_addresses(), moving);
        assert_eq!(second.formats(), Formats { log: 5, mesh: 1 });
        let third = second.with_returns(2).with_moving_addresses(&[]);
        assert_eq!(third.version, "0.1.0+log5.mesh1.returns2");
        assert_eq!(third.with_returns(0), first);
    }

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
