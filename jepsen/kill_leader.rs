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
use testkit::cluster::{Cluster, wait};

use crate::history::{History, Kind};
use crate::probe::{Probe, Stillness};
use crate::workload::{Survey, Worker};
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
        let worker = Worker {
            node: id,
            url,
            bind: "127.0.0.1:0".to_owned(),
            room: room.clone(),
            history: history.clone(),
            stop: stop.clone(),
        };
        joiners.push(tokio::spawn(worker.clone().join_and_publish()));
        writers.push(tokio::task::spawn_blocking(move || worker.write()));
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

    let survivor = (1..=3).find(|id| *id != leader).context("two survive")?;
    let found = Survey::ask(&cluster.node(survivor).url, &room)?;
    let operations = history.operations();
    let [joins, publishes, writes] =
        ["join", "publish", "write"].map(|f| checker::acknowledged(&operations, f));
    let mut violations = found.check(&operations);
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
