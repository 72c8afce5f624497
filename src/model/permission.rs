//! What a participant may do, as its token grants it and as the room's administrator changes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{Identity, TrackSid, UnixMillis};
use crate::track::Source;

/// Mirrors `livekit.ParticipantPermission`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Permission {
    /// May subscribe to others' tracks.
    pub can_subscribe: bool,
    /// May publish tracks.
    pub can_publish: bool,
    /// May send data.
    pub can_publish_data: bool,
    /// Sources that may be published; empty: all.
    pub can_publish_sources: BTreeSet<Source>,
    /// Not shown to others.
    pub hidden: bool,
    /// Marked as a recorder.
    pub recorder: bool,
    /// May change its own name, metadata and attributes.
    pub can_update_metadata: bool,
    /// Marked as an agent.
    pub agent: bool,
    /// May receive others' metrics.
    pub can_subscribe_metrics: bool,
}

/// What a publisher allows its subscribers (`livekit.SubscriptionPermission`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SubscriptionPermission {
    /// Everybody may subscribe to everything: the default.
    pub all_participants: bool,
    /// Otherwise who may subscribe to what; `None` means all tracks.
    pub allowed: BTreeMap<Identity, Option<BTreeSet<TrackSid>>>,
}

impl Default for SubscriptionPermission {
    fn default() -> Self {
        Self {
            all_participants: true,
            allowed: BTreeMap::new(),
        }
    }
}

/// Tokens that are not to be let in any more, although they have not expired.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Revocation {
    /// Tokens issued before this time are refused.
    pub before: UnixMillis,
    /// When the revocation is dropped.
    pub until: UnixMillis,
}
