//! Plan: SIGKILL of the Raft leader while people join, publish and rooms are written on the others.
//!
//! Promise: nothing acknowledged is lost, joins go on within two seconds, media between the other nodes
//! does not stop, all nodes end up with one state.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::cluster::{Cluster, wait};
use testkit::{room_service, token};

use crate::history::{History, Kind};
use crate::probe::{Probe, Stillness};
use crate::{Verdict, checker, say};

/// The bound on the first join that begins after the kill.
const RECOVERY_MAX: Duration = Duration::from_secs(2);
/// The bound on media between the nodes that stay.
const SILENCE_MAX: Duration = Duration::from_millis(50);

/// Runs the plan; a round leaves the cluster whole again for the next.
pub(crate) async fn run(rounds: u32, out: Option<&Path>) -> Result<Verdict> {
    let mut cluster = Cluster::start(3)?;
    let mut violations = Vec::new();
    let mut recoveries = Vec::new();
    let mut silences = Vec::new();
    for round in 0..rounds {
        let history = History::new();
        let outcome = one(&mut cluster, round, &history).await;
        if let Some(out) = out {
            std::fs::create_dir_all(out)?;
            history.write(&out.join(format!("kill-leader-{round}.jsonl")))?;
        }
        let (found, recovery, media) = match outcome? {
            Round::Checked {
                violations,
                recovery,
                media,
            } => (violations, recovery, media),
            Round::Vacuous(why) => return Ok(Verdict::Vacuous(why)),
        };
        violations.extend(found);
        recoveries.push(recovery);
        silences.push(media.silence);
    }
    tell("joins go on after", recoveries);
    tell("longest silence of media between the others", silences);
    cluster.stop()?;
    Ok(if violations.is_empty() {
        Verdict::Holds
    } else {
        Verdict::Violated(violations)
    })
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    if let (Some(median), Some(max)) = (times.get(times.len() / 2), times.last()) {
        say(&format!(
            "{what}: n {}, p50 {median:?}, max {max:?}",
            times.len()
        ));
    }
}

enum Round {
    Checked {
        violations: Vec<String>,
        recovery: Duration,
        media: Stillness,
    },
    Vacuous(String),
}

async fn one(cluster: &mut Cluster, round: u32, history: &History) -> Result<Round> {
    let leader = cluster.leader()?;
    let room = format!("kill-{round}");
    let others: Vec<String> = (1..=3)
        .filter(|id| *id != leader)
        .map(|id| cluster.node(id).url.clone())
        .collect();
    let probe = Probe::start(
        others[0].clone(),
        others[1].clone(),
        format!("{room}-media"),
    )
    .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut joiners = Vec::new();
    let mut writers = Vec::new();
    for id in (1..=3).filter(|id| *id != leader) {
        let url = cluster.node(id).url.clone();
        let (room, history, stop) = (room.clone(), history.clone(), stop.clone());
        joiners.push(tokio::spawn(join_and_publish(
            id,
            url.clone(),
            room.clone(),
            history.clone(),
            stop.clone(),
        )));
        writers.push(tokio::task::spawn_blocking(move || {
            write(id, &url, &room, &history, &stop)
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    history.record(
        "nemesis",
        Kind::Info,
        "kill",
        &format!("leader {leader}"),
        leader,
        None,
    );
    let fault = history.operations().last().context("just recorded")?.time;
    let killed = Instant::now();
    cluster.node(leader).kill()?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let media = tokio::task::block_in_place(|| probe.stop())?.stillness(killed);
    stop.store(true, Ordering::Relaxed);
    let mut clients = Vec::new();
    for joiner in joiners {
        clients.extend(joiner.await?);
    }
    for writer in writers {
        writer.await?;
    }

    let (joined, published, written) = survey(cluster, leader, &room)?;
    let operations = history.operations();
    let acknowledged = |f| {
        operations
            .iter()
            .filter(|operation| operation.f == f && operation.kind == Kind::Ok)
            .count()
    };
    let (joins, publishes, writes) = (
        acknowledged("join"),
        acknowledged("publish"),
        acknowledged("write"),
    );
    let mut violations = checker::lost(&operations, "join", &joined);
    violations.extend(checker::lost(&operations, "publish", &published));
    violations.extend(checker::lost(&operations, "write", &written));
    violations.extend(checker::phantoms(&operations, "join", &joined));
    violations.extend(checker::phantoms(&operations, "write", &written));
    violations.extend(judge_media(&media));
    let recovery = checker::recovery_ns(&operations, "join", fault).map(Duration::from_nanos);
    for client in clients {
        client.leave().await;
    }
    cluster.node(leader).start()?;
    cluster.wait_until_answers(leader)?;
    violations.extend(
        converges(cluster)
            .err()
            .map(|failure| format!("{failure:#}")),
    );

    if joins < 5 || publishes < 5 || writes < 20 {
        return Ok(Round::Vacuous(format!(
            "only {joins} joins, {publishes} publishes, {writes} writes"
        )));
    }
    let Some(recovery) = recovery else {
        violations.push("no join succeeded after the kill".to_owned());
        return Ok(Round::Checked {
            violations,
            recovery: Duration::MAX,
            media,
        });
    };
    if recovery > RECOVERY_MAX {
        violations.push(format!("joins went on only after {recovery:?}"));
    }
    say(&format!(
        "round {round}: leader {leader} killed, joins go on after {recovery:?}, media between the others silent for \
         {:?} at most (gap {:?}, {} breaks in {} packets); {joins} joins, {publishes} publishes, \
         {writes} writes acknowledged, {} violations",
        media.silence,
        media.gap,
        media.breaks,
        media.packets,
        violations.len()
    ));
    Ok(Round::Checked {
        violations,
        recovery,
        media,
    })
}

fn judge_media(media: &Stillness) -> Vec<String> {
    let mut violations = Vec::new();
    if media.silence >= SILENCE_MAX {
        violations.push(format!(
            "media between the others stopped for {:?}",
            media.silence
        ));
    }
    if media.breaks > 0 {
        violations.push(format!(
            "{} breaks in the sequence of media between the others",
            media.breaks
        ));
    }
    if media.packets == 0 {
        violations.push("no media between the others after the kill".to_owned());
    }
    violations
}

/// Joins and publishes one identity after the other through one node; returns who is still in.
async fn join_and_publish(
    id: u64,
    url: String,
    room: String,
    history: History,
    stop: Arc<AtomicBool>,
) -> Vec<Client> {
    let process = format!("join-{id}");
    let mut clients = Vec::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let identity = format!("{room}-{id}-{count}");
        count += 1;
        history.record(&process, Kind::Invoke, "join", &identity, id, None);
        let mut options = Options::new(&url, token::join(&room, &identity, &json!({})));
        options.auto_subscribe = false;
        options.timeout = Duration::from_secs(5);
        match Client::connect(options).await {
            Ok(client) => {
                history.record(&process, Kind::Ok, "join", &identity, id, None);
                history.record(&process, Kind::Invoke, "publish", &identity, id, None);
                match client.publish("tone", "audio/opus").await {
                    Ok((_, sender)) => {
                        history.record(&process, Kind::Ok, "publish", &identity, id, None);
                        let _ = sender.write(0, false, Bytes::from_static(&[0xf8])).await;
                    }
                    Err(failure) => {
                        let failure = Some(format!("{failure:#}"));
                        history.record(&process, Kind::Info, "publish", &identity, id, failure);
                    }
                }
                clients.push(client);
            }
            Err(failure) => {
                let failure = Some(format!("{failure:#}"));
                history.record(&process, Kind::Info, "join", &identity, id, failure);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    clients
}

/// Creates rooms with metadata, one after the other, through one node.
fn write(id: u64, url: &str, room: &str, history: &History, stop: &AtomicBool) {
    let process = format!("write-{id}");
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("{room}-room-{id}-{count}");
        count += 1;
        history.record(&process, Kind::Invoke, "write", &name, id, None);
        let body = json!({ "name": name, "metadata": name, "emptyTimeout": 600 });
        match room_service::call(url, "CreateRoom", &name, &body) {
            Ok(_) => history.record(&process, Kind::Ok, "write", &name, id, None),
            Err(failure) => {
                history.record(
                    &process,
                    outcome_of(&failure),
                    "write",
                    &name,
                    id,
                    Some(format!("{failure:#}")),
                );
            }
        }
    }
}

/// A refusal in so many words was not applied; of anything else the outcome is unknown.
fn outcome_of(failure: &anyhow::Error) -> Kind {
    let text = format!("{failure:#}");
    let refusals = [
        "permission_denied",
        "invalid_argument",
        "unauthenticated",
        "resource_exhausted",
    ];
    if refusals.iter().any(|code| text.contains(code)) {
        Kind::Fail
    } else {
        Kind::Info
    }
}

/// Who joined, who publishes and which rooms were written, as a survivor says.
fn survey(
    cluster: &mut Cluster,
    dead: u64,
    room: &str,
) -> Result<(BTreeSet<String>, BTreeSet<String>, BTreeSet<String>)> {
    let survivor = (1..=3).find(|id| *id != dead).context("two survive")?;
    let url = cluster.node(survivor).url.clone();
    let listed = room_service::call(&url, "ListParticipants", room, &json!({ "room": room }))?;
    let participants = listed["participants"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let identity = |value: &serde_json::Value| value["identity"].as_str().map(str::to_owned);
    let joined = participants.iter().filter_map(identity).collect();
    let publishing = participants
        .iter()
        .filter(|value| {
            value["tracks"]
                .as_array()
                .is_some_and(|tracks| !tracks.is_empty())
        })
        .filter_map(identity)
        .collect();
    let rooms = room_service::call(&url, "ListRooms", "", &json!({}))?;
    let written = rooms["rooms"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|value| value["metadata"].as_str())
        .filter(|name| name.starts_with(&format!("{room}-room-")))
        .map(str::to_owned)
        .collect();
    Ok((joined, publishing, written))
}

/// All nodes reach one applied index with one state hash.
fn converges(cluster: &Cluster) -> Result<()> {
    wait(Duration::from_secs(20), "all nodes have one state", || {
        let mut seen = BTreeSet::new();
        for id in 1..=3 {
            let answer = cluster.admin_of(id, &["hash"])?;
            seen.insert(format!("{} {}", answer["applied"], answer["state_hash"]));
        }
        Ok(seen.len() == 1)
    })
}
