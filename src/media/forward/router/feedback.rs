//! RTCP from peers: clocks of what they publish; losses, key-frame requests and bandwidth of what
//! they receive.

use std::time::Instant;

use flotilla_model::unit::Bitrate;

use crate::command::PeerId;
use crate::discard::Discard;
use crate::forward::Wire;
use crate::forward::router::Router;
use crate::forward::subscription::Subscription;
use crate::forward::track::{Layer, Track};
use crate::receive::report::SenderClock;
use crate::rtp::rtcp::{self, Blocks, NackPairs, Packet, SenderInfo};
use crate::stats::TrackSource;

impl Router {
    pub(super) fn receive_rtcp<W: Wire>(
        &mut self,
        now: Instant,
        peer: PeerId,
        compound: &[u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        if !self.peers.contains_key(&peer) {
            return Err(Discard::UnknownPeer);
        }
        for packet in rtcp::packets(compound) {
            match packet? {
                Packet::SenderReport { ssrc, info, blocks } => {
                    self.note_sender_report(now, peer, ssrc, &info);
                    self.note_blocks(now, peer, blocks);
                }
                Packet::ReceiverReport { blocks, .. } => self.note_blocks(now, peer, blocks),
                Packet::Nack { media, pairs } => self.retransmit(now, peer, media, pairs, wire),
                Packet::Pli { media } => self.note_key_frame_request(peer, media),
                Packet::Fir(entries) => {
                    for media in entries {
                        self.note_key_frame_request(peer, media);
                    }
                }
                Packet::Remb { bitrate_bps, .. } => {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.congestion.estimated(now, Bitrate(bitrate_bps));
                    }
                }
                Packet::Bye(ssrcs) => {
                    for ssrc in ssrcs {
                        if let Some((_, layer)) = self.published_layer(peer, ssrc) {
                            layer.stream.last_arrival = None;
                        }
                    }
                }
                Packet::SourceDescription | Packet::Twcc(_) | Packet::Other => (),
            }
        }
        Ok(())
    }

    /// Key of the track and the layer that a peer publishes under an SSRC.
    fn published_layer(&mut self, peer_id: PeerId, ssrc: u32) -> Option<(usize, &mut Layer)> {
        let peer = self.peers.get(&peer_id)?;
        let binding = peer.demux.get(ssrc).filter(|binding| !binding.is_repair)?;
        let key = peer.demux.sections().get(binding.section)?.track;
        let track = self.tracks.get_mut(key)?;
        if track.source != TrackSource::Local(peer_id) {
            return None;
        }
        let layer = track.layers.get_mut(binding.layer)?;
        (layer.stream.ssrc == ssrc).then_some((key, layer))
    }

    fn note_sender_report(&mut self, now: Instant, peer: PeerId, ssrc: u32, info: &SenderInfo) {
        let Some((key, layer)) = self.published_layer(peer, ssrc) else {
            return;
        };
        layer.stream.clock = Some(SenderClock {
            ntp: info.ntp,
            rtp: info.rtp,
            at: now,
        });
        layer.stream.reception.sender_reported(now, info.ntp);
        for outbound in &mut self.tracks[key].outbound {
            outbound.status_at = now;
        }
    }

    /// The track and subscription that are sent to a peer under an SSRC.
    fn sent_track(&mut self, peer: PeerId, ssrc: u32) -> Option<&mut Track> {
        let sid = self.peers.get(&peer)?.sent.get(&ssrc)?;
        self.tracks.get_mut(*self.by_sid.get(sid)?)
    }

    fn note_blocks(&mut self, now: Instant, peer: PeerId, blocks: Blocks<'_>) {
        for block in blocks {
            let track = self.sent_track(peer, block.ssrc);
            let Some(subscription) = track.and_then(|track| track.subscription_mut(peer)) else {
                continue;
            };
            // Reports about the repair stream say nothing about the media.
            if subscription.ssrc() == Some(block.ssrc) {
                subscription.cold.reports.received(now, &block);
                subscription.drop_mid();
            }
        }
    }

    fn note_key_frame_request(&mut self, peer: PeerId, media: u32) {
        let Some(track) = self.sent_track(peer, media) else {
            return;
        };
        let Some(subscription) = track.subscription_mut(peer) else {
            return;
        };
        subscription.cold.plis += 1;
        let layer = usize::from(subscription.layer());
        if let Some(layer) = track.layers.get_mut(layer)
            && !track.is_muted
        {
            layer.stream.key_frames.want();
            self.timers.hurry();
        }
    }

    fn retransmit<W: Wire>(
        &mut self,
        now: Instant,
        peer: PeerId,
        media: u32,
        pairs: NackPairs<'_>,
        wire: &mut W,
    ) {
        let epoch = self.epoch;
        let Some(track) = self.sent_track(peer, media) else {
            return;
        };
        let Ok(index) = track.find_subscription(peer) else {
            return;
        };
        let layers = &track.layers;
        let subscription: &mut Subscription = &mut track.subscriptions[index];
        if subscription.ssrc() != Some(media) {
            return;
        }
        let bitrate = layers
            .get(usize::from(subscription.layer()))
            .map_or(Bitrate(0), |layer| layer.stream.bitrate);
        pairs.for_each_sequence(|sequence| {
            let ring = |layer: u8, generation: u32| {
                layers
                    .get(usize::from(layer))
                    .map(|layer| &layer.stream)
                    .filter(|stream| stream.generation == generation)
                    .map(|stream| &stream.ring)
            };
            subscription.retransmit(now, sequence, epoch, bitrate, ring, wire);
        });
    }
}
