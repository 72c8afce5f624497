//! A few nodes and clients, a network between them, and time in steps of a millisecond.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotilla_model::id::{BootId, Epoch, NodeId, TrackSid};
use flotilla_model::track::Track as TrackInfo;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::agents::{Publisher, Subscriber};
use crate::command::PeerId;
use crate::event::Event;
use crate::forward::{Router, RouterConfig, Wire};

/// What a network does to packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network {
    pub(super) loss: f64,
    pub(super) delay_ms: u64,
    pub(super) jitter_ms: u64,
}

pub(super) const PERFECT: Network = Network {
    loss: 0.0,
    delay_ms: 5,
    jitter_ms: 0,
};

#[derive(Clone, Debug)]
enum To {
    Router { node: usize, peer: PeerId },
    RouterRtcp { node: usize, peer: PeerId },
    Relay { node: usize, from: SocketAddr },
    Peer { peer: PeerId, is_rtcp: bool },
}

#[derive(Default)]
pub(super) struct Recorder {
    packets: Vec<(Out, Vec<u8>)>,
    /// Packets after which it is full, if ever.
    pub(super) room: Option<usize>,
}

enum Out {
    Rtp(PeerId),
    Rtcp(PeerId),
    Relay(SocketAddr),
}

impl Recorder {
    fn record(&mut self, out: Out, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut buffer = [0xa5; 1_472];
        let len = write(&mut buffer);
        if len > 0 {
            self.packets.push((out, buffer[..len].to_vec()));
        }
    }
}

impl Wire for Recorder {
    fn is_full(&self) -> bool {
        self.room.is_some_and(|room| self.packets.len() >= room)
    }

    fn send_rtp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.record(Out::Rtp(peer), write);
    }

    fn send_rtcp(&mut self, peer: PeerId, write: impl FnOnce(&mut [u8]) -> usize) {
        self.record(Out::Rtcp(peer), write);
    }

    fn send_relay(&mut self, to: SocketAddr, write: impl FnOnce(&mut [u8]) -> usize) {
        self.record(Out::Relay(to), write);
    }
}

pub(super) struct Node {
    pub(super) router: Router,
    pub(super) wire: Recorder,
    pub(super) events: Vec<Event>,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) start: Instant,
    rng: ChaCha8Rng,
    pub(super) nodes: Vec<Node>,
    pub(super) publishers: BTreeMap<PeerId, (usize, Publisher)>,
    pub(super) subscribers: BTreeMap<PeerId, (usize, Subscriber)>,
    flying: BTreeMap<(Instant, u64), (To, Vec<u8>)>,
    order: u64,
    pub(super) client_network: Network,
    pub(super) node_network: Network,
    /// Relay datagrams and bytes sent between nodes.
    pub(super) relayed: (u64, u64),
    /// Pairs of nodes, lower one first, between which nothing passes.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// Relay datagrams on their way, recorded if wanted.
    pub(super) tap: Option<Vec<Vec<u8>>>,
}

pub(super) fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 7_880))
}

pub(super) fn node_id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

pub(super) fn router(now: Instant, node: usize, boot: u64) -> Router {
    let elapsed = now.saturating_duration_since(crate::test_epoch());
    let elapsed = 1 << 40 | elapsed.as_nanos() as u64;
    let mut seed = [0; 32];
    seed[0] = node as u8;
    seed[1] = boot as u8;
    Router::new(
        now,
        RouterConfig {
            node: node_id(node),
            boot: BootId(boot),
            shard: 0,
            relay_secret: [9; 32],
            counters_from: elapsed,
            seed,
        },
    )
}

impl World {
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        let now = crate::test_epoch();
        let mut world = Self {
            now,
            start: now,
            rng: ChaCha8Rng::seed_from_u64(seed),
            nodes: vec![],
            publishers: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            flying: BTreeMap::new(),
            order: 0,
            client_network: PERFECT,
            node_network: PERFECT,
            relayed: (0, 0),
            cut: BTreeSet::new(),
            tap: None,
        };
        for node in 0..nodes {
            world.nodes.push(Node {
                router: router(now, node, 100),
                wire: Recorder::default(),
                events: vec![],
            });
        }
        for node in 0..nodes {
            world.link_to_all(node, 100);
        }
        world
    }

    /// Everybody learns of a node's start.
    fn link_to_all(&mut self, node: usize, boot: u64) {
        let now = self.now;
        for other in 0..self.nodes.len() {
            if other != node {
                self.nodes[other]
                    .router
                    .set_link(now, node_id(node), BootId(boot), address(node));
            }
        }
    }

    /// A node starts anew; it knows of the others, and they of it.
    pub(super) fn reboot(&mut self, node: usize, boot: u64) {
        self.nodes[node].router = router(self.now, node, boot);
        for other in 0..self.nodes.len() {
            if other != node {
                let now = self.now;
                self.nodes[node]
                    .router
                    .set_link(now, node_id(other), BootId(100), address(other));
            }
        }
        self.link_to_all(node, boot);
    }

    pub(super) fn publish(&mut self, node: usize, publisher: Publisher) {
        let now = self.now;
        let router = &mut self.nodes[node].router;
        router.publish(now, publisher.peer, &publisher.info, Epoch(1));
        router.set_receive(now, publisher.peer, vec![publisher.section.clone()]);
        router.peer_connected(now, publisher.peer);
        self.publishers.insert(publisher.peer, (node, publisher));
    }

    pub(super) fn subscribe(&mut self, node: usize, subscriber: Subscriber) {
        let now = self.now;
        let router = &mut self.nodes[node].router;
        router.subscribe(
            now,
            subscriber.peer,
            &subscriber.section.track,
            subscriber.settings,
        );
        router.set_send(now, subscriber.peer, vec![subscriber.section.clone()]);
        router.peer_connected(now, subscriber.peer);
        self.subscribers.insert(subscriber.peer, (node, subscriber));
    }

    /// The log's route, on both ends.
    pub(super) fn route(&mut self, track: &TrackInfo, from: usize, to: usize, epoch: u64) {
        let now = self.now;
        let sid: &TrackSid = &track.sid;
        self.nodes[from].router.relay_to(now, sid, node_id(to));
        self.nodes[to]
            .router
            .relay_from(now, track, node_id(from), Epoch(epoch));
    }

    fn send(&mut self, to: To, bytes: Vec<u8>, network: Network) {
        if self.rng.random_bool(network.loss) {
            return;
        }
        let jitter = if network.jitter_ms == 0 {
            0
        } else {
            self.rng.random_range(0..network.jitter_ms * 1_000)
        };
        let delay = Duration::from_micros(network.delay_ms * 1_000 + jitter);
        self.order += 1;
        self.flying
            .insert((self.now + delay, self.order), (to, bytes));
    }

    /// Hands a packet to a router at once, as if it came from a peer.
    pub(super) fn inject(&mut self, node: usize, peer: PeerId, bytes: &mut [u8]) {
        let now = self.now;
        let node = &mut self.nodes[node];
        let _ = node.router.handle_rtp(now, peer, bytes, &mut node.wire);
        node.router.forward(&mut node.wire);
    }

    /// Hands a relay datagram to a router at once.
    pub(super) fn inject_relay(
        &mut self,
        node: usize,
        bytes: &mut [u8],
    ) -> Result<(), crate::discard::Discard> {
        let now = self.now;
        let node = &mut self.nodes[node];
        node.router
            .handle_relay(now, address(0), bytes, &mut node.wire)
    }

    pub(super) fn run_ms(&mut self, duration_ms: u64) {
        for _ in 0..duration_ms {
            self.now += Duration::from_millis(1);
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(entry) = self.flying.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (to, bytes) = entry.remove();
            self.deliver(to, bytes);
        }
        let mut out = vec![];
        for (peer, (node, publisher)) in &mut self.publishers {
            for packet in publisher.step(now, self.start) {
                let to = if packet.is_rtcp {
                    To::RouterRtcp {
                        node: *node,
                        peer: *peer,
                    }
                } else {
                    To::Router {
                        node: *node,
                        peer: *peer,
                    }
                };
                out.push((to, packet.bytes));
            }
        }
        for (peer, (node, subscriber)) in &mut self.subscribers {
            for bytes in subscriber.step(now) {
                let to = To::RouterRtcp {
                    node: *node,
                    peer: *peer,
                };
                out.push((to, bytes));
            }
        }
        for (to, bytes) in out {
            self.send(to, bytes, self.client_network);
        }
        for index in 0..self.nodes.len() {
            self.run_node(index);
        }
    }

    fn deliver(&mut self, to: To, mut bytes: Vec<u8>) {
        let now = self.now;
        match to {
            To::Router { node, peer } => {
                let node = &mut self.nodes[node];
                let _ = node
                    .router
                    .handle_rtp(now, peer, &mut bytes, &mut node.wire);
            }
            To::RouterRtcp { node, peer } => {
                let node = &mut self.nodes[node];
                let _ = node.router.handle_rtcp(now, peer, &bytes, &mut node.wire);
            }
            To::Relay { node, from } => {
                let node = &mut self.nodes[node];
                let _ = node
                    .router
                    .handle_relay(now, from, &mut bytes, &mut node.wire);
            }
            To::Peer { peer, is_rtcp } => {
                if let Some((_, publisher)) = self.publishers.get_mut(&peer) {
                    assert!(is_rtcp, "a publisher is sent no media");
                    publisher.receive_rtcp(now, &bytes);
                } else if let Some((_, subscriber)) = self.subscribers.get_mut(&peer) {
                    if is_rtcp {
                        subscriber.receive_rtcp(now, &bytes);
                    } else {
                        subscriber.receive_rtp(now, &bytes);
                    }
                }
            }
        }
    }

    fn run_node(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.router.deadline().is_some_and(|at| at <= now) {
            node.router.handle_timeout(now, &mut node.wire);
        }
        node.router.forward(&mut node.wire);
        while let Some(event) = node.router.poll_event() {
            node.events.push(event);
        }
        for (out, bytes) in std::mem::take(&mut node.wire.packets) {
            match out {
                Out::Rtp(peer) => {
                    let to = To::Peer {
                        peer,
                        is_rtcp: false,
                    };
                    self.send(to, bytes, self.client_network);
                }
                Out::Rtcp(peer) => {
                    let to = To::Peer {
                        peer,
                        is_rtcp: true,
                    };
                    self.send(to, bytes, self.client_network);
                }
                Out::Relay(to) => {
                    self.relayed.0 += 1;
                    self.relayed.1 += bytes.len() as u64;
                    if let Some(tap) = &mut self.tap {
                        tap.push(bytes.clone());
                    }
                    let node = (0..self.nodes.len())
                        .find(|node| address(*node) == to)
                        .expect("a known node");
                    let from = address(index);
                    if self.cut.contains(&(index.min(node), index.max(node))) {
                        continue;
                    }
                    self.send(To::Relay { node, from }, bytes, self.node_network);
                }
            }
        }
    }

    pub(super) fn subscriber(&self, peer: u64) -> &Subscriber {
        &self.subscribers[&PeerId(peer)].1
    }

    pub(super) fn subscriber_mut(&mut self, peer: u64) -> &mut Subscriber {
        &mut self.subscribers.get_mut(&PeerId(peer)).expect("known").1
    }

    pub(super) fn publisher_mut(&mut self, peer: u64) -> &mut Publisher {
        &mut self.publishers.get_mut(&PeerId(peer)).expect("known").1
    }

    pub(super) fn events(&self, node: usize) -> &[Event] {
        &self.nodes[node].events
    }
}
