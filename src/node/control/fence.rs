//! Keeps this node's lease, and brings it back into service after it has lapsed.
//!
//! Drives [`super::lease::Keeper`]: looks at the signs every few tens of milliseconds, and once a
//! lapsed lease has contact again, reads the log, writes this node's record anew if others took it
//! for lost, waits until sessions that belong elsewhere by now have ended, and only then serves again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{LossCause, Node, NodeState};
use flotilla_model::id::NodeId;
use flotilla_raft::{Group, Status};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};

use super::lease::{Contact, Keeper, Lease, Step, contact};
use super::register;
use crate::hub::Hub;
use crate::mesh::{Ailing, Ailment, Mesh};
use crate::telemetry::Metrics;

/// How often the lease is renewed. Well below the bound, or a late task costs the lease.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// How long sessions that belong elsewhere may take to end.
const STRAYS_MAX: Duration = Duration::from_secs(3);
/// How long a node that was handed over because it was unwell must have been well before it serves
/// again.
const WELL_FOR: Duration = Duration::from_secs(10);

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
    keeper: Keeper,
    /// A way back under way.
    return_under_way: Option<JoinHandle<bool>>,
    unwell_since: Option<Instant>,
    well_since: Instant,
    /// When the leader was last known to know that this node lives.
    led_at: Instant,
    standing: watch::Sender<bool>,
}

impl Fence {
    /// Keeps `lease`, which has not begun.
    #[must_use]
    pub fn new(config: FenceConfig, group: Group, mesh: Mesh, hub: Hub, lease: Lease) -> Self {
        let now = Instant::now();
        Self {
            keeper: Keeper::new(lease, config.bound),
            config,
            group,
            mesh,
            hub,
            return_under_way: None,
            unwell_since: None,
            well_since: now,
            led_at: now,
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

    fn look(&mut self) {
        let now = Instant::now();
        let status = self.group.status();
        let state = self.group.state();
        let contact = self.contact(&status, now);
        let own = state.nodes.get(&self.config.record.id);
        let boot = self.config.record.boot;
        let is_lost = own.is_none_or(|own| own.state.is_lost() || own.boot != boot);
        let cause = LossCause::Stalled;
        let was_unwell = own.is_some_and(|own| own.state == NodeState::Lost { cause });
        if is_lost || self.is_unwell(now) {
            if self.keeper.give_up() {
                self.lapsed(if is_lost { "taken for lost" } else { "unwell" });
            }
            if self.unwell_since.is_some()
                || (was_unwell && now.saturating_duration_since(self.well_since) < WELL_FOR)
            {
                return;
            }
        }
        match self.keeper.look(now, contact) {
            Step::Held | Step::Waiting => {}
            Step::Lapsed => self.lapsed("no contact with a majority"),
            Step::Read if self.return_under_way.is_some() => {}
            Step::Read => {
                let way_back = WayBack {
                    group: self.group.clone(),
                    hub: self.hub.clone(),
                    record: self.config.record.clone(),
                    open: self.config.open.clone(),
                };
                self.return_under_way = Some(tokio::spawn(way_back.walk()));
            }
        }
    }

    fn lapsed(&self, reason: &str) {
        warn!(reason, "the lease has lapsed; this node sends no media");
        self.config.metrics.lease_lapses.inc();
        self.config.metrics.lease_held.set(0);
        self.standing.send_replace(false);
    }

    fn return_ended(&mut self, may_serve: bool) {
        self.return_under_way = None;
        if !may_serve {
            return;
        }
        let now = Instant::now();
        let contact = self.contact(&self.group.status(), now);
        if self.keeper.regain(now, contact) {
            info!("the lease holds");
            self.config.metrics.lease_held.set(1);
            self.standing.send_replace(true);
        }
    }

    /// Contact with those who decide: a majority of the voters, and the leader at least now and then.
    fn contact(&mut self, status: &Status, now: Instant) -> Contact {
        let node = self.config.record.id;
        let signs = self.mesh.signs().all();
        let members = status.members.iter();
        let voters: BTreeSet<NodeId> = members
            .filter(|member| member.voter)
            .map(|member| member.node)
            .collect();
        let is_gone = |id: &&NodeId| signs.get(id).is_some_and(|sign| sign.is_gone(now));
        let gone = voters.iter().filter(is_gone).copied().collect();
        let contacts: BTreeMap<NodeId, Instant> = signs
            .iter()
            .filter_map(|(id, sign)| Some((*id, sign.contact?)))
            .collect();
        let found = contact(node, &voters, &gone, &contacts, now);
        let is_dead = |leader: NodeId| signs.get(&leader).is_some_and(|sign| sign.is_gone(now));
        let led = match status.leader {
            Some(leader) if leader != node && !is_dead(leader) => {
                // By way of another node is enough: the leader counts it as well.
                let answered = signs.get(&leader).and_then(|sign| sign.answered);
                contacts.get(&leader).copied().max(answered)
            }
            // It leads itself, or nobody does and nobody decides.
            _ => Some(now),
        };
        self.led_at = self.led_at.max(led.unwrap_or(self.led_at));
        let is_led = found == Contact::Alone
            || now.saturating_duration_since(self.led_at) < self.own_patience();
        if is_led { found } else { Contact::None }
    }

    /// How long this node gives itself where others would give it `lost_after`.
    fn own_patience(&self) -> Duration {
        self.config.lost_after - self.config.lost_after / 10
    }

    /// Whether this node has been unable to follow the log for so long that others hand its people
    /// over without its knowing.
    fn is_unwell(&mut self, now: Instant) -> bool {
        let ailment = self.config.ailing.get();
        if ailment == Ailment::None {
            if self.unwell_since.take().is_some() {
                self.well_since = now;
            }
            return false;
        }
        let since = *self.unwell_since.get_or_insert(now);
        matches!(ailment, Ailment::Disk | Ailment::Log)
            && now.saturating_duration_since(since) >= self.own_patience()
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
        match state.nodes.get(&self.record.id) {
            Some(own) if own.boot == self.record.boot && !own.state.is_lost() => {}
            // Before its first start is registered, a node serves nobody.
            None => return false,
            Some(_) if !self.open.load(Ordering::Relaxed) => return false,
            Some(own) if own.boot == self.record.boot => {
                if let Err(reason) = register::attempt(&self.group, &self.record).await {
                    debug!(%reason, "this node cannot return yet");
                    return false;
                }
                info!("this node was taken for lost; it serves again");
            }
            Some(_) => return false,
        }
        self.await_strays(&state).await;
        true
    }

    /// Sessions of participants that belong elsewhere by now must not send once the lease holds.
    async fn await_strays(&self, state: &State) {
        /// How often they are looked for.
        const LOOK: Duration = Duration::from_millis(10);
        let begun = Instant::now();
        while self.hub.has_strays(state) {
            if begun.elapsed() > STRAYS_MAX {
                error!("sessions whose participants have another home do not end");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
