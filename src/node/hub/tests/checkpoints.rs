//! What a node holds of sessions that are not its own.

use super::*;

/// Who kept a session's checkpoints for a while gets no newer ones.
#[tokio::test]
async fn a_node_that_keeps_a_session_no_more_forgets_its_keys() {
    let now = Instant::now();
    let (world, mut rooms) = three_nodes(&[]);
    let anna = world.participant("anna");
    let keeper = world.state.keepers(anna).next().expect("nodes serve");
    for (id, rooms) in (1..).map(NodeId).zip(&mut rooms) {
        rooms.receive(
            now,
            Inbound {
                from: NodeId(1),
                body: Body::Checkpoint(proto::Checkpoint {
                    room: "r".into(),
                    sid: anna.sid.0.clone(),
                    epoch: anna.epoch.0,
                    number: 7,
                    publisher: Bytes::from_static(b"keys"),
                    ..proto::Checkpoint::default()
                }),
            },
        );
        // Former keepers are asked as well while a session is taken over.
        for (seconds, is_held) in [(0, true), (9, true), (10, id == NodeId(1) || id == keeper)] {
            let at = now + Duration::from_secs(seconds);
            rooms.forget_old(at);
            let held = rooms.held(at, &"r".into(), &anna.sid);
            let number = if is_held { 7 } else { 0 };
            assert_eq!(held.number, number, "node {id} after {seconds} s");
            assert_eq!(held.publisher.is_empty(), !is_held);
        }
    }
}
