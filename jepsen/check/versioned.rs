//! Linearizability of registers whose every answer carries the version it speaks of: a sort instead of
//! a search, so that hundreds of thousands of operations take a fraction of a second.
//!
//! What must hold of one key (`docs/testing.md` names the source of each rule): a version belongs to one
//! write; a read equals the last write at or below its version; what is invoked after an answer speaks of
//! no smaller version, and a write of a greater one; nothing is seen before it was invoked; and, where
//! nothing but writes makes versions, each gap is explained by a write of unknown outcome: otherwise an
//! acknowledged change has vanished, or a write was applied twice. A server that lies consistently about versions passes; [`super::wgl`]
//! does not look at them.

use std::collections::{BTreeMap, HashMap};

use super::seconds;

/// One read or write of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Access {
    pub(crate) write: bool,
    /// What was written or read; written values are unique.
    pub(crate) value: String,
    /// When it was invoked.
    pub(crate) call: u64,
    /// When it returned; [`u64::MAX`] for an unknown outcome.
    pub(crate) ret: u64,
    /// What the answer said; none where there was no answer, or the answer spoke of a later write.
    pub(crate) version: Option<u64>,
    /// Who was asked.
    pub(crate) node: u64,
}

impl Access {
    fn is_unknown(&self) -> bool {
        self.ret == u64::MAX
    }

    fn told(&self) -> String {
        let what = if self.write { "write" } else { "read" };
        let version = self
            .version
            .map_or_else(String::new, |version| format!(" at version {version}"));
        let end = if self.is_unknown() {
            "never".to_owned()
        } else {
            seconds(self.ret)
        };
        format!(
            "{what} of {:?}{version} at node {} ({} to {end})",
            self.value,
            self.node,
            seconds(self.call)
        )
    }
}

/// Where versions of a key come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Versions {
    /// From writes alone: each is a write.
    Dense,
    /// From other changes too, so that a gap means nothing.
    Sparse,
}

/// What is wrong with the accesses of one key.
pub(crate) fn check(accesses: &[Access], versions: Versions) -> Vec<String> {
    let mut found = Vec::new();
    let writes = by_version(accesses, versions, &mut found);
    values(accesses, &writes, &mut found);
    real_time(accesses, &mut found);
    if versions == Versions::Dense {
        gaps(accesses, &writes, &mut found);
    }
    found
}

type Writes<'a> = BTreeMap<u64, &'a Access>;

/// Which write each version is, from acknowledgements and, of writes of unknown outcome, from what reads saw.
fn by_version<'a>(
    accesses: &'a [Access],
    versions: Versions,
    found: &mut Vec<String>,
) -> Writes<'a> {
    let mut writes = Writes::new();
    let mut unknown: HashMap<&str, &Access> = HashMap::new();
    for access in accesses.iter().filter(|access| access.write) {
        let Some(version) = access.version else {
            unknown.insert(&access.value, access);
            continue;
        };
        if let Some(other) = writes.insert(version, access) {
            found.push(format!(
                "version {version} was acknowledged for two writes: {} and {}",
                other.told(),
                access.told()
            ));
        }
    }
    let mut seen: HashMap<&str, u64> = HashMap::new();
    let mut reads: Vec<(u64, &Access)> = accesses
        .iter()
        .filter(|access| !access.write)
        .filter_map(|access| Some((access.version?, access)))
        .collect();
    reads.sort_by_key(|(version, _)| *version);
    for (version, read) in reads {
        let Some(write) = unknown.get(read.value.as_str()) else {
            continue;
        };
        match seen.get(read.value.as_str()) {
            None => {
                seen.insert(&read.value, version);
                if versions == Versions::Dense
                    && let Some(other) = writes.insert(version, write)
                {
                    found.push(format!(
                        "version {version} is {} for one and {} for another",
                        other.told(),
                        read.told()
                    ));
                }
            }
            Some(first) if versions == Versions::Dense && *first != version => {
                found.push(format!(
                    "{} was applied twice: seen at versions {first} and {version}",
                    write.told()
                ));
            }
            Some(_) => {}
        }
    }
    writes
}

/// Reads equal the state at their version, and nothing is seen before it was invoked.
fn values(accesses: &[Access], writes: &Writes<'_>, found: &mut Vec<String>) {
    let mut asked: HashMap<&str, &Access> = HashMap::new();
    for write in accesses.iter().filter(|access| access.write) {
        asked.insert(&write.value, write);
    }
    for read in accesses.iter().filter(|access| !access.write) {
        let Some(version) = read.version else {
            continue;
        };
        let Some(write) = asked.get(read.value.as_str()) else {
            found.push(format!("{}: nobody wrote that", read.told()));
            continue;
        };
        if read.ret < write.call {
            found.push(format!(
                "{} was seen before its {}",
                read.told(),
                write.told()
            ));
        }
        let Some((at, last)) = writes.range(..=version).next_back() else {
            continue;
        };
        let is_older = write.version.is_some_and(|own| own < *at);
        let is_newer = write.version.is_some_and(|own| own > version);
        if last.value != read.value && (is_older || is_newer) {
            found.push(format!(
                "{}, but version {at} is the {}",
                read.told(),
                last.told()
            ));
        }
    }
}

/// What is invoked after another has returned speaks of no smaller version.
fn real_time(accesses: &[Access], found: &mut Vec<String>) {
    let mut called: Vec<(u64, &Access)> = accesses
        .iter()
        .filter_map(|access| Some((access.version?, access)))
        .collect();
    let mut returned = called.clone();
    called.sort_by_key(|(_, access)| access.call);
    returned.sort_by_key(|(_, access)| access.ret);
    let mut before = returned.into_iter().peekable();
    let mut newest: Option<(u64, &Access)> = None;
    for (version, access) in called {
        while let Some((other, earlier)) = before.next_if(|(_, other)| other.ret < access.call) {
            if newest.is_none_or(|(highest, _)| other > highest) {
                newest = Some((other, earlier));
            }
        }
        let Some((highest, earlier)) = newest else {
            continue;
        };
        if version < highest || (access.write && version == highest) {
            let what = if access.write {
                "an acknowledged change is lost"
            } else {
                "a stale read"
            };
            found.push(format!(
                "{what}: {} was invoked after {} had returned",
                access.told(),
                earlier.told()
            ));
        }
    }
}

/// Each version without a known write is one of unknown outcome, or of an answer without version.
fn gaps(accesses: &[Access], writes: &Writes<'_>, found: &mut Vec<String>) {
    let (Some((first, _)), Some(last)) = (
        writes.first_key_value(),
        accesses.iter().filter_map(|access| access.version).max(),
    ) else {
        return;
    };
    let versions = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
    let gaps = versions.saturating_sub(writes.len());
    let known: std::collections::HashSet<&str> =
        writes.values().map(|write| write.value.as_str()).collect();
    let open = accesses
        .iter()
        .filter(|access| access.write && !known.contains(access.value.as_str()))
        .count();
    if gaps > open {
        found.push(format!(
            "{gaps} of the versions {first} to {last} are no write that is known, but only {open} writes have \
             an unknown outcome"
        ));
    }
}

#[cfg(test)]
mod tests;
