//! The engine: one shard's peers, tracks and relays behind one `handle`/`poll` face.
//!
//! ```text
//! datagram ─► demux ┬─ STUN  ─► ufrag table  ─► peer/transport ─► events, datagrams
//!                   ├─ DTLS  ─► address table ─► peer/transport ─► events, datagrams
//!                   ├─ (S)RTP, (S)RTCP ─► address table ─► unprotect ─► router ─► Wire ─► transmits
//!                   └─ relay ─► router
//! command ─► negotiation, router, transport          (engine/commands.rs)
//! time    ─► whoever is due                          (engine/schedule.rs)
//! ```
//!
//! The shell calls one `handle_*`, sends everything in [`Engine::transmits`] and clears it, polls
//! events to the end, and waits for input or [`Engine::deadline`]. The engine owns all its state; a
//! peer whose client misbehaves fails alone.

mod addresses;
mod checkpoint;
mod commands;
mod going_on;
mod loans;
mod peer;
mod schedule;
mod tracks;
mod wire;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::id::{BootId, NodeId};
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;

use crate::command::{Command, PeerId, PeerRole};
use crate::discard::{Discard, DiscardCounts};
use crate::event::Event;
use crate::forward::{Router, RouterConfig};
use crate::index::IdMap;
use crate::peer::demux::{Class, classify};
use crate::peer::dtls::Certificate;
use crate::peer::ice::{IceTimeouts, request_ufrag};
use crate::peer::negotiation::{Due, Limits};
use crate::peer::sctp::DataLimits;
use crate::peer::transport::TransportEvent;
use crate::stats::Stats;
use crate::transmit::TransmitQueue;

use addresses::Addresses;
use loans::Loans;
use peer::Peer;
use schedule::Schedule;
use tracks::Tracks;
use wire::PeerWire;

/// Events kept for the shell at most. It polls after every call, so that more means that it does
/// not; the newest are dropped and counted then.
const EVENTS_MAX: usize = 1 << 16;

/// Datagrams that may wait for [`Engine::forward`] before it must be called: large frames to large
/// rooms are sent whole below it, and what comes in waits no longer than a few milliseconds above.
const OUTGOING_MAX: usize = 12_288;

/// What an engine is made from.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This node.
    pub node: NodeId,
    /// This start of it.
    pub boot: BootId,
    /// Which of the node's shards this is. Part of the relay keys: no two may be equal.
    pub shard: u16,
    /// Secret shared by the cluster's nodes, from which relay keys are derived.
    pub relay_secret: [u8; 32],
    /// Certificate of the whole cluster.
    pub certificate: Arc<Certificate>,
    /// A certificate that no client has seen from another node: to begin a new DTLS session where the
    /// keys of the former one are not at hand. [`EngineConfig::new`] sets the cluster's, with which
    /// such clients stay silent.
    pub fresh_certificate: Arc<Certificate>,
    /// Addresses of the shard's socket as clients see them, best first.
    pub candidates: Vec<SocketAddr>,
    /// Where the counters of packets to other nodes begin. To rise by at least one for each packet that
    /// an earlier engine of the same start and shard sent; its age in nanoseconds does.
    pub counters_from: u64,
    /// Seed of everything random; to be drawn from the operating system.
    pub seed: [u8; 32],
    /// How long a connection's checkpoint may be out of date, while packets come.
    pub checkpoint_interval: Duration,
    /// The node's address may move to another: checkpoints say all that is needed to go on without a
    /// word to the client ([`Command::GoOn`]), and no more is sent between two than that allows.
    pub moves: bool,
    /// How long a peer may be silent.
    pub timeouts: IceTimeouts,
    /// Limits of data channels.
    pub data: DataLimits,
    /// Most peer connections; further ones fail at once.
    pub peers_max: usize,
    /// Limits of one peer connection.
    pub limits: Limits,
    /// Datagrams that fit into the transmit queue.
    pub transmits_max: usize,
}

impl EngineConfig {
    /// Usual limits and timeouts.
    #[must_use]
    pub fn new(
        node: NodeId,
        boot: BootId,
        relay_secret: [u8; 32],
        certificate: Arc<Certificate>,
        candidates: Vec<SocketAddr>,
        seed: [u8; 32],
    ) -> Self {
        Self {
            node,
            boot,
            shard: 0,
            relay_secret,
            fresh_certificate: certificate.clone(),
            certificate,
            candidates,
            counters_from: 0,
            seed,
            checkpoint_interval: Duration::from_secs(1),
            moves: false,
            timeouts: IceTimeouts::default(),
            data: DataLimits::default(),
            peers_max: 10_000,
            limits: Limits::default(),
            transmits_max: 4_096,
        }
    }
}

/// Counters and states for metrics and the admin interface.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Peer connections.
    pub peers: usize,
    /// Those whose transport is up.
    pub peers_connected: usize,
    /// Candidates that clients sent; of no use to a lite agent.
    pub candidates: u64,
    /// Data-channel messages that could not be sent: channel closed, message too long.
    pub data_refused: u64,
    /// Paths of former clients that other nodes use.
    pub lent: usize,
    /// Events dropped because the shell did not poll.
    pub events_dropped: u64,
    /// Datagrams dropped because the shell did not send.
    pub transmits_dropped: u64,
    /// Datagrams refused before they reached the router.
    pub discards: DiscardCounts,
    /// Tracks, subscriptions, relays, links, and the packets the router refused.
    pub router: Stats,
}

/// See the module's documentation.
pub struct Engine {
    config: EngineConfig,
    rng: ChaCha12Rng,
    peers: IdMap<PeerId, Box<Peer>>,
    /// Our ICE user name fragments.
    ufrags: IdMap<String, PeerId>,
    addresses: Addresses,
    schedule: Schedule,
    tracks: Tracks,
    router: Router,
    transmits: TransmitQueue,
    events: VecDeque<Event>,
    loans: Loans,
    discards: DiscardCounts,
    candidates: u64,
    data_refused: u64,
    events_dropped: u64,
}

impl Engine {
    /// An engine without peers.
    #[must_use]
    pub fn new(now: Instant, config: EngineConfig) -> Self {
        let mut rng = ChaCha12Rng::from_seed(config.seed);
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let router = Router::new(
            now,
            RouterConfig {
                node: config.node,
                boot: config.boot,
                shard: config.shard,
                relay_secret: config.relay_secret,
                counters_from: config.counters_from,
                seed,
            },
        );
        Self {
            peers: IdMap::default(),
            ufrags: IdMap::default(),
            addresses: Addresses::new(rng.next_u64()),
            schedule: Schedule::default(),
            tracks: Tracks::default(),
            router,
            transmits: TransmitQueue::new(config.transmits_max),
            events: VecDeque::new(),
            loans: Loans::default(),
            discards: DiscardCounts::default(),
            candidates: 0,
            data_refused: 0,
            events_dropped: 0,
            rng,
            config,
        }
    }

    /// Takes a datagram of the shard's socket. Media is decrypted in place; subscribers get it with
    /// [`Self::forward`].
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &mut [u8]) {
        let outcome = match classify(bytes) {
            Class::Relay => {
                let mut wire = PeerWire::new(&mut self.peers, &mut self.transmits);
                // The router counts what it refuses.
                let _ = self.router.handle_relay(now, from, bytes, &mut wire);
                self.take_on_loan(now, bytes)
            }
            class => match self.handle_client(now, from, bytes, class) {
                Err(Discard::UnknownPeer) => self.pass_up(now, from, bytes),
                outcome => outcome,
            },
        };
        if let Err(reason) = outcome {
            self.discards.add(reason);
        }
    }

    /// A datagram of a client's. Whatever is of an unknown one is left as it was.
    fn handle_client(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &mut [u8],
        class: Class,
    ) -> Result<(), Discard> {
        match class {
            Class::Rtp => self.handle_rtp(now, from, bytes),
            Class::Rtcp => self.handle_rtcp(now, from, bytes),
            Class::Stun => self.handle_stun(now, from, bytes),
            Class::Dtls => self.handle_dtls(now, from, bytes),
            Class::Relay | Class::Unknown => Err(Discard::UnknownProtocol),
        }
    }

    /// Whose address this is. Also after a panic, when nothing else may be asked any more.
    #[must_use]
    pub fn peer_at(&self, address: SocketAddr) -> Option<PeerId> {
        self.addresses.get(address)
    }

    /// Takes an order.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        self.execute(now, command);
    }

    /// Lets time pass. To be called no later than [`Self::deadline`]; harmless before.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Whoever is due again at once waits for the next call, after the shell has sent.
        for _ in 0..self.schedule.len() {
            let Some(id) = self.schedule.pop_due(now) else {
                break;
            };
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            // An entry that a later one replaced.
            if !peer.take_scheduled(now) {
                continue;
            }
            peer.transport.handle_timeout(now);
            self.advance(now, id);
        }
        if self.router.deadline().is_some_and(|at| at <= now) {
            let mut wire = PeerWire::new(&mut self.peers, &mut self.transmits);
            self.router.handle_timeout(now, &mut wire);
        }
    }

    /// When [`Self::handle_timeout`] is due; `None`: only input can change anything.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        [self.schedule.next(), self.router.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Something that happened; to be called until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            match self.router.poll_event()? {
                Event::TrackDescribed {
                    peer,
                    track,
                    codecs,
                } => {
                    if let Some(known) = self.peers.get_mut(&peer) {
                        known.negotiation.learn(&track, &codecs);
                        self.report_tracks(peer);
                    }
                }
                event => return Some(event),
            }
        }
    }

    /// Writes the media that waits for subscribers into [`Self::transmits`], a frame for one after the
    /// other. Returns `false` if there is more than goes there at once: send, clear, and call again
    /// before the engine is given anything else.
    pub fn forward(&mut self) -> bool {
        let mut wire = PeerWire::new(&mut self.peers, &mut self.transmits);
        self.router.forward(&mut wire)
    }

    /// Datagrams that are queued or that [`Self::forward`] would queue, about.
    #[must_use]
    pub fn outgoing(&self) -> usize {
        self.transmits.datagrams().len() + self.router.waiting()
    }

    /// So much is to be sent that nothing more should be taken in before.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        self.transmits.is_nearly_full() || self.outgoing() >= OUTGOING_MAX
    }

    /// Datagrams to send. The shell sends them all, then clears the queue.
    pub fn transmits(&mut self) -> &mut TransmitQueue {
        self.wrap_borrowed();
        &mut self.transmits
    }

    /// Counters and states. Allocates: not for the hot path.
    #[must_use]
    pub fn stats(&self, now: Instant) -> EngineStats {
        EngineStats {
            peers: self.peers.len(),
            peers_connected: self
                .peers
                .values()
                .filter(|p| p.transport.is_connected())
                .count(),
            candidates: self.candidates,
            data_refused: self.data_refused,
            lent: self.loans.lent(now),
            events_dropped: self.events_dropped,
            transmits_dropped: self.transmits.dropped(),
            discards: self.discards.clone(),
            router: self.router.stats(now),
        }
    }

    fn handle_rtp(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &mut [u8],
    ) -> Result<(), Discard> {
        let id = self.addresses.get(from).ok_or(Discard::UnknownPeer)?;
        let peer = self.peers.get_mut(&id).ok_or(Discard::UnknownPeer)?;
        let receiver = peer.transport.receiver().ok_or(Discard::NotConnected)?;
        let len = receiver.unprotect_rtp(bytes)?;
        if receiver.take_news() {
            self.hasten_checkpoint(now, id);
        }
        let mut wire = PeerWire::new(&mut self.peers, &mut self.transmits);
        let _ = self
            .router
            .handle_rtp(now, id, &mut bytes[..len], &mut wire);
        Ok(())
    }

    fn handle_rtcp(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &mut [u8],
    ) -> Result<(), Discard> {
        let id = self.addresses.get(from).ok_or(Discard::UnknownPeer)?;
        let peer = self.peers.get_mut(&id).ok_or(Discard::UnknownPeer)?;
        let receiver = peer.transport.receiver().ok_or(Discard::NotConnected)?;
        let len = receiver.unprotect_rtcp(bytes)?;
        let mut wire = PeerWire::new(&mut self.peers, &mut self.transmits);
        let _ = self.router.handle_rtcp(now, id, &bytes[..len], &mut wire);
        Ok(())
    }

    fn handle_stun(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Result<(), Discard> {
        let ufrag = request_ufrag(bytes).ok_or(Discard::StunRefused)?;
        let id = *self.ufrags.get(ufrag).ok_or(Discard::UnknownPeer)?;
        // A client that forges its source address must not take over that of a live one.
        if let Some(owner) = self.addresses.get(from)
            && owner != id
            && self
                .peers
                .get(&owner)
                .is_some_and(|owner| owner.lives_at(from))
        {
            return Err(Discard::StunRefused);
        }
        let peer = self.peers.get_mut(&id).ok_or(Discard::UnknownPeer)?;
        let outcome = peer.transport.handle_stun(now, from, bytes);
        if outcome.is_ok() {
            peer.add_address(id, from, &mut self.addresses);
        }
        self.advance(now, id);
        outcome
    }

    fn handle_dtls(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Result<(), Discard> {
        let id = self.addresses.get(from).ok_or(Discard::UnknownPeer)?;
        let peer = self.peers.get_mut(&id).ok_or(Discard::UnknownPeer)?;
        if peer.quiet {
            return Err(Discard::NotConnected);
        }
        let outcome = peer.transport.handle_dtls(now, from, bytes);
        self.advance(now, id);
        outcome
    }

    /// Moves on what a call into a peer has caused: events, datagrams, negotiation, deadline.
    fn advance(&mut self, now: Instant, id: PeerId) {
        self.take_transport_events(now, id);
        self.negotiate(now, id);
        self.checkpoint_if_due(now, id);
        self.return_path(id);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        // What does not fit waits in the transport: the deadline is now.
        let mut is_backed_up = self.transmits.is_nearly_full() && !peer.quiet;
        while !is_backed_up
            && !peer.quiet
            && let Some((to, bytes)) = peer.transport.poll_transmit()
        {
            self.transmits.push(to, &bytes);
            is_backed_up = self.transmits.is_nearly_full();
        }
        let deadline = [
            is_backed_up.then_some(now),
            peer.transport.deadline(),
            peer.negotiation.deadline(),
            peer.checkpoint.due,
        ];
        if let Some(at) = deadline.into_iter().flatten().min()
            && peer.set_scheduled(at)
        {
            self.schedule.push(at, id);
        }
    }

    fn take_transport_events(&mut self, now: Instant, id: PeerId) {
        while let Some(event) = self
            .peers
            .get_mut(&id)
            .and_then(|peer| peer.transport.poll_event())
        {
            match event {
                TransportEvent::Connected => {
                    self.router.peer_connected(now, id);
                    if self.peers.get(&id).is_some_and(|peer| peer.is_restored) {
                        self.router.peer_resumed(now, id);
                    }
                    self.push_event(Event::Connected { peer: id });
                    self.checkpoint(now, id);
                }
                TransportEvent::Failed(reason) => {
                    self.push_event(Event::Failed { peer: id, reason });
                }
                TransportEvent::ChannelOpen(channel) => {
                    // Where its association stands is not in the checkpoint of the connection.
                    self.hasten_checkpoint(now, id);
                    self.push_event(Event::ChannelOpen { peer: id, channel });
                }
                TransportEvent::Data {
                    channel,
                    payload,
                    number,
                } => {
                    self.push_event(Event::Data {
                        peer: id,
                        channel,
                        payload,
                        number,
                    });
                }
                TransportEvent::UfragRetired(ufrag) => {
                    self.ufrags.remove(&ufrag);
                }
            }
        }
    }

    fn negotiate(&mut self, now: Instant, id: PeerId) {
        while let Some(peer) = self.peers.get_mut(&id) {
            match peer.negotiation.poll_due(now) {
                None => return,
                Some(Due::SectionsNeeded { audio, video }) => {
                    self.push_event(Event::SectionsNeeded {
                        peer: id,
                        audio,
                        video,
                    });
                }
                Some(Due::Offer) => {
                    let (offer, written) = peer.write_offer(now, &self.config, &mut self.rng);
                    peer.described.offered(&written.sdp);
                    self.push_event(Event::Offer {
                        peer: id,
                        id: offer,
                        sdp: written.sdp,
                        mid_to_track: written.mid_to_track,
                    });
                }
                Some(Due::Bound) => self.sync(now, id),
                Some(Due::Unanswered) => {
                    let reason = "the client did not answer an offer in time";
                    self.push_event(Event::Failed { peer: id, reason });
                }
            }
        }
    }

    /// Tells the router and the session what a peer's sections are now.
    fn sync(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.role != PeerRole::Subscriber {
            self.router
                .set_receive(now, id, peer.negotiation.receive_sections());
        }
        if peer.role != PeerRole::Publisher {
            self.router
                .set_send(now, id, peer.negotiation.send_sections());
        }
        for track in peer.negotiation.take_ended() {
            self.push_event(Event::TrackEnded { peer: id, track });
        }
        let formats = self.report_tracks(id);
        for track in formats {
            self.apply_format(now, &track);
        }
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.events_dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests;
