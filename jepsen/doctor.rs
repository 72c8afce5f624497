//! What this machine can do to a cluster: each means is tried, not looked up.
//!
//! A fault whose means is missing is not injected and not counted as passed: reports name it as not
//! covered.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::nemesis::{self, Class};
use crate::net::End;
use crate::net::emulator::Emulator;
use crate::net::impairment::{Impairment, between};
use crate::net::tun;
use crate::shim::{Field, Shim};

/// A means by which faults are injected.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Means {
    Root,
    Namespaces,
    Tun,
    Disks,
    Shim,
    ControlGroups,
    RealTime,
    Nft,
    Tcpdump,
    Go,
}

impl Means {
    const ALL: [Self; 10] = [
        Self::Root,
        Self::Namespaces,
        Self::Tun,
        Self::Disks,
        Self::Shim,
        Self::ControlGroups,
        Self::RealTime,
        Self::Nft,
        Self::Tcpdump,
        Self::Go,
    ];

    fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Root => ("root", "everything"),
            Self::Namespaces => ("network namespaces", "everything"),
            Self::Tun => ("TUN devices and the emulator", "all faults of the network"),
            Self::Disks => ("ext4 on loop, shutdown ioctl", "power, full disks"),
            Self::Shim => (
                "LD_PRELOAD shim, cc",
                "clocks, failing, slow and torn disks",
            ),
            Self::ControlGroups => ("control groups", "starvation of CPU and memory"),
            Self::RealTime => ("real-time priority", "exact delays on a busy machine"),
            Self::Nft => ("nftables", "the failover plan"),
            Self::Tcpdump => ("tcpdump", "the failover plan's captures"),
            Self::Go => ("Go", "Porcupine, the independent judge"),
        }
    }

    fn of(class: Class) -> &'static [Self] {
        match class {
            Class::Kill
            | Class::Pause
            | Class::Replace
            | Class::SnapshotCatchUp
            | Class::RollingRestart
            | Class::Drain
            | Class::LeaderTransfer
            | Class::FlippedBit => &[],
            Class::ClockJump
            | Class::ClockDrift
            | Class::TornTail
            | Class::WriteError
            | Class::SyncError
            | Class::SlowDisk
            | Class::StalledDisk => &[Self::Shim],
            Class::DiskFull => &[Self::Disks, Self::Shim],
            Class::PowerOne | Class::PowerQuorum | Class::PowerAll => &[Self::Disks],
            Class::CpuStarved | Class::MemoryStarved => &[Self::ControlGroups],
            _ => &[Self::Tun],
        }
    }
}

/// What was found.
pub(crate) struct Doctor {
    /// Why a means is missing; none if it is there.
    found: BTreeMap<Means, Option<String>>,
}

impl Doctor {
    /// Tries every means.
    pub(crate) fn examine() -> Self {
        let found = Means::ALL.map(|means| {
            let missing = examine(means).err().map(|failure| format!("{failure:#}"));
            (means, missing)
        });
        Self {
            found: found.into_iter().collect(),
        }
    }

    /// Why a fault cannot be injected here.
    pub(crate) fn missing(&self, class: Class) -> Option<String> {
        Means::of(class).iter().find_map(|means| {
            let why = self.found.get(means)?.as_ref()?;
            Some(format!("{}: {why}", means.told().0))
        })
    }

    /// Every fault that cannot be injected, and why.
    pub(crate) fn not_covered(&self) -> Vec<String> {
        Class::all()
            .into_iter()
            .filter_map(|class| Some(format!("{}: {}", class.name(), self.missing(class)?)))
            .collect()
    }

    /// The table for a person.
    pub(crate) fn told(&self) -> String {
        let mut text = String::from(
            "means                              for                                      here\n",
        );
        for (means, missing) in &self.found {
            let (name, purpose) = means.told();
            let here = missing
                .as_ref()
                .map_or_else(|| "yes".to_owned(), |why| format!("MISSING: {why}"));
            text.push_str(&format!("{name:34} {purpose:40} {here}\n"));
        }
        let classes = Class::all();
        let not_covered = self.not_covered();
        text.push_str(&format!(
            "\n{} of {} kinds of faults can be injected\n",
            classes.len() - not_covered.len(),
            classes.len()
        ));
        for fault in not_covered {
            text.push_str(&format!("NOT COVERED: {fault}\n"));
        }
        text
    }

    /// Whether nothing is missing.
    pub(crate) fn is_content(&self) -> bool {
        self.found.values().all(Option::is_none)
    }
}

/// A namespace for an examination; gone with its value.
struct Room(String);

impl Room {
    fn new(what: &str) -> Result<Self> {
        let name = format!("doctor{}-{what}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        Ok(Self(name))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "delete", &self.0]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let done = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.to_owned())?;
    let told = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{program}: {}", told.trim());
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn examine(means: Means) -> Result<()> {
    match means {
        Means::Root => {
            let user = run("id", &["-u"])?;
            ensure!(user.trim() == "0", "this is user {}", user.trim());
            Ok(())
        }
        Means::Namespaces => Room::new("a").map(drop),
        Means::Tun => emulator(),
        Means::Disks => nemesis::disk_available().map_err(anyhow::Error::msg),
        Means::Shim => shim(),
        Means::ControlGroups => control_group(),
        Means::RealTime => {
            let thread = std::thread::spawn(crate::net::tun::go_first);
            let allowed = thread.join().unwrap_or(false);
            ensure!(allowed, "SCHED_FIFO is not allowed");
            Ok(())
        }
        Means::Nft => run("nft", &["--version"]).map(drop),
        Means::Tcpdump => run("tcpdump", &["--version"]).map(drop),
        Means::Go => run("go", &["version"]).map(drop),
    }
}

/// A packet passes between two namespaces, and none passes a cut link.
fn emulator() -> Result<()> {
    let (one, other) = (Room::new("b")?, Room::new("c")?);
    let namespaces = [
        (one.0.clone(), vec![End(1)]),
        (other.0.clone(), vec![End(2)]),
    ];
    let emulator = Emulator::start(&namespaces, 1)?;
    let socket = |room: &Room, end: End| -> Result<UdpSocket> {
        let socket = tun::inside(&room.0, move || UdpSocket::bind((end.address(), 9)))??;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    };
    let (from, to) = (socket(&one, End(1))?, socket(&other, End(2))?);
    let mut number = 0;
    let mut ping = || {
        number += 1;
        let sent = from.send_to(&[number], (End(2).address(), 9));
        let mut bytes = [0];
        sent.is_ok() && to.recv(&mut bytes).is_ok() && bytes == [number]
    };
    ensure!(ping(), "no packet passes the emulator");
    let control = emulator.control();
    let cut = control.impair(between(&[End(1)], &[End(2)]), Impairment::CUT);
    ensure!(!ping(), "a packet passes a cut link");
    drop(cut);
    ensure!(ping(), "no packet passes a healed link");
    Ok(())
}

/// Another process reads the wall clock that the page says.
fn shim() -> Result<()> {
    let folder = tempfile::TempDir::new()?;
    let shim = Shim::build(folder.path())?;
    let page = shim.page(1)?;
    page.set(Field::WallOffsetNs, -86_400_000_000_000)?;
    let done = Command::new("date")
        .arg("+%s")
        .envs(shim.environment(&page, folder.path()))
        .output()?;
    let seen: u64 = String::from_utf8_lossy(&done.stdout).trim().parse()?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    ensure!(now - seen > 86_000, "the clock did not change");
    Ok(())
}

/// A group can be made and limited.
fn control_group() -> Result<()> {
    use nemesis::Controllers;
    let name = format!("flotilla-doctor-{}", std::process::id());
    let (folder, file, value) = match nemesis::controllers()? {
        Controllers::V1 { cpu, .. } => (cpu.join(&name), "cpu.cfs_quota_us", "50000"),
        Controllers::V2(root) => (root.join(&name), "cpu.max", "50000 100000"),
    };
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let limited = std::fs::write(folder.join(file), value);
    std::fs::remove_dir(&folder)?;
    limited.context(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_and_not_covered() {
        let mut found: BTreeMap<Means, Option<String>> =
            Means::ALL.iter().map(|means| (*means, None)).collect();
        let doctor = Doctor {
            found: found.clone(),
        };
        assert!(doctor.is_content() && doctor.not_covered().is_empty());
        found.insert(Means::Disks, Some("no loop devices".to_owned()));
        let doctor = Doctor { found };
        assert!(doctor.missing(Class::PowerAll).is_some());
        assert!(doctor.missing(Class::Kill).is_none());
        assert_eq!(doctor.not_covered().len(), 4);
        assert!(
            doctor
                .told()
                .contains("NOT COVERED: power-one: ext4 on loop")
        );
    }
}
