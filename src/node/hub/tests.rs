//! Sessions of one room on this node, and a log that says who is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use flotilla_model::cluster::LossCause;
use flotilla_model::command::{Command, CreateRoom, Entry, Join, Rehome};
use flotilla_model::id::{BootId, RequestId, UnixMillis};
use flotilla_model::participant::{Client, LeaveReason};
use flotilla_model::permission::Permission;
use flotilla_model::room::RoomOptions;
use flotilla_raft::{Channels, ChannelsConfig};

use flotilla_signal::data::{Cache, Sent};
use flotilla_signal::media::Channel;

use super::rooms::to_proto;
use super::*;
use crate::mesh::{Body, Own, software_version};
use crate::session::inbox::Outlet;

mod checkpoints;

/// The version of nodes that do not ask: they are sent everything, which shows at once what others give.
const BEFORE: &str = "0.1.0+log5.mesh2";

struct World {
    hub: Hub,
    state: State,
    requests: u128,
    /// What nodes register.
    version: String,
}

impl World {
    fn new() -> Self {
        Self::of_version(&software_version())
    }

    fn of_version(version: &str) -> Self {
        let metrics = Metrics::new(NodeId(1)).expect("no clash");
        let own = Own {
            node: NodeId(1),
            boot: BootId(1),
            cluster_id: String::new(),
            config_hash: [0; 32],
        };
        let channels = Channels::new(ChannelsConfig::new("secret"));
        let mesh = Mesh::new(own, channels, metrics.clone());
        let mut world = Self {
            hub: Hub::new(NodeId(1), mesh, metrics),
            state: State::default(),
            requests: 0,
            version: version.to_owned(),
        };
        for id in [1, 2, 3] {
            world.start(id, id);
        }
        world
    }

    /// A process of a node writes its record.
    fn start(&mut self, id: u64, boot: u64) -> Arc<Change> {
        self.apply(Command::PutNode(flotilla_model::cluster::Node {
            id: NodeId(id),
            region: "local".into(),
            boot: BootId(boot),
            cluster_address: String::new(),
            admin_address: String::new(),
            client_url: String::new(),
            relay_addresses: Vec::new(),
            capacity: 0,
            state: flotilla_model::cluster::NodeState::Serving,
            version: self.version.clone(),
        }))
    }

    fn apply(&mut self, command: Command) -> Arc<Change> {
        self.requests += 1;
        let entry = Entry {
            at: UnixMillis(1000),
            request: RequestId(self.requests),
            command,
        };
        let before = Arc::new(self.state.clone());
        let applied = self.state.apply(&entry);
        applied.result.expect("is carried out");
        let change = Arc::new(Change {
            revision: self.state.revision,
            log_index: self.state.revision.0,
            at: UnixMillis(1000),
            events: applied.events,
            before,
            state: Arc::new(self.state.clone()),
        });
        self.hub.pass_on(&change);
        change
    }

    /// What another node knows.
    fn rooms_at(&self, node: NodeId) -> Rooms {
        let mut rooms = Rooms::new(node, Arc::default());
        rooms.restart(Instant::now(), Arc::new(self.state.clone()));
        rooms.take_outgoing();
        rooms
    }

    fn participant(&self, identity: &str) -> &flotilla_model::participant::Participant {
        &self.state.rooms[&"r".into()].participants[&identity.into()]
    }

    fn join(&mut self, identity: &str) -> Outlet {
        let (inbox, outlet) = Inbox::new();
        let sid = ParticipantSid(format!("PA_{identity}"));
        self.hub
            .register(&"r".into(), &sid, &identity.into(), &inbox);
        self.apply(Command::Join(Box::new(Join {
            room: "r".into(),
            create: Some(CreateRoom {
                name: "r".into(),
                sid: "RM_r".into(),
                options: RoomOptions::default(),
                metadata: String::new(),
            }),
            sid,
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
                can_update_metadata: false,
                agent: false,
                can_subscribe_metrics: false,
            },
            token_issued_at: UnixMillis(0),
            auto_subscribe: true,
            client: Client::default(),
            home: NodeId(1),
        })));
        outlet
    }

    fn to(&self, identity: &str, home: u64) -> Rehome {
        let participant = self.participant(identity);
        Rehome {
            room: "r".into(),
            identity: identity.into(),
            sid: participant.sid.clone(),
            epoch: participant.epoch,
            home: NodeId(home),
        }
    }

    fn send(&self, from: &str, sequence: u32, to: &[&str]) {
        self.hub
            .distribute(&"r".into(), message(from, sequence, to), None);
    }
}

fn message(from: &str, sequence: u32, to: &[&str]) -> Arc<DataOut> {
    Arc::new(DataOut {
        from: ParticipantSid(format!("PA_{from}")),
        from_identity: from.into(),
        channel: Channel::Reliable,
        destinations: to.iter().map(|to| Identity::from(*to)).collect(),
        sequence,
        content: 0,
        payload: Bytes::new(),
    })
}

fn sent_now(message: &Arc<DataOut>) -> Sent {
    Sent {
        at: Instant::now(),
        log_time: UnixMillis(0),
        message: Arc::clone(message),
    }
}

/// Numbers of the data messages that wait for a session.
async fn data(outlet: &mut Outlet) -> Vec<u32> {
    let mut numbers = Vec::new();
    let wait = std::time::Duration::from_millis(20);
    while let Ok(Some(message)) = tokio::time::timeout(wait, outlet.receive()).await {
        if let Message::Data(data) = message {
            numbers.push(data.sequence);
        }
    }
    numbers
}

#[tokio::test]
async fn messages_reach_whom_they_are_for_and_joiners_once() {
    let mut world = World::new();
    let mut anna = world.join("anna");
    let mut ben = world.join("ben");
    world.send("anna", 1, &[]);
    world.send("anna", 2, &["cleo"]);
    let mut cleo = world.join("cleo");
    world.send("anna", 3, &["ben"]);
    world.send("anna", 4, &[]);
    assert_eq!(data(&mut anna).await, [0; 0], "not the sender");
    assert_eq!(data(&mut ben).await, [1, 3, 4]);
    assert_eq!(
        data(&mut cleo).await,
        [1, 2, 4],
        "from the cache, then directly"
    );
}

#[tokio::test]
async fn joiners_are_not_sent_what_somebody_said_who_has_left() {
    let mut world = World::new();
    let _anna = world.join("anna");
    let mut ben = world.join("ben");
    world.send("anna", 1, &[]);
    world.send("ben", 1, &[]);
    world.apply(Command::Leave {
        room: "r".into(),
        identity: "anna".into(),
        sid: None,
        reason: LeaveReason::ParticipantRemoved,
        revoke_before: None,
    });
    // Its session ends a moment later.
    world.send("anna", 2, &[]);
    let mut cleo = world.join("cleo");
    assert_eq!(data(&mut cleo).await, [1], "of ben");
    assert_eq!(data(&mut ben).await, [1, 2], "who was there");
}

#[tokio::test]
async fn a_room_of_people_who_have_just_come_says_nothing_of_what_was_passed_on() {
    let world = World::new();
    let sender = ParticipantSid("PA_x".into());
    let says = |world: &World| {
        let held = world.hub.held(&"r".into(), &sender);
        held.in_room.then_some(held.last_sequence)
    };
    assert_eq!(says(&world), None, "nobody is here");
    let (inbox, _outlet) = Inbox::new();
    let taken = ParticipantSid("PA_y".into());
    assert!(
        world
            .hub
            .register_adopting(&"r".into(), &taken, &"y".into(), &inbox)
    );
    assert_eq!(says(&world), None, "who came gets it from elsewhere");
    world.send("x", 3, &[]);
    assert_eq!(says(&world), Some(3));
    let mut world = World::new();
    let _anna = world.join("anna");
    assert_eq!(says(&world), Some(0), "and has missed what there was");
}

/// Two changes share an entry of the log; a message is sent between them.
#[tokio::test]
async fn data_is_of_the_last_change_passed_on_and_not_of_those_of_its_entry() {
    let mut rooms = Rooms::new(NodeId(1), Arc::default());
    let mut world = World::of_version(BEFORE);
    let _anna = world.join("anna");
    let _bert = world.join("bert");
    let moves = vec![world.to("bert", 2)];
    world.apply(Command::Rehome { moves });
    let now = Instant::now();
    rooms.restart(now, Arc::new(world.state.clone()));
    rooms.take_outgoing();
    let before = Arc::new(world.state.clone());
    let first = world.state.apply(&Entry {
        at: UnixMillis(1000),
        request: RequestId(1000),
        command: Command::Rehome {
            moves: vec![world.to("anna", 1)],
        },
    });
    let revision = world.state.revision;
    let second = world.state.apply(&Entry {
        at: UnixMillis(1000),
        request: RequestId(1001),
        command: Command::Rehome {
            moves: vec![world.to("bert", 3)],
        },
    });
    let change = |revision, events| {
        Arc::new(Change {
            revision,
            log_index: 77,
            at: UnixMillis(1000),
            events,
            before: Arc::clone(&before),
            state: Arc::new(world.state.clone()),
        })
    };
    let sent = |rooms: &mut Rooms| -> Vec<(NodeId, u32, u64, String)> {
        let outgoing = rooms.take_outgoing().into_iter();
        let data = outgoing.filter_map(|out| match out.body {
            Body::Data(data) => Some((out.to, data.sequence, data.revision, data.only)),
            _ => None,
        });
        data.collect()
    };
    rooms.pass_on(now, &change(revision, first.events));
    rooms.distribute(now, &"r".into(), message("anna", 5, &[]), None);
    // Nobody takes it for something that comes after what is sent again at bert's move.
    assert_eq!(
        sent(&mut rooms),
        [(NodeId(3), 5, revision.0, String::new())]
    );
    let last = world.state.revision;
    rooms.pass_on(now, &change(last, second.events));
    assert_eq!(
        sent(&mut rooms),
        [(NodeId(3), 5, last.0, "PA_bert".to_owned())]
    );
}

/// Everybody left this node for another one, and some come back.
#[tokio::test]
async fn what_was_passed_on_before_everybody_left_says_nothing_any_more() {
    let mut world = World::new();
    let _anna = world.join("anna");
    let _bert = world.join("bert");
    world.send("anna", 3, &[]);
    let says = |world: &World| {
        let held = world
            .hub
            .held(&"r".into(), &ParticipantSid("PA_anna".into()));
        held.in_room.then_some(held.last_sequence)
    };
    assert_eq!(says(&world), Some(3));
    let moves = vec![world.to("anna", 2), world.to("bert", 2)];
    world.apply(Command::Rehome { moves });
    for gone in ["PA_anna", "PA_bert"] {
        world.hub.unregister(&"r".into(), &gone.into());
    }
    let (inbox, _outlet) = Inbox::new();
    let bert = ParticipantSid("PA_bert".into());
    assert!(
        world
            .hub
            .register_adopting(&"r".into(), &bert, &"bert".into(), &inbox)
    );
    let moves = vec![world.to("bert", 1)];
    world.apply(Command::Rehome { moves });
    assert_eq!(
        says(&world),
        None,
        "what anna sent meanwhile did not come here"
    );
    // While somebody stays, all comes here.
    world.send("anna", 9, &[]);
    let _carl = world.join("carl");
    assert_eq!(says(&world), Some(9));
}

/// Another node knows before this one that somebody is here now, and sends a message.
#[tokio::test]
async fn data_of_a_node_that_is_ahead_waits_for_its_state() {
    let mut world = World::new();
    let _ben = world.join("ben");
    let _x = world.join("x");
    world.apply(Command::Rehome {
        moves: vec![world.to("ben", 2), world.to("x", 3)],
    });
    world.hub.unregister(&"r".into(), &"PA_x".into());
    let sid = ParticipantSid("PA_ben".into());
    world.hub.unregister(&"r".into(), &sid);
    let (inbox, mut outlet) = Inbox::new();
    let name = "r".into();
    assert!(
        world
            .hub
            .register_adopting(&name, &sid, &"ben".into(), &inbox)
    );
    let receive = |world: &World, sequence: u32, revision: u64| {
        let message = Arc::new(DataOut {
            from: "PA_x".into(),
            from_identity: "x".into(),
            channel: Channel::Reliable,
            destinations: [].into(),
            sequence,
            content: 0,
            payload: Bytes::new(),
        });
        let revision = flotilla_model::id::Revision(revision);
        let body = Body::Data(to_proto(
            Instant::now(),
            &name,
            &sent_now(&message),
            None,
            revision,
        ));
        world.hub.receive(Inbound {
            from: NodeId(3),
            body,
        });
    };
    let now = world.state.revision.0;
    receive(&world, 1, now);
    receive(&world, 2, now + 1);
    assert_eq!(data(&mut outlet).await, [0; 0]);
    world.apply(Command::Rehome {
        moves: vec![world.to("ben", 1)],
    });
    let after = data(&mut outlet).await;
    assert_eq!(after, [1, 2], "what is kept here, then what waited");
    receive(&world, 4, now + 1);
    assert_eq!(data(&mut outlet).await, [4]);
    // That node has not come to the move yet: it sends this again when it has, after what went before.
    receive(&world, 6, now);
    assert_eq!(data(&mut outlet).await, [0; 0]);
}

/// The home of a sender starts anew and has forgotten what went through it; this node has not.
#[tokio::test]
async fn what_a_process_has_forgotten_comes_from_others() {
    for (before, after) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new();
        let _anna = world.join("anna");
        let _ben = world.join("ben");
        let _x = world.join("x");
        world.apply(Command::Rehome {
            moves: vec![world.to("ben", 2), world.to("x", 3)],
        });
        let sid = ParticipantSid("PA_ben".into());
        for gone in ["PA_ben", "PA_x"] {
            world.hub.unregister(&"r".into(), &gone.into());
        }
        let name = "r".into();
        let message = Arc::new(DataOut {
            from: "PA_x".into(),
            from_identity: "x".into(),
            channel: Channel::Reliable,
            destinations: [].into(),
            sequence: 1,
            content: 0,
            payload: Bytes::new(),
        });
        let body = Body::Data(to_proto(
            Instant::now(),
            &name,
            &sent_now(&message),
            None,
            world.state.revision,
        ));
        world.hub.receive(Inbound {
            from: NodeId(3),
            body,
        });
        if before {
            world.start(3, 33);
        }
        let (inbox, mut outlet) = Inbox::new();
        assert!(
            world
                .hub
                .register_adopting(&name, &sid, &"ben".into(), &inbox)
        );
        world.apply(Command::Rehome {
            moves: vec![world.to("ben", 1)],
        });
        if after {
            // The log says so only now.
            world.start(3, 33);
        }
        // Again does no harm: sessions know numbers.
        let got = BTreeSet::from_iter(data(&mut outlet).await);
        let what = format!("restarts before: {before}, after: {after}");
        assert_eq!(got, BTreeSet::from([1]), "{what}");
    }
}

#[tokio::test]
async fn a_session_hears_data_only_after_its_join() {
    let mut world = World::new();
    let _anna = world.join("anna");
    let (inbox, mut outlet) = Inbox::new();
    let sid = ParticipantSid("PA_x".into());
    world.hub.register(&"r".into(), &sid, &"x".into(), &inbox);
    world.send("anna", 1, &[]);
    assert_eq!(data(&mut outlet).await, [0; 0]);
    assert!(
        world
            .hub
            .find(&"r".into(), &"x".into(), Some(&sid))
            .is_none()
    );
}

#[tokio::test]
async fn sessions_are_found_by_sid_or_identity_of_their_own() {
    let mut world = World::new();
    let _anna = world.join("anna");
    let find = |identity: &str, sid: Option<&str>| {
        let sid = sid.map(ParticipantSid::from);
        world
            .hub
            .find(&"r".into(), &identity.into(), sid.as_ref())
            .is_some()
    };
    assert!(find("anna", Some("PA_anna")));
    assert!(find("anna", None));
    assert!(!find("ben", Some("PA_anna")), "somebody else's session");
    assert!(!find("anna", Some("PA_old")));
}

#[tokio::test]
async fn rooms_are_forgotten_with_their_last_session() {
    let mut world = World::new();
    let _anna = world.join("anna");
    world.apply(Command::Leave {
        room: "r".into(),
        identity: "anna".into(),
        sid: None,
        reason: LeaveReason::ClientInitiated,
        revoke_before: None,
    });
    world.apply(Command::DeleteRoom { room: "r".into() });
    assert_eq!(
        world.hub.session_count(),
        1,
        "the session has not ended yet"
    );
    world.hub.unregister(&"r".into(), &"PA_anna".into());
    assert_eq!(world.hub.lock().count(), 0);
}

#[tokio::test]
async fn nonces_count_once_per_room() {
    let world = World::new();
    let nonce = Some([1; 16]);
    assert!(world.hub.is_new_nonce(&"r".into(), nonce));
    assert!(!world.hub.is_new_nonce(&"r".into(), nonce));
    assert!(world.hub.is_new_nonce(&"s".into(), nonce));
    assert!(world.hub.is_new_nonce(&"r".into(), None));
}

#[tokio::test]
async fn who_has_come_back_is_a_stray_in_an_older_state_only() {
    let mut world = World::new();
    let _outlet = world.join("alice");
    let away = world.to("alice", 2);
    world.apply(Command::Rehome { moves: vec![away] });
    let older = world.state.clone();
    assert!(world.hub.has_strays(&older));
    let back = world.to("alice", 1);
    world.apply(Command::Rehome { moves: vec![back] });
    assert!(!world.hub.has_strays(&world.state));
    assert!(world.hub.has_strays(&older));
}

#[tokio::test]
async fn who_has_left_is_a_stray_until_the_session_ends_and_who_joins_is_none() {
    let mut world = World::new();
    let _outlet = world.join("alice");
    let present = world.state.clone();
    assert!(!world.hub.has_strays(&present));
    world.apply(Command::Leave {
        room: "r".into(),
        identity: "alice".into(),
        sid: None,
        reason: LeaveReason::ClientInitiated,
        revoke_before: None,
    });
    assert!(world.hub.has_strays(&world.state));
    world.hub.unregister(&"r".into(), &"PA_alice".into());
    assert!(!world.hub.has_strays(&world.state));
    let (inbox, _outlet) = Inbox::new();
    world
        .hub
        .register(&"r".into(), &"PA_bob".into(), &"bob".into(), &inbox);
    assert!(
        !world.hub.has_strays(&world.state),
        "the join is on its way"
    );
}

/// Data of outgoing bodies: to whom, number, and for whom alone.
fn data_sent(rooms: &mut Rooms) -> Vec<(NodeId, u32, String)> {
    let outgoing = rooms.take_outgoing().into_iter();
    let data = outgoing.filter_map(|out| match out.body {
        Body::Data(data) => Some((out.to, data.sequence, data.only)),
        _ => None,
    });
    data.collect()
}

/// Hands what a node sends to those others that are here, if it is wanted. To whom it went, or would have.
fn hand_over(
    from: u64,
    sender: &mut Rooms,
    others: &mut [(u64, &mut Rooms)],
    is_wanted: impl Fn(&Body) -> bool,
) -> Vec<NodeId> {
    let mut nodes = Vec::new();
    for out in sender.take_outgoing() {
        if !is_wanted(&out.body) {
            continue;
        }
        nodes.push(out.to);
        if let Some((_, rooms)) = others.iter_mut().find(|(id, _)| NodeId(*id) == out.to) {
            let (from, body) = (NodeId(from), out.body);
            rooms.receive(Instant::now(), Inbound { from, body });
        }
    }
    nodes
}

/// Hands over what a node asks for.
fn ask(from: u64, asks: &mut Rooms, asked: &mut [(u64, &mut Rooms)]) -> Vec<NodeId> {
    hand_over(from, asks, asked, |body| matches!(body, Body::Wanted(_)))
}

/// Anna, ben and cleo at node 1, but for those who have moved, and what three nodes have of them.
fn three_nodes(moved: &[(&str, u64)]) -> (World, [Rooms; 3]) {
    let mut world = World::new();
    for name in ["anna", "ben", "cleo"] {
        let _ = world.join(name);
    }
    let moves = moved.iter().map(|(name, home)| world.to(name, *home));
    let moves = moves.collect();
    world.apply(Command::Rehome { moves });
    let rooms = [1, 2, 3].map(|id| world.rooms_at(NodeId(id)));
    (world, rooms)
}

/// Ben has a new home, of which these nodes hear.
fn ben_moves(world: &mut World, now: Instant, home: u64, seen_by: [&mut Rooms; 2]) {
    let moves = vec![world.to("ben", home)];
    let moved = world.apply(Command::Rehome { moves });
    for rooms in seen_by {
        rooms.pass_on(now, &moved);
    }
}

/// Ben is taken over by node 2, where cleo is; anna, at node 1, has said something to all, and to him.
#[tokio::test]
async fn a_new_home_asks_for_what_it_lacks() {
    let now = Instant::now();
    for (is_ahead, goes_on) in [(false, false), (true, false), (false, true)] {
        let (mut world, [mut one, mut two, mut three]) = three_nodes(&[("ben", 3), ("cleo", 2)]);
        for number in 1..=5 {
            let to: &[&str] = if number == 3 { &["ben"] } else { &[] };
            one.distribute(now, &"r".into(), message("anna", number, to), None);
        }
        // The last message is still on its way.
        hand_over(
            1,
            &mut one,
            &mut [(2, &mut two), (3, &mut three)],
            |body| matches!(body, Body::Data(data) if data.sequence < 5),
        );
        let moves = vec![world.to("ben", 2)];
        let moved = world.apply(Command::Rehome { moves });
        two.pass_on(now, &moved);
        three.pass_on(now, &moved);
        if !is_ahead {
            one.pass_on(now, &moved);
            assert_eq!(data_sent(&mut one), [], "nobody has asked yet");
        }
        if goes_on {
            let moves = vec![world.to("ben", 3)];
            one.pass_on(now, &world.apply(Command::Rehome { moves }));
        }
        let asked = ask(2, &mut two, &mut [(1, &mut one), (3, &mut three)]);
        assert_eq!(asked, [NodeId(1), NodeId(3)]);
        if is_ahead {
            assert_eq!(
                data_sent(&mut one),
                [],
                "it does not know that ben is there"
            );
            one.pass_on(now, &moved);
        }
        let to_ben = |number| (NodeId(2), number, "PA_ben".to_owned());
        let expected = if goes_on {
            vec![]
        } else {
            vec![to_ben(3), to_ben(5)]
        };
        assert_eq!(data_sent(&mut one), expected, "{is_ahead} {goes_on}");
        // The former home gives what it has, too: it cannot know whether anna's still answers.
        assert_eq!(data_sent(&mut three), [to_ben(3)]);
    }
}

#[tokio::test]
async fn homes_of_the_version_before_are_sent_all() {
    let now = Instant::now();
    let mut world = World::of_version(BEFORE);
    for name in ["anna", "ben", "cleo"] {
        let _ = world.join(name);
    }
    let moves = vec![world.to("ben", 3), world.to("cleo", 2)];
    world.apply(Command::Rehome { moves });
    let [mut one, mut two] = [1, 2].map(|id| world.rooms_at(NodeId(id)));
    one.distribute(now, &"r".into(), message("anna", 1, &[]), None);
    one.take_outgoing();
    ben_moves(&mut world, now, 2, [&mut one, &mut two]);
    assert_eq!(data_sent(&mut one), [(NodeId(2), 1, "PA_ben".to_owned())]);
    assert!(two.take_outgoing().is_empty(), "they would not understand");
}

/// The sender's home is lost with what it had not answered: whoever has its messages is asked.
#[tokio::test]
async fn when_a_home_is_lost_the_others_are_asked_for_what_came_from_it() {
    let now = Instant::now();
    let (mut world, [mut one, mut two, mut three]) = three_nodes(&[("cleo", 2)]);
    one.distribute(now, &"r".into(), message("anna", 1, &[]), None);
    hand_over(1, &mut one, &mut [(2, &mut two)], |_| true);
    ben_moves(&mut world, now, 3, [&mut two, &mut three]);
    // What ben had was with node 1, as was anna, so node 2 has to give it.
    let asked = ask(3, &mut three, &mut [(2, &mut two)]);
    assert_eq!(asked, [NodeId(1), NodeId(2)]);
    assert_eq!(data_sent(&mut two), [(NodeId(3), 1, "PA_ben".to_owned())]);
    let lost = world.apply(Command::NodeLost {
        node: NodeId(1),
        boot: BootId(1),
        cause: LossCause::Unreachable,
    });
    for rooms in [&mut two, &mut three] {
        rooms.pass_on(now, &lost);
    }
    assert_eq!(data_sent(&mut two), []);
    let asked = ask(3, &mut three, &mut [(2, &mut two)]);
    let asked = BTreeSet::from_iter(asked);
    assert_eq!(
        asked,
        BTreeSet::from([NodeId(2)]),
        "a lost node is not asked"
    );
    let to_ben = (NodeId(3), 1, "PA_ben".to_owned());
    assert!(data_sent(&mut two).contains(&to_ben));
}

/// Anna's home is silent, which the log does not say yet, when ben leaves a home that had not sent him her last message.
#[tokio::test]
async fn a_former_home_that_is_asked_gives_what_came_from_others() {
    let now = Instant::now();
    let (mut world, [mut one, mut two, mut three]) = three_nodes(&[("ben", 2), ("cleo", 3)]);
    one.distribute(now, &"r".into(), message("anna", 1, &[]), None);
    hand_over(1, &mut one, &mut [(2, &mut two), (3, &mut three)], |_| true);
    one.distribute(now, &"r".into(), message("anna", 2, &[]), None);
    hand_over(1, &mut one, &mut [(2, &mut two)], |_| true);
    ben_moves(&mut world, now, 3, [&mut two, &mut three]);
    let asked = ask(3, &mut three, &mut [(2, &mut two)]);
    assert_eq!(asked, [NodeId(1), NodeId(2)]);
    assert_eq!(data_sent(&mut two), [(NodeId(3), 2, "PA_ben".to_owned())]);
}

/// Everybody is at node 1, which dies with what is on its way to its clients.
#[tokio::test]
async fn a_room_on_one_node_has_a_keeper() {
    let mut world = World::of_version(BEFORE);
    let _anna = world.join("anna");
    let keeper = world.state.successor(world.participant("anna"));
    let keeper = keeper.expect("two others serve");
    let mut rooms = world.rooms_at(NodeId(1));
    let now = Instant::now();
    rooms.distribute(now, &"r".into(), message("anna", 1, &[]), None);
    assert_eq!(data_sent(&mut rooms), [], "there is nobody to keep it for");

    // Somebody who will be taken over by another node than the keeper.
    let other = ["b", "c", "d", "e", "f", "g"].into_iter().find(|name| {
        let _ = world.join(name);
        world.state.successor(world.participant(name)) != Some(keeper)
    });
    let other = other.expect("standbys are spread");
    let mut rooms = world.rooms_at(NodeId(1));
    let mut kept = world.rooms_at(keeper);
    let is_safe = Arc::new(AtomicBool::new(false));
    let told = is_safe.clone();
    let receipt = Receipt::new(move || told.store(true, Ordering::Relaxed));
    let sent = message("anna", 2, &[]);
    rooms.distribute(now, &"r".into(), sent, Some(receipt));
    assert!(!is_safe.load(Ordering::Relaxed), "until the keeper has it");
    for outgoing in rooms.take_outgoing() {
        assert_eq!((outgoing.to, outgoing.reliable), (keeper, true));
        let (from, body) = (NodeId(1), outgoing.body);
        kept.receive(now, Inbound { from, body });
    }
    assert!(is_safe.load(Ordering::Relaxed));
    let held = kept.held(now, &"r".into(), &"PA_anna".into());
    let numbers = (held.in_room, held.last_sequence, held.reached);
    assert_eq!(numbers, (false, 0, 2), "it has nobody to pass it on to");
    let change = world.apply(Command::NodeLost {
        node: NodeId(1),
        boot: BootId(1),
        cause: LossCause::Crashed,
    });
    kept.pass_on(now, &change);
    let home = world.participant(other).home;
    let again = data_sent(&mut kept);
    assert!(
        again.contains(&(home, 2, format!("PA_{other}"))),
        "{again:?}"
    );
    kept.forget_old(now + Cache::MOVE_AGE_MAX + Duration::from_millis(1));
    let moves = vec![world.to(other, keeper.0)];
    kept.pass_on(now, &world.apply(Command::Rehome { moves }));
    let moves = vec![world.to(other, home.0)];
    kept.pass_on(now, &world.apply(Command::Rehome { moves }));
    assert_eq!(data_sent(&mut kept), [], "it is too old");
}

/// What is sent again to somebody who has not come yet is sent again from here when they come to another node, if
/// who had it is gone.
#[tokio::test]
async fn what_was_sent_again_is_kept_for_who_moves_on() {
    let mut world = World::of_version(BEFORE);
    let _anna = world.join("anna");
    let _bert = world.join("bert");
    let _cleo = world.join("cleo");
    let moves = vec![world.to("bert", 2)];
    world.apply(Command::Rehome { moves });
    let mut rooms = world.rooms_at(NodeId(2));
    let now = Instant::now();
    let revision = world.state.revision;
    for sequence in [5, 6, 5] {
        let sent = message("anna", sequence, &[]);
        let data = to_proto(
            now,
            &"r".into(),
            &sent_now(&sent),
            Some(&"PA_bert".into()),
            revision,
        );
        let (from, body) = (NodeId(3), Body::Data(data));
        rooms.receive(now, Inbound { from, body });
    }
    let boot = world.state.nodes[&NodeId(3)].boot.0 + 100;
    let moves = vec![world.to("cleo", 3)];
    rooms.pass_on(now, &world.apply(Command::Rehome { moves }));
    assert_eq!(data_sent(&mut rooms), [], "who sent it has it still");
    rooms.pass_on(now, &world.start(3, boot));
    data_sent(&mut rooms);
    let moves = vec![world.to("bert", 3)];
    rooms.pass_on(now, &world.apply(Command::Rehome { moves }));
    let only = || "PA_bert".to_owned();
    assert_eq!(
        data_sent(&mut rooms),
        [(NodeId(3), 5, only()), (NodeId(3), 6, only())]
    );
}

/// The other home of a room dies: what was sent to it while nobody knew is kept by another node.
#[tokio::test]
async fn a_room_that_loses_its_other_home_has_a_keeper() {
    let mut world = World::of_version(BEFORE);
    let _anna = world.join("anna");
    let _bert = world.join("bert");
    let keeper = world.state.successor(world.participant("anna"));
    let keeper = keeper.expect("two others serve");
    let other = if keeper == NodeId(2) { 3 } else { 2 };
    let moves = vec![world.to("bert", other)];
    world.apply(Command::Rehome { moves });
    let mut rooms = world.rooms_at(NodeId(1));
    let now = Instant::now();
    rooms.distribute(now, &"r".into(), message("anna", 1, &[]), None);
    assert_eq!(data_sent(&mut rooms), [(NodeId(other), 1, String::new())]);
    let moves = vec![world.to("bert", 1)];
    rooms.pass_on(now, &world.apply(Command::Rehome { moves }));
    assert_eq!(data_sent(&mut rooms), [], "the other node has it");
    let moves = vec![world.to("bert", other)];
    rooms.pass_on(now, &world.apply(Command::Rehome { moves }));
    data_sent(&mut rooms);
    let lost = world.state.successor(world.participant("bert"));
    let change = world.apply(Command::NodeLost {
        node: NodeId(other),
        boot: BootId(other),
        cause: LossCause::Crashed,
    });
    rooms.pass_on(now, &change);
    let sent = data_sent(&mut rooms);
    if lost == Some(NodeId(1)) {
        assert!(
            sent.contains(&(keeper, 1, "PA_anna".to_owned())),
            "{sent:?}"
        );
    } else {
        assert!(
            sent.contains(&(keeper, 1, "PA_bert".to_owned())),
            "{sent:?}"
        );
    }
}
