//! Versioned bytes of entries and snapshots.
//!
//! A frame is one byte of version, then the value in postcard. `flotilla-raft` puts encoded entries
//! into the log and encoded snapshots beside it; what an older version wrote is read by the newer
//! one, so a new layout takes a new version and a conversion here. What is written carries the lowest
//! version that has everything in it, so that a node of the version before reads along until it is
//! upgraded; and nothing newer than every node reads is proposed ([`State::log_version`]). `fixtures/` holds bytes of every
//! version. Damage is found by the storage's checksums; bytes that do not decode are refused here
//! without harm.

use std::io::{self, BufWriter, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::State;
use crate::command::Entry;

/// The newest version. Each has what the one before has, and appends: version 2 `Command::NodeLost`,
/// `Command::RemoveNode` and `NodeState::Lost`, version 3 `Command::Depart`, version 4
/// `Command::NodeLostTo` and `Command::ReleaseAddresses`, version 5 `Command::NodeLostIn` and
/// `Command::NodeReturns`.
pub const VERSION: u8 = 5;

/// The first version; the layouts of all later ones extend it.
pub(crate) const VERSION_MIN: u8 = 1;

/// Why bytes could not be decoded.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("no bytes to decode")]
    Empty,
    /// Written by a newer program, or not by this one at all.
    #[error("encoding version {found} is not known, this program reads up to {VERSION}")]
    UnknownVersion {
        /// The version found.
        found: u8,
    },
    /// Not a value of the kind asked for.
    #[error("malformed bytes in encoding version {version}: {reason}")]
    Malformed {
        /// Version of the frame.
        version: u8,
        /// What was wrong.
        reason: String,
    },
    /// A value, and more bytes after it.
    #[error("{count} bytes after the value")]
    Trailing {
        /// How many.
        count: usize,
    },
}

/// Bytes of an entry.
#[must_use]
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    encode(entry.command.since_version(), entry)
}

/// The entry that [`encode_entry`] of this or an earlier version was given.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    decode(bytes)
}

/// Bytes of a whole state. Costs about a microsecond per participant.
#[must_use]
pub fn encode_snapshot(state: &State) -> Vec<u8> {
    encode(snapshot_version(state), state)
}

/// The version that first had everything in a state.
fn snapshot_version(state: &State) -> u8 {
    if state.nodes.values().any(|node| node.state.is_lost()) {
        2
    } else {
        VERSION_MIN
    }
}

/// The state that [`encode_snapshot`] of this or an earlier version was given.
pub fn decode_snapshot(bytes: &[u8]) -> Result<State, DecodeError> {
    decode(bytes)
}

/// A hash that is equal on two replicas exactly if their states are: the first 64 bits of the
/// SHA-256 of the encoded snapshot. Costs as much as a snapshot, but no memory.
#[must_use]
pub fn state_hash(state: &State) -> u64 {
    // Postcard writes a few bytes at a time; the hash likes whole blocks.
    let mut writer = BufWriter::with_capacity(8 * 1024, Hasher(Sha256::new()));
    writer
        .write_all(&[snapshot_version(state)])
        .expect("hashing does not fail");
    writer = postcard::to_io(state, writer).expect("every state has an encoding");
    let Hasher(hash) = writer
        .into_inner()
        .unwrap_or_else(|_| unreachable!("hashing does not fail"));
    let digest: [u8; 32] = hash.finalize().into();
    u64::from_be_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}

struct Hasher(Sha256);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![version]).expect("every value has an encoding")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (version, bytes) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if !(VERSION_MIN..=VERSION).contains(version) {
        return Err(DecodeError::UnknownVersion { found: *version });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::Trailing { count: rest.len() }),
        Err(error) => Err(DecodeError::Malformed {
            version: *version,
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests;
