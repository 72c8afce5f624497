//! Datagrams of a client on a link: the node whose address the client knows passes them on to the one
//! that serves it, and sends back what that gives it.
//!
//! ```text
//! byte 0   1          2..18             18..20   20..
//! kind     own number  client's address   port     datagram, as the client sent or is to get it
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bytes before the datagram, the message's kind included.
pub const HEAD_LEN: usize = 20;

/// Which way a datagram goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// It came from the client.
    Up,
    /// It is for the client.
    Down,
    /// No datagram: the client has another path, this one is no longer needed.
    Done,
}

/// Whose datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnLoan {
    /// Which way it goes.
    pub way: Way,
    /// The client's address.
    pub client: SocketAddr,
    /// By which of the passing node's own addresses the client is heard.
    pub own: u8,
}

impl OnLoan {
    /// The head behind the kind.
    pub(super) fn head(&self) -> [u8; HEAD_LEN - 1] {
        let ip = match self.client.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut head = [0; HEAD_LEN - 1];
        head[0] = self.own;
        head[1..17].copy_from_slice(&ip.octets());
        head[17..].copy_from_slice(&self.client.port().to_be_bytes());
        head
    }

    /// Reads it.
    pub(super) fn read(way: Way, head: [u8; HEAD_LEN - 1]) -> Self {
        let [own, address @ .., high, low] = head;
        let ip = Ipv6Addr::from_octets(address);
        let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
        Self {
            way,
            client: SocketAddr::new(ip, u16::from_be_bytes([high, low])),
            own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::message::{Message, parse, write_on_loan};

    #[test]
    fn a_datagram_survives_with_its_address() {
        let mut buffer = [0; 1_200];
        for (way, address) in [
            (Way::Up, "192.0.2.7:300"),
            (Way::Down, "[2001:db8::7]:65535"),
            (Way::Done, "192.0.2.7:300"),
        ] {
            let loan = OnLoan {
                way,
                client: address.parse().expect("an address"),
                own: 3,
            };
            let len = write_on_loan(&mut buffer, &loan, b"datagram");
            assert_eq!(len, HEAD_LEN + 8);
            let Ok(Message::OnLoan(read, inside)) = parse(&buffer[..len]) else {
                panic!("not a datagram");
            };
            assert_eq!((read, inside), (loan, &b"datagram"[..]));
            for cut in 1..HEAD_LEN {
                assert!(parse(&buffer[..cut]).is_err(), "{cut}");
            }
        }
    }
}
