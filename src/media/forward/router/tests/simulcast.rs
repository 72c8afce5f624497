//! Layer choice, clean switches, repair both ways, pauses.

use std::time::Duration;

use flotilla_model::track::{Kind, Quality};

use super::agents::{Publisher, Subscriber};
use super::world::{Network, World};
use crate::command::{PeerId, Settings};
use crate::event::Event;

const LOSSY: Network = Network {
    loss: 0.05,
    delay_ms: 20,
    jitter_ms: 6,
};

fn set_quality(world: &mut World, peer: u64, quality: Quality) {
    let (node, subscriber) = world.subscribers.get_mut(&PeerId(peer)).expect("known");
    subscriber.settings.quality = quality;
    let (settings, track) = (subscriber.settings, subscriber.section.track.clone());
    let node = *node;
    world.nodes[node]
        .router
        .set_settings(world.now, PeerId(peer), &track, settings);
}

#[test]
fn every_quality_is_reached_by_a_clean_switch() {
    let mut world = World::new(1, 1);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(2_000);
    for quality in [Quality::Medium, Quality::Low, Quality::High] {
        set_quality(&mut world, 2, quality);
        world.run_ms(2_500);
    }
    let subscriber = world.subscriber(2);
    subscriber.judge();
    assert_eq!(subscriber.gaps(), 0);
    let layers = subscriber.layers();
    assert_eq!(layers.last(), Some(&2));
    let end: Vec<u8> = layers[layers.len() - 4..].to_vec();
    assert_eq!(end, [2, 1, 0, 2]);
    assert!(
        subscriber.drift_ms(90_000) <= 2,
        "{}",
        subscriber.drift_ms(90_000)
    );
}

#[test]
fn without_sender_reports_switches_align_by_arrival() {
    let mut world = World::new(1, 2);
    let mut publisher = Publisher::video(1, "TR_v", true);
    publisher.sends_reports = false;
    world.publish(0, publisher);
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(1_500);
    for quality in [Quality::Low, Quality::High] {
        set_quality(&mut world, 2, quality);
        world.run_ms(2_000);
    }
    let subscriber = world.subscriber(2);
    subscriber.judge();
    assert!(
        subscriber.drift_ms(90_000) < 80,
        "{}",
        subscriber.drift_ms(90_000)
    );
    assert!(subscriber.sender_reports.is_empty());
}

#[test]
fn five_percent_loss_is_repaired_both_ways() {
    for (seed, has_rtx) in [(3, true), (4, false), (5, true), (6, false)] {
        let mut world = World::new(1, seed);
        world.client_network = LOSSY;
        world.publish(0, Publisher::video(1, "TR_v", has_rtx));
        world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, has_rtx));
        world.run_ms(4_000);
        set_quality(&mut world, 2, Quality::Low);
        world.run_ms(3_000);
        set_quality(&mut world, 2, Quality::High);
        world.run_ms(8_000);
        world.client_network.loss = 0.0;
        world.run_ms(1_000);
        let subscriber = world.subscriber(2);
        let delivered = subscriber.delivered();
        assert!(delivered >= 0.999, "seed {seed}: {delivered}");
        assert!(subscriber.packets() > 2_000, "{}", subscriber.packets());
        subscriber.judge();
        let stats = world.nodes[0].router.stats(world.now);
        let top = &stats.tracks[0].layers[2];
        assert!(top.packets_repaired > 50, "{top:?}");
        assert_eq!(top.packets_lost, 0, "{top:?}");
        // Each lost packet is asked for a little more than once.
        assert!(top.nacks < top.packets_repaired * 3 / 2, "{top:?}");
        assert!(top.packets_duplicate < top.packets / 50, "{top:?}");
    }
}

#[test]
fn key_frames_are_asked_for_at_most_once_a_second() {
    let mut world = World::new(1, 7);
    world.publish(0, Publisher::video(1, "TR_v", true));
    for peer in 2..6 {
        let mut subscriber = Subscriber::new(peer, "TR_v", Kind::Video, true);
        subscriber.pli_every = Some(Duration::from_millis(50));
        world.subscribe(0, subscriber);
    }
    world.run_ms(10_000);
    let plis = world.publisher_mut(1).encodings[2].plis.clone();
    assert!((9..=11).contains(&plis.len()), "{}", plis.len());
    for pair in plis.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(990));
    }
    let idle = world.publisher_mut(1).encodings[1].plis.len();
    assert!(idle <= 2, "{idle}");
}

#[test]
fn a_silent_layer_is_replaced_and_comes_back() {
    let mut world = World::new(1, 8);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(2_000);
    world.publisher_mut(1).encodings[2].is_paused = true;
    world.run_ms(3_000);
    assert_eq!(world.subscriber(2).layers().last(), Some(&1));
    world.publisher_mut(1).encodings[2].is_paused = false;
    world.run_ms(2_000);
    assert_eq!(world.subscriber(2).layers().last(), Some(&2));
    world.subscriber(2).judge();
}

#[test]
fn a_pause_of_all_layers_changes_nothing() {
    let mut world = World::new(1, 9);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(2_000);
    let before = world.subscriber(2).layers();
    world.publisher_mut(1).is_stopped = true;
    world.run_ms(5_000);
    world.publisher_mut(1).is_stopped = false;
    world.run_ms(500);
    assert_eq!(world.subscriber(2).layers(), before);
    world.subscriber(2).judge();
    assert!(world.subscriber(2).drift_ms(90_000) <= 2);
}

#[test]
fn padding_is_left_out_of_the_numbers() {
    let mut world = World::new(1, 10);
    let mut publisher = Publisher::video(1, "TR_v", false);
    publisher.padding = 2;
    world.publish(0, publisher);
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, false));
    world.run_ms(3_000);
    let subscriber = world.subscriber(2);
    subscriber.judge();
    assert_eq!(subscriber.gaps(), 0);
    let frames = subscriber.frames().len();
    assert!(subscriber.packets() < frames * 8 + 20);
}

#[test]
fn sender_reports_carry_the_publishers_clock() {
    let mut world = World::new(1, 11);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(3_000);
    set_quality(&mut world, 2, Quality::Low);
    world.run_ms(4_000);
    let subscriber = world.subscriber(2);
    let reports = &subscriber.sender_reports;
    assert!(reports.len() >= 5, "{}", reports.len());
    let (first, last) = (reports[0], reports[reports.len() - 1]);
    let by_ntp = ((last.1.ntp - first.1.ntp) as f64 / 4_294_967_296.0) * 1_000.0;
    let by_rtp = f64::from(last.1.rtp.wrapping_sub(first.1.rtp)) / 90.0;
    assert!((by_ntp - by_rtp).abs() < 5.0, "{by_ntp} {by_rtp}");
    let stats = world.nodes[0].router.stats(world.now);
    let rtt = stats.subscriptions[0].rtt.expect("measured");
    assert!((8..=15).contains(&rtt.as_millis()), "{rtt:?}");
}

#[test]
fn a_narrow_path_gets_a_lower_layer() {
    let mut world = World::new(1, 12);
    world.publish(0, Publisher::video(1, "TR_v", true));
    let mut subscriber = Subscriber::new(2, "TR_v", Kind::Video, true);
    subscriber.remb = Some(1_000_000);
    world.subscribe(0, subscriber);
    world.run_ms(5_000);
    assert_eq!(world.subscriber(2).layers().last(), Some(&2));
    world.subscriber_mut(2).remb = Some(20_000);
    world.run_ms(5_000);
    assert_eq!(world.subscriber(2).layers().last(), Some(&1));
    world.subscriber_mut(2).remb = Some(1_000_000);
    world.run_ms(12_000);
    assert_eq!(world.subscriber(2).layers().last(), Some(&2));
    world.subscriber(2).judge();
}

#[test]
fn disabling_stops_and_enabling_starts_at_a_key_frame() {
    let mut world = World::new(1, 13);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(
        0,
        Subscriber::new(2, "TR_v", Kind::Video, true).with_quality(Quality::Low),
    );
    world.run_ms(2_000);
    let toggle = |world: &mut World, enabled: bool| {
        let mut settings = world.subscriber(2).settings;
        settings.enabled = enabled;
        let now = world.now;
        let router = &mut world.nodes[0].router;
        router.set_settings(now, PeerId(2), &"TR_v".into(), settings);
    };
    toggle(&mut world, false);
    world.run_ms(20);
    let before = world.subscriber(2).packets();
    world.run_ms(6_000);
    assert_eq!(world.subscriber(2).packets(), before);
    let wanted: Vec<Quality> = world
        .events(0)
        .iter()
        .filter_map(|event| match event {
            Event::QualityWanted { quality, .. } => Some(*quality),
            _ => None,
        })
        .collect();
    assert_eq!(wanted, [Quality::Off]);
    toggle(&mut world, true);
    world.run_ms(1_500);
    assert!(world.subscriber(2).packets() > before);
    world.subscriber(2).judge();
    assert_eq!(world.subscriber(2).gaps(), 0);
    assert!(matches!(
        world.events(0).last(),
        Some(Event::QualityWanted {
            quality: Quality::Low,
            ..
        })
    ));
}

#[test]
fn a_codec_the_subscriber_lacks_is_neither_sent_nor_asked_for() {
    let mut world = World::new(1, 14);
    world.publish(0, Publisher::video(1, "TR_v", true));
    let mut subscriber = Subscriber::new(2, "TR_v", Kind::Video, true);
    subscriber.section.mime = "video/h264".to_owned();
    world.subscribe(0, subscriber);
    world.run_ms(5_000);
    assert_eq!(world.subscriber(2).packets(), 0);
    let asked: usize = world
        .publisher_mut(1)
        .encodings
        .iter()
        .map(|encoding| encoding.plis.len())
        .sum();
    assert!(asked <= 3, "{asked}");
}

#[test]
fn however_many_requests_come_the_timer_runs_seldom() {
    let mut world = World::new(1, 15);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(1_000);
    let router = &mut world.nodes[0].router;
    let mut settings = Settings::default();
    let mut now = world.now;
    let mut runs = 0;
    for step in 0..1_000 {
        now += Duration::from_micros(100);
        settings.fps_max = step;
        router.set_settings(now, PeerId(2), &"TR_v".into(), settings);
        if router.deadline().is_some_and(|at| at <= now) {
            router.handle_timeout(now, &mut super::world::Recorder::default());
            runs += 1;
        }
    }
    assert!((20..60).contains(&runs), "{runs}");
}
