//! A shard's UDP socket: waiting, receiving and sending in batches.
//!
//! Owned by one [`crate::shard`] thread; other threads wake it through a [`Waker`]. What a datagram
//! means is the engine's business. On Linux datagrams come in with `recvmmsg` and GRO and go out with
//! `sendmmsg`, one message per destination that the kernel cuts into datagrams (GSO): measured, a
//! datagram alone costs 2.4 us and one of four to the same receiver 1.0 us. Elsewhere, or where the
//! kernel refuses, each datagram is a call of its own.

#[cfg(target_os = "linux")]
mod group;
#[cfg(target_os = "linux")]
mod receive;
#[cfg(target_os = "linux")]
mod send;
#[cfg(test)]
mod tests;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotilla_media::transmit::TransmitQueue;
use flotilla_media::via;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

/// Largest datagram taken one by one; media and its transport stay below the path's 1,500 bytes.
const DATAGRAM_BYTES_MAX: usize = 2048;
/// Datagrams per call of [`Socket::receive`]: more delay timers, fewer cost system calls.
const BATCH_MAX: usize = 256;
/// Asked of the kernel for each direction; it may grant less.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// How long to wait for room in the kernel's buffer before a datagram is dropped. More delays what
/// comes in, less loses packets of key frames.
const ROOM_WAIT: Duration = Duration::from_millis(1);

/// How much the kernel may be asked to do in one call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Offload {
    /// A call for each datagram.
    Single,
    /// Many datagrams in a call.
    Batches,
    /// Many messages in a call, each of many datagrams.
    Segments,
}

/// The socket and its wake-up line.
pub struct Socket {
    socket: UdpSocket,
    /// Number of its address among the shard's own; see [`via`].
    local: via::Local,
    wake: UnixStream,
    waker: Waker,
    io: Io,
}

/// How datagrams are moved.
enum Io {
    Single {
        buffer: Box<[u8; DATAGRAM_BYTES_MAX]>,
    },
    #[cfg(target_os = "linux")]
    Batched {
        receiver: Box<receive::Receiver>,
        sender: Box<send::Sender>,
    },
}

/// Ends another thread's [`Socket::wait`].
#[derive(Clone)]
pub struct Waker {
    line: Arc<UnixStream>,
    pending: Arc<AtomicBool>,
}

/// What became of a queue.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Datagrams the kernel took.
    pub sent: usize,
    /// Datagrams it refused: full buffer, unreachable destination. They are lost, as on a network.
    pub dropped: usize,
    /// System calls used.
    pub calls: usize,
}

impl Waker {
    /// Wakes the waiting thread; cheap when it has been woken already.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // A full line means that plenty of wake-ups are waiting in it.
            let _ = (&*self.line).write(&[0]);
        }
    }
}

impl Socket {
    /// Binds, with the best that the kernel offers. `[::]` takes IPv4 as well.
    ///
    /// # Errors
    /// The system's, for example `AddrInUse`.
    pub fn bind(address: SocketAddr) -> io::Result<(Self, Waker)> {
        Self::bind_with(address, Offload::Segments)
    }

    /// Lets sockets of single addresses come beside this one, which has the port for all of them. Nobody
    /// else has it by now.
    ///
    /// # Errors
    /// The system's.
    pub fn allow_beside(&self) -> io::Result<()> {
        socket2::SockRef::from(&self.socket).set_reuse_address(true)
    }

    /// Binds an address of a shard beside that of its main socket, which may have the same port for all
    /// addresses ([`Self::allow_beside`]). Only what is marked with `local` is sent here.
    ///
    /// # Errors
    /// The system's.
    pub fn bind_beside(address: SocketAddr, local: via::Local) -> io::Result<Self> {
        let raw = raw_socket(address)?;
        raw.set_reuse_address(true)?;
        raw.bind(&address.into())?;
        let (mut socket, _) = Self::open(raw, address, Offload::Segments)?;
        socket.local = local;
        Ok(socket)
    }

    /// As [`Self::bind`], using no more than `most`.
    ///
    /// # Errors
    /// The system's.
    pub fn bind_with(address: SocketAddr, most: Offload) -> io::Result<(Self, Waker)> {
        let raw = raw_socket(address)?;
        raw.bind(&address.into())?;
        Self::open(raw, address, most)
    }

    fn open(raw: RawSocket, address: SocketAddr, most: Offload) -> io::Result<(Self, Waker)> {
        let socket: UdpSocket = raw.into();

        let (line, wake) = UnixStream::pair()?;
        line.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let waker = Waker {
            line: Arc::new(line),
            pending: Arc::new(AtomicBool::new(false)),
        };
        let socket = Self {
            io: Io::new(&socket, address, most),
            socket,
            local: 0,
            wake,
            waker: waker.clone(),
        };
        Ok((socket, waker))
    }

    /// What is in use; the kernel may have refused more.
    #[must_use]
    pub fn offload(&self) -> Offload {
        match &self.io {
            Io::Single { .. } => Offload::Single,
            #[cfg(target_os = "linux")]
            Io::Batched { sender, .. } => sender.offload(),
        }
    }

    /// Number of its address among the shard's own; 0: the main socket.
    #[must_use]
    pub const fn local(&self) -> via::Local {
        self.local
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The system's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sleeps until a datagram is there or at a socket beside it, somebody woke it, or the time is over
    /// (`None`: forever).
    ///
    /// # Errors
    /// The system's; an interruption is not one.
    pub fn wait(&mut self, beside: &[Self], timeout: Option<Duration>) -> io::Result<()> {
        // Datagrams that were received and not handed over do not show on the socket.
        let has_more = self.has_more() || beside.iter().any(Self::has_more);
        let timeout = if has_more {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        let line = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let own = [self.wake.as_raw_fd(), self.socket.as_raw_fd()].map(line);
        let is_woken = if beside.is_empty() {
            let mut lines = own;
            wait_for(&mut lines, timeout)?;
            lines[0].revents != 0
        } else {
            let others = beside.iter().map(|socket| line(socket.socket.as_raw_fd()));
            let mut lines: Vec<_> = own.into_iter().chain(others).collect();
            wait_for(&mut lines, timeout)?;
            lines[0].revents != 0
        };
        if is_woken {
            let mut drained = [0; 64];
            while matches!(self.wake.read(&mut drained), Ok(count) if count == drained.len()) {}
            // Lowered after the line is empty, or a wake-up in between would be read here and leave
            // the flag up for good. Whoever found it up before has queued what the caller takes next.
            self.waker.pending.swap(false, Ordering::AcqRel);
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        match &self.io {
            Io::Single { .. } => false,
            #[cfg(target_os = "linux")]
            Io::Batched { receiver, .. } => receiver.has_more(),
        }
    }

    /// Makes the next [`Self::wait`] return at once.
    pub fn wake_self(&self) {
        self.waker.wake();
    }

    /// Hands over the datagrams that are there, up to a batch or until `handle` says that it has
    /// enough (`false`); returns how many. IPv4 addresses are given as such on any socket.
    ///
    /// # Errors
    /// The system's. Errors of earlier sends that the kernel reports here are skipped.
    pub fn receive(
        &mut self,
        handle: impl FnMut(SocketAddr, &mut [u8]) -> bool,
    ) -> io::Result<usize> {
        match &mut self.io {
            Io::Single { buffer } => receive_single(&self.socket, &mut buffer[..], handle),
            #[cfg(target_os = "linux")]
            Io::Batched { receiver, .. } => receiver.receive(&self.socket, BATCH_MAX, handle),
        }
    }

    /// Sends everything in the queue that goes by this address; the caller clears it. Order is kept per
    /// destination.
    pub fn send(&mut self, queue: &TransmitQueue) -> Sent {
        self.send_while(queue, &|| true)
    }

    /// As [`Self::send`], as long as `may` allows: asked right before each call into the kernel, since the
    /// process may have been stopped anywhere before. What it forbids counts as dropped.
    pub fn send_while(&mut self, queue: &TransmitQueue, may: &dyn Fn() -> bool) -> Sent {
        #[cfg(target_os = "linux")]
        if let Io::Batched { sender, .. } = &mut self.io {
            return sender.send(&self.socket, self.local, queue, may);
        }
        send_single(&self.socket, self.local, queue, may)
    }
}

impl Io {
    #[cfg(target_os = "linux")]
    fn new(socket: &UdpSocket, address: SocketAddr, most: Offload) -> Self {
        if most == Offload::Single {
            return Self::single();
        }
        let segments = most == Offload::Segments;
        Self::Batched {
            receiver: Box::new(receive::Receiver::new(
                segments && receive::enable_gro(socket),
            )),
            sender: Box::new(send::Sender::new(
                address.is_ipv6(),
                segments && send::knows_gso(socket),
            )),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn new(_: &UdpSocket, _: SocketAddr, _: Offload) -> Self {
        Self::single()
    }

    fn single() -> Self {
        Self::Single {
            buffer: Box::new([0; DATAGRAM_BYTES_MAX]),
        }
    }
}

fn receive_single(
    socket: &UdpSocket,
    buffer: &mut [u8],
    mut handle: impl FnMut(SocketAddr, &mut [u8]) -> bool,
) -> io::Result<usize> {
    let mut count = 0;
    while count < BATCH_MAX {
        match socket.recv_from(buffer) {
            Ok((length, from)) => {
                count += 1;
                if !handle(canonical(from), &mut buffer[..length]) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if is_of_a_send(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn raw_socket(address: SocketAddr) -> io::Result<RawSocket> {
    let raw = RawSocket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        raw.set_only_v6(false)?;
    }
    // Refused sizes are not fatal: small buffers lose packets only under load.
    let _ = raw.set_recv_buffer_size(BUFFER_BYTES);
    let _ = raw.set_send_buffer_size(BUFFER_BYTES);
    raw.set_nonblocking(true)?;
    Ok(raw)
}

fn send_single(
    socket: &UdpSocket,
    local: via::Local,
    queue: &TransmitQueue,
    may: &dyn Fn() -> bool,
) -> Sent {
    let mut report = Sent::default();
    let is_ipv6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
    let datagrams = queue.datagrams().iter();
    for datagram in datagrams.filter(|datagram| via::local(datagram.to) == local) {
        let to = via::plain(datagram.to);
        let to = if is_ipv6 { mapped(to) } else { to };
        let mut waited = false;
        loop {
            if !may() {
                report.dropped += 1;
                break;
            }
            report.calls += 1;
            match socket.send_to(queue.bytes(datagram), to) {
                Ok(_) => report.sent += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    wait_for_room(socket);
                    continue;
                }
                Err(_) => report.dropped += 1,
            }
            break;
        }
    }
    report
}

/// Whether the kernel reports an earlier datagram that did not arrive, or was interrupted.
fn is_of_a_send(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::Interrupted
    )
}

/// An IPv4 address as such, also where an IPv6 socket shows it mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        other => other,
    }
}

/// An address as an IPv6 socket needs it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 @ SocketAddr::V6(_) => v6,
    }
}

/// Waits a moment for room in the send buffer.
fn wait_for_room(socket: &UdpSocket) {
    let mut line = [libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    }];
    // Without room the send is tried again and fails, which is the answer.
    let _ = wait_for(&mut line, Some(ROOM_WAIT));
}

#[expect(
    unsafe_code,
    reason = "ppoll waits with the resolution that pacing needs"
)]
fn wait_for(lines: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos() as libc::c_long,
    });
    let pointer = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `lines` and `timeout` outlive the call, and the length is that of `lines`.
    let result = unsafe {
        libc::ppoll(
            lines.as_mut_ptr(),
            lines.len() as libc::nfds_t,
            pointer,
            std::ptr::null(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}
