//! Media and data probes: one client publishes at one node, another receives at the next, and both go on
//! through whatever happens, resuming as SDKs do and joining anew where that fails.
//!
//! Every packet carries its stream, number, time of sending and a digest of them. How often packets are sent is
//! the resolution of every gap: 200 a second are what two cores carry besides the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;
use testkit::client::{Client, Options, Packet, Sender};
use testkit::token;
use tokio::sync::watch;

use super::registers::Registers;
use super::{Shift, on_thread};
use crate::check::data::Received;
use crate::check::media::{Arrival, Stream};
use crate::net::End;
use crate::net::emulator::Chance;

/// A receiver that hears nothing for so long joins anew: its connection is gone for good.
const SILENT_MAX: Duration = Duration::from_secs(6);
/// RTP time units of a millisecond at 48 kHz.
const UNITS_PER_MS: u64 = 48;
/// How long a client may take to connect.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Bytes of a packet: about those of speech.
const PAYLOAD: usize = 60;

/// What a probe brings home.
#[derive(Default)]
pub(crate) struct Probed {
    pub(crate) stream: Stream,
    pub(crate) data: Vec<Received>,
    /// Sessions that went on at another connection.
    pub(crate) resumes: u64,
    /// Sessions that were lost and begun anew.
    pub(crate) rejoins: u64,
}

/// A running probe.
pub(crate) type Probe = JoinHandle<Result<Probed>>;

/// How far a probe's messages have come, and whether its media does.
#[derive(Default, Debug)]
pub(crate) struct Progress {
    /// When the last media packet came, on the history's clock.
    heard: AtomicU64,
    sent: AtomicU64,
    read: AtomicU64,
    /// What is sent later need not be waited for.
    due: AtomicU64,
}

impl Progress {
    /// The time for new faults is over: what has been sent so far is due. The publisher goes on, so that a reader that
    /// has begun anew since gets something as well.
    pub(crate) fn close(&self) {
        self.due
            .store(self.sent.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether media has come since `time`.
    pub(crate) fn is_heard_since(&self, time: u64) -> bool {
        self.heard.load(Ordering::Relaxed) > time
    }

    /// Whether something has been read that was sent since.
    pub(crate) fn is_all_read(&self) -> bool {
        self.read.load(Ordering::Relaxed) > self.due.load(Ordering::Relaxed)
    }

    /// How far the messages have come.
    pub(crate) fn told(&self) -> String {
        let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
        format!(
            "{} of {} messages had been sent when the faults were over, the last that was read is {}",
            number(&self.due),
            number(&self.sent),
            number(&self.read)
        )
    }
}

/// A client of `node` at `end`, that asks all others for its session when it loses that node.
pub(crate) fn options(urls: &[(u64, String)], node: u64, token: String, end: End) -> Options {
    let own = urls.iter().position(|(id, _)| *id == node).unwrap_or(0);
    let in_turn: Vec<String> = (0..urls.len())
        .map(|step| urls[(own + step) % urls.len()].1.clone())
        .collect();
    let mut options = Options::new(&in_turn[0], token);
    options.bind = format!("{}:0", end.address());
    options.resume_at = in_turn;
    options.timeout = CONNECT_MAX;
    // What a balancer's health checks do for SDKs, whose own pings are slower.
    options.ping_every = Some(Duration::from_millis(200));
    options.silence_max = Duration::from_millis(700);
    options
}

/// What a probe is made of.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) shift: Shift,
    pub(crate) registers: Arc<Registers>,
    pub(crate) urls: Vec<(u64, String)>,
    /// From 0; tells streams apart.
    pub(crate) number: u32,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) seed: u64,
    pub(crate) hz: u32,
    /// Reliable messages a second.
    pub(crate) message_hz: u32,
    pub(crate) progress: Arc<Progress>,
}

/// The node of those who receive what a publisher at node `from` sends, of so many.
pub(crate) fn reader_of(from: u64, nodes: u64) -> u64 {
    from % nodes + 1
}

/// Starts one.
pub(crate) fn start(setting: Setting) -> std::io::Result<Probe> {
    on_thread(format!("probe-{}", setting.number), move || run(setting))
}

/// The publisher's present session.
type Session = Option<Arc<(Client, Sender)>>;

async fn run(setting: Setting) -> Probed {
    let setting = Arc::new(setting);
    let (tell, session) = watch::channel::<Session>(None);
    let publisher = tokio::spawn(publish(setting.clone(), tell));
    let media = tokio::spawn(send_media(setting.clone(), session.clone()));
    let data = tokio::spawn(send_data(setting.clone(), session));
    let receiver = tokio::spawn(receive(setting.clone()));
    let reader = tokio::spawn(read(setting.clone()));
    let mut probed = Probed::default();
    if let Ok((resumes, rejoins)) = publisher.await {
        probed.resumes += resumes;
        probed.rejoins += rejoins;
    }
    let times = media.await.unwrap_or_default();
    let said = data.await.unwrap_or_default();
    if let Ok(sessions) = reader.await {
        probed.data = judged(&setting, &sessions, said);
    }
    if let Ok(received) = receiver.await {
        probed.resumes += received.resumes;
        probed.rejoins += received.rejoins;
        probed.stream = Stream {
            name: format!("{} to {}", setting.from, setting.to),
            cadence: 1_000_000_000 / u64::from(setting.hz),
            sent: times,
            arrivals: received.arrivals,
        };
    }
    probed
}

impl Setting {
    fn room(&self) -> String {
        format!("probe-{}-{}", self.seed, self.number)
    }

    async fn connect(&self, role: &str, count: u64) -> Result<Client> {
        let (node, end) = match role {
            "publisher" => (self.from, 3 * self.number),
            "receiver" => (self.to, 3 * self.number + 1),
            _ => (self.to, 3 * self.number + 2),
        };
        let identity = self.identity(role, count);
        let token = token::join(&self.room(), &identity, &json!({}));
        // A session that is begun anew comes from another address, so that its packets are not taken for those
        // of the one before.
        let end = End::client(usize::try_from(end)? + 15 * (usize::try_from(count)? % 6));
        // After a loss the next node is as good as the first.
        let step = usize::try_from(count)? % self.urls.len();
        let own = self
            .urls
            .iter()
            .position(|(id, _)| *id == node)
            .unwrap_or(0);
        let node = self.urls[(own + step) % self.urls.len()].0;
        let mut wanted = options(&self.urls, node, token, end);
        // Messages come without a subscription.
        wanted.auto_subscribe = role != "reader";
        Client::connect(wanted).await
    }

    fn identity(&self, role: &str, count: u64) -> String {
        format!("{role}-{}-{}-{count}", self.seed, self.number)
    }
}

/// Keeps a publisher in the room. Gives how often it resumed and joined anew.
async fn publish(setting: Arc<Setting>, tell: watch::Sender<Session>) -> (u64, u64) {
    let (mut count, mut resumes, mut joined) = (0, 0, 0);
    while !setting.shift.is_released() {
        let connected = setting.connect("publisher", count).await;
        count += 1;
        let Ok(client) = connected else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let identity = setting.identity("publisher", count - 1);
        if let Ok((_, sender)) = client.publish("probe", "audio/opus").await {
            joined += 1;
            setting.registers.add_person(&identity, &setting.room());
            let session = Arc::new((client, sender));
            tell.send_replace(Some(session.clone()));
            while session.0.is_connected() && !setting.shift.is_released() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            resumes += u64::from(session.0.resumes());
            setting.registers.remove_person(&identity);
            tell.send_replace(None);
            if session.0.is_connected() {
                say_goodbye(&session.0).await;
            }
        }
    }
    (resumes, joined.max(1) - 1)
}

async fn say_goodbye(client: &Client) {
    let leave = livekit_protocol::LeaveRequest::default();
    let leave = livekit_protocol::signal_request::Message::Leave(leave);
    let _ = client.ask(leave).await;
}

/// Sends packets in time. Gives when each was sent, by number.
async fn send_media(setting: Arc<Setting>, session: watch::Receiver<Session>) -> Vec<u64> {
    let history = setting.shift.history.clone();
    let mut times = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / setting.hz);
    while !setting.shift.is_released() {
        tick.tick().await;
        let Some(session) = session.borrow().clone() else {
            continue;
        };
        let (number, now) = (times.len() as u64, history.now());
        times.push(now);
        let timestamp = (now / 1_000_000 * UNITS_PER_MS) as u32;
        let payload = payload(setting.number, number, now);
        let _ = session.1.write(timestamp, false, payload).await;
    }
    times
}

fn digest(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_be_bytes(word)
    });
    words.fold(0x0dd0_5eed, |sum, word| Chance(sum ^ word).next())
}

fn payload(stream: u32, number: u64, now: u64) -> Bytes {
    let mut bytes = vec![0xf8];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.extend(now.to_be_bytes());
    let digest = digest(&bytes);
    bytes.extend(digest.to_be_bytes());
    bytes.resize(PAYLOAD, 0);
    Bytes::from(bytes)
}

fn arrival(stream: u32, packet: &Packet, now: u64) -> Arrival {
    let bytes = &packet.payload;
    let part = |from: usize| {
        let part = bytes
            .get(from..from + 8)
            .and_then(|part| part.try_into().ok());
        part.map_or(0, u64::from_be_bytes)
    };
    let is_whole = bytes.len() == PAYLOAD && digest(&bytes[..21]) == part(21);
    let is_own = bytes.get(1..5) == Some(&stream.to_be_bytes()[..]);
    Arrival {
        number: part(5),
        sent: part(13),
        at: now,
        ssrc: packet.ssrc,
        sequence: packet.sequence,
        sound: is_whole && is_own,
    }
}

/// What a publisher said.
#[derive(Default)]
struct Said {
    /// Of each session, the first number and the last that was accepted.
    bounds: Vec<(u64, u64)>,
    /// When each message was handed over, by number from 1.
    times: Vec<u64>,
}

/// Sends numbered messages, from 1. A session of the publisher begins new bounds.
async fn send_data(setting: Arc<Setting>, session: watch::Receiver<Session>) -> Said {
    let sent = &setting.progress.sent;
    let history = &setting.shift.history;
    let Said {
        mut bounds,
        mut times,
    } = Said::default();
    let mut known: Option<Arc<(Client, Sender)>> = None;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / setting.message_hz);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !setting.shift.is_released() {
        tick.tick().await;
        let Some(session) = session.borrow().clone() else {
            known = None;
            continue;
        };
        let number = sent.load(Ordering::Relaxed) + 1;
        let is_new = known
            .as_ref()
            .is_none_or(|known| !Arc::ptr_eq(known, &session));
        if is_new {
            bounds.push((number, number - 1));
        }
        known = Some(session.clone());
        let text = format!("{}:{number}", setting.number);
        sent.store(number, Ordering::Relaxed);
        times.push(history.now());
        match session.0.send(text.as_bytes(), "probe", true).await {
            Ok(()) => {
                if let Some(last) = bounds.last_mut() {
                    last.1 = number;
                }
            }
            // The sender was told: nothing is promised of it, nor of what it does next.
            Err(_) => bounds.push((number + 1, number)),
        }
    }
    Said { bounds, times }
}

/// What a receiver of media got.
#[derive(Default)]
struct Record {
    arrivals: Vec<Arrival>,
    resumes: u64,
    rejoins: u64,
}

/// Keeps a receiver of media in the room.
async fn receive(setting: Arc<Setting>) -> Record {
    let history = setting.shift.history.clone();
    let mut record = Record::default();
    let (mut count, mut joined) = (0, 0_u64);
    while !setting.shift.is_released() {
        let connected = setting.connect("receiver", count).await;
        count += 1;
        let Ok(mut client) = connected else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        joined += 1;
        let mut heard = tokio::time::Instant::now();
        while client.is_connected() && !setting.shift.is_released() {
            tokio::select! {
                Some(packet) = client.packets.recv() => {
                    heard = tokio::time::Instant::now();
                    let now = history.now();
                    setting.progress.heard.store(now, Ordering::Relaxed);
                    record.arrivals.push(arrival(setting.number, &packet, now));
                }
                Some(_) = client.messages.recv() => {}
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            if heard.elapsed() > SILENT_MAX {
                break;
            }
        }
        record.resumes += u64::from(client.resumes());
        client.leave().await;
    }
    record.rejoins = joined.max(1) - 1;
    record
}

/// What one session of a reader got.
struct ReaderSession {
    /// Numbers that were sent by the time when it began.
    begun: u64,
    numbers: Vec<u64>,
}

/// Keeps a reader of messages in the room. The SCTP of the `webrtc` crate does not follow a node that goes on
/// with another's association, which skips numbers; so a reader that has resumed begins anew, and what is
/// promised to it is what comes within one session. The way from the publisher has no such bounds.
async fn read(setting: Arc<Setting>) -> Vec<ReaderSession> {
    let progress = &setting.progress;
    let mut sessions = Vec::new();
    let mut count = 0;
    while !setting.shift.is_released() {
        let connected = setting.connect("reader", count).await;
        count += 1;
        let Ok(mut client) = connected else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut session = ReaderSession {
            begun: progress.sent.load(Ordering::Relaxed),
            numbers: Vec::new(),
        };
        while client.is_connected() && client.resumes() == 0 && !setting.shift.is_released() {
            tokio::select! {
                Some(message) = client.messages.recv() => {
                    // It has resumed while this came: what is missing before it is nobody's fault.
                    if client.resumes() > 0 {
                        break;
                    }
                    if let Some(number) = number(&message) {
                        session.numbers.push(number);
                        progress.read.fetch_max(number, Ordering::Relaxed);
                    }
                }
                Some(_) = client.packets.recv() => {}
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
        sessions.push(session);
        client.leave().await;
    }
    sessions
}

/// Messages after which a reader that has got none has lost some: ten seconds' worth.
const DEAF_MAX: u64 = 200;

/// What each session of the reader must have of each session of the publisher: from the first message that it
/// got, up to the last one that it got, without a hole; of the last sessions all that is due.
fn judged(setting: &Setting, sessions: &[ReaderSession], said: Said) -> Vec<Received> {
    let (bounds, sent): (_, Arc<[u64]>) = (&said.bounds, said.times.into());
    let due = setting.progress.due.load(Ordering::Relaxed);
    let mut all = Vec::new();
    for (at, session) in sessions.iter().enumerate() {
        for (number, (first, to)) in bounds.iter().enumerate() {
            let is_last = at + 1 == sessions.len() && number + 1 == bounds.len();
            let next = bounds.get(number + 1).map_or(u64::MAX, |(first, _)| *first);
            let numbers: Vec<u64> = session
                .numbers
                .iter()
                .copied()
                .filter(|one| (*first..next).contains(one))
                .collect();
            let last = numbers.iter().copied().max().unwrap_or(0);
            let until = if is_last { due } else { last };
            let to = until.min(*to);
            // It is there once something has come; and after so many messages something must have.
            let heard = numbers.iter().copied().min();
            let from = (*first).max(heard.unwrap_or(session.begun + DEAF_MAX));
            all.push(Received {
                stream: format!("data {} to {}", setting.from, setting.to),
                numbers,
                promised: (from <= to).then_some((from, to)),
                sent: Arc::clone(&sent),
            });
        }
    }
    all
}

fn number(message: &testkit::client::Message) -> Option<u64> {
    let text = std::str::from_utf8(message.user()?).ok()?;
    text.split_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_tells_what_it_is_and_an_altered_one_that() {
        let packet = |payload: Bytes| Packet {
            track: String::new(),
            ssrc: 9,
            sequence: 3,
            timestamp: 0,
            marker: false,
            payload,
            at: std::time::Instant::now(),
        };
        let whole = payload(2, 77, 1234);
        let seen = arrival(2, &packet(whole.clone()), 2000);
        assert!(seen.sound && seen.number == 77 && seen.sent == 1234 && seen.at == 2000);
        assert!(!arrival(1, &packet(whole.clone()), 2000).sound);
        for at in 1..29 {
            let mut altered = whole.to_vec();
            altered[at] ^= 1;
            assert!(!arrival(2, &packet(Bytes::from(altered)), 2000).sound);
        }
        assert!(!arrival(2, &packet(whole.slice(..20)), 2000).sound);
    }
}
