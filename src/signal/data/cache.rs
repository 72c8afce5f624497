//! What a room remembers of its data messages: the last seconds for those who have just joined, and
//! the nonces of the API's `SendData`. Owned by the node, one each per room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::DataOut;
use crate::media::Channel;

/// How long a message is kept for joiners. When it falls, messages sent while somebody joins get
/// lost.
const JOIN_AGE_MAX: Duration = Duration::from_secs(2);
/// Bytes kept for joiners; the oldest messages go first.
const JOIN_BYTES_MAX: usize = 100_000;
/// Bytes kept for them, per room and node. When it falls, a busy room loses messages in a takeover.
const MOVE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Recent numbered reliable messages of a room, replayed to a session right after its join and
/// before any newer message: sessions drop numbers that are not above the last one of a sender.
#[derive(Clone, Debug)]
pub struct Cache {
    messages: VecDeque<(Instant, Arc<DataOut>)>,
    bytes: usize,
    age_max: Duration,
    bytes_max: usize,
}

impl Cache {
    /// How long messages are kept for those who move to another node.
    pub const MOVE_AGE_MAX: Duration = Duration::from_secs(20);

    /// For those who join.
    #[must_use]
    pub fn for_joins() -> Self {
        Self::new(JOIN_AGE_MAX, JOIN_BYTES_MAX)
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
            bytes: 0,
            age_max,
            bytes_max,
        }
    }

    /// Remembers a message, if it is one that is replayed.
    pub fn push(&mut self, now: Instant, message: &Arc<DataOut>) {
        if message.channel != Channel::Reliable || message.sequence == 0 {
            return;
        }
        self.bytes += message.payload.len();
        self.messages.push_back((now, Arc::clone(message)));
        self.expire(now);
    }

    /// What somebody new gets, oldest first.
    pub fn replay(&mut self, now: Instant) -> impl Iterator<Item = &Arc<DataOut>> {
        self.expire(now);
        self.messages.iter().map(|(_, message)| message)
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, message)) = self.messages.front() {
            if self.bytes <= self.bytes_max && now.saturating_duration_since(*at) <= self.age_max {
                break;
            }
            self.bytes -= message.payload.len();
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

    fn numbers(cache: &mut Cache, now: Instant) -> Vec<u32> {
        cache.replay(now).map(|message| message.sequence).collect()
    }

    #[test]
    fn joiners_get_the_last_two_seconds_in_order() {
        let start = crate::session::testing::start();
        let mut cache = Cache::for_joins();
        cache.push(start, &message(1, 10));
        cache.push(start + Duration::from_millis(1500), &message(2, 10));
        cache.push(start + Duration::from_millis(1600), &message(0, 10));
        assert_eq!(numbers(&mut cache, start + JOIN_AGE_MAX), [1, 2]);
        assert_eq!(
            numbers(&mut cache, start + JOIN_AGE_MAX + Duration::from_millis(1)),
            [2]
        );
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_bytes() {
        let start = crate::session::testing::start();
        let mut cache = Cache::for_joins();
        for sequence in 1..=5 {
            cache.push(start, &message(sequence, 40_000));
        }
        assert_eq!(numbers(&mut cache, start), [4, 5]);
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
