//! Snapshots: bytes that the state machine hands over and gets back as they were.
//!
//! The data of a snapshot is one immutable file of framed pieces; which file is the current one is
//! a record in the database, written by the writer thread like everything else. Sled would rewrite
//! bulk values four to five times and read them at every start, and a snapshot of 100 MB would
//! stand in the log's way. The order is what makes it durable: file, fsync, rename, fsync of the
//! folder, then the record; only then is the snapshot acknowledged and the previous file removed.

use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskFile};
use crate::fault::{Damage, Fault, OpenError, Problem};
use crate::identity::failed;
use crate::keys::{Key, Slot};
use crate::log::Membership;
use crate::queue::Op;
use crate::record::{self, HEADER, Kind};
use crate::run::encode;

/// Body of a data frame. Larger means fewer checksums, and more memory per open snapshot.
const PIECE: usize = 256 * 1024;

/// Largest description.
const META_MAX: usize = 1024 * 1024;

/// Bytes written before they are pushed to the disk. Larger means longer stalls of the log's own
/// fdatasync, which has to wait for them.
const SYNC_EVERY: u64 = 4 * 1024 * 1024;

/// The snapshots of one group: the current one, and those being written. Clones share it.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    membership: Arc<Membership>,
    folder: PathBuf,
    /// Held while a snapshot becomes the current one, and while the current one is opened.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: Option<Pointer>,
    next: u64,
}

/// The record that names the current snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    sequence: u64,
    /// Bytes of data, frames not counted.
    length: u64,
}

/// Totals in the last frame.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    pieces: u64,
    length: u64,
}

/// A stored snapshot, opened for reading.
#[derive(Debug)]
pub struct StoredSnapshot {
    /// The description given when it was saved.
    pub meta: Vec<u8>,
    /// Bytes of data.
    pub length: u64,
    /// The data. Every piece is checked before any of its bytes is handed out.
    pub data: SnapshotReader,
}

impl SnapshotStore {
    /// Opens the group's snapshots: checks the current one from end to end and removes the files
    /// of unfinished and superseded ones.
    pub(crate) fn open(
        membership: Arc<Membership>,
        current: Option<Pointer>,
    ) -> Result<Self, OpenError> {
        let layout = &membership.inner.layout;
        let (disk, folder) = (&layout.disk, layout.snapshots());
        if !disk.exists(&folder) {
            let made = disk.create_folder(&folder);
            made.map_err(failed("cannot create", &folder))?;
            let synced = disk.sync_folder(&layout.root);
            synced.map_err(failed("cannot sync", &layout.root))?;
        }
        let mut next = current.as_ref().map_or(1, |pointer| pointer.sequence + 1);
        for path in disk.list(&folder).map_err(failed("cannot list", &folder))? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Some(sequence) = sequence_of(name, &membership.name) else {
                continue;
            };
            next = next.max(sequence + 1);
            let keep = current
                .as_ref()
                .is_some_and(|pointer| name == file_name(&membership.name, pointer.sequence));
            if !keep {
                let removed = disk.remove_file(&path);
                removed.map_err(failed("cannot remove", &path))?;
            }
        }
        let state = Mutex::new(State { current, next });
        let store = Self {
            shared: Arc::new(Shared {
                membership,
                folder,
                state,
            }),
        };
        store.verify()?;
        Ok(store)
    }

    /// Saves a snapshot and makes it the current one. When this returns it is durable.
    ///
    /// Blocks on the disk; costs about as much as writing a file of that size.
    pub fn save(&self, meta: &[u8], mut data: impl Read) -> Result<(), Fault> {
        let mut writer = self.create(meta)?;
        let failed = |error| Fault::file("cannot take over the snapshot's data", &error);
        io::copy(&mut data, &mut writer).map_err(failed)?;
        writer.commit()
    }

    /// Begins a snapshot whose data arrives bit by bit. Dropping the writer discards it.
    pub fn create(&self, meta: &[u8]) -> Result<SnapshotWriter, Fault> {
        self.shared.membership.inner.health.check()?;
        if meta.len() > META_MAX {
            return Err(Fault::TooLarge {
                size: meta.len(),
                limit: META_MAX,
            });
        }
        let sequence = {
            let mut state = self.state();
            state.next += 1;
            state.next - 1
        };
        let name = file_name(&self.shared.membership.name, sequence);
        let path = self.shared.folder.join(format!("{name}.new"));
        let file = self
            .disk()
            .create(&path)
            .map_err(|error| Fault::file(format!("cannot create {}", path.display()), &error))?;
        let mut writer = SnapshotWriter {
            store: self.clone(),
            file,
            name,
            path,
            sequence,
            frame: record::begin(Kind::SnapshotMeta, meta.len()),
            pieces: 0,
            length: 0,
            unsynced: 0,
            committed: false,
        };
        writer.frame.extend_from_slice(meta);
        writer
            .write_frame(Kind::SnapshotData)
            .map_err(|error| writer.failed(&error))?;
        Ok(writer)
    }

    /// The current snapshot, or `None` if there has never been one.
    pub fn load(&self) -> Result<Option<StoredSnapshot>, Fault> {
        self.shared.membership.inner.health.check()?;
        let state = self.state();
        let Some(pointer) = state.current.clone() else {
            return Ok(None);
        };
        let name = file_name(&self.shared.membership.name, pointer.sequence);
        let path = self.shared.folder.join(&name);
        let opened = self.disk().open_to_read(&path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Fault::Damaged(self.damage(&name, Problem::Missing)),
            _ => Fault::file(format!("cannot open {}", path.display()), &error),
        })?;
        drop(state);
        let mut data = SnapshotReader {
            file: BufReader::with_capacity(PIECE + HEADER, file),
            group: self.shared.membership.name.clone(),
            name,
            frames: 0,
            expected: pointer.length,
            seen: 0,
            piece: Vec::new(),
            position: 0,
            ended: false,
        };
        let failed = |error: io::Error| match error.downcast::<Damage>() {
            Ok(damage) => Fault::Damaged(damage),
            Err(error) => Fault::file(format!("cannot read {}", path.display()), &error),
        };
        if data.next_frame().map_err(failed)? != Kind::SnapshotMeta as u8 {
            let problem = Problem::Contents("it does not begin with its description".into());
            return Err(Fault::Damaged(data.damage(problem)));
        }
        let meta = std::mem::take(&mut data.piece);
        Ok(Some(StoredSnapshot {
            meta,
            length: pointer.length,
            data,
        }))
    }

    fn verify(&self) -> Result<(), OpenError> {
        let Some(mut snapshot) = self.load().map_err(open_error)? else {
            return Ok(());
        };
        match io::copy(&mut snapshot.data, &mut io::sink()) {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.downcast::<Damage>() {
                Ok(damage) => OpenError::Damaged(damage),
                Err(source) => failed("cannot read a snapshot in", &self.shared.folder)(source),
            }),
        }
    }

    fn damage(&self, name: &str, problem: Problem) -> Damage {
        damage(&self.shared.membership.name, name, problem)
    }

    fn disk(&self) -> &Disk {
        &self.shared.membership.inner.layout.disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fault met while opening: damage keeps its name.
pub(crate) fn open_error(fault: Fault) -> OpenError {
    match fault {
        Fault::Damaged(damage) => OpenError::Damaged(damage),
        other => OpenError::Fault(other),
    }
}

/// Takes the data of a snapshot that is being saved.
#[derive(Debug)]
pub struct SnapshotWriter {
    store: SnapshotStore,
    file: DiskFile,
    name: String,
    path: PathBuf,
    sequence: u64,
    /// The frame under construction.
    frame: Vec<u8>,
    /// Frames written.
    pieces: u64,
    length: u64,
    unsynced: u64,
    /// The record that names the file is written, or may be.
    committed: bool,
}

impl SnapshotWriter {
    /// Completes the snapshot and makes it the current one. When this returns it is durable.
    pub fn commit(mut self) -> Result<(), Fault> {
        self.finish_file().map_err(|error| self.failed(&error))?;
        let shared = &self.store.shared;
        let inner = &shared.membership.inner;
        let key = Key::Slot(shared.membership.group, Slot::Snapshot).encode();
        let pointer = Pointer {
            sequence: self.sequence,
            length: self.length,
        };
        let mut record = record::begin(Kind::Snapshot, 16);
        encode(&pointer, &mut record)?;
        record::seal(&mut record, &key);

        let mut state = self.store.state();
        // From here on the record may be on the disk, whatever is reported of it: the file stays.
        self.committed = true;
        inner.run(Op::Put { key, record })?;
        let previous = state.current.replace(pointer);
        drop(state);
        if let Some(previous) = previous {
            let path = shared
                .folder
                .join(file_name(&shared.membership.name, previous.sequence));
            if let Err(error) = self.store.disk().remove_file(&path) {
                // It costs space only; the next opening tries again.
                tracing::warn!(path = %path.display(), %error, "old snapshot not removed");
            }
        }
        Ok(())
    }

    fn finish_file(&mut self) -> io::Result<()> {
        if self.frame.len() > HEADER {
            self.write_frame(Kind::SnapshotEnd)?;
        } else {
            self.frame = record::begin(Kind::SnapshotEnd, 16);
        }
        let end = End {
            pieces: self.pieces,
            length: self.length,
        };
        encode(&end, &mut self.frame).map_err(io::Error::from)?;
        self.write_frame(Kind::SnapshotEnd)?;
        self.file.sync_all()?;
        let path = self.store.shared.folder.join(&self.name);
        let disk = self.store.disk();
        disk.rename(&self.path, &path)?;
        self.path = path;
        disk.sync_folder(&self.store.shared.folder)
    }

    /// Writes the frame under construction and begins one of kind `next`.
    fn write_frame(&mut self, next: Kind) -> io::Result<()> {
        record::seal(&mut self.frame, &frame_key(&self.name, self.pieces));
        self.file.write_all(&self.frame)?;
        self.pieces += 1;
        self.unsynced += self.frame.len() as u64;
        if self.unsynced >= SYNC_EVERY {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        self.frame = record::begin(
            next,
            if next == Kind::SnapshotData {
                PIECE
            } else {
                16
            },
        );
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> Fault {
        Fault::file(format!("cannot write {}", self.path.display()), error)
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let free = HEADER + PIECE - self.frame.len();
        let taken = &data[..free.min(data.len())];
        self.frame.extend_from_slice(taken);
        self.length += taken.len() as u64;
        if self.frame.len() == HEADER + PIECE {
            self.write_frame(Kind::SnapshotData)?;
        }
        Ok(taken.len())
    }

    /// Does nothing: only [`SnapshotWriter::commit`] makes anything durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.committed {
            // What remains is removed at the next opening.
            let _ = self.store.disk().remove_file(&self.path);
        }
    }
}

/// Reads a snapshot's data. Damage is an `InvalidData` error that carries a [`Damage`].
#[derive(Debug)]
pub struct SnapshotReader {
    file: BufReader<DiskFile>,
    group: String,
    name: String,
    frames: u64,
    expected: u64,
    seen: u64,
    piece: Vec<u8>,
    position: usize,
    ended: bool,
}

impl SnapshotReader {
    /// Reads and checks the next frame into `piece`; returns its type.
    fn next_frame(&mut self) -> io::Result<u8> {
        let mut header = [0; HEADER];
        self.read_exact_or_damage(&mut header)?;
        let length = record::announced_length(&header);
        let limit = PIECE.max(META_MAX);
        if length > limit {
            let problem = Problem::Length {
                expected: limit,
                found: length,
            };
            return Err(self.error(problem));
        }
        let mut frame = header.to_vec();
        frame.resize(HEADER + length, 0);
        self.read_exact_or_damage(&mut frame[HEADER..])?;
        let key = frame_key(&self.name, self.frames);
        let kind = match record::open_any(&key, &frame) {
            Ok((kind, _)) => kind,
            Err(problem) => return Err(self.error(problem)),
        };
        self.frames += 1;
        frame.drain(..HEADER);
        self.piece = frame;
        self.position = 0;
        Ok(kind)
    }

    fn read_exact_or_damage(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let result = self.file.read_exact(buffer);
        result.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.error(Problem::Contents("the file ends too early".into()))
            }
            _ => error,
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        let end: Result<End, _> = postcard::from_bytes(&self.piece);
        let end = end.map_err(|error| self.error(Problem::Contents(error.to_string())))?;
        let found = End {
            pieces: self.frames - 1,
            length: self.seen,
        };
        if end != found || self.seen != self.expected {
            let why = format!("expected {} bytes, {end:?}, found {found:?}", self.expected);
            return Err(self.error(Problem::Contents(why)));
        }
        if self.file.read(&mut [0])? != 0 {
            return Err(self.error(Problem::Contents("bytes follow its end".into())));
        }
        self.ended = true;
        self.piece.clear();
        Ok(())
    }

    fn damage(&self, problem: Problem) -> Damage {
        damage(
            &self.group,
            &format!("{}, frame {}", self.name, self.frames),
            problem,
        )
    }

    fn error(&self, problem: Problem) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self.damage(problem))
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.position == self.piece.len() && !self.ended {
            let kind = self.next_frame()?;
            if kind == Kind::SnapshotEnd as u8 {
                self.finish()?;
            } else if kind == Kind::SnapshotData as u8 {
                self.seen += self.piece.len() as u64;
            } else {
                let expected = Kind::SnapshotData as u8;
                return Err(self.error(Problem::Type {
                    expected,
                    found: kind,
                }));
            }
        }
        let rest = &self.piece[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }
}

fn file_name(group: &str, sequence: u64) -> String {
    format!("{group}.{sequence:016x}.snapshot")
}

/// The sequence number in the name of a finished or unfinished snapshot file of `group`.
fn sequence_of(name: &str, group: &str) -> Option<u64> {
    let name = name.strip_suffix(".new").unwrap_or(name);
    let digits = name
        .strip_suffix(".snapshot")?
        .strip_prefix(group)?
        .strip_prefix('.')?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

fn frame_key(name: &str, frame: u64) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.extend_from_slice(&frame.to_le_bytes());
    key
}

fn damage(group: &str, place: &str, problem: Problem) -> Damage {
    Damage {
        record: format!("snapshot of group `{group}`"),
        place: place.into(),
        problem,
    }
}
