//! What a datagram between a node and a client is, as far as it can be told without keys:
//! STUN (RFC 8489), DTLS records (RFC 6347), SRTP and SRTCP (RFC 3711, 7714), told apart as in RFC 7983.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddrV4;

/// Address of the sender's network interface: tells nodes apart that use one IP address in turn.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Hardware(pub(crate) [u8; 6]);

/// A captured UDP datagram.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    /// Seconds since 1970.
    pub(crate) at: f64,
    pub(crate) hardware: Hardware,
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    /// Bytes of payload that were sent.
    pub(crate) length: usize,
    /// Those that were kept.
    pub(crate) payload: Vec<u8>,
}

/// A binding request of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Check {
    pub(crate) transaction: [u8; 12],
    /// The node's user fragment, which names the ICE session: first part of USERNAME (RFC 8445 §7.2.2).
    pub(crate) session: String,
}

/// What it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Meaning {
    /// A STUN request.
    Check(Check),
    /// A success response to the request of this transaction.
    Answer([u8; 12]),
    /// The start of a DTLS handshake, with the client's random.
    Hello([u8; 32]),
    /// A protected media packet.
    Rtp { ssrc: u32, sequence: u16 },
    /// A protected report; the index stands in its last four bytes. Absent if those were not kept.
    Rtcp { ssrc: u32, index: Option<u32> },
    /// Any other DTLS record; with its number, if it is protected (RFC 6347 §4.1).
    Dtls(Option<u64>),
    /// Anything else.
    Other,
}

/// The number of a protected record within its epoch.
fn record(bytes: &[u8]) -> Option<u64> {
    let (epoch, number) = bytes.get(3..11)?.split_first_chunk::<2>()?;
    let number = number
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    (u16::from_be_bytes(*epoch) > 0).then_some(number)
}

impl Datagram {
    /// Tells what it is.
    pub(crate) fn meaning(&self) -> Meaning {
        self.parse().unwrap_or(Meaning::Other)
    }

    /// A digest of what was kept and of the length: differs where packets differ.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.length, &self.payload).hash(&mut hasher);
        hasher.finish()
    }

    fn parse(&self) -> Option<Meaning> {
        let bytes = &self.payload[..];
        match *bytes.first()? {
            0..=3 => stun_message(bytes),
            20..=63 => Some(hello(bytes).unwrap_or_else(|| Meaning::Dtls(record(bytes)))),
            128..=191 => {
                let number = |at: usize| -> Option<u32> {
                    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
                };
                if (192..=223).contains(bytes.get(1)?) {
                    let whole = self.length == bytes.len();
                    let last = bytes.len().checked_sub(4).filter(|_| whole);
                    let index = last
                        .and_then(number)
                        // The highest bit says that it is encrypted.
                        .map(|word| word & 0x7fff_ffff);
                    return Some(Meaning::Rtcp {
                        ssrc: number(4)?,
                        index,
                    });
                }
                Some(Meaning::Rtp {
                    ssrc: number(8)?,
                    sequence: u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?),
                })
            }
            _ => None,
        }
    }
}

/// A binding request, or a success response to one (RFC 8489 §5).
fn stun_message(bytes: &[u8]) -> Option<Meaning> {
    const REQUEST: [u8; 2] = [0, 1];
    const SUCCESS: [u8; 2] = [1, 1];
    const USERNAME: u16 = 6;
    let transaction = bytes.get(8..20)?.try_into().ok()?;
    let kind = bytes.get(..2)?;
    if kind == SUCCESS {
        return Some(Meaning::Answer(transaction));
    }
    if kind != REQUEST {
        return None;
    }
    let mut rest = bytes.get(20..)?;
    while rest.len() >= 4 {
        let kind = u16::from_be_bytes([rest[0], rest[1]]);
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        let value = rest.get(4..4 + length)?;
        if kind == USERNAME {
            let user = String::from_utf8_lossy(value);
            let (session, _) = user.split_once(':')?;
            return Some(Meaning::Check(Check {
                transaction,
                session: session.to_owned(),
            }));
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
    None
}

/// A ClientHello that is not a later fragment.
fn hello(bytes: &[u8]) -> Option<Meaning> {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    let fragment_offset = bytes.get(19..22)?;
    if bytes[0] != HANDSHAKE || bytes.get(13) != Some(&CLIENT_HELLO) || fragment_offset != [0, 0, 0]
    {
        return None;
    }
    Some(Meaning::Hello(bytes.get(27..59)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A datagram between a node and a client of the lab, in the given direction.
    pub(crate) fn datagram(at: f64, node: u8, port: u16, down: bool, payload: Vec<u8>) -> Datagram {
        let node_end = SocketAddrV4::new([10, 79, 0, node].into(), 7882);
        let client_end = SocketAddrV4::new([10, 79, 0, 101].into(), port);
        let (from, to) = if down {
            (node_end, client_end)
        } else {
            (client_end, node_end)
        };
        Datagram {
            at,
            hardware: Hardware([2, 0, 0, 0, 0, if down { node } else { 101 }]),
            from,
            to,
            length: payload.len(),
            payload,
        }
    }

    pub(crate) fn rtp(ssrc: u32, sequence: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x80, 111];
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(ssrc.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    pub(crate) fn rtcp(ssrc: u32, index: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x80, 200, 0, 6];
        bytes.extend(ssrc.to_be_bytes());
        bytes.extend(body);
        bytes.extend((index | 0x8000_0000).to_be_bytes());
        bytes
    }

    pub(crate) fn stun(user: &str, transaction: u8) -> Vec<u8> {
        let mut bytes = vec![0, 1, 0, 0];
        bytes.extend([0x21, 0x12, 0xa4, 0x42]);
        bytes.extend([transaction; 12]);
        bytes.extend([0x80, 0x22, 0, 1, 65, 0, 0, 0]);
        bytes.extend([0, 6]);
        bytes.extend((user.len() as u16).to_be_bytes());
        bytes.extend(user.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    pub(crate) fn answer(transaction: u8) -> Vec<u8> {
        let mut bytes = vec![1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        bytes.extend([transaction; 12]);
        bytes
    }

    pub(crate) fn client_hello(random: u8) -> Vec<u8> {
        let mut bytes = vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100];
        bytes.extend([1, 0, 0, 88, 0, 0, 0, 0, 0, 0, 0, 88]);
        bytes.extend([0xfe, 0xfd]);
        bytes.extend([random; 32]);
        bytes
    }

    fn meaning(payload: Vec<u8>) -> Meaning {
        datagram(0.0, 1, 1, true, payload).meaning()
    }

    #[test]
    fn each_kind_is_told() {
        let check = Check {
            transaction: [3; 12],
            session: "abc".to_owned(),
        };
        assert_eq!(meaning(stun("abc:defg", 3)), Meaning::Check(check));
        assert_eq!(meaning(answer(3)), Meaning::Answer([3; 12]));
        assert_eq!(meaning(client_hello(9)), Meaning::Hello([9; 32]));
        assert_eq!(
            meaning(rtp(7, 8, &[1])),
            Meaning::Rtp {
                ssrc: 7,
                sequence: 8
            }
        );
        let report = Meaning::Rtcp {
            ssrc: 7,
            index: Some(99),
        };
        assert_eq!(meaning(rtcp(7, 99, &[1; 20])), report);
        assert_eq!(meaning(vec![23, 0xfe, 0xfd]), Meaning::Dtls(None));
        let mut record = vec![23, 0xfe, 0xfd, 0, 1, 0, 0, 1, 0, 0, 7];
        assert_eq!(meaning(record.clone()), Meaning::Dtls(Some((1 << 24) + 7)));
        record[4] = 0;
        assert_eq!(meaning(record), Meaning::Dtls(None));
        assert_eq!(meaning(vec![]), Meaning::Other);
    }

    #[test]
    fn the_index_of_a_report_that_was_cut_is_unknown() {
        let mut cut = datagram(0.0, 1, 1, true, rtcp(7, 99, &[1; 20]));
        cut.payload.truncate(16);
        assert_eq!(
            cut.meaning(),
            Meaning::Rtcp {
                ssrc: 7,
                index: None
            }
        );
    }

    #[test]
    fn no_beginning_of_a_packet_upsets_it() {
        for whole in [
            stun("abc:defg", 3),
            answer(3),
            client_hello(9),
            rtp(7, 8, &[1]),
            rtcp(7, 9, &[1; 20]),
        ] {
            for length in 0..whole.len() {
                let _ = meaning(whole[..length].to_vec());
            }
        }
    }
}
