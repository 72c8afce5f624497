//! From a received packet to everyone who wants it.
//!
//! ```text
//! receive/ → router ┬→ per subscription: select → rewrite → Wire::send_rtp   (this shard's peers)
//!                   └→ per relay: Wire::send_relay                            (other nodes)
//! ```
//!
//! The [`Router`] owns publications, subscriptions and relays of one shard. The engine feeds it
//! decrypted packets and commands and implements [`Wire`], through which packets leave.

use std::net::SocketAddr;

use crate::command::PeerId;

pub mod parameters;
pub mod peer;
pub mod rewrite;
mod router;
pub mod select;
pub mod subscription;
pub mod track;

pub use router::{Router, RouterConfig, TrackView};

/// Where the router's packets go: the engine's peers and its transmit queue; in tests and
/// benchmarks something that records or seals.
///
/// Each call hands over a closure that writes the plain packet into the given buffer (at least
/// [`crate::transmit::DATAGRAM_LEN_MAX`] bytes less the trailer of SRTP) and returns its length; 0
/// means that nothing is sent. The implementation seals in place behind it.
///
/// RTP sequence numbers of one SSRC may go backwards by up to 2^15 − 1: repaired packets are sent
/// late. A sequence number is repeated only through [`Wire::repeat_rtp`], with bytes identical to
/// the first time, so that one SRTP index never protects two different packets.
pub trait Wire {
    /// Sends an RTP packet to a peer; nothing if it is not connected.
    fn send_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize);

    /// Sends an RTP packet to a peer again, bit by bit as the first time: a retransmission to a
    /// subscriber without RTX. What seals has to allow the index a second time.
    fn repeat_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.send_rtp(peer, write);
    }

    /// Sends an RTCP packet to a peer; nothing if it is not connected.
    fn send_rtcp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize);

    /// There is no room for another frame now: fan-out pauses.
    fn is_full(&self) -> bool {
        false
    }

    /// Sends a relay packet, already sealed by `write`, to another node.
    fn send_relay(&mut self, to: SocketAddr, write: impl FnOnce(&mut [u8]) -> usize);
}
