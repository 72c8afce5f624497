//! The laboratory of `bench-forward`: two namespaces, a veth pair, servers pinned to a core.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use testkit::token::{KEY, SECRET};

use crate::Arguments;

const SERVER_ADDRESS: &str = "10.77.0.1";
const CLIENT_ADDRESS: &str = "10.77.0.2";
const PORT: u16 = 7880;

/// Namespaces that end with the value.
struct Lab {
    server: String,
    client: String,
}

impl Lab {
    fn new() -> Result<Self> {
        let id = std::process::id();
        let lab = Self {
            server: format!("fl-srv-{id}"),
            client: format!("fl-cli-{id}"),
        };
        for name in [&lab.server, &lab.client] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        let (a, b) = (format!("fs{id}"), format!("fc{id}"));
        ip(&[
            "link",
            "add",
            &a,
            "netns",
            &lab.server,
            "type",
            "veth",
            "peer",
            "name",
            &b,
            "netns",
            &lab.client,
        ])?;
        for (name, link, address) in [
            (&lab.server, &a, SERVER_ADDRESS),
            (&lab.client, &b, CLIENT_ADDRESS),
        ] {
            ip(&[
                "-n",
                name,
                "address",
                "add",
                &format!("{address}/24"),
                "dev",
                link,
            ])?;
            ip(&["-n", name, "link", "set", link, "up"])?;
        }
        Ok(lab)
    }

    /// A command in a namespace, pinned to a core.
    fn command(&self, namespace: &str, core: u8, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args([
                "netns",
                "exec",
                namespace,
                "taskset",
                "-c",
                &core.to_string(),
            ])
            .arg(program);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip")
        .args(arguments)
        .output()
        .context("ip (package iproute2)")?;
    ensure!(
        done.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// A server under measurement; ends with its value.
struct Server {
    name: &'static str,
    process: Child,
}

impl Server {
    fn start(lab: &Lab, name: &'static str, binary: &Path, arguments: &[&str]) -> Result<Self> {
        let log = fs::File::create(std::env::temp_dir().join(format!("bench-forward-{name}.log")))?;
        let process = lab
            .command(&lab.server, 0, binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} does not start", binary.display()))?;
        Ok(Self { name, process })
    }

    /// CPU time of all its threads, nanoseconds.
    fn cpu_ns(&self) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text
                .split(' ')
                .next()
                .context("schedstat")?
                .parse::<u64>()?;
        }
        Ok(sum)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the client process reports.
#[derive(Deserialize)]
struct Report {
    delivered: u64,
    lost: u64,
    seconds: f64,
    joined_ms_p50: f64,
    latency_us_p50: u64,
    latency_us_p99: u64,
}

/// Runs every figure and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        fs::metadata("/proc/self/ns/net").is_ok() && is_root(),
        "bench-forward needs root and network namespaces"
    );
    println!(
        "{:<10} {:>5} {:>12} {:>8} {:>12} {:>16} {:>12} {:>12} {:>10}",
        "server",
        "subs",
        "delivered/s",
        "lost",
        "CPU us/pkt",
        "pkt/core-second",
        "latency p50",
        "p99 us",
        "join p50"
    );
    let mut rates = Vec::new();
    for count in &arguments.subscribers {
        for (name, binary) in servers(arguments)? {
            let rate = figure(arguments, name, &binary, *count)?;
            rates.push((*count, name, rate));
        }
    }
    for count in &arguments.subscribers {
        let of = |wanted: &str| {
            rates
                .iter()
                .find(|(n, name, _)| n == count && *name == wanted)
                .map(|(_, _, rate)| *rate)
        };
        if let (Some(ours), Some(theirs)) = (of("flotilla"), of("livekit")) {
            println!(
                "{count} subscribers: {:.2} times LiveKit's packets per core-second",
                ours / theirs
            );
        }
    }
    Ok(())
}

fn servers(arguments: &Arguments) -> Result<Vec<(&'static str, std::path::PathBuf)>> {
    let mut servers = vec![("flotilla", testkit::cluster::binary()?)];
    match &arguments.livekit {
        Some(path) => servers.push(("livekit", path.clone())),
        None => println!("no LiveKit server named (--livekit PATH): Flotilla alone"),
    }
    Ok(servers)
}

fn figure(arguments: &Arguments, name: &'static str, binary: &Path, count: usize) -> Result<f64> {
    let lab = Lab::new()?;
    let keys = format!("{KEY}: {SECRET}");
    let port = PORT.to_string();
    let flags: Vec<&str> = if name == "flotilla" {
        vec![
            "dev",
            "--bind",
            SERVER_ADDRESS,
            "--node-ip",
            SERVER_ADDRESS,
            "--port",
            &port,
        ]
    } else {
        vec![
            "--dev",
            "--keys",
            &keys,
            "--bind",
            SERVER_ADDRESS,
            "--node-ip",
            SERVER_ADDRESS,
            "--udp-port",
            "7882",
        ]
    };
    let server = Server::start(&lab, name, binary, &flags)?;
    let mut client = lab
        .command(&lab.client, 1, &std::env::current_exe()?)
        .args(["--client", &format!("http://{SERVER_ADDRESS}:{PORT}")])
        .args(["--subscribers", &count.to_string()])
        .args(["--rate", &arguments.rate.to_string()])
        .args(["--seconds", &arguments.seconds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = std::io::BufReader::new(client.stdout.take().context("piped")?);
    let outcome = watch(&server, lines);
    let status = client.wait()?;
    ensure!(status.success(), "the clients failed: {status}");
    let (report, cpu_ns) = outcome?;
    let per_packet_us = cpu_ns as f64 / 1000.0 / report.delivered.max(1) as f64;
    let rate = 1e6 / per_packet_us;
    println!(
        "{:<10} {:>5} {:>12.0} {:>8} {:>12.2} {:>16.0} {:>12} {:>12} {:>10.0}",
        server.name,
        count,
        report.delivered as f64 / report.seconds,
        report.lost,
        per_packet_us,
        rate,
        report.latency_us_p50,
        report.latency_us_p99,
        report.joined_ms_p50,
    );
    Ok(rate)
}

/// Follows the client's lines: `begin` and `end` bracket the measurement, then comes the report.
fn watch(server: &Server, lines: impl std::io::BufRead) -> Result<(Report, u64)> {
    let deadline = Instant::now() + Duration::from_secs(300);
    let (mut begin, mut end) = (None, None);
    for line in lines.lines() {
        ensure!(Instant::now() < deadline, "the clients take too long");
        match line?.as_str() {
            "begin" => begin = Some(server.cpu_ns()?),
            "end" => end = Some(server.cpu_ns()?),
            report => {
                let (Some(begin), Some(end)) = (begin, end) else {
                    bail!("a report before its measurement: {report}")
                };
                return Ok((serde_json::from_str(report)?, end - begin));
            }
        }
    }
    bail!("the clients ended without a report")
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("Uid:\t0\t")))
}
