//! RTCP without allocation: an iterator over a compound packet, and a writer into a buffer.
//!
//! Read from publishers (sender reports, BYE) and subscribers (receiver reports, NACK, PLI, FIR,
//! REMB); written to both. RFC 3550 §6, RFC 4585 §6, RFC 5104 §4.3.1, draft-alvestrand-rmcat-remb.

use crate::discard::Discard;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SOURCE_DESCRIPTION: u8 = 202;
const BYE: u8 = 203;
const TRANSPORT_FEEDBACK: u8 = 205;
const PAYLOAD_FEEDBACK: u8 = 206;
const FORMAT_NACK: u8 = 1;
const FORMAT_TWCC: u8 = 15;
const FORMAT_PLI: u8 = 1;
const FORMAT_FIR: u8 = 4;
const FORMAT_REMB: u8 = 15;

/// Most report blocks, NACK pairs or SSRCs that one packet can carry.
pub const REPORT_BLOCKS_MAX: usize = 31;

/// Reception statistics about one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReportBlock {
    /// The source.
    pub ssrc: u32,
    /// Lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Lost since the start, 24 bits, signed (duplicates count against it).
    pub packets_lost: i32,
    /// Highest sequence number received, with cycles.
    pub highest_sequence: u32,
    /// Interarrival jitter in clock units.
    pub jitter: u32,
    /// Middle 32 bits of the NTP time of the last sender report; 0: none.
    pub last_report: u32,
    /// Time since that arrived, in 1/65,536 s.
    pub delay: u32,
}

/// What a sender says about its own stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SenderInfo {
    /// Wall time, 32.32 fixed point seconds since 1900.
    pub ntp: u64,
    /// The same moment in the stream's clock.
    pub rtp: u32,
    /// Packets sent.
    pub packets: u32,
    /// Payload bytes sent.
    pub bytes: u32,
}

/// One packet of a compound.
#[derive(Clone, Copy, Debug)]
pub enum Packet<'a> {
    /// Sender report.
    SenderReport {
        /// Sender.
        ssrc: u32,
        /// Its stream.
        info: SenderInfo,
        /// What it receives.
        blocks: Blocks<'a>,
    },
    /// Receiver report.
    ReceiverReport {
        /// Who reports.
        ssrc: u32,
        /// What it receives.
        blocks: Blocks<'a>,
    },
    /// Names of sources; not used.
    SourceDescription,
    /// Sources that end.
    Bye(Words<'a>),
    /// Packets asked for again.
    Nack {
        /// Stream that lacks them.
        media: u32,
        /// Which.
        pairs: NackPairs<'a>,
    },
    /// Key frame asked for.
    Pli {
        /// Of which stream.
        media: u32,
    },
    /// Key frame asked for, the older way.
    Fir(FirEntries<'a>),
    /// Bandwidth the receiver estimates.
    Remb {
        /// Bits per second.
        bitrate_bps: u64,
        /// Streams that share it.
        ssrcs: Words<'a>,
    },
    /// Transport-wide feedback: the whole packet, see [`crate::rtp::twcc`].
    Twcc(&'a [u8]),
    /// Anything else.
    Other,
}

/// Iterator over a compound packet. After an error it ends.
pub struct Packets<'a> {
    rest: &'a [u8],
}

/// Walks a compound packet.
#[must_use]
pub fn packets(compound: &[u8]) -> Packets<'_> {
    Packets { rest: compound }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, Discard>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let result = self.advance();
        if result.is_err() {
            self.rest = &[];
        }
        Some(result)
    }
}

impl<'a> Packets<'a> {
    fn advance(&mut self) -> Result<Packet<'a>, Discard> {
        let head: &[u8; 4] = self.rest.first_chunk().ok_or(Discard::Truncated)?;
        if head[0] >> 6 != 2 {
            return Err(Discard::Malformed);
        }
        let len = (usize::from(u16::from_be_bytes([head[2], head[3]])) + 1) * 4;
        let (whole, rest) = self.rest.split_at_checked(len).ok_or(Discard::Truncated)?;
        let mut body = &whole[4..];
        if head[0] & 0x20 != 0 {
            let padding = usize::from(*body.last().ok_or(Discard::Malformed)?);
            let end = body.len().checked_sub(padding).ok_or(Discard::Malformed)?;
            body = &body[..end];
        }
        self.rest = rest;
        parse_one(head[0] & 0x1f, head[1], whole, body)
    }
}

fn parse_one<'a>(
    count: u8,
    packet_type: u8,
    whole: &'a [u8],
    body: &'a [u8],
) -> Result<Packet<'a>, Discard> {
    Ok(match (packet_type, count) {
        (SENDER_REPORT, _) => {
            let fixed: &[u8; 24] = body.first_chunk().ok_or(Discard::Truncated)?;
            let info = SenderInfo {
                ntp: (u64::from(word(fixed, 4)) << 32) | u64::from(word(fixed, 8)),
                rtp: word(fixed, 12),
                packets: word(fixed, 16),
                bytes: word(fixed, 20),
            };
            Packet::SenderReport {
                ssrc: word(fixed, 0),
                info,
                blocks: blocks(count, &body[24..])?,
            }
        }
        (RECEIVER_REPORT, _) => {
            let fixed: &[u8; 4] = body.first_chunk().ok_or(Discard::Truncated)?;
            Packet::ReceiverReport {
                ssrc: word(fixed, 0),
                blocks: blocks(count, &body[4..])?,
            }
        }
        (SOURCE_DESCRIPTION, _) => Packet::SourceDescription,
        (BYE, _) => {
            let len = usize::from(count) * 4;
            Packet::Bye(Words(body.get(..len).ok_or(Discard::Truncated)?))
        }
        (TRANSPORT_FEEDBACK, FORMAT_NACK) => {
            let fixed: &[u8; 8] = body.first_chunk().ok_or(Discard::Truncated)?;
            Packet::Nack {
                media: word(fixed, 4),
                pairs: NackPairs(&body[8..]),
            }
        }
        (TRANSPORT_FEEDBACK, FORMAT_TWCC) => Packet::Twcc(whole),
        (PAYLOAD_FEEDBACK, FORMAT_PLI) => {
            let fixed: &[u8; 8] = body.first_chunk().ok_or(Discard::Truncated)?;
            Packet::Pli {
                media: word(fixed, 4),
            }
        }
        (PAYLOAD_FEEDBACK, FORMAT_FIR) => {
            Packet::Fir(FirEntries(body.get(8..).ok_or(Discard::Truncated)?))
        }
        (PAYLOAD_FEEDBACK, FORMAT_REMB) => remb(body)?,
        _ => Packet::Other,
    })
}

fn remb(body: &[u8]) -> Result<Packet<'_>, Discard> {
    let fixed: &[u8; 16] = body.first_chunk().ok_or(Discard::Truncated)?;
    if &fixed[8..12] != b"REMB" {
        return Ok(Packet::Other);
    }
    let exponent = u32::from(fixed[13] >> 2);
    let mantissa = u64::from(word(fixed, 12) & 0x3_ffff);
    let len = usize::from(fixed[12]) * 4;
    Ok(Packet::Remb {
        bitrate_bps: if exponent > 40 {
            u64::MAX
        } else {
            mantissa << exponent
        },
        ssrcs: Words(body[16..].get(..len).ok_or(Discard::Truncated)?),
    })
}

fn blocks(count: u8, bytes: &[u8]) -> Result<Blocks<'_>, Discard> {
    let len = usize::from(count) * 24;
    Ok(Blocks(bytes.get(..len).ok_or(Discard::Truncated)?))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Report blocks of a report.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a>(&'a [u8]);

impl Iterator for Blocks<'_> {
    type Item = ReportBlock;

    fn next(&mut self) -> Option<ReportBlock> {
        let (block, rest) = self.0.split_at_checked(24)?;
        self.0 = rest;
        Some(ReportBlock {
            ssrc: word(block, 0),
            fraction_lost: block[4],
            packets_lost: ((word(block, 4) << 8) as i32) >> 8,
            highest_sequence: word(block, 8),
            jitter: word(block, 12),
            last_report: word(block, 16),
            delay: word(block, 20),
        })
    }
}

/// A list of SSRCs.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(&'a [u8]);

impl Iterator for Words<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_at_checked(4)?;
        self.0 = rest;
        Some(word(bytes, 0))
    }
}

/// Sequence numbers of a NACK, unpacked.
#[derive(Clone, Copy, Debug)]
pub struct NackPairs<'a>(&'a [u8]);

impl NackPairs<'_> {
    /// Calls `each` for every sequence number asked for.
    pub fn for_each_sequence(self, mut each: impl FnMut(u16)) {
        for pair in self.0.chunks_exact(4) {
            let first = u16::from_be_bytes([pair[0], pair[1]]);
            let mut mask = u16::from_be_bytes([pair[2], pair[3]]);
            each(first);
            while mask != 0 {
                let bit = mask.trailing_zeros() as u16;
                each(first.wrapping_add(bit + 1));
                mask &= mask - 1;
            }
        }
    }
}

/// Streams named in a full intra request.
#[derive(Clone, Copy, Debug)]
pub struct FirEntries<'a>(&'a [u8]);

impl Iterator for FirEntries<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (entry, rest) = self.0.split_at_checked(8)?;
        self.0 = rest;
        Some(word(entry, 0))
    }
}

/// Builds a compound packet in a buffer. A packet that does not fit is left out and reported by
/// `false`.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// An empty compound.
    #[must_use]
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Bytes written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes left.
    #[must_use]
    pub fn free(&self) -> usize {
        self.buffer.len() - self.len
    }

    fn reserve(&mut self, count: u8, packet_type: u8, body_len: usize) -> Option<&mut [u8]> {
        let total = 4 + body_len;
        let packet = self.buffer.get_mut(self.len..)?.get_mut(..total)?;
        packet[0] = 0x80 | (count & 0x1f);
        packet[1] = packet_type;
        packet[2..4].copy_from_slice(&((total / 4 - 1) as u16).to_be_bytes());
        self.len += total;
        Some(&mut packet[4..])
    }

    /// Sender report with up to 31 blocks.
    pub fn sender_report(&mut self, ssrc: u32, info: &SenderInfo, blocks: &[ReportBlock]) -> bool {
        let blocks = &blocks[..blocks.len().min(REPORT_BLOCKS_MAX)];
        let body_len = 24 + blocks.len() * 24;
        let Some(body) = self.reserve(blocks.len() as u8, SENDER_REPORT, body_len) else {
            return false;
        };
        body[0..4].copy_from_slice(&ssrc.to_be_bytes());
        body[4..12].copy_from_slice(&info.ntp.to_be_bytes());
        body[12..16].copy_from_slice(&info.rtp.to_be_bytes());
        body[16..20].copy_from_slice(&info.packets.to_be_bytes());
        body[20..24].copy_from_slice(&info.bytes.to_be_bytes());
        write_blocks(&mut body[24..], blocks);
        true
    }

    /// Receiver report with up to 31 blocks.
    pub fn receiver_report(&mut self, ssrc: u32, blocks: &[ReportBlock]) -> bool {
        let blocks = &blocks[..blocks.len().min(REPORT_BLOCKS_MAX)];
        let body_len = 4 + blocks.len() * 24;
        let Some(body) = self.reserve(blocks.len() as u8, RECEIVER_REPORT, body_len) else {
            return false;
        };
        body[0..4].copy_from_slice(&ssrc.to_be_bytes());
        write_blocks(&mut body[4..], blocks);
        true
    }

    /// Canonical name of a source, up to 255 bytes.
    pub fn source_description(&mut self, ssrc: u32, name: &str) -> bool {
        let name = &name.as_bytes()[..name.len().min(255)];
        // SSRC, item head, name, then at least one zero byte up to the next word.
        let body_len = 4 + (2 + name.len() + 4) / 4 * 4;
        let Some(body) = self.reserve(1, SOURCE_DESCRIPTION, body_len) else {
            return false;
        };
        body.fill(0);
        body[0..4].copy_from_slice(&ssrc.to_be_bytes());
        body[4] = 1;
        body[5] = name.len() as u8;
        body[6..6 + name.len()].copy_from_slice(name);
        true
    }

    /// The source ends.
    pub fn bye(&mut self, ssrc: u32) -> bool {
        let Some(body) = self.reserve(1, BYE, 4) else {
            return false;
        };
        body.copy_from_slice(&ssrc.to_be_bytes());
        true
    }

    /// Asks for packets again. `sequences` in ascending order (on the circle); returns how many of
    /// them fitted in.
    pub fn nack(&mut self, sender: u32, media: u32, sequences: &[u16]) -> usize {
        let room = self.free().saturating_sub(12) / 4;
        let mut pairs = 0;
        let mut taken = 0;
        while pairs < room.min(REPORT_BLOCKS_MAX) && taken < sequences.len() {
            taken += pair_len(&sequences[taken..]);
            pairs += 1;
        }
        if taken == 0 {
            return 0;
        }
        let Some(body) = self.reserve(FORMAT_NACK, TRANSPORT_FEEDBACK, 8 + pairs * 4) else {
            return 0;
        };
        body[0..4].copy_from_slice(&sender.to_be_bytes());
        body[4..8].copy_from_slice(&media.to_be_bytes());
        let mut rest = &sequences[..taken];
        for pair in body[8..].chunks_exact_mut(4) {
            let (now, later) = rest.split_at(pair_len(rest));
            let mask = now[1..].iter().fold(0_u16, |mask, sequence| {
                mask | 1 << (sequence.wrapping_sub(now[0]) - 1)
            });
            pair[0..2].copy_from_slice(&now[0].to_be_bytes());
            pair[2..4].copy_from_slice(&mask.to_be_bytes());
            rest = later;
        }
        taken
    }

    /// Asks for a key frame.
    pub fn pli(&mut self, sender: u32, media: u32) -> bool {
        let Some(body) = self.reserve(FORMAT_PLI, PAYLOAD_FEEDBACK, 8) else {
            return false;
        };
        body[0..4].copy_from_slice(&sender.to_be_bytes());
        body[4..8].copy_from_slice(&media.to_be_bytes());
        true
    }

    /// Reports estimated bandwidth for up to 31 streams.
    pub fn remb(&mut self, sender: u32, bitrate_bps: u64, ssrcs: &[u32]) -> bool {
        let ssrcs = &ssrcs[..ssrcs.len().min(REPORT_BLOCKS_MAX)];
        let body_len = 16 + ssrcs.len() * 4;
        let Some(body) = self.reserve(FORMAT_REMB, PAYLOAD_FEEDBACK, body_len) else {
            return false;
        };
        let exponent = (64 - bitrate_bps.leading_zeros()).saturating_sub(18);
        let mantissa = (bitrate_bps >> exponent) as u32;
        body[0..4].copy_from_slice(&sender.to_be_bytes());
        body[4..8].fill(0);
        body[8..12].copy_from_slice(b"REMB");
        let packed = ((ssrcs.len() as u32) << 24) | (exponent << 18) | mantissa;
        body[12..16].copy_from_slice(&packed.to_be_bytes());
        for (slot, ssrc) in body[16..].chunks_exact_mut(4).zip(ssrcs) {
            slot.copy_from_slice(&ssrc.to_be_bytes());
        }
        true
    }

    /// Transport-wide feedback whose body `write` builds: it gets the free bytes behind the header
    /// and returns how many it used, a multiple of 4; 0 leaves the packet out.
    pub fn twcc(&mut self, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let start = self.len;
        if self.reserve(FORMAT_TWCC, TRANSPORT_FEEDBACK, 0).is_none() {
            return false;
        }
        let used = write(&mut self.buffer[self.len..]);
        if used == 0 {
            self.len = start;
            return false;
        }
        self.len += used;
        self.buffer[start + 2..start + 4].copy_from_slice(&((used / 4) as u16).to_be_bytes());
        true
    }
}

/// How many of the ascending `sequences` one NACK pair covers.
fn pair_len(sequences: &[u16]) -> usize {
    let first = sequences[0];
    sequences
        .iter()
        .take_while(|sequence| sequence.wrapping_sub(first) <= 16)
        .count()
}

fn write_blocks(body: &mut [u8], blocks: &[ReportBlock]) {
    for (slot, block) in body.chunks_exact_mut(24).zip(blocks) {
        slot[0..4].copy_from_slice(&block.ssrc.to_be_bytes());
        slot[4..8].copy_from_slice(
            &block
                .packets_lost
                .clamp(-0x80_0000, 0x7f_ffff)
                .to_be_bytes(),
        );
        slot[4] = block.fraction_lost;
        slot[8..12].copy_from_slice(&block.highest_sequence.to_be_bytes());
        slot[12..16].copy_from_slice(&block.jitter.to_be_bytes());
        slot[16..20].copy_from_slice(&block.last_report.to_be_bytes());
        slot[20..24].copy_from_slice(&block.delay.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
