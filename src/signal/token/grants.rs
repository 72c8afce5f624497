//! The grants inside a token, with LiveKit's JSON names, and its texts for kinds and sources.

use std::collections::BTreeMap;

use flotilla_model::track::Source;
use serde::{Deserialize, Deserializer, Serialize};

fn is_false(value: &bool) -> bool {
    !value
}

/// The `video` grant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VideoGrant {
    /// May create and delete rooms.
    #[serde(skip_serializing_if = "is_false")]
    pub room_create: bool,
    /// May list rooms.
    #[serde(skip_serializing_if = "is_false")]
    pub room_list: bool,
    /// May record rooms.
    #[serde(skip_serializing_if = "is_false")]
    pub room_record: bool,
    /// Administers `room`.
    #[serde(skip_serializing_if = "is_false")]
    pub room_admin: bool,
    /// May join `room`.
    #[serde(skip_serializing_if = "is_false")]
    pub room_join: bool,
    /// The room meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub room: String,
    /// May publish tracks; absent: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish: Option<bool>,
    /// May subscribe; absent: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe: Option<bool>,
    /// May send data; absent: as `can_publish`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish_data: Option<bool>,
    /// Sources that may be published; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub can_publish_sources: Vec<String>,
    /// May change its own metadata; absent: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_update_own_metadata: Option<bool>,
    /// Administers ingress.
    #[serde(skip_serializing_if = "is_false")]
    pub ingress_admin: bool,
    /// Not shown to others.
    #[serde(skip_serializing_if = "is_false")]
    pub hidden: bool,
    /// Is a recorder.
    #[serde(skip_serializing_if = "is_false")]
    pub recorder: bool,
    /// Is an agent or an agents' worker.
    #[serde(skip_serializing_if = "is_false")]
    pub agent: bool,
    /// May receive others' metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe_metrics: Option<bool>,
    /// May manage an agent's session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_manage_agent_session: Option<bool>,
    /// Where participants may be moved or forwarded to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination_room: String,
}

/// The `sip` grant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SipGrant {
    /// Administers trunks and rules.
    #[serde(skip_serializing_if = "is_false")]
    pub admin: bool,
    /// May make calls.
    #[serde(skip_serializing_if = "is_false")]
    pub call: bool,
}

/// The `agent` grant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentGrant {
    /// Administers agents.
    #[serde(skip_serializing_if = "is_false")]
    pub admin: bool,
    /// Administers simulations.
    #[serde(skip_serializing_if = "is_false")]
    pub simulation_admin: bool,
    /// Administers agents' databases.
    #[serde(skip_serializing_if = "is_false")]
    pub database_admin: bool,
}

/// The `inference` grant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InferenceGrant {
    /// May use inference.
    #[serde(skip_serializing_if = "is_false")]
    pub perform: bool,
}

/// The `observability` grant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObservabilityGrant {
    /// May write telemetry.
    #[serde(skip_serializing_if = "is_false")]
    pub write: bool,
}

/// The `roomConfig` claim: the part of `livekit.RoomConfiguration` that we act on. What we do not
/// know (egress, agents) is kept for a refreshed token.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoomConfigClaim {
    /// Name of the configuration.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Seconds a room nobody joined is kept.
    #[serde(alias = "empty_timeout", skip_serializing_if = "Option::is_none")]
    pub empty_timeout: Option<u32>,
    /// Seconds a room everybody left is kept.
    #[serde(alias = "departure_timeout", skip_serializing_if = "Option::is_none")]
    pub departure_timeout: Option<u32>,
    /// Most participants.
    #[serde(alias = "max_participants", skip_serializing_if = "Option::is_none")]
    pub max_participants: Option<u32>,
    /// Room's metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// Least playout delay, milliseconds.
    #[serde(alias = "min_playout_delay", skip_serializing_if = "Option::is_none")]
    pub min_playout_delay: Option<u32>,
    /// Greatest playout delay, milliseconds.
    #[serde(alias = "max_playout_delay", skip_serializing_if = "Option::is_none")]
    pub max_playout_delay: Option<u32>,
    /// Audio and video of a participant share a stream.
    #[serde(alias = "sync_streams", skip_serializing_if = "Option::is_none")]
    pub sync_streams: Option<bool>,
    /// Tags.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// `null` as well as a list.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Seconds as an integer or, as some libraries write them, with a fraction.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.map(|seconds| seconds.max(0.0) as u64))
}

/// Token texts of `livekit.ParticipantInfo.Kind`.
pub(super) const KINDS: [(&str, i32); 7] = [
    ("standard", 0),
    ("ingress", 1),
    ("egress", 2),
    ("sip", 3),
    ("agent", 4),
    ("connector", 7),
    ("bridge", 8),
];

/// `livekit.ParticipantInfo.KindDetail` from its text.
pub(super) fn kind_detail(text: &str) -> Option<i32> {
    livekit_protocol::participant_info::KindDetail::from_str_name(&text.to_ascii_uppercase())
        .map(|detail| detail as i32)
}

/// A source from its text in a token: `camera`, `screen_share`, …
pub(super) fn source(text: &str) -> Option<Source> {
    [
        Source::Unknown,
        Source::Camera,
        Source::Microphone,
        Source::ScreenShare,
        Source::ScreenShareAudio,
    ]
    .into_iter()
    .find(|source| source_name(*source).eq_ignore_ascii_case(text))
}

/// Text of a source in a token.
pub(super) fn source_name(source: Source) -> &'static str {
    match source {
        Source::Unknown => "unknown",
        Source::Camera => "camera",
        Source::Microphone => "microphone",
        Source::ScreenShare => "screen_share",
        Source::ScreenShareAudio => "screen_share_audio",
    }
}
