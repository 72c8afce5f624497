//! Keeps this node's lease, and brings it back into service after it has lapsed.
//!
//! Drives [`super::guard::Guard`]: looks at the signs every few tens of milliseconds, and once a
//! lapsed lease has contact again, reads the log, writes this node's record anew if others took it
//! for lost, waits until sessions that belong elsewhere by now have ended, and only then serves again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flotilla_model::cluster::Node;
use flotilla_model::command::Command;
use flotilla_raft::Group;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};

use super::failure::with_view;
use super::guard::{self, Deed, Guard, GuardConfig};
use super::judge::View;
use super::lease::Lease;
use super::register;
use crate::hub::Hub;
use crate::mesh::{Ailing, Mesh};
use crate::session::inbox::Message;
use crate::session::new_request;
use crate::telemetry::Metrics;

/// How often the lease is renewed. Well below the bound, or a late task costs the lease.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// How long sessions that belong elsewhere may take to end.
const STRAYS_MAX: Duration = Duration::from_secs(3);
/// What the fence needs.
pub struct FenceConfig {
    /// This node's record, as it writes it.
    pub record: Node,
    /// Silence after which others may condemn this node.
    pub bound: Duration,
    /// How long it may be unwell, or out of the leader's reach, before others may.
    pub lost_after: Duration,
    /// What it says is wrong with itself.
    pub ailing: Ailing,
    /// Whether it takes participants; false once it is being stopped.
    pub open: Arc<AtomicBool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// The driver.
pub struct Fence {
    config: FenceConfig,
    group: Group,
    mesh: Mesh,
    hub: Hub,
    guard: Guard,
    /// A way back under way.
    return_under_way: Option<JoinHandle<bool>>,
    standing: watch::Sender<bool>,
}

impl Fence {
    /// Keeps `lease`, which has not begun.
    #[must_use]
    pub fn new(config: FenceConfig, group: Group, mesh: Mesh, hub: Hub, lease: Lease) -> Self {
        let guarded = GuardConfig {
            node: config.record.id,
            boot: config.record.boot,
            bound: config.bound,
            lost_after: config.lost_after,
        };
        Self {
            guard: Guard::new(guarded, lease, Instant::now()),
            config,
            group,
            mesh,
            hub,
            return_under_way: None,
            standing: watch::Sender::new(false),
        }
    }

    /// Whether the lease holds, to be told of changes. Shards ask the [`Lease`] itself.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<bool> {
        self.standing.subscribe()
    }

    /// Keeps the lease until the task is dropped.
    pub async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => self.look(),
                returned = returned(&mut self.return_under_way) => self.return_ended(returned),
            }
        }
    }

    fn decide<T>(&mut self, decide: impl FnOnce(&mut Guard, &View<'_>) -> T) -> T {
        let guard = &mut self.guard;
        with_view(&self.group, &self.mesh, |view| decide(guard, view))
    }

    fn look(&mut self) {
        let ailment = self.config.ailing.get();
        match self.decide(|guard, view| guard.look(view, ailment)) {
            Deed::None => {}
            Deed::Lapsed(reason) => self.lapsed(reason),
            Deed::Read => self.go_back(),
            Deed::LapsedAndRead(reason) => {
                self.lapsed(reason);
                self.go_back();
            }
            Deed::SendAway => {
                let count = self.hub.session_count();
                if count > 0 {
                    warn!(
                        count,
                        "the lease stays lapsed; clients are asked to resume elsewhere"
                    );
                }
                // Who has come since the lease ended has not heard of that.
                self.hub.broadcast(|| Message::LeaseLapsed);
                self.hub.broadcast(|| Message::Drain);
            }
        }
    }

    fn go_back(&mut self) {
        if self.return_under_way.is_none() {
            let way_back = WayBack {
                group: self.group.clone(),
                hub: self.hub.clone(),
                record: self.config.record.clone(),
                open: self.config.open.clone(),
            };
            self.return_under_way = Some(tokio::spawn(way_back.walk()));
        }
    }

    fn lapsed(&self, reason: &str) {
        warn!(reason, "the lease has lapsed; this node sends no media");
        self.config.metrics.lease_lapses.inc();
        self.config.metrics.lease_held.set(0);
        self.standing.send_replace(false);
        self.hub.broadcast(|| Message::LeaseLapsed);
    }

    fn return_ended(&mut self, may_serve: bool) {
        self.return_under_way = None;
        if may_serve && self.decide(Guard::returned) {
            info!("the lease holds");
            self.config.metrics.lease_held.set(1);
            self.standing.send_replace(true);
            self.hub.broadcast(|| Message::LeaseHolds);
        }
    }
}

async fn returned(under_way: &mut Option<JoinHandle<bool>>) -> bool {
    match under_way {
        Some(task) => task.await.unwrap_or(false),
        None => std::future::pending().await,
    }
}

/// The way from contact to serving.
struct WayBack {
    group: Group,
    hub: Hub,
    record: Node,
    open: Arc<AtomicBool>,
}

impl WayBack {
    /// Whether this node may serve. If not, it takes its time, so that asking again costs little.
    async fn walk(self) -> bool {
        /// Pause after a way back that led nowhere.
        const PAUSE: Duration = Duration::from_millis(100);
        let may_serve = self.attempt().await;
        if !may_serve {
            tokio::time::sleep(PAUSE).await;
        }
        may_serve
    }

    async fn attempt(&self) -> bool {
        let state = match self.group.read().await {
            Ok(state) => state,
            Err(error) => {
                debug!(%error, "the log cannot be read; the lease stays lapsed");
                return false;
            }
        };
        let is_open = self.open.load(Ordering::Relaxed);
        match guard::way_back(&state, self.record.id, self.record.boot, is_open) {
            guard::WayBack::Serve => {
                if !self.is_still_to_serve().await {
                    return false;
                }
            }
            guard::WayBack::Wait => return false,
            guard::WayBack::Register => {
                if let Err(reason) = register::attempt(&self.group, &self.record).await {
                    debug!(%reason, "this node cannot return yet");
                    return false;
                }
                info!("this node was taken for lost; it serves again");
            }
        }
        self.await_strays().await;
        true
    }

    /// Whether no verdict on this node was on its way into the log while it was read. What this node writes now
    /// comes after such a one, and makes void whatever was found of this node before.
    async fn is_still_to_serve(&self) -> bool {
        let (node, boot) = (self.record.id, self.record.boot);
        let returns = Command::NodeReturns { node, boot };
        let written = self.group.propose(new_request(), returns).await;
        if let Err(error) = written {
            debug!(%error, "the return is not in the log; the lease stays lapsed");
            return false;
        }
        let is_open = self.open.load(Ordering::Relaxed);
        let state = self.group.state();
        guard::way_back(&state, node, boot, is_open) == guard::WayBack::Serve
    }

    /// Sessions of participants that belong elsewhere by now must not send once the lease holds. Looks at the
    /// newest state each time: whoever has come back to this node meanwhile is none of them.
    async fn await_strays(&self) {
        /// How often they are looked for.
        const LOOK: Duration = Duration::from_millis(10);
        let begun = Instant::now();
        while self.hub.has_strays(&self.group.state()) {
            if begun.elapsed() > STRAYS_MAX {
                error!("sessions whose participants have another home do not end");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
