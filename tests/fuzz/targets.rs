//! One function per parser and per stateful core that reads bytes of others: none may panic.
//!
//! `cargo fuzz` drives them (`tests/fuzz/fuzz_targets`); `tests/corpus.rs` replays the corpus and
//! random mutations of it with plain stable Rust.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use flotilla_media::command::{Channel, Command, PeerId, PeerRole, Restore, Settings};
use flotilla_media::engine::{Engine, EngineConfig};
use flotilla_media::peer::dtls::Certificate;
use flotilla_media::peer::transport::TransportSnapshot;
use flotilla_media::{codec, peer, rtp};
use flotilla_model::encoding;
use flotilla_model::id::{BootId, Identity, NodeId, UnixMillis};
use flotilla_signal::config::SessionConfig;
use flotilla_signal::connect::Endpoint;
use flotilla_signal::data;
use flotilla_signal::id_source::IdSource;
use flotilla_signal::room_service::{ApiRequest, Format};
use flotilla_signal::token::{Claims, Keys, VideoGrant};
use flotilla_signal::{connect, room_service, token, wire};

#[path = "targets/draw.rs"]
mod draw;
#[path = "targets/engine.rs"]
mod engine_play;
#[path = "targets/node.rs"]
mod node;
#[path = "targets/relay.rs"]
mod relay;
#[path = "targets/requests.rs"]
mod requests;
#[path = "targets/session.rs"]
mod session;
#[path = "targets/store.rs"]
mod store;

/// A target: name and function.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them; the corpus has a folder for each.
pub(crate) const TARGETS: &[Target] = &[
    ("signal_binary", signal_binary),
    ("signal_text", signal_text),
    ("join_request", join_request),
    ("upgrade_query", upgrade_query),
    ("token", verify_token),
    ("data_packet", data_packet),
    ("room_service", room_service_call),
    ("log_entry", log_entry),
    ("snapshot", snapshot),
    ("sdp", sdp),
    ("transport_snapshot", transport_snapshot),
    ("restore", restore),
    ("datagrams", datagrams),
    ("rtp", rtp_packet),
    ("rtcp", rtcp_compound),
    ("payload", payload),
    ("session", session::run),
    ("engine", engine_play::run),
    ("relay_message", relay::plain),
    ("relay_packet", relay::sealed),
    ("store", store::run),
    ("raft_wire", flotilla_raft::check_wire),
    ("configuration", node::configuration),
    ("mesh", node::mesh),
    ("admin_page", flotilla_node::admin::check_page),
];

/// The target of this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub(crate) fn target(name: &str) -> fn(&[u8]) {
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("the target exists")
        .1
}

const BYTES_MAX: usize = 2 << 20;

fn keys() -> Keys {
    Keys::new(vec![("devkey".to_owned(), "secret".to_owned())])
}

fn signal_binary(bytes: &[u8]) {
    let _ = wire::Codec::new(BYTES_MAX).decode_binary(bytes);
}

fn signal_text(bytes: &[u8]) {
    let _ = wire::Codec::new(BYTES_MAX).decode_text(bytes);
}

fn join_request(bytes: &[u8]) {
    let _ = connect::decode_join_request(bytes, 1 << 20);
}

fn upgrade_query(bytes: &[u8]) {
    let Ok(query) = std::str::from_utf8(bytes) else {
        return;
    };
    let config = SessionConfig::new(NodeId(1), keys());
    for endpoint in [Endpoint::V0, Endpoint::V1] {
        let _ = connect::connect(endpoint, query, None, &config, UnixMillis(0));
    }
}

fn verify_token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = token::verify(text, &keys(), UnixMillis(0));
    }
}

fn data_packet(bytes: &[u8]) {
    let seen = data::inspect(bytes);
    let with = data::Rewrite {
        lossy: false,
        identity: "somebody",
        sid: "PA_x",
        sequence: 7,
        destinations: &[Identity::from("other")],
    };
    let written = data::rewrite(bytes, &with);
    // What cannot be read is not passed on.
    let Ok(seen) = seen else {
        return;
    };
    let written = written.expect("what can be read can be written");
    let again = data::inspect(&written).expect("what we wrote can be read");
    assert_eq!(again.participant_identity, "somebody");
    assert_eq!(again.sequence, 7);
    assert_eq!(again.destinations, with.destinations);
    assert_eq!(again.content, seen.content);
}

fn room_service_call(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else {
        return;
    };
    let methods = [
        "CreateRoom",
        "ListRooms",
        "DeleteRoom",
        "ListParticipants",
        "GetParticipant",
        "RemoveParticipant",
        "MutePublishedTrack",
        "UpdateParticipant",
        "UpdateSubscriptions",
        "SendData",
        "UpdateRoomMetadata",
    ];
    let claims = Claims {
        video: Some(VideoGrant {
            room_create: true,
            room_list: true,
            room_admin: true,
            room: "room".to_owned(),
            ..VideoGrant::default()
        }),
        ..Claims::default()
    };
    let request = ApiRequest {
        method: methods[usize::from(first >> 1) % methods.len()],
        format: if first & 1 == 0 {
            Format::Protobuf
        } else {
            Format::Json
        },
        body,
        claims: &claims,
        config: &SessionConfig::new(NodeId(1), keys()),
        now: UnixMillis(0),
    };
    let _ = room_service::parse(&request, &mut IdSource::new([7; 32]));
}

fn log_entry(bytes: &[u8]) {
    if let Ok(entry) = encoding::decode_entry(bytes) {
        let written = encoding::encode_entry(&entry);
        assert_eq!(
            encoding::decode_entry(&written).expect("what we wrote can be read"),
            entry
        );
        let mut state = flotilla_model::State::default();
        let _ = state.apply(&entry);
    }
}

fn snapshot(bytes: &[u8]) {
    if let Ok(state) = encoding::decode_snapshot(bytes) {
        let _ = encoding::state_hash(&state);
    }
}

fn sdp(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = peer::sdp::parse::parse(text);
    }
}

fn engine(now: Instant) -> Engine {
    static CERTIFICATE: OnceLock<Arc<Certificate>> = OnceLock::new();
    let certificate = CERTIFICATE
        .get_or_init(|| Arc::new(Certificate::generate().expect("a certificate")))
        .clone();
    let here = "127.0.0.1:7882".parse().expect("an address");
    let config = EngineConfig::new(
        NodeId(1),
        BootId(1),
        [1; 32],
        certificate,
        vec![here],
        [2; 32],
    );
    Engine::new(now, config)
}

/// What one node tells another of a connection's transport, and a connection made from it.
fn transport_snapshot(bytes: &[u8]) {
    let Ok(snapshot) = TransportSnapshot::from_bytes(bytes) else {
        return;
    };
    let written = snapshot.to_bytes();
    let again = TransportSnapshot::from_bytes(&written).expect("what we wrote can be read");
    assert!(again == snapshot);
    continue_peer(PeerRole::Single, Some(snapshot), None);
}

/// A client's former offer and answer, with a zero byte between, as continued by another node.
fn restore(bytes: &[u8]) {
    let mut texts = bytes
        .splitn(2, |byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned());
    let (Some(offer), Some(answer)) = (texts.next(), texts.next()) else {
        return;
    };
    for role in [PeerRole::Subscriber, PeerRole::Single] {
        continue_peer(role, None, Some((offer.clone(), answer.clone())));
    }
}

fn continue_peer(
    role: PeerRole,
    transport: Option<TransportSnapshot>,
    descriptions: Option<(String, String)>,
) {
    let mut now = Instant::now();
    let mut engine = engine(now);
    let peer = PeerId(1);
    let again = descriptions.as_ref().map(|(offer, _)| offer.clone());
    let restore = Restore {
        transport,
        descriptions,
        channels: vec![(Channel::Reliable, 1), (Channel::Lossy, 3)],
        sequence: 7,
    };
    let mut commands = vec![
        Command::CreatePeer {
            peer,
            role,
            negotiated_channels: false,
            restore: Some(Box::new(restore)),
        },
        Command::Subscribe {
            peer,
            track: "TR_AM".into(),
            stream: "PA_x|TR_AM".to_owned(),
            settings: Settings::default(),
        },
        Command::RestartIce { peer },
    ];
    commands.extend(again.map(|sdp| Command::Offer { peer, id: 1, sdp }));
    commands.push(Command::Export { peer });
    for command in commands {
        engine.handle_command(now, command);
    }
    for _ in 0..4 {
        while engine.poll_event().is_some() {}
        engine.transmits().clear();
        now += Duration::from_millis(500);
        engine.handle_timeout(now);
    }
}

/// A whole engine on a virtual clock; the input is a list of datagrams, each after its length byte
/// pair, with a pause after it.
fn datagrams(bytes: &[u8]) {
    let start = Instant::now();
    let mut now = start;
    let mut engine = engine(now);
    let mut rest = bytes;
    while let [high, low, pause, tail @ ..] = rest {
        let length = (usize::from(*high) << 8 | usize::from(*low))
            .min(tail.len())
            .min(2048);
        let (datagram, after) = tail.split_at(length);
        rest = after;
        let from = std::net::SocketAddr::from(([127, 0, 0, 1], 1000 + u16::from(*pause)));
        engine.handle_datagram(now, from, &mut datagram.to_vec());
        now += Duration::from_millis(u64::from(*pause));
        if engine.deadline().is_some_and(|deadline| deadline <= now) {
            engine.handle_timeout(now);
        }
        while engine.poll_event().is_some() {}
        while !engine.forward() {
            engine.transmits().clear();
        }
        engine.transmits().clear();
    }
}

fn rtp_packet(bytes: &[u8]) {
    if let Ok(header) = rtp::packet::Header::parse(bytes) {
        assert!(header.payload.end <= bytes.len() && header.payload.start <= header.payload.end);
    }
    for profile in [0xbede, 0x1000] {
        let _ = rtp::extension::elements(profile, bytes).count();
    }
}

fn rtcp_compound(bytes: &[u8]) {
    let _ = rtp::rtcp::packets(bytes).count();
    let _ = rtp::twcc::read(bytes, |_, _| {});
}

fn payload(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    if let Some(codec) = codec::Codec::from_number(first % 6) {
        let _ = codec::inspect(codec, rest);
    }
    let _ = codec::opus::duration(rest);
}
