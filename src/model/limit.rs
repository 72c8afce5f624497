//! Limits of what the log accepts, whatever a node's own configuration allows.
//!
//! They keep one command and one room within sizes that every replica handles at ease. Raising one
//! is a change of the state machine: all nodes must apply the same limits, so it takes a new version
//! of [`crate::encoding`]. What users may be granted within them is checked at the edge.

use std::collections::BTreeMap;

use crate::command::Rejection;
use crate::track::Track;

/// Rooms in one region.
pub const ROOMS_MAX: usize = 1_000_000;
/// Participants in one room.
pub const PARTICIPANTS_MAX: usize = 100_000;
/// Nodes in one region.
pub const NODES_MAX: usize = 16_384;
/// Shards of a node.
pub const SHARDS_MAX: usize = 1_024;
/// Bytes of a name, identity, sid or address.
pub const NAME_BYTES_MAX: usize = 1_024;
/// Bytes of a room's or participant's metadata.
pub const METADATA_BYTES_MAX: usize = 1 << 20;
/// Bytes of all keys and values of a participant's attributes, or of a room's tags.
pub const ATTRIBUTES_BYTES_MAX: usize = 1 << 18;
/// Tracks of one participant.
pub const TRACKS_MAX: usize = 256;
/// Encodings of one track.
pub const CODECS_MAX: usize = 8;
/// Layers of one encoding.
pub const LAYERS_MAX: usize = 8;
/// Tracks a participant may have said something about, contrary to its `auto`.
pub const SUBSCRIPTIONS_MAX: usize = 16_384;
/// Participants and tracks named in one subscription permission.
pub const SUBSCRIPTION_PERMISSIONS_MAX: usize = 16_384;
/// Participants moved by one command.
pub const MOVES_MAX: usize = 65_536;
/// Revocations kept; the ones that would end first are dropped beyond it.
pub const REVOCATIONS_MAX: usize = 65_536;
/// Deadlines met by one `Expire`; the rest waits for the next.
pub const EXPIRED_MAX: usize = 10_000;
/// Requests remembered with their answers.
pub const REQUESTS_MAX: usize = 65_536;
/// Milliseconds after which a request is forgotten. Must be well above the time for which a
/// proposer retries.
pub const REQUEST_AGE_MAX_MS: u64 = 5 * 60 * 1000;
/// Milliseconds a participant has to become active; LiveKit's join timeout.
pub const ACTIVATION_MS: u64 = 60_000;
/// Milliseconds for which a revocation is kept. Tokens that live longer than that are valid again
/// afterwards: 30 days is far above what tokens are issued for.
pub const REVOCATION_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Refuses more than `max` of something.
pub fn check(what: &str, count: usize, max: usize) -> Result<(), Rejection> {
    if count <= max {
        return Ok(());
    }
    Err(Rejection::LimitExceeded(format!(
        "{what}: {count}, at most {max}"
    )))
}

/// Refuses long names, identities, sids and addresses.
pub fn check_name(what: &str, name: &str) -> Result<(), Rejection> {
    check(what, name.len(), NAME_BYTES_MAX)
}

/// Refuses long metadata.
pub fn check_metadata(metadata: &str) -> Result<(), Rejection> {
    check("bytes of metadata", metadata.len(), METADATA_BYTES_MAX)
}

/// Refuses long attributes or tags.
pub fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), Rejection> {
    let bytes = attributes
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    check("bytes of attributes", bytes, ATTRIBUTES_BYTES_MAX)
}

/// Refuses tracks with too many or too long parts.
pub fn check_track(track: &Track) -> Result<(), Rejection> {
    check_name("bytes of a track's sid", track.sid.as_str())?;
    check_name("bytes of a track's name", &track.name)?;
    check_name("bytes of a track's stream", &track.stream)?;
    check("audio features", track.audio_features.len(), 64)?;
    check("codecs of a track", track.codecs.len(), CODECS_MAX)?;
    for codec in &track.codecs {
        for text in [&codec.mime, &codec.fmtp, &codec.cid, &codec.mid] {
            check_name("bytes of a codec's parameter", text)?;
        }
        check("layers of a codec", codec.layers.len(), LAYERS_MAX)?;
        for layer in &codec.layers {
            check_name("bytes of a layer's rid", &layer.rid)?;
        }
    }
    Ok(())
}
