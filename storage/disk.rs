//! Where files are: on the machine's disk or, under simulation, in memory.
//!
//! Everything that the store does to files goes through here, except what sled does to its own. Outside of
//! the feature `simulation` there is one kind of disk, and this is a thin name for `std::fs`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

#[cfg(feature = "simulation")]
use crate::simulation::{SimulatedDisk, SimulatedFile};

/// A disk.
#[derive(Clone, Debug)]
pub(crate) enum Disk {
    /// The machine's.
    System,
    /// One in memory that can lose its power.
    #[cfg(feature = "simulation")]
    Simulated(SimulatedDisk),
}

/// An open file.
#[derive(Debug)]
pub(crate) enum DiskFile {
    System(File),
    #[cfg(feature = "simulation")]
    Simulated(SimulatedFile),
}

impl Disk {
    /// Whether all work has to be done on the caller's thread, because time is not the machine's.
    pub(crate) fn is_simulated(&self) -> bool {
        match self {
            Self::System => false,
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => true,
        }
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        match self {
            Self::System => path.exists(),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.exists(path),
        }
    }

    /// Makes a folder and those above it.
    pub(crate) fn create_folder(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::System => fs::create_dir_all(path),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.create_folder(path),
        }
    }

    /// Removes a folder with all that is in it.
    pub(crate) fn remove_folder(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::System => fs::remove_dir_all(path),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.remove(path),
        }
    }

    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::System => fs::remove_file(path),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.remove(path),
        }
    }

    /// Gives a file or folder another name in the same folder.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Self::System => fs::rename(from, to),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.rename(from, to),
        }
    }

    /// What is in a folder, with whole paths.
    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::System => fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect(),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.list(path),
        }
    }

    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self {
            Self::System => fs::read(path),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.read(path),
        }
    }

    /// Makes an empty file, in the place of another if there is one.
    pub(crate) fn create(&self, path: &Path) -> io::Result<DiskFile> {
        match self {
            Self::System => File::create(path).map(DiskFile::System),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.create(path).map(DiskFile::Simulated),
        }
    }

    /// Opens a file to write to it, as it is.
    pub(crate) fn open_to_write(&self, path: &Path) -> io::Result<DiskFile> {
        match self {
            Self::System => File::options().write(true).open(path).map(DiskFile::System),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.open(path).map(DiskFile::Simulated),
        }
    }

    /// Opens a file to read it from its beginning.
    pub(crate) fn open_to_read(&self, path: &Path) -> io::Result<DiskFile> {
        match self {
            Self::System => File::open(path).map(DiskFile::System),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.open(path).map(DiskFile::Simulated),
        }
    }

    /// Makes the names in a folder durable.
    pub(crate) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::System => File::open(path)?.sync_all(),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.sync_folder(path),
        }
    }
}

impl DiskFile {
    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.write_all_at(bytes, offset),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.write_at(bytes, offset),
        }
    }

    pub(crate) fn set_len(&self, length: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.set_len(length),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.set_length(length),
        }
    }

    /// Makes the contents durable, and what is needed to find them.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        match self {
            Self::System(file) => file.sync_data(),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.sync(),
        }
    }

    /// Makes the contents and everything else about the file durable; not its name.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        match self {
            Self::System(file) => file.sync_all(),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.sync(),
        }
    }
}

impl Read for DiskFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::System(file) => file.read(buffer),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.read(buffer),
        }
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::System(file) => file.write(bytes),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
