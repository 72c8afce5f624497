//! A node: what its disk keeps, and its process with the product's own parts in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{Node as Record, NodeState};
use flotilla_model::command::{Command, Rejection, Reply};
use flotilla_model::id::{BootId, NodeId, ParticipantSid, RequestId, RoomName};
use flotilla_node::control::detector::Case;
use flotilla_node::control::detours::Detours;
use flotilla_node::control::drain;
use flotilla_node::control::guard::{Guard, GuardConfig};
use flotilla_node::control::judge::{FailureConfig, Judge};
use flotilla_node::control::lease::Lease;
use flotilla_node::control::orphans::Orphans;
use flotilla_node::control::rebalance;
use flotilla_node::control::reconcile::Reconciler;
use flotilla_node::hub::rooms::Rooms;
use flotilla_node::mesh::{Body, Question, SignBook, proto, software_version};
use flotilla_node::session::handover::Checkpoints;
use flotilla_raft::Change;
use flotilla_signal::config::SessionConfig;
use flotilla_signal::connect::Connect;
use flotilla_signal::token::Keys;
use tokio::sync::oneshot;

use crate::bug::Bug;
use crate::engine::Engine;
use crate::net::End;
use crate::raft::{Members, Replica};
use crate::sessions::Task;
use crate::time::{Time, WallClock, ms};
use crate::ways::Seeking;
use crate::witness::Fact;
use crate::world::{What, World};

/// Silence that makes a node unreachable; the product's default.
pub const BOUND: Duration = Duration::from_millis(500);
/// How long a node may be unwell, or out of the leader's reach alone; the product's default.
pub const LOST_AFTER: Duration = Duration::from_secs(10);
/// How often a node's timers are looked at.
pub const TICK: u64 = ms(25);
/// Least and most time that a disk takes which is well.
pub const DISK: (u64, u64) = (200, 2_500);
/// Least and most time after which a follower passes a change on.
pub const FEED: (u64, u64) = (20, 800);

/// A node, running or not.
pub struct Node {
    /// Its id.
    pub id: u64,
    /// Log and state.
    pub replica: Replica,
    /// Its process.
    pub process: Option<Process>,
    /// While the process is stopped: what has to wait.
    pub stalled: Option<Vec<What>>,
    /// Its machine has power: a dead process is answered for by the system.
    pub powered: bool,
    /// Its wall clock.
    pub wall: WallClock,
    /// Least and most time that its disk takes.
    pub disk: (u64, u64),
    /// Least and most time that its follower takes.
    pub feed: (u64, u64),
    /// Not a member any more.
    pub removed: bool,
    /// Its process is to be started again by the plan.
    pub due_back: bool,
}

/// Who waits for a proposal.
#[derive(Clone, Debug)]
pub enum Waiter {
    /// A session.
    Session(u64),
    /// The node's start.
    Register,
    /// The way back to a lease.
    Return,
    /// That nothing is on its way into the log before it.
    Barrier,
    /// A verdict about this node.
    Verdict(NodeId),
    /// An orphan's leaving.
    Orphan,
    /// Moves of a drain.
    Moves,
    /// The leader's deadlines.
    Expire,
    /// An administrator, by number of the operation.
    Admin(u64),
}

/// A proposal under way.
#[derive(Debug)]
pub struct Pending {
    /// The change.
    pub command: Command,
    /// Who waits.
    pub waiter: Waiter,
    /// Until when.
    pub deadline: Time,
    /// Handed to a leader.
    pub sent: Option<Time>,
    /// Only this node as the leader of this term may write it.
    pub only_in: Option<u64>,
}

/// Who waits for a read.
#[derive(Debug)]
pub enum Reader {
    /// The way back to a lease.
    Return,
    /// Orphans whose time is over.
    Orphans(Vec<flotilla_node::control::orphans::Orphan>),
    /// A client that wants a session back.
    Resume {
        /// Which client.
        client: usize,
        /// Its connection.
        connection: u64,
        /// Its request.
        connect: Box<Connect>,
    },
}

/// A read under way.
#[derive(Debug)]
pub struct Read {
    /// Who waits.
    pub reader: Reader,
    /// Until when.
    pub deadline: Time,
    /// What must be applied here.
    pub index: Option<u64>,
    /// Asked of a leader at.
    pub sent: Option<Time>,
    /// Everything acknowledged before it began.
    pub floor: u64,
}

/// The way back to a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Return {
    /// Not on it.
    No,
    /// The log is read, or the record written.
    UnderWay,
    /// Sessions that belong elsewhere are waited for since.
    Strays(Time),
    /// It led nowhere; until then.
    Pause(Time),
}

/// A case that others were asked about.
#[derive(Debug)]
pub struct Asked {
    /// The case.
    pub case: Case,
    /// Who has not answered.
    pub open: BTreeSet<u64>,
    /// Until when.
    pub deadline: Time,
}

/// A question of another node.
#[derive(Debug)]
pub struct Answering {
    /// Who asked.
    pub from: u64,
    /// Its number.
    pub id: u64,
    /// The question.
    pub question: Question,
}

/// A session that is claimed.
#[derive(Debug)]
pub struct Claiming {
    /// Which session.
    pub key: u64,
    /// Who has not answered.
    pub open: BTreeSet<u64>,
    /// The answers.
    pub replies: Vec<proto::ClaimReply>,
    /// Since when.
    pub asked: Time,
}

/// A session that is to go for another node's claim.
#[derive(Debug)]
pub struct LettingGo {
    /// Who claims.
    pub from: u64,
    /// Number of its claim.
    pub id: u64,
    /// Room.
    pub room: RoomName,
    /// Session.
    pub sid: ParticipantSid,
    /// It is gone; absent: it was not here.
    pub gone: Option<oneshot::Receiver<()>>,
    /// Until when.
    pub deadline: Time,
}

/// The sending end of a mesh link.
#[derive(Debug, Default)]
pub struct Link {
    /// Other end's start.
    pub boot: Option<BootId>,
    /// Number of the stream.
    pub stream: u64,
    /// It is open.
    pub connected: bool,
    /// Last answer.
    pub heard: Time,
    /// When to try next.
    pub retry: Time,
    /// Not acknowledged, in order.
    pub kept: VecDeque<(u64, Option<BootId>, Body)>,
    /// Number of the last one.
    pub sequence: u64,
}

/// The receiving end.
#[derive(Debug, Default)]
pub struct Sender {
    /// Other end's start.
    pub boot: BootId,
    /// Taken so far.
    pub sequence: u64,
    /// Newest stream.
    pub stream: u64,
    /// Something on it is lost: nothing more comes on it.
    pub broken: bool,
}

/// The pulse to one node.
#[derive(Debug)]
pub enum Pulse {
    /// Open, to this start; next ping.
    Open(BootId, Time),
    /// Knocking: pause, next knock, when the present one was sent.
    Knocking(u64, Time, Option<Time>),
}

/// A running process.
pub struct Process {
    /// Its start.
    pub boot: BootId,
    /// Since when.
    pub started: Time,
    /// Its record.
    pub record: Record,
    /// It is registered.
    pub registered: bool,
    /// It takes participants.
    pub open: bool,
    /// Settings of sessions.
    pub config: Arc<SessionConfig>,
    /// Rooms as this node serves them.
    pub rooms: Rooms,
    /// What is held of sessions.
    pub checkpoints: Arc<Checkpoints>,
    /// Sessions.
    pub sessions: BTreeMap<u64, Task>,
    /// Next session's key.
    pub next_key: u64,
    /// A run of the sessions is due.
    pub sessions_due: bool,
    /// Changes that the feed has not passed on.
    pub feed: VecDeque<Arc<Change>>,
    /// The feed is to begin anew.
    pub feed_restart: bool,
    /// A step of the feed is due.
    pub feed_due: bool,
    /// Last revision passed on.
    pub fed: u64,
    /// State as of then.
    pub fed_state: Arc<State>,
    /// Intent and engine.
    pub reconciler: Reconciler,
    /// Media.
    pub engine: Engine,
    /// Right to send.
    pub lease: Lease,
    /// Keeper of it.
    pub guard: Guard,
    /// It holds.
    pub holds: bool,
    /// Way back.
    pub returning: Return,
    /// Verdicts.
    pub judge: Judge,
    /// Signs of life.
    pub book: SignBook,
    /// Pulses.
    pub pulses: BTreeMap<u64, Pulse>,
    /// Cases.
    pub cases: BTreeMap<u64, Asked>,
    /// Suspects that are let alone until.
    pub pauses: Vec<(Time, NodeId)>,
    /// Questions.
    pub answering: Vec<Answering>,
    /// Ways round cut links.
    pub detours: Detours,
    /// Questions about them.
    pub seeking: BTreeMap<u64, Seeking>,
    /// Nodes to which connections go by way of another one.
    pub connections_round: BTreeMap<u64, u64>,
    /// Nodes to which packets do.
    pub packets_round: BTreeMap<u64, u64>,
    /// Claims.
    pub claiming: BTreeMap<u64, Claiming>,
    /// Claims of others.
    pub letting_go: Vec<LettingGo>,
    /// Mesh.
    pub links: BTreeMap<u64, Link>,
    /// Mesh, receiving.
    pub senders: BTreeMap<u64, Sender>,
    /// Proposals.
    pub pending: BTreeMap<RequestId, Pending>,
    /// Leader that proposals were sent to.
    pub leader: Option<u64>,
    /// Reads.
    pub reads: BTreeMap<u64, Read>,
    /// Orphans.
    pub orphans: Orphans,
    /// Drain.
    pub drain: drain::Plan,
    /// Balance.
    pub rebalance: rebalance::Plan,
    /// Ticks so far.
    pub ticks: u64,
    /// Numbers given out.
    pub numbers: u64,
    /// An `Expire` is under way.
    pub expiring: bool,
    /// Oldest sync that is not done.
    pub syncing: Option<Time>,
}

impl Node {
    /// A node with an empty disk.
    #[must_use]
    pub fn new(id: u64, members: Members, bug: Option<Bug>) -> Self {
        Self {
            id,
            replica: Replica::new(id, members, bug),
            process: None,
            stalled: None,
            powered: true,
            wall: WallClock::default(),
            disk: DISK,
            feed: FEED,
            removed: false,
            due_back: false,
        }
    }

    /// Whether its process runs and is not stopped.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.process.is_some() && self.stalled.is_none()
    }
}

impl Process {
    /// A process that has just started.
    #[must_use]
    pub fn new(
        id: u64,
        boot: BootId,
        now: Time,
        instant: Instant,
        state: &Arc<State>,
        bug: Option<Bug>,
    ) -> Self {
        let node = NodeId(id);
        let checkpoints = Arc::<Checkpoints>::default();
        let config = Arc::new(session_config(node));
        let lease = Lease::new(instant);
        let guarded = GuardConfig {
            node,
            boot,
            bound: BOUND,
            lost_after: LOST_AFTER,
        };
        let failure = FailureConfig {
            bound: BOUND,
            patience: LOST_AFTER,
        };
        let orphaned = if bug == Some(Bug::OrphansLeaveAtOnce) {
            Duration::ZERO
        } else {
            config.resume_timeout
        };
        Self {
            boot,
            started: now,
            record: record(id, boot),
            registered: false,
            open: true,
            rooms: Rooms::new(node, Arc::clone(&checkpoints)),
            checkpoints,
            sessions: BTreeMap::new(),
            next_key: 1,
            sessions_due: false,
            feed: VecDeque::new(),
            feed_restart: true,
            feed_due: false,
            fed: 0,
            fed_state: Arc::clone(state),
            reconciler: Reconciler::new(node, 1),
            engine: Engine::default(),
            guard: Guard::new(guarded, lease.clone(), instant),
            lease,
            holds: false,
            returning: Return::No,
            judge: Judge::new(node, failure),
            book: SignBook::default(),
            pulses: BTreeMap::new(),
            cases: BTreeMap::new(),
            pauses: Vec::new(),
            answering: Vec::new(),
            detours: Detours::new(BOUND),
            seeking: BTreeMap::new(),
            connections_round: BTreeMap::new(),
            packets_round: BTreeMap::new(),
            claiming: BTreeMap::new(),
            letting_go: Vec::new(),
            links: BTreeMap::new(),
            senders: BTreeMap::new(),
            pending: BTreeMap::new(),
            leader: None,
            reads: BTreeMap::new(),
            orphans: Orphans::new(node, orphaned),
            drain: drain::Plan::new(node, 20, Duration::from_millis(500)),
            rebalance: rebalance::Plan::new(node, 2, Duration::from_secs(10)),
            ticks: 0,
            numbers: 0,
            expiring: false,
            syncing: None,
            config,
        }
    }

    /// A number of its own.
    pub const fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// Settings of a node's sessions: the product's defaults.
fn session_config(node: NodeId) -> SessionConfig {
    SessionConfig::new(node, Keys::new(Vec::new()))
}

/// A node's record as it writes it.
fn record(id: u64, boot: BootId) -> Record {
    let relay = std::net::SocketAddr::from(([10, 0, 0, id as u8], 7882));
    Record {
        id: NodeId(id),
        region: "here".into(),
        boot,
        cluster_address: format!("n{id}:7890"),
        admin_address: format!("n{id}:7891"),
        client_url: format!("http://n{id}:7880"),
        relay_addresses: vec![relay],
        capacity: 0,
        state: NodeState::Serving,
        version: software_version(),
    }
}

impl World {
    /// A node that is there.
    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("nodes are never forgotten")
    }

    /// The process of a node that runs.
    pub fn process(&mut self, id: u64) -> &mut Process {
        let process = self.node(id).process.as_mut();
        process.expect("only asked where it runs")
    }

    /// A node's instant.
    #[must_use]
    pub fn instant(&self) -> Instant {
        self.base.instant(self.now)
    }

    /// A node's process starts.
    pub fn start(&mut self, id: u64) {
        self.boots += 1;
        let boot = BootId(self.boots * 1000 + id);
        let (now, instant, bug) = (self.now, self.instant(), self.bug);
        let mut rng = self.rng.fork(boot.0);
        let node = self.node(id);
        if node.process.is_some() || node.removed {
            return;
        }
        node.powered = true;
        node.stalled = None;
        node.due_back = false;
        node.replica.restart(now, &mut rng);
        let state = Arc::clone(node.replica.state());
        node.process = Some(Process::new(id, boot, now, instant, &state, bug));
        let phase = self.rng.below(TICK);
        self.after(phase, What::Tick(id, boot));
        self.feed_soon(id);
        self.fact(&Fact::Started { node: id, boot });
    }

    /// A node's process ends without a word. With `power`, its machine is silent, too.
    pub fn kill(&mut self, id: u64, power: bool) {
        let node = self.node(id);
        node.stalled = None;
        node.powered = !power;
        let Some(process) = node.process.take() else {
            return;
        };
        self.fact(&Fact::Ended {
            node: id,
            boot: process.boot,
        });
        if power {
            self.net.darken(self.now, End::Node(id));
            return;
        }
        // The system resets what was open.
        let others: Vec<u64> = self
            .nodes
            .keys()
            .copied()
            .filter(|other| *other != id)
            .collect();
        for other in others {
            self.datagram_surely(id, other);
        }
        for task in process.sessions.values() {
            if let Some(connection) = task.connection {
                self.close_connection(id, task.client, connection);
            }
        }
    }

    fn datagram_surely(&mut self, from: u64, to: u64) {
        use crate::message::Message;
        use crate::net::End;
        let message = Message::Refused { broke: true };
        self.datagram(End::Node(from), End::Node(to), message);
    }

    /// What became of a proposal.
    pub fn decided(
        &mut self,
        id: u64,
        request: RequestId,
        waiter: Waiter,
        result: Result<Reply, Failure>,
    ) {
        if result.is_ok() {
            let index = self.node(id).replica.applied();
            self.fact(&Fact::Acknowledged {
                node: id,
                request,
                index,
            });
        }
        match waiter {
            Waiter::Session(key) => self.session_decided(id, key, request, result),
            Waiter::Register => self.process(id).registered = result.is_ok(),
            Waiter::Return => self.return_registered(id, result.is_ok()),
            Waiter::Barrier => self.return_written(id, result.is_ok()),
            Waiter::Verdict(suspect) => self.process(id).judge.settled(suspect),
            Waiter::Expire => self.process(id).expiring = false,
            Waiter::Admin(operation) => self.admin_decided(operation, &result),
            Waiter::Orphan | Waiter::Moves => {}
        }
    }
}

/// Why a proposal came to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Refused by the state machine.
    Rejected(Rejection),
    /// No answer in time.
    Unavailable,
}
