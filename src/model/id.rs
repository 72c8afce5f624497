//! Names and numbers that identify things, each its own type.
//!
//! Used by every crate. Sids are LiveKit's (`RM_…`, `PA_…`, `TR_…`, `ND_…`); whoever proposes a
//! command draws them, so that replicas need no randomness.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
        #[serde(transparent)]
        pub struct $name(pub String);
        text_id!(@impl $name);
    };
    (@impl $name:ident) => {
        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

text_id!(
    /// Name of a room: what tokens and API calls use. Unique within the cluster.
    RoomName
);
text_id!(
    /// `RM_…`: one incarnation of a room name.
    RoomSid
);
text_id!(
    /// `PA_…`: one session of an identity.
    ParticipantSid
);
text_id!(
    /// `TR_…`: a published track.
    TrackSid
);
text_id!(
    /// A region's name; each region has its own Raft group.
    Region
);

/// A participant's identity, unique within its room. `Debug` hides it: it may be a person's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(pub String);
text_id!(@impl Identity);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(#{:08x})", fnv1a(self.0.as_bytes()) as u32)
    }
}

/// FNV-1a, 64 bits: a stable hash that is the same on every node and in every version.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number_id!(
    /// A node of the cluster; also its Raft id. Chosen by configuration, never reused.
    NodeId(u64)
);
number_id!(
    /// One start of a node's process; drawn at random at start. Keys between nodes depend on it.
    BootId(u64)
);
number_id!(
    /// Generation of an ownership. Whoever holds a lower one than the log's is fenced.
    Epoch(u64)
);
number_id!(
    /// Count of the changes applied to one room.
    Version(u64)
);
number_id!(
    /// Count of the entries applied by one region's group.
    Revision(u64)
);
number_id!(
    /// Wall-clock time, milliseconds since the Unix epoch; stamped by the group's leader.
    UnixMillis(u64)
);
number_id!(
    /// Chosen at random by whoever asks for a change; the same id applies at most once.
    RequestId(u128)
);

impl NodeId {
    /// `ND_…`, the form LiveKit's messages carry.
    #[must_use]
    pub fn livekit(self) -> String {
        format!("ND_{:012}", self.0)
    }
}
