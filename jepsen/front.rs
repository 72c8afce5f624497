//! The load balancer in front of the nodes, as deployments have one: a TCP splice with health checks.
//!
//! Every client has a port of its own, which leads to the node the client is wanted on, or to the next
//! living one; while none lives, a connection waits for one. Health is `GET /` every 100 ms within
//! 300 ms. A node that answers anything but 200 gets no new connections and keeps those it has;
//! connections through one that does not answer are reset. Reads the first line of each connection, to tell a resume from a join.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use livekit_protocol as proto;
use prost::Message as _;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock::{Ms, now_ms};

const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const CHECK_MAX: Duration = Duration::from_millis(300);
const CONNECT_MAX: Duration = Duration::from_millis(300);
/// How long a connection waits while no node lives; Python's and Node's SDKs wait five seconds.
const QUEUE_MAX: Duration = Duration::from_secs(4);
/// A request line longer than this is passed on unread.
const HEAD_MAX: usize = 32 * 1024;

/// What a client asked a node for on a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// A new session.
    Join,
    /// Its session back.
    Resume,
    /// Something else over HTTP.
    Other,
}

/// A connection that a client opened.
#[derive(Clone, Debug)]
pub(crate) struct Knock {
    pub(crate) at: Ms,
    pub(crate) client: usize,
    pub(crate) node: u64,
    pub(crate) ask: Ask,
}

/// A change of health as the front sees it.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) at: Ms,
    pub(crate) node: u64,
    pub(crate) up: bool,
}

/// The fronts of all clients. The locks have many owners since connections come in parallel; they are
/// held for a push or a copy.
pub(crate) struct Fronts {
    shared: Arc<Shared>,
    ports: Vec<u16>,
    _tasks: JoinSet<()>,
}

struct Shared {
    nodes: Vec<SocketAddr>,
    /// Who gets new connections.
    up: watch::Sender<Vec<bool>>,
    /// Who answers at all.
    lives: watch::Sender<Vec<bool>>,
    /// Without power nothing is carried and nobody is answered.
    power: watch::Sender<bool>,
    wanted: Mutex<Vec<u64>>,
    knocks: Mutex<Vec<Knock>>,
    marks: Mutex<Vec<Mark>>,
}

impl Fronts {
    /// Listens for one client after the other at `address`; `wanted` names each client's node.
    pub(crate) async fn open(
        address: IpAddr,
        nodes: Vec<SocketAddr>,
        wanted: Vec<u64>,
    ) -> Result<Self> {
        let (up, _) = watch::channel(vec![true; nodes.len()]);
        let (lives, _) = watch::channel(vec![true; nodes.len()]);
        let clients = wanted.len();
        let shared = Arc::new(Shared {
            nodes,
            lives,
            up,
            power: watch::Sender::new(true),
            wanted: Mutex::new(wanted),
            knocks: Mutex::default(),
            marks: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for index in 0..shared.nodes.len() {
            tasks.spawn(check(shared.clone(), index));
        }
        let mut ports = Vec::new();
        for client in 0..clients {
            let listener = TcpListener::bind((address, 0)).await?;
            ports.push(listener.local_addr()?.port());
            tasks.spawn(accept(shared.clone(), listener, client));
        }
        Ok(Self {
            shared,
            ports,
            _tasks: tasks,
        })
    }

    /// Where a client connects.
    pub(crate) fn port(&self, client: usize) -> u16 {
        self.ports[client]
    }

    /// Says which node a client's next connection should go to.
    pub(crate) fn want(&self, client: usize, node: u64) {
        self.shared.wanted.lock().expect("no holder panics")[client] = node;
    }

    /// Takes the front's own power away, or gives it back: then it knows none of its connections.
    pub(crate) fn set_power(&self, on: bool) {
        self.shared.power.send_replace(on);
    }

    /// Whether a node passes its health check.
    pub(crate) fn is_up(&self, node: u64) -> bool {
        self.shared.up.borrow()[index_of(node)]
    }

    /// Connections opened since.
    pub(crate) fn knocks_since(&self, at: Ms) -> Vec<Knock> {
        let knocks = self.shared.knocks.lock().expect("no holder panics");
        knocks
            .iter()
            .filter(|knock| knock.at >= at)
            .cloned()
            .collect()
    }

    /// When a node was first marked down since.
    pub(crate) fn marked_down_since(&self, node: u64, at: Ms) -> Option<Ms> {
        let marks = self.shared.marks.lock().expect("no holder panics");
        marks
            .iter()
            .find(|mark| mark.node == node && !mark.up && mark.at >= at)
            .map(|mark| mark.at)
    }
}

fn index_of(node: u64) -> usize {
    usize::try_from(node).expect("small") - 1
}

async fn check(shared: Arc<Shared>, index: usize) {
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let answer = tokio::time::timeout(CHECK_MAX, is_healthy(shared.nodes[index])).await;
        let (lives, healthy) = match answer {
            Ok(Ok(healthy)) => (true, healthy),
            Ok(Err(_)) | Err(_) => (false, false),
        };
        shared.lives.send_if_modified(|all| {
            let before = std::mem::replace(&mut all[index], lives);
            before != lives
        });
        let changed = shared.up.send_if_modified(|up| {
            let changed = up[index] != healthy;
            up[index] = healthy;
            changed
        });
        if changed {
            let mark = Mark {
                at: now_ms(),
                node: index as u64 + 1,
                up: healthy,
            };
            shared.marks.lock().expect("no holder panics").push(mark);
        }
    }
}

async fn is_healthy(address: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer.ends_with(b" 200"))
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, client: usize) {
    let mut connections = JoinSet::new();
    let mut power = shared.power.subscribe();
    loop {
        if power.wait_for(|on| *on).await.is_err() {
            return;
        }
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(splice(shared.clone(), stream, client));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until an end closes or its node is marked down.
async fn splice(shared: Arc<Shared>, mut client_side: TcpStream, client: usize) {
    let _ = client_side.set_nodelay(true);
    let Ok(head) = read_head(&mut client_side).await else {
        return;
    };
    let found = tokio::time::timeout(QUEUE_MAX, connect(&shared, client)).await;
    let Ok((node, mut node_side)) = found else {
        reset(&client_side);
        return;
    };
    let _ = node_side.set_nodelay(true);
    let knock = Knock {
        at: now_ms(),
        client,
        node,
        ask: classify(&head),
    };
    shared.knocks.lock().expect("no holder panics").push(knock);
    let (mut lives, mut power) = (shared.lives.subscribe(), shared.power.subscribe());
    let carried = async {
        node_side.write_all(&head).await?;
        tokio::io::copy_bidirectional(&mut client_side, &mut node_side).await
    };
    let ended = tokio::select! {
        biased;
        _ = power.wait_for(|on| !*on) => false,
        ended = carried => ended.is_ok(),
        _ = lives.wait_for(|lives| !lives[index_of(node)]) => false,
    };
    if !ended {
        // The end is not heard of before there is power to tell it.
        let _ = power.wait_for(|on| *on).await;
        reset(&client_side);
        reset(&node_side);
    }
}

/// Makes the coming close a reset.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = Vec::with_capacity(4096);
    while !head.contains(&b'\n') && head.len() < HEAD_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

/// The wanted node if it lives, else the next one after it. Without one it never ends.
async fn connect(shared: &Shared, client: usize) -> (u64, TcpStream) {
    let mut up = shared.up.subscribe();
    loop {
        if let Some(connected) = attempt(shared, client).await {
            return connected;
        }
        if up.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

async fn attempt(shared: &Shared, client: usize) -> Option<(u64, TcpStream)> {
    let wanted = shared.wanted.lock().expect("no holder panics")[client];
    let count = shared.nodes.len();
    for step in 0..count {
        let index = (index_of(wanted) + step) % count;
        if !shared.up.borrow()[index] {
            continue;
        }
        let attempt = TcpStream::connect(shared.nodes[index]);
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT_MAX, attempt).await {
            return Some((index as u64 + 1, stream));
        }
    }
    None
}

/// What the request line asks for: v0 says so in the query, v1 in its join request.
fn classify(head: &[u8]) -> Ask {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path != "/rtc" && path != "/rtc/v1" {
        return Ask::Other;
    }
    let value = |name: &str| {
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then_some(value)
        })
    };
    let resumes = value("reconnect").is_some_and(|value| value == "1" || value == "true")
        || value("join_request").is_some_and(|text| wants_back(text).unwrap_or(false));
    if resumes { Ask::Resume } else { Ask::Join }
}

fn wants_back(text: &str) -> Result<bool> {
    use base64::alphabet::URL_SAFE;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let text = text.replace("%3D", "=").replace("%3d", "=");
    let lenient = GeneralPurpose::new(
        &URL_SAFE,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let wrapped = proto::WrappedJoinRequest::decode(&lenient.decode(text)?[..])?;
    let bytes = if wrapped.compression == proto::wrapped_join_request::Compression::Gzip as i32 {
        use std::io::Read as _;
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&wrapped.join_request[..])
            .take(1 << 20)
            .read_to_end(&mut plain)
            .context("a join request in gzip")?;
        plain
    } else {
        wrapped.join_request
    };
    Ok(proto::JoinRequest::decode(&bytes[..])?.reconnect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(reconnect: bool) -> String {
        let join = proto::JoinRequest {
            reconnect,
            ..Default::default()
        };
        let wrapped = proto::WrappedJoinRequest {
            join_request: join.encode_to_vec(),
            ..Default::default()
        };
        base64::engine::general_purpose::URL_SAFE.encode(wrapped.encode_to_vec())
    }

    #[test]
    fn a_resume_is_told_from_a_join() {
        let line = |target: String| classify(format!("GET {target} HTTP/1.1\r\n").as_bytes());
        assert_eq!(line("/rtc?reconnect=1&sid=x".into()), Ask::Resume);
        assert_eq!(line("/rtc?auto_subscribe=1".into()), Ask::Join);
        let (back, new) = (request(true), request(false));
        assert_eq!(line(format!("/rtc/v1?join_request={back}")), Ask::Resume);
        assert_eq!(line(format!("/rtc/v1?join_request={new}")), Ask::Join);
        assert_eq!(line("/rtc/validate?reconnect=1".into()), Ask::Other);
        assert_eq!(line("/rtc/v1?join_request=%%%".into()), Ask::Join);
    }

    #[tokio::test]
    async fn a_client_goes_to_the_next_node_when_its_own_is_gone() -> Result<()> {
        let node =
            async |name: &'static [u8]| -> Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let address = listener.local_addr()?;
                let serving = tokio::spawn(async move {
                    let mut open = Vec::new();
                    while let Ok((mut stream, _)) = listener.accept().await {
                        let mut request = [0; 64];
                        let Ok(count) = stream.read(&mut request).await else {
                            continue;
                        };
                        if request[..count].starts_with(b"GET / ") {
                            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
                        } else {
                            let _ = stream.write_all(name).await;
                            open.push(stream);
                        }
                    }
                });
                Ok((address, serving))
            };
        let (first, first_serves) = node(b"one").await?;
        let (second, _second_serves) = node(b"two").await?;
        let fronts = Fronts::open([127, 0, 0, 1].into(), vec![first, second], vec![1]).await?;
        let ask = async || -> Result<(TcpStream, Vec<u8>)> {
            let mut stream = TcpStream::connect(("127.0.0.1", fronts.port(0))).await?;
            stream.write_all(b"GET /rtc HTTP/1.1\r\n\r\n").await?;
            let mut name = vec![0; 3];
            stream.read_exact(&mut name).await?;
            Ok((stream, name))
        };
        let (mut open, name) = ask().await?;
        assert_eq!(name, b"one");
        let killed = now_ms();
        first_serves.abort();
        let broken = tokio::time::timeout(Duration::from_secs(5), open.read(&mut [0; 8])).await?;
        assert!(broken.is_err() || broken.is_ok_and(|count| count == 0));
        assert_eq!(ask().await?.1, b"two");
        assert!(
            fronts
                .knocks_since(killed)
                .iter()
                .all(|knock| knock.node == 2)
        );
        Ok(())
    }
}
