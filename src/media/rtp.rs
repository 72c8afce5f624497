//! RTP and RTCP on the wire: parsing without copies, building into the caller's buffer.
//!
//! Used by `receive`, `forward` and `send`; knows nothing of tracks or peers. RFC 3550, 3551, 4585,
//! 4588, 5104, 6464, 8285 and the drafts for REMB and transport-wide congestion control.

pub mod extension;
pub mod packet;
pub mod rtcp;
pub mod sequence;
pub mod twcc;
