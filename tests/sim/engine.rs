//! A node's media engine as far as control is concerned: which track comes from where under which epoch,
//! who gets it, and what may be sent. Fed by the product's reconciler and sessions; a packet is a number.
//! Models `flotilla_media::engine`'s rules for relays and leases; the engine itself is tested with packets.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_media::command::Command;
use flotilla_model::id::{BootId, Epoch, NodeId, TrackSid};
use flotilla_model::track::{Kind, Layer, Quality, Track, TrackCodec};
use flotilla_signal::media::{self, Channel, Target};

use crate::bug::Bug;
use crate::message::{Association, Message};
use crate::net::End;
use crate::time::ms;
use crate::witness::{Fact, Packet};
use crate::world::{What, World};

/// A session's peer.
#[derive(Debug)]
pub struct Peer {
    /// Client.
    pub client: usize,
    /// Media is up.
    pub connected: bool,
    /// Another node may serve its client.
    pub quiet: bool,
    /// Tracks that it publishes, by epoch.
    pub tracks: BTreeMap<TrackSid, Epoch>,
    /// Tracks that it is sent.
    pub subscribed: BTreeSet<TrackSid>,
}

/// The engine's state.
#[derive(Debug, Default)]
pub struct Engine {
    /// Peers by session.
    pub peers: BTreeMap<u64, Peer>,
    /// Where tracks are relayed to.
    pub outgoing: BTreeMap<TrackSid, BTreeSet<NodeId>>,
    /// Where tracks are relayed from, by epoch.
    pub incoming: BTreeMap<TrackSid, (NodeId, Epoch)>,
    /// Other nodes' starts.
    pub links: BTreeMap<NodeId, BootId>,
}

impl Engine {
    /// An order of the reconciler.
    pub fn order(&mut self, command: Command) {
        match command {
            Command::SetLink { node, boot, .. } => {
                self.links.insert(node, boot);
            }
            Command::RemoveLink { node } => {
                self.links.remove(&node);
                self.incoming.retain(|_, (from, _)| *from != node);
                for nodes in self.outgoing.values_mut() {
                    nodes.remove(&node);
                }
            }
            Command::RelayTo { track, node } => {
                self.outgoing.entry(track).or_default().insert(node);
            }
            Command::StopRelayTo { track, node } => {
                if let Some(nodes) = self.outgoing.get_mut(&track) {
                    nodes.remove(&node);
                    if nodes.is_empty() {
                        self.outgoing.remove(&track);
                    }
                }
            }
            Command::RelayFrom { track, node, epoch } => {
                let known = self.incoming.get(&track.sid);
                if known.is_none_or(|(_, known)| *known <= epoch) {
                    self.incoming.insert(track.sid.clone(), (node, epoch));
                }
            }
            Command::Unpublish { track } => {
                self.incoming.remove(&track);
            }
            _ => {}
        }
    }

    fn publisher(&self, track: &TrackSid) -> Option<(u64, Epoch)> {
        self.peers
            .iter()
            .find_map(|(key, peer)| Some((*key, *peer.tracks.get(track)?)))
    }
}

/// What an engine finds out about a track.
fn described(track: &Track) -> Vec<TrackCodec> {
    let mime = if track.kind == Kind::Video {
        "video/vp8"
    } else {
        "audio/opus"
    };
    let cid = track.codecs.first().map(|codec| codec.cid.clone());
    vec![TrackCodec {
        mime: mime.into(),
        fmtp: String::new(),
        cid: cid.unwrap_or_default(),
        mid: "7".into(),
        layers: vec![Layer {
            quality: Quality::High,
            size: track.size,
            bitrate_bps: 0,
            rid: String::new(),
            ssrc: 9,
            repair_ssrc: 0,
        }],
    }]
}

impl World {
    /// A session's order.
    pub fn order(&mut self, id: u64, key: u64, client: usize, command: media::Command) {
        let boot = self.process(id).boot;
        if let media::Command::CreatePeers { .. } = &command {
            let peer = Peer {
                client,
                connected: false,
                quiet: false,
                tracks: BTreeMap::new(),
                subscribed: BTreeSet::new(),
            };
            self.process(id).engine.peers.insert(key, peer);
            let wait = self.rng.range(ms(20), ms(120));
            self.after(wait, What::Check(id, boot, key));
            return;
        }
        let Some(peer) = self.process(id).engine.peers.get_mut(&key) else {
            return;
        };
        match command {
            media::Command::Publish { track, epoch } => {
                peer.tracks.insert(track.sid.clone(), epoch);
                self.process(id).engine.incoming.remove(&track.sid);
                let codecs = described(&track);
                let event = media::Event::TrackDescribed {
                    track: track.sid,
                    codecs,
                };
                let wait = self.rng.range(ms(10), ms(80));
                self.after(wait, What::Engine(id, boot, key, Box::new(event)));
            }
            media::Command::Unpublish { track } => {
                peer.tracks.remove(&track);
            }
            media::Command::Subscribe { track, .. } => {
                peer.subscribed.insert(track);
            }
            media::Command::Unsubscribe { track } => {
                peer.subscribed.remove(&track);
            }
            media::Command::SetQuiet { quiet } => peer.quiet = quiet,
            media::Command::SendData {
                channel: Channel::Reliable,
                payload,
            } => {
                let is_quiet = peer.quiet;
                if self.may_send(id) && !is_quiet && !self.process(id).has_held(key) {
                    let association = Association {
                        node: id,
                        boot,
                        key,
                    };
                    let message = Message::Data {
                        association,
                        payload,
                    };
                    let lane = association.lane();
                    self.stream(End::Node(id), End::Client(client), lane, message);
                } else {
                    self.process(id).engine_held(key, payload);
                }
            }
            _ => {}
        }
    }

    /// The engine tries to reach a session's client.
    pub fn engine_checks(&mut self, id: u64, key: u64) {
        let boot = self.process(id).boot;
        let Some(peer) = self.process(id).engine.peers.get(&key) else {
            return;
        };
        if peer.connected {
            return;
        }
        let client = peer.client;
        let association = Association {
            node: id,
            boot,
            key,
        };
        if self.may_send(id) {
            self.datagram(
                End::Node(id),
                End::Client(client),
                Message::Check { association },
            );
        }
        self.after(ms(200), What::Check(id, boot, key));
    }

    /// The client has answered.
    pub fn engine_reached(&mut self, id: u64, key: u64) {
        let boot = self.process(id).boot;
        let Some(peer) = self.process(id).engine.peers.get_mut(&key) else {
            return;
        };
        if peer.connected {
            return;
        }
        peer.connected = true;
        let target = Target::Publisher;
        let mut events = vec![media::Event::Connected { target }];
        for channel in [Channel::Reliable, Channel::Lossy] {
            events.push(media::Event::ChannelOpen { target, channel });
        }
        for event in events {
            self.after(10, What::Engine(id, boot, key, Box::new(event)));
        }
    }

    /// A client's packet for its session's peer.
    pub fn engine_receives(&mut self, id: u64, key: u64, track: TrackSid, number: u64) {
        let peer = self.process(id).engine.peers.get(&key);
        let epoch = peer
            .filter(|peer| peer.connected)
            .and_then(|peer| peer.tracks.get(&track).copied());
        let Some(epoch) = epoch else {
            return;
        };
        if !self.may_send(id) {
            return;
        }
        let boot = self.process(id).boot;
        let nodes = self.process(id).engine.outgoing.get(&track).cloned();
        for node in nodes.unwrap_or_default() {
            self.fact(&Fact::Relayed {
                from: id,
                to: node.0,
                track: &track,
            });
            let message = Message::Relay {
                track: track.clone(),
                epoch,
                number,
                boot,
            };
            self.datagram(End::Node(id), End::Node(node.0), message);
        }
        self.forward(id, &track, epoch, number);
    }

    /// A relayed packet.
    pub fn engine_relayed(
        &mut self,
        id: u64,
        from: u64,
        boot: BootId,
        track: TrackSid,
        epoch: Epoch,
        number: u64,
    ) {
        let checks = self.bug != Some(Bug::RelayEpochNotChecked);
        let engine = &self.process(id).engine;
        let is_linked = engine.links.get(&NodeId(from)) == Some(&boot);
        let is_wanted = engine.incoming.get(&track) == Some(&(NodeId(from), epoch));
        let is_own = engine.publisher(&track).is_some();
        if checks && (!is_linked || !is_wanted || is_own) {
            return;
        }
        if self.may_send(id) {
            self.forward(id, &track, epoch, number);
        }
    }

    fn forward(&mut self, id: u64, track: &TrackSid, epoch: Epoch, number: u64) {
        let process = self.process(id);
        let boot = process.boot;
        let subscribers: Vec<(u64, usize)> = process
            .engine
            .peers
            .iter()
            .filter(|(_, peer)| peer.connected && !peer.quiet && peer.subscribed.contains(track))
            .map(|(key, peer)| (*key, peer.client))
            .collect();
        for (key, client) in subscribers {
            let Some(task) = self.process(id).sessions.get(&key) else {
                continue;
            };
            let own_epoch = task.session.epoch();
            let sid = task.sid.clone();
            let association = Association {
                node: id,
                boot,
                key,
            };
            let heard = !self.net.is_cut(End::Node(id), End::Client(client));
            self.fact(&Fact::Sent(&Packet {
                node: id,
                subscriber: &sid,
                own_epoch,
                track,
                epoch,
                number,
            }));
            if heard {
                self.clients[client].hears(self.now, association, track);
            }
        }
    }
}
