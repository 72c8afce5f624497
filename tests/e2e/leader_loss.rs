//! SIGKILL of the Raft leader: media between the other nodes does not notice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::cluster::Cluster;
use testkit::token;

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
            killed = Some(Instant::now());
        }
        let packet = tokio::time::timeout(Duration::from_secs(2), receiver.packets.recv())
            .await
            .context("media stopped")?
            .context("the session ended")?;
        arrivals.push(packet);
    }
    let killed = killed.context("the leader was killed")?;
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
    eprintln!("longest gap after the leader's death {gap:?}, {lost} breaks in the sequence");
    ensure!(lost == 0, "{lost} breaks in the sequence");
    ensure!(gap < Duration::from_millis(50), "media stopped for {gap:?}");

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
