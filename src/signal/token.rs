//! Access tokens: HS256 JWTs and the grants they carry.
//!
//! `connect` and the Twirp handler hand in the token text; sessions and the room service ask the
//! [`Claims`] that come out. The time is an argument, so the JWT library is used for its signature
//! only (RFC 7519, RFC 7515); grants are LiveKit's.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flotilla_model::id::UnixMillis;
use flotilla_model::permission::Permission;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod grants;

pub use grants::{
    AgentGrant, InferenceGrant, ObservabilityGrant, RoomConfigClaim, SipGrant, VideoGrant,
};

/// Clocks of issuer and server may differ by this much, in seconds.
pub const LEEWAY_SECS: u64 = 60;

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// API keys with their secrets. `Debug` shows the keys only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Keys(Vec<(String, String)>);

impl Keys {
    /// Keys in order; the first one signs what the server issues.
    #[must_use]
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// The secret of a key.
    #[must_use]
    pub fn secret(&self, key: &str) -> Option<&str> {
        let (_, secret) = self.0.iter().find(|(known, _)| known == key)?;
        Some(secret)
    }

    /// Key and secret that sign what the server issues.
    #[must_use]
    pub fn first(&self) -> Option<(&str, &str)> {
        let (key, secret) = self.0.first()?;
        Some((key, secret))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(key, _)| key))
            .finish()
    }
}

/// Why a token is refused. The text goes to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TokenError {
    /// No token at all.
    #[error("no access token")]
    Missing,
    /// Not three base64url parts of JSON.
    #[error("access token is malformed")]
    Malformed,
    /// Signed by another algorithm than HS256.
    #[error("access token must be signed with HS256")]
    Algorithm,
    /// `iss` names no key of ours.
    #[error("access token was issued with an unknown API key")]
    UnknownKey,
    /// Signature does not match.
    #[error("access token has a wrong signature")]
    Signature,
    /// `exp` is missing.
    #[error("access token has no expiry")]
    NoExpiry,
    /// `exp` is over.
    #[error("access token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("access token is not valid yet")]
    NotYetValid,
    /// No `video` grant, or not the one needed.
    #[error("access token does not permit to join a room")]
    NoJoin,
    /// Joins are granted for no room.
    #[error("access token names no room")]
    NoRoom,
    /// Asked for another room than the token's.
    #[error("access token is for another room")]
    OtherRoom,
    /// Joins are granted to nobody.
    #[error("access token has no identity")]
    NoIdentity,
    /// The grant that an API call needs is missing.
    #[error("access token does not permit this request")]
    NotPermitted,
    /// The library could not sign.
    #[error("access token could not be signed")]
    Signing,
}

/// What a token says. JSON names are LiveKit's.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Claims {
    /// API key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub iss: String,
    /// Identity.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub: String,
    /// Older place of the identity.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// Not valid before, seconds.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "grants::seconds"
    )]
    pub nbf: Option<u64>,
    /// Issued at, seconds.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "grants::seconds"
    )]
    pub iat: Option<u64>,
    /// Not valid from, seconds.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "grants::seconds"
    )]
    pub exp: Option<u64>,
    /// Identity, where `sub` is not used.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// Display name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Kind: `standard`, `agent`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Details of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kind_details: Vec<String>,
    /// Rooms and media.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<VideoGrant>,
    /// SIP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip: Option<SipGrant>,
    /// Agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentGrant>,
    /// Inference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference: Option<InferenceGrant>,
    /// Observability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observability: Option<ObservabilityGrant>,
    /// Options for the room, if the join creates it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_config: Option<RoomConfigClaim>,
    /// Name of preset options.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub room_preset: String,
    /// Hash of a webhook's body.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Participant's metadata.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// Participant's attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

impl Claims {
    /// The identity, from whichever claim holds it.
    #[must_use]
    pub fn identity(&self) -> &str {
        [&self.sub, &self.identity, &self.jti]
            .into_iter()
            .find(|claim| !claim.is_empty())
            .map_or("", String::as_str)
    }

    /// When it was issued: `nbf`, else `iat`, else the beginning of time.
    #[must_use]
    pub fn issued_at(&self) -> UnixMillis {
        UnixMillis(
            self.nbf
                .or(self.iat)
                .unwrap_or_default()
                .saturating_mul(1000),
        )
    }

    /// When it ends.
    #[must_use]
    pub fn expires_at(&self) -> UnixMillis {
        UnixMillis(self.exp.unwrap_or_default().saturating_mul(1000))
    }

    /// `livekit.ParticipantInfo.Kind` number; unknown texts count as standard.
    #[must_use]
    pub fn kind_number(&self) -> i32 {
        grants::KINDS
            .iter()
            .find(|(name, _)| self.kind.eq_ignore_ascii_case(name))
            .map_or(0, |(_, number)| *number)
    }

    /// `livekit.ParticipantInfo.KindDetail` numbers; unknown texts are left out.
    #[must_use]
    pub fn kind_detail_numbers(&self) -> Vec<i32> {
        self.kind_details
            .iter()
            .filter_map(|detail| grants::kind_detail(detail))
            .collect()
    }

    /// What a participant with this token may do.
    #[must_use]
    pub fn permission(&self) -> Permission {
        let absent = VideoGrant::default();
        let video = self.video.as_ref().unwrap_or(&absent);
        let can_publish = video.can_publish.unwrap_or(true);
        Permission {
            can_subscribe: video.can_subscribe.unwrap_or(true),
            can_publish,
            can_publish_data: video.can_publish_data.unwrap_or(can_publish),
            can_publish_sources: video
                .can_publish_sources
                .iter()
                .filter_map(|source| grants::source(source))
                .collect(),
            hidden: video.hidden,
            recorder: video.recorder,
            can_update_metadata: video.can_update_own_metadata.unwrap_or(false),
            agent: video.agent || self.kind.eq_ignore_ascii_case("agent"),
            can_subscribe_metrics: video.can_subscribe_metrics.unwrap_or(false),
        }
    }

    /// Writes a changed permission back, for a refreshed token.
    pub fn set_permission(&mut self, permission: &Permission) {
        let video = self.video.get_or_insert_default();
        video.can_subscribe = Some(permission.can_subscribe);
        video.can_publish = Some(permission.can_publish);
        video.can_publish_data = Some(permission.can_publish_data);
        video.can_publish_sources = permission
            .can_publish_sources
            .iter()
            .map(|source| grants::source_name(*source).to_owned())
            .collect();
        video.hidden = permission.hidden;
        video.recorder = permission.recorder;
        video.agent = permission.agent;
        video.can_update_own_metadata = Some(permission.can_update_metadata);
        video.can_subscribe_metrics = Some(permission.can_subscribe_metrics);
    }

    /// The room that the token lets its holder join. `requested` is the room of the query, if any.
    ///
    /// # Errors
    /// Where the token does not permit to join, names no room or another one, or has no identity.
    pub fn joinable_room<'a>(&'a self, requested: Option<&str>) -> Result<&'a str, TokenError> {
        let video = self.video.as_ref().ok_or(TokenError::NoJoin)?;
        if !video.room_join {
            return Err(TokenError::NoJoin);
        }
        if video.room.is_empty() {
            return Err(TokenError::NoRoom);
        }
        if requested.is_some_and(|room| !room.is_empty() && room != video.room) {
            return Err(TokenError::OtherRoom);
        }
        if self.identity().is_empty() {
            return Err(TokenError::NoIdentity);
        }
        Ok(&video.room)
    }

    /// Whether the holder administers this room.
    #[must_use]
    pub fn administers(&self, room: &str) -> bool {
        self.video
            .as_ref()
            .is_some_and(|video| video.room_admin && video.room == room)
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// Checks signature and times and returns what the token says.
///
/// # Errors
/// A [`TokenError`] whose text tells the client what is wrong.
pub fn verify(token: &str, keys: &Keys, now: UnixMillis) -> Result<Claims, TokenError> {
    let token = token.trim();
    if token.is_empty() {
        return Err(TokenError::Missing);
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
    let header: Header = parse_part(header)?;
    if header.alg != "HS256" {
        return Err(TokenError::Algorithm);
    }
    let claims: Claims = parse_part(payload)?;
    let secret = keys.secret(&claims.iss).ok_or(TokenError::UnknownKey)?;
    let key = DecodingKey::from_secret(secret.as_bytes());
    match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key, Algorithm::HS256) {
        Ok(true) => {}
        Ok(false) | Err(_) => return Err(TokenError::Signature),
    }
    check_times(&claims, now)?;
    Ok(claims)
}

fn parse_part<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(part.trim_end_matches('='))
        .map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

fn check_times(claims: &Claims, now: UnixMillis) -> Result<(), TokenError> {
    let now = now.0 / 1000;
    let exp = claims.exp.ok_or(TokenError::NoExpiry)?;
    if now > exp.saturating_add(LEEWAY_SECS) {
        return Err(TokenError::Expired);
    }
    if claims
        .nbf
        .is_some_and(|nbf| nbf > now.saturating_add(LEEWAY_SECS))
    {
        return Err(TokenError::NotYetValid);
    }
    Ok(())
}

/// Signs claims with a key; `iss` becomes the key.
///
/// # Errors
/// [`TokenError::Signing`] if the library refuses.
pub fn create(mut claims: Claims, key: &str, secret: &str) -> Result<String, TokenError> {
    key.clone_into(&mut claims.iss);
    let payload = serde_json::to_vec(&claims).map_err(|_| TokenError::Signing)?;
    let mut token = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(payload, &mut token);
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(token.as_bytes(), &key, Algorithm::HS256)
        .map_err(|_| TokenError::Signing)?;
    token.push('.');
    token.push_str(&signature);
    Ok(token)
}

#[cfg(test)]
mod tests;
