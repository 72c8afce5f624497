//! What joining checks, and what it says.

use flotilla_model::command::{Command, CreateRoom};
use flotilla_model::id::NodeId;
use flotilla_raft::{BootstrapError, ChannelsConfig, JoinError, ProposeError, Tls};
use flotilla_storage::{Identity, Storage};

use crate::harness::{
    Cluster, assert_says, create, eventually, has_room, members, refused, voters,
};

#[tokio::test]
async fn a_wrong_secret_is_refused() {
    let mut cluster = Cluster::of(1, |_| {}).await;
    let seeds = [cluster.nodes[&1].address.clone()];
    cluster.channels = ChannelsConfig::new("another secret");
    cluster.start(2).await;
    let error = refused(cluster.nodes[&2].join(&seeds).await);
    assert!(matches!(error, JoinError::WrongSecret { .. }), "{error}");
    assert_says(&error, &["wrong cluster secret", &seeds[0]]);
}

#[tokio::test]
async fn an_id_in_use_is_refused() {
    let mut cluster = Cluster::of(2, |_| {}).await;
    let seeds = [cluster.nodes[&1].address.clone()];
    // Another machine with the id of a live node.
    let taken = cluster.nodes[&2].address.clone();
    let mut other = Cluster::new(|_| {});
    other.start(2).await;
    let error = refused(other.nodes[&2].join(&seeds).await);
    assert!(matches!(error, JoinError::DuplicateNode(_)), "{error}");
    assert_says(&error, &["node id 2", &taken, "alive"]);
    // The same, when the seed itself has the id.
    let error = refused(other.nodes[&2].join(std::slice::from_ref(&taken)).await);
    assert_says(&error, &["node id 2", "in use", &taken]);
    cluster.kill(2);
    // One of two voters is gone; nothing can be added now, but the answer is still clear.
    let error = refused(other.nodes[&2].join(&seeds).await);
    assert!(
        matches!(
            error,
            JoinError::DuplicateNode(_) | JoinError::Timeout { .. }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_wiped_node_cannot_come_back_under_its_id() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    cluster
        .any()
        .propose(create("kept"))
        .await
        .expect("applied");
    let wiped = cluster.follower().await;
    cluster.wipe(wiped).await;
    let seeds = [cluster.any().address.clone()];
    cluster.start(wiped).await;
    let error = refused(cluster.nodes[&wiped].join(&seeds).await);
    assert!(matches!(error, JoinError::DuplicateNode(_)), "{error}");
    assert_says(&error, &["other data", "new id"]);
    assert!(!cluster.nodes[&wiped].group.is_initialized());
    assert!(!has_room(&cluster.nodes[&wiped].group.state(), "kept"));
    // The others are not impressed.
    cluster.kill(wiped);
    cluster
        .any()
        .propose(create("more"))
        .await
        .expect("applied");
}

/// What a leader has written without a majority is gone with it.
#[tokio::test]
async fn who_joins_by_a_leader_without_a_majority_joins_by_the_next() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    let seeds: Vec<String> = (1..=3)
        .map(|id| cluster.nodes[&id].address.clone())
        .collect();
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for other in &others {
        cluster.kill(*other);
    }
    cluster.start(4).await;
    let group = cluster.nodes[&4].group.clone();
    let joining = group.clone();
    let joined = tokio::spawn(async move { joining.join(&seeds).await });
    eventually("it has the entry that adds it", || group.is_initialized()).await;
    assert!(!group.is_member());
    cluster.kill(leader);
    for other in &others {
        cluster.start(*other).await;
    }
    joined.await.expect("no panic").expect("joins");
    eventually("it knows that a majority agreed", || group.is_member()).await;
    let written = cluster.nodes[&4].propose(create("room")).await;
    written.expect("applied");
    assert!(members(&cluster.nodes[&others[0]]).contains(&4));
}

/// On its way through the log it meets the membership in which it was the only voter, under its id and with other data.
#[tokio::test]
async fn a_wiped_founder_that_was_removed_comes_back_as_a_new_node() {
    let mut cluster = Cluster::new(|_| {});
    cluster.start(1).await;
    cluster.nodes[&1].bootstrap().await;
    // Enough that it stays at this membership for a while.
    for number in 0..1000 {
        let Command::CreateRoom(room) = create(&format!("early {number}")) else {
            unreachable!("it is one");
        };
        let large = Command::CreateRoom(CreateRoom {
            metadata: "m".repeat(20_000),
            ..room
        });
        cluster.nodes[&1].propose(large).await.expect("applied");
    }
    for id in [2, 3] {
        cluster.start(id).await;
        let seeds = [cluster.nodes[&1].address.clone()];
        cluster.nodes[&id].join(&seeds).await.expect("joins");
    }
    cluster.await_voters(3).await;
    cluster.wipe(1).await;
    let leader = cluster.leader().await;
    let group = cluster.nodes[&leader].group.clone();
    let removed = async move { group.remove_node(NodeId(1)).await };
    cluster.nodes[&leader].on(removed).await.expect("removed");
    cluster.await_voters(2).await;
    let term = cluster.nodes[&leader].group.status().term;
    cluster.start(1).await;
    let seeds = [cluster.nodes[&leader].address.clone()];
    cluster.nodes[&1].join(&seeds).await.expect("joins");
    cluster.await_voters(3).await;
    cluster.await_equal().await;
    let status = cluster.nodes[&leader].group.status();
    assert_eq!((status.leader, status.term), (Some(NodeId(leader)), term));
    // It has all rights of a voter.
    let other = 5 - leader;
    cluster.kill(leader);
    cluster.nodes[&other]
        .propose(create("late"))
        .await
        .expect("applied");
    cluster.kill(other);
    cluster.start(leader).await;
    cluster.nodes[&1]
        .propose(create("later"))
        .await
        .expect("applied");
}

/// What a node revokes up to now is not what its own clock says if that is behind.
#[tokio::test]
async fn a_clock_that_falls_behind_does_not_say_what_time_it_is() {
    let mut cluster = Cluster::of(1, |_| {}).await;
    let seeds = [cluster.nodes[&1].address.clone()];
    let clock = flotilla_raft::Clock::default();
    let own = clock.clone();
    cluster
        .start_with(2, move |config| config.clock = own)
        .await;
    cluster.nodes[&2].join(&seeds).await.expect("joins");
    clock.set_offset(-60_000);
    let node = &cluster.nodes[&2];
    node.propose(create("room")).await.expect("applied");
    let applied = node.group.status().applied_at;
    assert!(clock.now() < applied, "it is behind");
    assert_eq!(node.group.time(), applied);
    clock.set_offset(0);
    assert!(node.group.time() >= applied);
}

#[tokio::test]
async fn a_skewed_clock_is_named() {
    let mut cluster = Cluster::of(1, |_| {}).await;
    let seeds = [cluster.nodes[&1].address.clone()];
    for (id, offset, direction) in [(2, 61_000, "ahead of"), (3, -61_000, "behind")] {
        cluster
            .start_with(id, |config| config.clock.set_offset(offset))
            .await;
        let error = refused(cluster.nodes[&id].join(&seeds).await);
        let JoinError::ClockSkew { skew_ms, .. } = &error else {
            panic!("{error}");
        };
        assert!((55_000..67_000).contains(skew_ms), "{skew_ms}");
        assert_says(&error, &[direction, "NTP"]);
    }
}

#[tokio::test]
async fn clusters_do_not_mix() {
    let cluster = Cluster::of(2, |_| {}).await;
    let other = Cluster::of(1, |_| {}).await;
    let node = &cluster.nodes[&2];
    assert!(node.join(&[]).await.is_err());
    let group = node.group.clone();
    let error = refused(node.on(async move { group.bootstrap().await }).await);
    assert!(matches!(error, BootstrapError::Initialized(_)), "{error}");
    // A member stays where it is, whoever it is pointed at.
    node.join(&[other.any().address.clone()])
        .await
        .expect("is a member already");
    assert_eq!(node.group.cluster_id(), cluster.any().group.cluster_id());
    assert_ne!(node.group.cluster_id(), other.any().group.cluster_id());
}

#[tokio::test]
async fn data_of_another_cluster_is_refused() {
    let mut cluster = Cluster::of(1, |_| {}).await;
    let identity = Identity {
        cluster: Some("C_elsewhere".to_owned()),
        node: 2,
    };
    Storage::open(cluster.data(2), identity)
        .expect("a new folder")
        .close();
    cluster.start(2).await;
    let seeds = [cluster.nodes[&1].address.clone()];
    let error = refused(cluster.nodes[&2].join(&seeds).await);
    assert!(matches!(error, JoinError::OtherCluster { .. }), "{error}");
    assert_says(&error, &["C_elsewhere", "empty data folder"]);
    let found = cluster.any().group.cluster_id().expect("founded");
    assert_says(&error, &[&found]);
}

#[tokio::test]
async fn before_it_joins_a_node_says_so() {
    let mut cluster = Cluster::new(|config| {
        config.propose_timeout = std::time::Duration::from_millis(200);
    });
    cluster.start(1).await;
    let error = refused(cluster.any().propose(create("no")).await);
    assert!(matches!(error, ProposeError::NoLeader { .. }), "{error}");
    assert_says(&error, &["in no cluster", "found one or join one"]);
}

#[tokio::test]
async fn nodes_join_through_any_member_in_any_order() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    cluster.start(7).await;
    let dead = "127.0.0.1:1".to_owned();
    let seeds = [dead, cluster.nodes[&follower].address.clone()];
    cluster.nodes[&7].join(&seeds).await.expect("joins");
    eventually("it follows", || {
        cluster.nodes[&7].group.status().leader == Some(NodeId(leader))
    })
    .await;
    assert_eq!(
        voters(&cluster.nodes[&leader]),
        [1, 2, 3],
        "target is three"
    );
    let written = cluster.nodes[&7].propose(create("by a learner")).await;
    written.expect("applied");
    assert!(has_room(&cluster.nodes[&7].group.state(), "by a learner"));
}

#[tokio::test]
async fn a_node_may_come_back_at_another_address() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    for id in [cluster.follower().await, cluster.leader().await] {
        cluster.kill(id);
        cluster.move_away(id);
        cluster.start(id).await;
        let name = format!("after {id} moved");
        cluster.any().propose(create(&name)).await.expect("applied");
        for node in cluster.nodes.values() {
            eventually("everybody has the address and the room", || {
                let members = node.group.status().members;
                let moved = members.iter().find(|member| member.node.0 == id);
                moved.is_some_and(|moved| moved.address == cluster.nodes[&id].address)
                    && has_room(&node.group.state(), &name)
            })
            .await;
        }
    }
    cluster.await_equal().await;
}

fn tls(node: &str) -> Option<Tls> {
    let read = |name: &str| {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).expect("a fixture")
    };
    Some(Tls {
        authority: read("authority.pem"),
        certificate: read(&format!("{node}.pem")),
        key: read(&format!("{node}-key.pem")),
        name: "flotilla".to_owned(),
    })
}

#[tokio::test]
async fn certificates_are_checked_both_ways() {
    let mut cluster = Cluster::new(|_| {});
    cluster.channels.tls = tls("node");
    cluster.grow(3).await;
    for node in cluster.nodes.values() {
        let name = format!("by-{}", node.id);
        node.propose(create(&name)).await.expect("applied");
    }
    cluster.await_equal().await;
    let seeds = [cluster.nodes[&1].address.clone()];
    // Without a certificate, and with one of another authority.
    for stranger in [None, tls("stranger")] {
        cluster.channels.tls = stranger;
        cluster.start(4).await;
        let group = cluster.nodes[&4].group.clone();
        let seeds = seeds.clone();
        let joined = cluster.nodes[&4].on(async move {
            let patience = std::time::Duration::from_secs(3);
            tokio::time::timeout(patience, group.join(&seeds)).await
        });
        assert!(!matches!(joined.await, Ok(Ok(()))), "joined without proof");
        cluster.kill(4);
    }
}
