//! `/metrics` on its own port, with a password if one is configured.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::Secret;
use crate::telemetry::Metrics;

struct Shared {
    metrics: Arc<Metrics>,
    authorization: Option<String>,
}

/// Routes of the metrics port.
pub fn router(metrics: Arc<Metrics>, auth: Option<&(String, Secret)>) -> Router {
    let authorization = auth.map(|(user, password)| {
        format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{}", password.0))
        )
    });
    Router::new()
        .route("/metrics", get(show))
        .route("/", get(show))
        .with_state(Arc::new(Shared {
            metrics,
            authorization,
        }))
}

async fn show(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let given = headers
        .get(header::AUTHORIZATION)
        .map(axum::http::HeaderValue::as_bytes);
    if let Some(expected) = &shared.authorization
        && !given.is_some_and(|given| {
            aws_lc_rs::constant_time::verify_slices_are_equal(given, expected.as_bytes()).is_ok()
        })
    {
        return (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Basic realm=\"metrics\"")],
        )
            .into_response();
    }
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        shared.metrics.render(),
    )
        .into_response()
}
