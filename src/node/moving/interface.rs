//! An IPv4 address on an interface, by rtnetlink, and gratuitous ARP (RFC 826, RFC 5944 §4.6).
//!
//! The address gets a lifetime, which the kernel keeps: if this process dies or is stopped, the address
//! goes by itself. Needs `CAP_NET_ADMIN`, and `CAP_NET_RAW` for the announcement.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, bail};

use super::KEPT;
use crate::interfaces::{self, Link};

/// Ethernet, the only kind of network whose neighbours are told.
const ARPHRD_ETHER: u16 = 1;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ARP_REQUEST: u16 = 1;

pub(super) fn take(address: IpAddr, name: Option<&str>, announce: bool) -> anyhow::Result<()> {
    let (address, link) = find(address, name)?;
    let seconds = KEPT.as_secs() as u32;
    change(libc::RTM_NEWADDR, address, link.index, Some(seconds))
        .with_context(|| format!("{address} cannot be added to {}", link.name))?;
    if announce && let Some(hardware) = link.hardware {
        self::announce(address, link.index, hardware)
            .with_context(|| format!("{address} cannot be announced on {}", link.name))?;
    }
    Ok(())
}

pub(super) fn release(address: IpAddr, name: Option<&str>) -> anyhow::Result<()> {
    let (address, link) = find(address, name)?;
    match change(libc::RTM_DELADDR, address, link.index, None) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other.with_context(|| format!("{address} cannot be removed from {}", link.name)),
    }
}

fn find(address: IpAddr, name: Option<&str>) -> anyhow::Result<(Ipv4Addr, Link)> {
    let IpAddr::V4(address) = address else {
        bail!("{address}: set rtc.floating_command, only IPv4 addresses are moved without one");
    };
    let link = interfaces::link_for(address, name).with_context(|| {
        format!("no interface is in the network of {address}: set rtc.floating_interface")
    })?;
    Ok((address, link))
}

/// Adds or removes an address, and waits for the kernel's answer.
#[expect(
    unsafe_code,
    reason = "netlink is a socket that the standard library has not"
)]
fn change(kind: u16, address: Ipv4Addr, index: u32, seconds: Option<u32>) -> io::Result<()> {
    // SAFETY: a plain system call; the descriptor is owned from here on.
    let socket = unsafe {
        let fd = libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let message = message(kind, address, index, seconds);
    // SAFETY: the pointer and length are the message's.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0_u8; 1024];
    // SAFETY: the pointer and length are the buffer's.
    let received = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            answer.as_mut_ptr().cast(),
            answer.len(),
            0,
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    outcome(&answer[..received])
}

/// The error in an acknowledgement: 0 is none.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let code = answer
        .get(HEADER..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map(|bytes| i32::from_ne_bytes(*bytes));
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;

/// `nlmsghdr`, `ifaddrmsg`, then the address, as local and as interface address, and its lifetime.
fn message(kind: u16, address: Ipv4Addr, index: u32, seconds: Option<u32>) -> Vec<u8> {
    let create = if kind == libc::RTM_NEWADDR {
        libc::NLM_F_CREATE | libc::NLM_F_REPLACE
    } else {
        0
    };
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | create) as u16;
    let mut bytes = Vec::with_capacity(64);
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    // Family, length of the prefix, flags, scope: universe.
    bytes.extend([libc::AF_INET as u8, 32, 0, 0]);
    bytes.extend(index.to_ne_bytes());
    let mut attribute = |kind: u16, value: &[u8]| {
        bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
    };
    attribute(libc::IFA_LOCAL, &address.octets());
    attribute(libc::IFA_ADDRESS, &address.octets());
    if let Some(seconds) = seconds {
        // Preferred and valid; the times of creation and change are the kernel's.
        let mut times = Vec::with_capacity(16);
        for value in [seconds, seconds, 0, 0] {
            times.extend(value.to_ne_bytes());
        }
        attribute(libc::IFA_CACHEINFO, &times);
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes
}

/// Tells everybody on the network that the address is here.
#[expect(unsafe_code, reason = "packet sockets are not in the standard library")]
fn announce(address: Ipv4Addr, index: u32, hardware: [u8; 6]) -> io::Result<()> {
    let protocol = (libc::ETH_P_ARP as u16).to_be();
    // SAFETY: a plain system call; the descriptor is owned from here on.
    let socket = unsafe {
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            libc::c_int::from(protocol),
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let packet = announcement(address, hardware);
    // SAFETY: all zeros is a value of this plain C struct.
    let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = protocol;
    to.sll_ifindex = index as libc::c_int;
    to.sll_halen = 6;
    to.sll_addr[..6].fill(0xff);
    // SAFETY: the pointers and lengths are those of the packet and the address.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A request for the address by the address, which neighbours take note of and nobody answers.
fn announcement(address: Ipv4Addr, hardware: [u8; 6]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(28);
    packet.extend(ARPHRD_ETHER.to_be_bytes());
    packet.extend(ETHERTYPE_IPV4.to_be_bytes());
    packet.extend([6, 4]);
    packet.extend(ARP_REQUEST.to_be_bytes());
    packet.extend(hardware);
    packet.extend(address.octets());
    packet.extend([0; 6]);
    packet.extend(address.octets());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_layout_of_the_kernel() {
        let address = Ipv4Addr::new(10, 79, 0, 201);
        let bytes = message(libc::RTM_NEWADDR, address, 7, Some(3));
        assert_eq!(bytes.len(), HEADER + 8 + 8 + 8 + 20);
        assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(bytes[HEADER..HEADER + 4], [2, 32, 0, 0]);
        assert_eq!(bytes[HEADER + 4..HEADER + 8], 7_u32.to_ne_bytes());
        assert_eq!(bytes[HEADER + 12..HEADER + 16], [10, 79, 0, 201]);
        let shorter = message(libc::RTM_DELADDR, address, 7, None);
        assert_eq!(shorter.len(), HEADER + 8 + 8 + 8);
        let arp = announcement(address, [2, 0, 0, 0, 0, 9]);
        assert_eq!(arp.len(), 28);
        assert_eq!(arp[14..18], arp[24..28], "it asks for itself");
    }

    #[test]
    fn refusals_of_the_kernel_are_errors() {
        let acknowledgement = |code: i32| {
            let mut bytes = vec![0; HEADER];
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert!(outcome(&acknowledgement(0)).is_ok());
        let refused = outcome(&acknowledgement(-libc::EPERM)).expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert!(outcome(&[]).is_err());
    }
}
