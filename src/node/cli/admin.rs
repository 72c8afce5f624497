//! `flotilla admin`: asks a node's admin port and shows the answer as tables or JSON.
//!
//! `client` calls the service, `table` and `json` render, `follow` keeps a watch stream
//! alive. The JSON is stable: fields are only ever added.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use self::client::{Client, TlsFiles};
use crate::admin::proto::{self, LogId};

mod client;
mod follow;
mod json;
mod table;
#[cfg(test)]
mod tests;

/// Asks or tells a cluster through one of its nodes.
#[derive(Args, Clone)]
pub struct AdminArgs {
    /// Admin port of a node: `host:port`, with `https://` in front if it has TLS.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "FLOTILLA_ADMIN_ADDRESS",
        default_value = "127.0.0.1:7891"
    )]
    address: String,
    /// The node's `admin.token`.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_ADMIN_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// How fresh reads must be.
    #[arg(long, global = true, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// PEM file of the authority that signed the node's certificate.
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// PEM file with a certificate to show to the node.
    #[arg(long, global = true, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// PEM file with that certificate's key.
    #[arg(long, global = true, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Name in the node's certificate, if not the host asked.
    #[arg(long, global = true, value_name = "NAME")]
    domain: Option<String>,
    #[command(subcommand)]
    command: AdminCommand,
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Consistency {
    /// Shows everything acknowledged before; needs a majority of the voters.
    Linearizable,
    /// What the asked node has applied; works without a majority.
    Stale,
}

#[derive(Subcommand, Clone)]
enum AdminCommand {
    /// Who leads and votes, terms, log positions and lag.
    Status,
    /// All nodes and what they serve.
    Nodes,
    /// All rooms.
    Rooms,
    /// One room with its participants, tracks and routes.
    Room {
        /// Its name.
        name: String,
    },
    /// Participants of a room.
    Participants {
        /// Room.
        room: String,
    },
    /// Tracks of a room.
    Tracks {
        /// Room.
        room: String,
    },
    /// Which node relays which track to which.
    Routes {
        /// Only this room's.
        room: Option<String>,
    },
    /// Participants that got a new home, as the asked node knows them.
    Takeovers,
    /// Hash of the replicated state, to compare between nodes.
    Hash {
        /// State after this log entry instead of the newest.
        #[arg(
            long,
            value_name = "LOG INDEX",
            default_value_t = 0,
            hide_default_value = true
        )]
        at: u64,
    },
    /// The state, then every change as it happens; broken connections resume.
    Watch {
        /// Only this room's changes.
        room: Option<String>,
        /// Continue after this revision instead of beginning with the state.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
    /// Has the asked node build a snapshot.
    Snapshot {
        /// Forgets the log before it as well, which takes space. Nodes that lack entries of it
        /// catch up by the snapshot.
        #[arg(long)]
        purge_log: bool,
    },
    /// Makes another voter the leader.
    TransferLeader {
        /// Its number.
        node: u64,
    },
    /// Adds a node whose data folder was prepared by hand; `flotilla cluster join` is the usual way.
    AddNode {
        /// Its number.
        node: u64,
        /// Its cluster port.
        #[arg(value_name = "HOST:PORT")]
        cluster_address: String,
        /// From the file `incarnation` in its data folder.
        incarnation: u64,
    },
    /// Has a node take nobody new and move its participants to other nodes.
    DrainNode {
        /// Its number.
        node: u64,
    },
    /// Has a draining node take participants again.
    ResumeNode {
        /// Its number.
        node: u64,
    },
    /// Removes a node for good; its participants move to other nodes.
    RemoveNode {
        /// Its number.
        node: u64,
    },
    /// Closes a room; its participants leave.
    CloseRoom {
        /// Room.
        room: String,
    },
    /// Removes a participant from a room.
    RemoveParticipant {
        /// Room.
        room: String,
        /// Participant.
        identity: String,
        /// Also refuse the tokens it has by now.
        #[arg(long)]
        revoke_tokens: bool,
    },
}

/// Does what the arguments say.
///
/// # Errors
/// The node cannot be reached, or what it answered.
pub async fn run(args: AdminArgs) -> anyhow::Result<()> {
    let mut client = client(&args)?;
    if let AdminCommand::Watch { room, after } = args.command {
        return follow::run(&mut client, room.unwrap_or_default(), after, args.json).await;
    }
    let (json, table) = answer(&mut client, args.command).await?;
    if args.json {
        emit(&format!("{json:#}\n"))
    } else {
        emit(&table)
    }
}

/// Whom the arguments name.
fn client(args: &AdminArgs) -> anyhow::Result<Client> {
    let tls = TlsFiles {
        authority: args.ca_file.clone(),
        certificate: args.cert_file.clone(),
        key: args.key_file.clone(),
        domain: args.domain.clone(),
    };
    let consistency = match args.consistency {
        Consistency::Linearizable => proto::Consistency::Linearizable,
        Consistency::Stale => proto::Consistency::Stale,
    };
    Client::new(&args.address, args.token.as_deref(), &tls, consistency)
}

/// The answer in both forms.
async fn answer(
    client: &mut Client,
    command: AdminCommand,
) -> anyhow::Result<(serde_json::Value, String)> {
    Ok(match command {
        AdminCommand::Status => {
            let status = client.status().await?;
            (json::status(&status), table::status(&status))
        }
        AdminCommand::Nodes => {
            let nodes = client.nodes().await?;
            (json::nodes(&nodes), table::nodes(&nodes.nodes))
        }
        AdminCommand::Rooms => {
            let (rooms, position) = client.rooms().await?;
            (json::rooms(&rooms, position), table::rooms(&rooms))
        }
        AdminCommand::Room { name } => room(client, &name).await?,
        AdminCommand::Participants { room } => {
            let list = client.participants(&room).await?;
            (
                json::participants(&list),
                table::participants(&list.entries),
            )
        }
        AdminCommand::Tracks { room } => {
            let list = client.tracks(&room).await?;
            (json::tracks(&list), table::tracks(&list.entries))
        }
        AdminCommand::Routes { room } => {
            let list = client.routes(room.as_deref().unwrap_or_default()).await?;
            (json::routes(&list), table::routes(&list.entries))
        }
        AdminCommand::Takeovers => {
            let list = client.takeovers().await?;
            (json::takeovers(&list), table::takeovers(&list.entries))
        }
        AdminCommand::Hash { at } => {
            let hash = client.hash(at).await?;
            (json::hash(&hash), table::hash(&hash))
        }
        command => change(client, command).await?,
    })
}

async fn room(client: &mut Client, name: &str) -> anyhow::Result<(serde_json::Value, String)> {
    let answer = client.room(name).await?;
    let room = answer.room.unwrap_or_default();
    let participants = client.participants(name).await?;
    let tracks = client.tracks(name).await?;
    let whole = table::room(&room, &participants.entries, &tracks.entries);
    let json = json::whole_room(&room, &participants, &tracks, answer.position);
    Ok((json, whole))
}

async fn change(
    client: &mut Client,
    command: AdminCommand,
) -> anyhow::Result<(serde_json::Value, String)> {
    Ok(match command {
        AdminCommand::Snapshot { purge_log } => {
            let built = client.trigger_snapshot(purge_log).await?;
            let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
            let mut text = format!(
                "The newest snapshot ends at log index {}.\n",
                index(built.snapshot)
            );
            if purge_log {
                text += &format!("The log begins after index {}.\n", index(built.purged));
            }
            (json::snapshot(&built), text)
        }
        AdminCommand::TransferLeader { node } => {
            let moved = client.transfer_leader(node).await?;
            let text = format!("Node {} leads in term {}.\n", moved.leader, moved.term);
            (json::leader(&moved), text)
        }
        AdminCommand::AddNode {
            node,
            cluster_address,
            incarnation,
        } => {
            let added = client.add_node(node, cluster_address, incarnation).await?;
            let text = format!("Node {node} is a member now.\n");
            (json::done(added.position, None), text)
        }
        AdminCommand::DrainNode { node } => {
            let drained = client.drain_node(node).await?;
            let text = format!("Node {node} takes nobody new; its participants move.\n");
            (json::done(drained.position, None), text)
        }
        AdminCommand::ResumeNode { node } => {
            let resumed = client.resume_node(node).await?;
            let text = format!("Node {node} takes participants again.\n");
            (json::done(resumed.position, None), text)
        }
        AdminCommand::RemoveNode { node } => {
            let removed = client.remove_node(node).await?;
            (
                json::removed(&removed),
                format!("Node {node} is removed.\n"),
            )
        }
        AdminCommand::CloseRoom { room } => {
            let closed = client.close_room(&room).await?;
            let text = format!("Room {room} is closed.\n");
            (json::done(closed.position, Some(closed.room_version)), text)
        }
        AdminCommand::RemoveParticipant {
            room,
            identity,
            revoke_tokens,
        } => {
            let removed = client
                .remove_participant(&room, &identity, revoke_tokens)
                .await?;
            let text = format!("{identity} is removed from room {room}.\n");
            (
                json::done(removed.position, Some(removed.room_version)),
                text,
            )
        }
        AdminCommand::Status
        | AdminCommand::Nodes
        | AdminCommand::Rooms
        | AdminCommand::Room { .. }
        | AdminCommand::Participants { .. }
        | AdminCommand::Tracks { .. }
        | AdminCommand::Routes { .. }
        | AdminCommand::Takeovers
        | AdminCommand::Hash { .. }
        | AdminCommand::Watch { .. } => unreachable!("reads are answered elsewhere"),
    })
}

/// Writes to standard output. A reader that went away, as `head` does, ends the command quietly.
fn emit(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}
