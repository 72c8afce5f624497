//! `flotilla demo`: three nodes on this machine, each a process of its own, behind one shared port and
//! a load balancer with a port for each of them ([`front`]).
//!
//! This process only watches: it writes a configuration per node, starts the children, prints one
//! URL when all are up, starts a killed child again after a few seconds, and stops all with Ctrl-C.

mod front;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::dev::{DEV_KEY, DEV_SECRET, TemporaryFolder};
use super::{print, runtime};

const NODES: u16 = 3;
/// Shards per demo node, and so UDP ports.
const SHARDS: u16 = 1;
/// How long a dead node stays dead, so that one can watch the others carry on.
const RESTART_AFTER: Duration = Duration::from_secs(5);
/// How long all nodes may take to come up.
const UP_MAX: Duration = Duration::from_secs(60);
/// How long children may take to stop.
const STOP_MAX: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Args)]
pub(super) struct DemoArgs {
    /// Port that the nodes share; each node's own ports follow it.
    #[arg(long, default_value_t = 7880)]
    port: u16,
    /// Folder for the nodes' data; without it a temporary one that goes away at the end.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Log level of the nodes.
    #[arg(long, default_value = "warn")]
    log_level: String,
}

pub(super) fn run(args: DemoArgs) -> anyhow::Result<()> {
    runtime()?.block_on(watch(args))
}

struct Member {
    number: u16,
    config: PathBuf,
    child: Option<Child>,
    /// When it is to be started again.
    due: Option<Instant>,
}

async fn watch(args: DemoArgs) -> anyhow::Result<()> {
    let temporary = match &args.data_dir {
        None => Some(TemporaryFolder::create()?),
        Some(_) => None,
    };
    let folder = match (&args.data_dir, &temporary) {
        (Some(folder), _) => folder.clone(),
        (None, Some(temporary)) => temporary.path.clone(),
        (None, None) => bail!("no folder for the nodes' data"),
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let ports = Ports::choose(args.port)?;
    let secret = format!("{:032x}", rand::random::<u128>());
    let mut members = Vec::new();
    for number in 1..=NODES {
        let config = folder.join(format!("node-{number}.yaml"));
        let text = configuration(&args, &folder, &ports, number, &secret);
        std::fs::write(&config, serde_json::to_string_pretty(&text)?)
            .with_context(|| format!("cannot write {}", config.display()))?;
        members.push(Member {
            number,
            config,
            child: None,
            due: None,
        });
    }
    let mut fronts = Vec::new();
    for port in &ports.front {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).await;
        fronts.push(listener.with_context(|| format!("port {port} was taken meanwhile"))?);
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let result = tokio::select! {
        () = front::serve(fronts, ports.http.clone()) => Ok(()),
        result = keep_running(&mut members, &args, &ports) => result,
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    stop(&mut members).await;
    result
}

async fn keep_running(
    members: &mut [Member],
    args: &DemoArgs,
    ports: &Ports,
) -> anyhow::Result<()> {
    let founder = &members[0];
    // A folder of an earlier demo holds a cluster already; then this says so and nothing is lost.
    let founding = own_binary()?
        .args(["cluster", "init", "--config"])
        .arg(&founder.config)
        .stdin(Stdio::null())
        .output()
        .await
        .context("starting `flotilla cluster init`")?;
    let complaint = String::from_utf8_lossy(&founding.stderr).into_owned();
    if !founding.status.success() && !complaint.contains("already") {
        bail!("{}", complaint.trim());
    }
    for member in members.iter_mut() {
        member.child = Some(start(member)?);
    }
    let begun = Instant::now();
    let mut announced = false;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        for member in members.iter_mut() {
            look_after(member, announced)?;
        }
        if !announced {
            let mut up = 0;
            for port in &ports.http {
                up += u16::from(front::is_up(*port).await);
            }
            if up == NODES {
                announced = true;
                announce(args, ports);
            } else if begun.elapsed() > UP_MAX {
                bail!("only {up} of {NODES} nodes came up within {UP_MAX:?}");
            }
        }
    }
}

/// Notices the end of a child, and starts it again when its time has come.
fn look_after(member: &mut Member, announced: bool) -> anyhow::Result<()> {
    if let Some(child) = &mut member.child
        && let Some(status) = child.try_wait()?
    {
        if !announced {
            bail!(
                "node {} ended before all were up ({status}); its messages stand above",
                member.number
            );
        }
        print(&format!(
            "node {} is gone ({status}); it comes back in {} s\n",
            member.number,
            RESTART_AFTER.as_secs()
        ));
        member.child = None;
        member.due = Some(Instant::now() + RESTART_AFTER);
    }
    if member.due.is_some_and(|due| due <= Instant::now()) {
        member.due = None;
        member.child = Some(start(member)?);
        print(&format!("node {} starts again\n", member.number));
    }
    Ok(())
}

fn start(member: &Member) -> anyhow::Result<Child> {
    own_binary()?
        .args(["start", "--config"])
        .arg(&member.config)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        // Ctrl-C reaches this process alone, which then stops the children in its own way.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting node {}", member.number))
}

fn own_binary() -> anyhow::Result<Command> {
    let path = std::env::current_exe().context("where is this program?")?;
    Ok(Command::new(path))
}

async fn stop(members: &mut [Member]) {
    for member in members.iter() {
        if let Some(id) = member.child.as_ref().and_then(Child::id) {
            terminate(id);
        }
    }
    for member in members.iter_mut() {
        if let Some(child) = &mut member.child
            && tokio::time::timeout(STOP_MAX, child.wait()).await.is_err()
        {
            // Dropped and so killed by the runtime if this fails as well.
            let _ = child.kill().await;
        }
    }
}

#[expect(
    unsafe_code,
    reason = "the standard library can only kill, not ask to stop"
)]
fn terminate(process: u32) {
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: no memory is involved; the child has not been waited for, so its id is its own.
        unsafe { libc::kill(process, libc::SIGTERM) };
    }
}

fn announce(args: &DemoArgs, ports: &Ports) {
    let mut text = format!(
        "\nThree nodes are up. Open this in a browser, in two or more windows:\n\n    http://127.0.0.1:{port}/demo/\n\nSDKs connect to ws://127.0.0.1:{port} (key {DEV_KEY}, secret {DEV_SECRET}); with a choice of node:\n",
        port = args.port,
    );
    for index in 0..NODES {
        text.push_str(&format!(
            "    node {}  ws://127.0.0.1:{}  admin 127.0.0.1:{}\n",
            index + 1,
            ports.front(index),
            ports.admin(index)
        ));
    }
    text.push_str("Kill one and watch: it comes back by itself. Ctrl-C ends all.\n");
    print(&text);
}

/// The nodes' own ports: those after the shared one that are free.
struct Ports {
    /// Where the load balancer listens for each node.
    front: Vec<u16>,
    http: Vec<u16>,
    cluster: Vec<u16>,
    admin: Vec<u16>,
    udp: Vec<u16>,
}

impl Ports {
    fn choose(shared: u16) -> anyhow::Result<Self> {
        std::net::TcpListener::bind(("127.0.0.1", shared)).with_context(|| {
            format!("port {shared} is in use: stop what listens there, or give another --port")
        })?;
        let mut next = shared;
        let mut take = |count: u16, is_free: fn(u16) -> bool| {
            let mut taken = Vec::new();
            while taken.len() < usize::from(count) {
                next = next
                    .checked_add(1)
                    .context("no free ports above --port: choose a lower one")?;
                if is_free(next) {
                    taken.push(next);
                }
            }
            Ok::<_, anyhow::Error>(taken)
        };
        Ok(Self {
            front: take(NODES, is_tcp_free)?,
            http: take(NODES, is_tcp_free)?,
            cluster: take(NODES, is_tcp_free)?,
            admin: take(NODES, is_tcp_free)?,
            udp: take(NODES * SHARDS, is_udp_free)?,
        })
    }

    fn front(&self, index: u16) -> u16 {
        self.front[usize::from(index)]
    }

    fn admin(&self, index: u16) -> u16 {
        self.admin[usize::from(index)]
    }
}

fn is_tcp_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

fn is_udp_free(port: u16) -> bool {
    std::net::UdpSocket::bind(("0.0.0.0", port)).is_ok()
}

fn configuration(
    args: &DemoArgs,
    folder: &Path,
    ports: &Ports,
    number: u16,
    secret: &str,
) -> serde_json::Value {
    let index = usize::from(number - 1);
    let seeds: Vec<String> = if number == 1 {
        Vec::new()
    } else {
        vec![format!("127.0.0.1:{}", ports.cluster[0])]
    };
    json!({
        "port": ports.http[index],
        "shared_port": args.port,
        "bind_addresses": ["127.0.0.1"],
        "keys": { DEV_KEY: DEV_SECRET },
        "logging": { "level": args.log_level },
        "rtc": {
            "udp_port": ports.udp[index * usize::from(SHARDS)],
            "bind_address": "0.0.0.0",
            "enable_loopback_candidate": true,
            "shards": SHARDS,
        },
        "signal": { "ping_interval": 2, "ping_timeout": 6 },
        "cluster": {
            // Three processes and a browser share one machine, which may be small and busy.
            "failure_detection": "2s",
            "name": "demo",
            "node_id": number,
            "data_dir": folder.join(format!("node-{number}")),
            "bind": format!("127.0.0.1:{}", ports.cluster[index]),
            "relay_ip": "127.0.0.1",
            "client_url": format!("http://127.0.0.1:{}", ports.front[index]),
            "secret": secret,
            "seeds": seeds,
            "node_lost_after": "5s",
        },
        "admin": { "bind": format!("127.0.0.1:{}", ports.admin[index]) },
        "demo": { "enabled": true, "allow_kill": true },
    })
}
