//! Three processes of one side, on ports of their own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tonic::transport::{Channel, Endpoint};

use crate::kv::Client;

const NODES: u64 = 3;
/// Longest wait for a cluster to have a leader.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which side.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Kind {
    /// Ours.
    Flotilla,
    /// etcd.
    Etcd,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flotilla => "flotilla",
            Self::Etcd => "etcd",
        }
    }
}

/// A running cluster; its processes end with it.
pub(crate) struct Cluster {
    pub(crate) kind: Kind,
    children: Vec<Child>,
    clients: Vec<String>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    pub(crate) async fn start(kind: Kind, data: &Path) -> Result<Self> {
        let peers = free_addresses()?;
        let clients = free_addresses()?;
        let mut cluster = Self {
            kind,
            children: Vec::new(),
            clients: clients.clone(),
        };
        for id in 1..=NODES {
            let index = usize::try_from(id - 1)?;
            let folder = data.join(format!("node-{id}"));
            std::fs::create_dir_all(&folder)?;
            let mut command = match kind {
                Kind::Flotilla => ours(id, &peers, &clients[index], &folder)?,
                Kind::Etcd => etcd(index, &peers, &clients[index], &folder),
            };
            let child = command.stdin(Stdio::piped()).stdout(Stdio::null());
            let child = child.spawn();
            let child = child.with_context(|| format!("{:?}", command.get_program()))?;
            cluster.children.push(child);
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    /// Address of whoever leads.
    pub(crate) async fn leader(&self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for address in &self.clients {
                let client = Client::new(connect(address)?);
                let status = tokio::time::timeout(Duration::from_secs(1), client.status());
                if let Ok(Ok(status)) = status.await
                    && status.leader != 0
                    && status.header.is_some_and(|h| h.member == status.leader)
                {
                    return Ok(address.clone());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{} has no leader after {PATIENCE:?}", self.kind.name());
    }
}

pub(crate) fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint.tcp_nodelay(true).connect_lazy())
}

/// Ports that are free now. All are bound before any is given back, so that they differ.
fn free_addresses() -> Result<Vec<String>> {
    let listeners: Vec<TcpListener> = (0..NODES)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr);
    let addresses: std::io::Result<Vec<_>> = addresses.collect();
    Ok(addresses?.iter().map(ToString::to_string).collect())
}

fn ours(id: u64, peers: &[String], client: &str, folder: &Path) -> Result<Command> {
    let index = usize::try_from(id - 1)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["node", "--id", &id.to_string()])
        .args(["--cluster", &peers[index], "--client", client])
        .arg("--data")
        .arg(folder);
    if id > 1 {
        command.args(["--seed", &peers[0]]);
    }
    Ok(command)
}

fn etcd(index: usize, peers: &[String], client: &str, folder: &Path) -> Command {
    let name = |index: usize| format!("node-{index}");
    let members: Vec<String> = peers
        .iter()
        .enumerate()
        .map(|(index, peer)| format!("{}=http://{peer}", name(index)))
        .collect();
    let peer = format!("http://{}", peers[index]);
    let client = format!("http://{client}");
    let mut command = Command::new("etcd");
    command
        .args(["--name", &name(index), "--log-level", "error"])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--initial-cluster", &members.join(",")])
        .args(["--initial-cluster-state", "new"])
        .arg("--data-dir")
        .arg(folder)
        .stderr(Stdio::null());
    command
}
