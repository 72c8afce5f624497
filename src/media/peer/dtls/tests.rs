//! Handshakes with a client made from rtc-dtls, over a network that loses datagrams, on a virtual
//! clock. The client repeats its flights as browsers do; the library alone would not.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rtc_crypto::RTCCryptoProvider;
use rtc_crypto::providers::AwsLcRsProvider;
use rtc_dtls::config::{ConfigBuilder, ExtendedMasterSecretType};

use super::*;

const BOTH: [SrtpProtectionProfile; 2] = [
    // The order of Chromium.
    SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
    SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
];

/// A DTLS client.
pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    flight: Flight,
    pub(crate) out: VecDeque<Bytes>,
    pub(crate) data: VecDeque<Bytes>,
    pub(crate) connected: bool,
    pub(crate) closed: bool,
    pub(crate) fingerprint: Fingerprint,
}

impl Client {
    pub(crate) fn new(now: Instant, profiles: &[SrtpProtectionProfile], mtu: usize) -> Self {
        // One certificate for all: making one takes longer than a handshake.
        thread_local! {
            static CERTIFICATE: rtc_dtls::crypto::Certificate =
                rtc_dtls::crypto::Certificate::generate_self_signed(
                    vec!["client".to_owned()],
                    AwsLcRsProvider::new().crypto(),
                )
                .expect("generates");
        }
        let certificate = CERTIFICATE.with(Clone::clone);
        let digest = digest::digest(&digest::SHA256, &certificate.certificate[0]);
        let fingerprint = Fingerprint(digest.as_ref().try_into().expect("32 bytes"));
        let config = ConfigBuilder::default()
            .with_crypto_provider(Arc::new(AwsLcRsProvider::new()))
            .with_certificates(vec![certificate])
            .with_srtp_protection_profiles(profiles.to_vec())
            .with_insecure_skip_verify(true)
            .with_extended_master_secret(ExtendedMasterSecretType::Require)
            .with_server_name("server".to_owned())
            .with_mtu(mtu)
            .build(true, None)
            .expect("builds");
        let mut endpoint = Endpoint::new(PEER, TransportProtocol::UDP, None);
        endpoint
            .connect(now, PEER, Arc::new(config), None)
            .expect("starts");
        let mut this = Self {
            endpoint,
            // What libwebrtc starts with.
            flight: Flight::new(Duration::from_millis(50)),
            out: VecDeque::new(),
            data: VecDeque::new(),
            connected: false,
            closed: false,
            fingerprint,
        };
        this.take_transmits(now);
        this
    }

    fn take_transmits(&mut self, now: Instant) {
        let transmits = std::iter::from_fn(|| self.endpoint.poll_transmit());
        let sent: Vec<_> = transmits
            .map(|transmit| transmit.message.freeze())
            .collect();
        if !self.connected && !sent.is_empty() {
            self.flight.begin(now, &sent);
        }
        self.out.extend(sent);
    }

    pub(crate) fn handle(&mut self, now: Instant, datagram: &[u8]) {
        let events = self
            .endpoint
            .read(now, PEER, None, BytesMut::from(datagram));
        for event in events.into_iter().flatten() {
            match event {
                EndpointEvent::HandshakeComplete => {
                    self.connected = true;
                    self.flight.end();
                }
                EndpointEvent::ApplicationData(data) => self.data.push_back(data.freeze()),
                EndpointEvent::PeerClosed => self.closed = true,
                _ => {}
            }
        }
        self.take_transmits(now);
    }

    pub(crate) fn send(&mut self, now: Instant, data: &[u8]) {
        self.endpoint.write(now, PEER, data).expect("connected");
        self.take_transmits(now);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.flight.deadline()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.flight.handle_timeout(now, &mut self.out);
    }
}

fn certificate() -> Arc<Certificate> {
    thread_local! {
        static CERTIFICATE: Arc<Certificate> = Arc::new(Certificate::generate().expect("generates"));
    }
    CERTIFICATE.with(Clone::clone)
}

fn server(now: Instant, client: &Client) -> Dtls {
    let mut server = Dtls::new(certificate());
    server.set_fingerprint(now, client.fingerprint);
    server
}

/// Two ends and what is between them.
struct Net {
    now: Instant,
    client: Client,
    server: Dtls,
    delay: Duration,
    loss: f64,
    rng: ChaCha8Rng,
    /// When, whether to the server, what; in order of time because the delay is the same for all.
    wire: VecDeque<(Instant, bool, Bytes)>,
    events: Vec<DtlsEvent>,
    /// Every datagram to the server.
    seen: Vec<Bytes>,
}

impl Net {
    fn new(now: Instant, client: Client, server: Dtls, loss: f64, seed: u64) -> Self {
        Self {
            now,
            client,
            server,
            delay: Duration::from_millis(25),
            loss,
            rng: ChaCha8Rng::seed_from_u64(seed),
            wire: VecDeque::new(),
            events: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn flush(&mut self) {
        let due = self.now + self.delay;
        while let Some(datagram) = self.client.out.pop_front() {
            if !self.rng.random_bool(self.loss) {
                self.wire.push_back((due, true, datagram));
            }
        }
        while let Some(datagram) = self.server.poll_transmit() {
            if !self.rng.random_bool(self.loss) {
                self.wire.push_back((due, false, datagram));
            }
        }
        while let Some(event) = self.server.poll_event() {
            self.events.push(event);
        }
    }

    /// Goes on to the next thing that happens, false if nothing will.
    fn step(&mut self) -> bool {
        self.flush();
        let next = self.wire.front().map(|(at, ..)| *at);
        let deadlines = [next, self.client.deadline(), self.server.deadline()];
        let Some(now) = deadlines.into_iter().flatten().min() else {
            return false;
        };
        self.now = now;
        while self.wire.front().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, to_server, datagram)) = self.wire.pop_front() else {
                break;
            };
            if to_server {
                let _ = self.server.handle(now, &datagram);
                self.seen.push(datagram);
            } else {
                self.client.handle(now, &datagram);
            }
        }
        self.client.handle_timeout(now);
        self.server.handle_timeout(now);
        self.flush();
        true
    }

    /// Steps until both ends are connected; the time it took.
    fn connect(&mut self) -> Option<Duration> {
        let start = self.now;
        while !(self.client.connected && self.server.is_connected()) {
            if !self.step() || self.now - start > Duration::from_secs(20) {
                return None;
            }
        }
        Some(self.now - start)
    }

    fn settle(&mut self) {
        self.flush();
        while !self.wire.is_empty() || !self.client.out.is_empty() {
            self.step();
        }
    }

    fn failure(&self) -> Option<&'static str> {
        self.events.iter().find_map(|event| match event {
            DtlsEvent::Failed(reason) => Some(*reason),
            _ => None,
        })
    }
}

fn connected(profiles: &[SrtpProtectionProfile], mtu: usize) -> Net {
    let now = crate::test_epoch();
    let client = Client::new(now, profiles, mtu);
    let server = server(now, &client);
    let mut net = Net::new(now, client, server, 0.0, 1);
    net.connect().expect("connects");
    net
}

/// The loss table: with rtc-dtls alone 180, 163 and 136 of 200 connect at 5, 10 and 20 %.
#[test]
fn every_handshake_survives_loss() {
    for (percent, p99_max) in [(0, 150), (5, 450), (10, 700), (20, 1000)] {
        let mut times = Vec::new();
        for seed in 0..200 {
            let now = crate::test_epoch();
            let client = Client::new(now, &BOTH, 1200);
            let server = server(now, &client);
            let mut net = Net::new(now, client, server, f64::from(percent) / 100.0, seed);
            times.push(
                net.connect()
                    .unwrap_or_else(|| panic!("{percent} % loss, seed {seed}")),
            );
        }
        times.sort();
        let at = |share: usize| times[times.len() * share / 100 - 1].as_millis();
        assert!(
            at(99) <= p99_max,
            "{percent} % loss: median {} ms, p95 {} ms, p99 {} ms",
            at(50),
            at(95),
            at(99)
        );
    }
}

#[test]
fn the_server_picks_the_cheapest_profile() {
    for (offered, profile) in [
        (&BOTH[..], Some(Profile::Aes128Gcm)),
        (&BOTH[..1], Some(Profile::Aes128CmSha1_80)),
        (&BOTH[1..], Some(Profile::Aes128Gcm)),
        (&[], None),
    ] {
        let net = connected(offered, 1200);
        let state = net
            .client
            .endpoint
            .get_connection_state(PEER)
            .expect("there");
        let number = profile.map(hello::profile_number);
        let agreed = state.srtp_protection_profile();
        assert_eq!(Some(agreed as u16).filter(|_| profile.is_some()), number);
        assert_eq!(net.server.srtp().is_some(), profile.is_some());
        let Some(profile) = profile else { continue };

        // Both ends have the same keys.
        let len = profile.material_len();
        let material = state
            .export_keying_material(EXPORTER_LABEL, &[], len)
            .expect("exports");
        let (mut sender, _) =
            srtp::server_ends(profile, material.as_ref()).expect("length is right");
        let (mut ours, _) = net.server.srtp().expect("there");
        let mut packet = [0x80, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 5, 5, 5].to_vec();
        packet.resize(16 + srtp::RTP_OVERHEAD_MAX, 0);
        let mut same = packet.clone();
        assert!(sender.protect_rtp(&mut packet, 16).is_some());
        assert!(ours.protect_rtp(&mut same, 16).is_some());
        assert_eq!(packet, same);
    }
}

#[test]
fn fragmented_messages_are_put_together() {
    for mtu in [60, 100, 300] {
        let mut net = connected(&BOTH, mtu);
        net.client.send(net.now, b"hello");
        net.settle();
        assert!(
            net.events
                .iter()
                .any(|e| matches!(e, DtlsEvent::Data(data) if data == "hello"))
        );
    }
}

#[test]
fn data_flows_both_ways() {
    let mut net = connected(&BOTH, 1200);
    for index in 0..100_u32 {
        net.client.send(net.now, &index.to_be_bytes());
        net.server
            .send(net.now, &index.to_be_bytes())
            .expect("connected");
    }
    net.settle();
    let received: Vec<_> = net
        .events
        .iter()
        .filter_map(|event| match event {
            DtlsEvent::Data(data) => Some(data.to_vec()),
            _ => None,
        })
        .collect();
    let expected: Vec<_> = (0..100_u32)
        .map(|index| index.to_be_bytes().to_vec())
        .collect();
    assert_eq!(received, expected);
    assert_eq!(
        net.client
            .data
            .iter()
            .map(|d| d.to_vec())
            .collect::<Vec<_>>(),
        expected
    );
    assert_eq!(net.server.deadline(), None);
}

#[test]
fn another_certificate_is_refused() {
    let now = crate::test_epoch();
    let client = Client::new(now, &BOTH, 1200);
    let mut server = Dtls::new(certificate());
    server.set_fingerprint(now, Fingerprint([1; 32]));
    let mut net = Net::new(now, client, server, 0.0, 1);
    while net.failure().is_none() && net.step() {}
    assert_eq!(
        net.failure(),
        Some("the client's certificate is not the described one")
    );
    assert!(net.server.srtp().is_none());
    net.settle();
    assert!(net.client.closed, "the client is told");
    assert_eq!(
        net.server.handle(net.now, &net.seen[0]),
        Err(Discard::NotConnected)
    );
}

#[test]
fn a_description_may_come_after_the_handshake() {
    let now = crate::test_epoch();
    let client = Client::new(now, &BOTH, 1200);
    let fingerprint = client.fingerprint;
    let mut net = Net::new(now, client, Dtls::new(certificate()), 0.0, 1);
    while !net.client.connected && net.step() {}
    net.client.send(net.now, b"early");
    net.settle();
    assert!(!net.server.is_connected() && net.events.is_empty() && net.server.srtp().is_none());
    net.server.set_fingerprint(net.now, fingerprint);
    net.flush();
    assert!(net.server.is_connected());
    assert!(
        matches!(&net.events[..], [DtlsEvent::Connected, DtlsEvent::Data(data)] if data == "early")
    );
}

#[test]
fn closing_tells_the_client_or_does_not() {
    for alert in [true, false] {
        let mut net = connected(&BOTH, 1200);
        net.server.close(net.now, alert);
        net.settle();
        while let Some((_, _, datagram)) = net.wire.pop_front() {
            net.client.handle(net.now, &datagram);
        }
        assert_eq!(net.client.closed, alert);
        assert_eq!(net.server.send(net.now, b"x"), Err(Discard::NotConnected));
    }
    let mut net = connected(&BOTH, 1200);
    net.client.endpoint.close(net.now).expect("closes");
    net.client.take_transmits(net.now);
    net.settle();
    assert_eq!(net.failure(), None, "a client that leaves has not failed");
}

#[test]
fn a_session_continues_on_another_node() {
    let mut net = connected(&BOTH, 1200);
    for _ in 0..10 {
        net.server
            .send(net.now, b"from the old one")
            .expect("connected");
    }
    let snapshot = net.server.export().expect("connected");
    for _ in 0..100 {
        net.server
            .send(net.now, b"after the snapshot")
            .expect("connected");
    }
    net.settle();
    let keys = |dtls: &Dtls| {
        let (mut sender, _) = dtls.srtp().expect("there");
        let mut packet = [0x80, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 5, 5, 5].to_vec();
        packet.resize(16 + srtp::RTP_OVERHEAD_MAX, 0);
        sender.protect_rtp(&mut packet, 16);
        packet
    };
    let before = keys(&net.server);
    // Far beyond what the old node sent, and at once.
    let skip = 1 << 24;
    net.server = Dtls::import(net.now, certificate(), &snapshot, skip).expect("imports");
    assert_eq!(net.server.sequence(), snapshot.sequence() + u64::from(skip));
    assert_eq!(keys(&net.server), before);
    net.client.data.clear();
    net.server
        .send(net.now, b"from the new one")
        .expect("connected");
    net.client.send(net.now, b"to the new one");
    net.settle();
    assert_eq!(net.client.data, ["from the new one"]);
    assert!(
        net.events
            .iter()
            .any(|e| matches!(e, DtlsEvent::Data(data) if data == "to the new one"))
    );
    assert!(format!("{snapshot:?}").len() < 40, "keys do not show");
}

#[test]
fn the_snapshot_holds_what_the_library_exports() {
    let mut net = connected(&BOTH, 1200);
    let exported = |net: &Net| {
        let Phase::Connected(endpoint) = &net.server.phase else {
            panic!("not connected");
        };
        let state = endpoint.get_connection_state(PEER).expect("there");
        let bytes = state.marshal_binary().expect("exports");
        DtlsSnapshot::read(&bytes, net.client.fingerprint).expect("as mirrored")
    };
    for _ in 0..5 {
        assert_eq!(net.server.export(), Some(exported(&net)));
        net.server.send(net.now, b"one more").expect("connected");
    }
    // What is written can be read again by the library and by us.
    let snapshot = net.server.export().expect("connected");
    let written = snapshot.write().expect("numbers are left");
    let read = DtlsSnapshot::read(&written, net.client.fingerprint);
    assert_eq!(read, Some(snapshot));
}

#[test]
fn broken_snapshots_are_refused() {
    let now = crate::test_epoch();
    let snapshot = connected(&BOTH, 1200).server.export().expect("connected");
    let written = snapshot.write().expect("numbers are left");
    let client = snapshot.client();
    for len in 0..written.len() {
        assert_eq!(DtlsSnapshot::read(&written[..len], client), None, "{len}");
    }
    let encoded = postcard::to_stdvec(&snapshot).expect("encodes");
    for at in 0..encoded.len() {
        let mut changed = encoded.clone();
        changed[at] ^= 0xff;
        if let Ok(changed) = postcard::from_bytes::<DtlsSnapshot>(&changed) {
            let _ = Dtls::import(now, certificate(), &changed, 0);
        }
    }
    let used_up = snapshot.at((1 << 48) - 5);
    let refused = Dtls::import(now, certificate(), &used_up, 1 << 24);
    assert_eq!(refused.err(), Some(Discard::LimitReached));
}

#[test]
fn a_lost_last_flight_is_sent_again() {
    let mut net = connected(&BOTH, 1200);
    // As if the client had not got it: it sends its own last flight again and again.
    let repeated = net.seen.last().expect("there").clone();
    let mut sent = 0;
    for _ in 0..200 {
        net.now += Duration::from_millis(50);
        let _ = net.server.handle(net.now, &repeated);
        while net.server.poll_transmit().is_some() {
            sent += 1;
        }
    }
    assert!((10..=60).contains(&sent), "{sent}");
    assert!(net.server.is_connected());
}

#[test]
fn a_handshake_that_stops_is_given_up() {
    let now = crate::test_epoch();
    let client = Client::new(now, &BOTH, 1200);
    let mut server = server(now, &client);
    server.handle(now, &client.out[0]).expect("a ClientHello");
    let mut sent = 0;
    while let Some(deadline) = server.deadline() {
        server.handle_timeout(deadline);
        sent += std::iter::from_fn(|| server.poll_transmit()).count();
    }
    assert!(matches!(server.poll_event(), Some(DtlsEvent::Failed(_))));
    assert!(sent < 60, "{sent}");
}

#[test]
fn plain_text_after_the_handshake_changes_nothing() {
    let mut net = connected(&BOTH, 1200);
    let forged = [
        record::write(Content::Alert, 900, &[2, 40]),
        record::write(Content::Alert, 901, &[1, 0]),
        record::write(Content::ChangeCipherSpec, 902, &[1]),
        record::write(Content::ApplicationData, 903, b"forged"),
        record::write(Content::Handshake, 904, &[0; 40]),
    ];
    for record in &forged {
        let _ = net.server.handle(net.now, record);
    }
    for _ in 0..100_000 {
        let _ = net.server.handle(net.now, &forged[4]);
    }
    net.client.send(net.now, b"still here");
    net.settle();
    assert_eq!(net.failure(), None);
    assert!(
        net.events
            .iter()
            .any(|e| matches!(e, DtlsEvent::Data(data) if data == "still here"))
    );
}

/// Datagrams of a real handshake, changed anywhere, at any moment of it.
#[test]
fn damaged_handshakes_do_no_harm() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for round in 0..300_u64 {
        let now = crate::test_epoch();
        let client = Client::new(now, &BOTH, if round % 2 == 0 { 1200 } else { 120 });
        let server = server(now, &client);
        let mut net = Net::new(now, client, server, 0.05, round);
        for _ in 0..40 {
            if let Some((_, true, datagram)) = net.wire.front() {
                let mut bad = datagram.to_vec();
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..bad.len());
                    bad[at] = rng.random();
                }
                if rng.random_bool(0.2) {
                    bad.truncate(rng.random_range(0..bad.len()));
                }
                let _ = net.server.handle(net.now, &bad);
            }
            if !net.step() {
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn arbitrary_records_do_no_harm(
        records in proptest::collection::vec(
            (20_u8..24, 0_u16..3, proptest::collection::vec(any::<u8>(), 0..80)), 1..6),
        established in any::<bool>(),
    ) {
        thread_local! {
            static NET: std::cell::RefCell<Option<Net>> = const { std::cell::RefCell::new(None) };
        }
        let mut datagram = Vec::new();
        for (content, epoch, payload) in records {
            let at = datagram.len();
            datagram.extend(record::write(Content::Handshake, 7, &payload));
            datagram[at] = content;
            datagram[at + 3..at + 5].copy_from_slice(&epoch.to_be_bytes());
        }
        if established {
            NET.with_borrow_mut(|net| {
                let net = net.get_or_insert_with(|| connected(&BOTH, 1200));
                let _ = net.server.handle(net.now, &datagram);
                assert!(net.server.is_connected());
            });
        } else {
            let now = crate::test_epoch();
            let client = Client::new(now, &BOTH, 1200);
            let mut server = server(now, &client);
            let _ = server.handle(now, &datagram);
            let _ = server.handle(now, &client.out[0]);
            let _ = server.handle(now, &datagram);
        }
    }
}
