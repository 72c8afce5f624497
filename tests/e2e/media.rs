//! RTP and data between nodes, packet by packet.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options, Packet};
use testkit::cluster::Cluster;
use testkit::token;

async fn join(cluster: &Cluster, node: usize, room: &str, identity: &str) -> Result<Client> {
    let token = token::join(room, identity, &json!({}));
    Client::connect(Options::new(&cluster.nodes[node - 1].url, token)).await
}

/// Waits for packets that satisfy `enough`.
async fn collect(
    client: &mut Client,
    limit: Duration,
    mut enough: impl FnMut(&[Packet]) -> bool,
) -> Result<Vec<Packet>> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut packets = Vec::new();
    while !enough(&packets) {
        let next = tokio::time::timeout_at(deadline, client.packets.recv()).await;
        packets.push(
            next.with_context(|| format!("only {} packets arrived", packets.len()))?
                .context("the session ended")?,
        );
    }
    Ok(packets)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_audio_packet_crosses_nodes_once_and_in_order() -> Result<()> {
    let cluster = Cluster::start(3)?;
    let room = "audio";
    let one = join(&cluster, 1, room, "one").await?;
    let mut two = join(&cluster, 2, room, "two").await?;
    let mut three = join(&cluster, 3, room, "three").await?;
    let (track, sender) = one.publish("tone", "audio/opus").await?;

    let sending = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        // The last ones only show that an earlier one is missing: what follows nothing is not missed.
        for count in 0_u32..420 {
            tick.tick().await;
            let payload = Bytes::from([&[0xf8][..], &count.to_be_bytes()].concat());
            sender.write(count * 960, false, payload).await?;
        }
        anyhow::Ok(())
    });
    for client in [&mut two, &mut three] {
        let packets = collect(client, Duration::from_secs(20), |packets| {
            packets.last().is_some_and(|packet| counter(packet) == 399)
        })
        .await?;
        let counts: Vec<u32> = packets.iter().map(counter).collect();
        let first = counts[0];
        ensure!(
            first < 250,
            "packets flow within five seconds, not only from number {first}"
        );
        ensure!(
            counts == (first..400).collect::<Vec<_>>(),
            "every packet once, in order: {counts:?}"
        );
        ensure!(
            packets.iter().all(|packet| packet.track == track.sid),
            "all of the one track"
        );
        for pair in packets.windows(2) {
            ensure!(
                pair[1].sequence == pair[0].sequence.wrapping_add(1),
                "sequence is contiguous"
            );
            ensure!(
                pair[1].timestamp.wrapping_sub(pair[0].timestamp) == 960,
                "timestamps are kept"
            );
        }
    }
    sending.await??;

    let routes = cluster.admin(&["routes", room])?;
    let routes = routes["routes"].as_array().context("routes are listed")?;
    ensure!(
        routes.len() == 2,
        "one relay to each other node: {routes:?}"
    );
    for client in [one, two, three] {
        client.leave().await;
    }
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reliable_messages_arrive_once_in_order_on_every_node() -> Result<()> {
    let cluster = Cluster::start(3)?;
    let one = join(&cluster, 1, "data", "one").await?;
    let others = [
        join(&cluster, 2, "data", "two").await?,
        join(&cluster, 3, "data", "three").await?,
    ];
    let near = join(&cluster, 1, "data", "near").await?;
    for count in 0_u32..1000 {
        one.send(&count.to_be_bytes(), "count", true).await?;
    }
    for mut client in others.into_iter().chain([near]) {
        let mut counts = Vec::new();
        while counts.len() < 1000 {
            let message = tokio::time::timeout(Duration::from_secs(20), client.messages.recv())
                .await
                .with_context(|| format!("only {} messages arrived", counts.len()))?
                .context("the session ended")?;
            ensure!(message.reliable, "over the reliable channel");
            ensure!(
                message.packet.participant_identity == "one",
                "it says who sent it"
            );
            let said = message.user().context("a user packet")?;
            counts.push(u32::from_be_bytes(said[..4].try_into()?));
        }
        ensure!(
            counts == (0..1000).collect::<Vec<_>>(),
            "in order, once each"
        );
        client.leave().await;
    }
    one.leave().await;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_track_crosses_a_pair_of_nodes_once_for_many_subscribers() -> Result<()> {
    let cluster = Cluster::start(2)?;
    let room = "many";
    let one = join(&cluster, 1, room, "one").await?;
    let mut viewers = Vec::new();
    for number in 0..8 {
        viewers.push(join(&cluster, 2, room, &format!("viewer-{number}")).await?);
    }
    let (_, sender) = one.publish("tone", "audio/opus").await?;
    let sending = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for count in 0_u32.. {
            tick.tick().await;
            let payload = Bytes::from([&[0xf8][..], &count.to_be_bytes()].concat());
            if sender.write(count * 960, false, payload).await.is_err() {
                break;
            }
        }
    });
    let mut arrivals: HashMap<usize, Instant> = HashMap::new();
    for (number, viewer) in viewers.iter_mut().enumerate() {
        let packets = collect(viewer, Duration::from_secs(20), |packets| {
            packets.len() >= 50
        })
        .await?;
        arrivals.insert(number, packets[49].at);
    }
    ensure!(arrivals.len() == 8, "all viewers receive");
    let routes = cluster.admin(&["routes", room])?;
    let routes = routes["routes"].as_array().context("routes are listed")?;
    ensure!(routes.len() == 1, "one relay for eight viewers: {routes:?}");
    for viewer in viewers {
        viewer.leave().await;
    }
    testkit::cluster::wait(
        Duration::from_secs(10),
        "the relay ends with its last viewer",
        || {
            let routes = cluster.admin(&["routes", room])?;
            Ok(routes["routes"].as_array().is_some_and(Vec::is_empty))
        },
    )?;
    sending.abort();
    one.leave().await;
    cluster.stop()
}

fn counter(packet: &Packet) -> u32 {
    packet
        .payload
        .get(1..5)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(u32::MAX, u32::from_be_bytes)
}
