//! Two nodes on loopback, joined by a real gRPC connection that breaks.

use std::sync::Arc;
use std::time::Duration;

use flotilla_model::State;
use flotilla_raft::ChannelsConfig;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::enroll::{self, Doorkeeper, EnrollError};
use super::proto::mesh_client::MeshClient;
use super::proto::mesh_server::MeshServer;
use super::proto::{Data, EnrollRequest, InquireRequest};
use super::*;

const SECRET: &str = "a secret for tests";
const SKEW: Duration = Duration::from_secs(5);

/// Holds nothing.
struct Nothing;

#[tonic::async_trait]
impl Claims for Nothing {
    async fn claim(&self, _: proto::ClaimRequest) -> proto::ClaimReply {
        proto::ClaimReply::default()
    }
}

struct Side {
    service: MeshService,
    channels: Channels,
    inbound: mpsc::Receiver<Inbound>,
    address: String,
    mesh: Mesh,
    ailing: Ailing,
    server: Option<tokio::runtime::Runtime>,
}

fn channels(secret: &str) -> Channels {
    Channels::new(ChannelsConfig::new(secret))
}

fn own(node: u64) -> Own {
    Own {
        node: NodeId(node),
        boot: BootId(node * 100),
        cluster_id: "C_1".into(),
        config_hash: [7; 32],
    }
}

fn metrics() -> Arc<Metrics> {
    Metrics::new(NodeId(1)).expect("no clash")
}

impl Drop for Side {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Side {
    async fn new(node: u64) -> Self {
        let (inbound_in, inbound) = mpsc::channel(INBOUND_MAX);
        let channels = channels(SECRET);
        let mesh = Mesh::new(own(node), channels.clone(), metrics());
        let own_mesh = mesh.clone();
        let ailing = Ailing::default();
        let mut side = Self {
            service: MeshService::new(ServiceConfig {
                own: own(node),
                inbound: inbound_in,
                doorkeeper: Doorkeeper {
                    node: NodeId(node),
                    boot: BootId(node * 100),
                    address: "here:1".into(),
                    cluster: "test".into(),
                    cluster_id: "C_1".into(),
                    config_hash: [7; 32],
                    clock_skew_max: SKEW,
                    sealed_certificate: enroll::seal(SECRET, b"PEM"),
                    state: Box::new(|| Arc::new(State::default())),
                    mesh,
                },
                claims: Arc::new(Nothing),
                mesh: own_mesh.clone(),
                ailing: ailing.clone(),
                may_crash: false,
                metrics: metrics(),
            }),
            mesh: own_mesh,
            ailing,
            channels,
            inbound,
            address: "127.0.0.1:0".into(),
            server: None,
        };
        side.serve().await;
        side
    }

    /// Serves, on the same port as before if there was one.
    async fn serve(&mut self) {
        let listener = loop {
            match TcpListener::bind(&self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.address = listener.local_addr().expect("bound").to_string();
        let listener = listener.into_std().expect("a socket");
        let server = MeshServer::new(self.service.clone());
        let routes = tonic::service::Routes::new(self.channels.guard(server));
        let channels = self.channels.clone();
        // A runtime of its own: when it is dropped, open streams break as with a process.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            channels
                .serve(listener, routes, std::future::pending())
                .await
        });
        self.server = Some(runtime);
    }

    fn cut(&mut self) {
        if let Some(runtime) = self.server.take() {
            runtime.shutdown_background();
        }
    }

    async fn next(&mut self) -> Data {
        let inbound = tokio::time::timeout(Duration::from_secs(20), self.inbound.recv())
            .await
            .expect("in time")
            .expect("open");
        match inbound.body {
            Body::Data(data) => data,
            _ => panic!("only data was sent"),
        }
    }
}

fn data(number: u32) -> Body {
    Body::Data(Data {
        room: "r".into(),
        sequence: number,
        ..Data::default()
    })
}

#[tokio::test]
async fn reliable_frames_arrive_in_order_and_once_across_breaks() {
    let mut receiver = Side::new(2).await;
    let sender = Mesh::new(own(1), channels(SECRET), metrics());
    sender.set_nodes(&BTreeMap::from([(NodeId(2), receiver.address.clone())]));
    let mut expected = 0;
    for round in 0..3_u32 {
        for number in 0..500 {
            assert!(sender.send(NodeId(2), data(round * 500 + number), true));
        }
        for _ in 0..250 {
            assert_eq!(receiver.next().await.sequence, expected);
            expected += 1;
        }
        receiver.cut();
        tokio::time::sleep(Duration::from_millis(30)).await;
        receiver.serve().await;
        for _ in 0..250 {
            assert_eq!(receiver.next().await.sequence, expected);
            expected += 1;
        }
    }
    assert!(sender.is_alive(NodeId(2), Duration::from_secs(5)));
    let health = sender.health()[&NodeId(2)];
    assert_eq!(health.boot, Some(BootId(200)));
    assert!(!sender.send(NodeId(3), data(0), true), "no such node");
}

#[tokio::test]
async fn a_node_that_is_removed_and_added_again_gets_everything() {
    let mut receiver = Side::new(2).await;
    let sender = Mesh::new(own(1), channels(SECRET), metrics());
    let nodes = BTreeMap::from([(NodeId(2), receiver.address.clone())]);
    // As it is for a node that reads the log from its beginning.
    for round in 0..3_u32 {
        sender.set_nodes(&nodes);
        let numbers = round * 100..(round + 1) * 100;
        for number in numbers.clone() {
            assert!(sender.send(NodeId(2), data(number), true));
        }
        for number in numbers {
            assert_eq!(receiver.next().await.sequence, number);
        }
        sender.set_nodes(&BTreeMap::new());
    }
}

#[tokio::test]
async fn a_node_is_reached_by_way_of_another_one() {
    let mut receiver = Side::new(2).await;
    let carrier = Side::new(3).await;
    let pool = channels(SECRET);
    let sender = Mesh::new(own(1), pool.clone(), metrics());
    // Where the sender looks for node 2 there is nobody; node 3 knows better.
    let nowhere = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = nowhere.local_addr().expect("bound").to_string();
    drop(nowhere);
    let at = |second: &str| {
        BTreeMap::from([
            (NodeId(2), second.to_owned()),
            (NodeId(3), carrier.address.clone()),
        ])
    };
    sender.set_nodes(&at(&address));
    carrier.mesh.set_nodes(&at(&receiver.address));
    assert!(sender.send(NodeId(2), data(7), true));
    sender.set_detour(NodeId(2), Some(NodeId(3)));
    assert_eq!(receiver.next().await.sequence, 7);
    let sign = || sender.signs().of(NodeId(2)).expect("known");
    eventually("a heartbeat is answered", || sign().echoed.is_some()).await;
    assert_eq!(sign().contact, None, "signs of life stay direct");
    // Both ends count it.
    let signs = receiver.mesh.signs();
    receiver
        .mesh
        .set_nodes(&BTreeMap::from([(NodeId(1), address)]));
    eventually("it is reached", || {
        signs
            .of(NodeId(1))
            .is_some_and(|sign| sign.reached.is_some())
    })
    .await;

    // Without the way round nothing arrives, and all of it once there is one again.
    sender.set_detour(NodeId(2), None);
    eventually("the link is down", || {
        !sender.health()[&NodeId(2)].connected
    })
    .await;
    assert!(sender.send(NodeId(2), data(8), true));
    sender.set_detour(NodeId(2), Some(NodeId(3)));
    assert_eq!(receiver.next().await.sequence, 8);
}

#[tokio::test]
async fn only_nodes_of_the_cluster_are_carried_to() {
    let carrier = Side::new(3).await;
    let pool = channels(SECRET);
    let sender = Mesh::new(own(1), pool.clone(), metrics());
    let nodes = [(NodeId(2), "127.0.0.1:1"), (NodeId(3), &carrier.address)];
    let nodes = nodes.map(|(node, address)| (node, address.to_owned()));
    sender.set_nodes(&BTreeMap::from(nodes));
    sender.set_detour(NodeId(2), Some(NodeId(3)));
    let channel = pool.get("127.0.0.1:1", flotilla_raft::Lane::Consensus);
    let mut client = MeshClient::new(channel.expect("an address"));
    let refused = client.inquire(InquireRequest::default()).await;
    let status = refused.expect_err("node 3 does not know node 2");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn silent_nodes_are_not_alive() {
    let mut receiver = Side::new(2).await;
    let sender = Mesh::new(own(1), channels(SECRET), metrics());
    sender.set_nodes(&BTreeMap::from([(NodeId(2), receiver.address.clone())]));
    sender.send(NodeId(2), data(0), true);
    receiver.next().await;
    assert!(sender.is_alive(NodeId(2), Duration::from_secs(5)));
    receiver.cut();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!sender.is_alive(NodeId(2), Duration::from_millis(500)));
    assert!(
        sender.is_alive(NodeId(1), Duration::ZERO),
        "this node itself"
    );
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_dead_process_is_found_gone_at_once_and_its_next_start_heard() {
    let mut other = Side::new(2).await;
    let watcher = Mesh::new(own(1), channels(SECRET), metrics());
    watcher.set_nodes(&BTreeMap::from([(NodeId(2), other.address.clone())]));
    let sign = || watcher.signs().of(NodeId(2)).expect("listened to");
    eventually("it answers", || sign().contact.is_some()).await;
    assert_eq!(sign().boot, Some(BootId(200)));
    assert!(!sign().is_gone(Instant::now()));
    assert_eq!(sign().ailment, None);
    other.ailing.set(Ailment::Disk);
    eventually("it says that it is ill", || {
        sign()
            .ailment
            .is_some_and(|(ailment, _)| ailment == Ailment::Disk)
    })
    .await;

    let cut = Instant::now();
    other.cut();
    eventually("it is gone", || sign().is_gone(Instant::now())).await;
    let took = cut.elapsed();
    // Long before any bound of silence: nobody waits for pings here.
    assert!(took < Duration::from_millis(400), "took {took:?}");
    let find = watcher.signs().find(NodeId(2), BootId(200), BOUND, BOUND);
    assert_eq!(find.await, Finding::Gone);

    other.serve().await;
    eventually("it is heard again", || {
        !sign().is_gone(Instant::now()) && sign().contact.is_some_and(|at| at > cut)
    })
    .await;
    let find = watcher.signs().find(NodeId(2), BootId(200), BOUND, BOUND);
    assert_eq!(find.await, Finding::Heard);
    let find = watcher.signs().find(NodeId(2), BootId(100), BOUND, BOUND);
    assert_eq!(find.await, Finding::Gone, "another start answers");
}

#[tokio::test]
async fn a_port_that_takes_connections_but_never_answers_is_silent_not_gone() {
    // What a stopped process looks like: the kernel accepts for it.
    let frozen = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = frozen.local_addr().expect("bound").to_string();
    let side = Side::new(2).await;
    side.mesh.set_nodes(&BTreeMap::from([(NodeId(3), address)]));
    let bound = Duration::from_millis(100);
    let find = side.mesh.signs().find(NodeId(3), BootId(300), bound, BOUND);
    assert_eq!(find.await, Finding::Silent);
    assert!(
        !side
            .mesh
            .signs()
            .of(NodeId(3))
            .expect("known")
            .is_gone(Instant::now())
    );

    // Asked through another node, the answer is the same.
    let asker = Mesh::new(own(1), channels(SECRET), metrics());
    asker.set_nodes(&BTreeMap::from([(NodeId(2), side.address.clone())]));
    let found = asker
        .inquire(NodeId(2), NodeId(3), BootId(300), BOUND)
        .await;
    assert_eq!(found, Some(Finding::Silent));
    let found = asker.inquire(NodeId(2), NodeId(9), BootId(1), BOUND).await;
    assert_eq!(found, Some(Finding::Unknown));
    assert_eq!(
        asker.inquire(NodeId(7), NodeId(3), BootId(1), BOUND).await,
        None
    );
    drop(frozen);
}

fn request() -> EnrollRequest {
    EnrollRequest {
        cluster: "test".into(),
        node: 3,
        boot: 300,
        config_hash: vec![7; 32].into(),
        wall_clock_ms: 0,
        version: String::new(),
        address: "there:1".into(),
        cluster_id: String::new(),
    }
}

#[tokio::test]
async fn fitting_nodes_get_the_certificate() {
    let side = Side::new(2).await;
    let seeds = ["127.0.0.1:1".to_owned(), side.address.clone()];
    let enrolled = enroll::enroll(&channels(SECRET), SECRET, &seeds, &request())
        .await
        .expect("let in");
    assert_eq!(enrolled.cluster_id, "C_1");
    assert_eq!(enrolled.certificate, b"PEM");
}

#[tokio::test]
async fn others_are_refused_with_what_to_do() {
    let side = Side::new(2).await;
    let seeds = [side.address.clone()];
    let refused = async |request: EnrollRequest, secret: &'static str| {
        enroll::enroll(&channels(secret), secret, &seeds, &request)
            .await
            .expect_err("refused")
            .to_string()
    };
    let with = |change: fn(&mut EnrollRequest)| {
        let mut request = request();
        change(&mut request);
        request
    };
    let text = refused(request(), "another secret").await;
    assert!(text.contains("secret"), "{text}");
    let text = refused(with(|r| r.cluster = "other".into()), SECRET).await;
    assert!(text.contains("called `test`"), "{text}");
    let text = refused(with(|r| r.node = 2), SECRET).await;
    assert!(text.contains("node id 2 is in use"), "{text}");
    let text = refused(with(|r| r.config_hash = vec![8; 32].into()), SECRET).await;
    assert!(text.contains("docs/config.md"), "{text}");
    let text = refused(with(|r| r.cluster_id = "C_2".into()), SECRET).await;
    assert!(text.contains("another cluster"), "{text}");
}

#[tokio::test]
async fn without_an_answer_it_says_whom_it_asked() {
    let seeds = ["127.0.0.1:1".to_owned()];
    let error = enroll::enroll(&channels(SECRET), SECRET, &seeds, &request())
        .await
        .expect_err("nobody there");
    assert!(matches!(error, EnrollError::Unreachable { .. }));
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}
