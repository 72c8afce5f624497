//! A session that has lost its signal connection and asks for itself back, at whichever node answers,
//! as LiveKit's SDKs do: `reconnect=1`, `sync_state`, an offer with new ICE credentials, and what the
//! server has not received yet once more.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use livekit_protocol as proto;
use proto::signal_request::Message as Ask;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Driver, signal};

/// How long it is tried: SDKs give up after about so long and join anew.
const RESUME_MAX: Duration = Duration::from_secs(10);
/// One node may take so long to answer.
const ANSWER_MAX: Duration = Duration::from_millis(1000);
/// And so long to say that it takes clients.
const CHECK_MAX: Duration = Duration::from_millis(300);
/// How long the connections may take to come up again after a resume before it counts as failed. SDKs give them
/// fifteen seconds; media is to be measured here, not their patience.
const UP_MAX: Duration = Duration::from_secs(3);
/// Between two rounds over all nodes.
const PAUSE: Duration = Duration::from_millis(100);
/// Reliable messages kept to be sent again.
const SENT_MAX: usize = 1000;

/// What the server must be told of a session.
pub(super) struct State {
    /// The subscriber connection's last offer and answer.
    pub(super) offer: Option<proto::SessionDescription>,
    pub(super) answer: Option<proto::SessionDescription>,
    pub(super) published: Vec<proto::TrackPublishedResponse>,
    received: Received,
    opened: Opened,
}

impl State {
    pub(super) fn new(received: Received, opened: Opened) -> Self {
        Self {
            opened,
            offer: None,
            answer: None,
            published: Vec::new(),
            received,
        }
    }
}

/// Number of the last reliable message of each sender. The lock has two owners: the channel's task and the
/// session's, which tells it.
#[derive(Clone, Default)]
pub(super) struct Received(Arc<Mutex<HashMap<String, u32>>>);

impl Received {
    /// Notes a reliable message; false if it was sent again and is here already.
    pub(super) fn is_new(&self, packet: &proto::DataPacket) -> bool {
        if packet.sequence == 0 || packet.participant_sid.is_empty() {
            return true;
        }
        let mut last = self.0.lock().expect("no holder panics");
        let last = last.entry(packet.participant_sid.clone()).or_insert(0);
        let is_new = packet.sequence > *last;
        *last = packet.sequence.max(*last);
        is_new
    }

    fn states(&self) -> Vec<proto::DataChannelReceiveState> {
        let last = self.0.lock().expect("no holder panics");
        last.iter()
            .map(|(sid, sequence)| proto::DataChannelReceiveState {
                publisher_sid: sid.clone(),
                last_seq: *sequence,
            })
            .collect()
    }
}

/// Channels that the server has opened on the subscriber connection: label and number. Two owners, as above.
#[derive(Clone, Default)]
pub(super) struct Opened(Arc<Mutex<HashMap<String, u32>>>);

impl Opened {
    pub(super) fn note(&self, label: &str, number: u32) {
        let mut opened = self.0.lock().expect("no holder panics");
        opened.insert(label.to_owned(), number);
    }

    fn infos(&self) -> Vec<proto::DataChannelInfo> {
        let opened = self.0.lock().expect("no holder panics");
        let info = |(label, id): (&String, &u32)| proto::DataChannelInfo {
            label: label.clone(),
            id: *id,
            target: proto::SignalTarget::Subscriber as i32,
        };
        opened.iter().map(info).collect()
    }
}

/// The last reliable messages that were sent.
#[derive(Clone, Default)]
pub(super) struct Sent(Arc<Mutex<VecDeque<Numbered>>>);

/// A message with its number.
type Numbered = (u32, Vec<u8>);

impl Sent {
    pub(super) fn add(&self, sequence: u32, bytes: &[u8]) {
        let mut sent = self.0.lock().expect("no holder panics");
        sent.push_back((sequence, bytes.to_vec()));
        if sent.len() > SENT_MAX {
            sent.pop_front();
        }
    }

    pub(super) fn after(&self, sequence: u32) -> Vec<Vec<u8>> {
        let sent = self.0.lock().expect("no holder panics");
        let later = sent.iter().filter(|(number, _)| *number > sequence);
        later.map(|(_, bytes)| bytes.clone()).collect()
    }
}

/// Whether a node says that it takes clients, as a balancer in front of it would ask.
async fn is_well(url: &str) -> bool {
    let asked = async {
        let address = url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.ok()?;
        head.ends_with(b" 200").then_some(())
    };
    let answered = tokio::time::timeout(CHECK_MAX, asked).await;
    matches!(answered, Ok(Some(())))
}

impl Driver {
    /// Gets the session back, or says why it is lost.
    pub(super) async fn resume(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < RESUME_MAX {
            for url in self.options.resume_at.clone() {
                if !is_well(&url).await {
                    last = Some(format!("{url} takes nobody"));
                    continue;
                }
                let asked = signal::reopen(&self.options, &url, &self.sid);
                match tokio::time::timeout(ANSWER_MAX, asked).await {
                    Ok(Ok(Some((socket, reconnect)))) => {
                        self.socket = socket;
                        match self.go_on(&reconnect).await {
                            Ok(()) => return Ok(()),
                            Err(failure) => last = Some(format!("{failure:#}")),
                        }
                    }
                    // A node that does not know of the session yet may be behind the others.
                    Ok(Ok(None)) => last = Some("the session is not there".to_owned()),
                    Ok(Err(failure)) => last = Some(format!("{failure:#}")),
                    Err(_) => last = Some("no answer".to_owned()),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("not resumed within {RESUME_MAX:?}: {last:?}")
    }

    /// Whether a resume has failed: its time is over, and a connection is not up.
    pub(super) fn is_overdue(&mut self) -> bool {
        if self.up_by.is_none_or(|by| Instant::now() < by) {
            return false;
        }
        self.up_by = None;
        !self.peers.are_up()
    }

    async fn go_on(&mut self, reconnect: &proto::ReconnectResponse) -> Result<()> {
        self.heard_at = Instant::now();
        self.up_by = Some(self.heard_at + UP_MAX);
        let state = &self.peers.state;
        let mut data_channels = self.peers.channels.infos();
        data_channels.extend(state.opened.infos());
        let sync = proto::SyncState {
            answer: state.answer.clone(),
            offer: state.offer.clone(),
            publish_tracks: state.published.clone(),
            data_channels,
            datachannel_receive_states: state.received.states(),
            ..proto::SyncState::default()
        };
        self.socket.send(Ask::SyncState(sync)).await?;
        if self.offers {
            let offer = self.peers.offer_anew().await?;
            self.socket.send(Ask::Offer(offer)).await?;
        }
        let channels = self.peers.channels.clone();
        let after = reconnect.last_message_seq;
        // The channel may not carry anything before the connection is up again.
        tokio::spawn(async move { channels.send_again(after).await });
        self.resumes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
