//! Nodes with more than one media thread: rooms on each of them, across nodes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use flotilla_model::id::fnv1a;
use livekit_protocol::signal_response::Message as Told;
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::cluster::{Cluster, Place};
use testkit::token;

const SHARDS: u16 = 2;
const LIMIT: Duration = Duration::from_secs(20);

async fn join(cluster: &Cluster, node: usize, room: &str, identity: &str) -> Result<Client> {
    let token = token::join(room, identity, &json!({}));
    Client::connect(Options::new(&cluster.nodes[node - 1].url, token)).await
}

/// A room's name that belongs on a shard, by the rule that every node follows.
fn room_on(shard: u64) -> String {
    (0..)
        .map(|number| format!("room-{number}"))
        .find(|name| fnv1a(name.as_bytes()) % u64::from(SHARDS) == shard)
        .expect("names do not end")
}

/// UDP ports in an offer's candidates.
fn candidate_ports(sdp: &str) -> Vec<u16> {
    let candidates = sdp
        .lines()
        .filter_map(|line| line.strip_prefix("a=candidate:"));
    candidates
        .filter_map(|candidate| candidate.split(' ').nth(5)?.parse().ok())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_of_every_shard_cross_nodes() -> Result<()> {
    let cluster = Cluster::start_at(
        &[Place::here(), Place::here()],
        &json!({ "rtc": { "shards": SHARDS } }),
    )?;
    let mut calls = Vec::new();
    for shard in 0..SHARDS {
        let room = room_on(u64::from(shard));
        let one = join(&cluster, 1, &room, "one").await?;
        let mut two = join(&cluster, 2, &room, "two").await?;
        let mut responses = two.responses();
        let (track, sender) = one.publish("tone", "audio/opus").await?;
        let sending = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            for count in 0_u32.. {
                tick.tick().await;
                let payload = Bytes::from([&[0xf8][..], &count.to_be_bytes()].concat());
                sender.write(count * 960, false, payload).await?;
            }
            anyhow::Ok(())
        });
        let offered = async {
            loop {
                if let Told::Offer(offer) = &*responses.recv().await? {
                    return anyhow::Ok(candidate_ports(&offer.sdp));
                }
            }
        };
        let ports = tokio::time::timeout(LIMIT, offered)
            .await
            .context("no offer of the track")??;
        let expected = cluster.nodes[1].udp_port + shard;
        ensure!(
            !ports.is_empty() && ports.iter().all(|port| *port == expected),
            "room {room} is on shard {shard}: {ports:?}, not {expected}"
        );
        for _ in 0..50 {
            let packet = tokio::time::timeout(LIMIT, two.packets.recv())
                .await
                .with_context(|| format!("no packets on shard {shard}"))?
                .context("the session ended")?;
            ensure!(packet.track == track.sid, "of the track published");
        }
        calls.push((room, one, two, sending));
    }
    // All calls at once: each room has its own relay, and packets flow in the first one still.
    for (room, one, mut two, sending) in calls {
        let routes = cluster.admin(&["routes", &room])?;
        let routes = routes["routes"].as_array().context("routes are listed")?;
        ensure!(routes.len() == 1, "one relay: {routes:?}");
        while two.packets.try_recv().is_ok() {}
        tokio::time::timeout(LIMIT, two.packets.recv())
            .await
            .context("packets stopped")?
            .context("the session ended")?;
        sending.abort();
        one.leave().await;
        two.leave().await;
    }
    cluster.stop()
}
