//! By which of its own addresses a shard hears a client: carried along in the client's address.
//!
//! A shard that holds addresses of its own beside the one of its main socket must answer a client from
//! the address that the client sent to. The shell marks the source of what comes in by such an address
//! with the address's number; for the engine two paths that differ in it are two addresses, which is
//! what they are to ICE. The number travels in the flow label of an IPv6 address, which means nothing
//! here; IPv4 addresses are mapped. What clients are told, and what is sent to, is [`plain`].
//!
//! A client may also be heard by an address of another node, which passes its datagrams on
//! (`engine/loans.rs`): such a [`borrowed`] number says by which node, and by which of its addresses.

use std::net::{SocketAddr, SocketAddrV6};

/// Number of one of a shard's own addresses, up to [`OWN_MAX`], 0 being that of its main socket; or a
/// [`borrowed`] one.
pub type Local = u16;

/// Highest number of an own address.
pub const OWN_MAX: Local = 0xff;

/// The number of another node's address: `slot` stands for the node, `own` is the address's number there.
#[must_use]
pub const fn borrowed(slot: u8, own: u8) -> Local {
    (slot as Local + 1) << 8 | own as Local
}

/// Slot of the node and number there of a [`borrowed`] address; `None` of an own one.
#[must_use]
pub const fn lender(local: Local) -> Option<(u8, u8)> {
    match local >> 8 {
        0 => None,
        slot => Some(((slot - 1) as u8, (local & OWN_MAX) as u8)),
    }
}

/// A client's address as heard by the address with this number.
#[must_use]
pub fn mark(from: SocketAddr, local: Local) -> SocketAddr {
    match (from, local) {
        (SocketAddr::V4(_), 0) => from,
        (SocketAddr::V4(v4), _) => {
            let ip = v4.ip().to_ipv6_mapped();
            SocketAddrV6::new(ip, v4.port(), u32::from(local), 0).into()
        }
        (SocketAddr::V6(mut v6), _) => {
            v6.set_flowinfo(u32::from(local));
            v6.into()
        }
    }
}

/// The number that [`mark`] put into an address.
#[must_use]
pub fn local(address: SocketAddr) -> Local {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => Local::try_from(v6.flowinfo()).unwrap_or(0),
    }
}

/// The client's address itself.
#[must_use]
pub fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.flowinfo() != 0 => {
            let ip = v6.ip().to_ipv4_mapped();
            match ip {
                Some(ip) => SocketAddr::new(ip.into(), v6.port()),
                None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_and_taken_off_again() {
        for text in ["192.0.2.7:9", "[2001:db8::1]:9"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(mark(address, 0), address);
            for number in [1, 2, OWN_MAX, borrowed(0, 0), borrowed(254, 255)] {
                let marked = mark(address, number);
                assert_ne!(marked, address);
                assert_eq!((local(marked), plain(marked)), (number, address));
            }
            assert_eq!((local(address), plain(address)), (0, address));
        }
    }

    #[test]
    fn a_borrowed_number_is_no_own_one() {
        for (slot, own) in [(0, 0), (0, 255), (254, 0), (254, 255)] {
            assert_eq!(lender(borrowed(slot, own)), Some((slot, own)));
        }
        for own in [0, 1, OWN_MAX] {
            assert_eq!(lender(own), None);
        }
    }
}
