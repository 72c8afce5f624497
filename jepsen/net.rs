//! The network of a chaos run: a namespace for each node, one for the judge and all clients, and an
//! emulator in between that every packet passes.
//!
//! Each namespace has one TUN device; [`emulator`] reads them all and hands packets on by address, with
//! the [`impairment`] of each directed pair. Nothing is installed at the nodes, a cut link is a black hole as on a
//! real network, and a fault takes effect with the next packet.

pub(crate) mod emulator;
pub(crate) mod impairment;
pub(crate) mod tun;

use std::net::Ipv4Addr;

/// The last part of an address in 10.79.0.0/24: who is who in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct End(pub(crate) u8);

impl End {
    /// Where servers' API is called from.
    pub(crate) const JUDGE: Self = Self(254);

    /// A node's.
    pub(crate) fn node(id: u64) -> Self {
        Self(u8::try_from(id).unwrap_or(99))
    }

    /// A client's; there are up to 150.
    pub(crate) fn client(index: usize) -> Self {
        Self(101 + u8::try_from(index % 150).unwrap_or(0))
    }

    /// A client that shares its address with nobody, so that packets tell whose they are.
    pub(crate) fn is_alone(self) -> bool {
        (101..=200).contains(&self.0)
    }

    /// Its address.
    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 79, 0, self.0)
    }
}
