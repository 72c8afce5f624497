//! Join tokens as any LiveKit server SDK makes them; not by the code under test.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value, json};

/// Key and secret that test clusters are configured with.
pub const KEY: &str = "devkey";
/// See [`KEY`].
pub const SECRET: &str = "secret";

/// A token that lets `identity` join `room`; `more` adds to or replaces video grants.
///
/// # Panics
/// If `more` is not a JSON object.
#[must_use]
pub fn join(room: &str, identity: &str, more: &Value) -> String {
    let mut grants = Map::new();
    grants.insert("roomJoin".into(), json!(true));
    grants.insert("room".into(), json!(room));
    grants.extend(more.as_object().expect("grants are an object").clone());
    sign(identity, &Value::Object(grants))
}

/// A token with exactly these video grants.
///
/// # Panics
/// If the wall clock is before 1970.
#[must_use]
pub fn sign(identity: &str, grants: &Value) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is set")
        .as_secs();
    let claims = json!({
        "iss": KEY, "sub": identity, "nbf": now - 5, "exp": now + 3600, "video": grants,
    });
    jsonwebtoken::encode(
        &Header::default(),
        &claims,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .expect("claims are JSON")
}
