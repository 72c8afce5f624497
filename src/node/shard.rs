//! A shard: one thread with one UDP socket and one media engine.
//!
//! Sessions and the reconciler send orders through a [`ShardHandle`]; events of a peer go straight
//! to its session's inbox, the rest to the node. The thread owns the engine, so no packet waits for
//! a lock. After a panic in the engine a new one takes over the socket, the reconciler restores the
//! relays, and this shard's sessions are taken over as if another node had died: clients resume with
//! what is kept of them. Only the one whose datagram was the cause starts over.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flotilla_media::command::{Channel, Command, Continuation};
use flotilla_media::engine::{Engine, EngineConfig, EngineStats};
use flotilla_media::event::Event;
use flotilla_media::via;
use flotilla_model::id::{NodeId, TrackSid};
use flotilla_signal::media::Target;
use rand::RngCore as _;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use crate::control::lease::Lease;
use crate::session::inbox::{Inbox, Message, Standing};
use crate::session::media::{self, SessionKey};
use crate::telemetry::Metrics;
use crate::udp::{Socket, Waker};

/// Orders waiting for the thread. When the queue is full the sender waits (sessions, reconciler) or
/// drops (data that may be lost).
const ORDERS_MAX: usize = 16 * 1024;
/// Node-wide events waiting. When full the newest is dropped: levels are repeated, the rest is for display.
const EVENTS_MAX: usize = 4 * 1024;
/// Orders handled before the socket is looked at again.
const ORDERS_PER_TURN: usize = 512;
/// From this many queued datagrams on it pays to wait for the rest of a video frame, so that its
/// packets to one receiver leave as one message. Fewer leave at once.
const GATHER_MIN: usize = 48;
/// How long to wait for it. Chromium sends a frame's packets within 0.3 ms.
const GATHER: Duration = Duration::from_micros(500);
/// No datagram waits longer than this between engine and socket.
const WINDOW: Duration = Duration::from_millis(2);

/// While this node's lease does not hold, a client or node that was heard from this recently is still
/// served: it is, by whom it chose. libwebrtc checks its path every 2.5 s when it has nothing else to send.
/// Less than after which a client that hears nothing looks for another node: browsers give a path up after 5 s,
/// signalling its connection after its timeout for pings. When the way to it is free again it may be served there.
const HEARD_MAX: Duration = Duration::from_secs(3);
/// Datagrams that were waiting while the process was stopped are no sign of that: until all of them have been
/// read, and every turn has been in time for this long, none is taken for one. A process with a few milliseconds
/// of processor in each tenth of a second never gets there.
const WAKING: Duration = Duration::from_millis(500);
/// A thread that woke up this much too late was stopped, and with it the process, or has hardly any processor:
/// others may have decided meanwhile, or a client have left without its session having come to read that.
/// Less than a process without its share waits for the next period of the kernel's quota (100 ms).
const STOPPED: Duration = Duration::from_millis(60);
/// How long a lease may have ended before it matters to a process that ran all the time: on a busy
/// machine its renewal is late now and then.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Addresses remembered as heard from.
const HEARD_ADDRESSES_MAX: usize = 64 * 1024;

/// What a shard thread can be asked.
pub enum Order {
    /// For the engine.
    Engine(Command),
    /// Where a session's events go, from its first peer on.
    Attach(SessionKey, Inbox),
    /// The session ended: its peers close.
    Detach(SessionKey),
    /// The session is another node's now: its connections close, and those whose paths can be lent are
    /// answered.
    Lend(
        SessionKey,
        NodeId,
        oneshot::Sender<Vec<(Target, Continuation)>>,
    ),
    /// The shard has another address of its own.
    Open(Box<Socket>),
    /// That address is another node's from now on.
    Close(via::Local),
    /// A view of the engine, for metrics and the admin API.
    Inspect(oneshot::Sender<ShardView>),
    /// End the thread.
    Stop,
    /// Make the engine panic.
    #[cfg(test)]
    Panic,
}

/// Events that concern no single session.
#[derive(Debug)]
pub enum ShardEvent {
    /// Loudness of local audio tracks.
    AudioLevels(Vec<(TrackSid, f32)>),
    /// A relay began to carry packets.
    RelayStarted {
        /// Track.
        track: TrackSid,
        /// Sender.
        from: NodeId,
    },
    /// The engine was replaced: everything that the reconciler told it is forgotten.
    Restarted {
        /// Shard.
        shard: usize,
    },
}

/// What a shard looks like from outside.
#[derive(Clone, Debug, Default)]
pub struct ShardView {
    /// The engine's states and counters.
    pub stats: EngineStats,
}

impl ShardView {
    /// Sums over the engine's present peers, tracks and subscriptions, by name.
    #[must_use]
    pub fn totals(&self) -> Vec<(&'static str, u64)> {
        let (engine, router) = (&self.stats, &self.stats.router);
        let layers = || router.tracks.iter().flat_map(|track| &track.layers);
        let subscriptions = || router.subscriptions.iter();
        vec![
            ("peers", engine.peers as u64),
            ("peers_connected", engine.peers_connected as u64),
            ("paths_lent", engine.lent as u64),
            ("data_refused", engine.data_refused),
            ("events_dropped", engine.events_dropped),
            ("transmits_dropped", engine.transmits_dropped),
            ("tracks", router.tracks.len() as u64),
            ("subscriptions", router.subscriptions.len() as u64),
            ("relays", router.relays.len() as u64),
            (
                "links_up",
                router.links.iter().filter(|link| link.is_up).count() as u64,
            ),
            (
                "received_packets",
                layers().map(|layer| layer.packets).sum(),
            ),
            ("received_bytes", layers().map(|layer| layer.bytes).sum()),
            (
                "received_packets_lost",
                layers().map(|layer| layer.packets_lost).sum(),
            ),
            (
                "sent_packets",
                subscriptions().map(|sent| sent.packets).sum(),
            ),
            ("sent_bytes", subscriptions().map(|sent| sent.bytes).sum()),
            (
                "sent_retransmissions",
                subscriptions().map(|sent| sent.retransmissions).sum(),
            ),
            (
                "relayed_packets",
                router.relays.iter().map(|relay| relay.packets).sum(),
            ),
            (
                "relayed_bytes",
                router.relays.iter().map(|relay| relay.bytes).sum(),
            ),
            ("passed_on_packets", router.packets_passed_on),
        ]
    }

    /// Datagrams and packets that were not used, by reason.
    #[must_use]
    pub fn discards(&self) -> Vec<(&'static str, u64)> {
        self.stats
            .discards
            .iter()
            .zip(self.stats.router.discards.iter())
            .map(|((reason, outside), (_, inside))| (reason.name(), outside + inside))
            .collect()
    }
}

/// Sends orders to one shard; cheap to clone.
#[derive(Clone)]
pub struct ShardHandle {
    orders: mpsc::Sender<Order>,
    waker: Waker,
    /// Position in the node's list.
    pub index: usize,
    /// The socket's address.
    pub address: SocketAddr,
}

impl ShardHandle {
    /// Sends an order, waiting for room in the queue. Orders to a stopped shard are lost, like
    /// everything else when a node stops.
    pub async fn send(&self, order: Order) {
        let _ = self.orders.send(order).await;
        self.waker.wake();
    }

    /// Sends a command, waiting for room.
    pub async fn command(&self, command: Command) {
        self.send(Order::Engine(command)).await;
    }

    /// Sends an order if there is room; returns whether.
    pub fn offer(&self, order: Order) -> bool {
        let taken = self.orders.try_send(order).is_ok();
        self.waker.wake();
        taken
    }

    /// The engine's counters; `None` if the shard does not answer.
    pub async fn inspect(&self) -> Option<ShardView> {
        let (answer, view) = oneshot::channel();
        self.send(Order::Inspect(answer)).await;
        tokio::time::timeout(Duration::from_secs(1), view)
            .await
            .ok()?
            .ok()
    }
}

/// All shards of a node.
pub struct Shards {
    lease: Lease,
    handles: Vec<ShardHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Shards {
    /// Starts one thread per socket.
    ///
    /// # Errors
    /// The system's, when a thread cannot be started.
    pub fn start(
        sockets: Vec<(Socket, Waker)>,
        engine: &EngineConfig,
        lease: &Lease,
        metrics: &Arc<Metrics>,
    ) -> io::Result<(Self, mpsc::Receiver<ShardEvent>)> {
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let mut shards = Self {
            lease: lease.clone(),
            handles: Vec::new(),
            threads: Vec::new(),
        };
        for (index, (socket, waker)) in sockets.into_iter().enumerate() {
            let (orders, orders_out) = mpsc::channel(ORDERS_MAX);
            let address = socket.local_address()?;
            let mut config = engine.clone();
            config.shard = index as u16;
            config.candidates = config
                .candidates
                .iter()
                .map(|candidate| SocketAddr::new(candidate.ip(), address.port()))
                .collect();
            let shard = Shard {
                index,
                socket,
                beside: Vec::new(),
                orders: orders_out,
                events: events.clone(),
                sessions: HashMap::new(),
                config,
                metrics: metrics.clone(),
                queued_since: None,
                lease: lease.clone(),
                lapsed: None,
                turned: Instant::now(),
                handling: None,
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || shard.run())?;
            shards.threads.push(thread);
            shards.handles.push(ShardHandle {
                orders,
                waker,
                index,
                address,
            });
        }
        Ok((shards, events_out))
    }

    /// The shard that a room lives on: the same number on every node.
    #[must_use]
    pub fn of_room(&self, room: &str) -> &ShardHandle {
        let hash = flotilla_model::id::fnv1a(room.as_bytes());
        &self.handles[(hash % self.handles.len() as u64) as usize]
    }

    /// What they ask before they send.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// All of them, in order.
    #[must_use]
    pub fn handles(&self) -> &[ShardHandle] {
        &self.handles
    }

    /// Ends all threads and waits for them.
    pub async fn stop(self) {
        for handle in &self.handles {
            handle.send(Order::Stop).await;
        }
        let threads = self.threads;
        let _ = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        })
        .await;
    }
}

struct Shard {
    index: usize,
    socket: Socket,
    /// Those of addresses that move.
    beside: Vec<Socket>,
    orders: mpsc::Receiver<Order>,
    events: mpsc::Sender<ShardEvent>,
    sessions: HashMap<SessionKey, Inbox>,
    config: EngineConfig,
    metrics: Arc<Metrics>,
    /// When the oldest datagram now in the queue was put there.
    queued_since: Option<Instant>,
    lease: Lease,
    lapsed: Option<Lapsed>,
    /// When the present turn began.
    turned: Instant,
    /// Where the datagram came from that the engine has in hand.
    handling: Option<SocketAddr>,
}

/// The node's lease has ended: others may serve whom this shard served.
struct Lapsed {
    /// Since when, or when a turn was late last.
    since: Instant,
    /// The process was stopped, or had to wait for the processor.
    was_stopped: bool,
    /// What had come while it was stopped has not all been read.
    has_backlog: bool,
    heard: HashMap<SocketAddr, Instant>,
}

impl Lapsed {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            was_stopped: false,
            has_backlog: false,
            heard: HashMap::new(),
        }
    }

    /// A turn begins, `late` by so much. If that is long, what waits in the sockets came meanwhile.
    fn turn(&mut self, now: Instant, late: Duration) {
        if late <= STOPPED {
            return;
        }
        if !self.was_stopped {
            info!(
                late_ms = late.as_millis() as u64,
                "this process was stopped: serving only whom it still hears"
            );
        }
        self.was_stopped = true;
        self.has_backlog = true;
        self.since = now;
        self.heard.clear();
    }

    /// There was nothing left to read.
    fn drained(&mut self) {
        self.has_backlog = false;
    }

    fn hear(&mut self, now: Instant, from: SocketAddr) {
        let is_new = !self.has_backlog && now.saturating_duration_since(self.since) > WAKING;
        if is_new && (self.heard.len() < HEARD_ADDRESSES_MAX || self.heard.contains_key(&from)) {
            self.heard.insert(from, now);
        }
    }

    fn serves(&self, now: Instant, to: SocketAddr) -> bool {
        if !self.was_stopped && now.saturating_duration_since(self.since) < LATE_MAX {
            return true;
        }
        let heard = self.heard.get(&to);
        heard.is_some_and(|at| now.saturating_duration_since(*at) <= HEARD_MAX)
    }
}

/// How much later than it should be it is, when a turn begins: counted from when the one before looked at
/// the clock, wherever the thread was stopped since. `wait` was asked for in between.
fn lateness(turned: Instant, wait: Option<Duration>, now: Instant) -> Duration {
    now.saturating_duration_since(turned + wait.unwrap_or_default())
}

impl Shard {
    fn run(mut self) {
        let span = tracing::info_span!("shard", shard = self.index);
        let _entered = span.enter();
        // At a random place, so that not even a key that is derived twice repeats a nonce; a quarter of the
        // range leaves room for more packets than can ever be sent.
        let (first_counter, started) = (rand::random::<u64>() >> 2, Instant::now());
        loop {
            rand::rng().fill_bytes(&mut self.config.seed);
            let age = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.config.counters_from = first_counter.saturating_add(age);
            let mut engine = Engine::new(Instant::now(), self.config.clone());
            self.queued_since = None;
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.turns(&mut engine)));
            match result {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    error!(%error, "the media socket failed; opening the engine again");
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(_) => {
                    error!("the media engine panicked; its sessions resume on a new one");
                    self.metrics.shard_panics.inc();
                }
            }
            let cause = self.handling.take().and_then(|from| engine.peer_at(from));
            self.restarted(cause.map(SessionKey::of));
        }
    }

    /// Everybody who relied on the old engine hears that it is gone, and whose datagram was its end.
    fn restarted(&mut self, cause: Option<SessionKey>) {
        for (session, inbox) in self.sessions.drain() {
            let is_cause = cause == Some(session);
            inbox.deliver(Message::EngineLost { is_cause });
        }
        let shard = self.index;
        let events = self.events.clone();
        // This one must arrive, unlike other events; the thread may wait for it.
        if events
            .blocking_send(ShardEvent::Restarted { shard })
            .is_err()
        {
            info!("nobody listens to the shard any more");
        }
    }

    fn turns(&mut self, engine: &mut Engine) -> io::Result<()> {
        loop {
            let wait = self.wait_time(engine);
            self.socket.wait(&self.beside, wait)?;
            let now = Instant::now();
            self.check_lease(now, lateness(self.turned, wait, now));
            if !self.take_orders(now, engine) {
                return Ok(());
            }
            self.take_datagrams(now, engine)?;
            if engine.deadline().is_some_and(|deadline| deadline <= now) {
                engine.handle_timeout(now);
            }
            self.flush_if_due(now, engine);
            self.give_events(engine);
        }
    }

    fn wait_time(&self, engine: &Engine) -> Option<Duration> {
        let gather = self.queued_since.map(|since| since + GATHER);
        let wake = match (engine.deadline(), gather) {
            (Some(deadline), Some(gather)) => Some(deadline.min(gather)),
            (deadline, gather) => deadline.or(gather),
        };
        wake.map(|wake| wake.saturating_duration_since(Instant::now()))
    }

    /// Returns `false` when the shard is to stop.
    fn take_orders(&mut self, now: Instant, engine: &mut Engine) -> bool {
        for _ in 0..ORDERS_PER_TURN {
            match self.orders.try_recv() {
                Ok(Order::Engine(command)) => {
                    engine.handle_command(now, command);
                    self.send_if_nearly_full(engine);
                }
                Ok(Order::Attach(session, inbox)) => {
                    self.sessions.insert(session, inbox);
                }
                Ok(Order::Detach(session)) => {
                    self.sessions.remove(&session);
                    for peer in session.peers() {
                        engine.handle_command(now, Command::ClosePeer { peer });
                    }
                }
                Ok(Order::Lend(session, to, answer)) => {
                    // What was queued before goes out before the borrower sends, and what came before is the session's.
                    self.flush(engine);
                    self.give_events(engine);
                    let was_cut_off = !self.lease.holds(now);
                    let peers = session.peers().into_iter();
                    let lent = peers.filter_map(|peer| {
                        let lent = engine.lend(now, peer, to, was_cut_off);
                        let lent = lent.inspect_err(|reason| {
                            info!(peer = peer.0, reason, "a path is not lent");
                        });
                        Some((media::target(peer), lent.ok()?))
                    });
                    let lent = lent.collect();
                    // The client hears that its last messages arrived.
                    self.flush(engine);
                    let _ = answer.send(lent);
                }
                Ok(Order::Open(socket)) => {
                    self.beside.retain(|known| known.local() != socket.local());
                    self.beside.push(*socket);
                }
                Ok(Order::Close(local)) => self.beside.retain(|known| known.local() != local),
                #[cfg(test)]
                Ok(Order::Panic) => panic!("as a test asked"),
                Ok(Order::Inspect(answer)) => {
                    let _ = answer.send(ShardView {
                        stats: engine.stats(now),
                    });
                }
                Ok(Order::Stop) | Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.flush(engine);
                    self.give_events(engine);
                    return false;
                }
                Err(mpsc::error::TryRecvError::Empty) => return true,
            }
        }
        // More orders wait: look at the socket, then come back without sleeping.
        self.socket.wake_self();
        true
    }

    /// Looked at before anything is received or sent, so that a process that was stopped knows.
    /// `late`: how much later this is than it should be.
    fn check_lease(&mut self, now: Instant, late: Duration) {
        self.turned = now;
        if self.lease.holds(now) {
            self.lapsed = None;
            return;
        }
        self.lapsed
            .get_or_insert_with(|| Lapsed::new(now))
            .turn(now, late);
    }

    fn take_datagrams(&mut self, now: Instant, engine: &mut Engine) -> io::Result<()> {
        let mut taken = 0;
        for at in 0..self.beside.len() {
            match self.take_datagrams_at(now, engine, Some(at)) {
                Ok(count) => taken += count,
                Err(error) => tracing::debug!(%error, "a socket of an address that moves"),
            }
        }
        taken += self.take_datagrams_at(now, engine, None)?;
        if taken == 0
            && let Some(lapsed) = &mut self.lapsed
        {
            lapsed.drained();
        }
        Ok(())
    }

    fn take_datagrams_at(
        &mut self,
        now: Instant,
        engine: &mut Engine,
        beside: Option<usize>,
    ) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            let (lapsed, handling) = (&mut self.lapsed, &mut self.handling);
            let socket = match beside {
                None => &mut self.socket,
                Some(at) => &mut self.beside[at],
            };
            let local = socket.local();
            let count = socket.receive(|from, bytes| {
                let from = via::mark(from, local);
                *handling = Some(from);
                if let Some(lapsed) = lapsed {
                    lapsed.hear(now, from);
                }
                engine.handle_datagram(now, from, bytes);
                !engine.is_backed_up()
            })?;
            self.handling = None;
            taken += count;
            self.metrics.datagrams_received.inc_by(count as u64);
            if !engine.is_backed_up() {
                return Ok(taken);
            }
            self.flush(engine);
        }
    }

    fn give_events(&mut self, engine: &mut Engine) {
        while let Some(event) = engine.poll_event() {
            match event {
                Event::AudioLevels { levels } => self.offer(ShardEvent::AudioLevels(levels)),
                Event::RelayStarted { track, from } => {
                    self.offer(ShardEvent::RelayStarted { track, from });
                }
                Event::Checkpoint {
                    peer,
                    snapshot,
                    passage,
                    descriptions,
                } => {
                    if let Some(inbox) = self.sessions.get(&SessionKey::of(peer)) {
                        let standing = Standing {
                            transport: snapshot,
                            passage,
                            descriptions,
                        };
                        inbox.offer(Message::Checkpoint(media::target(peer), standing));
                    }
                }
                Event::Data {
                    peer,
                    channel,
                    payload,
                    number,
                } => {
                    let Some(inbox) = self.sessions.get(&SessionKey::of(peer)) else {
                        continue;
                    };
                    let message = Message::Sent {
                        target: media::target(peer),
                        channel: media::channel_back(channel),
                        payload,
                        number,
                    };
                    match channel {
                        Channel::Reliable => inbox.deliver(message),
                        Channel::Lossy | Channel::DataTrack => drop(inbox.offer(message)),
                    }
                }
                event => self.give_session(event),
            }
        }
    }

    fn give_session(&mut self, event: Event) {
        let Some((peer, event)) = media::event(event) else {
            return;
        };
        let Some(inbox) = self.sessions.get(&SessionKey::of(peer)) else {
            return;
        };
        inbox.deliver(Message::Media(event));
    }

    fn offer(&self, event: ShardEvent) {
        if self.events.try_send(event).is_err() {
            self.metrics.shard_events_dropped.inc();
        }
    }

    /// Sends at once, unless so much is going out that gathering a frame saves system calls.
    fn flush_if_due(&mut self, now: Instant, engine: &mut Engine) {
        let queued = engine.outgoing();
        if queued == 0 {
            self.queued_since = None;
            return;
        }
        let since = *self.queued_since.get_or_insert(now);
        let waited = now.saturating_duration_since(since);
        debug_assert!(GATHER < WINDOW);
        if queued < GATHER_MIN || waited >= GATHER {
            self.flush(engine);
        }
    }

    fn send_if_nearly_full(&mut self, engine: &mut Engine) {
        if engine.is_backed_up() {
            self.flush(engine);
        }
    }

    fn flush(&mut self, engine: &mut Engine) {
        self.queued_since = None;
        while !engine.forward() {
            self.send(engine);
        }
        self.send(engine);
    }

    fn send(&mut self, engine: &mut Engine) {
        let queue = engine.transmits();
        if queue.is_empty() {
            return;
        }
        // The process may have been stopped since the turn began.
        let now = Instant::now();
        let is_held = self.lease.holds(now);
        if !is_held {
            let stopped = now.saturating_duration_since(self.turned);
            self.check_lease(now, stopped);
            let lapsed = self.lapsed.as_ref();
            let held_back = queue.retain(|to| lapsed.is_some_and(|lapsed| lapsed.serves(now, to)));
            self.metrics.datagrams_fenced.inc_by(held_back as u64);
        }
        for socket in std::iter::once(&mut self.socket).chain(&mut self.beside) {
            let (lease, turned) = (&self.lease, self.turned);
            let sent = socket.send_while(queue, &|| {
                let now = Instant::now();
                lease.holds(now) || !is_held && lateness(turned, None, now) <= STOPPED
            });
            self.metrics.datagrams_sent.inc_by(sent.sent as u64);
            self.metrics.send_calls.inc_by(sent.calls as u64);
            if sent.dropped > 0 {
                self.metrics.datagrams_unsent.inc_by(sent.dropped as u64);
                tracing::debug!(dropped = sent.dropped, "the kernel refused datagrams");
            }
        }
        queue.clear();
    }
}

#[cfg(test)]
mod tests;
