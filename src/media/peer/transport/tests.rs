//! A whole connection in memory: ICE checks, a DTLS client, SRTP and data channels on one side, a
//! [`Transport`] on the other, over a network that loses datagrams, on a virtual clock.

use std::time::Duration;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;

use super::*;
use crate::peer::demux::{Class, classify};
use crate::peer::dtls;
use crate::peer::ice::request_ufrag;
use crate::peer::ice::tests::Check;
use crate::peer::{sctp, srtp};

const PROFILES: [SrtpProtectionProfile; 2] = [
    SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
    SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
];

fn config(channels: ChannelPlan) -> TransportConfig {
    thread_local! {
        static CERTIFICATE: Arc<Certificate> = Arc::new(Certificate::generate().expect("generates"));
    }
    TransportConfig {
        certificate: CERTIFICATE.with(Clone::clone),
        timeouts: IceTimeouts::default(),
        channels,
        data: DataLimits::default(),
    }
}

fn plan_fingerprint() -> Fingerprint {
    config(ChannelPlan::Server).certificate.fingerprint()
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], port))
}

/// A browser.
struct Client {
    address: SocketAddr,
    server: Credentials,
    dtls: dtls::tests::Client,
    sctp: Option<sctp::tests::Client>,
    next_check: Instant,
    checks: bool,
    answered: bool,
}

struct Call {
    now: Instant,
    client: Client,
    server: Transport,
    loss: f64,
    rng: ChaCha8Rng,
    wire: VecDeque<(Instant, bool, SocketAddr, Bytes)>,
    events: Vec<TransportEvent>,
    opened: Vec<Channel>,
    received: Vec<(Channel, Bytes)>,
}

impl Call {
    fn new(plan: ChannelPlan, loss: f64, seed: u64) -> Self {
        let now = crate::test_epoch();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut server = Transport::new(&config(plan), &mut rng);
        let dtls = dtls::tests::Client::new(now, &PROFILES, 1200);
        server.set_remote(now, &remote(&dtls)).expect("fits");
        let client = Client {
            address: address(5000),
            server: server.local_credentials().clone(),
            dtls,
            sctp: None,
            next_check: now,
            checks: true,
            answered: false,
        };
        Self {
            now,
            client,
            server,
            loss,
            rng,
            wire: VecDeque::new(),
            events: Vec::new(),
            opened: Vec::new(),
            received: Vec::new(),
        }
    }

    fn flush(&mut self) {
        let due = self.now + Duration::from_millis(10);
        let client = &mut self.client;
        if client.checks && self.now >= client.next_check {
            client.next_check =
                self.now + Duration::from_millis(if client.answered { 2500 } else { 50 });
            let check = Bytes::from(Check::new(&client.server, true).bytes());
            self.wire.push_back((due, true, client.address, check));
        }
        if let Some(sctp) = &mut client.sctp {
            while let Some(packet) = sctp.out.pop_front() {
                client.dtls.send(self.now, &packet);
            }
        }
        // As a browser: no DTLS before a path is known to work.
        while client.answered
            && let Some(datagram) = client.dtls.out.pop_front()
        {
            if !self.rng.random_bool(self.loss) {
                self.wire.push_back((due, true, client.address, datagram));
            }
        }
        while let Some((to, datagram)) = self.server.poll_transmit() {
            if !self.rng.random_bool(self.loss) {
                self.wire.push_back((due, false, to, datagram));
            }
        }
        while let Some(event) = self.server.poll_event() {
            match event {
                TransportEvent::ChannelOpen(channel) => self.opened.push(channel),
                TransportEvent::Data {
                    channel, payload, ..
                } => self.received.push((channel, payload)),
                other => self.events.push(other),
            }
        }
    }

    fn deliver(&mut self, to_server: bool, address: SocketAddr, datagram: &[u8]) {
        let now = self.now;
        match (classify(datagram), to_server) {
            (Class::Stun, true) => {
                assert!(request_ufrag(datagram).is_some());
                let _ = self.server.handle_stun(now, address, datagram);
            }
            (Class::Dtls, true) => {
                let _ = self.server.handle_dtls(now, address, datagram);
            }
            (Class::Stun, false) => self.client.answered |= address == self.client.address,
            (Class::Dtls, false) if address == self.client.address => {
                let client = &mut self.client;
                client.dtls.handle(now, datagram);
                if client.dtls.connected {
                    let sctp = client
                        .sctp
                        .get_or_insert_with(|| sctp::tests::Client::new(now));
                    while let Some(packet) = client.dtls.data.pop_front() {
                        sctp.handle(now, packet);
                    }
                }
            }
            (class, _) => assert!(!to_server, "{class:?}"),
        }
    }

    /// Runs until `done`; false if it was not within `limit`.
    fn run(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        self.flush();
        while !done(self) {
            let client = &self.client;
            let deadlines = [
                self.wire.front().map(|(at, ..)| *at),
                client.checks.then_some(client.next_check),
                client.dtls.deadline().filter(|_| client.answered),
                client.sctp.as_ref().and_then(|sctp| sctp.deadline()),
                self.server.deadline(),
            ];
            let Some(now) = deadlines
                .into_iter()
                .flatten()
                .min()
                .filter(|now| *now <= end)
            else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(now);
            while let Some((_, to_server, address, datagram)) =
                self.wire.pop_front_if(|(at, ..)| *at <= self.now)
            {
                self.deliver(to_server, address, &datagram);
            }
            if self.client.answered {
                self.client.dtls.handle_timeout(self.now);
            }
            if let Some(sctp) = &mut self.client.sctp {
                sctp.handle_timeout(self.now);
            }
            self.server.handle_timeout(self.now);
            self.flush();
        }
        true
    }

    fn connected(plan: ChannelPlan) -> Self {
        let mut call = Self::new(plan, 0.0, 1);
        let done = |call: &Self| {
            call.server.is_connected() && call.client.sctp.as_ref().is_some_and(|s| s.connected)
        };
        assert!(call.run(Duration::from_secs(10), done));
        call
    }

    fn settle(&mut self) {
        self.run(Duration::from_secs(2), |_| false);
    }

    fn connections(&self) -> usize {
        self.events
            .iter()
            .filter(|event| matches!(event, TransportEvent::Connected))
            .count()
    }

    fn failure(&self) -> Option<&'static str> {
        self.events.iter().find_map(|event| match event {
            TransportEvent::Failed(reason) => Some(*reason),
            _ => None,
        })
    }
}

fn remote(client: &dtls::tests::Client) -> RemoteParameters {
    RemoteParameters {
        ufrag: "them".to_owned(),
        pwd: "their password of enough length".to_owned(),
        fingerprint: client.fingerprint,
        setup: Setup::Active,
    }
}

#[test]
fn a_transport_moves_to_its_thread_and_a_certificate_is_shared() {
    fn moves<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    moves::<Transport>();
    is_shared::<Certificate>();
}

#[test]
fn connects_and_echoes_data() {
    let mut call = Call::connected(ChannelPlan::Server);
    assert!(call.run(Duration::from_secs(1), |call| call.opened.len() == 2));
    assert_eq!(call.connections(), 1);
    assert_eq!(call.server.remote(), Some(address(5000)));
    for index in 0..100_u8 {
        let message = Bytes::from(vec![index; 300]);
        call.server
            .send_data(call.now, Channel::Reliable, message)
            .expect("open");
    }
    call.settle();
    let sctp = call.client.sctp.as_mut().expect("connected");
    assert_eq!(sctp.received.len(), 100);
    for (id, message) in std::mem::take(&mut sctp.received) {
        sctp.send(call.now, id, &message);
    }
    call.settle();
    let echoed: Vec<_> = call
        .received
        .iter()
        .map(|(_, message)| message[0])
        .collect();
    assert_eq!(echoed, (0..100).collect::<Vec<u8>>());
}

#[test]
fn connects_under_loss() {
    let mut times = Vec::new();
    for seed in 0..50 {
        let mut call = Call::new(ChannelPlan::Server, 0.2, seed);
        let start = call.now;
        // The library's first retransmission of data comes after 3 s and doubles.
        let done = call.run(Duration::from_secs(60), |call| call.opened.len() == 2);
        assert!(done, "seed {seed}");
        assert_eq!((call.connections(), call.failure()), (1, None));
        times.push(call.now - start);
    }
    times.sort();
    assert!(times[24] < Duration::from_secs(5), "{times:?}");
}

#[test]
fn media_keys_are_there_on_both_sides() {
    let mut call = Call::connected(ChannelPlan::Client);
    let mut packet = [0x80, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 5, 5, 5].to_vec();
    packet.resize(16 + srtp::RTP_OVERHEAD_MAX, 0);
    let sender = call.server.sender().expect("connected");
    assert_eq!(sender.protect_rtp(&mut packet, 16), Some(32));
    assert_eq!(classify(&packet), Class::Rtp);
    let receiver = call.server.receiver().expect("connected");
    assert!(
        receiver.unprotect_rtp(&mut packet).is_err(),
        "its own packet is not the client's"
    );
}

#[test]
fn an_ice_restart_moves_without_a_handshake() {
    let mut call = Call::connected(ChannelPlan::Server);
    assert!(call.run(Duration::from_secs(1), |call| call.opened.len() == 2));
    let before = call.client.server.clone();
    call.server.restart_ice(call.now, &mut call.rng);
    call.server
        .set_remote(call.now, &remote(&call.client.dtls))
        .expect("fits");
    let message = Bytes::from_static(b"on the old path");
    call.server
        .send_data(call.now, Channel::Reliable, message)
        .expect("open");
    call.settle();
    assert_eq!(call.server.remote(), Some(address(5000)));

    call.client.server = call.server.local_credentials().clone();
    call.client.address = address(6000);
    call.client.next_check = call.now;
    assert!(call.run(Duration::from_secs(1), |call| call.connections() == 2));
    assert_eq!(call.server.remote(), Some(address(6000)));
    let message = Bytes::from_static(b"on the new path");
    call.server
        .send_data(call.now, Channel::Reliable, message)
        .expect("open");
    call.settle();
    let sctp = call.client.sctp.as_ref().expect("connected");
    let received: Vec<_> = sctp
        .received
        .iter()
        .map(|(_, message)| message.as_ref())
        .collect();
    assert_eq!(received, [&b"on the old path"[..], b"on the new path"]);
    assert!(call.events.iter().any(
        |event| matches!(event, TransportEvent::UfragRetired(ufrag) if *ufrag == before.ufrag)
    ));
}

#[test]
fn a_client_that_falls_silent_fails_and_may_come_back() {
    let mut call = Call::connected(ChannelPlan::Client);
    call.client.checks = false;
    let start = call.now;
    assert!(call.run(Duration::from_secs(20), |call| call.failure().is_some()));
    let silent = call.now - start;
    assert!((12..=15).contains(&silent.as_secs()), "{silent:?}");
    assert_eq!(call.server.ice_state(), IceState::Failed);

    call.server.restart_ice(call.now, &mut call.rng);
    call.client.server = call.server.local_credentials().clone();
    call.client.checks = true;
    call.client.next_check = call.now;
    assert!(call.run(Duration::from_secs(1), |call| call.connections() == 2));
    assert!(call.server.is_connected());
}

#[test]
fn an_idle_transport_waits_for_its_next_check_only() {
    let mut call = Call::connected(ChannelPlan::Server);
    call.run(Duration::from_secs(9), |_| false);
    call.client.checks = false;
    call.run(Duration::from_millis(400), |_| false);
    let deadline = call.server.deadline().expect("consent runs out");
    assert!(deadline - call.now > Duration::from_secs(6));
}

#[test]
fn datagrams_of_strangers_are_refused() {
    let mut call = Call::connected(ChannelPlan::Client);
    let datagram = [23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 9, 0, 1, 0];
    let refused = call.server.handle_dtls(call.now, address(1), &datagram);
    assert_eq!(refused, Err(Discard::UnknownPeer));
    assert!(
        call.server
            .handle_stun(call.now, address(1), &[0; 20])
            .is_err()
    );
}

#[test]
fn descriptions_that_do_not_fit_are_refused() {
    let mut call = Call::connected(ChannelPlan::Client);
    let good = remote(&call.client.dtls);
    let passive = RemoteParameters {
        setup: Setup::Passive,
        ..good.clone()
    };
    assert_eq!(
        call.server.set_remote(call.now, &passive),
        Err(RemoteError::Role)
    );
    let other = RemoteParameters {
        fingerprint: Fingerprint([3; 32]),
        ..good.clone()
    };
    assert_eq!(
        call.server.set_remote(call.now, &other),
        Err(RemoteError::FingerprintChanged)
    );
    assert_eq!(call.server.set_remote(call.now, &good), Ok(()));
}

#[test]
fn a_session_continues_on_another_node() {
    let mut call = Call::connected(ChannelPlan::Server);
    assert!(call.run(Duration::from_secs(1), |call| call.opened.len() == 2));
    let mut packet = [0x80, 96, 0, 9, 0, 0, 0, 1, 0, 0, 0, 77, 5, 5, 5, 5].to_vec();
    packet.resize(16 + srtp::RTP_OVERHEAD_MAX, 0);
    call.server
        .sender()
        .expect("connected")
        .protect_rtp(&mut packet, 16);
    let snapshot = call.server.export().expect("connected");
    assert_eq!(snapshot.sent(), [77]);
    assert_eq!(snapshot.shown(), plan_fingerprint());
    let bytes = snapshot.to_bytes();
    assert!(bytes.len() < 250, "{}", bytes.len());
    let snapshot = TransportSnapshot::from_bytes(&bytes).expect("reads");

    let skip = Skip {
        records: 1 << 24,
        rtcp: 1000,
    };
    let plan = config(ChannelPlan::Server);
    let mut server =
        Transport::import(call.now, &plan, &snapshot, skip, &mut call.rng).expect("imports");
    let sender = server.sender().expect("connected");
    assert_eq!(sender.rtcp_index(), 1000);
    for used in [10, 9, 1, 40_000] {
        packet[2..4].copy_from_slice(&u16::to_be_bytes(used));
        assert_eq!(sender.protect_rtp(&mut packet, 16), None, "{used}");
        assert_eq!(sender.repeat_rtp(&mut packet, 16), None, "{used}");
    }
    assert_eq!(server.export().expect("connected").sent(), [77]);
    server
        .set_remote(call.now, &remote(&call.client.dtls))
        .expect("fits");
    assert!(!server.is_connected(), "no path yet");

    call.server = server;
    call.client.server = call.server.local_credentials().clone();
    call.client.next_check = call.now;
    call.opened.clear();
    // A client that lost nothing keeps its DTLS; this one begins its data channels anew.
    call.client.sctp = Some(sctp::tests::Client::new(call.now));
    assert!(call.run(Duration::from_secs(5), |call| call.opened.len() == 2));
    assert!(call.server.is_connected() && call.failure().is_none());
}

#[test]
fn closing_is_told_or_silent() {
    for alert in [true, false] {
        let mut call = Call::connected(ChannelPlan::Client);
        call.server.close(call.now, alert);
        assert!(call.server.sender().is_none() && !call.server.is_connected());
        call.run(Duration::from_millis(100), |_| false);
        assert_eq!(call.client.dtls.closed, alert);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn arbitrary_datagrams_do_no_harm(datagrams in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..120), 1..10)) {
        thread_local! {
            static CALL: std::cell::RefCell<Option<Call>> = const { std::cell::RefCell::new(None) };
        }
        CALL.with_borrow_mut(|call| {
            let call = call.get_or_insert_with(|| Call::connected(ChannelPlan::Client));
            let from = call.client.address;
            for datagram in datagrams {
                let _ = call.server.handle_stun(call.now, from, &datagram);
                let _ = call.server.handle_dtls(call.now, from, &datagram);
                if let Some(receiver) = call.server.receiver() {
                    let _ = receiver.unprotect_rtp(&mut datagram.clone());
                    let _ = receiver.unprotect_rtcp(&mut datagram.clone());
                }
            }
            while call.server.poll_transmit().is_some() {}
            assert!(call.server.is_connected());
            assert!(call.server.poll_event().is_none());
        });
    }
}
