//! The rooms of one node as values: who has a session here, what was passed on, and what follows from a
//! change of the log or a message. Pure: time is an argument, what is meant for other nodes comes out as
//! [`Outgoing`]; [`super::Hub`] puts it behind its lock and hands it to the mesh.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{
    BootId, Epoch, Identity, NodeId, ParticipantSid, Revision, RoomName, TrackSid, UnixMillis,
};
use flotilla_model::participant::Participant;
use flotilla_raft::Change;
use flotilla_signal::data::{Cache, DataOut, Nonces, Sent};
use flotilla_signal::media::Channel;
use prost::Message as _;
use tokio::sync::oneshot;

use crate::mesh::{Body, Inbound, proto};
use crate::session::handover::Checkpoints;
use crate::session::inbox::{Inbox, Message};
use crate::session::receipt::Receipt;

mod replay;

use replay::{Origin, boot_of};

/// Something for another node.
#[derive(Debug)]
pub struct Outgoing {
    /// For whom.
    pub to: NodeId,
    /// For which start of it.
    pub boot: BootId,
    /// What.
    pub body: Body,
    /// It must arrive, in order.
    pub reliable: bool,
    /// To be held until it has.
    pub receipt: Option<Receipt>,
}

impl Outgoing {
    /// For a node as the state has it.
    fn new(state: &State, to: NodeId, body: Body, reliable: bool) -> Self {
        Self {
            to,
            boot: boot_of(state, to),
            body,
            reliable,
            receipt: None,
        }
    }
}

/// The rooms of one node.
pub struct Rooms {
    node: NodeId,
    /// What is held of sessions that may have to go on here.
    checkpoints: Arc<Checkpoints>,
    /// As of the log entry of the last change passed on.
    state: Arc<State>,
    /// Of the last change passed on. Changes that share an entry share the state after all of them, which may be
    /// ahead of this.
    revision: Revision,
    /// The log's time then; 0: not known.
    log_time: UnixMillis,
    rooms: BTreeMap<RoomName, LocalRoom>,
    /// Rooms of tracks that participants here publish.
    tracks: BTreeMap<TrackSid, RoomName>,
    /// Data of nodes that are ahead of this one, by node, until their state is this one's.
    ahead: BTreeMap<NodeId, Ahead>,
    outgoing: Vec<Outgoing>,
    malformed: u64,
}

/// What was sent in view of changes that have not come here yet: among them may be who is here.
#[derive(Default)]
struct Ahead {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

/// Something that may have to wait for a state.
enum Waiting {
    Data(proto::Data),
    Wanted(proto::Wanted),
}

impl Waiting {
    const fn revision(&self) -> u64 {
        match self {
            Self::Data(data) => data.revision,
            Self::Wanted(wanted) => wanted.revision,
        }
    }

    /// Bytes that it takes, about.
    fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.payload.len(),
            Self::Wanted(wanted) => wanted.encoded_len(),
        }
    }
}

/// More is taken as it is.
const AHEAD_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Ahead {
    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.len();
        self.waiting.push_back(waiting);
    }

    /// What need not, or can no longer, wait.
    fn pop(&mut self, revision: u64) -> Option<Waiting> {
        let is_due = self.waiting.front()?.revision() <= revision;
        if !is_due && self.bytes <= AHEAD_BYTES_MAX {
            return None;
        }
        let waiting = self.waiting.pop_front()?;
        self.bytes -= waiting.len();
        Some(waiting)
    }
}

struct LocalRoom {
    sessions: BTreeMap<ParticipantSid, LocalSession>,
    /// Recent messages of participants here, for those who join anywhere.
    cache: Cache,
    /// Recent messages by where they came from, for those whose home fails.
    moves: BTreeMap<Origin, Cache>,
    /// What was sent again to people who are at home here, by who sent it, who may be gone when somebody else
    /// needs it.
    again: BTreeMap<Origin, Cache>,
    /// Who has moved recently, and when.
    moved: BTreeMap<Identity, (ParticipantSid, Instant)>,
    /// Highest number of each sender's reliable messages that was passed on.
    passed: BTreeMap<ParticipantSid, u32>,
    /// The same of messages that this node only keeps.
    kept: BTreeMap<ParticipantSid, u32>,
    nonces: Nonces,
}

impl Default for LocalRoom {
    fn default() -> Self {
        Self {
            sessions: BTreeMap::new(),
            cache: Cache::for_joins(),
            moves: BTreeMap::new(),
            again: BTreeMap::new(),
            moved: BTreeMap::new(),
            passed: BTreeMap::new(),
            kept: BTreeMap::new(),
            nonces: Nonces::default(),
        }
    }
}

impl LocalRoom {
    /// A message came through here.
    fn note(&mut self, from: Origin, sent: Sent) {
        let message = &sent.message;
        if message.sequence == 0 || message.channel != Channel::Reliable {
            return;
        }
        raise(&mut self.passed, message);
        keep(&mut self.moves, from, sent);
    }

    fn forget_old(&mut self, now: Instant) {
        self.moves.retain(|_, cache| !cache.is_empty_by(now));
        self.again.retain(|_, cache| !cache.is_empty_by(now));
        self.cache.is_empty_by(now);
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < Cache::MOVE_AGE_MAX;
        self.moved.retain(|_, (_, at)| is_recent(at));
    }
}

/// The message's number, if it is its sender's highest.
fn raise(numbers: &mut BTreeMap<ParticipantSid, u32>, message: &DataOut) {
    let highest = numbers.entry(message.from.clone()).or_default();
    *highest = message.sequence.max(*highest);
}

/// A message may have to be sent again.
fn keep(caches: &mut BTreeMap<Origin, Cache>, from: Origin, sent: Sent) {
    let cache = caches.entry(from);
    cache.or_insert_with(Cache::for_moves).push(sent);
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
    fn has_just_come(&self, now: Instant) -> bool {
        self.adopted
            .is_some_and(|adopted| now.saturating_duration_since(adopted) < Cache::MOVE_AGE_MAX)
    }
}

impl Rooms {
    /// None yet.
    #[must_use]
    pub fn new(node: NodeId, checkpoints: Arc<Checkpoints>) -> Self {
        Self {
            node,
            checkpoints,
            state: Arc::default(),
            revision: Revision::default(),
            log_time: UnixMillis(0),
            rooms: BTreeMap::new(),
            tracks: BTreeMap::new(),
            ahead: BTreeMap::new(),
            outgoing: Vec::new(),
            malformed: 0,
        }
    }

    /// What other nodes are to get, in order, since this was asked last.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// Messages of other nodes that could not be read, since this was asked last.
    pub fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }

    /// How many rooms something is kept for.
    #[must_use]
    pub fn count(&self) -> usize {
        self.rooms.len()
    }

    /// Another node serves a participant since `epoch`: its session here ends, and `gone` hears of it.
    /// Whether there is one.
    pub fn let_go(
        &mut self,
        name: &RoomName,
        sid: &ParticipantSid,
        epoch: Epoch,
        gone: oneshot::Sender<()>,
    ) -> bool {
        let local = self.rooms.get(name);
        let Some(session) = local.and_then(|local| local.sessions.get(sid)) else {
            return false;
        };
        session.inbox.deliver(Message::LetGo(epoch, gone));
        true
    }

    /// A session begins, before its join: it hears every event of the room from now on.
    pub fn register(
        &mut self,
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
        &mut self,
        now: Instant,
        room: &RoomName,
        sid: &ParticipantSid,
        identity: &Identity,
        inbox: &Inbox,
    ) -> bool {
        if self.has_session(room, sid) {
            return false;
        }
        self.insert(room, sid, identity, inbox, Some(now));
        true
    }

    /// Whether somebody has come from another node within this time.
    #[must_use]
    pub fn has_newcomers(&self, now: Instant, within: Duration) -> bool {
        let sessions = self.rooms.values().flat_map(|room| room.sessions.values());
        let mut adopted = sessions.filter_map(|session| session.adopted);
        adopted.any(|at| now.saturating_duration_since(at) < within)
    }

    /// Whether a session of this sid is here.
    #[must_use]
    pub fn has_session(&self, room: &RoomName, sid: &ParticipantSid) -> bool {
        let room = self.rooms.get(room);
        room.is_some_and(|room| room.sessions.contains_key(sid))
    }

    fn insert(
        &mut self,
        room: &RoomName,
        sid: &ParticipantSid,
        identity: &Identity,
        inbox: &Inbox,
        adopted: Option<Instant>,
    ) {
        self.rooms.entry(room.clone()).or_default().sessions.insert(
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
    pub fn unregister(&mut self, room: &RoomName, sid: &ParticipantSid) {
        if let Some(local) = self.rooms.get_mut(room) {
            local.sessions.remove(sid);
            if local.sessions.is_empty() && !self.state.rooms.contains_key(room) {
                self.rooms.remove(room);
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
        let sessions = &self.rooms.get(room)?.sessions;
        let session = match sid {
            Some(sid) => sessions.get(sid)?,
            None => {
                let present = self.state.rooms.get(room)?.participants.get(identity)?;
                sessions.get(&present.sid)?
            }
        };
        let can_resume = session.joined || session.adopted.is_some();
        (session.identity == *identity && can_resume).then(|| session.inbox.clone())
    }

    /// How many sessions are here.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.rooms.values().map(|room| room.sessions.len()).sum()
    }

    /// Whether a session is here whose participant has another home, or has been in the room and is no longer.
    #[must_use]
    pub fn has_strays(&self, state: &State) -> bool {
        self.rooms.iter().any(|(name, local)| {
            let present = state.rooms.get(name).map(|room| &room.participants);
            local.sessions.iter().any(|(sid, session)| {
                let own = present
                    .and_then(|present| present.get(&session.identity))
                    .filter(|present| present.sid == *sid);
                own.map_or(session.joined, |own| own.home != self.node)
            })
        })
    }

    /// Every session here gets this message.
    pub fn broadcast(&self, message: impl Fn() -> Message) {
        for room in self.rooms.values() {
            for session in room.sessions.values() {
                session.inbox.deliver(message());
            }
        }
    }

    /// Passes a change on. Called in log order.
    pub fn pass_on(&mut self, now: Instant, change: &Arc<Change>) {
        self.state = change.state.clone();
        self.revision = change.revision;
        self.log_time = change.at;
        let before = &change.before;
        for (index, event) in change.events.iter().enumerate() {
            let (name, event) = match event {
                Event::Room { room, change, .. } => (room, change),
                Event::NodeChanged(node) | Event::NodeRemoved(node) => {
                    self.replay_forgotten(now, *node, before);
                    continue;
                }
            };
            if let Some(local) = self.rooms.get(name) {
                for session in local.sessions.values() {
                    session.inbox.deliver(Message::Event {
                        change: change.clone(),
                        index,
                    });
                }
            }
            self.note(now, name, event, before);
        }
        self.catch_up(now);
    }

    fn note(&mut self, now: Instant, name: &RoomName, event: &RoomEvent, before: &State) {
        if let RoomEvent::ParticipantJoined(participant) | RoomEvent::ParticipantMoved(participant) =
            event
            && participant.home == self.node
        {
            self.begin_again(name, before);
        }
        match event {
            RoomEvent::ParticipantJoined(participant) => self.replay(now, name, participant),
            RoomEvent::ParticipantMoved(participant) => {
                let is_here = participant.home == self.node;
                // Of two stints here, with another home in between, joiners would get what has a hole.
                if let Some(local) = self.rooms.get_mut(name) {
                    local.cache.forget(&participant.sid);
                }
                for track in participant.tracks.keys() {
                    if is_here {
                        self.tracks.insert(track.clone(), name.clone());
                    } else {
                        self.tracks.remove(track);
                    }
                }
                let former = before
                    .rooms
                    .get(name)
                    .and_then(|room| room.participants.get(&participant.identity))
                    .map_or(participant.home, |before| before.home);
                self.replay_moved(now, name, participant, former);
            }
            RoomEvent::TrackPublished { publisher, track } if publisher.home == self.node => {
                self.tracks.insert(track.sid.clone(), name.clone());
            }
            RoomEvent::TrackUnpublished { track, .. } => {
                self.tracks.remove(&track.sid);
            }
            RoomEvent::ParticipantLeft { participant, .. } => {
                for track in participant.tracks.keys() {
                    self.tracks.remove(track);
                }
                if let Some(local) = self.rooms.get_mut(name) {
                    local.passed.remove(&participant.sid);
                    local.kept.remove(&participant.sid);
                }
                self.checkpoints.forget(&participant.sid);
            }
            RoomEvent::Closed(_)
                if self
                    .rooms
                    .get(name)
                    .is_some_and(|local| local.sessions.is_empty()) =>
            {
                self.rooms.remove(name);
            }
            _ => {}
        }
    }

    /// Somebody is at home here again, after nobody was: what was passed on in between did not come here, so
    /// that what is known of it says nothing.
    fn begin_again(&mut self, name: &RoomName, before: &State) {
        let room = before.rooms.get(name);
        let was_here = room.is_some_and(|room| room.homes.contains_key(&self.node));
        if let Some(local) = self.rooms.get_mut(name).filter(|_| !was_here) {
            local.passed.clear();
        }
    }

    /// The feed begins, or had a gap: sessions find out by themselves what they missed.
    pub fn restart(&mut self, now: Instant, state: Arc<State>) {
        self.tracks.clear();
        for (name, room) in state.rooms.iter() {
            for participant in room.participants.values() {
                if participant.home == self.node {
                    for track in participant.tracks.keys() {
                        self.tracks.insert(track.clone(), name.clone());
                    }
                }
            }
        }
        for (name, local) in &mut self.rooms {
            let room = state.rooms.get(name);
            for (sid, session) in &mut local.sessions {
                session.joined |= room
                    .and_then(|room| room.participants.get(&session.identity))
                    .is_some_and(|participant| participant.sid == *sid);
                session.inbox.deliver(Message::Snapshot(state.clone()));
            }
        }
        self.checkpoints.retain_present(&state);
        self.revision = state.revision;
        let before = std::mem::replace(&mut self.state, state);
        let state = Arc::clone(&self.state);
        self.rooms
            .retain(|name, local| !local.sessions.is_empty() || state.rooms.contains_key(name));
        let names: Vec<RoomName> = self.rooms.keys().cloned().collect();
        for name in &names {
            self.begin_again(name, &before);
        }
        self.replay_missed(now, &before);
        for node in before.nodes.keys() {
            self.replay_forgotten(now, *node, &before);
        }
        self.catch_up(now);
    }

    /// Takes something when this node has the state in view of which it was sent.
    fn wait(&mut self, now: Instant, from: NodeId, waiting: Waiting) {
        self.ahead.entry(from).or_default().push(waiting);
        self.catch_up(now);
    }

    /// Takes what has waited for this state.
    fn catch_up(&mut self, now: Instant) {
        let revision = self.revision.0;
        let nodes: Vec<NodeId> = self.ahead.keys().copied().collect();
        for from in nodes {
            while let Some(due) = self.ahead.get_mut(&from).and_then(|a| a.pop(revision)) {
                match due {
                    Waiting::Data(data) => self.take_data(now, from, data),
                    Waiting::Wanted(wanted) => self.answer(now, from, &wanted),
                }
            }
        }
        self.ahead.retain(|_, ahead| !ahead.waiting.is_empty());
    }

    fn take_data(&mut self, now: Instant, from: NodeId, data: proto::Data) {
        let origin = self.origin(from);
        let name = RoomName(data.room.clone());
        // Whoever is at home here and has not come yet may have to go on elsewhere: what is meant for them is kept.
        // And so is what the sender's node wants to be kept.
        let is_kept = data.only == data.from && !data.from.is_empty();
        let room = self.state.rooms.get(&name);
        if room.is_some_and(|room| is_kept || room.homes.contains_key(&self.node)) {
            self.rooms.entry(name.clone()).or_default();
        }
        let Some(local) = self.rooms.get_mut(&name) else {
            return;
        };
        let age = Duration::from_millis(data.age_ms.into());
        let at = now.checked_sub(age).unwrap_or(now);
        let log_time = UnixMillis(data.log_time);
        let only = (!data.only.is_empty()).then(|| ParticipantSid(data.only.clone()));
        let sent_at = match data.revision {
            // A node of the version before does not say.
            0 => self.revision,
            revision => Revision(revision),
        };
        let Some(message) = from_proto(data) else {
            self.malformed += 1;
            return;
        };
        let message = Arc::new(message);
        let sent = Sent {
            at,
            log_time,
            message: Arc::clone(&message),
        };
        match only {
            None => {
                local.note(origin, sent);
                deliver(local, &message, sent_at);
            }
            Some(sid) => {
                let caches = if is_kept {
                    raise(&mut local.kept, &message);
                    &mut local.moves
                } else {
                    &mut local.again
                };
                keep(caches, origin, sent);
                if let Some(session) = local.sessions.get(&sid) {
                    session.inbox.deliver(Message::Data(message));
                }
            }
        }
    }

    /// Sends a message of a participant here, or of the API, to everybody it is for.
    pub fn distribute(
        &mut self,
        now: Instant,
        name: &RoomName,
        message: Arc<DataOut>,
        receipt: Option<Receipt>,
    ) {
        let elsewhere = nodes_for(&self.state, name, self.node, |participant| {
            message.is_for(&participant.identity)
        });
        let keeper = if elsewhere.is_empty() {
            self.keeper(name, &message)
        } else {
            None
        };
        let revision = self.revision;
        let origin = self.origin(self.node);
        let local = self.rooms.entry(name.clone()).or_default();
        deliver(local, &message, revision);
        let sent = Sent {
            at: now,
            log_time: self.log_time,
            message: Arc::clone(&message),
        };
        local.cache.push(sent.clone());
        local.note(origin, sent.clone());
        let reliable = message.channel == Channel::Reliable;
        for node in elsewhere {
            let data = to_proto(now, name, &sent, None, revision);
            self.outgoing.push(Outgoing {
                receipt: receipt.clone(),
                ..Outgoing::new(&self.state, node, Body::Data(data), reliable)
            });
        }
        if let Some(keeper) = keeper {
            // Nobody there is the sender.
            let data = to_proto(now, name, &sent, Some(&message.from), revision);
            self.outgoing.push(Outgoing {
                receipt,
                ..Outgoing::new(&self.state, keeper, Body::Data(data), true)
            });
        }
    }

    /// Forgets what has been kept for long enough. To be called every few seconds.
    pub fn forget_old(&mut self, now: Instant) {
        for local in self.rooms.values_mut() {
            local.forget_old(now);
        }
        self.checkpoints
            .forget_unneeded(now, self.node, &self.state);
    }

    /// Who keeps a message that goes to nobody on another node, for the people of this one if it dies: the node
    /// that would take over its sender.
    fn keeper(&self, name: &RoomName, message: &DataOut) -> Option<NodeId> {
        if message.sequence == 0 || message.channel != Channel::Reliable {
            return None;
        }
        let room = self.state.rooms.get(name)?;
        let sender = room.participants.get(&message.from_identity)?;
        let has_others = room.participants.len() > 1;
        let keeper = self.state.successor(sender);
        keeper.filter(|node| has_others && *node != self.node)
    }

    /// Remembers a nonce of the API's `SendData`; whether it is new.
    #[must_use]
    pub fn is_new_nonce(&mut self, name: &RoomName, nonce: Option<[u8; 16]>) -> bool {
        self.rooms
            .entry(name.clone())
            .or_default()
            .nonces
            .insert(nonce)
    }

    /// Passes on what a shard heard of tracks published here.
    pub fn speak(&mut self, levels: &[(TrackSid, f32)]) {
        let mut by_room: BTreeMap<&RoomName, Vec<(TrackSid, f32)>> = BTreeMap::new();
        for (track, level) in levels {
            if let Some(room) = self.tracks.get(track) {
                by_room
                    .entry(room)
                    .or_default()
                    .push((track.clone(), *level));
            }
        }
        for (name, levels) in by_room {
            let elsewhere = nodes_for(&self.state, name, self.node, |_| true);
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
                let body = Body::Speakers(speakers);
                self.outgoing
                    .push(Outgoing::new(&self.state, node, body, false));
            }
            if let Some(local) = self.rooms.get(name) {
                deliver_levels(local, levels.into());
            }
        }
    }

    /// Takes what another node sent.
    pub fn receive(&mut self, now: Instant, inbound: Inbound) {
        let from = inbound.from;
        match inbound.body {
            Body::Checkpoint(checkpoint) => {
                self.checkpoints.put(checkpoint);
            }
            Body::Data(data) => self.wait(now, from, Waiting::Data(data)),
            Body::Wanted(wanted) => self.wait(now, from, Waiting::Wanted(wanted)),
            Body::Speakers(speakers) => {
                if let Some(local) = self.rooms.get(&RoomName(speakers.room)) {
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

    /// What is held here of a session that another one, or this one, takes over.
    #[must_use]
    pub fn held(&self, now: Instant, name: &RoomName, sid: &ParticipantSid) -> proto::ClaimReply {
        let held = self.checkpoints.get(sid).unwrap_or_default();
        let local = self.rooms.get(name);
        let others = || {
            let sessions = local.map(|local| &local.sessions);
            let sessions = sessions.into_iter().flatten();
            sessions.filter(|(other, _)| *other != sid)
        };
        let passed = local.and_then(|local| local.passed.get(sid).copied());
        let kept = local.and_then(|local| local.kept.get(sid).copied());
        // A room that has begun here with sessions of other nodes says nothing of what was passed on before.
        let in_room = if passed.is_some() {
            others().next().is_some()
        } else {
            others().any(|(_, other)| !other.has_just_come(now))
        };
        proto::ClaimReply {
            served: false,
            epoch: held.epoch.0,
            number: held.number,
            publisher: held.publisher,
            subscriber: held.subscriber,
            keepsake: held.keepsake,
            in_room,
            last_sequence: passed.unwrap_or_default(),
            reached: passed.into_iter().chain(kept).max().unwrap_or_default(),
            ..proto::ClaimReply::default()
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

/// To everybody here whom a message is for. Numbered ones are sent again, in order, to whoever moves: those who
/// came from elsewhere after the state in view of which they were sent take them only as the next one.
fn deliver(local: &LocalRoom, message: &Arc<DataOut>, sent_at: Revision) {
    for session in local.sessions.values() {
        if !session.joined || !message.is_for(&session.identity) {
            continue;
        }
        let data = if message.sequence == 0 || session.since <= sent_at {
            Message::Data(message.clone())
        } else if session.adopted.is_some() {
            Message::EarlyData(message.clone())
        } else {
            continue;
        };
        if message.channel == Channel::Reliable {
            session.inbox.deliver(data);
        } else {
            session.inbox.offer(data);
        }
    }
}

fn deliver_levels(local: &LocalRoom, levels: Arc<[(TrackSid, f32)]>) {
    for session in local.sessions.values().filter(|session| session.joined) {
        session.inbox.offer(Message::Speakers(levels.clone()));
    }
}

pub(super) fn to_proto(
    now: Instant,
    room: &RoomName,
    sent: &Sent,
    only: Option<&ParticipantSid>,
    revision: Revision,
) -> proto::Data {
    let message = &sent.message;
    let age = now.saturating_duration_since(sent.at);
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
        age_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
        log_time: sent.log_time.0,
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
