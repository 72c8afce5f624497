//! The rooms as this node serves them: which sessions are here, and how events, data messages and
//! speaker levels find them and the other nodes.
//!
//! The feed task ([`crate::control`]) brings changes of the log in order, sessions and the API bring
//! data, shards bring levels, the mesh brings what other nodes sent. The hub knows the state as of
//! the last change it has passed on, so that a message and a join are always in one order: whoever
//! was in the room before a message gets it, whoever joins right after gets it from the cache.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{Epoch, Identity, NodeId, ParticipantSid, Revision, RoomName, TrackSid};
use flotilla_model::participant::Participant;
use flotilla_raft::Change;
use flotilla_signal::data::{Cache, DataOut, Nonces};
use flotilla_signal::media::Channel;

use tokio::sync::oneshot;

use crate::mesh::{Body, Claims, Inbound, Mesh, proto};
use crate::session::handover::Checkpoints;
use crate::session::inbox::{Inbox, Message};
use crate::telemetry::Metrics;

/// Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeId,
    mesh: Mesh,
    metrics: Arc<Metrics>,
    /// What is held of sessions that may have to go on here.
    checkpoints: Checkpoints,
    /// Touched by the feed task, by sessions and by the mesh; nothing waits while it is held.
    rooms: Mutex<Rooms>,
}

#[derive(Default)]
struct Rooms {
    /// As of the last change passed on.
    state: Arc<State>,
    rooms: HashMap<RoomName, LocalRoom>,
    /// Rooms of tracks that participants here publish.
    tracks: HashMap<TrackSid, RoomName>,
    /// Data of nodes that are ahead of this one, by node, until their state is this one's.
    ahead: BTreeMap<NodeId, Ahead>,
}

/// Data that was sent in view of changes that have not come here yet: among them may be who is here.
#[derive(Default)]
struct Ahead {
    waiting: VecDeque<proto::Data>,
    bytes: usize,
}

/// More is taken as it is.
const AHEAD_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Ahead {
    fn push(&mut self, data: proto::Data) {
        self.bytes += data.payload.len();
        self.waiting.push_back(data);
    }

    /// What need not, or can no longer, wait.
    fn pop(&mut self, revision: u64) -> Option<proto::Data> {
        let is_due = self.waiting.front()?.revision <= revision;
        if !is_due && self.bytes <= AHEAD_BYTES_MAX {
            return None;
        }
        let data = self.waiting.pop_front()?;
        self.bytes -= data.payload.len();
        Some(data)
    }
}

struct LocalRoom {
    sessions: HashMap<ParticipantSid, LocalSession>,
    /// Recent messages of participants here, for those who join anywhere.
    cache: Cache,
    /// Recent messages by the node that they came from, for those whose home fails.
    moves: BTreeMap<NodeId, Cache>,
    /// Highest number of each sender's reliable messages that was passed on.
    passed: HashMap<ParticipantSid, u32>,
    nonces: Nonces,
}

impl Default for LocalRoom {
    fn default() -> Self {
        Self {
            sessions: HashMap::new(),
            cache: Cache::for_joins(),
            moves: BTreeMap::new(),
            passed: HashMap::new(),
            nonces: Nonces::default(),
        }
    }
}

impl LocalRoom {
    /// A message came through here.
    fn note(&mut self, from: NodeId, message: &Arc<DataOut>) {
        if message.sequence == 0 || message.channel != Channel::Reliable {
            return;
        }
        let passed = self.passed.entry(message.from.clone()).or_default();
        *passed = message.sequence.max(*passed);
        self.moves
            .entry(from)
            .or_insert_with(Cache::for_moves)
            .push(Instant::now(), message);
    }
}

struct LocalSession {
    identity: Identity,
    inbox: Inbox,
    /// Its join has been passed on: it gets data from now on.
    joined: bool,
    /// The state that first had it here. What another node sent to this one in view of an older state is
    /// not for it: that node sends it once more, in order, when it comes to this state.
    since: Revision,
    /// When it took over another node's session; its client may already come back for it.
    adopted: Option<Instant>,
}

impl LocalSession {
    /// What it lacks is on its way from where its former home got it.
    fn has_just_come(&self) -> bool {
        self.adopted
            .is_some_and(|adopted| adopted.elapsed() < Cache::MOVE_AGE_MAX)
    }
}

impl Hub {
    /// Without rooms.
    #[must_use]
    pub fn new(node: NodeId, mesh: Mesh, metrics: Arc<Metrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                node,
                mesh,
                metrics,
                checkpoints: Checkpoints::default(),
                rooms: Mutex::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        self.shared
            .rooms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins, before its join: it hears every event of the room from now on.
    pub fn register(
        &self,
        room: &RoomName,
        sid: &ParticipantSid,
        identity: &Identity,
        inbox: &Inbox,
    ) {
        self.insert(room, sid, identity, inbox, None);
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
        if self.has_session(room, sid) {
            return false;
        }
        self.insert(room, sid, identity, inbox, Some(Instant::now()));
        true
    }

    /// Whether somebody has come from another node within this time.
    #[must_use]
    pub fn has_newcomers(&self, within: Duration) -> bool {
        let rooms = self.lock();
        let sessions = rooms.rooms.values().flat_map(|room| room.sessions.values());
        let mut adopted = sessions.filter_map(|session| session.adopted);
        adopted.any(|at| at.elapsed() < within)
    }

    /// Whether a session of this sid is here.
    #[must_use]
    pub fn has_session(&self, room: &RoomName, sid: &ParticipantSid) -> bool {
        let rooms = self.lock();
        let room = rooms.rooms.get(room);
        room.is_some_and(|room| room.sessions.contains_key(sid))
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

    fn insert(
        &self,
        room: &RoomName,
        sid: &ParticipantSid,
        identity: &Identity,
        inbox: &Inbox,
        adopted: Option<Instant>,
    ) {
        let mut rooms = self.lock();
        rooms
            .rooms
            .entry(room.clone())
            .or_default()
            .sessions
            .insert(
                sid.clone(),
                LocalSession {
                    identity: identity.clone(),
                    inbox: inbox.clone(),
                    joined: false,
                    since: Revision::default(),
                    adopted,
                },
            );
    }

    /// A session ended.
    pub fn unregister(&self, room: &RoomName, sid: &ParticipantSid) {
        let mut rooms = self.lock();
        if let Some(local) = rooms.rooms.get_mut(room) {
            local.sessions.remove(sid);
            if local.sessions.is_empty() && !rooms.state.rooms.contains_key(room) {
                rooms.rooms.remove(room);
            }
        }
    }

    /// The session to resume: the one with this sid, or without a sid the identity's present one.
    #[must_use]
    pub fn find(
        &self,
        room: &RoomName,
        identity: &Identity,
        sid: Option<&ParticipantSid>,
    ) -> Option<Inbox> {
        let rooms = self.lock();
        let sessions = &rooms.rooms.get(room)?.sessions;
        let session = match sid {
            Some(sid) => sessions.get(sid)?,
            None => {
                let present = rooms.state.rooms.get(room)?.participants.get(identity)?;
                sessions.get(&present.sid)?
            }
        };
        let can_resume = session.joined || session.adopted.is_some();
        (session.identity == *identity && can_resume).then(|| session.inbox.clone())
    }

    /// How many sessions are here.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.lock()
            .rooms
            .values()
            .map(|room| room.sessions.len())
            .sum()
    }

    /// Whether a session is here whose participant has another home.
    #[must_use]
    pub fn has_strays(&self, state: &State) -> bool {
        let rooms = self.lock();
        rooms.rooms.iter().any(|(name, local)| {
            let present = state.rooms.get(name).map(|room| &room.participants);
            local.sessions.iter().any(|(sid, session)| {
                present
                    .and_then(|present| present.get(&session.identity))
                    .is_some_and(|present| present.sid == *sid && present.home != self.shared.node)
            })
        })
    }

    /// Every session here gets this message.
    pub fn broadcast(&self, message: impl Fn() -> Message) {
        for room in self.lock().rooms.values() {
            for session in room.sessions.values() {
                session.inbox.deliver(message());
            }
        }
    }

    /// Passes a change on. Called in log order.
    pub fn pass_on(&self, change: &Arc<Change>) {
        let mut rooms = self.lock();
        let before = std::mem::replace(&mut rooms.state, change.state.clone());
        for (index, event) in change.events.iter().enumerate() {
            let Event::Room {
                room: name,
                change: event,
                ..
            } = event
            else {
                continue;
            };
            if let Some(local) = rooms.rooms.get(name) {
                for session in local.sessions.values() {
                    session.inbox.deliver(Message::Event {
                        change: change.clone(),
                        index,
                    });
                }
            }
            self.note(&mut rooms, name, event, &before);
        }
        self.catch_up(&mut rooms);
    }

    fn note(&self, rooms: &mut Rooms, name: &RoomName, event: &RoomEvent, before: &State) {
        match event {
            RoomEvent::ParticipantJoined(participant) => self.replay(rooms, name, participant),
            RoomEvent::ParticipantMoved(participant) => {
                let is_here = participant.home == self.shared.node;
                for track in participant.tracks.keys() {
                    if is_here {
                        rooms.tracks.insert(track.clone(), name.clone());
                    } else {
                        rooms.tracks.remove(track);
                    }
                }
                let former = before
                    .rooms
                    .get(name)
                    .and_then(|room| room.participants.get(&participant.identity))
                    .map_or(participant.home, |before| before.home);
                self.replay_moved(rooms, name, participant, former);
            }
            RoomEvent::TrackPublished { publisher, track }
                if publisher.home == self.shared.node =>
            {
                rooms.tracks.insert(track.sid.clone(), name.clone());
            }
            RoomEvent::TrackUnpublished { track, .. } => {
                rooms.tracks.remove(&track.sid);
            }
            RoomEvent::ParticipantLeft { participant, .. } => {
                for track in participant.tracks.keys() {
                    rooms.tracks.remove(track);
                }
                if let Some(local) = rooms.rooms.get_mut(name) {
                    local.passed.remove(&participant.sid);
                }
                self.shared.checkpoints.forget(&participant.sid);
            }
            RoomEvent::Closed(_)
                if rooms
                    .rooms
                    .get(name)
                    .is_some_and(|local| local.sessions.is_empty()) =>
            {
                rooms.rooms.remove(name);
            }
            _ => {}
        }
    }

    /// Somebody joined, here or elsewhere: recent messages of participants here are for them too.
    fn replay(&self, rooms: &mut Rooms, name: &RoomName, joined: &Participant) {
        let is_here = joined.home == self.shared.node;
        let revision = rooms.state.revision;
        let local = if is_here {
            rooms.rooms.entry(name.clone()).or_default()
        } else {
            match rooms.rooms.get_mut(name) {
                Some(local) => local,
                None => return,
            }
        };
        for message in local.cache.replay(Instant::now()) {
            if !message.is_for(&joined.identity) {
                continue;
            }
            if is_here {
                if let Some(session) = local.sessions.get(&joined.sid) {
                    session.inbox.deliver(Message::Data(message.clone()));
                }
            } else {
                let data = to_proto(name, message, Some(&joined.sid), revision);
                self.shared.mesh.send(joined.home, Body::Data(data), true);
            }
        }
        if let Some(session) = local.sessions.get_mut(&joined.sid) {
            session.joined = true;
            session.since = revision;
        }
    }

    /// A participant has a new home: what was on its way to the former one is sent again. Sessions
    /// drop what their client has. From here come the messages of participants here, and those that
    /// came from a home that its sender has lost as well.
    fn replay_moved(
        &self,
        rooms: &mut Rooms,
        name: &RoomName,
        moved: &Participant,
        former: NodeId,
    ) {
        let state = rooms.state.clone();
        let room = state.rooms.get(name);
        let Some(local) = rooms.rooms.get_mut(name) else {
            return;
        };
        let is_here = moved.home == self.shared.node;
        for (origin, cache) in &mut local.moves {
            for message in cache.replay(Instant::now()) {
                let sender = room.and_then(|room| room.participants.get(&message.from_identity));
                let is_ours = *origin == self.shared.node
                    || *origin == former
                    || sender.is_none_or(|sender| sender.home != *origin);
                if !is_ours || message.from == moved.sid || !message.is_for(&moved.identity) {
                    continue;
                }
                if !is_here {
                    let data = to_proto(name, message, Some(&moved.sid), state.revision);
                    self.shared.mesh.send(moved.home, Body::Data(data), true);
                } else if let Some(session) = local.sessions.get(&moved.sid) {
                    session.inbox.deliver(Message::Data(message.clone()));
                }
            }
        }
        if is_here && let Some(session) = local.sessions.get_mut(&moved.sid) {
            session.joined = true;
            session.since = state.revision;
        }
    }

    /// The feed begins, or had a gap: sessions find out by themselves what they missed.
    pub fn restart(&self, state: Arc<State>) {
        let mut rooms = self.lock();
        rooms.tracks.clear();
        for (name, room) in state.rooms.iter() {
            for participant in room.participants.values() {
                if participant.home == self.shared.node {
                    for track in participant.tracks.keys() {
                        rooms.tracks.insert(track.clone(), name.clone());
                    }
                }
            }
        }
        for (name, local) in &mut rooms.rooms {
            let room = state.rooms.get(name);
            for (sid, session) in &mut local.sessions {
                session.joined |= room
                    .and_then(|room| room.participants.get(&session.identity))
                    .is_some_and(|participant| participant.sid == *sid);
                session.inbox.deliver(Message::Snapshot(state.clone()));
            }
        }
        self.shared.checkpoints.retain_present(&state);
        rooms.state = state;
        self.catch_up(&mut rooms);
    }

    /// Takes data that has waited for this state.
    fn catch_up(&self, rooms: &mut Rooms) {
        let revision = rooms.state.revision.0;
        let nodes: Vec<NodeId> = rooms.ahead.keys().copied().collect();
        for from in nodes {
            while let Some(data) = rooms.ahead.get_mut(&from).and_then(|a| a.pop(revision)) {
                self.take_data(rooms, from, data);
            }
        }
        rooms.ahead.retain(|_, ahead| !ahead.waiting.is_empty());
    }

    fn take_data(&self, rooms: &mut Rooms, from: NodeId, data: proto::Data) {
        let Some(local) = rooms.rooms.get_mut(&RoomName(data.room.clone())) else {
            return;
        };
        let only = (!data.only.is_empty()).then(|| ParticipantSid(data.only.clone()));
        let sent_at = match data.revision {
            // A node of the version before does not say.
            0 => rooms.state.revision,
            revision => Revision(revision),
        };
        let Some(message) = from_proto(data) else {
            self.shared.metrics.mesh_malformed.inc();
            return;
        };
        let message = Arc::new(message);
        match only {
            None => {
                local.note(from, &message);
                deliver(local, &message, sent_at);
            }
            Some(sid) => {
                if let Some(session) = local.sessions.get(&sid) {
                    session.inbox.deliver(Message::Data(message));
                }
            }
        }
    }

    /// Sends a message of a participant here, or of the API, to everybody it is for.
    pub fn distribute(&self, name: &RoomName, message: Arc<DataOut>) {
        let mut rooms = self.lock();
        let elsewhere = nodes_for(&rooms.state, name, self.shared.node, |participant| {
            message.is_for(&participant.identity)
        });
        let revision = rooms.state.revision;
        let local = rooms.rooms.entry(name.clone()).or_default();
        deliver(local, &message, revision);
        local.cache.push(Instant::now(), &message);
        local.note(self.shared.node, &message);
        let reliable = message.channel == Channel::Reliable;
        for node in elsewhere {
            let data = to_proto(name, &message, None, revision);
            self.shared.mesh.send(node, Body::Data(data), reliable);
        }
    }

    /// Remembers a nonce of the API's `SendData`; whether it is new.
    #[must_use]
    pub fn is_new_nonce(&self, name: &RoomName, nonce: Option<[u8; 16]>) -> bool {
        let mut rooms = self.lock();
        rooms
            .rooms
            .entry(name.clone())
            .or_default()
            .nonces
            .insert(nonce)
    }

    /// Passes on what a shard heard of tracks published here.
    pub fn speak(&self, levels: &[(TrackSid, f32)]) {
        let rooms = self.lock();
        let mut by_room: HashMap<&RoomName, Vec<(TrackSid, f32)>> = HashMap::new();
        for (track, level) in levels {
            if let Some(room) = rooms.tracks.get(track) {
                by_room
                    .entry(room)
                    .or_default()
                    .push((track.clone(), *level));
            }
        }
        for (name, levels) in by_room {
            let elsewhere = nodes_for(&rooms.state, name, self.shared.node, |_| true);
            for node in elsewhere {
                let speakers = proto::Speakers {
                    room: name.0.clone(),
                    speakers: levels
                        .iter()
                        .map(|(track, level)| proto::Speaker {
                            track: track.0.clone(),
                            level: *level,
                        })
                        .collect(),
                };
                self.shared.mesh.send(node, Body::Speakers(speakers), false);
            }
            if let Some(local) = rooms.rooms.get(name) {
                deliver_levels(local, levels.into());
            }
        }
    }

    /// Takes what another node sent.
    pub fn receive(&self, inbound: Inbound) {
        let from = inbound.from;
        let mut rooms = self.lock();
        match inbound.body {
            Body::Checkpoint(checkpoint) => self.shared.checkpoints.put(checkpoint),
            Body::Data(data) => {
                rooms.ahead.entry(from).or_default().push(data);
                self.catch_up(&mut rooms);
            }
            Body::Speakers(speakers) => {
                if let Some(local) = rooms.rooms.get(&RoomName(speakers.room)) {
                    let levels = speakers
                        .speakers
                        .into_iter()
                        .map(|speaker| (TrackSid(speaker.track), speaker.level.clamp(0.0, 1.0)))
                        .collect();
                    deliver_levels(local, levels);
                }
            }
        }
    }
}

/// How long a session may take to let go.
const LET_GO_MAX: Duration = Duration::from_millis(200);

#[tonic::async_trait]
impl Claims for Hub {
    async fn claim(&self, request: proto::ClaimRequest) -> proto::ClaimReply {
        let (name, sid) = (RoomName(request.room), ParticipantSid(request.sid));
        let (let_go, gone) = oneshot::channel();
        let served = {
            let rooms = self.lock();
            let local = rooms.rooms.get(&name);
            let session = local.and_then(|local| local.sessions.get(&sid));
            session.map(|session| {
                let epoch = Epoch(request.epoch);
                session.inbox.deliver(Message::LetGo(epoch, let_go));
            })
        };
        if served.is_some() {
            // Whether it answered or is stuck: it sends no more than its lease allows.
            let _ = tokio::time::timeout(LET_GO_MAX, gone).await;
        }
        proto::ClaimReply {
            served: served.is_some(),
            ..self.held(&name, &sid)
        }
    }
}

impl Hub {
    /// What is held here of a session that another one, or this one, takes over.
    #[must_use]
    pub fn held(&self, name: &RoomName, sid: &ParticipantSid) -> proto::ClaimReply {
        let held = self.shared.checkpoints.get(sid).unwrap_or_default();
        let rooms = self.lock();
        let local = rooms.rooms.get(name);
        let others = || {
            let sessions = local.map(|local| &local.sessions);
            let sessions = sessions.into_iter().flatten();
            sessions.filter(|(other, _)| *other != sid)
        };
        let passed = local.and_then(|local| local.passed.get(sid).copied());
        // A room that has begun here with sessions of other nodes says nothing of what was passed on before.
        let in_room = if passed.is_some() {
            others().next().is_some()
        } else {
            others().any(|(_, other)| !other.has_just_come())
        };
        proto::ClaimReply {
            served: false,
            epoch: held.epoch.0,
            publisher: held.publisher,
            subscriber: held.subscriber,
            keepsake: held.keepsake,
            in_room,
            last_sequence: passed.unwrap_or_default(),
        }
    }
}

/// Other nodes that serve participants of a room who are to get something.
fn nodes_for(
    state: &State,
    name: &RoomName,
    here: NodeId,
    wants: impl Fn(&Participant) -> bool,
) -> BTreeSet<NodeId> {
    state.rooms.get(name).map_or_else(BTreeSet::new, |room| {
        room.participants
            .values()
            .filter(|participant| participant.home != here && wants(participant))
            .map(|participant| participant.home)
            .collect()
    })
}

/// To everybody here whom a message is for. Numbered ones, which are sent again to whoever moves, only to
/// those who were here in the state in view of which they were sent.
fn deliver(local: &LocalRoom, message: &Arc<DataOut>, sent_at: Revision) {
    for session in local.sessions.values() {
        let is_due = message.sequence == 0 || session.since <= sent_at;
        if session.joined && is_due && message.is_for(&session.identity) {
            let data = Message::Data(message.clone());
            if message.channel == Channel::Reliable {
                session.inbox.deliver(data);
            } else {
                session.inbox.offer(data);
            }
        }
    }
}

fn deliver_levels(local: &LocalRoom, levels: Arc<[(TrackSid, f32)]>) {
    for session in local.sessions.values().filter(|session| session.joined) {
        session.inbox.offer(Message::Speakers(levels.clone()));
    }
}

fn to_proto(
    room: &RoomName,
    message: &DataOut,
    only: Option<&ParticipantSid>,
    revision: Revision,
) -> proto::Data {
    proto::Data {
        room: room.0.clone(),
        channel: match message.channel {
            Channel::Reliable => 0,
            Channel::Lossy => 1,
            Channel::DataTrack => 2,
        },
        from: message.from.0.clone(),
        from_identity: message.from_identity.0.clone(),
        destinations: message
            .destinations
            .iter()
            .map(|identity| identity.0.clone())
            .collect(),
        sequence: message.sequence,
        content: message.content,
        payload: message.payload.clone(),
        only: only.map(|sid| sid.0.clone()).unwrap_or_default(),
        revision: revision.0,
    }
}

fn from_proto(data: proto::Data) -> Option<DataOut> {
    Some(DataOut {
        from: ParticipantSid(data.from),
        from_identity: Identity(data.from_identity),
        channel: match data.channel {
            0 => Channel::Reliable,
            1 => Channel::Lossy,
            2 => Channel::DataTrack,
            _ => return None,
        },
        destinations: data.destinations.into_iter().map(Identity).collect(),
        sequence: data.sequence,
        content: data.content,
        payload: data.payload,
    })
}

#[cfg(test)]
mod tests;
