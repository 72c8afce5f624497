//! What keeps a node in step with the log: it registers, follows the feed, closes gaps between
//! intent and engines, says which nodes are lost and lets those go whose clients do not come back.
//!
//! ```text
//! group.feed ─ change ─┬─ reconcile ─ orders ─ shards     (first: engines know of relayed tracks
//!                      ├─ mesh: links to the nodes          before sessions subscribe to them)
//!                      └─ hub ─ sessions
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::event::Event;
use flotilla_model::id::NodeId;
use flotilla_raft::FeedError;
use flotilla_raft::Group;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::hub::Hub;
use crate::mesh::Mesh;
use crate::session::sleep_until;
use crate::shard::{ShardEvent, Shards};
use crate::telemetry::Metrics;

pub mod addresses;
pub mod detector;
pub mod detours;
pub mod drain;
pub mod failure;
pub mod fence;
pub mod guard;
pub mod health;
pub mod judge;
pub mod lease;
pub mod orphans;
pub mod rebalance;
pub mod reconcile;
pub mod register;
pub mod takeovers;
#[cfg(test)]
mod testing;

use health::Outcomes;
use reconcile::{Reconciler, ShardOrder};
use takeovers::Takeovers;

/// How often rooms and participants are counted for the metrics.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);

/// How long a relay stays that nobody at home here wants any more: whom it was for may have moved just now,
/// and lends where it stood.
const RELAY_LINGER: Duration = Duration::from_secs(1);

/// The feed task.
pub struct Follower {
    /// This node.
    pub node: NodeId,
    /// The region's group.
    pub group: Group,
    /// Rooms' sessions.
    pub hub: Hub,
    /// Links to other nodes.
    pub mesh: Mesh,
    /// Engines.
    pub shards: Arc<Shards>,
    /// What engines report beside sessions' events.
    pub shard_events: mpsc::Receiver<ShardEvent>,
    /// Who was taken over.
    pub takeovers: Takeovers,
    /// How joins came out.
    pub outcomes: Outcomes,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Follower {
    /// Follows the log until the group stops.
    ///
    /// # Errors
    /// Always: the group stopped, or the shards are gone.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut feed = self.group.feed();
        let mut reconciler = Reconciler::new(self.node, self.shards.handles().len());
        let mut state = feed.start().clone();
        self.restart(&mut reconciler, &state).await;
        let mut count = tokio::time::interval(COUNT_INTERVAL);
        let mut ending: VecDeque<(Instant, ShardOrder)> = VecDeque::new();
        loop {
            let ends = ending.front().map(|(at, _)| *at);
            tokio::select! {
                change = feed.next() => match change {
                    Ok(change) => {
                        state = change.state.clone();
                        let before = &change.before;
                        self.takeovers.decided(before, &state, &change.events);
                        self.outcomes.note(Instant::now(), self.node, before, &change.events);
                        if change.events.iter().any(is_of_nodes) {
                            self.link(&state);
                        }
                        let mut orders = reconciler.change(&change.events, &state);
                        let at = Instant::now() + RELAY_LINGER;
                        let waiting = orders.extract_if(.., |order| Reconciler::may_wait(order, &state));
                        ending.extend(waiting.map(|order| (at, order)));
                        self.send(orders).await;
                        self.hub.pass_on(&change);
                    }
                    Err(FeedError::Lagged(lagged)) => {
                        warn!(after = lagged.after.0, "the feed had a gap; going on from the newest state");
                        self.metrics.feed_lags.inc();
                        state = feed.restart();
                        self.restart(&mut reconciler, &state).await;
                    }
                    Err(FeedError::Stopped) => {
                        let fault = self.group.status().fault;
                        anyhow::bail!("the Raft group stopped: {}", fault.unwrap_or_default());
                    }
                },
                event = self.shard_events.recv() => match event {
                    Some(ShardEvent::AudioLevels(levels)) => self.hub.speak(&levels),
                    Some(ShardEvent::RelayStarted { track, from }) => {
                        debug!(%track, peer = %from, "relay carries packets");
                    }
                    Some(ShardEvent::Restarted { shard }) => {
                        info!(shard, "telling the new engine of its relays");
                        reconciler.forget_shard(shard);
                        let orders = reconciler.everything(&state);
                        self.send(orders).await;
                    }
                    None => anyhow::bail!("the shards stopped"),
                },
                () = sleep_until(ends) => {
                    let due = ending.pop_front().map(|(_, order)| order);
                    let due = due.filter(|order| !reconciler.is_wanted_again(order, &state));
                    self.send(due.into_iter().collect()).await;
                }
                _ = count.tick() => {
                    self.count(&state);
                    self.hub.forget_old();
                }
            }
        }
    }

    /// Everything anew from a state: at the start and after a gap.
    async fn restart(&self, reconciler: &mut Reconciler, state: &Arc<State>) {
        self.link(state);
        let orders = reconciler.everything(state);
        self.send(orders).await;
        self.hub.restart(state.clone());
    }

    fn link(&self, state: &State) {
        let nodes: BTreeMap<_, _> = state
            .nodes
            .values()
            .map(|node| (node.id, node.cluster_address.clone()))
            .collect();
        self.mesh.set_nodes(&nodes);
    }

    async fn send(&self, orders: Vec<ShardOrder>) {
        for order in orders {
            debug!(shard = order.shard, command = ?order.command, "reconcile");
            if let Some(shard) = self.shards.handles().get(order.shard) {
                shard.command(order.command).await;
            }
        }
    }

    fn count(&self, state: &State) {
        let (mut rooms, mut participants) = (0, 0);
        let mut published = [0; 2];
        for room in state.rooms.values() {
            let here = room.homes.get(&self.node).copied().unwrap_or(0);
            rooms += i64::from(here > 0);
            participants += i64::from(here);
            for (publisher, track) in room.tracks() {
                if publisher.home == self.node {
                    published[track.kind as usize] += 1;
                }
            }
        }
        self.metrics.rooms.set(rooms);
        self.metrics.participants.set(participants);
        for (kind, count) in ["audio", "video"].iter().zip(published) {
            self.metrics
                .tracks_published
                .with_label_values(&[kind])
                .set(count);
        }
    }
}

fn is_of_nodes(event: &Event) -> bool {
    matches!(event, Event::NodeChanged(_) | Event::NodeRemoved(_))
}
