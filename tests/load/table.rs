//! Figures, what makes one untrustworthy, and medians over rounds.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::measure::Report;

/// Less than this share of the intended packets: the clients did not keep up, and the server was
/// asked for less than the table says.
const SENT_SHARE_MIN: f64 = 0.95;
/// More than this share of its core: the clients may be what limits the figure.
const CLIENT_SHARE_MAX: f64 = 0.9;

/// Less than this share of what the publisher sent, with no gap in the numbers: the server chose to
/// send less. What it spent on a packet is still what it spent.
const FORWARDED_SHARE_MIN: f64 = 0.98;

/// One measurement of one server.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    server: &'static str,
    subscribers: usize,
    delivered_per_second: f64,
    packet_bytes: f64,
    lost: i64,
    per_packet_us: f64,
    server_share: f64,
    client_share: f64,
    sent_share: f64,
    forwarded_share: f64,
    latency_us: (u64, u64),
    joined_ms: f64,
}

impl Figure {
    pub(crate) fn new(
        server: &'static str,
        subscribers: usize,
        rate: usize,
        report: &Report,
        cpu: Duration,
    ) -> Self {
        let delivered = report.delivered.max(1) as f64;
        let intended = rate as f64 * report.seconds;
        Self {
            server,
            subscribers,
            delivered_per_second: report.delivered as f64 / report.seconds,
            packet_bytes: report.bytes as f64 / delivered,
            lost: report.lost,
            per_packet_us: cpu.as_secs_f64() * 1e6 / delivered,
            server_share: cpu.as_secs_f64() / report.seconds,
            client_share: report.client_cpu_seconds / report.seconds,
            forwarded_share: delivered / (report.sent.max(1) * subscribers as u64) as f64,
            sent_share: (report.sent * subscribers as u64) as f64 / intended,
            latency_us: (report.latency_us_p50, report.latency_us_p99),
            joined_ms: report.joined_ms_p50,
        }
    }

    fn per_core_second(&self) -> f64 {
        1e6 / self.per_packet_us
    }

    /// Why the figure is not to be trusted, if so.
    fn doubt(&self) -> Option<String> {
        if self.lost != 0 {
            Some(format!("{} packets lost", self.lost))
        } else if self.sent_share < SENT_SHARE_MIN {
            Some(format!(
                "the publisher sent {:.0} % of what it was to send",
                self.sent_share * 100.0
            ))
        } else if self.client_share > CLIENT_SHARE_MAX {
            Some("the clients took all of their core".to_owned())
        } else {
            None
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<9}{:>5}{:>12.0}{:>7.0}{:>6}{:>11.2}{:>13.0}{:>8.0} %{:>8.0} %{:>9}{:>9}{:>9.0}",
            self.server,
            self.subscribers,
            self.delivered_per_second,
            self.packet_bytes,
            self.lost,
            self.per_packet_us,
            self.per_core_second(),
            self.server_share * 100.0,
            self.client_share * 100.0,
            self.latency_us.0,
            self.latency_us.1,
            self.joined_ms,
        )?;
        match self.doubt() {
            Some(doubt) => write!(f, "  not to be trusted: {doubt}"),
            None if self.forwarded_share < FORWARDED_SHARE_MIN => write!(
                f,
                "  the server left out {:.0} %",
                100.0 - self.forwarded_share * 100.0
            ),
            None => Ok(()),
        }
    }
}

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Table {
    figures: BTreeMap<(usize, &'static str), Vec<Figure>>,
}

impl Table {
    pub(crate) const HEAD: &str = "server    subs delivered/s  bytes  lost CPU us/pkt pkt/core-sec    server   clients  p50 us   p99 us  join ms";

    pub(crate) fn add(&mut self, figure: Figure) {
        self.figures
            .entry((figure.subscribers, figure.server))
            .or_default()
            .push(figure);
    }

    /// Median packets per core-second of the trustworthy figures, if there are any.
    fn median(&self, subscribers: usize, server: &'static str) -> Option<f64> {
        let figures = self.figures.get(&(subscribers, server))?;
        let mut rates: Vec<f64> = figures
            .iter()
            .filter(|figure| figure.doubt().is_none())
            .map(Figure::per_core_second)
            .collect();
        rates.sort_unstable_by(f64::total_cmp);
        let middle = rates.len() / 2;
        match rates.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(rates[middle]),
            _ => Some(f64::midpoint(rates[middle - 1], rates[middle])),
        }
    }

    /// The medians and how they compare.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::from("\nmedian packets per core-second\n");
        for ((subscribers, server), figures) in &self.figures {
            let trusted = figures
                .iter()
                .filter(|figure| figure.doubt().is_none())
                .count();
            let rate = self
                .median(*subscribers, server)
                .map_or_else(|| "none".to_owned(), |rate| format!("{rate:.0}"));
            let _ = writeln!(
                text,
                "{subscribers:>5} subscribers  {server:<9} {rate:>8}  ({trusted} of {} figures)",
                figures.len()
            );
            if *server == "livekit"
                && let (Some(ours), Some(theirs)) = (
                    self.median(*subscribers, "flotilla"),
                    self.median(*subscribers, "livekit"),
                )
            {
                let _ = writeln!(
                    text,
                    "{subscribers:>5} subscribers  Flotilla forwards {:.2} times as many as LiveKit",
                    ours / theirs
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(server: &'static str, cpu_ms: u64, lost: i64) -> Figure {
        let report = Report {
            sent: 10_000,
            delivered: 500_000,
            bytes: 600_000_000,
            lost,
            seconds: 10.0,
            client_cpu_seconds: 3.0,
            joined_ms_p50: 1.0,
            latency_us_p50: 1,
            latency_us_p99: 1,
        };
        Figure::new(server, 50, 50_000, &report, Duration::from_millis(cpu_ms))
    }

    #[test]
    fn medians_leave_out_what_lost_packets() {
        let mut table = Table::default();
        for (cpu, lost) in [(1_000, 0), (2_000, 0), (4_000, 0), (100, 1)] {
            table.add(figure("flotilla", cpu, lost));
        }
        assert_eq!(table.median(50, "flotilla"), Some(250_000.0));
        assert_eq!(table.median(50, "livekit"), None);
        table.add(figure("livekit", 8_000, 0));
        let summary = table.summary();
        assert!(summary.contains("3 of 4 figures"), "{summary}");
        assert!(summary.contains("4.00 times"), "{summary}");
    }

    #[test]
    fn a_figure_says_why_it_is_doubtful() {
        assert_eq!(figure("flotilla", 1_000, 0).doubt(), None);
        let lost = figure("flotilla", 1_000, 3);
        assert!(lost.to_string().ends_with("3 packets lost"), "{lost}");
        let mut slow = figure("flotilla", 1_000, 0);
        slow.sent_share = 0.5;
        slow.forwarded_share = 0.9;
        assert!(slow.doubt().is_some_and(|doubt| doubt.contains("50 %")));
        slow.sent_share = 1.0;
        assert!(slow.doubt().is_none());
        assert!(slow.to_string().ends_with("left out 10 %"), "{slow}");
    }
}
