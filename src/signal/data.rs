//! Data messages between participants.
//!
//! `session::data` rewrites what a client sends into a [`DataOut`], which the shell hands to every
//! session of the room here and on other nodes; those pick what is for them. The node keeps one
//! [`Cache`] per room for those who have just joined and one [`Nonces`] for the API's `SendData`.

mod cache;
mod packet;

use bytes::Bytes;
use flotilla_model::id::{Identity, ParticipantSid};

use crate::media::Channel;

pub use cache::{Cache, Nonces, Sent};
pub use packet::{Inspected, PacketError, Rewrite, content, inspect, rewrite};

/// A data message on its way to others, as one node tells another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataOut {
    /// Who sent it; empty if the API did or if the sender is hidden.
    pub from: ParticipantSid,
    /// Its identity, by which a session knows its own messages.
    pub from_identity: Identity,
    /// Channel it came on and goes out on.
    pub channel: Channel,
    /// Who is to get it; empty: everybody else.
    pub destinations: Vec<Identity>,
    /// The sender's number of it, 0 if it has none. Receivers take each number once.
    pub sequence: u32,
    /// Field number of the packet's content in `livekit.DataPacket`; see [`content`].
    pub content: u32,
    /// The `livekit.DataPacket` as it goes out.
    pub payload: Bytes,
}

impl DataOut {
    /// Whether this participant is to get it.
    #[must_use]
    pub fn is_for(&self, identity: &Identity) -> bool {
        self.from_identity != *identity
            && (self.destinations.is_empty() || self.destinations.contains(identity))
    }
}
