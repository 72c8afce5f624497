//! Begins anew, from this side, an association that the client believes to be up because it had it
//! with another node. RFC 9260 §5.2: the client takes the unexpected INIT for a restart, keeps its
//! channels open, and starts their numbers anew.
//!
//! The library's first repetition of an unanswered packet comes after a second, which everybody who
//! sends data would notice; here the packets of the handshake are repeated sooner.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rtc_sctp::{AssociationHandle, ClientConfig};

use super::{CHANNELS, Former, PEER, Sctp, Session, contain, transport_config};
use crate::command::Channel;

/// First repetition; the time doubles with each.
const REPEAT_MIN: Duration = Duration::from_millis(150);
/// From here on the library's own timer is as good.
const REPEAT_MAX: Duration = Duration::from_secs(1);
/// The stream id that means none.
const NO_STREAM: u16 = u16::MAX;

/// An association to begin, or being begun.
pub(super) struct Revival {
    /// Stream of each channel that is open at the client.
    streams: [Option<u16>; CHANNELS.len()],
    /// The association, once there is one.
    handle: Option<AssociationHandle>,
    /// Its packets that wait for an answer.
    unanswered: Vec<Bytes>,
    repeat: Option<(Instant, Duration)>,
}

impl Revival {
    pub(super) fn new(channels: &[(Channel, u16)]) -> Self {
        let mut streams = [None; CHANNELS.len()];
        for (channel, id) in channels {
            // What the client says is not to be trusted: each stream serves one channel.
            if *id != NO_STREAM && !streams.contains(&Some(*id)) {
                streams[*channel as usize].get_or_insert(*id);
            }
        }
        Self {
            streams,
            handle: None,
            unanswered: Vec::new(),
            repeat: None,
        }
    }

    /// Whether this association is the one that was begun here.
    pub(super) fn is_by(&self, handle: AssociationHandle) -> bool {
        self.handle == Some(handle)
    }

    /// Channels with their streams.
    pub(super) fn channels(&self) -> Vec<(Channel, u16)> {
        CHANNELS
            .into_iter()
            .zip(self.streams)
            .filter_map(|(channel, stream)| Some((channel, stream?)))
            .collect()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.repeat.map(|(at, _)| at)
    }

    /// Notes what an association has sent.
    pub(super) fn sent<'a>(
        &mut self,
        now: Instant,
        handle: AssociationHandle,
        packets: impl ExactSizeIterator<Item = &'a Bytes>,
    ) {
        if self.is_by(handle) && packets.len() > 0 {
            self.unanswered = packets.cloned().collect();
            self.repeat = Some((now + REPEAT_MIN, REPEAT_MIN));
        }
    }

    /// The packets, if it is time to repeat them.
    fn take_due(&mut self, now: Instant) -> &[Bytes] {
        let Some((_, after)) = self.repeat.take_if(|(at, _)| *at <= now) else {
            return &[];
        };
        let after = after * 2;
        self.repeat = (after <= REPEAT_MAX).then_some((now + after, after));
        &self.unanswered
    }
}

impl Sctp {
    /// The client has these channels open on an association that is not known here, but for where it
    /// stood at the former node.
    pub(in crate::peer) fn revive(&mut self, channels: &[(Channel, u16)], former: Option<Former>) {
        self.revival = Some(Revival::new(channels));
        self.resumable = former.filter(|former| former.standing.skips);
    }

    /// Packets reach the client from now on: goes on with the association that waits for this, or
    /// begins it anew.
    pub(in crate::peer) fn begin(&mut self, now: Instant) {
        let Some(revival) = &self.revival else {
            return;
        };
        if revival.handle.is_some() || self.current.is_some() || self.continuation.is_some() {
            return;
        }
        let channels = revival.channels();
        let former = self.resumable.take().filter(|_| !channels.is_empty());
        if let Some(former) = former
            && self.resume(now, former, &channels)
        {
            return;
        }
        self.begin_anew(now);
    }

    /// The client has an association and is to begin it anew.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        let Some(revival) = &mut self.revival else {
            return;
        };
        let (endpoint, limits) = (&mut self.endpoint, &self.limits);
        let begun = contain("sctp", || {
            endpoint.connect(now, ClientConfig::new(transport_config(limits)), PEER)
        });
        let Ok(Ok((handle, association))) = begun else {
            self.revival = None;
            return;
        };
        revival.handle = Some(handle);
        self.pending.push_back(Session {
            handle,
            association: Box::new(association),
        });
        // It only collects the first packet.
        let _ = self.drive(now);
    }

    pub(super) fn repeat_handshake(&mut self, now: Instant) {
        if let Some(revival) = &mut self.revival {
            self.transmits.extend(revival.take_due(now).iter().cloned());
        }
    }
}
