//! A participant's task: runs one `flotilla_signal::session::Session` and carries out its outputs.
//!
//! ```text
//! signal connection ─┐            ┌─ replies ─ signal connection
//! feed of the log ───┤   inbox    ├─ proposals ─ the region's group
//! media engine ──────┼──────────► ├─ orders ─ the room's shard
//! hub (data, levels) ┘            └─ data ─ hub
//! ```
//!
//! The task owns the session; whoever wants something of it puts a message into its inbox. A session
//! begins with the join, before the WebSocket is accepted: a refused join is an HTTP status. Or it
//! begins with a resume of a session that another node served, and goes on with that ([`handover`]).

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_model::command::{Command, Rejection, Reply};
use flotilla_model::event::Event;
use flotilla_model::id::{Epoch, RequestId, UnixMillis};
use flotilla_model::participant::LeaveReason;
use flotilla_raft::Change;
use flotilla_raft::{Group, ProposeError};
use flotilla_signal::config::SessionConfig;
use flotilla_signal::connect::{Connect, HttpError};
use flotilla_signal::media as signal_media;
use flotilla_signal::proto::SignalResponse;
use flotilla_signal::session::{
    Claimed, Close, CommitError, Discards, Input, Joining, Output, Resuming, Session,
    resume_refusal,
};
use futures_util::FutureExt as _;
use rand::RngCore as _;
use tokio::sync::oneshot;
use tracing::{Instrument as _, debug, error, info, trace, warn};

use crate::control::takeovers::Takeovers;
use crate::hub::Hub;
use crate::mesh::enroll::wall_clock_ms;
use crate::moving::Moving;
use crate::shard::{Order, ShardHandle, Shards};
use crate::telemetry::Metrics;

pub mod connection;
pub mod handover;
pub mod inbox;
pub mod lending;
pub mod media;
pub mod receipt;
mod takeover;
pub mod unmissed;

use connection::Connection;
use handover::{Transports, Vault};
use inbox::{Inbox, Message, Outlet};
use media::SessionKey;
use receipt::Receipt;
use unmissed::Kept;

/// Longest time between an accepted join and the WebSocket being there.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a client that was told to resume may take to close its connection.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Responses kept until the WebSocket is there.
const EARLY_MAX: usize = 256;

/// What sessions work with; one per node.
pub struct Sessions {
    /// Settings.
    pub config: Arc<SessionConfig>,
    /// The region's group.
    pub group: Group,
    /// Rooms' local sessions and data.
    pub hub: Hub,
    /// Media.
    pub shards: Arc<Shards>,
    /// Keys for what sessions leave to each other.
    pub vault: Vault,
    /// Addresses of this node that move.
    pub moving: Moving,
    /// The record of takeovers.
    pub takeovers: Takeovers,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Next session's key.
    keys: AtomicU64,
}

/// A join that the cluster has accepted; the client's socket is still to come.
pub struct Accepted {
    /// Where the socket's messages go.
    pub inbox: Inbox,
}

impl Sessions {
    /// No session yet.
    #[must_use]
    pub fn new(
        config: Arc<SessionConfig>,
        group: Group,
        hub: Hub,
        shards: Arc<Shards>,
        vault: Vault,
        takeovers: Takeovers,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            moving: Moving::default(),
            config,
            group,
            hub,
            shards,
            vault,
            takeovers,
            metrics,
            keys: AtomicU64::new(1),
        })
    }

    /// Joins. Returns once the join response is ready, or with the refusal.
    ///
    /// # Errors
    /// The HTTP status and text that the upgrade request is to be answered with.
    pub async fn join(self: &Arc<Self>, connect: Connect) -> Result<Accepted, HttpError> {
        let (inbox, outlet) = Inbox::new();
        let (admission, admitted) = oneshot::channel();
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let single = connect.parameters.single_peer_connection;
        let protocol = connect.parameters.client.protocol;
        let started = Instant::now();
        let session = Session::join(
            started,
            Joining {
                config: self.config.clone(),
                connect,
                seed,
                wall: UnixMillis(wall_clock_ms()),
            },
        );
        self.hub
            .register(session.room(), session.sid(), session.identity(), &inbox);
        let mut task = self.task(session, single, inbox.clone());
        task.admission = Some(admission);
        task.spawn(outlet);
        let result = admitted
            .await
            .unwrap_or_else(|_| Err(HttpError::unavailable("the session ended unexpectedly")));
        let state = if result.is_ok() { "success" } else { "failure" };
        self.metrics.joins.with_label_values(&[state]).inc();
        if result.is_ok() {
            self.metrics
                .join_latency
                .with_label_values(&[&protocol.to_string()])
                .observe(started.elapsed().as_secs_f64() * 1000.0);
        }
        result.map(|()| Accepted { inbox })
    }

    fn new_key(&self) -> SessionKey {
        SessionKey(self.keys.fetch_add(1, Ordering::Relaxed))
    }

    fn task(self: &Arc<Self>, session: Session, single: bool, inbox: Inbox) -> Task {
        Task {
            node: self.clone(),
            key: self.new_key(),
            shard: self.shards.of_room(session.room().as_str()).clone(),
            session,
            single,
            inbox,
            connection: None,
            admission: None,
            connect_by: None,
            early: Vec::new(),
            proposal: None,
            claim: None,
            adopted: None,
            transports: Transports::default(),
            kept_at: Kept::default(),
            let_go: None,
            receipt: None,
            attached: false,
            discards: Discards::default(),
            ended: None,
        }
    }
}

type Claim = Pin<Box<dyn Future<Output = (Claimed, Transports)> + Send>>;
type Proposal = Pin<Box<dyn Future<Output = (RequestId, Result<Reply, CommitError>)> + Send>>;

struct Task {
    node: Arc<Sessions>,
    session: Session,
    key: SessionKey,
    shard: ShardHandle,
    single: bool,
    inbox: Inbox,
    connection: Option<Connection>,
    /// Whoever waits for the join; gone once answered.
    admission: Option<oneshot::Sender<Result<(), HttpError>>>,
    /// By when the WebSocket must be there.
    connect_by: Option<Instant>,
    early: Vec<SignalResponse>,
    proposal: Option<Proposal>,
    /// What other nodes hold of a session that is taken over, on its way.
    claim: Option<Claim>,
    /// Epoch of a session that was taken over, until its first packet.
    adopted: Option<Epoch>,
    /// Keys of its connections at its former home, until they are made here.
    transports: Transports,
    /// Which node has its checkpoints.
    kept_at: Kept,
    /// Who waits for this session to be gone.
    let_go: Option<oneshot::Sender<()>>,
    /// Of the client's message that is being handled.
    receipt: Option<Receipt>,
    /// The shard knows this session.
    attached: bool,
    /// What the session has thrown away, as far as it is counted in the metrics.
    discards: Discards,
    ended: Option<LeaveReason>,
}

impl Task {
    fn spawn(self, outlet: Outlet) {
        let (sid, room) = (self.session.sid(), self.session.room());
        let span = tracing::info_span!("session", participant = %sid, room = %room);
        tokio::spawn(self.run(outlet).instrument(span));
    }

    async fn run(mut self, mut outlet: Outlet) {
        let node = self.node.clone();
        let (room, sid, identity) = (
            self.session.room().clone(),
            self.session.sid().clone(),
            self.session.identity().clone(),
        );
        let (shard, key) = (self.shard.clone(), self.key);
        let started = Instant::now();
        let turns = AssertUnwindSafe(self.turns(&mut outlet))
            .catch_unwind()
            .await;
        if turns.is_ok() {
            self.lend(&mut outlet).await;
        }
        node.hub.unregister(&room, &sid);
        shard.send(Order::Detach(key)).await;
        // Whoever claims the session has waited until here.
        drop(outlet);
        if let Some(let_go) = self.let_go.take() {
            let _ = let_go.send(());
        }
        let left_in_log = match turns {
            Ok(Some(reason)) => {
                info!(?reason, "session ended");
                false
            }
            Ok(None) => {
                warn!("the session could not keep up and ended");
                node.metrics.session_overruns.inc();
                true
            }
            Err(_) => {
                error!("the session panicked");
                node.metrics.session_panics.inc();
                true
            }
        };
        node.metrics
            .session_duration
            .observe(started.elapsed().as_secs_f64() * 1000.0);
        if left_in_log {
            let reason = LeaveReason::StateMismatch;
            let leave = match self.session.epoch() {
                Some(epoch) => Command::Depart {
                    room,
                    identity,
                    sid,
                    epoch,
                    reason,
                },
                None => Command::Leave {
                    room,
                    identity,
                    sid: Some(sid),
                    reason,
                    revoke_before: None,
                },
            };
            if let Err(error) = node.group.propose(new_request(), leave).await {
                debug!(%error, "leaving failed");
            }
        }
    }

    /// Runs to the session's end. Returns why it ended, or `None` if it was overrun.
    async fn turns(&mut self, outlet: &mut Outlet) -> Option<LeaveReason> {
        self.drain().await;
        loop {
            if let Some(reason) = self.ended {
                return Some(reason);
            }
            let wake = match (self.session.deadline(), self.connect_by) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            tokio::select! {
                message = outlet.receive() => match message {
                    Some(message) => self.take(message),
                    None => {
                        self.say_come_back();
                        return None;
                    }
                },
                (request, result) = finish(&mut self.proposal) => {
                    self.proposal = None;
                    self.session.handle(Instant::now(), Input::Committed { request, result });
                }
                (claimed, transports) = finish(&mut self.claim) => {
                    self.claim = None;
                    self.transports = transports;
                    self.session.handle(Instant::now(), Input::Claimed(Box::new(claimed)));
                }
                () = sleep_until(wake) => self.timeout(),
            }
            self.drain().await;
            self.receipt = None;
            self.count_discards();
            if self.session.take_keepsake_changed() {
                self.keep_wishes();
            }
        }
    }

    fn count_discards(&mut self) {
        let present = self.session.discards();
        if present == self.discards {
            return;
        }
        let counted = std::mem::replace(&mut self.discards, present);
        let counts = present.by_reason().into_iter().zip(counted.by_reason());
        for ((reason, count), (_, before)) in counts {
            let counter = &self.node.metrics.session_discards;
            counter
                .with_label_values(&[reason])
                .inc_by(count.saturating_sub(before));
        }
    }

    fn timeout(&mut self) {
        let now = Instant::now();
        if self.connect_by.is_some_and(|by| by <= now) {
            self.connect_by = None;
            self.signal_closed(now);
        } else {
            self.session.handle(now, Input::Timeout);
        }
    }

    fn take(&mut self, message: Message) {
        let now = Instant::now();
        match message {
            Message::Event { change, index } => self.take_event(now, &change, index),
            Message::Media(event) => {
                trace!(event = variant(&event), "from media");
                self.note_first_packet(&event);
                self.session.handle(now, Input::Media(event));
            }
            Message::Sent {
                target,
                channel,
                payload,
                number,
            } => {
                self.receipt = Receipt::of(&self.shard, self.key.peer(target), number);
                let event = signal_media::Event::Data { channel, payload };
                self.session.handle(now, Input::Media(event));
            }
            Message::Data(data) => self.session.handle(now, Input::Data(data)),
            Message::EarlyData(data) => self.session.handle(now, Input::EarlyData(data)),
            Message::Speakers(levels) => self.session.handle(now, Input::Speakers(&levels)),
            Message::Request {
                connection,
                request,
            } => {
                if self
                    .connection
                    .as_ref()
                    .is_some_and(|c| c.id() == connection)
                {
                    trace!(message = variant(&request.message), "from the client");
                    self.session.handle(now, Input::Request(request));
                }
            }
            Message::Connected(connection) => {
                self.connect_by = None;
                let sent = self
                    .early
                    .drain(..)
                    .all(|response| connection.send(Box::new(response)));
                self.connection = Some(connection);
                if !sent {
                    self.lose_connection(now);
                }
            }
            Message::Resume(resuming, connection) => self.resume(now, resuming, connection),
            Message::SignalClosed { connection } => {
                let is_current = match &self.connection {
                    Some(current) => current.id() == connection,
                    None => connection == 0,
                };
                if is_current {
                    self.lose_connection(now);
                }
            }
            Message::Checkpoint(target, standing) => self.keep_standing(target, standing),
            Message::LetGo(epoch, gone) => {
                // A claim of long ago is not about this session.
                if self.session.epoch().is_none_or(|own| own < epoch) {
                    self.let_go = Some(gone);
                    if let Some(connection) = self.connection.take() {
                        connection.close();
                    }
                    self.ended = Some(LeaveReason::Unknown);
                }
            }
            Message::EngineLost { is_cause } => {
                self.attached = false;
                // Made again from the same keys, a client that breaks engines would break the next.
                let lost = if is_cause {
                    signal_media::Event::Lost
                } else {
                    signal_media::Event::Restarted
                };
                self.session.handle(now, Input::Media(lost));
            }
            Message::Snapshot(state) => {
                let room = state.rooms.get(self.session.room());
                let room = room.cloned();
                let room = room.as_ref();
                self.session.handle(now, Input::Snapshot { room });
            }
            Message::Drain => self.session.handle(now, Input::Drain),
            Message::LeaseLapsed => self.session.handle(now, Input::LeaseLapsed),
            Message::LeaseHolds => self.session.handle(now, Input::LeaseHolds),
            Message::Shutdown => self.session.handle(now, Input::Shutdown),
        }
    }

    fn take_event(&mut self, now: Instant, change: &Change, index: usize) {
        let Some(Event::Room {
            room: name,
            change: event,
            ..
        }) = change.events.get(index)
        else {
            return;
        };
        let input = Input::Event {
            change: event,
            room: change.state.rooms.get(name),
        };
        self.session.handle(now, input);
    }

    /// The client is back. A session that it may not have goes on without it.
    fn resume(&mut self, now: Instant, resuming: Box<Resuming>, connection: Connection) {
        let may_have = resuming
            .parameters
            .reconnect
            .as_ref()
            .is_some_and(|reconnect| self.session.is_resumable_by(&resuming.claims, reconnect));
        if !may_have {
            let _ = connection.send(Box::new(resume_refusal()));
            connection.close();
            return;
        }
        self.connect_by = None;
        if let Some(old) = self.connection.replace(connection) {
            old.close();
        }
        self.session.handle(now, Input::Resume(resuming));
    }

    fn lose_connection(&mut self, now: Instant) {
        self.connection = None;
        self.connect_by = None;
        self.signal_closed(now);
    }

    fn signal_closed(&mut self, now: Instant) {
        self.session.handle(now, Input::SignalClosed);
        if !self.node.shards.lease().holds(now) {
            self.session.handle(now, Input::LeaseLapsed);
        }
    }

    async fn drain(&mut self) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Reply(response) => self.reply(response),
                Output::Propose { request, command } => self.propose(request, command),
                Output::Claim { epoch } => self.claim = Some(self.claim(epoch).await),
                Output::Media(command) => self.order(command).await,
                Output::Data(data) => {
                    let receipt = self.receipt.clone();
                    self.node.hub.distribute(self.session.room(), data, receipt);
                }
                Output::Refuse(refusal) => {
                    if let Some(admission) = self.admission.take() {
                        let _ = admission.send(Err(refusal));
                    }
                }
                Output::Close(Close::Signal) => {
                    if let Some(connection) = self.connection.take() {
                        connection.close();
                    }
                }
                Output::Close(Close::Farewell) => {
                    if let Some(connection) = self.connection.take() {
                        tokio::spawn(async move {
                            tokio::time::sleep(FAREWELL_MAX).await;
                            connection.close();
                        });
                    }
                }
                Output::Close(Close::Session { reason }) => {
                    if let Some(connection) = self.connection.take() {
                        connection.close();
                    }
                    self.ended = Some(reason);
                    return;
                }
            }
        }
    }

    fn reply(&mut self, response: Box<SignalResponse>) {
        trace!(message = variant(&response.message), "to the client");
        if let Some(admission) = self.admission.take() {
            // The first response: the join is in the log. Without a taker the client is gone.
            if admission.send(Ok(())).is_err() {
                self.inbox.deliver(Message::SignalClosed { connection: 0 });
            } else {
                self.connect_by = Some(Instant::now() + CONNECT_MAX);
            }
        }
        if let Some(connection) = &self.connection {
            if !connection.send(response) {
                let connection = connection.id();
                debug!("the client does not read; cutting it off");
                self.node.metrics.slow_sockets.inc();
                self.inbox.deliver(Message::SignalClosed { connection });
            }
        } else if self.connect_by.is_some() && self.early.len() < EARLY_MAX {
            self.early.push(*response);
        }
    }

    fn propose(&mut self, request: RequestId, command: Command) {
        assert!(
            self.proposal.is_none(),
            "a session proposes one change at a time"
        );
        let group = self.node.group.clone();
        if self.session.comes_late(&command, &group.state()) {
            let refused = Err(CommitError::Rejected(Rejection::StaleEpoch));
            self.proposal = Some(Box::pin(std::future::ready((request, refused))));
            return;
        }
        self.proposal = Some(Box::pin(async move {
            let result = match group.propose(request, command).await {
                Ok(reply) => Ok(reply),
                Err(ProposeError::Rejected(rejection)) => Err(CommitError::Rejected(rejection)),
                Err(other) => Err(CommitError::Unavailable(other.to_string())),
            };
            (request, result)
        }));
    }

    /// The shard gets to know the session.
    async fn attach(&mut self) {
        if !std::mem::replace(&mut self.attached, true) {
            let attach = Order::Attach(self.key, self.inbox.clone());
            self.shard.send(attach).await;
        }
    }

    async fn order(&mut self, command: signal_media::Command) {
        self.attach().await;
        let may_be_lost = matches!(
            command,
            signal_media::Command::SendData {
                channel: signal_media::Channel::Lossy | signal_media::Channel::DataTrack,
                ..
            }
        );
        for command in media::command(self.key, self.single, command, &mut self.transports) {
            if may_be_lost {
                self.shard.offer(Order::Engine(command));
            } else {
                self.shard.command(command).await;
            }
        }
    }

    /// Last words of a session that cannot go on: the client is to join anew.
    fn say_come_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = connection.send(Box::new(resume_refusal()));
            connection.close();
        }
    }
}

/// The outcome of what is under way; never, if nothing is.
async fn finish<T>(under_way: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match under_way {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}

/// Returns at this time; never, if there is none.
pub(crate) async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// The name of an enumeration's variant, for the log: what it holds may be secret, or long.
fn variant(value: &impl fmt::Debug) -> String {
    let text = format!("{value:?}");
    let text = text.strip_prefix("Some(").unwrap_or(&text);
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

/// A request id from the system's randomness.
#[must_use]
pub fn new_request() -> RequestId {
    RequestId(rand::random())
}
