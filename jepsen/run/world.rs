//! Everything that a run hurts: the cluster, its network, its disks, its clocks.
//!
//! Lives in the judge's namespace. Nodes are `flotilla` processes in namespaces of their own, each with its data on an
//! ext4 image of its own if the machine can do that, and with the shim loaded.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::cluster::{Cluster, Place, wait};
use testkit::disk::Rack;

use crate::api::{Answer, Api};
use crate::lab::Names;
use crate::nemesis::Role;
use crate::net::End;
use crate::net::emulator::{Chance, Control, Emulator};
use crate::shim::{Page, Shim};

/// How long a node that was hurt may take to work again once the fault is over.
pub(crate) const READY_MAX: Duration = Duration::from_secs(40);
/// How long all nodes may take to have one state that they all keep.
const HASHES_MAX: Duration = Duration::from_secs(15);
/// Clients that a run may have.
pub(crate) const CLIENTS: usize = 140;

/// See the module.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) control: Control,
    names: Names,
    count: u64,
    pages: Vec<Arc<Page>>,
    rack: Option<Rack>,
    _folder: TempDir,
    // Ends after the cluster, which needs its network to stop in peace.
    _emulator: Emulator,
}

/// Whether a node says that it does not keep a state any more.
fn is_gone(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("is no longer kept on this node")
}

impl World {
    /// Starts a cluster of so many nodes in the namespaces of a lab.
    ///
    /// # Errors
    /// What did not come up.
    pub(crate) fn new(names: Names, count: u64, seed: u64) -> Result<Self> {
        let folder = TempDir::with_prefix("flotilla-chaos-")?;
        let mut namespaces: Vec<(String, Vec<End>)> = (1..=count)
            .map(|id| (names.node(id), vec![End::node(id)]))
            .collect();
        let mut here = vec![End::JUDGE];
        here.extend((0..CLIENTS).map(End::client));
        namespaces.push((names.switch(), here));
        let emulator = Emulator::start(&namespaces, seed)?;
        let shim = Shim::build(folder.path())?;
        let mut rack = match crate::nemesis::disk_available() {
            Ok(()) => Some(Rack::new(usize::try_from(count)?)?),
            Err(_) => None,
        };
        let mut places = Vec::new();
        let mut pages = Vec::new();
        for id in 1..=count {
            let page = shim.page(id)?;
            let disk = match &mut rack {
                Some(rack) => rack.disks()[usize::try_from(id - 1)?]
                    .mount_point()
                    .to_owned(),
                None => folder.path().join(format!("disk-{id}")),
            };
            places.push(Place {
                address: End::node(id).address().into(),
                namespace: Some(names.node(id)),
                data: Some(disk.join("data")),
                environment: shim.environment(&page, &disk),
                ..Place::here()
            });
            pages.push(Arc::new(page));
        }
        let cluster = Cluster::start_at(
            &places,
            &json!({
                "cluster": { "voters": if count >= 5 { 5 } else { 3 } },
                "signal": { "ping_interval": 1, "ping_timeout": 3 },
            }),
        )?;
        Ok(Self {
            cluster,
            control: emulator.control(),
            names,
            count,
            pages,
            rack,
            _folder: folder,
            _emulator: emulator,
        })
    }

    /// How many nodes there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Their numbers.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        1..=self.count
    }

    /// Where everybody is.
    pub(crate) fn ends(&self) -> Vec<End> {
        let mut ends: Vec<End> = self.ids().map(End::node).collect();
        ends.extend(self.client_ends());
        ends
    }

    /// Where clients and the judge are.
    pub(crate) fn client_ends(&self) -> Vec<End> {
        let mut ends = vec![End::JUDGE];
        ends.extend((0..CLIENTS).map(End::client));
        ends
    }

    fn index(id: u64) -> usize {
        usize::try_from(id).unwrap_or(1) - 1
    }

    /// A node's base URL.
    pub(crate) fn url(&self, id: u64) -> String {
        self.cluster.nodes[Self::index(id)].url.clone()
    }

    /// All of them.
    pub(crate) fn urls(&self) -> Vec<(u64, String)> {
        self.ids().map(|id| (id, self.url(id))).collect()
    }

    /// Process id of a running node.
    pub(crate) fn pid(&self, id: u64) -> Option<u32> {
        self.cluster.nodes[Self::index(id)].pid()
    }

    /// Whether its process lives.
    pub(crate) fn is_running(&mut self, id: u64) -> bool {
        self.cluster.node(id).is_running()
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self, id: u64) -> Result<()> {
        self.cluster.node(id).kill()
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(&mut self, id: u64) -> Result<()> {
        self.cluster.node(id).terminate()
    }

    /// Starts a node that does not run.
    pub(crate) fn start(&mut self, id: u64) -> Result<()> {
        if self.is_running(id) {
            return Ok(());
        }
        // What is left of a process that ended by itself.
        self.cluster.node(id).kill()?;
        self.cluster.node(id).start()
    }

    /// Waits until it answers; gives up as soon as its process has ended.
    pub(crate) fn wait_until_answers(&mut self, id: u64) -> Result<()> {
        let api = Api::new(&self.url(id));
        let deadline = Instant::now() + READY_MAX;
        while Instant::now() < deadline {
            if !self.is_running(id) {
                bail!("node {id} has ended: {}", self.last_words(id));
            }
            if matches!(
                api.call("ListRooms", "", &json!({ "names": ["-"] })),
                Answer::Done(_)
            ) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        bail!("node {id} does not answer within {READY_MAX:?}")
    }

    /// The last line that a node has logged and that says why it ended.
    pub(crate) fn last_words(&self, id: u64) -> String {
        let log = self.cluster.nodes[Self::index(id)].log();
        let lines = log.lines().rev().filter(|line| !line.trim().is_empty());
        let mut told: Vec<&str> = lines.take(3).collect();
        told.reverse();
        let told = told.join(" / ");
        told.chars().take(600).collect()
    }

    /// Asks the admin API of all nodes at once and gives the first answer: any may be paused or out of reach.
    ///
    /// # Errors
    /// The last refusal, if none answers.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let (tell, told) = std::sync::mpsc::channel();
        for node in self
            .cluster
            .nodes
            .iter()
            .filter(|node| node.pid().is_some())
        {
            let mut all = vec!["admin".to_owned()];
            all.extend(node.admin_arguments().map(str::to_owned));
            all.push("--json".to_owned());
            all.extend(arguments.iter().map(|one| (*one).to_owned()));
            let tell = tell.clone();
            // Who does not answer ends by its own limit of time, unheard.
            std::thread::spawn(move || {
                let all: Vec<&str> = all.iter().map(String::as_str).collect();
                let _ = tell.send(testkit::cluster::flotilla(&all));
            });
        }
        drop(tell);
        let mut last = None;
        for answer in told {
            match answer {
                Ok(answer) => return Ok(serde_json::from_str(&answer)?),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no node runs")))
    }

    /// Asks the admin API of another node than this one.
    pub(crate) fn admin_elsewhere(&self, not: u64, arguments: &[&str]) -> Result<Value> {
        let mut last = None;
        for id in self.ids().filter(|id| *id != not) {
            match self.cluster.admin_of(id, arguments) {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("there is no other node")))
    }

    /// Another node than this one.
    pub(crate) fn another(&self, not: u64) -> Result<u64> {
        self.ids().find(|id| *id != not).context("another node")
    }

    /// Last log entry that a node has applied.
    pub(crate) fn applied(&self, id: u64) -> Result<u64> {
        let hash = self.cluster.admin_of(id, &["hash"])?;
        hash["applied"].as_u64().context("applied")
    }

    /// How many participants a node serves, as the others know.
    pub(crate) fn participants_of(&self, id: u64) -> Result<u64> {
        let nodes = self.admin_elsewhere(id, &["nodes"])?;
        let nodes = nodes["nodes"].as_array().context("a list")?;
        let node = nodes.iter().find(|node| node["id"] == id);
        node.and_then(|node| node["participants"].as_u64())
            .context("the node's participants")
    }

    /// The node in a role; where there are several or none, one of the whole cluster.
    ///
    /// # Errors
    /// If the cluster does not say who leads.
    pub(crate) fn find(&self, role: Role, chance: &mut Chance) -> Result<u64> {
        let leader = self.leader()?;
        let ids: Vec<u64> = self.ids().collect();
        let found = match role {
            Role::Leader => vec![leader],
            Role::Standby => ids.iter().copied().filter(|id| *id != leader).collect(),
            Role::Home => {
                let nodes = self.ask(&["nodes"])?;
                let nodes = nodes["nodes"].as_array().context("a list")?;
                let count = |node: &&Value| node["participants"].as_u64().unwrap_or(0);
                let most = nodes.iter().max_by_key(count);
                most.and_then(|node| node["id"].as_u64())
                    .into_iter()
                    .collect()
            }
            Role::Relay => {
                let routes = self.ask(&["routes"])?;
                let routes = routes["routes"].as_array().context("a list")?;
                routes
                    .iter()
                    .filter_map(|route| route["from"].as_u64())
                    .collect()
            }
        };
        let known: Vec<u64> = found.into_iter().filter(|id| ids.contains(id)).collect();
        Ok(*chance.pick(if known.is_empty() { &ids } else { &known }))
    }

    /// Who leads.
    pub(crate) fn leader(&self) -> Result<u64> {
        let mut leader = None;
        wait(Duration::from_secs(10), "the cluster has a leader", || {
            leader = self.ask(&["status"])?["leader"].as_u64();
            Ok(leader.is_some())
        })?;
        leader.context("a leader was found")
    }

    /// What is wrong with a node's clock and disk.
    pub(crate) fn page(&self, id: u64) -> Result<Arc<Page>> {
        self.pages.get(Self::index(id)).cloned().context("a page")
    }

    /// A name for a control group of this run.
    pub(crate) fn group_name(&self, id: u64, what: &str) -> String {
        format!("flotilla-chaos-{}-{what}", self.names.node(id))
    }

    /// Where a node's data is.
    pub(crate) fn data(&self, id: u64) -> PathBuf {
        let text = std::fs::read(self.cluster.nodes[Self::index(id)].config()).unwrap_or_default();
        let config: Value = serde_json::from_slice(&text).unwrap_or_default();
        PathBuf::from(config["cluster"]["data_dir"].as_str().unwrap_or_default())
    }

    /// Where a node's disk is mounted.
    pub(crate) fn disk(&self, id: u64) -> Result<PathBuf> {
        ensure!(self.rack.is_some(), "the nodes have no disks of their own");
        Ok(self.data(id).parent().context("a folder")?.to_owned())
    }

    /// Nothing that is not on a node's disk by now gets there.
    pub(crate) fn cut_power(&mut self, id: u64) -> Result<()> {
        let rack = self
            .rack
            .as_mut()
            .context("the nodes have no disks of their own")?;
        rack.disks()[Self::index(id)].cut_power()
    }

    /// The power is back.
    pub(crate) fn remount(&mut self, id: u64) -> Result<()> {
        let rack = self
            .rack
            .as_mut()
            .context("the nodes have no disks of their own")?;
        rack.disks()[Self::index(id)].remount()
    }

    /// Waits until every node reads and writes.
    ///
    /// # Errors
    /// Who does not within `limit`.
    pub(crate) fn wait_until_whole(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for id in self.ids() {
            let api = Api::new(&self.url(id));
            let name = format!("pulse-{id}");
            let body = json!({ "name": name, "metadata": "whole", "emptyTimeout": 7200 });
            loop {
                let last = match api.call("CreateRoom", &name, &body) {
                    Answer::Done(_) => break,
                    Answer::Refused(code, text) => format!("{code}: {text}"),
                    Answer::Unknown(text) => text,
                };
                if !self.is_running(id) {
                    bail!("node {id} has ended: {}", self.last_words(id));
                }
                if Instant::now() > deadline {
                    bail!("node {id} does not write again within {limit:?}: {last}");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// The state's hash at one log index on every node.
    ///
    /// # Errors
    /// If a node does not get there in time.
    pub(crate) fn hashes(&self) -> Result<(u64, Vec<(u64, String)>)> {
        // A node that was away may catch up by a snapshot, and has nothing of before that.
        let deadline = Instant::now() + HASHES_MAX;
        loop {
            match self.hashes_at_present() {
                Err(error) if is_gone(&error) && Instant::now() < deadline => {}
                hashes => return hashes,
            }
        }
    }

    fn hashes_at_present(&self) -> Result<(u64, Vec<(u64, String)>)> {
        let mut target = 0;
        for id in self.ids() {
            target = target.max(self.applied(id)?);
        }
        let at = target.to_string();
        let mut hashes = Vec::new();
        for id in self.ids() {
            wait(
                Duration::from_secs(15),
                "a node has applied what others have",
                || Ok(self.applied(id)? >= target),
            )
            .with_context(|| format!("node {id}, entry {target}"))?;
            let hash = self.cluster.admin_of(id, &["hash", "--at", &at])?;
            let hash = hash["state_hash"].as_str().unwrap_or_default();
            hashes.push((id, hash.to_owned()));
        }
        Ok((target, hashes))
    }

    /// Whether no fault is left in force.
    pub(crate) fn leftovers(&mut self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if !self.control.is_calm() {
            found.push("a link is still impaired".to_owned());
        }
        for id in self.ids() {
            if !self.page(id)?.is_calm()? {
                found.push(format!("node {id}'s clock or disk is still wrong"));
            }
            if !self.is_running(id) {
                found.push(format!("node {id} does not run"));
            }
        }
        Ok(found)
    }

    /// Copies the nodes' logs.
    pub(crate) fn keep_logs(&self, folder: &std::path::Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for node in &self.cluster.nodes {
            std::fs::write(folder.join(format!("node-{}.txt", node.id)), node.log())?;
        }
        Ok(())
    }

    /// Lines of the nodes' logs that speak of a panic.
    pub(crate) fn panics(&self) -> Vec<String> {
        let nodes = self.cluster.nodes.iter();
        nodes
            .flat_map(|node| {
                let log = node.log();
                let lines = log.lines().filter(|line| line.contains("panicked"));
                lines
                    .map(|line| format!("node {}: {line}", node.id))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// What the nodes have logged that a human must look at, each kind once with how often.
    pub(crate) fn errors(&self) -> Vec<(String, usize)> {
        let mut found: std::collections::BTreeMap<String, usize> =
            std::collections::BTreeMap::new();
        for node in &self.cluster.nodes {
            for line in node.log().lines() {
                let Some((_, told)) = line.split_once(" ERROR ") else {
                    continue;
                };
                // Without the fields, which differ.
                let told: String = told.chars().take(140).collect();
                let told = told.split(" error=").next().unwrap_or_default();
                *found
                    .entry(format!("node {}: {told}", node.id))
                    .or_default() += 1;
            }
        }
        found.into_iter().collect()
    }

    /// Stops every node in peace.
    pub(crate) fn stop(self) -> Result<()> {
        let Self { cluster, .. } = self;
        cluster.stop()
    }
}
