//! What operators have the cluster do.

use flotilla_model::command::Rejection;
use flotilla_raft::ProposeError;
use tonic::Code;

use super::*;

#[tokio::test]
async fn closes_rooms_and_removes_participants() {
    let port = Port::open().await;
    port.call().await;
    let mut client = port.client().await;
    let remove = |identity: &str, revoke_tokens| proto::RemoveParticipantRequest {
        room: "call".to_owned(),
        identity: identity.to_owned(),
        revoke_tokens,
    };
    let removed = client.remove_participant(remove("b", true)).await;
    let removed = removed.expect("is removed").into_inner();
    assert_eq!(removed.room_version, 5);
    let position = removed.position.expect("is told");
    assert_eq!(position.revision, port.group.state().revision.0);
    let again = port
        .group
        .propose(RequestId(rand::random()), join("call", "b", 2))
        .await;
    assert_eq!(again, Err(ProposeError::Rejected(Rejection::TokenRevoked)));
    let gone = client.remove_participant(remove("c", false)).await;
    assert_eq!(gone.expect_err("is not there").code(), Code::NotFound);

    let room = "call".to_owned();
    let closed = client.close_room(proto::CloseRoomRequest { room: room.clone() });
    assert_eq!(
        closed.await.expect("is closed").into_inner().room_version,
        6
    );
    assert!(port.group.state().rooms.is_empty());
    let again = client.close_room(proto::CloseRoomRequest { room }).await;
    let again = again.expect_err("is closed already");
    assert_eq!(again.code(), Code::NotFound);
    assert_eq!(again.message(), "requested room does not exist");
    port.close().await;
}

#[tokio::test]
async fn builds_a_snapshot_and_waits_for_it() {
    let port = Port::open().await;
    let applied = port.group.status().applied;
    let mut client = port.client().await;
    let built = client
        .trigger_snapshot(proto::TriggerSnapshotRequest { purge_log: false })
        .await;
    let built = built.expect("is built").into_inner();
    let index = built.snapshot.map(|snapshot| snapshot.index);
    assert!(index >= applied.map(|applied| applied.index));
    assert_eq!(port.group.status().snapshot.map(|s| s.index), index);
    assert_eq!(built.purged, None, "the log stays");
    let purged = client
        .trigger_snapshot(proto::TriggerSnapshotRequest { purge_log: true })
        .await;
    let purged = purged.expect("is built").into_inner().purged;
    assert!(purged.map(|purged| purged.index) >= index);
    assert_eq!(
        port.group.status().purged.map(|s| s.index),
        purged.map(|purged| purged.index)
    );
    port.close().await;
}

#[tokio::test]
async fn removes_nodes_but_not_the_one_that_is_asked() {
    let port = Port::open().await;
    port.call().await;
    let mut client = port.client().await;
    let removed = client
        .remove_node(proto::RemoveNodeRequest { node: 2 })
        .await;
    let removed = removed.expect("is removed").into_inner();
    assert_eq!((removed.was_member, removed.was_registered), (false, true));
    let state = port.group.state();
    let room = &state.rooms[&"call".into()];
    assert_eq!(room.participants.len(), 2, "whom it served is taken over");
    assert_eq!(room.homes.get(&NodeId(1)), Some(&2));

    let again = client
        .remove_node(proto::RemoveNodeRequest { node: 2 })
        .await;
    assert_eq!(again.expect_err("is gone").code(), Code::NotFound);
    let own = client
        .remove_node(proto::RemoveNodeRequest { node: 1 })
        .await;
    let own = own.expect_err("cannot go");
    assert_eq!(own.code(), Code::FailedPrecondition);
    let unnamed = client
        .remove_node(proto::RemoveNodeRequest { node: 0 })
        .await;
    assert_eq!(
        unnamed.expect_err("is unnamed").code(),
        Code::InvalidArgument
    );
    port.close().await;
}

#[tokio::test]
async fn refuses_members_that_cannot_be() {
    let port = Port::open().await;
    let mut client = port.client().await;
    let moved = client.transfer_leader(proto::TransferLeaderRequest { node: 9 });
    let moved = moved.await.expect_err("is no voter");
    assert!(
        matches!(moved.code(), Code::FailedPrecondition | Code::NotFound),
        "{moved}"
    );
    let added = client.add_node(proto::AddNodeRequest {
        node: 3,
        cluster_address: "127.0.0.1:1".to_owned(),
        incarnation: 0,
    });
    let added = added.await.expect_err("has no incarnation");
    assert_eq!(added.code(), Code::InvalidArgument);
    assert!(added.message().contains("flotilla cluster join"));
    port.close().await;
}
