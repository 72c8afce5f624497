//! Received streams: from parsed packets to a ring of distinct, numbered packets, with repair and
//! feedback towards whoever sends them.
//!
//! ```text
//! router → demux (ssrc, mid, rid → layer) → stream → ring → forward
//!                                              └→ nack, keyframe, report → RTCP or relay feedback
//! ```

pub mod audio_level;
pub mod demux;
pub mod keyframe;
pub mod nack;
pub mod report;
pub mod ring;
pub mod stream;
