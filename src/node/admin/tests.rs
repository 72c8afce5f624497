//! A real group with a real admin port, asked over gRPC.

mod changes;
mod reads;
mod reflection;
mod watching;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_media::stats::{RelayStats, Stats};
use flotilla_model::cluster::{LossCause, Node, NodeState};
use flotilla_model::command::{Command, CreateRoom, Join};
use flotilla_model::id::{BootId, NodeId, Region, RequestId, UnixMillis};
use flotilla_model::participant::Client;
use flotilla_model::permission::Permission;
use flotilla_model::room::RoomOptions;
use flotilla_model::track::{Encryption, Kind, Quality, Source, Track};
use flotilla_model::unit::Size;
use flotilla_raft::{Channels, ChannelsConfig, Group, GroupConfig};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::proto::admin_client::AdminClient;
use super::{AdminAccess, AdminContext, AdminError, proto, serve};
use crate::control::takeovers::Takeovers;
use crate::telemetry::Metrics;

pub(crate) const TOKEN: &str = "the admin token";

type Asking =
    AdminClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

/// A node of one, with an admin port.
pub(crate) struct Port {
    group: Group,
    pub(crate) takeovers: Takeovers,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), AdminError>>,
    _data: tempfile::TempDir,
}

impl Port {
    pub(crate) async fn open() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let channels = Channels::new(ChannelsConfig::new("a secret between nodes"));
        let config = GroupConfig::new(NodeId(1), "127.0.0.1:1", data.path());
        let group = Group::start(config, channels).await.expect("starts");
        group.bootstrap().await.expect("is founded");
        for id in [1, 2] {
            propose(&group, Command::PutNode(node(id))).await;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("has an address");
        let metrics = Metrics::new(NodeId(1)).expect("no clash");
        let takeovers = Takeovers::new(NodeId(1), metrics);
        let context = AdminContext {
            node: NodeId(1),
            group: group.clone(),
            media: Arc::new(|| Box::pin(async { vec![stats()] })),
            takeovers: takeovers.clone(),
        };
        let access = AdminAccess {
            token: Some(TOKEN.to_owned()),
            tls: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, context, access, async {
            let _ = stopped.await;
        }));
        Self {
            group,
            takeovers,
            address,
            stop,
            serving,
            _data: data,
        }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address));
        let endpoint = endpoint.expect("is an address");
        endpoint.connect().await.expect("connects")
    }

    async fn client(&self) -> Asking {
        AdminClient::with_interceptor(self.channel().await, authorize)
    }

    /// A room with `a` on node 1, who publishes `TR_1`, and `b` on node 2.
    pub(crate) async fn call(&self) {
        propose(&self.group, join("call", "a", 1)).await;
        propose(&self.group, join("call", "b", 2)).await;
        propose(&self.group, publish("call", "a", "TR_1")).await;
    }

    /// Node 1 crashes: `a` moves to node 2, and the record of takeovers has it.
    pub(crate) async fn lose_node_1(&self) {
        let before = self.group.state();
        let lost = Command::NodeLost {
            node: NodeId(1),
            boot: node(1).boot,
            cause: LossCause::Crashed,
        };
        let mut feed = self.group.feed();
        propose(&self.group, lost).await;
        let change = feed.next().await.expect("the change follows");
        self.takeovers
            .decided(&before, &change.state, &change.events);
    }

    pub(crate) async fn close(self) {
        let _ = self.stop.send(());
        let served = self.serving.await.expect("does not panic");
        served.expect("ends in order");
        self.group.shutdown().await;
    }
}

fn authorize(mut request: Request<()>) -> Result<Request<()>, Status> {
    let value = format!("Bearer {TOKEN}").parse().expect("is a header");
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

async fn propose(group: &Group, command: Command) {
    let proposed = group.propose(RequestId(rand::random()), command).await;
    proposed.expect("is carried out");
}

/// The relay of `TR_1` to node 2, as node 1's engine counts it.
fn stats() -> Stats {
    Stats {
        relays: vec![RelayStats {
            to: NodeId(2),
            track: "TR_1".into(),
            is_active: true,
            wanted: Quality::High,
            packets: 1234,
            bytes: 56_789,
            retransmissions: 5,
        }],
        ..Stats::default()
    }
}

fn node(id: u64) -> Node {
    Node {
        id: NodeId(id),
        region: Region::from("here"),
        boot: BootId(id * 10),
        cluster_address: format!("127.0.0.1:789{id}"),
        admin_address: "127.0.0.1:1".to_owned(),
        client_url: format!("http://127.0.0.1:788{id}"),
        relay_addresses: vec![([127, 0, 0, 1], 7882).into()],
        capacity: 0,
        state: NodeState::Serving,
        version: "0.1.0".to_owned(),
    }
}

fn join(room: &str, identity: &str, home: u64) -> Command {
    Command::Join(Box::new(Join {
        room: room.into(),
        create: Some(CreateRoom {
            name: room.into(),
            sid: format!("RM_{room}").into(),
            options: RoomOptions::default(),
            metadata: String::new(),
        }),
        sid: format!("PA_{identity}").into(),
        identity: identity.into(),
        name: identity.to_uppercase(),
        metadata: String::new(),
        attributes: BTreeMap::new(),
        kind: 0,
        kind_details: Vec::new(),
        permission: Permission {
            can_subscribe: true,
            can_publish: true,
            can_publish_data: true,
            can_publish_sources: [Source::Camera].into(),
            hidden: false,
            recorder: false,
            can_update_metadata: true,
            agent: false,
            can_subscribe_metrics: false,
        },
        token_issued_at: UnixMillis(1_000),
        auto_subscribe: true,
        client: Client::default(),
        home: NodeId(home),
    }))
}

fn publish(room: &str, identity: &str, sid: &str) -> Command {
    Command::PublishTrack {
        room: room.into(),
        identity: identity.into(),
        sid: format!("PA_{identity}").into(),
        track: Box::new(Track {
            sid: sid.into(),
            kind: Kind::Video,
            name: String::new(),
            source: Source::Camera,
            muted: false,
            size: Size {
                width: 640,
                height: 360,
            },
            simulcast: false,
            disable_dtx: false,
            stereo: false,
            disable_red: false,
            encryption: Encryption::None,
            stream: String::new(),
            audio_features: Vec::new(),
            backup_codec_policy: 0,
            codecs: Vec::new(),
            announced: true,
        }),
    }
}
