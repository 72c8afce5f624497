//! One node process of ours: a group with its storage and cluster port, and etcd's `Put` in front
//! of `propose`. Ends when its standard input closes, so that it never outlives the benchmark.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use flotilla_model::command::{Command, CreateRoom};
use flotilla_model::id::{NodeId, RequestId, RoomName, RoomSid};
use flotilla_model::room::RoomOptions;
use flotilla_raft::{Channels, ChannelsConfig, Group, GroupConfig, Groups, ProposeError};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

use crate::kv::{Handler, Header, PutRequest, PutResponse, Server, StatusResponse};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Node id.
    #[arg(long)]
    id: u64,
    /// Cluster port.
    #[arg(long)]
    cluster: String,
    /// Port for the benchmark's client.
    #[arg(long)]
    client: String,
    /// Data folder.
    #[arg(long)]
    data: PathBuf,
    /// Member to join; founds the cluster if absent.
    #[arg(long)]
    seed: Option<String>,
}

pub(crate) async fn serve(arguments: Arguments) -> Result<()> {
    let channels = Channels::new(ChannelsConfig::new("benchmark"));
    let config = GroupConfig::new(NodeId(arguments.id), &arguments.cluster, &arguments.data);
    let group = Group::start(config, channels.clone()).await?;
    let listener = TcpListener::bind(&arguments.cluster).await?;
    let routes = Groups::from(group.clone()).routes(&channels);
    tokio::spawn(async move {
        let ended = channels
            .serve(listener, routes, std::future::pending())
            .await;
        tracing::error!(?ended, "cluster port");
    });
    match &arguments.seed {
        None => group.bootstrap().await?,
        Some(seed) => group.join(std::slice::from_ref(seed)).await?,
    }
    let handler = Arc::new(Node {
        id: arguments.id,
        group,
    });
    let listener = TcpListener::bind(&arguments.client).await?;
    let routes =
        Routes::new(Server::<_, false>::new(Arc::clone(&handler)))
            .add_service(Server::<_, true>::new(Arc::clone(&handler)));
    let serving = tonic::transport::Server::builder()
        .add_routes(routes)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let parent = tokio::task::spawn_blocking(|| {
        let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
    });
    tokio::select! {
        served = serving => served.context("client port"),
        _ = parent => Ok(()),
    }
}

struct Node {
    id: u64,
    group: Group,
}

impl Node {
    async fn propose(&self, command: Command) -> Result<(), ProposeError> {
        let request = RequestId(rand::random());
        self.group.propose(request, command).await.map(|_| ())
    }

    fn header(&self) -> Header {
        Header {
            member: self.id,
            revision: i64::try_from(self.group.state().revision.0).unwrap_or(i64::MAX),
        }
    }
}

impl Handler for Node {
    async fn put(self: Arc<Self>, request: PutRequest) -> Result<PutResponse, Status> {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| Status::invalid_argument("not UTF-8"))
        };
        let room = RoomName(text(&request.key)?);
        let set = || -> Result<Command, Status> {
            Ok(Command::SetRoomMetadata {
                room: room.clone(),
                metadata: text(&request.value)?,
            })
        };
        let mut done = self.propose(set()?).await;
        if let Err(ProposeError::Rejected(_)) = done {
            let create = CreateRoom {
                name: room.clone(),
                sid: RoomSid(format!("RM_{room}")),
                options: RoomOptions::default(),
                metadata: String::new(),
            };
            let created = self.propose(Command::CreateRoom(create)).await;
            created.map_err(|error| Status::unavailable(error.to_string()))?;
            done = self.propose(set()?).await;
        }
        done.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(PutResponse {
            header: Some(self.header()),
        })
    }

    fn status(&self) -> StatusResponse {
        let status = self.group.status();
        let voters = status.members.iter().filter(|member| member.voter).count();
        StatusResponse {
            header: Some(self.header()),
            // Nobody leads, as far as the benchmark is concerned, before all three vote.
            leader: match status.leader {
                Some(leader) if voters == 3 => leader.0,
                _ => 0,
            },
        }
    }
}
