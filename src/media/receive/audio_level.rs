//! How loud a track is, for active-speaker updates: from the level in each packet (RFC 6464) to a
//! smoothed value in steps of 1/8, with LiveKit's parameters.
//!
//! Owned by an audio track; fed with each new packet; read by the router a few times a second.

use std::time::{Duration, Instant};

/// Loudest background noise that does not count as speech, −dBov.
const THRESHOLD: u8 = 35;
/// Sound is judged per window of this playing time.
const WINDOW: Duration = Duration::from_millis(400);
/// Share of a window that must be speech for it to count, in percent.
const ACTIVE_PERCENT: u32 = 40;
/// Weight of a new window: 2 / (windows + 1) with two windows.
const SMOOTHING: f32 = 2.0 / 3.0;
/// Below this the smoothed level is silence.
const SILENCE: f32 = 0.01;
/// Without packets for so long a track is silent (discontinuous transmission sends one per 400 ms).
const STALE: Duration = Duration::from_millis(1_000);

/// Loudness of one track.
#[derive(Clone, Copy, Debug)]
pub struct AudioLevel {
    loudest: u8,
    active: Duration,
    observed: Duration,
    smoothed: f32,
    last: Option<Instant>,
}

impl Default for AudioLevel {
    fn default() -> Self {
        Self {
            loudest: 127,
            active: Duration::ZERO,
            observed: Duration::ZERO,
            smoothed: 0.0,
            last: None,
        }
    }
}

impl AudioLevel {
    /// A packet of `duration` with this RFC 6464 byte was received.
    pub fn observe(&mut self, now: Instant, byte: u8, duration: Duration) {
        let level = byte & 0x7f;
        self.last = Some(now);
        self.observed += duration;
        if level <= THRESHOLD {
            self.active += duration;
            self.loudest = self.loudest.min(level);
        }
        if self.observed < WINDOW {
            return;
        }
        let is_active = self.active >= self.observed * ACTIVE_PERCENT / 100;
        let target = if is_active {
            // Short speech in a window counts as softer speech.
            let share = self.active.as_secs_f32() / self.observed.as_secs_f32();
            let decibels = f32::from(self.loudest) - 20.0 * share.log10();
            10_f32.powf(-decibels / 20.0)
        } else {
            0.0
        };
        self.smoothed += (target - self.smoothed) * SMOOTHING;
        self.loudest = 127;
        self.active = Duration::ZERO;
        self.observed = Duration::ZERO;
    }

    /// Smoothed loudness, 0 to 1, in steps of 1/8 (rounded up).
    #[must_use]
    pub fn level(&self, now: Instant) -> f32 {
        let is_stale = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) > STALE);
        if is_stale || self.smoothed < SILENCE {
            0.0
        } else {
            ((self.smoothed * 8.0).ceil() / 8.0).min(1.0)
        }
    }

    /// The track fell silent (muted, ended).
    pub fn silence(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: Duration = Duration::from_millis(20);

    fn play(meter: &mut AudioLevel, now: &mut Instant, levels: impl IntoIterator<Item = u8>) {
        for level in levels {
            meter.observe(*now, level, PACKET);
            *now += PACKET;
        }
    }

    #[test]
    fn speech_is_loud_and_noise_is_silent() {
        let mut now = crate::test_epoch();
        let mut meter = AudioLevel::default();
        play(&mut meter, &mut now, [60; 60]);
        assert_eq!(meter.level(now), 0.0);
        play(&mut meter, &mut now, [10; 20]);
        let first = meter.level(now);
        assert!((0.2..0.4).contains(&first), "{first}");
        assert_eq!(first * 8.0, (first * 8.0).round());
        play(&mut meter, &mut now, [10; 40]);
        assert!(meter.level(now) >= first);
        play(&mut meter, &mut now, [90; 120]);
        assert_eq!(meter.level(now), 0.0);
    }

    #[test]
    fn a_click_is_not_speech() {
        let mut now = crate::test_epoch();
        let mut meter = AudioLevel::default();
        let window = [[0; 7].as_slice(), &[80; 13]].concat();
        play(&mut meter, &mut now, window);
        assert_eq!(meter.level(now), 0.0);
        let window = [[0; 8].as_slice(), &[80; 12]].concat();
        play(&mut meter, &mut now, window);
        assert!(meter.level(now) > 0.0);
    }

    #[test]
    fn no_packets_mean_silence() {
        let mut now = crate::test_epoch();
        let mut meter = AudioLevel::default();
        play(&mut meter, &mut now, [5; 40]);
        assert!(meter.level(now) >= 0.5);
        assert_eq!(meter.level(now + Duration::from_secs(2)), 0.0);
    }

    #[test]
    fn the_voice_bit_is_no_loudness() {
        let mut now = crate::test_epoch();
        let mut meter = AudioLevel::default();
        play(&mut meter, &mut now, [0x80 | 70; 40]);
        assert_eq!(meter.level(now), 0.0);
    }
}
