//! Tokens, good and bad.

use super::*;
use flotilla_model::track::Source;
use proptest::prelude::*;
use std::collections::BTreeSet;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn keys() -> Keys {
    Keys::new(vec![
        ("devkey".into(), "secret".into()),
        ("other".into(), "hidden".into()),
    ])
}

fn claims() -> Claims {
    Claims {
        sub: "alice".into(),
        exp: Some(NOW.0 / 1000 + 10),
        nbf: Some(NOW.0 / 1000),
        video: Some(VideoGrant {
            room_join: true,
            room: "room".into(),
            ..VideoGrant::default()
        }),
        ..Claims::default()
    }
}

fn signed(claims: Claims) -> String {
    create(claims, "devkey", "secret").expect("signed")
}

/// A token with any payload, properly signed.
fn signed_json(header: &str, payload: &str) -> String {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let key = EncodingKey::from_secret(b"secret");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    format!("{message}.{}", signature.expect("signed"))
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

#[test]
fn what_was_signed_is_read_with_the_key_it_names() {
    let read = verify(&signed(claims()), &keys(), NOW).expect("valid");
    assert_eq!(
        read,
        Claims {
            iss: "devkey".into(),
            ..claims()
        }
    );
    let other = create(claims(), "other", "hidden").expect("signed");
    assert_eq!(verify(&other, &keys(), NOW).expect("valid").iss, "other");
}

#[test]
fn a_token_of_another_library_is_read() {
    // PyJWT, as the Python server SDK uses it.
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJkZXZrZXkiLCJleHAiOjIwMDAwMDAwMDAsInN1YiI6ImFsaWNlIn0.";
    let message = token.trim_end_matches('.');
    let key = EncodingKey::from_secret(b"secret");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    let token = format!("{token}{}", signature.expect("signed"));
    assert_eq!(
        verify(&token, &keys(), NOW).expect("valid").identity(),
        "alice"
    );
}

#[test]
fn bad_tokens_are_refused_with_a_reason() {
    let good = signed(claims());
    let (message, _) = good.rsplit_once('.').expect("three parts");
    let unsigned = format!("{message}.");
    let mut tampered = good.clone().into_bytes();
    let last = tampered.len() - 2;
    tampered[last] = if tampered[last] == b'A' { b'B' } else { b'A' };
    let tampered = String::from_utf8(tampered).expect("ASCII");
    let payload = r#"{"iss":"devkey","exp":2000000000}"#;
    for (token, error) in [
        ("", TokenError::Missing),
        ("a.b", TokenError::Malformed),
        ("a.b.c", TokenError::Malformed),
        (&tampered, TokenError::Signature),
        (&unsigned, TokenError::Signature),
        (
            &signed_json(r#"{"alg":"none"}"#, payload),
            TokenError::Algorithm,
        ),
        (
            &signed_json(r#"{"alg":"RS256"}"#, payload),
            TokenError::Algorithm,
        ),
        (
            &signed_json(HEADER, r#"{"iss":"nobody","exp":2000000000}"#),
            TokenError::UnknownKey,
        ),
        (
            &signed_json(HEADER, r#"{"iss":"other","exp":2000000000}"#),
            TokenError::Signature,
        ),
        (
            &signed_json(HEADER, r#"{"iss":"devkey"}"#),
            TokenError::NoExpiry,
        ),
        (&signed_json(HEADER, "7"), TokenError::Malformed),
    ] {
        assert_eq!(verify(token, &keys(), NOW), Err(error), "{token}");
    }
}

#[test]
fn times_hold_within_a_minute() {
    let at = |seconds: i64| UnixMillis((NOW.0 as i64 + seconds * 1000) as u64);
    let token = signed(claims());
    assert!(verify(&token, &keys(), at(70)).is_ok());
    assert_eq!(verify(&token, &keys(), at(71)), Err(TokenError::Expired));
    assert!(verify(&token, &keys(), at(-60)).is_ok());
    assert_eq!(
        verify(&token, &keys(), at(-61)),
        Err(TokenError::NotYetValid)
    );
}

#[test]
fn every_grant_is_read_and_written_by_livekits_name() {
    let json = serde_json::json!({
        "iss": "devkey", "sub": "alice", "exp": 2_000_000_000u64, "nbf": 1_600_000_000.5,
        "name": "Alice", "kind": "agent", "kindDetails": ["CLOUD_AGENT", "unknown"],
        "video": {
            "roomCreate": true, "roomList": true, "roomRecord": true, "roomAdmin": true,
            "roomJoin": true, "room": "r", "canPublish": true, "canSubscribe": false,
            "canPublishData": false, "canPublishSources": ["camera", "screen_share_audio"],
            "canUpdateOwnMetadata": true, "ingressAdmin": true, "hidden": true, "recorder": true,
            "agent": true, "canSubscribeMetrics": true, "canManageAgentSession": true,
            "destinationRoom": "d"
        },
        "sip": {"admin": true, "call": true},
        "agent": {"admin": true, "simulationAdmin": true, "databaseAdmin": true},
        "inference": {"perform": true}, "observability": {"write": true},
        "roomConfig": {"name": "c", "emptyTimeout": 5, "agents": [{"agentName": "a"}]},
        "roomPreset": "p", "sha256": "h", "metadata": "m", "attributes": {"k": "v"}
    });
    let read = verify(&signed_json(HEADER, &json.to_string()), &keys(), NOW).expect("valid");
    let mut written = serde_json::to_value(&read).expect("JSON");
    written["nbf"] = serde_json::json!(1_600_000_000.5);
    assert_eq!(written, json);
    assert_eq!(read.issued_at(), UnixMillis(1_600_000_000_000));
    assert_eq!(
        (read.kind_number(), read.kind_detail_numbers()),
        (4, vec![0])
    );
    let permission = read.permission();
    assert!(permission.can_publish && !permission.can_subscribe && !permission.can_publish_data);
    assert!(permission.hidden && permission.recorder && permission.agent);
    assert_eq!(
        permission.can_publish_sources,
        BTreeSet::from([Source::Camera, Source::ScreenShareAudio])
    );
    assert!(read.administers("r") && !read.administers("s"));
}

#[test]
fn absent_grants_have_livekits_defaults() {
    let permission = claims().permission();
    assert!(permission.can_publish && permission.can_subscribe && permission.can_publish_data);
    assert!(!permission.can_update_metadata && permission.can_publish_sources.is_empty());
    let mut muted = claims();
    muted.video.get_or_insert_default().can_publish = Some(false);
    assert!(!muted.permission().can_publish_data);
}

#[test]
fn a_changed_permission_survives_the_token() {
    let mut permission = claims().permission();
    permission.can_publish = false;
    permission.can_publish_sources.insert(Source::Microphone);
    let mut changed = claims();
    changed.set_permission(&permission);
    let read = verify(&signed(changed), &keys(), NOW).expect("valid");
    assert_eq!(read.permission(), permission);
}

#[test]
fn joining_takes_a_grant_a_room_and_an_identity() {
    assert_eq!(claims().joinable_room(None), Ok("room"));
    assert_eq!(claims().joinable_room(Some("room")), Ok("room"));
    assert_eq!(claims().joinable_room(Some("")), Ok("room"));
    assert_eq!(
        claims().joinable_room(Some("other")),
        Err(TokenError::OtherRoom)
    );
    let without = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        claims.joinable_room(None).map(str::to_owned)
    };
    assert_eq!(without(|c| c.video = None), Err(TokenError::NoJoin));
    assert_eq!(
        without(|c| c.video.get_or_insert_default().room_join = false),
        Err(TokenError::NoJoin)
    );
    assert_eq!(
        without(|c| c.video.get_or_insert_default().room.clear()),
        Err(TokenError::NoRoom)
    );
    assert_eq!(without(|c| c.sub.clear()), Err(TokenError::NoIdentity));
}

#[test]
fn secrets_are_not_shown() {
    assert_eq!(format!("{:?}", keys()), r#"["devkey", "other"]"#);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,120}", parts in "[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}") {
        prop_assert!(verify(&text, &keys(), NOW).is_err());
        prop_assert!(verify(&parts, &keys(), NOW).is_err());
    }

    #[test]
    fn any_signed_payload_is_read_or_refused(payload in "\\PC{0,120}") {
        let _ = verify(&signed_json(HEADER, &payload), &keys(), NOW);
    }
}
