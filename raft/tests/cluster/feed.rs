//! The feed across nodes.

use flotilla_model::id::Revision;
use flotilla_raft::FeedError;

use crate::harness::{Cluster, create, eventually};

#[tokio::test]
async fn every_node_sees_the_same_changes_in_order() {
    let cluster = Cluster::of(3, |_| {}).await;
    let feeds: Vec<_> = cluster
        .nodes
        .values()
        .map(|node| {
            let mut feed = node.group.feed();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < 60 {
                    let change = feed.next().await.expect("no lag");
                    if !change.events.is_empty() {
                        seen.push((change.revision, change.at, change.events.clone()));
                    }
                    assert!(change.state.revision >= change.revision);
                }
                seen
            })
        })
        .collect();
    for n in 0..20 {
        for (id, node) in &cluster.nodes {
            let name = format!("{id}-{n}");
            node.propose(create(&name)).await.expect("applied");
        }
    }
    let mut seen = Vec::new();
    for feed in feeds {
        seen.push(feed.await.expect("no panic"));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    assert!(seen[0].is_sorted_by_key(|(_, at, _)| *at), "time went back");
}

#[tokio::test]
async fn readers_resume_on_another_node() {
    let cluster = Cluster::of(3, |_| {}).await;
    for n in 0..10 {
        let name = format!("room-{n}");
        cluster.any().propose(create(&name)).await.expect("applied");
    }
    let first = &cluster.nodes[&1].group;
    let mut feed = first.feed_since(Revision(0)).expect("kept");
    let mut changes = Vec::new();
    while changes.len() < first.state().rooms.len() {
        changes.push(feed.next().await.expect("kept"));
    }
    let middle = changes[4].revision;
    let last = changes[9].revision;
    let other = &cluster.nodes[&3];
    eventually("the other node catches up", || {
        other.group.state().revision >= last
    })
    .await;
    let mut feed = other.group.feed_since(middle).expect("kept there too");
    for expected in &changes[5..] {
        let change = feed.next().await.expect("kept");
        assert_eq!(change.revision, expected.revision);
        assert_eq!(change.events, expected.events);
    }
}

#[tokio::test]
async fn a_feed_ends_with_its_group() {
    let mut cluster = Cluster::of(1, |_| {}).await;
    let mut feed = cluster.any().group.feed();
    cluster.stop(1).await;
    while let Ok(change) = feed.next().await {
        assert!(change.revision > Revision(0));
    }
    assert_eq!(feed.next().await.err(), Some(FeedError::Stopped));
}
