//! A stream of RTP from a client of one node to a client of another, every five milliseconds, that shows
//! how long media stood still. Runs on a thread of its own, so that a plan's other clients, which share
//! the process, do not hold it up; what it was late by itself is known and taken off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options, Sender};
use testkit::token;
use tokio::sync::oneshot;

const INTERVAL: Duration = Duration::from_millis(5);
/// RTP time units of an interval at 48 kHz.
const UNITS: u32 = 240;

/// A running stream.
pub(crate) struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Record>>,
}

/// What was sent and what arrived; the payload carries the number.
#[derive(Default)]
pub(crate) struct Record {
    sent: Vec<Instant>,
    arrived: Vec<Arrival>,
}

struct Arrival {
    number: usize,
    sequence: u16,
    at: Instant,
}

/// How media stood still.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Stillness {
    /// Longest time between two packets.
    pub(crate) gap: Duration,
    /// The same without the time for which the probe itself did not send.
    pub(crate) silence: Duration,
    /// Where a sequence number did not follow the one before.
    pub(crate) breaks: usize,
    pub(crate) packets: usize,
}

impl Probe {
    /// Joins both clients and returns once media flows.
    pub(crate) async fn start(from: String, to: String, room: String) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (flows, is_flowing) = oneshot::channel();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(stream(&from, &to, &room, flows, &stopped))
            })?;
        let probe = Self { stop, thread };
        match tokio::time::timeout(Duration::from_secs(30), is_flowing).await {
            Ok(Ok(())) => Ok(probe),
            _ => Err(probe
                .stop()
                .err()
                .unwrap_or_else(|| anyhow!("no media flows"))),
        }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the probe panicked"))?
    }
}

async fn stream(
    from: &str,
    to: &str,
    room: &str,
    flows: oneshot::Sender<()>,
    stop: &AtomicBool,
) -> Result<Record> {
    let connect = async |url: &str, identity: &str| {
        let token = token::join(room, identity, &json!({}));
        Client::connect(Options::new(url, token)).await
    };
    let sender = connect(from, &format!("{room}-probe-sender")).await?;
    let mut receiver = connect(to, &format!("{room}-probe-receiver")).await?;
    let (info, track) = sender.publish("probe", "audio/opus").await?;
    let mut record = Record::default();
    let mut flows = Some(flows);
    let mut tick = tokio::time::interval(INTERVAL);
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = tick.tick() => record.send(&track).await?,
            packet = receiver.packets.recv() => {
                let packet = packet.context("the receiver's session ended")?;
                if packet.track == info.sid {
                    record.arrive(packet.sequence, &packet.payload, packet.at);
                    flows.take().map(|flows| flows.send(()));
                }
            }
        }
    }
    receiver.leave().await;
    sender.leave().await;
    Ok(record)
}

impl Record {
    async fn send(&mut self, track: &Sender) -> Result<()> {
        let number = u32::try_from(self.sent.len())?;
        let mut payload = vec![0xf8; 80];
        payload[76..].copy_from_slice(&number.to_be_bytes());
        self.sent.push(Instant::now());
        track
            .write(number.wrapping_mul(UNITS), false, Bytes::from(payload))
            .await
    }

    fn arrive(&mut self, sequence: u16, payload: &[u8], at: Instant) {
        let number = payload.last_chunk::<4>().copied().map(u32::from_be_bytes);
        self.arrived.push(Arrival {
            number: number
                .and_then(|number| usize::try_from(number).ok())
                .unwrap_or(usize::MAX),
            sequence,
            at,
        });
    }

    /// How media stood still from `since` on.
    pub(crate) fn stillness(&self, since: Instant) -> Stillness {
        let mut found = Stillness::default();
        for pair in self.arrived.windows(2).filter(|pair| pair[1].at > since) {
            let gap = pair[1].at.saturating_duration_since(pair[0].at);
            let sent = |arrival: &Arrival| self.sent.get(arrival.number).copied();
            let paused = match (sent(&pair[0]), sent(&pair[1])) {
                (Some(one), Some(other)) => {
                    // Each packet that did not arrive in between was one that should have.
                    let missing = pair[1].number.saturating_sub(pair[0].number + 1);
                    let regular = INTERVAL * u32::try_from(missing + 1).unwrap_or(u32::MAX);
                    other.saturating_duration_since(one).saturating_sub(regular)
                }
                _ => Duration::ZERO,
            };
            found.gap = found.gap.max(gap);
            found.silence = found.silence.max(gap.saturating_sub(paused));
            found.breaks += usize::from(pair[1].sequence != pair[0].sequence.wrapping_add(1));
            found.packets += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets sent and arrived at these milliseconds; those without an arrival were lost.
    fn record(packets: &[(u64, Option<u64>)]) -> (Record, Instant) {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut record = Record::default();
        for (number, (sent, arrived)) in packets.iter().enumerate() {
            record.sent.push(at(*sent));
            if let Some(arrived) = arrived {
                let payload = (number as u32).to_be_bytes();
                record.arrive(number as u16, &payload, at(*arrived));
            }
        }
        (record, start)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_standstill_of_the_way_counts_whole() {
        let (record, start) = record(&[(0, Some(1)), (5, Some(80)), (10, Some(80))]);
        let found = record.stillness(start);
        assert_eq!(
            (found.gap, found.silence, found.breaks),
            (ms(79), ms(79), 0)
        );
    }

    #[test]
    fn a_pause_of_the_probe_is_taken_off() {
        let (record, start) = record(&[(0, Some(1)), (100, Some(101)), (105, Some(106))]);
        let found = record.stillness(start);
        assert_eq!(
            (found.gap, found.silence, found.breaks),
            (ms(100), ms(5), 0)
        );
    }

    #[test]
    fn lost_packets_are_a_break_and_a_silence() {
        let (record, start) = record(&[(0, Some(1)), (5, None), (10, None), (15, Some(16))]);
        let found = record.stillness(start);
        assert_eq!((found.silence, found.breaks, found.packets), (ms(15), 1, 1));
    }

    #[test]
    fn what_was_before_does_not_count() {
        let (record, start) = record(&[(0, Some(1)), (5, Some(80)), (85, Some(86))]);
        let found = record.stillness(start + ms(81));
        assert_eq!(found.packets, 1);
        assert!(found.silence < ms(10));
    }
}
