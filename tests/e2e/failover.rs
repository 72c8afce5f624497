//! SIGKILL of a node that serves somebody: the log has a verdict and a new home for everybody it
//! served, nobody leaves, and changes go on. Once with a follower, once with the leader.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use livekit_protocol as proto;
use serde_json::{Value, json};
use testkit::client::{Client, Options};
use testkit::cluster::{Cluster, wait};
use testkit::token;

/// With two cores for everything, tests included, a step may be late by this much.
const PATIENCE: Duration = Duration::from_secs(10);

async fn connect(cluster: &mut Cluster, node: u64, identity: &str) -> Result<Client> {
    let url = cluster.node(node).url.clone();
    let token = token::join("failover", identity, &json!({}));
    Client::connect(Options::new(&url, token)).await
}

fn participants(cluster: &Cluster) -> Result<Vec<(String, String, u64)>> {
    let room = cluster.admin(&["participants", "failover"])?;
    let list = room["participants"].as_array().context("a list")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(list
        .iter()
        .map(|entry| {
            let home = entry["home"].as_u64().unwrap_or_default();
            (text(&entry["identity"]), text(&entry["sid"]), home)
        })
        .collect())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Kills `victim` and follows what comes of it.
async fn lose(cluster: &mut Cluster, victim: u64, what: &str) -> Result<()> {
    let others: Vec<u64> = (1..=3).filter(|id| *id != victim).collect();
    let served = format!("at-{victim}-{what}");
    let lost = connect(cluster, victim, &served).await?;
    let witness = connect(cluster, others[0], &format!("witness-{what}")).await?;
    let mut told = witness.responses();
    let before = participants(cluster)?;
    ensure!(
        before
            .iter()
            .any(|(identity, _, home)| *identity == served && *home == victim),
        "{served} is at home on node {victim}: {before:?}"
    );
    let known = takeovers(cluster, &others)?.len();

    let killed = Instant::now();
    let killed_ms = now_ms();
    cluster.node(victim).kill()?;
    // Changes go on: a join needs a leader.
    let joined = connect(cluster, others[1], &format!("new-{what}")).await?;
    let joined_after = killed.elapsed();
    wait(PATIENCE, "the lost node's people have new homes", || {
        Ok(takeovers(cluster, &others)?.len() > known)
    })?;
    let all = takeovers(cluster, &others)?;
    let takeover = &all[known];
    let at = |key: &str| {
        takeover[key]
            .as_u64()
            .map(|at| at.saturating_sub(killed_ms))
    };
    eprintln!(
        "{what}: detected {:?} ms, decided {:?} ms after the kill; a join answered after {joined_after:?}",
        at("detected_at_ms"),
        at("decided_at_ms"),
    );
    ensure!(takeover["cause"] == "crashed", "{takeover}");
    ensure!(takeover["from"] == victim, "{takeover}");

    let after = participants(cluster)?;
    for (identity, sid, home) in &before {
        let present = after.iter().find(|(other, ..)| other == identity);
        let (_, sid_after, home_after) = present.context("nobody leaves")?;
        ensure!(sid == sid_after, "{identity} has another sid");
        ensure!(
            *home_after != victim,
            "{identity} is still at node {victim}"
        );
        ensure!(
            *home == victim || home == home_after,
            "{identity} moved for nothing"
        );
    }
    let nodes = cluster.admin(&["nodes"])?;
    let states = nodes["nodes"].as_array().context("a list")?;
    let state = |id: u64| {
        states
            .iter()
            .find(|node| node["id"] == id)
            .map(|node| &node["state"])
    };
    ensure!(state(victim) == Some(&json!("lost")), "{nodes}");

    // Nobody was told that anybody left.
    while let Ok(message) = told.try_recv() {
        if let proto::signal_response::Message::Update(update) = &*message {
            let gone = proto::participant_info::State::Disconnected as i32;
            let left = update.participants.iter().find(|info| info.state == gone);
            ensure!(left.is_none(), "{left:?} was said to have left");
        }
    }
    drop(lost);
    witness.leave().await;
    joined.leave().await;

    // A node that comes back serves again.
    cluster.node(victim).start()?;
    cluster.wait_until_answers(victim)?;
    wait(PATIENCE, "the node that came back serves", || {
        let nodes = cluster.admin(&["nodes"])?;
        let states = nodes["nodes"].as_array().context("a list")?;
        Ok(states.iter().all(|node| node["state"] == "serving"))
    })
}

/// What the living nodes know of takeovers, those of the one that knows most.
fn takeovers(cluster: &Cluster, nodes: &[u64]) -> Result<Vec<Value>> {
    let mut best: Vec<Value> = Vec::new();
    for node in nodes {
        let answer = cluster.admin_of(*node, &["takeovers"])?;
        let list = answer["takeovers"].as_array().context("a list")?.clone();
        let knows = |list: &[Value]| {
            list.iter()
                .filter(|one| one["detected_at_ms"].is_u64())
                .count()
        };
        if list.len() > best.len() || knows(&list) > knows(&best) {
            best = list;
        }
    }
    Ok(best)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_leaves_when_a_node_dies() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let leader = cluster.leader()?;
    let follower = (1..=3).find(|id| *id != leader).context("three nodes")?;
    lose(&mut cluster, follower, "follower").await?;
    let leader = cluster.leader()?;
    lose(&mut cluster, leader, "leader").await?;
    cluster.stop()
}

/// Sends a signal by its name to a node's process.
fn signal(cluster: &mut Cluster, node: u64, name: &str) -> Result<()> {
    let pid = cluster.node(node).pid().context("it runs")?.to_string();
    let sent = std::process::Command::new("kill")
        .args([name, &pid])
        .status()?;
    ensure!(sent.success(), "kill {name} {pid}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_is_handed_over_and_comes_back() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let leader = cluster.leader()?;
    let victim = (1..=3).find(|id| *id != leader).context("three nodes")?;
    let others: Vec<u64> = (1..=3).filter(|id| *id != victim).collect();
    let frozen = connect(&mut cluster, victim, "frozen").await?;
    let witness = connect(&mut cluster, others[0], "witness").await?;
    let before = participants(&cluster)?;

    let stopped_ms = now_ms();
    signal(&mut cluster, victim, "-STOP")?;
    wait(PATIENCE, "the frozen node's people have new homes", || {
        Ok(!takeovers(&cluster, &others)?.is_empty())
    })?;
    let all = takeovers(&cluster, &others)?;
    let takeover = &all[0];
    eprintln!(
        "frozen: detected {:?} ms after the stop",
        takeover["detected_at_ms"]
            .as_u64()
            .map(|at| at.saturating_sub(stopped_ms))
    );
    ensure!(takeover["cause"] == "unreachable", "{takeover}");
    ensure!(takeover["from"] == victim, "{takeover}");
    let after = participants(&cluster)?;
    ensure!(after.len() == before.len(), "{after:?}");
    ensure!(
        after.iter().all(|(_, _, home)| *home != victim),
        "{after:?}"
    );

    signal(&mut cluster, victim, "-CONT")?;
    wait(PATIENCE, "the node that woke up serves again", || {
        let nodes = cluster.admin(&["nodes"])?;
        let states = nodes["nodes"].as_array().context("a list")?;
        Ok(states.iter().all(|node| node["state"] == "serving"))
    })?;
    let log = cluster.node(victim).log();
    ensure!(log.contains("the lease has lapsed"), "it fenced itself");
    drop(frozen);
    witness.leave().await;
    cluster.stop()
}
