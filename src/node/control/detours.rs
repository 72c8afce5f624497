//! Finds ways round links between nodes that are cut.
//!
//! ```text
//! signs ─ look ─ nobody answers directly ─ others asked ─ one hears it ─┬─ shards: relay packets
//!                                                                      └─ mesh: connections
//! ```
//! Each end of a link decides for what it sends. Packets take the way round as soon as a few signs of
//! life are missing, which costs nothing if they were only late; connections are moved once the node
//! counts as unreachable, since they have to be opened anew. Both go back when the direct way has been
//! well for a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_media::command::Command;
use flotilla_model::id::{BootId, NodeId};
use flotilla_raft::Group;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::info;

use crate::mesh::{Finding, Mesh, VERSION_OF_DETOURS};
use crate::shard::Shards;
use crate::telemetry::Metrics;

/// How often the signs are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// How often the node on the way is asked whether it still hears the other one, and shards are told
/// again: one may have a new engine.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(1000);
/// How long the direct way must have been well before it is used again.
const WELL_FOR: Duration = Duration::from_millis(1000);
/// Pause before others are asked about the same node again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What is known of another node.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// How long nothing of it has come on the direct way.
    pub silence: Duration,
    /// Its process has ended.
    pub is_gone: bool,
    /// It knows how to carry what is meant for others.
    pub can_carry: bool,
    /// Time there and back.
    pub round_trip: Duration,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask these, best first, whether they hear the node.
    Ask(NodeId, Vec<NodeId>),
    /// Packets to the node go by this way.
    Packets(NodeId, Option<NodeId>),
    /// Connections to the node do.
    Connections(NodeId, Option<NodeId>),
}

#[derive(Debug)]
struct Way {
    via: Option<NodeId>,
    /// Connections go that way as well.
    is_whole: bool,
    /// Others are being asked.
    is_asked: bool,
    /// When they may be asked again.
    ask_at: Instant,
    /// Since when the direct way is well.
    well_since: Option<Instant>,
}

/// The decisions, without clock or network.
#[derive(Debug)]
pub struct Detours {
    bound: Duration,
    ways: BTreeMap<NodeId, Way>,
}

impl Detours {
    /// Everything goes directly; a node silent for `bound` is unreachable.
    #[must_use]
    pub fn new(bound: Duration) -> Self {
        Self {
            bound,
            ways: BTreeMap::new(),
        }
    }

    /// Silence that makes packets look for another way: two or three signs of life are missing.
    fn suspicious(&self) -> Duration {
        self.bound * 3 / 5
    }

    /// The ways that are in use.
    pub fn ways(&self) -> impl Iterator<Item = (NodeId, NodeId)> {
        let ways = self.ways.iter();
        ways.filter_map(|(node, way)| Some((*node, way.via?)))
    }

    /// Looks at everybody.
    pub fn look(&mut self, now: Instant, peers: &BTreeMap<NodeId, Peer>) -> Vec<Step> {
        let mut steps = Vec::new();
        self.ways.retain(|node, way| {
            let is_known = peers.contains_key(node);
            if !is_known && way.via.is_some() {
                steps.push(Step::Packets(*node, None));
            }
            is_known
        });
        let suspicious = self.suspicious();
        for (node, peer) in peers {
            if peer.silence < suspicious && !self.ways.contains_key(node) {
                continue;
            }
            let way = self.ways.entry(*node).or_insert(Way {
                via: None,
                is_whole: false,
                is_asked: false,
                ask_at: now,
                well_since: None,
            });
            if peer.silence < self.bound / 2 {
                let since = *way.well_since.get_or_insert(now);
                if way.via.is_none() && !way.is_asked {
                    self.ways.remove(node);
                } else if now.saturating_duration_since(since) >= WELL_FOR && !way.is_asked {
                    steps.push(Step::Packets(*node, None));
                    if way.is_whole {
                        steps.push(Step::Connections(*node, None));
                    }
                    self.ways.remove(node);
                }
                continue;
            }
            way.well_since = None;
            if let Some(via) = way.via
                && !way.is_whole
                && peer.silence >= self.bound
            {
                way.is_whole = true;
                steps.push(Step::Connections(*node, Some(via)));
            }
            let others = carriers(peers, *node, suspicious);
            let has_lost_carrier = way.via.is_some_and(|via| !others.contains(&via));
            if way.is_asked || (now < way.ask_at && !has_lost_carrier) {
                continue;
            }
            if !peer.is_gone && !others.is_empty() {
                way.is_asked = true;
                steps.push(Step::Ask(*node, others));
            } else {
                steps.extend(way.leave(*node));
            }
        }
        steps
    }

    /// Who of those asked hears the node.
    pub fn heard(&mut self, now: Instant, node: NodeId, hearing: &[NodeId]) -> Vec<Step> {
        let Some(way) = self.ways.get_mut(&node) else {
            return Vec::new();
        };
        way.is_asked = false;
        way.ask_at = now + ASK_AGAIN;
        let Some(best) = hearing.first() else {
            return way.leave(node);
        };
        way.ask_at = now + CONFIRM_INTERVAL;
        if way.via.is_some_and(|via| hearing.contains(&via)) || way.well_since.is_some() {
            return Vec::new();
        }
        way.via = Some(*best);
        let mut steps = vec![Step::Packets(node, Some(*best))];
        if way.is_whole {
            steps.push(Step::Connections(node, Some(*best)));
        }
        steps
    }
}

impl Way {
    /// There is no way any more.
    fn leave(&mut self, node: NodeId) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.via.take().is_some() {
            steps.push(Step::Packets(node, None));
        }
        if std::mem::take(&mut self.is_whole) {
            steps.push(Step::Connections(node, None));
        }
        steps
    }
}

/// Nodes that may carry what is meant for `node`, nearest first.
fn carriers(peers: &BTreeMap<NodeId, Peer>, node: NodeId, suspicious: Duration) -> Vec<NodeId> {
    let mut carriers: Vec<_> = peers
        .iter()
        .filter(|(id, peer)| **id != node && peer.can_carry && peer.silence < suspicious)
        .map(|(id, peer)| (peer.round_trip, *id))
        .collect();
    carriers.sort_unstable();
    carriers.into_iter().map(|(_, id)| id).collect()
}

/// Keeps ways round bad links until the task is dropped. `bound`: silence that makes a node
/// unreachable.
pub async fn watch(
    group: Group,
    mesh: Mesh,
    shards: Arc<Shards>,
    metrics: Arc<Metrics>,
    bound: Duration,
) {
    let mut detours = Detours::new(bound);
    let mut questions = JoinSet::new();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tell = tokio::time::interval(CONFIRM_INTERVAL);
    tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let steps = tokio::select! {
            _ = look.tick() => detours.look(Instant::now(), &peers(&group, &mesh)),
            Some(answer) = questions.join_next() => match answer {
                Ok(answer) => {
                    let (node, hearing): (NodeId, Vec<NodeId>) = answer;
                    detours.heard(Instant::now(), node, &hearing)
                }
                Err(_) => continue,
            },
            _ = tell.tick() => {
                let ways = detours.ways();
                ways.map(|(node, via)| Step::Packets(node, Some(via))).collect()
            }
        };
        for step in steps {
            match step {
                Step::Ask(node, others) => {
                    let Some(boot) = group.state().nodes.get(&node).map(|node| node.boot) else {
                        detours.heard(Instant::now(), node, &[]);
                        continue;
                    };
                    questions.spawn(ask(mesh.clone(), node, boot, others, bound / 2));
                }
                Step::Packets(node, via) => {
                    for shard in shards.handles() {
                        shard.command(Command::SetDetour { node, via }).await;
                    }
                }
                Step::Connections(node, via) => {
                    match via {
                        Some(via) => info!(peer = %node, %via, "the link is cut; going round it"),
                        None => info!(peer = %node, "the direct link is used again"),
                    }
                    mesh.set_detour(node, via);
                }
            }
        }
        metrics
            .links_round
            .set(i64::try_from(detours.ways().count()).unwrap_or(i64::MAX));
    }
}

fn peers(group: &Group, mesh: &Mesh) -> BTreeMap<NodeId, Peer> {
    let (state, health, now) = (group.state(), mesh.health(), Instant::now());
    let signs = mesh.signs().book();
    signs
        .all()
        .iter()
        .filter_map(|(node, sign)| {
            let record = state.nodes.get(node)?;
            let peer = Peer {
                silence: signs.silence(sign, now),
                is_gone: sign.is_gone(now),
                can_carry: record.formats().mesh >= VERSION_OF_DETOURS,
                round_trip: health
                    .get(node)
                    .and_then(|health| health.round_trip)
                    .unwrap_or(Duration::MAX),
            };
            Some((*node, peer))
        })
        .collect()
}

/// Who of `others` hears this start of a node, in their order.
async fn ask(
    mesh: Mesh,
    node: NodeId,
    boot: BootId,
    others: Vec<NodeId>,
    within: Duration,
) -> (NodeId, Vec<NodeId>) {
    let asked = others.into_iter().map(|other| {
        let mesh = mesh.clone();
        async move {
            let finding = mesh.inquire(other, node, boot, within).await;
            (finding == Some(Finding::Heard)).then_some(other)
        }
    });
    let hearing = futures_util::future::join_all(asked).await;
    (node, hearing.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
