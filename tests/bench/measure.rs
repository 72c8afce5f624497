//! One round: so many writers, each waiting for its last write before it makes the next.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, connect};
use crate::kv::{Client, PutRequest};

/// Connections that the writers share.
const CONNECTIONS: usize = 8;

/// What a round gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Runs `writers` against the leader of a cluster for `length`.
pub(crate) async fn run(
    cluster: &Cluster,
    writers: usize,
    bytes: usize,
    length: Duration,
) -> Result<Figures> {
    let leader = cluster.leader().await?;
    let clients: Vec<Client> = (0..CONNECTIONS.min(writers))
        .map(|_| connect(&leader).map(Client::new))
        .collect::<Result<_>>()?;
    let put = move |client: Client, writer: usize, count: usize| async move {
        let mut value = format!("{writer} {count} ");
        value.extend(std::iter::repeat_n('.', bytes.saturating_sub(value.len())));
        let request = PutRequest {
            key: Bytes::from(format!("bench-{writer}")),
            value: Bytes::from(value),
        };
        client.put(request).await.map_err(|status| anyhow!(status))
    };
    // Every key exists, and every connection is open, before the clock runs.
    let mut prepared = JoinSet::new();
    for writer in 0..writers {
        prepared.spawn(put(clients[writer % clients.len()].clone(), writer, 0));
    }
    while let Some(done) = prepared.join_next().await {
        done??;
    }
    let begun = Instant::now();
    let end = begun + length;
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let client = clients[writer % clients.len()].clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let sent = Instant::now();
                if sent >= end {
                    return Ok::<_, anyhow::Error>(latencies);
                }
                put(client.clone(), writer, latencies.len()).await?;
                latencies.push(sent.elapsed());
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let elapsed = begun.elapsed();
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index).copied().unwrap_or_default()
    };
    Ok(Figures {
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
    })
}

/// The round in the middle, by operations per second.
pub(crate) fn median(rounds: &[Figures]) -> Figures {
    let mut rounds = rounds.to_vec();
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    rounds[rounds.len() / 2]
}

/// Our figures divided by theirs, round by round.
#[derive(Debug)]
pub(crate) struct Ratios {
    pub(crate) throughput: Spread,
    pub(crate) p50: Spread,
    pub(crate) p99: Spread,
}

/// What the rounds gave, from the least to the most.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Ratios {
    /// Compares rounds that followed each other. There is at least one.
    pub(crate) fn of(ours: &[Figures], theirs: &[Figures]) -> Self {
        let spread = |figure: fn(&Figures) -> f64| {
            let pairs = ours.iter().zip(theirs);
            Spread::of(
                pairs
                    .map(|(ours, theirs)| figure(ours) / figure(theirs))
                    .collect(),
            )
        };
        Self {
            throughput: spread(|round| round.per_second),
            p50: spread(|round| round.p50.as_secs_f64()),
            p99: spread(|round| round.p99.as_secs_f64()),
        }
    }
}

impl Spread {
    fn of(mut ratios: Vec<f64>) -> Self {
        ratios.sort_by(f64::total_cmp);
        Self {
            min: ratios.first().copied().unwrap_or(f64::NAN),
            median: ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN),
            max: ratios.last().copied().unwrap_or(f64::NAN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_in_pairs() {
        let round = |per_second: f64, p99: u64| Figures {
            per_second,
            p50: Duration::from_micros(1),
            p99: Duration::from_micros(p99),
        };
        let ours = [round(100.0, 4), round(300.0, 1), round(200.0, 3)];
        let theirs = [round(100.0, 2), round(100.0, 2), round(400.0, 2)];
        let ratios = Ratios::of(&ours, &theirs);
        let spread = |min, median, max| Spread { min, median, max };
        assert_eq!(ratios.throughput, spread(0.5, 1.0, 3.0));
        assert_eq!(ratios.p99, spread(0.5, 1.5, 2.0));
    }
}
