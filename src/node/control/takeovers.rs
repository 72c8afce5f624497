//! Who was taken over from whom, why, and how long each step took: the record of this node.
//!
//! ```text
//! failure ─ detected(node) ─┐
//! feed ─ decided(change) ───┼─ Takeovers ─ admin ListTakeovers, metrics, log lines
//! session ─ adopted, first packet ─┘
//! ```
//! Every node sees every decision in the log; detection is known to the node that proposed it,
//! adoption and the first packet to the new home.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flotilla_model::State;
use flotilla_model::cluster::{LossCause, NodeState};
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{Epoch, NodeId, ParticipantSid, RoomName, UnixMillis};
use flotilla_model::participant::Participant;
use tracing::info;

use crate::mesh::enroll::wall_clock_ms;
use crate::telemetry::Metrics;

/// Takeovers remembered. The oldest go first.
pub const TAKEOVERS_MAX: usize = 10_000;
/// Detections remembered, one per node.
const DETECTIONS_MAX: usize = 256;

/// Why a participant has another home, or a new epoch at the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cause {
    /// Its node was taken for lost.
    Lost(LossCause),
    /// Its node was removed from the cluster.
    Removed,
    /// Its node started again.
    Restarted,
    /// Its node is being drained.
    Drained,
    /// Its client resumed at another node, or an operator moved it.
    Moved,
}

impl Cause {
    /// One word for metrics, logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost(cause) => cause.name(),
            Self::Removed => "removed",
            Self::Restarted => "restarted",
            Self::Drained => "drained",
            Self::Moved => "moved",
        }
    }

    /// What the records of the old home's node say about a move.
    fn of(before: &State, after: &State, from: NodeId, to: NodeId) -> Self {
        let (Some(then), now) = (before.nodes.get(&from), after.nodes.get(&from)) else {
            return Self::Moved;
        };
        match now.map(|now| (now.state, now.boot)) {
            None => Self::Removed,
            Some((NodeState::Lost { cause }, _)) => Self::Lost(cause),
            Some((_, boot)) if from == to && boot != then.boot => Self::Restarted,
            Some((NodeState::Draining, _)) => Self::Drained,
            Some((NodeState::Serving, _)) => Self::Moved,
        }
    }
}

/// How a session went on at its new home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adoption {
    /// With the keys of the old one: the client did no handshake.
    Imported,
    /// With a new handshake.
    Fresh,
    /// On the same connections, whose address moved here: its client need not have noticed.
    Unnoticed,
    /// On the same connections, whose paths the former home lends until the client has others.
    Lent,
}

impl Adoption {
    /// One word for metrics, logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Fresh => "fresh",
            Self::Unnoticed => "unnoticed",
            Self::Lent => "lent",
        }
    }
}

/// One participant's takeover. Times are wall clock, milliseconds since the Unix epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Takeover {
    /// Rises by one from each takeover to the next on this node.
    pub number: u64,
    /// Room.
    pub room: RoomName,
    /// Participant.
    pub sid: ParticipantSid,
    /// Why.
    pub cause: Cause,
    /// Old home.
    pub from: NodeId,
    /// New home.
    pub to: NodeId,
    /// New epoch.
    pub epoch: Epoch,
    /// When the old home was heard last; only the node that detected the loss knows.
    pub heard_at: Option<UnixMillis>,
    /// When the loss was certain; only the node that detected it knows.
    pub detected_at: Option<UnixMillis>,
    /// When the log had it: applied on this node.
    pub decided_at: UnixMillis,
    /// When the session went on, and how; only the new home knows.
    pub adopted: Option<(UnixMillis, Adoption)>,
    /// When its first packet arrived after that; only the new home knows.
    pub first_packet_at: Option<UnixMillis>,
}

/// The record. Cheap to clone.
#[derive(Clone)]
pub struct Takeovers {
    node: NodeId,
    metrics: Arc<Metrics>,
    /// Written by the feed task, failure detection and sessions; read by the admin service.
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    next: u64,
    recent: VecDeque<Kept>,
    by_epoch: HashMap<(ParticipantSid, Epoch), u64>,
    detections: BTreeMap<NodeId, Detection>,
}

struct Kept {
    takeover: Takeover,
    decided: Instant,
}

#[derive(Clone, Copy)]
struct Detection {
    heard: UnixMillis,
    detected: UnixMillis,
    at: Instant,
}

impl Record {
    fn get(&mut self, sid: &ParticipantSid, epoch: Epoch) -> Option<&mut Kept> {
        let number = *self.by_epoch.get(&(sid.clone(), epoch))?;
        let first = self.recent.front()?.takeover.number;
        self.recent
            .get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    fn push(&mut self, mut takeover: Takeover, decided: Instant) {
        takeover.number = self.next;
        self.next += 1;
        if self.recent.len() >= TAKEOVERS_MAX
            && let Some(Kept { takeover, .. }) = self.recent.pop_front()
        {
            self.by_epoch.remove(&(takeover.sid, takeover.epoch));
        }
        let key = (takeover.sid.clone(), takeover.epoch);
        self.by_epoch.insert(key, takeover.number);
        self.recent.push_back(Kept { takeover, decided });
    }
}

impl Takeovers {
    /// An empty record of this node.
    #[must_use]
    pub fn new(node: NodeId, metrics: Arc<Metrics>) -> Self {
        Self {
            node,
            metrics,
            record: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node was found lost here; `heard` is when it was heard last.
    pub fn detected(&self, node: NodeId, cause: LossCause, heard: Instant) {
        let now = Instant::now();
        let silent = now.saturating_duration_since(heard);
        let wall = wall_clock_ms();
        observe(&self.metrics.takeover_detection, cause.name(), silent);
        let mut record = self.lock();
        if record.detections.len() >= DETECTIONS_MAX {
            record.detections.pop_first();
        }
        let silent = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        let detection = Detection {
            heard: UnixMillis(wall.saturating_sub(silent)),
            detected: UnixMillis(wall),
            at: now,
        };
        record.detections.insert(node, detection);
    }

    /// Notes who moved by a change; `before` is the state before it.
    pub fn decided(&self, before: &State, after: &State, events: &[Event]) {
        let moved = events.iter().filter_map(|event| match event {
            Event::Room {
                room,
                change: RoomEvent::ParticipantMoved(participant),
                ..
            } => Some((room, participant)),
            _ => None,
        });
        for (room, participant) in moved {
            self.decided_one(before, after, room, participant);
        }
    }

    fn decided_one(&self, before: &State, after: &State, room: &RoomName, moved: &Participant) {
        let earlier = before.rooms.get(room);
        let earlier = earlier.and_then(|room| room.participants.get(&moved.identity));
        let from = earlier.map_or(moved.home, |earlier| earlier.home);
        let cause = Cause::of(before, after, from, moved.home);
        let now = Instant::now();
        let mut record = self.lock();
        let detection = record.detections.get(&from).copied();
        let detection = detection.filter(|_| matches!(cause, Cause::Lost(_)));
        let label = &[cause.name()];
        self.metrics.takeovers.with_label_values(label).inc();
        if let Some(detection) = detection {
            let took = now.saturating_duration_since(detection.at);
            observe(&self.metrics.takeover_decision, cause.name(), took);
        }
        record.push(
            Takeover {
                number: 0,
                room: room.clone(),
                sid: moved.sid.clone(),
                cause,
                from,
                to: moved.home,
                epoch: moved.epoch,
                heard_at: detection.map(|detection| detection.heard),
                detected_at: detection.map(|detection| detection.detected),
                decided_at: UnixMillis(wall_clock_ms()),
                adopted: None,
                first_packet_at: None,
            },
            now,
        );
        drop(record);
        if moved.home == self.node || from == self.node {
            info!(
                room = %room,
                participant = %moved.sid,
                epoch = moved.epoch.0,
                cause = cause.name(),
                from = from.0,
                to = moved.home.0,
                "participant has a new home"
            );
        }
    }

    /// A session that was decided to be here goes on here.
    pub fn adopted(&self, sid: &ParticipantSid, epoch: Epoch, how: Adoption) {
        let mut record = self.lock();
        let Some(kept) = record.get(sid, epoch) else {
            return;
        };
        if kept.takeover.adopted.is_some() {
            return;
        }
        kept.takeover.adopted = Some((UnixMillis(wall_clock_ms()), how));
        let took = kept.decided.elapsed();
        let (room, cause) = (kept.takeover.room.clone(), kept.takeover.cause);
        drop(record);
        observe(&self.metrics.takeover_adoption, how.name(), took);
        info!(
            room = %room,
            participant = %sid,
            epoch = epoch.0,
            cause = cause.name(),
            how = how.name(),
            after_ms = took.as_millis(),
            "session adopted"
        );
    }

    /// The first packet of an adopted session arrived.
    pub fn first_packet(&self, sid: &ParticipantSid, epoch: Epoch) {
        let mut record = self.lock();
        let Some(kept) = record.get(sid, epoch) else {
            return;
        };
        if kept.takeover.first_packet_at.is_some() {
            return;
        }
        kept.takeover.first_packet_at = Some(UnixMillis(wall_clock_ms()));
        let took = kept.decided.elapsed();
        let cause = kept.takeover.cause;
        drop(record);
        observe(&self.metrics.takeover_first_packet, cause.name(), took);
        info!(
            participant = %sid,
            epoch = epoch.0,
            after_ms = took.as_millis(),
            "first packet after a takeover"
        );
    }

    /// Those with a number above `after`, oldest first.
    #[must_use]
    pub fn list(&self, after: Option<u64>) -> Vec<Takeover> {
        let record = self.lock();
        let kept = record.recent.iter().map(|kept| &kept.takeover);
        kept.filter(|takeover| after.is_none_or(|after| takeover.number > after))
            .cloned()
            .collect()
    }
}

fn observe(histogram: &prometheus::HistogramVec, label: &str, took: Duration) {
    histogram
        .with_label_values(&[label])
        .observe(took.as_secs_f64() * 1000.0);
}

#[cfg(test)]
mod tests {
    use flotilla_model::command::Command;

    use super::super::testing::World;
    use super::*;

    fn takeovers() -> Takeovers {
        Takeovers::new(NodeId(1), Metrics::new(NodeId(1)).expect("no clash"))
    }

    fn takeover(sid: &str, epoch: u64) -> Takeover {
        Takeover {
            number: 0,
            room: "r".into(),
            sid: sid.into(),
            cause: Cause::Moved,
            from: NodeId(1),
            to: NodeId(2),
            epoch: Epoch(epoch),
            heard_at: None,
            detected_at: None,
            decided_at: UnixMillis(1),
            adopted: None,
            first_packet_at: None,
        }
    }

    #[test]
    fn every_move_has_its_cause() {
        let takeovers = takeovers();
        let mut world = World::new();
        let decided = |world: &mut World, command: Command| {
            let before = world.state.clone();
            let events = world.apply(command);
            takeovers.decided(&before, &world.state, &events);
            let last = takeovers.list(None).pop().expect("somebody moved");
            (last.cause, last.from.0, last.to.0)
        };
        let node = |world: &World, id| {
            let node = world.state.nodes.get(&NodeId(id)).expect("exists");
            flotilla_model::cluster::Node::clone(node)
        };
        let lost = |boot, cause| Command::NodeLost {
            node: NodeId(1),
            boot,
            cause,
        };
        let boot = node(&world, 1).boot;
        takeovers.detected(NodeId(1), LossCause::Unreachable, Instant::now());
        let found = decided(&mut world, lost(boot, LossCause::Unreachable));
        assert_eq!(found, (Cause::Lost(LossCause::Unreachable), 1, 2));
        let last = takeovers.list(None).pop().expect("noted");
        assert!(last.heard_at <= last.detected_at && last.detected_at.is_some());

        let mut again = node(&world, 2);
        again.boot.0 += 1;
        let found = decided(&mut world, Command::PutNode(again));
        assert_eq!(found, (Cause::Restarted, 2, 2));

        let mut back = node(&world, 1);
        back.state = NodeState::Serving;
        world.apply(Command::PutNode(back));
        world.apply(Command::SetNodeState {
            node: NodeId(2),
            state: NodeState::Draining,
        });
        let before = world.state.clone();
        let events = world.rehome(1);
        takeovers.decided(&before, &world.state, &events);
        let last = takeovers.list(None).pop().expect("noted");
        assert_eq!((last.cause, last.detected_at), (Cause::Drained, None));
        world.apply(Command::SetNodeState {
            node: NodeId(2),
            state: NodeState::Serving,
        });
        let found = decided(&mut world, Command::RemoveNode { node: NodeId(1) });
        assert_eq!(found, (Cause::Removed, 1, 2));
        assert_eq!(takeovers.list(None).len(), 4);
        let text = takeovers.metrics.render();
        assert!(text.contains("flotilla_takeover_decision_ms_count{cause=\"unreachable\""));
    }

    #[test]
    fn adoption_is_noted_once_and_for_its_epoch() {
        let takeovers = takeovers();
        takeovers.lock().push(takeover("PA_a", 3), Instant::now());
        takeovers.lock().push(takeover("PA_a", 4), Instant::now());
        takeovers.adopted(&"PA_a".into(), Epoch(5), Adoption::Fresh);
        takeovers.adopted(&"PA_a".into(), Epoch(4), Adoption::Imported);
        takeovers.adopted(&"PA_a".into(), Epoch(4), Adoption::Fresh);
        takeovers.first_packet(&"PA_a".into(), Epoch(4));
        let list = takeovers.list(None);
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].adopted, list[0].first_packet_at), (None, None));
        assert!(matches!(list[1].adopted, Some((_, Adoption::Imported))));
        assert!(list[1].first_packet_at.is_some());
        let text = takeovers.metrics.render();
        let count = "flotilla_takeover_adoption_ms_count{how=\"imported\"";
        assert!(text.contains(count), "{text}");
    }

    #[test]
    fn the_record_is_bounded_and_numbers_go_on() {
        let takeovers = takeovers();
        let last = TAKEOVERS_MAX as u64 + 4;
        for epoch in 0..=last {
            takeovers
                .lock()
                .push(takeover("PA_a", epoch), Instant::now());
        }
        let list = takeovers.list(None);
        assert_eq!(list.len(), TAKEOVERS_MAX);
        assert_eq!((list[0].number, list[0].epoch), (5, Epoch(5)));
        assert_eq!(takeovers.list(Some(last - 1)).len(), 1);
        assert_eq!(takeovers.lock().by_epoch.len(), TAKEOVERS_MAX);
        takeovers.adopted(&"PA_a".into(), Epoch(4), Adoption::Fresh);
        takeovers.adopted(&"PA_a".into(), Epoch(last), Adoption::Fresh);
        let adopted = takeovers.list(None);
        let adopted = adopted.iter().filter(|takeover| takeover.adopted.is_some());
        assert_eq!(adopted.count(), 1);
    }
}
