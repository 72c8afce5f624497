//! What a received stream's reports are made of: reception statistics for our receiver reports
//! (RFC 3550 §6.4, A.3, A.8) and the sender's clock from its sender reports.

use std::time::{Duration, Instant};

use crate::rtp::rtcp::ReportBlock;
use crate::rtp::sequence::distance_32;

/// Relation between a stream's RTP clock and its sender's wall clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SenderClock {
    /// Wall time, 32.32 fixed point seconds.
    pub ntp: u64,
    /// The same moment in the RTP clock.
    pub rtp: u32,
    /// When the report arrived here, or would have without the hop that carried it.
    pub at: Instant,
}

impl SenderClock {
    /// Wall time of an RTP timestamp.
    #[must_use]
    pub fn ntp_of(&self, rtp: u32, clock_rate: u32) -> u64 {
        let ticks = i128::from(distance_32(self.rtp, rtp));
        let offset = (ticks << 32) / i128::from(clock_rate.max(1));
        self.ntp.wrapping_add(offset as u64)
    }

    /// RTP timestamp of a wall time.
    #[must_use]
    pub fn rtp_of(&self, ntp: u64, clock_rate: u32) -> u32 {
        let offset = i128::from(ntp.wrapping_sub(self.ntp) as i64);
        self.rtp
            .wrapping_add(((offset * i128::from(clock_rate)) >> 32) as u32)
    }

    /// Both clocks' values at `now`.
    #[must_use]
    pub fn at(&self, now: Instant, clock_rate: u32) -> (u64, u32) {
        let passed = now.saturating_duration_since(self.at);
        (
            self.ntp.wrapping_add(to_ntp(passed)),
            self.rtp.wrapping_add(to_ticks(passed, clock_rate)),
        )
    }
}

/// A duration in 32.32 fixed point seconds.
#[must_use]
pub fn to_ntp(duration: Duration) -> u64 {
    (duration.as_secs() << 32) | ((u64::from(duration.subsec_nanos()) << 32) / 1_000_000_000)
}

/// A duration in ticks of a clock, wrapping.
#[must_use]
pub fn to_ticks(duration: Duration, clock_rate: u32) -> u32 {
    (duration.as_micros() * u128::from(clock_rate) / 1_000_000) as u32
}

/// Reception statistics of one stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reception {
    first: u64,
    highest: u64,
    received: u64,
    expected_prior: u64,
    received_prior: u64,
    /// Jitter in 1/16 clock units.
    jitter: u32,
    transit: Option<u32>,
    last_report: u32,
    last_report_at: Option<Instant>,
}

impl Reception {
    /// Starts anew with a stream's first packet.
    #[must_use]
    pub fn starting_at(sequence: u64) -> Self {
        Self {
            first: sequence,
            highest: sequence,
            ..Self::default()
        }
    }

    /// A packet was received, not by retransmission if `transit` is to count: arrival in RTP clock
    /// units less its timestamp.
    pub fn received(&mut self, sequence: u64, transit: Option<u32>) {
        self.first = self.first.min(sequence);
        self.highest = self.highest.max(sequence);
        self.received += 1;
        let Some(transit) = transit else {
            return;
        };
        if let Some(before) = self.transit.replace(transit) {
            let difference = distance_32(before, transit).unsigned_abs();
            // A jump of the publisher's clock is not jitter.
            if difference < 1 << 20 {
                self.jitter = self
                    .jitter
                    .saturating_add(difference)
                    .saturating_sub((self.jitter + 8) >> 4);
            }
        }
    }

    /// A sender report arrived.
    pub fn sender_reported(&mut self, now: Instant, ntp: u64) {
        self.last_report = (ntp >> 16) as u32;
        self.last_report_at = Some(now);
    }

    /// Interarrival jitter in clock units.
    #[must_use]
    pub fn jitter(&self) -> u32 {
        self.jitter >> 4
    }

    /// Fraction lost since the last block, 1/256, without starting a new interval.
    #[must_use]
    pub fn fraction_lost(&self) -> u8 {
        let expected = self.expected() - self.expected_prior;
        let received = self.received - self.received_prior;
        if expected == 0 || received >= expected {
            return 0;
        }
        (((expected - received) << 8) / expected).min(255) as u8
    }

    fn expected(&self) -> u64 {
        if self.received == 0 {
            0
        } else {
            self.highest - self.first + 1
        }
    }

    /// A report block about the interval since the last one; starts the next interval.
    pub fn take_block(&mut self, now: Instant, ssrc: u32) -> ReportBlock {
        let fraction_lost = self.fraction_lost();
        let lost = self.expected() as i64 - self.received as i64;
        self.expected_prior = self.expected();
        self.received_prior = self.received;
        let delay = self.last_report_at.map_or(0, |at| {
            (to_ntp(now.saturating_duration_since(at)) >> 16) as u32
        });
        ReportBlock {
            ssrc,
            fraction_lost,
            packets_lost: lost.clamp(-0x80_0000, 0x7f_ffff) as i32,
            highest_sequence: self.highest as u32,
            jitter: self.jitter(),
            last_report: self.last_report,
            delay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_senders_clock_converts_both_ways() {
        let clock = SenderClock {
            ntp: 5 << 32,
            rtp: u32::MAX - 10,
            at: crate::test_epoch(),
        };
        let later = clock.rtp.wrapping_add(45_000);
        let ntp = clock.ntp_of(later, 90_000);
        assert_eq!(ntp, (5 << 32) + (1 << 31));
        assert_eq!(clock.rtp_of(ntp, 90_000), later);
        let earlier = clock.rtp.wrapping_sub(90_000);
        assert_eq!(clock.ntp_of(earlier, 90_000), 4 << 32);
        assert_eq!(clock.rtp_of(4 << 32, 90_000), earlier);
        let (ntp, rtp) = clock.at(clock.at + Duration::from_millis(500), 90_000);
        assert_eq!(ntp, (5 << 32) + (1 << 31));
        assert_eq!(rtp, later);
    }

    #[test]
    fn loss_is_reported_per_interval() {
        let now = crate::test_epoch();
        let mut reception = Reception::starting_at(100);
        for sequence in [100, 101, 103, 104] {
            reception.received(sequence, Some(0));
        }
        let block = reception.take_block(now, 1);
        assert_eq!(block.fraction_lost, 51); // 1 of 5
        assert_eq!(block.packets_lost, 1);
        assert_eq!(block.highest_sequence, 104);
        reception.received(102, None);
        reception.received(105, Some(0));
        let block = reception.take_block(now, 1);
        assert_eq!(block.fraction_lost, 0);
        assert_eq!(block.packets_lost, 0);
    }

    #[test]
    fn jitter_converges_to_the_mean_deviation() {
        let mut reception = Reception::starting_at(1);
        for sequence in 1..500 {
            reception.received(sequence, Some(if sequence % 2 == 0 { 0 } else { 160 }));
        }
        assert!(
            (150..=160).contains(&reception.jitter()),
            "{}",
            reception.jitter()
        );
    }

    #[test]
    fn the_delay_since_the_last_sender_report_is_told() {
        let now = crate::test_epoch();
        let mut reception = Reception::starting_at(1);
        reception.sender_reported(now, 0x1122_3344_5566_7788);
        let block = reception.take_block(now + Duration::from_millis(250), 1);
        assert_eq!(block.last_report, 0x3344_5566);
        assert_eq!(block.delay, 16_384);
    }
}
