//! Addresses that move: which of them this node holds, and how it takes and gives one back.
//!
//! [`crate::control::addresses`] decides, this carries out: on Linux the address is added to the
//! interface of its network for a few seconds at a time, so that it goes away with the process that no
//! longer asks for it, and the network is told by gratuitous ARP; elsewhere, or if configured, a command
//! does it. Addresses of the loopback network need neither.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use flotilla_media::via;
use tokio::process::Command;

#[cfg(target_os = "linux")]
mod interface;

/// How long an address stays on its interface without being asked for again. Whole seconds, the
/// kernel's measure; more leaves a dead process's address there for longer.
pub const KEPT: Duration = Duration::from_secs(3);
/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(5);

/// The addresses that this node holds, with their numbers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Moving {
    /// Written by the task that takes addresses, read by sessions; nothing waits while it is held.
    known: Arc<Mutex<Vec<Known>>>,
}

/// An address that is held, or was.
struct Known {
    number: via::Local,
    address: IpAddr,
    is_held: bool,
}

impl Moving {
    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address with this number; `None` for that of the main socket.
    #[must_use]
    pub fn address(&self, number: via::Local) -> Option<IpAddr> {
        let known = self.lock();
        let held = known
            .iter()
            .find(|known| known.number == number && known.is_held);
        held.map(|held| held.address)
    }

    /// Notes an address as held, and gives its number: the one that it had before, so that clients whose
    /// paths are marked with it are served again, or one that no address of late has had. `None` if all
    /// are in use.
    pub fn insert(&self, address: IpAddr) -> Option<via::Local> {
        let mut known = self.lock();
        if let Some(known) = known.iter_mut().find(|known| known.address == address) {
            known.is_held = true;
            return Some(known.number);
        }
        if known.len() == usize::from(via::OWN_MAX) {
            let oldest = known.iter().position(|known| !known.is_held)?;
            known.remove(oldest);
        }
        let number =
            (1..=via::OWN_MAX).find(|number| known.iter().all(|known| known.number != *number))?;
        known.push(Known {
            number,
            address,
            is_held: true,
        });
        Some(number)
    }

    /// Notes that an address is held no more; its number.
    pub fn remove(&self, address: IpAddr) -> Option<via::Local> {
        let mut known = self.lock();
        let held = known
            .iter_mut()
            .find(|known| known.address == address && known.is_held)?;
        held.is_held = false;
        Some(held.number)
    }
}

/// How an address is brought to this node.
#[derive(Clone, Debug)]
pub struct Means {
    /// A program that does it, called with `take` or `release` and the address.
    pub command: Option<PathBuf>,
    /// The interface; `None`: the one whose network the address belongs to.
    pub interface: Option<String>,
}

impl Means {
    /// Brings an address here, or keeps it here for another while. `announce`: tells the network.
    ///
    /// # Errors
    /// Why it is not here.
    pub async fn take(&self, address: IpAddr, announce: bool) -> anyhow::Result<()> {
        match &self.command {
            // Said once: whatever it tells keeps the address until it is released.
            Some(_) if !announce => Ok(()),
            Some(program) => run(program, "take", address).await,
            None if address.is_loopback() => Ok(()),
            #[cfg(target_os = "linux")]
            None => interface::take(address, self.interface.as_deref(), announce),
            #[cfg(not(target_os = "linux"))]
            None => bail!("set rtc.floating_command: addresses are moved by a command here"),
        }
    }

    /// Lets an address go.
    ///
    /// # Errors
    /// Why it is still here.
    pub async fn release(&self, address: IpAddr) -> anyhow::Result<()> {
        match &self.command {
            Some(program) => run(program, "release", address).await,
            None if address.is_loopback() => Ok(()),
            #[cfg(target_os = "linux")]
            None => interface::release(address, self.interface.as_deref()),
            #[cfg(not(target_os = "linux"))]
            None => Ok(()),
        }
    }
}

async fn run(program: &Path, what: &str, address: IpAddr) -> anyhow::Result<()> {
    let running = Command::new(program)
        .arg(what)
        .arg(address.to_string())
        .kill_on_drop(true)
        .status();
    let status = tokio::time::timeout(COMMAND_MAX, running)
        .await
        .with_context(|| format!("{} {what} takes too long", program.display()))?
        .with_context(|| program.display().to_string())?;
    if !status.success() {
        bail!("{} {what} {address}: {status}", program.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_number() {
        let moving = Moving::default();
        let address = |last: u8| IpAddr::from([127, 0, 0, last]);
        for number in 1..=3 {
            assert_eq!(moving.insert(address(number)), Some(number.into()));
        }
        assert_eq!(moving.insert(address(1)), Some(1));
        assert_eq!(moving.remove(address(2)), Some(2));
        assert_eq!(moving.remove(address(2)), None);
        assert_eq!(moving.address(2), None, "it is not held");
        assert_eq!(
            moving.insert(address(4)),
            Some(4),
            "what is marked with 2 goes nowhere"
        );
        assert_eq!(moving.insert(address(2)), Some(2));
        assert_eq!(moving.address(2), Some(address(2)));
        assert_eq!(moving.address(0), None);
        assert_eq!(moving.remove(address(3)), Some(3));
        for number in 5..=u8::MAX {
            assert_eq!(moving.insert(address(number)), Some(number.into()));
        }
        let last = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(moving.insert(last), Some(3), "one that is not held");
        assert_eq!(moving.insert([10, 0, 0, 2].into()), None);
    }

    #[tokio::test]
    async fn a_command_moves_an_address_where_one_is_set() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("move");
        let told = folder.path().join("told");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\n[ \"$1\" = take ]\n",
            told.display()
        );
        std::fs::write(&program, script).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&program, mode).expect("set");
        let means = Means {
            command: Some(program),
            interface: None,
        };
        let address = IpAddr::from([192, 0, 2, 7]);
        means.take(address, true).await.expect("taken");
        means.take(address, false).await.expect("kept");
        assert!(means.release(address).await.is_err(), "it says so");
        let told = std::fs::read_to_string(told).expect("read");
        assert_eq!(told, "take 192.0.2.7\nrelease 192.0.2.7\n");
    }
}
