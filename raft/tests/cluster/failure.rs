//! Leaders that die or are replaced, and clusters without a majority.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flotilla_model::id::NodeId;
use flotilla_raft::{Channels, ChannelsConfig, Group, GroupConfig, ProposeError, ReadError, Role};
use futures_util::FutureExt;
use tracing::Subscriber;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::harness::{Cluster, assert_says, create, eventually, has_room, refused, request};

#[tokio::test]
async fn no_acknowledged_write_is_lost_with_the_leader() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    let leader = cluster.leader().await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(Mutex::new(Vec::<(Instant, String)>::new()));
    let mut writers = tokio::task::JoinSet::new();
    for (id, node) in &cluster.nodes {
        for writer in 0..4 {
            let group = node.group.clone();
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let prefix = format!("{id}-{writer}");
            let to_be_killed = *id == leader;
            writers.spawn(async move {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("{prefix}-{n}");
                    // Writers on the killed node never hear again.
                    let written = group.propose(request(), create(&name));
                    match tokio::time::timeout(Duration::from_secs(6), written).await {
                        Ok(Ok(_)) => {
                            let mut acknowledged = acknowledged.lock().expect("no panic");
                            acknowledged.push((Instant::now(), name));
                        }
                        Err(_) => break,
                        Ok(Err(_)) if to_be_killed => break,
                        Ok(Err(error)) => panic!("{error}"),
                    }
                }
            });
        }
    }
    let count = || acknowledged.lock().expect("no panic").len();
    eventually("writes flow", || count() > 100).await;
    cluster.kill(leader);
    let killed = Instant::now();
    let first_after = || {
        let acknowledged = acknowledged.lock().expect("no panic");
        // Answers that were on their way at the kill do not count.
        let after = killed + Duration::from_millis(100);
        acknowledged
            .iter()
            .map(|(at, _)| *at)
            .find(|at| *at > after)
    };
    eventually("writes go on", || first_after().is_some()).await;
    let gap = first_after().expect("just seen") - killed;
    assert!(gap < Duration::from_secs(2), "no write for {gap:?}");
    eventually("writes flow again", || count() > 300).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended.expect("no panic");
    }
    let state = cluster.any().read().await.expect("readable");
    let lost: Vec<_> = {
        let acknowledged = acknowledged.lock().expect("no panic");
        let names = acknowledged.iter().map(|(_, name)| name.clone());
        names.filter(|name| !has_room(&state, name)).collect()
    };
    assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
    cluster.await_equal().await;
    // The old leader comes back and catches up.
    cluster.start(leader).await;
    cluster.await_equal().await;
}

#[tokio::test]
async fn a_request_applies_once_across_leaders() {
    let cluster = Cluster::of(3, |_| {}).await;
    let leader = cluster.leader().await;
    let request = request();
    let first = cluster.nodes[&leader].propose_as(request, create("once"));
    let first = first.await.expect("applied");
    let follower = cluster.follower().await;
    let group = cluster.nodes[&leader].group.clone();
    cluster.nodes[&leader]
        .on(async move { group.transfer_leader(NodeId(follower)).await })
        .await
        .expect("handed over");
    for node in cluster.nodes.values() {
        let again = node.propose_as(request, create("once")).await;
        assert_eq!(again.expect("answered alike").version, first.version);
    }
    // Under another request id the same room is no longer new, but its version tells that nothing
    // was applied in between.
    let other = cluster
        .any()
        .propose(create("once"))
        .await
        .expect("applied");
    assert_eq!(other.version, first.version);
    cluster.await_equal().await;
}

#[tokio::test]
async fn the_same_request_at_once_on_all_nodes_applies_once() {
    let cluster = Cluster::of(3, |_| {}).await;
    let mut feed = cluster.any().group.feed();
    let request = request();
    let mut proposals = tokio::task::JoinSet::new();
    for node in cluster.nodes.values() {
        for _ in 0..5 {
            let group = node.group.clone();
            proposals.spawn(async move { group.propose(request, create("once")).await });
        }
    }
    while let Some(proposed) = proposals.join_next().await {
        proposed.expect("no panic").expect("applied");
    }
    let revision = cluster.any().read().await.expect("readable").revision;
    let mut changes = 0;
    while feed.after() < revision {
        let change = feed.next().await.expect("no lag");
        changes += usize::from(!change.events.is_empty());
    }
    assert_eq!(changes, 1);
}

#[tokio::test]
async fn what_a_leader_says_ends_with_its_term() {
    let cluster = Cluster::of(3, |_| {}).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let node = &cluster.nodes[&leader];
    let say = |term, name: &str| {
        let (group, command) = (node.group.clone(), create(name));
        node.on(async move { group.propose_in_term(term, request(), command).await })
    };
    let term = node.group.status().term;
    say(term, "in-time").await.expect("it leads");
    let error = refused(say(term + 1, "too-early").await);
    assert!(matches!(error, ProposeError::NoLeader { .. }), "{error}");
    let group = node.group.clone();
    node.on(async move { group.transfer_leader(NodeId(follower)).await })
        .await
        .expect("handed over");
    // What anybody may say goes to the new leader.
    node.propose(create("anybody")).await.expect("forwarded");
    for of in [term, node.group.status().term] {
        let error = refused(say(of, "too-late").await);
        assert!(matches!(error, ProposeError::NoLeader { .. }), "{error}");
    }
    let state = cluster.any().read().await.expect("readable");
    assert!(has_room(&state, "in-time") && has_room(&state, "anybody"));
    assert!(!has_room(&state, "too-early") && !has_room(&state, "too-late"));
}

#[tokio::test]
async fn a_minority_refuses_with_a_clear_reason() {
    let mut cluster = Cluster::of(3, |config| {
        config.propose_timeout = Duration::from_secs(2);
        config.read_timeout = Duration::from_secs(2);
    })
    .await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        cluster.kill(*id);
    }
    let node = &cluster.nodes[&leader];
    // The first may be in the old leader's log; later ones are refused before.
    let error = refused(node.propose(create("perhaps")).await);
    assert!(
        matches!(
            error,
            ProposeError::Timeout { .. } | ProposeError::NoLeader { .. }
        ),
        "{error}"
    );
    let error = refused(node.propose(create("no")).await);
    assert!(matches!(error, ProposeError::NoLeader { .. }), "{error}");
    assert_says(&error, &["majority", "1, 2, 3"]);
    let error = refused(node.read().await);
    assert!(matches!(error, ReadError::NoLeader { .. }), "{error}");
    assert_says(&error, &["majority", "1, 2, 3"]);
    // What it has can still be looked at.
    assert_eq!(node.group.state().rooms.len(), 0);
    cluster.start(others[0]).await;
    let written = cluster.nodes[&others[0]].propose(create("again")).await;
    written.expect("a majority is back");
    let state = cluster.nodes[&leader].read().await.expect("readable");
    assert!(has_room(&state, "again") && !has_room(&state, "no"));
}

#[tokio::test]
async fn a_stopping_leader_hands_over() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    let leader = cluster.leader().await;
    cluster
        .any()
        .propose(create("before"))
        .await
        .expect("applied");
    cluster.stop(leader).await;
    // No election timeout has passed: the successor was told.
    let next = cluster.any().group.status();
    assert!(next.leader.is_some_and(|id| id.0 != leader), "{next:?}");
    let written = cluster.any().propose(create("after")).await;
    written.expect("applied");
    cluster.start(leader).await;
    eventually("the old leader follows", || {
        cluster.nodes[&leader].group.status().role == Role::Follower
    })
    .await;
    cluster.await_equal().await;
}

/// Elections by timeout would take ten seconds here.
#[tokio::test]
async fn a_campaign_replaces_a_dead_leader_at_once() {
    let mut cluster = Cluster::of(3, |config| {
        config.election = (Duration::from_secs(10), Duration::from_secs(11));
    })
    .await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let campaign = async |cluster: &Cluster, gone: u64| {
        let group = cluster.nodes[&follower].group.clone();
        let campaign = async move { group.campaign(NodeId(gone)).await };
        cluster.nodes[&follower].on(campaign).await.expect("runs");
    };
    // Whoever is not the leader is no reason to stand.
    let term = cluster.any().group.status().term;
    campaign(&cluster, 9).await;
    campaign(&cluster, follower).await;
    cluster.any().propose(create("a")).await.expect("applied");
    assert_eq!(cluster.any().group.status().term, term);

    cluster.kill(leader);
    let killed = Instant::now();
    campaign(&cluster, leader).await;
    let written = cluster.nodes[&follower].propose(create("b")).await;
    written.expect("applied under the new leader");
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(5), "took {took:?}");
    assert_eq!(cluster.leader().await, follower);
    cluster.await_equal().await;
}

#[tokio::test]
async fn a_group_that_stopped_says_so() {
    let mut cluster = Cluster::of(1, |_| {}).await;
    let group = cluster.nodes[&1].group.clone();
    let running = group.stopped().now_or_never();
    assert!(running.is_none(), "{running:?}");
    let stopped = tokio::spawn({
        let group = group.clone();
        async move { group.stopped().await }
    });
    cluster.stop(1).await;
    eventually("the waiting task hears of it", || stopped.is_finished()).await;
    let reason = stopped.await.expect("no panic");
    assert!(!reason.is_empty());
    assert_eq!(group.stopped().await, reason, "it stays so");
}

/// Counts the tries of a read that came to nothing.
struct Tries(Arc<AtomicU64>);

impl<S: Subscriber> Layer<S> for Tries {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "flotilla_raft::reader" {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn a_read_without_a_leader_asks_now_and_then() {
    let tries = Arc::new(AtomicU64::new(0));
    // This thread runs the whole group.
    let counting = tracing_subscriber::registry().with(Tries(Arc::clone(&tries)));
    let _counted = tracing::subscriber::set_default(counting);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = || {
        let mut config = GroupConfig::new(NodeId(1), "127.0.0.1:1", folder.path());
        config.election = (Duration::from_millis(400), Duration::from_millis(500));
        Group::start(
            config,
            Channels::new(ChannelsConfig::new("a secret of the tests")),
        )
    };
    let group = start().await.expect("starts");
    group.bootstrap().await.expect("founds");
    group.shutdown().await;
    drop(group);
    // Nobody leads before the first election, although openraft has reported a lot by then.
    tries.store(0, Ordering::Relaxed);
    let group = start().await.expect("starts again");
    group.read().await.expect("somebody is elected");
    // A try every 20 ms, and a few for what changed meanwhile.
    let tries = tries.load(Ordering::Relaxed);
    assert!((1..=60).contains(&tries), "{tries} tries");
    group.shutdown().await;
}
