//! Where the router's packets leave: sealed with the peer's keys right in the transmit queue.

use std::net::SocketAddr;

use super::peer::Peer;
use crate::command::PeerId;
use crate::forward::Wire;
use crate::index::IdMap;
use crate::peer::srtp::{RTCP_OVERHEAD_MAX, RTP_OVERHEAD_MAX};
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
}

impl Wire for PeerWire<'_> {
    fn send_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(to) = peer.transport.destination() else {
            return;
        };
        let Some(sender) = peer.transport.sender() else {
            return;
        };
        self.transmits.push_with(to, |buffer| {
            let room = buffer.len() - RTP_OVERHEAD_MAX;
            match write(&mut buffer[..room]) {
                0 => 0,
                len => sender.protect_rtp(buffer, len).unwrap_or(0),
            }
        });
    }

    fn repeat_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(to) = peer.transport.destination() else {
            return;
        };
        let Some(sender) = peer.transport.sender() else {
            return;
        };
        self.transmits.push_with(to, |buffer| {
            let room = buffer.len() - RTP_OVERHEAD_MAX;
            match write(&mut buffer[..room]) {
                0 => 0,
                len => sender.repeat_rtp(buffer, len).unwrap_or(0),
            }
        });
    }

    fn send_rtcp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(to) = peer.transport.destination() else {
            return;
        };
        let Some(sender) = peer.transport.sender() else {
            return;
        };
        self.transmits.push_with(to, |buffer| {
            let room = buffer.len() - RTCP_OVERHEAD_MAX;
            match write(&mut buffer[..room]) {
                0 => 0,
                len => sender.protect_rtcp(buffer, len).unwrap_or(0),
            }
        });
    }

    fn send_relay(&mut self, to: SocketAddr, write: impl FnOnce(&mut [u8]) -> usize) {
        self.transmits.push_with(to, write);
    }
}
