//! `flotilla cluster`: founding, joining, and what an operator asks of a running cluster.

use anyhow::bail;
use clap::{Args, Subcommand};

use super::{ConfigArgs, print, runtime};
use crate::telemetry;

#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Founds a cluster in this node's data folder; then `flotilla start` runs it.
    Init(ConfigArgs),
    /// Makes this node fit to join the cluster of another node; then `flotilla start` joins.
    Join(JoinArgs),
}

#[derive(Args)]
pub(super) struct JoinArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Cluster address of a node that runs; may be repeated. Without it: `cluster.seeds`.
    #[arg(long, value_name = "HOST:PORT")]
    peer: Vec<String>,
}

pub(super) fn run(command: ClusterCommand) -> anyhow::Result<()> {
    match command {
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
