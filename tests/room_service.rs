//! LiveKit's server API as a test sees it: Twirp over HTTP with JSON.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::token;

/// A blocking HTTP client with short timeouts.
#[must_use]
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(8)))
        .build()
        .into()
}

/// Calls `RoomService` of a node with every grant for `room`.
///
/// # Errors
/// The Twirp error as `code: message`, or why there was no answer.
pub fn call(url: &str, method: &str, room: &str, body: &Value) -> Result<Value> {
    let grants = json!({
        "roomCreate": true, "roomList": true, "roomAdmin": true, "room": room,
    });
    let config = agent();
    let mut answer = config
        .post(format!("{url}/twirp/livekit.RoomService/{method}"))
        .config()
        .http_status_as_error(false)
        .build()
        .header(
            "Authorization",
            format!("Bearer {}", token::sign("test", &grants)),
        )
        .send_json(body)
        .with_context(|| format!("{method} had no answer"))?;
    let status = answer.status();
    let value: Value = answer
        .body_mut()
        .read_json()
        .with_context(|| format!("{method}: {status}"))?;
    if !status.is_success() {
        bail!("{}: {}", value["code"], value["msg"]);
    }
    Ok(value)
}
