//! Lists, the hash, the health service, and who is let in.

use flotilla_model::encoding::state_hash;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;

#[tokio::test]
async fn the_token_opens_the_service_and_health_needs_none() {
    let port = Port::open().await;
    let mut stranger = AdminClient::new(port.channel().await);
    let refused = stranger.get_status(proto::GetStatusRequest {}).await;
    let refused = refused.expect_err("is refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("authorization: Bearer"));

    let mut health = HealthClient::new(port.channel().await);
    for service in ["", "flotilla.admin.v1.Admin"] {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await;
        let answer = answer.expect("answers").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    port.close().await;
}

#[tokio::test]
async fn an_open_port_needs_protection() {
    let open: SocketAddr = ([0, 0, 0, 0], 7891).into();
    let loopback: SocketAddr = ([127, 0, 0, 1], 7891).into();
    let nothing = AdminAccess::default();
    assert!(super::super::check_access(loopback, &nothing).is_ok());
    let refused = super::super::check_access(open, &nothing);
    assert!(matches!(refused, Err(AdminError::Unprotected { .. })));
    let mut access = AdminAccess {
        token: Some("t".to_owned()),
        tls: None,
    };
    assert!(super::super::check_access(open, &access).is_ok());
    access.token = None;
    let mut tls = super::super::AdminTls {
        certificate: String::new(),
        key: String::new(),
        client_authority: None,
    };
    access.tls = Some(tls.clone());
    assert!(super::super::check_access(open, &access).is_err());
    tls.client_authority = Some(String::new());
    access.tls = Some(tls);
    assert!(super::super::check_access(open, &access).is_ok());
}

#[tokio::test]
async fn shows_the_group_nodes_and_rooms() {
    let port = Port::open().await;
    port.call().await;
    let mut client = port.client().await;

    let status = client.get_status(proto::GetStatusRequest {}).await;
    let status = status.expect("answers").into_inner();
    let group = &status.groups[0];
    assert_eq!(group.role(), proto::GroupRole::Leader);
    assert_eq!((group.leader, group.members.len()), (Some(1), 1));
    assert!(group.members[0].voter);
    assert!(group.applied.is_some_and(|applied| applied.index > 0));

    let consistency = proto::Consistency::Linearizable.into();
    let nodes = client
        .list_nodes(proto::ListNodesRequest { consistency })
        .await;
    let nodes = nodes.expect("answers").into_inner();
    let served: Vec<_> = nodes
        .nodes
        .iter()
        .map(|node| (node.id, node.participants, node.rooms))
        .collect();
    assert_eq!(served, [(1, 1, 1), (2, 1, 1)]);
    assert_eq!(nodes.nodes[0].state(), proto::NodeState::Serving);

    let rooms = client.list_rooms(proto::ListRoomsRequest::default()).await;
    let rooms = rooms.expect("answers").into_inner();
    let room = &rooms.rooms[0];
    assert_eq!((room.name.as_str(), room.participants), ("call", 2));
    assert_eq!((room.tracks, room.routes, room.close_at_ms), (1, 1, None));
    let position = rooms.position.expect("is told");
    assert_eq!(position.revision, port.group.state().revision.0);
    assert!(position.log_index > 0);
    port.close().await;
}

#[tokio::test]
async fn shows_people_tracks_and_relays_of_a_room() {
    let port = Port::open().await;
    port.call().await;
    let mut client = port.client().await;
    let room = "call".to_owned();

    let request = proto::ListParticipantsRequest {
        room: room.clone(),
        ..proto::ListParticipantsRequest::default()
    };
    let people = client.list_participants(request).await;
    let people = people.expect("answers").into_inner();
    assert_eq!(people.room_version, 4);
    let first = &people.participants[0];
    assert_eq!((first.identity.as_str(), first.home), ("a", 1));
    assert_eq!(first.state(), proto::ParticipantState::Joined);
    assert_eq!(first.tracks, ["TR_1"]);

    let request = proto::ListTracksRequest {
        room: room.clone(),
        consistency: proto::Consistency::Stale.into(),
        page: None,
    };
    let tracks = client.list_tracks(request).await;
    let tracks = tracks.expect("answers").into_inner();
    let track = &tracks.tracks[0];
    assert_eq!(track.source(), proto::TrackSource::Camera);
    assert_eq!((track.width, track.home), (640, 1));

    for room in [room, String::new()] {
        let request = proto::ListRoutesRequest {
            room,
            ..proto::ListRoutesRequest::default()
        };
        let routes = client.list_routes(request).await;
        let routes = routes.expect("answers").into_inner().routes;
        assert_eq!(routes, track.routes);
    }
    let [route] = &track.routes[..] else {
        panic!("one relay: {:?}", track.routes);
    };
    assert_eq!(
        (route.from, route.to, route.publisher.as_str()),
        (1, 2, "a")
    );
    let live = route.live.as_ref().expect("is counted here");
    assert_eq!(live.side(), proto::RelaySide::Sender);
    assert_eq!((live.packets, live.packets_repaired), (1234, 5));
    port.close().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let port = Port::open().await;
    let names: Vec<String> = (0..7).map(|number| format!("room {number}")).collect();
    for name in &names {
        propose(&port.group, join(name, "a", 1)).await;
    }
    let mut client = port.client().await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = proto::ListRoomsRequest {
            consistency: 0,
            page: Some(proto::Page { size: 3, token }),
        };
        let answer = client.list_rooms(request).await;
        let answer = answer.expect("answers").into_inner();
        assert!(answer.rooms.len() <= 3);
        seen.extend(answer.rooms.into_iter().map(|room| room.name));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, names);
    port.close().await;
}

#[tokio::test]
async fn refuses_what_is_not_there_with_clear_words() {
    let port = Port::open().await;
    let mut client = port.client().await;
    let request = proto::GetRoomRequest {
        room: "nowhere".to_owned(),
        consistency: 0,
    };
    let missing = client.get_room(request).await.expect_err("is missing");
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(missing.message(), "room \"nowhere\" does not exist");
    let unnamed = client.get_room(proto::GetRoomRequest::default()).await;
    let unnamed = unnamed.expect_err("needs a name");
    assert_eq!(unnamed.code(), Code::InvalidArgument);
    assert_eq!(unnamed.message(), "room is needed");
    let request = proto::ListNodesRequest { consistency: 77 };
    let unknown = client.list_nodes(request).await.expect_err("is unknown");
    assert_eq!(unknown.code(), Code::InvalidArgument);
    port.close().await;
}

#[tokio::test]
async fn hashes_the_state_of_now_and_of_before() {
    let port = Port::open().await;
    let before = port.group.applied();
    port.call().await;
    let mut client = port.client().await;
    let newest = client.get_state_hash(proto::GetStateHashRequest { log_index: 0 });
    let newest = newest.await.expect("answers").into_inner();
    let expected = format!("{:016x}", state_hash(&port.group.state()));
    assert_eq!(newest.state_hash, expected);

    let log_index = before.log_index.expect("something is applied");
    let earlier = client.get_state_hash(proto::GetStateHashRequest { log_index });
    let earlier = earlier.await.expect("answers").into_inner();
    assert_eq!(
        earlier.state_hash,
        format!("{:016x}", state_hash(&before.state))
    );
    let position = earlier.position.expect("is told");
    assert_eq!(
        (position.log_index, position.revision),
        (log_index, before.state.revision.0)
    );

    let request = proto::GetStateHashRequest { log_index: 1 << 40 };
    let future = client
        .get_state_hash(request)
        .await
        .expect_err("is not there");
    assert_eq!(future.code(), Code::OutOfRange);
    port.close().await;
}
