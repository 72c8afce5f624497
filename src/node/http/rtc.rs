//! Signalling: `/rtc` (two peer connections), `/rtc/v1` (one), and their `/validate`.
//!
//! A join is decided before the WebSocket is accepted, so that a refusal is an HTTP status with a
//! plain text reason, which is what LiveKit's clients act upon.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use axum::routing::get;
use flotilla_model::id::{Identity, RoomName, UnixMillis};
use flotilla_signal::connect::{Connect, Endpoint, HttpError, connect};
use flotilla_signal::session::{Resuming, resume_refusal};

use super::{Shared, text};
use crate::mesh::enroll::wall_clock_ms;
use crate::session::connection::{SocketConfig, send_and_close};
use crate::session::inbox::{Inbox, Message};

/// How many times the limit a message may have and still be read to its end, so that its sender is
/// told by a close code; a larger one is cut off while it arrives, and the code may get lost.
const MESSAGE_SLACK: usize = 2;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/rtc", get(v0))
        .route("/rtc/v1", get(v1))
        .route("/rtc/validate", get(validate_v0))
        .route("/rtc/v1/validate", get(validate_v1))
}

type Upgrade = Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>;

async fn v0(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Response {
    open(shared, Endpoint::V0, query, &headers, upgrade).await
}

async fn v1(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Response {
    open(shared, Endpoint::V1, query, &headers, upgrade).await
}

async fn validate_v0(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    validate(&shared, Endpoint::V0, query, &headers)
}

async fn validate_v1(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    validate(&shared, Endpoint::V1, query, &headers)
}

fn validate(
    shared: &Shared,
    endpoint: Endpoint,
    query: Option<String>,
    headers: &HeaderMap,
) -> Response {
    match check(shared, endpoint, query, headers) {
        Ok(_) => text(200, "success"),
        Err(refusal) => text(refusal.status, refusal.text),
    }
}

fn check(
    shared: &Shared,
    endpoint: Endpoint,
    query: Option<String>,
    headers: &HeaderMap,
) -> Result<Connect, HttpError> {
    let authorization = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let connect = connect(
        endpoint,
        &query.unwrap_or_default(),
        authorization,
        &shared.sessions.config,
        UnixMillis(wall_clock_ms()),
    )?;
    let room = room_of(&connect);
    if !shared.sessions.config.auto_create && !shared.group.state().rooms.contains_key(&room) {
        return Err(HttpError {
            status: 404,
            text: flotilla_model::command::Rejection::RoomNotFound.to_string(),
        });
    }
    if connect.parameters.reconnect.is_some() {
        // Native clients ask once: whatever the state of this node, it is better than none.
        return Ok(connect);
    }
    if !shared.is_open() {
        return Err(HttpError::unavailable("this node takes nobody now"));
    }
    let limit = shared.config.participants_max as usize;
    if limit > 0 && shared.sessions.hub.session_count() >= limit {
        return Err(HttpError::unavailable("this node is full"));
    }
    Ok(connect)
}

fn room_of(connect: &Connect) -> RoomName {
    let video = connect.claims.video.as_ref();
    RoomName(video.map(|video| video.room.clone()).unwrap_or_default())
}

async fn open(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    query: Option<String>,
    headers: &HeaderMap,
    upgrade: Upgrade,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return text(404, "a WebSocket is expected here");
    };
    let limit = shared.config.cluster.limit.signal_message_size_limit;
    let upgrade = upgrade
        .max_message_size(limit.saturating_mul(MESSAGE_SLACK))
        .max_frame_size(limit.saturating_mul(MESSAGE_SLACK));
    match admit(&shared, endpoint, query, headers).await {
        Ok(Admission::Joined(inbox)) => {
            let (lost, sockets) = (inbox.clone(), shared.clone());
            upgrade
                .on_failed_upgrade(move |_| lost.deliver(Message::SignalClosed { connection: 0 }))
                .on_upgrade(async move |socket| {
                    let connection =
                        sockets
                            .connections
                            .open(socket, inbox.clone(), socket_config(&sockets));
                    inbox.deliver(Message::Connected(connection));
                })
        }
        Ok(Admission::Resumed(inbox, resuming)) => upgrade.on_upgrade(async move |socket| {
            let connection = shared
                .connections
                .open(socket, inbox.clone(), socket_config(&shared));
            inbox.deliver(Message::Resume(resuming, connection));
        }),
        // The session is not here: the first and only message sends the client back to a join.
        Ok(Admission::Unknown) => upgrade
            .on_upgrade(async move |socket| send_and_close(socket, &resume_refusal(), limit).await),
        Err(refusal) => {
            shared
                .metrics
                .upgrades_refused
                .with_label_values(&[&refusal.status.to_string()])
                .inc();
            text(refusal.status, refusal.text)
        }
    }
}

fn socket_config(shared: &Shared) -> SocketConfig {
    SocketConfig {
        message_bytes_max: shared.config.cluster.limit.signal_message_size_limit,
        silence_max: Duration::from_secs(u64::from(shared.config.ping_timeout_s) * 2),
        metrics: shared.metrics.clone(),
    }
}

enum Admission {
    Joined(Inbox),
    Resumed(Inbox, Box<Resuming>),
    Unknown,
}

async fn admit(
    shared: &Shared,
    endpoint: Endpoint,
    query: Option<String>,
    headers: &HeaderMap,
) -> Result<Admission, HttpError> {
    let connect = check(shared, endpoint, query, headers)?;
    let Some(reconnect) = &connect.parameters.reconnect else {
        let accepted = shared.sessions.join(connect).await?;
        return Ok(Admission::Joined(accepted.inbox));
    };
    let (room, sid) = (room_of(&connect), reconnect.sid.clone());
    let identity = Identity(connect.claims.identity().to_owned());
    let find = || shared.sessions.hub.find(&room, &identity, sid.as_ref());
    let resumed = |inbox, connect: Connect| {
        let Connect { claims, parameters } = connect;
        Admission::Resumed(inbox, Box::new(Resuming { claims, parameters }))
    };
    if let Some(inbox) = find() {
        return Ok(resumed(inbox, connect));
    }
    let Some(participant) = shared.sessions.find_elsewhere(&connect).await else {
        return Ok(Admission::Unknown);
    };
    if let Some(inbox) = shared.sessions.adopt(connect.clone(), participant) {
        return Ok(Admission::Joined(inbox));
    }
    // The client has knocked twice at the same time.
    Ok(find().map_or(Admission::Unknown, |inbox| resumed(inbox, connect)))
}
