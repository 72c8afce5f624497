//! Where the association with the client stands, read off the packets on the wire, so that another
//! node can go on with it (`continuation`). The library keeps its own state to itself.
//!
//! Sits between the library and DTLS and sees every packet, both ways, as the client does: what a
//! translator changes it has changed already. Owned by `Sctp`; carried by the transport's snapshot.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::wire::{
    self, COOKIE_ECHO, Chunk, Data, FORWARD_TSN, INIT, INIT_ACK, RE_CONFIG, RESET_OUTGOING, SACK,
    is_before, is_before_16,
};

/// Streams whose sequence numbers are kept: a client has three channels.
const STREAMS_MAX: usize = 16;
/// Handshakes that may be under way at once.
const HANDSHAKES_MAX: usize = 4;
/// Where INIT and INIT ACK have their parameters.
const INIT_FIXED: usize = 20;
/// A parameter that lists chunk types (RFC 5061 §4.2.7), and the one of RFC 3758 §3.1.
const SUPPORTED_EXTENSIONS: u16 = 0x8008;
const FORWARD_TSN_SUPPORTED: u16 = 0xc000;

/// An established association.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(in crate::peer) struct Standing {
    /// Tag of the packets that the client sends.
    pub(super) our_tag: u32,
    /// Tag of those that it receives.
    pub(super) client_tag: u32,
    /// The client understands FORWARD TSN.
    pub(super) skips: bool,
    /// Streams that the client may send on, and that it takes.
    pub(super) client_streams: (u16, u16),
    /// Bytes that it takes ahead.
    pub(super) window: u32,
    /// Highest TSN sent to it.
    pub(super) sent: u32,
    /// Highest TSN up to which it was told that everything arrived.
    pub(super) acknowledged: u32,
    /// Number of our next RE-CONFIG request.
    pub(super) next_request: u32,
    /// Next sequence number of each of our streams.
    pub(super) streams: Vec<(u16, u16)>,
}

impl Standing {
    /// Whether it can be what this node wrote.
    pub(in crate::peer) const fn is_sane(&self) -> bool {
        self.our_tag != 0 && self.client_tag != 0 && self.streams.len() <= STREAMS_MAX
    }

    /// Next sequence number of a stream of ours.
    pub(super) fn next_ssn(&self, stream: u16) -> u16 {
        let mut streams = self.streams.iter();
        streams
            .find(|(id, _)| *id == stream)
            .map_or(0, |(_, next)| *next)
    }

    /// Notes that numbers before these are used up.
    pub(super) fn skip_ssn(&mut self, stream: u16, next: u16) {
        if let Some((_, known)) = self.streams.iter_mut().find(|(id, _)| *id == stream) {
            if is_before_16(*known, next) {
                *known = next;
            }
        } else if self.streams.len() < STREAMS_MAX {
            self.streams.push((stream, next));
        }
    }
}

/// What a client said of itself in a handshake, and we to it.
struct Handshake {
    client_tag: u32,
    client_first: u32,
    skips: bool,
    client_streams: (u16, u16),
    window: u32,
    ours: Option<Offer>,
}

/// Our tag and first TSN.
#[derive(Clone, Copy)]
struct Offer {
    tag: u32,
    first: u32,
}

/// Reads packets.
#[derive(Default)]
pub(super) struct Ledger {
    /// Our INIT that was not answered yet.
    offer: Option<Offer>,
    /// The oldest goes first.
    handshakes: VecDeque<Handshake>,
    standing: Option<Standing>,
}

impl Ledger {
    pub(super) const fn standing(&self) -> Option<&Standing> {
        self.standing.as_ref()
    }

    /// Goes on from another node's ledger.
    pub(super) fn resume(&mut self, standing: Standing) {
        self.standing = Some(standing);
    }

    /// Reads a packet of the client.
    pub(super) fn note_received(&mut self, packet: &[u8]) {
        // Both come alone.
        let Some(chunk) = wire::chunks(packet).next() else {
            return;
        };
        let ours = match chunk.kind {
            INIT => None,
            INIT_ACK => {
                let ours = self.offer.filter(|o| wire::tag(packet) == Some(o.tag));
                if ours.is_none() {
                    return;
                }
                ours
            }
            _ => return,
        };
        let Some(mut handshake) = Handshake::of(&chunk) else {
            return;
        };
        handshake.ours = ours;
        let tag = handshake.client_tag;
        self.handshakes.retain(|other| other.client_tag != tag);
        if self.handshakes.len() == HANDSHAKES_MAX {
            self.handshakes.pop_front();
        }
        self.handshakes.push_back(handshake);
    }

    /// Reads a packet to the client.
    pub(super) fn note_sent(&mut self, packet: &[u8]) {
        let Some(tag) = wire::tag(packet) else {
            return;
        };
        for chunk in wire::chunks(packet) {
            match chunk.kind {
                INIT => self.offer = Offer::of(&chunk),
                INIT_ACK => {
                    let mut handshakes = self.handshakes.iter_mut();
                    if let Some(known) = handshakes.find(|h| h.client_tag == tag) {
                        known.ours = Offer::of(&chunk);
                    }
                }
                COOKIE_ECHO => {}
                _ => {
                    self.establish(tag);
                    if let Some(standing) = &mut self.standing
                        && standing.client_tag == tag
                    {
                        standing.note_sent(&chunk);
                    }
                }
            }
        }
    }

    /// Something other than a handshake goes to this tag: that is the association now.
    fn establish(&mut self, tag: u32) {
        if self.standing.as_ref().is_some_and(|s| s.client_tag == tag) {
            return;
        }
        let known = self.handshakes.iter().find(|h| h.client_tag == tag);
        let Some((handshake, ours)) = known.and_then(|known| Some((known, known.ours?))) else {
            return;
        };
        self.standing = Some(Standing {
            our_tag: ours.tag,
            client_tag: tag,
            skips: handshake.skips,
            client_streams: handshake.client_streams,
            window: handshake.window,
            sent: ours.first.wrapping_sub(1),
            acknowledged: handshake.client_first.wrapping_sub(1),
            next_request: ours.first,
            streams: Vec::with_capacity(STREAMS_MAX),
        });
    }
}

impl Standing {
    fn note_sent(&mut self, chunk: &Chunk<'_>) {
        match chunk.kind {
            wire::DATA => {
                let Some(data) = Data::of(chunk) else {
                    return;
                };
                if is_before(self.sent, data.tsn) {
                    self.sent = data.tsn;
                }
                if data.is_ordered() {
                    self.skip_ssn(data.stream, data.ssn.wrapping_add(1));
                }
            }
            SACK => {
                if let Some(cumulative) = chunk.u32(4)
                    && is_before(self.acknowledged, cumulative)
                {
                    self.acknowledged = cumulative;
                }
            }
            RE_CONFIG => {
                for (kind, at, len) in wire::parameters(chunk.bytes, wire::CHUNK_HEADER_LEN) {
                    let request = chunk.u32(at + 4);
                    if let Some(request) = request.filter(|_| kind == RESET_OUTGOING) {
                        self.next_request = request.wrapping_add(1);
                        let ids = (at + 16..at + len).step_by(2);
                        let ids = ids.filter_map(|at| chunk.u16(at));
                        ids.for_each(|id| self.streams.retain(|(known, _)| *known != id));
                    }
                }
            }
            _ => {}
        }
    }
}

impl Handshake {
    fn of(chunk: &Chunk<'_>) -> Option<Self> {
        let skips = wire::parameters(chunk.bytes, INIT_FIXED).any(|(kind, at, len)| match kind {
            FORWARD_TSN_SUPPORTED => true,
            SUPPORTED_EXTENSIONS => {
                let listed = chunk.bytes.get(at + 4..at + len);
                listed.is_some_and(|listed| listed.contains(&FORWARD_TSN))
            }
            _ => false,
        });
        Some(Self {
            client_tag: chunk.u32(4)?,
            window: chunk.u32(8)?,
            client_streams: (chunk.u16(12)?, chunk.u16(14)?),
            client_first: chunk.u32(16)?,
            skips,
            ours: None,
        })
    }
}

impl Offer {
    fn of(chunk: &Chunk<'_>) -> Option<Self> {
        Some(Self {
            tag: chunk.u32(4)?,
            first: chunk.u32(16)?,
        })
    }
}
