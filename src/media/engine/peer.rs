//! One peer connection as the engine holds it: its transport, its negotiation, and where it stands
//! in the engine's tables.

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;

use super::EngineConfig;
use super::addresses::Addresses;
use crate::command::{PeerId, PeerRole};
use crate::peer::negotiation::{Local, Negotiation, Offer, Written};
use crate::peer::sctp::ChannelPlan;
use crate::peer::transport::{RemoteError, RemoteParameters, Setup, Transport, TransportConfig};

/// Source addresses remembered per peer: interfaces times address families, and those before a
/// network change.
const ADDRESSES_MAX: usize = 16;
/// SCTP's port inside DTLS, by convention.
const SCTP_PORT: u16 = 5000;

pub(super) struct Peer {
    pub(super) role: PeerRole,
    pub(super) transport: Transport,
    pub(super) negotiation: Negotiation,
    /// Entries in the address table, oldest first.
    addresses: Vec<SocketAddr>,
    /// The schedule's entry that counts.
    scheduled: Option<Instant>,
}

impl Peer {
    pub(super) fn new(
        now: Instant,
        config: &EngineConfig,
        role: PeerRole,
        negotiated_channels: bool,
        rng: &mut impl Rng,
    ) -> Self {
        let channels = match role {
            PeerRole::Subscriber => ChannelPlan::Server,
            PeerRole::Single if negotiated_channels => ChannelPlan::Negotiated,
            PeerRole::Single | PeerRole::Publisher => ChannelPlan::Client,
        };
        let transport = TransportConfig {
            certificate: config.certificate.clone(),
            timeouts: config.timeouts,
            channels,
            data: config.data,
        };
        Self {
            role,
            transport: Transport::new(&transport, rng),
            negotiation: Negotiation::new(now, role, config.limits, rng),
            addresses: Vec::new(),
            scheduled: None,
        }
    }

    /// Takes an offer over: transport first, as the answer carries its credentials.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        offer: Offer,
        config: &EngineConfig,
        rng: &mut impl Rng,
    ) -> Result<Written, RemoteError> {
        let remote = RemoteParameters {
            ufrag: offer.remote().ufrag.clone(),
            pwd: offer.remote().pwd.clone(),
            fingerprint: offer.remote().fingerprint,
            setup: Setup::ActPass,
        };
        self.transport.set_remote(now, &remote)?;
        let Self {
            transport,
            negotiation,
            ..
        } = self;
        Ok(negotiation.answer(now, offer, &local(transport, config), rng))
    }

    pub(super) fn write_offer(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        rng: &mut impl Rng,
    ) -> (u32, Written) {
        let Self {
            transport,
            negotiation,
            ..
        } = self;
        negotiation.write_offer(now, &local(transport, config), rng)
    }

    /// Tells the transport what the client's answer said.
    pub(super) fn take_remote(&mut self, now: Instant) -> Result<(), RemoteError> {
        let Some(remote) = self.negotiation.remote() else {
            return Ok(());
        };
        let remote = RemoteParameters {
            ufrag: remote.ufrag.clone(),
            pwd: remote.pwd.clone(),
            fingerprint: remote.fingerprint,
            setup: Setup::Active,
        };
        self.transport.set_remote(now, &remote)
    }

    /// The client is connected and this is where its media goes.
    pub(super) fn lives_at(&self, address: SocketAddr) -> bool {
        self.transport.is_connected() && self.transport.destination() == Some(address)
    }

    /// Remembers an address that a valid check came from.
    pub(super) fn add_address(
        &mut self,
        id: PeerId,
        address: SocketAddr,
        addresses: &mut Addresses,
    ) {
        if addresses.get(address) == Some(id) {
            return;
        }
        addresses.insert(address, id);
        self.addresses.retain(|known| *known != address);
        if self.addresses.len() >= ADDRESSES_MAX {
            let destination = self.transport.destination();
            let oldest = self
                .addresses
                .iter()
                .position(|known| Some(*known) != destination);
            if let Some(oldest) = oldest {
                addresses.remove(self.addresses.remove(oldest), id);
            }
        }
        self.addresses.push(address);
    }

    /// Takes the peer out of the address table.
    pub(super) fn clear_addresses(&mut self, id: PeerId, addresses: &mut Addresses) {
        for address in self.addresses.drain(..) {
            addresses.remove(address, id);
        }
    }

    /// Wants to be woken at this time. Says whether that takes a new entry in the schedule.
    pub(super) fn set_scheduled(&mut self, at: Instant) -> bool {
        let is_earlier = self.scheduled.is_none_or(|scheduled| at < scheduled);
        if is_earlier {
            self.scheduled = Some(at);
        }
        is_earlier
    }

    /// An entry came up; says whether it is the one that counts.
    pub(super) fn take_scheduled(&mut self, now: Instant) -> bool {
        self.scheduled.take_if(|at| *at <= now).is_some()
    }
}

fn local<'a>(transport: &'a Transport, config: &'a EngineConfig) -> Local<'a> {
    let credentials = transport.local_credentials();
    Local {
        ufrag: &credentials.ufrag,
        pwd: &credentials.pwd,
        fingerprint: config.certificate.fingerprint(),
        candidates: &config.candidates,
        sctp_port: SCTP_PORT,
        message_bytes_max: config.data.message_bytes_max as u64,
    }
}
