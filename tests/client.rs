//! A LiveKit client for tests and load: v0 signalling (`/rtc`, two peer connections) on the `webrtc`
//! crate, reporting every RTP packet and data message with its arrival time.
//!
//! Feeds on `signal` (WebSocket) and `peer` (peer connections); used by `tests/e2e`, `tests/load` and
//! `jepsen`. One task per client owns the negotiation.

mod peer;
mod resume;
mod signal;
mod tap;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use livekit_protocol as proto;
use proto::signal_request::Message as Ask;
use proto::signal_response::Message as Told;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use webrtc::data_channel::DataChannel;

pub use peer::Sender;
pub use tap::{Reading, Tap};

/// One RTP packet as it arrived.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Track sid, from the SDP's msid.
    pub track: String,
    /// Synchronisation source.
    pub ssrc: u32,
    /// RTP sequence number.
    pub sequence: u16,
    /// RTP timestamp.
    pub timestamp: u32,
    /// RTP marker.
    pub marker: bool,
    /// Payload.
    pub payload: Bytes,
    /// When.
    pub at: Instant,
}

/// One data message as it arrived.
#[derive(Clone, Debug)]
pub struct Message {
    /// Came over `_reliable`.
    pub reliable: bool,
    /// The packet.
    pub packet: proto::DataPacket,
    /// When.
    pub at: Instant,
}

impl Message {
    /// What an application said; `None` for packets of other kinds.
    #[must_use]
    pub fn user(&self) -> Option<&[u8]> {
        match &self.packet.value {
            Some(proto::data_packet::Value::User(user)) => Some(&user.payload),
            _ => None,
        }
    }
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Base URL of a node, `http://host:port`.
    pub url: String,
    /// Join token.
    pub token: String,
    /// Wants everything by itself.
    pub auto_subscribe: bool,
    /// Local addresses to gather from, e.g. `127.0.0.1:0`.
    pub bind: String,
    /// NACK, reports and bandwidth feedback.
    pub feedback: bool,
    /// Opens the publisher connection and its data channels.
    pub publishes: bool,
    /// Keeps its connections when the signal connection breaks, and does not ask for another.
    pub stays: bool,
    /// Counts media where it arrives and decrypts only samples of it: for load.
    pub tap: Option<Arc<Tap>>,
    /// How long to wait for the join and for the transport.
    pub timeout: Duration,
    /// Base URLs to ask in turn for the session when the signal connection is lost, as SDKs ask their one URL,
    /// which leads to whichever node answers. Without any the session ends with the connection.
    pub resume_at: Vec<String>,
    /// How long the server may say nothing before the signal connection counts as lost.
    pub silence_max: Duration,
    /// How often to ping; none: as often as the server asks for.
    pub ping_every: Option<Duration>,
}

impl Options {
    /// A client on loopback with everything on.
    #[must_use]
    pub fn new(url: &str, token: String) -> Self {
        Self {
            url: url.to_owned(),
            token,
            auto_subscribe: true,
            bind: "127.0.0.1:0".to_owned(),
            feedback: true,
            publishes: true,
            stays: false,
            tap: None,
            timeout: Duration::from_secs(15),
            resume_at: Vec::new(),
            silence_max: Duration::from_secs(15),
            ping_every: None,
        }
    }
}

/// A connected participant.
pub struct Client {
    /// What the server said first.
    pub join: Box<proto::JoinResponse>,
    /// RTP packets, dropped when nobody reads and 65,536 wait.
    pub packets: mpsc::Receiver<Packet>,
    /// Data messages, with the same limit.
    pub messages: mpsc::Receiver<Message>,
    responses: broadcast::Sender<Arc<Told>>,
    asks: mpsc::Sender<Ask>,
    publishes: mpsc::Sender<Publish>,
    channels: peer::Channels,
    resumes: Arc<AtomicU32>,
    driver: JoinHandle<Result<()>>,
}

struct Publish {
    request: proto::AddTrackRequest,
    mime: String,
    done: oneshot::Sender<Result<(proto::TrackInfo, Sender)>>,
}

const QUEUE: usize = 65_536;

impl Client {
    /// Joins, and returns once the join response is in and the subscriber connection is up.
    ///
    /// # Errors
    /// The HTTP status and text of a refusal, or what did not happen within the timeout.
    pub async fn connect(options: Options) -> Result<Self> {
        let timeout = options.timeout;
        let (socket, join) = tokio::time::timeout(timeout, signal::open(&options))
            .await
            .context("no answer to the join")??;
        let (packet_in, packets) = mpsc::channel(QUEUE);
        let (message_in, messages) = mpsc::channel(QUEUE);
        let (responses, _) = broadcast::channel(1024);
        let (asks, ask_out) = mpsc::channel(256);
        let (publishes, publish_out) = mpsc::channel(16);
        let (up, is_up) = oneshot::channel();
        let peers = peer::Peers::new(&options, packet_in, message_in, up).await?;
        let channels = peers.channels.clone();
        let resumes = Arc::new(AtomicU32::new(0));
        let asked = Duration::from_secs(u64::try_from(join.ping_interval.max(1)).unwrap_or(5));
        let ping_every = options.ping_every.unwrap_or(asked);
        let sid = join.participant.as_ref().map(|own| own.sid.clone());
        let driver = tokio::spawn(drive(Driver {
            offers: options.publishes,
            options,
            sid: sid.unwrap_or_default(),
            resumes: resumes.clone(),
            heard_at: Instant::now(),
            up_by: None,
            socket,
            peers,
            responses: responses.clone(),
            asks: ask_out,
            publishes: publish_out,
            waiting: HashMap::new(),
            ping: tokio::time::interval(ping_every),
        }));
        let client = Self {
            join,
            packets,
            messages,
            responses,
            asks,
            publishes,
            channels,
            resumes,
            driver,
        };
        let up = tokio::time::timeout(timeout, is_up)
            .await
            .context("the subscriber connection did not come up")?;
        if up.is_err() {
            client.driver.await.context("the session's task")??;
            bail!("the session ended before its connection came up");
        }
        Ok(client)
    }

    /// A stream of everything the server says from now on.
    #[must_use]
    pub fn responses(&self) -> broadcast::Receiver<Arc<Told>> {
        self.responses.subscribe()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn ask(&self, ask: Ask) -> Result<()> {
        self.asks
            .send(ask)
            .await
            .ok()
            .context("the session has ended")
    }

    /// Whether the session is still driven.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !self.driver.is_finished()
    }

    /// How often it has got its session back after it had lost its signal connection.
    #[must_use]
    pub fn resumes(&self) -> u32 {
        self.resumes.load(Ordering::Relaxed)
    }

    /// Publishes one stream of RTP packets; `mime` is `audio/opus` or `video/vp8`.
    ///
    /// # Errors
    /// If the server refuses or does not answer within ten seconds.
    pub async fn publish(&self, name: &str, mime: &str) -> Result<(proto::TrackInfo, Sender)> {
        let audio = mime.starts_with("audio/");
        let request = proto::AddTrackRequest {
            cid: format!("cid-{name}-{}", rand::random::<u32>()),
            name: name.to_owned(),
            r#type: if audio {
                proto::TrackType::Audio
            } else {
                proto::TrackType::Video
            } as i32,
            source: if audio {
                proto::TrackSource::Microphone
            } else {
                proto::TrackSource::Camera
            } as i32,
            width: if audio { 0 } else { 640 },
            height: if audio { 0 } else { 360 },
            ..Default::default()
        };
        let (done, published) = oneshot::channel();
        self.publishes
            .send(Publish {
                request,
                mime: mime.to_owned(),
                done,
            })
            .await
            .ok()
            .context("the session has ended")?;
        tokio::time::timeout(Duration::from_secs(10), published)
            .await
            .context("the track was not published within 10 s")?
            .context("the session ended")?
    }

    /// Sends a user packet to everybody in the room.
    ///
    /// # Errors
    /// If the channel does not open within ten seconds or the session has ended.
    pub async fn send(&self, payload: &[u8], topic: &str, reliable: bool) -> Result<()> {
        self.channels.send(payload, topic, reliable).await
    }

    /// Leaves politely and waits for the end.
    pub async fn leave(self) {
        let leave = proto::LeaveRequest {
            reason: proto::DisconnectReason::ClientInitiated as i32,
            ..Default::default()
        };
        let _ = self.ask(Ask::Leave(leave)).await;
        let abort = self.driver.abort_handle();
        if tokio::time::timeout(Duration::from_secs(3), self.driver)
            .await
            .is_err()
        {
            abort.abort();
        }
    }
}

struct Driver {
    socket: signal::Socket,
    peers: peer::Peers,
    responses: broadcast::Sender<Arc<Told>>,
    asks: mpsc::Receiver<Ask>,
    publishes: mpsc::Receiver<Publish>,
    waiting: HashMap<String, Publish>,
    ping: tokio::time::Interval,
    offers: bool,
    options: Options,
    sid: String,
    resumes: Arc<AtomicU32>,
    /// When the server said something last.
    heard_at: Instant,
    /// By when the connections have to be up again after a resume.
    up_by: Option<Instant>,
}

/// Owns the negotiation: server messages, requests and publications, one at a time.
async fn drive(mut driver: Driver) -> Result<()> {
    // The data channels of the publisher connection need an offer of their own at the start.
    if driver.offers {
        let offer = driver.peers.offer().await?;
        driver.socket.send(Ask::Offer(offer)).await?;
    }
    let outcome = loop {
        match driver.step().await {
            Step::Goes => {}
            Step::Left => break Ok(()),
            Step::Ended(why) => break Err(why),
            // Until the client is dropped.
            Step::Lost(_) if driver.options.stays => std::future::pending().await,
            Step::Lost(why) if driver.options.resume_at.is_empty() => break why,
            Step::Lost(_) => {
                if let Err(failure) = driver.resume().await {
                    break Err(failure);
                }
            }
        }
    };
    driver.socket.close().await;
    driver.peers.close().await;
    outcome
}

/// What one thing that happened to a session means for it.
enum Step {
    Goes,
    /// By our own wish.
    Left,
    /// For good.
    Ended(anyhow::Error),
    /// The signal connection is gone; with the reason, if it broke.
    Lost(Result<()>),
}

impl Step {
    fn sent(outcome: Result<()>) -> Self {
        match outcome {
            Ok(()) => Self::Goes,
            Err(failure) => Self::Lost(Err(failure)),
        }
    }
}

impl Driver {
    /// One thing after the other: what the server says, what is asked for, the time.
    async fn step(&mut self) -> Step {
        tokio::select! {
            told = self.socket.next() => match told {
                Ok(Some(told)) => {
                    self.heard_at = Instant::now();
                    self.take(told).await
                }
                Ok(None) => Step::Lost(Ok(())),
                Err(failure) => Step::Lost(Err(failure)),
            },
            Some(ask) = self.asks.recv() => {
                let leaving = matches!(ask, Ask::Leave(_));
                match self.socket.send(ask).await {
                    Ok(()) if leaving => Step::Left,
                    outcome => Step::sent(outcome),
                }
            }
            Some(publish) = self.publishes.recv() => {
                let request = publish.request.clone();
                self.waiting.insert(request.cid.clone(), publish);
                Step::sent(self.socket.send(Ask::AddTrack(request)).await)
            }
            _ = self.ping.tick() => {
                if self.heard_at.elapsed() > self.options.silence_max {
                    return Step::Lost(Err(anyhow::anyhow!("the server says nothing")));
                }
                if self.is_overdue() {
                    return Step::Lost(Err(anyhow::anyhow!("no connection after a resume")));
                }
                if self.peers.is_stuck().await {
                    return Step::Ended(anyhow::anyhow!("the server takes no messages any more"));
                }
                let ping = Ask::PingReq(proto::Ping::default());
                Step::sent(self.socket.send(ping).await)
            }
        }
    }

    async fn take(&mut self, told: Told) -> Step {
        let leave = match &told {
            Told::Leave(leave) => Some(leave.clone()),
            _ => None,
        };
        if let Err(failure) = self.hear(told).await {
            return Step::Ended(failure);
        }
        match leave {
            None => Step::Goes,
            Some(leave) if leave.action() == proto::leave_request::Action::Resume => {
                Step::Lost(Ok(()))
            }
            Some(leave) => Step::Ended(anyhow::anyhow!("the server ended the session: {leave:?}")),
        }
    }

    async fn hear(&mut self, told: Told) -> Result<()> {
        match &told {
            Told::Offer(offer) => {
                let answer = self.peers.answer(offer).await?;
                self.socket.send(Ask::Answer(answer)).await?;
            }
            Told::Answer(answer) => self.peers.answered(answer).await?,
            Told::Trickle(trickle) => self.peers.trickled(trickle).await?,
            Told::TrackPublished(published) => {
                if let Some(waiting) = self.waiting.remove(&published.cid) {
                    let Some(track) = published.track.clone() else {
                        bail!("track_published without a track");
                    };
                    match self.peers.add_track(&waiting.mime, &published.cid).await {
                        Ok((sender, offer)) => {
                            self.peers.note_published(published.clone());
                            self.socket.send(Ask::Offer(offer)).await?;
                            let _ = waiting.done.send(Ok((track, sender)));
                        }
                        Err(failure) => drop(waiting.done.send(Err(failure))),
                    }
                }
            }
            Told::RequestResponse(refusal)
                if refusal.reason() != proto::request_response::Reason::Ok =>
            {
                for (_, waiting) in self.waiting.drain() {
                    let _ = waiting
                        .done
                        .send(Err(anyhow::anyhow!("refused: {}", refusal.message)));
                }
            }
            _ => {}
        }
        let _ = self.responses.send(Arc::new(told));
        Ok(())
    }
}

/// A data channel, shared between the peers and the senders.
type SharedChannel = Arc<dyn DataChannel>;
