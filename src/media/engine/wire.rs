//! Where the router's packets leave: sealed with the peer's keys right in the transmit queue.

use std::net::SocketAddr;

use super::peer::Peer;
use crate::command::PeerId;
use crate::forward::Wire;
use crate::index::IdMap;
use crate::peer::srtp::{RTCP_OVERHEAD_MAX, RTP_OVERHEAD_MAX, SrtpSender};
use crate::transmit::TransmitQueue;

/// The engine's peers as the router sees them.
pub(super) struct PeerWire<'a> {
    peers: &'a mut IdMap<PeerId, Box<Peer>>,
    transmits: &'a mut TransmitQueue,
}

impl<'a> PeerWire<'a> {
    pub(super) fn new(
        peers: &'a mut IdMap<PeerId, Box<Peer>>,
        transmits: &'a mut TransmitQueue,
    ) -> Self {
        Self { peers, transmits }
    }

    /// Writes a packet into the next place of the queue and seals it there with the peer's keys.
    /// Nothing is sent if the peer is not connected or `write` gives nothing.
    fn seal(
        &mut self,
        peer: PeerId,
        overhead: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
        protect: impl FnOnce(&mut SrtpSender, &mut [u8], usize) -> Option<usize>,
    ) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(to) = peer.transport.destination().filter(|_| !peer.quiet) else {
            return;
        };
        let Some(sender) = peer.transport.sender() else {
            return;
        };
        self.transmits.push_with(to, |buffer| {
            let room = buffer.len() - overhead;
            match write(&mut buffer[..room]) {
                0 => 0,
                len => protect(sender, buffer, len).unwrap_or(0),
            }
        });
    }
}

/// Datagrams of one fan-out: sent while they are still in the core's own cache, and enough to make
/// system calls few.
const BATCH: usize = 512;

impl Wire for PeerWire<'_> {
    fn is_full(&self) -> bool {
        self.transmits.datagrams().len() >= BATCH || self.transmits.is_nearly_full()
    }

    fn send_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.seal(peer, RTP_OVERHEAD_MAX, write, SrtpSender::protect_rtp);
    }

    fn repeat_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.seal(peer, RTP_OVERHEAD_MAX, write, SrtpSender::repeat_rtp);
    }

    fn send_rtcp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.seal(peer, RTCP_OVERHEAD_MAX, write, SrtpSender::protect_rtcp);
    }

    fn send_relay(&mut self, to: SocketAddr, write: impl FnOnce(&mut [u8]) -> usize) {
        self.transmits.push_with(to, write);
    }
}
