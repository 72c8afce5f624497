//! A received packet's way to everyone who wants it: the hot path. No allocation, no lock.

use std::time::{Duration, Instant};

use crate::codec::{Codec, opus};
use crate::command::PeerId;
use crate::discard::Discard;
use crate::event::Event;
use crate::forward::Wire;
use crate::forward::router::{Router, describe};
use crate::forward::track::{Surroundings, Track};
use crate::receive::demux::{Binding, Section, Unknown};
use crate::receive::nack::Origin;
use crate::receive::stream::{Arrival, Numbering};
use crate::rtp::extension::{self, Carried, Identity};
use crate::rtp::packet::Header;
use crate::stats::TrackSource;

/// Playing time of an audio packet whose codec is not looked into.
const AUDIO_PACKET: Duration = Duration::from_millis(20);

impl Router {
    pub(super) fn receive_rtp<W: Wire>(
        &mut self,
        now: Instant,
        peer_id: PeerId,
        packet: &mut [u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        let packet: &[u8] = packet;
        let header = Header::parse(packet)?;
        let peer = self.peers.get_mut(&peer_id).ok_or(Discard::UnknownPeer)?;
        let (identity, carried) = match &header.extension {
            Some((profile, elements)) => {
                extension::read(peer.demux.extensions(), *profile, &packet[elements.clone()])
            }
            None => (Identity::default(), Carried::default()),
        };
        if let (Some(arrivals), Some(sequence)) = (&mut peer.arrivals, identity.twcc) {
            let at = now.saturating_duration_since(self.epoch);
            arrivals.record(sequence, at.as_micros() as u64 + 1);
        }
        let binding = match peer.demux.get(header.ssrc) {
            Some(binding) => binding,
            None => self.learn_stream(peer_id, &header, &identity, packet)?,
        };
        self.receive_media(now, peer_id, &header, carried, binding, packet, wire)
    }

    #[cold]
    fn learn_stream(
        &mut self,
        peer_id: PeerId,
        header: &Header,
        identity: &Identity<'_>,
        packet: &[u8],
    ) -> Result<Binding, Discard> {
        let peer = self.peers.get_mut(&peer_id).ok_or(Discard::UnknownPeer)?;
        let tracks = &self.tracks;
        let unknown = Unknown {
            ssrc: header.ssrc,
            payload_type: header.payload_type,
            identity,
            original_sequence: packet[header.payload.clone()]
                .first_chunk()
                .map(|bytes| u16::from_be_bytes(*bytes)),
        };
        let lacks = |section: &Section, layer: usize, sequence: u16| {
            tracks
                .get(section.track)
                .and_then(|track| track.layers.get(layer))
                .is_some_and(|layer| layer.stream.lacks(sequence))
        };
        let binding = peer.demux.learn(unknown, lacks)?;
        let section = &peer.demux.sections()[binding.section];
        if let Some(track) = self.tracks.get_mut(section.track) {
            describe::note_stream(
                track,
                peer_id,
                binding.layer,
                header.ssrc,
                binding.is_repair,
                &mut self.events,
            );
        }
        Ok(binding)
    }

    #[expect(clippy::too_many_arguments, reason = "the parsed parts of one packet")]
    fn receive_media<W: Wire>(
        &mut self,
        now: Instant,
        peer_id: PeerId,
        header: &Header,
        carried: Carried,
        binding: Binding,
        packet: &[u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        let peer = self.peers.get_mut(&peer_id).ok_or(Discard::UnknownPeer)?;
        let section = &peer.demux.sections()[binding.section];
        let track = self
            .tracks
            .get_mut(section.track)
            .filter(|track| {
                track.source == TrackSource::Local(peer_id) && track.sid == section.negotiated.track
            })
            .ok_or(Discard::UnknownTrack)?;
        let layer = track
            .layers
            .get_mut(binding.layer)
            .ok_or(Discard::UnknownStream)?;
        let mut payload = &packet[header.payload.clone()];
        let mut sequence = header.sequence;
        if binding.is_repair {
            // RFC 4588: the original sequence number leads the payload. Bandwidth probes are
            // retransmissions of nothing, or padding.
            let (original, rest) = payload.split_first_chunk().ok_or(Discard::Probe)?;
            if layer.stream.highest().is_none() {
                return Err(Discard::UnknownStream);
            }
            sequence = u16::from_be_bytes(*original);
            payload = rest;
            layer.stream.repair_ssrc = header.ssrc;
        } else if layer.stream.ssrc != header.ssrc {
            if layer.stream.ssrc != 0 {
                layer.stream.restart();
            }
            layer.stream.ssrc = header.ssrc;
            peer.any_ssrc = header.ssrc;
        }
        let (codec, clock_rate, has_repair) = section
            .codec(header.payload_type, binding.is_repair)
            .ok_or(Discard::UnknownPayloadType)?;
        let arrival = Arrival {
            numbering: Numbering::Wire(sequence),
            timestamp: header.timestamp,
            marker: header.marker,
            codec,
            clock_rate,
            carried,
            origin: if binding.is_repair {
                Origin::Repair
            } else if has_repair {
                Origin::Original
            } else {
                Origin::Unknown
            },
            arrived: now,
        };
        let key = section.track;
        let round_trip = self.accept(now, key, binding.layer, &arrival, payload, wire)?;
        if let (Some(sample), Some(peer)) = (round_trip, self.peers.get_mut(&peer_id)) {
            peer.measured(sample);
        }
        Ok(())
    }

    /// Takes a packet into a layer, from where [`Router::forward`] sends it on. Returns a sample of
    /// the round trip to the source, if the packet gave one.
    pub(super) fn accept<W: Wire>(
        &mut self,
        now: Instant,
        key: usize,
        layer_index: usize,
        arrival: &Arrival,
        payload: &[u8],
        wire: &mut W,
    ) -> Result<Option<Duration>, Discard> {
        let track = self.tracks.get_mut(key).ok_or(Discard::UnknownTrack)?;
        let has_nack = track.has_nack;
        let layer = track
            .layers
            .get_mut(layer_index)
            .ok_or(Discard::UnknownStream)?;
        let accepted = layer.stream.receive(now, arrival, payload, has_nack)?;
        layer.is_declared = true;
        let was_live = layer.is_live;
        if let Some(at) = layer.stream.nack.deadline() {
            self.timers.nack_by(at);
        }
        if !track.is_started {
            self.events.push_back(started(track));
            track.is_started = true;
        }
        if !was_live {
            // The first packet may begin the key frame that everybody waits for.
            track.select(now);
            self.timers.hurry();
        }
        if let Some(level) = arrival.carried.audio_level
            && !track.is_muted
        {
            let duration = match arrival.codec {
                Codec::Opus => opus::duration(payload),
                _ => AUDIO_PACKET,
            };
            track.level.observe(now, level, duration);
        }
        let mut around = Surroundings {
            now,
            epoch: self.epoch,
            links: &mut self.links,
            wire,
            events: &mut self.events,
        };
        if track.take(layer_index, &accepted, &mut around) {
            self.waiting.push_back(key);
        }
        Ok(accepted.round_trip)
    }
}

impl Router {
    /// Sends subscribers what waits for them. Returns `false` if the wire was full first; call it again
    /// once that has room, before more packets are handed in.
    pub fn forward<W: Wire>(&mut self, wire: &mut W) -> bool {
        while let Some(key) = self.waiting.front() {
            // It may have ended meanwhile.
            if let Some(track) = self.tracks.get_mut(*key) {
                if !track.fan_out(self.epoch, wire, &mut self.events) {
                    return false;
                }
                track.is_queued = false;
            }
            self.waiting.pop_front();
        }
        true
    }

    /// Datagrams that [`Self::forward`] would send, about.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let tracks = self.waiting.iter().filter_map(|key| self.tracks.get(*key));
        tracks.map(Track::waiting).sum()
    }
}

fn started(track: &Track) -> Event {
    match track.source {
        TrackSource::Relay(from) => Event::RelayStarted {
            track: track.sid.clone(),
            from,
        },
        TrackSource::Local(peer) => Event::TrackStarted {
            peer,
            track: track.sid.clone(),
        },
        TrackSource::Pending => unreachable!("a track without a source accepts no packets"),
    }
}
