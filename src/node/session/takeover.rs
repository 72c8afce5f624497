//! Taking over another node's session, and leaving one's own in a state that others can.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_media::command::Continuation;
use flotilla_model::id::{Epoch, Identity, NodeId, ParticipantSid, RoomName, UnixMillis};
use flotilla_model::participant::Participant;
use flotilla_raft::FeedError;
use flotilla_signal::connect::Connect;
use flotilla_signal::media::{self, Target};
use flotilla_signal::session::{Adopting, Claimed, Resuming, Session, may_adopt};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::RngCore as _;
use tracing::info;

use super::handover::{self, Transports};
use super::inbox::{Inbox, Standing};
use super::media::SessionKey;
use super::unmissed::go_on_orders;
use super::{CONNECT_MAX, Claim, Sessions, Task};
use crate::control::takeovers::Adoption;
use crate::mesh::enroll::wall_clock_ms;
use crate::mesh::proto;
use crate::shard::ShardHandle;

/// How long other nodes are waited for: longer than a former home that does not answer holds its lease.
/// Who does not answer has its say in the client's de-duplication.
const CLAIM_MAX: Duration = Duration::from_millis(600);
/// How long those are that are lost by what the log says. A node that the others have given up and that
/// lives all the same answers at once, and has a path to lend.
const CLAIM_LOST_MAX: Duration = Duration::from_millis(20);
/// How long the log's newest state is waited for when the session is not known here: longer than an election, and not
/// as long as the 5 s after which SDKs on native code give the answer up. Who has waited in vain joins anew.
const READ_MAX: Duration = Duration::from_secs(3);

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

    /// Asks everybody for what they hold of a session that this node is the home of now. Connections that
    /// the former home lends go on at once; the shard knows the session.
    async fn claim(self: Arc<Self>, claiming: Claiming) -> (Claimed, Transports) {
        let begun = Instant::now();
        let Claiming {
            room, sid, epoch, ..
        } = &claiming;
        let epoch = *epoch;
        let mesh = self.hub.mesh();
        let asked = mesh.connected().into_iter().map(|node| {
            let request = proto::ClaimRequest {
                room: room.0.clone(),
                sid: sid.0.clone(),
                epoch: epoch.0,
                borrower: self.config.node.0,
            };
            let reply = mesh.claim(node, request, CLAIM_MAX);
            let given_up = self.given_up(node);
            async move {
                tokio::select! {
                    biased;
                    reply = reply => Some((node, reply?)),
                    () = given_up => None,
                }
            }
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut replies = Vec::new();
        let mut is_lent = false;
        while let Some(answer) = asked.next().await {
            let Some((node, reply)) = answer else {
                continue;
            };
            let lent = self.lent(&reply, sid);
            if !lent.is_empty() && !is_lent {
                is_lent = true;
                self.go_on(&claiming, node, lent).await;
            }
            replies.push(reply);
        }
        replies.push(self.hub.held(room, sid));
        let last_sequence = handover::last_sequence(&replies);
        let newest = handover::newest(&replies, |_| true);
        let transports = newest.map_or_else(Transports::default, |newest| Transports {
            publisher: self.vault.open_transport(sid, &newest.publisher),
            subscriber: self.vault.open_transport(sid, &newest.subscriber),
        });
        let kept = handover::newest(&replies, |reply| !reply.keepsake.is_empty());
        let claimed = Claimed {
            keepsake: kept.and_then(|kept| self.vault.open_keepsake(sid, &kept.keepsake)),
            last_sequence,
            acknowledged: handover::acknowledged(&replies),
        };
        let has_keys = transports.publisher.is_some() || transports.subscriber.is_some();
        let how = if is_lent {
            Adoption::Lent
        } else if has_keys {
            Adoption::Imported
        } else {
            Adoption::Fresh
        };
        self.takeovers.adopted(sid, epoch, how);
        info!(
            epoch = epoch.0,
            elapsed_us = begun.elapsed().as_micros() as u64,
            served = replies.iter().any(|reply| reply.served),
            keys = has_keys,
            lent = is_lent,
            last_sequence = claimed.last_sequence,
            acknowledged = claimed.acknowledged,
            "claimed a session"
        );
        (claimed, transports)
    }

    /// Ends a moment after the log says that a node is lost: its lease had ended before that.
    async fn given_up(&self, node: NodeId) {
        let mut feed = self.group.feed();
        let mut state = Arc::clone(feed.start());
        while state
            .nodes
            .get(&node)
            .is_some_and(|node| !node.state.is_lost())
        {
            state = match feed.next().await {
                Ok(change) => Arc::clone(&change.state),
                Err(FeedError::Lagged(_)) => feed.restart(),
                Err(FeedError::Stopped) => std::future::pending().await,
            };
        }
        tokio::time::sleep(CLAIM_LOST_MAX).await;
    }

    /// Connections that a former home lends, if this is its answer.
    fn lent(&self, reply: &proto::ClaimReply, sid: &ParticipantSid) -> Vec<(Target, Continuation)> {
        let parts = [
            (Target::Publisher, &reply.lent_publisher),
            (Target::Subscriber, &reply.lent_subscriber),
        ];
        let opened = parts.into_iter();
        opened
            .filter_map(|(target, sealed)| Some((target, self.vault.open_lent(sid, sealed)?)))
            .collect()
    }

    /// Goes on with connections that the former home lends, before the client has said what it has.
    async fn go_on(
        &self,
        claiming: &Claiming,
        lender: NodeId,
        connections: Vec<(Target, Continuation)>,
    ) {
        let state = self.group.state();
        let room = state.rooms.get(&claiming.room);
        let participant = room.and_then(|room| room.participants.get(&claiming.identity));
        let is_here = |present: &&Arc<Participant>| {
            present.sid == claiming.sid && present.home == self.config.node
        };
        let Some(participant) = participant.filter(is_here) else {
            return;
        };
        for order in go_on_orders(claiming.key, participant, Some(lender), connections) {
            claiming.shard.command(order).await;
        }
    }
}

/// A session that is claimed.
struct Claiming {
    room: RoomName,
    sid: ParticipantSid,
    identity: Identity,
    epoch: Epoch,
    key: SessionKey,
    shard: ShardHandle,
}

impl Task {
    /// Begins to claim the session.
    pub(super) async fn claim(&mut self, epoch: Epoch) -> Claim {
        self.adopted = Some(epoch);
        self.attach().await;
        let claiming = Claiming {
            room: self.session.room().clone(),
            sid: self.session.sid().clone(),
            identity: self.session.identity().clone(),
            epoch,
            key: self.key,
            shard: self.shard.clone(),
        };
        Box::pin(self.node.clone().claim(claiming))
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
