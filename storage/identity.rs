//! Whose data folder is this: the `identity` file, the lock, and the folder's layout.
//!
//! ```text
//! DATA/lock        held with flock while open; says who holds it
//! DATA/identity    format, node, cluster, checksum; text, replaced as a whole
//! DATA/journal/    what the database does not have yet
//! DATA/log/        the database
//! DATA/snapshots/  one file per snapshot
//! ```
//! The identity is checked before the database is touched, so that a wrong configuration cannot
//! change another node's data. The database is made in `log.creating` and renamed only when it is
//! durable, and so is the journal in `journal.creating`; an interrupted creation is thrown away, for
//! nobody can have relied on it.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::fault::{Damage, OpenError, Problem};

/// The format of the folder. Goes up when an older build could not read it.
///
/// Format 1 has no journal; opening such a folder makes one.
const FORMAT: u64 = 2;
const FORMAT_BEFORE_JOURNAL: u64 = 1;

/// Longest cluster id, in bytes.
const CLUSTER_LENGTH_MAX: usize = 128;

/// Who opens a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, once the node is part of one.
    pub cluster: Option<String>,
    /// The node.
    pub node: u64,
}

/// What the folder says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) identity: Identity,
    /// Whether the folder has a journal.
    pub(crate) journal: bool,
}

/// The parts of a data folder.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    pub(crate) disk: Disk,
}

impl Layout {
    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("log")
    }

    pub(crate) fn database_in_creation(&self) -> PathBuf {
        self.root.join("log.creating")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    pub(crate) fn journal_in_creation(&self) -> PathBuf {
        self.root.join("journal.creating")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// Turns an I/O error into an [`OpenError`] that says what was attempted where.
pub(crate) fn failed(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Io { what, path, source }
}

/// Makes the folder if needed and takes its lock. The lock lasts as long as the returned file. Nobody
/// shares a simulated disk, so there it is not locked.
pub(crate) fn lock(layout: &Layout) -> Result<Option<File>, OpenError> {
    if layout.disk.is_simulated() {
        let made = layout.disk.create_folder(&layout.root);
        made.map_err(failed("cannot create", &layout.root))?;
        let synced = sync_above(layout);
        synced.map_err(failed("cannot sync", &layout.root))?;
        return Ok(None);
    }
    if !layout.root.is_dir() {
        fs::create_dir_all(&layout.root).map_err(failed("cannot create", &layout.root))?;
        let absolute =
            fs::canonicalize(&layout.root).map_err(failed("cannot find", &layout.root))?;
        for ancestor in absolute.ancestors().skip(1) {
            // A folder above may be unreadable for us; then it was not made by us either.
            if sync_folder(ancestor).is_err() {
                break;
            }
        }
    }
    let path = layout.lock();
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed("cannot open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known {
                holder.trim().to_owned()
            } else {
                "another process".into()
            };
            return Err(OpenError::Locked {
                path: layout.root.clone(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed("cannot lock", &path)(source)),
    }
    file.set_len(0)
        .and_then(|()| write!(file, "process {}", std::process::id()))
        .map_err(failed("cannot write", &path))?;
    Ok(Some(file))
}

/// Makes the names of the folder and of those above it durable.
fn sync_above(layout: &Layout) -> std::io::Result<()> {
    let mut above = layout.root.ancestors().skip(1);
    above.try_for_each(|folder| layout.disk.sync_folder(folder))
}

/// The identity of the folder; `None` when it has none yet.
pub(crate) fn read(layout: &Layout) -> Result<Option<Known>, OpenError> {
    let path = layout.identity();
    let text = match layout.disk.read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("cannot read", &path)(error)),
    };
    parse(&text).map(Some).map_err(|error| match error {
        Parse::Format(found) => OpenError::Format {
            path: layout.root.clone(),
            found,
            supported: FORMAT,
        },
        Parse::Problem(problem) => OpenError::Damaged(Damage {
            record: "identity of the data folder".into(),
            place: path.display().to_string(),
            problem,
        }),
    })
}

/// Refuses a cluster id that the identity file could not hold in one line.
pub(crate) fn check_cluster(cluster: &str) -> Result<(), OpenError> {
    let fits = (1..=CLUSTER_LENGTH_MAX).contains(&cluster.len());
    if fits && !cluster.chars().any(char::is_control) && cluster.trim() == cluster {
        return Ok(());
    }
    Err(OpenError::ClusterId {
        cluster: cluster.to_owned(),
    })
}

/// Compares the folder's identity with the one that opens it.
pub(crate) fn check(layout: &Layout, found: &Identity, given: &Identity) -> Result<(), OpenError> {
    if found.node != given.node {
        return Err(OpenError::OtherNode {
            path: layout.root.clone(),
            expected: given.node,
            found: found.node,
        });
    }
    match (&found.cluster, &given.cluster) {
        (Some(found), Some(expected)) if found != expected => Err(OpenError::OtherCluster {
            path: layout.root.clone(),
            expected: expected.clone(),
            found: found.clone(),
        }),
        _ => Ok(()),
    }
}

/// Writes the identity durably, replacing the old one as a whole.
pub(crate) fn write(layout: &Layout, identity: &Identity) -> Result<(), OpenError> {
    let path = layout.identity();
    let fresh = layout.root.join("identity.new");
    let disk = &layout.disk;
    let mut file = disk
        .create(&fresh)
        .map_err(failed("cannot create", &fresh))?;
    file.write_all(render(identity).as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed("cannot write", &fresh))?;
    disk.rename(&fresh, &path)
        .map_err(failed("cannot replace", &path))?;
    disk.sync_folder(&layout.root)
        .map_err(failed("cannot sync", &layout.root))
}

/// What was there once is not there any more.
pub(crate) fn lost(layout: &Layout, what: &str) -> OpenError {
    OpenError::Lost {
        path: layout.root.clone(),
        what: what.to_owned(),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

fn render(identity: &Identity) -> String {
    let mut text = format!("flotilla-storage {FORMAT}\nnode {}\n", identity.node);
    if let Some(cluster) = &identity.cluster {
        text.push_str(&format!("cluster {cluster}\n"));
    }
    seal(text)
}

/// A text of whole lines with a last line that is the checksum of those before it.
pub(crate) fn seal(mut text: String) -> String {
    let crc = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("crc32c {crc:08x}\n"));
    text
}

/// The text before its checksum, if it agrees with it. `None` if there is no checksum.
pub(crate) fn unseal(text: &str) -> Option<Result<&str, Problem>> {
    let (body, tail) = text.split_at(text.rfind("\ncrc32c ")? + 1);
    let digits = tail.trim_end().strip_prefix("crc32c ");
    let Some(expected) = digits.and_then(|hex| u32::from_str_radix(hex, 16).ok()) else {
        let why = "the checksum is not a hexadecimal number";
        return Some(Err(Problem::Contents(why.to_owned())));
    };
    let found = crc32c::crc32c(body.as_bytes());
    Some(if expected == found {
        Ok(body)
    } else {
        Err(Problem::Checksum { expected, found })
    })
}

enum Parse {
    Format(u64),
    Problem(Problem),
}

fn parse(text: &str) -> Result<Known, Parse> {
    let contents = |why: &str| Parse::Problem(Problem::Contents(why.to_owned()));
    let mut lines = text.lines();
    let format = lines
        .next()
        .and_then(|line| line.strip_prefix("flotilla-storage "))
        .and_then(|format| format.parse::<u64>().ok())
        .ok_or_else(|| contents("the first line is not `flotilla-storage FORMAT`"))?;
    if ![FORMAT_BEFORE_JOURNAL, FORMAT].contains(&format) {
        return Err(Parse::Format(format));
    }
    let body = unseal(text)
        .ok_or_else(|| contents("no checksum"))?
        .map_err(Parse::Problem)?;
    let mut node = None;
    let mut cluster = None;
    for line in body.lines().skip(1) {
        match line.split_once(' ') {
            Some(("node", id)) => node = id.parse().ok(),
            Some(("cluster", id)) => cluster = Some(id.to_owned()),
            _ => return Err(contents(&format!("unknown line `{line}`"))),
        }
    }
    let node = node.ok_or_else(|| contents("no node id"))?;
    Ok(Known {
        identity: Identity { cluster, node },
        journal: format > FORMAT_BEFORE_JOURNAL,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let layout = Layout {
            root: folder.path().join("data"),
            disk: Disk::System,
        };
        fs::create_dir(&layout.root).expect("an empty folder");
        (folder, layout)
    }

    #[test]
    fn an_identity_reads_back() {
        let (_folder, layout) = layout();
        assert!(matches!(read(&layout), Ok(None)));
        for cluster in [None, Some("crc32c harbour".to_owned())] {
            let identity = Identity { cluster, node: 7 };
            write(&layout, &identity).expect("a writable folder");
            let known = Known {
                identity,
                journal: true,
            };
            assert_eq!(read(&layout).expect("an intact file"), Some(known));
        }
    }

    #[test]
    fn a_folder_from_before_the_journal_is_known() {
        let (_folder, layout) = layout();
        let body = "flotilla-storage 1\nnode 7\n";
        let crc = crc32c::crc32c(body.as_bytes());
        fs::write(layout.identity(), format!("{body}crc32c {crc:08x}\n")).expect("a write");
        let known = read(&layout).expect("an intact file").expect("an identity");
        assert_eq!((known.identity.node, known.journal), (7, false));
    }

    #[test]
    fn a_changed_identity_is_damage_and_a_newer_one_is_named() {
        let (_folder, layout) = layout();
        write(
            &layout,
            &Identity {
                cluster: None,
                node: 7,
            },
        )
        .expect("a writable folder");
        let text = fs::read_to_string(layout.identity()).expect("the file");
        fs::write(layout.identity(), text.replace("node 7", "node 8")).expect("a write");
        assert!(matches!(
            read(&layout),
            Err(OpenError::Damaged(Damage {
                problem: Problem::Checksum { .. },
                ..
            }))
        ));
        fs::write(layout.identity(), "flotilla-storage 3\nanything\n").expect("a write");
        assert!(matches!(
            read(&layout),
            Err(OpenError::Format {
                found: 3,
                supported: 2,
                ..
            })
        ));
        fs::write(layout.identity(), [0xff, 0x00]).expect("a write");
        assert!(matches!(read(&layout), Err(OpenError::Damaged(_))));
    }

    #[test]
    fn only_one_holder_at_a_time() {
        let (_folder, layout) = layout();
        let held = lock(&layout).expect("a free folder");
        let Err(OpenError::Locked { holder, .. }) = lock(&layout) else {
            panic!("the folder was locked twice")
        };
        assert_eq!(holder, format!("process {}", std::process::id()));
        drop(held);
        lock(&layout).expect("a free folder");
    }
}
