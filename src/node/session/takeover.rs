//! Taking over another node's session, and leaving one's own in a state that others can.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::id::{Epoch, Identity, NodeId, ParticipantSid, RoomName, UnixMillis};
use flotilla_model::participant::Participant;
use flotilla_signal::connect::Connect;
use flotilla_signal::media::{self, Target};
use flotilla_signal::session::{Adopting, Claimed, Resuming, Session, may_adopt};
use futures_util::future::join_all;
use rand::RngCore as _;
use tracing::info;

use super::handover::{self, Transports};
use super::inbox::{Inbox, Standing};
use super::lending::Borrowed;
use super::unmissed::go_on_orders;
use super::{CONNECT_MAX, Claim, Sessions, Task};
use crate::control::takeovers::Adoption;
use crate::mesh::enroll::wall_clock_ms;
use crate::mesh::proto;

/// How long other nodes are waited for. Who does not answer has its say in the client's de-duplication.
const CLAIM_MAX: Duration = Duration::from_millis(300);
/// How long the log's newest state is waited for when the session is not known here.
const READ_MAX: Duration = Duration::from_millis(500);

impl Sessions {
    /// The participant whose session this client wants back, if the log has it and the client may.
    pub async fn find_elsewhere(&self, connect: &Connect) -> Option<Arc<Participant>> {
        let known = self.find_in(&self.group.state(), connect);
        if known.is_some() {
            return known;
        }
        // It may have joined elsewhere a moment ago. Without quorum there is no saying.
        let read = tokio::time::timeout(READ_MAX, self.group.read()).await;
        let state = read.ok()?.ok()?;
        self.find_in(&state, connect)
    }

    fn find_in(
        &self,
        state: &flotilla_model::State,
        connect: &Connect,
    ) -> Option<Arc<Participant>> {
        let name = connect.claims.video.as_ref()?.room.as_str();
        let room = state.rooms.get(&RoomName(name.to_owned()))?;
        let participant = room
            .participants
            .get(&Identity(connect.claims.identity().to_owned()))?;
        let reconnect = connect.parameters.reconnect.as_ref()?;
        may_adopt(&connect.claims, reconnect, name, participant).then(|| participant.clone())
    }

    /// Takes a participant's session over from another node. Returns where the client's socket goes;
    /// `None` if a session of it has appeared here meanwhile.
    pub fn adopt(
        self: &Arc<Self>,
        connect: Connect,
        participant: Arc<Participant>,
    ) -> Option<Inbox> {
        let (inbox, outlet) = Inbox::new();
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let single = participant.client.single_peer_connection;
        let former = participant.home;
        let now = Instant::now();
        let Connect { claims, parameters } = connect;
        let session = Session::adopt(
            now,
            Adopting {
                config: self.config.clone(),
                resuming: Resuming { claims, parameters },
                participant,
                seed,
                wall: UnixMillis(wall_clock_ms()),
            },
        );
        let (room, sid) = (session.room(), session.sid());
        if !self
            .hub
            .register_adopting(room, sid, session.identity(), &inbox)
        {
            return None;
        }
        info!(%room, participant = %sid, %former, "taking a session over");
        let unmissed = self.hub.unmissed().take(sid);
        let mut task = self.task(session, single, inbox.clone());
        if let Some(unmissed) = unmissed {
            task.key = unmissed.key;
        }
        task.connect_by = Some(now + CONNECT_MAX);
        task.spawn(outlet);
        Some(inbox)
    }

    /// Asks everybody for what they hold of a session that this node is the home of now.
    async fn claim(
        self: Arc<Self>,
        room: RoomName,
        sid: ParticipantSid,
        epoch: Epoch,
    ) -> (Claimed, Transports, Option<Borrowed>) {
        let begun = Instant::now();
        let mesh = self.hub.mesh();
        let asked = mesh.connected().into_iter().map(|node| {
            let request = proto::ClaimRequest {
                room: room.0.clone(),
                sid: sid.0.clone(),
                epoch: epoch.0,
                borrower: self.config.node.0,
            };
            let reply = mesh.claim(node, request, CLAIM_MAX);
            async move { Some((node, reply.await?)) }
        });
        let replies: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let borrowed = replies
            .iter()
            .find_map(|(lender, reply)| self.borrowed(*lender, reply, &sid));
        let mut replies: Vec<_> = replies.into_iter().map(|(_, reply)| reply).collect();
        replies.push(self.hub.held(&room, &sid));
        let last_sequence = handover::last_sequence(&replies);
        let newest = handover::newest(&replies, |_| true);
        let transports = newest.map_or_else(Transports::default, |newest| Transports {
            publisher: self.vault.open_transport(&sid, &newest.publisher),
            subscriber: self.vault.open_transport(&sid, &newest.subscriber),
        });
        let kept = handover::newest(&replies, |reply| !reply.keepsake.is_empty());
        let claimed = Claimed {
            keepsake: kept.and_then(|kept| self.vault.open_keepsake(&sid, &kept.keepsake)),
            last_sequence,
        };
        let has_keys = transports.publisher.is_some() || transports.subscriber.is_some();
        let how = if borrowed.is_some() {
            Adoption::Lent
        } else if has_keys {
            Adoption::Imported
        } else {
            Adoption::Fresh
        };
        self.takeovers.adopted(&sid, epoch, how);
        info!(
            epoch = epoch.0,
            elapsed_us = begun.elapsed().as_micros() as u64,
            served = replies.iter().any(|reply| reply.served),
            keys = has_keys,
            lent = borrowed.is_some(),
            last_sequence = claimed.last_sequence,
            "claimed a session"
        );
        (claimed, transports, borrowed)
    }

    /// Connections that a former home lends.
    fn borrowed(
        &self,
        lender: NodeId,
        reply: &proto::ClaimReply,
        sid: &ParticipantSid,
    ) -> Option<Borrowed> {
        let parts = [
            (Target::Publisher, &reply.lent_publisher),
            (Target::Subscriber, &reply.lent_subscriber),
        ];
        let connections = parts
            .into_iter()
            .filter_map(|(target, sealed)| Some((target, self.vault.open_lent(sid, sealed)?)));
        let connections: Vec<_> = connections.collect();
        (!connections.is_empty()).then_some(Borrowed {
            lender,
            connections,
        })
    }
}

impl Task {
    pub(super) fn claim(&mut self, epoch: Epoch) -> Claim {
        self.adopted = Some(epoch);
        let (room, sid) = (self.session.room().clone(), self.session.sid().clone());
        Box::pin(self.node.clone().claim(room, sid, epoch))
    }

    /// Goes on with connections that the former home lends, before the client has said what it has.
    pub(super) async fn go_on(&mut self, borrowed: Borrowed) {
        let state = self.node.group.state();
        let room = state.rooms.get(self.session.room());
        let participant = room.and_then(|room| room.participants.get(self.session.identity()));
        let sid = self.session.sid();
        let Some(participant) = participant.filter(|present| present.sid == *sid) else {
            return;
        };
        self.attach().await;
        let lender = Some(borrowed.lender);
        for order in go_on_orders(self.key, participant, lender, borrowed.connections) {
            self.shard.command(order).await;
        }
    }

    /// Media flows again, one way or the other.
    pub(super) fn note_first_packet(&mut self, event: &media::Event) {
        use media::Event::{SubscriptionStarted, TrackStarted};
        if matches!(event, TrackStarted { .. } | SubscriptionStarted { .. })
            && let Some(epoch) = self.adopted.take()
        {
            let takeovers = &self.node.takeovers;
            takeovers.first_packet(self.session.sid(), epoch);
        }
    }

    /// The engine says where a connection stands.
    pub(super) fn keep_standing(&mut self, target: Target, standing: Standing) {
        let parts = self.node.seal(self.session.sid(), target, standing);
        self.keep(parts);
    }

    /// The client wants tracks otherwise than before.
    pub(super) fn keep_wishes(&mut self) {
        let sid = self.session.sid();
        if let Some(keepsake) = self.session.keepsake() {
            let keepsake = self
                .node
                .vault
                .seal_keepsake(sid, keepsake, wall_clock_ms());
            self.keep(proto::Checkpoint {
                keepsake,
                ..proto::Checkpoint::default()
            });
        }
    }

    fn keep(&mut self, parts: proto::Checkpoint) {
        let Some(epoch) = self.session.epoch() else {
            return;
        };
        let checkpoint = proto::Checkpoint {
            room: self.session.room().0.clone(),
            sid: self.session.sid().0.clone(),
            epoch: epoch.0,
            ..parts
        };
        let node = &self.node;
        self.kept_at.put(node, self.session.identity(), checkpoint);
    }
}
