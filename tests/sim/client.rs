//! A client as the SDKs behave (`docs`: LiveKit's JS and native cores): it joins, publishes, sends numbered
//! messages, resumes through whatever node the balancer leads it to, keeps what it sent, and joins anew
//! only when it is told to or has given up.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_model::id::{ParticipantSid, TrackSid};
use flotilla_signal::connect::{Connect, JoinParameters, Reconnect};
use flotilla_signal::proto;
use flotilla_signal::proto::leave_request::Action;
use flotilla_signal::proto::signal_request::Message as Asked;
use flotilla_signal::proto::signal_response::Message as Said;
use flotilla_signal::token::{Claims, VideoGrant};
use prost::Message as _;

use crate::message::{Association, Message};
use crate::net::End;
use crate::rng::Rng;
use crate::time::{Time, ms, secs};
use crate::witness::Fact;
use crate::world::{What, World};

/// Lane of a signal connection; its number is added.
const SIGNAL: u64 = 1 << 30;
/// How often a client does something.
const BEAT: u64 = ms(400);
/// How long an attempt to connect or to resume may take.
const ATTEMPT_MAX: u64 = secs(5);
/// Attempts to resume before it joins anew.
const ATTEMPTS: u32 = 10;
/// Media that cannot be reached for so many beats has failed.
const MISSES: u32 = 6;
/// Signal silence after which the connection is given up.
const SILENCE_MAX: u64 = secs(15);

/// After the healing people begin something new for so long, and talk for so long.
const BEGINS_MAX: u64 = secs(32);
const TALKS_MAX: u64 = secs(39);

/// A client's timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// It wants in.
    Join,
    /// Something may happen.
    Beat,
    /// The next attempt, if nothing else has happened since (number of the turn).
    Again(u64),
    /// An attempt has taken too long (its connection).
    Late(u64),
}

/// Where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Not there and not trying.
    Out,
    /// A connection is being opened: its number, its node, whether it is to resume.
    Opening(u64, u64, bool),
    /// In the room, on this connection with this node.
    In(u64, u64),
    /// Its connection is gone; it will try again.
    Broken,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub number: usize,
    /// Its identity.
    pub identity: String,
    /// Its room.
    pub room: String,
    /// Where it stands.
    pub phase: Phase,
    /// Its session.
    pub sid: Option<ParticipantSid>,
    /// Its media connection.
    pub association: Option<Association>,
    /// When its token was issued, seconds after the beginning.
    pub issued_at: u64,
    /// It wants to be in the room.
    pub wants_in: bool,
    /// Since when something is wrong with its connection; `None`: all is well.
    pub unwell_since: Option<Time>,
    /// Since when all is well.
    pub well_since: Time,
    /// Since when it was not, before that.
    pub unwell_from: Time,
    /// It gave its session up, or was told to.
    pub gave_up: bool,
    /// Its tracks.
    pub tracks: BTreeMap<TrackSid, u64>,
    /// What it sent, by number.
    pub sent: Vec<(u32, Bytes)>,
    /// Last numbers received, by sender.
    pub received: BTreeMap<ParticipantSid, u32>,
    /// Whom it sees.
    pub others: BTreeMap<ParticipantSid, String>,
    /// When it last got a packet of a track.
    pub heard: BTreeMap<TrackSid, Time>,
    /// Builds on the Rust core.
    native: bool,
    turn: u64,
    attempts: u32,
    misses: u32,
    signal_heard: Time,
    asked_tracks: u32,
    next_sequence: u32,
    resend_above: Option<u32>,
    rng: Rng,
}

impl Client {
    /// One that has not come yet.
    #[must_use]
    pub fn new(number: usize, rng: &mut Rng) -> Self {
        let rooms = 1 + number / 6;
        Self {
            number,
            identity: format!("c{number}"),
            room: format!("r{}", rng.below(rooms as u64)),
            phase: Phase::Out,
            sid: None,
            association: None,
            issued_at: 0,
            wants_in: true,
            unwell_since: Some(Time(0)),
            well_since: Time(0),
            unwell_from: Time(0),
            gave_up: false,
            tracks: BTreeMap::new(),
            sent: Vec::new(),
            received: BTreeMap::new(),
            others: BTreeMap::new(),
            heard: BTreeMap::new(),
            native: rng.per_mille(400),
            turn: 0,
            attempts: 0,
            misses: 0,
            signal_heard: Time(0),
            asked_tracks: 0,
            next_sequence: 1,
            resend_above: None,
            rng: rng.fork(number as u64 + 100),
        }
    }

    fn claims(&self) -> Claims {
        let seconds = 1_700_000_000 + self.issued_at;
        Claims {
            sub: self.identity.clone(),
            iat: Some(seconds),
            nbf: Some(seconds),
            exp: Some(seconds + 36_000),
            video: Some(VideoGrant {
                room_join: true,
                room: self.room.clone(),
                can_update_own_metadata: Some(true),
                ..VideoGrant::default()
            }),
            ..Claims::default()
        }
    }

    fn connect(&self, resume: bool) -> Connect {
        let sdk = if self.native {
            proto::client_info::Sdk::Rust
        } else {
            proto::client_info::Sdk::Js
        };
        let reconnect = resume.then(|| Reconnect {
            sid: self.sid.clone(),
            reason: 0,
        });
        Connect {
            claims: self.claims(),
            parameters: JoinParameters {
                client: proto::ClientInfo {
                    sdk: sdk as i32,
                    protocol: 16,
                    ..proto::ClientInfo::default()
                },
                single_peer_connection: true,
                auto_subscribe: true,
                reconnect,
                ..JoinParameters::default()
            },
        }
    }

    /// It is in the room, by its own view.
    #[must_use]
    pub const fn is_in(&self) -> bool {
        matches!(self.phase, Phase::In(..))
    }

    /// A packet of a track reaches it.
    pub fn hears(&mut self, now: Time, association: Association, track: &TrackSid) {
        if self.association == Some(association) {
            self.heard.insert(track.clone(), now);
        }
    }

    /// For how long it was unwell last, if it still is or was a moment ago.
    fn away(&self, now: Time) -> u64 {
        const MOMENT: u64 = secs(5);
        match self.unwell_since {
            Some(since) => now - since,
            None if now - self.well_since < MOMENT => self.well_since - self.unwell_from,
            None => 0,
        }
    }

    fn forget_session(&mut self) {
        self.sid = None;
        self.association = None;
        self.tracks.clear();
        self.sent.clear();
        self.received.clear();
        self.others.clear();
        self.heard.clear();
        self.next_sequence = 1;
        self.asked_tracks = 0;
        self.resend_above = None;
    }

    /// What it says of its session when it resumes.
    fn sync_state(&self) -> proto::SyncState {
        proto::SyncState {
            publish_tracks: self
                .tracks
                .keys()
                .map(|sid| proto::TrackPublishedResponse {
                    cid: format!("cid-{sid}"),
                    track: Some(proto::TrackInfo {
                        sid: sid.0.clone(),
                        ..proto::TrackInfo::default()
                    }),
                })
                .collect(),
            datachannel_receive_states: self
                .received
                .iter()
                .map(|(sid, last)| proto::DataChannelReceiveState {
                    publisher_sid: sid.0.clone(),
                    last_seq: *last,
                })
                .collect(),
            ..proto::SyncState::default()
        }
    }
}

impl World {
    /// A client's timer.
    pub fn client_timer(&mut self, number: usize, timer: Timer) {
        match timer {
            Timer::Join => {
                let now = self.now;
                let client = &mut self.clients[number];
                if client.phase == Phase::Out && client.wants_in {
                    client.forget_session();
                    client.issued_at = client.issued_at.max(now.0 / 1_000_000);
                    client.gave_up = false;
                    self.open(number, false);
                }
            }
            Timer::Again(turn) => {
                let client = &self.clients[number];
                if client.turn == turn && client.phase == Phase::Broken {
                    let resume = client.sid.is_some() && !client.gave_up;
                    self.open(number, resume);
                }
            }
            Timer::Late(connection) => {
                if matches!(self.clients[number].phase, Phase::Opening(own, ..) if own == connection)
                {
                    self.attempt_failed(number);
                }
            }
            Timer::Beat => {
                self.after(BEAT, What::Client(number, Timer::Beat));
                self.beat(number);
            }
        }
    }

    /// The node that a balancer leads to: mostly one that is ready, as of a moment ago.
    fn balance(&mut self) -> Option<u64> {
        let up = |id: &u64| self.nodes[id].process.is_some() && !self.nodes[id].removed;
        let all: Vec<u64> = self.nodes.keys().copied().filter(up).collect();
        let ready: Vec<u64> = all
            .iter()
            .copied()
            .filter(|id| self.nodes[id].runs() && self.is_serving(*id) && self.may_send(*id))
            .collect();
        let from = if ready.is_empty() { &all } else { &ready };
        self.rng.pick(from).copied()
    }

    fn open(&mut self, number: usize, resume: bool) {
        self.clients[number].turn += 1;
        let Some(node) = self.balance() else {
            self.clients[number].phase = Phase::Broken;
            self.again(number, ms(500));
            return;
        };
        self.connections += 1;
        let connection = self.connections;
        let client = &mut self.clients[number];
        client.phase = Phase::Opening(connection, node, resume);
        client.unwell_since.get_or_insert(self.now);
        let connect = Box::new(client.connect(resume));
        let message = Message::Open {
            connection,
            connect,
        };
        self.stream(
            End::Client(number),
            End::Node(node),
            SIGNAL + connection,
            message,
        );
        self.after(ATTEMPT_MAX, What::Client(number, Timer::Late(connection)));
    }

    fn again(&mut self, number: usize, after: u64) {
        let turn = self.clients[number].turn;
        self.after(after, What::Client(number, Timer::Again(turn)));
    }

    fn attempt_failed(&mut self, number: usize) {
        if let Phase::Opening(connection, node, _) = self.clients[number].phase {
            let message = Message::Close { connection };
            self.stream(
                End::Client(number),
                End::Node(node),
                SIGNAL + connection,
                message,
            );
        }
        let client = &mut self.clients[number];
        client.phase = Phase::Broken;
        client.turn += 1;
        client.attempts += 1;
        if client.attempts >= ATTEMPTS && client.sid.is_some() {
            client.gave_up = true;
            client.attempts = 0;
        }
        let client = &mut self.clients[number];
        if client.gave_up {
            client.forget_session();
        }
        let most = [300, 1200, 2700, 4800, 7000][client.attempts.min(4) as usize];
        let wait = ms(client.rng.range(most / 2, most));
        self.again(number, wait);
    }

    /// The signal connection or the media is gone: it resumes.
    fn broken(&mut self, number: usize, within: u64) {
        let client = &mut self.clients[number];
        if let Phase::In(connection, node) = client.phase {
            let message = Message::Close { connection };
            self.stream(
                End::Client(number),
                End::Node(node),
                SIGNAL + connection,
                message,
            );
        }
        let client = &mut self.clients[number];
        client.phase = Phase::Broken;
        client.turn += 1;
        client.attempts = 0;
        client.unwell_since.get_or_insert(self.now);
        let wait = client.rng.range(ms(5), within);
        self.again(number, wait);
    }

    /// A message for a client.
    pub fn client_receives(&mut self, number: usize, from: End, message: Message) {
        let End::Node(node) = from else {
            return;
        };
        let now = self.now;
        let client = &mut self.clients[number];
        let current = match client.phase {
            Phase::Opening(connection, ..) | Phase::In(connection, _) => Some(connection),
            Phase::Out | Phase::Broken => None,
        };
        match message {
            Message::Opened { connection } if current != Some(connection) => {
                let message = Message::Close { connection };
                self.stream(End::Client(number), from, SIGNAL + connection, message);
            }
            Message::Denied { connection, status } if current == Some(connection) => {
                self.net
                    .close((End::Client(number), from, SIGNAL + connection));
                match status {
                    // The balancer tries another one.
                    0 => {
                        client.phase = Phase::Broken;
                        client.turn += 1;
                        let wait = client.rng.range(ms(20), ms(200));
                        self.again(number, wait);
                    }
                    401 | 403 | 404 => self.ended(number),
                    _ => self.attempt_failed(number),
                }
            }
            Message::Close { connection } => {
                self.net
                    .close((End::Client(number), from, SIGNAL + connection));
                self.net
                    .close((from, End::Client(number), SIGNAL + connection));
                if current == Some(connection) {
                    if client.is_in() {
                        let within = if client.native { ms(30) } else { ms(500) };
                        self.broken(number, within);
                    } else {
                        self.attempt_failed(number);
                    }
                }
            }
            Message::Response {
                connection,
                response,
            } if current == Some(connection) => {
                client.signal_heard = now;
                if let Some(message) = response.message {
                    self.client_told(number, node, connection, message);
                }
            }
            Message::Check { association } => {
                if matches!(client.phase, Phase::In(_, own) if own == association.node) {
                    let is_new = client.association != Some(association);
                    client.association = Some(association);
                    client.misses = 0;
                    self.datagram(End::Client(number), from, Message::Checked { association });
                    if is_new {
                        self.send_again(number);
                    }
                }
            }
            Message::Data {
                association,
                payload,
            } if client.association == Some(association) => self.client_data(number, &payload),
            _ => {}
        }
    }

    fn client_told(&mut self, number: usize, node: u64, connection: u64, message: Said) {
        match message {
            Said::Join(join) => {
                let client = &mut self.clients[number];
                let Some(me) = join.participant else {
                    return;
                };
                let resumed =
                    client.sid.is_some() && matches!(client.phase, Phase::Opening(_, _, true));
                let before = client.sid.clone();
                client.forget_session();
                let sid = ParticipantSid(me.sid);
                client.sid = Some(sid.clone());
                client.phase = Phase::In(connection, node);
                client.attempts = 0;
                client.gave_up = false;
                for other in join.other_participants {
                    client
                        .others
                        .insert(ParticipantSid(other.sid), other.identity);
                }
                self.fact(&Fact::Joined {
                    client: number,
                    sid: &sid,
                    instead_of: before.as_ref().filter(|_| resumed),
                });
                self.witness.coverage.joins += 1;
            }
            Said::Reconnect(reconnect) => {
                let client = &mut self.clients[number];
                client.phase = Phase::In(connection, node);
                client.attempts = 0;
                client.misses = 0;
                client.resend_above = Some(reconnect.last_message_seq);
                let state = client.sync_state();
                let sid = client.sid.clone();
                let association = client.association;
                let goes_on = association.is_some_and(|association| {
                    association.node == node && self.has_peer(association)
                });
                if !goes_on {
                    self.clients[number].association = None;
                }
                self.ask(number, Asked::SyncState(state));
                if self.clients[number].association.is_some() {
                    self.send_again(number);
                }
                if let Some(sid) = sid {
                    self.fact(&Fact::Resumed {
                        client: number,
                        node,
                        sid: &sid,
                    });
                }
                self.witness.coverage.resumes += 1;
            }
            Said::Leave(leave) => self.client_dismissed(number, &leave),
            Said::Update(update) => {
                for info in update.participants {
                    self.client_sees(number, info);
                }
            }
            Said::TrackPublished(published) => {
                if let Some(track) = published.track {
                    let client = &mut self.clients[number];
                    client.tracks.entry(TrackSid(track.sid)).or_insert(0);
                }
            }
            _ => {}
        }
    }

    fn client_sees(&mut self, number: usize, info: proto::ParticipantInfo) {
        let sid = ParticipantSid(info.sid.clone());
        if self.clients[number].sid.as_ref() == Some(&sid) {
            return;
        }
        if info.state() == proto::participant_info::State::Disconnected {
            if self.clients[number].others.remove(&sid).is_some() {
                self.fact(&Fact::SeenLeaving {
                    client: number,
                    sid: &sid,
                });
            }
        } else {
            self.clients[number].others.insert(sid, info.identity);
        }
    }

    fn client_dismissed(&mut self, number: usize, leave: &proto::LeaveRequest) {
        let native = self.clients[number].native;
        match leave.action() {
            Action::Resume => self.broken(number, if native { ms(30) } else { ms(500) }),
            Action::Reconnect => {
                let sid = self.clients[number].sid.clone();
                let unwell = self.clients[number].unwell_since;
                if let Some(sid) = sid {
                    self.fact(&Fact::ToldToRejoin {
                        client: number,
                        sid: &sid,
                        unwell_since: unwell,
                    });
                }
                self.clients[number].gave_up = true;
                self.broken(number, ms(400));
                self.clients[number].forget_session();
            }
            Action::Disconnect => self.ended(number),
        }
    }

    /// It is out and stays out for a while.
    fn ended(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.phase = Phase::Out;
        client.turn += 1;
        client.unwell_since.get_or_insert(self.now);
        client.gave_up = true;
        client.forget_session();
        let wait = client.rng.range(secs(1), secs(4));
        let issued = (self.now.0 + wait) / 1_000_000 + 1;
        self.clients[number].issued_at = issued;
        self.after(wait, What::Client(number, Timer::Join));
    }

    fn ask(&mut self, number: usize, message: Asked) {
        let Phase::In(connection, node) = self.clients[number].phase else {
            return;
        };
        let request = Box::new(proto::SignalRequest {
            message: Some(message),
        });
        let message = Message::Request {
            connection,
            request,
        };
        self.stream(
            End::Client(number),
            End::Node(node),
            SIGNAL + connection,
            message,
        );
    }

    fn client_data(&mut self, number: usize, payload: &Bytes) {
        let Ok(packet) = proto::DataPacket::decode(payload.clone()) else {
            return;
        };
        let sender = ParticipantSid(packet.participant_sid);
        let client = &mut self.clients[number];
        let last = client.received.get(&sender).copied();
        // SDKs drop what they have.
        if last.is_some_and(|last| packet.sequence <= last) {
            self.witness.coverage.repeats_dropped += 1;
            return;
        }
        client.received.insert(sender.clone(), packet.sequence);
        let own = client.sid.clone();
        let away = client.away(self.now);
        self.mark(u64::from(packet.sequence) << 8 | number as u64);
        if let Some(own) = own {
            self.fact(&Fact::Received {
                client: number,
                own: &own,
                sender: &sender,
                sequence: packet.sequence,
                last,
                away,
            });
        }
    }

    fn send_data(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let sequence = client.next_sequence;
        client.next_sequence += 1;
        let packet = proto::DataPacket {
            sequence,
            value: Some(proto::data_packet::Value::User(proto::UserPacket {
                payload: sequence.to_le_bytes().to_vec(),
                ..proto::UserPacket::default()
            })),
            ..proto::DataPacket::default()
        };
        let payload = Bytes::from(packet.encode_to_vec());
        client.sent.push((sequence, payload.clone()));
        let (sid, association) = (client.sid.clone(), client.association);
        let ready = client.resend_above.is_none();
        if let Some(sid) = sid {
            self.fact(&Fact::SentData {
                client: number,
                sid: &sid,
                sequence,
            });
        }
        if let Some(association) = association.filter(|_| ready) {
            self.transmit(number, association, payload);
        }
    }

    fn transmit(&mut self, number: usize, association: Association, payload: Bytes) {
        let message = Message::Data {
            association,
            payload,
        };
        let lane = association.lane();
        self.stream(
            End::Client(number),
            End::Node(association.node),
            lane,
            message,
        );
    }

    /// What the node does not have yet, after a resume.
    fn send_again(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let (Some(above), Some(association)) = (client.resend_above.take(), client.association)
        else {
            return;
        };
        let again: Vec<Bytes> = client
            .sent
            .iter()
            .filter(|(sequence, _)| *sequence > above)
            .map(|(_, payload)| payload.clone())
            .collect();
        for payload in again {
            self.transmit(number, association, payload);
        }
    }

    /// Whether the node still has its side of a media connection.
    fn has_peer(&self, association: Association) -> bool {
        let node = self.nodes.get(&association.node);
        let process = node.and_then(|node| node.process.as_ref());
        process.is_some_and(|process| {
            process.boot == association.boot && process.engine.peers.contains_key(&association.key)
        })
    }

    /// Whether a client's media can reach its node and back at present, as consent checks find out.
    fn has_media(&self, number: usize) -> bool {
        let Some(association) = self.clients[number].association else {
            return false;
        };
        let Some(node) = self.nodes.get(&association.node) else {
            return false;
        };
        let (own, other) = (End::Client(number), End::Node(association.node));
        self.has_peer(association)
            && node.runs()
            && self.may_send(association.node)
            && !self.net.is_cut(own, other)
            && !self.net.is_cut(other, own)
    }

    fn beat(&mut self, number: usize) {
        let now = self.now;
        if number == 0 {
            self.note_quorum();
            self.administrate();
        }
        let reaches = self.has_media(number);
        let client = &mut self.clients[number];
        let well = reaches && client.is_in();
        if well {
            if let Some(since) = client.unwell_since.take() {
                client.well_since = now;
                client.unwell_from = since;
            }
        } else {
            client.unwell_since.get_or_insert(now);
        }
        if !client.is_in() {
            return;
        }
        if reaches {
            client.misses = 0;
        } else {
            client.misses += 1;
        }
        if client.misses >= MISSES * 2 || (client.misses >= MISSES && client.association.is_some())
        {
            client.misses = 0;
            self.broken(number, ms(100));
            return;
        }
        if now - client.signal_heard > SILENCE_MAX {
            self.broken(number, ms(100));
            return;
        }
        self.work(number);
    }

    /// What people do.
    fn work(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let roll = client.rng.below(1000);
        let association = client.association;
        let packets: Vec<(TrackSid, u64)> = client
            .tracks
            .iter_mut()
            .map(|(sid, count)| {
                *count += 1;
                (sid.clone(), *count)
            })
            .collect();
        if let Some(association) = association {
            let (own, node) = (End::Client(number), End::Node(association.node));
            for (track, count) in packets {
                let message = Message::Packet {
                    association,
                    track,
                    number: count,
                };
                self.datagram(own, node, message);
            }
        }
        let since_heal = self.now.0.saturating_sub(ms(self.plan.heal_ms()));
        let roll = match since_heal {
            // Towards the end everything has to arrive that was begun.
            BEGINS_MAX.. if roll >= 400 => return,
            TALKS_MAX.. => return,
            _ => roll,
        };
        let client = &mut self.clients[number];
        match roll {
            // Some say much at once.
            0..30 if association.is_some() => {
                for _ in 0..5 {
                    self.send_data(number);
                }
            }
            0..400 if association.is_some() => self.send_data(number),
            400..500 => {
                let ping = proto::Ping::default();
                self.ask(number, Asked::PingReq(ping));
            }
            500..560 if client.asked_tracks < 2 => {
                client.asked_tracks += 1;
                let cid = format!("cid-{}", client.asked_tracks);
                let request = proto::AddTrackRequest {
                    cid,
                    source: proto::TrackSource::Microphone as i32,
                    ..proto::AddTrackRequest::default()
                };
                self.ask(number, Asked::AddTrack(request));
            }
            560..568 => {
                if let Some(track) = client.tracks.keys().next() {
                    let request = proto::MuteTrackRequest {
                        sid: track.0.clone(),
                        muted: roll % 2 == 0,
                    };
                    self.ask(number, Asked::Mute(request));
                }
            }
            568..576 => {
                let request = proto::UpdateParticipantMetadata {
                    metadata: format!("m{}", self.now.0),
                    request_id: 1,
                    ..proto::UpdateParticipantMetadata::default()
                };
                self.ask(number, Asked::UpdateMetadata(request));
            }
            576..584 => {
                if let Some(track) = client.heard.keys().next() {
                    let request = proto::UpdateSubscription {
                        track_sids: vec![track.0.clone()],
                        subscribe: roll % 2 == 0,
                        ..proto::UpdateSubscription::default()
                    };
                    self.ask(number, Asked::Subscription(request));
                }
            }
            584..587 if !self.healed => self.leave(number),
            _ => {}
        }
    }

    /// It leaves of its own wish, and comes back later.
    fn leave(&mut self, number: usize) {
        let request = proto::LeaveRequest {
            reason: proto::DisconnectReason::ClientInitiated as i32,
            action: Action::Disconnect as i32,
            ..proto::LeaveRequest::default()
        };
        self.ask(number, Asked::Leave(request));
        if let Some(sid) = self.clients[number].sid.clone() {
            self.fact(&Fact::Leaves {
                client: number,
                sid: &sid,
            });
        }
        self.ended(number);
    }
}
