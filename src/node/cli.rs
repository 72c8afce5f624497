//! The command line of `flotilla`.
//!
//! `main` parses it and calls [`run`]. Names and variables follow `livekit-server` where the meaning
//! is the same.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde_norway::Value;

use crate::config::{Config, reference, strict};
use crate::run::Founding;
use crate::telemetry;

pub mod admin;
mod cluster;
mod demo;
mod dev;
mod keys;
mod node;
mod token;

/// A LiveKit-compatible media server that is a cluster.
#[derive(Parser)]
#[command(name = "flotilla", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One node for development: key `devkey`, secret `secret`, on loopback.
    Dev(dev::DevArgs),
    /// Three nodes on this machine, each a process of its own, and a page to try them with.
    Demo(demo::DemoArgs),
    /// Runs a node of a cluster.
    Start(ConfigArgs),
    /// Founds a cluster, joins one, shows its state, removes a node from it.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Takes a node out of service and back.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Asks or tells a running cluster through one of its nodes.
    Admin(admin::AdminArgs),
    /// Prints a new API key with its secret, and a secret for a cluster.
    GenerateKeys,
    /// Access tokens.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Writes the reference page of the configuration.
    #[command(hide = true)]
    ConfigReference,
}

/// Where the configuration comes from.
#[derive(Args, Clone, Debug, Default)]
struct ConfigArgs {
    /// YAML file.
    #[arg(long, value_name = "FILE", env = "LIVEKIT_CONFIG_FILE")]
    config: Option<PathBuf>,
    /// The file's text instead of a file.
    #[arg(
        long,
        value_name = "YAML",
        env = "LIVEKIT_CONFIG",
        hide_env_values = true
    )]
    config_body: Option<String>,
    /// API keys, one `key: secret` per line; also read from LIVEKIT_KEYS.
    #[arg(long, value_name = "YAML", hide_env_values = true)]
    keys: Option<String>,
    /// File with API keys.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Address that HTTP and media listen on; may be repeated.
    #[arg(long, value_name = "IP")]
    bind: Vec<String>,
    /// HTTP port.
    #[arg(long)]
    port: Option<u16>,
    /// First UDP port of media.
    #[arg(long, value_name = "PORT", env = "UDP_PORT")]
    udp_port: Option<u16>,
    /// Address offered to clients for media.
    #[arg(long, value_name = "IP", env = "NODE_IP")]
    node_ip: Option<String>,
    /// Region of this node.
    #[arg(long)]
    region: Option<String>,
    /// Number of this node.
    #[arg(long, value_name = "NUMBER")]
    node_id: Option<u64>,
    /// Data folder.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

impl ConfigArgs {
    fn overrides(&self) -> anyhow::Result<Vec<(&'static str, Value)>> {
        let text = |text: &str| Value::String(text.to_owned());
        let mut given = Vec::new();
        if let Some(keys) = &self.keys {
            let keys = serde_norway::from_str(keys).context("--keys")?;
            given.push(("keys", keys));
        }
        if let Some(path) = &self.key_file {
            given.push(("key_file", text(&path.to_string_lossy())));
        }
        if !self.bind.is_empty() {
            let list = self.bind.iter().map(|address| text(address)).collect();
            given.push(("bind_addresses", Value::Sequence(list)));
        }
        let numbers = [
            ("port", self.port.map(u64::from)),
            ("rtc.udp_port", self.udp_port.map(u64::from)),
            ("cluster.node_id", self.node_id),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                given.push((key, Value::Number(number.into())));
            }
        }
        let texts = [
            ("rtc.node_ip", self.node_ip.clone()),
            ("cluster.region", self.region.clone()),
            (
                "cluster.data_dir",
                self.data_dir
                    .as_ref()
                    .map(|path| path.to_string_lossy().into_owned()),
            ),
        ];
        for (key, given_text) in texts {
            if let Some(given_text) = given_text {
                given.push((key, text(&given_text)));
            }
        }
        Ok(given)
    }

    /// Reads the configuration. `base` holds the command's own settings; arguments win over them,
    /// and they over the file.
    fn load(&self, base: &[(&'static str, Value)]) -> anyhow::Result<Config> {
        let mut overrides = base.to_vec();
        overrides.extend(self.overrides()?);
        let environment = |name: &str| std::env::var(name).ok();
        Ok(Config::load(
            self.config.as_deref(),
            self.config_body.as_deref(),
            &overrides,
            environment,
        )?)
    }
}

/// A scalar setting.
fn setting(key: &'static str, value: impl ToString) -> (&'static str, Value) {
    (key, strict::scalar(&value.to_string()))
}

/// Parses the arguments and does what they say.
///
/// # Errors
/// What went wrong and what to do about it.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Dev(args) => dev::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Start(args) => start(&args),
        Command::Cluster(command) => cluster::run(command),
        Command::Node(command) => node::run(command),
        Command::Admin(args) => runtime()?.block_on(admin::run(args)),
        Command::GenerateKeys => keys::run(),
        Command::Token(command) => token::run(command),
        Command::ConfigReference => {
            print(&reference::render());
            Ok(())
        }
    }
}

fn start(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = args.load(&[])?;
    telemetry::start_logging(&config.log_level, config.log_json)?;
    telemetry::warn_of_ignored_keys(&config);
    if config.keys.is_empty() {
        anyhow::bail!(
            "no API key is configured: without one nobody can join. \
             `flotilla generate-keys` prints one for `keys`"
        );
    }
    serve(config, Founding::Never)
}

/// Runs a node until it ends.
fn serve(config: crate::config::Config, founding: Founding) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let ended = runtime.block_on(crate::run::run(config, founding));
    // Not even a disk that does not answer keeps the process. And its tasks end with the process: a session that is
    // ended before the threads that talk to clients lets go of the message in its hands as if it had passed it on, and
    // the client is told that it arrived.
    std::mem::forget(runtime);
    ended
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("flotilla")
        .build()
        .context("starting the runtime")
}

/// What a command has to say goes to standard output; logs go to standard error.
#[expect(clippy::print_stdout, reason = "the command line's own output")]
fn print(text: &str) {
    print!("{text}");
}
