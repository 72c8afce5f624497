//! One other node: its address, keys, counters, round trip and whether it is heard.
//!
//! Owned by the router. Sealing and opening happen here; what the messages mean is decided by the
//! router.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotilla_model::id::{BootId, NodeId};

use crate::discard::Discard;
use crate::forward::Wire;
use crate::relay::keys::{DirectionKey, End, HEAD_LEN, ReplayWindow, TAG_LEN};
use crate::relay::message;
use crate::relay::transit::Detour;

/// Time between pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Without an authentic packet for so long a link counts as down.
const SILENCE: Duration = Duration::from_secs(4);
/// Round trip assumed until it is measured.
const RTT_DEFAULT: Duration = Duration::from_millis(50);

/// Identity of this side, as keys are derived from it.
#[derive(Clone, Copy)]
pub struct Local<'a> {
    /// This node and start.
    pub end: End,
    /// This shard.
    pub shard: u16,
    /// The cluster's relay secret.
    pub secret: &'a [u8; 32],
}

/// A link to another node.
pub struct Link {
    /// The other end.
    pub remote: End,
    /// Where it is reached.
    pub address: SocketAddr,
    /// The node is gone; keys and counters stay, so that it may come back without repeating one.
    pub is_removed: bool,
    /// The way to it while the direct one is cut.
    pub detour: Option<Detour>,
    /// Packets sent.
    pub packets_sent: u64,
    /// Authentic packets received.
    pub packets_received: u64,
    sealing: DirectionKey,
    opening: DirectionKey,
    counter: u64,
    replay: ReplayWindow,
    first_received: Option<u64>,
    heard: Option<Instant>,
    rtt: Option<Duration>,
    ping: Option<(u64, Instant)>,
    next_ping: Instant,
}

impl Link {
    /// A link whose counter starts at `counter`, which no earlier one between these starts has reached.
    #[must_use]
    pub fn new(
        now: Instant,
        local: Local<'_>,
        node: NodeId,
        boot: BootId,
        address: SocketAddr,
        counter: u64,
    ) -> Self {
        let remote = End { node, boot };
        Self {
            remote,
            address,
            is_removed: false,
            detour: None,
            packets_sent: 0,
            packets_received: 0,
            sealing: DirectionKey::derive(local.secret, local.shard, local.end, remote),
            opening: DirectionKey::derive(local.secret, local.shard, remote, local.end),
            counter,
            replay: ReplayWindow::default(),
            first_received: None,
            heard: None,
            rtt: None,
            ping: None,
            next_ping: now,
        }
    }

    /// Names the key of packets that arrive on it.
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.opening.tag
    }

    /// Smoothed round trip; an assumption until measured.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.rtt.unwrap_or(RTT_DEFAULT)
    }

    /// Round trip, if measured.
    #[must_use]
    pub fn measured_rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Authentic packets arrive.
    #[must_use]
    pub fn is_up(&self, now: Instant) -> bool {
        self.heard
            .is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE)
    }

    /// Packets lost on the way here, by the gaps in the counter.
    #[must_use]
    pub fn packets_lost(&self) -> u64 {
        let sent = match (self.first_received, self.replay.highest()) {
            (Some(first), Some(highest)) => highest.saturating_sub(first) + 1,
            _ => 0,
        };
        sent.saturating_sub(self.packets_received)
    }

    /// Sends a message that `write` builds; nothing if it writes 0 bytes or the node is gone.
    pub fn send<W: Wire>(&mut self, wire: &mut W, write: impl FnOnce(&mut [u8]) -> usize) {
        if self.is_removed {
            return;
        }
        let counter = self.counter;
        let key = &self.sealing;
        let mut is_sent = false;
        let seal = |buffer: &mut [u8]| {
            let end = buffer.len().saturating_sub(TAG_LEN);
            let len = match buffer.get_mut(HEAD_LEN..end) {
                Some(room) => write(room),
                None => 0,
            };
            if len == 0 {
                return 0;
            }
            is_sent = true;
            key.seal(buffer, len, counter)
        };
        match &mut self.detour {
            None => wire.send_relay(self.address, seal),
            Some(detour) => wire.send_relay(detour.address, |buffer| detour.wrap(buffer, seal)),
        }
        if is_sent {
            self.counter += 1;
            self.packets_sent += 1;
        }
    }

    /// Opens a packet in place.
    ///
    /// # Errors
    /// `Unauthenticated` or `Replayed`.
    pub fn open<'a>(&mut self, now: Instant, packet: &'a mut [u8]) -> Result<&'a [u8], Discard> {
        let (counter, plain) = self.opening.open(packet)?;
        self.replay.accept(counter)?;
        self.first_received = Some(
            self.first_received
                .map_or(counter, |first| first.min(counter)),
        );
        self.heard = Some(now);
        self.packets_received += 1;
        Ok(plain)
    }

    /// When the next ping is due.
    #[must_use]
    pub fn next_ping(&self) -> Instant {
        self.next_ping
    }

    /// Sends a ping if one is due. A lost one is simply followed by the next.
    pub fn ping<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        if now < self.next_ping || self.is_removed {
            return;
        }
        self.next_ping = now + PING_INTERVAL;
        let number = self.counter;
        self.ping = Some((number, now));
        self.send(wire, |buffer| message::write_ping(buffer, number));
    }

    /// The other node answered a ping.
    pub fn pong(&mut self, now: Instant, number: u64) {
        if let Some((_, sent)) = self.ping.take_if(|(expected, _)| *expected == number) {
            let sample = now.saturating_duration_since(sent);
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        }
    }
}
