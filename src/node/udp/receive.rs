//! Datagrams in with `recvmmsg`: many messages in a call and, with GRO, many datagrams of one sender
//! in a message.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;

use super::{canonical, is_of_a_send};

/// Messages in one call. More brings nothing measurable and takes 64 kB each.
const MESSAGES: usize = 32;
/// What a message of joined datagrams may have.
const JOINED_BYTES_MAX: usize = 65_536;
/// What a message of one datagram may have here; longer ones are cut and then of no use.
const SINGLE_BYTES_MAX: usize = 2048;
/// Words of control data for a message: one `UDP_GRO` with room to spare.
const CONTROL_WORDS: usize = 8;

/// Asks the kernel to join datagrams; whether it does.
pub(super) fn enable_gro(socket: &UdpSocket) -> bool {
    set_option(socket, libc::UDP_GRO, 1)
}

#[expect(unsafe_code, reason = "the standard library has no such option")]
fn set_option(socket: &UdpSocket, option: libc::c_int, value: libc::c_int) -> bool {
    // SAFETY: `value` is a live `c_int` and the length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            option,
            std::ptr::from_ref(&value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result == 0
}

/// Receives and hands over.
pub(super) struct Receiver {
    message_bytes: usize,
    buffer: Box<[u8]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[[u64; CONTROL_WORDS]]>,
    headers: Headers,
    /// Messages of the last call.
    filled: usize,
    /// The message to go on with, and where in it.
    message: usize,
    offset: usize,
}

/// The kernel's view of the buffers; filled in anew for each call.
struct Headers {
    iovecs: Box<[libc::iovec]>,
    messages: Box<[libc::mmsghdr]>,
}

#[expect(unsafe_code, reason = "the pointers are only used within a call")]
// SAFETY: the pointers are written and used within `Receiver::fill`, by the thread that runs it.
unsafe impl Send for Headers {}

/// A value of a C struct for which all zeros is a good one.
#[expect(
    unsafe_code,
    reason = "C structs have private padding on some platforms"
)]
const fn zeroed<T: Copy>() -> T {
    // SAFETY: only used for the plain C structs of this module's socket calls, which are integers
    // and pointers throughout.
    unsafe { MaybeUninit::<T>::zeroed().assume_init() }
}

impl Receiver {
    /// `joined`: messages may hold more than one datagram.
    pub(super) fn new(joined: bool) -> Self {
        let message_bytes = if joined {
            JOINED_BYTES_MAX
        } else {
            SINGLE_BYTES_MAX
        };
        Self {
            message_bytes,
            buffer: vec![0; MESSAGES * message_bytes].into(),
            names: vec![zeroed(); MESSAGES].into(),
            controls: vec![[0; CONTROL_WORDS]; MESSAGES].into(),
            headers: Headers {
                iovecs: vec![zeroed(); MESSAGES].into(),
                messages: vec![zeroed(); MESSAGES].into(),
            },
            filled: 0,
            message: 0,
            offset: 0,
        }
    }

    /// Whether received datagrams wait to be handed over.
    pub(super) const fn has_more(&self) -> bool {
        self.message < self.filled
    }

    /// Hands over about `most` datagrams, or fewer if there are no more or `handle` has enough.
    pub(super) fn receive(
        &mut self,
        socket: &UdpSocket,
        most: usize,
        mut handle: impl FnMut(SocketAddr, &mut [u8]) -> bool,
    ) -> io::Result<usize> {
        let mut count = 0;
        loop {
            while self.has_more() {
                let (handed, wants_more) = self.hand_over(&mut handle);
                count += handed;
                if !wants_more {
                    return Ok(count);
                }
            }
            // A call that did not fill its messages has emptied the socket.
            let drained = self.filled != 0 && self.filled < MESSAGES;
            self.filled = 0;
            if count >= most || (drained && count > 0) {
                return Ok(count);
            }
            match self.fill(socket) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) if is_of_a_send(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Hands over the rest of the current message; how many datagrams, and whether more are wanted.
    fn hand_over(
        &mut self,
        handle: &mut impl FnMut(SocketAddr, &mut [u8]) -> bool,
    ) -> (usize, bool) {
        let header = &self.headers.messages[self.message];
        let len = header.msg_len as usize;
        let from = address(&self.names[self.message]);
        let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let segment = segment_size(&header.msg_hdr, &self.controls[self.message]).unwrap_or(len);
        let start = self.message * self.message_bytes;
        let mut count = 0;
        if let Some(from) = from.filter(|_| !cut) {
            // An empty datagram is one, too, but nobody's.
            while self.offset < len {
                let end = (self.offset + segment.max(1)).min(len);
                let datagram = &mut self.buffer[start + self.offset..start + end];
                self.offset = end;
                count += 1;
                if !handle(from, datagram) {
                    self.finish_if(len);
                    return (count, false);
                }
            }
        }
        self.finish_if(self.offset);
        (count, true)
    }

    /// Goes on to the next message if this one was handed over up to `len`.
    fn finish_if(&mut self, len: usize) {
        if self.offset >= len {
            self.message += 1;
            self.offset = 0;
        }
    }

    #[expect(
        unsafe_code,
        reason = "the standard library receives one message per call"
    )]
    fn fill(&mut self, socket: &UdpSocket) -> io::Result<()> {
        (self.filled, self.message, self.offset) = (0, 0, 0);
        let buffers = self.buffer.chunks_exact_mut(self.message_bytes);
        let parts = buffers.zip(&mut *self.names).zip(&mut *self.controls);
        let headers = self
            .headers
            .iovecs
            .iter_mut()
            .zip(&mut *self.headers.messages);
        for (((buffer, name), control), (iovec, message)) in parts.zip(headers) {
            *iovec = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            };
            message.msg_len = 0;
            message.msg_hdr = zeroed();
            message.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            message.msg_hdr.msg_namelen =
                mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            message.msg_hdr.msg_iov = iovec;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = mem::size_of_val(control) as _;
        }
        // SAFETY: every pointer above is into a buffer of `self` that outlives the call and is not
        // touched meanwhile; the lengths are theirs.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.messages.as_mut_ptr(),
                MESSAGES as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        self.filled = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(())
    }
}

/// The sender of a message.
#[expect(unsafe_code, reason = "an address is a C union by its family")]
fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let pointer = std::ptr::from_ref(name);
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage, which is larger and aligned for all, is this.
            let v4 = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            let ip = u32::from_be(v4.sin_addr.s_addr).into();
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            let (ip, port) = (v6.sin6_addr.s6_addr.into(), u16::from_be(v6.sin6_port));
            let address = SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id);
            Some(canonical(address.into()))
        }
        _ => None,
    }
}

/// Bytes of each datagram of a joined message, the last of which may have fewer.
#[expect(unsafe_code, reason = "control data is a C list")]
fn segment_size(header: &libc::msghdr, control: &[u64; CONTROL_WORDS]) -> Option<usize> {
    debug_assert_eq!(header.msg_control.cast_const(), control.as_ptr().cast());
    // SAFETY: the kernel filled the control data that `header` points to and set its length; the
    // macros stay within it.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(header);
        while !entry.is_null() {
            if (*entry).cmsg_level == libc::SOL_UDP && (*entry).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(entry)
                    .cast::<libc::c_int>()
                    .read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            entry = libc::CMSG_NXTHDR(header, entry);
        }
    }
    None
}
