//! Everybody proposes, everybody applies the same; restarts and snapshots.

use std::time::Duration;

use flotilla_model::command::{Command, Outcome};
use flotilla_model::id::{RoomName, UnixMillis};
use flotilla_raft::ProposeError;

use crate::harness::{Cluster, create, eventually, has_room, refused, request};

#[tokio::test]
async fn every_node_proposes_and_reads_its_own_writes() {
    let cluster = Cluster::of(3, |_| {}).await;
    let mut times = Vec::new();
    for (id, node) in &cluster.nodes {
        let name = format!("by-{id}");
        let reply = node.propose(create(&name)).await.expect("applied");
        let Outcome::Room(room) = reply.outcome else {
            panic!("{reply:?}");
        };
        times.push(room.created_at);
        assert!(has_room(&node.group.state(), &name), "not in its own state");
    }
    assert!(times.is_sorted() && times[0] > UnixMillis(0));
    for node in cluster.nodes.values() {
        let state = node.read().await.expect("readable");
        assert_eq!(state.rooms.len(), 3);
    }
    cluster.await_equal().await;
}

#[tokio::test]
async fn rejections_come_back_from_every_node() {
    let cluster = Cluster::of(3, |_| {}).await;
    for node in cluster.nodes.values() {
        let command = Command::SetRoomMetadata {
            room: RoomName::from("nowhere"),
            metadata: String::new(),
        };
        let error = refused(node.propose(command).await);
        assert!(matches!(error, ProposeError::Rejected(_)), "{error}");
    }
}

#[tokio::test]
async fn many_writers_share_few_entries() {
    let cluster = Cluster::of(3, |_| {}).await;
    let before = cluster.any().group.status().last_log.expect("a log");
    let mut writers = tokio::task::JoinSet::new();
    for (id, node) in &cluster.nodes {
        for n in 0..300 {
            let (group, name) = (node.group.clone(), format!("{id}-{n}"));
            writers.spawn(async move { group.propose(request(), create(&name)).await });
        }
    }
    while let Some(written) = writers.join_next().await {
        written.expect("no panic").expect("applied");
    }
    cluster.await_equal().await;
    assert_eq!(cluster.any().group.state().rooms.len(), 900);
    let entries = cluster.any().group.status().last_log.expect("a log") - before;
    assert!(entries < 300, "{entries} entries for 900 commands");
}

#[tokio::test]
async fn a_cluster_restarts_where_it_was() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    for n in 0..20 {
        let name = format!("room-{n}");
        cluster.any().propose(create(&name)).await.expect("applied");
    }
    let id = cluster.any().group.cluster_id();
    let before = cluster.any().read().await.expect("readable");
    for node in 1..=3 {
        cluster.kill(node);
    }
    for node in 1..=3 {
        cluster.start(node).await;
        assert!(cluster.nodes[&node].group.is_member());
        assert_eq!(cluster.nodes[&node].group.cluster_id(), id);
    }
    let after = cluster.any().read().await.expect("readable");
    assert_eq!(after.rooms.len(), before.rooms.len());
    assert!(after.revision >= before.revision);
    let reply = cluster.nodes[&2].propose(create("afterwards")).await;
    reply.expect("goes on");
    cluster.await_equal().await;
}

#[tokio::test]
async fn a_restart_uses_the_snapshot() {
    let mut cluster = Cluster::of(1, |config| {
        config.snapshot_entries = 20;
        config.log_kept = 5;
    })
    .await;
    for n in 0..100 {
        let name = format!("room-{n}");
        cluster.any().propose(create(&name)).await.expect("applied");
    }
    eventually("a snapshot is built and the log purged", || {
        let status = cluster.any().group.status();
        status.snapshot.is_some() && status.purged.is_some()
    })
    .await;
    let before = cluster.any().group.state();
    cluster.kill(1);
    cluster.start(1).await;
    let after = cluster.any().read().await.expect("readable");
    assert_eq!(after.rooms.len(), before.rooms.len());
    assert_eq!(after.revision, before.revision);
}

#[tokio::test]
async fn new_and_lagging_nodes_catch_up_by_snapshot() {
    let mut cluster = Cluster::of(2, |config| {
        config.snapshot_entries = 50;
        config.log_kept = 10;
    })
    .await;
    cluster.start(3).await;
    let seeds = [cluster.nodes[&2].address.clone()];
    cluster.nodes[&3].join(&seeds).await.expect("joins");
    cluster.await_voters(3).await;
    cluster.kill(3);
    for n in 0..300 {
        let name = format!("room-{n}");
        cluster.any().propose(create(&name)).await.expect("applied");
    }
    let leader = cluster.leader().await;
    eventually("the log is purged", || {
        let status = cluster.nodes[&leader].group.status();
        status.purged.is_some_and(|purged| purged.index > 100)
    })
    .await;
    // A new node, and one that was away.
    cluster.start(3).await;
    cluster.start(4).await;
    let seeds = [cluster.nodes[&1].address.clone()];
    cluster.nodes[&4].join(&seeds).await.expect("joins");
    for id in [3, 4] {
        let node = &cluster.nodes[&id];
        eventually("the node has all rooms", || {
            node.group.state().rooms.len() == 300
        })
        .await;
        assert!(node.group.status().snapshot.is_some());
    }
    cluster.await_equal().await;
}

#[tokio::test]
async fn deadlines_are_met_through_the_log() {
    let cluster = Cluster::of(3, |_| {}).await;
    let mut command = create("short");
    if let Command::CreateRoom(create) = &mut command {
        create.options.empty_timeout_ms = 200;
    }
    let node = &cluster.nodes[&2];
    node.propose(command).await.expect("applied");
    let mut feed = node.group.feed();
    assert!(has_room(feed.start(), "short"));
    let closed = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let change = feed.next().await.expect("no lag");
            if !has_room(&change.state, "short") {
                return change;
            }
        }
    });
    let closed = closed.await.expect("in time");
    let opened = feed.start().rooms[&RoomName::from("short")].created_at;
    assert!(closed.at.0 >= opened.0 + 200, "closed before its time");
    cluster.await_equal().await;
}
