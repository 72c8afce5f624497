//! The network: delays, losses and cuts between nodes and clients.
//!
//! Datagrams may be lost, doubled and overtake each other. Streams are ordered; what a cut or a loss
//! holds up comes later, in order, as TCP and SCTP do it. Cuts are directed, but what is carried by TCP or SCTP goes
//! on without answers only for as long as a window lasts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::message::Message;
use crate::rng::Rng;
use crate::time::{Time, ms};

/// One end of a way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum End {
    /// A node.
    Node(u64),
    /// A client.
    Client(usize),
}

/// An ordered way between two ends.
pub type Lane = (End, End, u64);

/// What the network does to what is sent.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Least and most time on the way, microseconds.
    pub delay: (u64, u64),
    /// Lost, of a thousand.
    pub loss: u64,
    /// Doubled, of a thousand.
    pub double: u64,
    /// Datagrams that wander about for up to [`LATE_MAX`] before they arrive, of a thousand.
    pub late: u64,
}

/// Longest time that a datagram wanders about.
const LATE_MAX: u64 = ms(3_000);
/// How long TCP sends on while the way back is cut: the first window is ten segments, the first timeout 200 ms
/// (RFC 6928, RFC 6298); small messages leave as a segment each.
const WINDOW: u64 = ms(500);

/// As it is without faults.
pub const CLEAR: Weather = Weather {
    delay: (300, 4_000),
    loss: 1,
    double: 1,
    late: 0,
};

#[derive(Debug, Default)]
struct Stream {
    /// When the last one arrives.
    last: Time,
    held: VecDeque<Message>,
    flush_due: bool,
}

/// Cuts of a way.
#[derive(Clone, Copy, Debug)]
struct Cut {
    count: u32,
    since: Time,
}

/// The network.
#[derive(Debug)]
pub struct Net {
    /// At present.
    pub weather: Weather,
    cut: BTreeMap<(End, End), Cut>,
    streams: BTreeMap<Lane, Stream>,
    /// Those that were closed with something held: nothing comes out of them any more.
    broken: BTreeSet<Lane>,
    /// When each last lost its power.
    dark: BTreeMap<End, Time>,
    /// When the last thing arrives that is carried by other nodes.
    carried: BTreeMap<(End, End), Time>,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            weather: CLEAR,
            cut: BTreeMap::new(),
            streams: BTreeMap::new(),
            broken: BTreeSet::new(),
            dark: BTreeMap::new(),
            carried: BTreeMap::new(),
        }
    }
}

impl Net {
    /// Cuts a way; cuts of several faults add up.
    pub fn cut(&mut self, now: Time, from: End, to: End) {
        let fresh = Cut {
            count: 0,
            since: now,
        };
        self.cut.entry((from, to)).or_insert(fresh).count += 1;
    }

    /// Takes one cut back.
    pub fn mend(&mut self, from: End, to: End) {
        if let Some(cut) = self.cut.get_mut(&(from, to)) {
            cut.count -= 1;
            if cut.count == 0 {
                self.cut.remove(&(from, to));
            }
        }
    }

    /// Takes every cut back.
    pub fn mend_all(&mut self) {
        self.cut.clear();
    }

    /// Whether nothing passes.
    #[must_use]
    pub fn is_cut(&self, from: End, to: End) -> bool {
        !self.cut.is_empty() && self.cut.contains_key(&(from, to))
    }

    /// Whether nothing passes of what has to be acknowledged.
    #[must_use]
    pub fn is_stalled(&self, now: Time, from: End, to: End) -> bool {
        let unanswered = |cut: &Cut| now - cut.since >= WINDOW;
        self.is_cut(from, to) || self.cut.get(&(to, from)).is_some_and(unanswered)
    }

    /// Whether nothing is cut.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.cut.is_empty()
    }

    /// Whether no way between two nodes is cut.
    #[must_use]
    pub fn joins_nodes(&self) -> bool {
        let between = |(from, to): &(End, End)| matches!((from, to), (End::Node(_), End::Node(_)));
        !self.cut.keys().any(between)
    }

    /// When datagrams sent now arrive; none if they are lost.
    pub fn datagram(&mut self, now: Time, rng: &mut Rng, from: End, to: End) -> Vec<Time> {
        if self.is_cut(from, to) || rng.per_mille(self.weather.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(rng.per_mille(self.weather.double));
        let (low, high) = self.weather.delay;
        let late = self.weather.late;
        (0..copies)
            .map(|_| {
                let is_late = late > 0 && rng.per_mille(late);
                let wanders = if is_late { rng.range(0, LATE_MAX) } else { 0 };
                now + rng.range(low, high) + wanders
            })
            .collect()
    }

    /// When a message on a stream arrives, after all those before it; if the way is cut by then, [`Self::hold`]
    /// keeps it.
    pub fn stream(&mut self, now: Time, rng: &mut Rng, lane: Lane) -> Time {
        let (low, high) = self.weather.delay;
        let mut due = now + rng.range(low, high);
        if rng.per_mille(self.weather.loss) {
            due = due + ms(rng.range(50, 250));
        }
        let last = &mut self.streams.entry(lane).or_default().last;
        *last = due.max(*last);
        *last
    }

    /// When something arrives that another node carries: twice as long, and in order.
    pub fn carried(&mut self, now: Time, rng: &mut Rng, from: End, to: End) -> Time {
        let (low, high) = self.weather.delay;
        let mut due = now + rng.range(low, high) + rng.range(low, high);
        if rng.per_mille(self.weather.loss) {
            due = due + ms(rng.range(50, 250));
        }
        let last = self.carried.entry((from, to)).or_default();
        *last = due.max(*last);
        *last
    }

    /// A message arrives at a way that has been cut meanwhile, or behind held ones: it waits, too.
    pub fn hold(&mut self, now: Time, lane: Lane, message: Message) -> Option<Message> {
        if self.broken.contains(&lane) {
            return None;
        }
        let is_stalled = self.is_stalled(now, lane.0, lane.1);
        let stream = self.streams.entry(lane).or_default();
        if is_stalled || !stream.held.is_empty() {
            stream.held.push_back(message);
            None
        } else {
            Some(message)
        }
    }

    /// One end has no power any more, and does not send again what was lost or held up.
    pub fn darken(&mut self, now: Time, end: End) {
        self.dark.insert(end, now);
        for ((from, ..), stream) in &mut self.streams {
            if *from == end {
                stream.held.clear();
            }
        }
    }

    /// Whether something on a stream that arrives now would have had to be sent again by somebody who had no power
    /// by then.
    #[must_use]
    pub fn is_lost(&self, now: Time, from: End, sent: Time) -> bool {
        let gone = self.dark.get(&from);
        gone.is_some_and(|gone| sent <= *gone && *gone + self.weather.delay.1 < now)
    }

    /// Streams whose way is free again and that hold something; each is to be flushed once.
    pub fn freed(&mut self, now: Time) -> Vec<Lane> {
        let waits = |(lane, stream): (&Lane, &Stream)| {
            let is_due = !stream.held.is_empty() && !stream.flush_due;
            (is_due && !self.is_stalled(now, lane.0, lane.1)).then_some(*lane)
        };
        let freed: Vec<Lane> = self.streams.iter().filter_map(waits).collect();
        for lane in &freed {
            if let Some(stream) = self.streams.get_mut(lane) {
                stream.flush_due = true;
            }
        }
        freed
    }

    /// What a stream held, in order; empty if the way is cut again.
    pub fn flush(&mut self, now: Time, lane: Lane) -> Vec<Message> {
        let is_stalled = self.is_stalled(now, lane.0, lane.1);
        let Some(stream) = self.streams.get_mut(&lane) else {
            return Vec::new();
        };
        stream.flush_due = false;
        if is_stalled {
            return Vec::new();
        }
        stream.held.drain(..).collect()
    }

    /// Both ends have done with a stream. What is on its way still arrives, unless it would come without what was held
    /// before it.
    pub fn close(&mut self, lane: Lane) {
        let closed = self.streams.remove(&lane);
        if closed.is_some_and(|stream| !stream.held.is_empty()) {
            self.broken.insert(lane);
        }
    }
}
