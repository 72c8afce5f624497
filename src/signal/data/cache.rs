//! What a room remembers of its data messages: the last seconds for those who have just joined, and
//! the nonces of the API's `SendData`. Owned by the node, one each per room.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::id::{ParticipantSid, UnixMillis};

use super::DataOut;
use crate::media::Channel;

/// Bytes kept for joiners; the oldest messages go first.
const JOIN_BYTES_MAX: usize = 100_000;
/// Bytes kept for them, per room and node. When it falls, a busy room loses messages in a takeover.
const MOVE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A message that is kept.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When it was sent.
    pub at: Instant,
    /// The log's time then, as the sender's node had it; 0: not known.
    pub log_time: UnixMillis,
    /// The message.
    pub message: Arc<DataOut>,
}

impl Sent {
    /// Whether it was certainly sent before somebody joined at this time of the log.
    #[must_use]
    pub fn is_before(&self, joined: UnixMillis) -> bool {
        self.log_time.0 != 0 && self.log_time < joined
    }
}

/// Recent numbered reliable messages of a room, replayed to a session right after its join and
/// before any newer message: sessions drop numbers that are not above the last one of a sender.
#[derive(Clone, Debug)]
pub struct Cache {
    messages: VecDeque<Sent>,
    /// Numbers of each sender's messages among them.
    numbers: BTreeMap<ParticipantSid, BTreeSet<u32>>,
    bytes: usize,
    age_max: Duration,
    bytes_max: usize,
}

impl Cache {
    /// How long a message is kept for joiners. When it falls, messages sent while somebody joins get lost.
    pub const JOIN_AGE_MAX: Duration = Duration::from_secs(2);
    /// How long messages are kept for those who move to another node.
    pub const MOVE_AGE_MAX: Duration = Duration::from_secs(20);

    /// For those who join.
    #[must_use]
    pub fn for_joins() -> Self {
        Self::new(Self::JOIN_AGE_MAX, JOIN_BYTES_MAX)
    }

    /// For those who are taken over by another node: what was on its way to them is lost with the
    /// former home.
    #[must_use]
    pub fn for_moves() -> Self {
        Self::new(Self::MOVE_AGE_MAX, MOVE_BYTES_MAX)
    }

    fn new(age_max: Duration, bytes_max: usize) -> Self {
        Self {
            messages: VecDeque::new(),
            numbers: BTreeMap::new(),
            bytes: 0,
            age_max,
            bytes_max,
        }
    }

    /// Remembers a message, if it is one that is replayed, once.
    pub fn push(&mut self, sent: Sent) {
        let (at, message) = (sent.at, &sent.message);
        if message.channel != Channel::Reliable || message.sequence == 0 {
            return;
        }
        let numbers = self.numbers.entry(message.from.clone()).or_default();
        if numbers.insert(message.sequence) {
            self.bytes += message.payload.len();
            self.messages.push_back(sent);
            self.expire(at);
        }
    }

    /// What somebody new gets, oldest first.
    pub fn replay(&mut self, now: Instant) -> impl Iterator<Item = &Sent> {
        self.expire(now);
        self.messages.iter()
    }

    /// What somebody gets again who joined at this time of the log, oldest first.
    pub fn replay_since(
        &mut self,
        now: Instant,
        joined: UnixMillis,
    ) -> impl Iterator<Item = &Sent> {
        self.replay(now).filter(move |sent| !sent.is_before(joined))
    }

    /// Numbers that are kept, as runs without a gap `(sender, first, last)`: of each sender the highest ones, `max` runs
    /// at most.
    pub fn runs(&self, max: usize) -> impl Iterator<Item = (&ParticipantSid, u32, u32)> {
        self.numbers.iter().flat_map(move |(sender, numbers)| {
            let mut numbers = numbers.iter().rev().copied().peekable();
            let runs = std::iter::from_fn(move || {
                let last = numbers.next()?;
                let mut first = last;
                while let Some(number) = numbers.next_if(|number| number + 1 == first) {
                    first = number;
                }
                Some((sender, first, last))
            });
            runs.take(max)
        })
    }

    /// Forgets a sender's messages.
    pub fn forget(&mut self, sender: &ParticipantSid) {
        if self.numbers.remove(sender).is_some() {
            self.messages.retain(|sent| sent.message.from != *sender);
            let sizes = self.messages.iter().map(|sent| sent.message.payload.len());
            self.bytes = sizes.sum();
        }
    }

    /// Forgets what is too old. Whether nothing is left.
    pub fn is_empty_by(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.messages.is_empty()
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Sent { at, message, .. }) = self.messages.front() {
            if self.bytes <= self.bytes_max && now.saturating_duration_since(*at) <= self.age_max {
                break;
            }
            self.bytes -= message.payload.len();
            if let Some(numbers) = self.numbers.get_mut(&message.from) {
                numbers.remove(&message.sequence);
                if numbers.is_empty() {
                    self.numbers.remove(&message.from);
                }
            }
            self.messages.pop_front();
        }
    }
}

/// How many nonces are remembered.
const NONCES_MAX: usize = 100;

/// The nonces of a room's last `SendData` calls; a repeated one is sent once.
#[derive(Clone, Debug, Default)]
pub struct Nonces(VecDeque<[u8; 16]>);

impl Nonces {
    /// Remembers a nonce; whether it is new. Calls without nonce are always new.
    pub fn insert(&mut self, nonce: Option<[u8; 16]>) -> bool {
        let Some(nonce) = nonce else {
            return true;
        };
        if self.0.contains(&nonce) {
            return false;
        }
        if self.0.len() >= NONCES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(nonce);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(sequence: u32, bytes: usize) -> Arc<DataOut> {
        Arc::new(DataOut {
            from: "PA_a".into(),
            from_identity: "a".into(),
            channel: Channel::Reliable,
            destinations: Vec::new(),
            sequence,
            content: 2,
            payload: Bytes::from(vec![0; bytes]),
        })
    }

    fn sent(at: Instant, message: &Arc<DataOut>) -> Sent {
        Sent {
            at,
            log_time: UnixMillis(0),
            message: Arc::clone(message),
        }
    }

    fn numbers(cache: &mut Cache, now: Instant) -> Vec<u32> {
        let messages = cache.replay(now);
        messages.map(|sent| sent.message.sequence).collect()
    }

    #[test]
    fn runs_are_the_highest_numbers_without_a_gap() {
        let now = crate::session::testing::start();
        let mut cache = Cache::for_moves();
        for number in [1, 2, 4, 5, 6, 9] {
            cache.push(sent(now, &message(number, 1)));
        }
        let runs = |max| -> Vec<(u32, u32)> {
            let runs = cache.runs(max);
            runs.map(|(_, first, last)| (first, last)).collect()
        };
        assert_eq!(runs(8), [(9, 9), (4, 6), (1, 2)]);
        assert_eq!(runs(2), [(9, 9), (4, 6)]);
        assert_eq!(runs(0), []);
    }

    #[test]
    fn joiners_get_the_last_two_seconds_in_order() {
        let start = crate::session::testing::start();
        let mut cache = Cache::for_joins();
        cache.push(sent(start, &message(1, 10)));
        cache.push(sent(start + Duration::from_millis(1500), &message(2, 10)));
        cache.push(sent(start + Duration::from_millis(1600), &message(0, 10)));
        assert_eq!(numbers(&mut cache, start + Cache::JOIN_AGE_MAX), [1, 2]);
        assert_eq!(
            numbers(
                &mut cache,
                start + Cache::JOIN_AGE_MAX + Duration::from_millis(1)
            ),
            [2]
        );
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_bytes() {
        let start = crate::session::testing::start();
        let mut cache = Cache::for_joins();
        for sequence in 1..=5 {
            cache.push(sent(start, &message(sequence, 40_000)));
        }
        assert_eq!(numbers(&mut cache, start), [4, 5]);
    }

    #[test]
    fn nobody_gets_again_what_was_said_before_they_joined() {
        let start = crate::session::testing::start();
        let mut cache = Cache::for_moves();
        for (sequence, log_time) in [(1, 700), (2, 0), (3, 900), (4, 1000)] {
            let log_time = UnixMillis(log_time);
            cache.push(Sent {
                log_time,
                ..sent(start, &message(sequence, 10))
            });
        }
        let again = cache.replay_since(start, UnixMillis(900));
        let again: Vec<u32> = again.map(|sent| sent.message.sequence).collect();
        assert_eq!(again, [2, 3, 4]);
        assert_eq!(numbers(&mut cache, start), [1, 2, 3, 4]);
    }

    #[test]
    fn what_comes_again_is_kept_once() {
        let start = crate::session::testing::start();
        let mut cache = Cache::for_moves();
        for sequence in [3, 4, 3, 2, 4] {
            cache.push(sent(start, &message(sequence, 10)));
        }
        let mut other = DataOut::clone(&message(3, 10));
        other.from = "PA_b".into();
        cache.push(sent(start + Duration::from_secs(1), &Arc::new(other)));
        assert_eq!(numbers(&mut cache, start), [3, 4, 2, 3]);
        let end = start + Cache::MOVE_AGE_MAX + Duration::from_millis(1);
        assert_eq!(numbers(&mut cache, end), [3]);
        assert_eq!((cache.bytes, cache.numbers.len()), (10, 1));
        cache.push(sent(end, &message(9, 10)));
        cache.forget(&"PA_b".into());
        assert_eq!(numbers(&mut cache, end), [9]);
        assert_eq!((cache.bytes, cache.numbers.len()), (10, 1));
        assert!(cache.is_empty_by(end + Duration::from_secs(21)));
    }

    #[test]
    fn a_nonce_counts_once_until_a_hundred_others_came() {
        let mut nonces = Nonces::default();
        let nonce = |number: u8| Some([number; 16]);
        assert!(nonces.insert(nonce(0)));
        assert!(!nonces.insert(nonce(0)));
        assert!(nonces.insert(None) && nonces.insert(None));
        for number in 1..=100 {
            assert!(nonces.insert(nonce(number)));
        }
        assert!(nonces.insert(nonce(0)));
    }
}
