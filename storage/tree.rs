//! The ordered map under the records: sled or, under simulation, one in memory.
//!
//! Sled works with threads of its own, which a simulation has no place for; and what it loses without its
//! power is known (see [`crate::database`]). The map that stands in for it keeps what was committed, and
//! of what came later a part at most.

use std::ops::RangeBounds;

use sled::IVec;

#[cfg(feature = "simulation")]
use crate::simulation::SimulatedDisk;

/// A record as it is found: its key and its bytes.
type Found = Result<(IVec, IVec), sled::Error>;

/// An open map. Clones share it.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    Sled(sled::Db),
    #[cfg(feature = "simulation")]
    Simulated(SimulatedDisk),
}

/// Records in the order of their keys.
#[cfg_attr(
    feature = "simulation",
    expect(
        clippy::large_enum_variant,
        reason = "there is one at a time, on the stack"
    )
)]
pub(crate) enum Records {
    Sled(sled::Iter),
    #[cfg(feature = "simulation")]
    Simulated(std::vec::IntoIter<(IVec, IVec)>),
}

impl Tree {
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<IVec>, sled::Error> {
        match self {
            Self::Sled(tree) => tree.get(key),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => Ok(disk.record(key)),
        }
    }

    /// Writes a record, or deletes it. Nothing is durable before the database commits.
    pub(crate) fn put(&self, key: &IVec, record: Option<&[u8]>) -> Result<(), sled::Error> {
        match self {
            Self::Sled(tree) => match record {
                Some(record) => tree.insert(key, record),
                None => tree.remove(key),
            }
            .map(|_| ()),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.put_record(key, record).map_err(sled::Error::Io),
        }
    }

    pub(crate) fn range<'a>(&self, range: impl RangeBounds<&'a [u8]>) -> Records {
        match self {
            Self::Sled(tree) => Records::Sled(tree.range(range)),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => Records::Simulated(disk.records(range).into_iter()),
        }
    }

    pub(crate) fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> Records {
        match self {
            Self::Sled(tree) => Records::Sled(tree.scan_prefix(prefix)),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => {
                let prefix = prefix.as_ref();
                let mut records = disk.records(prefix..);
                records.retain(|(key, _)| key.starts_with(prefix));
                Records::Simulated(records.into_iter())
            }
        }
    }
}

impl Iterator for Records {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        match self {
            Self::Sled(records) => records.next(),
            #[cfg(feature = "simulation")]
            Self::Simulated(records) => records.next().map(Ok),
        }
    }
}

impl DoubleEndedIterator for Records {
    fn next_back(&mut self) -> Option<Found> {
        match self {
            Self::Sled(records) => records.next_back(),
            #[cfg(feature = "simulation")]
            Self::Simulated(records) => records.next_back().map(Ok),
        }
    }
}
