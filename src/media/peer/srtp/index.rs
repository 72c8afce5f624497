//! Which packet indices of which SSRC were seen: a window per SSRC, in a dense table.
//! Used by both directions of SRTP: received indices must not come twice (replay), sent ones must
//! not be used twice (a nonce). RFC 3711 §3.3.1-3.3.2.

/// Indices that a window covers. More tolerates later retransmissions without RTX, which carry the
/// index of the original: two seconds of a 5 Mbit/s layer.
const WINDOW: u64 = 1024;
const WORDS: usize = (WINDOW / 64) as usize;
/// Indices that are told apart for certain; the word being filled costs up to one word.
const SPAN: u64 = WINDOW - 64;

/// Seen indices of one SSRC below its highest one. Advancing clears words, so that an index
/// touches one cache line beside the head.
#[derive(Clone, Default)]
pub(super) struct Window {
    /// Highest index seen, plus one; 0 if none.
    next: u64,
    bits: [u64; WORDS],
}

impl Window {
    /// Highest index seen.
    pub(super) fn highest(&self) -> Option<u64> {
        self.next.checked_sub(1)
    }

    /// The index that a sequence number most likely stands for: the nearest to the highest seen.
    pub(super) fn index_of(&self, sequence: u16) -> u64 {
        let Some(highest) = self.highest() else {
            return u64::from(sequence);
        };
        let distance = sequence.wrapping_sub(highest as u16).cast_signed();
        // Nothing precedes rollover 0: what seems to can only be far ahead.
        highest
            .checked_add_signed(i64::from(distance))
            .unwrap_or(u64::from(sequence))
    }

    /// As [`Window::index_of`], but `None` where only a guess would do: ahead by half the numbers.
    pub(super) fn index_to_send(&self, sequence: u16) -> Option<u64> {
        let Some(highest) = self.highest() else {
            return Some(u64::from(sequence));
        };
        let distance = sequence.wrapping_sub(highest as u16).cast_signed();
        highest
            .checked_add_signed(i64::from(distance))
            .filter(|index| index >> 48 == 0)
    }

    /// Whether an index was not seen and is not too old to tell.
    pub(super) fn is_new(&self, index: u64) -> bool {
        if index >= self.next {
            return true;
        }
        index + SPAN >= self.next && self.bits[word(index)] & bit(index) == 0
    }

    /// Notes an index; false if it was not new.
    pub(super) fn accept(&mut self, index: u64) -> bool {
        if !self.is_new(index) {
            return false;
        }
        self.clear_up_to(index);
        self.bits[word(index)] |= bit(index);
        self.next = self.next.max(index + 1);
        true
    }

    /// Takes everything up to and including `index` for seen; no effect below the highest.
    pub(super) fn advance(&mut self, index: u64) {
        if index >= self.next {
            self.bits = [u64::MAX; WORDS];
            self.next = index + 1;
        }
        // The bits above `index` in its word belong to indices still to come.
        let in_word = self.next % 64;
        if in_word != 0 {
            self.bits[word(self.next)] &= (1 << in_word) - 1;
        }
    }

    /// Clears the words between the highest index and a higher one.
    fn clear_up_to(&mut self, index: u64) {
        let Some(highest) = self.highest() else {
            return;
        };
        let (from, to) = (highest / 64, index / 64);
        if to <= from {
            return;
        }
        for step in 1..=(to - from).min(WORDS as u64) {
            self.bits[((from + step) % WORDS as u64) as usize] = 0;
        }
    }
}

const fn word(index: u64) -> usize {
    ((index / 64) % WORDS as u64) as usize
}

const fn bit(index: u64) -> u64 {
    1 << (index % 64)
}

/// State per SSRC: values side by side, found through open addressing over a power of two of slots
/// that is at most half full. A packet's look-up is one multiplication and, mostly, one probe.
pub(super) struct Streams<V> {
    values: Vec<Stream<V>>,
    /// SSRC and place in `values` plus one; 0 is empty.
    slots: Box<[(u32, u32)]>,
    max: usize,
    /// Counts uses, to find the value used least recently.
    clock: u64,
}

struct Stream<V> {
    ssrc: u32,
    used: u64,
    value: V,
}

impl<V: Default> Streams<V> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            values: Vec::new(),
            slots: vec![(0, 0); 16].into(),
            max,
            clock: 0,
        }
    }

    pub(super) fn get(&self, ssrc: u32) -> Option<&V> {
        self.find(ssrc).map(|at| &self.values[at].value)
    }

    /// The value of an SSRC, new if need be; `None` if it would be one too many or must not be.
    pub(super) fn get_or_insert(
        &mut self,
        ssrc: u32,
        is_forbidden: impl FnOnce() -> bool,
    ) -> Option<&mut V> {
        let at = match self.find(ssrc) {
            Some(at) => at,
            None if self.values.len() < self.max && !is_forbidden() => self.insert(ssrc),
            None => return None,
        };
        Some(&mut self.values[at].value)
    }

    /// The value of an SSRC, new if need be, in the place of the one used least recently if there
    /// are too many.
    pub(super) fn touch(&mut self, ssrc: u32) -> &mut V {
        let at = match self.find(ssrc) {
            Some(at) => at,
            None if self.values.len() < self.max => self.insert(ssrc),
            None => self.replace_oldest(ssrc),
        };
        self.clock += 1;
        let stream = &mut self.values[at];
        stream.used = self.clock;
        &mut stream.value
    }

    pub(super) const fn len(&self) -> usize {
        self.values.len()
    }

    /// Counts every use of [`Streams::touch`].
    pub(super) const fn clock(&self) -> u64 {
        self.clock
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.values.iter_mut().map(|stream| &mut stream.value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &V)> {
        self.values
            .iter()
            .map(|stream| (stream.ssrc, &stream.value))
    }

    fn find(&self, ssrc: u32) -> Option<usize> {
        let mut slot = self.start(ssrc);
        loop {
            match self.slots[slot] {
                (_, 0) => return None,
                (key, at) if key == ssrc => return Some(at as usize - 1),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
    }

    /// First slot to look at: the high bits of a multiplication mix all bits of the SSRC.
    fn start(&self, ssrc: u32) -> usize {
        let mixed = ssrc.wrapping_mul(0x9e37_79b1);
        (mixed >> (32 - self.slots.len().trailing_zeros())) as usize
    }

    fn insert(&mut self, ssrc: u32) -> usize {
        self.values.push(Stream {
            ssrc,
            used: 0,
            value: V::default(),
        });
        if self.values.len() * 2 > self.slots.len() {
            self.slots = vec![(0, 0); self.slots.len() * 2].into();
            self.index_all();
        } else {
            self.index_one(self.values.len() - 1);
        }
        self.values.len() - 1
    }

    fn replace_oldest(&mut self, ssrc: u32) -> usize {
        let at = (0..self.values.len())
            .min_by_key(|at| self.values[*at].used)
            .unwrap_or(0);
        self.values[at] = Stream {
            ssrc,
            used: 0,
            value: V::default(),
        };
        self.slots.fill((0, 0));
        self.index_all();
        at
    }

    fn index_all(&mut self) {
        for at in 0..self.values.len() {
            self.index_one(at);
        }
    }

    fn index_one(&mut self, at: usize) {
        let ssrc = self.values[at].ssrc;
        let mut slot = self.start(ssrc);
        while self.slots[slot].1 != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (ssrc, at as u32 + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_refuses_what_it_saw_and_what_is_too_old() {
        let mut window = Window::default();
        assert!(window.accept(5));
        assert!(!window.accept(5));
        assert!(window.accept(3));
        assert!(window.accept(2000));
        assert!(!window.accept(2000));
        assert!(!window.accept(2000 - SPAN));
        assert!(window.accept(2000 - SPAN + 1));
        assert!(window.accept(1999));
        assert!(!window.accept(1999));
    }

    #[test]
    fn window_agrees_with_a_set() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let (mut window, mut seen) = (Window::default(), std::collections::HashSet::new());
        let mut highest = 0_u64;
        for _ in 0..200_000 {
            let index =
                (highest + rng.random_range(0..80)).saturating_sub(rng.random_range(0..SPAN / 2));
            let fresh = !seen.contains(&index);
            if index + SPAN > highest {
                assert_eq!(window.accept(index), fresh, "{index} of {highest}");
                seen.insert(index);
                highest = highest.max(index);
            }
        }
    }

    #[test]
    fn advanced_window_takes_only_what_follows() {
        for index in [0, 62, 63, 64, 70_000] {
            let mut window = Window::default();
            window.accept(0);
            window.advance(index);
            assert!(!window.is_new(index), "{index}");
            assert!(!window.is_new(index.saturating_sub(500)));
            for next in 1..200 {
                assert!(window.accept(index + next), "{index} + {next}");
            }
        }
    }

    #[test]
    fn index_follows_the_nearest_rollover() {
        let mut window = Window::default();
        window.accept(65_530);
        assert_eq!(window.index_of(65_531), 65_531);
        assert_eq!(window.index_of(2), 65_538);
        window.accept(65_538);
        assert_eq!(window.index_of(65_535), 65_535);
        assert_eq!(window.index_of(3), 65_539);
    }

    #[test]
    fn nothing_is_sent_before_the_first_rollover() {
        let mut window = Window::default();
        window.accept(0);
        assert_eq!(window.index_to_send(65_535), None);
        assert_eq!(window.index_of(65_535), 65_535);
    }

    #[test]
    fn streams_grow_and_forget_the_oldest() {
        let mut streams = Streams::<u32>::new(100);
        for ssrc in 0..100_u32 {
            *streams.touch(ssrc.wrapping_mul(0x1_0001)) = ssrc;
        }
        for ssrc in 1..100_u32 {
            assert_eq!(*streams.touch(ssrc.wrapping_mul(0x1_0001)), ssrc);
        }
        assert!(streams.get_or_insert(7777, || false).is_none());
        assert!(streams.get_or_insert(0, || true).is_some(), "it is there");
        *streams.touch(7777) = 1;
        assert_eq!(streams.get(0), None);
        assert_eq!(streams.get(7777), Some(&1));
        assert_eq!(streams.iter().count(), 100);
        for ssrc in 1..100_u32 {
            assert_eq!(streams.get(ssrc.wrapping_mul(0x1_0001)), Some(&ssrc));
        }
    }
}
