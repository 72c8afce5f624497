//! `flotilla node`: takes a node out of service and back, asked of the node that the configuration
//! describes.

use clap::{Args, Subcommand};

use super::ConfigArgs;
use super::cluster::administer;

#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// Has a node take nobody new and move its participants to other nodes.
    Drain(NodeArgs),
    /// Has a draining node take participants again.
    Resume(NodeArgs),
}

#[derive(Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Number of the node; without it the configured node itself.
    #[arg(long, value_name = "NUMBER")]
    node: Option<u64>,
}

pub(super) fn run(command: NodeCommand) -> anyhow::Result<()> {
    let (word, args) = match command {
        NodeCommand::Drain(args) => ("drain-node", args),
        NodeCommand::Resume(args) => ("resume-node", args),
    };
    let config = args.config.load(&[])?;
    let node = args.node.unwrap_or(config.node_id);
    administer(&config, &[word, &node.to_string()])
}
