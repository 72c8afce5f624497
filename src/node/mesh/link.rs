//! The sending end of one link: numbers reliable frames, keeps them until acknowledged, opens the
//! stream again after a break and resends.
//!
//! Fed by the hub through a bounded queue; ends when the node is removed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flotilla_model::id::{BootId, NodeId};
use flotilla_raft::{Channels, Lane};
use prost::Message as _;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info};

use super::proto::mesh_client::MeshClient;
use super::proto::{Frame, Heartbeat, Hello, LinkReply, LinkRequest, link_reply, link_request};
use super::queue::{Posted, Waiting};
use super::{Body, Health, Own, Signs, lock};
use crate::session::receipt::Leg;
use crate::telemetry::Metrics;

/// Frames kept until acknowledged. When it is reached, nothing more is taken from the queue.
const KEPT_MAX: usize = 8192;
/// Their bytes.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages handed to the stream ahead of its flow control.
const STREAM_QUEUE: usize = 256;
/// How often the other end is asked for a sign of life. Smaller values find dead nodes sooner.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Without any answer for this long the stream is opened anew.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Longest wait for the welcome.
const WELCOME_MAX: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Where a link's task notes what it finds.
pub(super) struct Notes {
    pub(super) health: Arc<Mutex<BTreeMap<NodeId, Health>>>,
    pub(super) signs: Signs,
    pub(super) metrics: Arc<Metrics>,
}

pub(super) struct LinkTask {
    own: Own,
    node: NodeId,
    address: String,
    channels: Channels,
    queue: Waiting,
    hurry: Arc<Notify>,
    notes: Notes,
    kept: Kept,
    boot: Option<BootId>,
}

struct KeptFrame {
    frame: Frame,
    /// The start of the node that it is for, if it is for one.
    boot: Option<BootId>,
    leg: Option<Leg>,
}

impl KeptFrame {
    fn end(self) {
        if let Some(leg) = self.leg {
            leg.end();
        }
    }
}

/// Reliable frames that the other end has not acknowledged, in order.
#[derive(Default)]
struct Kept {
    frames: VecDeque<KeptFrame>,
    bytes: usize,
    /// How many of them went out on the present stream.
    sent: usize,
    last_sequence: u64,
}

impl Kept {
    fn has_room(&self) -> bool {
        self.frames.len() < KEPT_MAX && self.bytes < KEPT_BYTES_MAX
    }

    fn push(&mut self, boot: Option<BootId>, leg: Option<Leg>, body: Body) {
        self.last_sequence += 1;
        let frame = Frame {
            sequence: self.last_sequence,
            body: Some(body),
        };
        self.bytes += frame.encoded_len();
        self.frames.push_back(KeptFrame { frame, boot, leg });
    }

    /// The other end answers for the first time and knows of frames up to this number, which another link from here
    /// sent: numbers go on from there. A node is left out and comes back when it is removed and added again,
    /// or has another address.
    fn go_on_from(&mut self, sequence: u64) {
        for (number, kept) in (sequence + 1..).zip(&mut self.frames) {
            kept.frame.sequence = number;
        }
        self.last_sequence = sequence + self.frames.len() as u64;
        self.bytes = self.frames_len();
    }

    fn frames_len(&self) -> usize {
        let sizes = self.frames.iter().map(|kept| kept.frame.encoded_len());
        sizes.sum()
    }

    fn next(&mut self) -> Option<Frame> {
        let frame = self.frames.get(self.sent)?.frame.clone();
        self.sent += 1;
        Some(frame)
    }

    fn acknowledge(&mut self, sequence: u64) {
        while self
            .frames
            .front()
            .is_some_and(|kept| kept.frame.sequence <= sequence)
        {
            if let Some(kept) = self.frames.pop_front() {
                self.bytes -= kept.frame.encoded_len();
                self.sent = self.sent.saturating_sub(1);
                kept.end();
            }
        }
    }

    /// Another start of the node answers: what was for the one before is gone with that. What was for a later
    /// one stays.
    fn begin_again(&mut self, gone: BootId) {
        let is_gone = |kept: &KeptFrame| kept.boot == Some(gone);
        let (over, left): (VecDeque<_>, _) = self.frames.drain(..).partition(is_gone);
        self.frames = left;
        over.into_iter().for_each(KeptFrame::end);
        self.bytes = self.frames_len();
        self.sent = 0;
    }
}

impl LinkTask {
    pub(super) fn new(
        own: Own,
        node: NodeId,
        address: String,
        channels: Channels,
        queue: Waiting,
        hurry: Arc<Notify>,
        notes: Notes,
    ) -> Self {
        Self {
            own,
            node,
            address,
            channels,
            queue,
            hurry,
            notes,
            kept: Kept::default(),
            boot: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut retry = RETRY_MIN;
        loop {
            match self.connect().await {
                Ok((requests, replies)) => {
                    retry = RETRY_MIN;
                    info!(peer = %self.node, "mesh link is up");
                    let ended = self.pump(requests, replies).await;
                    self.note(|health| health.connected = false);
                    info!(peer = %self.node, reason = ended, "mesh link is down");
                }
                Err(reason) => debug!(peer = %self.node, %reason, "mesh link cannot be opened"),
            }
            let pause = retry.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = tokio::time::sleep(pause) => retry = (retry * 2).min(RETRY_MAX),
                () = self.hurry.notified() => retry = RETRY_MIN,
            }
        }
    }

    async fn connect(
        &mut self,
    ) -> Result<(mpsc::Sender<LinkRequest>, Streaming<LinkReply>), String> {
        let channel = self
            .channels
            .get(&self.address, Lane::Mesh)
            .map_err(|error| error.to_string())?;
        let (requests, outgoing) = mpsc::channel(STREAM_QUEUE);
        let hello = Hello {
            node: self.own.node.0,
            boot: self.own.boot.0,
            cluster_id: self.own.cluster_id.clone(),
            config_hash: self.own.config_hash.to_vec().into(),
        };
        let hello = LinkRequest {
            message: Some(link_request::Message::Hello(hello)),
        };
        requests
            .try_send(hello)
            .map_err(|error| error.to_string())?;
        let mut client = MeshClient::new(channel);
        let opening = async {
            let mut replies = client
                .link(ReceiverStream::new(outgoing))
                .await
                .map_err(|status| status.message().to_owned())?
                .into_inner();
            let first = replies
                .message()
                .await
                .map_err(|status| status.message().to_owned())?;
            Ok::<_, String>((first, replies))
        };
        let (first, replies) = tokio::time::timeout(WELCOME_MAX, opening)
            .await
            .map_err(|_| "no answer".to_owned())??;
        let Some(link_reply::Message::Welcome(welcome)) = first.and_then(|reply| reply.message)
        else {
            return Err("no welcome".into());
        };
        if welcome.node != self.node.0 {
            return Err(format!(
                "node {} answers at {}, not node {}",
                welcome.node, self.address, self.node
            ));
        }
        self.welcomed(BootId(welcome.boot), welcome.sequence);
        Ok((requests, replies))
    }

    fn welcomed(&mut self, boot: BootId, sequence: u64) {
        match self.boot.replace(boot) {
            None => self.kept.go_on_from(sequence),
            Some(known) if known != boot => self.kept.begin_again(known),
            Some(_) => {}
        }
        self.kept.acknowledge(sequence);
        self.kept.sent = 0;
        self.note(|health| {
            health.connected = true;
            health.heard = Some(Instant::now());
            health.boot = Some(boot);
        });
    }

    async fn pump(
        &mut self,
        requests: mpsc::Sender<LinkRequest>,
        mut replies: Streaming<LinkReply>,
    ) -> &'static str {
        let started = Instant::now();
        let mut heard = Instant::now();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let has_unsent = self.kept.sent < self.kept.frames.len();
            tokio::select! {
                reply = replies.message() => match reply {
                    Ok(Some(reply)) => {
                        heard = Instant::now();
                        self.handle(reply, started);
                    }
                    Ok(None) => return "closed by the other node",
                    Err(_) => return "connection broke",
                },
                slot = requests.reserve(), if has_unsent => match slot {
                    Ok(slot) => {
                        if let Some(frame) = self.kept.next() {
                            slot.send(request(frame));
                        }
                    }
                    Err(_) => return "stream ended",
                },
                next = self.queue.next(), if self.kept.has_room() => match next {
                    Some(Posted { body, boot, leg, reliable: true }) => self.kept.push(boot, leg, body),
                    Some(Posted { body, reliable: false, .. }) => {
                        let frame = Frame { sequence: 0, body: Some(body) };
                        if requests.try_send(request(frame)).is_err() {
                            self.notes.metrics.mesh_dropped.inc();
                        }
                    }
                    None => return "no longer wanted",
                },
                _ = heartbeat.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return "no answer";
                    }
                    let token = u64::try_from(started.elapsed().as_micros()).unwrap_or_default();
                    let beat = LinkRequest {
                        message: Some(link_request::Message::Heartbeat(Heartbeat { token })),
                    };
                    // A full stream needs no further sign of life from us.
                    let _ = requests.try_send(beat);
                }
            }
        }
    }

    fn handle(&mut self, reply: LinkReply, started: Instant) {
        match reply.message {
            Some(link_reply::Message::Acknowledgement(acknowledgement)) => {
                self.kept.acknowledge(acknowledgement.sequence);
                self.note(|health| health.heard = Some(Instant::now()));
            }
            Some(link_reply::Message::Heartbeat(beat)) => {
                let sent = started + Duration::from_micros(beat.token);
                let took = sent.elapsed();
                if let Some(boot) = self.boot {
                    self.notes.signs.echoed(self.node, boot, sent);
                }
                self.note(|health| {
                    health.heard = Some(Instant::now());
                    health.round_trip = Some(took);
                });
            }
            Some(link_reply::Message::Welcome(_)) | None => {}
        }
    }

    fn note(&self, change: impl FnOnce(&mut Health)) {
        if let Some(health) = lock(&self.notes.health).get_mut(&self.node) {
            change(health);
        }
    }
}

fn request(frame: Frame) -> LinkRequest {
    LinkRequest {
        message: Some(link_request::Message::Frame(frame)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::Speakers;
    use crate::session::receipt::Receipt;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn body(room: &str) -> Body {
        Body::Speakers(Speakers {
            room: room.into(),
            speakers: Vec::new(),
        })
    }

    #[test]
    fn resends_what_was_not_acknowledged() {
        let mut kept = Kept::default();
        for room in ["a", "b", "c"] {
            kept.push(None, None, body(room));
        }
        assert_eq!(kept.next().map(|f| f.sequence), Some(1));
        assert_eq!(kept.next().map(|f| f.sequence), Some(2));
        kept.acknowledge(1);
        assert_eq!(kept.next().map(|f| f.sequence), Some(3));
        assert!(kept.next().is_none());
        kept.sent = 0;
        assert_eq!(kept.next().map(|f| f.sequence), Some(2));
        kept.acknowledge(3);
        assert_eq!((kept.frames.len(), kept.bytes, kept.sent), (0, 0, 0));
    }

    #[test]
    fn another_start_gets_what_is_for_it() {
        let mut kept = Kept::default();
        let (first, second) = (BootId(7), BootId(8));
        let let_go = Arc::new(AtomicBool::new(false));
        let told = let_go.clone();
        let receipt = Receipt::new(move || told.store(true, Ordering::Relaxed));
        for (boot, room) in [
            (Some(first), "a"),
            (None, "b"),
            (Some(second), "c"),
            (Some(first), "d"),
        ] {
            kept.push(boot, Some(receipt.leg()), body(room));
        }
        while kept.next().is_some() {}
        kept.begin_again(first);
        let mut left = Vec::new();
        while let Some(frame) = kept.next() {
            left.push(frame.sequence);
        }
        assert_eq!(left, [2, 3]);
        drop(receipt);
        assert!(!let_go.load(Ordering::Relaxed), "two are under way");
        kept.acknowledge(3);
        assert_eq!((kept.frames.len(), kept.bytes), (0, 0));
        assert!(let_go.load(Ordering::Relaxed));
    }

    #[test]
    fn a_link_that_ends_has_not_brought_what_it_kept() {
        let mut kept = Kept::default();
        let is_safe = Arc::new(AtomicBool::new(false));
        let told = is_safe.clone();
        let receipt = Receipt::new(move || told.store(true, Ordering::Relaxed));
        kept.push(None, Some(receipt.leg()), body("r"));
        drop(receipt);
        drop(kept);
        assert!(!is_safe.load(Ordering::Relaxed));
    }

    #[test]
    fn stops_taking_at_the_limit() {
        let mut kept = Kept::default();
        for _ in 0..KEPT_MAX {
            assert!(kept.has_room());
            kept.push(None, None, body("r"));
        }
        assert!(!kept.has_room());
    }
}
