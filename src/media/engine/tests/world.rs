//! Engines and clients joined by a network in memory, on a clock of their own.
//!
//! A client is a real one below its SDP: checks signed with rtc-stun, handshakes of rtc-dtls, SRTP
//! keys from the exporter, data channels of rtc-sctp. Its descriptions are those captured from
//! LiveKit's SDKs, with its own fingerprint put in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::id::{BootId, NodeId, TrackSid};
use flotilla_model::track::{Encryption, Kind, Layer, Quality, Source, Track, TrackCodec};
use flotilla_model::unit::Size;
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;

use crate::command::{Command, Continuation, PeerId, PeerRole, Restore, Settings};
use crate::engine::{Engine, EngineConfig};
use crate::event::Event;
use crate::peer::demux::{Class, classify};
use crate::peer::dtls::{self, Certificate, Fingerprint};
use crate::peer::ice::{self, Credentials};
use crate::peer::passage::Passage;
use crate::peer::sctp;
use crate::peer::sdp::{self, Description};
use crate::peer::srtp::{Profile, SrtpReceiver, SrtpSender, server_ends};
use crate::peer::transport::TransportSnapshot;
use crate::via;

/// In the order of Chromium.
const PROFILES: [SrtpProtectionProfile; 2] = [
    SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
    SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
];
/// One way through the network.
const DELAY: Duration = Duration::from_millis(5);
/// How often a client checks its path.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The DTLS test client's name for its server.
const DTLS_PEER: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    9,
);

/// Number that an engine knows an address by that has moved to it.
pub(super) const LOCAL_OF_MOVED: via::Local = 2;

pub(super) fn engine_address(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + index as u8], 7882))
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) engines: Vec<Engine>,
    pub(super) clients: Vec<Client>,
    wire: VecDeque<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
    /// All events so far, with their engine.
    pub(super) events: Vec<(usize, Event)>,
    /// When each of them happened.
    happened_at: Vec<Instant>,
    /// Datagrams between engines that are still lost on purpose.
    pub(super) relay_losses: usize,
    /// Engines that send and hear nothing any more.
    pub(super) dead: Vec<usize>,
    /// Engines whose address is another's by now.
    pub(super) moved: BTreeMap<usize, usize>,
    /// Which engines protected packets for which client under which SSRC (RTCP marked).
    pub(super) sent_under: BTreeMap<(SocketAddr, bool, u32), BTreeSet<usize>>,
}

impl World {
    pub(super) fn new(engines: usize) -> Self {
        Self::with(engines, |_| ())
    }

    /// Engines whose addresses may move.
    pub(super) fn moving(engines: usize) -> Self {
        Self::with(engines, |config| config.moves = true)
    }

    /// Engines with other settings.
    pub(super) fn with(engines: usize, change: impl Fn(&mut EngineConfig)) -> Self {
        let now = crate::test_epoch();
        thread_local! {
            static CERTIFICATE: Arc<Certificate> =
                Arc::new(Certificate::generate().expect("generates"));
        }
        let engine = |index: usize| {
            let mut config = EngineConfig::new(
                NodeId(index as u64 + 1),
                BootId(100 + index as u64),
                [9; 32],
                CERTIFICATE.with(Clone::clone),
                vec![engine_address(index)],
                [index as u8 + 1; 32],
            );
            config.peers_max = 8;
            change(&mut config);
            config.fresh_certificate = Arc::new(Certificate::generate().expect("generates"));
            Engine::new(now, config)
        };
        Self {
            now,
            engines: (0..engines).map(engine).collect(),
            clients: Vec::new(),
            wire: VecDeque::new(),
            events: Vec::new(),
            happened_at: Vec::new(),
            relay_losses: 0,
            dead: Vec::new(),
            moved: BTreeMap::new(),
            sent_under: BTreeMap::new(),
        }
    }

    /// A client on an engine; its peer's id is its index.
    pub(super) fn client(&mut self, engine: usize, role: PeerRole) -> usize {
        self.client_with(engine, role, false)
    }

    pub(super) fn client_with(
        &mut self,
        engine: usize,
        role: PeerRole,
        negotiated_channels: bool,
    ) -> usize {
        let index = self.clients.len();
        self.clients.push(Client::new(self.now, index, engine));
        let peer = PeerId(index as u64);
        self.command(
            engine,
            Command::CreatePeer {
                peer,
                role,
                negotiated_channels,
                restore: None,
            },
        );
        index
    }

    pub(super) fn command(&mut self, engine: usize, command: Command) {
        self.engines[engine].handle_command(self.now, command);
        self.flush();
    }

    /// Lets a client offer a captured description; gives what it is answered.
    pub(super) fn offer(&mut self, client: usize, template: &str) -> (Description, Mids) {
        let engine = self.clients[client].engine;
        let peer = PeerId(client as u64);
        let sdp = self.clients[client].description(template);
        let seen = self.events.len();
        let offer = sdp.clone();
        self.command(engine, Command::Offer { peer, id: 7, sdp });
        let answer = self.events[seen..]
            .iter()
            .find_map(|(_, event)| match event {
                Event::Answer {
                    peer: to,
                    id: 7,
                    sdp,
                    mid_to_track,
                } if *to == peer => Some((sdp.clone(), mid_to_track.clone())),
                Event::DescriptionRefused { reason, .. } => panic!("refused: {reason}"),
                _ => None,
            });
        let (sdp, mids) = answer.expect("an answer");
        let description = sdp::parse(&sdp).expect("our own text");
        self.clients[client].take_remote(self.now, &description);
        self.clients[client].agreed = Some((offer, sdp));
        (description, mids)
    }

    /// A client's connection moves to another engine: it stays where it is until it is told more.
    pub(super) fn take_over(
        &mut self,
        client: usize,
        engine: usize,
        role: PeerRole,
        restore: Restore,
    ) {
        let now = self.now;
        let moved = &mut self.clients[client];
        let address = moved.address;
        moved.engine = engine;
        moved.move_to(now, address, "afterUFRAG");
        moved.remote = None;
        moved.next_check = None;
        let command = Command::CreatePeer {
            peer: PeerId(client as u64),
            role,
            negotiated_channels: false,
            restore: Some(Box::new(restore)),
        };
        self.command(engine, command);
    }

    /// The newest checkpoint of a client's connection.
    pub(super) fn snapshot(&self, client: usize) -> Option<TransportSnapshot> {
        self.events.iter().rev().find_map(|(_, event)| match event {
            Event::Checkpoint { peer, snapshot, .. } if *peer == PeerId(client as u64) => {
                Some((**snapshot).clone())
            }
            _ => None,
        })
    }

    /// What the newest checkpoints say of a client's connection to whoever goes on with it.
    pub(super) fn continuation(&self, client: usize) -> Option<Continuation> {
        let events = self.events.iter().zip(&self.happened_at).rev();
        let of_client = events.filter_map(|((_, event), at)| match event {
            Event::Checkpoint {
                peer,
                snapshot,
                passage,
                descriptions,
            } if *peer == PeerId(client as u64) => Some((at, snapshot, passage, descriptions)),
            _ => None,
        });
        let (at, snapshot, passage, _) = of_client.clone().next()?;
        let descriptions = of_client
            .filter_map(|(.., descriptions)| descriptions.clone())
            .next()?;
        // As the shell carries it.
        let passage = Passage::from_bytes(&passage.as_ref()?.to_bytes()).expect("our own");
        Some(Continuation {
            transport: (**snapshot).clone(),
            passage: passage
                .heard_by(LOCAL_OF_MOVED)
                .aged(self.now.saturating_duration_since(*at)),
            descriptions: *descriptions,
        })
    }

    /// Answers the newest offer to a v0 subscriber, once it is there.
    pub(super) fn answer(&mut self, client: usize) -> (Description, Mids) {
        let engine = self.clients[client].engine;
        let peer = PeerId(client as u64);
        self.run(Duration::from_millis(20));
        let newest = self.events.iter().rev().find_map(|(_, event)| match event {
            Event::Offer {
                peer: to,
                id,
                sdp,
                mid_to_track,
            } if *to == peer => Some((*id, sdp.clone(), mid_to_track.clone())),
            _ => None,
        });
        let (id, sdp, mids) = newest.expect("an offer");
        let description = sdp::parse(&sdp).expect("our own text");
        self.clients[client].take_remote(self.now, &description);
        let answer = self.clients[client].answer_to(&sdp);
        self.clients[client].agreed = Some((sdp, answer.clone()));
        self.command(
            engine,
            Command::Answer {
                peer,
                id,
                sdp: answer,
            },
        );
        (description, mids)
    }

    pub(super) fn subscribe(&mut self, client: usize, track: &str) {
        let command = Command::Subscribe {
            peer: PeerId(client as u64),
            track: track.into(),
            stream: format!("PA_x|{track}"),
            settings: Settings::default(),
        };
        self.command(self.clients[client].engine, command);
    }

    /// Lets a client send a packet of plain RTP.
    pub(super) fn send_rtp(&mut self, client: usize, packet: &[u8]) {
        self.clients[client].send_rtp(packet);
        self.flush();
    }

    /// Lets time pass and everything happen that falls into it.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        self.flush();
        while let Some(at) = self.next().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step();
        }
        self.now = end;
    }

    pub(super) fn happened(&self, matches: impl Fn(&Event) -> bool) -> usize {
        self.events
            .iter()
            .filter(|(_, event)| matches(event))
            .count()
    }

    fn next(&self) -> Option<Instant> {
        let alive = |(index, _): &(usize, &Engine)| !self.dead.contains(index);
        let engines = self.engines.iter().enumerate().filter(alive);
        let engines = engines.filter_map(|(_, engine)| engine.deadline());
        let clients = self.clients.iter().filter_map(Client::deadline);
        let wire = self.wire.front().map(|(at, ..)| *at);
        engines.chain(clients).chain(wire).min()
    }

    fn step(&mut self) {
        while self.wire.front().is_some_and(|(at, ..)| *at <= self.now) {
            let Some((_, from, to, mut bytes)) = self.wire.pop_front() else {
                break;
            };
            if let Some(index) = (0..self.engines.len()).find(|i| engine_address(*i) == to) {
                let taker = self.moved.get(&index).copied().unwrap_or(index);
                if self.dead.contains(&taker) {
                    continue;
                }
                let local = if taker == index { 0 } else { LOCAL_OF_MOVED };
                let from = via::mark(from, local);
                self.engines[taker].handle_datagram(self.now, from, &mut bytes);
            } else if let Some(client) = self.clients.iter_mut().find(|c| c.address == to) {
                client.handle(self.now, &bytes);
            }
            self.flush();
        }
        for client in &mut self.clients {
            client.handle_timeout(self.now);
        }
        for (index, engine) in self.engines.iter_mut().enumerate() {
            if self.dead.contains(&index) {
                continue;
            }
            if engine.deadline().is_some_and(|at| at <= self.now) {
                engine.handle_timeout(self.now);
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        let due = self.now + DELAY;
        for (index, engine) in self.engines.iter_mut().enumerate() {
            let from = engine_address(index);
            assert!(engine.forward(), "a few clients' packets fit");
            let transmits = engine.transmits();
            for datagram in transmits.datagrams() {
                let bytes = transmits.bytes(datagram);
                if self.dead.contains(&index) {
                    continue;
                }
                let ssrc_at = match classify(bytes) {
                    Class::Rtp => Some((false, 8)),
                    Class::Rtcp => Some((true, 4)),
                    _ => None,
                };
                if let Some((is_rtcp, at)) = ssrc_at {
                    let ssrc = u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
                    let key = (via::plain(datagram.to), is_rtcp, ssrc);
                    self.sent_under.entry(key).or_default().insert(index);
                }
                if classify(bytes) == Class::Relay && self.relay_losses > 0 {
                    self.relay_losses -= 1;
                    continue;
                }
                self.wire
                    .push_back((due, from, via::plain(datagram.to), bytes.to_vec()));
            }
            transmits.clear();
            while let Some(event) = engine.poll_event() {
                self.events.push((index, event));
                self.happened_at.push(self.now);
            }
        }
        for client in &mut self.clients {
            for bytes in client.out.drain(..) {
                let to = engine_address(client.engine);
                // A handshake record with a ClientHello in it.
                client.hellos += usize::from(bytes[0] == 22 && bytes.get(13) == Some(&1));
                self.wire.push_back((due, client.address, to, bytes));
            }
        }
    }
}

pub(super) type Mids = BTreeMap<String, TrackSid>;

pub(super) struct Client {
    pub(super) engine: usize,
    pub(super) address: SocketAddr,
    ufrag: String,
    remote: Option<Credentials>,
    /// Fingerprint in the server's last description.
    shown: Option<Fingerprint>,
    /// Last offer and answer.
    pub(super) agreed: Option<(String, String)>,
    /// ClientHellos sent.
    pub(super) hellos: usize,
    dtls: dtls::tests::Client,
    sctp: Option<sctp::tests::Client>,
    srtp: Option<(SrtpSender, SrtpReceiver)>,
    next_check: Option<Instant>,
    checked: bool,
    /// Media packets received, decrypted.
    pub(super) rtp: Vec<Vec<u8>>,
    /// RTCP packets received, decrypted.
    pub(super) rtcp: Vec<Vec<u8>>,
    out: VecDeque<Vec<u8>>,
}

impl Client {
    fn new(now: Instant, index: usize, engine: usize) -> Self {
        Self {
            engine,
            address: SocketAddr::from(([10, 0, 1, 1 + index as u8], 5000)),
            ufrag: "themUFRAG".to_owned(),
            remote: None,
            shown: None,
            agreed: None,
            hellos: 0,
            dtls: dtls::tests::Client::new(now, &PROFILES, 1200),
            sctp: None,
            srtp: None,
            next_check: None,
            checked: false,
            rtp: Vec::new(),
            rtcp: Vec::new(),
            out: VecDeque::new(),
        }
    }

    /// A captured description with this client's transport in it.
    pub(super) fn description(&self, template: &str) -> String {
        let own = |line: &str| {
            if line.starts_with("a=fingerprint:") {
                format!("a=fingerprint:sha-256 {}\r\n", self.dtls.fingerprint)
            } else if line.starts_with("a=ice-ufrag:") {
                format!("a=ice-ufrag:{}\r\n", self.ufrag)
            } else {
                format!("{line}\r\n")
            }
        };
        template.lines().map(own).collect()
    }

    /// Everything offered is taken.
    fn answer_to(&self, offer: &str) -> String {
        let kept = |line: &&str| {
            let dropped = [
                "a=msid",
                "a=ssrc",
                "a=candidate",
                "a=ice-lite",
                "a=end-of-candidates",
            ];
            !dropped.iter().any(|start| line.starts_with(start))
        };
        let text: String = offer
            .lines()
            .filter(kept)
            .map(|line| format!("{line}\r\n"))
            .collect();
        self.description(&text)
            .replace("a=sendonly", "a=recvonly")
            .replace("a=setup:actpass", "a=setup:active")
    }

    /// A new user fragment and a new path, as in an ICE restart.
    pub(super) fn move_to(&mut self, now: Instant, address: SocketAddr, ufrag: &str) {
        self.address = address;
        ufrag.clone_into(&mut self.ufrag);
        self.checked = false;
        self.next_check = Some(now);
    }

    fn take_remote(&mut self, now: Instant, description: &Description) {
        let transport = description.bundle_transport();
        if self.shown.is_some() && self.shown != transport.fingerprint {
            // As libwebrtc: another certificate means another session, over which the association
            // goes on.
            self.dtls = dtls::tests::Client::new(now, &PROFILES, 1200);
            self.srtp = None;
        }
        self.shown = transport.fingerprint;
        self.remote = Some(Credentials {
            ufrag: transport.ufrag.expect("a ufrag"),
            pwd: transport.pwd.expect("a password"),
        });
        self.next_check = Some(now);
    }

    /// The server ended the DTLS session.
    pub(super) fn is_closed(&self) -> bool {
        self.dtls.closed
    }

    /// Media can flow.
    pub(super) fn is_connected(&self) -> bool {
        self.srtp.is_some()
    }

    fn handle(&mut self, now: Instant, bytes: &[u8]) {
        match classify(bytes) {
            Class::Stun => {
                self.checked = true;
                self.take_dtls(now);
            }
            Class::Dtls => {
                self.dtls.handle(now, bytes);
                self.take_dtls(now);
            }
            Class::Rtp | Class::Rtcp => {
                let mut packet = bytes.to_vec();
                let (_, receiver) = self.srtp.as_mut().expect("media comes after the keys");
                if classify(bytes) == Class::Rtp {
                    let len = receiver.unprotect_rtp(&mut packet).expect("authentic");
                    packet.truncate(len);
                    self.rtp.push(packet);
                } else {
                    let len = receiver.unprotect_rtcp(&mut packet).expect("authentic");
                    packet.truncate(len);
                    self.rtcp.push(packet);
                }
            }
            Class::Relay | Class::Unknown => panic!("nothing for a client"),
        }
    }

    fn take_dtls(&mut self, now: Instant) {
        if self.dtls.connected && self.srtp.is_none() {
            self.srtp = Some(self.keys());
        }
        while let Some(data) = self.dtls.data.pop_front() {
            if self.sctp.is_none() {
                self.sctp = Some(sctp::tests::Client::new(now));
            }
            if let Some(sctp) = &mut self.sctp {
                sctp.handle(now, data);
            }
        }
        self.take_sctp(now);
        if self.checked {
            self.out
                .extend(self.dtls.out.drain(..).map(|bytes| bytes.to_vec()));
        }
    }

    fn take_sctp(&mut self, now: Instant) {
        if let Some(sctp) = &mut self.sctp {
            while let Some(packet) = sctp.out.pop_front() {
                self.dtls.send(now, &packet);
            }
        }
    }

    /// Works with the data channels, which begin to exist with this.
    pub(super) fn data<T>(
        &mut self,
        now: Instant,
        work: impl FnOnce(&mut sctp::tests::Client) -> T,
    ) -> T {
        let sctp = self
            .sctp
            .get_or_insert_with(|| sctp::tests::Client::new(now));
        let result = work(sctp);
        self.take_dtls(now);
        result
    }

    /// The client's ends: the server's with the directions swapped.
    fn keys(&self) -> (SrtpSender, SrtpReceiver) {
        let state = self
            .dtls
            .endpoint
            .get_connection_state(DTLS_PEER)
            .expect("connected");
        let (profile, salt_len) = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => (Profile::Aes128Gcm, 12),
            _ => (Profile::Aes128CmSha1_80, 14),
        };
        let material = state
            .export_keying_material("EXTRACTOR-dtls_srtp", &[], profile.material_len())
            .expect("exports");
        let material: &[u8] = material.as_ref();
        let (keys, salts) = material.split_at(32);
        let swapped = [
            &keys[16..],
            &keys[..16],
            &salts[salt_len..],
            &salts[..salt_len],
        ]
        .concat();
        server_ends(profile, &swapped).expect("the right length")
    }

    fn send_rtp(&mut self, packet: &[u8]) {
        let bytes = self.seal(packet);
        self.out.push_back(bytes);
    }

    /// Encrypts a packet without sending it.
    pub(super) fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut buffer = packet.to_vec();
        buffer.resize(packet.len() + 32, 0);
        let (sender, _) = self.srtp.as_mut().expect("connected");
        let len = sender
            .protect_rtp(&mut buffer, packet.len())
            .expect("a good packet");
        buffer.truncate(len);
        buffer
    }

    /// The same for RTCP.
    pub(super) fn seal_rtcp(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut buffer = packet.to_vec();
        buffer.resize(packet.len() + 32, 0);
        let (sender, _) = self.srtp.as_mut().expect("connected");
        let len = sender
            .protect_rtcp(&mut buffer, packet.len())
            .expect("a good packet");
        buffer.truncate(len);
        buffer
    }

    fn deadline(&self) -> Option<Instant> {
        let sctp = self.sctp.as_ref().and_then(sctp::tests::Client::deadline);
        let dtls = self.dtls.deadline().filter(|_| self.checked);
        [self.next_check, dtls, sctp].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.next_check.is_some_and(|at| at <= now)
            && let Some(remote) = &self.remote
        {
            let mut check = ice::tests::Check::new(remote, true);
            check.from_ufrag = &self.ufrag;
            self.out.push_back(check.bytes());
            self.next_check = Some(now + CHECK_INTERVAL);
        }
        if self.checked && self.dtls.deadline().is_some_and(|at| at <= now) {
            self.dtls.handle_timeout(now);
        }
        if let Some(sctp) = &mut self.sctp
            && sctp.deadline().is_some_and(|at| at <= now)
        {
            sctp.handle_timeout(now);
        }
        self.take_dtls(now);
    }
}

/// A track as the client announced it.
pub(super) fn track(sid: &str, kind: Kind, cid: &str) -> Box<Track> {
    let layer = |quality: Quality| Layer {
        quality,
        size: Size {
            width: 320 << (quality as u32),
            height: 180 << (quality as u32),
        },
        bitrate_bps: 150_000 << (quality as u32),
        rid: String::new(),
        ssrc: 0,
        repair_ssrc: 0,
    };
    let layers = match kind {
        Kind::Audio => Vec::new(),
        Kind::Video => [Quality::Low, Quality::Medium, Quality::High]
            .map(layer)
            .into(),
    };
    Box::new(Track {
        sid: sid.into(),
        kind,
        name: String::new(),
        source: Source::Unknown,
        muted: false,
        size: Size {
            width: 1280,
            height: 720,
        },
        simulcast: kind == Kind::Video,
        disable_dtx: false,
        stereo: false,
        disable_red: false,
        encryption: Encryption::None,
        stream: String::new(),
        audio_features: Vec::new(),
        backup_codec_policy: 0,
        codecs: vec![TrackCodec {
            mime: String::new(),
            fmtp: String::new(),
            cid: cid.to_owned(),
            mid: String::new(),
            layers,
        }],
        announced: false,
    })
}

/// An RTP packet with one-byte header extensions.
pub(super) fn rtp(
    pt: u8,
    marker: bool,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
    extensions: &[(u8, &[u8])],
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x80, pt | u8::from(marker) << 7];
    packet.extend(sequence.to_be_bytes());
    packet.extend(timestamp.to_be_bytes());
    packet.extend(ssrc.to_be_bytes());
    if !extensions.is_empty() {
        packet[0] |= 0x10;
        let mut body = Vec::new();
        for (id, value) in extensions {
            body.push(id << 4 | (value.len() as u8 - 1));
            body.extend(*value);
        }
        body.resize(body.len().next_multiple_of(4), 0);
        packet.extend([0xbe, 0xde]);
        packet.extend((body.len() as u16 / 4).to_be_bytes());
        packet.extend(body);
    }
    packet.extend(payload);
    packet
}

/// What of a received RTP packet the tests look at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) pt: u8,
    pub(super) sequence: u16,
    pub(super) timestamp: u32,
    pub(super) ssrc: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) fn seen(packet: &[u8]) -> Seen {
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().expect("4 bytes"));
    let mut start = 12 + usize::from(packet[0] & 0x0f) * 4;
    if packet[0] & 0x10 != 0 {
        start += 4 + (word(start) & 0xffff) as usize * 4;
    }
    Seen {
        pt: packet[1] & 0x7f,
        sequence: (word(0) & 0xffff) as u16,
        timestamp: word(4),
        ssrc: word(8),
        payload: packet[start..].to_vec(),
    }
}
