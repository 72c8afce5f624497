//! Where sids and request ids come from: a generator seeded by the shell.
//!
//! Each session owns one. The numbers name things and are not secrets: whoever resumes a session
//! shows a token as well. The generator is xoshiro256++ (Blackman and Vigna, 2018).

use std::fmt;

use flotilla_model::id::{ParticipantSid, RequestId, RoomSid, TrackSid};
use flotilla_model::track::{Kind, Source};

/// Draws ids. The same seed draws the same ids.
#[derive(Clone)]
pub struct IdSource {
    state: [u64; 4],
}

impl fmt::Debug for IdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdSource")
    }
}

/// Letters of sids: no vowels that spell, none that look alike.
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPRSTUVWXYZa";
/// Letters per sid: 60 bits, so that a cluster never draws one twice.
const SID_LETTERS: usize = 12;

impl IdSource {
    /// A generator from 32 bytes of the shell's randomness.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        let mut state = [0u64; 4];
        for (word, bytes) in state.iter_mut().zip(seed.chunks_exact(8)) {
            *word = bytes
                .iter()
                .fold(0, |word, byte| (word << 8) | u64::from(*byte));
        }
        if state == [0; 4] {
            // The one state that the generator never leaves.
            state = [0x9e37_79b9_7f4a_7c15, 1, 2, 3];
        }
        let mut source = Self { state };
        for _ in 0..8 {
            source.next_u64();
        }
        source
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (mut c, mut d) = (c ^ a, d ^ b);
        let (b, a) = (b ^ c, a ^ d);
        c ^= self.state[1] << 17;
        d = d.rotate_left(45);
        self.state = [a, b, c, d];
        result
    }

    /// A request id.
    pub fn request(&mut self) -> RequestId {
        RequestId((u128::from(self.next_u64()) << 64) | u128::from(self.next_u64()))
    }

    /// `RM_…`
    pub fn room(&mut self) -> RoomSid {
        RoomSid(self.sid("RM_"))
    }

    /// `PA_…`
    pub fn participant(&mut self) -> ParticipantSid {
        ParticipantSid(self.sid("PA_"))
    }

    /// `TR_…` with letters for kind and source, as LiveKit has them.
    pub fn track(&mut self, kind: Kind, source: Source) -> TrackSid {
        let kind = match kind {
            Kind::Audio => 'A',
            Kind::Video => 'V',
        };
        let source = match source {
            Source::Camera => "C",
            Source::Microphone => "M",
            Source::ScreenShare => "S",
            Source::ScreenShareAudio => "s",
            Source::Unknown => "",
        };
        TrackSid(self.sid(&format!("TR_{kind}{source}")))
    }

    fn sid(&mut self, prefix: &str) -> String {
        let mut sid = String::with_capacity(prefix.len() + SID_LETTERS);
        sid.push_str(prefix);
        let mut bits = self.next_u64();
        for _ in 0..SID_LETTERS {
            sid.push(char::from(ALPHABET[(bits & 31) as usize]));
            bits >>= 5;
        }
        sid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn equal_seeds_draw_equal_ids_and_others_do_not() {
        let draw = |seed| {
            let mut source = IdSource::new(seed);
            (source.request(), source.participant(), source.room())
        };
        assert_eq!(draw([1; 32]), draw([1; 32]));
        assert_ne!(draw([1; 32]), draw([2; 32]));
    }

    #[test]
    fn ids_do_not_repeat() {
        let mut source = IdSource::new([0; 32]);
        let sids: BTreeSet<_> = (0..10_000).map(|_| source.participant()).collect();
        assert_eq!(sids.len(), 10_000);
    }

    #[test]
    fn prefixes_are_livekits() {
        let mut source = IdSource::new([7; 32]);
        assert!(source.room().as_str().starts_with("RM_"));
        let track = source.track(Kind::Video, Source::ScreenShare);
        assert!(track.as_str().starts_with("TR_VS"));
        assert_eq!(track.as_str().len(), 17);
    }
}
