//! What happens to a packet: the sans-IO SFU engine.
//!
//! A shard thread of `flotilla-node` feeds datagrams, commands and the time to [`engine::Engine`]
//! and sends what it gets back. No socket, clock, thread or lock in here.

pub mod codec;
pub mod command;
pub mod discard;
pub mod engine;
pub mod event;
pub mod forward;
pub mod index;
pub mod peer;
pub mod reach;
pub mod receive;
pub mod relay;
pub mod rtp;
pub mod send;
pub mod stats;
pub mod transmit;
pub mod via;

/// Where a test's time begins: the one place of this crate that looks at a clock.
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant cannot be made from nothing"
)]
pub(crate) fn test_epoch() -> std::time::Instant {
    std::time::Instant::now()
}
