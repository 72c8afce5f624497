//! Data channels with a client made from rtc-sctp, over a network that loses packets, on a virtual
//! clock, without the DTLS between.

mod continuation;
mod restart;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rtc_sctp::ClientConfig;

use super::*;

/// A client's data channels.
pub(crate) struct Client {
    endpoint: Endpoint,
    association: Association,
    /// The server begins the association anew. rtc-sctp takes that for another one; a client keeps
    /// its channels (RFC 9260 §5.2).
    restarting: Option<(AssociationHandle, Association)>,
    handle: AssociationHandle,
    /// Streams in use, and whether they are reliable.
    streams: Vec<(u16, bool)>,
    pub(crate) restarts: u32,
    pub(crate) out: VecDeque<Bytes>,
    /// Stream and message.
    pub(crate) received: Vec<(u16, Bytes)>,
    /// Stream and label, of what the server opened.
    pub(crate) opened: HashMap<u16, DataChannelOpen>,
    pub(crate) acknowledged: HashSet<u16>,
    pub(crate) connected: bool,
    answers_opens: bool,
    /// Streams that the server opened and that were not acknowledged. The library loses what is
    /// written before its handshake is through.
    unanswered: Vec<u16>,
}

impl Client {
    pub(crate) fn new(now: Instant) -> Self {
        let config = Arc::new(EndpointConfig::new());
        let transport = || TransportConfig::default().with_max_message_size(1024 * 1024);
        let server = Arc::new(ServerConfig::new(transport()));
        let mut endpoint = Endpoint::new(PEER, TransportProtocol::UDP, config, Some(server));
        let config = transport();
        let (handle, association) = endpoint
            .connect(now, ClientConfig::new(config), PEER)
            .expect("starts");
        let mut this = Self {
            endpoint,
            association,
            restarting: None,
            handle,
            streams: Vec::new(),
            restarts: 0,
            out: VecDeque::new(),
            received: Vec::new(),
            opened: HashMap::new(),
            acknowledged: HashSet::new(),
            connected: false,
            answers_opens: true,
            unanswered: Vec::new(),
        };
        this.drive(now);
        this
    }

    pub(crate) fn handle(&mut self, now: Instant, packet: Bytes) {
        match self.endpoint.handle(now, PEER, None, packet) {
            Some((handle, DatagramEvent::AssociationEvent(event))) => match &mut self.restarting {
                Some((new, association)) if *new == handle => association.handle_event(event),
                _ if self.handle == handle => self.association.handle_event(event),
                _ => {}
            },
            Some((handle, DatagramEvent::NewAssociation(association))) => {
                self.restarting = Some((handle, association));
            }
            _ => {}
        }
        self.take_restart(now);
        self.drive(now);
    }

    fn take_restart(&mut self, now: Instant) {
        if let Some((_, association)) = &mut self.restarting {
            collect(now, association, &mut self.out);
        }
        let is_done = |(_, association): &mut (_, Association)| !association.is_handshaking();
        if let Some((handle, association)) = self.restarting.take_if(is_done) {
            self.handle = handle;
            self.association = association;
            self.restarts += 1;
            for (id, reliable) in self.streams.clone() {
                let mut stream = self.association.open_stream(id, Ppi::Binary).expect("new");
                if !reliable {
                    stream
                        .set_reliability_params(true, ReliabilityType::Rexmit, 0)
                        .expect("open");
                }
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.association.poll_timeout()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_some_and(|due| due <= now) {
            self.association.handle_timeout(now);
        }
        self.drive(now);
    }

    /// Opens a channel in-band.
    pub(crate) fn open(&mut self, now: Instant, id: u16, channel: Channel) {
        let reliable = channel == Channel::Reliable;
        self.streams.push((id, reliable));
        let mut stream = self.association.open_stream(id, Ppi::Binary).expect("new");
        if !reliable {
            stream
                .set_reliability_params(true, ReliabilityType::Rexmit, 0)
                .expect("open");
        }
        let channel_type = if reliable {
            ChannelType::Reliable
        } else {
            ChannelType::PartialReliableRexmitUnordered
        };
        let open = Message::DataChannelOpen(DataChannelOpen {
            channel_type,
            priority: CHANNEL_PRIORITY_NORMAL,
            reliability_parameter: 0,
            label: label(channel).as_bytes().to_vec(),
            protocol: vec![],
        });
        write_dcep(now, &mut self.association, id, &open);
        self.drive(now);
    }

    /// Takes an id that both sides know for a channel.
    pub(crate) fn open_negotiated(&mut self, id: u16) {
        self.streams.push((id, id == 100));
        self.association.open_stream(id, Ppi::Binary).expect("new");
    }

    pub(crate) fn send(&mut self, now: Instant, id: u16, message: &[u8]) {
        let mut stream = self.association.stream(id).expect("open");
        stream
            .write_with_ppi(now, message, Ppi::Binary)
            .expect("writes");
        self.drive(now);
    }

    fn drive(&mut self, now: Instant) {
        while let Some(event) = self.association.poll() {
            match event {
                Event::Connected => self.connected = true,
                Event::Stream(StreamEvent::Readable { id }) => self.read(id),
                _ => {}
            }
        }
        if self.answers_opens && self.connected {
            for id in std::mem::take(&mut self.unanswered) {
                let ack = Message::DataChannelAck(DataChannelAck);
                write_dcep(now, &mut self.association, id, &ack);
            }
        }
        collect(now, &mut self.association, &mut self.out);
    }

    fn read(&mut self, id: u16) {
        while let Ok(Ok(Some(message))) = self.association.stream(id).map(|mut s| s.read_sctp()) {
            let ppi = message.ppi;
            let mut bytes = message.to_payload(1024 * 1024).expect("fits").freeze();
            match ppi {
                Ppi::Dcep => match Message::unmarshal(&mut bytes).expect("is DCEP") {
                    Message::DataChannelOpen(open) => {
                        let reliable = open.channel_type == ChannelType::Reliable;
                        self.streams.push((id, reliable));
                        self.opened.insert(id, open);
                        self.unanswered.push(id);
                    }
                    _ => {
                        self.acknowledged.insert(id);
                    }
                },
                Ppi::BinaryEmpty => self.received.push((id, Bytes::new())),
                _ => self.received.push((id, bytes)),
            }
        }
    }
}

struct Net {
    now: Instant,
    client: Client,
    server: Sctp,
    loss: f64,
    rng: ChaCha8Rng,
    wire: VecDeque<(Instant, bool, Bytes)>,
    opened: Vec<Channel>,
    received: Vec<(Channel, Bytes)>,
    seen: Vec<Bytes>,
}

impl Net {
    fn new(plan: ChannelPlan, loss: f64) -> Self {
        let now = crate::test_epoch();
        Self {
            now,
            client: Client::new(now),
            server: Sctp::new(plan, DataLimits::default()),
            loss,
            rng: ChaCha8Rng::seed_from_u64(5),
            wire: VecDeque::new(),
            opened: Vec::new(),
            received: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn flush(&mut self) {
        let due = self.now + Duration::from_millis(10);
        while let Some(packet) = self.client.out.pop_front() {
            if !self.rng.random_bool(self.loss) {
                self.wire.push_back((due, true, packet));
            }
        }
        while let Some(packet) = self.server.poll_transmit() {
            if !self.rng.random_bool(self.loss) {
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

    /// Runs until `done` or until nothing more happens within a minute.
    fn run(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let start = self.now;
        self.flush();
        while !done(self) {
            let next = self.wire.front().map(|(at, ..)| *at);
            let deadlines = [next, self.client.deadline(), self.server.deadline()];
            let Some(now) = deadlines.into_iter().flatten().min() else {
                return;
            };
            assert!(
                now - start < Duration::from_secs(60),
                "nothing gets through"
            );
            self.now = self.now.max(now);
            while let Some((_, to_server, packet)) = self.wire.pop_front_if(|(at, ..)| *at <= now) {
                if to_server {
                    self.seen.push(packet.clone());
                    let _ = self.server.handle(now, packet);
                } else {
                    self.client.handle(now, packet);
                }
            }
            self.client.handle_timeout(now);
            self.server.handle_timeout(now);
            self.flush();
        }
    }

    fn settle(&mut self) {
        self.run(|_| false);
    }

    /// Connected, with the client's channels open in the order of LiveKit's web client.
    fn opened_by_client(loss: f64) -> Self {
        let mut net = Self::new(ChannelPlan::Client, loss);
        net.run(|net| net.client.connected);
        for (id, channel) in [
            (0, Channel::Lossy),
            (2, Channel::Reliable),
            (4, Channel::DataTrack),
        ] {
            net.client.open(net.now, id, channel);
        }
        net.run(|net| net.opened.len() == 3 && net.client.acknowledged.len() == 3);
        net
    }
}

#[test]
fn channels_opened_by_the_client_go_by_their_label() {
    let mut net = Net::opened_by_client(0.0);
    assert_eq!(
        net.opened,
        [Channel::Lossy, Channel::Reliable, Channel::DataTrack]
    );
    for (id, channel) in [
        (0, Channel::Lossy),
        (2, Channel::Reliable),
        (4, Channel::DataTrack),
    ] {
        assert!(net.server.is_open(channel));
        net.client.send(net.now, id, &[id as u8]);
        net.server
            .send(net.now, channel, Bytes::from(vec![id as u8; 3]))
            .expect("open");
    }
    net.settle();
    assert_eq!(
        net.received,
        [
            (0, Channel::Lossy),
            (2, Channel::Reliable),
            (4, Channel::DataTrack)
        ]
        .map(|(id, channel)| (channel, Bytes::from(vec![id])))
    );
    let mut received = net.client.received.clone();
    received.sort();
    assert_eq!(
        received,
        [0_u16, 2, 4].map(|id| (id, Bytes::from(vec![id as u8; 3])))
    );
    assert_eq!(net.server.deadline(), None, "idle");
}

#[test]
fn a_message_is_acknowledged_once_it_is_safe() {
    let mut net = Net::new(ChannelPlan::Client, 0.0);
    let limits = DataLimits {
        hold_max: Duration::from_millis(100),
        ..DataLimits::default()
    };
    net.server = Sctp::new(ChannelPlan::Client, limits);
    net.run(|net| net.client.connected);
    net.client.open(net.now, 2, Channel::Reliable);
    net.settle();
    let acknowledged = |net: &Net| net.server.standing().map(|standing| standing.acknowledged);
    let before = acknowledged(&net);

    net.client.send(net.now, 2, b"one");
    net.run(|net| net.server.hold.deadline().is_some());
    assert_eq!(net.received.len(), 1);
    assert_eq!(acknowledged(&net), before, "another node would be sent it");
    net.server.safe(1);
    net.flush();
    let first = acknowledged(&net);
    assert_eq!(first, before.map(|tsn| tsn.wrapping_add(1)));

    // Nobody says anything of the second one.
    net.client.send(net.now, 2, b"two");
    net.run(|net| net.server.hold.deadline().is_some());
    let by = net.server.hold.deadline();
    net.run(|net| acknowledged(net) != first);
    assert_eq!(Some(net.now), by);
    net.settle();
    assert_eq!(net.received.len(), 2, "nothing is sent twice");
}

#[test]
fn channels_opened_by_the_server_have_odd_ids() {
    let mut net = Net::new(ChannelPlan::Server, 0.0);
    net.client.answers_opens = false;
    net.run(|net| net.client.opened.len() == 2);
    net.settle();
    assert!(net.opened.is_empty(), "not before the client agreed");
    let reliable = &net.client.opened[&1];
    assert_eq!(reliable.label, b"_reliable");
    assert_eq!(reliable.channel_type, ChannelType::Reliable);
    let lossy = &net.client.opened[&3];
    assert_eq!(lossy.label, b"_lossy");
    assert_eq!(
        lossy.channel_type,
        ChannelType::PartialReliableRexmitUnordered
    );
    assert_eq!(lossy.reliability_parameter, 0);

    let ack = Message::DataChannelAck(DataChannelAck);
    for id in [1, 3] {
        write_dcep(net.now, &mut net.client.association, id, &ack);
    }
    net.client.drive(net.now);
    net.run(|net| net.opened.len() == 2);
    net.server
        .send(net.now, Channel::Reliable, Bytes::from_static(b"r"))
        .expect("open");
    net.server
        .send(net.now, Channel::Lossy, Bytes::from_static(b"l"))
        .expect("open");
    let unopened = net
        .server
        .send(net.now, Channel::DataTrack, Bytes::from_static(b"d"));
    assert_eq!(unopened, Err(SendError::NotOpen));
    net.settle();
    assert_eq!(net.client.received.len(), 2);
}

#[test]
fn negotiated_channels_are_open_at_once() {
    let mut net = Net::new(ChannelPlan::Negotiated, 0.0);
    net.run(|net| net.client.connected && net.opened.len() == 3);
    for id in 100..103 {
        net.client.open_negotiated(id);
        net.client.send(net.now, id, b"up");
    }
    for channel in CHANNELS {
        net.server
            .send(net.now, channel, Bytes::from_static(b"down"))
            .expect("open");
    }
    net.settle();
    assert_eq!(
        net.received,
        CHANNELS.map(|channel| (channel, Bytes::from_static(b"up")))
    );
    assert_eq!(net.client.received.len(), 3);
    assert!(net.client.opened.is_empty());
}

#[test]
fn ten_thousand_reliable_messages_arrive_in_order_once_each() {
    for loss in [0.0, 0.02] {
        let mut net = Net::opened_by_client(loss);
        let message = |index: u32| {
            let mut message = index.to_be_bytes().to_vec();
            message.resize(100 + index as usize % 200, 7);
            Bytes::from(message)
        };
        for index in 0..10_000 {
            net.server
                .send(net.now, Channel::Reliable, message(index))
                .expect("has room");
            net.client.send(net.now, 2, &message(index));
        }
        net.run(|net| net.client.received.len() >= 10_000 && net.received.len() >= 10_000);
        net.settle();
        let sent: Vec<_> = (0..10_000).map(message).collect();
        assert!(
            net.client.received.iter().map(|(_, m)| m).eq(&sent),
            "{loss} down"
        );
        assert!(net.received.iter().map(|(_, m)| m).eq(&sent), "{loss} up");
    }
}

#[test]
fn long_and_empty_messages_arrive_whole() {
    let mut net = Net::opened_by_client(0.01);
    let lengths = [
        0,
        1,
        1171,
        1172,
        1173,
        16_384,
        65_535,
        65_536,
        200_000,
        256 * 1024,
    ];
    for len in lengths {
        let message: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        net.server
            .send(net.now, Channel::Reliable, message.clone().into())
            .expect("has room");
        if len > 0 {
            net.client.send(net.now, 2, &message);
        }
    }
    net.run(|net| net.client.received.len() == 10 && net.received.len() == 9);
    assert!(net.client.received.iter().map(|(_, m)| m.len()).eq(lengths));
    assert!(
        net.received
            .iter()
            .map(|(_, m)| m.len())
            .eq(lengths.into_iter().skip(1))
    );
    for (_, message) in &net.received {
        assert!(
            message
                .iter()
                .enumerate()
                .all(|(at, byte)| *byte == (at % 251) as u8)
        );
    }
    let too_long = Bytes::from(vec![0; 256 * 1024 + 1]);
    assert_eq!(
        net.server.send(net.now, Channel::Reliable, too_long),
        Err(SendError::TooLong)
    );
}

#[test]
fn lossy_messages_may_be_lost_but_not_repeated() {
    let mut net = Net::opened_by_client(0.0);
    net.loss = 0.2;
    for index in 0..1000_u32 {
        net.server
            .send(net.now, Channel::Lossy, index.to_be_bytes().to_vec().into())
            .expect("open");
        net.client.send(net.now, 0, &index.to_be_bytes());
        net.now += Duration::from_millis(5);
        net.run(|net| net.wire.is_empty());
    }
    net.loss = 0.0;
    net.settle();
    for received in [
        net.client
            .received
            .iter()
            .map(|(_, m)| m)
            .collect::<Vec<_>>(),
        net.received.iter().map(|(_, m)| m).collect(),
    ] {
        let distinct: HashSet<_> = received.iter().collect();
        assert_eq!(distinct.len(), received.len());
        assert!((600..1000).contains(&received.len()), "{}", received.len());
    }
}

#[test]
fn full_queues_push_back_or_drop_the_oldest() {
    let mut net = Net::opened_by_client(0.0);
    let message = Bytes::from(vec![1; 60_000]);
    let taken = (0..1000)
        .take_while(|_| {
            net.server
                .send(net.now, Channel::Reliable, message.clone())
                .is_ok()
        })
        .count();
    assert!((270..300).contains(&taken), "{taken}");
    let refused = net.server.send(net.now, Channel::Reliable, message.clone());
    assert_eq!(refused, Err(SendError::Full));
    let lossy = |index: u32| {
        let mut message = index.to_be_bytes().to_vec();
        message.resize(100, 0);
        Bytes::from(message)
    };
    for index in 0..20_000 {
        net.server
            .send(net.now, Channel::Lossy, lossy(index))
            .expect("drops instead");
    }
    net.run(|net| {
        net.client
            .received
            .iter()
            .filter(|(id, _)| *id == 2)
            .count()
            == taken
    });
    net.settle();
    let arrived: Vec<_> = net
        .client
        .received
        .iter()
        .filter(|(id, _)| *id == 0)
        .collect();
    let dropped = net.server.dropped_out(Channel::Lossy);
    assert!(dropped > 5000, "{dropped}");
    assert_eq!(arrived.last().map(|(_, m)| m), Some(&lossy(19_999)));
    net.server
        .send(net.now, Channel::Reliable, message)
        .expect("has room again");
}

#[test]
fn reliable_messages_wait_for_the_channel() {
    let mut net = Net::new(ChannelPlan::Server, 0.0);
    net.server
        .send(net.now, Channel::Reliable, Bytes::from_static(b"early"))
        .expect("waits");
    let lossy = net
        .server
        .send(net.now, Channel::Lossy, Bytes::from_static(b"early"));
    assert_eq!(lossy, Err(SendError::NotOpen));
    net.settle();
    assert_eq!(net.client.received, [(1, Bytes::from_static(b"early"))]);
}

#[test]
fn a_client_may_begin_anew() {
    let mut net = Net::opened_by_client(0.0);
    let init = net.seen[0].clone();
    // A late copy of the first packet only.
    for _ in 0..10 {
        net.server
            .handle(net.now, init.clone())
            .expect("is answered");
    }
    net.client.send(net.now, 2, b"one");
    net.settle();
    assert_eq!(
        net.received,
        [(Channel::Reliable, Bytes::from_static(b"one"))]
    );

    net.client = Client::new(net.now);
    net.run(|net| net.client.connected);
    net.opened.clear();
    net.client.open(net.now, 6, Channel::Reliable);
    net.run(|net| net.opened.len() == 1);
    net.client.send(net.now, 6, b"two");
    net.server
        .send(net.now, Channel::Reliable, Bytes::from_static(b"back"))
        .expect("open");
    net.settle();
    assert_eq!(
        net.received.last(),
        Some(&(Channel::Reliable, Bytes::from_static(b"two")))
    );
    assert_eq!(net.client.received, [(6, Bytes::from_static(b"back"))]);
    assert!(!net.server.is_open(Channel::Lossy));
}

#[test]
fn connects_and_opens_under_loss() {
    for seed in 0..30 {
        let mut net = Net::new(ChannelPlan::Server, 0.2);
        net.rng = ChaCha8Rng::seed_from_u64(seed);
        net.run(|net| net.opened.len() == 2);
    }
}

fn with_checksum(mut packet: Vec<u8>) -> Bytes {
    if packet.len() >= 12 {
        packet[8..12].fill(0);
        let checksum = crc32c::crc32c(&packet);
        packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    }
    packet.into()
}

/// Packets of a real connection, changed anywhere, with the right checksum and tag.
#[test]
fn damaged_packets_do_no_harm() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for round in 0..400_u64 {
        let mut net = Net::opened_by_client(0.0);
        net.rng = ChaCha8Rng::seed_from_u64(round);
        net.client.send(net.now, 2, &[1; 5000]);
        net.client.send(net.now, 0, &[2; 50]);
        net.flush();
        net.run(|net| net.wire.is_empty());
        for _ in 0..30 {
            let mut packet = net.seen[rng.random_range(0..net.seen.len())].to_vec();
            for _ in 0..rng.random_range(1..5) {
                let from = if rng.random_bool(0.2) { 0 } else { 12 };
                let at = rng.random_range(from..packet.len());
                packet[at] = rng.random();
            }
            if rng.random_bool(0.3) {
                packet.truncate(rng.random_range(0..packet.len()));
            }
            let _ = net.server.handle(net.now, with_checksum(packet));
            while net.server.poll_transmit().is_some() {}
        }
        net.server
            .handle_timeout(net.now + Duration::from_secs(100));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn arbitrary_chunks_do_no_harm(
        chunks in proptest::collection::vec(
            (any::<u8>(), any::<u8>(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..60), any::<bool>()),
            1..5),
        tail in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        thread_local! {
            static PACKET: Bytes = Net::opened_by_client(0.0).seen.pop().expect("there");
        }
        let mut net = Net::opened_by_client(0.0);
        let header = net.seen.last().expect("there")[..12].to_vec();
        for tagged in [true, false] {
            let mut packet = header.clone();
            if !tagged {
                packet[4..8].fill(0);
            }
            for (kind, flags, len, payload, honest) in &chunks {
                let kind = if *honest { kind % 16 } else { *kind };
                let len = if *honest { payload.len() as u16 + 4 } else { *len };
                packet.extend_from_slice(&[kind, *flags]);
                packet.extend_from_slice(&len.to_be_bytes());
                packet.extend_from_slice(payload);
                packet.resize(packet.len().next_multiple_of(4), 0);
            }
            packet.extend_from_slice(&tail);
            let _ = net.server.handle(net.now, with_checksum(packet.clone()));
            let _ = net.server.handle(net.now, packet.into());
        }
        net.server.handle_timeout(net.now + Duration::from_secs(100));
    }
}
