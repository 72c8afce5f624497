//! How long an Opus packet plays (RFC 6716 §3.1), for the windows of the audio level.

use std::time::Duration;

/// Playing time of a packet, at most 120 ms; zero for an empty one.
#[must_use]
pub fn duration(payload: &[u8]) -> Duration {
    let Some(&toc) = payload.first() else {
        return Duration::ZERO;
    };
    let config = toc >> 3;
    let frame_us = match config {
        0..=11 => [10_000, 20_000, 40_000, 60_000][usize::from(config & 3)],
        12..=15 => [10_000, 20_000][usize::from(config & 1)],
        _ => [2_500, 5_000, 10_000, 20_000][usize::from(config & 3)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u64::from(payload.get(1).copied().unwrap_or(0) & 0x3f),
    };
    Duration::from_micros((frame_us * frames).min(120_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_by_mode() {
        let ms = |payload: &[u8]| duration(payload).as_micros() as f64 / 1_000.0;
        assert_eq!(ms(&[31 << 3, 0]), 20.0); // CELT, one frame
        assert_eq!(ms(&[28 << 3 | 1, 0]), 5.0); // CELT 2.5 ms, two frames
        assert_eq!(ms(&[3 << 3, 0]), 60.0); // SILK
        assert_eq!(ms(&[13 << 3, 0]), 20.0); // hybrid
        assert_eq!(ms(&[31 << 3 | 3, 3]), 60.0); // three frames by count
        assert_eq!(ms(&[3 << 3 | 3, 63]), 120.0); // capped
        assert_eq!(ms(&[]), 0.0);
    }
}
