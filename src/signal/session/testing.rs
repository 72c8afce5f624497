//! A room full of sessions around a real state, without a node: what the tests of this crate share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{Node, NodeState};
use flotilla_model::command::{Command, Entry};
use flotilla_model::event::Event;
use flotilla_model::id::{
    BootId, Epoch, Identity, NodeId, RequestId, RoomName, TrackSid, UnixMillis,
};
use flotilla_model::room::Room;
use flotilla_model::track::{Layer, Quality, TrackCodec};
use livekit_protocol as proto;
use proto::signal_request::Message as Asked;
use proto::signal_response::Message;

use super::{Adopting, Claimed, Close, CommitError, Input, Joining, Output, Resuming, Session};
use crate::config::SessionConfig;
use crate::connect::{Connect, HttpError, JoinParameters};
use crate::data::DataOut;
use crate::media;
use crate::token::{Claims, Keys, VideoGrant};

/// The one place where tests take an instant: an epoch to count from.
#[expect(
    clippy::disallowed_methods,
    reason = "tests need one instant to count from"
)]
pub(crate) fn start() -> Instant {
    Instant::now()
}

/// Wall clock at which the tests begin.
pub(crate) const WALL: UnixMillis = UnixMillis(1_700_000_000_000);

pub(crate) fn config() -> SessionConfig {
    let keys = Keys::new(vec![("devkey".into(), "secret".into())]);
    SessionConfig::new(NodeId(1), keys)
}

pub(crate) fn claims(identity: &str) -> Claims {
    Claims {
        sub: identity.into(),
        exp: Some(WALL.0 / 1000 + 3600),
        nbf: Some(WALL.0 / 1000),
        video: Some(VideoGrant {
            room_join: true,
            room: "room".into(),
            can_update_own_metadata: Some(true),
            ..VideoGrant::default()
        }),
        ..Claims::default()
    }
}

pub(crate) fn parameters(single: bool) -> JoinParameters {
    JoinParameters {
        client: proto::ClientInfo {
            protocol: 16,
            ..proto::ClientInfo::default()
        },
        single_peer_connection: single,
        auto_subscribe: true,
        ..JoinParameters::default()
    }
}

/// A session and what came out of it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) session: Session,
    pub(crate) replies: Vec<Message>,
    pub(crate) media: Vec<media::Command>,
    pub(crate) closed: Vec<Close>,
    pub(crate) refused: Option<HttpError>,
    /// Epoch that it claims the session with, if it takes one over.
    pub(crate) claimed: Option<Epoch>,
    /// It has a signal connection.
    pub(crate) connected: bool,
}

impl Seat {
    /// Replies since the last call.
    pub(crate) fn take(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.replies)
    }

    /// Orders to the engine since the last call.
    pub(crate) fn take_media(&mut self) -> Vec<media::Command> {
        std::mem::take(&mut self.media)
    }

    /// Participants of the updates since the last call, other replies thrown away.
    pub(crate) fn take_updates(&mut self) -> Vec<proto::ParticipantInfo> {
        let updates = self.take().into_iter().filter_map(|reply| match reply {
            Message::Update(update) => Some(update.participants),
            _ => None,
        });
        updates.flatten().collect()
    }
}

/// One node's sessions of one room, and the log.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) state: State,
    pub(crate) config: Arc<SessionConfig>,
    pub(crate) seats: Vec<Seat>,
    /// The log has no quorum: proposals come to nothing.
    pub(crate) minority: bool,
    /// Outcomes arrive before the events, not after them.
    pub(crate) outcome_first: bool,
    started: Instant,
    requests: u128,
    joined: u8,
    proposals: VecDeque<(Option<usize>, RequestId, Command)>,
    /// Data on its way, for inspection.
    pub(crate) data: Vec<Arc<DataOut>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: SessionConfig) -> Self {
        let now = start();
        let mut world = Self {
            now,
            state: State::default(),
            config: Arc::new(config),
            seats: Vec::new(),
            minority: false,
            outcome_first: false,
            started: now,
            requests: 0,
            joined: 0,
            proposals: VecDeque::new(),
            data: Vec::new(),
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
                version: "0".into(),
            }));
        }
        world
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        self.state
            .rooms
            .get(&RoomName::from("room"))
            .expect("the room is there")
    }

    /// Joins and runs until nothing happens any more.
    pub(crate) fn join(&mut self, claims: Claims, parameters: JoinParameters) -> usize {
        let seat = self.begin_join(claims, parameters);
        self.run();
        seat
    }

    pub(crate) fn begin_join(&mut self, claims: Claims, parameters: JoinParameters) -> usize {
        let seat = self.seats.len();
        self.joined = self.joined.wrapping_add(1);
        let session = Session::join(
            self.now,
            Joining {
                config: Arc::clone(&self.config),
                connect: Connect { claims, parameters },
                seed: [self.joined; 32],
                wall: self.wall(),
            },
        );
        self.seats.push(Seat {
            session,
            replies: Vec::new(),
            media: Vec::new(),
            closed: Vec::new(),
            refused: None,
            claimed: None,
            connected: true,
        });
        seat
    }

    /// Node 2 begins to take over a participant's session.
    pub(crate) fn begin_adopt(&mut self, identity: &str, parameters: JoinParameters) -> usize {
        let participant = self
            .room()
            .participants
            .get(&Identity::from(identity))
            .cloned();
        let seat = self.begin_join(claims(identity), parameters.clone());
        let mut config = SessionConfig::clone(&self.config);
        config.node = NodeId(2);
        self.seats[seat].session = Session::adopt(
            self.now,
            Adopting {
                config: Arc::new(config),
                resuming: Resuming {
                    claims: claims(identity),
                    parameters,
                },
                participant: participant.expect("in the room"),
                seed: [self.joined; 32],
                wall: self.wall(),
            },
        );
        seat
    }

    /// The same, until the client has been answered.
    pub(crate) fn adopt(&mut self, identity: &str, parameters: JoinParameters) -> usize {
        let seat = self.begin_adopt(identity, parameters);
        self.run();
        assert!(self.seats[seat].claimed.is_some(), "nothing was claimed");
        self.input(
            seat,
            Input::Claimed(Box::new(Claimed {
                keepsake: None,
                last_sequence: 7,
                acknowledged: 9,
            })),
        );
        seat
    }

    /// v1 by name.
    pub(crate) fn enter(&mut self, identity: &str) -> usize {
        self.join(claims(identity), parameters(true))
    }

    pub(crate) fn wall(&self) -> UnixMillis {
        let elapsed = self.now.saturating_duration_since(self.started);
        UnixMillis(WALL.0 + elapsed.as_millis() as u64)
    }

    pub(crate) fn input(&mut self, seat: usize, input: Input<'_>) {
        let now = self.now;
        match input {
            Input::SignalClosed => self.seats[seat].connected = false,
            Input::Resume(_) => self.seats[seat].connected = true,
            _ => {}
        }
        self.seats[seat].session.handle(now, input);
        self.run();
    }

    pub(crate) fn ask(&mut self, seat: usize, message: Asked) {
        let request = proto::SignalRequest {
            message: Some(message),
        };
        self.input(seat, Input::Request(Box::new(request)));
    }

    pub(crate) fn media(&mut self, seat: usize, event: media::Event) {
        self.input(seat, Input::Media(event));
    }

    pub(crate) fn resume(&mut self, seat: usize, parameters: JoinParameters) {
        let claims = claims(self.seats[seat].session.identity().as_str());
        let resuming = Resuming { claims, parameters };
        self.input(seat, Input::Resume(Box::new(resuming)));
    }

    /// A change by somebody who is not a session.
    pub(crate) fn command(&mut self, command: Command) {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.proposals.push_back((None, request, command));
        self.run();
    }

    /// Time passes; sessions are woken when they asked for it.
    pub(crate) fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        loop {
            let due = self
                .seats
                .iter()
                .filter_map(|seat| seat.session.deadline())
                .filter(|deadline| *deadline <= end)
                .min();
            let Some(due) = due else { break };
            self.now = due.max(self.now);
            for seat in 0..self.seats.len() {
                let deadline = self.seats[seat].session.deadline();
                if deadline.is_some_and(|deadline| deadline <= self.now) {
                    let now = self.now;
                    self.seats[seat].session.handle(now, Input::Timeout);
                }
            }
            self.run();
        }
        self.now = end;
    }

    /// Carries out outputs until there are none.
    pub(crate) fn run(&mut self) {
        loop {
            let mut idle = true;
            for seat in 0..self.seats.len() {
                while let Some(output) = self.seats[seat].session.poll() {
                    idle = false;
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
        match output {
            Output::Reply(response) => place.replies.extend(response.message),
            Output::Propose { request, command } => {
                self.proposals.push_back((Some(seat), request, command));
            }
            Output::Media(command) => place.media.push(command),
            Output::Data(message) => {
                self.data.push(Arc::clone(&message));
                let now = self.now;
                for place in &mut self.seats {
                    let message = Arc::clone(&message);
                    place.session.handle(now, Input::Data(message));
                }
            }
            Output::Claim { epoch } => place.claimed = Some(epoch),
            Output::Refuse(error) => place.refused = Some(error),
            Output::Close(close) => {
                place.connected = false;
                place.closed.push(close);
            }
        }
    }

    fn commit(&mut self, seat: Option<usize>, request: RequestId, command: Command) {
        let now = self.now;
        if self.minority {
            if let Some(seat) = seat {
                let result = Err(CommitError::Unavailable("no leader".into()));
                let input = Input::Committed { request, result };
                self.seats[seat].session.handle(now, input);
            }
            return;
        }
        let applied = self.state.apply(&Entry {
            at: self.wall(),
            request,
            command,
        });
        let result = applied.result.map_err(CommitError::Rejected);
        let input = Input::Committed { request, result };
        match seat {
            Some(seat) if self.outcome_first => {
                self.seats[seat].session.handle(now, input);
                self.deliver(&applied.events);
            }
            Some(seat) => {
                self.deliver(&applied.events);
                self.seats[seat].session.handle(now, input);
            }
            None => self.deliver(&applied.events),
        }
    }

    fn deliver(&mut self, events: &[Event]) {
        let now = self.now;
        for event in events {
            if let Event::Room { room, change, .. } = event {
                let room = self.state.rooms.get(room);
                for place in &mut self.seats {
                    place.session.handle(now, Input::Event { change, room });
                }
            }
        }
    }

    /// Publishes a track all the way until others know it.
    pub(crate) fn publish(&mut self, seat: usize, request: proto::AddTrackRequest) -> TrackSid {
        let video = request.r#type == proto::TrackType::Video as i32;
        let codecs = described(&request.cid, video);
        self.ask(seat, Asked::AddTrack(request));
        let published = self.seats[seat]
            .replies
            .iter()
            .rev()
            .find_map(|reply| match reply {
                Message::TrackPublished(published) => published.track.clone(),
                _ => None,
            });
        let sid = TrackSid(published.expect("the track is published").sid);
        let track = sid.clone();
        self.media(seat, media::Event::TrackDescribed { track, codecs });
        sid
    }
}

/// What an engine says of a simulcast video track or of an audio track.
pub(crate) fn described(cid: &str, video: bool) -> Vec<TrackCodec> {
    let layer = |quality, rid: &str, ssrc| Layer {
        quality,
        size: Default::default(),
        bitrate_bps: 0,
        rid: rid.into(),
        ssrc,
        repair_ssrc: 0,
    };
    if !video {
        return vec![TrackCodec {
            mime: "audio/opus".into(),
            fmtp: "minptime=10;useinbandfec=1".into(),
            cid: cid.into(),
            mid: "6".into(),
            layers: vec![layer(Quality::High, "", 9)],
        }];
    }
    vec![TrackCodec {
        mime: "video/VP8".into(),
        fmtp: String::new(),
        cid: cid.into(),
        mid: "7".into(),
        layers: vec![
            layer(Quality::Low, "q", 1),
            layer(Quality::Medium, "h", 2),
            layer(Quality::High, "f", 3),
        ],
    }]
}

pub(crate) fn camera() -> proto::AddTrackRequest {
    let layer = |quality: proto::VideoQuality, width, height| proto::VideoLayer {
        quality: quality as i32,
        width,
        height,
        ..proto::VideoLayer::default()
    };
    proto::AddTrackRequest {
        cid: "cam".into(),
        name: "camera".into(),
        r#type: proto::TrackType::Video as i32,
        source: proto::TrackSource::Camera as i32,
        width: 1280,
        height: 720,
        layers: vec![
            layer(proto::VideoQuality::Low, 320, 180),
            layer(proto::VideoQuality::Medium, 640, 360),
            layer(proto::VideoQuality::High, 1280, 720),
        ],
        simulcast_codecs: vec![proto::SimulcastCodec {
            codec: "vp8".into(),
            cid: "cam".into(),
            ..proto::SimulcastCodec::default()
        }],
        ..proto::AddTrackRequest::default()
    }
}

pub(crate) fn microphone() -> proto::AddTrackRequest {
    proto::AddTrackRequest {
        cid: "mic".into(),
        source: proto::TrackSource::Microphone as i32,
        ..proto::AddTrackRequest::default()
    }
}
