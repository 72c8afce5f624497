//! The upgrade request: query parameters (v0) and `join_request` (v1) into [`JoinParameters`].
//!
//! `flotilla-node` hands in path, query and `Authorization` header of `/rtc`, `/rtc/v1` and their
//! `/validate`; what comes out goes to `session::Session::join` or, for a resume, to a running
//! session. Refusals are HTTP statuses with a plain text body, which clients show or act upon.

use std::collections::BTreeMap;
use std::io::Read as _;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use flate2::read::GzDecoder;
use flotilla_model::command::Rejection;
use flotilla_model::id::{ParticipantSid, UnixMillis};
use livekit_protocol::{
    AddTrackRequest, ClientInfo, JoinRequest, SessionDescription, SyncState, WrappedJoinRequest,
    client_info, wrapped_join_request,
};
use prost::Message as _;
use thiserror::Error;

use crate::config::SessionConfig;
use crate::token::{self, Claims, TokenError};

/// A refusal before the upgrade: status and plain text.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{status}: {text}")]
pub struct HttpError {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub text: String,
}

impl HttpError {
    /// 400: the request cannot be understood.
    #[must_use]
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self {
            status: 400,
            text: text.into(),
        }
    }

    /// 503: not now. Clients may come back.
    #[must_use]
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self {
            status: 503,
            text: text.into(),
        }
    }
}

impl From<TokenError> for HttpError {
    /// 401, which clients take as final.
    fn from(error: TokenError) -> Self {
        Self {
            status: 401,
            text: error.to_string(),
        }
    }
}

impl From<&Rejection> for HttpError {
    fn from(rejection: &Rejection) -> Self {
        let status = match rejection {
            // JavaScript clients know this one by its text.
            Rejection::RoomNotFound => 404,
            Rejection::TokenRevoked | Rejection::NotPermitted(_) => 401,
            Rejection::LimitExceeded(_) => 400,
            _ => 503,
        };
        Self {
            status,
            text: rejection.to_string(),
        }
    }
}

/// Which of LiveKit's paths was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// `/rtc`: two peer connections, unless a `join_request` comes along.
    V0,
    /// `/rtc/v1`: one peer connection, `join_request` required.
    V1,
}

/// The client wants its session back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reconnect {
    /// Its session. v0 clients of old leave it out: then the identity's present one is meant.
    pub sid: Option<ParticipantSid>,
    /// `livekit.ReconnectReason` number.
    pub reason: i32,
}

/// What a client asks for when it connects.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct JoinParameters {
    /// The client.
    pub client: ClientInfo,
    /// One peer connection instead of two.
    pub single_peer_connection: bool,
    /// Wants every track.
    pub auto_subscribe: bool,
    /// Adapts to the size of its video elements.
    pub adaptive_stream: bool,
    /// Room of the query, which must be the token's.
    pub room: String,
    /// Metadata that replaces the token's; empty: keeps it.
    pub metadata: String,
    /// Attributes that are added to the token's.
    pub attributes: BTreeMap<String, String>,
    /// Tracks it is about to publish.
    pub add_tracks: Vec<AddTrackRequest>,
    /// Its first offer.
    pub publisher_offer: Option<SessionDescription>,
    /// Wants its session back.
    pub reconnect: Option<Reconnect>,
    /// What it knows of that session.
    pub sync_state: Option<SyncState>,
}

/// A verified upgrade request.
#[derive(Clone, PartialEq, Debug)]
pub struct Connect {
    /// What the token says.
    pub claims: Claims,
    /// What the client asks for.
    pub parameters: JoinParameters,
}

/// Reads and checks an upgrade request. `authorization` is that header's value.
///
/// # Errors
/// 401 for tokens, 400 for everything that cannot be understood or breaks a limit.
pub fn connect(
    endpoint: Endpoint,
    query: &str,
    authorization: Option<&str>,
    config: &SessionConfig,
    now: UnixMillis,
) -> Result<Connect, HttpError> {
    let query = Query::parse(query)?;
    let bearer = authorization.map(|value| match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token,
        _ => value,
    });
    let token = bearer
        .filter(|token| !token.is_empty())
        .or_else(|| query.get("access_token"))
        .unwrap_or_default();
    let claims = token::verify(token, &config.keys, now)?;
    claims.joinable_room(query.get("room"))?;
    let parameters = parse_parameters(endpoint, &query, config)?;
    check(&claims, &parameters, config)?;
    Ok(Connect { claims, parameters })
}

fn check(
    claims: &Claims,
    parameters: &JoinParameters,
    config: &SessionConfig,
) -> Result<(), HttpError> {
    let limits = &config.limits;
    let room = claims.video.as_ref().map_or("", |video| &video.room);
    let too_long = |what: &str, bytes: usize, limit: usize| {
        if bytes > limit {
            return Err(HttpError::bad_request(format!(
                "{what} of {bytes} bytes is longer than {limit}"
            )));
        }
        Ok(())
    };
    too_long("room name", room.len(), limits.room_name_bytes_max)?;
    too_long(
        "identity",
        claims.identity().len(),
        limits.identity_bytes_max,
    )?;
    too_long("name", claims.name.len(), limits.name_bytes_max)?;
    let metadata = claims.metadata.len().max(parameters.metadata.len());
    too_long("metadata", metadata, limits.metadata_bytes_max)?;
    let mut attributes = claims.attributes.clone();
    attributes.extend(parameters.attributes.clone());
    too_long(
        "attributes",
        attributes.iter().map(|(k, v)| k.len() + v.len()).sum(),
        limits.attributes_bytes_max,
    )?;
    let changes_itself = !parameters.metadata.is_empty() || !parameters.attributes.is_empty();
    if changes_itself && !claims.permission().can_update_metadata {
        return Err(HttpError {
            status: 401,
            text: "access token does not permit to set own metadata or attributes".into(),
        });
    }
    Ok(())
}

/// Reads the parameters of a query string, without any check of the token.
///
/// # Errors
/// 400 if the query or its `join_request` cannot be understood.
pub fn parameters(
    endpoint: Endpoint,
    query: &str,
    config: &SessionConfig,
) -> Result<JoinParameters, HttpError> {
    parse_parameters(endpoint, &Query::parse(query)?, config)
}

fn parse_parameters(
    endpoint: Endpoint,
    query: &Query,
    config: &SessionConfig,
) -> Result<JoinParameters, HttpError> {
    let mut parameters = match (query.get("join_request"), endpoint) {
        (Some(text), _) if !text.is_empty() => {
            let request =
                decode_join_request(text.as_bytes(), config.limits.join_request_bytes_max)?;
            from_join_request(request)
        }
        (_, Endpoint::V1) => return Err(HttpError::bad_request("join_request is missing")),
        (_, Endpoint::V0) => from_query(query)?,
    };
    query
        .get("room")
        .unwrap_or_default()
        .clone_into(&mut parameters.room);
    Ok(parameters)
}

/// Reads a `join_request`: base64 in either alphabet, padded or not, of a `WrappedJoinRequest`.
///
/// # Errors
/// 400 if any layer is malformed or it inflates to more than `bytes_max`.
pub fn decode_join_request(text: &[u8], bytes_max: usize) -> Result<JoinRequest, HttpError> {
    let malformed = |what: &str| HttpError::bad_request(format!("join_request: {what}"));
    if text.len() > bytes_max.saturating_mul(2) {
        return Err(malformed("too long"));
    }
    let wrapped = decode_base64(text).ok_or_else(|| malformed("not base64"))?;
    let wrapped = WrappedJoinRequest::decode(wrapped.as_slice())
        .map_err(|_| malformed("not a WrappedJoinRequest"))?;
    let bytes = match wrapped_join_request::Compression::try_from(wrapped.compression) {
        Ok(wrapped_join_request::Compression::None) => wrapped.join_request,
        Ok(wrapped_join_request::Compression::Gzip) => {
            let limit = bytes_max as u64;
            let mut inflated = Vec::new();
            GzDecoder::new(wrapped.join_request.as_slice())
                .take(limit + 1)
                .read_to_end(&mut inflated)
                .map_err(|_| malformed("not gzip"))?;
            inflated
        }
        Err(_) => return Err(malformed("unknown compression")),
    };
    if bytes.len() > bytes_max {
        return Err(malformed("too long when inflated"));
    }
    JoinRequest::decode(bytes.as_slice()).map_err(|_| malformed("not a JoinRequest"))
}

/// Both alphabets at once, padded or not: SDKs differ.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    let url_safe: Vec<u8> = text
        .iter()
        .map(|byte| match byte {
            // A `+` that nobody percent-encoded arrives as a space.
            b'+' | b' ' => b'-',
            b'/' => b'_',
            other => *other,
        })
        .collect();
    engine.decode(url_safe).ok()
}

fn from_join_request(request: JoinRequest) -> JoinParameters {
    let settings = request.connection_settings;
    JoinParameters {
        client: request.client_info.unwrap_or_default(),
        single_peer_connection: true,
        auto_subscribe: settings.as_ref().is_none_or(|s| s.auto_subscribe),
        adaptive_stream: settings.as_ref().is_some_and(|s| s.adaptive_stream),
        room: String::new(),
        metadata: request.metadata,
        attributes: request.participant_attributes.into_iter().collect(),
        add_tracks: request.add_track_requests,
        publisher_offer: request
            .publisher_offer
            .filter(|offer| !offer.sdp.is_empty()),
        reconnect: request.reconnect.then_some(Reconnect {
            sid: some_sid(request.participant_sid),
            reason: request.reconnect_reason,
        }),
        sync_state: request.sync_state,
    }
}

fn some_sid(sid: String) -> Option<ParticipantSid> {
    (!sid.is_empty()).then_some(ParticipantSid(sid))
}

fn from_query(query: &Query) -> Result<JoinParameters, HttpError> {
    let text = |name: &str| query.get(name).unwrap_or_default().to_owned();
    let number = |name: &str| query.get(name).and_then(|value| value.parse::<i32>().ok());
    let client = ClientInfo {
        sdk: sdk(query.get("sdk").unwrap_or_default()),
        version: text("version"),
        protocol: number("protocol").unwrap_or(0),
        os: text("os"),
        os_version: text("os_version"),
        device_model: text("device_model"),
        browser: text("browser"),
        browser_version: text("browser_version"),
        network: text("network"),
        client_protocol: number("client_protocol").unwrap_or(0),
        capabilities: query
            .get("capabilities")
            .unwrap_or_default()
            .split(',')
            .filter_map(capability)
            .collect(),
        ..ClientInfo::default()
    };
    Ok(JoinParameters {
        client,
        single_peer_connection: false,
        auto_subscribe: query.flag("auto_subscribe").unwrap_or(true),
        adaptive_stream: query.flag("adaptive_stream").unwrap_or(false),
        attributes: attributes(query.get("attributes").unwrap_or_default())?,
        reconnect: query.flag("reconnect").unwrap_or(false).then(|| Reconnect {
            sid: some_sid(text("sid")),
            reason: number("reconnect_reason").unwrap_or(0),
        }),
        ..JoinParameters::default()
    })
}

fn attributes(text: &str) -> Result<BTreeMap<String, String>, HttpError> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    decode_base64(text.as_bytes())
        .and_then(|json| serde_json::from_slice(&json).ok())
        .ok_or_else(|| HttpError::bad_request("attributes: not base64 of a JSON object of texts"))
}

fn capability(name: &str) -> Option<i32> {
    let name = name.trim();
    client_info::Capability::from_str_name(name)
        .map(|capability| capability as i32)
        .or_else(|| name.parse().ok())
        .filter(|number| *number != 0)
}

/// `livekit.ClientInfo.SDK` from the texts that SDKs put into the query.
fn sdk(text: &str) -> i32 {
    use client_info::Sdk;
    let sdk = match text.to_ascii_lowercase().as_str() {
        "js" => Sdk::Js,
        "ios" | "swift" => Sdk::Swift,
        "android" => Sdk::Android,
        "flutter" => Sdk::Flutter,
        "go" => Sdk::Go,
        "unity" => Sdk::Unity,
        "reactnative" => Sdk::ReactNative,
        "rust" => Sdk::Rust,
        "python" => Sdk::Python,
        "cpp" => Sdk::Cpp,
        "unityweb" => Sdk::UnityWeb,
        "node" => Sdk::Node,
        "unreal" => Sdk::Unreal,
        "esp32" => Sdk::Esp32,
        "dotnet" => Sdk::Dotnet,
        _ => Sdk::Unknown,
    };
    sdk as i32
}

/// Most parameters that a query may have.
const PARAMETERS_MAX: usize = 64;

/// A parsed query string. The first of equal names counts.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Result<Self, HttpError> {
        let pairs: Option<Vec<_>> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .take(PARAMETERS_MAX)
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((percent_decode(name)?, percent_decode(value)?))
            })
            .collect();
        pairs
            .map(Self)
            .ok_or_else(|| HttpError::bad_request("query is not percent-encoded UTF-8"))
    }

    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// LiveKit's idea of a boolean: `1` or `true`.
    fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)
            .map(|value| value == "1" || value.eq_ignore_ascii_case("true"))
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                let digits = std::str::from_utf8(digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = tail;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
