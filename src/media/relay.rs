//! Tracks between nodes: authenticated, encrypted datagrams on the same sockets as clients.
//!
//! ```text
//! router ─ message (what is said) ─ link (keys, counters, replay window) ─ Wire::send_relay
//! ```
//!
//! The receiving node drives: it tells the sending one which layers it wants (one aggregate for all
//! its subscribers), asks for lost packets and key frames, and measures the link. Both act on routes
//! in the replicated log; nothing is held for tracks that are not expected.

pub mod keys;
pub mod link;
pub mod loan;
pub mod message;
pub mod transit;
