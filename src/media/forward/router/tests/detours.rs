//! A cut between two of three nodes: packets go by the third.

use flotilla_model::id::BootId;
use flotilla_model::track::Kind;

use super::agents::{Publisher, Subscriber};
use super::world::{World, address, node_id};
use crate::discard::Discard;
use crate::forward::Wire;
use crate::forward::router::tests::world::router;
use crate::relay::keys::End;
use crate::relay::transit::Detour;

/// A track from node 0 to node 1, and a third node.
fn world() -> World {
    let mut world = World::new(3, 70);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(1, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.route(&info, 0, 1, 1);
    world.run_ms(2_000);
    world
}

fn detour(world: &mut World, by: Option<usize>) {
    for (from, to) in [(0, 1), (1, 0)] {
        let now = world.now;
        let router = &mut world.nodes[from].router;
        router.set_detour(now, node_id(to), by.map(node_id));
    }
}

fn passed_on(world: &World, node: usize) -> u64 {
    let now = world.now;
    world.nodes[node].router.stats(now).packets_passed_on
}

/// Packets that arrive at the subscriber within a second.
fn arrive(world: &mut World) -> usize {
    let before = world.subscriber(2).packets();
    world.run_ms(1_000);
    world.subscriber(2).packets() - before
}

#[test]
fn a_cut_link_is_gone_round_and_used_again_once_it_is_whole() {
    let mut world = world();
    let usual = arrive(&mut world);
    world.cut.insert((0, 1));
    assert_eq!(arrive(&mut world), 0);
    detour(&mut world, Some(2));
    world.run_ms(500);
    assert!(arrive(&mut world) > usual / 2, "by node 2");
    let on_the_way = passed_on(&world, 2);
    assert!(on_the_way > 0);
    world.subscriber(2).judge();

    world.cut.clear();
    detour(&mut world, None);
    assert!(arrive(&mut world) > usual / 2, "directly");
    assert_eq!(passed_on(&world, 2), on_the_way);

    // Again and again: the node on the way takes nothing for repeated.
    for _ in 0..4 {
        world.cut.insert((0, 1));
        detour(&mut world, Some(2));
        world.run_ms(500);
        assert!(arrive(&mut world) > usual / 2, "by node 2 again");
        world.cut.clear();
        detour(&mut world, None);
        world.run_ms(500);
    }
    world.run_ms(1_000);
    world.subscriber(2).judge();
}

#[test]
fn a_detour_goes_on_when_the_node_on_the_way_has_started_anew() {
    let mut world = world();
    world.cut.insert((0, 1));
    detour(&mut world, Some(2));
    world.run_ms(1_000);
    world.reboot(2, 101);
    world.run_ms(500);
    assert!(arrive(&mut world) > 0);
}

#[test]
fn a_node_on_the_way_sends_on_neither_by_a_detour_nor_for_strangers() {
    let mut world = world();
    let now = world.now;
    world.nodes[2]
        .router
        .set_detour(now, node_id(1), Some(node_id(0)));
    world.cut.insert((0, 1));
    world.nodes[0]
        .router
        .set_detour(now, node_id(1), Some(node_id(2)));
    assert_eq!(arrive(&mut world), 0);
    assert_eq!(passed_on(&world, 2), 0);

    // Made by somebody who does not know the secret.
    let end = |node, boot| End {
        node: node_id(node),
        boot: BootId(boot),
    };
    let via = (end(2, 100), address(2));
    let mut foreign = Detour::new(&[1; 32], 0, end(0, 100), via, node_id(1), 7);
    let mut buffer = [0; 200];
    let len = foreign.wrap(&mut buffer, |room| {
        room[..60].fill(0xc1);
        60
    });
    world.nodes[2].router.set_detour(now, node_id(1), None);
    let refused = world.inject_relay(2, &mut buffer[..len]);
    assert_eq!(refused, Err(Discard::Unauthenticated));
    assert_eq!(passed_on(&world, 2), 0);
}

#[test]
fn a_detour_by_an_unknown_node_is_none() {
    struct Nothing;
    impl Wire for Nothing {
        fn send_rtp(&mut self, _: crate::command::PeerId, _: impl FnOnce(&mut [u8]) -> usize) {}
        fn send_rtcp(&mut self, _: crate::command::PeerId, _: impl FnOnce(&mut [u8]) -> usize) {}
        fn send_relay(&mut self, to: std::net::SocketAddr, _: impl FnOnce(&mut [u8]) -> usize) {
            assert_eq!(to, address(1), "directly");
        }
    }
    let now = crate::test_epoch();
    let mut router = router(now, 0, 100);
    router.set_link(now, node_id(1), BootId(100), address(1));
    router.set_detour(now, node_id(1), Some(node_id(2)));
    router.set_detour(now, node_id(1), Some(node_id(1)));
    router.set_detour(now, node_id(5), Some(node_id(1)));
    router.handle_timeout(now, &mut Nothing);
}
