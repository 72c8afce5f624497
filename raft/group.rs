//! A group on this node: the handle through which everything else proposes, reads and follows.
//!
//! [`Group::start`] opens the storage, starts openraft and the group's own tasks: the
//! [`crate::proposer`], the [`crate::reader`] and the leader's [`crate::duty`]. The handle is cheap
//! to clone; the group runs until [`Group::shutdown`], or until the runtime ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_model::State;
use flotilla_model::command::{Command, Entry, Reply};
use flotilla_model::encoding::{encode_entry, state_hash};
use flotilla_model::id::{NodeId, RequestId, Revision, UnixMillis};
use flotilla_storage::{Health, Identity, Storage};
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::blocking::blocking;
use crate::channels::Channels;
use crate::config::GroupConfig;
use crate::duty::Duty;
use crate::envelope::{Cluster, Local};
use crate::error::{BootstrapError, ProposeError, ReadError, StartError};
use crate::feed::{Applied, Change, Feed, History, Lagged};
use crate::incarnation;
use crate::machine::{Machine, Progress};
use crate::network::{Addresses, Network};
use crate::pending::{Item, PENDING_MAX, Pending};
use crate::proposer::{COMMAND_MAX, Driver, Leader, Stamp, Verdict, append};
use crate::reader::{READS_MAX, Reader, Waiting};
use crate::status::StateHash;
use crate::stop::stopped;
use crate::types::{Batch, Member, Metrics, Raft, StoredMembership, TypeConfig};

/// How long a stopping leader waits for another to take over.
const HANDOVER: Duration = Duration::from_millis(1500);

/// A group on this node.
#[derive(Clone)]
pub struct Group {
    pub(crate) core: Arc<Core>,
}

/// What the handle, the tasks and the service share.
pub(crate) struct Core {
    pub(crate) config: GroupConfig,
    pub(crate) local: Local,
    pub(crate) network: Network,
    pub(crate) raft: Raft,
    storage: Storage,
    owns_storage: bool,
    pub(crate) history: Arc<History>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) stamp: Arc<Stamp>,
    pub(crate) stop: watch::Sender<bool>,
    /// Changes of membership go one after the other.
    pub(crate) changing: Mutex<()>,
    /// One snapshot arrives at a time.
    pub(crate) receiving: Mutex<()>,
    queue: mpsc::Sender<Item>,
    reads: mpsc::Sender<Waiting>,
}

/// Opens the storage, with the defect that a test's environment asks for.
#[cfg(feature = "planted-bugs")]
fn open(
    data: &std::path::Path,
    identity: Identity,
) -> Result<Storage, flotilla_storage::OpenError> {
    use flotilla_storage::fault::Plant;
    if std::env::var("FLOTILLA_PLANTED").as_deref() == Ok("no-fsync") {
        return Storage::open_planted(data, identity, Plant::SkipFdatasync);
    }
    Storage::open(data, identity)
}

#[cfg(not(feature = "planted-bugs"))]
fn open(
    data: &std::path::Path,
    identity: Identity,
) -> Result<Storage, flotilla_storage::OpenError> {
    Storage::open(data, identity)
}

impl Group {
    /// Opens the storage in `config.data` and starts the group. Founds or joins nothing: a new
    /// node waits for [`Group::bootstrap`] or [`Group::join`], a known one goes on where it was.
    ///
    /// The node has to serve [`crate::Groups::routes`] with the group in it on its cluster port.
    pub async fn start(config: GroupConfig, channels: Channels) -> Result<Self, StartError> {
        let identity = Identity {
            cluster: None,
            node: config.node.0,
        };
        let data = config.data.clone();
        let storage = tokio::task::spawn_blocking(move || open(&data, identity))
            .await
            .map_err(|error| StartError::Data(error.to_string()))??;
        Self::start_with(storage, true, config, channels).await
    }

    /// Starts the group in a storage that is open already, so that several groups of a node share
    /// its writer. The storage stays open when the group stops.
    pub async fn start_in(
        storage: Storage,
        config: GroupConfig,
        channels: Channels,
    ) -> Result<Self, StartError> {
        Self::start_with(storage, false, config, channels).await
    }

    async fn start_with(
        storage: Storage,
        owns_storage: bool,
        config: GroupConfig,
        channels: Channels,
    ) -> Result<Self, StartError> {
        let settings = Arc::new(config.openraft()?);
        let name: Arc<str> = Arc::from(config.id.name());
        let local = Local {
            node: config.node,
            group: Arc::clone(&name),
            incarnation: incarnation::load(&storage)?,
            cluster: Cluster::new(storage.clone()),
        };
        let network = Network {
            local: local.clone(),
            channels,
            deadlines: Arc::new(config.deadlines()),
            addresses: Addresses::default(),
        };
        let history = Arc::new(History::new());
        let pending = Arc::new(Pending::default());
        let progress = Arc::new(Progress::default());
        let (log, snapshots) = {
            let (opened, name) = (storage.clone(), Arc::clone(&name));
            let group = blocking(&storage, move || opened.group::<TypeConfig>(&name));
            group
                .await
                .map_err(|error| StartError::Data(error.to_string()))??
        };
        let machine = Machine::new(
            Arc::clone(&history),
            Arc::clone(&pending),
            Arc::clone(&progress),
            snapshots,
            storage.clone(),
        );
        let raft = Raft::new(config.node, settings, network.clone(), log, machine)
            .await
            .map_err(|error| StartError::Data(error.to_string()))?;
        // Once the core answers, the metrics show what was loaded, membership included.
        raft.with_raft_state(|_| ())
            .await
            .map_err(|error| StartError::Data(error.to_string()))?;
        // Answered once openraft has loaded what is on disk: from here on its metrics know whether
        // this node is in a cluster.
        raft.is_initialized()
            .await
            .map_err(|error| StartError::Data(error.to_string()))?;
        let (queue, queued) = mpsc::channel(PENDING_MAX);
        let (reads, waiting) = mpsc::channel(READS_MAX);
        let core = Arc::new(Core {
            stamp: Arc::new(Stamp::new(config.clock.clone())),
            config,
            local,
            network,
            raft,
            storage,
            owns_storage,
            history,
            pending,
            progress,
            stop: watch::Sender::new(false),
            changing: Mutex::default(),
            receiving: Mutex::default(),
            queue,
            reads,
        });
        core.spawn(queued, waiting);
        Ok(Self { core })
    }

    /// Founds a cluster: this node becomes its single voter. Other nodes join it.
    pub async fn bootstrap(&self) -> Result<(), BootstrapError> {
        let core = &self.core;
        if self.is_initialized() {
            return Err(BootstrapError::Initialized(
                self.cluster_id().unwrap_or_default(),
            ));
        }
        let cluster = self
            .cluster_id()
            .unwrap_or_else(|| format!("C_{:016x}", rand::random::<u64>()));
        core.local
            .cluster
            .adopt(&cluster)
            .map_err(BootstrapError::Storage)?;
        let founder = BTreeMap::from([(core.config.node, core.member())]);
        match core.raft.initialize(founder).await {
            Ok(()) => {}
            Err(openraft::errors::RaftError::APIError(_)) => {
                return Err(BootstrapError::Initialized(cluster));
            }
            Err(error) => return Err(BootstrapError::Stopped(error.to_string())),
        }
        core.raft
            .wait(Some(core.config.propose_timeout))
            .current_leader(core.config.node, "founder leads")
            .await
            .map_err(|error| BootstrapError::Stopped(error.to_string()))?;
        Ok(())
    }

    /// Whether this node has a membership of the group in its log, which a majority need not have agreed to.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.core.is_initialized()
    }

    /// Whether this node knows that a majority made it a member, with the data that it has. A node that was added knows a
    /// moment later, and one that starts again as soon as it has opened its data.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.core.is_member()
    }

    /// The cluster's id, once this node is in one.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        self.core.local.cluster.id().map(|id| id.to_string())
    }

    /// Changes the state: sends the command to the leader, waits until it is applied on this node.
    /// The same request id applies once, however often it is proposed.
    pub async fn propose(
        &self,
        request: RequestId,
        command: Command,
    ) -> Result<Reply, ProposeError> {
        self.propose_within(request, command, self.core.config.propose_timeout)
            .await
    }

    /// [`Group::propose`] with another deadline.
    pub async fn propose_within(
        &self,
        request: RequestId,
        command: Command,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        let item = self.item(request, command)?;
        let core = &self.core;
        let Some(mut ticket) = core.pending.register(&item) else {
            return Err(ProposeError::Overloaded);
        };
        if ticket.first {
            core.queue.try_send(item).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
            })?;
        }
        match timeout(deadline, &mut ticket.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ProposeError::Stopped),
            Err(_) if ticket.is_uncertain() => Err(core.unconfirmed(deadline)),
            Err(_) => Err(ProposeError::NoLeader {
                waited: deadline,
                reason: core.situation(),
            }),
        }
    }

    /// [`Group::propose`] of what only the leader of a term may say, by what it sees at that time: it goes into
    /// this node's log before anything that waits here or comes later, and to no other leader.
    ///
    /// # Errors
    /// As [`Group::propose`]; [`ProposeError::NoLeader`] at once where this node does not lead in `term`.
    pub async fn propose_in_term(
        &self,
        term: u64,
        request: RequestId,
        command: Command,
    ) -> Result<Reply, ProposeError> {
        let item = self.item(request, command)?;
        let core = &self.core;
        let waited = core.config.propose_timeout;
        let not_here = || ProposeError::NoLeader {
            waited: Duration::ZERO,
            reason: format!(
                "this node does not lead in term {term}; {}",
                core.situation()
            ),
        };
        let is_now = core.raft.metrics().borrow_watched().current_term == term;
        if !is_now || core.leader() != Leader::This {
            return Err(not_here());
        }
        let Some(mut ticket) = core.pending.register(&item) else {
            return Err(ProposeError::Overloaded);
        };
        let batch = Batch {
            at: core.stamp.next(core.history.applied().at),
            commands: vec![item.command],
        };
        let written = async {
            match append(&core.raft, batch).await.await {
                Verdict::Applied => (&mut ticket.answer)
                    .await
                    .unwrap_or(Err(ProposeError::Stopped)),
                Verdict::Refused | Verdict::Invalid(_) => Err(not_here()),
                Verdict::Unknown => Err(core.unconfirmed(Duration::ZERO)),
            }
        };
        let written = timeout(waited, written).await;
        written.unwrap_or_else(|_| Err(core.unconfirmed(waited)))
    }

    /// A command as it goes into the log.
    fn item(&self, request: RequestId, command: Command) -> Result<Item, ProposeError> {
        // What is old here says less than what holds: the version never falls.
        let state = self.state();
        let command = command.worded_for(state.log_version());
        let version = command.since_version();
        if !state.all_read(version) {
            return Err(ProposeError::NotYet {
                version,
                active: state.log_version(),
            });
        }
        let entry = Entry {
            // The leader's stamp on the batch counts.
            at: UnixMillis(0),
            request,
            command,
        };
        let command = Bytes::from(encode_entry(&entry));
        if command.len() > COMMAND_MAX {
            return Err(ProposeError::TooLarge {
                size: command.len(),
                max: COMMAND_MAX,
            });
        }
        Ok(Item { request, command })
    }

    /// A state that has everything in it that was acknowledged anywhere before this call.
    pub async fn read(&self) -> Result<Arc<State>, ReadError> {
        let core = &self.core;
        let waited = core.config.read_timeout;
        let deadline = Instant::now() + waited;
        let (read, index) = oneshot::channel();
        core.reads.try_send(read).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReadError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ReadError::Stopped,
        })?;
        let index = match timeout_at(deadline, index).await {
            Ok(Ok(index)) => index,
            Ok(Err(_)) => return Err(ReadError::Stopped),
            Err(_) => {
                return Err(ReadError::NoLeader {
                    waited,
                    reason: core.situation(),
                });
            }
        };
        let mut applied = core.history.watch();
        let reached = applied.wait_for(|applied| applied.log_index >= Some(index));
        match timeout_at(deadline, reached).await {
            Ok(Ok(applied)) => Ok(Arc::clone(&applied.state)),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::Lagging { waited, index }),
        }
    }

    /// The newest state applied here; others may be ahead.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.core.history.state()
    }

    /// The newest state applied here, with its place in the log.
    #[must_use]
    pub fn applied(&self) -> Applied {
        self.core.history.applied()
    }

    /// The newest state and every change after it, in order.
    #[must_use]
    pub fn feed(&self) -> Feed {
        Feed::new(Arc::clone(&self.core.history), self.core.stop.subscribe())
    }

    /// Every change after `after`, in order, if they are still kept.
    pub fn feed_since(&self, after: Revision) -> Result<Feed, Lagged> {
        let stop = self.core.stop.subscribe();
        Feed::resume(Arc::clone(&self.core.history), stop, after)
    }

    /// The last change up to this log entry, if it is kept; the state after it is that of the entry.
    #[must_use]
    pub fn change_at(&self, log_index: u64) -> Option<Arc<Change>> {
        self.core.history.at(log_index)
    }

    /// Hash of the newest state applied here; equal on all nodes at equal log indices. Takes as long
    /// as encoding the state, on a thread of its own.
    pub async fn state_hash(&self) -> StateHash {
        let applied = self.applied();
        let state = Arc::clone(&applied.state);
        let hash = blocking(&self.core.storage, move || state_hash(&state))
            .await
            .expect("hashing does not panic and is not cancelled");
        StateHash {
            revision: applied.state.revision,
            log_index: applied.log_index,
            hash,
        }
    }

    /// Builds a snapshot now.
    pub async fn trigger_snapshot(&self) -> Result<(), ProposeError> {
        let triggered = self.core.raft.trigger().snapshot().await;
        triggered.map_err(|_| ProposeError::Stopped)
    }

    /// Forgets the entries of this node's log up to this index, as far as they are in a snapshot. A node that lacks
    /// one of them gets the snapshot.
    pub async fn purge_log(&self, up_to: u64) -> Result<(), ProposeError> {
        let purged = self.core.raft.trigger().purge_log(up_to).await;
        purged.map_err(|_| ProposeError::Stopped)
    }

    /// Stops the group on this node. A leader hands over first, if another voter can take over
    /// at once.
    pub async fn shutdown(&self) {
        let core = &self.core;
        if core.raft.is_leader()
            && let Some(successor) = core.successor()
            && let Err(error) = timeout(HANDOVER, self.transfer_leader(successor)).await
        {
            tracing::warn!(%successor, %error, "no handover before the stop");
        }
        core.stop.send_replace(true);
        if let Err(error) = core.raft.shutdown().await {
            tracing::warn!(%error, "openraft did not stop cleanly");
        }
        if core.owns_storage {
            let storage = core.storage.clone();
            let closed = blocking(&core.storage, move || storage.close()).await;
            if let Err(error) = closed {
                tracing::warn!(%error, "storage did not close cleanly");
            }
        }
    }

    /// Resolves with the reason when the group has stopped on this node: by itself, because the
    /// storage failed or a log entry cannot be read, or by [`Group::shutdown`].
    pub async fn stopped(&self) -> String {
        let mut metrics = self.core.raft.metrics();
        loop {
            if let Err(error) = &metrics.borrow_watched().running_state {
                return error.to_string();
            }
            if metrics.changed().await.is_err() {
                return "openraft is gone".to_owned();
            }
        }
    }

    /// How the disk is doing.
    #[must_use]
    pub fn health(&self) -> Health {
        self.core.storage.health()
    }
}

impl Core {
    fn spawn(self: &Arc<Self>, queued: mpsc::Receiver<Item>, waiting: mpsc::Receiver<Waiting>) {
        let history = Arc::clone(&self.history);
        let driver = Driver {
            raft: self.raft.clone(),
            network: self.network.clone(),
            pending: Arc::clone(&self.pending),
            stamp: Arc::clone(&self.stamp),
            applied_at: Arc::new(move || history.applied().at),
            stop: self.stop.subscribe(),
        };
        tokio::spawn(driver.run(queued));
        tokio::spawn(follow_members(
            self.raft.clone(),
            (self.config.node, self.local.incarnation),
            self.network.addresses.clone(),
            self.stop.subscribe(),
        ));
        let reader = Reader {
            raft: self.raft.clone(),
            network: self.network.clone(),
        };
        tokio::spawn(reader.run(waiting, self.stop.subscribe()));
        tokio::spawn(
            Duty::new(Group {
                core: Arc::clone(self),
            })
            .run(self.stop.subscribe()),
        );
    }

    /// This node as a member.
    pub(crate) fn member(&self) -> Member {
        Member {
            address: self.config.address.clone(),
            incarnation: self.local.incarnation,
        }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    fn unconfirmed(&self, waited: Duration) -> ProposeError {
        ProposeError::Timeout {
            waited,
            reason: self.situation(),
        }
    }

    pub(crate) fn leader(&self) -> Leader {
        Leader::of(&self.raft, self.config.node)
    }

    pub(crate) fn is_initialized(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .membership()
            .nodes()
            .next()
            .is_some()
    }

    pub(crate) fn is_member(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node = self.config.node;
        let is_in =
            |members: &StoredMembership| is_with_data(members, node, self.local.incarnation);
        // A founder agrees with itself.
        let newest = &metrics.membership_config;
        let is_alone = newest.voter_ids().all(|voter| voter == node);
        is_in(&metrics.committed_membership_config) || is_alone && is_in(newest)
    }

    /// Address of the leader, if it is known.
    pub(crate) fn leader_address(&self) -> String {
        match self.leader() {
            Leader::Unknown => String::new(),
            Leader::This => self.config.address.clone(),
            Leader::Other(_, member) => member.address,
        }
    }

    /// The other voter that has most of the log; only the leader knows.
    pub(crate) fn successor(&self) -> Option<NodeId> {
        let metrics = self.metrics();
        let replication = metrics.replication?;
        let config = metrics.membership_config;
        config
            .voter_ids()
            .filter(|id| *id != self.config.node)
            .filter_map(|id| Some((replication.get(&id).copied().flatten()?, id)))
            .max()
            .map(|(_, id)| id)
    }

    /// What this node knows about the group, for people who wonder why nothing happens.
    pub(crate) fn situation(&self) -> String {
        let metrics = self.metrics();
        let config = &metrics.membership_config;
        let voters: Vec<String> = config.voter_ids().map(|id| id.to_string()).collect();
        if voters.is_empty() {
            return "this node is in no cluster: found one or join one".to_owned();
        }
        let voters = voters.join(", ");
        match metrics.current_leader {
            None => format!(
                "node {} sees no leader; changes wait until a majority of the voters {voters} reach \
                 each other",
                self.config.node
            ),
            Some(leader) if leader == self.config.node => format!(
                "node {leader} leads, but a majority of the voters {voters} does not confirm; \
                 changes wait until they reach each other"
            ),
            Some(leader) => format!(
                "node {} takes node {leader} for the leader of the voters {voters}, but it does not \
                 confirm",
                self.config.node
            ),
        }
    }
}

/// Whether a node is a member with these data.
pub(crate) fn is_with_data(members: &StoredMembership, node: NodeId, incarnation: u64) -> bool {
    let known = members.get_node(&node);
    known.is_some_and(|known| known.incarnation == incarnation)
}

/// Keeps the addresses of the members, as the newest configuration in the log has them, and lets this node stand for
/// election once that has it with its own data.
///
/// A node that lost its data and joined anew under its id meets its former self on its way through the log, as a voter and
/// perhaps the only one. Standing for election then, it would win without asking anybody and write over what
/// was agreed on.
async fn follow_members(
    raft: Raft,
    (node, incarnation): (NodeId, u64),
    addresses: Addresses,
    mut stop: watch::Receiver<bool>,
) {
    let mut metrics = raft.server_metrics();
    loop {
        let config = Arc::clone(&metrics.borrow_watched().membership_config);
        addresses.set(config.membership().nodes());
        let is_own = is_with_data(&config, node, incarnation);
        raft.runtime_config().elect(is_own);
        tokio::select! {
            () = stopped(&mut stop) => return,
            changed = metrics.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
