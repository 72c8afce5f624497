//! The client side of `bench-forward`: one publisher, N subscribers, every packet counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::token;

use crate::Arguments;

/// Packets of one burst: what an encoder sends for one frame.
const BURST: usize = 5;
/// Bytes of payload in a packet.
const PAYLOAD: usize = 1150;

#[derive(Default)]
struct Counters {
    delivered: AtomicU64,
    lost: AtomicU64,
    running: AtomicU64,
}

/// Runs the clients and prints `begin`, `end` and the report.
pub(crate) fn clients(url: &str, arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(run(url, arguments))
}

fn options(url: &str, identity: &str) -> Options {
    let mut options = Options::new(url, token::join("load", identity, &json!({})));
    options.bind = "10.77.0.2:0".to_owned();
    options.feedback = false;
    options.timeout = Duration::from_secs(60);
    options
}

async fn run(url: &str, arguments: &Arguments) -> Result<()> {
    let count = *arguments
        .subscribers
        .first()
        .context("how many subscribers")?;
    reachable(url).await?;
    let publisher = Client::connect(options(url, "publisher")).await?;
    let counters = Arc::new(Counters::default());
    let (latencies, mut samples) = tokio::sync::mpsc::channel(1 << 16);
    let mut joins = Vec::new();
    for number in 0..count {
        let started = Instant::now();
        let mut options = options(url, &format!("s{number}"));
        options.publishes = false;
        let client = Client::connect(options)
            .await
            .with_context(|| format!("subscriber {number}"))?;
        joins.push(started.elapsed());
        tokio::spawn(receive(client, counters.clone(), latencies.clone()));
    }
    drop(latencies);
    let (_, sender) = publisher.publish("load", "video/VP8").await?;
    let bursts_per_second = (arguments.rate / count / BURST).max(1);
    let sending = tokio::spawn(async move {
        let mut tick =
            tokio::time::interval(Duration::from_secs(1) / u32::try_from(bursts_per_second)?);
        let mut picture = 0_u16;
        loop {
            tick.tick().await;
            picture = picture.wrapping_add(1) & 0x7fff;
            let timestamp = u32::from(picture) * (90_000 / u32::try_from(bursts_per_second)?);
            for part in 0..BURST {
                let payload = vp8(picture, part == 0);
                sender.write(timestamp, part == BURST - 1, payload).await?;
            }
        }
        #[expect(unreachable_code, reason = "gives the block its error type")]
        anyhow::Ok(())
    });

    let deadline = Instant::now() + Duration::from_secs(60);
    while counters.running.load(Ordering::Relaxed) < count as u64 {
        ensure!(
            Instant::now() < deadline && !sending.is_finished(),
            "only {} of {count} subscribers receive",
            counters.running.load(Ordering::Relaxed)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The first seconds after the joins are left out: key frames, feedback and timers settle.
    tokio::time::sleep(Duration::from_secs(2)).await;
    while samples.try_recv().is_ok() {}
    let before = (
        counters.delivered.load(Ordering::Relaxed),
        counters.lost.load(Ordering::Relaxed),
    );
    let started = Instant::now();
    say("begin");
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    say("end");
    let seconds = started.elapsed().as_secs_f64();
    let delivered = counters.delivered.load(Ordering::Relaxed) - before.0;
    let lost = counters.lost.load(Ordering::Relaxed) - before.1;
    sending.abort();
    let mut latencies = Vec::new();
    while let Ok(sample) = samples.try_recv() {
        latencies.push(sample);
    }
    latencies.sort_unstable();
    joins.sort_unstable();
    let at = |share: usize| {
        latencies
            .get(latencies.len() * share / 100)
            .copied()
            .unwrap_or(0)
    };
    say(&json!({
        "delivered": delivered,
        "lost": lost,
        "seconds": seconds,
        "joined_ms_p50": joins[joins.len() / 2].as_secs_f64() * 1000.0,
        "latency_us_p50": at(50),
        "latency_us_p99": at(99),
    })
    .to_string());
    Ok(())
}

async fn receive(
    mut client: Client,
    counters: Arc<Counters>,
    latencies: tokio::sync::mpsc::Sender<u64>,
) {
    let mut last: Option<u16> = None;
    while let Some(packet) = client.packets.recv().await {
        let Some(previous) = last.replace(packet.sequence) else {
            counters.running.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        counters.delivered.fetch_add(1, Ordering::Relaxed);
        let step = packet.sequence.wrapping_sub(previous);
        if step > 1 && step < 0x8000 {
            counters
                .lost
                .fetch_add(u64::from(step - 1), Ordering::Relaxed);
        }
        if packet.sequence.is_multiple_of(64)
            && let Some(sent) = packet.payload.get(16..24)
            && let Ok(sent) = <[u8; 8]>::try_from(sent)
        {
            let _ = latencies.try_send(now_us().saturating_sub(u64::from_be_bytes(sent)));
        }
    }
}

/// A VP8 packet with a 15-bit picture id; every frame a key frame, so that a subscriber can start.
fn vp8(picture: u16, first: bool) -> Bytes {
    let mut payload = vec![0_u8; PAYLOAD];
    payload[0] = if first { 0x90 } else { 0x80 };
    payload[1] = 0x80;
    payload[2..4].copy_from_slice(&(0x8000 | picture).to_be_bytes());
    if first {
        payload[4..14].copy_from_slice(&[0x10, 0, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01]);
    }
    payload[16..24].copy_from_slice(&now_us().to_be_bytes());
    payload.into()
}

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}

async fn reachable(url: &str) -> Result<()> {
    let host = url.trim_start_matches("http://");
    let deadline = Instant::now() + Duration::from_secs(30);
    while tokio::net::TcpStream::connect(host).await.is_err() {
        ensure!(Instant::now() < deadline, "{url} does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the parent process reads these lines")]
fn say(line: &str) {
    println!("{line}");
}
