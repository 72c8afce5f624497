//! What a client is saying and what we answer: LiveKit's signal protocol as sans-IO sessions.
//!
//! ```text
//! upgrade request ─ connect ─ token ─┐                       ┌─ Reply ─ wire ─ client
//! frame ─ wire ─ SignalRequest ──────┼─ session::Session ────┼─ Propose ─ the group's log
//! room events, media events, data ───┘                       └─ Media ─ the engine, Data ─ others
//! Twirp request ─ room_service ─ command or query
//! ```
//!
//! `flotilla-node` feeds requests, room events and media events to [`session::Session`] and carries
//! out what it gets back. Nothing here knows a socket, a task, the clock or ambient randomness.

pub mod config;
pub mod connect;
pub mod convert;
pub mod data;
pub mod id_source;
pub mod media;
pub mod room_service;
pub mod session;
pub mod token;
pub mod wire;

pub use livekit_protocol as proto;
