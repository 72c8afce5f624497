//! What travels between nodes and clients.

use std::time::Duration;

use bytes::Bytes;
use flotilla_model::id::{BootId, Epoch, TrackSid};
use flotilla_node::mesh::{Body, proto};
use flotilla_signal::connect::Connect;
use flotilla_signal::proto::{SignalRequest, SignalResponse};

use crate::raft::RaftMessage;
use crate::time::Time;

/// Something on its way.
#[derive(Clone, Debug)]
pub enum Message {
    /// Between replicas.
    Raft(RaftMessage),
    /// A sign of life; the stream was opened to this start of the other process.
    Ping {
        /// Sender's start.
        boot: BootId,
        /// Receiver's.
        to: BootId,
        /// When it was sent.
        sent: Time,
    },
    /// Its answer.
    Pong {
        /// Sender's start.
        boot: BootId,
        /// When the ping was sent.
        sent: Time,
        /// What is wrong with the sender.
        ailing: bool,
    },
    /// Does anybody listen?
    Knock,
    /// Yes: this start.
    Answer(BootId),
    /// The machine says that nobody does, or that the process of an open stream is gone.
    Refused {
        /// A pulse stream broke, rather than a knock being refused.
        broke: bool,
    },
    /// What do you find?
    Inquire {
        /// Number.
        id: u64,
        /// About whom.
        node: u64,
        /// Which start.
        boot: BootId,
        /// Silence that counts.
        bound: Duration,
        /// How long the answer may take.
        within: Duration,
    },
    /// This.
    Found {
        /// Number.
        id: u64,
        /// Finding.
        finding: proto::inquire_reply::Finding,
    },
    /// A mesh link is to be opened.
    Hello {
        /// Sender's start.
        boot: BootId,
        /// Number of the stream.
        stream: u64,
    },
    /// It is open.
    Welcome {
        /// Sender's start.
        boot: BootId,
        /// Number of the stream.
        stream: u64,
        /// Taken so far.
        sequence: u64,
    },
    /// A body on a link.
    Frame {
        /// Sender's start.
        boot: BootId,
        /// Number of the stream.
        stream: u64,
        /// Its number.
        sequence: u64,
        /// What.
        body: Box<Body>,
    },
    /// A link's heartbeat.
    Beat {
        /// Sender's start.
        boot: BootId,
        /// Number of the stream.
        stream: u64,
        /// When it was sent.
        sent: Time,
    },
    /// Its answer.
    Echo {
        /// Sender's start.
        boot: BootId,
        /// Number of the stream.
        stream: u64,
        /// When the heartbeat was sent.
        sent: Time,
    },
    /// Taken so far.
    Acknowledge {
        /// Number of the stream.
        stream: u64,
        /// Up to here.
        sequence: u64,
    },
    /// A node serves a participant now.
    Claim {
        /// Number.
        id: u64,
        /// What is asked.
        request: proto::ClaimRequest,
    },
    /// What the other one held.
    Held {
        /// Number.
        id: u64,
        /// The answer.
        reply: Box<crate::links::HeldReply>,
    },
    /// A relayed packet.
    Relay {
        /// Track.
        track: TrackSid,
        /// Publisher's epoch at the sender.
        epoch: Epoch,
        /// Its number.
        number: u64,
        /// Sender's start.
        boot: BootId,
    },
    /// A client opens a signal connection.
    Open {
        /// Number of the connection.
        connection: u64,
        /// Its request.
        connect: Box<Connect>,
    },
    /// It is open, for this session.
    Opened {
        /// Number of the connection.
        connection: u64,
    },
    /// It is refused with this status; 0: nobody listens.
    Denied {
        /// Number of the connection.
        connection: u64,
        /// HTTP status.
        status: u16,
    },
    /// From the client.
    Request {
        /// Number of the connection.
        connection: u64,
        /// What.
        request: Box<SignalRequest>,
    },
    /// To the client.
    Response {
        /// Number of the connection.
        connection: u64,
        /// What.
        response: Box<SignalResponse>,
    },
    /// A connection ends.
    Close {
        /// Number of the connection.
        connection: u64,
    },
    /// A node's engine tries to reach the client, for this session.
    Check {
        /// Session's place in the node.
        association: Association,
    },
    /// The client answers: media is up.
    Checked {
        /// As asked.
        association: Association,
    },
    /// Reliable data, from or to the client.
    Data {
        /// On which association.
        association: Association,
        /// A `DataPacket`.
        payload: Bytes,
    },
    /// A media packet of the client.
    Packet {
        /// On which association.
        association: Association,
        /// Track.
        track: TrackSid,
        /// Its number.
        number: u64,
    },
}

/// A client's media connection with one session of one start of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Association {
    /// Node.
    pub node: u64,
    /// Its start.
    pub boot: BootId,
    /// Session.
    pub key: u64,
}

impl Association {
    /// The lane of its messages, either way.
    #[must_use]
    pub const fn lane(&self) -> u64 {
        4 + self.boot.0 * 1000 + self.key
    }
}
