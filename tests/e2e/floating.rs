//! A node dies and its address moves to another: its clients' media goes on both ways although they ask
//! for nothing, and the address goes back to its owner.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options, Packet};
use testkit::cluster::{Cluster, Place, free_udp, wait};
use testkit::token;
use tokio::task::JoinHandle;

const ROOM: &str = "floating";
/// With two cores for everything, tests included, a step may be late by this much.
const PATIENCE: Duration = Duration::from_secs(10);

fn cluster() -> Result<Cluster> {
    let place = |id: u8| Place {
        address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 10 + id)),
        floating: Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 20 + id))),
        ..Place::here()
    };
    let settings = json!({ "rtc": { "udp_port": free_udp(1)? } });
    Cluster::start_at(&[place(1), place(2), place(3)], &settings)
}

async fn join(cluster: &Cluster, node: u64, identity: &str) -> Result<Client> {
    let url = &cluster.nodes[usize::try_from(node)? - 1].url;
    let token = token::join(ROOM, identity, &json!({}));
    let options = Options::new(url, token);
    Client::connect(Options {
        stays: true,
        ..options
    })
    .await
}

/// Sends sound until it is dropped.
async fn talk(client: &Client) -> Result<JoinHandle<()>> {
    let (_, sender) = client.publish("tone", "audio/opus").await?;
    Ok(tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for count in 0_u32.. {
            tick.tick().await;
            let payload = Bytes::from([&[0xf8][..], &count.to_be_bytes()].concat());
            if sender
                .write(count.wrapping_mul(960), false, payload)
                .await
                .is_err()
            {
                return;
            }
        }
    }))
}

async fn next(client: &mut Client) -> Result<Packet> {
    let packet = tokio::time::timeout(PATIENCE, client.packets.recv()).await;
    packet
        .context("nothing arrives")?
        .context("the session ended")
}

/// Packets until one has arrived that was sent `span` after `since`.
async fn hear(client: &mut Client, since: Instant, span: Duration) -> Result<Vec<Packet>> {
    let mut heard = Vec::new();
    loop {
        let packet = next(client).await?;
        let is_last = packet.at > since + span;
        heard.push(packet);
        if is_last {
            return Ok(heard);
        }
    }
}

/// Longest silence between packets that arrived after `since`, or from then to the first.
fn gap(packets: &[Packet], since: Instant) -> Duration {
    let times = packets
        .iter()
        .map(|packet| packet.at)
        .filter(|at| *at > since);
    let times: Vec<Instant> = std::iter::once(since).chain(times).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default()
}

fn home(cluster: &Cluster, identity: &str) -> Result<u64> {
    let listed = cluster.admin(&["participants", ROOM])?;
    let list = listed["participants"].as_array().context("a list")?;
    let one = list.iter().find(|one| one["identity"] == identity);
    one.and_then(|one| one["home"].as_u64())
        .with_context(|| format!("{identity} is not there: {listed}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_goes_on_without_a_word_to_the_client() -> Result<()> {
    let mut cluster = cluster()?;
    let leader = cluster.leader()?;
    let victim = (1..=3).find(|id| *id != leader).context("three nodes")?;
    let other = (1..=3)
        .find(|id| *id != leader && *id != victim)
        .context("three nodes")?;
    let mut alice = join(&cluster, victim, "alice").await?;
    let mut bob = join(&cluster, other, "bob").await?;
    let talking = [talk(&alice).await?, talk(&bob).await?];
    for client in [&mut alice, &mut bob] {
        let begun = Instant::now();
        hear(client, begun, Duration::from_secs(2)).await?;
    }

    for round in 0..2 {
        // First her node, then the one that has taken its place.
        let dying = home(&cluster, "alice")?;
        ensure!(round == 1 || dying == victim);
        if dying == other {
            // Bob would have to notice as well: once is enough then.
            break;
        }
        let killed = Instant::now();
        cluster.node(dying).kill()?;
        let span = Duration::from_secs(3);
        let (down, up) = tokio::join!(hear(&mut alice, killed, span), hear(&mut bob, killed, span));
        let (down, up) = (down.context("to her")?, up.context("from her")?);
        eprintln!(
            "round {round}: to the dead node's client {:?}, from it {:?}",
            gap(&down, killed),
            gap(&up, killed)
        );
        let sources: std::collections::BTreeSet<u32> = down.iter().map(|p| p.ssrc).collect();
        ensure!(sources.len() == 1, "she knows of one source: {sources:?}");
        let home = home(&cluster, "alice")?;
        ensure!(home != dying, "another node serves her");
        let log = cluster.nodes[usize::try_from(home)? - 1].log();
        ensure!(
            log.contains("a session goes on where it was"),
            "node {home} did not go on"
        );
        cluster.node(dying).start()?;
        cluster.wait_until_answers(dying)?;
        let began = Instant::now();
        // Until whoever is next has what it needs: checkpoints come twice a second.
        hear(&mut alice, began, Duration::from_millis(1500)).await?;
    }

    // Her client never comes, so she leaves in the end, and the owners get their addresses back.
    drop(alice);
    let limit = Duration::from_secs(60);
    wait(limit, "every node has its own address", || {
        let logs = cluster.nodes.iter().map(|node| (node.id, node.log()));
        Ok(logs.into_iter().all(|(id, log)| {
            let own = format!("address=127.0.0.{}", 20 + id);
            let last = log.lines().rev().find(|line| {
                line.contains(&own) && (line.contains("is here") || line.contains("is given up"))
            });
            last.is_some_and(|line| line.contains("is here"))
        }))
    })?;
    for one in talking {
        one.abort();
    }
    bob.leave().await;
    cluster.stop()
}
