//! Sessions whose clients have not noticed that their node is gone: its address has moved here, and their
//! media goes on at once, on the path, under the keys and with the streams that they know.
//!
//! ```text
//! verdict in the log ─► address taken ─► go_on: checkpoint ─► engine ─► media
//! client resumes here ─► takeover::adopt ─► takes the connections over as they are
//! client resumes elsewhere, leaves ─► end
//! ```
//!
//! There is no session task yet: a client whose node died has lost its signal connection and comes for
//! another within moments. Until then this keeps the connections, and what the next home needs of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_media::command::{Command, Continuation, PeerRole};
use flotilla_media::via;
use flotilla_model::State;
use flotilla_model::id::{Epoch, Identity, NodeId, ParticipantSid, RoomName};
use flotilla_model::participant::Participant;
use flotilla_signal::media::{Event, Target};
use tracing::{debug, info};

use super::Sessions;
use super::handover::Held;
use super::inbox::{Inbox, Message, Outlet, Standing};
use super::media::SessionKey;
use crate::control::takeovers::Adoption;
use crate::mesh::enroll::wall_clock_ms;
use crate::mesh::{Body, proto};
use crate::shard::{Order, ShardHandle};

/// A checkpoint this old says too little: what was sent since may be more than is left out.
const AGE_MAX: Duration = Duration::from_secs(5);
/// What a checkpoint's way here may have taken, which nobody measures.
const ON_THE_WAY: Duration = Duration::from_millis(20);
/// Protocol from which on v1 clients have data channels of fixed ids.
const FIXED_CHANNELS_SINCE: u32 = 18;

/// Where a session's checkpoints go.
#[derive(Default)]
pub(super) struct Kept {
    /// The nodes that have all of them.
    by: Vec<NodeId>,
}

impl Kept {
    /// Keeps a checkpoint here and at the nodes that may have to go on with the participant.
    pub(super) fn put(
        &mut self,
        node: &Sessions,
        identity: &Identity,
        checkpoint: proto::Checkpoint,
    ) {
        let sid = ParticipantSid(checkpoint.sid.clone());
        let checkpoint = node.hub.checkpoints().keep(checkpoint);
        let state = node.group.state();
        let room = state.rooms.get(&RoomName(checkpoint.room.clone()));
        let participant = room.and_then(|room| room.participants.get(identity));
        let before = std::mem::take(&mut self.by);
        let keepers = participant.into_iter().flat_map(|one| state.keepers(one));
        for keeper in keepers {
            // A new keeper has nothing yet.
            let held = (!before.contains(&keeper))
                .then(|| node.hub.checkpoints().get(&sid))
                .flatten();
            let checkpoint = match held {
                Some(held) => held.whole(checkpoint.clone()),
                None => checkpoint.clone(),
            };
            let body = Body::Checkpoint(checkpoint);
            if node.hub.mesh().send(keeper, body, true) {
                self.by.push(keeper);
            } else {
                debug!(%keeper, "a node does not take a checkpoint");
            }
        }
    }
}

impl Held {
    fn whole(self, of: proto::Checkpoint) -> proto::Checkpoint {
        let [passage_publisher, passage_subscriber] = self.passages;
        let [described_publisher, described_subscriber] = self.descriptions;
        proto::Checkpoint {
            publisher: self.publisher,
            subscriber: self.subscriber,
            keepsake: self.keepsake,
            passage_publisher,
            passage_subscriber,
            described_publisher,
            described_subscriber,
            ..of
        }
    }
}

/// Connections that go on here before their clients know.
#[derive(Default)]
pub struct Unmissed {
    /// Touched by the task that takes addresses, by resumes and by claims; nothing waits while it is held.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Those that go on here.
    all: HashMap<ParticipantSid, Connections>,
    /// Epochs at which other nodes have claimed sessions of late: those of a lower one do not begin here
    /// any more, whatever the log says here so far.
    claimed: HashMap<ParticipantSid, (Epoch, Instant)>,
}

/// How long a claim is remembered: longer than the log is late here.
const CLAIMED_KEPT: Duration = Duration::from_secs(10);

/// One participant's.
pub struct Connections {
    /// Their key, which a session goes on with.
    pub key: SessionKey,
    room: RoomName,
    identity: Identity,
    address: IpAddr,
    shard: ShardHandle,
    node: Arc<Sessions>,
    /// Held until the shard has been told everything.
    beginning: Arc<tokio::sync::Mutex<()>>,
}

impl Unmissed {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of this sid goes on with the connections.
    #[must_use]
    pub fn take(&self, sid: &ParticipantSid) -> Option<Connections> {
        self.lock().all.remove(sid)
    }

    /// Whether clients are served at an address who do not know.
    #[must_use]
    pub fn are_at(&self, address: IpAddr) -> bool {
        self.lock().all.values().any(|one| one.address == address)
    }

    /// Another node serves the participant, since this epoch if it says so itself: nothing is sent to its
    /// client from here any more once this returns. The paths are lent to the new home, if it is named.
    pub async fn end(&self, sid: &ParticipantSid, claimed_at: Option<Epoch>, to: Option<NodeId>) {
        let connections = {
            let mut known = self.lock();
            if let Some(epoch) = claimed_at {
                let claimed = &mut known.claimed;
                claimed.retain(|_, (_, at)| at.elapsed() < CLAIMED_KEPT);
                claimed.insert(sid.clone(), (epoch, Instant::now()));
            }
            known.all.remove(sid)
        };
        if let Some(connections) = connections {
            drop(connections.beginning.lock().await);
            if let Some(to) = to {
                let Connections {
                    node, shard, key, ..
                } = &connections;
                node.lend(shard, *key, sid, to).await;
            }
            let (answer, done) = tokio::sync::oneshot::channel();
            connections.shard.send(Order::Detach(connections.key)).await;
            // Orders are carried out one after the other.
            connections.shard.send(Order::Inspect(answer)).await;
            let _ = tokio::time::timeout(Duration::from_millis(100), done).await;
        }
    }

    /// Ends those whose participants have another home or are gone.
    pub async fn retain_at(&self, node: NodeId, state: &State) {
        let gone: Vec<(ParticipantSid, Option<NodeId>)> = {
            let known = self.lock();
            known
                .all
                .iter()
                .filter_map(|(sid, one)| {
                    let room = state.rooms.get(&one.room);
                    let present = room.and_then(|room| room.participants.get(&one.identity));
                    let home = present.filter(|present| present.sid == *sid);
                    let home = home.map(|present| present.home);
                    (home != Some(node)).then(|| (sid.clone(), home))
                })
                .collect()
        };
        for (sid, home) in gone {
            self.end(&sid, None, home).await;
        }
    }
}

impl Sessions {
    /// Seals where a connection stands.
    pub(super) fn seal(
        &self,
        sid: &ParticipantSid,
        target: Target,
        standing: Standing,
    ) -> proto::Checkpoint {
        let wall = wall_clock_ms();
        let transport = self.vault.seal_transport(sid, standing.transport, wall);
        // Whoever is heard by the main address cannot be gone on with.
        let passage = standing.passage.and_then(|passage| {
            let address = self.moving.address(passage.local())?;
            Some(self.vault.seal_passage(sid, (&passage, address), wall))
        });
        let passage = passage.unwrap_or_default();
        let described = standing
            .descriptions
            .map_or_else(Bytes::new, |descriptions| {
                self.vault.seal_descriptions(sid, descriptions, wall)
            });
        match target {
            Target::Publisher => proto::Checkpoint {
                publisher: transport,
                passage_publisher: passage,
                described_publisher: described,
                ..proto::Checkpoint::default()
            },
            Target::Subscriber => proto::Checkpoint {
                subscriber: transport,
                passage_subscriber: passage,
                described_subscriber: described,
                ..proto::Checkpoint::default()
            },
        }
    }

    /// Goes on with everybody who is at home here without a session and whose client was heard by an
    /// address that has just moved here, where it has the number `local`. Says how many.
    pub async fn go_on_at(self: &Arc<Self>, address: IpAddr, local: via::Local) -> usize {
        let state = self.group.state();
        let here = self.config.node;
        let mut count = 0;
        for room in state
            .rooms
            .values()
            .filter(|room| room.homes.contains_key(&here))
        {
            for participant in room.participants.values() {
                if participant.home != here || self.hub.has_session(&room.name, &participant.sid) {
                    continue;
                }
                let orders = self.continuations(participant, address, local);
                if !orders.is_empty() {
                    self.go_on_with(&room.name, participant, address, orders)
                        .await;
                    count += 1;
                }
            }
        }
        count
    }

    /// Parts of a participant's connections by which they can go on.
    fn continuations(
        &self,
        participant: &Participant,
        address: IpAddr,
        local: via::Local,
    ) -> Vec<(Target, Continuation)> {
        let sid = &participant.sid;
        let Some(held) = self.hub.checkpoints().get(sid) else {
            return Vec::new();
        };
        if held.epoch >= participant.epoch {
            return Vec::new();
        }
        let parts = [Target::Publisher, Target::Subscriber]
            .into_iter()
            .zip([&held.publisher, &held.subscriber])
            .zip(held.passages.iter().zip(&held.descriptions))
            .zip(held.passed_at);
        let continuations = parts.filter_map(|(parts, passed_at)| {
            let ((target, transport), (passage, described)) = parts;
            let age = passed_at?.elapsed();
            if age >= AGE_MAX {
                return None;
            }
            let (passage, heard_by) = self.vault.open_passage(sid, passage)?;
            let passage = passage.aged(age + ON_THE_WAY);
            let continuation = Continuation {
                transport: *self.vault.open_transport(sid, transport)?,
                passage: passage.heard_by(local),
                descriptions: *self.vault.open_descriptions(sid, described)?,
            };
            (heard_by == address).then_some((target, continuation))
        });
        continuations.collect()
    }

    async fn go_on_with(
        self: &Arc<Self>,
        room: &RoomName,
        participant: &Arc<Participant>,
        address: IpAddr,
        continuations: Vec<(Target, Continuation)>,
    ) {
        let key = self.new_key();
        let shard = self.shards.of_room(room.as_str()).clone();
        let beginning = Arc::new(tokio::sync::Mutex::new(()));
        let begins = beginning.clone().lock_owned().await;
        let connections = Connections {
            key,
            room: room.clone(),
            identity: participant.identity.clone(),
            address,
            shard: shard.clone(),
            node: self.clone(),
            beginning,
        };
        let unmissed = self.hub.unmissed();
        if !unmissed.put(&participant.sid, participant.epoch, connections) {
            return;
        }
        let (inbox, outlet) = Inbox::new();
        shard.send(Order::Attach(key, inbox)).await;
        for order in go_on_orders(key, participant, None, continuations) {
            shard.command(order).await;
        }
        drop(begins);
        info!(%room, participant = %participant.sid, epoch = participant.epoch.0, "a session goes on where it was");
        let keeper = Keeper {
            node: self.clone(),
            room: room.clone(),
            sid: participant.sid.clone(),
            identity: participant.identity.clone(),
            epoch: participant.epoch,
            kept: Kept::default(),
        };
        tokio::spawn(keeper.run(outlet));
    }
}

/// What the shard is told to go on with a participant's connections and what they publish.
pub(super) fn go_on_orders(
    key: SessionKey,
    participant: &Participant,
    lender: Option<NodeId>,
    connections: Vec<(Target, Continuation)>,
) -> Vec<Command> {
    let client = &participant.client;
    let single = client.single_peer_connection;
    let going_on = connections.into_iter().map(|(target, from)| Command::GoOn {
        peer: key.peer(target),
        role: match target {
            _ if single => PeerRole::Single,
            Target::Publisher => PeerRole::Publisher,
            Target::Subscriber => PeerRole::Subscriber,
        },
        negotiated_channels: single && client.protocol >= FIXED_CHANNELS_SINCE,
        lender,
        from: Box::new(from),
    });
    let published = participant.tracks.values().map(|track| Command::Publish {
        peer: key.peer(Target::Publisher),
        track: Box::new((**track).clone()),
        epoch: participant.epoch,
    });
    going_on.chain(published).collect()
}

impl Unmissed {
    /// Whether they may begin: nobody has claimed the session since this epoch.
    fn put(&self, sid: &ParticipantSid, epoch: Epoch, connections: Connections) -> bool {
        let mut known = self.lock();
        let claimed = known.claimed.get(sid);
        let is_claimed = claimed.is_some_and(|(since, _)| *since > epoch);
        if !is_claimed {
            known.all.insert(sid.clone(), connections);
        }
        !is_claimed
    }
}

/// Keeps what the next home needs, until a session does.
struct Keeper {
    node: Arc<Sessions>,
    room: RoomName,
    sid: ParticipantSid,
    identity: Identity,
    epoch: Epoch,
    kept: Kept,
}

impl Keeper {
    async fn run(mut self, mut outlet: Outlet) {
        let begun = Instant::now();
        // The shard drops its end when a session takes the connections, or nobody does.
        while let Some(message) = outlet.receive().await {
            if let Message::Media(Event::TrackStarted { .. } | Event::SubscriptionStarted { .. }) =
                &message
            {
                let takeovers = &self.node.takeovers;
                takeovers.adopted(&self.sid, self.epoch, Adoption::Unnoticed);
                takeovers.first_packet(&self.sid, self.epoch);
            }
            if let Message::Checkpoint(target, standing) = message {
                let parts = self.node.seal(&self.sid, target, standing);
                let checkpoint = proto::Checkpoint {
                    room: self.room.0.clone(),
                    sid: self.sid.0.clone(),
                    epoch: self.epoch.0,
                    ..parts
                };
                self.kept.put(&self.node, &self.identity, checkpoint);
            }
        }
        debug!(
            participant = %self.sid,
            after_ms = begun.elapsed().as_millis(),
            "a session that went on has its client, or has ended"
        );
    }
}
