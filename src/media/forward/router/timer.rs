//! What time brings: layer selection, key-frame requests, NACKs, reports, relay feedback, loudness.
//!
//! Nothing here has a timer of its own. One tick walks over everything; losses, commands and
//! requests bring it forward.

use std::time::{Duration, Instant};

use flotilla_model::id::NodeId;
use flotilla_model::track::{Kind, Quality};
use flotilla_model::unit::Bitrate;

use crate::command::PeerId;
use crate::event::Event;
use crate::forward::Wire;
use crate::forward::router::Router;
use crate::forward::select::{lower, step_down, step_up};
use crate::forward::track::{RELAY_SILENT_AFTER, Track, quality_of};
use crate::receive::nack::MISSING_MAX;
use crate::relay::message::{
    Clock, IN_HASTE, Status, WANTS_MAX, Want, write_nack, write_status, write_wants,
};
use crate::rtp::rtcp::{REPORT_BLOCKS_MAX, ReportBlock, SenderInfo, Writer};
use crate::send::congestion::Advice;
use crate::stats::TrackSource;

/// Time between ticks. Arrival feedback goes out with each: publishers' estimators want 20–100 ms.
const TICK: Duration = Duration::from_millis(50);
/// Least time between two runs, however much hurries: one run covers many changes, and no client can
/// make it the router's main work.
const HURRY_PAUSE: Duration = Duration::from_millis(3);
/// Time between reception reports to publishers.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Time between updates of loudness.
const LEVEL_INTERVAL: Duration = Duration::from_millis(300);
/// Time between judgements of subscribers' paths.
const CONGESTION_INTERVAL: Duration = Duration::from_secs(1);
/// Time between repetitions of what is wanted of another node: while it works, and while nothing
/// comes: then first after 12.5 ms, since the other node may hear of the relay a moment later than this
/// one, then doubling to 100 ms.
const WANT_INTERVAL: Duration = Duration::from_millis(500);
const WANT_INTERVAL_FIRST: Duration = Duration::from_micros(12_500);
const WANT_DOUBLINGS: u32 = 3;
/// Time between repetitions of a track's state to another node.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Bandwidth offered to publishers that are not told arrival times.
const REMB_MAX_BPS: u64 = 10_000_000;
const REMB_MIN_BPS: u64 = 1_000_000;

/// When what is due.
pub(super) struct Timers {
    /// Something changed since the last run.
    hurry: bool,
    last: Instant,
    tick: Instant,
    nack: Option<Instant>,
    level: Instant,
    congestion: Instant,
}

impl Timers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            hurry: false,
            last: now,
            tick: now,
            nack: None,
            level: now,
            congestion: now,
        }
    }

    /// Something changed: do not wait for the tick.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurry
    }

    /// A loss is to be asked for by then.
    pub(super) fn nack_by(&mut self, at: Instant) {
        self.nack = Some(self.nack.map_or(at, |nack| nack.min(at)));
    }

    pub(super) fn next(&self) -> Instant {
        let at = self.nack.map_or(self.tick, |nack| nack.min(self.tick));
        if self.hurry {
            at.min(self.last + HURRY_PAUSE)
        } else {
            at
        }
    }
}

/// Whether `at` has come; moves it on by `interval` if so.
fn take_due(at: &mut Instant, now: Instant, interval: Duration) -> bool {
    let is_due = now >= *at;
    if is_due {
        *at = now + interval;
    }
    is_due
}

impl Router {
    pub(super) fn run_timers<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        let is_tick = take_due(&mut self.timers.tick, now, TICK);
        let is_hurried = self.timers.hurry && now >= self.timers.last + HURRY_PAUSE;
        if is_tick || is_hurried {
            self.timers.hurry = false;
            self.timers.last = now;
            self.select_all(now);
            self.request_key_frames(now, wire);
            self.send_wants(now, wire);
            self.send_statuses(now, wire);
        }
        if is_tick {
            self.send_arrivals(wire);
            self.send_reception_reports(now, wire);
            self.send_sender_reports(now, wire);
            for link in self.links.values_mut() {
                link.ping(now, wire);
            }
        }
        if is_tick && take_due(&mut self.timers.level, now, LEVEL_INTERVAL) {
            self.report_levels(now);
        }
        if is_tick && take_due(&mut self.timers.congestion, now, CONGESTION_INTERVAL) {
            self.judge_congestion(now);
        }
        if self.timers.nack.is_some_and(|at| at <= now) {
            self.send_nacks(now, wire);
        }
    }

    fn select_all(&mut self, now: Instant) {
        for (_, track) in &mut self.tracks {
            for outbound in &mut track.outbound {
                let is_silent = outbound
                    .heard
                    .is_some_and(|heard| now.saturating_duration_since(heard) > RELAY_SILENT_AFTER);
                if is_silent {
                    outbound.stop();
                }
            }
            for layer in &mut track.layers {
                layer.stream.housekeep(now);
            }
            track.select(now);
            track.report_wanted(now, &mut self.events);
            let status = (track.live_layers(), track.is_muted);
            if std::mem::replace(&mut track.status_told, status) != status {
                for outbound in &mut track.outbound {
                    outbound.status_at = now;
                }
            }
        }
    }

    /// Asks local publishers for key frames. Those of other nodes are asked in [`Self::send_wants`].
    fn request_key_frames<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        for (_, track) in &mut self.tracks {
            let TrackSource::Local(peer) = track.source else {
                continue;
            };
            if !track.has_pli || track.is_muted || track.kind == Kind::Audio {
                continue;
            }
            let Some(sender) = self.peers.get(&peer).map(|peer| peer.ssrc) else {
                continue;
            };
            for layer in &mut track.layers {
                if layer.is_live && layer.stream.ssrc != 0 && layer.stream.key_frames.take_due(now)
                {
                    let media = layer.stream.ssrc;
                    wire.send_rtcp(peer, |buffer| {
                        let mut writer = Writer::new(buffer);
                        writer.pli(sender, media);
                        writer.len()
                    });
                }
            }
        }
    }

    fn send_nacks<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        self.timers.nack = None;
        let mut missing = [0_u64; MISSING_MAX];
        for (_, track) in &mut self.tracks {
            let reference = track.reference;
            for (index, layer) in track.layers.iter_mut().enumerate() {
                let stream = &mut layer.stream;
                let (Some(at), Some(highest)) = (stream.nack.deadline(), stream.highest()) else {
                    continue;
                };
                if at <= now {
                    let rtt = match track.source {
                        TrackSource::Local(peer) => self.peers.get(&peer).map(|peer| peer.rtt()),
                        TrackSource::Relay(node) => self.links.get(&node).map(|link| link.rtt()),
                        TrackSource::Pending => None,
                    };
                    let Some(rtt) = rtt else {
                        stream.nack.clear();
                        continue;
                    };
                    let count = stream.nack.due(now, rtt, highest, &mut missing);
                    let missing = &missing[..count];
                    match track.source {
                        TrackSource::Local(peer) => {
                            let sender = self.peers.get(&peer).map_or(0, |peer| peer.ssrc);
                            nack_peer(wire, peer, sender, stream.ssrc, missing);
                        }
                        TrackSource::Relay(node) => {
                            let link = self.links.get_mut(&node);
                            let mut rest = missing;
                            if let Some(link) = link {
                                while !rest.is_empty() {
                                    let mut taken = rest.len();
                                    link.send(wire, |buffer| {
                                        let (len, covered) =
                                            write_nack(buffer, reference, index as u8, rest);
                                        taken = covered.max(1);
                                        len
                                    });
                                    rest = &rest[taken..];
                                }
                            }
                        }
                        TrackSource::Pending => (),
                    }
                }
                if let Some(at) = stream.nack.deadline() {
                    self.timers.nack_by(at);
                }
            }
        }
    }

    /// Tells publishers when their packets arrived.
    fn send_arrivals<W: Wire>(&mut self, wire: &mut W) {
        for (id, peer) in &mut self.peers {
            let sender = peer.ssrc;
            let media = peer.any_ssrc;
            let Some(arrivals) = &mut peer.arrivals else {
                continue;
            };
            // At most a window's worth: two packets per tick are far more than arrive.
            for _ in 0..4 {
                if !arrivals.is_pending() {
                    break;
                }
                wire.send_rtcp(*id, |buffer| {
                    let mut writer = Writer::new(buffer);
                    writer.twcc(|body| arrivals.write(sender, media, body));
                    writer.len()
                });
            }
        }
    }

    /// Tells publishers how their streams are received, and a bandwidth if nothing better was
    /// negotiated.
    fn send_reception_reports<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        for (id, peer) in &mut self.peers {
            if !take_due(&mut peer.report_at, now, REPORT_INTERVAL) {
                continue;
            }
            let mut blocks = [ReportBlock::default(); REPORT_BLOCKS_MAX];
            let mut ssrcs = [0; REPORT_BLOCKS_MAX];
            let mut count = 0;
            let mut received = 0;
            let mut fraction_lost = 0;
            let mut wants_remb = false;
            for section in peer.demux.sections() {
                let track = self.tracks.get_mut(section.track);
                let Some(track) = track.filter(|track| track.source == TrackSource::Local(*id))
                else {
                    continue;
                };
                let feedback = section.negotiated.feedback;
                wants_remb |= feedback.remb && peer.arrivals.is_none();
                for layer in &mut track.layers {
                    let stream = &mut layer.stream;
                    if stream.ssrc == 0 || stream.highest().is_none() || count == blocks.len() {
                        continue;
                    }
                    blocks[count] = stream.reception.take_block(now, stream.ssrc);
                    ssrcs[count] = stream.ssrc;
                    fraction_lost = fraction_lost.max(blocks[count].fraction_lost);
                    received += stream.bitrate.0;
                    count += 1;
                }
            }
            if count == 0 {
                continue;
            }
            if wants_remb {
                peer.remb_bps = estimate(peer.remb_bps, received, fraction_lost);
            }
            let remb = peer.remb_bps;
            let sender = peer.ssrc;
            wire.send_rtcp(*id, |buffer| {
                let mut writer = Writer::new(buffer);
                writer.receiver_report(sender, &blocks[..count]);
                if wants_remb {
                    writer.remb(sender, remb, &ssrcs[..count]);
                }
                writer.len()
            });
        }
    }

    /// Tells subscribers the publisher's clock in their stream's numbers.
    fn send_sender_reports<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        for (_, track) in &mut self.tracks {
            for subscription in &mut track.subscriptions {
                let layer = track.layers.get(usize::from(subscription.layer()));
                let Some(stream) = layer.map(|layer| &layer.stream) else {
                    continue;
                };
                let (Some(clock), Some(ssrc)) = (&stream.clock, subscription.ssrc()) else {
                    continue;
                };
                if stream.generation != subscription.generation()
                    || !subscription.cold.reports.is_due(now)
                {
                    continue;
                }
                let (ntp, rtp) = clock.at(now, stream.clock_rate);
                let info = SenderInfo {
                    ntp,
                    rtp: subscription.timestamp_of(rtp),
                    packets: subscription.packets as u32,
                    bytes: subscription.bytes as u32,
                };
                subscription.cold.reports.sent(now, ntp);
                wire.send_rtcp(subscription.peer, |buffer| {
                    let mut writer = Writer::new(buffer);
                    writer.sender_report(ssrc, &info, &[]);
                    writer.len()
                });
            }
        }
    }

    /// Tells other nodes what is wanted of their tracks: what changed at once, everything now and
    /// then.
    fn send_wants<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        for (node, link) in &mut self.links {
            if link.is_removed {
                continue;
            }
            let mut wants = [NO_WANT; WANTS_MAX];
            let mut count = 0;
            for (_, track) in &mut self.tracks {
                let Some(want) = take_want(now, *node, track) else {
                    continue;
                };
                wants[count] = want;
                count += 1;
                if count == WANTS_MAX {
                    link.send(wire, |buffer| write_wants(buffer, &wants));
                    count = 0;
                }
            }
            if count > 0 {
                link.send(wire, |buffer| write_wants(buffer, &wants[..count]));
            }
        }
    }

    /// Tells other nodes the state of tracks that go there.
    fn send_statuses<W: Wire>(&mut self, now: Instant, wire: &mut W) {
        for (_, track) in &mut self.tracks {
            let (live, is_muted) = track.status_told;
            for outbound in &mut track.outbound {
                if outbound.heard.is_none()
                    || !take_due(&mut outbound.status_at, now, STATUS_INTERVAL)
                {
                    continue;
                }
                let Some(link) = self.links.get_mut(&outbound.node) else {
                    continue;
                };
                let mut status = Status {
                    track: track.reference,
                    live,
                    is_muted,
                    clock: None,
                };
                let mut is_sent = false;
                for (index, layer) in track.layers.iter().enumerate() {
                    let Some(clock) = layer.stream.clock else {
                        continue;
                    };
                    status.clock = Some(Clock {
                        layer: index as u8,
                        ntp: clock.ntp,
                        rtp: clock.rtp,
                        age: now.saturating_duration_since(clock.at),
                    });
                    link.send(wire, |buffer| write_status(buffer, &status));
                    is_sent = true;
                }
                if !is_sent {
                    link.send(wire, |buffer| write_status(buffer, &status));
                }
            }
        }
    }

    fn report_levels(&mut self, now: Instant) {
        let mut levels = vec![];
        for (_, track) in &mut self.tracks {
            if track.kind != Kind::Audio || !matches!(track.source, TrackSource::Local(_)) {
                continue;
            }
            let level = track.level.level(now);
            if level > 0.0 || track.level_reported > 0.0 {
                levels.push((track.sid.clone(), level));
            }
            track.level_reported = level;
        }
        if !levels.is_empty() {
            self.events.push_back(Event::AudioLevels { levels });
        }
    }

    /// Takes layers from subscribers whose path is full, and tries to give them back.
    fn judge_congestion(&mut self, now: Instant) {
        for (id, peer) in &mut self.peers {
            let mut sent = 0;
            let mut fraction_lost = 0;
            // Track with the most to give up, and the one furthest below what it wants.
            let mut highest: Option<(u64, usize)> = None;
            let mut lowest: Option<(Quality, usize)> = None;
            for section in &peer.sections {
                let Some(&key) = self.by_sid.get(&section.track) else {
                    continue;
                };
                let Some((kind, subscription, bitrate)) = judged(&mut self.tracks[key], *id) else {
                    continue;
                };
                sent += bitrate.0;
                fraction_lost = fraction_lost.max(subscription.cold.reports.fraction_lost());
                if kind == Kind::Audio {
                    continue;
                }
                if subscription.layer() > 0 && highest.is_none_or(|(most, _)| bitrate.0 > most) {
                    highest = Some((bitrate.0, key));
                }
                let cap = subscription.cold.cap;
                if cap < subscription.cold.settings.quality && lowest.is_none_or(|(l, _)| cap < l) {
                    lowest = Some((cap, key));
                }
            }
            let is_lowered = lowest.is_some();
            let advice = peer
                .congestion
                .judge(now, Bitrate(sent), fraction_lost, is_lowered);
            let key = match advice {
                Advice::Stay => None,
                Advice::Lower => highest.map(|(_, key)| key),
                Advice::Raise => lowest.map(|(_, key)| key),
            };
            let Some(track) = key.and_then(|key| self.tracks.get_mut(key)) else {
                continue;
            };
            let Some(subscription) = track.subscription_mut(*id) else {
                continue;
            };
            let current = quality_of(usize::from(subscription.layer()));
            subscription.cold.cap = match advice {
                Advice::Raise => step_up(subscription.cold.cap),
                _ => step_down(lower(current, subscription.cold.cap)),
            };
            self.timers.hurry = true;
        }
    }
}

/// A subscription that sends, with its kind and the bitrate of its layer.
fn judged(
    track: &mut Track,
    peer: PeerId,
) -> Option<(Kind, &crate::forward::subscription::Subscription, Bitrate)> {
    let index = track.find_subscription(peer).ok()?;
    let subscription = track.subscriptions.get(index)?;
    let layer = track.layers.get(usize::from(subscription.layer()))?;
    Some((track.kind, subscription, layer.stream.bitrate))
}

const NO_WANT: Want = Want {
    track: crate::relay::message::TrackRef { hash: 0, epoch: 0 },
    layers: 0,
    key_frames: 0,
    quality: Quality::Off as u8,
    fraction_lost: 0,
};

/// What to tell `node` about a track that comes from there, if it is time to.
fn take_want(now: Instant, node: NodeId, track: &mut Track) -> Option<Want> {
    if track.source != TrackSource::Relay(node) {
        return None;
    }
    let needed = track.needed_layers();
    let hoped = track.hoped_layers();
    let best = track.best_wanted();
    let is_started = track.is_started;
    let inbound = track.inbound.as_mut()?;
    let layers = match inbound.live {
        Some(_) => needed,
        None => needed | hoped,
    };
    let added = layers & !inbound.asked;
    let mut key_frames = 0;
    for (index, layer) in track.layers.iter_mut().enumerate() {
        let bit = 1 << index;
        if added & bit != 0 {
            layer.stream.expects_gap = true;
        }
        let is_hasty = layer.stream.key_frames.is_hasty();
        if layers & bit != 0 && layer.stream.key_frames.take_due(now) {
            key_frames |= if is_hasty { bit | IN_HASTE } else { bit };
            inbound.in_haste |= is_hasty;
        }
    }
    let is_periodic = now >= inbound.ask_at;
    let is_waiting = layers != 0 && !is_started;
    if is_waiting && is_periodic {
        // The other node may not have known of the relay when it was asked first.
        for (index, layer) in track.layers.iter().enumerate() {
            if layers & 1 << index != 0 && layer.stream.key_frames.is_wanted() {
                key_frames |= 1 << index | if inbound.in_haste { IN_HASTE } else { 0 };
            }
        }
    }
    if layers == inbound.asked && key_frames == 0 && !is_periodic {
        return None;
    }
    inbound.ask_at = now
        + if is_waiting {
            let interval = WANT_INTERVAL_FIRST * (1 << inbound.repeated.min(WANT_DOUBLINGS));
            inbound.repeated = inbound.repeated.saturating_add(1);
            interval
        } else {
            WANT_INTERVAL
        };
    inbound.asked = layers;
    let mut fraction_lost = 0;
    for layer in &mut track.layers {
        let lost = if is_periodic {
            layer.stream.reception.take_block(now, 0).fraction_lost
        } else {
            0
        };
        fraction_lost = fraction_lost.max(lost);
    }
    Some(Want {
        track: track.reference,
        layers,
        key_frames,
        quality: best as u8,
        fraction_lost,
    })
}

fn nack_peer<W: Wire>(wire: &mut W, peer: PeerId, sender: u32, media: u32, missing: &[u64]) {
    let mut sequences = [0_u16; MISSING_MAX];
    for (low, sequence) in sequences.iter_mut().zip(missing) {
        *low = *sequence as u16;
    }
    let mut rest = &sequences[..missing.len()];
    while !rest.is_empty() {
        let mut taken = rest.len();
        wire.send_rtcp(peer, |buffer| {
            let mut writer = Writer::new(buffer);
            taken = writer.nack(sender, media, rest).max(1);
            writer.len()
        });
        rest = &rest[taken..];
    }
}

/// Bandwidth to offer a publisher: well above what it sends, so that it can grow, unless packets
/// are lost. Publishers that report no arrival times have no better estimate.
fn estimate(before: u64, received: u64, fraction_lost: u8) -> u64 {
    let lost_percent = u64::from(fraction_lost) * 100 / 256;
    let target = match lost_percent {
        0..=2 => (received * 2).max(before + before / 12),
        3..=10 => before,
        _ => before - before * lost_percent / 200,
    };
    target.clamp(REMB_MIN_BPS, REMB_MAX_BPS)
}
