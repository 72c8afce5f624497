//! Routes after each kind of change, beside what the definition says.

use super::*;
use crate::placement;
use crate::room::Route;

/// `from>to` of a track's routes.
fn routes(replica: &Replica, track: &str) -> Vec<String> {
    let room = replica.room("r");
    assert_eq!(room.routes, placement::routes(room));
    let routes = room.routes.get(&TrackSid::from(track));
    let text = |route: &Route| format!("{}>{}", route.from, route.to);
    routes.into_iter().flatten().map(text).collect()
}

fn wish(identity: &str, track: &str, wanted: bool) -> Command {
    Command::UpdateSubscriptions {
        room: "r".into(),
        identity: identity.into(),
        tracks: BTreeMap::from([(track.into(), wanted)]),
    }
}

#[test]
fn a_track_goes_once_to_each_node_with_a_subscriber() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    assert_eq!(routes(&replica, "TR_1"), [""; 0]);
    let (_, events) = replica.done(join("r", "b", 2));
    assert_eq!(told(&events), ["b joined", "routes"]);
    let (_, events) = replica.done(join("r", "c", 2));
    assert_eq!(told(&events), ["c joined"]);
    replica.done(join("r", "d", 3));
    assert_eq!(routes(&replica, "TR_1"), ["1>2", "1>3"]);

    replica.done(leave("r", "b"));
    assert_eq!(routes(&replica, "TR_1"), ["1>2", "1>3"]);
    let (_, events) = replica.done(leave("r", "c"));
    assert_eq!(told(&events), ["c left: ClientInitiated", "routes"]);
    assert_eq!(routes(&replica, "TR_1"), ["1>3"]);
    replica.done(leave("r", "a"));
    assert_eq!(routes(&replica, "TR_1"), [""; 0]);
}

#[test]
fn routes_wait_for_the_announcement() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(join("r", "b", 2));
    let silent = Box::new(track("TR_1", Source::Camera, false));
    replica.done(Command::PublishTrack {
        room: "r".into(),
        identity: "a".into(),
        sid: "PA_a".into(),
        track: silent,
    });
    assert_eq!(routes(&replica, "TR_1"), [""; 0]);
    let (_, events) = replica.done(Command::UpdateTrack {
        room: "r".into(),
        identity: "a".into(),
        sid: "PA_a".into(),
        track: Box::new(track("TR_1", Source::Camera, true)),
    });
    assert_eq!(told(&events), ["TR_1 changed", "routes"]);
    assert_eq!(routes(&replica, "TR_1"), ["1>2"]);
}

#[test]
fn wishes_and_permissions_open_and_close_routes() {
    let mut replica = Replica::new();
    replica.done(join("r", "a", 1));
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    replica.done(join("r", "b", 2));
    let mut selective = join_of("r", "c", 2);
    selective.auto_subscribe = false;
    replica.done(Command::Join(Box::new(selective)));

    let (_, events) = replica.done(wish("b", "TR_1", false));
    assert_eq!(told(&events), ["b looks again", "routes"]);
    assert_eq!(routes(&replica, "TR_1"), [""; 0]);
    replica.done(wish("c", "TR_1", true));
    assert_eq!(routes(&replica, "TR_1"), ["1>2"]);
    let (_, events) = replica.done(wish("c", "TR_1", true));
    assert_eq!(told(&events), [""; 0]);
    replica.done(wish("b", "TR_1", true));
    let explicit = &replica.participant("r", "b").subscriptions.explicit;
    assert!(explicit.is_empty(), "what is automatic takes no space");
    replica.done(wish("c", "TR_1", false));
    assert_eq!(routes(&replica, "TR_1"), ["1>2"]);

    let mut deaf = everything();
    deaf.can_subscribe = false;
    replica.done(permit("r", "b", deaf));
    assert_eq!(routes(&replica, "TR_1"), [""; 0]);
    replica.done(permit("r", "b", everything()));
    assert_eq!(routes(&replica, "TR_1"), ["1>2"]);
    replica.done(Command::SetSubscriptionPermission {
        room: "r".into(),
        identity: "a".into(),
        permission: SubscriptionPermission {
            all_participants: false,
            allowed: BTreeMap::new(),
        },
    });
    assert_eq!(routes(&replica, "TR_1"), [""; 0]);
}

#[test]
fn a_moved_publisher_takes_its_routes_along_in_its_new_epoch() {
    let mut replica = Replica::new();
    for (identity, home) in [("a", 1), ("b", 2), ("c", 3)] {
        replica.done(join("r", identity, home));
    }
    replica.done(publish("r", "a", "TR_1", Source::Camera));
    let moved = |replica: &Replica, identity: &str, home| Command::Rehome {
        moves: vec![Rehome {
            room: "r".into(),
            identity: identity.into(),
            sid: ParticipantSid(format!("PA_{identity}")),
            epoch: replica.participant("r", identity).epoch,
            home: NodeId(home),
        }],
    };
    replica.done(moved(&replica, "a", 2));
    assert_eq!(routes(&replica, "TR_1"), ["2>3"]);
    let epoch = replica.participant("r", "a").epoch;
    let carried = replica.room("r").routes[&TrackSid::from("TR_1")].first();
    assert_eq!(carried.map(|route| route.epoch), Some(epoch));
    replica.done(moved(&replica, "b", 1));
    assert_eq!(routes(&replica, "TR_1"), ["2>1", "2>3"]);
    assert_eq!(replica.room("r").homes.len(), 3);
}

/// A room with thousands of people is no place for a look at everybody for everybody.
#[test]
fn a_room_of_3000_is_filled_and_emptied() {
    let mut replica = Replica::new();
    for number in 0..3000 {
        replica.done(join("r", &number.to_string(), number % 3 + 1));
        if number % 10 == 0 {
            let identity = number.to_string();
            replica.done(publish(
                "r",
                &identity,
                &format!("TR_{number}"),
                Source::Camera,
            ));
        }
    }
    assert_eq!(
        replica.room("r").routes,
        placement::routes(replica.room("r"))
    );
    assert_eq!(replica.room("r").routes.len(), 300);
    for number in 0..1000 {
        replica.done(leave("r", &number.to_string()));
    }
    replica.done(Command::NodeLost {
        node: NodeId(2),
        boot: BootId(1),
        cause: LossCause::Crashed,
    });
    assert_eq!(
        replica.room("r").routes,
        placement::routes(replica.room("r"))
    );
    replica.done(Command::DeleteRoom { room: "r".into() });
}
