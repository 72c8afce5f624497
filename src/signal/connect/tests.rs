//! Upgrade requests, good and bad.

use super::*;
use crate::session::testing::{WALL, claims, config};
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use flate2::Compression;
use flate2::write::GzEncoder;
use livekit_protocol::ConnectionSettings;
use proptest::prelude::*;
use std::io::Write as _;

fn token() -> String {
    token::create(claims("alice"), "devkey", "secret").expect("signed")
}

fn request() -> JoinRequest {
    JoinRequest {
        client_info: Some(ClientInfo {
            sdk: client_info::Sdk::Js as i32,
            protocol: 17,
            client_protocol: 2,
            capabilities: vec![2],
            ..ClientInfo::default()
        }),
        connection_settings: Some(ConnectionSettings {
            auto_subscribe: true,
            adaptive_stream: true,
            ..ConnectionSettings::default()
        }),
        publisher_offer: Some(SessionDescription {
            r#type: "offer".into(),
            // Bytes that need the letters in which the alphabets differ.
            sdp: "v=0 ~~~???>>> ÿÿÿ".repeat(20),
            id: 1,
            ..SessionDescription::default()
        }),
        ..JoinRequest::default()
    }
}

fn wrapped(request: &JoinRequest, gzip: bool) -> Vec<u8> {
    let bytes = request.encode_to_vec();
    let (compression, join_request) = if gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&bytes).expect("in memory");
        (
            wrapped_join_request::Compression::Gzip,
            encoder.finish().expect("in memory"),
        )
    } else {
        (wrapped_join_request::Compression::None, bytes)
    };
    WrappedJoinRequest {
        compression: compression as i32,
        join_request,
    }
    .encode_to_vec()
}

#[test]
fn join_requests_are_read_in_every_spelling() {
    for gzip in [false, true] {
        let bytes = wrapped(&request(), gzip);
        for text in [
            STANDARD.encode(&bytes),
            STANDARD_NO_PAD.encode(&bytes),
            URL_SAFE.encode(&bytes),
            URL_SAFE_NO_PAD.encode(&bytes),
            STANDARD.encode(&bytes).replace('+', " "),
        ] {
            assert_eq!(decode_join_request(text.as_bytes(), 1 << 20), Ok(request()));
        }
    }
}

#[test]
fn v1_takes_everything_from_the_join_request() {
    let text = URL_SAFE
        .encode(wrapped(&request(), true))
        .replace('=', "%3D");
    let query = format!("access_token={}&join_request={text}", token());
    let connect = connect(Endpoint::V1, &query, None, &config(), WALL).expect("accepted");
    let parameters = connect.parameters;
    assert!(parameters.single_peer_connection && parameters.auto_subscribe);
    assert!(parameters.adaptive_stream && parameters.reconnect.is_none());
    assert_eq!(parameters.client.client_protocol, 2);
    assert_eq!(parameters.publisher_offer.map(|offer| offer.id), Some(1));
    assert_eq!(connect.claims.identity(), "alice");
}

#[test]
fn a_resume_names_its_session() {
    let resume = JoinRequest {
        reconnect: true,
        participant_sid: "PA_1".into(),
        reconnect_reason: 1,
        ..request()
    };
    let text = URL_SAFE.encode(wrapped(&resume, false));
    let query = format!("join_request={text}");
    let header = format!("Bearer {}", token());
    let connect = connect(Endpoint::V0, &query, Some(&header), &config(), WALL).expect("accepted");
    assert!(
        connect.parameters.single_peer_connection,
        "a join request means one connection"
    );
    let reconnect = connect.parameters.reconnect.expect("a resume");
    assert_eq!((reconnect.sid, reconnect.reason), (Some("PA_1".into()), 1));
}

#[test]
fn v0_takes_everything_from_the_query() {
    let attributes = URL_SAFE.encode(r#"{"mood":"good"}"#);
    let query = format!(
        "access_token={}&sdk=js&version=2.0.0&protocol=15&os=mac%20OS&browser=Safari&auto_subscribe=0\
         &adaptive_stream=1&capabilities=CAP_PACKET_TRAILER,2,CAP_NEW&reconnect=1&sid=PA_2&attributes={attributes}",
        token()
    );
    let connect = connect(Endpoint::V0, &query, None, &config(), WALL).expect("accepted");
    let parameters = connect.parameters;
    assert!(!parameters.single_peer_connection && !parameters.auto_subscribe);
    assert!(parameters.adaptive_stream);
    assert_eq!((parameters.client.sdk, parameters.client.protocol), (1, 15));
    assert_eq!(parameters.client.os, "mac OS");
    assert_eq!(parameters.client.capabilities, [1, 2]);
    assert_eq!(parameters.attributes["mood"], "good");
    assert_eq!(
        parameters.reconnect.and_then(|r| r.sid),
        Some("PA_2".into())
    );
}

#[test]
fn refusals_have_their_status() {
    let token = token();
    let status = |endpoint, query: &str| {
        connect(endpoint, query, None, &config(), WALL)
            .expect_err("refused")
            .status
    };
    assert_eq!(status(Endpoint::V0, ""), 401);
    assert_eq!(status(Endpoint::V0, "access_token=x"), 401);
    let good = format!("access_token={token}");
    assert_eq!(status(Endpoint::V0, &format!("{good}&room=other")), 401);
    assert_eq!(status(Endpoint::V1, &good), 400);
    for join_request in ["%2", "****", "AAAA", "CAUQ"] {
        assert_eq!(
            status(Endpoint::V1, &format!("{good}&join_request={join_request}")),
            400
        );
    }
    assert_eq!(
        status(Endpoint::V0, &format!("{good}&attributes=e30x")),
        400
    );
}

#[test]
fn own_attributes_take_a_grant() {
    let mut claims = claims("alice");
    claims.video.get_or_insert_default().can_update_own_metadata = None;
    let token = token::create(claims, "devkey", "secret").expect("signed");
    let attributes = URL_SAFE.encode(r#"{"mood":"good"}"#);
    let query = format!("access_token={token}&attributes={attributes}");
    let refused = connect(Endpoint::V0, &query, None, &config(), WALL).expect_err("refused");
    assert_eq!(refused.status, 401);
}

#[test]
fn names_have_limits() {
    let mut long = claims(&"x".repeat(257));
    let token =
        |claims: &Claims| token::create(claims.clone(), "devkey", "secret").expect("signed");
    let status = |claims: &Claims| {
        let query = format!("access_token={}", token(claims));
        connect(Endpoint::V0, &query, None, &config(), WALL).map_err(|error| error.status)
    };
    assert_eq!(status(&long).err(), Some(400));
    long.sub.truncate(256);
    assert!(status(&long).is_ok());
    long.video.get_or_insert_default().room = "r".repeat(257);
    assert_eq!(status(&long).err(), Some(400));
}

#[test]
fn a_bomb_is_not_inflated() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0; 8 << 20]).expect("in memory");
    let wrapped = WrappedJoinRequest {
        compression: wrapped_join_request::Compression::Gzip as i32,
        join_request: encoder.finish().expect("in memory"),
    };
    let text = URL_SAFE.encode(wrapped.encode_to_vec());
    let refused = decode_join_request(text.as_bytes(), 1 << 20).expect_err("refused");
    assert_eq!(
        (refused.status, refused.text.as_str()),
        (400, "join_request: too long when inflated")
    );
}

#[test]
fn rejections_of_the_log_have_their_status() {
    let status = |rejection: Rejection| HttpError::from(&rejection).status;
    assert_eq!(status(Rejection::RoomNotFound), 404);
    assert_eq!(status(Rejection::TokenRevoked), 401);
    assert_eq!(status(Rejection::RoomFull), 503);
    assert_eq!(status(Rejection::LimitExceeded("x".into())), 400);
}

proptest! {
    #[test]
    fn any_query_is_read_or_refused(query in "\\PC{0,200}", v1 in any::<bool>()) {
        let endpoint = if v1 { Endpoint::V1 } else { Endpoint::V0 };
        let _ = parameters(endpoint, &query, &config());
        let _ = parameters(endpoint, &format!("join_request={query}"), &config());
        let _ = parameters(endpoint, &format!("attributes={query}"), &config());
    }

    #[test]
    fn any_join_request_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), gzip in 0..3i32) {
        let _ = decode_join_request(&bytes, 1000);
        let wrapped = WrappedJoinRequest { compression: gzip, join_request: bytes };
        let _ = decode_join_request(URL_SAFE.encode(wrapped.encode_to_vec()).as_bytes(), 1000);
    }
}
