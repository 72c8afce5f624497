//! Fills gaps on the stream of reliable messages with what the client's SDK sends again behind them.
//!
//! What the client sent while its path changed may be lost, and its SCTP sends a chunk that it sent
//! twice already only when its timer ends. RFC 9260 §6.3.3 lets that double with each packet that the
//! dead node did not answer, and nobody but the client can end it sooner. But an SDK that resumes sends
//! its messages again of its own accord, under their old numbers and new TSNs, and those come at once. So
//! the library is given a chunk of the gap made from such a copy; whoever takes the messages drops what
//! comes twice by its number.
//!
//! ```text
//! TSN      7   8   9  10  11  12  13
//! number  31   ×   ×  34  32  33  34     8 and 9 become 32 and 33
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;

use super::message;
use super::wire::{self, Chunk, Data};

/// Chunks behind a gap that are looked at; where there are more, the client's timer is waited for.
const BEHIND_MAX: usize = 512;

/// The stream of the reliable messages. Places are TSNs counted from the one where the client stood.
pub(super) struct Refill {
    stream: u16,
    /// Highest number of those that came without a gap. None after a message of several chunks, which
    /// shows its number in none of them.
    number: Option<u32>,
    /// As `number`, and it stays.
    last_number: u32,
    /// Sequence number of the stream's next message; none in the middle of one.
    ssn: Option<u16>,
    /// Behind the first gap, by place.
    behind: BTreeMap<u32, Seen>,
}

/// A chunk behind a gap.
struct Seen {
    /// Of the stream's chunks.
    data: Option<Data>,
    /// Of those that are whole messages.
    message: Option<(u32, Bytes)>,
}

impl Refill {
    /// `passed`: the number up to which messages were passed on before.
    pub(super) const fn new(stream: u16, passed: u32) -> Self {
        Self {
            stream,
            number: None,
            last_number: passed,
            ssn: None,
            behind: BTreeMap::new(),
        }
    }

    pub(super) const fn stream(&self) -> u16 {
        self.stream
    }

    /// Takes note of a chunk at its place, that of the first that was missing or behind it. False if
    /// there is too much to be looked at.
    pub(super) fn note(&mut self, place: u32, data: &Data, chunk: &Chunk<'_>) -> bool {
        let is_ours = data.stream == self.stream && data.is_ordered();
        let number = is_ours.then(|| number_of(data, chunk)).flatten();
        let seen = Seen {
            data: is_ours.then_some(*data),
            message: number.map(|number| (number, Bytes::copy_from_slice(chunk.bytes))),
        };
        self.behind.insert(place, seen);
        self.behind.len() <= BEHIND_MAX
    }

    /// All places before `next` have come. Gives the first that has not.
    pub(super) fn advance(&mut self, mut next: u32) -> u32 {
        while let Some(first) = self.behind.first_entry() {
            if *first.key() > next {
                break;
            }
            next = next.max(*first.key() + 1);
            let seen = first.remove();
            self.count(&seen);
        }
        next
    }

    /// Takes a chunk that came without a gap before it.
    fn count(&mut self, seen: &Seen) {
        let Some(data) = &seen.data else {
            return;
        };
        self.ssn = data.ends().then(|| data.ssn.wrapping_add(1));
        match &seen.message {
            // A first sending: all later numbers are yet to come. What is sent again has lower ones.
            Some((number, _)) if *number > self.last_number => {
                self.last_number = *number;
                self.number = Some(*number);
            }
            Some(_) => {}
            None => self.number = None,
        }
    }

    /// Chunks that fill the first gap, which begins at place `next`; none if not all of it can be.
    /// `first` is the TSN of place 0.
    pub(super) fn fill(&self, next: u32, first: u32) -> Vec<Vec<u8>> {
        self.try_fill(next, first).unwrap_or_default()
    }

    fn try_fill(&self, next: u32, first: u32) -> Option<Vec<Vec<u8>>> {
        let (number, ssn) = (self.number?, self.ssn?);
        let mut later = self.behind.iter();
        let (end, after) = later.find_map(|(place, seen)| Some((*place, seen.data?)))?;
        let is_missing = |place: &u32| !self.behind.contains_key(place);
        let missing = (next..end).filter(is_missing).take(BEHIND_MAX);
        let missing: Vec<u32> = missing.collect();
        // As many chunks as messages: each of them is one, and of this stream.
        let messages = usize::from(after.ssn.wrapping_sub(ssn));
        if !after.begins() || missing.is_empty() || missing.len() != messages {
            return None;
        }
        let copies = self
            .behind
            .values()
            .filter_map(|seen| seen.message.as_ref());
        let copies: BTreeMap<u32, &Bytes> =
            copies.map(|(number, chunk)| (*number, chunk)).collect();
        // Their numbers go on from the last, as far as they were not sent again themselves; then lower
        // ones would do. Either way nothing is left out.
        let chunks = missing.iter().zip(0_u16..).zip(number.checked_add(1)?..);
        let chunks = chunks.map(|((place, at), number)| {
            let mut chunk = copies.get(&number)?.to_vec();
            wire::set_u32(&mut chunk, Data::TSN_AT, first.wrapping_add(*place));
            wire::set_u16(&mut chunk, Data::SSN_AT, ssn.wrapping_add(at));
            Some(chunk)
        });
        chunks.collect()
    }
}

/// Number of the message that a chunk holds as a whole.
pub(super) fn number_of(data: &Data, chunk: &Chunk<'_>) -> Option<u32> {
    let payload = chunk.bytes.get(Data::PAYLOAD_AT..).unwrap_or_default();
    let is_whole = data.begins() && data.ends();
    is_whole.then(|| message::sequence(payload)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: u16 = 2;
    const FIRST: u32 = u32::MAX - 2;
    const FIRST_SSN: u16 = u16::MAX;
    const WHOLE: u8 = wire::BEGIN | wire::END;

    /// What a client sends, and what comes of it.
    struct Wire {
        refill: Refill,
        next: u32,
        /// Numbers of what fills gaps, by place and sequence number counted from the first.
        filled: Vec<(u32, u16, u32)>,
    }

    impl Wire {
        fn new(passed: u32) -> Self {
            Self {
                refill: Refill::new(STREAM, passed),
                next: 0,
                filled: Vec::new(),
            }
        }

        fn come(&mut self, place: u32, stream: u16, ssn: u16, flags: u8, number: u8) {
            let mut bytes = vec![wire::DATA, flags, 0, 19];
            bytes.extend(FIRST.wrapping_add(place).to_be_bytes());
            bytes.extend(stream.to_be_bytes());
            bytes.extend(FIRST_SSN.wrapping_add(ssn).to_be_bytes());
            bytes.extend([0, 0, 0, 53, 0x80, 1, number]);
            let (chunk, data) = Data::parse(&bytes).expect("is one");
            assert!(self.refill.note(place, &data, &chunk));
            self.next = self.refill.advance(self.next);
            for bytes in self.refill.fill(self.next, FIRST) {
                let (chunk, data) = Data::parse(&bytes).expect("is one");
                let number = number_of(&data, &chunk).expect("is whole");
                let place = data.tsn.wrapping_sub(FIRST);
                self.filled
                    .push((place, data.ssn.wrapping_sub(FIRST_SSN), number));
                self.refill.note(place, &data, &chunk);
            }
            self.next = self.refill.advance(self.next);
        }

        /// A numbered message; the sequence number is the place.
        fn say(&mut self, place: u32, number: u8) {
            self.come(place, STREAM, place as u16, WHOLE, number);
        }
    }

    #[test]
    fn a_gap_is_filled_once_all_of_it_was_sent_again() {
        let mut wire = Wire::new(30);
        wire.say(0, 31);
        wire.say(3, 34);
        wire.say(4, 32);
        assert_eq!(wire.filled, []);
        wire.say(5, 33);
        assert_eq!(wire.filled, [(1, 1, 32), (2, 2, 33)]);
        assert_eq!(wire.next, 6);
        // One more, and a chunk of another stream in the middle, which came.
        wire.come(8, 7, 0, WHOLE | wire::UNORDERED, 99);
        wire.come(9, STREAM, 8, WHOLE, 37);
        wire.come(10, STREAM, 9, WHOLE, 35);
        wire.come(11, STREAM, 10, WHOLE, 36);
        assert_eq!(wire.filled[2..], [(6, 6, 35), (7, 7, 36)]);
        assert_eq!(wire.next, 12);
    }

    #[test]
    fn what_was_lost_with_its_copies_is_filled_as_well() {
        let mut wire = Wire::new(0);
        wire.say(0, 1);
        // 2 and 3 are lost, and 2 when it was sent again; then comes what is new.
        wire.say(4, 3);
        wire.say(5, 4);
        assert_eq!(wire.filled, []);
        wire.say(6, 2);
        assert_eq!(wire.filled, [(1, 1, 2), (2, 2, 3), (3, 3, 4)]);
    }

    #[test]
    fn what_may_be_of_another_kind_is_left_to_the_client() {
        // A chunk of another stream is missing.
        let mut wire = Wire::new(0);
        wire.say(0, 1);
        wire.come(2, STREAM, 1, WHOLE, 2);
        wire.come(3, STREAM, 2, WHOLE, 2);
        // Of a message of several chunks the end is missing, the middle, the beginning.
        for (came, flags) in [(1, wire::BEGIN), (1, 0), (2, wire::END)] {
            let mut wire = Wire::new(0);
            wire.say(0, 1);
            wire.come(came, STREAM, 1, flags, 2);
            wire.come(3, STREAM, 2, WHOLE, 3);
            wire.come(4, STREAM, 3, WHOLE, 2);
            assert_eq!(wire.filled, [], "{came} {flags}");
        }
        // A message of several chunks came before, so that nobody knows where the numbers stand.
        let mut later = Wire::new(0);
        later.say(0, 1);
        later.come(1, STREAM, 1, wire::BEGIN, 0);
        later.come(2, STREAM, 1, wire::END, 0);
        later.come(4, STREAM, 3, WHOLE, 4);
        later.come(5, STREAM, 4, WHOLE, 2);
        later.come(6, STREAM, 5, WHOLE, 3);
        // Messages without numbers.
        let mut bare = Wire::new(0);
        bare.say(0, 0);
        bare.say(2, 0);
        for wire in [wire, later, bare] {
            assert_eq!(wire.filled, []);
        }
    }

    #[test]
    fn a_number_after_a_long_message_counts_again() {
        let mut wire = Wire::new(0);
        wire.say(0, 1);
        wire.come(1, STREAM, 1, wire::BEGIN, 0);
        wire.come(2, STREAM, 1, wire::END, 0);
        wire.come(3, STREAM, 2, WHOLE, 1);
        wire.come(4, STREAM, 3, WHOLE, 3);
        wire.come(6, STREAM, 5, WHOLE, 5);
        wire.come(7, STREAM, 6, WHOLE, 4);
        assert_eq!(wire.filled, [(5, 4, 4)]);
    }

    #[test]
    fn there_is_an_end_to_what_is_looked_at() {
        let mut refill = Refill::new(STREAM, 0);
        let bytes = [
            wire::DATA,
            WHOLE,
            0,
            16,
            0,
            0,
            0,
            0,
            0,
            2,
            0,
            0,
            0,
            0,
            0,
            53,
        ];
        let (chunk, data) = Data::parse(&bytes).expect("is one");
        let places = 1..=BEHIND_MAX as u32 + 1;
        let taken = places.take_while(|place| refill.note(*place, &data, &chunk));
        assert_eq!(taken.count(), BEHIND_MAX);
    }
}
