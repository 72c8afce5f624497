//! Faults of a node's process: killed, paused, starved.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testkit::cluster::wait;

use super::Injected;
use crate::net::emulator::Chance;
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
    // `ip netns exec` mounts a /sys without them; the process that made the namespaces sees the real one.
    let parent = format!(
        "/proc/{}/root/sys/fs/cgroup",
        std::os::unix::process::parent_id()
    );
    for root in ["/sys/fs/cgroup", &parent] {
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

/// Little of a core, until the value ends.
pub(super) fn starve_cpu(world: &World, target: u64, chance: &mut Chance) -> Result<Injected> {
    /// Of 50 ms.
    const QUOTAS_US: [u64; 3] = [1000, 2000, 4000];
    let quota = *chance.pick(&QUOTAS_US);
    let pid = world.pid(target).context("the node does not run")?;
    let name = world.group_name(target, "cpu");
    let group = match controllers()? {
        Controllers::V1 { cpu, .. } => {
            let group = Group::make(&cpu, &name, pid)?;
            group.set("cpu.cfs_period_us", "50000")?;
            group.set("cpu.cfs_quota_us", &quota.to_string())?;
            group
        }
        Controllers::V2(root) => {
            let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
            let group = Group::make(&root, &name, pid)?;
            group.set("cpu.max", &format!("{quota} 50000"))?;
            group
        }
    };
    group.enter()?;
    let told = format!("{target}: {} % of a core", quota / 500);
    Ok(Injected::of(vec![target], told).holding(group))
}

/// Something beside the node eats all memory that both may have, and the kernel kills the node for it.
/// Started again at the end.
pub(super) fn starve_memory(world: &mut World, target: u64) -> Result<Injected> {
    const LIMIT: &str = "16777216";
    let pid = world.pid(target).context("the node does not run")?;
    let name = world.group_name(target, "memory");
    let group = match controllers()? {
        Controllers::V1 { memory, .. } => {
            let group = Group::make(&memory, &name, pid)?;
            group.set("memory.limit_in_bytes", LIMIT)?;
            group
        }
        Controllers::V2(root) => {
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
            let group = Group::make(&root, &name, pid)?;
            group.set("memory.max", LIMIT)?;
            group
        }
    };
    group.enter()?;
    // Which of the two the kernel takes is not what is tested.
    fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")?;
    let script = r#"echo $$ > "$1/cgroup.procs" && exec tail /dev/zero"#;
    let eater = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(&group.folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let eater = Eater(eater);
    wait(Duration::from_secs(5), "the kernel kills the node", || {
        Ok(!world.is_running(target))
    })?;
    world.kill(target)?;
    drop(eater);
    let told = format!("{target}: killed for want of memory");
    let mut injected = Injected::of(vec![target], told).holding(group);
    injected.stopped.push(target);
    Ok(injected)
}

/// Ends with its value.
struct Eater(Child);

impl Drop for Eater {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
