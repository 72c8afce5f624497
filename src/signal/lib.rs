//! What a client is saying and what we answer: LiveKit's signal protocol as sans-IO sessions.
//!
//! `flotilla-node` feeds requests, room events and media events to [`session::Session`] and carries
//! out what it gets back.

pub mod media;
