//! Faults of a node's process: killed, paused, starved.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Injected;
use crate::run::world::World;

/// SIGKILL; started again at the end.
pub(super) fn kill(world: &mut World, target: u64) -> Result<Injected> {
    world.kill(target)?;
    let mut injected = Injected::of(vec![target], format!("{target} killed"));
    injected.stopped.push(target);
    Ok(injected)
}

/// SIGSTOP until the value ends.
pub(super) fn pause(world: &World, target: u64) -> Result<Injected> {
    let pid = world.pid(target).context("the node does not run")?;
    let paused = Paused(Handle::open(pid)?);
    paused.0.signal(libc::SIGSTOP)?;
    Ok(Injected::of(vec![target], format!("{target} paused")).holding(paused))
}

struct Paused(Handle);

impl Drop for Paused {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = self.0.signal(libc::SIGCONT);
    }
}

/// A process, whatever becomes of its number.
struct Handle(OwnedFd);

impl Handle {
    #[expect(unsafe_code, reason = "pidfd_open has no safe wrapper")]
    fn open(pid: u32) -> Result<Self> {
        // SAFETY: a plain system call; its result is checked before it is taken for a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        ensure!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) }))
    }

    #[expect(unsafe_code, reason = "pidfd_send_signal has no safe wrapper")]
    fn signal(&self, signal: libc::c_int) -> Result<()> {
        let fd = self.0.as_raw_fd();
        // SAFETY: the descriptor is open, and no information is passed.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        ensure!(done == 0, "signal: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// Which way of control groups the machine has.
#[derive(Clone, Debug)]
pub(crate) enum Controllers {
    /// One hierarchy for each controller.
    V1 { cpu: PathBuf, memory: PathBuf },
    /// One for all.
    V2(PathBuf),
}

/// What the machine has.
///
/// # Errors
/// What is missing.
pub(crate) fn controllers() -> Result<Controllers> {
    let mut last = None;
    // `ip netns exec` mounts a /sys without them; the first process of the machine sees the real one.
    for root in ["/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup"] {
        match controllers_at(Path::new(root)) {
            Ok(found) => return Ok(found),
            Err(failure) => last = Some(failure),
        }
    }
    Err(last.context("no place to look at")?)
}

fn controllers_at(root: &Path) -> Result<Controllers> {
    let unified = root.join("cgroup.controllers");
    if let Ok(listed) = fs::read_to_string(&unified) {
        let has = |name: &str| listed.split_whitespace().any(|listed| listed == name);
        ensure!(
            has("cpu") && has("memory"),
            "cgroup v2 without cpu and memory: {listed}"
        );
        return Ok(Controllers::V2(root.to_owned()));
    }
    let (cpu, memory) = (root.join("cpu"), root.join("memory"));
    if cpu.join("tasks").exists() {
        ensure!(memory.join("tasks").exists(), "no memory controller");
        return Ok(Controllers::V1 { cpu, memory });
    }
    bail!("neither cgroup v1 nor v2 at {}", root.display())
}

/// A control group with one process in it, which goes back where it was when the value ends.
struct Group {
    folder: PathBuf,
    back: PathBuf,
    pid: u32,
}

impl Group {
    /// Makes it under a controller's folder; `name` is unique in this run.
    fn make(controller: &Path, name: &str, pid: u32) -> Result<Self> {
        let folder = controller.join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self {
            folder,
            back: controller.join("cgroup.procs"),
            pid,
        })
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value).with_context(|| format!("{}: {value}", path.display()))
    }

    fn enter(&self) -> Result<()> {
        self.set("cgroup.procs", &self.pid.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(&self.back, self.pid.to_string());
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            // A killed process leaves its group a moment after it is waited for.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A tenth of a core, until the value ends.
pub(super) fn starve_cpu(world: &World, target: u64) -> Result<Injected> {
    let pid = world.pid(target).context("the node does not run")?;
    let name = world.group_name(target, "cpu");
    let group = match controllers()? {
        Controllers::V1 { cpu, .. } => {
            let group = Group::make(&cpu, &name, pid)?;
            group.set("cpu.cfs_period_us", "50000")?;
            group.set("cpu.cfs_quota_us", "5000")?;
            group
        }
        Controllers::V2(root) => {
            let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
            let group = Group::make(&root, &name, pid)?;
            group.set("cpu.max", "5000 50000")?;
            group
        }
    };
    group.enter()?;
    Ok(Injected::of(vec![target], format!("{target}: a tenth of a core")).holding(group))
}

/// Less memory than the node has now: the kernel kills it. Started again at the end.
pub(super) fn starve_memory(world: &mut World, target: u64) -> Result<Injected> {
    const LIMIT: &str = "12582912";
    let pid = world.pid(target).context("the node does not run")?;
    let name = world.group_name(target, "memory");
    let mut injected = Injected::of(vec![target], format!("{target}: 12 MiB of memory"));
    let group = match controllers()? {
        Controllers::V1 { memory, .. } => {
            let group = Group::make(&memory, &name, pid)?;
            // What it has moves along, and counts.
            let _ = group.set("memory.move_charge_at_immigrate", "1");
            group.enter()?;
            if group.set("memory.limit_in_bytes", LIMIT).is_err() {
                // More is in use than can be taken back: it must come to that by what the node needs next.
                group.set("memory.limit_in_bytes", "33554432")?;
            }
            group
        }
        Controllers::V2(root) => {
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
            let group = Group::make(&root, &name, pid)?;
            group.enter()?;
            group.set("memory.max", LIMIT)?;
            group
        }
    };
    injected.stopped.push(target);
    Ok(injected.holding(group))
}
