//! Data channels: rtc-sctp carries the messages, rtc-datachannel's DCEP names the channels.
//!
//! The transport feeds decrypted packets and encrypts what is polled. The client opens the
//! association, unless it has one with another node already, which is continued (`continuation`) or,
//! if that cannot be, begun anew (`revival`); who opens the channels is the [`ChannelPlan`]. What is sent waits in a bounded queue
//! per channel in front of the library, which itself gets only as much as it can soon send.
//! RFC 8831, RFC 8832, RFC 9260.

mod channel;
mod continuation;
mod hold;
mod inward;
mod ledger;
mod message;
mod outward;
mod packet;
mod refill;
mod revival;
mod search;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rtc_datachannel::message::Message;
use rtc_datachannel::message::message_channel_ack::DataChannelAck;
use rtc_datachannel::message::message_channel_open::{
    CHANNEL_PRIORITY_NORMAL, ChannelType, DataChannelOpen,
};
use rtc_sctp::{
    Association, AssociationHandle, DatagramEvent, Endpoint, EndpointConfig, EndpointEvent, Event,
    Payload, PayloadProtocolIdentifier as Ppi, ReliabilityType, ServerConfig, StreamEvent,
    TimerConfig, TransportConfig,
};
use rtc_shared::TransportProtocol;
use rtc_shared::marshal::{Marshal, Unmarshal};

use crate::command::Channel;
use crate::discard::Discard;
use crate::peer::contain::contain;
use crate::reach::Reach;
use channel::{Outgoing, label, labelled};
use continuation::Continuation;
use hold::Hold;
use ledger::Ledger;
use revival::Revival;

pub(super) use continuation::Former;
pub(super) use ledger::Standing;

/// Who opens the data channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelPlan {
    /// The client, in-band.
    Client,
    /// We do, in-band, `_reliable` and `_lossy`: LiveKit's v0 subscriber connection.
    Server,
    /// Nobody: ids 100, 101 and 102 are agreed on beforehand.
    Negotiated,
}

/// Limits of data channels.
#[derive(Clone, Debug)]
pub struct DataLimits {
    /// Longest message, both ways.
    pub message_bytes_max: usize,
    /// Bytes that may wait to be sent on the reliable channel; more is refused.
    pub reliable_bytes_max: usize,
    /// As much on each of the lossy channels; more pushes out the oldest.
    pub lossy_bytes_max: usize,
    /// How long the acknowledgement of a reliable message waits for the message to be safe
    /// ([`Command::DataSafe`](crate::command::Command::DataSafe)); zero: not at all.
    pub hold_max: Duration,
    /// Whether others hear this node: while they do not, it waits longer. `None`: they do.
    pub reach: Option<Reach>,
}

impl Default for DataLimits {
    fn default() -> Self {
        Self {
            message_bytes_max: 256 * 1024,
            reliable_bytes_max: 16 * 1024 * 1024,
            lossy_bytes_max: 256 * 1024,
            hold_max: Duration::ZERO,
            reach: None,
        }
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The client has no such channel, or not yet.
    #[error("the data channel is not open")]
    NotOpen,
    /// Too much waits on the reliable channel already.
    #[error("the data channel's queue is full")]
    Full,
    /// The message is longer than allowed.
    #[error("the message is too long")]
    TooLong,
}

/// What happened.
#[derive(Debug)]
pub(super) enum SctpEvent {
    /// Messages can be sent and received on it.
    Open(Channel),
    /// A message arrived; with its number, if it is to be said when it is safe.
    Data(Channel, Bytes, u64),
}

/// The library's name for the one client.
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
/// Associations that a client may have begun and not finished. It begins another when the answer to
/// its first packet was late, and after it lost its state.
const PENDING_MAX: usize = 3;
/// Bytes that the library gets ahead per stream: what fills a fast and long path. Less for lossy
/// channels, since what the library has can no longer make room for something newer.
const IN_LIBRARY_RELIABLE: usize = 256 * 1024;
const IN_LIBRARY_LOSSY: usize = 64 * 1024;
/// All channels, in the order of their numbers.
const CHANNELS: [Channel; 3] = [Channel::Reliable, Channel::Lossy, Channel::DataTrack];

/// One association under way.
struct Session {
    handle: AssociationHandle,
    association: Box<Association>,
}

/// One connection's data channels.
pub(super) struct Sctp {
    plan: ChannelPlan,
    limits: DataLimits,
    endpoint: Endpoint,
    current: Option<Session>,
    pending: VecDeque<Session>,
    /// Where the association stands, for another node.
    ledger: Ledger,
    /// Where another node's association stood that is to be continued here.
    resumable: Option<Former>,
    /// The client's association is continued from another node.
    continuation: Option<Continuation>,
    /// The client's association is to be begun anew from here.
    revival: Option<Revival>,
    outgoing: [Outgoing; 3],
    hold: Hold,
    transmits: VecDeque<Bytes>,
    /// Room for what an association sends; empty.
    collected: Vec<Bytes>,
    events: VecDeque<SctpEvent>,
    /// Messages that came on streams without a channel of ours, or were too long.
    dropped_in: u64,
    /// Messages of which the former node had the beginning.
    torn: u64,
}

impl Sctp {
    pub(super) fn new(plan: ChannelPlan, limits: DataLimits) -> Self {
        let transport = transport_config(&limits);
        let endpoint = Endpoint::new(
            PEER,
            TransportProtocol::UDP,
            Arc::new(EndpointConfig::new()),
            Some(Arc::new(ServerConfig::new(transport))),
        );
        let outgoing = CHANNELS.map(|channel| Outgoing::new(channel, &limits));
        Self {
            plan,
            hold: Hold::new(limits.hold_max, limits.reach.clone()),
            limits,
            endpoint,
            current: None,
            pending: VecDeque::new(),
            ledger: Ledger::default(),
            resumable: None,
            continuation: None,
            revival: None,
            outgoing,
            transmits: VecDeque::new(),
            collected: Vec::new(),
            events: VecDeque::new(),
            dropped_in: 0,
            torn: 0,
        }
    }

    /// Queues a message. On the reliable channel it may come before the channel is open.
    pub(super) fn send(
        &mut self,
        now: Instant,
        channel: Channel,
        message: Bytes,
    ) -> Result<(), SendError> {
        if message.len() > self.limits.message_bytes_max {
            return Err(SendError::TooLong);
        }
        self.outgoing[channel as usize].push(message)?;
        self.drive(now).map_err(|_| SendError::NotOpen)
    }

    /// A message that was given out with this number is safe.
    pub(super) fn safe(&mut self, number: u64) {
        self.hold.take(number);
        self.transmit_released();
    }

    /// Whether others may lack what the client said last; `was_cut_off`: this node until now.
    pub(super) fn may_lose(&self, now: Instant, was_cut_off: bool) -> bool {
        self.hold.may_lose(now, was_cut_off)
    }

    /// Nothing is waited for any more: what was given out until now is kept elsewhere.
    pub(super) fn all_safe(&mut self) {
        self.hold.take_all();
        self.transmit_released();
    }

    /// Takes a decrypted packet.
    pub(super) fn handle(&mut self, now: Instant, packet: Bytes) -> Result<(), Discard> {
        let Some(packet) = packet::sanitize(packet)? else {
            return Ok(());
        };
        self.ledger.note_received(&packet);
        if let Some(continuation) = &self.continuation
            && continuation.is_for(&packet)
        {
            return self.handle_continued(now, packet);
        }
        self.deliver(now, packet)?;
        self.drive(now)
    }

    /// Gives the library a packet.
    fn deliver(&mut self, now: Instant, packet: Bytes) -> Result<(), Discard> {
        let endpoint = &mut self.endpoint;
        let handled = contain("sctp", || endpoint.handle(now, PEER, None, packet));
        let Ok(handled) = handled else {
            return self.give_up();
        };
        match handled {
            None => return Err(Discard::Malformed),
            Some((handle, DatagramEvent::NewAssociation(association))) => {
                if self.pending.len() == PENDING_MAX
                    && let Some(oldest) = self.pending.pop_front()
                {
                    self.forget(&oldest);
                }
                self.pending.push_back(Session {
                    handle,
                    association: Box::new(association),
                });
            }
            Some((handle, DatagramEvent::AssociationEvent(event))) => {
                let session = self
                    .current
                    .iter_mut()
                    .chain(&mut self.pending)
                    .find(|session| session.handle == handle)
                    .ok_or(Discard::DtlsRefused)?;
                let association = &mut session.association;
                if contain("sctp", || association.handle_event(event)).is_err() {
                    return self.give_up();
                }
            }
            Some(_) => return Err(Discard::DtlsRefused),
        }
        Ok(())
    }

    /// Where the association stands, for another node to continue it.
    pub(super) fn standing(&self) -> Option<&Standing> {
        self.ledger
            .standing()
            .or_else(|| self.resumable.as_ref().map(|former| &former.standing))
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmits.pop_front()
    }

    pub(super) fn poll_event(&mut self) -> Option<SctpEvent> {
        self.events.pop_front()
    }

    pub(super) fn is_open(&self, channel: Channel) -> bool {
        self.outgoing[channel as usize].is_open()
    }

    /// Messages of a lossy channel pushed out by newer ones.
    pub(super) fn dropped_out(&self, channel: Channel) -> u64 {
        self.outgoing[channel as usize].dropped()
    }

    /// Messages received that belong to no channel, are too long, or of which another node had the
    /// beginning.
    pub(super) fn dropped_in(&self) -> u64 {
        let torn = self.continuation.as_ref().map_or(0, Continuation::torn);
        self.dropped_in + self.torn + torn
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let sessions = self.current.iter().chain(&self.pending);
        sessions
            .filter_map(|session| session.association.poll_timeout())
            .chain(self.revival.as_ref().and_then(Revival::deadline))
            .chain(self.continuation.as_ref().and_then(Continuation::deadline))
            .chain(self.hold.deadline())
            .min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let mut sessions = self.current.iter_mut().chain(&mut self.pending);
        let due = sessions.try_for_each(|session| {
            let association = &mut session.association;
            if association.poll_timeout().is_some_and(|due| due <= now) {
                contain("sctp", || association.handle_timeout(now))
            } else {
                Ok(())
            }
        });
        self.repeat_handshake(now);
        self.continue_in_time(now);
        self.hold.handle_timeout(now);
        self.transmit_released();
        // Both outcomes are final here: a packet's sender would be told why, time is not.
        let _ = match due {
            Ok(()) => self.drive(now),
            Err(_) => self.give_up(),
        };
    }

    /// Moves everything that can move: events up, queues down, packets out.
    fn drive(&mut self, now: Instant) -> Result<(), Discard> {
        self.drive_once(now)?;
        // What the library sent may tell what it can have next.
        while let Some(packet) = self
            .continuation
            .as_mut()
            .and_then(Continuation::poll_inbox)
        {
            self.deliver(now, packet)?;
            self.drive_once(now)?;
        }
        Ok(())
    }

    fn drive_once(&mut self, now: Instant) -> Result<(), Discard> {
        self.promote(now);
        let Some(mut session) = self.current.take() else {
            self.collect_pending(now);
            return Ok(());
        };
        let association = &mut session.association;
        let mut sent = std::mem::take(&mut self.collected);
        let driven = contain("sctp", || {
            self.take_events(now, association);
            self.pump(now, association);
            collect(now, association, &mut sent);
        });
        self.transmit(now, session.handle, &mut sent);
        self.collected = sent;
        if driven.is_err() {
            self.current = Some(session);
            return self.give_up();
        }
        if session.association.is_closed() {
            self.forget(&session);
            self.close_channels();
            self.abandon_continuation();
            self.hold.clear();
        } else {
            self.current = Some(session);
        }
        self.collect_pending(now);
        Ok(())
    }

    /// Makes a pending association the current one when the client has confirmed it.
    fn promote(&mut self, now: Instant) {
        let ready = self
            .pending
            .iter()
            .position(|session| !session.association.is_handshaking());
        let Some(session) = ready.and_then(|at| self.pending.remove(at)) else {
            return;
        };
        let is_ours = |handle| self.revival.as_ref().is_some_and(|r| r.is_by(handle));
        // The client chose this one; the others are its earlier attempts. Only where both ends began
        // at once the one from here may follow, and then counts (RFC 9260 §5.2.4, case B).
        let (kept, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|other| is_ours(other.handle));
        let revived = if is_ours(session.handle) {
            let revival = self.revival.take();
            revival
                .map(|revival| revival.channels())
                .unwrap_or_default()
        } else {
            Vec::new()
        };
        self.pending = kept;
        for other in others.into_iter().chain(self.current.take()) {
            self.forget(&other);
        }
        self.close_channels();
        self.abandon_continuation();
        self.hold.clear();
        self.current = Some(session);
        if revived.is_empty() {
            self.open_channels(now);
        } else {
            self.open_agreed(&revived);
        }
    }

    fn collect_pending(&mut self, now: Instant) {
        let mut broken = false;
        for session in &mut self.pending {
            let association = &mut session.association;
            let mut sent = Vec::new();
            broken |= contain("sctp", || collect(now, association, &mut sent)).is_err();
            if let Some(revival) = &mut self.revival {
                revival.sent(now, session.handle, sent.iter());
            }
            sent.iter().for_each(|packet| self.ledger.note_sent(packet));
            self.transmits.extend(sent);
        }
        // Those that failed stay until newer ones push them out: before the client's confirmation the
        // library calls the good ones closed as well.
        if broken {
            let _ = self.give_up();
        }
    }

    /// Sends what an association sends, in the client's numbers.
    fn transmit(&mut self, now: Instant, handle: AssociationHandle, packets: &mut Vec<Bytes>) {
        for packet in packets.drain(..) {
            let packet = match &mut self.continuation {
                Some(continuation) if continuation.handle() == handle => {
                    continuation.translate(now, &packet)
                }
                _ => Some(packet),
            };
            if let Some(packet) = packet.and_then(|packet| self.hold.pass(now, packet)) {
                self.ledger.note_sent(&packet);
                self.transmits.push_back(packet);
            }
        }
    }

    /// Sends what waits no longer. Only now it counts as acknowledged for another node.
    fn transmit_released(&mut self) {
        while let Some(packet) = self.hold.poll() {
            self.ledger.note_sent(&packet);
            self.transmits.push_back(packet);
        }
    }

    fn forget(&mut self, session: &Session) {
        self.endpoint
            .handle_event(session.handle, EndpointEvent::drained());
    }

    /// After a panic in the library: all its state goes, the client may begin anew.
    fn give_up(&mut self) -> Result<(), Discard> {
        let queues = std::mem::replace(self, Self::new(self.plan, self.limits.clone()));
        self.events = queues.events;
        self.hold = queues.hold;
        self.hold.clear();
        self.dropped_in = queues.dropped_in;
        self.torn = queues.torn;
        Err(Discard::DtlsRefused)
    }

    /// Opens what is ours to open on a new association.
    fn open_channels(&mut self, now: Instant) {
        match self.plan {
            ChannelPlan::Client => {}
            ChannelPlan::Negotiated => {
                let ids = CHANNELS.into_iter().zip([100, 101, 102]);
                self.open_agreed(&ids.collect::<Vec<_>>());
            }
            // Odd ids are the DTLS server's.
            ChannelPlan::Server => {
                for (channel, id) in [(Channel::Reliable, 1), (Channel::Lossy, 3)] {
                    self.open_stream(channel, id);
                    let (channel_type, reliability_parameter) = match channel {
                        Channel::Reliable => (ChannelType::Reliable, 0),
                        Channel::Lossy | Channel::DataTrack => {
                            (ChannelType::PartialReliableRexmitUnordered, 0)
                        }
                    };
                    let open = Message::DataChannelOpen(DataChannelOpen {
                        channel_type,
                        priority: CHANNEL_PRIORITY_NORMAL,
                        reliability_parameter,
                        label: label(channel).as_bytes().to_vec(),
                        protocol: Vec::new(),
                    });
                    if let Some(session) = &mut self.current {
                        write_dcep(now, &mut session.association, id, &open);
                    }
                }
            }
        }
    }

    /// Opens channels that both sides know of.
    fn open_agreed(&mut self, channels: &[(Channel, u16)]) {
        for (channel, id) in channels {
            self.open_stream(*channel, *id);
            self.confirm(*channel);
        }
    }

    /// Opens a stream of the current association for a channel of ours.
    fn open_stream(&mut self, channel: Channel, id: u16) {
        let Some(session) = &mut self.current else {
            return;
        };
        if let Ok(mut stream) = session.association.open_stream(id, Ppi::Binary)
            && channel != Channel::Reliable
        {
            // It fails on closed streams only.
            let _ = stream.set_reliability_params(true, ReliabilityType::Rexmit, 0);
        }
        self.outgoing[channel as usize].bind(id);
    }

    fn take_events(&mut self, now: Instant, association: &mut Association) {
        while let Some(event) = association.poll() {
            match event {
                Event::Stream(StreamEvent::Readable { id }) => self.read(now, association, id),
                Event::Stream(StreamEvent::Opened { .. }) => {
                    while association.accept_stream().is_some() {}
                }
                // The client closed a stream.
                Event::AssociationLost { id, .. } => {
                    if let Some(outgoing) = self.outgoing.iter_mut().find(|o| o.is_bound_to(id)) {
                        outgoing.close();
                    }
                }
                _ => {}
            }
        }
    }

    fn read(&mut self, now: Instant, association: &mut Association, id: u16) {
        loop {
            let read = association.stream(id).map(|mut stream| stream.read_sctp());
            let Ok(Ok(Some(message))) = read else {
                return;
            };
            if message.ppi == Ppi::Dcep {
                if let Ok(bytes) = message.to_payload(self.limits.message_bytes_max) {
                    self.handle_dcep(now, association, id, bytes.freeze());
                }
                continue;
            }
            let channel = CHANNELS
                .into_iter()
                .find(|c| self.outgoing[*c as usize].is_bound_to(id));
            let payload = match message.ppi {
                Ppi::StringEmpty | Ppi::BinaryEmpty => Ok(Bytes::new()),
                _ => message
                    .to_payload(self.limits.message_bytes_max)
                    .map(Into::into),
            };
            match (channel, payload) {
                (Some(channel), Ok(payload)) => {
                    // A client that sends has the channel open, though its ACK may be late.
                    self.confirm(channel);
                    let number = match channel {
                        Channel::Reliable => self.hold.give(),
                        Channel::Lossy | Channel::DataTrack => 0,
                    };
                    self.events
                        .push_back(SctpEvent::Data(channel, payload, number));
                }
                _ => self.dropped_in += 1,
            }
        }
    }

    fn handle_dcep(
        &mut self,
        now: Instant,
        association: &mut Association,
        id: u16,
        mut bytes: Bytes,
    ) {
        match Message::unmarshal(&mut bytes) {
            Ok(Message::DataChannelOpen(open)) => {
                let Some(channel) = labelled(&open.label) else {
                    self.dropped_in += 1;
                    return;
                };
                let (unordered, reliability) = match open.channel_type {
                    ChannelType::Reliable => (false, ReliabilityType::Reliable),
                    ChannelType::ReliableUnordered => (true, ReliabilityType::Reliable),
                    ChannelType::PartialReliableRexmit => (false, ReliabilityType::Rexmit),
                    ChannelType::PartialReliableRexmitUnordered => (true, ReliabilityType::Rexmit),
                    ChannelType::PartialReliableTimed => (false, ReliabilityType::Timed),
                    _ => (true, ReliabilityType::Timed),
                };
                if let Ok(mut stream) = association.stream(id) {
                    let parameter = open.reliability_parameter;
                    let _ = stream.set_reliability_params(unordered, reliability, parameter);
                }
                write_dcep(
                    now,
                    association,
                    id,
                    &Message::DataChannelAck(DataChannelAck),
                );
                self.outgoing[channel as usize].bind(id);
                self.confirm(channel);
            }
            Ok(Message::DataChannelAck(_)) => {
                let channel = CHANNELS
                    .into_iter()
                    .find(|c| self.outgoing[*c as usize].is_bound_to(id));
                if let Some(channel) = channel {
                    self.confirm(channel);
                }
            }
            _ => self.dropped_in += 1,
        }
    }

    fn confirm(&mut self, channel: Channel) {
        if self.outgoing[channel as usize].confirm() {
            self.events.push_back(SctpEvent::Open(channel));
        }
    }

    /// Hands queued messages to the library while it has room.
    fn pump(&mut self, now: Instant, association: &mut Association) {
        for outgoing in &mut self.outgoing {
            let Some(id) = outgoing.stream() else {
                continue;
            };
            let Ok(mut stream) = association.stream(id) else {
                outgoing.close();
                continue;
            };
            let ahead_max = if outgoing.is_reliable() {
                IN_LIBRARY_RELIABLE
            } else {
                IN_LIBRARY_LOSSY
            };
            while stream
                .buffered_amount()
                .is_ok_and(|ahead| ahead < ahead_max)
            {
                let Some(message) = outgoing.pop() else {
                    break;
                };
                let written = if message.is_empty() {
                    stream.write_chunk_with_ppi(now, &Bytes::from_static(&[0]), Ppi::BinaryEmpty)
                } else {
                    stream.write_chunk_with_ppi(now, &message, Ppi::Binary)
                };
                if written.is_err() {
                    outgoing.close();
                    break;
                }
            }
        }
    }

    fn close_channels(&mut self) {
        self.outgoing.iter_mut().for_each(Outgoing::close);
    }
}

fn transport_config(limits: &DataLimits) -> TransportConfig {
    // The peer may be gone for the length of an ICE restart; the library counts expiries of a timer
    // that doubles from about a second.
    let timers = TimerConfig {
        max_t3_rtx_retrans: 12,
        ..TimerConfig::default()
    };
    TransportConfig::default()
        .with_max_message_size(u32::try_from(limits.message_bytes_max).unwrap_or(u32::MAX))
        .with_timer_config(timers)
}

fn write_dcep(now: Instant, association: &mut Association, id: u16, message: &Message) {
    if let (Ok(mut stream), Ok(bytes)) = (association.stream(id), message.marshal()) {
        // It fails on a stream that is closed already; there is nobody to tell.
        let _ = stream.write_chunk_with_ppi(now, &bytes.freeze(), Ppi::Dcep);
    }
}

/// Takes the packets that an association wants to send now.
fn collect(now: Instant, association: &mut Association, transmits: &mut impl Extend<Bytes>) {
    while let Some(transmit) = association.poll_transmit(now) {
        if let Payload::RawEncode(packets) = transmit.message {
            transmits.extend(packets);
        }
    }
}
