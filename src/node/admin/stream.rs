//! Watch streams: the state, then every change of it in order and without a gap.
//!
//! One task per stream reads the group's feed and fills a short queue. A watcher that reads too
//! slowly is held up by the queue until the feed no longer keeps what it needs; then its stream
//! ends with OUT_OF_RANGE and it begins again. When a room is quiet, `Progress` moves the revision
//! at which a broken stream resumes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use flotilla_model::State;
use flotilla_model::event::Event;
use flotilla_model::id::{NodeId, Revision, RoomName};
use flotilla_raft::{Applied, Change, Feed, Group};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::page::BYTES_MAX;
use super::proto::watch_response::Message;
use super::service::AdminService;
use super::{convert, error, proto};

/// Streams at once on one node; more are refused.
const STREAMS_MAX: usize = 256;
/// Messages waiting for a watcher; when full, the stream's task waits.
const QUEUE_MAX: usize = 64;
/// How often a quiet stream tells how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How long a watcher may take to make room for the last word.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// Looks for a state and the feed behind it.
const BEGIN_TRIES: usize = 5;

/// What a watcher reads.
pub(super) type Changes = ReceiverStream<Result<proto::WatchResponse, Status>>;

/// How many streams there may be, and when they end.
pub(super) struct Streams {
    places: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl Streams {
    pub(super) fn new(stopping: watch::Receiver<bool>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(STREAMS_MAX)),
            stopping,
        }
    }
}

impl AdminService {
    pub(super) fn changes(&self, request: proto::WatchRequest) -> Result<Changes, Status> {
        let place = Arc::clone(&self.streams.places).try_acquire_owned();
        let place = place.map_err(|_| {
            Status::resource_exhausted(format!("{STREAMS_MAX} watch streams are open already"))
        })?;
        let room = (!request.room.is_empty()).then(|| RoomName::from(request.room));
        let group = &self.context.group;
        let (feed, snapshot) = match request.after_revision {
            Some(after) => {
                let feed = group.feed_since(Revision(after));
                (
                    feed.map_err(|lagged| error::of_lag(&lagged))?,
                    VecDeque::new(),
                )
            }
            None => {
                let (feed, start) = begin(group)?;
                let mut parts = snapshot(&start.state, room.as_ref());
                for part in &mut parts {
                    part.position = self.position(&start);
                }
                (feed, parts)
            }
        };
        let (messages, queue) = mpsc::channel(QUEUE_MAX);
        let watcher = Watcher {
            node: self.context.node,
            room,
            feed,
            messages,
            stopping: self.streams.stopping.clone(),
            _place: place,
        };
        tokio::spawn(watcher.run(snapshot));
        Ok(ReceiverStream::new(queue))
    }
}

/// A feed that begins at a state of which the place in the log is known. What is applied can be
/// replaced by a snapshot between the two looks; then they are taken again.
fn begin(group: &Group) -> Result<(Feed, Applied), Status> {
    for _ in 0..BEGIN_TRIES {
        let start = group.applied();
        if let Ok(feed) = group.feed_since(start.state.revision) {
            return Ok((feed, start));
        }
    }
    Err(Status::unavailable("the node is catching up, try again"))
}

struct Watcher {
    node: NodeId,
    room: Option<RoomName>,
    feed: Feed,
    messages: mpsc::Sender<Result<proto::WatchResponse, Status>>,
    stopping: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

/// The watcher is gone.
struct Gone;

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the port is closed already.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

impl Watcher {
    async fn run(mut self, snapshot: VecDeque<proto::Snapshot>) {
        let mut stopping = self.stopping.clone();
        let messages = self.messages.clone();
        let why = tokio::select! {
            followed = self.follow(snapshot) => followed,
            () = stopped(&mut stopping) => Ok(Status::unavailable("the node stops")),
            () = messages.closed() => Err(Gone),
        };
        if let Ok(why) = why {
            let _ = tokio::time::timeout(FAREWELL_MAX, messages.send(Err(why))).await;
        }
    }

    /// Sends what happens until the feed ends, and returns why it did.
    async fn follow(&mut self, snapshot: VecDeque<proto::Snapshot>) -> Result<Status, Gone> {
        for part in snapshot {
            self.send(Message::Snapshot(part)).await?;
        }
        let mut skipped: Option<proto::Position> = None;
        let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                next = self.feed.next() => match next {
                    Err(error) => return Ok(error::of_feed(&error)),
                    Ok(change) => match self.change(&change) {
                        Some(told) => {
                            skipped = None;
                            self.send(Message::Change(told)).await?;
                        }
                        None => skipped = self.position(&change),
                    },
                },
                _ = progress.tick() => {
                    if let Some(position) = skipped.take() {
                        let progress = proto::Progress { position: Some(position) };
                        self.send(Message::Progress(progress)).await?;
                    }
                }
            }
        }
    }

    async fn send(&self, message: Message) -> Result<(), Gone> {
        let response = proto::WatchResponse {
            message: Some(message),
        };
        self.messages.send(Ok(response)).await.map_err(|_| Gone)
    }

    /// What the watcher is told of a change; `None` if nothing in it is of interest.
    fn change(&self, change: &Change) -> Option<proto::Change> {
        let events: Vec<proto::Event> = change
            .events
            .iter()
            .filter(|event| self.is_of_interest(event))
            .filter_map(|event| convert::event(event, &change.state))
            .collect();
        (!events.is_empty()).then(|| proto::Change {
            position: self.position(change),
            events,
        })
    }

    fn is_of_interest(&self, event: &Event) -> bool {
        match (&self.room, event) {
            (None, _) => true,
            (Some(watched), Event::Room { room, .. }) => room == watched,
            (Some(_), Event::NodeChanged(_) | Event::NodeRemoved(_)) => false,
        }
    }

    fn position(&self, change: &Change) -> Option<proto::Position> {
        Some(proto::Position {
            node: self.node.0,
            log_index: change.log_index,
            revision: change.revision.0,
            applied_at_ms: change.at.0,
        })
    }
}

/// The state in parts that fit into messages; `more` is set on all but the last.
fn snapshot(state: &State, room: Option<&RoomName>) -> VecDeque<proto::Snapshot> {
    let mut parts = Parts::default();
    match room {
        None => {
            for node in state.nodes.values() {
                let node = convert::node(node, state);
                parts.part(node.encoded_len()).nodes.push(node);
            }
            for room in state.rooms.values() {
                let room = convert::room(room);
                parts.part(room.encoded_len()).rooms.push(room);
            }
        }
        Some(name) => {
            if let Some(room) = state.rooms.get(name) {
                let shown = convert::room(room);
                parts.part(shown.encoded_len()).rooms.push(shown);
                for participant in room.participants.values() {
                    let shown = convert::participant(participant);
                    parts.part(shown.encoded_len()).participants.push(shown);
                }
                for (publisher, track) in room.tracks() {
                    let mut shown = convert::track(publisher, track);
                    shown.routes = convert::routes(room, &track.sid, None);
                    parts.part(shown.encoded_len()).tracks.push(shown);
                }
            }
        }
    }
    parts.finish()
}

#[derive(Default)]
struct Parts {
    full: VecDeque<proto::Snapshot>,
    last: proto::Snapshot,
    bytes: usize,
}

impl Parts {
    /// The part that takes the next entry of this size.
    fn part(&mut self, bytes: usize) -> &mut proto::Snapshot {
        self.bytes += bytes;
        if self.bytes > BYTES_MAX && self.bytes > bytes {
            let mut full = std::mem::take(&mut self.last);
            full.more = true;
            self.full.push_back(full);
            self.bytes = bytes;
        }
        &mut self.last
    }

    fn finish(mut self) -> VecDeque<proto::Snapshot> {
        self.full.push_back(self.last);
        self.full
    }
}
