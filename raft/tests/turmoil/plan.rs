//! What goes wrong and when: drawn from the seed before anything runs.
//!
//! Times are of the simulation. A plan breaks things in its first part and heals everything before the
//! last; nothing says that a majority has to be left in between.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Whom a fault is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// This node.
    Node(u64),
    /// Whoever leads at that moment.
    Leader,
}

/// What goes wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The process ends without a word; what it wrote is still there.
    Kill(Target),
    /// The power of the machine goes.
    PowerCut(Target),
    /// The power goes inside the store's work, so many disk operations from now.
    PowerCutInside(Target, u64),
    /// The power of all machines goes at once.
    PowerCutAll,
    /// A sync reports an error, so many syncs from now.
    BadSector(Target, u64),
    /// The disk takes between these times for a commit.
    SlowDisk(Target, Range<u64>),
    /// Nobody hears anybody on the other side.
    Halves(Vec<u64>),
    /// A node reaches nobody and nobody reaches it.
    Isolate(Target),
    /// A node hears the others, who do not hear it.
    Mute(Target),
    /// One link carries nothing.
    Link(u64, u64),
    /// What is sent on one link arrives when it is released.
    Hold(u64, u64),
    /// Messages get lost at this rate, in thousandths. TCP is not repeated here, so a connection
    /// that has lost one is of no use any more.
    Loss(u32),
    /// Messages take up to so many milliseconds.
    Latency(u64),
    /// The wall clock jumps, milliseconds.
    Clock(Target, i64),
    /// A leader is told to hand over.
    Transfer,
    /// A node stands for election at once, as if it knew the leader to be gone.
    Campaign(u64),
    /// A member is removed for good, and a spare node takes its place.
    Replace,
    /// A node builds a snapshot now.
    Snapshot(u64),
}

/// A fault with its time, and how long it lasts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    pub(crate) fault: Fault,
}

/// What a run is.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// How long it runs.
    pub(crate) length: Duration,
    /// When everything heals.
    pub(crate) heal: Duration,
    /// Nodes that begin; one more is spare.
    pub(crate) nodes: u64,
    pub(crate) voters: usize,
    pub(crate) snapshot_entries: u64,
    pub(crate) log_kept: u64,
    /// Latency of the network, milliseconds.
    pub(crate) latency: Range<u64>,
    pub(crate) registers: u64,
    /// Between a writer's writes, milliseconds.
    pub(crate) pause: Range<u64>,
    pub(crate) events: Vec<Event>,
}

/// How far a wall clock jumps ahead at most. Requests are remembered for five minutes of the log's time:
/// a write that is repeated across a longer jump may be applied twice.
const CLOCK_AHEAD_MS: i64 = 200_000;

/// Before this nothing goes wrong: the cluster is being formed.
pub(crate) const CALM: Duration = Duration::from_secs(4);
/// Left for the cluster to heal, writers to end, and the last look; a third of a short run.
const LAST: Duration = Duration::from_secs(14);

impl Plan {
    /// The plan of a seed. Short runs have few faults.
    pub(crate) fn new(seed: u64, length: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = [3, 3, 4, 5, 5][rng.random_range(0..5)];
        let most = [3, 6, 12][rng.random_range(0..3)];
        let heal = (length - LAST.min(length / 3)).max(CALM);
        // Every run leaves out some kinds, so that those it has get a deeper look.
        let kinds: Vec<u32> = (0..18).filter(|_| rng.random_bool(0.6)).collect();
        let gap = [400..1200, 800..3000, 2000..6000][rng.random_range(0..3)].clone();
        let mut events = Vec::new();
        let mut at = CALM;
        while !kinds.is_empty() {
            at += Duration::from_millis(rng.random_range(gap.clone()));
            if at >= heal {
                break;
            }
            let kind = kinds[rng.random_range(0..kinds.len())];
            let lasts = match rng.random_range(0..4) {
                0 => rng.random_range(50..400),
                1 | 2 => rng.random_range(400..3000),
                _ => rng.random_range(3000..9000),
            };
            events.push(Event {
                at,
                lasts: Duration::from_millis(lasts),
                fault: fault(&mut rng, kind, nodes),
            });
        }
        Self {
            seed,
            length,
            heal,
            nodes,
            voters: if nodes == 5 && rng.random_bool(0.5) {
                5
            } else {
                3
            },
            snapshot_entries: rng.random_range(40..400),
            log_kept: rng.random_range(0..60),
            latency: 1..most,
            registers: rng.random_range(1..5),
            pause: [20..120, 60..400][rng.random_range(0..2)].clone(),
            events,
        }
    }
}

fn fault(rng: &mut StdRng, kind: u32, nodes: u64) -> Fault {
    let target = if rng.random_bool(0.4) {
        Target::Leader
    } else {
        Target::Node(rng.random_range(1..=nodes))
    };
    let one = rng.random_range(1..=nodes);
    let other = one % nodes + 1;
    match kind {
        0 => Fault::Kill(target),
        1 => Fault::PowerCut(target),
        2 | 3 => Fault::PowerCutInside(target, rng.random_range(0..60)),
        4 => Fault::PowerCutAll,
        5 => Fault::BadSector(target, rng.random_range(0..20)),
        6 => Fault::SlowDisk(target, 20..rng.random_range(60..900)),
        7 | 8 => {
            let side = (1..=nodes).filter(|_| rng.random_bool(0.5)).collect();
            Fault::Halves(side)
        }
        9 => Fault::Isolate(target),
        10 => Fault::Mute(target),
        11 => Fault::Link(one, other),
        12 => Fault::Hold(one, other),
        13 => Fault::Loss(rng.random_range(2..60)),
        14 => Fault::Latency(rng.random_range(20..400)),
        15 => Fault::Clock(target, rng.random_range(-3_600_000..CLOCK_AHEAD_MS)),
        16 => match rng.random_range(0..3) {
            0 => Fault::Transfer,
            1 => Fault::Campaign(one),
            _ => Fault::Replace,
        },
        _ => Fault::Snapshot(one),
    }
}
