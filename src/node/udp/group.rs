//! The datagrams of a queue by destination, in the order they were queued: a chain for each.
//! Kept from call to call, so that nothing is allocated once it has grown to the queue's size.

use std::net::{IpAddr, SocketAddr};

use flotilla_media::transmit::Datagram;

/// No datagram.
const NONE: u32 = u32::MAX;

/// Chains of datagrams.
#[derive(Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// Datagram that follows each one to the same destination.
    next: Vec<u32>,
    /// Open addressing by destination over a power of two. Entries of earlier queues carry another
    /// stamp and count as empty.
    slots: Vec<Slot>,
    stamp: u32,
}

/// One destination.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) to: SocketAddr,
    /// Its oldest datagram.
    pub(super) first: usize,
    last: u32,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    stamp: u32,
    group: u32,
}

impl Groups {
    /// Sorts a queue's datagrams.
    pub(super) fn fill(&mut self, datagrams: &[Datagram]) {
        self.groups.clear();
        self.next.clear();
        self.next.resize(datagrams.len(), NONE);
        let slots = (datagrams.len() * 2).next_power_of_two().max(64);
        if self.slots.len() < slots {
            self.slots = vec![Slot::default(); slots];
        }
        self.stamp = self.stamp.wrapping_add(1);
        if self.stamp == 0 {
            self.slots.fill(Slot::default());
            self.stamp = 1;
        }
        let mut last: Option<usize> = None;
        for (index, datagram) in datagrams.iter().enumerate() {
            // Frames come whole: mostly it goes where the one before it goes.
            last = Some(match last {
                Some(group) if self.groups[group].to == datagram.to => {
                    self.append(group, index);
                    group
                }
                _ => self.add(index, datagram.to),
            });
        }
    }

    /// The destinations, in the order of their first datagrams.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The datagram that follows one to the same destination.
    pub(super) fn next(&self, index: usize) -> Option<usize> {
        let next = self.next[index];
        (next != NONE).then_some(next as usize)
    }

    fn append(&mut self, group: usize, index: usize) {
        let group = &mut self.groups[group];
        self.next[group.last as usize] = index as u32;
        group.last = index as u32;
    }

    /// Adds a datagram to the group of its destination, a new one if need be; which one.
    fn add(&mut self, index: usize, to: SocketAddr) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash(to) as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.stamp != self.stamp {
                self.slots[at] = Slot {
                    stamp: self.stamp,
                    group: self.groups.len() as u32,
                };
                self.groups.push(Group {
                    to,
                    first: index,
                    last: index as u32,
                });
                return self.groups.len() - 1;
            }
            let group = slot.group as usize;
            if self.groups[group].to == to {
                self.append(group, index);
                return group;
            }
            at = (at + 1) & mask;
        }
    }
}

/// Mixes an address; clients cannot gain by collisions, their addresses cost them sockets.
fn hash(address: SocketAddr) -> u64 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(32)
        }
    };
    let mixed = (ip ^ u64::from(address.port()) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(port: u16) -> Datagram {
        Datagram {
            to: SocketAddr::from(([10, 0, 0, 1], port)),
            start: 0,
            len: 1,
        }
    }

    #[test]
    fn chains_keep_the_order_of_each_destination() {
        let mut groups = Groups::default();
        for round in 0..3 {
            let ports: Vec<u16> = (0..500)
                .map(|index| 1000 + (index / 3 * 7 + round) % 61)
                .collect();
            let datagrams: Vec<_> = ports.iter().map(|port| datagram(*port)).collect();
            groups.fill(&datagrams);
            assert_eq!(groups.groups().len(), 61);
            let mut seen = 0;
            for group in groups.groups() {
                let chain: Vec<_> =
                    std::iter::successors(Some(group.first), |at| groups.next(*at)).collect();
                let expected: Vec<_> = (0..500)
                    .filter(|at| ports[*at] == group.to.port())
                    .collect();
                assert_eq!(chain, expected);
                seen += chain.len();
            }
            assert_eq!(seen, 500);
        }
        groups.fill(&[]);
        assert!(groups.groups().is_empty());
    }

    #[test]
    fn stamps_may_wrap() {
        let mut groups = Groups {
            stamp: u32::MAX - 1,
            ..Groups::default()
        };
        for _ in 0..4 {
            groups.fill(&[datagram(1), datagram(2), datagram(1)]);
            assert_eq!(groups.groups().len(), 2);
            assert_eq!(groups.next(0), Some(2));
        }
    }
}
