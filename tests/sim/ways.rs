//! Ways round cut links: drives the product's `Detours` and carries what takes another way.
//!
//! Models what the mesh and the engine do with them: connections between two nodes, and relayed packets, go by way of
//! a third node. What a node answers goes back on the way that it was asked on. A connection whose way is cut breaks.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_model::id::NodeId;
use flotilla_node::control::detours::{Peer, Step};
use flotilla_node::mesh::Finding;

use crate::message::Message;
use crate::net::End;
use crate::node::BOUND;
use crate::raft::RaftMessage;
use crate::time::{Time, ms};
use crate::world::{What, World};

/// Who hears a node: a question to others under way.
#[derive(Debug)]
pub struct Seeking {
    /// About whom.
    pub node: NodeId,
    /// Who was asked, best first, and what came of it.
    pub asked: Vec<(NodeId, Option<Finding>)>,
    /// Until when.
    pub deadline: Time,
}

/// How something travels between two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Directly, whatever there is: signs of life and questions about them.
    Direct,
    /// On a connection of the sender's.
    Asks,
    /// On a connection of the receiver's.
    Answers,
    /// As a relayed packet.
    Packet,
}

fn way_of(message: &Message) -> Way {
    match message {
        Message::Raft(
            RaftMessage::Appended { .. }
            | RaftMessage::Voted { .. }
            | RaftMessage::NotLeader { .. }
            | RaftMessage::Index { .. },
        )
        | Message::Welcome { .. }
        | Message::Echo { .. }
        | Message::Acknowledge { .. }
        | Message::Held { .. } => Way::Answers,
        Message::Raft(_)
        | Message::Hello { .. }
        | Message::Frame { .. }
        | Message::Beat { .. }
        | Message::Claim { .. } => Way::Asks,
        Message::Relay { .. } => Way::Packet,
        _ => Way::Direct,
    }
}

impl World {
    /// The node by way of which something travels; `None`: directly.
    #[must_use]
    pub fn by_way_of(&self, from: End, to: End, message: &Message) -> Option<u64> {
        let (End::Node(from), End::Node(to)) = (from, to) else {
            return None;
        };
        let ways = |id: u64| self.nodes.get(&id)?.process.as_ref();
        match way_of(message) {
            Way::Direct => None,
            Way::Asks => ways(from)?.connections_round.get(&to).copied(),
            Way::Answers => ways(to)?.connections_round.get(&from).copied(),
            Way::Packet => ways(from)?.packets_round.get(&to).copied(),
        }
    }

    /// Sends something by way of another node, in order.
    pub fn carry(&mut self, from: End, via: u64, to: End, message: Message) {
        let at = self.net.carried(self.now, &mut self.rng, from, to);
        self.at(at, What::Carried(from, via, to, Box::new(message)));
    }

    /// What another node carries arrives, if the way is whole.
    pub fn carried(&mut self, from: End, via: u64, to: End, message: Message) {
        let on_the_way = End::Node(via);
        let runs = self.nodes.get(&via).is_some_and(crate::node::Node::runs);
        let passes = runs && !self.net.is_cut(from, on_the_way) && !self.net.is_cut(on_the_way, to);
        let (End::Node(sender), End::Node(receiver)) = (from, to) else {
            return;
        };
        if passes {
            self.node_receives(receiver, from, message);
        } else if let Message::Frame { stream, .. } = message {
            self.tunnel_broke(sender, receiver, stream);
        }
    }

    /// Something on a stream is lost: nothing more comes on it.
    fn tunnel_broke(&mut self, from: u64, to: u64, stream: u64) {
        if let Some(process) = &mut self.node(to).process {
            let sender = process.senders.entry(from).or_default();
            if sender.stream == stream {
                sender.broken = true;
            }
        }
        let process = &self.node(from).process;
        let link = process.as_ref().and_then(|process| process.links.get(&to));
        if link.is_some_and(|link| link.stream == stream) {
            self.link_broke(from, to);
        }
    }

    /// Looks for ways round links that are cut.
    pub fn look_for_ways(&mut self, id: u64) {
        let now = self.instant();
        let state = std::sync::Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        let book = &process.book;
        let peers: BTreeMap<NodeId, Peer> = book
            .all()
            .iter()
            .filter(|(node, _)| state.nodes.contains_key(node))
            .map(|(node, sign)| {
                let peer = Peer {
                    silence: book.silence(sign, now),
                    is_gone: sign.is_gone(now),
                    can_carry: true,
                    round_trip: Duration::from_millis(node.0),
                };
                (*node, peer)
            })
            .collect();
        let steps = process.detours.look(now, &peers);
        self.take_ways(id, steps);
        self.close_seeking(id);
    }

    fn take_ways(&mut self, id: u64, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Ask(node, others) => self.seek(id, node, &others),
                Step::Packets(node, via) => {
                    let ways = &mut self.process(id).packets_round;
                    match via {
                        Some(via) => ways.insert(node.0, via.0),
                        None => ways.remove(&node.0),
                    };
                }
                Step::Connections(node, via) => {
                    let ways = &mut self.process(id).connections_round;
                    match via {
                        Some(via) => ways.insert(node.0, via.0),
                        None => ways.remove(&node.0),
                    };
                    self.witness.coverage.detours += u64::from(via.is_some());
                    // They are opened anew.
                    self.link_broke(id, node.0);
                }
            }
        }
    }

    fn seek(&mut self, id: u64, node: NodeId, others: &[NodeId]) {
        let (now, instant) = (self.now, self.instant());
        let state = std::sync::Arc::clone(self.node(id).replica.state());
        let Some(boot) = state.nodes.get(&node).map(|node| node.boot) else {
            let steps = self.process(id).detours.heard(instant, node, &[]);
            self.take_ways(id, steps);
            return;
        };
        let within = BOUND / 2;
        let number = self.process(id).number();
        for other in others {
            let message = Message::Inquire {
                id: number,
                node: node.0,
                boot,
                bound: BOUND,
                within,
            };
            self.datagram(End::Node(id), End::Node(other.0), message);
        }
        let patience = within.as_micros() as u64 * 3 / 2 + ms(50);
        let seeking = Seeking {
            node,
            asked: others.iter().map(|other| (*other, None)).collect(),
            deadline: now + patience,
        };
        self.process(id).seeking.insert(number, seeking);
    }

    /// Somebody says what it finds about a node; whether it was asked for a way.
    pub fn found_way(&mut self, id: u64, from: u64, number: u64, finding: Finding) -> bool {
        let Some(seeking) = self.process(id).seeking.get_mut(&number) else {
            return false;
        };
        for (node, found) in &mut seeking.asked {
            if node.0 == from {
                *found = Some(finding);
            }
        }
        self.close_seeking(id);
        true
    }

    fn close_seeking(&mut self, id: u64) {
        let (now, instant) = (self.now, self.instant());
        let process = self.process(id);
        let is_over = |seeking: &Seeking| {
            seeking.deadline <= now || seeking.asked.iter().all(|(_, found)| found.is_some())
        };
        let over: Vec<u64> = process
            .seeking
            .iter()
            .filter(|(_, seeking)| is_over(seeking))
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            let process = self.process(id);
            let Some(seeking) = process.seeking.remove(&number) else {
                continue;
            };
            let hearing: Vec<NodeId> = seeking
                .asked
                .iter()
                .filter(|(_, found)| *found == Some(Finding::Heard))
                .map(|(node, _)| *node)
                .collect();
            let steps = process.detours.heard(instant, seeking.node, &hearing);
            self.take_ways(id, steps);
        }
    }
}
