//! LiveKit's server API as an outside tool calls it, with answers sorted by what they say of the
//! outcome: done, surely not done, or unknown.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::token;

/// How long a call may take; after it the outcome is unknown.
const CALL_MAX: Duration = Duration::from_millis(2500);

/// What came of a call.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Done.
    Done(Value),
    /// Surely not done: refused in so many words, or nobody was there to ask. Code and text.
    Refused(String, String),
    /// Anything else.
    Unknown(String),
}

/// Codes by which a server says that nothing was changed.
const REFUSALS: [&str; 7] = [
    "not_found",
    "failed_precondition",
    "permission_denied",
    "invalid_argument",
    "unauthenticated",
    "already_exists",
    "malformed",
];

/// One node's API.
#[derive(Clone)]
pub(crate) struct Api {
    agent: ureq::Agent,
    url: String,
}

impl Api {
    /// Of the node at this base URL. Connections are kept.
    pub(crate) fn new(url: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(CALL_MAX))
            .http_status_as_error(false)
            .build()
            .into();
        Self {
            agent,
            url: url.to_owned(),
        }
    }

    /// Calls a method of `RoomService` with every grant for `room`.
    pub(crate) fn call(&self, method: &str, room: &str, body: &Value) -> Answer {
        let grants = json!({
            "roomCreate": true, "roomList": true, "roomAdmin": true, "room": room,
        });
        let token = token::sign("chaos", &grants);
        let sent = self
            .agent
            .post(format!("{}/twirp/livekit.RoomService/{method}", self.url))
            .header("Authorization", format!("Bearer {token}"))
            .send_json(body);
        let mut answer = match sent {
            Ok(answer) => answer,
            Err(failure) if was_never_sent(&failure) => {
                return Answer::Refused("unreachable".to_owned(), failure.to_string());
            }
            Err(failure) => return Answer::Unknown(failure.to_string()),
        };
        let status = answer.status();
        let value: Value = match answer.body_mut().read_json() {
            Ok(value) => value,
            Err(failure) => return Answer::Unknown(format!("{status}: {failure}")),
        };
        if status.is_success() {
            return Answer::Done(value);
        }
        let code = value["code"].as_str().unwrap_or_default().to_owned();
        let text = value["msg"].as_str().unwrap_or_default().to_owned();
        if REFUSALS.contains(&code.as_str()) {
            Answer::Refused(code, text)
        } else {
            Answer::Unknown(format!("{code}: {text}"))
        }
    }
}

fn was_never_sent(failure: &ureq::Error) -> bool {
    match failure {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
        ureq::Error::Timeout(phase) => matches!(phase, ureq::Timeout::Connect),
        ureq::Error::Io(failure) => failure.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}
