//! Datagrams out with `sendmmsg`: many messages in a call and, with GSO, up to 54 datagrams to one
//! destination in a message that the kernel cuts up late.
//!
//! A message is a run of datagrams of one size, of which the last may be shorter. What the kernel
//! will not cut, for a path without the means or a datagram longer than its MTU, is sent again as
//! single datagrams, and that destination is not tried again.

use std::collections::HashSet;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use flotilla_media::transmit::{Datagram, TransmitQueue};
use flotilla_media::via;
use socket2::SockAddr;

use super::group::Groups;
use super::{Offload, Sent, mapped, send_single, wait_for_room};

/// Messages in one call.
const MESSAGES: usize = 128;
/// Datagrams in one call.
const IOVECS: usize = 1024;
/// Datagrams in one message: what fits at 1,200 bytes, and below the kernel's 64.
const SEGMENTS_MAX: usize = 54;
/// Bytes in one message: an IPv4 datagram's limit.
const MESSAGE_BYTES_MAX: usize = 65_507;
/// Destinations remembered as unfit for GSO; forgotten together when there are more.
const UNFIT_MAX: usize = 1024;
/// So many unfit destinations in a row, with none that was fit, are the socket's fault.
const UNFIT_IN_A_ROW_MAX: u32 = 8;

/// Whether the kernel knows GSO.
#[expect(unsafe_code, reason = "the standard library has no such option")]
pub(super) fn knows_gso(socket: &UdpSocket) -> bool {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` are live, and `len` is the length of `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    };
    result == 0
}

/// Groups and sends.
pub(super) struct Sender {
    is_ipv6: bool,
    segments: bool,
    /// The kernel has no `sendmmsg`.
    single: bool,
    groups: Groups,
    messages: Vec<Message>,
    iovecs: Vec<Piece>,
    kernel: Kernel,
    unfit: HashSet<SocketAddr>,
    unfit_in_a_row: u32,
}

/// Datagrams to one destination that go as one message.
#[derive(Clone, Copy)]
struct Message {
    to: SocketAddr,
    /// Its first datagram in the queue; the others are behind it in the chain.
    first: usize,
    datagrams: usize,
    /// Length of each but the last.
    size: u16,
    /// Its pieces.
    pieces: (usize, usize),
}

/// A part of the queue's bytes.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
}

/// The kernel's view; filled in anew for each call.
struct Kernel {
    headers: Box<[libc::mmsghdr]>,
    names: Vec<SockAddr>,
    iovecs: Vec<libc::iovec>,
    controls: Box<[Control]>,
}

#[expect(unsafe_code, reason = "the pointers are only used within a call")]
// SAFETY: the pointers are written and used within `Kernel::send`, by the thread that runs it.
unsafe impl Send for Kernel {}

/// Control data with a segment size.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    size: u16,
    padding: [u8; 6],
}

#[expect(
    unsafe_code,
    reason = "C structs have private padding on some platforms"
)]
const fn zeroed<T: Copy>() -> T {
    // SAFETY: only used for the plain C structs of this module's socket calls, which are integers
    // and pointers throughout.
    unsafe { MaybeUninit::<T>::zeroed().assume_init() }
}

/// What the kernel says of a message that it did not take.
enum Refusal {
    /// It cannot cut it.
    Uncut,
    /// No room now.
    Full,
    /// Interrupted; again.
    Again,
    /// There is no such call.
    NoBatches,
    /// Not to that destination, or not this.
    Lost,
}

impl Refusal {
    fn of(error: &io::Error, is_cut: bool) -> Self {
        match error.raw_os_error() {
            Some(libc::EINTR) => Self::Again,
            Some(libc::EAGAIN | libc::ENOBUFS) => Self::Full,
            Some(libc::ENOSYS) => Self::NoBatches,
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP) if is_cut => {
                Self::Uncut
            }
            _ => Self::Lost,
        }
    }
}

impl Sender {
    pub(super) fn new(is_ipv6: bool, segments: bool) -> Self {
        Self {
            is_ipv6,
            segments,
            single: false,
            groups: Groups::default(),
            messages: Vec::with_capacity(MESSAGES),
            iovecs: Vec::with_capacity(IOVECS),
            kernel: Kernel {
                headers: vec![zeroed(); MESSAGES].into(),
                names: Vec::with_capacity(MESSAGES),
                iovecs: Vec::with_capacity(IOVECS),
                controls: vec![zeroed(); MESSAGES].into(),
            },
            unfit: HashSet::new(),
            unfit_in_a_row: 0,
        }
    }

    pub(super) const fn offload(&self) -> Offload {
        match (self.single, self.segments) {
            (true, _) => Offload::Single,
            (false, false) => Offload::Batches,
            (false, true) => Offload::Segments,
        }
    }

    pub(super) fn send(
        &mut self,
        socket: &UdpSocket,
        local: via::Local,
        queue: &TransmitQueue,
        may: &dyn Fn() -> bool,
    ) -> Sent {
        if self.single {
            return send_single(socket, local, queue, may);
        }
        let mut report = Sent::default();
        let datagrams = queue.datagrams();
        let mut groups = mem::take(&mut self.groups);
        groups.fill(datagrams);
        let groups_here = groups.groups().iter();
        for group in groups_here.filter(|group| via::local(group.to) == local) {
            let to = via::plain(group.to);
            let cuts = self.segments && !self.unfit.contains(&to);
            let mut at = Some(group.first);
            while let Some(first) = at {
                at = self.add_message(to, first, cuts, datagrams, &groups);
                if self.messages.len() == MESSAGES || self.iovecs.len() + SEGMENTS_MAX > IOVECS {
                    self.flush(socket, queue, &groups, &mut report, may);
                }
            }
        }
        self.flush(socket, queue, &groups, &mut report, may);
        self.groups = groups;
        report
    }

    /// Makes a message of as many datagrams from `first` on as go in one; where to go on.
    fn add_message(
        &mut self,
        to: SocketAddr,
        first: usize,
        cuts: bool,
        datagrams: &[Datagram],
        groups: &Groups,
    ) -> Option<usize> {
        let pieces_from = self.iovecs.len();
        let size = datagrams[first].len;
        let (mut count, mut bytes) = (0, 0);
        let mut at = Some(first);
        while let Some(index) = at {
            let datagram = &datagrams[index];
            let len = usize::from(datagram.len);
            let fits =
                count < SEGMENTS_MAX && datagram.len <= size && bytes + len <= MESSAGE_BYTES_MAX;
            if count > 0 && !(cuts && fits) {
                break;
            }
            self.add_piece(pieces_from, datagram.start as usize, len);
            count += 1;
            bytes += len;
            at = groups.next(index);
            if datagram.len < size {
                break;
            }
        }
        self.messages.push(Message {
            to,
            first,
            datagrams: count,
            size,
            pieces: (pieces_from, self.iovecs.len()),
        });
        at
    }

    /// Adds bytes to the message whose pieces begin at `from`, to its last piece if they follow it.
    fn add_piece(&mut self, from: usize, start: usize, len: usize) {
        if self.iovecs.len() > from
            && let Some(last) = self.iovecs.last_mut()
            && last.start + last.len == start
        {
            last.len += len;
            return;
        }
        self.iovecs.push(Piece { start, len });
    }

    /// Sends the messages made so far.
    fn flush(
        &mut self,
        socket: &UdpSocket,
        queue: &TransmitQueue,
        groups: &Groups,
        report: &mut Sent,
        may: &dyn Fn() -> bool,
    ) {
        if !self.messages.is_empty() {
            self.kernel
                .prepare(&self.messages, &self.iovecs, queue, self.is_ipv6);
        }
        let (mut at, mut waited) = (0, false);
        while let Some(message) = self.messages.get(at).copied() {
            if !may() {
                let left = self.messages[at..].iter();
                report.dropped += left.map(|message| message.datagrams).sum::<usize>();
                break;
            }
            report.calls += 1;
            match self.kernel.send(socket, at, self.messages.len()) {
                // The kernel says 0 of something that it would have to say an error of.
                Ok(0) => {
                    report.dropped += message.datagrams;
                    at += 1;
                }
                Ok(taken) => {
                    let taken = &self.messages[at..at + taken];
                    report.sent += taken.iter().map(|message| message.datagrams).sum::<usize>();
                    if taken.iter().any(|message| message.datagrams > 1) {
                        self.unfit_in_a_row = 0;
                    }
                    at += taken.len();
                    waited = false;
                }
                Err(error) => match Refusal::of(&error, message.datagrams > 1) {
                    Refusal::Again => {}
                    Refusal::Full if !waited => {
                        waited = true;
                        wait_for_room(socket);
                    }
                    Refusal::Uncut => {
                        self.note_unfit(message.to);
                        self.send_uncut(socket, queue, groups, message, report);
                        at += 1;
                    }
                    Refusal::NoBatches => {
                        self.single = true;
                        self.send_uncut(socket, queue, groups, message, report);
                        at += 1;
                    }
                    Refusal::Full | Refusal::Lost => {
                        report.dropped += message.datagrams;
                        at += 1;
                    }
                },
            }
        }
        self.messages.clear();
        self.iovecs.clear();
    }

    fn note_unfit(&mut self, to: SocketAddr) {
        self.unfit_in_a_row += 1;
        if self.unfit_in_a_row >= UNFIT_IN_A_ROW_MAX {
            self.segments = false;
            tracing::info!("the kernel does not cut datagrams for this socket");
        }
        if self.unfit.len() >= UNFIT_MAX {
            self.unfit.clear();
        }
        self.unfit.insert(to);
    }

    /// Sends a message's datagrams one by one.
    fn send_uncut(
        &self,
        socket: &UdpSocket,
        queue: &TransmitQueue,
        groups: &Groups,
        message: Message,
        report: &mut Sent,
    ) {
        let to = if self.is_ipv6 {
            mapped(message.to)
        } else {
            message.to
        };
        let chain = std::iter::successors(Some(message.first), |at| groups.next(*at));
        for index in chain.take(message.datagrams) {
            report.calls += 1;
            match socket.send_to(queue.bytes(&queue.datagrams()[index]), to) {
                Ok(_) => report.sent += 1,
                Err(_) => report.dropped += 1,
            }
        }
    }
}

impl Kernel {
    /// Describes messages to the kernel. No vector grows: they hold a full call's worth.
    fn prepare(
        &mut self,
        messages: &[Message],
        pieces: &[Piece],
        queue: &TransmitQueue,
        is_ipv6: bool,
    ) {
        let arena = queue.arena();
        self.names.clear();
        self.iovecs.clear();
        self.names.extend(messages.iter().map(|message| {
            SockAddr::from(if is_ipv6 {
                mapped(message.to)
            } else {
                message.to
            })
        }));
        self.iovecs.extend(pieces.iter().map(|piece| {
            let bytes = &arena[piece.start..piece.start + piece.len];
            libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            }
        }));
        let kernel = self
            .headers
            .iter_mut()
            .zip(&mut *self.controls)
            .zip(&self.names);
        for (message, ((header, control), name)) in messages.iter().zip(kernel) {
            let iovecs = &mut self.iovecs[message.pieces.0..message.pieces.1];
            header.msg_len = 0;
            header.msg_hdr = zeroed();
            header.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = name.len();
            header.msg_hdr.msg_iov = iovecs.as_mut_ptr();
            header.msg_hdr.msg_iovlen = iovecs.len() as _;
            if message.datagrams > 1 {
                *control = Control::new(message.size);
                header.msg_hdr.msg_control = std::ptr::from_mut(control).cast();
                header.msg_hdr.msg_controllen = mem::size_of::<Control>() as _;
            }
        }
    }

    /// Sends the prepared messages `from..to`; how many the kernel took.
    #[expect(
        unsafe_code,
        reason = "the standard library sends one message per call"
    )]
    fn send(&mut self, socket: &UdpSocket, from: usize, to: usize) -> io::Result<usize> {
        let headers = &mut self.headers[from..to];
        // SAFETY: `prepare` pointed the headers to the names, pieces and control data of `self`, which
        // did not change since, and to the queue's bytes, which the caller still borrows. The kernel
        // only reads them.
        let taken = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(taken).map_err(|_| io::Error::last_os_error())
    }
}

impl Control {
    fn new(size: u16) -> Self {
        let mut header: libc::cmsghdr = zeroed();
        header.cmsg_len = (mem::size_of::<libc::cmsghdr>() + mem::size_of::<u16>()) as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        Self {
            header,
            size,
            padding: [0; 6],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_data_has_the_layout_of_the_kernel() {
        let control = Control::new(1200);
        // The macros are plain arithmetic.
        #[expect(unsafe_code, reason = "the macros are unsafe functions")]
        // SAFETY: they only compute.
        let (len, space) = unsafe { (libc::CMSG_LEN(2), libc::CMSG_SPACE(2)) };
        assert_eq!(control.header.cmsg_len as u32, len);
        assert_eq!(mem::size_of::<Control>() as u32, space);
        assert_eq!(
            mem::offset_of!(Control, size),
            mem::size_of::<libc::cmsghdr>()
        );
    }

    /// Sizes of the messages that datagrams of these sizes to one destination make.
    fn runs(sizes: &[usize]) -> Vec<usize> {
        let mut queue = TransmitQueue::new(256);
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        for size in sizes {
            assert!(queue.push(to, &vec![0; *size]));
        }
        let mut sender = Sender::new(false, true);
        let mut groups = Groups::default();
        groups.fill(queue.datagrams());
        let mut at = Some(0);
        while let Some(first) = at {
            at = sender.add_message(to, first, true, queue.datagrams(), &groups);
        }
        sender
            .messages
            .iter()
            .map(|message| message.datagrams)
            .collect()
    }

    #[test]
    fn messages_are_runs_of_one_size_with_a_shorter_end() {
        assert_eq!(runs(&[100, 100, 100]), [3]);
        assert_eq!(runs(&[100, 100, 50, 50, 50, 60]), [3, 2, 1]);
        assert_eq!(runs(&[50, 100, 100, 20, 100]), [1, 3, 1]);
        assert_eq!(runs(&[1200; 120]), [54, 54, 12]);
        assert_eq!(runs(&[1472; 50]), [44, 6]);
    }
}
