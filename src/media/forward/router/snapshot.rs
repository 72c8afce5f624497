//! Counters and states as plain values, for metrics and the admin interface.

use std::time::Instant;

use flotilla_model::id::Epoch;
use flotilla_model::track::{Kind, Quality};

use crate::forward::router::Router;
use crate::forward::subscription::Subscription;
use crate::forward::track::{Layer, Outbound, Track, quality_of};
use crate::stats::{LayerStats, LinkStats, RelayStats, Stats, SubscriptionStats, TrackStats};

impl Router {
    pub(super) fn snapshot(&self, now: Instant) -> Stats {
        let mut stats = Stats {
            discards: self.discards.clone(),
            packets_passed_on: self.packets_passed_on,
            ..Stats::default()
        };
        for (_, track) in &self.tracks {
            stats.tracks.push(track_stats(track));
            let subscriptions = track.subscriptions.iter();
            stats
                .subscriptions
                .extend(subscriptions.map(|subscription| subscription_stats(track, subscription)));
            let outbound = track.outbound.iter();
            stats
                .relays
                .extend(outbound.map(|outbound| relay_stats(track, outbound)));
        }
        let links = self.links.values().filter(|link| !link.is_removed);
        stats.links = links
            .map(|link| LinkStats {
                node: link.remote.node,
                address: link.address,
                is_up: link.is_up(now),
                rtt: link.measured_rtt(),
                packets_sent: link.packets_sent,
                packets_received: link.packets_received,
                packets_lost: link.packets_lost(),
            })
            .collect();
        stats
    }
}

fn track_stats(track: &Track) -> TrackStats {
    let layers = track.layers.iter().enumerate();
    TrackStats {
        track: track.sid.clone(),
        kind: track.kind,
        source: track.source,
        epoch: Epoch(track.reference.epoch),
        is_muted: track.is_muted,
        wanted: track.best_wanted(),
        layers: layers
            .filter(|(_, layer)| layer.is_declared)
            .map(|(index, layer)| layer_stats(track.kind, index, layer))
            .collect(),
    }
}

fn layer_stats(kind: Kind, index: usize, layer: &Layer) -> LayerStats {
    let stream = &layer.stream;
    LayerStats {
        rid: layer.rid.clone(),
        quality: match kind {
            Kind::Audio => Quality::High,
            Kind::Video => quality_of(index),
        },
        size: stream.size,
        is_live: layer.is_live,
        packets: stream.counters.packets,
        bytes: stream.counters.bytes,
        bitrate: stream.bitrate,
        packets_lost: stream.nack.given_up(),
        packets_repaired: stream.counters.repaired,
        packets_duplicate: stream.counters.duplicates,
        nacks: stream.nack.asked(),
        plis: stream.key_frames.sent(),
        key_frames: stream.counters.key_frames,
        jitter: stream.reception.jitter(),
    }
}

fn subscription_stats(track: &Track, subscription: &Subscription) -> SubscriptionStats {
    let cold = &subscription.cold;
    SubscriptionStats {
        peer: subscription.peer,
        track: track.sid.clone(),
        quality: match track.kind {
            Kind::Audio if subscription.layer() == 0 => Quality::High,
            _ => quality_of(usize::from(subscription.layer())),
        },
        packets: subscription.packets,
        bytes: subscription.bytes,
        nacks: cold.nacks,
        retransmissions: cold.retransmissions.sent(),
        plis: cold.plis,
        switches: cold.switches,
        packets_lost: cold.reports.packets_lost(),
        fraction_lost: f32::from(cold.reports.fraction_lost()) / 256.0,
        rtt: cold.reports.rtt(),
    }
}

fn relay_stats(track: &Track, outbound: &Outbound) -> RelayStats {
    RelayStats {
        to: outbound.node,
        track: track.sid.clone(),
        is_active: outbound.layers != 0,
        wanted: outbound.quality,
        packets: outbound.packets,
        bytes: outbound.bytes,
        retransmissions: outbound.retransmissions.iter().map(|r| r.sent()).sum(),
    }
}
