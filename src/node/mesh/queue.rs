//! What waits for a link's task: bounded in bytes, each kind of message by a bound of its own, so that none keeps one
//! out that matters more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flotilla_model::id::BootId;
use prost::Message as _;
use tokio::sync::mpsc;

use super::Body;
use crate::session::receipt::Leg;

/// Bytes that may wait. When there are more, the newest message is dropped and counted: the node behind the link has
/// not taken anything for long.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Before what is sent again to one participant: when many move at once, what is new still has room behind it.
const BYTES_AGAIN_MAX: usize = BYTES_MAX / 2;
/// Before what may be lost.
const BYTES_LOSSY_MAX: usize = 1024 * 1024;
/// What a message takes beside its body.
const BYTES_EACH: usize = 256;

/// Something that waits for a link.
pub(super) struct Posted {
    pub(super) body: Body,
    pub(super) reliable: bool,
    /// The start of the node that it is for; `None`: whichever is there.
    pub(super) boot: Option<BootId>,
    pub(super) leg: Option<Leg>,
}

impl Posted {
    /// How many bytes may wait before this for it to wait as well.
    fn bound(&self) -> usize {
        match &self.body {
            _ if !self.reliable => BYTES_LOSSY_MAX,
            Body::Data(data) if !data.only.is_empty() => BYTES_AGAIN_MAX,
            _ => BYTES_MAX,
        }
    }

    fn len(&self) -> usize {
        let body = match &self.body {
            Body::Data(data) => data.encoded_len(),
            Body::Speakers(speakers) => speakers.encoded_len(),
            Body::Checkpoint(checkpoint) => checkpoint.encoded_len(),
            Body::Wanted(wanted) => wanted.encoded_len(),
        };
        body + BYTES_EACH
    }
}

/// The giving end.
pub(super) struct Queue {
    sender: mpsc::UnboundedSender<(usize, Posted)>,
    bytes: Arc<AtomicUsize>,
}

/// The taking end.
pub(super) struct Waiting {
    receiver: mpsc::UnboundedReceiver<(usize, Posted)>,
    bytes: Arc<AtomicUsize>,
}

impl Queue {
    /// Both ends of an empty queue.
    pub(super) fn new() -> (Self, Waiting) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        let waiting = Waiting {
            receiver,
            bytes: bytes.clone(),
        };
        (Self { sender, bytes }, waiting)
    }

    /// Lets something wait; false if too much does already, or nobody takes anything any more.
    pub(super) fn push(&self, posted: Posted) -> bool {
        if self.bytes.load(Ordering::Relaxed) > posted.bound() {
            return false;
        }
        let len = posted.len();
        self.bytes.fetch_add(len, Ordering::Relaxed);
        self.sender.send((len, posted)).is_ok()
    }
}

impl Waiting {
    /// The next one; `None`: there will be none. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Posted> {
        let (len, posted) = self.receiver.recv().await?;
        self.bytes.fetch_sub(len, Ordering::Relaxed);
        Some(posted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto;

    fn data(only: &str, reliable: bool) -> Posted {
        let data = proto::Data {
            only: only.into(),
            payload: vec![0; 100_000].into(),
            ..proto::Data::default()
        };
        Posted {
            body: Body::Data(data),
            reliable,
            boot: None,
            leg: None,
        }
    }

    #[tokio::test]
    async fn what_is_sent_again_leaves_room_for_what_is_new() {
        let (queue, mut waiting) = Queue::new();
        let again = (0..1000).take_while(|_| queue.push(data("PA_a", true)));
        let again = again.count();
        assert!((300..1000).contains(&again), "{again} messages");
        assert!(!queue.push(data("", false)), "may be lost");
        let new = (0..1000).take_while(|_| queue.push(data("", true))).count();
        assert!((300..1000).contains(&new), "{new} messages");
        // In order, and with what was taken the room comes back.
        for _ in 0..again {
            let posted = waiting.next().await.expect("waits");
            assert!(matches!(posted.body, Body::Data(data) if data.only == "PA_a"));
        }
        assert!(queue.push(data("", true)));
        drop(queue);
        for _ in 0..=new {
            let posted = waiting.next().await.expect("waits");
            assert!(matches!(posted.body, Body::Data(data) if data.only.is_empty()));
        }
        assert!(waiting.next().await.is_none());
    }

    #[test]
    fn nothing_waits_for_nobody() {
        let (queue, waiting) = Queue::new();
        assert!(queue.push(data("", true)));
        drop(waiting);
        assert!(!queue.push(data("", true)));
    }
}
