//! A small cluster's state for the control tasks' tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use flotilla_model::State;
use flotilla_model::apply::Applied;
use flotilla_model::cluster::{Node, NodeState};
use flotilla_model::command::{Command, CreateRoom, Entry, Join, Rehome, Rejection};
use flotilla_model::event::Event;
use flotilla_model::id::{BootId, Epoch, NodeId, Region, RequestId, UnixMillis};
use flotilla_model::participant::Client;
use flotilla_model::permission::Permission;
use flotilla_model::room::RoomOptions;

use super::judge::View;
use crate::mesh::{Ailment, SignBook};

/// What a node knows of a cluster that node 1 leads.
pub(super) fn view<'a>(
    now: Instant,
    signs: &'a SignBook,
    voters: &'a BTreeSet<NodeId>,
    state: &'a State,
) -> View<'a> {
    View {
        now,
        leader: Some(NodeId(1)),
        voters,
        state,
        signs,
    }
}

/// These nodes answered last at this time.
pub(super) fn heard_at(start: Instant, nodes: [NodeId; 2]) -> SignBook {
    let mut signs = SignBook::default();
    for node in nodes {
        signs.insert(node, start);
        signs.answered(node, BootId(1), start, Ailment::None, start);
    }
    signs
}

/// A state, and request ids for the commands given to it.
pub(super) struct World {
    pub(super) state: State,
    requests: u128,
}

impl World {
    /// Participant `a` in room `r` at node 1; node 2 exists.
    pub(super) fn new() -> Self {
        let mut world = Self {
            state: State::default(),
            requests: 0,
        };
        for id in 1..=2 {
            world.apply(Command::PutNode(Node {
                id: NodeId(id),
                region: Region::from("here"),
                boot: BootId(1),
                cluster_address: String::new(),
                admin_address: String::new(),
                client_url: String::new(),
                relay_addresses: Vec::new(),
                capacity: 0,
                state: NodeState::Serving,
                version: String::new(),
            }));
        }
        world.join("a");
        world
    }

    /// Somebody joins room `r` at node 1.
    pub(super) fn join(&mut self, identity: &str) {
        self.apply(Command::Join(Box::new(Join {
            room: "r".into(),
            create: Some(CreateRoom {
                name: "r".into(),
                sid: "RM_r".into(),
                options: RoomOptions::default(),
                metadata: String::new(),
            }),
            sid: format!("PA_{identity}").into(),
            identity: identity.into(),
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
            token_issued_at: UnixMillis(1),
            auto_subscribe: true,
            client: Client::default(),
            home: NodeId(1),
        })));
    }

    /// Applies a command, which must not be refused; what happened.
    pub(super) fn apply(&mut self, command: Command) -> Vec<Event> {
        let applied = self.run(command);
        applied.result.expect("is carried out");
        applied.events
    }

    /// Applies a command, which must be refused; why it was.
    pub(super) fn refuse(&mut self, command: Command) -> Rejection {
        self.run(command).result.expect_err("is refused")
    }

    fn run(&mut self, command: Command) -> Applied {
        self.requests += 1;
        self.state.apply(&Entry {
            at: UnixMillis(1),
            request: RequestId(self.requests),
            command,
        })
    }

    fn epoch(&self) -> Epoch {
        let room = self.state.rooms.get(&"r".into()).expect("exists");
        room.participants.get(&"a".into()).expect("is in").epoch
    }

    /// Moves `a`.
    pub(super) fn rehome(&mut self, home: u64) -> Vec<Event> {
        let epoch = self.epoch();
        self.apply(Command::Rehome {
            moves: vec![Rehome {
                room: "r".into(),
                identity: "a".into(),
                sid: "PA_a".into(),
                epoch,
                home: NodeId(home),
            }],
        })
    }
}
