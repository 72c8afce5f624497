//! Who votes: replacement of the dead, removal, handing over.

use std::time::{Duration, Instant};

use flotilla_model::id::NodeId;
use flotilla_raft::{ChangeError, Role};

use crate::harness::{
    Cluster, assert_says, create, eventually, has_room, members, refused, voters,
};

#[tokio::test]
async fn a_dead_voter_is_replaced_by_a_live_learner() {
    let mut cluster = Cluster::of(4, |config| {
        config.replace_dead_after = Duration::from_millis(1500);
    })
    .await;
    let leader = cluster.leader().await;
    let all = voters(&cluster.nodes[&leader]);
    let learner = (1..=4).find(|id| !all.contains(id)).expect("four nodes");
    let dead = *all.iter().find(|id| **id != leader).expect("three voters");
    cluster.kill(dead);
    let node = &cluster.nodes[&leader];
    eventually("the learner votes instead", || {
        let voters = voters(node);
        voters.contains(&learner) && !voters.contains(&dead)
    })
    .await;
    assert!(members(node).contains(&dead), "it may come back");
    node.propose(create("goes on")).await.expect("applied");
    cluster.start(dead).await;
    let back = &cluster.nodes[&dead];
    eventually("it follows as a learner", || {
        has_room(&back.group.state(), "goes on") && back.group.status().role == Role::Learner
    })
    .await;
}

#[tokio::test]
async fn a_dead_voter_without_replacement_stays() {
    let mut cluster = Cluster::of(3, |config| {
        config.replace_dead_after = Duration::from_millis(300);
    })
    .await;
    let follower = cluster.follower().await;
    cluster.kill(follower);
    let leader = &cluster.nodes[&cluster.leader().await];
    let silent = || {
        let status = leader.group.status();
        let dead = status.members.iter().find(|m| m.node.0 == follower);
        dead.and_then(|dead| dead.silent).unwrap_or_default()
    };
    eventually("it has been dead for long", || {
        silent() > Duration::from_millis(1200)
    })
    .await;
    assert_eq!(voters(leader), [1, 2, 3]);
    leader.propose(create("goes on")).await.expect("applied");
}

#[tokio::test]
async fn a_removed_leader_hands_over_first() {
    let cluster = Cluster::of(4, |_| {}).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let node = &cluster.nodes[&follower];
    let group = node.group.clone();
    node.on(async move { group.remove_node(NodeId(leader)).await })
        .await
        .expect("removed");
    eventually("three voters are left", || {
        let voters = voters(node);
        voters.len() == 3 && !voters.contains(&leader)
    })
    .await;
    assert!(!members(node).contains(&leader));
    let successor = node.group.status().leader.expect("somebody leads");
    assert_ne!(successor.0, leader);
    node.propose(create("goes on")).await.expect("applied");
}

#[tokio::test]
async fn impossible_changes_are_refused() {
    let cluster = Cluster::of(1, |_| {}).await;
    let node = cluster.any();
    for (change, parts) in [
        (1, ["only voter", "add another node"]),
        (9, ["node 9", "not a member"]),
    ] {
        let group = node.group.clone();
        let removed = node.on(async move { group.remove_node(NodeId(change)).await });
        let error = refused(removed.await);
        assert!(matches!(error, ChangeError::Refused(_)), "{error}");
        assert_says(&error, &parts);
    }
    let group = node.group.clone();
    let transferred = node.on(async move { group.transfer_leader(NodeId(9)).await });
    assert_says(&refused(transferred.await), &["node 9", "not a voter"]);
}

/// A leader cannot tell at once whether who is silent is dead: it may lead since a moment ago.
#[tokio::test]
async fn a_removal_waits_for_a_majority_that_comes_back() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    let leader = cluster.leader().await;
    let mut others = (1..=3).filter(|id| *id != leader);
    let (removed, away) = (others.next().expect("two"), others.next().expect("two"));
    loop {
        cluster.kill(away);
        let group = cluster.nodes[&leader].group.clone();
        eventually("it is silent for long", || {
            let members = group.status().members;
            let away = members.iter().find(|member| member.node.0 == away);
            away.and_then(|away| away.silent) > Some(Duration::from_millis(2500))
        })
        .await;
        let began = Instant::now();
        let node = group.clone();
        let removal = tokio::spawn(async move { node.remove_node(NodeId(removed)).await });
        cluster.start(away).await;
        let back = began.elapsed();
        match removal.await.expect("no panic") {
            Ok(()) => break,
            Err(error) => {
                assert_says(&error, &["no majority", "bring the others back first"]);
                // The machine may be slow.
                assert!(back > Duration::from_millis(1500), "{error}");
            }
        }
    }
    eventually("two are left", || {
        let mut left = [leader, away];
        left.sort_unstable();
        voters(&cluster.nodes[&leader]) == left
    })
    .await;
}

#[tokio::test]
async fn leadership_moves_on_request() {
    let cluster = Cluster::of(3, |_| {}).await;
    for to in [2, 3, 1, 1] {
        // Asked of a node that does not matter.
        let node = cluster.any();
        let group = node.group.clone();
        node.on(async move { group.transfer_leader(NodeId(to)).await })
            .await
            .expect("handed over");
        assert_eq!(cluster.leader().await, to);
    }
}
