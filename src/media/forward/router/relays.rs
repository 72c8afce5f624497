//! Tracks from and to other nodes. The receiving node says what it wants; the sending one sends
//! exactly that. Whatever comes for a track that is not expected from its node is dropped at once:
//! nothing is held until a route arrives, since the receiver asks for a key frame then anyway.

use std::time::Instant;

use flotilla_model::id::{Epoch, NodeId};
use flotilla_model::track::{Quality, Track as TrackInfo};

use crate::discard::Discard;
use crate::forward::Wire;
use crate::forward::rewrite::Shared;
use crate::forward::router::{Router, describe};
use crate::forward::select::choose;
use crate::forward::track::{REORDER_RELAY, Track, media_head, quality_of};
use crate::receive::nack::Origin;
use crate::receive::report::SenderClock;
use crate::receive::stream::{Arrival, Numbering};
use crate::relay::keys;
use crate::relay::loan::HEAD_LEN;
use crate::relay::message::{
    self, IN_HASTE, Media, Message, Sequences, Status, TrackRef, Want, write_media, write_pong,
};
use crate::relay::transit;
use crate::rtp::sequence::extend_32;
use crate::stats::TrackSource;

impl Router {
    pub(super) fn receive_relay<W: Wire>(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        if transit::is_transit(bytes) {
            return self.pass_on(bytes, wire);
        }
        let (tag, _) = keys::head(bytes)?;
        let node = *self.tags.get(&tag).ok_or(Discard::UnknownLink)?;
        let link = self.links.get_mut(&node).ok_or(Discard::UnknownLink)?;
        if link.is_removed {
            return Err(Discard::UnknownLink);
        }
        let plain = link.open(now, bytes)?;
        match message::parse(plain)? {
            Message::Media(media, payload) => {
                self.receive_relayed(now, node, &media, payload, wire)
            }
            Message::Want(wants) => {
                for want in wants {
                    self.note_want(now, node, &want);
                }
                Ok(())
            }
            Message::Nack {
                track,
                layer,
                sequences,
            } => self.repair_relay(now, node, track, usize::from(layer), sequences, wire),
            Message::Status(status) => self.note_status(now, node, &status),
            Message::Ping(number) => {
                link.send(wire, |buffer| write_pong(buffer, number));
                Ok(())
            }
            Message::Pong(number) => {
                link.pong(now, number);
                Ok(())
            }
            Message::OnLoan(loan, datagram) => {
                let start = keys::HEAD_LEN + HEAD_LEN;
                self.on_loan = Some((node, loan, start..start + datagram.len()));
                Ok(())
            }
        }
    }

    /// Key of a track that is expected from `node`, unless the message is of a lower epoch than
    /// seen.
    fn expected_track(&mut self, node: NodeId, reference: TrackRef) -> Result<usize, Discard> {
        let key = *self
            .by_hash
            .get(&reference.hash)
            .ok_or(Discard::UnknownTrack)?;
        let track = &mut self.tracks[key];
        if reference.epoch < track.reference.epoch {
            return Err(Discard::StaleEpoch);
        }
        if track.source != TrackSource::Relay(node) {
            return Err(Discard::UnknownTrack);
        }
        if reference.epoch > track.reference.epoch {
            // The node has it from the log, which is late here.
            track.restart_relay(reference.epoch);
        }
        Ok(key)
    }

    fn receive_relayed<W: Wire>(
        &mut self,
        now: Instant,
        node: NodeId,
        media: &Media,
        payload: &[u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        let key = self.expected_track(node, media.track)?;
        let rtt = self
            .links
            .get(&node)
            .map_or_else(Default::default, |link| link.rtt());
        let index = usize::from(media.layer);
        let layer = self.tracks[key]
            .layers
            .get_mut(index)
            .ok_or(Discard::UnknownStream)?;
        if layer.remote_generation != Some(media.generation) {
            if layer.stream.highest().is_some() {
                layer.stream.restart();
            }
            layer.remote_generation = Some(media.generation);
        }
        let number = layer
            .stream
            .highest()
            .map_or(u64::from(media.sequence), |highest| {
                extend_32(highest, media.sequence)
            });
        let arrival = Arrival {
            numbering: Numbering::Extended(number),
            timestamp: media.timestamp,
            marker: media.marker,
            codec: media.codec,
            clock_rate: media.clock_rate,
            carried: media.carried,
            origin: if media.is_repair {
                Origin::Repair
            } else {
                Origin::Original
            },
            arrived: now.checked_sub(media.age + rtt / 2).unwrap_or(now),
        };
        self.accept(now, key, index, &arrival, payload, wire)
            .map(|_| ())
    }

    /// Another node says what it wants of a track that goes there.
    fn note_want(&mut self, now: Instant, node: NodeId, want: &Want) {
        let Some(key) = self.by_hash.get(&want.track.hash) else {
            return;
        };
        let track = &mut self.tracks[*key];
        let live = track.live_layers();
        let quality = quality_of(usize::from(want.quality));
        let mut layers = want.layers & ((1 << track.layers.len()) - 1);
        if layers & live == 0 && quality != Quality::Off {
            // It does not know yet which layers there are: send what it will ask for.
            let candidates = (0..track.layers.len()).map(|i| (quality_of(i), live & 1 << i != 0));
            layers = choose(candidates, quality).map_or(layers, |best| layers | 1 << best);
        }
        let Some(outbound) = track
            .outbound
            .iter_mut()
            .find(|outbound| outbound.node == node)
        else {
            return;
        };
        let added = layers & !outbound.layers;
        if added != 0 || outbound.heard.is_none() {
            outbound.status_at = now;
        }
        outbound.heard = Some(now);
        outbound.layers = layers;
        outbound.quality = quality;
        for (index, layer) in track.layers.iter_mut().enumerate() {
            let is_asked = (want.key_frames | added) & layers & 1 << index != 0;
            if is_asked && layer.stream.codec.has_key_frames() && !track.is_muted {
                layer.stream.key_frames.want();
                if want.key_frames & IN_HASTE != 0 {
                    layer.stream.key_frames.hasten();
                }
            }
        }
        self.timers.hurry();
    }

    /// Another node lacks packets: sends those that are here, within the budget.
    fn repair_relay<W: Wire>(
        &mut self,
        now: Instant,
        node: NodeId,
        reference: TrackRef,
        index: usize,
        sequences: Sequences<'_>,
        wire: &mut W,
    ) -> Result<(), Discard> {
        let key = *self
            .by_hash
            .get(&reference.hash)
            .ok_or(Discard::UnknownTrack)?;
        let Track {
            layers,
            outbound,
            reference,
            ..
        } = &mut self.tracks[key];
        let outbound = outbound
            .iter_mut()
            .find(|outbound| outbound.node == node)
            .ok_or(Discard::UnknownTrack)?;
        let link = self.links.get_mut(&node).ok_or(Discard::UnknownLink)?;
        let stream = &layers.get(index).ok_or(Discard::UnknownStream)?.stream;
        let highest = stream.highest().ok_or(Discard::UnknownStream)?;
        let rtt = link.rtt();
        let budget = &mut outbound.retransmissions[index];
        sequences.for_each(|low| {
            let Some((stored, payload)) = stream.ring.get(extend_32(highest, low)) else {
                return;
            };
            if !budget.allow(now, stored.sequence, payload.len(), rtt, stream.bitrate) {
                return;
            }
            let packet = Shared {
                stored,
                payload,
                abs_send_time: [0; 3],
            };
            let media = media_head(now, *reference, index, stream, &packet, true);
            link.send(wire, |buffer| write_media(buffer, &media, payload));
        });
        Ok(())
    }

    /// Another node tells the state of a track that comes from there.
    fn note_status(&mut self, now: Instant, node: NodeId, status: &Status) -> Result<(), Discard> {
        let key = self.expected_track(node, status.track)?;
        let rtt = self
            .links
            .get(&node)
            .map_or_else(Default::default, |link| link.rtt());
        let track = &mut self.tracks[key];
        track.set_muted(status.is_muted);
        if let Some(inbound) = &mut track.inbound
            && inbound.live.replace(status.live) != Some(status.live)
        {
            self.timers.hurry();
        }
        if let Some(clock) = &status.clock
            && let Some(layer) = track.layers.get_mut(usize::from(clock.layer))
        {
            layer.stream.clock = Some(SenderClock {
                ntp: clock.ntp,
                rtp: clock.rtp,
                at: now.checked_sub(clock.age + rtt / 2).unwrap_or(now),
            });
            for outbound in &mut track.outbound {
                outbound.status_at = now;
            }
        }
        Ok(())
    }

    /// The log says that a track comes from another node.
    pub(super) fn expect_relay(
        &mut self,
        now: Instant,
        key: usize,
        info: &TrackInfo,
        node: NodeId,
        epoch: Epoch,
    ) {
        let track = &mut self.tracks[key];
        if epoch.0 < track.reference.epoch {
            return;
        }
        track.set_source(now, TrackSource::Relay(node), info.kind, REORDER_RELAY);
        if epoch.0 > track.reference.epoch {
            track.restart_relay(epoch.0);
        }
        track.has_nack = true;
        track.has_pli = true;
        track.is_muted = info.muted;
        describe::merge(track, &info.codecs);
    }

    /// A node started anew or went away: nothing that was agreed with it holds.
    pub(super) fn restart_relays(&mut self, now: Instant, node: NodeId) {
        for (_, track) in &mut self.tracks {
            for outbound in &mut track.outbound {
                if outbound.node == node {
                    outbound.stop();
                    outbound.status_at = now;
                }
            }
            if track.source == TrackSource::Relay(node) {
                let epoch = track.reference.epoch;
                track.restart_relay(epoch);
                if let Some(inbound) = &mut track.inbound {
                    inbound.ask_at = now;
                }
            }
        }
    }
}
