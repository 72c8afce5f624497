//! The frame around everything that is kept: version, type, length and a CRC-32C.
//!
//! ```text
//! 0        1      2              6           10
//! version  type   length (LE)    crc (LE)    body …
//! ```
//! The checksum covers the record's key as well, so an intact record under the wrong name is found
//! too. The writer seals, every reader opens; what does not open is a [`Problem`], never a guess.

use std::fmt;

/// Bytes before the body.
pub(crate) const HEADER: usize = 10;

/// The only version that exists so far.
pub(crate) const VERSION: u8 = 1;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Anchor = 1,
    Group = 2,
    Vote = 3,
    Committed = 4,
    Purged = 5,
    /// Complete entries, each behind its length.
    Run = 6,
    /// The first part of one entry that needs several records.
    RunHead = 7,
    /// A later part of such an entry.
    RunPart = 8,
    /// Names the current snapshot file.
    Snapshot = 9,
    /// First frame of a snapshot file: the caller's description.
    SnapshotMeta = 10,
    /// A piece of a snapshot file.
    SnapshotData = 11,
    /// Last frame of a snapshot file: totals.
    SnapshotEnd = 12,
    /// A batch of writes in the journal.
    Journal = 13,
}

impl Kind {
    fn name(code: u8) -> &'static str {
        match code {
            1 => "anchor",
            2 => "group name",
            3 => "vote",
            4 => "committed index",
            5 => "purged index",
            6 => "log run",
            7 => "head of a long entry",
            8 => "part of a long entry",
            9 => "snapshot pointer",
            10 => "snapshot description",
            11 => "snapshot data",
            12 => "snapshot end",
            13 => "journal record",
            _ => "unknown",
        }
    }
}

/// Why a record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The record should be there and is not.
    Missing,
    /// Fewer bytes than the frame alone needs.
    Short {
        /// Bytes present.
        found: usize,
    },
    /// Written by a version that this build does not know.
    Version {
        /// The version byte.
        found: u8,
    },
    /// A different kind of record than its name promises.
    Type {
        /// The type that belongs there.
        expected: u8,
        /// The type found.
        found: u8,
    },
    /// The length in the frame and the bytes present differ.
    Length {
        /// Bytes that the frame announces.
        expected: usize,
        /// Bytes present.
        found: usize,
    },
    /// The contents are not what was written.
    Checksum {
        /// The checksum that was written.
        expected: u32,
        /// The checksum of what is there.
        found: u32,
    },
    /// The frame is intact but its contents do not make sense to this build.
    Contents(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "it is missing"),
            Self::Short { found } => {
                write!(f, "it has {found} bytes, the frame alone needs {HEADER}")
            }
            Self::Version { found } => {
                write!(
                    f,
                    "its version is {found}, this build knows version {VERSION}"
                )
            }
            Self::Type { expected, found } => write!(
                f,
                "its type is {found} ({}), expected {expected} ({})",
                Kind::name(*found),
                Kind::name(*expected)
            ),
            Self::Length { expected, found } => {
                write!(f, "its length should be {expected} bytes, found {found}")
            }
            Self::Checksum { expected, found } => {
                write!(
                    f,
                    "its checksum should be {expected:#010x}, found {found:#010x}"
                )
            }
            Self::Contents(why) => write!(f, "its contents cannot be read: {why}"),
        }
    }
}

/// Begins a record; the caller appends the body and then calls [`seal`].
pub(crate) fn begin(kind: Kind, capacity: usize) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + capacity);
    begin_in(kind, &mut record);
    record
}

/// Begins a record in an empty buffer.
pub(crate) fn begin_in(kind: Kind, buffer: &mut Vec<u8>) {
    debug_assert!(buffer.is_empty(), "a record begins its buffer");
    buffer.extend_from_slice(&[VERSION, kind as u8, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// Completes a record begun with [`begin`]: length and checksum.
///
/// # Panics
/// If the body has 4 GiB or more; every caller cuts at far less.
pub(crate) fn seal(record: &mut [u8], key: &[u8]) {
    let length = u32::try_from(record.len() - HEADER).expect("records are cut below 4 GiB");
    record[2..6].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(record, key);
    record[6..10].copy_from_slice(&crc.to_le_bytes());
}

/// A complete record around `body`.
pub(crate) fn frame(kind: Kind, key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut record = begin(kind, body.len());
    record.extend_from_slice(body);
    seal(&mut record, key);
    record
}

/// Checks a record and returns its body.
pub(crate) fn open<'a>(kind: Kind, key: &[u8], record: &'a [u8]) -> Result<&'a [u8], Problem> {
    let (found, body) = open_any(key, record)?;
    if found != kind as u8 {
        return Err(Problem::Type {
            expected: kind as u8,
            found,
        });
    }
    Ok(body)
}

/// Checks a record of any type and returns its type code and body.
pub(crate) fn open_any<'a>(key: &[u8], record: &'a [u8]) -> Result<(u8, &'a [u8]), Problem> {
    let Some((header, body)) = record.split_first_chunk::<HEADER>() else {
        return Err(Problem::Short {
            found: record.len(),
        });
    };
    let [version, kind, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    if version != VERSION {
        return Err(Problem::Version { found: version });
    }
    let expected = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if expected != body.len() {
        return Err(Problem::Length {
            expected,
            found: body.len(),
        });
    }
    let expected = u32::from_le_bytes([c0, c1, c2, c3]);
    let found = checksum(record, key);
    if expected != found {
        return Err(Problem::Checksum { expected, found });
    }
    Ok((kind, body))
}

/// The length announced by a frame header, for readers of streams. The header is not yet proven.
pub(crate) fn announced_length(header: &[u8; HEADER]) -> usize {
    u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize
}

fn checksum(record: &[u8], key: &[u8]) -> u32 {
    let crc = crc32c::crc32c(key);
    let crc = crc32c::crc32c_append(crc, &record[..6]);
    crc32c::crc32c_append(crc, &record[HEADER..])
}

/// Takes one entry, without its length, off a run's body.
pub(crate) fn split_entry(body: &[u8]) -> Result<(&[u8], &[u8]), Problem> {
    let short = || Problem::Contents("an entry is cut short".into());
    let (length, rest) = body.split_first_chunk::<4>().ok_or_else(short)?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or_else(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_under_its_own_key_only() {
        let record = frame(Kind::Vote, b"here", b"body");
        assert_eq!(open(Kind::Vote, b"here", &record), Ok(&b"body"[..]));
        assert!(matches!(
            open(Kind::Vote, b"there", &record),
            Err(Problem::Checksum { .. })
        ));
        assert_eq!(
            open(Kind::Purged, b"here", &record),
            Err(Problem::Type {
                expected: 5,
                found: 3
            })
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let record = frame(Kind::Run, b"k", b"some log entries");
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(Kind::Run, b"k", &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_shortened_record_is_found() {
        let record = frame(Kind::Run, b"k", b"some log entries");
        for length in 0..record.len() {
            assert!(
                open(Kind::Run, b"k", &record[..length]).is_err(),
                "length {length}"
            );
        }
    }
}
