//! The server API: `POST /twirp/livekit.RoomService/<Method>`, protobuf or JSON.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use flotilla_model::command::Command;
use flotilla_model::id::UnixMillis;
use flotilla_raft::ProposeError;
use flotilla_signal::id_source::IdSource;
use flotilla_signal::room_service::{self, ApiError, ApiRequest, Call, Code, Format, SendData};
use flotilla_signal::session::CommitError;
use flotilla_signal::token::{self, Claims};
use rand::RngCore as _;

use super::Shared;
use crate::mesh::enroll::wall_clock_ms;
use crate::session::new_request;

const SERVICE: &str = "livekit.RoomService";

pub(super) fn routes(body_bytes_max: usize) -> Router<Arc<Shared>> {
    Router::new()
        .route("/twirp/{*path}", post(call))
        // SDKs given a URL that ends with a slash ask for a double one.
        .route("//twirp/{*path}", post(call))
        .layer(DefaultBodyLimit::max(body_bytes_max))
}

async fn call(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let started = Instant::now();
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let (service, method) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let result = match body {
        Ok(body) => answer(&shared, service, method, &headers, &body).await,
        Err(rejection) => Err(ApiError::new(Code::Malformed, rejection.body_text())),
    };
    // Unknown methods share one label: labels must not grow with what strangers ask for.
    let label = match &result {
        Err(error) if error.code == Code::BadRoute => "unknown",
        _ => method,
    };
    let (status, code) = match &result {
        Ok(_) => ("success", 200),
        Err(error) => ("failure", error.status()),
    };
    shared
        .metrics
        .twirp_requests
        .with_label_values(&["RoomService", label, status, &code.to_string()])
        .inc();
    shared
        .metrics
        .twirp_latency
        .with_label_values(&["RoomService", label, status])
        .observe(started.elapsed().as_secs_f64() * 1000.0);
    match result {
        Ok((format, body)) => respond(200, format.content_type(), body),
        Err(error) => respond(error.status(), "application/json", error.body()),
    }
}

fn respond(status: u16, content_type: &'static str, body: Vec<u8>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(content_type);
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

async fn answer(
    shared: &Shared,
    service: &str,
    method: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(Format, Vec<u8>), ApiError> {
    if service != SERVICE {
        let text = format!("no handler for service {service:?}");
        return Err(ApiError::new(Code::BadRoute, text));
    }
    let header = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .unwrap_or_default()
    };
    let format = Format::of(header(header::CONTENT_TYPE))?;
    let now = UnixMillis(wall_clock_ms());
    let claims = claims(shared, header(header::AUTHORIZATION), now)?;
    let mut seed = [0; 32];
    rand::rng().fill_bytes(&mut seed);
    let request = ApiRequest {
        method,
        format,
        body,
        claims: &claims,
        config: &shared.sessions.config,
        now: shared.group.time(),
    };
    let body = match room_service::parse(&request, &mut IdSource::new(seed))? {
        Call::Propose { command, answer } => {
            #[cfg(feature = "planted-bugs")]
            let command = without_revocation(command);
            let result = propose(shared, command).await;
            answer.finish(result.as_ref())?
        }
        Call::Read(query) => {
            let state = shared
                .group
                .read()
                .await
                .map_err(|error| ApiError::new(Code::Unavailable, error.to_string()))?;
            query.run(&state)?
        }
        Call::Send(send) => send_data(shared, &send).await?,
    };
    Ok((format, body))
}

/// Forgets a revocation, where a test's environment asks for that defect.
#[cfg(feature = "planted-bugs")]
fn without_revocation(mut command: Command) -> Command {
    if let Command::Leave { revoke_before, .. } = &mut command
        && std::env::var("FLOTILLA_PLANTED").as_deref() == Ok("lost-revocation")
    {
        *revoke_before = None;
    }
    command
}

fn claims(shared: &Shared, authorization: &str, now: UnixMillis) -> Result<Claims, ApiError> {
    let token = match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token,
        _ => authorization,
    };
    Ok(token::verify(token, &shared.sessions.config.keys, now)?)
}

async fn propose(
    shared: &Shared,
    command: Command,
) -> Result<flotilla_model::command::Reply, CommitError> {
    match shared.group.propose(new_request(), command).await {
        Ok(reply) => Ok(reply),
        Err(ProposeError::Rejected(rejection)) => Err(CommitError::Rejected(rejection)),
        Err(other) => Err(CommitError::Unavailable(other.to_string())),
    }
}

async fn send_data(shared: &Shared, send: &SendData) -> Result<Vec<u8>, ApiError> {
    // Whoever was told of its join before this call is in this state.
    let state = shared
        .group
        .read()
        .await
        .map_err(|error| ApiError::new(Code::Unavailable, error.to_string()))?;
    let Some(room) = state.rooms.get(&send.room) else {
        return Err(ApiError::new(
            Code::NotFound,
            flotilla_model::command::Rejection::RoomNotFound.to_string(),
        ));
    };
    let hub = &shared.sessions.hub;
    if hub.is_new_nonce(&send.room, send.nonce) {
        hub.distribute(&send.room, Arc::new(send.message(room)), None);
    }
    send.finish()
}
