//! DTLS records as they come in: split, checked, and handshake messages put together from their
//! fragments in order (RFC 6347 §4.1, §4.2.2-4.2.3).

use std::collections::VecDeque;

use crate::discard::Discard;

/// Bytes of a record header.
const HEADER_LEN: usize = 13;
/// Bytes of a handshake header.
const HANDSHAKE_HEADER_LEN: usize = 12;
/// Longest handshake message; certificate chains have a few kB.
const MESSAGE_LEN_MAX: usize = 32 * 1024;
/// Handshake messages that may arrive ahead of the one that is next.
const AHEAD_MAX: usize = 8;
/// Pieces that one message may be known in at a time.
const PIECES_MAX: usize = 64;
/// Records in one datagram.
const RECORDS_MAX: usize = 32;

/// What a record carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    ChangeCipherSpec,
    Alert,
    Handshake,
    ApplicationData,
}

impl Content {
    const fn of(number: u8) -> Option<Self> {
        Some(match number {
            20 => Self::ChangeCipherSpec,
            21 => Self::Alert,
            22 => Self::Handshake,
            23 => Self::ApplicationData,
            _ => return None,
        })
    }

    const fn number(self) -> u8 {
        match self {
            Self::ChangeCipherSpec => 20,
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::ApplicationData => 23,
        }
    }
}

/// A record within a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) content: Content,
    pub(super) epoch: u16,
    /// Header and payload.
    pub(super) bytes: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// The records of a datagram, up to the first that is broken: what follows it cannot be found.
pub(super) fn split(datagram: &[u8]) -> impl Iterator<Item = Result<Record<'_>, Discard>> {
    let mut rest = datagram;
    let mut left = RECORDS_MAX;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(allowed) = left.checked_sub(1) else {
            rest = &[];
            return Some(Err(Discard::LimitReached));
        };
        left = allowed;
        match split_first(rest) {
            Some((record, after)) => {
                rest = after;
                Some(Ok(record))
            }
            None => {
                rest = &[];
                Some(Err(Discard::Malformed))
            }
        }
    })
}

fn split_first(datagram: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let &[content, major, minor, e0, e1, _, _, _, _, _, _, l0, l1] = datagram.first_chunk()?;
    // A first ClientHello may claim DTLS 1.0.
    if major != 0xfe || !matches!(minor, 0xfd | 0xff) {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    let (bytes, after) = datagram.split_at_checked(HEADER_LEN + len)?;
    let record = Record {
        content: Content::of(content)?,
        epoch: u16::from_be_bytes([e0, e1]),
        bytes,
        payload: bytes
            .get(HEADER_LEN..)
            .filter(|payload| !payload.is_empty())?,
    };
    Some((record, after))
}

/// Writes a plain-text record. `payload` is at most [`MESSAGE_LEN_MAX`] and a header long.
pub(super) fn write(content: Content, number: u64, payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_LEN + payload.len());
    record.extend_from_slice(&[content.number(), 0xfe, 0xfd, 0, 0]);
    record.extend_from_slice(&number.to_be_bytes()[2..]);
    record.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    record.extend_from_slice(payload);
    record
}

/// Puts handshake messages together.
#[derive(Default)]
pub(super) struct Reassembly {
    /// Number of the message at the front of `messages`.
    next: u16,
    messages: VecDeque<Option<Partial>>,
}

/// A message of which some is known.
struct Partial {
    kind: u8,
    bytes: Vec<u8>,
    /// Known parts, apart from each other and in order.
    known: Vec<(usize, usize)>,
}

impl Reassembly {
    /// Takes the fragments of a handshake record; true if one is of a message already popped: the
    /// sender repeats itself.
    pub(super) fn push(&mut self, mut payload: &[u8]) -> Result<bool, Discard> {
        let mut repeated = false;
        while !payload.is_empty() {
            let &[kind, n0, n1, n2, s0, s1, o0, o1, o2, l0, l1, l2] = payload
                .first_chunk::<HANDSHAKE_HEADER_LEN>()
                .ok_or(Discard::Malformed)?;
            let number = |a, b, c| u32::from_be_bytes([0, a, b, c]) as usize;
            let (total, start, len) = (number(n0, n1, n2), number(o0, o1, o2), number(l0, l1, l2));
            let end = HANDSHAKE_HEADER_LEN + len;
            let fragment = payload
                .get(HANDSHAKE_HEADER_LEN..end)
                .ok_or(Discard::Malformed)?;
            if total > MESSAGE_LEN_MAX {
                return Err(Discard::LimitReached);
            }
            if start + len > total || (len == 0 && total != 0) {
                return Err(Discard::Malformed);
            }
            repeated |= self.insert(kind, u16::from_be_bytes([s0, s1]), total, start, fragment)?;
            payload = payload.get(end..).unwrap_or_default();
        }
        Ok(repeated)
    }

    fn insert(
        &mut self,
        kind: u8,
        sequence: u16,
        total: usize,
        start: usize,
        fragment: &[u8],
    ) -> Result<bool, Discard> {
        let Some(ahead) = sequence.checked_sub(self.next) else {
            return Ok(true);
        };
        let ahead = usize::from(ahead);
        if ahead >= AHEAD_MAX {
            return Err(Discard::LimitReached);
        }
        while self.messages.len() <= ahead {
            self.messages.push_back(None);
        }
        let message = self.messages[ahead].get_or_insert_with(|| Partial {
            kind,
            bytes: vec![0; total],
            known: Vec::new(),
        });
        if message.kind != kind || message.bytes.len() != total {
            return Err(Discard::Malformed);
        }
        message.add(start, fragment)?;
        Ok(false)
    }

    /// The next message if it is complete, as one fragment with its header.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let complete = self.messages.front()?.as_ref()?.is_complete();
        if !complete {
            return None;
        }
        let message = self.messages.pop_front()??;
        let sequence = self.next;
        self.next = self.next.checked_add(1)?;

        let len = (message.bytes.len() as u32).to_be_bytes();
        let mut bytes = Vec::with_capacity(HANDSHAKE_HEADER_LEN + message.bytes.len());
        bytes.push(message.kind);
        bytes.extend_from_slice(&len[1..]);
        bytes.extend_from_slice(&sequence.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0]);
        bytes.extend_from_slice(&len[1..]);
        bytes.extend_from_slice(&message.bytes);
        Some(bytes)
    }
}

impl Partial {
    fn add(&mut self, start: usize, fragment: &[u8]) -> Result<(), Discard> {
        let end = start + fragment.len();
        let place = self.bytes.get_mut(start..end).ok_or(Discard::Malformed)?;
        place.copy_from_slice(fragment);

        let at = self
            .known
            .partition_point(|(_, known_end)| *known_end < start);
        let (mut from, mut to) = (start, end);
        while let Some(&(known_start, known_end)) = self.known.get(at)
            && known_start <= to
        {
            (from, to) = (from.min(known_start), to.max(known_end));
            self.known.remove(at);
        }
        if self.known.len() >= PIECES_MAX {
            return Err(Discard::LimitReached);
        }
        self.known.insert(at, (from, to));
        Ok(())
    }

    fn is_complete(&self) -> bool {
        matches!(self.known.as_slice(), [(0, end)] if *end == self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(sequence: u16, total: usize, start: usize, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![1];
        out.extend_from_slice(&(total as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&(start as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn fragments_in_any_order_become_messages_in_order() {
        let mut reassembly = Reassembly::default();
        assert_eq!(reassembly.push(&fragment(1, 2, 0, b"xy")), Ok(false));
        assert_eq!(reassembly.pop(), None);
        assert_eq!(reassembly.push(&fragment(0, 6, 4, b"ef")), Ok(false));
        assert_eq!(reassembly.push(&fragment(0, 6, 0, b"ab")), Ok(false));
        assert_eq!(reassembly.pop(), None);
        assert_eq!(reassembly.push(&fragment(0, 6, 1, b"bcd")), Ok(false));
        assert_eq!(reassembly.pop(), Some(fragment(0, 6, 0, b"abcdef")));
        assert_eq!(reassembly.pop(), Some(fragment(1, 2, 0, b"xy")));
        assert_eq!(reassembly.pop(), None);
        assert_eq!(reassembly.push(&fragment(0, 6, 0, b"ab")), Ok(true));
    }

    #[test]
    fn several_fragments_share_a_record() {
        let mut reassembly = Reassembly::default();
        let mut record = fragment(0, 3, 1, b"bc");
        record.extend(fragment(1, 0, 0, b""));
        record.extend(fragment(0, 3, 0, b"a"));
        assert_eq!(reassembly.push(&record), Ok(false));
        assert_eq!(reassembly.pop(), Some(fragment(0, 3, 0, b"abc")));
        assert_eq!(reassembly.pop(), Some(fragment(1, 0, 0, b"")));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut reassembly = Reassembly::default();
        for (payload, reason) in [
            (vec![1, 0, 0], Discard::Malformed),
            (fragment(0, 3, 2, b"bc"), Discard::Malformed),
            (fragment(0, 3, 0, b""), Discard::Malformed),
            (
                fragment(0, MESSAGE_LEN_MAX + 1, 0, b"a"),
                Discard::LimitReached,
            ),
            (
                fragment(AHEAD_MAX as u16, 1, 0, b"a"),
                Discard::LimitReached,
            ),
        ] {
            assert_eq!(reassembly.push(&payload), Err(reason));
        }
        assert_eq!(reassembly.push(&fragment(0, 300, 0, b"a")), Ok(false));
        assert_eq!(
            reassembly.push(&fragment(0, 200, 0, b"a")),
            Err(Discard::Malformed)
        );
        let outcome = (1..150)
            .map(|at| reassembly.push(&fragment(0, 300, at * 2, b"a")))
            .last();
        assert_eq!(outcome, Some(Err(Discard::LimitReached)));
    }

    #[test]
    fn records_are_split_and_checked() {
        let mut datagram = write(Content::Handshake, 1, b"abc");
        datagram.extend(write(Content::ApplicationData, 2, b"d"));
        datagram.extend([0; 5]);
        let records: Vec<_> = split(&datagram).collect();
        assert_eq!(records.len(), 3);
        assert!(
            matches!(&records[0], Ok(r) if r.content == Content::Handshake && r.payload == b"abc")
        );
        assert!(
            matches!(&records[1], Ok(r) if r.content == Content::ApplicationData && r.epoch == 0)
        );
        assert!(matches!(&records[2], Err(Discard::Malformed)));
        assert!(split(&write(Content::Alert, 1, b"")).all(|record| record.is_err()));
    }
}
