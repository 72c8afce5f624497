//! Two and three nodes: one relay per track, repaired per hop, driven by its receiver.

use flotilla_model::id::Epoch;
use flotilla_model::track::{Kind, Quality};

use super::agents::{Publisher, Subscriber, track_info};
use super::world::{Network, World, node_id};
use crate::command::PeerId;
use crate::discard::Discard;
use crate::event::Event;

const BAD: Network = Network {
    loss: 0.05,
    delay_ms: 30,
    jitter_ms: 20,
};

#[test]
fn a_relay_over_a_bad_path_delivers_clean_video() {
    for seed in [30, 31, 32] {
        let mut world = World::new(2, seed);
        world.node_network = BAD;
        let publisher = Publisher::video(1, "TR_v", true);
        let info = publisher.info.clone();
        world.publish(0, publisher);
        world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
        world.route(&info, 0, 1, 1);
        world.run_ms(10_000);
        world.node_network.loss = 0.0;
        world.run_ms(500);
        let subscriber = world.subscriber(2);
        assert!(
            subscriber.delivered() >= 0.999,
            "{}",
            subscriber.delivered()
        );
        assert!(subscriber.packets() > 1_800, "{}", subscriber.packets());
        subscriber.judge();
        assert_eq!(subscriber.layers().last(), Some(&2));
        assert!(subscriber.drift_ms(90_000) < 60);
        assert!(subscriber.sender_reports.len() > 5);
        let started = world.events(1).iter().filter(
            |event| matches!(event, Event::RelayStarted { from, .. } if *from == node_id(0)),
        );
        assert_eq!(started.count(), 1);
        let stats = world.nodes[1].router.stats(world.now);
        let rtt = stats.links[0].rtt.expect("measured");
        assert!((60..110).contains(&rtt.as_millis()), "{rtt:?}");
        assert!(stats.links[0].packets_lost > 0);
    }
}

#[test]
fn only_wanted_layers_travel_and_nothing_without_subscribers() {
    let mut world = World::new(2, 33);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.route(&info, 0, 1, 1);
    world.run_ms(2_000);
    let relays = world.nodes[0].router.stats(world.now).relays;
    assert_eq!(relays[0].packets, 0);
    assert!(!relays[0].is_active);
    world.subscribe(
        1,
        Subscriber::new(2, "TR_v", Kind::Video, true).with_quality(Quality::Low),
    );
    world.subscribe(
        1,
        Subscriber::new(3, "TR_v", Kind::Video, true).with_quality(Quality::Low),
    );
    world.run_ms(3_000);
    let relays = world.nodes[0].router.stats(world.now).relays;
    // One packet per frame, once for both.
    assert!((80..130).contains(&relays[0].packets), "{relays:?}");
    assert_eq!(relays[0].wanted, Quality::Low);
    assert_eq!(world.subscriber(2).layers(), [0]);
    world.subscriber(3).judge();
    let now = world.now;
    for peer in [2, 3] {
        world.nodes[1]
            .router
            .unsubscribe(now, PeerId(peer), &"TR_v".into());
    }
    world.run_ms(100);
    let before = world.nodes[0].router.stats(world.now).relays[0].packets;
    world.run_ms(1_000);
    let after = world.nodes[0].router.stats(world.now).relays[0].packets;
    assert_eq!(before, after);
    world.run_ms(6_000);
    let wanted: Vec<Quality> = world
        .events(0)
        .iter()
        .filter_map(|event| match event {
            Event::QualityWanted { quality, .. } => Some(*quality),
            _ => None,
        })
        .collect();
    assert_eq!(wanted.last(), Some(&Quality::Off));
}

#[test]
fn a_receiver_that_vanishes_is_sent_nothing() {
    let mut world = World::new(2, 34);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.route(&info, 0, 1, 1);
    world.run_ms(1_000);
    world.node_network.loss = 1.0;
    world.run_ms(4_000);
    let relays = world.nodes[0].router.stats(world.now).relays;
    assert!(!relays[0].is_active);
    world.node_network.loss = 0.0;
    world.run_ms(2_000);
    assert!(world.nodes[0].router.stats(world.now).relays[0].is_active);
    let packets = world.subscriber(2).packets();
    world.run_ms(500);
    assert!(world.subscriber(2).packets() > packets + 50);
}

#[test]
fn who_is_back_does_not_wait_for_a_key_frame_that_is_due_at_another_node() {
    for is_back in [false, true] {
        let mut world = World::new(2, 36);
        let publisher = Publisher::single(1, "TR_v");
        let info = publisher.info.clone();
        world.publish(0, publisher);
        world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
        world.route(&info, 0, 1, 1);
        world.run_ms(400);
        assert!(world.subscriber(2).packets() > 10);
        world.subscribe(1, Subscriber::new(3, "TR_v", Kind::Video, true));
        if is_back {
            let now = world.now;
            world.nodes[1].router.peer_resumed(now, PeerId(3));
        }
        world.run_ms(300);
        assert_eq!(world.subscriber(3).packets() > 0, is_back);
        world.run_ms(1_000);
        world.subscriber(3).judge();
    }
}

#[test]
fn a_lower_epoch_is_refused() {
    let mut world = World::new(3, 35);
    let old = Publisher::audio(1, "TR_a");
    let info = old.info.clone();
    world.publish(0, old);
    world.subscribe(1, Subscriber::new(2, "TR_a", Kind::Audio, false));
    world.route(&info, 0, 1, 1);
    world.run_ms(500);
    assert!(world.subscriber(2).packets() > 10);
    // The publisher's session moves to node 2 with a higher epoch; node 0 does not know yet.
    let mut new = Publisher::audio(9, "TR_a");
    new.info = info.clone();
    let now = world.now;
    let router = &mut world.nodes[2].router;
    router.publish(now, new.peer, &new.info, Epoch(2));
    router.set_receive(now, new.peer, vec![new.section.clone()]);
    router.peer_connected(now, new.peer);
    world.publishers.insert(new.peer, (2, new));
    world.route(&info, 2, 1, 2);
    // Its order to go back must be ignored as well.
    world.nodes[1]
        .router
        .relay_from(now, &info, node_id(0), Epoch(1));
    world.run_ms(1_000);
    let stats = world.nodes[1].router.stats(world.now);
    assert_eq!(stats.tracks[0].epoch, Epoch(2));
    assert!(stats.discards.get(Discard::StaleEpoch) > 0);
    let subscriber = world.subscriber(2);
    assert_eq!(subscriber.gaps(), 0);
    assert!(subscriber.packets() > 50);
}

#[test]
fn a_node_that_starts_anew_gets_its_tracks_again() {
    let mut world = World::new(2, 36);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.route(&info, 0, 1, 1);
    world.run_ms(1_000);
    assert!(world.subscriber(2).packets() > 50);
    world.tap = Some(vec![]);
    world.run_ms(200);
    let old = world.tap.take().expect("tapped");
    world.subscribers.clear();
    world.reboot(1, 200);
    world.subscribe(1, Subscriber::new(3, "TR_v", Kind::Video, true));
    world.route(&info, 0, 1, 1);
    world.run_ms(1_500);
    assert!(world.subscriber(3).packets() > 100);
    world.subscriber(3).judge();
    // What was sealed for the earlier start means nothing to this one.
    for mut bytes in old {
        let refused = world.inject_relay(1, &mut bytes);
        assert_eq!(refused, Err(Discard::UnknownLink));
    }
}

#[test]
fn repeated_and_foreign_packets_are_refused() {
    let mut world = World::new(2, 37);
    let publisher = Publisher::audio(1, "TR_a");
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(1, Subscriber::new(2, "TR_a", Kind::Audio, false));
    world.route(&info, 0, 1, 1);
    world.tap = Some(vec![]);
    world.run_ms(500);
    let tapped = world.tap.take().expect("tapped");
    assert!(tapped.len() > 20);
    let mut replayed = 0;
    for mut bytes in tapped.clone() {
        replayed += usize::from(world.inject_relay(1, &mut bytes) == Err(Discard::Replayed));
    }
    assert!(replayed > 15, "{replayed}");
    for mut bytes in tapped {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let refused = world.inject_relay(1, &mut bytes);
        assert!(
            matches!(
                refused,
                Err(Discard::Unauthenticated | Discard::UnknownLink)
            ),
            "{refused:?}"
        );
    }
}

#[test]
fn packets_before_the_route_are_dropped_and_the_rest_follows() {
    let mut world = World::new(2, 38);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
    let now = world.now;
    // The receiver's log is ahead of the sender's.
    world.nodes[1]
        .router
        .relay_from(now, &info, node_id(0), Epoch(1));
    world.run_ms(300);
    assert_eq!(world.nodes[0].router.stats(world.now).relays.len(), 0);
    let now = world.now;
    world.nodes[0].router.relay_to(now, &info.sid, node_id(1));
    world.run_ms(1_000);
    assert!(world.subscriber(2).packets() > 50);
    world.subscriber(2).judge();
}

#[test]
fn a_track_passes_through_a_node_in_between() {
    let mut world = World::new(3, 39);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.route(&info, 0, 1, 1);
    world.route(&info, 1, 2, 1);
    world.subscribe(2, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.run_ms(3_000);
    let subscriber = world.subscriber(2);
    subscriber.judge();
    assert_eq!(subscriber.layers().last(), Some(&2));
    assert!(subscriber.drift_ms(90_000) <= 20);
}

#[test]
fn muting_is_known_behind_a_relay() {
    let mut world = World::new(2, 40);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.route(&info, 0, 1, 1);
    world.run_ms(1_000);
    let now = world.now;
    world.nodes[0].router.set_muted(now, &info.sid, true);
    world.publisher_mut(1).is_stopped = true;
    world.run_ms(500);
    let plis = |world: &mut World| -> usize {
        world
            .publisher_mut(1)
            .encodings
            .iter()
            .map(|encoding| encoding.plis.len())
            .sum()
    };
    let before = plis(&mut world);
    world.subscriber_mut(2).pli_every = Some(std::time::Duration::from_millis(100));
    world.run_ms(3_000);
    assert_eq!(plis(&mut world), before);
    assert!(world.nodes[1].router.stats(world.now).tracks[0].is_muted);
    world.publisher_mut(1).is_stopped = false;
    let now = world.now;
    world.nodes[0].router.set_muted(now, &info.sid, false);
    world.run_ms(1_000);
    assert!(plis(&mut world) > before);
    world.subscriber(2).judge();
}

#[test]
fn an_unknown_track_is_refused_without_memory() {
    let mut world = World::new(2, 41);
    let publisher = Publisher::audio(1, "TR_a");
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(1, Subscriber::new(2, "TR_a", Kind::Audio, false));
    world.route(&info, 0, 1, 1);
    world.run_ms(500);
    let now = world.now;
    let router = &mut world.nodes[1].router;
    router.unpublish(now, &info.sid);
    world.run_ms(300);
    let stats = world.nodes[1].router.stats(world.now);
    assert!(stats.tracks.is_empty());
    assert!(stats.discards.get(Discard::UnknownTrack) > 5);
    let other = track_info("TR_b", Kind::Audio);
    let now = world.now;
    world.nodes[1]
        .router
        .relay_from(now, &other, node_id(0), Epoch(3));
    assert_eq!(world.nodes[1].router.stats(now).tracks.len(), 1);
}

/// After a panic a node has a new router under the same start: the keys are the same.
#[test]
fn a_replaced_router_is_heard_by_other_nodes() {
    for seed in 0..8 {
        let mut world = World::new(2, 80 + seed);
        let publisher = Publisher::video(1, "TR_v", true);
        let info = publisher.info.clone();
        world.publish(0, publisher);
        world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
        world.route(&info, 0, 1, 1);
        world.run_ms(2_000);
        world.reboot(0, 100);
        world.run_ms(5_000);
        let stats = world.nodes[1].router.stats(world.now);
        assert!(stats.links[0].is_up, "seed {seed}");
        let replayed = stats.discards.get(Discard::Replayed);
        assert_eq!(replayed, 0, "seed {seed}");
    }
}
