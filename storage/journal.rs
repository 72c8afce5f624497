//! The write-ahead journal: what makes a commit durable with one write and one fdatasync.
//!
//! ```text
//! writer ──► record: number, what is settled, writes ──► pwrite ──► fdatasync ──► acknowledgement
//! opening ──► every record that is not settled ──► database
//! ```
//! Two files are filled in turn, in blocks, over bytes that were written before: so a commit changes
//! no metadata, and fdatasync has nothing to wait for but the data. Each record is one batch of
//! database writes. Records are numbered without a gap, and each says below which number everything
//! is settled, that is durable in the database; so the newest intact record tells which others must
//! be there. A record that is torn was the last one and never acknowledged: it is as if it had not
//! been. One that is missing before an intact one is damage. The writer thread owns the journal; it
//! starts a file over only when a durable record says that nothing in it is needed.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use crate::database::Write;
use crate::disk::{Disk, DiskFile};
use crate::fault::{Damage, Fault, OpenError, Problem};
use crate::identity::{Layout, failed, lost};
use crate::record::{self, HEADER, Kind};

/// Records begin at multiples of this, so that writing one never touches the sectors or the page of
/// another, and a search for intact records has few places to look at.
const BLOCK: usize = 4096;

/// Size at which a file counts as full. Larger means fewer checkpoints, more memory for what they
/// write, and a longer replay after a crash. Tests use little, so that the files change often.
const SEGMENT: u64 = if cfg!(test) { 64 * 1024 } else { 16 << 20 };

/// Zeros written ahead when a file grows for the first time. Larger means fewer commits that have to
/// wait for metadata, and a longer wait for each of those.
const STEP: u64 = if cfg!(test) { 16 * 1024 } else { 2 << 20 };

/// The files, in the folder of the journal.
pub(crate) const FILES: [&str; 2] = ["first", "second"];

/// What the checksum of every record covers besides the record.
const NAME: &[u8] = b"journal";

/// Bytes of a record's body before the writes: number and settled number.
const PREFIX: usize = 8 + 8;

/// The journal, open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    files: [Segment; 2],
    /// Which of them is being filled.
    current: usize,
    /// Number of the next record.
    next: u64,
    /// Records below this number are settled.
    settled: u64,
    /// What the newest durable record says about that.
    recorded: u64,
    /// Size at which a file counts as full.
    size: u64,
    /// Zeros written ahead.
    step: u64,
    /// The record under construction, kept for its memory.
    buffer: Vec<u8>,
    #[cfg(any(test, feature = "planted-bugs"))]
    plant: Option<crate::fault::Plant>,
    #[cfg(any(test, feature = "planted-bugs"))]
    syncs: u64,
}

#[derive(Debug)]
struct Segment {
    file: DiskFile,
    /// Where the next record goes.
    position: u64,
    /// Bytes below this were written before.
    written: u64,
    /// The newest record in it.
    last: Option<u64>,
}

/// An intact record.
struct Found<'a> {
    file: usize,
    start: usize,
    end: usize,
    settled: u64,
    writes: &'a [u8],
}

impl Journal {
    /// Opens the journal, or makes it, and returns with it the writes that are not settled, in their
    /// order.
    ///
    /// `known` tells whether the folder has had a journal before: then a missing one is a loss.
    pub(crate) fn open(layout: &Layout, known: bool) -> Result<(Self, Vec<Write>), OpenError> {
        let path = layout.journal();
        let disk = &layout.disk;
        let unfinished = layout.journal_in_creation();
        if disk.exists(&unfinished) {
            let removed = disk.remove_folder(&unfinished);
            removed.map_err(failed("cannot remove", &unfinished))?;
        }
        if !disk.exists(&path) {
            if known {
                return Err(lost(layout, "its folder `journal` is missing"));
            }
            create(disk, &unfinished).map_err(failed("cannot create", &unfinished))?;
            disk.rename(&unfinished, &path)
                .map_err(failed("cannot rename", &unfinished))?;
            disk.sync_folder(&layout.root)
                .map_err(failed("cannot sync", &layout.root))?;
        }
        let mut contents = Vec::new();
        for name in FILES {
            let file = path.join(name);
            match disk.read(&file) {
                Ok(bytes) => contents.push(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(lost(
                        layout,
                        &format!("the file `journal/{name}` is missing"),
                    ));
                }
                Err(error) => return Err(failed("cannot read", &file)(error)),
            }
        }
        let mut found = BTreeMap::new();
        for (file, bytes) in contents.iter().enumerate() {
            search(file, bytes, &mut found);
        }
        let damage = |record: String, place: String, problem| {
            OpenError::Damaged(Damage {
                record,
                place,
                problem,
            })
        };
        // The journal is born with a record, and there has been an intact one ever since.
        let Some((&last, newest)) = found.last_key_value() else {
            let place = path.display().to_string();
            return Err(damage("journal".into(), place, Problem::Missing));
        };
        let mut writes = Vec::new();
        let mut before: Option<&Found<'_>> = None;
        for number in newest.settled..=last {
            let Some(record) = found.get(&number) else {
                let place = match before {
                    Some(before) => format!(
                        "{}, byte {}, or the start of the other file",
                        path.join(FILES[before.file]).display(),
                        before.end
                    ),
                    None => path.display().to_string(),
                };
                let why = format!("it is missing or damaged, and record {last} after it is intact");
                return Err(damage(
                    format!("record {number} of the journal"),
                    place,
                    Problem::Contents(why),
                ));
            };
            take_writes(record.writes, &mut writes).map_err(|problem| {
                let file = path.join(FILES[record.file]);
                damage(
                    format!("record {number} of the journal"),
                    format!("{}, byte {}", file.display(), record.start),
                    problem,
                )
            })?;
            before = Some(record);
        }
        let (current, settled) = (newest.file, newest.settled);
        let mut files = Vec::new();
        for (index, bytes) in contents.iter().enumerate() {
            let mine = || found.iter().filter(|(_, record)| record.file == index);
            let newest = mine().next_back();
            files.push(Segment {
                file: open_file(disk, &path.join(FILES[index]))?,
                position: newest.map_or(0, |(_, record)| record.end as u64),
                written: (bytes.len() / BLOCK * BLOCK) as u64,
                last: newest.map(|(number, _)| *number),
            });
        }
        let files = <[Segment; 2]>::try_from(files).expect("there are two names");
        let journal = Self {
            folder: path,
            files,
            current,
            next: last + 1,
            settled,
            recorded: settled,
            size: segment(disk),
            step: step(disk),
            buffer: Vec::new(),
            #[cfg(any(test, feature = "planted-bugs"))]
            plant: None,
            #[cfg(any(test, feature = "planted-bugs"))]
            syncs: 0,
        };
        Ok((journal, writes))
    }

    /// Plants a defect, for tests of tests.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub(crate) fn plant(&mut self, plant: crate::fault::Plant) {
        if let crate::fault::Plant::JournalSize(size) = plant {
            self.size = size;
        }
        self.plant = Some(plant);
    }

    /// Number of the next record. All below it are durable.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Everything below this number is durable in the database.
    pub(crate) fn settle(&mut self, below: u64) {
        self.settled = self.settled.max(below);
    }

    /// Whether these writes still go into the file that is being filled.
    pub(crate) fn fits(&self, writes: &[Write]) -> bool {
        let position = self.files[self.current].position;
        position == 0 || position + padded(size(writes)) <= self.size
    }

    /// Sees to it that a durable record says that the other file is not needed any more.
    pub(crate) fn release_other(&mut self) -> Result<(), Fault> {
        let last = self.files[1 - self.current].last;
        let covers = |number: u64| last.is_none_or(|last| last < number);
        if !covers(self.settled) {
            let why = "the journal is full, and the database does not have what is in it";
            return Err(Fault::Failed(why.into()));
        }
        if !covers(self.recorded) {
            self.append(&[])?;
        }
        Ok(())
    }

    /// Starts the other file over. It has to be [released](Self::release_other).
    pub(crate) fn change_files(&mut self) -> Result<(), Fault> {
        let other = 1 - self.current;
        let segment = &mut self.files[other];
        assert!(
            segment.last.is_none_or(|last| last < self.recorded),
            "what is needed is not overwritten"
        );
        let cut = segment.written > self.size;
        if cut {
            // A batch larger than a file made it grow.
            let cut = segment.file.set_len(self.size);
            cut.map_err(|error| self.failed("cut", &error))?;
            self.files[other].written = self.size;
        }
        self.files[other].position = 0;
        self.current = other;
        if cut {
            let synced = self.fdatasync();
            synced.map_err(|error| self.failed("fdatasync", &error))?;
        }
        Ok(())
    }

    /// Notes durably that everything is settled, if no record says so yet.
    pub(crate) fn close(&mut self) -> Result<(), Fault> {
        if self.settled == self.next && self.recorded != self.next {
            self.settled += 1;
            self.append(&[])?;
        }
        Ok(())
    }

    /// Appends a record and makes it durable. What it says about settled records is what
    /// [`Journal::settle`] said last.
    pub(crate) fn append(&mut self, writes: &[Write]) -> Result<(), Fault> {
        let mut buffer = std::mem::take(&mut self.buffer);
        encode(self.next, self.settled, writes, &mut buffer);
        let segment = &self.files[self.current];
        let end = segment.position + buffer.len() as u64;
        if end > segment.written {
            self.grow(end)?;
        }
        let segment = &self.files[self.current];
        let outcome = segment.file.write_all_at(&buffer, segment.position);
        buffer.clear();
        buffer.shrink_to(4 * STEP as usize);
        self.buffer = buffer;
        outcome.map_err(|error| self.failed("write", &error))?;
        let synced = self.fdatasync();
        synced.map_err(|error| self.failed("fdatasync", &error))?;

        let segment = &mut self.files[self.current];
        segment.position = end;
        segment.last = Some(self.next);
        self.recorded = self.settled;
        self.next += 1;
        Ok(())
    }

    /// Writes zeros up to `end` and a step further, durably. So the record that comes then changes no
    /// metadata, and whether it is acknowledged depends on nothing but its own bytes.
    fn grow(&mut self, end: u64) -> Result<(), Fault> {
        let segment = &self.files[self.current];
        let from = segment.written;
        let upto = (end + self.step).min(self.size).max(end);
        let zeros =
            vec![0; usize::try_from(upto - from).expect("a batch and a step fit in memory")];
        let grown = segment.file.write_all_at(&zeros, from);
        grown.map_err(|error| self.failed("write", &error))?;
        let synced = self.fdatasync();
        synced.map_err(|error| self.failed("fdatasync", &error))?;
        self.files[self.current].written = upto;
        Ok(())
    }

    #[cfg(any(test, feature = "planted-bugs"))]
    fn fdatasync(&mut self) -> io::Result<()> {
        use crate::fault::Plant;
        let sync = self.syncs;
        self.syncs += 1;
        match self.plant {
            Some(Plant::SkipFdatasync) => Ok(()),
            Some(Plant::FailFdatasync(planted)) if planted == sync => {
                Err(io::Error::other("planted error"))
            }
            _ => self.files[self.current].file.sync_data(),
        }
    }

    #[cfg(not(any(test, feature = "planted-bugs")))]
    fn fdatasync(&mut self) -> io::Result<()> {
        self.files[self.current].file.sync_data()
    }

    fn failed(&self, what: &str, error: &io::Error) -> Fault {
        let file = self.folder.join(FILES[self.current]);
        Fault::Failed(format!("{what} of the journal {}: {error}", file.display()).into())
    }
}

/// Size at which a file counts as full on this kind of disk.
fn segment(disk: &Disk) -> u64 {
    match disk {
        Disk::System => SEGMENT,
        #[cfg(feature = "simulation")]
        Disk::Simulated(_) => crate::simulation::SEGMENT,
    }
}

/// Zeros written ahead on this kind of disk.
fn step(disk: &Disk) -> u64 {
    match disk {
        Disk::System => STEP,
        #[cfg(feature = "simulation")]
        Disk::Simulated(_) => crate::simulation::STEP,
    }
}

fn open_file(disk: &Disk, path: &Path) -> Result<DiskFile, OpenError> {
    let file = disk.open_to_write(path);
    file.map_err(failed("cannot open", path))
}

/// Makes both files, with a first record that settles everything.
fn create(disk: &Disk, path: &Path) -> io::Result<()> {
    disk.create_folder(path)?;
    for (index, name) in FILES.into_iter().enumerate() {
        let mut bytes = Vec::new();
        if index == 0 {
            // Nobody can know the numbers, so nobody can have bytes stored that look like a record.
            let first = RandomState::new().hash_one(name) >> 2;
            encode(first, first + 1, &[], &mut bytes);
        }
        bytes.resize(step(disk) as usize, 0);
        let file = disk.create(&path.join(name))?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
    }
    disk.sync_folder(path)
}

/// Bytes of a record, padding aside.
fn size(writes: &[Write]) -> usize {
    let each = |(key, record): &Write| 2 + key.len() + 4 + record.as_ref().map_or(0, Vec::len);
    HEADER + PREFIX + writes.iter().map(each).sum::<usize>()
}

fn padded(size: usize) -> u64 {
    size.next_multiple_of(BLOCK) as u64
}

/// No record: the key is to be deleted.
const DELETED: u32 = u32::MAX;

/// Makes `buffer` a complete record, padding included.
fn encode(number: u64, settled: u64, writes: &[Write], buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.reserve(size(writes).next_multiple_of(BLOCK));
    record::begin_in(Kind::Journal, buffer);
    buffer.extend_from_slice(&number.to_le_bytes());
    buffer.extend_from_slice(&settled.to_le_bytes());
    let length = |bytes: usize| u32::try_from(bytes).expect("a commit is far below 4 GiB");
    for (key, record) in writes {
        let key_length = u16::try_from(key.len()).expect("keys are short");
        buffer.extend_from_slice(&key_length.to_le_bytes());
        buffer.extend_from_slice(key);
        match record {
            None => buffer.extend_from_slice(&DELETED.to_le_bytes()),
            Some(record) => {
                buffer.extend_from_slice(&length(record.len()).to_le_bytes());
                buffer.extend_from_slice(record);
            }
        }
    }
    record::seal(buffer, NAME);
    buffer.resize(buffer.len().next_multiple_of(BLOCK), 0);
}

/// Collects the intact records of a file by number. What is not a record is passed over block by
/// block: behind it there may be records that were written earlier or, if it is damaged, later.
fn search<'a>(file: usize, bytes: &'a [u8], found: &mut BTreeMap<u64, Found<'a>>) {
    let mut start = 0;
    while start < bytes.len() {
        let Some((number, settled, writes)) = read(&bytes[start..]) else {
            start += BLOCK;
            continue;
        };
        let length = HEADER + PREFIX + writes.len();
        let end = start + length.next_multiple_of(BLOCK);
        found.insert(
            number,
            Found {
                file,
                start,
                end,
                settled,
                writes,
            },
        );
        start = end;
    }
}

/// The record at the beginning of `bytes`, if there is an intact one: its number, the settled
/// number, and its writes.
fn read(bytes: &[u8]) -> Option<(u64, u64, &[u8])> {
    let header = bytes.first_chunk::<HEADER>()?;
    if header[1] != Kind::Journal as u8 {
        return None;
    }
    let length = record::announced_length(header);
    let frame = bytes.get(..HEADER.checked_add(length)?)?;
    let body = record::open(Kind::Journal, NAME, frame).ok()?;
    let (number, rest) = body.split_first_chunk()?;
    let (settled, writes) = rest.split_first_chunk()?;
    Some((
        u64::from_le_bytes(*number),
        u64::from_le_bytes(*settled),
        writes,
    ))
}

/// Decodes the writes of a record.
fn take_writes(mut bytes: &[u8], writes: &mut Vec<Write>) -> Result<(), Problem> {
    while !bytes.is_empty() {
        let short = || Problem::Contents("a write is cut short".into());
        let (length, rest) = bytes.split_first_chunk::<2>().ok_or_else(short)?;
        let key = usize::from(u16::from_le_bytes(*length));
        let (key, rest) = rest.split_at_checked(key).ok_or_else(short)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length);
        let (record, rest) = if length == DELETED {
            (None, rest)
        } else {
            let (record, rest) = rest.split_at_checked(length as usize).ok_or_else(short)?;
            (Some(record.to_vec()), rest)
        };
        writes.push((sled::IVec::from(key), record));
        bytes = rest;
    }
    Ok(())
}
