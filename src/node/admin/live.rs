//! What this node's media engines count about relays.

use std::collections::BTreeMap;

use flotilla_media::stats::{RelayStats, Stats, TrackSource, TrackStats};
use flotilla_model::id::{NodeId, TrackSid};
use flotilla_model::room::Route;
use flotilla_model::track::Quality;

use super::proto;

/// Counters by track and the node at the other end.
#[derive(Default)]
pub(super) struct Live {
    sent: BTreeMap<(TrackSid, NodeId), proto::RelayCounters>,
    received: BTreeMap<(TrackSid, NodeId), proto::RelayCounters>,
}

impl Live {
    /// From the engines of all shards.
    pub(super) fn of(shards: &[Stats]) -> Self {
        let mut live = Self::default();
        for stats in shards {
            for relay in &stats.relays {
                live.sent
                    .insert((relay.track.clone(), relay.to), sender(relay));
            }
            for track in &stats.tracks {
                if let TrackSource::Relay(from) = track.source {
                    live.received
                        .insert((track.track.clone(), from), receiver(track));
                }
            }
        }
        live
    }

    /// Counters of a route if `node` is at one of its ends and the relay runs.
    pub(super) fn route(
        &self,
        node: NodeId,
        track: &TrackSid,
        route: &Route,
    ) -> Option<proto::RelayCounters> {
        if route.from == node {
            self.sent.get(&(track.clone(), route.to)).copied()
        } else if route.to == node {
            self.received.get(&(track.clone(), route.from)).copied()
        } else {
            None
        }
    }
}

fn sender(relay: &RelayStats) -> proto::RelayCounters {
    proto::RelayCounters {
        side: proto::RelaySide::Sender.into(),
        active: relay.is_active,
        wanted: quality(relay.wanted).into(),
        packets: relay.packets,
        payload_bytes: relay.bytes,
        packets_repaired: relay.retransmissions,
        packets_lost: 0,
    }
}

fn receiver(track: &TrackStats) -> proto::RelayCounters {
    let sum = |count: fn(&flotilla_media::stats::LayerStats) -> u64| -> u64 {
        track.layers.iter().map(count).sum()
    };
    proto::RelayCounters {
        side: proto::RelaySide::Receiver.into(),
        active: track.layers.iter().any(|layer| layer.is_live),
        wanted: quality(track.wanted).into(),
        packets: sum(|layer| layer.packets),
        payload_bytes: sum(|layer| layer.bytes),
        packets_repaired: sum(|layer| layer.packets_repaired),
        packets_lost: sum(|layer| layer.packets_lost),
    }
}

fn quality(quality: Quality) -> proto::Quality {
    match quality {
        Quality::Low => proto::Quality::Low,
        Quality::Medium => proto::Quality::Medium,
        Quality::High => proto::Quality::High,
        Quality::Off => proto::Quality::Off,
    }
}
