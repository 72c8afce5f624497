//! What waits to be sent on one data channel, and whether the channel is open.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{DataLimits, SendError};
use crate::command::Channel;

/// Cost of an entry besides its bytes, so that empty messages are not free.
const ENTRY_BYTES: usize = 64;

/// A channel's label.
pub(super) const fn label(channel: Channel) -> &'static str {
    match channel {
        Channel::Reliable => "_reliable",
        Channel::Lossy => "_lossy",
        Channel::DataTrack => "_data_track",
    }
}

/// The channel with a label.
pub(super) fn labelled(text: &[u8]) -> Option<Channel> {
    [Channel::Reliable, Channel::Lossy, Channel::DataTrack]
        .into_iter()
        .find(|channel| label(*channel).as_bytes() == text)
}

/// One channel's way out.
pub(super) struct Outgoing {
    reliable: bool,
    /// Bytes that may wait. Reliable: a message too many is refused, so that its sender knows.
    /// Lossy: the oldest go, since newer ones say more.
    bytes_max: usize,
    state: State,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    dropped: u64,
}

#[derive(Clone, Copy)]
enum State {
    Closed,
    /// The stream is there, the client has not confirmed the channel.
    Opening(u16),
    Open(u16),
}

impl Outgoing {
    pub(super) fn new(channel: Channel, limits: &DataLimits) -> Self {
        let reliable = channel == Channel::Reliable;
        let bytes_max = if reliable {
            limits.reliable_bytes_max
        } else {
            limits.lossy_bytes_max
        };
        Self {
            reliable,
            bytes_max,
            state: State::Closed,
            queue: VecDeque::new(),
            queued_bytes: 0,
            dropped: 0,
        }
    }

    pub(super) fn push(&mut self, message: Bytes) -> Result<(), SendError> {
        let cost = message.len() + ENTRY_BYTES;
        if self.reliable {
            if self.queued_bytes + cost > self.bytes_max {
                return Err(SendError::Full);
            }
        } else {
            if !self.is_open() {
                return Err(SendError::NotOpen);
            }
            if cost > self.bytes_max {
                return Err(SendError::TooLong);
            }
            while self.queued_bytes + cost > self.bytes_max && self.pop().is_some() {
                self.dropped += 1;
            }
        }
        self.queued_bytes += cost;
        self.queue.push_back(message);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let message = self.queue.pop_front()?;
        self.queued_bytes -= message.len() + ENTRY_BYTES;
        Some(message)
    }

    pub(super) const fn is_reliable(&self) -> bool {
        self.reliable
    }

    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The stream to write to, once the channel is open.
    pub(super) const fn stream(&self) -> Option<u16> {
        match self.state {
            State::Open(id) => Some(id),
            State::Closed | State::Opening(_) => None,
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    pub(super) const fn is_bound_to(&self, stream: u16) -> bool {
        match self.state {
            State::Closed => false,
            State::Opening(id) | State::Open(id) => id == stream,
        }
    }

    /// The channel's stream exists.
    pub(super) fn bind(&mut self, stream: u16) {
        if !self.is_bound_to(stream) {
            self.state = State::Opening(stream);
        }
    }

    /// The client has the channel; true if that is news.
    pub(super) fn confirm(&mut self) -> bool {
        if let State::Opening(id) = self.state {
            self.state = State::Open(id);
            return true;
        }
        false
    }

    /// The stream is gone. Reliable messages wait for another, lossy ones are void.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        if !self.reliable {
            self.queue.clear();
            self.queued_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DataLimits = DataLimits {
        message_bytes_max: 1000,
        reliable_bytes_max: 1000,
        lossy_bytes_max: 1000,
        hold_max: std::time::Duration::ZERO,
        reach: None,
    };

    #[test]
    fn a_full_reliable_channel_pushes_back() {
        let mut outgoing = Outgoing::new(Channel::Reliable, &LIMITS);
        for _ in 0..5 {
            assert_eq!(outgoing.push(Bytes::from(vec![0; 136])), Ok(()));
        }
        assert_eq!(outgoing.push(Bytes::new()), Err(SendError::Full));
        assert!(outgoing.pop().is_some());
        assert_eq!(outgoing.push(Bytes::from(vec![0; 136])), Ok(()));
        assert_eq!(outgoing.dropped(), 0);
    }

    #[test]
    fn a_full_lossy_channel_drops_the_oldest() {
        let mut outgoing = Outgoing::new(Channel::Lossy, &LIMITS);
        assert_eq!(
            outgoing.push(Bytes::from_static(b"x")),
            Err(SendError::NotOpen)
        );
        outgoing.bind(3);
        assert!(outgoing.confirm());
        for index in 0..8_u8 {
            assert_eq!(outgoing.push(Bytes::from(vec![index; 136])), Ok(()));
        }
        assert_eq!(outgoing.dropped(), 3);
        assert_eq!(outgoing.pop(), Some(Bytes::from(vec![3; 136])));
        outgoing.close();
        assert_eq!(outgoing.pop(), None);
        assert_eq!(outgoing.queued_bytes, 0);
    }

    #[test]
    fn labels_go_both_ways() {
        for channel in [Channel::Reliable, Channel::Lossy, Channel::DataTrack] {
            assert_eq!(labelled(label(channel).as_bytes()), Some(channel));
        }
        assert_eq!(labelled(b"_other"), None);
    }
}
