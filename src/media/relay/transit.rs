//! Relay packets by way of a third node, while the direct way to a node is cut.
//!
//! ```text
//! byte 0      1..9   9..17    17..25    25..                    last 16
//! first byte  from   target   counter   relay packet, sealed    authentication tag
//! ```
//!
//! The packet inside stays sealed for the node it is meant for. The envelope proves to the node on
//! the way that another node of the cluster asks it, so that nobody else can bounce packets off it;
//! there is a key for each direction, target and start of both ends. The node on the way sends the
//! inside on as it is, and only directly: there is no second detour, so nothing goes in circles.

use std::net::SocketAddr;

use aws_lc_rs::aead::Aad;
use flotilla_model::id::{BootId, NodeId};

use crate::discard::Discard;
use crate::relay::keys::{self, End, ReplayWindow, SaltedKey, TAG_LEN};

/// First byte of a packet by way of a third node.
pub const FIRST_BYTE: u8 = 0xc2;
/// Bytes before the relay packet.
pub const HEAD_LEN: usize = 25;

/// Who asks whom to send a packet on to where.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Course {
    /// Who sealed the packet.
    pub from: NodeId,
    /// For whom.
    pub target: NodeId,
}

/// Key of the envelopes from one node by another one to a third.
fn envelope_key(secret: &[u8; 32], shard: u16, from: End, via: End, target: NodeId) -> SaltedKey {
    let mut info = [0; 42];
    info[..16].copy_from_slice(&from.to_bytes());
    info[16..32].copy_from_slice(&via.to_bytes());
    info[32..40].copy_from_slice(&target.0.to_be_bytes());
    info[40..].copy_from_slice(&shard.to_be_bytes());
    // The envelope names its course, and so needs no tag.
    SaltedKey::derive(secret, b"flotilla relay transit v1", &info).0
}

/// The sending end: a way to one node by another one.
pub struct Detour {
    /// The node on the way, and its start.
    pub via: End,
    /// Where that is reached.
    pub address: SocketAddr,
    course: Course,
    key: SaltedKey,
    counter: u64,
}

impl Detour {
    /// A way whose counter starts at `counter`, which no earlier one between these starts has reached.
    #[must_use]
    pub fn new(
        secret: &[u8; 32],
        shard: u16,
        local: End,
        (via, address): (End, SocketAddr),
        target: NodeId,
        counter: u64,
    ) -> Self {
        Self {
            via,
            address,
            course: Course {
                from: local.node,
                target,
            },
            key: envelope_key(secret, shard, local, via, target),
            counter,
        }
    }

    /// Lets `write` put a sealed packet into an envelope; returns the length of all, 0 if nothing
    /// was written or there is no room.
    pub fn wrap(&mut self, buffer: &mut [u8], write: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let Some(end) = buffer.len().checked_sub(TAG_LEN) else {
            return 0;
        };
        let len = match buffer.get_mut(HEAD_LEN..end) {
            Some(room) => write(room),
            None => 0,
        };
        if len == 0 {
            return 0;
        }
        let counter = self.counter;
        self.counter += 1;
        buffer[0] = FIRST_BYTE;
        buffer[1..9].copy_from_slice(&self.course.from.0.to_be_bytes());
        buffer[9..17].copy_from_slice(&self.course.target.0.to_be_bytes());
        buffer[17..25].copy_from_slice(&counter.to_be_bytes());
        let (known, tag) = buffer.split_at_mut(HEAD_LEN + len);
        let sealed = self.key.key.seal_in_place_separate_tag(
            self.key.nonce(counter),
            Aad::from(&*known),
            &mut [],
        );
        match sealed {
            Ok(sealed) => {
                tag[..TAG_LEN].copy_from_slice(sealed.as_ref());
                HEAD_LEN + len + TAG_LEN
            }
            Err(_) => 0,
        }
    }
}

/// The node on the way: what it knows of one course.
pub struct Passage {
    /// Start of the asking node that the key belongs to.
    pub boot: BootId,
    key: SaltedKey,
    replay: ReplayWindow,
}

impl Passage {
    /// For envelopes of this start of a node.
    #[must_use]
    pub fn new(secret: &[u8; 32], shard: u16, from: End, local: End, target: NodeId) -> Self {
        Self {
            boot: from.boot,
            key: envelope_key(secret, shard, from, local, target),
            replay: ReplayWindow::default(),
        }
    }

    /// The packet inside.
    ///
    /// # Errors
    /// `Truncated`, `Malformed`, `Unauthenticated` or `Replayed`.
    pub fn open<'a>(&mut self, packet: &'a mut [u8]) -> Result<&'a [u8], Discard> {
        let (_, counter) = head(packet)?;
        let end = packet.len() - TAG_LEN;
        let (known, tag) = packet.split_at_mut(end);
        self.key
            .key
            .open_in_place(self.key.nonce(counter), Aad::from(&*known), tag)
            .map_err(|_| Discard::Unauthenticated)?;
        self.replay.accept(counter)?;
        Ok(&known[HEAD_LEN..])
    }
}

/// Whether a relay datagram is one to be sent on.
#[must_use]
pub fn is_transit(packet: &[u8]) -> bool {
    packet.first() == Some(&FIRST_BYTE)
}

/// Course and counter of a packet.
///
/// # Errors
/// `Truncated`, or `Malformed` if there is no relay packet of this version inside.
pub fn head(packet: &[u8]) -> Result<(Course, u64), Discard> {
    let inside = packet
        .len()
        .checked_sub(TAG_LEN)
        .and_then(|end| packet.get(HEAD_LEN..end))
        .ok_or(Discard::Truncated)?;
    keys::head(inside)?;
    let number = |at: usize| {
        let bytes = packet[at..at + 8].try_into();
        u64::from_be_bytes(bytes.expect("eight bytes"))
    };
    if !is_transit(packet) {
        return Err(Discard::Malformed);
    }
    let course = Course {
        from: NodeId(number(1)),
        target: NodeId(number(9)),
    };
    Ok((course, number(17)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [3; 32];

    fn end(node: u64, boot: u64) -> End {
        End {
            node: NodeId(node),
            boot: BootId(boot),
        }
    }

    fn detour() -> Detour {
        let address = SocketAddr::from(([192, 0, 2, 2], 7882));
        let via = (end(2, 20), address);
        Detour::new(&SECRET, 0, end(1, 10), via, NodeId(3), 1 << 40)
    }

    fn inside() -> Vec<u8> {
        let mut packet = vec![0x55; 60];
        packet[0] = keys::FIRST_BYTE;
        packet
    }

    fn wrapped(detour: &mut Detour) -> Vec<u8> {
        let mut buffer = [0; 1472];
        let len = detour.wrap(&mut buffer, |room| {
            room[..60].copy_from_slice(&inside());
            60
        });
        buffer[..len].to_vec()
    }

    #[test]
    fn the_node_on_the_way_finds_the_packet_once() {
        let mut packet = wrapped(&mut detour());
        let mut passage = Passage::new(&SECRET, 0, end(1, 10), end(2, 20), NodeId(3));
        let course = Course {
            from: NodeId(1),
            target: NodeId(3),
        };
        assert_eq!(head(&packet).map(|(course, _)| course), Ok(course));
        assert_eq!(passage.open(&mut packet.clone()), Ok(&*inside()));
        assert_eq!(passage.open(&mut packet), Err(Discard::Replayed));
    }

    #[test]
    fn every_changed_bit_and_every_other_key_is_noticed() {
        let packet = wrapped(&mut detour());
        let passage = || Passage::new(&SECRET, 0, end(1, 10), end(2, 20), NodeId(3));
        for bit in 0..packet.len() * 8 {
            let mut bad = packet.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(passage().open(&mut bad).is_err(), "bit {bit}");
        }
        for other in [
            Passage::new(&[4; 32], 0, end(1, 10), end(2, 20), NodeId(3)),
            Passage::new(&SECRET, 1, end(1, 10), end(2, 20), NodeId(3)),
            Passage::new(&SECRET, 0, end(1, 11), end(2, 20), NodeId(3)),
            Passage::new(&SECRET, 0, end(1, 10), end(2, 21), NodeId(3)),
            Passage::new(&SECRET, 0, end(1, 10), end(2, 20), NodeId(4)),
        ] {
            let mut other = other;
            let mut packet = packet.clone();
            assert_eq!(other.open(&mut packet), Err(Discard::Unauthenticated));
        }
        for len in 0..packet.len() {
            assert!(passage().open(&mut packet[..len].to_vec()).is_err());
        }
    }

    #[test]
    fn nothing_is_sent_without_room_or_packet() {
        let mut detour = detour();
        assert_eq!(detour.wrap(&mut [0; 40], |_| 20), 0);
        assert_eq!(detour.wrap(&mut [0; 10], |_| 20), 0);
        assert_eq!(detour.wrap(&mut [0; 1472], |_| 0), 0);
    }
}
