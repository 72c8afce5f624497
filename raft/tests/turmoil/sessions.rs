//! People under simulation: the real session of `flotilla-signal`, driven as the node's shell drives it,
//! on the real group and feed.
//!
//! A person joins, changes its metadata, publishes and mutes a track, loses its connection and resumes,
//! and leaves. The engine is played: it says that media is up and describes tracks. A client believes
//! only what responses say; in the end the log has to agree with it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flotilla_model::cluster::{Node, NodeState};
use flotilla_model::command::{Command, Reply};
use flotilla_model::event::Event;
use flotilla_model::id::{BootId, NodeId, RequestId, RoomName};
use flotilla_model::track::{Layer, Quality, TrackCodec};
use flotilla_raft::{Feed, FeedError, Group, ProposeError};
use flotilla_signal::config::SessionConfig;
use flotilla_signal::connect::{Connect, JoinParameters, Reconnect};
use flotilla_signal::media;
use flotilla_signal::proto;
use flotilla_signal::proto::signal_request::Message as Asked;
use flotilla_signal::proto::signal_response::Message;
use flotilla_signal::session::{
    Claimed, Close, CommitError, Input, Joining, Output, Resuming, Session,
};
use flotilla_signal::token::{Claims, Keys, VideoGrant};
use tokio::time::Instant;

use crate::node::Stage;

/// People who are connected to a node at a time.
const PEOPLE: u64 = 2;
/// Rooms they meet in.
const ROOMS: u64 = 2;
/// How long a proposal of a session may take.
const TRY: Duration = Duration::from_millis(1500);
/// How often a client says that it is there.
const PING: Duration = Duration::from_secs(4);

/// Begins sessions on a node, once it is registered.
pub(crate) fn begin(stage: &Arc<Stage>, node: u64, group: &Group) {
    let (stage, group) = (Arc::clone(stage), group.clone());
    tokio::spawn(async move {
        let boot = BootId(rand::random());
        while !register(node, boot, &group).await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for seat in 0..PEOPLE {
            tokio::spawn(seat_of(Arc::clone(&stage), node, seat, group.clone()));
        }
    });
}

async fn register(node: u64, boot: BootId, group: &Group) -> bool {
    let record = Node {
        id: NodeId(node),
        region: "default".into(),
        boot,
        cluster_address: crate::network::address(node),
        admin_address: "a:1".to_owned(),
        client_url: "http://n:1".to_owned(),
        relay_addresses: Vec::new(),
        capacity: 0,
        state: NodeState::Serving,
        version: format!("0+log{}", flotilla_model::encoding::VERSION),
    };
    let request = RequestId(rand::random());
    group
        .propose_within(request, Command::PutNode(record), TRY)
        .await
        .is_ok()
}

/// One person after the other.
async fn seat_of(stage: Arc<Stage>, node: u64, seat: u64, group: Group) {
    let mut count = 0u64;
    while !stage.work.is_ending() {
        tokio::time::sleep(Duration::from_millis(rand::random_range(50..1500))).await;
        let identity = format!("p{node}-{seat}-{}", count % 3);
        count += 1;
        let room = format!("room-{}", rand::random_range(0..ROOMS));
        Person::new(&stage, node, &group, &identity, &room)
            .live()
            .await;
    }
}

type Proposal = Pin<Box<dyn Future<Output = (RequestId, Result<Reply, CommitError>)> + Send>>;

struct Person {
    stage: Arc<Stage>,
    node: u64,
    group: Group,
    session: Session,
    feed: Feed,
    claims: Claims,
    proposal: Option<Proposal>,
    /// What the engine has to say.
    media: Vec<media::Event>,
    connected: bool,
    joined: bool,
    tracks: BTreeMap<String, bool>,
    /// The last proposal came to nothing: nobody knows what the log has.
    in_doubt: bool,
    next_act: Instant,
    next_ping: Instant,
}

impl Person {
    fn new(stage: &Arc<Stage>, node: u64, group: &Group, identity: &str, room: &str) -> Self {
        let keys = Keys::new(vec![("devkey".to_owned(), "secret".to_owned())]);
        let config = SessionConfig::new(NodeId(node), keys);
        let wall = stage.clocks[&node].now();
        let claims = Claims {
            sub: identity.to_owned(),
            exp: Some(wall.0 / 1000 + 365 * 24 * 3600),
            nbf: Some(0),
            video: Some(VideoGrant {
                room_join: true,
                room: room.to_owned(),
                can_update_own_metadata: Some(true),
                ..VideoGrant::default()
            }),
            ..Claims::default()
        };
        let feed = group.feed();
        let now = Instant::now();
        let session = Session::join(
            now.into_std(),
            Joining {
                config: Arc::new(config),
                connect: Connect {
                    claims: claims.clone(),
                    parameters: parameters(),
                },
                seed: rand::random(),
                wall,
            },
        );
        Self {
            stage: Arc::clone(stage),
            node,
            group: group.clone(),
            session,
            feed,
            claims,
            proposal: None,
            media: Vec::new(),
            connected: true,
            joined: false,
            tracks: BTreeMap::new(),
            in_doubt: false,
            next_act: now + Duration::from_millis(rand::random_range(20..400)),
            next_ping: now + PING,
        }
    }

    async fn live(mut self) {
        let room = self.session.room().clone();
        let sid = self.session.sid().to_string();
        loop {
            if self.drain() {
                break;
            }
            if let Some(event) = self.media.pop() {
                let now = Instant::now().into_std();
                self.session.handle(now, Input::Media(event));
                continue;
            }
            let wake = self.session.deadline().map(Instant::from);
            tokio::select! {
                biased;
                change = self.feed.next() => match change {
                    Ok(change) => self.hear(&room, &change.events, &change.state),
                    Err(FeedError::Lagged(_)) => {
                        self.feed = self.group.feed();
                        let state = Arc::clone(self.feed.start());
                        let room = state.rooms.get(&room);
                        let now = Instant::now().into_std();
                        self.session.handle(now, Input::Snapshot { room });
                    }
                    Err(FeedError::Stopped) => return,
                },
                (request, result) = outcome(&mut self.proposal) => {
                    self.proposal = None;
                    self.in_doubt = matches!(result, Err(CommitError::Unavailable(_)));
                    let now = Instant::now().into_std();
                    self.session.handle(now, Input::Committed { request, result });
                }
                () = until(wake) => {
                    self.session.handle(Instant::now().into_std(), Input::Timeout);
                }
                () = tokio::time::sleep_until(self.next_ping) => {
                    self.next_ping = Instant::now() + PING;
                    if self.connected && self.joined {
                        self.ask(Asked::PingReq(proto::Ping::default()));
                    }
                }
                () = tokio::time::sleep_until(self.next_act) => self.act(),
            }
        }
        self.stage
            .work
            .session_over(self.node, &sid, !self.in_doubt);
    }

    fn hear(&mut self, room: &RoomName, events: &[Event], state: &flotilla_model::State) {
        let now = Instant::now().into_std();
        for event in events {
            if let Event::Room {
                room: name, change, ..
            } = event
                && name == room
            {
                let room = state.rooms.get(name);
                self.session.handle(now, Input::Event { change, room });
            }
        }
    }

    fn ask(&mut self, message: Asked) {
        let request = proto::SignalRequest {
            message: Some(message),
        };
        let now = Instant::now().into_std();
        self.session.handle(now, Input::Request(Box::new(request)));
    }

    /// The client does something.
    fn act(&mut self) {
        let pause = rand::random_range(100..1500);
        self.next_act = Instant::now() + Duration::from_millis(pause);
        if !self.joined || self.stage.work.is_ending() {
            return;
        }
        let now = Instant::now().into_std();
        if !self.connected {
            let resuming = Resuming {
                claims: self.claims.clone(),
                parameters: JoinParameters {
                    reconnect: Some(Reconnect {
                        sid: Some(self.session.sid().clone()),
                        reason: 0,
                    }),
                    ..parameters()
                },
            };
            let reconnect = resuming.parameters.reconnect.clone();
            if reconnect.is_some_and(|wanted| self.session.is_resumable_by(&self.claims, &wanted)) {
                self.connected = true;
                self.session.handle(now, Input::Resume(Box::new(resuming)));
            }
            return;
        }
        match rand::random_range(0..10) {
            0..=3 => self.ask(Asked::UpdateMetadata(proto::UpdateParticipantMetadata {
                metadata: format!("m{}", rand::random_range(0..1000)),
                ..Default::default()
            })),
            4 | 5 if self.tracks.is_empty() => {
                self.ask(Asked::AddTrack(proto::AddTrackRequest {
                    cid: "mic".to_owned(),
                    source: proto::TrackSource::Microphone as i32,
                    ..Default::default()
                }));
            }
            4 | 5 => {
                if let Some((sid, muted)) = self.tracks.iter_mut().next() {
                    *muted = !*muted;
                    let (sid, muted) = (sid.clone(), *muted);
                    self.ask(Asked::Mute(proto::MuteTrackRequest { sid, muted }));
                }
            }
            6 => {
                self.connected = false;
                self.session.handle(now, Input::SignalClosed);
            }
            7 => self.ask(Asked::Leave(proto::LeaveRequest::default())),
            _ => self.ask(Asked::PingReq(proto::Ping::default())),
        }
    }

    /// Carries out what the session wants; whether it has ended.
    fn drain(&mut self) -> bool {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Reply(response) => self.reply(response.message),
                Output::Propose { request, command } => {
                    assert!(self.proposal.is_none(), "one proposal at a time");
                    let group = self.group.clone();
                    self.proposal = Some(Box::pin(async move {
                        let answer = group.propose_within(request, command, TRY).await;
                        let result = answer.map_err(|error| match error {
                            ProposeError::Rejected(reason) => CommitError::Rejected(reason),
                            other => CommitError::Unavailable(other.to_string()),
                        });
                        (request, result)
                    }));
                }
                Output::Media(command) => self.engine(command),
                Output::Claim { .. } => {
                    let claimed = Box::new(Claimed::default());
                    let now = Instant::now().into_std();
                    self.session.handle(now, Input::Claimed(claimed));
                }
                Output::Data(_) | Output::Refuse(_) => {}
                Output::Close(Close::Signal | Close::Farewell) => self.connected = false,
                Output::Close(Close::Session { .. }) => return true,
            }
        }
        false
    }

    fn reply(&mut self, message: Option<Message>) {
        self.stage.record.seen().figures.replies += 1;
        match message {
            Some(Message::Join(join)) => {
                self.joined = true;
                let own = join.participant.map(|own| own.sid).unwrap_or_default();
                if own != self.session.sid().as_str() {
                    self.stage.record.violation(format!(
                        "a join response is for {own}, the session is {}",
                        self.session.sid()
                    ));
                }
                self.stage
                    .record
                    .note(format_args!("{own} joined at node {}", self.node));
                self.stage.record.seen().figures.sessions += 1;
                let room = self.session.room().to_string();
                self.stage.work.session_begun(self.node, &own, &room);
            }
            Some(Message::TrackPublished(published)) => {
                if let Some(track) = published.track {
                    self.tracks.insert(track.sid, false);
                }
            }
            _ => {}
        }
    }

    /// Plays the engine.
    fn engine(&mut self, command: media::Command) {
        match command {
            media::Command::CreatePeers { .. } => {
                for target in [media::Target::Subscriber, media::Target::Publisher] {
                    self.media.push(media::Event::Connected { target });
                }
            }
            media::Command::Publish { track, .. } => {
                let layer = Layer {
                    quality: Quality::High,
                    size: Default::default(),
                    bitrate_bps: 0,
                    rid: String::new(),
                    ssrc: 9,
                    repair_ssrc: 0,
                };
                self.media.push(media::Event::TrackDescribed {
                    track: track.sid.clone(),
                    codecs: vec![TrackCodec {
                        mime: "audio/opus".to_owned(),
                        fmtp: String::new(),
                        cid: "mic".to_owned(),
                        mid: "0".to_owned(),
                        layers: vec![layer],
                    }],
                });
            }
            _ => {}
        }
    }
}

fn parameters() -> JoinParameters {
    JoinParameters {
        client: proto::ClientInfo {
            protocol: 16,
            ..Default::default()
        },
        single_peer_connection: true,
        auto_subscribe: true,
        ..Default::default()
    }
}

async fn outcome(proposal: &mut Option<Proposal>) -> (RequestId, Result<Reply, CommitError>) {
    match proposal {
        Some(proposal) => proposal.await,
        None => std::future::pending().await,
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
