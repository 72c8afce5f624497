//! The rooms as this node serves them: which sessions are here, and how events, data messages and
//! speaker levels find them and the other nodes.
//!
//! The feed task ([`crate::control`]) brings changes of the log in order, sessions and the API bring
//! data, shards bring levels, the mesh brings what other nodes sent. The hub knows the state as of
//! the last change it has passed on, so that a message and a join are always in one order: whoever
//! was in the room before a message gets it, whoever joins right after gets it from the cache.
//! What follows from what is decided by [`rooms::Rooms`], which knows no lock and no clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::id::{Epoch, Identity, NodeId, ParticipantSid, RoomName, TrackSid};
use flotilla_raft::Change;
use flotilla_signal::data::DataOut;

use tokio::sync::oneshot;

use crate::mesh::{Claims, Inbound, Mesh, proto};
use crate::session::handover::Checkpoints;
use crate::session::inbox::{Inbox, Message};
use crate::session::lending::Lending;
use crate::session::receipt::Receipt;
use crate::session::unmissed::Unmissed;
use crate::telemetry::Metrics;

pub mod rooms;

use rooms::{Outgoing, Rooms};

/// Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    mesh: Mesh,
    metrics: Arc<Metrics>,
    /// What is held of sessions that may have to go on here.
    checkpoints: Arc<Checkpoints>,
    /// Connections that go on here before their clients know.
    unmissed: Unmissed,
    /// Connections of former sessions whose paths are lent, until their borrowers ask.
    lending: Lending,
    /// Touched by the feed task, by sessions and by the mesh; nothing waits while it is held.
    rooms: Mutex<Rooms>,
}

impl Hub {
    /// Without rooms.
    #[must_use]
    pub fn new(node: NodeId, mesh: Mesh, metrics: Arc<Metrics>) -> Self {
        let checkpoints = Arc::<Checkpoints>::default();
        Self {
            shared: Arc::new(Shared {
                mesh,
                metrics,
                rooms: Mutex::new(Rooms::new(node, checkpoints.clone())),
                checkpoints,
                unmissed: Unmissed::default(),
                lending: Lending::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        self.shared
            .rooms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the rooms. What follows for other nodes is handed to the mesh before anybody else changes
    /// them, so that it goes out in the order in which it came about.
    fn change<T>(&self, act: impl FnOnce(&mut Rooms, Instant) -> T) -> T {
        let mut rooms = self.lock();
        let result = act(&mut rooms, Instant::now());
        for outgoing in rooms.take_outgoing() {
            let Outgoing {
                to,
                boot,
                body,
                reliable,
                receipt,
            } = outgoing;
            let mesh = &self.shared.mesh;
            mesh.send_to_start(to, boot, body, reliable, receipt.as_ref());
        }
        self.shared
            .metrics
            .mesh_malformed
            .inc_by(rooms.take_malformed());
        result
    }

    /// A session begins, before its join: it hears every event of the room from now on.
    pub fn register(
        &self,
        room: &RoomName,
        sid: &ParticipantSid,
        identity: &Identity,
        inbox: &Inbox,
    ) {
        self.lock().register(room, sid, identity, inbox);
    }

    /// The same for a session that takes over a participant of another node. Refused (`false`) if
    /// one of this sid is here already.
    #[must_use]
    pub fn register_adopting(
        &self,
        room: &RoomName,
        sid: &ParticipantSid,
        identity: &Identity,
        inbox: &Inbox,
    ) -> bool {
        self.lock()
            .register_adopting(Instant::now(), room, sid, identity, inbox)
    }

    /// Whether somebody has come from another node within this time.
    #[must_use]
    pub fn has_newcomers(&self, within: Duration) -> bool {
        self.lock().has_newcomers(Instant::now(), within)
    }

    /// Whether a session of this sid is here.
    #[must_use]
    pub fn has_session(&self, room: &RoomName, sid: &ParticipantSid) -> bool {
        self.lock().has_session(room, sid)
    }

    /// Links to other nodes.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.shared.mesh
    }

    /// What is held of sessions.
    #[must_use]
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.shared.checkpoints
    }

    /// Connections whose paths are lent to other nodes.
    #[must_use]
    pub fn lending(&self) -> &Lending {
        &self.shared.lending
    }

    /// Connections that go on here before their clients know.
    #[must_use]
    pub fn unmissed(&self) -> &Unmissed {
        &self.shared.unmissed
    }

    /// A session ended.
    pub fn unregister(&self, room: &RoomName, sid: &ParticipantSid) {
        self.lock().unregister(room, sid);
    }

    /// The session to resume: the one with this sid, or without a sid the identity's present one.
    #[must_use]
    pub fn find(
        &self,
        room: &RoomName,
        identity: &Identity,
        sid: Option<&ParticipantSid>,
    ) -> Option<Inbox> {
        self.lock().find(room, identity, sid)
    }

    /// How many sessions are here.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.lock().session_count()
    }

    /// Whether a session is here whose participant has another home.
    #[must_use]
    pub fn has_strays(&self, state: &State) -> bool {
        self.lock().has_strays(state)
    }

    /// Every session here gets this message.
    pub fn broadcast(&self, message: impl Fn() -> Message) {
        self.lock().broadcast(message);
    }

    /// Passes a change on. Called in log order.
    pub fn pass_on(&self, change: &Arc<Change>) {
        self.change(|rooms, now| rooms.pass_on(now, change));
    }

    /// The feed begins, or had a gap: sessions find out by themselves what they missed.
    pub fn restart(&self, state: Arc<State>) {
        self.change(|rooms, now| rooms.restart(now, state));
    }

    /// Sends a message of a participant here, or of the API, to everybody it is for; a receipt is held until all
    /// nodes that it goes to have it.
    pub fn distribute(&self, name: &RoomName, message: Arc<DataOut>, receipt: Option<Receipt>) {
        self.change(|rooms, now| rooms.distribute(now, name, message, receipt));
    }

    /// Forgets what has been kept for long enough. To be called every few seconds.
    pub fn forget_old(&self) {
        self.change(|rooms, now| rooms.forget_old(now));
    }

    /// Remembers a nonce of the API's `SendData`; whether it is new.
    #[must_use]
    pub fn is_new_nonce(&self, name: &RoomName, nonce: Option<[u8; 16]>) -> bool {
        self.lock().is_new_nonce(name, nonce)
    }

    /// Passes on what a shard heard of tracks published here.
    pub fn speak(&self, levels: &[(TrackSid, f32)]) {
        self.change(|rooms, _| rooms.speak(levels));
    }

    /// Takes what another node sent.
    pub fn receive(&self, inbound: Inbound) {
        self.change(|rooms, now| rooms.receive(now, inbound));
    }

    /// What is held here of a session that another one, or this one, takes over.
    #[must_use]
    pub fn held(&self, name: &RoomName, sid: &ParticipantSid) -> proto::ClaimReply {
        self.lock().held(Instant::now(), name, sid)
    }
}

/// How long a session may take to let go.
const LET_GO_MAX: Duration = Duration::from_millis(200);

#[tonic::async_trait]
impl Claims for Hub {
    async fn claim(&self, request: proto::ClaimRequest) -> proto::ClaimReply {
        let (name, sid) = (RoomName(request.room), ParticipantSid(request.sid));
        let epoch = Epoch(request.epoch);
        let borrower = Some(NodeId(request.borrower)).filter(|node| node.0 != 0);
        if let Some(borrower) = borrower {
            self.shared.lending.ask(&sid, borrower);
        }
        self.shared.unmissed.end(&sid, Some(epoch), borrower).await;
        let (let_go, gone) = oneshot::channel();
        let served = self.lock().let_go(&name, &sid, epoch, let_go);
        if served {
            // Whether it answered or is stuck: it sends no more than its lease allows.
            let _ = tokio::time::timeout(LET_GO_MAX, gone).await;
        }
        let lent = borrower.and_then(|borrower| self.shared.lending.take(&sid, borrower));
        let [lent_publisher, lent_subscriber] = lent.unwrap_or_default();
        proto::ClaimReply {
            served,
            lent_publisher,
            lent_subscriber,
            ..self.held(&name, &sid)
        }
    }
}

#[cfg(test)]
mod tests;
