//! What a fault did, from what the clients saw: gaps in every stream, events that should not be,
//! messages lost or twice. Pure: a window of observations in, figures out.

use std::collections::BTreeMap;

use serde::Serialize;

use super::agents::{Event, Kind, Media, Seen};
use crate::clock::Ms;
use crate::front::{Ask, Knock};

/// A client in a window: who it is, which node served it when the fault came, what it saw.
pub(crate) struct Client {
    pub(crate) index: usize,
    pub(crate) identity: String,
    pub(crate) kind: Kind,
    pub(crate) home: u64,
    /// Whom it subscribes to; none: everybody.
    pub(crate) hears: Option<Vec<String>>,
    pub(crate) seen: Seen,
}

/// Which nodes a fault touches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Touched {
    /// Nobody: the quiet phase.
    None,
    /// A node with its clients.
    Node(u64),
    /// What passes between two nodes.
    Link(u64, u64),
    /// Every node with its clients.
    All,
}

/// How a stream stands to the fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Path {
    /// From a client of the hit node to one elsewhere.
    HitToOthers,
    /// From elsewhere to a client of the hit node.
    OthersToHit,
    /// Between two clients of the hit node.
    WithinHit,
    /// Across the cut link.
    AcrossLink,
    /// Between clients that the fault should not reach.
    Untouched,
}

impl Path {
    fn of(touched: Touched, from: u64, to: u64) -> Self {
        match touched {
            Touched::Node(hit) if from == hit && to == hit => Self::WithinHit,
            Touched::Node(hit) if from == hit => Self::HitToOthers,
            Touched::Node(hit) if to == hit => Self::OthersToHit,
            Touched::All => Self::WithinHit,
            Touched::Link(a, b) if (from, to) == (a, b) || (from, to) == (b, a) => Self::AcrossLink,
            _ => Self::Untouched,
        }
    }
}

/// The longest silence of one stream at one receiver.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Gap {
    pub(crate) media: Media,
    pub(crate) path: Path,
    pub(crate) publisher: Kind,
    pub(crate) receiver: Kind,
    pub(crate) from: String,
    pub(crate) to: String,
    /// From the fault to the last mark before it; negative if the silence began before the fault.
    pub(crate) begins_ms: Ms,
    /// Beyond the stream's own cadence.
    pub(crate) ms: Ms,
    /// The stream had not come back when the window ended.
    pub(crate) open: bool,
}

/// Counts of what should be zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Counts {
    pub(crate) participants_lost: usize,
    pub(crate) tracks_lost: usize,
    pub(crate) streams_held_up: usize,
    pub(crate) joined_events: usize,
    pub(crate) left_events: usize,
    pub(crate) unpublished_events: usize,
    pub(crate) disconnected_events: usize,
    pub(crate) full_reconnects: usize,
    pub(crate) messages_duplicated: usize,
    pub(crate) messages_lost: usize,
    pub(crate) messages_refused: usize,
}

impl Counts {
    pub(crate) fn named(&self) -> [(&'static str, usize); 11] {
        [
            ("participants lost", self.participants_lost),
            ("tracks lost", self.tracks_lost),
            ("streams held up", self.streams_held_up),
            ("joined events", self.joined_events),
            ("left events", self.left_events),
            ("unpublished events", self.unpublished_events),
            ("disconnected events", self.disconnected_events),
            ("full reconnects", self.full_reconnects),
            ("messages duplicated", self.messages_duplicated),
            ("messages lost", self.messages_lost),
            ("messages refused", self.messages_refused),
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.participants_lost += other.participants_lost;
        self.tracks_lost += other.tracks_lost;
        self.streams_held_up += other.streams_held_up;
        self.joined_events += other.joined_events;
        self.left_events += other.left_events;
        self.unpublished_events += other.unpublished_events;
        self.disconnected_events += other.disconnected_events;
        self.full_reconnects += other.full_reconnects;
        self.messages_duplicated += other.messages_duplicated;
        self.messages_lost += other.messages_lost;
        self.messages_refused += other.messages_refused;
    }

    /// Names of the counts that break the promise. A message that the SDK refused to its sender is
    /// not lost: nobody was told that it was sent.
    pub(crate) fn violated(&self) -> Vec<String> {
        self.named()
            .iter()
            .filter(|(name, count)| *count > 0 && *name != "messages refused")
            .map(|(name, count)| format!("{count} {name}"))
            .collect()
    }
}

/// What is known of one fault beside the clients' views.
pub(crate) struct Window {
    pub(crate) touched: Touched,
    /// When the fault came.
    pub(crate) fault: Ms,
    /// When observation ended.
    pub(crate) end: Ms,
    /// Connections that clients opened.
    pub(crate) knocks: Vec<Knock>,
    /// Identities that the cluster lists at the end.
    pub(crate) listed: Vec<String>,
}

/// A client's way back.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Return {
    pub(crate) kind: Kind,
    pub(crate) identity: String,
    /// From the fault to its first new signal connection, and the node that got it.
    pub(crate) knocked_ms: Option<Ms>,
    pub(crate) knocked_at: Option<u64>,
    /// How often it asked for its session back, and for a new one.
    pub(crate) resumes: usize,
    pub(crate) joins: usize,
    /// From the fault to the SDK's `reconnected`; none if it never lost its connection or never
    /// came back.
    pub(crate) reconnected_ms: Option<Ms>,
}

/// The judgement of one window.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Judgement {
    pub(crate) gaps: Vec<Gap>,
    pub(crate) returns: Vec<Return>,
    pub(crate) counts: Counts,
    /// What the clients' SDKs told, in milliseconds after the fault.
    pub(crate) events: Vec<(String, Event)>,
    pub(crate) lost: Vec<Lost>,
}

/// A message that its SDK accepted and that did not arrive.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Lost {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) number: u64,
    /// When it was sent, after the fault.
    pub(crate) sent_ms: Ms,
}

/// A stream that was silent for so long at the end has not come back.
const OPEN_AFTER: Ms = 2000.0;
/// A stream across a cut link that was silent for so long waited for the link to heal, 4 s later.
const HELD_UP: Ms = 3000.0;
/// A message sent this shortly before the end may still be on its way.
const MESSAGE_SETTLES: Ms = 1500.0;

/// Judges one window.
pub(crate) fn judge(window: &Window, clients: &[Client]) -> Judgement {
    let mut gaps = Vec::new();
    let mut lost = Vec::new();
    let mut counts = Counts::default();
    for to in clients {
        for from in clients.iter().filter(|from| from.identity != to.identity) {
            let subscribed = to.hears.as_ref();
            let is_heard = subscribed.is_none_or(|hears| hears.contains(&from.identity));
            for media in Media::ALL.into_iter().filter(|_| is_heard) {
                let gap = gap_of(window, from, to, media);
                counts.tracks_lost += usize::from(gap.open);
                let is_held_up = gap.path == Path::AcrossLink && gap.ms >= HELD_UP;
                counts.streams_held_up += usize::from(is_held_up);
                gaps.push(gap);
            }
            count_messages(window, from, to, &mut counts, &mut lost);
        }
        count_events(window, to, &mut counts);
        let listed = window.listed.contains(&to.identity);
        counts.participants_lost += usize::from(!listed);
    }
    counts.full_reconnects = window
        .knocks
        .iter()
        .filter(|knock| knock.ask == Ask::Join && knock.at >= window.fault)
        .count();
    Judgement {
        gaps,
        returns: returns(window, clients),
        counts,
        events: events(window, clients),
        lost,
    }
}

/// Everything that was told after the fault.
fn events(window: &Window, clients: &[Client]) -> Vec<(String, Event)> {
    let told = |client: &Client| {
        let events = client.seen.events.clone();
        let identity = client.identity.clone();
        events
            .into_iter()
            .filter(|event| event.at >= window.fault && event.at <= window.end)
            .map(move |event| {
                let at = event.at - window.fault;
                (identity.clone(), Event { at, ..event })
            })
    };
    clients.iter().flat_map(told).collect()
}

fn gap_of(window: &Window, from: &Client, to: &Client, media: Media) -> Gap {
    let none = Vec::new();
    let stamps = to
        .seen
        .stamps
        .get(&(media, from.identity.clone()))
        .unwrap_or(&none);
    let Silence { begins, ms, open } = longest_silence(stamps, window.fault, window.end);
    Gap {
        media,
        path: Path::of(window.touched, from.home, to.home),
        publisher: from.kind,
        receiver: to.kind,
        from: from.identity.clone(),
        to: to.identity.clone(),
        begins_ms: begins - window.fault,
        ms: (ms - media.cadence_ms()).max(0.0),
        open,
    }
}

/// Time without a mark.
struct Silence {
    /// The last mark before it.
    begins: Ms,
    ms: Ms,
    /// It had not ended when the window did.
    open: bool,
}

/// The longest time between two marks that lies at least partly after `fault`, and whether the last
/// silence reaches the end. A stream that was never heard is silent from the fault on.
fn longest_silence(stamps: &[Ms], fault: Ms, end: Ms) -> Silence {
    let mut last = stamps
        .iter()
        .copied()
        .filter(|stamp| *stamp <= fault)
        .fold(f64::NAN, f64::max);
    if last.is_nan() {
        last = fault;
    }
    let mut longest = Silence {
        begins: last,
        ms: 0.0,
        open: false,
    };
    for stamp in stamps
        .iter()
        .filter(|stamp| **stamp > fault && **stamp <= end)
    {
        if stamp - last > longest.ms {
            longest.ms = stamp - last;
            longest.begins = last;
        }
        last = *stamp;
    }
    longest.open = end - last > OPEN_AFTER;
    if longest.open && end - last > longest.ms {
        longest.ms = end - last;
        longest.begins = last;
    }
    longest
}

fn count_events(window: &Window, client: &Client, counts: &mut Counts) {
    for event in &client.seen.events {
        if event.at < window.fault || event.at > window.end {
            continue;
        }
        match &*event.name {
            "participant_connected" => counts.joined_events += 1,
            "participant_disconnected" => counts.left_events += 1,
            "track_unpublished" => counts.unpublished_events += 1,
            "disconnected" => counts.disconnected_events += 1,
            _ => {}
        }
    }
    counts.messages_refused += client.seen.unsent.len();
}

/// Every message that its SDK accepted is to be at every other client once.
fn count_messages(
    window: &Window,
    from: &Client,
    to: &Client,
    counts: &mut Counts,
    lost: &mut Vec<Lost>,
) {
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    for message in to.seen.received.get(&from.identity).into_iter().flatten() {
        *times.entry(message.number).or_default() += 1;
    }
    for message in &from.seen.sent {
        if message.at < window.fault - MESSAGE_SETTLES || message.at > window.end - MESSAGE_SETTLES
        {
            continue;
        }
        match times.get(&message.number).copied().unwrap_or(0) {
            0 => {
                counts.messages_lost += 1;
                lost.push(Lost {
                    from: from.identity.clone(),
                    to: to.identity.clone(),
                    number: message.number,
                    sent_ms: message.at - window.fault,
                });
            }
            1 => {}
            more => counts.messages_duplicated += more - 1,
        }
    }
}

/// The hit node's clients, and whoever else had to reconnect.
fn returns(window: &Window, clients: &[Client]) -> Vec<Return> {
    clients
        .iter()
        .filter_map(|client| {
            let after = |name: &str| {
                client
                    .seen
                    .events
                    .iter()
                    .filter(|event| event.at >= window.fault && event.at <= window.end)
                    .find(|event| event.name == name)
                    .map(|event| event.at - window.fault)
            };
            let hit = matches!(window.touched, Touched::Node(node) if node == client.home);
            let disturbed =
                after("reconnecting").is_some() || after("signal_reconnecting").is_some();
            let knocks = |ask: Ask| {
                window
                    .knocks
                    .iter()
                    .filter(move |knock| knock.client == client.index && knock.ask == ask)
                    .filter(|knock| knock.at >= window.fault)
            };
            let first = knocks(Ask::Resume)
                .chain(knocks(Ask::Join))
                .min_by(|one, other| one.at.total_cmp(&other.at));
            (hit || disturbed || first.is_some()).then(|| Return {
                kind: client.kind,
                identity: client.identity.clone(),
                knocked_ms: first.map(|knock| knock.at - window.fault),
                knocked_at: first.map(|knock| knock.node),
                resumes: knocks(Ask::Resume).count(),
                joins: knocks(Ask::Join).count(),
                reconnected_ms: after("reconnected"),
            })
        })
        .collect()
}

/// Order statistics of some milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) n: usize,
    pub(crate) p50: Ms,
    pub(crate) p99: Ms,
    pub(crate) max: Ms,
}

impl Spread {
    /// Nearest-rank percentiles; none of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = Ms>) -> Option<Self> {
        let mut sorted: Vec<Ms> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let rank = |percent: usize| (n * percent).div_ceil(100).max(1) - 1;
        Some(Self {
            n,
            p50: *sorted.get(rank(50))?,
            p99: *sorted.get(rank(99))?,
            max: *sorted.last()?,
        })
    }
}

#[cfg(test)]
mod tests;
