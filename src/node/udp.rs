//! A shard's UDP socket: waiting, receiving and sending in batches.
//!
//! Owned by one [`crate::shard`] thread; other threads wake it through a [`Waker`]. What a datagram
//! means is the engine's business.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotilla_media::transmit::TransmitQueue;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

/// Largest datagram taken; media and its transport stay below the path's 1,500 bytes.
const DATAGRAM_BYTES_MAX: usize = 2048;
/// Datagrams per call of [`Socket::receive`]: more delay timers, fewer cost system calls.
const BATCH_MAX: usize = 256;
/// Asked of the kernel for each direction; it may grant less.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The socket and its wake-up line.
pub struct Socket {
    socket: UdpSocket,
    wake: UnixStream,
    waker: Waker,
    buffer: Box<[u8; DATAGRAM_BYTES_MAX]>,
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
    /// Binds.
    ///
    /// # Errors
    /// The system's, for example `AddrInUse`.
    pub fn bind(address: SocketAddr) -> io::Result<(Self, Waker)> {
        let raw = RawSocket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        // Refused sizes are not fatal: small buffers lose packets only under load.
        let _ = raw.set_recv_buffer_size(BUFFER_BYTES);
        let _ = raw.set_send_buffer_size(BUFFER_BYTES);
        raw.set_nonblocking(true)?;
        raw.bind(&address.into())?;
        let (line, wake) = UnixStream::pair()?;
        line.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let waker = Waker {
            line: Arc::new(line),
            pending: Arc::new(AtomicBool::new(false)),
        };
        let socket = Self {
            socket: raw.into(),
            wake,
            waker: waker.clone(),
            buffer: Box::new([0; DATAGRAM_BYTES_MAX]),
        };
        Ok((socket, waker))
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
        let mut lines = [self.socket.as_raw_fd(), self.wake.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        wait_for(&mut lines, timeout)?;
        if lines[1].revents != 0 {
            let mut drained = [0; 64];
            // Lowered before draining the command queue: a command queued later wakes again.
            self.waker.pending.store(false, Ordering::Release);
            while matches!(self.wake.read(&mut drained), Ok(count) if count == drained.len()) {}
        }
        Ok(())
    }

    /// Makes the next [`Self::wait`] return at once.
    pub fn wake_self(&self) {
        self.waker.wake();
    }

    /// Hands over the datagrams that are there, up to a batch or until `handle` says that it has
    /// enough (`false`); returns how many.
    ///
    /// # Errors
    /// The system's. Errors of earlier sends that the kernel reports here are skipped.
    pub fn receive(
        &mut self,
        mut handle: impl FnMut(SocketAddr, &mut [u8]) -> bool,
    ) -> io::Result<usize> {
        for count in 0..BATCH_MAX {
            match self.socket.recv_from(&mut self.buffer[..]) {
                Ok((length, from)) => {
                    if !handle(from, &mut self.buffer[..length]) {
                        return Ok(count + 1);
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(count),
                    io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(BATCH_MAX)
    }

    /// Sends everything in the queue; the caller clears it.
    pub fn send(&mut self, queue: &TransmitQueue) -> Sent {
        let mut report = Sent::default();
        for datagram in queue.datagrams() {
            report.calls += 1;
            match self.socket.send_to(queue.bytes(datagram), datagram.to) {
                Ok(_) => report.sent += 1,
                Err(_) => report.dropped += 1,
            }
        }
        report
    }
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn receives_what_was_sent_and_wakes() {
        let (mut left, waker) =
            Socket::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
        let to = left.local_address().expect("bound");
        let right = UdpSocket::bind("127.0.0.1:0").expect("bind");
        right.send_to(b"hello", to).expect("send");
        left.wait(Some(Duration::from_secs(5))).expect("wait");
        let mut seen = Vec::new();
        let count = left
            .receive(|_, bytes| {
                seen.push(bytes.to_vec());
                true
            })
            .expect("receive");
        assert_eq!((count, seen), (1, vec![b"hello".to_vec()]));

        let started = Instant::now();
        waker.wake();
        left.wait(Some(Duration::from_secs(5))).expect("wait");
        assert!(started.elapsed() < Duration::from_secs(4));
        left.wait(Some(Duration::from_millis(20))).expect("wait");
        assert!(
            started.elapsed() >= Duration::from_millis(20),
            "wake-up consumed"
        );
    }
}
