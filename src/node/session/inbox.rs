//! What reaches a session's task: one bounded queue, with a policy for the moment it is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use flotilla_media::peer::passage::Passage;
use flotilla_media::peer::transport::TransportSnapshot;
use flotilla_model::State;
use flotilla_model::id::{Epoch, TrackSid};
use flotilla_raft::Change;
use flotilla_signal::data::DataOut;
use flotilla_signal::media::{self, Target};
use flotilla_signal::proto::SignalRequest;
use flotilla_signal::session::Resuming;
use tokio::sync::{mpsc, oneshot};

use super::connection::Connection;

/// Messages waiting for a session. A burst of small data messages fits; a session that falls behind
/// by this much cannot catch up and has to come back.
const INBOX_MAX: usize = 16 * 1024;
/// Messages that may be lost are, once only this many places are left.
const RESERVED: usize = INBOX_MAX / 4;

/// Where a connection stands.
#[derive(Debug)]
pub struct Standing {
    /// Keys and indices.
    pub transport: Box<TransportSnapshot>,
    /// Path and streams, where the node's address moves.
    pub passage: Option<Box<Passage>>,
    /// Offer and answer, there, when they are new.
    pub descriptions: Option<Box<(String, String)>>,
}

/// A message for a session.
#[derive(Debug)]
pub enum Message {
    /// One event of the log, of the session's room.
    Event {
        /// The change it belongs to.
        change: Arc<Change>,
        /// Its place in the change.
        index: usize,
    },
    /// The engine reports.
    Media(media::Event),
    /// The client sends data.
    Sent {
        /// On which connection.
        target: Target,
        /// On which channel.
        channel: media::Channel,
        /// `livekit.DataPacket` bytes.
        payload: Bytes,
        /// The engine's number for it, for its receipt.
        number: u64,
    },
    /// Somebody else sent data.
    Data(Arc<DataOut>),
    /// Somebody else sent data before they knew that the session is here.
    EarlyData(Arc<DataOut>),
    /// Loudness of tracks.
    Speakers(Arc<[(TrackSid, f32)]>),
    /// The client says something on this connection.
    Request {
        /// Which connection.
        connection: u64,
        /// What.
        request: Box<SignalRequest>,
    },
    /// The first connection is up.
    Connected(Connection),
    /// The client is back on another connection.
    Resume(Box<Resuming>, Connection),
    /// A connection is gone; 0: the first one never came.
    SignalClosed {
        /// Which.
        connection: u64,
    },
    /// Where one of the session's connections stands, for the next home.
    Checkpoint(Target, Standing),
    /// Another node serves the participant since this epoch: the session ends at once, and the
    /// sender hears of it.
    LetGo(Epoch, oneshot::Sender<()>),
    /// The media engine lost its state.
    EngineLost {
        /// What was received from this session's client was the cause.
        is_cause: bool,
    },
    /// Events were lost: the state as it is now.
    Snapshot(Arc<State>),
    /// The node is being emptied.
    Drain,
    /// The node may not serve any more, and others may.
    LeaseLapsed,
    /// The node may serve again.
    LeaseHolds,
    /// The node stops.
    Shutdown,
}

/// The sending end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    queue: mpsc::Sender<Message>,
    overrun: Arc<AtomicBool>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Outlet {
    queue: mpsc::Receiver<Message>,
    overrun: Arc<AtomicBool>,
}

impl Inbox {
    /// Both ends of a new queue.
    #[must_use]
    pub fn new() -> (Self, Outlet) {
        let (sender, receiver) = mpsc::channel(INBOX_MAX);
        let overrun = Arc::new(AtomicBool::new(false));
        let inbox = Self {
            queue: sender,
            overrun: overrun.clone(),
        };
        let outlet = Outlet {
            queue: receiver,
            overrun,
        };
        (inbox, outlet)
    }

    /// For what must arrive. If the queue is full, the session is marked as overrun and ends: it
    /// cannot go on with a gap.
    pub fn deliver(&self, message: Message) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(message) {
            self.overrun.store(true, Ordering::Relaxed);
        }
    }

    /// For what may be lost: dropped when the queue is nearly full. Returns whether it was taken.
    pub fn offer(&self, message: Message) -> bool {
        self.queue.capacity() > RESERVED && self.queue.try_send(message).is_ok()
    }

    /// For a sender that can wait, such as the client's own socket. Returns whether the session is
    /// still there.
    pub async fn send(&self, message: Message) -> bool {
        self.queue.send(message).await.is_ok()
    }
}

impl Outlet {
    /// The next message; `None` if there is none left and no sender either, or if the session was
    /// overrun. Cancel safe.
    pub async fn receive(&mut self) -> Option<Message> {
        if self.overrun.load(Ordering::Relaxed) {
            return None;
        }
        self.queue.recv().await
    }

    /// The next message if there is one.
    pub fn try_receive(&mut self) -> Option<Message> {
        self.queue.try_recv().ok()
    }

    /// Whether messages that must arrive were lost.
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        self.overrun.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_queue_drops_what_may_be_lost_and_marks_overrun() {
        let (inbox, mut outlet) = Inbox::new();
        let mut taken = 0;
        while inbox.offer(Message::Shutdown) {
            taken += 1;
        }
        assert_eq!(taken, INBOX_MAX - RESERVED);
        for _ in 0..RESERVED {
            inbox.deliver(Message::Shutdown);
        }
        assert!(!outlet.is_overrun());
        assert!(outlet.receive().await.is_some());
        inbox.deliver(Message::Shutdown);
        inbox.deliver(Message::Shutdown);
        assert!(outlet.is_overrun());
        assert!(outlet.receive().await.is_none());
    }
}
