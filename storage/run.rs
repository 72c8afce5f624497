//! Runs of log entries as they come back from the database, and the encoding of single values.
//!
//! The log and the scan at opening read runs through here, so that neither takes an unchecked byte.
//! The writer makes the records; see `writer.rs`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fault::{Fault, Problem, damage};
use crate::keys::Key;
use crate::record::{self, Kind, split_entry};

/// A run as read from the database.
pub(crate) struct ReadRun {
    pub(crate) key: Key,
    pub(crate) first: u64,
    pub(crate) parts: u16,
    body: Vec<u8>,
}

impl ReadRun {
    /// The entries, without their lengths.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<&[u8], Problem>> {
        let mut rest = &self.body[..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            match split_entry(rest) {
                Ok((entry, after)) => {
                    rest = after;
                    Some(Ok(entry))
                }
                Err(problem) => {
                    rest = &[];
                    Some(Err(problem))
                }
            }
        })
    }
}

/// Checks the record `value` under `bytes`, the head of a run, and fetches its further parts.
pub(crate) fn read_run(
    bytes: &[u8],
    value: &[u8],
    mut next: impl FnMut() -> Result<Option<(sled::IVec, sled::IVec)>, Fault>,
) -> Result<ReadRun, Fault> {
    let strange = |key: &Key| damage(key, Problem::Contents("the key is not of a run".into()));
    let key = Key::decode(bytes).ok_or_else(|| strange(&Key::Anchor))?;
    let Key::Run { group, first, part } = key else {
        return Err(strange(&key));
    };
    let damaged = |problem| damage(&key, problem);
    if part != 0 {
        return Err(damaged(Problem::Contents("its head is missing".into())));
    }
    let (kind, body) = record::open_any(bytes, value).map_err(damaged)?;
    if kind == Kind::Run as u8 {
        let body = body.to_vec();
        return Ok(ReadRun {
            key,
            first,
            parts: 1,
            body,
        });
    }
    if kind != Kind::RunHead as u8 {
        return Err(damaged(Problem::Type {
            expected: Kind::Run as u8,
            found: kind,
        }));
    }
    let too_short = || Problem::Contents("the number of parts is missing".into());
    let (parts, piece) = body
        .split_first_chunk::<2>()
        .ok_or_else(too_short)
        .map_err(damaged)?;
    let parts = u16::from_le_bytes(*parts);
    let mut whole = piece.to_vec();
    for part in 1..parts {
        let expected = Key::Run { group, first, part };
        let damaged = |problem| damage(&expected, problem);
        let found = next()?.filter(|(bytes, _)| *bytes == expected.encode());
        let (bytes, value) = found.ok_or_else(|| damaged(Problem::Missing))?;
        let body = record::open(Kind::RunPart, &bytes, &value).map_err(damaged)?;
        whole.extend_from_slice(body.get(2..).ok_or_else(too_short).map_err(damaged)?);
    }
    Ok(ReadRun {
        key,
        first,
        parts,
        body: whole,
    })
}

pub(crate) fn decode<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T, Fault> {
    let contents = |why: String| damage(key, Problem::Contents(why));
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|error| contents(error.to_string()))?;
    if rest.is_empty() {
        return Ok(value);
    }
    Err(contents(format!("{} bytes are left over", rest.len())))
}

/// Appends the encoding of `value` to `bytes`.
pub(crate) fn encode<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), Fault> {
    struct Sink<'a>(&'a mut Vec<u8>);
    impl postcard::ser_flavors::Flavor for Sink<'_> {
        type Output = ();
        fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
            self.0.extend_from_slice(data);
            Ok(())
        }
        fn try_push(&mut self, data: u8) -> postcard::Result<()> {
            self.0.push(data);
            Ok(())
        }
        fn finalize(self) -> postcard::Result<()> {
            Ok(())
        }
    }
    postcard::serialize_with_flavor(value, Sink(bytes))
        .map_err(|error| Fault::Encoding(error.to_string()))
}
