//! Streams of changes.

use std::time::Duration;

use tonic::{Code, Streaming};

use super::*;
use crate::admin::proto::event::What;
use crate::admin::proto::watch_response::Message;

async fn next(stream: &mut Streaming<proto::WatchResponse>) -> Message {
    let next = tokio::time::timeout(Duration::from_secs(10), stream.message());
    let response = next.await.expect("comes in time").expect("is no error");
    response
        .and_then(|response| response.message)
        .expect("is not the end")
}

async fn change(stream: &mut Streaming<proto::WatchResponse>) -> proto::Change {
    loop {
        match next(stream).await {
            Message::Change(change) => return change,
            Message::Progress(_) => {}
            Message::Snapshot(snapshot) => panic!("no change: {snapshot:?}"),
        }
    }
}

fn kinds(change: &proto::Change) -> Vec<&'static str> {
    change
        .events
        .iter()
        .map(|event| match event.what.as_ref().expect("is something") {
            What::ParticipantJoined(_) => "joined",
            What::ParticipantLeft(_) => "left",
            What::TrackPublished(_) => "published",
            What::RoomCreated(_) => "created",
            What::RoomClosed(_) => "closed",
            What::RoutesChanged(_) => "routes",
            _ => "other",
        })
        .collect()
}

fn watch(room: &str, after_revision: Option<u64>) -> proto::WatchRequest {
    proto::WatchRequest {
        room: room.to_owned(),
        after_revision,
    }
}

#[tokio::test]
async fn a_room_is_shown_and_then_its_changes_in_order() {
    let port = Port::open().await;
    propose(&port.group, join("call", "a", 1)).await;
    let mut client = port.client().await;
    let stream = client.watch(watch("call", None)).await;
    let mut stream = stream.expect("is let in").into_inner();
    let Message::Snapshot(snapshot) = next(&mut stream).await else {
        panic!("begins with the state");
    };
    assert!(!snapshot.more);
    assert_eq!(snapshot.rooms[0].name, "call");
    assert_eq!(snapshot.participants[0].identity, "a");
    let begun = snapshot.position.expect("is told");

    propose(&port.group, join("elsewhere", "x", 1)).await;
    propose(&port.group, join("call", "b", 2)).await;
    propose(&port.group, publish("call", "a", "TR_1")).await;
    let joined = change(&mut stream).await;
    assert_eq!(kinds(&joined), ["joined"]);
    assert_eq!(joined.events[0].room_version, 3);
    let position = joined.position.expect("is told");
    assert_eq!(position.revision, begun.revision + 2);
    let published = change(&mut stream).await;
    assert_eq!(kinds(&published), ["published", "routes"]);
    let Some(What::RoutesChanged(routes)) = &published.events[1].what else {
        panic!("routes are told");
    };
    assert_eq!((routes.count, routes.routes[0].to), (1, 2));
    drop(stream);

    // The connection broke: what came after the last seen change is not lost.
    let stream = client.watch(watch("call", Some(position.revision))).await;
    let mut stream = stream.expect("resumes").into_inner();
    assert_eq!(change(&mut stream).await, published);

    port.close().await;
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.message()).await;
    let ended = ended.expect("ends with the node").expect_err("says why");
    assert_eq!(ended.code(), Code::Unavailable);
}

#[tokio::test]
async fn everything_is_shown_without_a_room() {
    let port = Port::open().await;
    port.call().await;
    let mut client = port.client().await;
    let stream = client.watch(watch("", None)).await;
    let mut stream = stream.expect("is let in").into_inner();
    let Message::Snapshot(snapshot) = next(&mut stream).await else {
        panic!("begins with the state");
    };
    let shown = (snapshot.nodes.len(), snapshot.rooms.len());
    assert_eq!((shown, snapshot.participants.len()), ((2, 1), 0));
    propose(&port.group, Command::RemoveNode { node: NodeId(2) }).await;
    let removed = change(&mut stream).await;
    // `b` moved, which ended the relay; the node is gone.
    assert_eq!(kinds(&removed), ["other", "routes", "other"]);
    let room = "call".into();
    propose(&port.group, Command::DeleteRoom { room }).await;
    let closed = change(&mut stream).await;
    assert_eq!(kinds(&closed), ["left", "left", "closed"]);
    port.close().await;
}

#[tokio::test]
async fn changes_that_are_not_known_are_refused() {
    let port = Port::open().await;
    let mut client = port.client().await;
    let refused = client.watch(watch("", Some(1 << 40))).await;
    let refused = refused.expect_err("is in the future");
    assert_eq!(refused.code(), Code::OutOfRange);
    port.close().await;
}
