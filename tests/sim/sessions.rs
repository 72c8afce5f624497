//! A node's sessions: the product's `Session` behind the product's inbox, driven as its task does, with the
//! way in that `http/rtc` has.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_model::command::{Rejection, Reply};
use flotilla_model::event::Event;
use flotilla_model::id::{Identity, NodeId, ParticipantSid, RequestId, RoomName};
use flotilla_model::participant::{LeaveReason, Participant};
use flotilla_node::mesh::{Body, proto as mesh};
use flotilla_node::session::inbox::{Inbox, Message as Inward, Outlet};
use flotilla_signal::connect::Connect;
use flotilla_signal::media;
use flotilla_signal::proto::{SignalResponse, signal_response};
use flotilla_signal::session::{
    Adopting, Claimed, Close, CommitError, Input, Joining, Output, Resuming, Session, may_adopt,
    resume_refusal,
};
use tokio::sync::oneshot;

use crate::bug::Bug;
use crate::message::{Association, Message};
use crate::net::End;
use crate::node::{Failure, Process, Reader, Waiter};
use crate::time::{Time, secs};
use crate::witness::Fact;
use crate::world::{What, World};

/// How long a client that was told to resume may take to close its connection.
const FAREWELL_MAX: u64 = secs(2);
/// Lane of a signal connection; its number is added.
const SIGNAL: u64 = 1 << 30;

/// A session's task.
pub struct Task {
    /// The session.
    pub session: Session,
    /// Its room.
    pub room: RoomName,
    /// Its sid.
    pub sid: ParticipantSid,
    /// Whose client.
    pub client: usize,
    /// Newest signal connection.
    pub connection: Option<u64>,
    /// What came of a claim.
    pub claimed: Option<Claimed>,
    outlet: Outlet,
    outcomes: VecDeque<(RequestId, Result<Reply, CommitError>)>,
    /// The connection that waits for the join.
    admission: Option<u64>,
    let_go: Option<oneshot::Sender<()>>,
    ended: Option<LeaveReason>,
    farewell: Option<(u64, Time)>,
    held: VecDeque<Bytes>,
    told: bool,
}

impl Process {
    /// Whether something waits in a session's peer.
    #[must_use]
    pub fn has_held(&self, key: u64) -> bool {
        self.sessions
            .get(&key)
            .is_some_and(|task| !task.held.is_empty())
    }

    /// The lease has lapsed: what a session wants to send waits in its peer.
    pub fn engine_held(&mut self, key: u64, payload: Bytes) {
        if let Some(task) = self.sessions.get_mut(&key) {
            task.held.push_back(payload);
        }
    }
}

impl World {
    /// A client's message for a node.
    pub fn session_receives(&mut self, id: u64, client: usize, message: Message) {
        match message {
            Message::Open {
                connection,
                connect,
            } => self.admit(id, client, connection, connect),
            Message::Request {
                connection,
                request,
            } => {
                let key = self.key_of(id, connection);
                match key {
                    Some(key) => self.input(id, key, Input::Request(request)),
                    None => self.close_connection(id, client, connection),
                }
            }
            Message::Close { connection } => {
                if let Some(key) = self.key_of(id, connection) {
                    if let Some(task) = self.process(id).sessions.get_mut(&key) {
                        task.connection = None;
                    }
                    self.input(id, key, Input::SignalClosed);
                    if !self.process(id).holds {
                        self.input(id, key, Input::LeaseLapsed);
                    }
                }
            }
            Message::Checked { association } if association.boot == self.process(id).boot => {
                self.engine_reached(id, association.key);
            }
            Message::Data {
                association,
                payload,
            } => {
                let process = self.process(id);
                let is_known = process.engine.peers.contains_key(&association.key);
                if association.boot == process.boot && is_known {
                    // Data comes only on a way that is up.
                    self.engine_reached(id, association.key);
                    let channel = media::Channel::Reliable;
                    let event = media::Event::Data { channel, payload };
                    self.input(id, association.key, Input::Media(event));
                }
            }
            Message::Packet {
                association,
                track,
                number,
            } if association.boot == self.process(id).boot => {
                self.engine_receives(id, association.key, track, number);
            }
            _ => {}
        }
    }

    fn key_of(&mut self, id: u64, connection: u64) -> Option<u64> {
        let sessions = self.process(id).sessions.iter();
        let mut found = sessions.filter(|(_, task)| task.connection == Some(connection));
        found.next().map(|(key, _)| *key)
    }

    /// Closes a signal connection from the node's side.
    pub fn close_connection(&mut self, id: u64, client: usize, connection: u64) {
        let message = Message::Close { connection };
        self.stream(
            End::Node(id),
            End::Client(client),
            SIGNAL + connection,
            message,
        );
    }

    fn deny(&mut self, id: u64, client: usize, connection: u64, status: u16) {
        let message = Message::Denied { connection, status };
        self.stream(
            End::Node(id),
            End::Client(client),
            SIGNAL + connection,
            message,
        );
    }

    fn respond(&mut self, id: u64, client: usize, connection: u64, response: Box<SignalResponse>) {
        let message = Message::Response {
            connection,
            response,
        };
        self.stream(
            End::Node(id),
            End::Client(client),
            SIGNAL + connection,
            message,
        );
    }

    /// An upgrade request: `http/rtc`.
    fn admit(&mut self, id: u64, client: usize, connection: u64, connect: Box<Connect>) {
        let Some(reconnect) = connect.parameters.reconnect.clone() else {
            self.join(id, client, connection, connect);
            return;
        };
        if self.bug == Some(Bug::ResumeMakesNewSession) && self.rng.per_mille(200) {
            let mut connect = connect;
            connect.parameters.reconnect = None;
            self.join(id, client, connection, connect);
            return;
        }
        if self.resume_here(id, client, connection, &connect) {
            return;
        }
        let state = Arc::clone(self.node(id).replica.state());
        match find_in(&state, &connect) {
            Some(participant) => self.adopt(id, client, connection, *connect, participant),
            None => {
                let _ = reconnect;
                let reader = Reader::Resume {
                    client,
                    connection,
                    connect,
                };
                self.read(id, reader, Some(secs(3)));
            }
        }
    }

    fn resume_here(&mut self, id: u64, client: usize, connection: u64, connect: &Connect) -> bool {
        let room = room_of(connect);
        let identity = Identity(connect.claims.identity().to_owned());
        let reconnect = connect.parameters.reconnect.as_ref();
        let sid = reconnect.and_then(|reconnect| reconnect.sid.clone());
        let process = self.process(id);
        if process.rooms.find(&room, &identity, sid.as_ref()).is_none() {
            return false;
        }
        let sessions = process.sessions.iter();
        let mut found =
            sessions.filter(|(_, task)| task.client == client && Some(&task.sid) == sid.as_ref());
        let Some(key) = found.next().map(|(key, _)| *key) else {
            return false;
        };
        let Some(task) = process.sessions.get_mut(&key) else {
            return false;
        };
        let may_have = reconnect
            .is_some_and(|reconnect| task.session.is_resumable_by(&connect.claims, reconnect));
        if !may_have {
            self.opened(id, client, connection);
            self.respond(id, client, connection, Box::new(resume_refusal()));
            self.close_connection(id, client, connection);
            return true;
        }
        let old = task.connection.replace(connection);
        task.farewell = None;
        if let Some(old) = old {
            self.close_connection(id, client, old);
        }
        self.witness.coverage.resumed_here += 1;
        self.opened(id, client, connection);
        let resuming = Resuming {
            claims: connect.claims.clone(),
            parameters: connect.parameters.clone(),
        };
        self.input(id, key, Input::Resume(Box::new(resuming)));
        true
    }

    /// The log has been read for a client that wants a session back.
    pub fn resume_read(
        &mut self,
        id: u64,
        client: usize,
        connection: u64,
        connect: Box<Connect>,
        done: bool,
    ) {
        let state = Arc::clone(self.node(id).replica.state());
        let found = done.then(|| find_in(&state, &connect)).flatten();
        match found {
            Some(participant) => self.adopt(id, client, connection, *connect, participant),
            None => {
                self.witness.coverage.refused += 1;
                self.opened(id, client, connection);
                self.respond(id, client, connection, Box::new(resume_refusal()));
                self.close_connection(id, client, connection);
            }
        }
    }

    fn opened(&mut self, id: u64, client: usize, connection: u64) {
        let message = Message::Opened { connection };
        self.stream(
            End::Node(id),
            End::Client(client),
            SIGNAL + connection,
            message,
        );
    }

    fn join(&mut self, id: u64, client: usize, connection: u64, connect: Box<Connect>) {
        if !self.process(id).open {
            self.deny(id, client, connection, 503);
            return;
        }
        let (now, wall, seed) = (self.instant(), self.wall(id), self.rng.seed());
        let process = self.process(id);
        let session = Session::join(
            now,
            Joining {
                config: Arc::clone(&process.config),
                connect: *connect,
                seed,
                wall,
            },
        );
        let (inbox, outlet) = Inbox::new();
        process
            .rooms
            .register(session.room(), session.sid(), session.identity(), &inbox);
        let key = self.seat(id, session, client, outlet);
        if let Some(task) = self.process(id).sessions.get_mut(&key) {
            task.admission = Some(connection);
        }
        self.follow_up(id, key);
    }

    fn adopt(
        &mut self,
        id: u64,
        client: usize,
        connection: u64,
        connect: Connect,
        participant: Arc<Participant>,
    ) {
        let (now, wall, seed) = (self.instant(), self.wall(id), self.rng.seed());
        let process = self.process(id);
        let Connect { claims, parameters } = connect;
        let session = Session::adopt(
            now,
            Adopting {
                config: Arc::clone(&process.config),
                resuming: Resuming { claims, parameters },
                participant,
                seed,
                wall,
            },
        );
        let (inbox, outlet) = Inbox::new();
        let (room, sid) = (session.room().clone(), session.sid().clone());
        if !process
            .rooms
            .register_adopting(now, &room, &sid, session.identity(), &inbox)
        {
            self.close_connection(id, client, connection);
            return;
        }
        let key = self.seat(id, session, client, outlet);
        if let Some(task) = self.process(id).sessions.get_mut(&key) {
            task.connection = Some(connection);
        }
        self.witness.coverage.adoptions += 1;
        self.opened(id, client, connection);
        self.follow_up(id, key);
    }

    fn seat(&mut self, id: u64, session: Session, client: usize, outlet: Outlet) -> u64 {
        let process = self.process(id);
        let key = process.next_key;
        process.next_key += 1;
        let task = Task {
            room: session.room().clone(),
            sid: session.sid().clone(),
            session,
            client,
            connection: None,
            claimed: None,
            outlet,
            outcomes: VecDeque::new(),
            admission: None,
            let_go: None,
            ended: None,
            farewell: None,
            held: VecDeque::new(),
            told: false,
        };
        process.sessions.insert(key, task);
        key
    }

    /// A session is given something.
    fn input(&mut self, id: u64, key: u64, input: Input<'_>) {
        let now = self.instant();
        if let Some(task) = self.process(id).sessions.get_mut(&key) {
            task.session.handle(now, input);
            self.follow_up(id, key);
        }
    }

    /// An engine's word for a session.
    pub fn engine_says(&mut self, id: u64, key: u64, event: media::Event) {
        self.input(id, key, Input::Media(event));
    }

    /// A proposal of a session is decided.
    pub fn session_decided(
        &mut self,
        id: u64,
        key: u64,
        request: RequestId,
        result: Result<Reply, Failure>,
    ) {
        let result = result.map_err(|failure| match failure {
            Failure::Rejected(rejection) => CommitError::Rejected(rejection),
            Failure::Unavailable => CommitError::Unavailable("no answer".to_owned()),
        });
        if let Some(task) = self.process(id).sessions.get_mut(&key) {
            task.outcomes.push_back((request, result));
            self.sessions_soon(id);
        }
    }

    /// Sessions have something to do.
    pub fn sessions_soon(&mut self, id: u64) {
        let wait = self.rng.range(10, 600);
        let process = self.process(id);
        if !process.sessions_due {
            process.sessions_due = true;
            let boot = process.boot;
            self.after(wait, What::Sessions(id, boot));
        }
    }

    /// Sessions take what waits for them; some a little later than others.
    pub fn run_sessions(&mut self, id: u64) {
        self.process(id).sessions_due = false;
        let keys: Vec<u64> = self.process(id).sessions.keys().copied().collect();
        let mut later = false;
        for key in keys {
            if self.rng.per_mille(80) {
                later = true;
                continue;
            }
            self.run_session(id, key);
        }
        self.answer_claims(id);
        if later {
            self.sessions_soon(id);
        }
    }

    fn run_session(&mut self, id: u64, key: u64) {
        loop {
            let outcome_first = self.rng.per_mille(500);
            let now = self.instant();
            let Some(task) = self.process(id).sessions.get_mut(&key) else {
                return;
            };
            if task.ended.is_some() {
                return;
            }
            if outcome_first && let Some((request, result)) = task.outcomes.pop_front() {
                task.session
                    .handle(now, Input::Committed { request, result });
            } else if let Some(message) = task.outlet.try_receive() {
                self.take(id, key, message);
            } else if let Some((request, result)) = task.outcomes.pop_front() {
                task.session
                    .handle(now, Input::Committed { request, result });
            } else if let Some(claimed) = task.claimed.take() {
                task.session.handle(now, Input::Claimed(Box::new(claimed)));
            } else {
                return;
            }
            self.follow_up(id, key);
        }
    }

    fn take(&mut self, id: u64, key: u64, message: Inward) {
        let now = self.instant();
        let keeps_on = self.bug == Some(Bug::FormerHomeKeepsOn);
        let Some(task) = self.process(id).sessions.get_mut(&key) else {
            return;
        };
        match message {
            Inward::Event { change, index } => {
                let Some(Event::Room {
                    room,
                    change: event,
                    ..
                }) = change.events.get(index)
                else {
                    return;
                };
                if keeps_on
                    && matches!(event, flotilla_model::event::RoomEvent::ParticipantMoved(p) if p.sid == task.sid)
                    && task.told
                {
                    return;
                }
                let room = change.state.rooms.get(room);
                let input = Input::Event {
                    change: event,
                    room,
                };
                task.session.handle(now, input);
            }
            Inward::Data(data) => task.session.handle(now, Input::Data(data)),
            Inward::EarlyData(data) => task.session.handle(now, Input::EarlyData(data)),
            Inward::LetGo(epoch, gone) if task.session.epoch().is_none_or(|own| own < epoch) => {
                task.let_go = Some(gone);
                let (client, connection) = (task.client, task.connection.take());
                task.ended = Some(LeaveReason::Unknown);
                if let Some(connection) = connection {
                    self.close_connection(id, client, connection);
                }
                self.end_session(id, key);
            }
            Inward::Snapshot(state) => {
                let room = state.rooms.get(&task.room).cloned();
                let room = room.as_ref();
                task.session.handle(now, Input::Snapshot { room });
            }
            Inward::Drain => task.session.handle(now, Input::Drain),
            Inward::LeaseLapsed => task.session.handle(now, Input::LeaseLapsed),
            Inward::LeaseHolds => task.session.handle(now, Input::LeaseHolds),
            Inward::Shutdown => task.session.handle(now, Input::Shutdown),
            _ => {}
        }
    }

    /// Carries a session's outputs out.
    fn follow_up(&mut self, id: u64, key: u64) {
        let until = self.now + FAREWELL_MAX;
        let state = Arc::clone(self.node(id).replica.state());
        while let Some(task) = self.process(id).sessions.get_mut(&key)
            && let Some(output) = task.session.poll()
        {
            let (client, connection) = (task.client, task.connection);
            let (room, sid) = (task.room.clone(), task.sid.clone());
            match output {
                Output::Reply(response) => self.reply(id, key, response),
                Output::Propose { request, command } => {
                    let late = task.session.comes_late(&command, &state);
                    if late {
                        let refused = CommitError::Rejected(Rejection::StaleEpoch);
                        task.outcomes.push_back((request, Err(refused)));
                    } else {
                        self.propose_as(id, request, command, Waiter::Session(key));
                    }
                }
                Output::Claim { epoch } => self.claim(id, key, &room, &sid, epoch),
                Output::Media(command) => self.order(id, key, client, command),
                Output::Data(data) => {
                    let now = self.instant();
                    self.process(id).rooms.distribute(now, &room, data, None);
                    self.rooms_changed(id);
                }
                Output::Refuse(refusal) => {
                    if let Some(connection) = task.admission.take() {
                        self.deny(id, client, connection, refusal.status);
                    }
                }
                Output::Close(Close::Signal) => {
                    if let Some(connection) = task.connection.take() {
                        self.close_connection(id, client, connection);
                    }
                }
                Output::Close(Close::Farewell) => {
                    task.farewell = task.connection.take().map(|connection| (connection, until));
                }
                Output::Close(Close::Session { reason }) => {
                    task.ended = Some(reason);
                    task.connection = None;
                    if let Some(connection) = connection {
                        self.close_connection(id, client, connection);
                    }
                    self.end_session(id, key);
                    return;
                }
            }
        }
        let Some(task) = self.process(id).sessions.get_mut(&key) else {
            return;
        };
        if let Some(epoch) = task.session.epoch()
            && !task.told
        {
            task.told = true;
            let sid = task.sid.clone();
            self.fact(&Fact::Serves {
                node: id,
                sid: &sid,
                epoch,
            });
        }
        let Some(task) = self.process(id).sessions.get_mut(&key) else {
            return;
        };
        if task.session.take_keepsake_changed() {
            self.keep_wishes(id, key);
        }
    }

    fn reply(&mut self, id: u64, key: u64, response: Box<SignalResponse>) {
        let Some(task) = self.process(id).sessions.get_mut(&key) else {
            return;
        };
        let client = task.client;
        if let Some(connection) = task.admission.take() {
            // The first response: the join is in the log.
            task.connection = Some(connection);
            self.opened(id, client, connection);
        }
        let Some(task) = self.process(id).sessions.get_mut(&key) else {
            return;
        };
        let farewell = task.farewell.map(|(connection, _)| connection);
        let is_leave = matches!(response.message, Some(signal_response::Message::Leave(_)));
        let connection = task.connection.or(farewell.filter(|_| is_leave));
        if let Some(connection) = connection {
            self.respond(id, client, connection, response);
        }
    }

    fn end_session(&mut self, id: u64, key: u64) {
        let process = self.process(id);
        let Some(task) = process.sessions.get_mut(&key) else {
            return;
        };
        let (room, sid, client) = (task.room.clone(), task.sid.clone(), task.client);
        let let_go = task.let_go.take();
        let admission = task.admission.take();
        let farewell = task.farewell.take();
        process.rooms.unregister(&room, &sid);
        process.engine.peers.remove(&key);
        process.sessions.remove(&key);
        let is_last = process.sessions.values().all(|task| task.room != room);
        let association = Association {
            node: id,
            boot: process.boot,
            key,
        };
        self.net
            .close((End::Node(id), End::Client(client), association.lane()));
        if is_last && self.bug == Some(Bug::RoomClosedWhenLocallyEmpty) {
            let room = room.clone();
            self.propose(
                id,
                flotilla_model::command::Command::DeleteRoom { room },
                Waiter::Orphan,
            );
        }
        if let Some(let_go) = let_go {
            let _ = let_go.send(());
        }
        if let Some(connection) = admission {
            self.deny(id, client, connection, 503);
        }
        if let Some((connection, _)) = farewell {
            self.close_connection(id, client, connection);
        }
    }

    /// Deadlines of sessions.
    pub fn sessions_tick(&mut self, id: u64) {
        let (now, instant) = (self.now, self.instant());
        let sends = self.may_send(id);
        let keys: Vec<u64> = self.process(id).sessions.keys().copied().collect();
        for key in keys {
            let Some(task) = self.process(id).sessions.get_mut(&key) else {
                continue;
            };
            let client = task.client;
            if let Some((connection, at)) = task.farewell
                && at <= now
            {
                task.farewell = None;
                self.close_connection(id, client, connection);
            }
            let Some(task) = self.process(id).sessions.get_mut(&key) else {
                continue;
            };
            if sends && !task.held.is_empty() {
                for payload in std::mem::take(&mut task.held) {
                    let channel = media::Channel::Reliable;
                    self.order(
                        id,
                        key,
                        client,
                        media::Command::SendData { channel, payload },
                    );
                }
            }
            let Some(task) = self.process(id).sessions.get_mut(&key) else {
                continue;
            };
            if task
                .session
                .deadline()
                .is_some_and(|deadline| deadline <= instant)
            {
                task.session.handle(instant, Input::Timeout);
                self.follow_up(id, key);
            }
        }
    }

    /// What a session keeps goes to its keepers; as `session/unmissed` does it, without the seal.
    fn keep_wishes(&mut self, id: u64, key: u64) {
        let state = Arc::clone(self.node(id).replica.state());
        let process = self.process(id);
        let Some(task) = process.sessions.get_mut(&key) else {
            return;
        };
        let (Some(keepsake), Some(epoch)) = (task.session.keepsake(), task.session.epoch()) else {
            return;
        };
        let checkpoint = mesh::Checkpoint {
            room: task.room.0.clone(),
            sid: task.sid.0.clone(),
            epoch: epoch.0,
            keepsake: postcard::to_allocvec(&keepsake).unwrap_or_default().into(),
            ..mesh::Checkpoint::default()
        };
        let checkpoint = process.checkpoints.keep(checkpoint);
        let room = state.rooms.get(&task.room);
        let participant = room.and_then(|room| room.participants.get(task.session.identity()));
        let keepers: Vec<NodeId> = participant
            .into_iter()
            .flat_map(|participant| state.keepers(participant))
            .collect();
        for keeper in keepers {
            self.send_frame(id, keeper.0, None, Body::Checkpoint(checkpoint.clone()));
        }
    }
}

fn room_of(connect: &Connect) -> RoomName {
    let video = connect.claims.video.as_ref();
    RoomName(video.map(|video| video.room.clone()).unwrap_or_default())
}

fn find_in(state: &flotilla_model::State, connect: &Connect) -> Option<Arc<Participant>> {
    let name = room_of(connect);
    let room = state.rooms.get(&name)?;
    let participant = room
        .participants
        .get(&Identity(connect.claims.identity().to_owned()))?;
    let reconnect = connect.parameters.reconnect.as_ref()?;
    may_adopt(&connect.claims, reconnect, name.as_str(), participant).then(|| participant.clone())
}
