//! Twirp requests into commands, outcomes into responses.

use super::*;
use crate::data::inspect;
use crate::session::testing::{WALL, World, claims, config, microphone};
use flotilla_model::command::{Entry, Rejection};
use flotilla_model::id::RequestId;
use proptest::prelude::*;

fn admin() -> Claims {
    let mut claims = claims("admin");
    let video = claims.video.get_or_insert_default();
    video.room_admin = true;
    video.room_create = true;
    video.room_list = true;
    claims
}

fn call_with(
    config: &SessionConfig,
    claims: &Claims,
    method: &str,
    body: &serde_json::Value,
) -> Result<Call, ApiError> {
    let body = body.to_string();
    let request = ApiRequest {
        method,
        format: Format::Json,
        body: body.as_bytes(),
        claims,
        config,
        now: WALL,
    };
    parse(&request, &mut IdSource::new([9; 32]))
}

fn call(method: &str, body: &serde_json::Value) -> Result<Call, ApiError> {
    call_with(&config(), &admin(), method, body)
}

/// A request carried out all the way, as a node does.
fn run(
    world: &mut World,
    method: &str,
    body: serde_json::Value,
) -> Result<serde_json::Value, ApiError> {
    let bytes = match call(method, &body)? {
        Call::Propose { command, answer } => {
            let entry = Entry {
                at: world.wall(),
                request: RequestId(1 << 64 | world.state.revision.0 as u128),
                command,
            };
            let applied = world.state.apply(&entry);
            let result = applied.result.map_err(CommitError::Rejected);
            answer.finish(result.as_ref())?
        }
        Call::Read(query) => query.run(&world.state)?,
        Call::Send(send) => send.finish()?,
    };
    Ok(serde_json::from_slice(&bytes).expect("JSON"))
}

use serde_json::json;

#[test]
fn rooms_are_made_listed_changed_and_deleted() {
    let mut world = World::new();
    let room = run(
        &mut world,
        "CreateRoom",
        json!({"name": "room", "emptyTimeout": 60, "max_participants": 4}),
    );
    let room = room.expect("created");
    assert_eq!(
        (&room["name"], &room["emptyTimeout"]),
        (&json!("room"), &json!(60))
    );
    assert_eq!(
        (&room["departureTimeout"], &room["maxParticipants"]),
        (&json!(20), &json!(4))
    );
    assert!(
        room["sid"]
            .as_str()
            .is_some_and(|sid| sid.starts_with("RM_"))
    );
    let rooms = run(&mut world, "ListRooms", json!({"names": ["room", "none"]})).expect("listed");
    assert_eq!(rooms["rooms"].as_array().map(Vec::len), Some(1));
    let room = run(
        &mut world,
        "UpdateRoomMetadata",
        json!({"room": "room", "metadata": "m"}),
    );
    assert_eq!(room.expect("updated")["metadata"], json!("m"));
    run(&mut world, "DeleteRoom", json!({"room": "room"})).expect("deleted");
    let gone = run(&mut world, "DeleteRoom", json!({"room": "room"})).expect_err("gone");
    assert_eq!((gone.code, gone.status()), (Code::NotFound, 404));
    assert_eq!(
        gone.body(),
        br#"{"code":"not_found","msg":"requested room does not exist"}"#
    );
}

#[test]
fn participants_are_listed_changed_muted_and_removed() {
    let mut world = World::new();
    let alice = world.enter("alice");
    let track = world.publish(alice, microphone());
    let who = json!({"room": "room", "identity": "alice"});
    let listed = run(&mut world, "ListParticipants", json!({"room": "room"})).expect("listed");
    assert_eq!(listed["participants"][0]["identity"], json!("alice"));
    let found = run(&mut world, "GetParticipant", who.clone()).expect("found");
    assert_eq!(found["tracks"][0]["sid"], json!(track.as_str()));
    let nobody = json!({"room": "room", "identity": "nobody"});
    let missing = run(&mut world, "GetParticipant", nobody).expect_err("missing");
    assert_eq!(missing.code, Code::NotFound);
    let changed = run(
        &mut world,
        "UpdateParticipant",
        json!({"room": "room", "identity": "alice", "name": "A", "attributes": {"k": "v"},
               "permission": {"canPublish": true, "canPublishSources": ["MICROPHONE"]}}),
    );
    let changed = changed.expect("changed");
    assert_eq!(
        (&changed["name"], &changed["attributes"]["k"]),
        (&json!("A"), &json!("v"))
    );
    let muted =
        json!({"room": "room", "identity": "alice", "trackSid": track.as_str(), "muted": true});
    let muted = run(&mut world, "MutePublishedTrack", muted).expect("muted");
    assert_eq!(muted["track"]["muted"], json!(true));
    let subscriptions = json!({"room": "room", "identity": "alice", "trackSids": ["TR_1"]});
    run(&mut world, "UpdateSubscriptions", subscriptions).expect("updated");
    run(&mut world, "RemoveParticipant", who.clone()).expect("removed");
    assert!(world.room().participants.is_empty());
    let (room, alice) = (RoomName::from("room"), Identity::from("alice"));
    assert!(
        world
            .state
            .is_revoked(&room, &alice, UnixMillis(WALL.0 - 1000))
    );
    assert!(!world.state.is_revoked(&room, &alice, WALL));
    assert!(
        run(&mut world, "RemoveParticipant", who).is_ok(),
        "revoked once more"
    );
}

#[test]
fn unmuting_is_a_matter_of_configuration() {
    let body = json!({"room": "room", "identity": "alice", "trackSid": "TR_1"});
    let refused = call("MutePublishedTrack", &body).expect_err("refused");
    assert_eq!(
        (refused.code, refused.status()),
        (Code::FailedPrecondition, 412)
    );
    let allowed = SessionConfig {
        remote_unmute: true,
        ..config()
    };
    assert!(call_with(&allowed, &admin(), "MutePublishedTrack", &body).is_ok());
}

#[test]
fn every_method_asks_for_its_grant() {
    let body = json!({"room": "room", "name": "room", "identity": "alice", "trackSid": "TR_1", "muted": true});
    for method in [
        "CreateRoom",
        "ListRooms",
        "DeleteRoom",
        "ListParticipants",
        "GetParticipant",
        "RemoveParticipant",
        "MutePublishedTrack",
        "UpdateParticipant",
        "UpdateSubscriptions",
        "SendData",
        "UpdateRoomMetadata",
    ] {
        let refused = call_with(&config(), &claims("guest"), method, &body).expect_err(method);
        assert_eq!(
            (refused.code, refused.status()),
            (Code::Unauthenticated, 401),
            "{method}"
        );
        assert!(call(method, &body).is_ok(), "{method}");
        let mut elsewhere = admin();
        elsewhere.video.get_or_insert_default().room = "elsewhere".into();
        let by_room = !matches!(method, "CreateRoom" | "ListRooms" | "DeleteRoom");
        assert_eq!(
            call_with(&config(), &elsewhere, method, &body).is_err(),
            by_room,
            "{method}"
        );
    }
}

#[test]
fn what_cannot_be_done_is_said_so() {
    for (method, body, code) in [
        ("Nothing", json!({}), Code::BadRoute),
        ("MoveParticipant", json!({}), Code::Unimplemented),
        ("CreateRoom", json!([]), Code::Malformed),
        ("CreateRoom", json!({}), Code::InvalidArgument),
        (
            "CreateRoom",
            json!({"name": "x".repeat(257)}),
            Code::InvalidArgument,
        ),
        (
            "GetParticipant",
            json!({"room": "room"}),
            Code::InvalidArgument,
        ),
        (
            "SendData",
            json!({"room": "room", "nonce": "AAAA"}),
            Code::InvalidArgument,
        ),
        (
            "UpdateParticipant",
            json!({"room": "room", "identity": "a", "metadata": "x".repeat(600 << 10)}),
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(
            call(method, &body).expect_err(method).code,
            code,
            "{method}"
        );
    }
    let unavailable = ApiError::from(&CommitError::Unavailable("no leader".into()));
    assert_eq!(
        (unavailable.code, unavailable.status()),
        (Code::Unavailable, 503)
    );
    let full = ApiError::from(&CommitError::Rejected(Rejection::RoomFull));
    assert_eq!(full.status(), 429);
}

#[test]
fn both_formats_are_spoken() {
    assert_eq!(
        Format::of("application/json; charset=utf-8"),
        Ok(Format::Json)
    );
    assert_eq!(Format::of("application/protobuf"), Ok(Format::Protobuf));
    assert_eq!(Format::of("text/plain").expect_err("refused").status(), 404);
    let body = proto::CreateRoomRequest {
        name: "room".into(),
        ..proto::CreateRoomRequest::default()
    };
    let request = ApiRequest {
        method: "CreateRoom",
        format: Format::Protobuf,
        body: &body.encode_to_vec(),
        claims: &admin(),
        config: &config(),
        now: WALL,
    };
    let call = parse(&request, &mut IdSource::new([9; 32])).expect("understood");
    let Call::Propose { command, answer } = call else {
        panic!("a proposal");
    };
    let mut world = World::new();
    let applied = world.state.apply(&Entry {
        at: WALL,
        request: RequestId(99),
        command,
    });
    let result = applied.result.map_err(CommitError::Rejected);
    let bytes = answer.finish(result.as_ref()).expect("created");
    let room = proto::Room::decode(bytes.as_slice()).expect("a room");
    assert_eq!(room.name, "room");
}

#[test]
fn data_goes_to_those_it_names() {
    let mut world = World::new();
    let bob = world.enter("bob");
    let bob = world.seats[bob].session.sid().to_string();
    let send = |body: serde_json::Value| match call("SendData", &body) {
        Ok(Call::Send(send)) => send,
        other => panic!("unexpected: {other:?}"),
    };
    let everybody = send(
        json!({"room": "room", "data": "aGk=", "kind": "LOSSY", "topic": "t", "nonce": "AAAAAAAAAAAAAAAAAAAAAA=="}),
    );
    assert_eq!(everybody.nonce, Some([0; 16]));
    let message = everybody.message(world.room());
    assert_eq!(
        (message.channel, message.destinations.len()),
        (Channel::Lossy, 0)
    );
    assert!(message.is_for(&"bob".into()));
    let packet = proto::DataPacket::decode(message.payload).expect("a packet");
    let Some(proto::data_packet::Value::User(user)) = packet.value else {
        panic!("a user packet");
    };
    assert_eq!(
        (user.payload, user.topic),
        (b"hi".to_vec(), Some("t".into()))
    );

    let by_sid = send(json!({"room": "room", "destinationSids": [bob]})).message(world.room());
    assert_eq!(by_sid.destinations, [Identity::from("bob")]);
    assert_eq!(
        inspect(&by_sid.payload).map(|seen| seen.destinations.len()),
        Ok(1)
    );
    let gone = send(json!({"room": "room", "destinationSids": ["PA_gone"]})).message(world.room());
    assert!(!gone.is_for(&"bob".into()));
}

proptest! {
    #[test]
    fn any_body_is_read_or_refused(
        method in 0..11usize,
        body in proptest::collection::vec(any::<u8>(), 0..100),
        json in any::<bool>(),
    ) {
        let methods = [
            "CreateRoom", "ListRooms", "DeleteRoom", "ListParticipants", "GetParticipant",
            "RemoveParticipant", "MutePublishedTrack", "UpdateParticipant", "UpdateSubscriptions",
            "SendData", "UpdateRoomMetadata",
        ];
        let request = ApiRequest {
            method: methods[method],
            format: if json { Format::Json } else { Format::Protobuf },
            body: &body,
            claims: &admin(),
            config: &config(),
            now: WALL,
        };
        let _ = parse(&request, &mut IdSource::new([9; 32]));
    }
}
