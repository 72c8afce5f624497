//! The laboratory of `bench-forward`: starts a server and its clients, reads the server's CPU time
//! while the clients measure, and prints what came of it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testkit::token::{KEY, SECRET};

use crate::Arguments;
use crate::measure::Report;
use crate::network::{End, Network, SERVER_ADDRESS};
use crate::table::{Figure, Table};

const PORT: u16 = 7880;
const UDP_PORT: u16 = 7882;
/// How long the clients of one figure may take, joins included.
const FIGURE_MAX: Duration = Duration::from_secs(600);

/// A server under measurement; ends with its value.
struct Server {
    process: Child,
}

impl Server {
    fn start(network: &Network, kind: &Kind) -> Result<Self> {
        let log = std::env::temp_dir().join(format!("bench-forward-{}.log", kind.name));
        let log = fs::File::create(log)?;
        let process = network
            .command(End::Server, &kind.binary)
            .args(&kind.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} does not start", kind.binary.display()))?;
        Ok(Self { process })
    }

    /// CPU time of each of its threads, nanoseconds.
    fn cpu_ns(&self) -> Result<HashMap<String, u64>> {
        let mut threads = HashMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let task = task?;
            let text = fs::read_to_string(task.path().join("schedstat"))?;
            let ns = text.split(' ').next().context("schedstat")?.parse()?;
            threads.insert(task.file_name().to_string_lossy().into_owned(), ns);
        }
        Ok(threads)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A kind of server and how it is started.
struct Kind {
    name: &'static str,
    binary: PathBuf,
    arguments: Vec<String>,
}

/// Runs every figure and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        fs::metadata("/proc/self/ns/net").is_ok() && is_root(),
        "bench-forward needs root and network namespaces"
    );
    let kinds = kinds(arguments)?;
    if arguments.livekit.is_none() {
        println!(
            "Flotilla alone. To measure a LiveKit server beside it name its binary: --livekit PATH,\n\
             or LIVEKIT_SERVER=PATH; docs/performance.md says how to build one."
        );
    }
    let mut table = Table::default();
    println!("{}", Table::HEAD);
    for _ in 0..arguments.rounds {
        for count in &arguments.subscribers {
            for kind in &kinds {
                let figure = measure(arguments, kind, *count)?;
                println!("{figure}");
                table.add(figure);
            }
        }
    }
    print!("{}", table.summary());
    Ok(())
}

fn kinds(arguments: &Arguments) -> Result<Vec<Kind>> {
    let config = json!({
        "port": PORT,
        "bind_addresses": [SERVER_ADDRESS],
        "keys": { KEY: SECRET },
        "logging": { "level": "info" },
        "rtc": { "udp_port": UDP_PORT, "node_ip": SERVER_ADDRESS },
    });
    let mut kinds = vec![Kind {
        name: "flotilla",
        binary: testkit::cluster::binary()?,
        arguments: [
            "dev",
            "--bind",
            SERVER_ADDRESS,
            "--config-body",
            &config.to_string(),
        ]
        .map(str::to_owned)
        .into(),
    }];
    if let Some(binary) = &arguments.livekit {
        let mut config = config;
        if !arguments.livekit_config.is_empty() {
            let more = serde_json::from_str(&arguments.livekit_config)
                .context("--livekit-config is not a JSON object")?;
            merge(&mut config, more);
        }
        kinds.push(Kind {
            name: "livekit",
            binary: binary.clone(),
            arguments: vec!["--config-body".to_owned(), config.to_string()],
        });
    }
    Ok(kinds)
}

/// Puts what `more` says into `config`; `null` takes a key out.
fn merge(config: &mut Value, more: Value) {
    match (config, more) {
        (Value::Object(config), Value::Object(more)) => {
            for (key, value) in more {
                if value.is_null() {
                    config.remove(&key);
                } else {
                    merge(config.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (config, more) => *config = more,
    }
}

fn measure(arguments: &Arguments, kind: &Kind, count: usize) -> Result<Figure> {
    let network = Network::new(arguments.realtime)?;
    let server = Server::start(&network, kind)?;
    let mut client = network.command(End::Client, &own_path()?);
    if arguments.bare {
        client.arg("--bare");
    }
    let mut client = client
        .args(["--client", &format!("http://{SERVER_ADDRESS}:{PORT}")])
        .args(["--subscribers", &count.to_string()])
        .args(["--rate", &arguments.rate.to_string()])
        .args(["--seconds", &arguments.seconds.to_string()])
        .args(["--warmup", &arguments.warmup.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = std::io::BufReader::new(client.stdout.take().context("piped")?);
    let outcome = watch(&server, lines);
    let status = client.wait()?;
    ensure!(status.success(), "the clients of {} failed", kind.name);
    let (report, cpu) = outcome?;
    Ok(Figure::new(kind.name, count, arguments.rate, &report, cpu))
}

/// Follows the client's lines: `begin` and `end` bracket the measurement, then comes the report.
fn watch(server: &Server, lines: impl std::io::BufRead) -> Result<(Report, Duration)> {
    let deadline = Instant::now() + FIGURE_MAX;
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
                // A thread that ended meanwhile is not counted; servers keep theirs.
                let spent = |(thread, ns): (&String, &u64)| {
                    ns.saturating_sub(begin.get(thread).copied().unwrap_or(0))
                };
                let cpu = Duration::from_nanos(end.iter().map(spent).sum());
                return Ok((serde_json::from_str(report)?, cpu));
            }
        }
    }
    bail!("the clients ended without a report")
}

fn own_path() -> Result<PathBuf> {
    Ok(Path::new(&std::env::current_exe()?).to_path_buf())
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("Uid:\t0\t")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_merge_deeply() {
        let mut config = json!({ "rtc": { "udp_port": 1, "node_ip": "a" }, "port": 2 });
        merge(
            &mut config,
            json!({ "rtc": { "udp_port": null, "x": { "y": 3 } } }),
        );
        assert_eq!(
            config,
            json!({ "rtc": { "node_ip": "a", "x": { "y": 3 } }, "port": 2 })
        );
    }
}
