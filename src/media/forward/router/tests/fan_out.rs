//! Fan-out in pieces: what waits, what the wire has room for, and what comes in between.

use flotilla_model::track::Kind;

use super::agents::{Publisher, Subscriber};
use super::world::World;
use crate::command::PeerId;
use crate::event::Event;

const SUBSCRIBERS: std::ops::Range<u64> = 2..42;

fn world(room: Option<usize>) -> World {
    let mut world = World::new(1, 50);
    world.nodes[0].wire.room = room;
    world.publish(0, Publisher::single(1, "TR_v"));
    for peer in SUBSCRIBERS {
        world.subscribe(0, Subscriber::new(peer, "TR_v", Kind::Video, true));
    }
    world
}

#[test]
fn a_wire_that_is_full_again_and_again_loses_and_repeats_nothing() {
    // One subscriber is served in a millisecond, so that the next frame comes before the last of
    // them was.
    let mut world = world(Some(1));
    world.run_ms(2_000);
    let mut unhurried = self::world(None);
    unhurried.run_ms(2_000);
    for peer in SUBSCRIBERS {
        let subscriber = world.subscriber(peer);
        assert_eq!(subscriber.gaps(), 0, "{peer}");
        subscriber.judge();
        let expected = unhurried.subscriber(peer).packets();
        let packets = subscriber.packets();
        assert!(
            expected > 100 && packets + 30 > expected,
            "{packets} of {expected}"
        );
    }
    let stats = world.nodes[0].router.stats(world.now);
    for sent in &stats.subscriptions {
        assert_eq!(sent.retransmissions, 0, "nobody had to ask");
    }
}

#[test]
fn a_subscriber_that_leaves_in_the_middle_holds_nobody_up() {
    let mut world = world(Some(1));
    world.run_ms(1_000);
    let now = world.now;
    for peer in [2, 5, 6] {
        world.nodes[0].router.remove_peer(now, PeerId(peer));
        world.subscribers.remove(&PeerId(peer));
    }
    let before = world.subscriber(11).packets();
    world.run_ms(1_000);
    assert!(world.subscriber(11).packets() > before + 50);
    for peer in [3, 4, 7, 8, 41] {
        assert_eq!(world.subscriber(peer).gaps(), 0, "{peer}");
    }
}

#[test]
fn packets_of_a_track_that_ended_are_not_sent() {
    let mut world = world(None);
    world.run_ms(500);
    assert_eq!(world.nodes[0].router.waiting(), 0, "all was sent");
    let started = |event: &&Event| matches!(event, Event::SubscriptionStarted { .. });
    let events = world.events(0).iter().filter(started).count();
    assert_eq!(events, SUBSCRIBERS.count(), "each began once");
    let now = world.now;
    world.nodes[0].router.unpublish(now, &"TR_v".into());
    let before = world.subscriber(11).packets();
    world.run_ms(100);
    assert_eq!(world.nodes[0].router.waiting(), 0);
    assert!(
        world.subscriber(11).packets() <= before + 10,
        "only those on their way"
    );
}
