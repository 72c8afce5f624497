//! A disk whose power can be cut: ext4 on a loop file.
//!
//! The ioctl `EXT4_IOC_SHUTDOWN` with the flag "no log flush" stops the file system at once: what is
//! in the page cache or in the running journal transaction never reaches the image. Needs root,
//! loop devices and `mkfs.ext4`. Unmounts and removes what it made when dropped.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

/// Large enough for the work between two fresh disks.
const SIZE: u64 = 768 * 1024 * 1024;

/// `_IOR('X', 125, __u32)` of the kernel's ext4 header.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587D;

/// Neither flush the journal nor the data.
const NO_LOG_FLUSH: u32 = 2;

/// Whether this machine can do it.
///
/// # Errors
/// What is missing.
pub fn available() -> Result<(), String> {
    #[expect(unsafe_code, reason = "geteuid takes nothing and cannot fail")]
    let user = unsafe { libc::geteuid() };
    if user != 0 {
        return Err(format!("it needs root to mount (this is user {user})"));
    }
    if !Path::new("/dev/loop-control").exists() && !Path::new("/dev/loop0").exists() {
        return Err("there are no loop devices (/dev/loop-control, /dev/loop0)".into());
    }
    for program in ["mkfs.ext4", "mount", "umount"] {
        if Command::new(program).arg("-V").output().is_err() {
            return Err(format!(
                "the program `{program}` is missing (e2fsprogs, mount)"
            ));
        }
    }
    let probe = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    match Disk::create(probe.path()) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("an ext4 loop mount does not work: {error:#}")),
    }
}

/// A mounted disk. All I/O fails between [`Disk::cut_power`] and [`Disk::remount`].
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    point: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Makes an empty disk in `folder` and mounts it. What was there before is gone.
    ///
    /// # Errors
    /// What cannot be made; without root it is the mount.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        let image = folder.join("disk.ext4");
        let point = folder.join("mounted");
        fs::create_dir_all(&point).context("cannot make the mount point")?;
        let file = File::create(&image).context("cannot make the image")?;
        file.set_len(SIZE).context("cannot size the image")?;
        drop(file);
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&image))?;
        let mut disk = Self {
            image,
            point,
            mounted: false,
        };
        disk.mount()?;
        Ok(disk)
    }

    /// The folder in which its files are.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.point
    }

    /// From now on nothing reaches the image any more, and all I/O on the disk fails.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        let root = File::open(&self.point).context("cannot open the mounted disk")?;
        let flags = NO_LOG_FLUSH;
        #[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
        // SAFETY: the descriptor is open during the call and the kernel reads one u32.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
        if result != 0 {
            bail!(
                "the shutdown ioctl failed: {}",
                std::io::Error::last_os_error()
            );
        }
        Ok(())
    }

    /// What a machine does when the power is back.
    ///
    /// # Errors
    /// Something holds the disk for longer than five seconds, or it cannot be mounted again.
    pub fn remount(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&self.image)
            .arg(&self.point))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        let mut tries = 0;
        while let Err(error) = run(Command::new("umount").arg(&self.point)) {
            tries += 1;
            if tries == 100 {
                return Err(error);
            }
            // A killed process lets go of its files a moment after it is waited for.
            std::thread::sleep(Duration::from_millis(50));
        }
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted && self.unmount().is_err() {
            // Last resort, so that no mount outlives the test.
            run(Command::new("umount").arg("-l").arg(&self.point)).ok();
        }
    }
}

/// A folder for disks that processes in mount namespaces of their own have open, as those do that
/// `ip netns exec` starts. Without it each of them would hold the disks mounted after a
/// [`Disk::remount`], in the state they had before.
#[derive(Debug)]
pub struct Rack {
    disks: Vec<Disk>,
    folder: tempfile::TempDir,
}

impl Rack {
    /// Makes and mounts so many disks. Processes that are to use them start afterwards.
    ///
    /// # Errors
    /// What cannot be made; without root it is the first mount.
    pub fn new(count: usize) -> anyhow::Result<Self> {
        let folder = tempfile::TempDir::with_prefix("flotilla-disks-")?;
        // Mounts and unmounts under a shared mount reach the namespaces that were copied from ours.
        run(Command::new("mount")
            .arg("--bind")
            .args([folder.path(), folder.path()]))?;
        let mut rack = Self {
            disks: Vec::new(),
            folder,
        };
        run(Command::new("mount")
            .args(["--make-private", "--make-shared"])
            .arg(rack.folder.path()))?;
        for number in 1..=count {
            let place = rack.folder.path().join(number.to_string());
            fs::create_dir_all(&place)?;
            rack.disks.push(Disk::create(&place)?);
        }
        Ok(rack)
    }

    /// The disks, in order.
    pub fn disks(&mut self) -> &mut [Disk] {
        &mut self.disks
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.disks.clear();
        // Best effort: a folder in /tmp is all that would be left.
        run(Command::new("umount").arg(self.folder.path())).ok();
    }
}

/// Copies a folder that may not exist; replaces what the copy held before.
///
/// # Errors
/// What cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).context("cannot remove an old copy")?;
    }
    if !from.exists() {
        return Ok(());
    }
    fs::create_dir_all(to).context("cannot make the copy")?;
    run(Command::new("cp").args(["-a", "-T"]).arg(from).arg(to))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed: {}", errors.trim());
    }
    Ok(())
}
