//! An association continued by a server that knows nothing of it: against dcsctp, which is what
//! Chromium and the native SDKs have, and against this crate's own client.

use dcsctp::api::{
    DcSctpSocket, Message as DcMessage, Options, PpId, SendOptions, Socket, SocketEvent,
    SocketTime, StreamId,
};

use super::*;

pub(super) const DELAY: Duration = Duration::from_millis(10);
const DCEP: u32 = 50;
pub(super) const BINARY: u32 = 53;

/// A browser's association.
pub(super) struct Browser {
    pub(super) socket: Socket,
    start: Instant,
    /// A moment to stop at, besides those of the association.
    wake: Option<Instant>,
    resets: Vec<StreamId>,
    pub(super) restarts: u32,
    pub(super) received: Vec<(u16, Vec<u8>)>,
}

impl Browser {
    pub(super) fn new(start: Instant) -> Self {
        let mut socket = Socket::new("browser", &Options::default());
        socket.connect();
        Self {
            socket,
            start,
            wake: None,
            resets: Vec::new(),
            restarts: 0,
            received: Vec::new(),
        }
    }

    pub(super) fn send(&mut self, stream: u16, ppid: u32, payload: &[u8]) {
        self.send_with(stream, ppid, payload, None);
    }

    /// Unordered and never sent twice.
    pub(super) fn send_lossy(&mut self, stream: u16, payload: &[u8]) {
        self.send_with(stream, BINARY, payload, Some(0));
    }

    fn send_with(&mut self, stream: u16, ppid: u32, payload: &[u8], lossy: Option<u16>) {
        let message = DcMessage::new(StreamId(stream), PpId(ppid), payload.to_vec());
        let options = SendOptions {
            unordered: lossy.is_some(),
            lifetime: None,
            max_retransmissions: lossy,
            lifecycle_id: None,
        };
        self.socket.send(message, &options).expect("sends");
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(at);
    }

    /// Closes a channel.
    pub(super) fn reset(&mut self, stream: u16) {
        self.socket.reset_streams(&[StreamId(stream)]).expect("can");
    }

    pub(super) fn was_reset(&self, stream: u16) -> bool {
        self.resets.contains(&StreamId(stream))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let at = self.socket.poll_timeout();
        let at =
            (at != SocketTime::infinite_future()).then(|| self.start + (at - SocketTime::zero()));
        at.into_iter().chain(self.wake).min()
    }

    pub(super) fn drive(&mut self, now: Instant) -> Vec<Bytes> {
        self.socket
            .advance_time(SocketTime::zero() + (now - self.start));
        self.wake.take_if(|at| *at <= now);
        let mut packets = Vec::new();
        while let Some(event) = self.socket.poll_event() {
            match event {
                SocketEvent::SendPacket(packet) => packets.push(packet.into()),
                SocketEvent::OnConnectionRestarted() => self.restarts += 1,
                SocketEvent::OnStreamsResetPerformed(ids) => self.resets.extend(ids),
                SocketEvent::OnAborted(kind, reason) => panic!("aborted: {kind:?} {reason}"),
                SocketEvent::OnClosed() => panic!("closed"),
                _ => {}
            }
        }
        while let Some(message) = self.socket.get_next_message() {
            if message.ppid == PpId(BINARY) {
                self.received.push((message.stream_id.0, message.payload));
            }
        }
        packets
    }
}

pub(super) struct Link {
    pub(super) now: Instant,
    pub(super) browser: Browser,
    pub(super) server: Sctp,
    pub(super) wire: VecDeque<(Instant, bool, Bytes)>,
    /// Packets of the server that are still lost on purpose.
    pub(super) losses: usize,
    /// The same of the client.
    pub(super) losses_up: usize,
    /// Share of packets that the network loses, both ways.
    pub(super) loss: f64,
    rng: ChaCha8Rng,
    pub(super) opened: Vec<Channel>,
    pub(super) received: Vec<(Channel, Bytes)>,
}

impl Link {
    fn new() -> Self {
        let now = crate::test_epoch();
        Self {
            now,
            browser: Browser::new(now),
            server: Sctp::new(ChannelPlan::Client, DataLimits::default()),
            wire: VecDeque::new(),
            losses: 0,
            losses_up: 0,
            loss: 0.0,
            rng: ChaCha8Rng::seed_from_u64(1),
            opened: Vec::new(),
            received: Vec::new(),
        }
    }

    pub(super) fn flush(&mut self) {
        let due = self.now + DELAY;
        for packet in self.browser.drive(self.now) {
            if self.losses_up > 0 {
                self.losses_up -= 1;
            } else if !self.rng.random_bool(self.loss) {
                self.wire.push_back((due, true, packet));
            }
        }
        while let Some(packet) = self.server.poll_transmit() {
            if self.losses > 0 {
                self.losses -= 1;
            } else if !self.rng.random_bool(self.loss) {
                self.wire.push_back((due, false, packet));
            }
        }
        while let Some(event) = self.server.poll_event() {
            match event {
                SctpEvent::Open(channel) => self.opened.push(channel),
                SctpEvent::Data(channel, payload, _) => self.received.push((channel, payload)),
            }
        }
    }

    /// Runs until `done`, which must be within `limit`; gives the time it took.
    pub(super) fn run(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let start = self.now;
        self.flush();
        while !done(self) {
            let next = self.wire.front().map(|(at, ..)| *at);
            let deadlines = [next, self.browser.deadline(), self.server.deadline()];
            let now = deadlines.into_iter().flatten().min().expect("not stuck");
            self.now = self.now.max(now);
            assert!(self.now - start <= limit, "not within {limit:?}");
            while let Some((_, to_server, packet)) =
                self.wire.pop_front_if(|(at, ..)| *at <= self.now)
            {
                if to_server {
                    let _ = self.server.handle(self.now, packet);
                } else {
                    self.browser.socket.handle_input(&packet);
                }
            }
            self.server.handle_timeout(self.now);
            self.flush();
        }
        self.now - start
    }

    /// Connected, with the reliable channel open on stream 2.
    pub(super) fn opened() -> Self {
        let mut link = Self::new();
        link.open(2);
        link.run(Duration::from_secs(1), |link| link.opened.len() == 1);
        link
    }

    /// The client opens the reliable channel on a stream.
    pub(super) fn open(&mut self, stream: u16) {
        let open = Message::DataChannelOpen(DataChannelOpen {
            channel_type: ChannelType::Reliable,
            priority: CHANNEL_PRIORITY_NORMAL,
            reliability_parameter: 0,
            label: label(Channel::Reliable).as_bytes().to_vec(),
            protocol: vec![],
        });
        let open = open.marshal().expect("writes");
        self.browser.send(stream, DCEP, &open);
    }

    /// Another node takes over; nothing of the old one is left.
    fn replace_server(&mut self) {
        self.server = Sctp::new(ChannelPlan::Client, DataLimits::default());
        self.server.revive(
            &[
                (Channel::Reliable, 2),
                // Nonsense of a client is dropped.
                (Channel::Lossy, 2),
                (Channel::DataTrack, u16::MAX),
                (Channel::Reliable, 4),
            ],
            None,
        );
        self.wire.clear();
        self.opened.clear();
        self.received.clear();
    }

    /// Ten messages each way, in order.
    pub(super) fn talk(&mut self) {
        let received = self.browser.received.len();
        for number in 0..10_u8 {
            self.browser.send(2, BINARY, &[number]);
            self.server
                .send(self.now, Channel::Reliable, Bytes::from(vec![number; 3000]))
                .expect("open");
        }
        self.run(Duration::from_secs(2), |link| {
            link.received.len() >= 10 && link.browser.received.len() >= received + 10
        });
        let expected: Vec<_> = (0..10).map(|number| (2, vec![number; 3000])).collect();
        assert_eq!(self.browser.received[received..], expected);
        let expected: Vec<_> = (0..10)
            .map(|number| (Channel::Reliable, Bytes::from(vec![number])))
            .collect();
        assert_eq!(self.received, expected);
    }
}

#[test]
fn a_browsers_channels_live_on_at_another_server() {
    let mut link = Link::opened();
    link.talk();
    for _ in 0..3 {
        let restarts = link.browser.restarts;
        link.replace_server();
        // What is sent meanwhile waits.
        let early = Bytes::from_static(b"early");
        link.server
            .send(link.now, Channel::Reliable, early)
            .expect("waits");
        assert_eq!(link.server.poll_transmit(), None, "no path yet");
        link.server.begin(link.now);
        let took = link.run(Duration::from_secs(1), |link| {
            link.opened == [Channel::Reliable]
        });
        assert_eq!(took, 4 * DELAY, "two round trips");
        link.run(Duration::from_secs(1), |link| {
            link.browser
                .received
                .last()
                .is_some_and(|(stream, message)| *stream == 2 && message == b"early")
        });
        assert_eq!(link.browser.restarts, restarts + 1);
        link.talk();
    }
}

#[test]
fn lost_handshake_packets_are_repeated_soon() {
    for (losses, limit) in [(1, 250), (2, 550), (3, 1200)] {
        let mut link = Link::opened();
        link.replace_server();
        link.losses = losses;
        link.server.begin(link.now);
        link.run(Duration::from_millis(limit), |link| {
            link.opened == [Channel::Reliable]
        });
        link.talk();
    }
    // The second packet of the server, its COOKIE ECHO.
    let mut link = Link::opened();
    link.replace_server();
    link.server.begin(link.now);
    link.flush();
    link.losses = 1;
    link.run(Duration::from_millis(250), |link| {
        link.opened == [Channel::Reliable]
    });
    link.talk();
}

#[test]
fn both_ends_may_begin_at_once() {
    // The client had no association yet when its session moved.
    let mut link = Link::new();
    link.server.revive(&[(Channel::Reliable, 2)], None);
    link.server.begin(link.now);
    link.run(Duration::from_secs(2), |link| {
        link.opened == [Channel::Reliable]
    });
    link.talk();
}

#[test]
fn an_association_that_nobody_answers_is_given_up() {
    let mut link = Link::opened();
    link.replace_server();
    link.server.begin(link.now);
    let mut packets = 0;
    while let Some(at) = link.server.deadline() {
        link.now = link.now.max(at);
        link.server.handle_timeout(link.now);
        while link.server.poll_transmit().is_some() {
            packets += 1;
        }
        assert!(packets < 100);
    }
    assert!(packets > 8, "{packets}");
    assert!(!link.server.is_open(Channel::Reliable));
}

#[test]
fn this_crates_client_takes_a_restart_too() {
    let mut net = Net::opened_by_client(0.0);
    net.server = Sctp::new(ChannelPlan::Client, DataLimits::default());
    net.server
        .revive(&[(Channel::Lossy, 0), (Channel::Reliable, 2)], None);
    net.opened.clear();
    net.server.begin(net.now);
    net.run(|net| net.opened == [Channel::Reliable, Channel::Lossy]);
    net.settle();
    net.client.send(net.now, 2, b"up");
    net.server
        .send(net.now, Channel::Reliable, Bytes::from_static(b"down"))
        .expect("open");
    net.settle();
    assert_eq!(
        net.received,
        [(Channel::Reliable, Bytes::from_static(b"up"))]
    );
    assert_eq!(net.client.received, [(2, Bytes::from_static(b"down"))]);
}
