//! The library that is loaded into nodes so that their wall clock and their disk can be wrong, and the
//! pages by which that is said while they run.
//!
//! `shim/shim.c` is compiled once a run with the machine's C compiler. Each node has a page of its own,
//! which outlives its process: a node that is restarted during a fault starts with it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What can be wrong; the numbers are places in the page, in the order of `shim.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Field {
    /// Nanoseconds that the wall clock is ahead.
    WallOffsetNs = 0,
    /// Millionths by which it is too fast.
    WallDriftPpm = 1,
    /// Monotonic nanoseconds at which that began.
    WallDriftSinceNs = 2,
    /// Writes of a million that fail with an I/O error.
    WriteEioPpm = 3,
    /// Syncs of a million that fail so.
    SyncEioPpm = 4,
    /// Microseconds that a sync takes longer.
    SyncDelayUs = 5,
    /// 1: there is no space left.
    WriteEnospc = 7,
    /// 1: the next write of several sectors is torn, and the process ends with it.
    WriteTorn = 8,
}

/// Where the library counts how often a fault met an operation.
const INJECTED: u64 = 9;

/// The library and the folder of the pages.
pub(crate) struct Shim {
    library: PathBuf,
    folder: PathBuf,
}

impl Shim {
    /// Compiles the library into a folder.
    ///
    /// # Errors
    /// What the compiler says; without one, that.
    pub(crate) fn build(folder: &Path) -> Result<Self> {
        let source = folder.join("shim.c");
        let library = folder.join("shim.so");
        fs::write(&source, include_str!("shim/shim.c"))?;
        let done = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .context("cc, the C compiler")?;
        ensure!(
            done.status.success(),
            "cc: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(Self {
            library,
            folder: folder.to_owned(),
        })
    }

    /// The page of a node, at first without any fault.
    pub(crate) fn page(&self, node: u64) -> Result<Page> {
        let path = self.folder.join(format!("page-{node}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        file.set_len(4096)?;
        Ok(Page { file, path })
    }

    /// What a process needs in its environment; faults of the disk concern `disk` alone.
    pub(crate) fn environment(&self, page: &Page, disk: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            ("CHAOS_PAGE".to_owned(), text(&page.path)),
            ("CHAOS_DISK".to_owned(), text(disk)),
        ]
    }
}

/// What is wrong with one node's clock and disk.
#[derive(Debug)]
pub(crate) struct Page {
    file: File,
    path: PathBuf,
}

impl Page {
    /// Changes it, for running processes too.
    pub(crate) fn set(&self, field: Field, value: i64) -> Result<()> {
        let at = 8 * field as u64;
        self.file.write_all_at(&value.to_ne_bytes(), at)?;
        Ok(())
    }

    /// How often a fault of the disk has met an operation.
    #[cfg(test)]
    pub(crate) fn injected(&self) -> Result<i64> {
        self.read(INJECTED)
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_calm(&self) -> Result<bool> {
        for at in 0..INJECTED {
            if at != Field::WallDriftSinceNs as u64 && self.read(at)? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&self, at: u64) -> Result<i64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at * 8)?;
        Ok(i64::from_ne_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(shim: &Shim, page: &Page, disk: &Path, script: &str) -> Result<String> {
        let done = Command::new("sh")
            .args(["-c", script])
            .env("TZ", "UTC")
            .envs(shim.environment(page, disk))
            .current_dir(disk)
            .output()?;
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        Ok(String::from_utf8_lossy(&done.stdout).into_owned() + &err)
    }

    #[test]
    fn the_wall_clock_of_another_process_jumps_and_comes_back() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let shim = Shim::build(folder.path())?;
        let page = shim.page(1)?;
        let now = || -> Result<i64> {
            Ok(run(&shim, &page, folder.path(), "date +%s")?
                .trim()
                .parse()?)
        };
        let before = now()?;
        page.set(Field::WallOffsetNs, 86_400 * 1_000_000_000)?;
        assert!(!page.is_calm()?);
        assert!((86_400..86_430).contains(&(now()? - before)));
        page.set(Field::WallOffsetNs, 0)?;
        assert!(page.is_calm()?);
        assert!((0..30).contains(&(now()? - before)));
        Ok(())
    }

    #[test]
    fn a_torn_write_ends_the_process_with_part_of_it_on_the_disk() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let shim = Shim::build(folder.path())?;
        let page = shim.page(1)?;
        let file = folder.path().join("torn");
        fs::write(&file, [0; 4096])?;
        page.set(Field::WriteTorn, 1)?;
        let script = "import os\nf = os.open('torn', os.O_RDWR)\nos.pwrite(f, b'1' * 4096, 0)\nprint('alive')";
        let done = Command::new("python3")
            .args(["-c", script])
            .envs(shim.environment(&page, folder.path()))
            .current_dir(folder.path())
            .output()?;
        assert!(!done.status.success() && done.stdout.is_empty());
        let ones = fs::read(&file)?
            .iter()
            .filter(|byte| **byte == b'1')
            .count();
        assert!(
            ones > 0 && ones < 4096 && ones.is_multiple_of(512),
            "{ones}"
        );
        assert!(page.is_calm()?);
        Ok(())
    }

    #[test]
    fn syncs_and_writes_fail_in_one_folder_only() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let disk = folder.path().join("disk");
        fs::create_dir_all(&disk)?;
        let shim = Shim::build(folder.path())?;
        let page = shim.page(1)?;
        let script = "echo 1 | dd of=a conv=fsync; echo 1 | dd of=../b conv=fsync";
        assert!(!run(&shim, &page, &disk, script)?.contains("error"));
        page.set(Field::SyncEioPpm, 1_000_000)?;
        let told = run(&shim, &page, &disk, script)?;
        assert_eq!(told.matches("Input/output error").count(), 1, "{told}");
        assert!(page.injected()? >= 1);
        page.set(Field::SyncEioPpm, 0)?;
        page.set(Field::WriteEnospc, 1)?;
        let told = run(&shim, &page, &disk, script)?;
        assert_eq!(told.matches("No space left").count(), 1, "{told}");
        Ok(())
    }
}
