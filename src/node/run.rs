//! Puts a node together, keeps it running and stops it: the one place that knows every part.
//!
//! ```text
//! config ─► ports ─► data folder ─► group ─► certificate ─► cluster port ─► join ─► shards ─► http
//! ```
//! Ports come first, so that a taken one is found before anything is written.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use flotilla_media::engine::EngineConfig;
use flotilla_media::peer::dtls::Certificate;
use flotilla_model::cluster::{LossCause, Node as NodeRecord, NodeState};
use flotilla_model::command::Command;
use flotilla_model::id::{BootId, NodeId, Region};
use flotilla_model::room::RoomOptions;
use flotilla_raft::{Channels, ChannelsConfig, Tls};
use flotilla_raft::{Group, Groups};
use flotilla_raft::{GroupConfig, GroupId};
use flotilla_signal::config::{SessionConfig, SessionLimits};
use flotilla_signal::session::RESUME_SETTLE;
use flotilla_signal::token::Keys;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::admin::{self, AdminAccess, AdminContext, AdminTls};
use crate::config::Config;
use crate::control::addresses as moving_addresses;
use crate::control::fence::{Fence, FenceConfig};
use crate::control::health::{self, Outcomes};
use crate::control::lease::Lease;
use crate::control::takeovers::Takeovers;
use crate::control::{Follower, detours, drain, failure, orphans, rebalance, register};
use crate::data_dir::DataDir;
use crate::http;
use crate::hub::Hub;
use crate::mesh::enroll::{self, Doorkeeper};
use crate::mesh::proto::mesh_server::MeshServer;
use crate::mesh::{Ailing, INBOUND_MAX, Mesh, MeshService, Own, ServiceConfig, software_version};
use crate::session::connection::ConnectionIds;
use crate::session::handover::Vault;
use crate::session::inbox::Message;
use crate::session::{Sessions, new_request};
use crate::shard::Shards;
use crate::telemetry::Metrics;
use crate::udp::{Socket, Waker};

mod addresses;
mod membership;

use addresses::Addresses;
use membership::{Membership, enroll_request};

/// How long clients that were asked to move may take before whoever is left moves at once.
const STRAGGLERS_MAX: Duration = Duration::from_secs(3);
/// How long a stopping node passes on what clients send that have just moved away.
const LENT_WAIT_MAX: Duration = Duration::from_secs(3);
/// A drain is given up after so long without a leader: the other nodes are stopping as well.
const UNLED_MAX: Duration = Duration::from_secs(2);
/// Longest wait for sessions to take leave when the node stops.
const LEAVE_MAX: Duration = Duration::from_secs(3);
/// How long clients get to come back elsewhere before what they left behind here is removed.
const REJOIN_MAX: Duration = Duration::from_millis(1500);
/// How long a new node waits for a seed to answer.
const SEEDS_MAX: Duration = Duration::from_secs(60);
const SEEDS_RETRY: Duration = Duration::from_millis(500);
/// How often the group's state is copied into the metrics.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a client is not told that a reliable message arrived, at most, while a node that is to have it has not
/// got it. Well below the 400 ms after which clients send again. Not while nobody may hear this node.
const SAFE_MAX: Duration = Duration::from_millis(100);
/// How often a connection says where it stands if its address may move: so much of what it has sent need
/// not be known to whoever goes on with it.
const MOVING_CHECKPOINT_INTERVAL: Duration = Duration::from_millis(500);
/// Longest frame that other nodes may send on the mesh.
const MESH_MESSAGE_MAX: usize = 4 * 1024 * 1024;

/// Whether the node may found a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Founding {
    /// Found one if the data folder is new (`dev`, `cluster init`).
    IfNew,
    /// Never: belong to one, or join one at the seeds (`start`).
    Never,
}

/// A running node.
pub struct Node {
    config: Arc<Config>,
    id: NodeId,
    boot: BootId,
    open: Arc<AtomicBool>,
    group: Group,
    mesh: Mesh,
    hub: Hub,
    shards: Arc<Shards>,
    tasks: JoinSet<anyhow::Result<()>>,
    stop_cluster_port: Option<oneshot::Sender<()>>,
    stop_admin_port: Option<oneshot::Sender<()>>,
    /// Where HTTP listens; the first is the node's own.
    pub http_addresses: Vec<SocketAddr>,
}

struct Ports {
    http: Vec<TcpListener>,
    metrics: Option<TcpListener>,
    cluster: TcpListener,
    admin: TcpListener,
    media: Vec<(Socket, Waker)>,
}

impl Ports {
    fn open(config: &Config) -> anyhow::Result<Self> {
        let tcp = |key: &str, address: SocketAddr, shared| {
            http::listen(address, shared).with_context(|| taken("TCP", key, address))
        };
        let mut listeners = Vec::new();
        for address in http::addresses(&config.bind_addresses, config.port) {
            listeners.push(tcp("port", address, false)?);
        }
        if let Some(port) = config.shared_port {
            for address in http::addresses(&config.bind_addresses, port) {
                listeners.push(tcp("shared_port", address, true)?);
            }
        }
        let mut media = Vec::new();
        for address in config.media_bind() {
            let bound =
                Socket::bind(address).with_context(|| taken("UDP", "rtc.udp_port", address))?;
            if config.floating.is_some() {
                bound.0.allow_beside()?;
            }
            media.push(bound);
        }
        let metrics = match config.prometheus_port {
            Some(port) => {
                let address = http::addresses(&config.bind_addresses, port)[0];
                Some(tcp("prometheus.port", address, false)?)
            }
            None => None,
        };
        Ok(Self {
            http: listeners,
            metrics,
            cluster: tcp("cluster.bind", config.cluster_bind, false)?,
            admin: tcp("admin.bind", config.admin_bind, false)?,
            media,
        })
    }
}

fn taken(kind: &str, key: &str, address: SocketAddr) -> String {
    format!(
        "{kind} port {address} cannot be opened: is another process using it? \
         Stop that one, or set `{key}` to a free port"
    )
}

impl Node {
    /// Starts a node. Returns once it takes participants.
    ///
    /// # Errors
    /// What is wrong and what to do about it.
    pub async fn start(config: Arc<Config>, founding: Founding) -> anyhow::Result<Self> {
        let id = NodeId(config.node_id);
        let boot = BootId(rand::random_range(1..=u64::MAX));
        let metrics = Metrics::new(id)?;
        let ports = Ports::open(&config)?;
        let addresses = Addresses::of(&config, &ports)?;
        let secret = secret(&config)?;
        let channels = channels(&config, &secret)?;
        let data = DataDir::open(&config.data_dir, &config.cluster.name, config.node_id)?;
        let group = start_group(&config, &addresses.cluster, &data, &channels).await?;

        let member = Membership {
            config: &config,
            boot,
            address: &addresses.cluster,
            secret: &secret,
            channels: &channels,
            data: &data,
            group: &group,
        };
        let joined = member.prepare(founding).await?;
        let certificate = Certificate::from_pem(&joined.certificate)
            .context("the cluster's DTLS certificate (dtls.pem in the data folder)")?;

        let own = Own {
            node: id,
            boot,
            cluster_id: joined.cluster_id.clone(),
            config_hash: config.cluster.hash(),
        };
        let mesh = Mesh::bounded(
            own.clone(),
            channels.clone(),
            metrics.clone(),
            config.cluster.failure_detection,
        );
        let ailing = Ailing::default();
        let hub = Hub::new(id, mesh.clone(), metrics.clone());
        let (inbound, arriving) = mpsc::channel(INBOUND_MAX);
        let doorkeeper = Doorkeeper {
            node: id,
            boot,
            address: addresses.cluster.clone(),
            cluster: config.cluster.name.clone(),
            cluster_id: joined.cluster_id.clone(),
            config_hash: own.config_hash,
            clock_skew_max: config.cluster.clock_skew_max,
            sealed_certificate: enroll::seal(&secret, joined.certificate.as_bytes()),
            state: Box::new({
                let group = group.clone();
                move || group.state()
            }),
            mesh: mesh.clone(),
        };
        let service = MeshService::new(ServiceConfig {
            own,
            inbound,
            doorkeeper,
            claims: Arc::new(hub.clone()),
            mesh: mesh.clone(),
            ailing: ailing.clone(),
            may_crash: config.demo_kill,
            metrics: metrics.clone(),
        });
        let mut tasks = JoinSet::new();
        let stop_cluster_port =
            serve_cluster_port(&mut tasks, ports.cluster, &channels, &group, service);
        tokio::select! {
            joined = member.join(&joined) => joined?,
            reason = group.stopped() => return Err(halted(&reason)),
        }

        // Shards ask it before they send; it begins once the fence has read the log.
        let lease = Lease::new(Instant::now());
        let mut engine = EngineConfig::new(
            id,
            boot,
            enroll::derive(&secret, "media relays"),
            Arc::new(certificate),
            addresses
                .candidates
                .iter()
                .map(|ip| SocketAddr::new(*ip, 0))
                .collect(),
            [0; 32],
        );
        engine.fresh_certificate = Arc::new(Certificate::generate()?);
        engine.data.hold_max = SAFE_MAX;
        engine.data.reach = Some(lease.reach().clone());
        if config.floating.is_some() {
            engine.moves = true;
            engine.checkpoint_interval = MOVING_CHECKPOINT_INTERVAL;
        }
        let (shards, shard_events) = Shards::start(ports.media, &engine, &lease, &metrics)?;
        let shards = Arc::new(shards);
        let relay_addresses = shards
            .handles()
            .iter()
            .map(|shard| SocketAddr::new(addresses.relay_ip, shard.address.port()))
            .collect();

        let session_config = session_config(&config);
        let resume_timeout = session_config.resume_timeout;
        let takeovers = Takeovers::new(id, metrics.clone());
        let sessions = Sessions::new(
            Arc::new(session_config),
            group.clone(),
            hub.clone(),
            shards.clone(),
            Vault::new(secret.clone()),
            takeovers.clone(),
            metrics.clone(),
        );
        let outcomes = Outcomes::default();
        let follower = Follower {
            node: id,
            group: group.clone(),
            hub: hub.clone(),
            mesh: mesh.clone(),
            shards: shards.clone(),
            shard_events,
            takeovers: takeovers.clone(),
            outcomes: outcomes.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn(follower.run());
        tasks.spawn(receive(hub.clone(), arriving));
        tasks.spawn(observe(group.clone(), shards.clone(), metrics.clone()));
        let record = NodeRecord {
            id,
            region: Region(config.region.clone()),
            boot,
            cluster_address: addresses.cluster.clone(),
            admin_address: addresses.admin.clone(),
            client_url: addresses.client_url.clone(),
            relay_addresses,
            capacity: config.participants_max,
            state: NodeState::Serving,
            version: software_version(),
        };
        let own = config.floating.iter().map(|floating| floating.address);
        let record = record.with_moving_addresses(&own.collect::<Vec<_>>());
        tokio::select! {
            registered = register::register(&group, record.clone()) => registered?,
            reason = group.stopped() => return Err(halted(&reason)),
        }
        tasks.spawn({
            let group = group.clone();
            async move { Err(halted(&group.stopped().await)) }
        });
        let open = Arc::new(AtomicBool::new(true));
        let fence = FenceConfig {
            record,
            bound: config.cluster.failure_detection,
            lost_after: config.cluster.node_lost_after,
            ailing: ailing.clone(),
            open: open.clone(),
            metrics: metrics.clone(),
        };
        if let Some(floating) = &config.floating {
            let keeping = moving_addresses::Keeping {
                plan: moving_addresses::Plan {
                    node: id,
                    boot,
                    own: floating.address,
                },
                means: floating.means.clone(),
                group: group.clone(),
                sessions: sessions.clone(),
                lease: lease.clone(),
            };
            tasks.spawn(without_end(moving_addresses::watch(keeping)));
        }
        let fence = Fence::new(fence, group.clone(), mesh.clone(), hub.clone(), lease);
        tasks.spawn(without_end(fence.run()));
        tasks.spawn(without_end(health::watch(group.clone(), outcomes, ailing)));
        let (moves, moving) = mpsc::channel(drain::MOVES_WAITING_MAX);
        let plan = drain::Plan::new(id, config.drain_per_second, config.drain_notice);
        tasks.spawn(without_end(drain::watch(plan, group.clone(), moves)));
        tasks.spawn(without_end(drain::carry_out(
            group.clone(),
            hub.clone(),
            moving,
        )));
        let plan = rebalance::Plan::new(id, config.rebalance_per_second, config.rebalance_after);
        tasks.spawn(without_end(rebalance::watch(
            plan,
            group.clone(),
            hub.clone(),
        )));
        let detection = failure::FailureConfig {
            bound: config.cluster.failure_detection,
            patience: config.cluster.node_lost_after,
        };
        tasks.spawn(without_end(detours::watch(
            group.clone(),
            mesh.clone(),
            shards.clone(),
            metrics.clone(),
            config.cluster.failure_detection,
        )));
        let watch = failure::Watch::new(
            id,
            group.clone(),
            mesh.clone(),
            takeovers.clone(),
            detection,
        );
        tasks.spawn(without_end(watch.run()));
        tasks.spawn(without_end(orphans::watch(
            id,
            group.clone(),
            hub.clone(),
            resume_timeout,
            metrics.clone(),
        )));

        let shared = Arc::new(http::Shared {
            config: config.clone(),
            node: id,
            sessions,
            group: group.clone(),
            mesh: mesh.clone(),
            takeovers: takeovers.clone(),
            connections: ConnectionIds::default(),
            metrics: metrics.clone(),
            open: open.clone(),
        });
        let mut http_addresses = Vec::new();
        for listener in ports.http {
            http_addresses.push(listener.local_addr()?);
            let router = http::router(shared.clone());
            tasks.spawn(async move { Ok(http::serve(listener, router).await?) });
        }
        if let Some(listener) = ports.metrics {
            let router = http::metrics_router(metrics.clone(), config.prometheus_auth.as_ref());
            tasks.spawn(async move { Ok(http::serve(listener, router).await?) });
        }
        let (stop_admin_port, admin_stopped) = oneshot::channel::<()>();
        tasks.spawn({
            let context = AdminContext {
                node: id,
                group: group.clone(),
                media: media_stats(&shards),
                takeovers: takeovers.clone(),
            };
            let access = admin_access(&config)?;
            async move {
                let stopped = async {
                    let _ = admin_stopped.await;
                };
                admin::serve(ports.admin, context, access, stopped).await?;
                std::future::pending().await
            }
        });
        info!(node = %id, url = addresses.client_url, cluster = addresses.cluster, "node is up");
        Ok(Self {
            config,
            id,
            boot,
            open,
            group,
            mesh,
            hub,
            shards,
            tasks,
            stop_cluster_port: Some(stop_cluster_port),
            stop_admin_port: Some(stop_admin_port),
            http_addresses,
        })
    }

    /// The region's group.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Waits until a part of the node ends by itself, which none should.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Ok(()))) => anyhow!("a part of the node ended"),
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => anyhow!("a part of the node panicked: {error}"),
            None => anyhow!("the node has no parts"),
        }
    }

    /// Stops gracefully: clients are sent elsewhere, the group's lead is handed over.
    pub async fn stop(mut self) {
        info!(node = %self.id, "stopping");
        self.open.store(false, Ordering::Relaxed);
        self.drain().await;
        let begun = Instant::now();
        // Whom the log has moved is let go by the session itself, as soon as it hears of it.
        while self.hub.session_count() > 0
            && drain::is_empty(&self.group.state(), self.id)
            && begun.elapsed() < LEAVE_MAX
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.hub.broadcast(|| Message::Shutdown);
        let begun = Instant::now();
        while self.hub.session_count() > 0 && begun.elapsed() < LEAVE_MAX {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.wait_for_lent_paths().await;
        self.leave_nobody_behind().await;
        self.group.shutdown().await;
        self.mesh.stop();
        let ports = [self.stop_cluster_port.take(), self.stop_admin_port.take()];
        for stop in ports.into_iter().flatten() {
            let _ = stop.send(());
        }
        self.tasks.shutdown().await;
        self.hub.broadcast(|| Message::Shutdown);
        match Arc::try_unwrap(self.shards) {
            Ok(shards) => shards.stop().await,
            Err(_) => debug!("shards end with the process"),
        }
        info!(node = %self.id, name = self.config.cluster.name, "stopped");
    }

    /// Moves everybody to other nodes at the configured rate, if there are any.
    async fn drain(&self) {
        let is_empty = || drain::is_empty(&self.group.state(), self.id);
        if is_empty() || !drain::has_successor(&self.group.state(), self.id) {
            return;
        }
        let begun = Instant::now();
        let draining = Command::SetNodeState {
            node: self.id,
            state: NodeState::Draining,
        };
        let proposal = self
            .group
            .propose_within(new_request(), draining, Duration::from_secs(2));
        if let Err(error) = proposal.await {
            warn!(%error, "this node stops without moving its participants");
            return;
        }
        // Clients that are there move when they are asked; others would be waited for in vain.
        let moving = self.hub.session_count() as f64 / f64::from(self.config.drain_per_second);
        let mut patience =
            self.config.drain_notice + Duration::from_secs_f64(moving) + STRAGGLERS_MAX;
        if self.hub.has_newcomers(RESUME_SETTLE) {
            patience += RESUME_SETTLE;
        }
        let patience = patience.min(self.config.drain_timeout);
        // When this node last knew a leader with a majority: without one nobody moves.
        let mut led = Instant::now();
        while !is_empty() {
            if http::can_change(&self.group.status()) {
                led = Instant::now();
            }
            let is_alone = !drain::has_successor(&self.group.state(), self.id);
            if is_alone || led.elapsed() > UNLED_MAX {
                warn!("no other node can take participants any more");
                return;
            }
            if begun.elapsed() > patience {
                warn!("not everybody moved in time");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        info!(
            took_ms = begun.elapsed().as_millis(),
            "everybody moved to other nodes"
        );
    }

    /// Clients that have just moved still send by this node, until they have restarted ICE.
    async fn wait_for_lent_paths(&self) {
        let begun = Instant::now();
        while begun.elapsed() < LENT_WAIT_MAX {
            let mut lent = 0;
            for shard in self.shards.handles() {
                lent += shard.inspect().await.map_or(0, |view| view.stats.lent);
            }
            if lent == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        info!("clients still use paths by this node");
    }

    /// Whom this node still serves after a moment moves to other nodes and waits there for its client.
    /// If there is no other node, it stays and waits for this one.
    async fn leave_nobody_behind(&self) {
        if !drain::has_successor(&self.group.state(), self.id) {
            return;
        }
        let begun = Instant::now();
        while !drain::is_empty(&self.group.state(), self.id) && begun.elapsed() < REJOIN_MAX {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let lost = Command::NodeLost {
            node: self.id,
            boot: self.boot,
            cause: LossCause::Stopped,
        };
        let proposal = self
            .group
            .propose_within(new_request(), lost, Duration::from_secs(2));
        if let Err(error) = proposal.await {
            warn!(%error, "participants of this node remain in the log for a while");
        }
    }
}

/// Without its log a node can only guess, so it ends. A log of a newer version is one reason.
fn halted(reason: &str) -> anyhow::Error {
    anyhow!("the log cannot go on at this node: {reason}")
}

/// The secret between nodes; `dev` draws one for itself.
fn secret(config: &Config) -> anyhow::Result<String> {
    match &config.secret {
        Some(secret) => Ok(secret.0.clone()),
        None if config.development => Ok(format!("{:032x}", rand::random::<u128>())),
        None => bail!(
            "cluster.secret is not set: all nodes of a cluster share one; \
             `flotilla generate-keys` prints a good one"
        ),
    }
}

/// The pool of connections to other nodes.
///
/// # Errors
/// Certificate files cannot be read.
pub fn channels(config: &Config, secret: &str) -> anyhow::Result<Channels> {
    let tls = match &config.cluster_tls {
        None => None,
        Some(files) => {
            let read = |path: &std::path::Path| {
                std::fs::read_to_string(path)
                    .with_context(|| format!("cluster.tls: cannot read {}", path.display()))
            };
            let authority = files
                .ca_file
                .as_deref()
                .context("cluster.tls.ca_file is needed")?;
            Some(Tls {
                authority: read(authority)?,
                certificate: read(&files.cert_file)?,
                key: read(&files.key_file)?,
                name: files.domain.clone(),
            })
        }
    };
    Ok(Channels::new(ChannelsConfig {
        tls,
        ..ChannelsConfig::new(secret)
    }))
}

async fn start_group(
    config: &Config,
    address: &str,
    data: &DataDir,
    channels: &Channels,
) -> anyhow::Result<Group> {
    let cluster = &config.cluster;
    let settings = GroupConfig {
        id: GroupId::Region(Region(config.region.clone())),
        heartbeat: cluster.heartbeat,
        election: (cluster.election_timeout_min, cluster.election_timeout_max),
        voters_target: usize::from(cluster.voters),
        replace_dead_after: cluster.voter_replace_after,
        clock_skew_max: cluster.clock_skew_max,
        ..GroupConfig::new(NodeId(config.node_id), address, data.raft())
    };
    std::fs::create_dir_all(data.raft())
        .with_context(|| format!("cannot create {}", data.raft().display()))?;
    Group::start(settings, channels.clone())
        .await
        .with_context(|| format!("the data folder {}", config.data_dir.display()))
}

fn serve_cluster_port(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    listener: TcpListener,
    channels: &Channels,
    group: &Group,
    service: MeshService,
) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let groups = Groups::from(group.clone());
    let mesh = MeshServer::new(service).max_decoding_message_size(MESH_MESSAGE_MAX);
    let routes = groups.routes(channels).add_service(channels.guard(mesh));
    let channels = channels.clone();
    tasks.spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        channels.serve(listener, routes, stopped).await?;
        std::future::pending().await
    });
    stop
}

/// The engines' counters, for the admin service.
fn media_stats(shards: &Arc<Shards>) -> admin::MediaStats {
    let shards = shards.clone();
    Arc::new(move || {
        let shards = shards.clone();
        Box::pin(async move {
            let mut all = Vec::new();
            for shard in shards.handles() {
                all.extend(shard.inspect().await.map(|view| view.stats.router));
            }
            all
        })
    })
}

fn admin_access(config: &Config) -> anyhow::Result<AdminAccess> {
    let tls = match &config.admin_tls {
        None => None,
        Some(files) => {
            let read = |path: &std::path::Path| {
                std::fs::read_to_string(path)
                    .with_context(|| format!("admin.tls: cannot read {}", path.display()))
            };
            Some(AdminTls {
                certificate: read(&files.cert_file)?,
                key: read(&files.key_file)?,
                client_authority: files.ca_file.as_deref().map(read).transpose()?,
            })
        }
    };
    Ok(AdminAccess {
        token: config.admin_token.as_ref().map(|token| token.0.clone()),
        tls,
    })
}

/// A part of the node that ends only with it.
async fn without_end(part: impl Future<Output = ()>) -> anyhow::Result<()> {
    part.await;
    Ok(())
}

async fn receive(
    hub: Hub,
    mut arriving: mpsc::Receiver<crate::mesh::Inbound>,
) -> anyhow::Result<()> {
    while let Some(inbound) = arriving.recv().await {
        hub.receive(inbound);
    }
    std::future::pending().await
}

async fn observe(group: Group, shards: Arc<Shards>, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let mut interval = tokio::time::interval(OBSERVE_INTERVAL);
    loop {
        interval.tick().await;
        let status = group.status();
        let set = |what: &str, value: u64| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            metrics.group.with_label_values(&[what]).set(value);
        };
        set("term", status.term);
        set("leader", status.leader.map_or(0, |leader| leader.0));
        set("applied", status.applied.map_or(0, |applied| applied.index));
        set(
            "committed",
            status.committed.map_or(0, |committed| committed.index),
        );
        set("revision", status.revision.0);
        let (mut totals, mut discards) = (BTreeMap::new(), BTreeMap::new());
        for shard in shards.handles() {
            if let Some(view) = shard.inspect().await {
                for (what, count) in view.totals() {
                    *totals.entry(what).or_insert(0) += count;
                }
                for (reason, count) in view.discards() {
                    *discards.entry(reason).or_insert(0) += count;
                }
            }
        }
        for (family, counts) in [(&metrics.media, totals), (&metrics.discards, discards)] {
            for (label, count) in counts {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                family.with_label_values(&[label]).set(count);
            }
        }
    }
}

fn session_config(config: &Config) -> SessionConfig {
    let keys = config
        .keys
        .iter()
        .map(|key| (key.key.clone(), key.secret.clone()))
        .collect();
    let (room, limit) = (&config.cluster.room, &config.cluster.limit);
    let unlimited = |bytes: usize| if bytes == 0 { usize::MAX } else { bytes };
    let defaults = SessionConfig::new(NodeId(config.node_id), Keys::new(keys));
    SessionConfig {
        region: config.region.clone(),
        limits: SessionLimits {
            signal_message_bytes_max: limit.signal_message_size_limit,
            metadata_bytes_max: unlimited(limit.max_metadata_size),
            attributes_bytes_max: unlimited(limit.max_attributes_size),
            room_name_bytes_max: unlimited(limit.max_room_name_length),
            identity_bytes_max: unlimited(limit.max_participant_identity_length),
            name_bytes_max: unlimited(limit.max_participant_name_length),
            ..defaults.limits
        },
        ping_interval: Duration::from_secs(u64::from(config.ping_interval_s)),
        ping_timeout: Duration::from_secs(u64::from(config.ping_timeout_s)),
        auto_create: room.auto_create,
        room_defaults: RoomOptions {
            empty_timeout_ms: u64::from(room.empty_timeout) * 1000,
            departure_timeout_ms: u64::from(room.departure_timeout) * 1000,
            max_participants: room.max_participants,
            ..RoomOptions::default()
        },
        remote_unmute: room.enable_remote_unmute,
        ..defaults
    }
}

/// `cluster init`: founds a cluster in the data folder, so that `start` finds it there.
///
/// # Errors
/// The folder is in use, or in a cluster already.
pub async fn found(config: &Config) -> anyhow::Result<String> {
    let secret = secret(config)?;
    let channels = channels(config, &secret)?;
    let address = offline_address(config)?;
    let data = DataDir::open(&config.data_dir, &config.cluster.name, config.node_id)?;
    let group = start_group(config, &address, &data, &channels).await?;
    let founded = group.bootstrap().await;
    if founded.is_ok() && data.certificate()?.is_none() {
        data.set_certificate(&Certificate::generate()?.to_pem()?)?;
    }
    let id = group.cluster_id().unwrap_or_default();
    group.shutdown().await;
    founded?;
    Ok(id)
}

/// `cluster join`: checks that this node fits the cluster and keeps what it needs to start.
///
/// # Errors
/// No seed answers, or the cluster refuses the node.
pub async fn enlist(config: &Config, seeds: Vec<String>) -> anyhow::Result<String> {
    let secret = secret(config)?;
    let channels = channels(config, &secret)?;
    let address = offline_address(config)?;
    let mut data = DataDir::open(&config.data_dir, &config.cluster.name, config.node_id)?;
    let request = enroll_request(config, &address);
    let enrolled = enroll::enroll(&channels, &secret, &seeds, &request).await?;
    let pem = String::from_utf8(enrolled.certificate).context("the cluster's certificate")?;
    data.set_certificate(&pem)?;
    data.set_seeds(seeds)?;
    Ok(enrolled.cluster_id)
}

/// The cluster address that a node will have once it runs.
fn offline_address(config: &Config) -> anyhow::Result<String> {
    if let Some(address) = &config.cluster_advertise {
        return Ok(address.clone());
    }
    let bind = config.cluster_bind;
    let ip = if bind.ip().is_unspecified() {
        config
            .node_ip
            .or_else(|| crate::interfaces::addresses().first().copied())
            .context("this host has no usable address: set cluster.advertise")?
    } else {
        bind.ip()
    };
    Ok(SocketAddr::new(ip, bind.port()).to_string())
}

/// Runs a node until it is asked to stop (SIGTERM, SIGINT) or fails.
///
/// # Errors
/// Why it could not start or did not go on.
pub async fn run(config: Config, founding: Founding) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut node = tokio::select! {
        node = Node::start(config, founding) => node?,
        _ = terminate.recv() => return Ok(()),
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
        failure = node.failed() => Some(failure),
    };
    if let Some(failure) = &failure {
        error!(%failure, "the node cannot go on");
    }
    // Without its log a node would not hear who is served elsewhere by now, and could hand nobody over.
    // Others notice within milliseconds that the process is gone, and its clients resume there.
    if failure.is_some() && node.group.status().fault.is_some() {
        // Never closed: sled writes what it has when it is, to a disk that may not take it, and panics then.
        let _ = ManuallyDrop::new(node);
        return failure.map_or(Ok(()), Err);
    }
    // Nor is it taken apart halfway, while the threads that talk to clients go on: it ends with the process.
    let mut stop = ManuallyDrop::new(Box::pin(node.stop()));
    tokio::select! {
        () = stop.as_mut() => {}
        _ = terminate.recv() => warn!("stopping at once"),
        _ = tokio::signal::ctrl_c() => warn!("stopping at once"),
    }
    failure.map_or(Ok(()), Err)
}
