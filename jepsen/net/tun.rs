//! TUN devices in other namespaces, and what else a network emulator needs of the kernel. All `unsafe`
//! of the network is here.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// `TUNSETIFF` of the kernel's `if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// Name of the device in each namespace.
const DEVICE: &str = "wan0";
/// Packets that wait in a device; at less, a burst of a picture is lost before it is looked at.
const QUEUE: &str = "5000";

/// A namespace's only way to the others.
pub(crate) struct Tun(OwnedFd);

impl Tun {
    /// Makes the device in `namespace`, gives it `addresses` of 10.79.0.0/24 and the default route. Moves the
    /// calling thread there and back.
    ///
    /// # Errors
    /// What the kernel refuses; without root it is the namespace.
    pub(crate) fn open(namespace: &str, addresses: &[Ipv4Addr]) -> Result<Self> {
        let own = File::open("/proc/thread-self/ns/net").context("the thread's own namespace")?;
        let other = File::open(format!("/run/netns/{namespace}"))
            .with_context(|| format!("namespace {namespace}"))?;
        enter(&other).with_context(|| format!("cannot enter {namespace}"))?;
        let device = device();
        enter(&own).context("cannot come back from a namespace")?;
        let tun = Self(device.context("cannot make a TUN device")?);
        let ip = |arguments: &[&str]| {
            let mut all = vec!["-n", namespace];
            all.extend(arguments);
            let done = Command::new("ip").args(&all).output()?;
            ensure!(
                done.status.success(),
                "ip {}: {}",
                all.join(" "),
                String::from_utf8_lossy(&done.stderr)
            );
            Ok(())
        };
        ip(&[
            "link",
            "set",
            DEVICE,
            "txqueuelen",
            QUEUE,
            "mtu",
            "1500",
            "up",
        ])?;
        for address in addresses {
            ip(&["address", "add", &format!("{address}/24"), "dev", DEVICE])?;
        }
        ip(&["route", "add", "default", "dev", DEVICE])?;
        Ok(tun)
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// One packet, or none if there is none.
    #[expect(unsafe_code, reason = "a non-blocking read of a raw descriptor")]
    pub(crate) fn read(&self, into: &mut [u8]) -> Option<usize> {
        // SAFETY: the buffer is valid for its length and the descriptor is open.
        let count = unsafe { libc::read(self.fd(), into.as_mut_ptr().cast(), into.len()) };
        usize::try_from(count).ok().filter(|count| *count > 0)
    }

    /// Hands a packet to the namespace; false if its queue is full.
    #[expect(unsafe_code, reason = "a non-blocking write of a raw descriptor")]
    pub(crate) fn write(&self, packet: &[u8]) -> bool {
        // SAFETY: the buffer is valid for its length and the descriptor is open.
        unsafe { libc::write(self.fd(), packet.as_ptr().cast(), packet.len()) >= 0 }
    }
}

/// Does something in a namespace, on a thread of its own. Sockets made there stay there.
///
/// # Errors
/// If the namespace cannot be entered.
pub(crate) fn inside<T: Send + 'static>(
    namespace: &str,
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let path = format!("/run/netns/{namespace}");
    let thread = std::thread::spawn(move || -> Result<T> {
        let namespace = File::open(&path).context(path)?;
        enter(&namespace).context("cannot enter a namespace")?;
        Ok(what())
    });
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

#[expect(unsafe_code, reason = "setns has no safe wrapper")]
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; only the calling thread moves.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn device() -> io::Result<OwnedFd> {
    let path = CString::new("/dev/net/tun")?;
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero.
    let fd = unsafe { libc::open(path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (into, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *into = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which lives across the call.
    match unsafe { libc::ioctl(fd, TUNSETIFF, &raw mut request) } {
        0 => Ok(owned),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until one of the devices has a packet or the time is over.
#[expect(
    unsafe_code,
    reason = "ppoll has no safe wrapper in the standard library"
)]
pub(crate) fn wait(polled: &mut [libc::pollfd], nanoseconds: u64) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(nanoseconds / 1_000_000_000).unwrap_or(1),
        tv_nsec: libc::c_long::try_from(nanoseconds % 1_000_000_000).unwrap_or(0),
    };
    // SAFETY: the slice is valid for its length, the time lives across the call, no signal mask is given.
    unsafe {
        let count = polled.len() as libc::nfds_t;
        libc::ppoll(
            polled.as_mut_ptr(),
            count,
            &raw const time,
            std::ptr::null(),
        );
    }
}

/// Lets the calling thread go before all others, and wakes it on the nanosecond. False if not allowed.
#[expect(unsafe_code, reason = "scheduling has no safe wrapper")]
pub(crate) fn go_first() -> bool {
    const PRIORITY: libc::c_int = 20;
    // SAFETY: plain system calls on the calling thread; the parameter lives across the call.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0, 0, 0);
        let parameter = libc::sched_param {
            sched_priority: PRIORITY,
        };
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) == 0
    }
}
