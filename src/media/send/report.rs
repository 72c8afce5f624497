//! Sender reports to a subscriber, and what its receiver reports say.
//!
//! One per subscription, cold. A report's wall clock is the publisher's own, carried over from its
//! sender reports: audio and video of one publisher stay in step, on whatever node they are heard.

use std::time::{Duration, Instant};

use crate::rtp::rtcp::ReportBlock;

/// Time between sender reports.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Reports remembered for the round trip.
const REMEMBERED: usize = 8;

/// Reports of one subscription.
#[derive(Debug, Default)]
pub struct Reports {
    sent: [(u32, Option<Instant>); REMEMBERED],
    next: usize,
    last: Option<Instant>,
    /// Round trip, smoothed.
    rtt: Option<Duration>,
    /// Cumulative loss by the last report.
    packets_lost: i32,
    /// Fraction lost by the last report, 1/256.
    fraction_lost: u8,
    is_heard: bool,
}

impl Reports {
    /// A sender report is due.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.last
            .is_none_or(|last| now.saturating_duration_since(last) >= INTERVAL)
    }

    /// A sender report with this wall time was sent.
    pub fn sent(&mut self, now: Instant, ntp: u64) {
        self.last = Some(now);
        self.sent[self.next % REMEMBERED] = ((ntp >> 16) as u32, Some(now));
        self.next += 1;
    }

    /// A report block about the subscription arrived.
    pub fn received(&mut self, now: Instant, block: &ReportBlock) {
        self.is_heard = true;
        self.packets_lost = block.packets_lost;
        self.fraction_lost = block.fraction_lost;
        let sent = self
            .sent
            .iter()
            .find(|(ntp, at)| *ntp == block.last_report && at.is_some());
        if let Some((_, Some(at))) = sent {
            let held = Duration::from_micros(u64::from(block.delay) * 1_000_000 / 65_536);
            let sample = now.saturating_duration_since(*at).saturating_sub(held);
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        }
    }

    /// The subscriber has reported: it has bound the SSRC.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.is_heard
    }

    /// Round trip, once known.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Cumulative loss; never negative.
    #[must_use]
    pub fn packets_lost(&self) -> u32 {
        self.packets_lost.max(0) as u32
    }

    /// Fraction lost, 1/256.
    #[must_use]
    pub fn fraction_lost(&self) -> u8 {
        self.fraction_lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_leaves_out_the_receivers_delay() {
        let now = crate::test_epoch();
        let mut reports = Reports::default();
        assert!(reports.is_due(now));
        reports.sent(now, 0x0001_2345_6789_abcd);
        assert!(!reports.is_due(now + INTERVAL / 2));
        assert!(reports.is_due(now + INTERVAL));
        let block = ReportBlock {
            last_report: 0x2345_6789,
            delay: 32_768,
            fraction_lost: 9,
            packets_lost: -2,
            ..ReportBlock::default()
        };
        reports.received(now + Duration::from_millis(580), &block);
        assert_eq!(reports.rtt(), Some(Duration::from_millis(80)));
        assert!(reports.is_heard());
        assert_eq!(reports.packets_lost(), 0);
        assert_eq!(reports.fraction_lost(), 9);
        let unknown = ReportBlock {
            last_report: 1,
            ..block
        };
        reports.received(now + Duration::from_secs(5), &unknown);
        assert_eq!(reports.rtt(), Some(Duration::from_millis(80)));
    }
}
