//! The demo page, embedded at build time, and what it asks: a token, the state of the cluster, and
//! in demo mode the end of a node.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use flotilla_model::id::{NodeId, RoomName, UnixMillis};
use flotilla_model::room::Room;
use flotilla_signal::token::{self, Claims, VideoGrant};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Shared, text};
use crate::config::Config;
use crate::control::takeovers::Takeover;
use crate::mesh::enroll::wall_clock_ms;

mod files {
    include!(concat!(env!("OUT_DIR"), "/page.rs"));
}

/// How long a token of the demo page lives.
const TOKEN_LIFE: Duration = Duration::from_secs(6 * 3600);
/// A node that was silent for longer is shown as dead.
const SILENT_MAX: Duration = Duration::from_millis(1500);
/// Takeovers told to the page, the latest.
const TAKEOVERS_SHOWN: usize = 50;
const NOT_BUILT: &str = "<!doctype html><title>Flotilla</title><p>The demo page is not part of this binary. \
    Build it with <code>make page</code> (npm is needed), then build the binary again.";

pub(super) fn routes(config: &Config) -> Router<Arc<Shared>> {
    let routes = Router::new()
        .route("/demo", get(async || Redirect::permanent("/demo/")))
        .route("/demo/", get(async || page("index.html")))
        .route(
            "/demo/{*path}",
            get(async |Path(path): Path<String>| page(&path)),
        )
        .route("/demo/api/cluster", get(cluster));
    let routes = if config.demo {
        routes.route("/demo/api/session", get(session))
    } else {
        routes.route("/demo/api/session", get(async || StatusCode::NOT_FOUND))
    };
    if config.demo_kill {
        routes.route("/demo/api/kill", post(kill))
    } else {
        routes.route("/demo/api/kill", post(async || StatusCode::NOT_FOUND))
    }
}

fn page(path: &str) -> Response {
    match files::FILES.iter().find(|(name, _)| *name == path) {
        Some((name, bytes)) => (
            [
                (
                    header::CONTENT_TYPE,
                    HeaderValue::from_static(content_type(name)),
                ),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            ],
            *bytes,
        )
            .into_response(),
        None if path == "index.html" => (
            [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
            NOT_BUILT,
        )
            .into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "json" | "map" => "application/json",
        "wasm" => "application/wasm",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[derive(Deserialize)]
struct SessionQuery {
    room: String,
    identity: String,
}

async fn session(State(shared): State<Arc<Shared>>, Query(query): Query<SessionQuery>) -> Response {
    if query.room.is_empty() || query.identity.is_empty() {
        return text(400, "room and identity are needed");
    }
    let Some(key) = shared.config.keys.first() else {
        return text(503, "this node has no API key");
    };
    let now = wall_clock_ms() / 1000;
    let claims = Claims {
        sub: query.identity.clone(),
        name: query.identity.clone(),
        nbf: Some(now),
        exp: Some(now + TOKEN_LIFE.as_secs()),
        video: Some(VideoGrant {
            room_join: true,
            room: query.room.clone(),
            can_update_own_metadata: Some(true),
            ..VideoGrant::default()
        }),
        ..Claims::default()
    };
    match token::create(claims, &key.key, &key.secret) {
        Ok(token) => Json(json!({
            "token": token,
            "room": query.room,
            "identity": query.identity,
        }))
        .into_response(),
        Err(error) => text(500, error.to_string()),
    }
}

#[derive(Deserialize)]
struct ClusterQuery {
    room: Option<String>,
}

async fn cluster(State(shared): State<Arc<Shared>>, Query(query): Query<ClusterQuery>) -> Response {
    let status = shared.group.status();
    let state = shared.group.state();
    let mode = match (shared.config.demo_kill, shared.config.demo) {
        (true, _) => "demo",
        (false, true) => "dev",
        (false, false) => "cluster",
    };
    let nodes: Vec<Value> = state
        .nodes
        .values()
        .map(|node| {
            let participants: u32 = state
                .rooms
                .values()
                .filter_map(|room| room.homes.get(&node.id))
                .sum();
            let votes = status
                .members
                .iter()
                .any(|member| member.node == node.id && member.voter);
            let role = if votes { "voter" } else { "learner" };
            json!({
                "id": node.id.0,
                "client_url": node.client_url,
                "role": role,
                "alive": shared.mesh.is_alive(node.id, SILENT_MAX),
                "participants": participants,
            })
        })
        .collect();
    let takeovers = query.room.as_deref().map_or_else(Vec::new, |room| {
        let name = RoomName(room.to_owned());
        let present = state.rooms.get(&name);
        let recent = shared.takeovers.list(None).into_iter().rev();
        let of_room = recent.filter(|takeover| takeover.room == name);
        let view = |takeover: Takeover| takeover_view(&takeover, present);
        of_room.filter_map(view).take(TAKEOVERS_SHOWN).collect()
    });
    let room = query
        .room
        .and_then(|name| state.rooms.get(&RoomName(name)).cloned())
        .map(|room| {
            let participants: Vec<Value> = room
                .participants
                .values()
                .filter(|participant| !participant.permission.hidden)
                .map(|participant| {
                    json!({
                        "identity": participant.identity.0,
                        "node": participant.home.0,
                        "epoch": participant.epoch.0,
                    })
                })
                .collect();
            let routes: Vec<Value> = room
                .routes
                .iter()
                .flat_map(|(track, routes)| {
                    routes.iter().map(move |route| {
                        json!({ "track": track.0, "from": route.from.0, "to": route.to.0 })
                    })
                })
                .collect();
            json!({
                "name": room.name.0,
                "version": room.version.0,
                "participants": participants,
                "routes": routes,
            })
        });
    Json(json!({
        "node": shared.node.0,
        "mode": mode,
        "leader": status.leader.map(|leader| leader.0),
        "term": status.term,
        "time": UnixMillis(wall_clock_ms()).0,
        "nodes": nodes,
        "room": room,
        "takeovers": takeovers,
    }))
    .into_response()
}

/// What this node knows of a takeover; nothing if the participant has left since.
fn takeover_view(takeover: &Takeover, room: Option<&Arc<Room>>) -> Option<Value> {
    let mut present = room?.participants.values();
    let participant = present
        .find(|participant| participant.sid == takeover.sid && !participant.permission.hidden)?;
    let at = |time: Option<UnixMillis>| time.map(|time| time.0);
    Some(json!({
        "identity": participant.identity.0,
        "epoch": takeover.epoch.0,
        "cause": takeover.cause.name(),
        "from": takeover.from.0,
        "to": takeover.to.0,
        "heard_at": at(takeover.heard_at),
        "detected_at": at(takeover.detected_at),
        "decided_at": takeover.decided_at.0,
        "adopted_at": at(takeover.adopted.map(|(at, _)| at)),
        "first_packet_at": at(takeover.first_packet_at),
    }))
}

#[derive(Deserialize)]
struct KillQuery {
    node: u64,
}

async fn kill(State(shared): State<Arc<Shared>>, Query(query): Query<KillQuery>) -> Response {
    let node = NodeId(query.node);
    if node == shared.node {
        // Answered first, so that the page hears of it.
        tokio::spawn(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            crate::mesh::crash();
        });
        return Json(json!({ "killed": true })).into_response();
    }
    match shared.mesh.crash(node).await {
        Ok(()) => Json(json!({ "killed": true })).into_response(),
        Err(reason) => text(502, reason),
    }
}
