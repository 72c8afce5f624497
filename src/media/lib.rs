//! What happens to a packet: the sans-IO SFU engine.
//!
//! A shard thread of `flotilla-node` feeds datagrams, commands and the time to [`engine::Engine`]
//! and sends what it gets back. No socket, clock, thread or lock in here.

pub mod command;
pub mod discard;
pub mod engine;
pub mod event;
pub mod forward;
pub mod index;
pub mod peer;
pub mod stats;
pub mod transmit;
