//! The hot path allocates nothing: media through real SRTP, from datagram to datagram, with every
//! allocation of this thread counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use super::*;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting per thread.
struct Counting;

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written otherwise; all is passed on"
)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count() {
    // A thread that ends has no counter any more, and nothing to count.
    let _ = ALLOCATIONS.try_with(|counter| counter.set(counter.get() + 1));
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Hands a datagram to an engine; gives the allocations that took and what it sends.
fn handle(world: &mut World, engine: usize, from: SocketAddr, bytes: &mut [u8]) -> (u64, Sent) {
    let now = world.now;
    let engine = &mut world.engines[engine];
    let before = ALLOCATIONS.get();
    engine.handle_datagram(now, from, bytes);
    assert!(engine.forward(), "a packet for a few fits");
    let allocations = ALLOCATIONS.get() - before;
    let transmits = engine.transmits();
    let sent = transmits
        .datagrams()
        .iter()
        .map(|datagram| (datagram.to, transmits.bytes(datagram).to_vec()))
        .collect();
    transmits.clear();
    (allocations, sent)
}

type Sent = Vec<(SocketAddr, Vec<u8>)>;

/// Audio and all three layers of one moment, sealed.
fn sealed(world: &mut World, client: usize, number: u16) -> Vec<Vec<u8>> {
    let client = &mut world.clients[client];
    let mut packets = vec![client.seal(&audio(number))];
    packets.extend((0..3).map(|layer| client.seal(&video(layer, number))));
    packets
}

fn subscriber(world: &mut World, engine: usize) -> usize {
    let client = world.client(engine, PeerRole::Single);
    world.subscribe(client, "TR_AM");
    world.subscribe(client, "TR_VC");
    world.offer(client, captures::PY_V1_JOIN);
    client
}

#[test]
fn the_counter_counts() {
    let before = ALLOCATIONS.get();
    let boxed = std::hint::black_box(Box::new(7));
    assert_eq!(ALLOCATIONS.get() - before, 1, "{boxed}");
}

#[test]
fn forwarding_allocates_nothing() {
    const SUBSCRIBERS: usize = 5;
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    for _ in 0..SUBSCRIBERS {
        subscriber(&mut world, 0);
    }
    world.run(MOMENT);
    // Streams are found, rings and tables filled, the best layer chosen.
    play(&mut world, alice, 0..200);
    let from = world.clients[alice].address;
    let (mut sent, mut allocations) = (0, 0);
    for number in 200..500 {
        for mut bytes in sealed(&mut world, alice, number) {
            let (allocated, out) = handle(&mut world, 0, from, &mut bytes);
            allocations += allocated;
            sent += out.len();
        }
        world.run(Duration::from_millis(20));
    }
    // Audio and one video layer for each.
    assert!(sent >= 2 * 300 * SUBSCRIBERS, "{sent}");
    assert_eq!(allocations, 0, "in 1200 packets received and {sent} sent");
}

#[test]
fn retransmitting_allocates_nothing() {
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    let bob = subscriber(&mut world, 0);
    world.run(MOMENT);
    play(&mut world, alice, 0..100);
    let from = world.clients[bob].address;
    let (mut repeated, mut allocations) = (0, 0);
    for number in 100..200 {
        play(&mut world, alice, number..number + 1);
        let newest = world.clients[bob]
            .rtp
            .iter()
            .rev()
            .map(|packet| seen(packet));
        let lost = newest
            .clone()
            .find(|packet| packet.pt == 96)
            .expect("video arrives");
        let mut nack = world.clients[bob].seal_rtcp(&nack(lost.ssrc, lost.sequence));
        let (allocated, out) = handle(&mut world, 0, from, &mut nack);
        repeated += out.len();
        // The first may make room for the retransmission's own stream.
        if number > 100 {
            allocations += allocated;
        }
    }
    assert!(repeated >= 95, "{repeated}");
    assert_eq!(allocations, 0, "in {repeated} retransmissions");
}

#[test]
fn relaying_allocates_nothing_at_either_end() {
    let mut world = World::new(2);
    link(&mut world);
    let alice = publisher(&mut world, 0);
    let bob = subscriber(&mut world, 1);
    relay(&mut world);
    world.run(MOMENT);
    world.offer(bob, captures::PY_V1_JOIN);
    play(&mut world, alice, 0..200);
    let from = world.clients[alice].address;
    let (mut relayed, mut delivered, mut allocations) = (0, 0, 0);
    for number in 200..400 {
        for mut bytes in sealed(&mut world, alice, number) {
            let (allocated, out) = handle(&mut world, 0, from, &mut bytes);
            allocations += allocated;
            for (_, mut packet) in out.into_iter().filter(|(to, _)| *to == engine_address(1)) {
                let (allocated, out) = handle(&mut world, 1, engine_address(0), &mut packet);
                allocations += allocated;
                relayed += 1;
                delivered += out.len();
            }
        }
        world.run(Duration::from_millis(20));
    }
    assert!(
        relayed >= 2 * 200 && delivered >= 2 * 190,
        "{relayed} {delivered}"
    );
    assert_eq!(allocations, 0, "in {relayed} packets relayed");
}

/// A generic NACK for one packet (RFC 4585 §6.2.1).
fn nack(ssrc: u32, sequence: u16) -> Vec<u8> {
    let mut packet = vec![0x81, 205, 0, 3, 0, 0, 0, 1];
    packet.extend(ssrc.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0]);
    packet
}
