//! The rounds: everybody at home and heard, a fault, a window in which all is recorded, repair.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;
use testkit::cluster::{Cluster, Place, wait};
use testkit::token;

use super::Options;
use super::agents::{Agent, Kind, Media};
use super::detection;
use super::faults::Fault;
use super::judge::{Client, Judgement, Touched, Window, judge};
use super::report::{self, Quiet, Report, Round};
use crate::clock::{Ms, now_ms};
use crate::front::Fronts;
use crate::lab::{NODES, Names, Network, SWITCH_ADDRESS, node_address};
use crate::wire::capture::{Capture, Reader};
use crate::wire::proof::{Findings, Proof};
use crate::{Verdict, say};

const ROOM: &str = "failover";
/// How long everybody may take to hear and see everybody before a fault.
const LIVE_MAX: Duration = Duration::from_secs(45);
/// A window is at least this long after the fault or its undoing; Chromium's SDK takes over two
/// seconds to call itself reconnected.
const WINDOW_MIN: Ms = 5_000.0;
/// And at most this long.
const WINDOW_MAX: Ms = 25_000.0;
/// All must have been well for so long at the end of a window.
const SETTLED: Ms = 1_500.0;
/// How long messages may be on their way after a window.
const MESSAGES_MAX: Ms = 5_000.0;
/// What is recorded before the fault.
const BEFORE: Ms = 3_000.0;
/// Agents report four times a second.
const REPORTED: Duration = Duration::from_millis(600);

/// Does all rounds inside the lab.
pub(super) async fn run(options: Options, names: Names, out: Option<PathBuf>) -> Result<Verdict> {
    let faults: Vec<Fault> = options
        .faults
        .iter()
        .copied()
        .filter(|fault| match fault.missing() {
            None => true,
            Some(why) => {
                say(&format!("SKIPPED {}: {why}", fault.name()));
                false
            }
        })
        .collect();
    if faults.is_empty() || options.rounds == 0 {
        return Ok(Verdict::Vacuous("no fault was injected".to_owned()));
    }
    let mut stage = Stage::set(&options, names).await?;
    let outcome = stage.play(&options, &faults, out.as_deref()).await;
    if let Err(failure) = &outcome {
        say(&format!("the run failed: {failure:#}"));
    }
    let is_sound = |report: &report::Report| report.violations().is_empty();
    if out.is_some() || !outcome.as_ref().is_ok_and(is_sound) {
        stage.keep_logs(&options.json)?;
    }
    let stopped = stage.strike().await;
    let report = outcome?;
    stopped?;
    report.write(&options.json)?;
    report::print(&report);
    let violations = report.violations();
    Ok(match (violations.is_empty(), options.report_only) {
        (true, _) => Verdict::Holds,
        (false, true) => Verdict::Reported(violations),
        (false, false) => Verdict::Violated(violations),
    })
}

/// Cluster, fronts and clients.
struct Stage {
    cluster: Cluster,
    network: Network,
    names: Names,
    fronts: Fronts,
    agents: Vec<Agent>,
    /// Where each client should be.
    homes: Vec<u64>,
    /// How many others each client subscribes to; 0: all.
    hears: usize,
    folder: TempDir,
}

impl Stage {
    async fn set(options: &Options, names: Names) -> Result<Self> {
        let places: Vec<Place> = (1..=NODES)
            .map(|id| Place {
                address: node_address(id).into(),
                namespace: Some(names.node(id)),
            })
            .collect();
        let cluster = tokio::task::block_in_place(|| Cluster::start_at(&places, &json!({})))?;
        let kinds: Vec<(Kind, usize)> = [
            (Kind::Python, options.python),
            (Kind::Node, options.node),
            (Kind::Chromium, options.chromium),
        ]
        .into_iter()
        .flat_map(|(kind, count)| (0..count).map(move |index| (kind, index)))
        .collect();
        let homes: Vec<u64> = (1..=NODES).cycle().take(kinds.len()).collect();
        let addresses: Vec<SocketAddr> = cluster
            .nodes
            .iter()
            .map(|node| node.client_address().parse())
            .collect::<Result<_, _>>()?;
        let fronts = Fronts::open(SWITCH_ADDRESS.into(), addresses, homes.clone()).await?;
        let folder = TempDir::with_prefix("flotilla-failover-")?;
        let log = folder.path().join("agents.txt");
        let mut agents = Vec::new();
        for (index, (kind, number)) in kinds.into_iter().enumerate() {
            let identity = format!("{}-{}", kind.name(), number + 1);
            agents.push(Agent::start(names, index, kind, identity, &log).await?);
        }
        Ok(Self {
            cluster,
            network: Network::new(names),
            names,
            fronts,
            agents,
            homes,
            hears: options.hears,
            folder,
        })
    }

    async fn play(
        &mut self,
        options: &Options,
        faults: &[Fault],
        out: Option<&Path>,
    ) -> Result<Report> {
        self.gather().await?;
        self.wait_until_live(LIVE_MAX).await?;
        let quiet = self.quiet(options.quiet).await?;
        report::print_quiet(&quiet);
        let mut report = Report::new(quiet);
        for fault in faults {
            // Sessions begin within the capture, so that their keys are known from the first packet.
            let capture = if options.no_capture {
                None
            } else {
                let file = self.folder.path().join(format!("{}.pcap", fault.name()));
                Some(Capture::start(self.names, &file)?)
            };
            self.everybody_anew().await?;
            let mut rounds = Vec::new();
            for number in 0..options.rounds {
                let round = self.round(*fault, number).await?;
                report::print_round(*fault, &round);
                if let Some(out) = out {
                    std::fs::create_dir_all(out)?;
                    let name = format!("failover-{}-{number}.json", fault.name());
                    std::fs::write(out.join(name), serde_json::to_vec(&round)?)?;
                }
                rounds.push(round);
            }
            let wire = capture.map(|capture| prove(capture, out)).transpose()?;
            report.add(*fault, rounds, wire);
        }
        Ok(report)
    }

    /// One fault from a whole cluster to a whole cluster.
    async fn round(&mut self, fault: Fault, number: u32) -> Result<Round> {
        let leader = self.leader()?;
        let touched = fault.target(number, leader);
        self.place_browsers(touched, number);
        self.gather().await?;
        self.wait_until_live(LIVE_MAX).await?;
        tokio::time::sleep(Duration::from_millis(BEFORE as u64)).await;
        let from = now_ms() - BEFORE;
        for agent in &self.agents {
            agent.forget(from);
        }
        let at = fault.inject(touched, &mut self.cluster, &self.network)?;
        let mut calm = at;
        if let Some(lasts) = fault.lasts() {
            tokio::time::sleep(lasts).await;
            fault.undo(touched, &mut self.cluster, &self.network)?;
            calm = now_ms();
        }
        self.watch(calm).await;
        let end = now_ms() - REPORTED.as_secs_f64() * 1e3;
        let judgement = self.judge_settled(touched, at, end).await;
        let hit = match touched {
            Touched::Node(id) => Some(id),
            _ => None,
        };
        let logs: Vec<String> = self
            .cluster
            .nodes
            .iter()
            .filter(|node| Some(node.id) != hit)
            .map(|node| node.log())
            .collect();
        let round = Round {
            number,
            hit,
            leader,
            detection_ms: hit.and_then(|id| detection::from_logs(&logs, id, at)),
            front_ms: hit
                .and_then(|id| self.fronts.marked_down_since(id, at))
                .map(|marked| marked - at),
            judgement,
        };
        tokio::task::block_in_place(|| fault.repair(touched, &mut self.cluster, &self.network))?;
        self.wait_until_whole()?;
        Ok(round)
    }

    /// Waits until all is well again and stays so, for as long as a window may last.
    async fn watch(&self, calm: Ms) {
        let mut well_since = None;
        while now_ms() < calm + WINDOW_MAX {
            let well = now_ms() > calm + WINDOW_MIN && self.silent().is_empty();
            well_since = if well {
                well_since.or(Some(now_ms()))
            } else {
                None
            };
            if well_since.is_some_and(|since| now_ms() > since + SETTLED) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Judges once every message has arrived that is still on its way, or after a while.
    async fn judge_settled(&self, touched: Touched, at: Ms, end: Ms) -> Judgement {
        let deadline = now_ms() + MESSAGES_MAX;
        loop {
            let judgement = self.judge(touched, at, end);
            if judgement.counts.messages_lost == 0 || now_ms() > deadline {
                return judgement;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    fn judge(&self, touched: Touched, at: Ms, end: Ms) -> Judgement {
        let clients: Vec<Client> = self
            .agents
            .iter()
            .map(|agent| Client {
                index: agent.index,
                identity: agent.identity.clone(),
                kind: agent.kind,
                home: self.homes[agent.index],
                hears: self.hears(agent.index),
                seen: agent.with(Clone::clone),
            })
            .collect();
        let window = Window {
            touched,
            fault: at,
            end,
            knocks: self.fronts.knocks_since(at),
            listed: self
                .served()
                .map(|served| served.into_iter().map(|(identity, _)| identity).collect())
                .unwrap_or_default(),
        };
        judge(&window, &clients)
    }

    async fn quiet(&mut self, seconds: f64) -> Result<Quiet> {
        let from = now_ms();
        for agent in &self.agents {
            agent.forget(from);
        }
        // Reports come in batches: the window begins when none of before is on its way any more.
        tokio::time::sleep(Duration::from_millis(BEFORE as u64)).await;
        let at = now_ms();
        let mut lateness = Vec::new();
        let step = Duration::from_millis(5);
        while now_ms() < at + seconds * 1e3 {
            let before = now_ms();
            tokio::time::sleep(step).await;
            lateness.push(now_ms() - before - step.as_secs_f64() * 1e3);
        }
        tokio::time::sleep(REPORTED).await;
        let end = at + seconds * 1e3;
        let judgement = self.judge_settled(Touched::None, at, end).await;
        Ok(Quiet::new(seconds, lateness, &judgement))
    }

    /// Browsers are few, so they move: the first is on the node that will be hit in two rounds of
    /// three, the others on those after it.
    fn place_browsers(&mut self, touched: Touched, round: u32) {
        let first = match touched {
            Touched::Node(id) | Touched::Link(id, _) => id,
            Touched::None => 1,
        };
        let browsers = self
            .agents
            .iter()
            .filter(|agent| agent.kind == Kind::Chromium);
        let shift = u64::from(round % 3 == 2);
        for (step, agent) in (shift..).zip(browsers) {
            self.homes[agent.index] = (first - 1 + step) % NODES + 1;
        }
    }

    /// Who is served where, as a living node says.
    fn served(&self) -> Result<Vec<(String, u64)>> {
        let node = (1..=NODES)
            .find(|id| self.fronts.is_up(*id))
            .context("no node is healthy")?;
        let listed = tokio::task::block_in_place(|| {
            self.cluster
                .admin_of(node, &["participants", ROOM, "--consistency", "stale"])
        });
        // Before the first join there is no room.
        let listed = listed.unwrap_or_default();
        Ok(listed["participants"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| Some((one["identity"].as_str()?.to_owned(), one["home"].as_u64()?)))
            .collect())
    }

    /// Lets whoever is not where it should be, or does not see everybody, join there anew.
    async fn gather(&mut self) -> Result<()> {
        let served = self.served()?;
        let silent = self.silent();
        let away: Vec<bool> = self
            .agents
            .iter()
            .map(|agent| {
                let home = served
                    .iter()
                    .find(|(identity, _)| *identity == agent.identity);
                home.map(|(_, node)| *node) != Some(self.homes[agent.index])
                    || silent.iter().any(|(_, to)| *to == agent.identity)
            })
            .collect();
        self.join(&away).await
    }

    async fn everybody_anew(&mut self) -> Result<()> {
        let all = vec![true; self.agents.len()];
        self.join(&all).await?;
        self.wait_until_live(LIVE_MAX).await
    }

    async fn join(&mut self, which: &[bool]) -> Result<()> {
        let hears: Vec<_> = (0..self.agents.len())
            .map(|index| self.hears(index))
            .collect();
        let (fronts, homes) = (&self.fronts, &self.homes);
        let joining = self
            .agents
            .iter_mut()
            .filter(|agent| which[agent.index])
            .map(async |agent| {
                agent.leave().await?;
                fronts.want(agent.index, homes[agent.index]);
                let url = format!("http://{SWITCH_ADDRESS}:{}", fronts.port(agent.index));
                let token = token::join(ROOM, &agent.identity, &json!({}));
                agent
                    .join(&url, &token, hears[agent.index].as_deref())
                    .await
            });
        join_all(joining).await.into_iter().collect()
    }

    /// Whom a client subscribes to: the next ones in the order of the clients, so that publishers on
    /// every node and of every kind are heard. None: everybody.
    fn hears(&self, index: usize) -> Option<Vec<String>> {
        let count = self.agents.len();
        (self.hears > 0 && self.hears < count - 1).then(|| {
            (1..=self.hears)
                .map(|step| self.agents[(index + step) % count].identity.clone())
                .collect()
        })
    }

    /// Streams that have not moved on lately: from whom to whom.
    fn silent(&self) -> Vec<(String, String)> {
        let now = now_ms();
        let mut found = Vec::new();
        for to in &self.agents {
            let hears = self.hears(to.index);
            let is_heard = |from: &Agent| {
                hears
                    .as_ref()
                    .is_none_or(|hears| hears.contains(&from.identity))
            };
            let others = self.agents.iter().filter(|from| from.index != to.index);
            for from in others.filter(|from| is_heard(from)) {
                let is_silent = to.with(|seen| {
                    Media::ALL.iter().any(|media| {
                        let last = seen.last(*media, &from.identity);
                        last.is_none_or(|last| now - last > 1000.0)
                    })
                });
                if is_silent {
                    found.push((from.identity.clone(), to.identity.clone()));
                }
            }
        }
        found
    }

    async fn wait_until_live(&self, limit: Duration) -> Result<()> {
        let deadline = now_ms() + limit.as_secs_f64() * 1e3;
        loop {
            let silent = self.silent();
            if silent.is_empty() {
                return Ok(());
            }
            if now_ms() > deadline {
                bail!("not everybody hears and sees everybody within {limit:?}: {silent:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn leader(&self) -> Result<u64> {
        tokio::task::block_in_place(|| {
            let mut leader = None;
            wait(Duration::from_secs(10), "the cluster has a leader", || {
                leader = Some(self.cluster.leader()?);
                Ok(true)
            })?;
            leader.context("a leader was found")
        })
    }

    /// All nodes are healthy for the fronts, agree on the leader and have applied the same.
    fn wait_until_whole(&self) -> Result<()> {
        tokio::task::block_in_place(|| {
            wait(Duration::from_secs(30), "the cluster is whole", || {
                let mut seen = std::collections::BTreeSet::new();
                for id in 1..=NODES {
                    let hash = self.cluster.admin_of(id, &["hash"])?;
                    let leader = self.cluster.admin_of(id, &["status"])?["leader"].clone();
                    seen.insert(format!(
                        "{} {} {leader}",
                        hash["applied"], hash["state_hash"]
                    ));
                }
                Ok(seen.len() == 1 && (1..=NODES).all(|id| self.fronts.is_up(id)))
            })
        })
    }

    /// Copies logs beside the report, for whoever looks into a failure.
    fn keep_logs(&self, beside: &Path) -> Result<()> {
        let folder = beside.with_extension("logs");
        std::fs::create_dir_all(&folder)?;
        for node in &self.cluster.nodes {
            std::fs::write(folder.join(format!("node-{}.txt", node.id)), node.log())?;
        }
        let agents = self.folder.path().join("agents.txt");
        std::fs::copy(agents, folder.join("agents.txt"))?;
        say(&format!("logs are in {}", folder.display()));
        Ok(())
    }

    async fn strike(self) -> Result<()> {
        let _ = self.network.heal();
        join_all(self.agents.into_iter().map(Agent::quit)).await;
        let mut cluster = self.cluster;
        for node in &mut cluster.nodes {
            let _ = node.thaw();
        }
        tokio::task::block_in_place(|| cluster.stop())
    }
}

/// Reads a capture against the promises; keeps its file only where they are broken.
fn prove(capture: Capture, out: Option<&Path>) -> Result<Findings> {
    let file = capture.stop()?;
    let mut reader = Reader::open(&file)?;
    let mut proof = Proof::new(|address| (1..=NODES).any(|id| node_address(id) == address));
    while let Some(datagram) = reader.next()? {
        proof.take(&datagram);
    }
    let findings = proof.findings();
    if let (false, Some(out)) = (findings.hold(), out) {
        std::fs::copy(&file, out.join(file.file_name().context("a file")?))?;
    }
    std::fs::remove_file(&file)?;
    Ok(findings)
}
