//! The mesh between nodes, claims of sessions, and where a node's messages go. Models
//! `flotilla_node::mesh`'s link and service: numbered frames, kept until acknowledged, sent again on a new
//! stream, for as long as both processes live.

use std::collections::BTreeSet;
use std::sync::Arc;

use flotilla_model::State;
use flotilla_model::id::{BootId, Epoch, NodeId, ParticipantSid, RoomName};
use flotilla_node::hub::rooms::Outgoing;
use flotilla_node::mesh::{Body, Inbound, proto};
use flotilla_node::session::handover;
use flotilla_signal::session::{Claimed, Keepsake};
use tokio::sync::oneshot;

use crate::bug::Bug;
use crate::message::Message;
use crate::net::End;
use crate::node::{Claiming, LettingGo};
use crate::time::{ms, secs};
use crate::witness::Fact;
use crate::world::World;

/// Without an answer for so long a link is opened anew.
const SILENCE_MAX: u64 = secs(3);
/// Pause between tries.
const RETRY: u64 = ms(300);
/// How long other nodes are waited for in a claim.
const CLAIM_MAX: u64 = ms(600);
/// How long those are that are lost.
const CLAIM_LOST_MAX: u64 = ms(20);
/// How long a session may take to let go.
const LET_GO_MAX: u64 = ms(200);
/// Lane of mesh streams; the stream's number is added.
const MESH: u64 = 1 << 40;

impl World {
    /// A message for a node.
    pub fn node_receives(&mut self, id: u64, from: End, message: Message) {
        if self.node(id).process.is_none() {
            self.answer_for_dead(id, from, &message);
            return;
        }
        match (from, message) {
            (End::Node(from), Message::Raft(message)) => {
                if !self.node(id).removed {
                    self.raft_receives(id, from, message);
                }
            }
            (
                End::Node(from),
                message @ (Message::Hello { .. }
                | Message::Welcome { .. }
                | Message::Frame { .. }
                | Message::Beat { .. }
                | Message::Echo { .. }
                | Message::Acknowledge { .. }),
            ) => self.link_receives(id, from, message),
            (
                End::Node(from),
                Message::Claim {
                    id: number,
                    request,
                },
            ) => {
                self.claimed_by(id, from, number, request);
            }
            (End::Node(_), Message::Held { id: number, reply }) => {
                if let Some(claiming) = self.process(id).claiming.get_mut(&number) {
                    claiming.open.remove(&reply.answered_by());
                    claiming.replies.push(reply.into_reply());
                }
            }
            (
                End::Node(from),
                Message::Relay {
                    track,
                    epoch,
                    number,
                    boot,
                },
            ) => {
                self.engine_relayed(id, from, boot, track, epoch, number);
            }
            (End::Node(from), message) => self.sign_receives(id, from, message),
            (End::Client(client), message) => self.session_receives(id, client, message),
        }
    }

    /// The system of a node's machine answers for a process that is gone.
    fn answer_for_dead(&mut self, id: u64, from: End, message: &Message) {
        if !self.node(id).powered {
            return;
        }
        let own = End::Node(id);
        match message {
            Message::Ping { .. }
            | Message::Hello { .. }
            | Message::Frame { .. }
            | Message::Beat { .. } => {
                self.datagram(own, from, Message::Refused { broke: true });
            }
            Message::Knock => self.datagram(own, from, Message::Refused { broke: false }),
            Message::Open { connection, .. } => {
                let message = Message::Denied {
                    connection: *connection,
                    status: 0,
                };
                self.datagram(own, from, message);
            }
            Message::Request { connection, .. } => {
                let message = Message::Close {
                    connection: *connection,
                };
                self.datagram(own, from, message);
            }
            _ => {}
        }
    }

    /// Links and pulses go to the nodes of a state.
    pub fn link_nodes(&mut self, id: u64, state: &State) {
        let others: BTreeSet<u64> = state
            .nodes
            .keys()
            .map(|node| node.0)
            .filter(|other| *other != id)
            .collect();
        let process = self.process(id);
        process.links.retain(|other, _| others.contains(other));
        for other in &others {
            process.links.entry(*other).or_default();
        }
        self.listen_to(id, &others);
    }

    /// What rooms want other nodes to have goes out; sessions may have something to do.
    pub fn rooms_changed(&mut self, id: u64) {
        let skips = self.bug == Some(Bug::MovesNotReplayed);
        for outgoing in self.process(id).rooms.take_outgoing() {
            let Outgoing {
                to,
                boot,
                body,
                reliable,
                ..
            } = outgoing;
            if let Body::Data(data) = &body
                && skips
                && !data.only.is_empty()
            {
                continue;
            }
            if reliable {
                self.send_frame(id, to.0, Some(boot), body);
            }
        }
        self.sessions_soon(id);
    }

    fn lane(boot: u64, stream: u64) -> u64 {
        MESH + boot * 4096 + stream
    }

    /// A reliable body for another node, or for one start of it; whether its link took it.
    pub fn send_frame(&mut self, id: u64, to: u64, meant: Option<BootId>, body: Body) -> bool {
        let process = self.process(id);
        let boot = process.boot;
        let Some(link) = process.links.get_mut(&to) else {
            return false;
        };
        link.sequence += 1;
        link.kept.push_back((link.sequence, meant, body.clone()));
        if link.connected {
            let (stream, sequence) = (link.stream, link.sequence);
            let message = Message::Frame {
                boot,
                stream,
                sequence,
                body: Box::new(body),
            };
            self.stream(
                End::Node(id),
                End::Node(to),
                Self::lane(boot.0, stream),
                message,
            );
        }
        true
    }

    /// The other process of a link is gone.
    pub fn link_broke(&mut self, id: u64, other: u64) {
        let retry = self.now + ms(50);
        if let Some(link) = self.process(id).links.get_mut(&other) {
            link.connected = false;
            link.retry = retry;
        }
    }

    /// Links are opened, and opened anew.
    pub fn links_tick(&mut self, id: u64) {
        let now = self.now;
        let process = self.process(id);
        let boot = process.boot;
        let mut hellos = Vec::new();
        let mut beats = Vec::new();
        for (other, link) in &mut process.links {
            if link.connected && now - link.heard > SILENCE_MAX {
                link.connected = false;
            }
            if !link.connected && link.retry <= now {
                link.retry = now + RETRY;
                link.stream += 1;
                hellos.push((*other, link.stream));
            } else if link.connected && process.ticks.is_multiple_of(10) {
                beats.push((*other, link.stream));
            }
        }
        for (other, stream) in hellos {
            let message = Message::Hello { boot, stream };
            self.datagram(End::Node(id), End::Node(other), message);
        }
        for (other, stream) in beats {
            let sent = now;
            let message = Message::Beat { boot, stream, sent };
            self.stream(
                End::Node(id),
                End::Node(other),
                Self::lane(boot.0, stream),
                message,
            );
        }
    }

    fn link_receives(&mut self, id: u64, from: u64, message: Message) {
        let (now, instant, base) = (self.now, self.instant(), self.base);
        let repeats = self.bug == Some(Bug::MeshRepeats);
        let (own, other) = (End::Node(id), End::Node(from));
        let process = self.process(id);
        match message {
            Message::Hello { boot, stream } => {
                let sender = process.senders.entry(from).or_default();
                if sender.boot != boot {
                    (sender.boot, sender.sequence, sender.stream) = (boot, 0, 0);
                }
                if stream <= sender.stream {
                    return;
                }
                sender.stream = stream;
                sender.broken = false;
                let sequence = sender.sequence;
                let message = Message::Welcome {
                    boot: process.boot,
                    stream,
                    sequence,
                };
                self.datagram(own, other, message);
            }
            Message::Welcome {
                boot,
                stream,
                sequence,
            } => {
                let own_boot = process.boot;
                let Some(link) = process.links.get_mut(&from) else {
                    return;
                };
                if link.connected || link.stream != stream {
                    return;
                }
                if let Some(known) = link.boot.filter(|known| *known != boot) {
                    // What was for participants of a process that is gone is gone with it.
                    link.kept.retain(|(_, meant, _)| *meant != Some(known));
                }
                link.boot = Some(boot);
                link.connected = true;
                link.heard = now;
                link.kept.retain(|(number, ..)| *number > sequence);
                let again: Vec<_> = link.kept.iter().cloned().collect();
                for (sequence, _, body) in again {
                    let message = Message::Frame {
                        boot: own_boot,
                        stream,
                        sequence,
                        body: Box::new(body),
                    };
                    self.stream(own, other, Self::lane(own_boot.0, stream), message);
                }
            }
            Message::Frame {
                boot,
                stream,
                sequence,
                body,
            } => {
                let sender = process.senders.entry(from).or_default();
                if sender.boot != boot || sender.stream != stream || sender.broken {
                    return;
                }
                let taken = sequence != 0 && sequence <= sender.sequence && !repeats;
                sender.sequence = sender.sequence.max(sequence);
                let sequence_now = sender.sequence;
                let message = Message::Acknowledge {
                    stream,
                    sequence: sequence_now,
                };
                self.datagram(own, other, message);
                if sequence != 0 && !taken {
                    self.take_body(id, from, *body);
                }
            }
            Message::Beat { boot, stream, sent } => {
                let sender = process.senders.entry(from).or_default();
                if sender.boot == boot && sender.stream == stream {
                    process.book.reached(NodeId(from), boot, None, instant);
                    let boot = process.boot;
                    self.datagram(own, other, Message::Echo { boot, stream, sent });
                }
            }
            Message::Echo { boot, stream, sent } => {
                if let Some(link) = process.links.get_mut(&from)
                    && link.stream == stream
                {
                    link.heard = now;
                    process
                        .book
                        .reached(NodeId(from), boot, Some(base.instant(sent)), instant);
                }
            }
            Message::Acknowledge { stream, sequence } => {
                if let Some(link) = process.links.get_mut(&from)
                    && link.stream == stream
                {
                    link.heard = now;
                    if !repeats {
                        link.kept.retain(|(number, ..)| *number > sequence);
                    }
                }
            }
            _ => {}
        }
    }

    fn take_body(&mut self, id: u64, from: u64, mut body: Body) {
        let now = self.instant();
        if self.bug == Some(Bug::AheadNotWaited)
            && let Body::Data(data) = &mut body
        {
            data.revision = 0;
        }
        if let Body::Data(data) = &body {
            self.fact(&Fact::TakesData {
                node: id,
                from,
                data,
            });
        }
        let inbound = Inbound {
            from: NodeId(from),
            body,
        };
        self.process(id).rooms.receive(now, inbound);
        self.rooms_changed(id);
    }

    /// A session asks everybody for what they hold of it.
    pub fn claim(
        &mut self,
        id: u64,
        key: u64,
        room: &RoomName,
        sid: &ParticipantSid,
        epoch: Epoch,
    ) {
        let asked = self.now;
        let process = self.process(id);
        let open: BTreeSet<u64> = process
            .links
            .iter()
            .filter(|(_, link)| link.connected)
            .map(|(other, _)| *other)
            .collect();
        let number = process.number();
        process.claiming.insert(
            number,
            Claiming {
                key,
                open: open.clone(),
                replies: Vec::new(),
                asked,
            },
        );
        if self.bug == Some(Bug::FormerHomeKeepsOn) {
            return;
        }
        for other in open {
            let request = proto::ClaimRequest {
                room: room.0.clone(),
                sid: sid.0.clone(),
                epoch: epoch.0,
                borrower: 0,
            };
            let message = Message::Claim {
                id: number,
                request,
            };
            self.stream(End::Node(id), End::Node(other), 2, message);
        }
    }

    fn claimed_by(&mut self, id: u64, from: u64, number: u64, request: proto::ClaimRequest) {
        let (room, sid) = (RoomName(request.room), ParticipantSid(request.sid));
        let (let_go, gone) = oneshot::channel();
        let deadline = self.now + LET_GO_MAX;
        let process = self.process(id);
        let served = process
            .rooms
            .let_go(&room, &sid, Epoch(request.epoch), let_go);
        process.letting_go.push(LettingGo {
            from,
            id: number,
            room,
            sid,
            gone: served.then_some(gone),
            deadline,
        });
        self.sessions_soon(id);
        self.answer_claims(id);
    }

    /// Claims of others are answered as soon as their sessions are gone.
    pub fn answer_claims(&mut self, id: u64) {
        let (now, instant) = (self.now, self.instant());
        let process = self.process(id);
        let mut answers = Vec::new();
        let mut waiting = Vec::new();
        for mut letting in std::mem::take(&mut process.letting_go) {
            let is_gone = letting
                .gone
                .as_mut()
                .is_none_or(|gone| gone.try_recv().is_ok());
            if is_gone || letting.deadline <= now {
                let reply = proto::ClaimReply {
                    served: letting.gone.is_some(),
                    ..process.rooms.held(instant, &letting.room, &letting.sid)
                };
                answers.push((letting.from, letting.id, reply));
            } else {
                waiting.push(letting);
            }
        }
        process.letting_go = waiting;
        for (to, number, reply) in answers {
            let reply = Box::new(HeldReply { by: id, reply });
            let message = Message::Held { id: number, reply };
            self.stream(End::Node(id), End::Node(to), 3, message);
        }
    }

    /// Claims end when everybody has answered, or in time.
    pub fn claims_tick(&mut self, id: u64) {
        self.answer_claims(id);
        let now = self.now;
        let state = Arc::clone(self.node(id).replica.state());
        let is_lost = |node: &u64| {
            let node = state.nodes.get(&NodeId(*node));
            node.is_none_or(|node| node.state.is_lost())
        };
        let mut over = Vec::new();
        for (number, claiming) in &mut self.process(id).claiming {
            if claiming.asked + CLAIM_LOST_MAX <= now {
                claiming.open.retain(|node| !is_lost(node));
            }
            if claiming.open.is_empty() || claiming.asked + CLAIM_MAX <= now {
                over.push(*number);
            }
        }
        for number in over {
            if let Some(claiming) = self.process(id).claiming.remove(&number) {
                self.end_claim(id, claiming);
            }
        }
    }

    fn end_claim(&mut self, id: u64, claiming: Claiming) {
        let now = self.instant();
        let Claiming {
            key, mut replies, ..
        } = claiming;
        let only_newest = self.bug == Some(Bug::SequenceFromOneNode);
        let process = self.process(id);
        let Some(task) = process.sessions.get_mut(&key) else {
            return;
        };
        replies.push(process.rooms.held(now, &task.room, &task.sid));
        let kept = handover::newest(&replies, |reply| !reply.keepsake.is_empty());
        let keepsake = kept.and_then(|kept| postcard::from_bytes::<Keepsake>(&kept.keepsake).ok());
        let last_sequence = if only_newest {
            replies
                .iter()
                .map(|reply| reply.last_sequence)
                .max()
                .unwrap_or_default()
        } else {
            handover::last_sequence(&replies)
        };
        task.claimed = Some(Claimed {
            keepsake,
            last_sequence,
            acknowledged: handover::acknowledged(&replies),
        });
        self.sessions_soon(id);
    }
}

/// An answer to a claim, and whose it is.
#[derive(Clone, Debug)]
pub struct HeldReply {
    by: u64,
    reply: proto::ClaimReply,
}

impl HeldReply {
    const fn answered_by(&self) -> u64 {
        self.by
    }

    fn into_reply(self) -> proto::ClaimReply {
        self.reply
    }
}
