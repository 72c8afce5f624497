//! One peer connection as the engine holds it: its transport, its negotiation, and where it stands
//! in the engine's tables.

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;

use super::EngineConfig;
use super::addresses::Addresses;
use crate::command::{Continuation, PeerId, PeerRole, Restore};
use crate::forward::Router;
use crate::peer::negotiation::{self, Local, Negotiation, Offer, Written};
use crate::peer::passage::Passage;
use crate::peer::sctp::ChannelPlan;
use crate::peer::transport::{
    Progress, RemoteError, RemoteParameters, Setup, Skip, Transport, TransportConfig,
};

/// Source addresses remembered per peer: interfaces times address families, and those before a
/// network change.
const ADDRESSES_MAX: usize = 16;
/// SCTP's port inside DTLS, by convention.
const SCTP_PORT: u16 = 5000;
/// How far a session that comes from another node continues beyond its checkpoint: more than the old
/// home can send while it has not noticed. Clients refuse record numbers that they have seen. SRTCP
/// has new SSRCs besides.
const SKIP: Skip = Skip {
    records: 1 << 24,
    rtcp: 1 << 16,
};

/// What a peer is made from.
pub(super) struct Plan {
    pub(super) role: PeerRole,
    pub(super) negotiated_channels: bool,
    pub(super) restore: Option<Box<Restore>>,
}

/// The last offer and answer, for another node that may go on.
#[derive(Default)]
pub(super) struct Described {
    /// The engine's offer that waits for its answer.
    offered: Option<String>,
    agreed: Option<(String, String)>,
    is_new: bool,
}

impl Described {
    pub(super) fn offered(&mut self, offer: &str) {
        self.offered = Some(offer.to_owned());
    }

    /// The client answered what was offered.
    pub(super) fn answered(&mut self, answer: &str) {
        if let Some(offer) = self.offered.take() {
            self.agree(offer, answer.to_owned());
        }
    }

    pub(super) fn agree(&mut self, offer: String, answer: String) {
        self.agreed = Some((offer, answer));
        self.is_new = true;
    }

    pub(super) fn agreed(&self) -> Option<&(String, String)> {
        self.agreed.as_ref()
    }

    /// What was agreed on since this was asked last.
    pub(super) fn take_new(&mut self) -> Option<Box<(String, String)>> {
        let is_new = std::mem::take(&mut self.is_new);
        self.agreed.clone().filter(|_| is_new).map(Box::new)
    }
}

/// When a peer's state is reported.
#[derive(Default)]
pub(super) struct Checkpoint {
    /// The last one, and how far the traffic was.
    pub(super) made: Option<(Instant, Progress)>,
    pub(super) due: Option<Instant>,
    /// Due because of something that the progress may not show.
    pub(super) is_urgent: bool,
}

pub(super) struct Peer {
    pub(super) role: PeerRole,
    pub(super) transport: Transport,
    pub(super) negotiation: Negotiation,
    /// Entries in the address table, oldest first.
    addresses: Vec<SocketAddr>,
    /// Continues a connection from another node.
    pub(super) is_restored: bool,
    /// Continues one whose client does not know.
    pub(super) is_unmissed: bool,
    /// Another node may serve its client.
    pub(super) quiet: bool,
    opens_channels: bool,
    pub(super) described: Described,
    pub(super) checkpoint: Checkpoint,
    /// The schedule's entry that counts.
    scheduled: Option<Instant>,
}

impl Peer {
    /// # Errors
    /// Why a connection cannot be continued.
    pub(super) fn new(
        now: Instant,
        config: &EngineConfig,
        plan: Plan,
        rng: &mut impl Rng,
    ) -> Result<Self, &'static str> {
        let role = plan.role;
        let transport = transport_config(config, role, plan.negotiated_channels);
        let is_restored = plan.restore.is_some();
        let opens_channels = transport.channels != ChannelPlan::Client;
        let (transport, negotiation) = match plan.restore {
            None => {
                let negotiation = Negotiation::new(now, role, config.limits, rng);
                (Transport::new(&transport, rng), negotiation)
            }
            Some(restore) => {
                let negotiation = continue_negotiation(now, config, role, &restore, rng)?;
                let transport = continue_transport(now, config, transport, role, &restore, rng);
                (transport, negotiation)
            }
        };
        Ok(Self {
            role,
            transport,
            negotiation,
            addresses: Vec::new(),
            is_restored,
            is_unmissed: false,
            quiet: false,
            opens_channels,
            described: Described::default(),
            checkpoint: Checkpoint::default(),
            scheduled: None,
        })
    }

    /// A peer that goes on where another node was, without a word to its client.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn go_on(
        now: Instant,
        config: &EngineConfig,
        (role, negotiated_channels): (PeerRole, bool),
        from: &Continuation,
        rng: &mut impl Rng,
    ) -> Result<Self, String> {
        let transport = transport_config(config, role, negotiated_channels);
        let (offer, answer) = &from.descriptions;
        let negotiation = Negotiation::go_on(
            now,
            role,
            config.limits,
            (offer, answer),
            (from.transport.sent(), &from.passage.streams),
            rng,
        );
        let negotiation = negotiation.map_err(|refusal| refusal.to_string())?;
        let opens_channels = transport.channels != ChannelPlan::Client;
        let parts = (&from.transport, &from.passage);
        let transport = Transport::go_on(now, &transport, parts, SKIP, rng)
            .map_err(|reason| reason.name().to_owned())?;
        let mut described = Described::default();
        described.agree(offer.clone(), answer.clone());
        Ok(Self {
            role,
            transport,
            negotiation,
            addresses: Vec::new(),
            is_restored: true,
            is_unmissed: true,
            quiet: false,
            opens_channels,
            described,
            checkpoint: Checkpoint::default(),
            scheduled: None,
        })
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

    /// Its data channels are opened from this side.
    pub(super) fn opens_channels(&self) -> bool {
        self.opens_channels
    }

    /// The client is connected and this is where its media goes.
    pub(super) fn lives_at(&self, address: SocketAddr) -> bool {
        self.transport.is_connected() && self.transport.destination() == Some(address)
    }

    /// Path and streams, as far as they were sent; `None` without a path.
    pub(super) fn passage(&self, now: Instant, id: PeerId, router: &Router) -> Option<Passage> {
        let mut passage = self.transport.passage()?;
        passage.streams = router.sent(now, id);
        for stream in &mut passage.streams {
            self.transport.note_sent(stream);
        }
        Some(passage)
    }

    /// Where valid checks came from, oldest first.
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
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

fn transport_config(
    config: &EngineConfig,
    role: PeerRole,
    negotiated_channels: bool,
) -> TransportConfig {
    TransportConfig {
        certificate: config.certificate.clone(),
        timeouts: config.timeouts,
        channels: match role {
            PeerRole::Subscriber => ChannelPlan::Server,
            PeerRole::Single if negotiated_channels => ChannelPlan::Negotiated,
            PeerRole::Single | PeerRole::Publisher => ChannelPlan::Client,
        },
        data: config.data.clone(),
    }
}

/// A connection's sections as its client has them.
fn continue_negotiation(
    now: Instant,
    config: &EngineConfig,
    role: PeerRole,
    restore: &Restore,
    rng: &mut impl Rng,
) -> Result<Negotiation, &'static str> {
    let used = restore.transport.as_ref().map_or(&[][..], |t| t.sent());
    let mut continued = |descriptions| {
        Negotiation::restore(now, role, config.limits, descriptions, used, &mut *rng)
    };
    let descriptions = restore
        .descriptions
        .as_ref()
        .map(|(offer, answer)| (offer.as_str(), answer.as_str()));
    continued(descriptions).or_else(|refusal| {
        tracing::warn!(%refusal, "a client's former descriptions cannot be used");
        match role {
            // Its next offer says everything but which track was on which section.
            PeerRole::Single | PeerRole::Publisher => continued(None).ok(),
            // It would refuse an offer that does not begin with the sections it has.
            PeerRole::Subscriber => None,
        }
        .ok_or("the client's former descriptions cannot be continued")
    })
}

/// A connection's transport: continued with its keys, or with a handshake.
fn continue_transport(
    now: Instant,
    config: &EngineConfig,
    mut transport: TransportConfig,
    role: PeerRole,
    restore: &Restore,
    rng: &mut impl Rng,
) -> Transport {
    let imported = restore.transport.as_ref().and_then(|snapshot| {
        Transport::import(now, &transport, snapshot, SKIP, rng)
            .inspect_err(|reason| tracing::warn!(?reason, "a session's keys cannot be used"))
            .ok()
    });
    let mut continued = imported.unwrap_or_else(|| {
        let seen = restore
            .descriptions
            .as_ref()
            .and_then(|(offer, answer)| negotiation::shown_fingerprint(role, offer, answer));
        // The client begins a handshake only if it is shown another certificate than before.
        if seen != Some(config.fresh_certificate.fingerprint()) {
            transport.certificate = config.fresh_certificate.clone();
        }
        Transport::new(&transport, rng)
    });
    // Without channels a client that opens them itself has no association yet, or begins one.
    if !restore.channels.is_empty() || transport.channels != ChannelPlan::Client {
        continued.revive_channels(&restore.channels, restore.sequence);
    }
    continued
}

fn local<'a>(transport: &'a Transport, config: &'a EngineConfig) -> Local<'a> {
    let credentials = transport.local_credentials();
    Local {
        ufrag: &credentials.ufrag,
        pwd: &credentials.pwd,
        fingerprint: transport.shown(),
        candidates: &config.candidates,
        sctp_port: SCTP_PORT,
        message_bytes_max: config.data.message_bytes_max as u64,
    }
}
