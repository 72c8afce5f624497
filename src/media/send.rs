//! The sending side of a subscription beyond its newest packet: what was sent under which number,
//! retransmissions, reports, and how much a subscriber's path can take.
//!
//! ```text
//! forward::subscription ─ segment (numbers) ─ history ← NACK → retransmit
//!                       └ report (SR, RR, round trip)    REMB → congestion
//! ```

pub mod congestion;
pub mod report;
pub mod retransmit;
pub mod segment;
