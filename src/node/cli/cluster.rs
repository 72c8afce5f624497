//! `flotilla cluster`: founding, joining, and what an operator asks of a running cluster.

use anyhow::bail;
use clap::{Args, Parser, Subcommand};

use super::admin::AdminArgs;
use super::{ConfigArgs, print, runtime};
use crate::config::Config;
use crate::telemetry;

#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Founds a cluster in this node's data folder; then `flotilla start` runs it.
    Init(ConfigArgs),
    /// Makes this node fit to join the cluster of another node; then `flotilla start` joins.
    Join(JoinArgs),
    /// Shows who leads and who votes, asked of the node that the configuration describes.
    Status(StatusArgs),
    /// Removes a node for good: its vote, and its participants.
    Remove(RemoveArgs),
}

#[derive(Args)]
pub(super) struct JoinArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Cluster address of a node that runs; may be repeated. Without it: `cluster.seeds`.
    #[arg(long, value_name = "HOST:PORT")]
    peer: Vec<String>,
}

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Number of the node to remove.
    node: u64,
}

/// `flotilla admin` with the address and token of a configuration.
#[derive(Parser)]
struct Admin {
    #[command(flatten)]
    args: AdminArgs,
}

/// Has `flotilla admin` do what `words` say, at the node that the configuration describes.
pub(super) fn administer(config: &Config, words: &[&str]) -> anyhow::Result<()> {
    let scheme = if config.admin_tls.is_some() {
        "https://"
    } else {
        ""
    };
    let address = config.admin_bind;
    let reachable = match &config.admin_advertise {
        Some(address) => address.clone(),
        None if address.ip().is_unspecified() => format!("127.0.0.1:{}", address.port()),
        None => address.to_string(),
    };
    let mut line = vec![
        "flotilla".to_owned(),
        "--address".to_owned(),
        format!("{scheme}{reachable}"),
    ];
    if let Some(token) = &config.admin_token {
        line.extend(["--token".to_owned(), token.0.clone()]);
    }
    line.extend(words.iter().map(|word| (*word).to_owned()));
    let admin = Admin::try_parse_from(line)?;
    runtime()?.block_on(super::admin::run(admin.args))
}

pub(super) fn run(command: ClusterCommand) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Status(args) => {
            let config = args.config.load(&[])?;
            let words: &[&str] = if args.json {
                &["--json", "status"]
            } else {
                &["status"]
            };
            administer(&config, words)
        }
        ClusterCommand::Remove(args) => {
            let config = args.config.load(&[])?;
            administer(&config, &["remove-node", &args.node.to_string()])
        }
        ClusterCommand::Init(args) => {
            let config = args.load(&[])?;
            telemetry::start_logging("warn", false)?;
            let id = runtime()?.block_on(crate::run::found(&config))?;
            print(&format!(
                "Cluster `{}` ({id}) is founded in {}.\nStart this node with `flotilla start`, then let the others join it.\n",
                config.cluster.name,
                config.data_dir.display(),
            ));
            Ok(())
        }
        ClusterCommand::Join(args) => {
            let config = args.config.load(&[])?;
            telemetry::start_logging("warn", false)?;
            let seeds = if args.peer.is_empty() {
                config.seeds.clone()
            } else {
                args.peer
            };
            if seeds.is_empty() {
                bail!("whom to join? Give --peer HOST:PORT or set cluster.seeds");
            }
            let id = runtime()?.block_on(crate::run::enlist(&config, seeds))?;
            print(&format!(
                "Node {} may join cluster `{}` ({id}).\nStart it with `flotilla start`.\n",
                config.node_id, config.cluster.name,
            ));
            Ok(())
        }
    }
}
