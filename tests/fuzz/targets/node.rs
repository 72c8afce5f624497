//! What a node takes from its files and from other nodes: a configuration, and on a virtual clock the
//! frames of the mesh and the signs of life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{Node, NodeState};
use flotilla_model::command::{Command, CreateRoom, Entry, Join};
use flotilla_model::id::{BootId, NodeId, ParticipantSid, RequestId, RoomName, UnixMillis};
use flotilla_model::participant::{Client, LeaveReason};
use flotilla_model::permission::Permission;
use flotilla_model::room::RoomOptions;
use flotilla_node::config::Config;
use flotilla_node::hub::rooms::Rooms;
use flotilla_node::mesh::proto::{
    Data, EnrollRequest, Frame, InquireRequest, LinkReply, LinkRequest, PulseReply, PulseRequest,
    Run, Wanted, link_request,
};
use flotilla_node::mesh::{Ailment, Body, Inbound, Question, SignBook};
use flotilla_node::session::handover::Checkpoints;
use flotilla_node::session::inbox::{Inbox, Outlet};
use flotilla_raft::Change;
use prost::Message;

use super::draw::Draw;

/// A configuration file, and after a zero byte environment variables, one a line.
///
/// What is valid is read alike again, and has as many media addresses as shards.
pub(crate) fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Which files there are is not the input's.
    if text.to_lowercase().contains("file") {
        return;
    }
    let (file, variables) = text.split_once('\0').unwrap_or((text, ""));
    let variables: BTreeMap<&str, &str> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let load = || {
        Config::load(None, Some(file), &[], |name| {
            variables.get(name).map(|value| (*value).to_owned())
        })
    };
    match load() {
        Ok(config) => {
            assert_eq!(
                config.media_bind().len(),
                usize::from(config.cluster.shards)
            );
            let again = load().expect("it was read a moment ago");
            assert_eq!(again.cluster.hash(), config.cluster.hash());
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says why"),
    }
}

/// The nodes besides this one, number 1.
const OTHERS: [u64; 2] = [2, 3];

/// Participants' names; the last is not there at first.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What is at the other end of other nodes' streams.
struct Here {
    now: Instant,
    state: State,
    requests: u128,
    rooms: Rooms,
    outlets: Vec<Outlet>,
    signs: SignBook,
}

/// Choices: frames and pings of other nodes, questions, and changes of the state in between.
pub(crate) fn mesh(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut here = Here::new();
    while !draw.is_empty() {
        here.step(&mut draw);
        for outlet in &mut here.outlets {
            while outlet.try_receive().is_some() {}
        }
        for outgoing in here.rooms.take_outgoing() {
            assert_ne!(outgoing.to, NodeId(1), "nothing is sent to oneself");
        }
        let _ = here.rooms.take_malformed();
    }
}

impl Here {
    fn new() -> Self {
        let now = Instant::now();
        let mut here = Self {
            now,
            state: State::default(),
            requests: 0,
            rooms: Rooms::new(NodeId(1), Arc::new(Checkpoints::default())),
            outlets: Vec::new(),
            signs: SignBook::default(),
        };
        for id in [1, 2, 3] {
            here.apply(Command::PutNode(Node {
                id: NodeId(id),
                region: "here".into(),
                boot: BootId(id),
                cluster_address: "c:1".into(),
                admin_address: "a:1".into(),
                client_url: "http://n:1".into(),
                relay_addresses: Vec::new(),
                capacity: 0,
                state: NodeState::Serving,
                version: "0+log4.mesh3".into(),
            }));
        }
        for other in OTHERS {
            here.signs.insert(NodeId(other), now);
        }
        for (name, home) in [("a", 1), ("b", 2), ("c", 3)] {
            here.join(name, home);
        }
        here
    }

    fn apply(&mut self, command: Command) {
        self.requests += 1;
        let before = Arc::new(self.state.clone());
        let applied = self.state.apply(&Entry {
            at: UnixMillis(1_700_000_000_000),
            request: RequestId(self.requests),
            command,
        });
        // A refusal changes nothing, but counts as a revision all the same.
        let change = Arc::new(Change {
            revision: self.state.revision,
            log_index: self.state.revision.0,
            at: UnixMillis(1_700_000_000_000),
            events: applied.events,
            before,
            state: Arc::new(self.state.clone()),
        });
        self.rooms.pass_on(self.now, &change);
    }

    fn join(&mut self, name: &str, home: u64) {
        let (room, sid) = (RoomName::from("r"), sid(name));
        if home == 1 && !self.rooms.has_session(&room, &sid) {
            let (inbox, outlet) = Inbox::new();
            self.rooms.register(&room, &sid, &name.into(), &inbox);
            self.outlets.push(outlet);
        }
        self.apply(Command::Join(Box::new(Join {
            room,
            create: Some(CreateRoom {
                name: "r".into(),
                sid: "RM_r".into(),
                options: RoomOptions::default(),
                metadata: String::new(),
            }),
            sid,
            identity: name.into(),
            name: String::new(),
            metadata: String::new(),
            attributes: BTreeMap::new(),
            kind: 0,
            kind_details: Vec::new(),
            permission: Permission {
                can_subscribe: true,
                can_publish: true,
                can_publish_data: true,
                can_publish_sources: BTreeSet::new(),
                hidden: false,
                recorder: false,
                can_update_metadata: true,
                agent: false,
                can_subscribe_metrics: false,
            },
            token_issued_at: UnixMillis(0),
            auto_subscribe: true,
            client: Client::default(),
            home: NodeId(home),
        })));
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        let from = NodeId(*draw.pick(&OTHERS));
        match draw.byte() % 12 {
            0 => {
                if let Ok(request) = LinkRequest::decode(draw.bytes())
                    && let Some(link_request::Message::Frame(Frame { body, .. })) = request.message
                    && let Some(body) = body
                {
                    self.rooms.receive(self.now, Inbound { from, body });
                }
            }
            1 => {
                let body = Body::Wanted(self.wanted(draw));
                self.rooms.receive(self.now, Inbound { from, body });
            }
            2..=4 => {
                let body = Body::Data(self.data(draw));
                self.rooms.receive(self.now, Inbound { from, body });
            }
            5 => {
                let sid = sid(NAMES[draw.number(NAMES.len())]);
                let _ = self.rooms.held(self.now, &"r".into(), &sid);
            }
            6 => {
                let name = NAMES[draw.number(NAMES.len())];
                self.join(name, 1 + draw.number(3) as u64);
            }
            7 => {
                let name = NAMES[draw.number(NAMES.len())];
                self.apply(Command::Leave {
                    room: "r".into(),
                    identity: name.into(),
                    sid: None,
                    reason: LeaveReason::ClientInitiated,
                    revoke_before: None,
                });
                self.rooms.unregister(&"r".into(), &sid(name));
            }
            8 => self.rooms.restart(self.now, Arc::new(self.state.clone())),
            9 => self.now += Duration::from_millis(u64::from(draw.u16())),
            10 => self.sign(from, draw),
            _ => {
                // What is not looked at before it is decoded.
                let bytes = draw.bytes();
                let _ = (LinkReply::decode(bytes), EnrollRequest::decode(bytes));
            }
        }
    }

    /// A message that may be in order, come again, or be about a state that is not here yet.
    fn data(&self, draw: &mut Draw<'_>) -> Data {
        Data {
            room: "r".to_owned(),
            channel: u32::from(draw.byte() % 4),
            from: sid(NAMES[draw.number(NAMES.len())]).to_string(),
            from_identity: draw.text(),
            destinations: (0..draw.number(3)).map(|_| draw.text()).collect(),
            sequence: u32::from(draw.byte()),
            content: u32::from(draw.byte()),
            payload: draw.bytes().to_vec().into(),
            only: if draw.flag() {
                String::new()
            } else {
                sid("a").to_string()
            },
            revision: self.revision(draw),
            age_ms: draw.u32(),
            log_time: u64::from(draw.u32()),
        }
    }

    /// What another node wants for somebody, who may or may not be at home there.
    fn wanted(&self, draw: &mut Draw<'_>) -> Wanted {
        let name = NAMES[draw.number(NAMES.len())];
        Wanted {
            room: "r".to_owned(),
            sid: sid(name).to_string(),
            identity: name.to_owned(),
            former: u64::from(draw.byte() % 5),
            revision: self.revision(draw),
            has: (0..draw.number(4))
                .map(|_| Run {
                    from: sid(NAMES[draw.number(NAMES.len())]).to_string(),
                    first: u32::from(draw.byte()),
                    last: u32::from(draw.byte()),
                })
                .collect(),
        }
    }

    fn revision(&self, draw: &mut Draw<'_>) -> u64 {
        match draw.byte() % 3 {
            0 => 0,
            1 => self.state.revision.0,
            _ => self.state.revision.0.saturating_add(u64::from(draw.u32())),
        }
    }

    fn sign(&mut self, from: NodeId, draw: &mut Draw<'_>) {
        let (now, start) = (self.now, self.now);
        match draw.byte() % 6 {
            0 => {
                if let Ok(reply) = PulseReply::decode(draw.bytes()) {
                    let ailment = reply.ailment();
                    let sent = start + Duration::from_micros(reply.token);
                    self.signs
                        .answered(from, BootId(reply.boot), sent, ailment, now);
                }
            }
            1 => {
                if let Ok(ping) = PulseRequest::decode(draw.bytes()) {
                    self.signs.heard(NodeId(ping.node), BootId(ping.boot), now);
                }
            }
            2 => {
                let boot = BootId(draw.number(3) as u64);
                self.signs.answered(from, boot, now, Ailment::None, now);
            }
            3 => self.signs.knocked(from, draw.flag(), now),
            4 => self.signs.broke(from, now),
            _ => self.signs.look(now, Duration::from_millis(100)),
        }
        if let Ok(asked) = InquireRequest::decode(draw.bytes()) {
            let millis = |count: u32| Duration::from_millis(count.into());
            let question = Question {
                node: NodeId(asked.node),
                boot: BootId(asked.boot),
                bound: millis(asked.bound_ms),
                within: millis(asked.within_ms),
                asked: now,
            };
            let late = now + millis(asked.within_ms);
            let found = self.signs.find(&question, late);
            assert!(found.is_some(), "the time for the answer is over");
        }
    }
}

fn sid(name: &str) -> ParticipantSid {
    ParticipantSid(format!("PA_{name}"))
}
