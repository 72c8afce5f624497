//! How records are named inside the database.
//!
//! One ordered key space holds every group: the anchor (which proves that the database belongs to
//! this data folder), the names of the groups, per group a handful of single records, and the log
//! as runs of consecutive entries. All parts are big-endian, so a scan meets a group's runs in log
//! order. The writer makes keys, the scan at opening reads them back, and the texts here are what
//! an operator reads when a record is damaged.

use std::fmt;

use sled::IVec;

/// Number of a group inside one database, given out when its name is first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GroupId(pub(crate) u32);

/// The single records that a group has at most one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Slot {
    /// The last vote.
    Vote = 1,
    /// The last log id known to be committed; may lag.
    Committed = 2,
    /// The last log id that was purged.
    Purged = 3,
    /// Which snapshot file is the current one.
    Snapshot = 4,
}

/// The name of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// Written once at creation.
    Anchor,
    /// Maps a group's name to its number.
    Group(String),
    /// One of a group's single records.
    Slot(GroupId, Slot),
    /// A run of log entries, or one part of a run that is too large for one record.
    Run {
        /// The group whose log it is.
        group: GroupId,
        /// Index of the first entry in the run.
        first: u64,
        /// 0 for the head of the run.
        part: u16,
    },
}

const ANCHOR: u8 = 1;
const GROUP: u8 = 2;
const SLOT: u8 = 3;
const RUN: u8 = 4;

impl Key {
    /// The bytes under which the database files the record.
    pub(crate) fn encode(&self) -> IVec {
        match self {
            Self::Anchor => IVec::from(&[ANCHOR]),
            Self::Group(name) => {
                let mut bytes = Vec::with_capacity(1 + name.len());
                bytes.push(GROUP);
                bytes.extend_from_slice(name.as_bytes());
                IVec::from(bytes)
            }
            Self::Slot(group, slot) => {
                let mut bytes = [SLOT, 0, 0, 0, 0, *slot as u8];
                bytes[1..5].copy_from_slice(&group.0.to_be_bytes());
                IVec::from(&bytes)
            }
            Self::Run { group, first, part } => {
                let mut bytes = [RUN; 15];
                bytes[1..5].copy_from_slice(&group.0.to_be_bytes());
                bytes[5..13].copy_from_slice(&first.to_be_bytes());
                bytes[13..15].copy_from_slice(&part.to_be_bytes());
                IVec::from(&bytes)
            }
        }
    }

    /// Reads a key back; `None` when no version of this crate writes such a key.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            ANCHOR if rest.is_empty() => Some(Self::Anchor),
            GROUP => Some(Self::Group(std::str::from_utf8(rest).ok()?.to_owned())),
            SLOT => {
                let rest: &[u8; 5] = rest.try_into().ok()?;
                let [a, b, c, d, slot] = *rest;
                let slot = match slot {
                    1 => Slot::Vote,
                    2 => Slot::Committed,
                    3 => Slot::Purged,
                    4 => Slot::Snapshot,
                    _ => return None,
                };
                Some(Self::Slot(GroupId(u32::from_be_bytes([a, b, c, d])), slot))
            }
            RUN => {
                let (group, rest) = rest.split_first_chunk()?;
                let (first, rest) = rest.split_first_chunk()?;
                let part: [u8; 2] = rest.try_into().ok()?;
                Some(Self::Run {
                    group: GroupId(u32::from_be_bytes(*group)),
                    first: u64::from_be_bytes(*first),
                    part: u16::from_be_bytes(part),
                })
            }
            _ => None,
        }
    }

    /// The first key of every group's name record.
    pub(crate) fn groups_prefix() -> [u8; 1] {
        [GROUP]
    }

    /// What all runs of one group's log begin with.
    pub(crate) fn runs_prefix(group: GroupId) -> [u8; 5] {
        let mut bytes = [RUN; 5];
        bytes[1..].copy_from_slice(&group.0.to_be_bytes());
        bytes
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anchor => write!(f, "anchor of the database"),
            Self::Group(name) => write!(f, "name record of group `{name}`"),
            Self::Slot(group, slot) => {
                let what = match slot {
                    Slot::Vote => "vote",
                    Slot::Committed => "committed index",
                    Slot::Purged => "purged index",
                    Slot::Snapshot => "snapshot pointer",
                };
                write!(f, "{what} of group number {}", group.0)
            }
            Self::Run {
                group,
                first,
                part: 0,
            } => {
                write!(
                    f,
                    "log entries from index {first} of group number {}",
                    group.0
                )
            }
            Self::Run { group, first, part } => {
                write!(
                    f,
                    "part {part} of log entry {first} of group number {}",
                    group.0
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back() {
        let keys = [
            Key::Anchor,
            Key::Group("europe".into()),
            Key::Slot(GroupId(7), Slot::Vote),
            Key::Slot(GroupId(7), Slot::Snapshot),
            Key::Run {
                group: GroupId(1),
                first: u64::MAX,
                part: 3,
            },
        ];
        for key in keys {
            assert_eq!(Key::decode(&key.encode()), Some(key));
        }
    }

    #[test]
    fn runs_sort_in_log_order_and_by_group() {
        let run = |group, first, part| {
            Key::Run {
                group: GroupId(group),
                first,
                part,
            }
            .encode()
        };
        assert!(run(1, 255, 0) < run(1, 256, 0));
        assert!(run(1, 256, 0) < run(1, 256, 1));
        assert!(run(1, u64::MAX, 9) < run(2, 0, 0));
    }

    #[test]
    fn strange_keys_are_refused() {
        for bytes in [
            &[][..],
            &[9],
            &[ANCHOR, 0],
            &[SLOT, 0, 0, 0, 0, 77],
            &[RUN; 14],
            &[RUN; 16],
        ] {
            assert_eq!(Key::decode(bytes), None, "{bytes:?}");
        }
    }
}
