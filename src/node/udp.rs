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

    /// As [`Self::bind`], using no more than `most`.
    ///
    /// # Errors
    /// The system's.
    pub fn bind_with(address: SocketAddr, most: Offload) -> io::Result<(Self, Waker)> {
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
        raw.bind(&address.into())?;
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

    /// Where it is bound.
    ///
    /// # Errors
    /// The system's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sleeps until a datagram is there, somebody woke it, or the time is over (`None`: forever).
    ///
    /// # Errors
    /// The system's; an interruption is not one.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = match &self.io {
            Io::Single { .. } => timeout,
            // Datagrams that were received and not handed over do not show on the socket.
            #[cfg(target_os = "linux")]
            Io::Batched { receiver, .. } if receiver.has_more() => Some(Duration::ZERO),
            #[cfg(target_os = "linux")]
            Io::Batched { .. } => timeout,
        };
        let mut lines = [self.socket.as_raw_fd(), self.wake.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        wait_for(&mut lines, timeout)?;
        if lines[1].revents != 0 {
            let mut drained = [0; 64];
            while matches!(self.wake.read(&mut drained), Ok(count) if count == drained.len()) {}
            // Lowered after the line is empty, or a wake-up in between would be read here and leave
            // the flag up for good. Whoever found it up before has queued what the caller takes next.
            self.waker.pending.swap(false, Ordering::AcqRel);
        }
        Ok(())
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

    /// Sends everything in the queue; the caller clears it. Order is kept per destination.
    pub fn send(&mut self, queue: &TransmitQueue) -> Sent {
        #[cfg(target_os = "linux")]
        if let Io::Batched { sender, .. } = &mut self.io {
            return sender.send(&self.socket, queue);
        }
        send_single(&self.socket, queue)
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

fn send_single(socket: &UdpSocket, queue: &TransmitQueue) -> Sent {
    let mut report = Sent::default();
    let is_ipv6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
    for datagram in queue.datagrams() {
        let to = if is_ipv6 {
            mapped(datagram.to)
        } else {
            datagram.to
        };
        let mut waited = false;
        loop {
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
