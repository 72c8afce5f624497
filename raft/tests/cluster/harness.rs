//! Nodes to test with. A test waits for conditions, never for time to pass.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::command::{Command, CreateRoom, Reply};
use flotilla_model::id::{NodeId, RequestId, RoomName, RoomSid};
use flotilla_model::room::RoomOptions;
use flotilla_raft::{
    Channels, ChannelsConfig, Group, GroupConfig, Groups, JoinError, ProposeError, ReadError,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Longest wait for anything; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) group: Group,
    pub(crate) address: String,
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
}

pub(crate) struct Cluster {
    folder: TempDir,
    pub(crate) nodes: BTreeMap<u64, Node>,
    addresses: BTreeMap<u64, String>,
    pub(crate) settings: fn(&mut GroupConfig),
    pub(crate) channels: ChannelsConfig,
}

impl Cluster {
    pub(crate) fn new(settings: fn(&mut GroupConfig)) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            nodes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            settings,
            channels: ChannelsConfig::new("a secret of the tests"),
        }
    }

    /// `count` nodes: the first founds the cluster, the others join it; all are voters, up to the
    /// target.
    pub(crate) async fn of(count: u64, settings: fn(&mut GroupConfig)) -> Self {
        let mut cluster = Self::new(settings);
        cluster.grow(count).await;
        cluster
    }

    pub(crate) async fn grow(&mut self, count: u64) {
        self.start(1).await;
        self.nodes[&1].bootstrap().await;
        for id in 2..=count {
            self.start(id).await;
            let seeds = [self.nodes[&1].address.clone()];
            self.nodes[&id].join(&seeds).await.expect("joins");
        }
        let voters = usize::try_from(count).expect("few").min(3);
        self.await_voters(voters).await;
    }

    pub(crate) async fn await_voters(&self, count: usize) {
        for node in self.nodes.values() {
            eventually("voters are complete", || {
                voters(node).len() == count && !node.group.status().changing
            })
            .await;
        }
    }

    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("node-{id}"))
    }

    pub(crate) fn config(&self, id: u64, address: &str) -> GroupConfig {
        let mut config = GroupConfig::new(NodeId(id), address, self.data(id));
        (self.settings)(&mut config);
        config
    }

    /// Starts a node, or starts it again where it was.
    pub(crate) async fn start(&mut self, id: u64) {
        self.start_with(id, |_| {}).await;
    }

    pub(crate) async fn start_with(&mut self, id: u64, change: impl FnOnce(&mut GroupConfig)) {
        let wanted = self.addresses.get(&id).cloned();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .spawn(bind(wanted.unwrap_or_else(|| "127.0.0.1:0".to_owned())))
            .await
            .expect("no panic");
        let address = listener.local_addr().expect("bound").to_string();
        self.addresses.insert(id, address.clone());
        let mut config = self.config(id, &address);
        change(&mut config);
        let channels = Channels::new(self.channels.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let group = runtime
            .spawn(async move {
                // The folder of a killed predecessor is locked until its last task is gone.
                let deadline = Instant::now() + PATIENCE;
                let group = loop {
                    match Group::start(config.clone(), channels.clone()).await {
                        Ok(group) => break group,
                        Err(error) if Instant::now() > deadline => panic!("{error}"),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                };
                let routes = Groups::from(group.clone()).routes(&channels);
                tokio::spawn(async move {
                    let stop = async {
                        let _ = stopped.await;
                    };
                    channels
                        .serve(listener, routes, stop)
                        .await
                        .expect("serves");
                });
                group
            })
            .await
            .expect("no panic");
        let node = Node {
            id: NodeId(id),
            group,
            address,
            runtime: Some(runtime),
            stop: Some(stop),
        };
        self.nodes.insert(id, node);
    }

    /// Makes a node start at another address next time.
    pub(crate) fn move_away(&mut self, id: u64) {
        self.addresses.remove(&id);
    }

    /// Ends a node without a word, as `kill -9` would.
    pub(crate) fn kill(&mut self, id: u64) {
        drop(self.nodes.remove(&id).expect("runs"));
    }

    /// Ends a node, and its data folder.
    pub(crate) async fn wipe(&mut self, id: u64) {
        self.kill(id);
        let data = self.data(id);
        // Tasks of the killed node may still be about to create files.
        eventually("the folder is gone", || {
            std::fs::remove_dir_all(&data).is_ok() || !data.exists()
        })
        .await;
    }

    /// Ends a node in an orderly way.
    pub(crate) async fn stop(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).expect("runs");
        let group = node.group.clone();
        node.on(async move { group.shutdown().await }).await;
        drop(node.stop.take());
    }

    pub(crate) fn any(&self) -> &Node {
        self.nodes.values().next().expect("a node runs")
    }

    /// The leader that all running nodes agree on.
    pub(crate) async fn leader(&self) -> u64 {
        let mut leader = None;
        eventually("all nodes agree on a running leader", || {
            let named: Vec<_> = self
                .nodes
                .values()
                .map(|node| node.group.status().leader)
                .collect();
            leader = named[0].filter(|id| self.nodes.contains_key(&id.0));
            leader.is_some() && named.iter().all(|other| *other == leader)
        })
        .await;
        leader.expect("just found").0
    }

    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        let mut ids = self.nodes.keys().copied();
        ids.find(|id| *id != leader).expect("more than one node")
    }

    /// Waits until all nodes have applied the same, and compares their states.
    pub(crate) async fn await_equal(&self) {
        let any = self.any();
        let revision = any.read().await.expect("readable").revision;
        let mut hashes = Vec::new();
        for node in self.nodes.values() {
            eventually("all nodes catch up", || {
                node.group.state().revision >= revision
            })
            .await;
            let group = node.group.clone();
            hashes.push(node.on(async move { group.state_hash().await }).await);
        }
        for hash in &hashes {
            if hash.revision == hashes[0].revision {
                assert_eq!(hash.hash, hashes[0].hash, "{hashes:?}");
            }
        }
    }
}

impl Node {
    /// Runs a task on the node's runtime.
    pub(crate) async fn on<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let runtime = self.runtime.as_ref().expect("runs until dropped");
        runtime.spawn(task).await.expect("no panic")
    }

    pub(crate) async fn bootstrap(&self) {
        let group = self.group.clone();
        self.on(async move { group.bootstrap().await })
            .await
            .expect("founds");
    }

    pub(crate) async fn join(&self, seeds: &[String]) -> Result<(), JoinError> {
        let (group, seeds) = (self.group.clone(), seeds.to_vec());
        self.on(async move { group.join(&seeds).await }).await
    }

    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        self.propose_as(request(), command).await
    }

    pub(crate) async fn propose_as(
        &self,
        request: RequestId,
        command: Command,
    ) -> Result<Reply, ProposeError> {
        let group = self.group.clone();
        self.on(async move { group.propose(request, command).await })
            .await
    }

    pub(crate) async fn read(&self) -> Result<Arc<State>, ReadError> {
        let group = self.group.clone();
        self.on(async move { group.read().await }).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn bind(address: String) -> TcpListener {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(&address).await {
            Ok(listener) => return listener,
            Err(error) if Instant::now() > deadline => panic!("{address}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(crate) fn request() -> RequestId {
    RequestId(rand::random())
}

pub(crate) fn create(name: &str) -> Command {
    Command::CreateRoom(CreateRoom {
        name: RoomName::from(name),
        sid: RoomSid::from(format!("RM_{name}")),
        options: RoomOptions::default(),
        metadata: String::new(),
    })
}

pub(crate) fn has_room(state: &State, name: &str) -> bool {
    state.rooms.contains_key(&RoomName::from(name))
}

pub(crate) fn voters(node: &Node) -> Vec<u64> {
    let members = node.group.status().members;
    let voters = members.iter().filter(|member| member.voter);
    voters.map(|member| member.node.0).collect()
}

pub(crate) fn members(node: &Node) -> Vec<u64> {
    let members = node.group.status().members;
    members.iter().map(|member| member.node.0).collect()
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asserts that a text has all these parts.
pub(crate) fn assert_says(error: &impl ToString, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}

/// The value of a result that has to be an error.
pub(crate) fn refused<T: Debug, E>(result: Result<T, E>) -> E {
    match result {
        Ok(value) => panic!("not refused: {value:?}"),
        Err(error) => error,
    }
}
