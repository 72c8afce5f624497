//! A room of sessions on a virtual clock: requests, changes, resumes, takeovers and ticks in any order.
//!
//! The log is a real state. What must hold: nothing panics, one proposal of a session is under way at a
//! time, every answer can be encoded, a session that has closed says nothing more, and time goes on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{Node, NodeState};
use flotilla_model::command::{Command, Entry, ParticipantUpdate, Rehome};
use flotilla_model::event::Event;
use flotilla_model::id::{
    BootId, Epoch, Identity, NodeId, RequestId, RoomName, TrackSid, UnixMillis,
};
use flotilla_model::participant::LeaveReason;
use flotilla_model::track::{Layer, Quality, TrackCodec};
use flotilla_signal::config::SessionConfig;
use flotilla_signal::connect::{Connect, JoinParameters, Reconnect};
use flotilla_signal::data::DataOut;
use flotilla_signal::media;
use flotilla_signal::proto;
use flotilla_signal::proto::signal_request::Message as Asked;
use flotilla_signal::session::{
    Adopting, Claimed, Close, CommitError, Input, Joining, Output, Resuming, Session,
};
use flotilla_signal::token::{Claims, VideoGrant};
use flotilla_signal::wire;

use super::draw::Draw;
use super::requests;

const ROOM: &str = "room";
const IDENTITIES: [&str; 4] = ["a", "b", "c", "d"];
const SEATS_MAX: usize = 6;
/// Outputs that one input may lead to, and timeouts that may be due at one moment.
const OUTPUTS_MAX: usize = 20_000;

struct Seat {
    session: Session,
    proposed: Option<RequestId>,
    over: bool,
}

struct World {
    now: Instant,
    wall: u64,
    state: State,
    config: Arc<SessionConfig>,
    seats: Vec<Seat>,
    proposals: VecDeque<(Option<usize>, RequestId, Command)>,
    /// Nothing is committed.
    minority: bool,
    outcome_first: bool,
    requests: u128,
    outputs: usize,
    joined: u8,
    codec: wire::Codec,
}

/// The target.
pub(crate) fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut world = World::new();
    while !draw.is_empty() {
        world.step(&mut draw);
        world.settle();
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Instant::now(),
            wall: 1_700_000_000_000,
            state: State::default(),
            config: Arc::new(SessionConfig::new(NodeId(1), super::keys())),
            seats: Vec::new(),
            proposals: VecDeque::new(),
            minority: false,
            outcome_first: false,
            requests: 0,
            outputs: 0,
            joined: 1,
            codec: wire::Codec::new(1 << 20),
        };
        for id in [1, 2] {
            world.command(Command::PutNode(Node {
                id: NodeId(id),
                region: "here".into(),
                boot: BootId(1),
                cluster_address: "c:1".into(),
                admin_address: "a:1".into(),
                client_url: "http://n:1".into(),
                relay_addresses: Vec::new(),
                capacity: 0,
                state: NodeState::Serving,
                version: "0+log3".into(),
            }));
        }
        world.settle();
        world
    }

    fn command(&mut self, command: Command) {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.proposals.push_back((None, request, command));
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        match draw.byte() % 16 {
            0 if self.has_place() => self.join(draw),
            0..=4 => self.request(draw),
            5 | 6 => self.engine(draw),
            7 => self.time(Duration::from_millis(u64::from(draw.u16()))),
            8 => self.connection(draw),
            9 => self.adopt(draw),
            10 | 11 => self.outside(draw),
            12 => self.minority = !self.minority && draw.flag(),
            13 => self.outcome_first = draw.flag(),
            14 => self.data(draw),
            _ => self.rare(draw),
        }
    }

    fn join(&mut self, draw: &mut Draw<'_>) {
        let (claims, parameters) = (claims(draw), parameters(draw));
        let session = Session::join(
            self.now,
            Joining {
                config: Arc::clone(&self.config),
                connect: Connect { claims, parameters },
                seed: [self.joined; 32],
                wall: UnixMillis(self.wall),
            },
        );
        self.sit(session);
    }

    /// Whether there is a place, perhaps one that somebody has left.
    fn has_place(&self) -> bool {
        self.seats.len() < SEATS_MAX || self.seats.iter().any(|seat| seat.over)
    }

    fn sit(&mut self, session: Session) {
        self.seats.retain(|seat| !seat.over);
        self.joined = self.joined.wrapping_add(1);
        self.seats.push(Seat {
            session,
            proposed: None,
            over: false,
        });
    }

    fn seat(&self, draw: &mut Draw<'_>) -> Option<usize> {
        (!self.seats.is_empty()).then(|| draw.number(self.seats.len()))
    }

    fn input(&mut self, seat: usize, input: Input<'_>) {
        let place = &mut self.seats[seat];
        place.session.handle(self.now, input);
        if place.over {
            assert!(place.session.poll().is_none(), "it has closed");
        }
    }

    fn request(&mut self, draw: &mut Draw<'_>) {
        let Some(seat) = self.seat(draw) else { return };
        let tracks = self.tracks();
        let message = requests::any(draw, &tracks, &IDENTITIES);
        let request = proto::SignalRequest { message };
        self.input(seat, Input::Request(Box::new(request)));
    }

    /// Tracks that there are, and one that there is not.
    fn tracks(&self) -> Vec<String> {
        let room = self.state.rooms.get(&RoomName::from(ROOM));
        let mut tracks: Vec<String> = room
            .map(|room| {
                room.publishers
                    .iter()
                    .map(|(sid, _)| sid.to_string())
                    .collect()
            })
            .unwrap_or_default();
        tracks.push("TR_none".to_owned());
        tracks
    }

    fn engine(&mut self, draw: &mut Draw<'_>) {
        let Some(seat) = self.seat(draw) else { return };
        let tracks = self.tracks();
        let track = TrackSid(draw.pick(&tracks).clone());
        let target = *draw.pick(&[media::Target::Publisher, media::Target::Subscriber]);
        let channel = *draw.pick(&[
            media::Channel::Reliable,
            media::Channel::Lossy,
            media::Channel::DataTrack,
        ]);
        let quality = *draw.pick(&[Quality::Low, Quality::Medium, Quality::High, Quality::Off]);
        let mids = [("0".to_owned(), track.clone())].into();
        let event = match draw.byte() % 13 {
            0 => media::Event::Answer {
                target,
                id: draw.u32(),
                sdp: draw.text(),
                mid_to_track: mids,
            },
            1 => media::Event::Offer {
                target,
                id: draw.u32(),
                sdp: draw.text(),
                mid_to_track: mids,
            },
            2 => media::Event::SectionsNeeded {
                audio: u32::from(draw.byte()),
                video: u32::from(draw.byte()),
            },
            3 => media::Event::DescriptionRefused {
                target,
                reason: draw.text(),
            },
            4 => media::Event::Connected { target },
            5 => media::Event::Failed {
                target,
                reason: "fuzz",
            },
            6 => media::Event::TrackDescribed {
                track,
                codecs: vec![codec(draw)],
            },
            7 => media::Event::TrackStarted { track },
            8 => media::Event::TrackEnded { track },
            9 => media::Event::SubscriptionStarted { track },
            10 => media::Event::ChannelOpen { target, channel },
            11 => media::Event::Data {
                channel,
                payload: draw.bytes().to_vec().into(),
            },
            _ => media::Event::QualityWanted { track, quality },
        };
        self.input(seat, Input::Media(event));
    }

    fn connection(&mut self, draw: &mut Draw<'_>) {
        let Some(seat) = self.seat(draw) else { return };
        if draw.flag() {
            self.input(seat, Input::SignalClosed);
            return;
        }
        let mut parameters = parameters(draw);
        let session = &self.seats[seat].session;
        let reconnect = Reconnect {
            sid: draw.flag().then(|| session.sid().clone()),
            reason: 0,
        };
        let claims = claims_of(session.identity().as_str());
        if draw.flag() {
            parameters.sync_state = Some(requests::sync_state(draw, &self.tracks()));
        }
        if session.is_resumable_by(&claims, &reconnect) {
            parameters.reconnect = Some(reconnect);
            let resuming = Resuming { claims, parameters };
            self.input(seat, Input::Resume(Box::new(resuming)));
        }
    }

    fn adopt(&mut self, draw: &mut Draw<'_>) {
        let room = self.state.rooms.get(&RoomName::from(ROOM));
        let identity = Identity::from(*draw.pick(&IDENTITIES));
        let participant = room
            .and_then(|room| room.participants.get(&identity))
            .cloned();
        let (Some(participant), true) = (participant, self.has_place()) else {
            return;
        };
        let mut parameters = parameters(draw);
        parameters.reconnect = Some(Reconnect {
            sid: Some(participant.sid.clone()),
            reason: 0,
        });
        if draw.flag() {
            parameters.sync_state = Some(requests::sync_state(draw, &self.tracks()));
        }
        let mut config = SessionConfig::clone(&self.config);
        config.node = NodeId(2);
        let session = Session::adopt(
            self.now,
            Adopting {
                config: Arc::new(config),
                resuming: Resuming {
                    claims: claims_of(identity.as_str()),
                    parameters,
                },
                participant,
                seed: [self.joined; 32],
                wall: UnixMillis(self.wall),
            },
        );
        self.sit(session);
    }

    /// A change by somebody who is not a session.
    fn outside(&mut self, draw: &mut Draw<'_>) {
        let room = RoomName::from(ROOM);
        let identity = Identity::from(*draw.pick(&IDENTITIES));
        let present = self.state.rooms.get(&room);
        let present = present.and_then(|room| room.participants.get(&identity));
        let command = match (draw.byte() % 8, present) {
            (0, _) => Command::DeleteRoom { room },
            (1, _) => Command::SetRoomMetadata {
                room,
                metadata: draw.text(),
            },
            (2, _) => Command::Leave {
                room,
                identity,
                sid: None,
                reason: LeaveReason::ParticipantRemoved,
                revoke_before: draw.flag().then_some(UnixMillis(self.wall)),
            },
            (3, Some(present)) => {
                let mut permission = present.permission.clone();
                permission.can_publish = draw.flag();
                permission.can_subscribe = draw.flag();
                permission.hidden = draw.flag();
                permission.can_publish_data = draw.flag();
                Command::UpdateParticipant {
                    room,
                    identity,
                    update: ParticipantUpdate {
                        permission: Some(permission),
                        name: draw.flag().then(|| draw.text()),
                        ..ParticipantUpdate::default()
                    },
                }
            }
            (4, _) => Command::SetTrackMuted {
                room,
                identity,
                track: TrackSid(draw.pick(&self.tracks()).clone()),
                muted: draw.flag(),
            },
            (5, _) => Command::UpdateSubscriptions {
                room,
                identity,
                tracks: [(TrackSid(draw.pick(&self.tracks()).clone()), draw.flag())].into(),
            },
            (6, Some(present)) => Command::Rehome {
                moves: vec![Rehome {
                    room,
                    identity,
                    sid: present.sid.clone(),
                    epoch: Epoch(present.epoch.0.wrapping_sub(u64::from(draw.flag()))),
                    home: NodeId(1 + u64::from(draw.flag())),
                }],
            },
            _ => Command::Expire,
        };
        self.command(command);
    }

    fn data(&mut self, draw: &mut Draw<'_>) {
        let Some(seat) = self.seat(draw) else { return };
        let data = DataOut {
            from: "PA_other".into(),
            from_identity: Identity::from(*draw.pick(&IDENTITIES)),
            channel: *draw.pick(&[media::Channel::Reliable, media::Channel::Lossy]),
            destinations: Vec::new(),
            sequence: u32::from(draw.byte()),
            content: u32::from(draw.byte()),
            payload: draw.bytes().to_vec().into(),
        };
        self.input(seat, Input::Data(Arc::new(data)));
    }

    fn rare(&mut self, draw: &mut Draw<'_>) {
        let Some(seat) = self.seat(draw) else { return };
        let state = self.state.clone();
        let room = state.rooms.get(self.seats[seat].session.room());
        match draw.byte() % 8 {
            0 => self.input(seat, Input::Drain),
            1 => self.input(seat, Input::Shutdown),
            2 => self.input(seat, Input::Snapshot { room }),
            3 if draw.byte().is_multiple_of(2) => self.input(seat, Input::LeaseLapsed),
            3 => self.input(seat, Input::LeaseHolds),
            4 => self.input(seat, Input::Media(media::Event::Lost)),
            5 => {
                let claimed = Claimed {
                    keepsake: None,
                    last_sequence: draw.u32(),
                    acknowledged: u32::from(draw.byte()),
                };
                self.input(seat, Input::Claimed(Box::new(claimed)));
            }
            6 => {
                let levels: Vec<(TrackSid, f32)> = self
                    .tracks()
                    .into_iter()
                    .map(|track| (TrackSid(track), f32::from(draw.byte()) / 255.0))
                    .collect();
                self.input(seat, Input::Speakers(&levels));
            }
            _ => {
                let request = RequestId(u128::from(draw.u32()));
                let result = Err(CommitError::Unavailable("fuzz".to_owned()));
                self.input(seat, Input::Committed { request, result });
            }
        }
    }

    /// Time passes; sessions are woken when they asked for it.
    fn time(&mut self, by: Duration) {
        let end = self.now + by;
        loop {
            let due = self.seats.iter().filter_map(|seat| seat.session.deadline());
            let Some(due) = due.filter(|due| *due <= end).min() else {
                break;
            };
            let step = due.saturating_duration_since(self.now);
            self.wall += u64::try_from(step.as_millis()).unwrap_or(0);
            self.now = self.now.max(due);
            for seat in 0..self.seats.len() {
                let deadline = self.seats[seat].session.deadline();
                if deadline.is_some_and(|deadline| deadline <= self.now) {
                    self.outputs += 1;
                    self.input(seat, Input::Timeout);
                }
            }
            self.settle_more();
        }
        self.wall += u64::try_from((end - self.now).as_millis()).unwrap_or(0);
        self.now = end;
        if self
            .state
            .next_deadline()
            .is_some_and(|at| at.0 <= self.wall)
        {
            self.command(Command::Expire);
        }
    }

    fn settle(&mut self) {
        self.outputs = 0;
        self.settle_more();
    }

    /// Carries out outputs until there are none.
    fn settle_more(&mut self) {
        loop {
            let mut idle = true;
            for seat in 0..self.seats.len() {
                while let Some(output) = self.seats[seat].session.poll() {
                    idle = false;
                    self.outputs += 1;
                    assert!(self.outputs < OUTPUTS_MAX, "there is no end to it");
                    self.carry_out(seat, output);
                }
            }
            while let Some((seat, request, command)) = self.proposals.pop_front() {
                idle = false;
                self.commit(seat, request, command);
            }
            if idle {
                return;
            }
        }
    }

    fn carry_out(&mut self, seat: usize, output: Output) {
        let place = &mut self.seats[seat];
        assert!(!place.over, "it has closed and says {output:?}");
        match output {
            Output::Reply(response) => {
                let _ = self.codec.encode(&response);
            }
            Output::Propose { request, command } => {
                let before = place.proposed.replace(request);
                assert_eq!(before, None, "one proposal at a time");
                self.proposals.push_back((Some(seat), request, command));
            }
            Output::Data(data) => {
                for other in 0..self.seats.len() {
                    self.input(other, Input::Data(Arc::clone(&data)));
                }
            }
            Output::Close(Close::Session { .. }) => place.over = true,
            Output::Claim { .. } | Output::Media(_) | Output::Refuse(_) | Output::Close(_) => {}
        }
    }

    fn commit(&mut self, seat: Option<usize>, request: RequestId, command: Command) {
        if let Some(seat) = seat {
            self.seats[seat].proposed = None;
        }
        if self.minority {
            if let Some(seat) = seat {
                let result = Err(CommitError::Unavailable("no leader".to_owned()));
                self.input(seat, Input::Committed { request, result });
            }
            return;
        }
        let applied = self.state.apply(&Entry {
            at: UnixMillis(self.wall),
            request,
            command,
        });
        let result = applied.result.map_err(CommitError::Rejected);
        let outcome = Input::Committed { request, result };
        match seat {
            Some(seat) if self.outcome_first => {
                self.input(seat, outcome);
                self.deliver(&applied.events);
            }
            Some(seat) => {
                self.deliver(&applied.events);
                self.input(seat, outcome);
            }
            None => self.deliver(&applied.events),
        }
    }

    fn deliver(&mut self, events: &[Event]) {
        let state = self.state.clone();
        for event in events {
            let Event::Room { room, change, .. } = event else {
                continue;
            };
            let room = state.rooms.get(room);
            for seat in 0..self.seats.len() {
                self.input(seat, Input::Event { change, room });
            }
        }
    }
}

fn claims_of(identity: &str) -> Claims {
    Claims {
        sub: identity.to_owned(),
        exp: Some(2_000_000_000),
        video: Some(VideoGrant {
            room_join: true,
            room: ROOM.to_owned(),
            can_update_own_metadata: Some(true),
            ..VideoGrant::default()
        }),
        ..Claims::default()
    }
}

fn claims(draw: &mut Draw<'_>) -> Claims {
    let mut claims = claims_of(draw.pick::<&str>(&IDENTITIES));
    let choices = draw.byte();
    if let Some(video) = &mut claims.video {
        video.hidden = choices & 1 == 1;
        video.can_publish = (choices & 2 == 2).then_some(choices & 4 == 4);
        video.can_subscribe = (choices & 8 == 8).then_some(choices & 16 == 16);
    }
    claims
}

fn parameters(draw: &mut Draw<'_>) -> JoinParameters {
    let choices = draw.byte();
    JoinParameters {
        client: proto::ClientInfo {
            protocol: i32::from(choices & 31),
            ..Default::default()
        },
        single_peer_connection: choices & 32 == 32,
        auto_subscribe: choices & 64 == 64,
        adaptive_stream: choices & 128 == 128,
        ..JoinParameters::default()
    }
}

fn codec(draw: &mut Draw<'_>) -> TrackCodec {
    let layer = Layer {
        quality: *draw.pick(&[Quality::Low, Quality::Medium, Quality::High]),
        size: Default::default(),
        bitrate_bps: draw.u32(),
        rid: draw.pick(&["", "q", "h", "f"]).to_string(),
        ssrc: draw.u32(),
        repair_ssrc: 0,
    };
    TrackCodec {
        mime: draw.pick(&["audio/opus", "video/vp8", "", "x"]).to_string(),
        fmtp: String::new(),
        cid: draw.pick(&["mic", "cam"]).to_string(),
        mid: "0".to_owned(),
        layers: vec![layer],
    }
}

/// A request that any client may send, for [`requests::any`] to fall back on.
pub(crate) fn ping() -> Option<Asked> {
    Some(Asked::PingReq(proto::Ping::default()))
}
