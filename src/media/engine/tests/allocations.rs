//! The hot path allocates nothing: media through real SRTP, from datagram to datagram, with every
//! allocation of this thread counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
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

#[test]
fn forwarding_allocates_nothing() {
    const SUBSCRIBERS: usize = 5;
    let mut world = World::new(1);
    let alice = publisher(&mut world, 0);
    for _ in 0..SUBSCRIBERS {
        let client = world.client(0, PeerRole::Single);
        world.subscribe(client, "TR_AM");
        world.subscribe(client, "TR_VC");
        world.offer(client, captures::PY_V1_JOIN);
    }
    world.run(MOMENT);
    // Streams are found, rings and tables filled, the best layer chosen.
    play(&mut world, alice, 0..200);
    let from = world.clients[alice].address;
    let (mut packets, mut sent, mut allocations) = (0, 0, 0);
    for number in 200..500 {
        let mut sealed = vec![world.clients[alice].seal(&audio(number))];
        sealed.extend((0..3).map(|layer| world.clients[alice].seal(&video(layer, number))));
        let now = world.now;
        let engine = &mut world.engines[0];
        for bytes in &mut sealed {
            let before = ALLOCATIONS.get();
            engine.handle_datagram(now, from, bytes);
            allocations += ALLOCATIONS.get() - before;
            packets += 1;
            sent += engine.transmits().datagrams().len();
            engine.transmits().clear();
        }
        world.run(Duration::from_millis(20));
    }
    assert_eq!(packets, 1200);
    // Audio and one video layer for each.
    assert!(sent >= 2 * 300 * SUBSCRIBERS, "{sent}");
    assert_eq!(
        allocations, 0,
        "in {packets} packets received and {sent} sent"
    );
}
