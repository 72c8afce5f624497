//! Transport-wide congestion control: when each packet of a peer arrived, and the feedback about it
//! (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1).
//!
//! A publisher without this feedback (or REMB) drops its upper layers within a second. One
//! [`Arrivals`] per publishing peer; the router writes a feedback packet every 50–100 ms.

use crate::rtp::sequence::{extend_16, first_extended};

/// Packets whose arrival is remembered; at 1,000 packets/s half a second, five times the feedback
/// interval. A power of two.
const WINDOW: u64 = 512;
/// Most packets described by one feedback packet: 512 two-byte deltas and their chunks fit into
/// 1,200 bytes.
const STATUSES_MAX: u64 = 480;
/// Unit of deltas, microseconds.
const TICK_US: u64 = 250;
/// Unit of the reference time, microseconds.
const REFERENCE_US: u64 = 64_000;

/// Arrival times of one peer's packets, by transport-wide sequence number.
pub struct Arrivals {
    /// Microseconds since the router's start, by the low bits of the number; 0: not arrived.
    times_us: Box<[u64]>,
    /// Next number to report.
    next: u64,
    /// Highest number seen; `None`: none yet.
    highest: Option<u64>,
    feedback_count: u8,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            times_us: vec![0; WINDOW as usize].into_boxed_slice(),
            next: 0,
            highest: None,
            feedback_count: 0,
        }
    }
}

impl Arrivals {
    /// A packet arrived, `at_us` microseconds after a fixed moment.
    pub fn record(&mut self, sequence: u16, at_us: u64) {
        let at_us = at_us.max(1);
        let Some(highest) = self.highest else {
            let first = first_extended(sequence);
            self.highest = Some(first);
            self.next = first;
            self.times_us[(first % WINDOW) as usize] = at_us;
            return;
        };
        let number = extend_16(highest, sequence);
        if number > highest {
            // Forget what the new numbers overwrite.
            for skipped in (highest + 1..number).rev().take(WINDOW as usize) {
                self.times_us[(skipped % WINDOW) as usize] = 0;
            }
            self.highest = Some(number);
            self.next = self.next.max((number + 1).saturating_sub(WINDOW));
        } else if highest - number >= WINDOW {
            return;
        } else if number < self.next {
            // Late: report again from here, as libwebrtc does.
            self.next = number;
        }
        self.times_us[(number % WINDOW) as usize] = at_us;
    }

    /// There is something to report.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.highest.is_some_and(|highest| highest >= self.next)
    }

    /// Writes the body of a feedback packet (from the sender's SSRC on) and returns its length; 0
    /// if nothing is pending or it does not fit. Call until nothing is pending.
    pub fn write(&mut self, sender: u32, media: u32, body: &mut [u8]) -> usize {
        let Some(highest) = self.highest else {
            return 0;
        };
        let time = |number: u64| self.times_us[(number % WINDOW) as usize];
        // A feedback packet starts at a packet that arrived: its time is the reference.
        while self.next <= highest && time(self.next) == 0 {
            self.next += 1;
        }
        if self.next > highest || body.len() < 1_100 {
            return 0;
        }
        let first = self.next;
        let reference = time(first) / REFERENCE_US;
        let mut previous_us = reference * REFERENCE_US;
        let mut symbols = [0_u8; STATUSES_MAX as usize];
        let mut deltas = [0_i16; STATUSES_MAX as usize];
        let mut count = 0_usize;
        for number in first..=highest.min(first + STATUSES_MAX - 1) {
            let at = time(number);
            if at != 0 {
                let delta = (at / TICK_US) as i64 - (previous_us / TICK_US) as i64;
                let Ok(delta_16) = i16::try_from(delta) else {
                    break;
                };
                symbols[count] = if (0..=255).contains(&delta) { 1 } else { 2 };
                deltas[count] = delta_16;
                previous_us = at;
            }
            count += 1;
        }
        self.next = first + count as u64;
        let feedback_count = self.feedback_count;
        self.feedback_count = feedback_count.wrapping_add(1);
        body[0..4].copy_from_slice(&sender.to_be_bytes());
        body[4..8].copy_from_slice(&media.to_be_bytes());
        body[8..10].copy_from_slice(&(first as u16).to_be_bytes());
        body[10..12].copy_from_slice(&(count as u16).to_be_bytes());
        let packed = ((reference as u32 & 0xff_ffff) << 8) | u32::from(feedback_count);
        body[12..16].copy_from_slice(&packed.to_be_bytes());
        let mut len = 16 + write_chunks(&symbols[..count], &mut body[16..]);
        for (symbol, delta) in symbols[..count].iter().zip(&deltas) {
            match symbol {
                1 => {
                    body[len] = *delta as u8;
                    len += 1;
                }
                2 => {
                    body[len..len + 2].copy_from_slice(&delta.to_be_bytes());
                    len += 2;
                }
                _ => (),
            }
        }
        let padded = len.next_multiple_of(4);
        body[len..padded].fill(0);
        padded
    }
}

/// Writes status chunks: runs of eight and more as run lengths, the rest seven at a time.
fn write_chunks(symbols: &[u8], out: &mut [u8]) -> usize {
    let mut len = 0;
    let mut rest = symbols;
    while let Some(&first) = rest.first() {
        let run = rest.iter().take_while(|symbol| **symbol == first).count();
        let (chunk, taken) = if run > 7 {
            let run = run.min(0x1fff);
            ((u16::from(first) << 13) | run as u16, run)
        } else {
            let taken = rest.len().min(7);
            let vector = rest[..taken]
                .iter()
                .enumerate()
                .fold(0xc000, |chunk, (index, symbol)| {
                    chunk | u16::from(*symbol) << (12 - 2 * index)
                });
            (vector, taken)
        };
        out[len..len + 2].copy_from_slice(&chunk.to_be_bytes());
        len += 2;
        rest = &rest[taken..];
    }
    len
}

/// Reads a feedback packet (header included): calls `each` with every sequence number and its
/// arrival in microseconds since the sender's epoch, `None` if it did not arrive. Returns whether the
/// packet was well formed; what was read up to a fault has been reported.
pub fn read(packet: &[u8], mut each: impl FnMut(u16, Option<u64>)) -> bool {
    let Some(head) = packet.first_chunk::<20>() else {
        return false;
    };
    let base = u16::from_be_bytes([head[12], head[13]]);
    let count = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let reference = u32::from_be_bytes([0, head[16], head[17], head[18]]);
    // First pass over the chunks finds where the deltas start.
    let Some(deltas_at) = for_each_symbol(packet, count, |_, _| ()) else {
        return false;
    };
    let mut deltas = &packet[deltas_at..];
    let mut at = i64::from(reference) * REFERENCE_US as i64;
    let mut is_valid = true;
    for_each_symbol(packet, count, |index, symbol| {
        let sequence = base.wrapping_add(index as u16);
        let delta = match symbol {
            1 => deltas.split_first().map(|(delta, rest)| {
                deltas = rest;
                i64::from(*delta)
            }),
            2 => deltas.split_first_chunk::<2>().map(|(delta, rest)| {
                deltas = rest;
                i64::from(i16::from_be_bytes(*delta))
            }),
            _ => return each(sequence, None),
        };
        match delta {
            Some(delta) if is_valid => {
                at += delta * TICK_US as i64;
                each(sequence, u64::try_from(at).ok());
            }
            _ => is_valid = false,
        }
    });
    is_valid
}

/// Walks `count` symbols of the status chunks; returns where the deltas start.
fn for_each_symbol(packet: &[u8], count: usize, mut each: impl FnMut(usize, u16)) -> Option<usize> {
    let mut at = 20;
    let mut index = 0;
    while index < count {
        let chunk = u16::from_be_bytes(*packet.get(at..)?.first_chunk()?);
        at += 2;
        let (len, bits) = match chunk >> 14 {
            0 | 1 => (usize::from(chunk & 0x1fff), 0),
            2 => (14, 1),
            _ => (7, 2),
        };
        for position in 0..len.min(count - index) {
            let symbol = match bits {
                0 => chunk >> 13,
                1 => (chunk >> (13 - position)) & 1,
                _ => (chunk >> (12 - 2 * position)) & 3,
            };
            each(index, symbol);
            index += 1;
        }
        if len == 0 {
            return None;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtp::rtcp::Writer;
    use proptest::prelude::*;

    fn feedback(arrivals: &mut Arrivals) -> Vec<(u16, Option<u64>)> {
        let mut all = vec![];
        for _ in 0..8 {
            if !arrivals.is_pending() {
                break;
            }
            let mut buffer = [0; 1_200];
            let mut writer = Writer::new(&mut buffer);
            if !writer.twcc(|body| arrivals.write(1, 2, body)) {
                break;
            }
            let len = writer.len();
            assert!(read(&buffer[..len], |sequence, at| all.push((sequence, at))));
            let mut bytes = bytes::Bytes::copy_from_slice(&buffer[..len]);
            rtc_rtcp::packet::unmarshal(&mut bytes).expect("another implementation reads it");
        }
        all
    }

    #[test]
    fn losses_and_reordering_are_reported() {
        let mut arrivals = Arrivals::default();
        arrivals.record(65_534, 1_000_000);
        arrivals.record(65_535, 1_001_000);
        arrivals.record(2, 1_002_000);
        arrivals.record(1, 1_003_000);
        assert_eq!(
            feedback(&mut arrivals),
            [
                (65_534, Some(1_000_000)),
                (65_535, Some(1_001_000)),
                (0, None),
                (1, Some(1_003_000)),
                (2, Some(1_002_000)),
            ]
        );
        assert!(!arrivals.is_pending());
        arrivals.record(0, 1_100_000);
        assert_eq!(feedback(&mut arrivals)[0], (0, Some(1_100_000)));
    }

    #[test]
    fn a_long_pause_starts_a_new_packet() {
        let mut arrivals = Arrivals::default();
        arrivals.record(10, 1_000_000);
        arrivals.record(11, 60_000_000);
        assert_eq!(
            feedback(&mut arrivals),
            [(10, Some(1_000_000)), (11, Some(60_000_000))]
        );
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_reported(
            start in any::<u16>(),
            packets in proptest::collection::vec((any::<bool>(), 0_u64..20_000), 1..400)
        ) {
            let mut arrivals = Arrivals::default();
            let mut at = 5_000_000;
            let mut sent = vec![];
            for (index, (arrives, gap)) in packets.iter().enumerate() {
                at += gap;
                if *arrives {
                    let sequence = start.wrapping_add(index as u16);
                    arrivals.record(sequence, at);
                    sent.push((sequence, at / TICK_US * TICK_US));
                }
            }
            let reported: Vec<_> = feedback(&mut arrivals)
                .into_iter()
                .filter_map(|(sequence, at)| at.map(|at| (sequence, at)))
                .collect();
            prop_assert_eq!(reported, sent);
        }
    }
}
