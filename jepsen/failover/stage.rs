//! What a plan with people on real SDKs plays on: a cluster in namespaces, a front for each client, the
//! clients' processes. Plans differ in what they do to it ([`super::run()`], [`crate::rolling`]);
//! gathering, waiting until all is well, and judging are here.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;
use testkit::cluster::{Cluster, Place, wait};
use testkit::token;

use super::agents::{Agent, Kind, Media};
use super::judge::{Client, Judgement, Touched, Window, judge};
use super::report::{self, Quiet, Report};
use crate::clock::{Ms, now_ms};
use crate::front::Fronts;
use crate::lab::{NODES, Names, Network, SWITCH_ADDRESS, floating_address, node_address};
use crate::{Verdict, say};

/// Everybody talks in it.
pub(crate) const ROOM: &str = "failover";
/// How long everybody may take to hear and see everybody before a fault.
pub(crate) const LIVE_MAX: Duration = Duration::from_secs(45);
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
pub(crate) const BEFORE: Ms = 3_000.0;
/// Agents report four times a second.
const REPORTED: Duration = Duration::from_millis(600);

/// Who talks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cast {
    /// Clients on the Python SDK.
    pub(crate) python: usize,
    /// Clients on rtc-node.
    pub(crate) node: usize,
    /// Clients in Chromium.
    pub(crate) chromium: usize,
    /// To how many others each client subscribes; 0: to all.
    pub(crate) hears: usize,
    /// Milliseconds between two messages of a client.
    pub(crate) pause_ms: u64,
}

impl Cast {
    /// How many there are.
    pub(crate) fn clients(self) -> usize {
        self.python + self.node + self.chromium
    }
}

/// The place of each node in the lab; all of them run `binary`.
pub(crate) fn places(names: Names, binary: Option<&Path>, floating: bool) -> Vec<Place> {
    (1..=NODES)
        .map(|id| Place {
            address: node_address(id).into(),
            namespace: Some(names.node(id)),
            binary: binary.map(Path::to_owned),
            data: None,
            floating: floating.then(|| floating_address(id).into()),
            environment: Vec::new(),
        })
        .collect()
}

/// Cluster, fronts and clients.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) network: Network,
    pub(crate) names: Names,
    pub(crate) fronts: Fronts,
    pub(crate) agents: Vec<Agent>,
    /// Where each client should be.
    pub(crate) homes: Vec<u64>,
    cast: Cast,
    pub(crate) folder: TempDir,
}

impl Stage {
    /// Starts the nodes at their places and a process for each client, which has not joined yet.
    pub(crate) async fn set(cast: Cast, names: Names, places: &[Place]) -> Result<Self> {
        let cluster = tokio::task::block_in_place(|| Cluster::start_at(places, &json!({})))?;
        let kinds: Vec<(Kind, usize)> = [
            (Kind::Python, cast.python),
            (Kind::Node, cast.node),
            (Kind::Chromium, cast.chromium),
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
            cast,
            folder,
        })
    }

    /// Begins a window: what the clients saw before `from` does not count.
    pub(crate) fn record_from(&self, from: Ms) {
        for agent in &self.agents {
            agent.forget(from);
        }
    }

    /// Ends a window that began with a fault at `at`, undone at `calm`: waits until all is well, and judges.
    pub(crate) async fn observe(&self, touched: Touched, at: Ms, calm: Ms) -> Judgement {
        self.watch(calm).await;
        let end = now_ms() - REPORTED.as_secs_f64() * 1e3;
        self.judge_settled(touched, at, end).await
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

    /// What the machine does to media without a fault.
    pub(crate) async fn quiet(&mut self, seconds: f64) -> Result<Quiet> {
        self.record_from(now_ms());
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

    /// Who is served where, as a living node says.
    pub(crate) fn served(&self) -> Result<Vec<(String, u64)>> {
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
    pub(crate) async fn gather(&mut self) -> Result<()> {
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

    /// Lets everybody leave and join again.
    pub(crate) async fn everybody_anew(&mut self) -> Result<()> {
        let all = vec![true; self.agents.len()];
        self.join(&all).await?;
        self.wait_until_live(LIVE_MAX).await
    }

    async fn join(&mut self, which: &[bool]) -> Result<()> {
        let hears: Vec<_> = (0..self.agents.len())
            .map(|index| self.hears(index))
            .collect();
        let (fronts, homes, pause_ms) = (&self.fronts, &self.homes, self.cast.pause_ms);
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
                    .join(&url, &token, hears[agent.index].as_deref(), pause_ms)
                    .await
            });
        join_all(joining).await.into_iter().collect()
    }

    /// Whom a client subscribes to: the next ones in the order of the clients, so that publishers on
    /// every node and of every kind are heard. None: everybody.
    fn hears(&self, index: usize) -> Option<Vec<String>> {
        let count = self.agents.len();
        (self.cast.hears > 0 && self.cast.hears < count - 1).then(|| {
            (1..=self.cast.hears)
                .map(|step| self.agents[(index + step) % count].identity.clone())
                .collect()
        })
    }

    /// Streams that have not moved on lately: from whom to whom.
    pub(crate) fn silent(&self) -> Vec<(String, String)> {
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

    /// Waits until everybody hears and sees whom it subscribes to.
    pub(crate) async fn wait_until_live(&self, limit: Duration) -> Result<()> {
        let deadline = now_ms() + limit.as_secs_f64() * 1e3;
        loop {
            let silent = self.silent();
            if silent.is_empty() {
                return Ok(());
            }
            if now_ms() > deadline {
                let situation = self.situation(&silent);
                bail!(
                    "not everybody hears and sees everybody within {limit:?}: {silent:?}\n{situation}"
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What is known of those who miss something or are missed: what their SDKs told, what arrived, and what
    /// the cluster says.
    fn situation(&self, silent: &[(String, String)]) -> String {
        let mut lines = Vec::new();
        let concerns = |agent: &&Agent| {
            let mut pairs = silent.iter();
            pairs.any(|(from, to)| [from, to].contains(&&agent.identity))
        };
        for agent in self.agents.iter().filter(concerns) {
            lines.push(agent.with(|seen| {
                let stamps: Vec<_> = seen
                    .stamps
                    .iter()
                    .map(|((media, from), stamps)| (media, from, stamps.len()))
                    .collect();
                let received: Vec<_> = seen
                    .received
                    .iter()
                    .map(|(from, messages)| (from, messages.len()))
                    .collect();
                format!(
                    "{}: told {:?}; streams {stamps:?}; messages sent {} refused {} received {received:?}",
                    agent.identity,
                    seen.events,
                    seen.sent.len(),
                    seen.unsent.len(),
                )
            }));
        }
        for what in ["participants", "tracks", "routes"] {
            let told = tokio::task::block_in_place(|| self.cluster.admin(&[what, ROOM]));
            lines.push(match told {
                Ok(told) => format!("{what}: {told}"),
                Err(error) => format!("{what}: {error:#}"),
            });
        }
        lines.join("\n")
    }

    /// The Raft leader, once there is one.
    pub(crate) fn leader(&self) -> Result<u64> {
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
    pub(crate) fn wait_until_whole(&self) -> Result<()> {
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

    /// Ends a run with its report and what broke the promise: everything stops, the report is written and
    /// printed. Logs are kept where something is wrong, and if `wants_logs`.
    pub(crate) async fn conclude(
        self,
        outcome: Result<(Report, Vec<String>)>,
        json: &Path,
        wants_logs: bool,
        report_only: bool,
    ) -> Result<Verdict> {
        if let Err(failure) = &outcome {
            say(&format!("the run failed: {failure:#}"));
        }
        let is_sound = matches!(&outcome, Ok((_, violations)) if violations.is_empty());
        if wants_logs || !is_sound {
            self.keep_logs(json)?;
        }
        let stopped = self.strike().await;
        let (report, violations) = outcome?;
        stopped?;
        report.write(json)?;
        report::print(&report);
        Ok(Verdict::of(violations, report_only))
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

    /// Ends everything.
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
