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
