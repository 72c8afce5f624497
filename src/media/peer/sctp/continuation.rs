//! Goes on with an association that another node began, so that nothing is lost: the client sends
//! again whatever the other node did not acknowledge, and notices nothing else.
//!
//! The library cannot be given the state of an association. It is led through a handshake with a
//! client that does not exist, and from then on every packet is translated between its numbers and
//! those of the real client (`outward`, `inward`). The client is told to skip our numbers that the
//! former node may have used (FORWARD TSN, RFC 3758); when it has, the association is ours. If any of
//! it fails, the association is begun anew (`revival`).

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rtc_sctp::{AssociationHandle, ClientConfig};

use super::inward::{FIRST, Inward};
use super::ledger::Standing;
use super::outward::Outward;
use super::packet::has_checksum;
use super::revival::Revival;
use super::wire::{self, Packet};
use super::{
    Association, CHANNELS, DatagramEvent, Endpoint, PEER, Payload, Sctp, Session, TransportConfig,
    contain, transport_config,
};
use crate::command::Channel;
use crate::discard::Discard;

/// First repetition of an unanswered skip; the time doubles with each.
const REPEAT_MIN: Duration = Duration::from_millis(150);
/// A client that has not answered by then does not know the association or will not skip.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Packets that wait for the library while the client has not accepted; more are lost.
const INBOX_MAX: usize = 512;
/// Parameters of the forged INIT ACK: RE-CONFIG and FORWARD TSN are known, and a cookie.
const PARAMETERS: [u8; 16] = [
    0x80, 0x08, 0, 6, 130, 192, 0, 0, //
    0, 7, 0, 8, 0, 0, 0, 0,
];

/// What follows from a packet or from time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing but what is in the queues.
    GoOn,
    /// The client has accepted us: the association can be used.
    Accepted,
    /// It does not work: begin anew.
    Restart(&'static str),
}

/// What is known of an association that another node began.
#[derive(Clone, Debug)]
pub(in crate::peer) struct Former {
    /// Where it stood at the last checkpoint.
    pub(in crate::peer) standing: Standing,
    /// Number of the client's reliable messages up to which all nodes have them.
    pub(in crate::peer) sequence: u32,
}

/// The client has not accepted yet.
struct Trial {
    session: Session,
    repeat: Option<(Instant, Duration)>,
    until: Instant,
}

/// An association that goes on here.
pub(super) struct Continuation {
    channels: Vec<(Channel, u16)>,
    handle: AssociationHandle,
    /// Tag of packets to the library.
    library_tag: u32,
    /// Tags on the wire.
    our_tag: u32,
    client_tag: u32,
    trial: Option<Trial>,
    outward: Outward,
    inward: Inward,
    /// For the library.
    inbox: VecDeque<Bytes>,
    /// For the client.
    outbox: VecDeque<Bytes>,
}

impl Continuation {
    /// Begins; the skip is in the outbox. The second part is where the association stands then.
    /// `None` if the library does not play along.
    pub(super) fn begin(
        now: Instant,
        former: Former,
        channels: &[(Channel, u16)],
        endpoint: &mut Endpoint,
        config: TransportConfig,
    ) -> Option<(Self, Standing)> {
        let Former {
            mut standing,
            sequence,
        } = former;
        let (handle, association) = endpoint
            .connect(now, ClientConfig::new(config), PEER)
            .ok()?;
        let mut session = Session {
            handle,
            association: Box::new(association),
        };
        let (library_tag, initial) = establish(now, &standing, endpoint, &mut session)?;
        let ids = channels.iter().map(|(_, id)| *id);
        let outward = Outward::new(&standing, ids, initial);
        let mut reliable = channels.iter();
        let reliable = reliable
            .find(|(channel, _)| *channel == Channel::Reliable)
            .map(|(_, id)| (*id, sequence));
        let mut this = Self {
            channels: channels.to_vec(),
            handle,
            library_tag,
            our_tag: standing.our_tag,
            client_tag: standing.client_tag,
            trial: Some(Trial {
                session,
                repeat: Some((now + REPEAT_MIN, REPEAT_MIN)),
                until: now + ANSWER_MAX,
            }),
            outward,
            inward: Inward::new(standing.acknowledged, reliable),
            inbox: VecDeque::with_capacity(CHANNELS.len()),
            outbox: VecDeque::with_capacity(1),
        };
        this.outward.skip(&mut standing);
        this.push_skip();
        Some((this, standing))
    }

    pub(super) const fn handle(&self) -> AssociationHandle {
        self.handle
    }

    pub(super) fn channels(&self) -> &[(Channel, u16)] {
        &self.channels
    }

    /// The library's end, once the client has accepted; or when nothing comes of it.
    pub(super) fn take_session(&mut self) -> Option<Session> {
        self.trial.take().map(|trial| trial.session)
    }

    /// Messages of which the former node had the beginning.
    pub(super) const fn torn(&self) -> u64 {
        self.inward.torn()
    }

    /// Whether a packet of the client belongs to this association.
    pub(super) fn is_for(&self, packet: &[u8]) -> bool {
        wire::tag(packet) == Some(self.our_tag)
    }

    pub(super) fn poll_inbox(&mut self) -> Option<Bytes> {
        // The library can have it once the association is in use.
        if self.trial.is_some() {
            return None;
        }
        self.inbox.pop_front()
    }

    pub(super) fn poll_outbox(&mut self) -> Option<Bytes> {
        self.outbox.pop_front()
    }

    /// Takes a packet of the client, whose checksum has been looked at.
    pub(super) fn receive(&mut self, now: Instant, packet: &Bytes) -> Verdict {
        let mut verdict = Verdict::GoOn;
        let mut out = Packet::like(packet, self.library_tag);
        for chunk in wire::chunks(packet) {
            match chunk.kind {
                wire::DATA => self.inward.take_data(now, &chunk, &mut out),
                wire::FORWARD_TSN => self.inward.take_forward(now, &chunk, &mut out),
                wire::SACK => {
                    let Some(cumulative) = chunk.u32(4) else {
                        continue;
                    };
                    match (self.outward.compare_to_skip(cumulative), &self.trial) {
                        (Ordering::Less, _) => continue,
                        (Ordering::Equal, Some(_)) => verdict = Verdict::Accepted,
                        // Another node got farther than the checkpoint tells.
                        (Ordering::Greater, Some(_)) => {
                            return Verdict::Restart("the client is ahead of the checkpoint");
                        }
                        (_, None) => {}
                    }
                    let bytes = out.copy(chunk.bytes);
                    add_to_sack(bytes, self.outward.offset().wrapping_neg());
                }
                wire::ABORT if self.trial.is_some() => {
                    return Verdict::Restart("the client ended the association");
                }
                wire::SHUTDOWN => {
                    let bytes = out.copy(chunk.bytes);
                    wire::add_u32(bytes, 4, self.outward.offset().wrapping_neg());
                }
                wire::RE_CONFIG => {
                    let Some(offset) = self.inward.offset() else {
                        continue;
                    };
                    let requests = self.outward.request_offset().wrapping_neg();
                    let inward = &mut self.inward;
                    let ids = translate_reset(out.copy(chunk.bytes), 0, requests, offset);
                    ids.iter().for_each(|ids| inward.reset(ids));
                }
                // The former node took it, and its answer was lost.
                wire::COOKIE_ECHO => {
                    let mut answer = Packet::new(self.client_tag);
                    answer.push(wire::COOKIE_ACK, &[]);
                    self.outbox.extend(answer.seal());
                }
                // Of a handshake that is long over.
                wire::INIT | wire::INIT_ACK | wire::COOKIE_ACK => {}
                _ => {
                    out.copy(chunk.bytes);
                }
            }
        }
        // What was held comes before what it made room for.
        self.inward.take_held(self.library_tag, &mut self.inbox);
        if self.inbox.len() < INBOX_MAX {
            self.inbox.extend(out.seal());
        }
        self.acknowledge();
        verdict
    }

    /// A packet of the library as the client gets it.
    pub(super) fn translate(&mut self, now: Instant, packet: &Bytes) -> Option<Bytes> {
        let mut out = Packet::like(packet, self.client_tag);
        for chunk in wire::chunks(packet) {
            match chunk.kind {
                wire::DATA => self.outward.write_data(&chunk, &mut out),
                wire::FORWARD_TSN => self.outward.write_forward(&chunk, &mut out),
                wire::SACK => {
                    let (Some(offset), Some(cumulative)) = (self.inward.offset(), chunk.u32(4))
                    else {
                        continue;
                    };
                    let offset = offset.wrapping_neg();
                    add_to_sack(out.copy(chunk.bytes), offset);
                    let has_gaps = chunk.u16(12).is_some_and(|gaps| gaps > 0);
                    let cumulative = cumulative.wrapping_add(offset);
                    self.inward.note_sack(now, cumulative, has_gaps);
                }
                wire::SHUTDOWN => {
                    let offset = self.inward.offset().unwrap_or_default().wrapping_neg();
                    wire::add_u32(out.copy(chunk.bytes), 4, offset);
                }
                wire::RE_CONFIG => {
                    let requests = self.outward.request_offset();
                    let tsn = self.outward.offset();
                    let bytes = out.copy(chunk.bytes);
                    let ids = translate_reset(bytes, requests, 0, tsn);
                    ids.iter().for_each(|ids| self.outward.reset(ids));
                }
                _ => {
                    out.copy(chunk.bytes);
                }
            }
        }
        self.inward.take_held(self.library_tag, &mut self.inbox);
        out.seal()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.trial {
            Some(trial) => {
                let repeat = trial.repeat.map(|(at, _)| at);
                Some(repeat.map_or(trial.until, |at| at.min(trial.until)))
            }
            None => self.inward.deadline(),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Verdict {
        let Some(trial) = &mut self.trial else {
            let outcome = self.inward.handle_timeout(now);
            self.inward.take_held(self.library_tag, &mut self.inbox);
            self.acknowledge();
            return outcome.map_or_else(Verdict::Restart, |()| Verdict::GoOn);
        };
        if now >= trial.until {
            return Verdict::Restart("the client does not answer");
        }
        if let Some((_, after)) = trial.repeat.take_if(|(at, _)| *at <= now) {
            let after = after * 2;
            trial.repeat = Some((now + after, after));
            self.push_skip();
        }
        Verdict::GoOn
    }

    fn push_skip(&mut self) {
        let mut packet = Packet::new(self.client_tag);
        self.outward.write_skip(&mut packet);
        self.outbox.extend(packet.seal());
    }

    /// Acknowledges what the library does not know of.
    fn acknowledge(&mut self) {
        if let Some(sack) = self.inward.take_acknowledgement() {
            let mut packet = Packet::new(self.client_tag);
            packet.push(wire::SACK, &sack);
            self.outbox.extend(packet.seal());
        }
    }
}

impl Sctp {
    /// Goes on with another node's association. False if that cannot be.
    pub(super) fn resume(
        &mut self,
        now: Instant,
        former: Former,
        channels: &[(Channel, u16)],
    ) -> bool {
        let (endpoint, limits) = (&mut self.endpoint, &self.limits);
        let begun = contain("sctp", || {
            let config = transport_config(limits);
            Continuation::begin(now, former, channels, endpoint, config)
        });
        let Ok(Some((continuation, standing))) = begun else {
            return false;
        };
        self.revival = None;
        self.ledger.resume(standing);
        self.continuation = Some(continuation);
        self.send_outbox();
        true
    }

    /// Takes a packet of a client whose association is continued.
    pub(super) fn handle_continued(&mut self, now: Instant, packet: Bytes) -> Result<(), Discard> {
        // It gets a new checksum, which must not hide a wrong one.
        if !has_checksum(&packet) {
            return Err(Discard::Malformed);
        }
        let Some(continuation) = &mut self.continuation else {
            return Ok(());
        };
        let verdict = continuation.receive(now, &packet);
        self.follow(now, verdict);
        self.drive(now)
    }

    /// Lets time pass for an association that is continued.
    pub(super) fn continue_in_time(&mut self, now: Instant) {
        if let Some(continuation) = &mut self.continuation {
            let verdict = continuation.handle_timeout(now);
            self.follow(now, verdict);
        }
    }

    /// Nothing more is translated: another association has taken its place.
    pub(super) fn abandon_continuation(&mut self) {
        if let Some(session) = self.drop_continuation().and_then(|mut c| c.take_session()) {
            self.forget(&session);
        }
    }

    fn drop_continuation(&mut self) -> Option<Continuation> {
        let continuation = self.continuation.take()?;
        self.torn += continuation.torn();
        Some(continuation)
    }

    fn follow(&mut self, now: Instant, verdict: Verdict) {
        self.send_outbox();
        match verdict {
            Verdict::GoOn => {}
            Verdict::Accepted => self.accept(),
            Verdict::Restart(reason) => self.fall_back(now, reason),
        }
    }

    /// The client goes on with us.
    fn accept(&mut self) {
        let Some(continuation) = &mut self.continuation else {
            return;
        };
        let Some(session) = continuation.take_session() else {
            return;
        };
        let channels = continuation.channels().to_vec();
        let former = self.current.replace(session);
        let others = std::mem::take(&mut self.pending);
        for other in others.into_iter().chain(former) {
            self.forget(&other);
        }
        self.close_channels();
        self.open_agreed(&channels);
        tracing::info!("data channels go on");
    }

    /// The association cannot be continued.
    fn fall_back(&mut self, now: Instant, reason: &'static str) {
        let Some(mut continuation) = self.drop_continuation() else {
            return;
        };
        tracing::warn!(reason, "data channels begin anew; messages may be lost");
        let handle = continuation.handle();
        let current = self.current.take_if(|session| session.handle == handle);
        for session in current.into_iter().chain(continuation.take_session()) {
            self.forget(&session);
            self.close_channels();
        }
        self.revival = Some(Revival::new(continuation.channels()));
        self.begin_anew(now);
    }

    fn send_outbox(&mut self) {
        while let Some(packet) = self
            .continuation
            .as_mut()
            .and_then(Continuation::poll_outbox)
        {
            self.ledger.note_sent(&packet);
            self.transmits.push_back(packet);
        }
    }
}

/// Leads the library through a handshake. Gives its tag and its first TSN.
fn establish(
    now: Instant,
    standing: &Standing,
    endpoint: &mut Endpoint,
    session: &mut Session,
) -> Option<(u32, u32)> {
    let init = sent_by(now, &mut session.association)?;
    let chunk = wire::chunks(&init).find(|chunk| chunk.kind == wire::INIT)?;
    let (tag, initial) = (chunk.u32(4)?, chunk.u32(16)?);
    let mut value = Vec::with_capacity(16 + PARAMETERS.len());
    value.extend_from_slice(&standing.client_tag.to_be_bytes());
    value.extend_from_slice(&standing.window.to_be_bytes());
    value.extend_from_slice(&standing.client_streams.0.to_be_bytes());
    value.extend_from_slice(&standing.client_streams.1.to_be_bytes());
    value.extend_from_slice(&FIRST.to_be_bytes());
    value.extend_from_slice(&PARAMETERS);
    for (kind, value) in [(wire::INIT_ACK, &value[..]), (wire::COOKIE_ACK, &[])] {
        let mut packet = Packet::new(tag);
        packet.push(kind, value);
        match endpoint.handle(now, PEER, None, packet.seal()?) {
            Some((handle, DatagramEvent::AssociationEvent(event))) if handle == session.handle => {
                session.association.handle_event(event);
            }
            _ => return None,
        }
        // Its COOKIE ECHO has reached nobody.
        let _ = sent_by(now, &mut session.association);
    }
    (!session.association.is_handshaking()).then_some((tag, initial))
}

/// The one packet that an association sends in a handshake.
fn sent_by(now: Instant, association: &mut Association) -> Option<Bytes> {
    let mut sent = None;
    while let Some(transmit) = association.poll_transmit(now) {
        if let Payload::RawEncode(packets) = transmit.message {
            sent = packets.into_iter().next_back();
        }
    }
    sent
}

/// Moves the TSNs of a SACK: the cumulative one and, behind the gaps, those that came twice.
fn add_to_sack(chunk: &mut [u8], offset: u32) {
    wire::add_u32(chunk, 4, offset);
    let gaps = usize::from(wire::u16_at(chunk, 12).unwrap_or_default());
    for at in (16 + 4 * gaps..chunk.len()).step_by(4) {
        wire::add_u32(chunk, at, offset);
    }
}

/// Moves the numbers of a RE-CONFIG: those of its sender's requests, of its receiver's, and the last
/// TSN of its sender. Gives the streams of each request to begin streams anew.
fn translate_reset(chunk: &mut [u8], requests: u32, responses: u32, tsn: u32) -> Vec<Vec<u16>> {
    let parameters: Vec<_> = wire::parameters(chunk, wire::CHUNK_HEADER_LEN).collect();
    let mut resets = Vec::new();
    for (kind, at, len) in parameters {
        match kind {
            wire::RESET_OUTGOING => {
                wire::add_u32(chunk, at + 4, requests);
                wire::add_u32(chunk, at + 8, responses);
                wire::add_u32(chunk, at + 12, tsn);
                let ids = (at + 16..at + len).step_by(2);
                resets.push(ids.filter_map(|at| wire::u16_at(chunk, at)).collect());
            }
            wire::RESET_INCOMING => wire::add_u32(chunk, at + 4, requests),
            wire::RESET_RESPONSE => wire::add_u32(chunk, at + 4, responses),
            _ => {}
        }
    }
    resets
}
