//! A disk in memory that loses its power: the one that a simulated node keeps its data on.
//!
//! ```text
//! store ──► writes, names ──► what a program sees      (current)
//!                  └──► sync ──► what the disk has     (durable)
//! power lost: current = durable + any sectors of unsynced writes + a first part of unsynced names
//! ```
//! Everything random comes from the seed, so a run can be repeated. The power goes at once
//! ([`SimulatedDisk::cut`]) or in the middle of the store's work, at an operation chosen in advance
//! ([`SimulatedDisk::cut_after`]). It is stricter than ext4: a name survives only if its folder was
//! synced, whatever was done to the file. Here sled is a map that is durable when it is committed.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sled::IVec;

/// What survives of a write as a whole or not at all, bytes.
const SECTOR: usize = 512;
/// Size of a journal file here. Small, so that files change many times in a simulated minute.
pub(crate) const SEGMENT: u64 = 128 * 1024;
/// Zeros written ahead here.
pub(crate) const STEP: u64 = 32 * 1024;

/// A disk in memory. Clones share it; it outlives the node that uses it.
#[derive(Clone, Debug)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

/// An open file of a [`SimulatedDisk`].
#[derive(Debug)]
pub(crate) struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
    position: usize,
}

/// What a disk has been through.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DiskFigures {
    /// Operations that change something.
    pub operations: u64,
    /// Times that the power went.
    pub cuts: u64,
    /// Of those, in the middle of an operation.
    pub cuts_inside: u64,
    /// Unsynced sectors that the power took.
    pub sectors_lost: u64,
    /// Unsynced sectors that reached the disk all the same.
    pub sectors_kept: u64,
    /// Unsynced names (made, changed, removed) that the power took.
    pub names_lost: u64,
    /// Unsynced records of the database that the power took.
    pub records_lost: u64,
}

#[derive(Debug)]
struct State {
    random: u64,
    nodes: Vec<Node>,
    database: Records,
    database_durable: Records,
    database_unsynced: Vec<(IVec, Option<IVec>)>,
    on: bool,
    /// Whether the power went, rather than the program alone.
    dark: bool,
    /// Operations until the power goes.
    left: Option<u64>,
    /// Syncs until one fails.
    sync_fails: Option<u64>,
    /// Syncs do nothing.
    lies: bool,
    latency: (Duration, Duration),
    figures: DiskFigures,
}

type Records = BTreeMap<IVec, IVec>;
type Names = BTreeMap<String, usize>;

#[derive(Debug)]
enum Node {
    File(Contents),
    Folder {
        names: Names,
        durable: Names,
        unsynced: Vec<Naming>,
    },
}

#[derive(Debug, Default)]
struct Contents {
    current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Debug)]
enum Naming {
    Set(String, usize),
    Remove(String),
    /// One change: there is no moment at which both names are there, or neither.
    Move {
        from: String,
        to: String,
        node: usize,
    },
}

impl SimulatedDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: seed,
            nodes: vec![folder()],
            database: Records::new(),
            database_durable: Records::new(),
            database_unsynced: Vec::new(),
            on: true,
            dark: false,
            left: None,
            sync_fails: None,
            lies: false,
            latency: (Duration::from_micros(200), Duration::from_millis(2)),
            figures: DiskFigures::default(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Takes the power away now. From here on everything fails, until [`SimulatedDisk::power_on`].
    pub fn cut(&self) {
        let mut state = self.state();
        if !state.dark {
            state.on = false;
            state.dark = true;
            state.left = None;
            state.figures.cuts += 1;
        }
    }

    /// Ends the program that uses the disk, without a word: everything it still tries fails, and what
    /// it wrote stays in the system's memory. Goes on with [`SimulatedDisk::power_on`].
    pub fn halt(&self) {
        self.state().on = false;
    }

    /// Takes the power away in the middle of the operation that comes after so many others.
    pub fn cut_after(&self, operations: u64) {
        self.state().left = Some(operations);
    }

    /// Lets a sync fail that comes after so many others, once, as a disk with a bad sector does.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.state().sync_fails = Some(syncs);
    }

    /// Makes a disk that says it has synced, and has not, to prove that tests find it.
    pub fn lie(&self) {
        self.state().lies = true;
    }

    /// Whether the power is there.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.state().on
    }

    /// How long the store takes over a commit, least and most.
    pub fn set_latency(&self, least: Duration, most: Duration) {
        self.state().latency = (least, most.max(least));
    }

    /// Gives the power back: if it was lost, what is there now is what the disk had, with a random part of
    /// what was on its way.
    pub fn power_on(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.dark) {
            state.settle_after_cut();
        }
        state.on = true;
        state.left = None;
        state.sync_fails = None;
    }

    /// Changes the bytes of every file, as a bad disk would: `change` gets each with its path.
    pub fn damage(&self, mut change: impl FnMut(&Path, &mut Vec<u8>)) {
        let mut state = self.state();
        let mut open = vec![(PathBuf::new(), 0)];
        while let Some((path, node)) = open.pop() {
            match &mut state.nodes[node] {
                Node::Folder { names, .. } => {
                    open.extend(names.iter().map(|(name, node)| (path.join(name), *node)));
                }
                Node::File(contents) => {
                    change(&path, &mut contents.durable);
                    contents.unsynced.clear();
                    contents.current.clone_from(&contents.durable);
                }
            }
        }
    }

    /// Changes the records of the database in the same way.
    pub fn damage_records(&self, mut change: impl FnMut(&[u8], &mut Vec<u8>)) {
        let mut state = self.state();
        for (key, record) in &mut state.database_durable {
            let mut bytes = record.to_vec();
            change(key, &mut bytes);
            *record = IVec::from(bytes);
        }
        state.database_unsynced.clear();
        state.database = state.database_durable.clone();
    }

    /// What it has been through.
    #[must_use]
    pub fn figures(&self) -> DiskFigures {
        self.state().figures
    }

    /// A number below `below`, from the seed.
    pub(crate) fn draw(&self, below: u64) -> u64 {
        self.state().draw(below)
    }

    /// How long the next commit takes.
    pub(crate) fn latency(&self) -> Duration {
        let mut state = self.state();
        let (least, most) = state.latency;
        let spread = u64::try_from((most - least).as_micros()).unwrap_or(u64::MAX);
        least + Duration::from_micros(state.draw(spread.saturating_add(1)))
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.state().find(path).is_ok()
    }

    pub(crate) fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let mut above = PathBuf::new();
        for part in path.components() {
            above.push(part);
            if state.find(&above).is_err() {
                state.operation()?;
                let node = state.add(folder());
                state.name(&above, Some(node))?;
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.find(path)?;
        state.operation()?;
        state.name(path, None)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        assert_eq!(from.parent(), to.parent(), "names change within a folder");
        let mut state = self.state();
        let node = state.find(from)?;
        let done = state.operation();
        state.change_name(
            to,
            Naming::Move {
                from: name_of(from)?,
                to: name_of(to)?,
                node,
            },
        )?;
        done
    }

    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state();
        match &state.nodes[state.find(path)?] {
            Node::Folder { names, .. } => Ok(names.keys().map(|name| path.join(name)).collect()),
            Node::File(_) => Err(not_found(path)),
        }
    }

    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        state.powered()?;
        let node = state.find(path)?;
        Ok(state.contents(node).current.clone())
    }

    pub(crate) fn create(&self, path: &Path) -> io::Result<SimulatedFile> {
        let mut state = self.state();
        state.operation()?;
        let file = state.add(Node::File(Contents::default()));
        state.name(path, Some(file))?;
        drop(state);
        Ok(self.handle(file))
    }

    pub(crate) fn open(&self, path: &Path) -> io::Result<SimulatedFile> {
        let state = self.state();
        state.powered()?;
        let file = state.find(path)?;
        drop(state);
        Ok(self.handle(file))
    }

    pub(crate) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(path)?;
        state.operation()?;
        state.sync()?;
        if !state.lies
            && let Node::Folder {
                names,
                durable,
                unsynced,
            } = &mut state.nodes[node]
        {
            durable.clone_from(names);
            unsynced.clear();
        }
        Ok(())
    }

    pub(crate) fn record(&self, key: &[u8]) -> Option<IVec> {
        self.state().database.get(key).cloned()
    }

    pub(crate) fn records<'a>(&self, range: impl RangeBounds<&'a [u8]>) -> Vec<(IVec, IVec)> {
        let bounds = (
            range.start_bound().map(|key| IVec::from(*key)),
            range.end_bound().map(|key| IVec::from(*key)),
        );
        let state = self.state();
        let found = state.database.range(bounds);
        found
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    pub(crate) fn put_record(&self, key: &IVec, record: Option<&[u8]>) -> io::Result<()> {
        let mut state = self.state();
        let done = state.operation();
        let record = record.map(IVec::from);
        match &record {
            Some(record) => state.database.insert(key.clone(), record.clone()),
            None => state.database.remove(key),
        };
        state.database_unsynced.push((key.clone(), record));
        done
    }

    /// Makes the database durable.
    pub(crate) fn commit_records(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.sync()?;
        if state.lies {
            return Ok(());
        }
        let State {
            database_durable,
            database_unsynced,
            ..
        } = &mut *state;
        for (key, record) in database_unsynced.drain(..) {
            put(database_durable, key, record);
        }
        Ok(())
    }

    fn handle(&self, file: usize) -> SimulatedFile {
        SimulatedFile {
            disk: self.clone(),
            file,
            position: 0,
        }
    }

    /// Two owners, the node and the simulation; both are on one thread.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimulatedFile {
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.powered()?;
        let done = state.operation();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        // An operation that the power goes in may still have reached some sectors.
        state
            .contents(self.file)
            .change(Change::Bytes(at, bytes.to_vec()));
        done
    }

    pub(crate) fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operation()?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        state.contents(self.file).change(Change::Length(length));
        Ok(())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operation()?;
        state.sync()?;
        if state.lies {
            return Ok(());
        }
        let contents = state.contents(self.file);
        for change in std::mem::take(&mut contents.unsynced) {
            apply(&mut contents.durable, &change);
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.powered()?;
        let contents = &state.contents(self.file).current;
        let rest = contents.get(self.position..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_at(bytes, self.position as u64)?;
        self.position += bytes.len();
        Ok(bytes.len())
    }
}

impl Contents {
    fn change(&mut self, change: Change) {
        apply(&mut self.current, &change);
        self.unsynced.push(change);
    }
}

impl State {
    fn powered(&self) -> io::Result<()> {
        if self.on {
            Ok(())
        } else {
            Err(io::Error::other("the disk has no power"))
        }
    }

    /// One operation that changes something; the power may go in it.
    fn operation(&mut self) -> io::Result<()> {
        self.powered()?;
        self.figures.operations += 1;
        match &mut self.left {
            Some(0) => {
                self.on = false;
                self.dark = true;
                self.left = None;
                self.figures.cuts += 1;
                self.figures.cuts_inside += 1;
                self.powered()
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match &mut self.sync_fails {
            Some(0) => {
                self.sync_fails = None;
                Err(io::Error::other("a bad sector"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn settle_after_cut(&mut self) {
        for index in 0..self.nodes.len() {
            // Each file and folder has its own luck: all, nothing, or anything between.
            let luck = self.draw(3);
            let mut node = std::mem::replace(&mut self.nodes[index], folder());
            match &mut node {
                Node::File(contents) => self.settle_contents(contents, luck),
                Node::Folder {
                    names,
                    durable,
                    unsynced,
                } => {
                    let count = unsynced.len() as u64;
                    let kept = match luck {
                        0 => 0,
                        1 => count,
                        _ => self.draw(count + 1),
                    };
                    self.figures.names_lost += count - kept;
                    let kept = usize::try_from(kept).unwrap_or_default();
                    for naming in unsynced.drain(..).take(kept) {
                        rename(durable, naming);
                    }
                    names.clone_from(durable);
                }
            }
            self.nodes[index] = node;
        }
        let unsynced = std::mem::take(&mut self.database_unsynced);
        let kept = self.draw(unsynced.len() as u64 + 1);
        self.figures.records_lost += unsynced.len() as u64 - kept;
        let kept = usize::try_from(kept).unwrap_or_default();
        for (key, record) in unsynced.into_iter().take(kept) {
            put(&mut self.database_durable, key, record);
        }
        self.database = self.database_durable.clone();
    }

    fn settle_contents(&mut self, contents: &mut Contents, luck: u64) {
        for change in std::mem::take(&mut contents.unsynced) {
            match change {
                Change::Length(_) if luck == 0 => {}
                Change::Length(length) => apply(&mut contents.durable, &Change::Length(length)),
                Change::Bytes(at, bytes) => {
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        let kept = luck == 1 || (luck == 2 && self.draw(2) == 0);
                        if !kept {
                            self.figures.sectors_lost += 1;
                            continue;
                        }
                        self.figures.sectors_kept += 1;
                        let sector = Change::Bytes(at + number * SECTOR, sector.to_vec());
                        apply(&mut contents.durable, &sector);
                    }
                }
            }
        }
        contents.current.clone_from(&contents.durable);
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut node = 0;
        for part in path.components() {
            let name = part.as_os_str().to_string_lossy();
            let Node::Folder { names, .. } = &self.nodes[node] else {
                return Err(not_found(path));
            };
            node = *names.get(&*name).ok_or_else(|| not_found(path))?;
        }
        Ok(node)
    }

    fn name(&mut self, path: &Path, node: Option<usize>) -> io::Result<()> {
        let name = name_of(path)?;
        let naming = match node {
            Some(node) => Naming::Set(name, node),
            None => Naming::Remove(name),
        };
        self.change_name(path, naming)
    }

    fn change_name(&mut self, path: &Path, naming: Naming) -> io::Result<()> {
        let parent = self.find(path.parent().ok_or_else(|| not_found(path))?)?;
        let Node::Folder {
            names, unsynced, ..
        } = &mut self.nodes[parent]
        else {
            return Err(not_found(path));
        };
        rename(names, naming.clone());
        unsynced.push(naming);
        Ok(())
    }

    fn contents(&mut self, node: usize) -> &mut Contents {
        match &mut self.nodes[node] {
            Node::File(contents) => contents,
            Node::Folder { .. } => unreachable!("handles are of files"),
        }
    }

    /// SplitMix64.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }
}

fn folder() -> Node {
    Node::Folder {
        names: Names::new(),
        durable: Names::new(),
        unsynced: Vec::new(),
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

fn name_of(path: &Path) -> io::Result<String> {
    let name = path.file_name().ok_or_else(|| not_found(path))?;
    Ok(name.to_string_lossy().into_owned())
}

fn rename(names: &mut Names, naming: Naming) {
    match naming {
        Naming::Set(name, node) => names.insert(name, node),
        Naming::Remove(name) => names.remove(&name),
        Naming::Move { from, to, node } => {
            names.remove(&from);
            names.insert(to, node)
        }
    };
}

fn put(records: &mut Records, key: IVec, record: Option<IVec>) {
    match record {
        Some(record) => records.insert(key, record),
        None => records.remove(&key),
    };
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length, 0),
        Change::Bytes(at, new) => {
            if bytes.len() < at + new.len() {
                bytes.resize(at + new.len(), 0);
            }
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
    }
}
