//! Holds the addresses that the log gives to this node, and goes on with whom it finds there.
//!
//! A node's record names its moving addresses: its own, and those of nodes whose people it took over.
//! [`Plan`] says which of them are to be held now; [`watch`] is its driver.
//!
//! - Its own address a node holds from when its record is in the log and nobody else's names it.
//! - Another's it takes as soon as the log gives it, which is after the other's lease has ended. When the
//!   other is back, it is held until nobody here is served there who does not know, then released.
//! - Whoever has no lease, or is taken for lost, holds nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_media::via;
use flotilla_model::State;
use flotilla_model::command::Command;
use flotilla_model::id::{BootId, NodeId};
use flotilla_raft::{FeedError, Group};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::lease::Lease;
use crate::moving::{KEPT, Means};
use crate::session::{Sessions, new_request};
use crate::shard::Order;
use crate::udp::Socket;

/// How often it is looked whether all is as it should be.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often an address that is held is asked for again.
const KEEP_INTERVAL: Duration = Duration::from_millis(1000);
/// How often the network is told at first: whoever held the address before may still answer for it.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(200);
/// For how long it is told as often.
const ANNOUNCED_OFTEN: Duration = Duration::from_secs(5);
/// A lease may be without contact for so long before its addresses are given up: on a busy machine it
/// comes back at once.
const LAPSED_MAX: Duration = Duration::from_secs(1);
/// How long an address whose owner is back is kept after the last client there has found out: its
/// restart of ICE ends on it.
const LINGER: Duration = Duration::from_secs(3);

/// Which addresses are to be held.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// This node.
    pub node: NodeId,
    /// This start of it.
    pub boot: BootId,
    /// Its own moving address.
    pub own: IpAddr,
}

/// What [`Plan`] says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// To be held.
    pub held: Vec<IpAddr>,
    /// Of those, addresses whose owner is back.
    pub owed: Vec<IpAddr>,
}

impl Plan {
    /// What is to be held in a state.
    #[must_use]
    pub fn wanted(&self, state: &State) -> Wanted {
        let record = state.nodes.get(&self.node);
        let Some(record) = record.filter(|own| own.boot == self.boot && !own.state.is_lost())
        else {
            return Wanted::default();
        };
        let is_named_elsewhere = |address: &IpAddr| {
            let mut others = state.nodes.values().filter(|other| other.id != self.node);
            others.any(|other| !other.state.is_lost() && other.moving_addresses().contains(address))
        };
        let (mut held, mut owed) = (Vec::new(), Vec::new());
        for address in record.moving_addresses() {
            let is_elsewhere = is_named_elsewhere(&address);
            if address == self.own && is_elsewhere {
                continue;
            }
            held.push(address);
            if is_elsewhere {
                owed.push(address);
            }
        }
        Wanted { held, owed }
    }
}

/// What the driver needs.
pub struct Keeping {
    /// Which addresses.
    pub plan: Plan,
    /// How they come here.
    pub means: Means,
    /// The region's group.
    pub group: Group,
    /// Whom clients are served by.
    pub sessions: Arc<Sessions>,
    /// This node's right to serve.
    pub lease: Lease,
}

/// An address that is held.
struct Held {
    address: IpAddr,
    since: Instant,
    kept_at: Instant,
    announced_at: Instant,
    /// When nobody was found there who does not know.
    idle_since: Option<Instant>,
}

/// Keeps until the task is dropped.
pub async fn watch(keeping: Keeping) {
    let mut watcher = Watcher {
        keeping,
        held: Vec::new(),
        failed: Vec::new(),
        lapsed_since: None,
        first: true,
    };
    let mut feed = watcher.keeping.group.feed();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = feed.next() => match change {
                // Whom the log gives to this node comes together with the address.
                Ok(change) if !change.events.iter().any(super::is_of_nodes) => continue,
                Ok(_) => {}
                Err(FeedError::Lagged(_)) => drop(feed.restart()),
                Err(FeedError::Stopped) => break,
            },
            _ = look.tick() => {}
        }
        watcher.look().await;
    }
}

struct Watcher {
    keeping: Keeping,
    held: Vec<Held>,
    /// Addresses that could not be taken, and when it is tried again.
    failed: Vec<(IpAddr, Instant)>,
    lapsed_since: Option<Instant>,
    /// Nothing has been held yet.
    first: bool,
}

impl Watcher {
    async fn look(&mut self) {
        let now = Instant::now();
        let state = self.keeping.group.state();
        let mut wanted = self.keeping.plan.wanted(&state);
        if self.keeping.lease.holds(now) {
            self.lapsed_since = None;
        } else {
            let since = *self.lapsed_since.get_or_insert(now);
            let has_lapsed = now.saturating_duration_since(since) >= LAPSED_MAX;
            if has_lapsed || self.first {
                wanted = Wanted::default();
            } else {
                wanted.held.retain(|address| self.holds(*address));
            }
        }
        let gone: Vec<IpAddr> = self
            .held
            .iter()
            .map(|held| held.address)
            .filter(|address| !wanted.held.contains(address))
            .collect();
        for address in gone {
            self.give(address).await;
        }
        for address in &wanted.held {
            if !self.holds(*address) && self.may_try(*address, now) {
                self.take(*address).await;
            }
        }
        self.keep(now).await;
        self.keeping
            .sessions
            .hub
            .unmissed()
            .retain_at(self.keeping.plan.node, &state)
            .await;
        self.release(now, &wanted.owed).await;
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.held.iter().any(|held| held.address == address)
    }

    fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        let mut failed = self.failed.iter();
        failed.all(|(known, again)| *known != address || *again <= now)
    }

    async fn take(&mut self, address: IpAddr) {
        let begun = Instant::now();
        let sessions = self.keeping.sessions.clone();
        let Some(local) = sessions.moving.insert(address) else {
            return;
        };
        let taken = self.keeping.means.take(address, true).await;
        let opened = taken.and_then(|()| self.open(address, local));
        let now = Instant::now();
        match opened {
            Ok(sockets) => {
                for (index, socket) in sockets.into_iter().enumerate() {
                    sessions.shards.handles()[index]
                        .send(Order::Open(Box::new(socket)))
                        .await;
                }
                self.first = false;
                self.failed.retain(|(known, _)| *known != address);
                self.held.push(Held {
                    address,
                    since: now,
                    kept_at: now,
                    announced_at: now,
                    idle_since: None,
                });
            }
            Err(error) => {
                sessions.moving.remove(address);
                if !self.failed.iter().any(|(known, _)| *known == address) {
                    warn!(%address, error = format!("{error:#}"), "an address cannot be taken; trying again");
                }
                self.failed.retain(|(known, _)| *known != address);
                self.failed.push((address, now + LOOK_INTERVAL));
                return;
            }
        }
        let sessions_found = sessions.go_on_at(address, local).await;
        info!(
            %address,
            sessions = sessions_found,
            took_us = begun.elapsed().as_micros() as u64,
            "an address is here"
        );
    }

    /// The same port for each shard as that of its main socket, at another address.
    fn open(&self, address: IpAddr, local: via::Local) -> anyhow::Result<Vec<Socket>> {
        let shards = self.keeping.sessions.shards.handles().iter();
        let bound = shards.map(|shard| {
            Socket::bind_beside(SocketAddr::new(address, shard.address.port()), local)
        });
        Ok(bound.collect::<std::io::Result<_>>()?)
    }

    async fn give(&mut self, address: IpAddr) {
        self.held.retain(|held| held.address != address);
        let sessions = &self.keeping.sessions;
        if let Some(local) = sessions.moving.remove(address) {
            for shard in sessions.shards.handles() {
                shard.send(Order::Close(local)).await;
            }
        }
        match self.keeping.means.release(address).await {
            Ok(()) => info!(%address, "an address is given up"),
            Err(error) => warn!(%address, error = format!("{error:#}"), "an address is still here"),
        }
    }

    /// Asks again for what is held, and tells the network.
    async fn keep(&mut self, now: Instant) {
        debug_assert!(KEEP_INTERVAL * 2 < KEPT);
        if self.lapsed_since.is_some() {
            return;
        }
        for held in &mut self.held {
            let is_new = now.saturating_duration_since(held.since) < ANNOUNCED_OFTEN;
            let announced = now.saturating_duration_since(held.announced_at);
            let announces = is_new && announced >= ANNOUNCE_INTERVAL;
            let is_due = now.saturating_duration_since(held.kept_at) >= KEEP_INTERVAL;
            if !announces && !is_due {
                continue;
            }
            if self.keeping.means.command.is_some() {
                continue;
            }
            held.kept_at = now;
            held.announced_at = now;
            if let Err(error) = self.keeping.means.take(held.address, true).await {
                debug!(address = %held.address, error = format!("{error:#}"), "an address was not kept");
            }
        }
    }

    /// Gives addresses back to owners that have come back.
    async fn release(&mut self, now: Instant, owed: &[IpAddr]) {
        let mut due = Vec::new();
        for held in &mut self.held {
            let is_idle = owed.contains(&held.address)
                && !self.keeping.sessions.hub.unmissed().are_at(held.address);
            if !is_idle {
                held.idle_since = None;
                continue;
            }
            let since = *held.idle_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= LINGER {
                held.idle_since = None;
                due.push(held.address);
            }
        }
        if due.is_empty() {
            return;
        }
        let Plan { node, boot, .. } = self.keeping.plan;
        let command = Command::ReleaseAddresses {
            node,
            boot,
            addresses: due,
        };
        let proposal =
            self.keeping
                .group
                .propose_within(new_request(), command, Duration::from_secs(1));
        if let Err(error) = proposal.await {
            debug!(%error, "addresses are given back later");
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_model::cluster::{LossCause, Node, NodeState};

    use super::super::testing::World;
    use super::*;

    fn with(world: &mut World, id: u64, boot: u64, state: NodeState, addresses: &[[u8; 4]]) {
        let present = world
            .state
            .nodes
            .get(&NodeId(id))
            .or_else(|| world.state.nodes.values().next());
        let node = Node::clone(present.expect("a node"));
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| (*address).into()).collect();
        let node = Node {
            id: NodeId(id),
            boot: BootId(boot),
            state,
            ..node
        };
        let node = Arc::new(node.with_moving_addresses(&addresses));
        world.state.nodes.insert(NodeId(id), node);
    }

    #[test]
    fn an_address_is_one_nodes() {
        let mut world = World::new();
        let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let plan = |id: u64, boot: u64, own: [u8; 4]| Plan {
            node: NodeId(id),
            boot: BootId(boot),
            own: own.into(),
        };
        let lost = NodeState::Lost {
            cause: LossCause::Crashed,
        };
        with(&mut world, 1, 1, NodeState::Serving, &[one]);
        with(&mut world, 2, 1, NodeState::Serving, &[two]);
        let held = |world: &World, plan: Plan| plan.wanted(&world.state).held;
        assert_eq!(held(&world, plan(1, 1, one)), [IpAddr::from(one)]);
        assert_eq!(held(&world, plan(2, 1, two)), [IpAddr::from(two)]);
        assert!(held(&world, plan(1, 2, one)).is_empty(), "another start");
        // Node 1 is lost, and node 2 has its address.
        with(&mut world, 1, 1, lost, &[]);
        with(&mut world, 2, 1, NodeState::Serving, &[two, one]);
        assert!(held(&world, plan(1, 1, one)).is_empty());
        let wanted = plan(2, 1, two).wanted(&world.state);
        assert_eq!(wanted.held, [two, one].map(IpAddr::from));
        assert!(wanted.owed.is_empty());
        // It comes back and waits until node 2 lets go.
        with(&mut world, 1, 2, NodeState::Serving, &[one]);
        assert!(held(&world, plan(1, 2, one)).is_empty());
        assert_eq!(
            plan(2, 1, two).wanted(&world.state).owed,
            [IpAddr::from(one)]
        );
        with(&mut world, 2, 1, NodeState::Serving, &[two]);
        assert_eq!(held(&world, plan(1, 2, one)), [IpAddr::from(one)]);
        // Given one address by mistake, nobody takes it.
        with(&mut world, 2, 1, NodeState::Serving, &[one]);
        assert!(held(&world, plan(1, 2, one)).is_empty());
        assert!(held(&world, plan(2, 1, one)).is_empty());
    }
}
