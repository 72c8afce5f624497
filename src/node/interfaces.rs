//! The host's own addresses, from which media candidates are made, and the interface that an address
//! belongs to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of interfaces that are up, loopback and link-local ones left out, in the system's order.
#[must_use]
pub fn addresses() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = all()
        .into_iter()
        .filter(|address| is_usable(*address))
        .collect();
    found.dedup();
    found
}

fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_loopback() && !address.is_link_local() && !address.is_unspecified()
        }
        IpAddr::V6(address) => {
            !address.is_loopback() && !address.is_unspecified() && !address.is_unicast_link_local()
        }
    }
}

/// An interface.
#[cfg(target_os = "linux")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number in the kernel.
    pub index: u32,
    /// Its Ethernet address, if it has one.
    pub hardware: Option<[u8; 6]>,
}

/// The interface that is up and has this name, or else has an address in the network of `address`.
#[cfg(target_os = "linux")]
#[must_use]
pub fn link_for(address: Ipv4Addr, name: Option<&str>) -> Option<Link> {
    let mut fitting = None;
    let mut hardware = Vec::new();
    for_each(|entry| match entry {
        Entry::V4 {
            name: of,
            address: own,
            mask,
        } => {
            let is_fit = match name {
                Some(name) => name == of,
                None => {
                    let same = own.to_bits() & mask.to_bits() == address.to_bits() & mask.to_bits();
                    same && own != address && mask != Ipv4Addr::BROADCAST
                }
            };
            if is_fit && fitting.is_none() {
                fitting = Some(of.to_owned());
            }
        }
        Entry::Hardware {
            name,
            index,
            address,
        } => hardware.push((name.to_owned(), index, address)),
        Entry::V6(_) => {}
    });
    let wanted = fitting.or_else(|| name.map(str::to_owned))?;
    let (name, index, hardware) = hardware.into_iter().find(|(name, ..)| *name == wanted)?;
    Some(Link {
        name,
        index,
        hardware,
    })
}

/// What the system says of an interface that is up.
enum Entry<'a> {
    V4 {
        #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
        name: &'a str,
        address: Ipv4Addr,
        #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
        mask: Ipv4Addr,
    },
    V6(Ipv6Addr),
    #[cfg(target_os = "linux")]
    Hardware {
        name: &'a str,
        index: u32,
        address: Option<[u8; 6]>,
    },
}

fn all() -> Vec<IpAddr> {
    let mut found = Vec::new();
    for_each(|entry| match entry {
        Entry::V4 { address, .. } => found.push(address.into()),
        Entry::V6(address) => found.push(address.into()),
        #[cfg(target_os = "linux")]
        Entry::Hardware { .. } => {}
    });
    found
}

#[expect(
    unsafe_code,
    reason = "the list of interfaces comes from the C library"
)]
fn for_each(mut tell: impl FnMut(Entry<'_>)) {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the pointer; it is freed below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return;
    }
    let mut next = list;
    while !next.is_null() {
        // SAFETY: the list's entries stay valid until `freeifaddrs`, and `next` is not null.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() || entry.ifa_flags & libc::IFF_UP as libc::c_uint == 0 {
            continue;
        }
        // SAFETY: every entry has a name, which ends with a zero.
        let name = unsafe { std::ffi::CStr::from_ptr(entry.ifa_name) };
        let name = name.to_str().unwrap_or_default();
        // SAFETY: the address is not null, and its family says which of the types it is; a netmask is of
        // the same.
        unsafe {
            let ipv4 = |of: *mut libc::sockaddr| {
                let of = &*of.cast::<libc::sockaddr_in>();
                Ipv4Addr::from(of.sin_addr.s_addr.to_ne_bytes())
            };
            match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => tell(Entry::V4 {
                    name,
                    address: ipv4(entry.ifa_addr),
                    mask: if entry.ifa_netmask.is_null() {
                        Ipv4Addr::BROADCAST
                    } else {
                        ipv4(entry.ifa_netmask)
                    },
                }),
                libc::AF_INET6 => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_in6>();
                    tell(Entry::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)));
                }
                #[cfg(target_os = "linux")]
                libc::AF_PACKET => {
                    let link = &*entry.ifa_addr.cast::<libc::sockaddr_ll>();
                    let address = link.sll_addr.first_chunk::<6>().copied();
                    tell(Entry::Hardware {
                        name,
                        index: link.sll_ifindex.unsigned_abs(),
                        address: address.filter(|a| link.sll_halen == 6 && *a != [0; 6]),
                    });
                }
                _ => {}
            }
        }
    }
    // SAFETY: `list` came from `getifaddrs` and is freed once.
    unsafe { libc::freeifaddrs(list) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_exists_and_is_left_out() {
        assert!(all().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(addresses().iter().all(|address| !address.is_loopback()));
    }
}
