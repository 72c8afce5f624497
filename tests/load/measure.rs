//! The client side of `bench-forward`: one publisher, N subscribers, every packet counted.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use testkit::client::{Client, Options, Sender, Tap};
use testkit::token;
use tokio::time::MissedTickBehavior;

use crate::Arguments;
use crate::network::CLIENT_ADDRESS;

/// Packets of one burst: what an encoder sends for one frame.
const BURST: usize = 5;
/// Bytes of payload in a packet.
const PAYLOAD: usize = 1150;
/// Joins under way at once.
const JOINS: usize = 8;
/// How long every subscriber may take to receive its first packets.
const START_MAX: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Packets that the publisher sent.
    pub(crate) sent: u64,
    /// Packets that arrived, all subscribers together.
    pub(crate) delivered: u64,
    /// Bytes of their datagrams.
    pub(crate) bytes: u64,
    /// Packets that did not arrive.
    pub(crate) lost: i64,
    /// Time measured.
    pub(crate) seconds: f64,
    /// CPU time that publisher and subscribers took.
    pub(crate) client_cpu_seconds: f64,
    /// Time of a join, its transport included.
    pub(crate) joined_ms_p50: f64,
    /// From the publisher's call to the subscriber's decrypted packet, of samples.
    pub(crate) latency_us_p50: u64,
    /// As above.
    pub(crate) latency_us_p99: u64,
}

/// Runs the clients and prints `begin`, `end` and the report.
pub(crate) fn clients(url: &str, arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(url, arguments))
}

/// What all clients have in common.
struct Load {
    url: String,
    is_bare: bool,
    tap: Arc<Tap>,
}

fn options(load: &Load, identity: &str, publishes: bool) -> Options {
    // Hidden participants are not announced to each other, which would cost a square of them.
    let grants = json!({ "hidden": !publishes, "canPublish": publishes });
    let mut options = Options::new(&load.url, token::join("load", identity, &grants));
    options.bind = format!("{CLIENT_ADDRESS}:0");
    options.feedback = !load.is_bare;
    options.publishes = publishes;
    options.tap = Some(load.tap.clone());
    options.timeout = Duration::from_secs(60);
    options
}

async fn run(url: &str, arguments: &Arguments) -> Result<()> {
    let count = *arguments
        .subscribers
        .first()
        .context("how many subscribers")?;
    reachable(url).await?;
    let load = Load {
        url: url.to_owned(),
        is_bare: arguments.bare,
        tap: Arc::default(),
    };
    let tap = &load.tap;
    let publisher = Client::connect(options(&load, "publisher", true)).await?;
    let running = Arc::new(AtomicU64::new(0));
    let (latencies, mut samples) = tokio::sync::mpsc::channel(1 << 16);
    let mut joins = Vec::new();
    let mut joining = futures_util::stream::iter(0..count)
        .map(|number| join(&load, number))
        .buffer_unordered(JOINS);
    while let Some(joined) = joining.next().await {
        let (client, took) = joined?;
        joins.push(took);
        tokio::spawn(receive(client, running.clone(), latencies.clone()));
    }
    drop(joining);
    let (_, sender) = publisher.publish("load", "video/VP8").await?;
    let sent = Arc::new(AtomicU64::new(0));
    let rate = arguments.rate as f64 / count as f64;
    let sending = tokio::spawn(publish(sender, rate, sent.clone()));

    let deadline = Instant::now() + START_MAX;
    while running.load(Ordering::Relaxed) < count as u64 {
        ensure!(
            Instant::now() < deadline && !sending.is_finished(),
            "only {} of {count} subscribers receive",
            running.load(Ordering::Relaxed)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Left out: key frames, feedback and timers settle.
    tokio::time::sleep(Duration::from_secs(arguments.warmup)).await;
    while samples.try_recv().is_ok() {}
    let (before, sent_before, cpu_before) = (tap.read(), sent.load(Ordering::Relaxed), cpu()?);
    let started = Instant::now();
    say("begin");
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    say("end");
    let seconds = started.elapsed().as_secs_f64();
    let (after, cpu_after) = (tap.read(), cpu()?);
    let sent = sent.load(Ordering::Relaxed) - sent_before;
    ensure!(!sending.is_finished(), "the publisher stopped");
    ensure!(
        running.load(Ordering::Relaxed) == count as u64,
        "a subscriber was disconnected"
    );
    sending.abort();
    let mut latencies = Vec::new();
    while let Ok(sample) = samples.try_recv() {
        latencies.push(sample);
    }
    latencies.sort_unstable();
    joins.sort_unstable();
    let at = |share: usize| latencies.get(latencies.len() * share / 100).copied();
    let (Some(p50), Some(p99)) = (at(50), at(99)) else {
        bail!("no packet could be decrypted");
    };
    let report = Report {
        sent,
        delivered: after.packets - before.packets,
        bytes: after.bytes - before.bytes,
        lost: after.missing - before.missing,
        seconds,
        client_cpu_seconds: cpu_after - cpu_before,
        joined_ms_p50: joins[joins.len() / 2].as_secs_f64() * 1000.0,
        latency_us_p50: p50,
        latency_us_p99: p99,
    };
    say(&serde_json::to_string(&report)?);
    Ok(())
}

async fn join(load: &Load, number: usize) -> Result<(Client, Duration)> {
    let started = Instant::now();
    let client = Client::connect(options(load, &format!("s{number}"), false))
        .await
        .with_context(|| format!("subscriber {number}"))?;
    Ok((client, started.elapsed()))
}

/// Sends bursts of equal packets until it is stopped.
async fn publish(sender: Sender, packets_per_second: f64, sent: Arc<AtomicU64>) -> Result<()> {
    let period = Duration::from_secs_f64(BURST as f64 / packets_per_second);
    let ticks = (period.as_secs_f64() * 90_000.0) as u32;
    let mut tick = tokio::time::interval(period);
    // A burst that came late must not run together with the next one: that would make batches which no
    // encoder makes. What is left out so is reported.
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for frame in 0_u32.. {
        tick.tick().await;
        let picture = (frame & 0x7fff) as u16;
        for part in 0..BURST {
            let payload = vp8(picture, part == 0);
            let timestamp = frame.wrapping_mul(ticks);
            sender.write(timestamp, part == BURST - 1, payload).await?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Notes when a subscriber begins to receive and how long samples were under way.
async fn receive(
    mut client: Client,
    running: Arc<AtomicU64>,
    latencies: tokio::sync::mpsc::Sender<u64>,
) {
    let mut runs = false;
    while let Some(packet) = client.packets.recv().await {
        if !std::mem::replace(&mut runs, true) {
            running.fetch_add(1, Ordering::Relaxed);
        }
        // At the end: servers rewrite the beginning, and some send packets of nothing but padding.
        if packet.payload.len() >= PAYLOAD - 8
            && let Some(sent) = packet.payload.last_chunk()
        {
            let _ = latencies.try_send(now_us().saturating_sub(u64::from_be_bytes(*sent)));
        }
    }
    if runs {
        running.fetch_sub(1, Ordering::Relaxed);
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
    payload[PAYLOAD - 8..].copy_from_slice(&now_us().to_be_bytes());
    payload.into()
}

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}

/// CPU time of this process so far, seconds.
fn cpu() -> Result<f64> {
    let mut ns = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        ns += text
            .split(' ')
            .next()
            .context("schedstat")?
            .parse::<u64>()?;
    }
    Ok(Duration::from_nanos(ns).as_secs_f64())
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
