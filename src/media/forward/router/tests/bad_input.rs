//! Arbitrary and damaged bytes at every entrance: counted, never a panic.

use flotilla_model::track::Kind;
use proptest::prelude::*;

use super::agents::{Publisher, Subscriber};
use super::world::{World, address};
use crate::command::PeerId;
use crate::relay::keys::{DirectionKey, End, HEAD_LEN};

fn world() -> World {
    let mut world = World::new(2, 50);
    let publisher = Publisher::video(1, "TR_v", true);
    let info = publisher.info.clone();
    world.publish(0, publisher);
    world.subscribe(0, Subscriber::new(2, "TR_v", Kind::Video, true));
    world.subscribe(1, Subscriber::new(3, "TR_v", Kind::Video, true));
    world.route(&info, 0, 1, 1);
    world.run_ms(200);
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn arbitrary_bytes_never_panic(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..60),
        ssrc in prop::sample::select(vec![1_001_u32, 1_002, 1_011, 1_021, 2_007, 5]),
        pt in prop::sample::select(vec![96_u8, 97, 0x80 | 96, 200, 201, 205, 206]),
    ) {
        let mut world = world();
        for mut bytes in packets {
            world.inject(0, PeerId(1), &mut bytes.clone());
            if bytes.len() >= 16 {
                bytes[0] = 0x80 | (bytes[0] & 0x3f);
                bytes[1] = pt;
                bytes[8..12].copy_from_slice(&ssrc.to_be_bytes());
                let words = (bytes.len() / 4 - 1) as u16;
                if pt >= 200 {
                    bytes[2..4].copy_from_slice(&words.to_be_bytes());
                }
            }
            for peer in [1, 2, 77] {
                let now = world.now;
                world.inject(0, PeerId(peer), &mut bytes.clone());
                let mut sink = super::world::Recorder::default();
                let router = &mut world.nodes[0].router;
                let _ = router.handle_rtcp(now, PeerId(peer), &bytes, &mut sink);
                let _ = router.handle_relay(now, address(1), &mut bytes.clone(), &mut sink);
            }
            world.now += std::time::Duration::from_millis(3);
        }
        // It still works.
        let before = world.subscriber(3).arrived.len();
        world.run_ms(3_000);
        prop_assert!(world.subscriber(3).arrived.len() > before);
    }

    #[test]
    fn arbitrary_messages_of_an_authentic_node_never_panic(
        messages in proptest::collection::vec(
            (1_u8..8, proptest::collection::vec(any::<u8>(), 0..120), any::<bool>()), 1..80
        ),
    ) {
        let mut world = world();
        let end = |node: usize| End {
            node: super::world::node_id(node),
            boot: flotilla_model::id::BootId(100),
        };
        for to in [0, 1] {
            let key = DirectionKey::derive(&[9; 32], 0, end(1 - to), end(to));
            for (index, (kind, body, names_track)) in messages.iter().enumerate() {
                let mut plain = vec![*kind];
                if *names_track {
                    let hash = flotilla_model::id::fnv1a(b"TR_v");
                    plain.extend_from_slice(&hash.to_be_bytes());
                    plain.extend_from_slice(&1_u64.to_be_bytes());
                }
                plain.extend_from_slice(body);
                let mut packet = vec![0; HEAD_LEN + plain.len() + 16];
                packet[HEAD_LEN..HEAD_LEN + plain.len()].copy_from_slice(&plain);
                let counter = u64::MAX / 2 + 10_000 + index as u64;
                key.seal(&mut packet, plain.len(), counter);
                let _ = world.inject_relay(to, &mut packet);
            }
        }
        world.run_ms(500);
    }
}
