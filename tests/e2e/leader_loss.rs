//! SIGKILL of the Raft leader: media between the other nodes does not notice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::cluster::Cluster;
use testkit::token;

/// How long the machine kept a thread from running that wanted to each 5 ms: what no forwarding can
/// make up for on a machine that has other things to do.
struct Stalls {
    worst: Arc<Mutex<Duration>>,
    over: Arc<AtomicBool>,
}

impl Stalls {
    fn watch() -> Self {
        let worst = Arc::new(Mutex::new(Duration::ZERO));
        let over = Arc::new(AtomicBool::new(false));
        let (written, ended) = (worst.clone(), over.clone());
        std::thread::spawn(move || {
            let mut last = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                let took = std::mem::replace(&mut last, Instant::now()).elapsed();
                let mut worst = written.lock().unwrap_or_else(PoisonError::into_inner);
                *worst = took.max(*worst);
            }
        });
        Self { worst, over }
    }

    fn worst(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        *self.worst.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_between_the_others_goes_on_when_the_leader_dies() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let leader = cluster.leader()?;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let url = |cluster: &mut Cluster, id| cluster.node(id).url.clone();
    let connect = async |url: String, identity: &str| {
        Client::connect(Options::new(
            &url,
            token::join("loss", identity, &json!({})),
        ))
        .await
    };
    let sender = connect(url(&mut cluster, others[0]), "sender").await?;
    let mut receiver = connect(url(&mut cluster, others[1]), "receiver").await?;
    let (_, track) = sender.publish("tone", "audio/opus").await?;
    let sending = tokio::spawn(async move {
        // Five milliseconds between packets: a gap is seen to that precision.
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        let mut late = Duration::ZERO;
        let mut last = Instant::now();
        for count in 0_u32.. {
            tick.tick().await;
            late = late.max(last.elapsed());
            last = Instant::now();
            if track
                .write(count * 240, false, Bytes::from(vec![0xf8; 80]))
                .await
                .is_err()
            {
                break;
            }
        }
        late
    });
    tokio::time::timeout(Duration::from_secs(15), receiver.packets.recv())
        .await
        .context("media flows before the fault")?;

    let mut arrivals = Vec::new();
    let mut killed = None;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        if killed.is_none() && start.elapsed() > Duration::from_secs(1) {
            cluster.node(leader).kill()?;
            killed = Some((Instant::now(), Stalls::watch()));
        }
        let packet = tokio::time::timeout(Duration::from_secs(2), receiver.packets.recv())
            .await
            .context("media stopped")?
            .context("the session ended")?;
        arrivals.push(packet);
    }
    let (killed, stalls) = killed.context("the leader was killed")?;
    let stall = stalls.worst();
    let gap = arrivals
        .windows(2)
        .filter(|pair| pair[1].at > killed)
        .map(|pair| pair[1].at - pair[0].at)
        .max()
        .context("packets arrived after the kill")?;
    let lost = arrivals
        .windows(2)
        .filter(|pair| pair[1].sequence != pair[0].sequence.wrapping_add(1))
        .count();
    eprintln!(
        "longest gap after the leader's death {gap:?} (longest stall of the machine {stall:?}), \
         {lost} breaks in the sequence"
    );
    ensure!(lost == 0, "{lost} breaks in the sequence");
    // Sender, two nodes and receiver may each be kept waiting once.
    ensure!(
        gap < Duration::from_millis(50) + stall * 4,
        "media stopped for {gap:?}, the machine for at most {stall:?}"
    );

    // A new leader serves: the room takes somebody new.
    let late = connect(url(&mut cluster, others[0]), "late").await?;
    ensure!(
        late.join.other_participants.len() == 2,
        "the room is as it was"
    );
    late.leave().await;
    receiver.leave().await;
    sender.leave().await;
    sending.abort();
    cluster.node(leader).start()?;
    cluster.wait_until_answers(leader)?;
    cluster.stop()
}
