//! Real clusters: `flotilla` processes on loopback, bootstrapped with the CLI as an operator would.
//!
//! Judged from outside only: HTTP, signalling and `flotilla admin --json`. A cluster ends with its
//! value; a node that printed a panic fails the test that owned it.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::token::{KEY, SECRET};

const CLUSTER_SECRET: &str = "test cluster secret, long enough";
const ADMIN_TOKEN: &str = "test admin token";

/// Path of the binary under test: `FLOTILLA_BIN`, or `flotilla` beside the test's own profile folder.
///
/// # Errors
/// If there is none; says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os("FLOTILLA_BIN") {
        return Ok(chosen.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .map(|folder| folder.join("flotilla"))
        .find(|path| path.is_file())
        .context("no flotilla binary: make build")
}

/// Where a node runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Address that everything of the node listens on.
    pub address: IpAddr,
    /// Network namespace its process runs in; none for this process's own.
    pub namespace: Option<String>,
    /// Program it runs; none: [`binary`].
    pub binary: Option<PathBuf>,
    /// Folder for its data, on whatever disk that is; none: beside its configuration.
    pub data: Option<PathBuf>,
    /// Address for its media that moves to another node when it dies.
    pub floating: Option<IpAddr>,
    /// What its process finds in its environment besides this process's own.
    pub environment: Vec<(String, String)>,
}

impl Place {
    /// Loopback of this process.
    #[must_use]
    pub fn here() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            namespace: None,
            binary: None,
            data: None,
            floating: None,
            environment: Vec::new(),
        }
    }

    fn program(&self) -> Result<PathBuf> {
        self.binary.clone().map_or_else(binary, Ok)
    }
}

/// A node's process and where it listens.
pub struct Node {
    /// Its id, from 1.
    pub id: u64,
    /// HTTP and WebSocket.
    pub url: String,
    /// UDP port of its first shard; the others follow.
    pub udp_port: u16,
    place: Place,
    cluster_address: String,
    admin_address: String,
    config: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

impl Node {
    fn new(
        id: u64,
        folder: &Path,
        seeds: &[String],
        place: Place,
        settings: &Value,
    ) -> Result<Self> {
        let home = folder.join(format!("n{id}"));
        std::fs::create_dir_all(&home)?;
        // A namespace of its own has every port to give.
        let (port, cluster, admin, udp) = if place.namespace.is_some() {
            (7880, 7890, 7891, 7882)
        } else {
            let shards = settings.pointer("/rtc/shards").and_then(Value::as_u64);
            let udp = free_udp(u16::try_from(shards.unwrap_or(1))?)?;
            (free_tcp()?, free_tcp()?, free_tcp()?, udp)
        };
        let address = place.address;
        let cluster_address = format!("{address}:{cluster}");
        let admin_address = format!("{address}:{admin}");
        let config = home.join("flotilla.yaml");
        let mut text = json!({
            "port": port,
            "bind_addresses": [address],
            "keys": { KEY: SECRET },
            "region": "local",
            "rtc": { "udp_port": udp, "node_ip": address },
            "cluster": {
                "name": "test",
                "node_id": id,
                "data_dir": place.data.clone().unwrap_or_else(|| home.join("data")),
                "bind": cluster_address,
                "advertise": cluster_address,
                "secret": CLUSTER_SECRET,
                "seeds": seeds,
            },
            "admin": { "bind": admin_address, "token": ADMIN_TOKEN },
        });
        if let Some(floating) = place.floating {
            merge(&mut text, &json!({ "rtc": { "floating_ip": floating } }));
        }
        merge(&mut text, settings);
        std::fs::write(&config, serde_json::to_vec_pretty(&text)?)?;
        Ok(Self {
            id,
            url: format!("http://{address}:{port}"),
            udp_port: udp,
            place,
            cluster_address,
            admin_address,
            config,
            log: home.join("log.txt"),
            process: None,
        })
    }

    /// Starts the process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let program = self.place.program()?;
        let mut command = match &self.place.namespace {
            None => Command::new(program),
            Some(namespace) => {
                // `ip` becomes the program it starts: the child's id is the node's.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        };
        let child = command
            .args(["start", "--config"])
            .arg(&self.config)
            .env("RUST_BACKTRACE", "1")
            .envs(
                self.place
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.process = Some(child);
        Ok(())
    }

    /// The program that its next start runs.
    pub fn set_binary(&mut self, program: &Path) {
        self.place.binary = Some(program.to_owned());
    }

    /// Process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Whether its process was started and has not ended.
    pub fn is_running(&mut self) -> bool {
        let ended = self.process.as_mut().map(Child::try_wait);
        matches!(ended, Some(Ok(None)))
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// If the process cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.process.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGSTOP: what a frozen process looks like to everybody else.
    ///
    /// # Errors
    /// If it does not run or cannot be signalled.
    pub fn freeze(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// SIGCONT: ends [`Self::freeze`].
    ///
    /// # Errors
    /// If it does not run or cannot be signalled.
    pub fn thaw(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("the node does not run")?;
        let done = Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status()?;
        ensure!(done.success(), "kill -{name} {pid}");
        Ok(())
    }

    /// Where its HTTP listens, `host:port`.
    #[must_use]
    pub fn client_address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Its configuration file, which `flotilla node` takes.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The arguments that let `flotilla admin` reach it.
    #[must_use]
    pub fn admin_arguments(&self) -> [&str; 4] {
        ["--address", &self.admin_address, "--token", ADMIN_TOKEN]
    }

    /// Asks it to stop and waits for the end.
    ///
    /// # Errors
    /// If it has not ended 15 s after SIGTERM; it is killed then.
    pub fn terminate(&mut self) -> Result<()> {
        let Some(mut child) = self.process.take() else {
            return Ok(());
        };
        let pid = child.id().to_string();
        Command::new("kill")
            .args(["-TERM", &pid])
            .stderr(Stdio::null())
            .status()?;
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill()?;
        child.wait()?;
        bail!("node {} did not stop within 15 s of SIGTERM", self.id)
    }

    fn answers(&self) -> bool {
        crate::room_service::agent().get(&self.url).call().is_ok()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Some nodes of one region.
pub struct Cluster {
    /// The nodes; node `n` stands at `n - 1`.
    pub nodes: Vec<Node>,
    _folder: TempDir,
}

impl Cluster {
    /// Bootstraps: `cluster init`, a `cluster join` for each further node, then they run.
    ///
    /// # Errors
    /// What did not come up, with the end of its log.
    pub fn start(count: u64) -> Result<Self> {
        let places = vec![Place::here(); usize::try_from(count)?];
        Self::start_at(&places, &json!({}))
    }

    /// The same with a place for each node, and settings that are added to every configuration.
    ///
    /// # Errors
    /// What did not come up, with the end of its log.
    pub fn start_at(places: &[Place], settings: &Value) -> Result<Self> {
        let folder = TempDir::with_prefix("flotilla-test-")?;
        let mut nodes: Vec<Node> = Vec::new();
        for (id, place) in (1..).zip(places) {
            let seeds: Vec<String> = nodes
                .first()
                .map(|first| first.cluster_address.clone())
                .into_iter()
                .collect();
            nodes.push(Node::new(
                id,
                folder.path(),
                &seeds,
                place.clone(),
                settings,
            )?);
        }
        let seed = nodes
            .first()
            .context("a cluster has a node")?
            .cluster_address
            .clone();
        let mut cluster = Self {
            nodes,
            _folder: folder,
        };
        let config = cluster.nodes[0].config.display().to_string();
        let program = cluster.nodes[0].place.program()?;
        run(&program, &["cluster", "init", "--config", &config])?;
        cluster.nodes[0].start()?;
        cluster.wait_for(0)?;
        for index in 1..cluster.nodes.len() {
            let config = cluster.nodes[index].config.display().to_string();
            let program = cluster.nodes[index].place.program()?;
            run(
                &program,
                &["cluster", "join", "--config", &config, "--peer", &seed],
            )?;
            cluster.nodes[index].start()?;
        }
        for index in 1..cluster.nodes.len() {
            cluster.wait_for(index)?;
        }
        let voters = cluster.nodes.len().min(3);
        wait(Duration::from_secs(20), "every node votes", || {
            Ok(cluster.voters()? >= voters)
        })?;
        Ok(cluster)
    }

    fn wait_for(&self, index: usize) -> Result<()> {
        let node = &self.nodes[index];
        let what = format!("node {} answers", node.id);
        wait(Duration::from_secs(20), &what, || Ok(node.answers())).with_context(|| {
            let log = node.log();
            log[log.len().saturating_sub(2000)..].to_owned()
        })
    }

    /// Waits until a node that was started again answers.
    ///
    /// # Errors
    /// If it does not within 20 s.
    pub fn wait_until_answers(&self, id: u64) -> Result<()> {
        self.wait_for(usize::try_from(id)? - 1)
    }

    /// The node with this id.
    pub fn node(&mut self, id: u64) -> &mut Node {
        let index = usize::try_from(id).expect("small") - 1;
        &mut self.nodes[index]
    }

    /// `flotilla admin … --json`, asked of a living node.
    ///
    /// # Errors
    /// What the command printed when it failed.
    pub fn admin(&self, arguments: &[&str]) -> Result<Value> {
        let node = self
            .nodes
            .iter()
            .find(|node| node.process.is_some())
            .context("no node runs")?;
        self.admin_of(node.id, arguments)
    }

    /// `flotilla admin … --json`, asked of one node.
    ///
    /// # Errors
    /// What the command printed when it failed.
    pub fn admin_of(&self, id: u64, arguments: &[&str]) -> Result<Value> {
        let node = &self.nodes[usize::try_from(id)? - 1];
        let mut all = vec!["admin"];
        all.extend(node.admin_arguments());
        all.push("--json");
        all.extend(arguments);
        Ok(serde_json::from_str(&flotilla(&all)?)?)
    }

    /// Gives a node that does not run an empty data folder and lets it join anew at another node. It must have been
    /// removed from the cluster before.
    ///
    /// # Errors
    /// What the command printed when it failed.
    pub fn join_anew(&mut self, id: u64, at: u64) -> Result<()> {
        let peer = self.node(at).cluster_address.clone();
        let node = self.node(id);
        ensure!(!node.is_running(), "node {id} still runs");
        let text = std::fs::read(&node.config)?;
        let config: Value = serde_json::from_slice(&text)?;
        let data = config["cluster"]["data_dir"].as_str().context("a folder")?;
        match std::fs::remove_dir_all(data) {
            Err(failure) if failure.kind() != std::io::ErrorKind::NotFound => {
                return Err(failure.into());
            }
            _ => {}
        }
        let config = node.config.display().to_string();
        let program = node.place.program()?;
        let arguments = ["cluster", "join", "--config", &config, "--peer", &peer];
        run_in(node.place.namespace.as_deref(), &program, &arguments)?;
        Ok(())
    }

    fn voters(&self) -> Result<usize> {
        let status = self.admin(&["status"])?;
        let nodes = status["nodes"].as_array().context("status lists nodes")?;
        Ok(nodes.iter().filter(|node| node["role"] == "voter").count())
    }

    /// The Raft leader's id.
    ///
    /// # Errors
    /// If no node knows one.
    pub fn leader(&self) -> Result<u64> {
        self.admin(&["status"])?["leader"]
            .as_u64()
            .context("no leader")
    }

    /// Stops every node and checks that none panicked.
    ///
    /// # Errors
    /// The line of the panic, or the node that would not stop.
    pub fn stop(mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.terminate()?;
        }
        for node in &self.nodes {
            let log = node.log();
            let panic = log.lines().find(|line| line.contains("panicked"));
            ensure!(
                panic.is_none(),
                "node {}: {}",
                node.id,
                panic.unwrap_or_default()
            );
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
        }
    }
}

/// Runs the binary to its end and gives its output.
///
/// # Errors
/// Everything it printed, if it failed.
pub fn flotilla(arguments: &[&str]) -> Result<String> {
    run(&binary()?, arguments)
}

fn run(program: &Path, arguments: &[&str]) -> Result<String> {
    run_in(None, program, arguments)
}

fn run_in(namespace: Option<&str>, program: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = match namespace {
        None => Command::new(program),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(program);
            command
        }
    };
    let done = command.args(arguments).stdin(Stdio::null()).output()?;
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    ensure!(
        done.status.success(),
        "flotilla {}: {out}{err}",
        arguments.join(" ")
    );
    Ok(out.into_owned())
}

/// Waits for a condition with a deadline.
///
/// # Errors
/// `what`, with the last failure of the condition, when the deadline passes.
pub fn wait(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut last = None;
    while Instant::now() < deadline {
        match condition() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(failure) => last = Some(failure),
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    bail!("not within {limit:?}: {what} ({last:?})")
}

/// Ports that tests give to nodes: below those that the system gives to outgoing connections, which
/// could take one before its node has it.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// The first of `count` ports in a row that nobody has and that were not given out before.
fn free_ports(count: u16, is_free: impl Fn(u16) -> bool) -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start - count;
    // Test programs that run beside each other begin at different places.
    let begin = std::process::id() % u32::from(span);
    for _ in 0..span / count {
        let offset = u32::from(NEXT.fetch_add(count, Ordering::Relaxed)) + begin;
        let first = PORTS.start + u16::try_from(offset % u32::from(span))?;
        if (first..first + count).all(&is_free) {
            return Ok(first);
        }
    }
    bail!("no {count} free ports in a row in {PORTS:?}")
}

/// The first of `count` UDP ports in a row that nobody has on loopback.
///
/// # Errors
/// If there are none.
pub fn free_udp(count: u16) -> Result<u16> {
    free_ports(count, |port| UdpSocket::bind(("127.0.0.1", port)).is_ok())
}

/// Adds settings to a configuration, section by section.
fn merge(into: &mut Value, settings: &Value) {
    match (into, settings) {
        (Value::Object(into), Value::Object(settings)) => {
            for (key, value) in settings {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, settings) => *into = settings.clone(),
    }
}

fn free_tcp() -> Result<u16> {
    free_ports(1, |port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}
