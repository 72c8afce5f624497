//! A node under simulation: the real store, group and cluster port, on a simulated disk and network.
//!
//! The function [`run`] is what a machine does after its power is on: it opens what the disk has, serves
//! the cluster port, founds or joins the cluster, and lets the work of [`crate::work`] go on until its
//! group stops or its runtime is taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use flotilla_model::id::{NodeId, Revision};
use flotilla_raft::{
    Channels, ChannelsConfig, Clock, FeedError, Group, GroupConfig, Groups, JoinError,
};
use flotilla_storage::simulation::SimulatedDisk;
use flotilla_storage::{Identity, Storage};

use crate::network::{address, dialer, incoming};
use crate::plan::Plan;
use crate::record::Record;
use crate::work::{self, Work};

/// How often a node is asked what it is and has.
const LOOK: Duration = Duration::from_millis(25);
/// Wait before joining or founding is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// What nodes and the world share. All of it is used by one thread; locks are never held across an await.
pub(crate) struct Stage {
    pub(crate) plan: Plan,
    pub(crate) record: Record,
    pub(crate) disks: BTreeMap<u64, SimulatedDisk>,
    pub(crate) clocks: BTreeMap<u64, Clock>,
    pub(crate) work: Work,
    founded: AtomicBool,
    cast: Mutex<Cast>,
}

/// Who is who at the moment.
#[derive(Default)]
pub(crate) struct Cast {
    /// Groups that run.
    pub(crate) groups: BTreeMap<u64, Group>,
    /// Nodes that are, or are to become, members.
    pub(crate) members: BTreeSet<u64>,
    /// Nodes that were removed for good.
    pub(crate) removed: BTreeSet<u64>,
    /// Nodes whose group has stopped: their process is to be started again.
    pub(crate) stopped: BTreeSet<u64>,
    /// Nodes whose disk was made to fail.
    pub(crate) excused: BTreeSet<u64>,
}

impl Stage {
    pub(crate) fn new(plan: Plan, record: Record) -> Self {
        let all = 1..=plan.nodes + 1;
        let disks = all
            .clone()
            .map(|node| (node, SimulatedDisk::new(plan.seed ^ (node << 32))));
        let clocks = all.map(|node| (node, Clock::default()));
        let cast = Cast {
            members: (1..=plan.nodes).collect(),
            ..Cast::default()
        };
        Self {
            disks: disks.collect(),
            clocks: clocks.collect(),
            work: Work::new(&plan),
            founded: AtomicBool::new(false),
            cast: Mutex::new(cast),
            plan,
            record,
        }
    }

    pub(crate) fn cast(&self) -> MutexGuard<'_, Cast> {
        self.cast.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self, node: u64) -> GroupConfig {
        let mut config = GroupConfig::new(NodeId(node), address(node), "data");
        config.voters_target = self.plan.voters;
        config.snapshot_entries = self.plan.snapshot_entries;
        config.log_kept = self.plan.log_kept;
        config.replace_dead_after = Duration::from_secs(3);
        config.snapshot_timeout = Duration::from_secs(10);
        config.propose_timeout = Duration::from_secs(2);
        config.read_timeout = Duration::from_secs(2);
        // Clocks are made to jump by hours.
        config.clock_skew_max = Duration::from_secs(1_000_000);
        config.clock = self.clocks[&node].clone();
        config
    }
}

/// What a node does while it has power.
pub(crate) async fn run(stage: Arc<Stage>, node: u64) -> turmoil::Result {
    let disk = &stage.disks[&node];
    match start(&stage, node).await {
        Ok(group) => {
            stage.cast().groups.insert(node, group.clone());
            let reason = group.stopped().await;
            let excused = stage.cast().excused.contains(&node);
            if disk.is_on() && !excused {
                let text = format!("the group of node {node} stopped by itself: {reason}");
                stage.record.violation(text);
            }
            stage.record.note(format_args!("node {node} stopped"));
            stage.cast().stopped.insert(node);
        }
        Err(error) => {
            let excused = stage.cast().excused.contains(&node);
            if disk.is_on() && !excused {
                let text = format!("node {node} does not start: {error:#}");
                stage.record.violation(text);
            }
            stage.cast().stopped.insert(node);
        }
    }
    std::future::pending().await
}

async fn start(stage: &Arc<Stage>, node: u64) -> anyhow::Result<Group> {
    stage.record.note(format_args!("node {node} starts"));
    stage.record.seen().figures.starts += 1;
    let identity = Identity {
        cluster: None,
        node,
    };
    let storage = Storage::open_simulated("data", &stage.disks[&node], identity)
        .context("its store does not open")?;
    let channels = Channels::dialed_by(ChannelsConfig::new("a secret of the tests"), dialer());
    let group = Group::start_in(storage, stage.config(node), channels.clone()).await?;
    let routes = Groups::from(group.clone()).routes(&channels);
    let connections = incoming().await?;
    tokio::spawn(async move {
        let never = std::future::pending();
        let served = channels.serve_connections(connections, routes, never);
        if let Err(error) = served.await {
            panic!("the cluster port is not served: {error}");
        }
    });
    tokio::spawn(enter(Arc::clone(stage), node, group.clone()));
    Ok(group)
}

/// Founds or joins the cluster, as often as it takes, and then works.
async fn enter(stage: Arc<Stage>, node: u64, group: Group) {
    tokio::spawn(watch(Arc::clone(&stage), node, group.clone()));
    tokio::spawn(look(Arc::clone(&stage), node, group.clone()));
    while !group.is_member() {
        if !stage.cast().members.contains(&node) {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        if node == 1 && !stage.founded.load(Ordering::Relaxed) {
            let founded = group.bootstrap().await;
            stage.record.note(format_args!("founded: {founded:?}"));
            continue;
        }
        let seeds: Vec<String> = (1..=stage.plan.nodes)
            .filter(|seed| *seed != node)
            .map(address)
            .collect();
        match group.join(&seeds).await {
            Ok(()) => break,
            Err(error @ (JoinError::DuplicateNode(_) | JoinError::OtherCluster { .. })) => {
                let text = format!("node {node} is not let in: {error}");
                stage.record.violation(text);
                return;
            }
            Err(error) => {
                stage.record.note(format_args!("node {node}: {error}"));
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    if node == 1 {
        stage.founded.store(true, Ordering::Relaxed);
    }
    stage.record.note(format_args!("node {node} is in"));
    work::begin(&stage, node, &group);
}

/// Follows the feed, as sessions and reconcilers do: no change may be missing or come twice.
async fn watch(stage: Arc<Stage>, node: u64, group: Group) {
    let record = &stage.record;
    let applied = group.applied();
    if let Some(index) = applied.log_index {
        record.state(node, index, &applied.state);
    }
    let mut feed = group.feed();
    let (mut last, mut index, mut at) = (feed.start().revision, applied.log_index, applied.at);
    loop {
        match feed.next().await {
            Ok(change) => {
                if change.revision != Revision(last.0 + 1) {
                    record.violation(format!(
                        "the feed of node {node} goes from revision {last} to {}",
                        change.revision
                    ));
                }
                if Some(change.log_index) < index || change.at < at {
                    record.violation(format!(
                        "the feed of node {node} goes back at revision {}",
                        change.revision
                    ));
                }
                (last, index, at) = (change.revision, Some(change.log_index), change.at);
                record.state(node, change.log_index, &change.state);
                record.note(format_args!(
                    "{node}: {} {}",
                    change.log_index, change.revision
                ));
                record.seen().figures.changes += 1;
            }
            Err(FeedError::Lagged(_)) => {
                feed = group.feed();
                let start = feed.start().revision;
                if start <= last {
                    record.violation(format!(
                        "node {node} was at revision {last}, lagged, and begins again at {start}"
                    ));
                }
                last = start;
                record.seen().figures.lags += 1;
            }
            Err(FeedError::Stopped) => return,
        }
    }
}

/// Notes what a node says of itself.
async fn look(stage: Arc<Stage>, node: u64, group: Group) {
    loop {
        tokio::time::sleep(LOOK).await;
        stage.record.status(node, &group.status());
    }
}
