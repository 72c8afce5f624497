//! Plan: the power of all nodes goes at one moment and comes back some seconds later, under people on
//! three SDKs and writers whose every change was acknowledged.
//!
//! Promise: whatever was acknowledged is there; clients come back by themselves, in the sessions that they
//! had, and nobody is told that somebody left. The nodes' data is on disks that lose what was not synced
//! ([`testkit::disk`]), their network is silent while they have no power, and so is the balancer, unless
//! it has power of its own. Judged as [`crate::failover`] judges, but for messages: whoever loses its
//! memory loses what was in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use testkit::client::Client;
use testkit::disk::{self, Rack};
use testkit::room_service;
use tokio::task::JoinHandle;

use crate::clock::now_ms;
use crate::failover::judge::Touched;
use crate::failover::report::{self, Report, Round};
use crate::failover::stage::{BEFORE, Cast, LIVE_MAX, ROOM, Stage, places};
use crate::history::{History, Kind};
use crate::lab::{self, NODES, Names, SWITCH_ADDRESS};
use crate::workload::{Survey, Worker};
use crate::{Verdict, checker, say};

/// How long the writers work before the power goes.
const WORK: Duration = Duration::from_secs(3);
/// Fewer acknowledged changes prove nothing.
const WRITES_MIN: usize = 20;

/// Options of the plan.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds without power.
    #[arg(long, default_value_t = 3.0)]
    dark: f64,
    /// Only this node loses its power.
    #[arg(long)]
    only: Option<u64>,
    /// The balancer in front of the nodes has power of its own and resets its connections at once.
    #[arg(long)]
    balancer_stays: bool,
    /// Clients on the Python SDK; spread over the nodes, like those of the other kinds.
    #[arg(long, default_value_t = 2)]
    python: usize,
    /// Clients on rtc-node.
    #[arg(long, default_value_t = 2)]
    node: usize,
    /// Clients in Chromium.
    #[arg(long, default_value_t = 1)]
    chromium: usize,
    /// To how many others each client subscribes, 0: to all; decoding is what fills a small machine.
    #[arg(long, default_value_t = 2)]
    hears: usize,
    /// Milliseconds between two messages of a client to all others.
    #[arg(long, default_value_t = 50)]
    pause: u64,
    /// Report violations, but do not fail.
    #[arg(long)]
    report_only: bool,
    /// Where the report goes as JSON.
    #[arg(long, default_value = "artifacts/power-loss.json")]
    json: PathBuf,
    /// Number of the namespaces; given by the process that made them.
    #[arg(long, hide = true)]
    lab: Option<u32>,
}

impl Options {
    fn cast(&self) -> Cast {
        Cast {
            python: self.python,
            node: self.node,
            chromium: self.chromium,
            hears: self.hears,
            pause_ms: self.pause,
        }
    }

    fn hit(&self) -> Vec<u64> {
        self.only
            .map_or_else(|| (1..=NODES).collect(), |only| vec![only])
    }
}

/// Runs the plan: makes namespaces and starts itself in them, or does the rounds.
pub(crate) async fn run(options: Options, out: Option<PathBuf>) -> Result<Verdict> {
    if let Err(missing) = disk::available() {
        return Ok(Verdict::Vacuous(missing));
    }
    let Some(lab) = options.lab else {
        return lab::play_in(options.cast().clients()).await;
    };
    let names = Names(lab);
    let mut rack = Rack::new(usize::try_from(NODES)?)?;
    let mut places = places(names, None, false);
    for (place, disk) in places.iter_mut().zip(rack.disks()) {
        place.data = Some(disk.mount_point().join("data"));
    }
    let mut stage = Stage::set(options.cast(), names, &places).await?;
    let outcome = play(&mut stage, &mut rack, &options, out.as_deref()).await;
    stage
        .conclude(outcome, &options.json, false, options.report_only)
        .await
}

async fn play(
    stage: &mut Stage,
    rack: &mut Rack,
    options: &Options,
    out: Option<&Path>,
) -> Result<(Report, Vec<String>)> {
    stage.gather().await?;
    stage.wait_until_live(LIVE_MAX).await?;
    let mut report = Report::new(stage.quiet(3.0).await?);
    let (mut rounds, mut violations) = (Vec::new(), Vec::new());
    for number in 0..options.rounds {
        let history = History::new();
        let (round, found) = round(stage, rack, options, number, &history).await?;
        report::print_round("power loss", &round);
        for violation in &found {
            say(&format!("  {violation}"));
        }
        round.write(out, &format!("power-{number}"))?;
        if let Some(out) = out {
            history.write(&out.join(format!("power-{number}.jsonl")))?;
        }
        rounds.push(round);
        violations.extend(found);
    }
    report.add("power loss", rounds, None);
    Ok((report, violations))
}

/// One loss of power, from a whole cluster to a whole cluster.
async fn round(
    stage: &mut Stage,
    rack: &mut Rack,
    options: &Options,
    number: u32,
    history: &History,
) -> Result<(Round, Vec<String>)> {
    stage.gather().await?;
    stage.wait_until_live(LIVE_MAX).await?;
    let leader = stage.leader()?;
    let hit = options.hit();
    let writers = Writers::start(stage, &hit, number, history);
    tokio::time::sleep(WORK).await;
    let before = present(stage, hit[0])?;
    stage.record_from(now_ms() - BEFORE);
    let at = now_ms();
    cut(stage, rack, options, &hit)?;
    tokio::time::sleep(Duration::from_secs_f64(options.dark)).await;
    // What is asked of a node without power has no answer; asking on would only delay the survey.
    writers.stop.store(true, Ordering::Relaxed);
    tokio::task::block_in_place(|| restore(stage, rack, &hit))?;
    let calm = now_ms();
    tokio::task::block_in_place(|| {
        hit.iter()
            .try_for_each(|id| stage.cluster.wait_until_answers(*id))
    })?;
    let answers = now_ms();
    // What was under way when the power went may be acknowledged now, and a node that answers may still
    // be applying its log.
    let room = writers.room.clone();
    let clients = writers.end().await?;
    stage.wait_until_whole()?;
    let asked = stage.cluster.node(hit[0]).url.clone();
    let survey = tokio::task::block_in_place(|| Survey::ask(&asked, &room))?;
    let after = present(stage, hit[0])?;
    let operations = history.operations();
    let mut violations = survey.check(&operations);
    violations.extend(lost_people(&before, &after));
    violations.extend(lost_number(&operations, &after, &stage.agents[0].identity));
    let [joins, publishes, writes, numbers] =
        ["join", "publish", "write", "metadata"].map(|f| checker::acknowledged(&operations, f));
    if joins == 0 || publishes == 0 || writes < WRITES_MIN || numbers < WRITES_MIN {
        violations.push(format!(
            "only {joins} joins, {publishes} publishes, {writes} rooms and {numbers} changes of metadata were \
             acknowledged: proves nothing"
        ));
    }
    let touched = match options.only {
        Some(only) => Touched::Node(only),
        None => Touched::All,
    };
    let judgement = stage.observe(touched, at, calm).await;
    drop(clients);
    say(&format!(
        "{} node(s) without power for {:.1} s, all answer {:.1} s after it is back; {joins} joins, \
         {publishes} publishes, {writes} rooms, {numbers} changes of metadata acknowledged",
        hit.len(),
        (calm - at) / 1e3,
        (answers - calm) / 1e3,
    ));
    let mut promised = judgement.counts;
    promised.messages_lost = 0;
    violations.extend(promised.violated());
    let round = Round {
        number,
        hit: options.only,
        leader,
        detection_ms: None,
        front_ms: None,
        judgement,
    };
    Ok((round, violations))
}

/// Takes the power away: first the network, so that no last word of a dying system gets out.
fn cut(stage: &mut Stage, rack: &mut Rack, options: &Options, hit: &[u64]) -> Result<()> {
    match options.only {
        None => stage.network.cut_all()?,
        Some(only) => stage.network.cut_node(only)?,
    }
    if options.only.is_none() && !options.balancer_stays {
        stage.fronts.set_power(false);
    }
    for id in hit {
        rack.disks()[usize::try_from(id - 1)?].cut_power()?;
    }
    hit.iter().try_for_each(|id| stage.cluster.node(*id).kill())
}

fn restore(stage: &mut Stage, rack: &mut Rack, hit: &[u64]) -> Result<()> {
    for id in hit {
        rack.disks()[usize::try_from(id - 1)?].remount()?;
    }
    stage.network.heal()?;
    hit.iter()
        .try_for_each(|id| stage.cluster.node(*id).start())?;
    stage.fronts.set_power(true);
    Ok(())
}

/// Who is in the room: session, tracks and metadata of each.
type Present = BTreeMap<String, (String, Vec<String>, String)>;

fn present(stage: &mut Stage, node: u64) -> Result<Present> {
    let url = stage.cluster.node(node).url.clone();
    let body = json!({ "room": ROOM });
    let listed =
        tokio::task::block_in_place(|| room_service::call(&url, "ListParticipants", ROOM, &body))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let people = listed["participants"].as_array().context("a list")?;
    Ok(people
        .iter()
        .map(|one| {
            let tracks = one["tracks"].as_array().into_iter().flatten();
            let mut tracks: Vec<String> = tracks.map(|track| text(&track["sid"])).collect();
            tracks.sort();
            let what = (text(&one["sid"]), tracks, text(&one["metadata"]));
            (text(&one["identity"]), what)
        })
        .collect())
}

fn lost_people(before: &Present, after: &Present) -> Vec<String> {
    before
        .iter()
        .filter_map(|(identity, (sid, tracks, _))| match after.get(identity) {
            None => Some(format!("{identity} is not in the room any more")),
            Some((now, ..)) if now != sid => Some(format!("{identity} was {sid}, is {now}")),
            Some((_, now, _)) if now != tracks => {
                Some(format!("{identity} published {tracks:?}, now {now:?}"))
            }
            Some(_) => None,
        })
        .collect()
}

/// The counter's metadata may be older than what was acknowledged for none of its values.
fn lost_number(
    operations: &[crate::history::Operation],
    after: &Present,
    identity: &str,
) -> Option<String> {
    let acknowledged = operations
        .iter()
        .filter(|operation| operation.f == "metadata" && operation.kind == Kind::Ok)
        .map(|operation| &operation.value)
        .max()?;
    let (_, _, found) = after.get(identity)?;
    (found < acknowledged)
        .then(|| format!("{identity}'s metadata is {found}, but {acknowledged} was acknowledged"))
}

/// Those whose changes are acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    room: String,
    joiners: Vec<JoinHandle<Vec<Client>>>,
    writers: Vec<JoinHandle<()>>,
}

impl Writers {
    /// On every node that is going to lose its power, so that what it acknowledged last counts.
    fn start(stage: &mut Stage, hit: &[u64], number: u32, history: &History) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let room = format!("power-{number}");
        let (mut joiners, mut writers) = (Vec::new(), Vec::new());
        let counted = stage.agents[0].identity.clone();
        for id in hit {
            let worker = Worker {
                node: *id,
                url: stage.cluster.node(*id).url.clone(),
                bind: format!("{SWITCH_ADDRESS}:0"),
                room: room.clone(),
                history: history.clone(),
                stop: stop.clone(),
            };
            joiners.push(tokio::spawn(worker.clone().join_and_publish()));
            if *id == hit[0] {
                let (worker, counted) = (worker.clone(), counted.clone());
                writers.push(tokio::task::spawn_blocking(move || {
                    worker.count_up(ROOM, &counted);
                }));
            }
            writers.push(tokio::task::spawn_blocking(move || worker.write()));
        }
        Self {
            stop,
            room,
            joiners,
            writers,
        }
    }

    /// Waits for the last of them; whoever joined is still in.
    async fn end(self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for joiner in self.joiners {
            clients.extend(joiner.await?);
        }
        for writer in self.writers {
            writer.await?;
        }
        Ok(clients)
    }
}
