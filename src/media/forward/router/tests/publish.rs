//! Publishing: identification of streams, feedback to publishers, loudness, events, order of
//! commands.

use flotilla_model::id::Epoch;
use flotilla_model::track::Kind;

use super::agents::{Publisher, Subscriber};
use super::world::{Network, World};
use crate::command::{PeerId, Settings};
use crate::event::Event;

#[test]
fn streams_stay_known_through_new_offers() {
    let mut world = World::new(1, 20);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(1_000);
    let before = world.subscriber(2).packets();
    let mut section = world.publisher_mut(1).section.clone();
    let now = world.now;
    let router = &mut world.nodes[0].router;
    router.set_receive(now, PeerId(1), vec![section.clone()]);
    // The client publishes a second track: its sections move, rids and mids are long gone.
    let mut other = section.clone();
    other.mid = "0".to_owned();
    other.track = "TR_other".into();
    section.mid = "1".to_owned();
    router.set_receive(now, PeerId(1), vec![other, section]);
    world.run_ms(1_000);
    assert!(world.subscriber(2).packets() > before + 150);
    assert_eq!(world.subscriber(2).gaps(), 0);
    world.subscriber(2).judge();
}

#[test]
fn retransmissions_without_a_name_are_placed() {
    let mut world = World::new(1, 21);
    world.client_network = Network {
        loss: 0.05,
        delay_ms: 10,
        jitter_ms: 0,
    };
    let mut publisher = Publisher::video(1, "TR_v", true);
    publisher.names_repair = false;
    // One section only, so the payload type is enough to find it; the layer is not declared.
    world.publish(0, publisher);
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(6_000);
    world.client_network.loss = 0.0;
    world.run_ms(500);
    assert!(world.subscriber(2).delivered() >= 0.999);
    world.subscriber(2).judge();
    let stats = world.nodes[0].router.stats(world.now);
    for layer in &stats.tracks[0].layers {
        assert!(layer.packets_repaired > 2, "{layer:?}");
        assert_eq!(layer.packets_lost, 0, "{layer:?}");
    }
}

#[test]
fn publishers_get_reports_and_arrival_times_of_all_layers() {
    let mut world = World::new(1, 22);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.run_ms(5_000);
    let publisher = world.publisher_mut(1);
    assert!(publisher.encodings.iter().all(|e| e.reports >= 4));
    assert!(
        publisher.twcc_reported > 1_500,
        "{}",
        publisher.twcc_reported
    );
    assert_eq!(publisher.remb, None);
}

#[test]
fn without_arrival_times_a_bandwidth_is_offered() {
    let mut world = World::new(1, 23);
    let mut publisher = Publisher::video(1, "TR_v", true);
    publisher.section.feedback.twcc = false;
    world.publish(0, publisher);
    world.run_ms(3_000);
    let publisher = world.publisher_mut(1);
    assert_eq!(publisher.twcc_reported, 0);
    assert!(publisher.remb.is_some_and(|bps| bps >= 1_000_000));
}

#[test]
fn loud_tracks_are_reported_until_they_fall_silent() {
    let mut world = World::new(1, 24);
    let mut loud = Publisher::audio(1, "TR_loud");
    loud.audio_level = Some(0x80 | 10);
    let mut quiet = Publisher::audio(2, "TR_quiet");
    quiet.audio_level = Some(90);
    world.publish(0, loud);
    world.publish(0, quiet);
    world.run_ms(2_000);
    world.publisher_mut(1).audio_level = Some(90);
    world.run_ms(3_000);
    let levels: Vec<f32> = world
        .events(0)
        .iter()
        .filter_map(|event| match event {
            Event::AudioLevels { levels } => {
                assert_eq!(levels.len(), 1);
                assert_eq!(levels[0].0.as_str(), "TR_loud");
                Some(levels[0].1)
            }
            _ => None,
        })
        .collect();
    assert!(levels.len() > 5, "{levels:?}");
    assert!(levels.iter().any(|level| *level >= 0.25), "{levels:?}");
    assert_eq!(levels.last(), Some(&0.0));
    assert!(levels.iter().all(|level| (level * 8.0).fract() == 0.0));
}

#[test]
fn audio_starts_at_once_and_keeps_its_level() {
    let mut world = World::new(1, 25);
    let mut publisher = Publisher::audio(1, "TR_a");
    publisher.audio_level = Some(33);
    world.publish(0, publisher);
    world.run_ms(500);
    world.subscribe(0, Subscriber::new(2, "TR_a", Kind::Audio, false));
    world.run_ms(40);
    assert!(world.subscriber(2).packets() >= 1);
    world.run_ms(1_000);
    assert_eq!(world.subscriber(2).gaps(), 0);
    assert!(world.subscriber(2).drift_ms(48_000) == 0);
    let started = world.events(0).iter().any(|event| {
        matches!(event, Event::SubscriptionStarted { peer: PeerId(2), track } if track.as_str() == "TR_a")
    });
    assert!(started);
}

#[test]
fn commands_may_come_in_any_order() {
    let mut world = World::new(1, 26);
    let publisher = Publisher::single(1, "TR_v");
    let subscriber = Subscriber::new(2, "TR_v", Kind::Video, true);
    let now = world.now;
    let router = &mut world.nodes[0].router;
    router.set_send(now, PeerId(2), vec![subscriber.section.clone()]);
    router.peer_connected(now, PeerId(2));
    router.subscribe(now, PeerId(2), &"TR_v".into(), Settings::default());
    router.set_receive(now, PeerId(1), vec![publisher.section.clone()]);
    router.publish(now, PeerId(1), &publisher.info, Epoch(1));
    world.publishers.insert(PeerId(1), (0, publisher));
    world.subscribers.insert(PeerId(2), (0, subscriber));
    world.run_ms(1_000);
    assert!(world.subscriber(2).packets() > 100);
    world.subscriber(2).judge();
    let events = world.events(0);
    let described = events.iter().any(|event| {
        matches!(event, Event::TrackDescribed { codecs, .. }
            if codecs[0].mime == "video/vp8" && codecs[0].layers[0].ssrc == 1_000)
    });
    assert!(described, "{events:?}");
    let started = |event: &&Event| matches!(event, Event::TrackStarted { .. });
    assert_eq!(events.iter().filter(started).count(), 1);
}

#[test]
fn a_publisher_that_comes_back_goes_on_for_its_subscribers() {
    let mut world = World::new(1, 27);
    world.publish(0, Publisher::video(1, "TR_v", true));
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(1_000);
    world.publishers.clear();
    let now = world.now;
    world.nodes[0].router.remove_peer(now, PeerId(1));
    world.run_ms(1_000);
    let before = world.subscriber(2).packets();
    world.publish(0, Publisher::video(5, "TR_v", true));
    world.run_ms(1_500);
    let subscriber = world.subscriber(2);
    assert!(subscriber.packets() > before + 100);
    assert_eq!(subscriber.gaps(), 0);
    let now = world.now;
    let router = &mut world.nodes[0].router;
    router.remove_peer(now, PeerId(2));
    router.unpublish(now, &"TR_v".into());
    router.remove_peer(now, PeerId(5));
    router.remove_link(now, super::world::node_id(1));
    world.run_ms(50);
    assert_eq!(world.nodes[0].router.deadline(), None);
    assert!(world.nodes[0].router.stats(world.now).tracks.is_empty());
}
