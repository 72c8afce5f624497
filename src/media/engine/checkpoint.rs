//! Reports what another node needs to continue a peer connection, before it is needed.
//!
//! A checkpoint is due when a connection comes up, soon after something that a takeover cannot guess
//! (a stream's first packet, a rollover of its sequence numbers), and every
//! `EngineConfig::checkpoint_interval` as long as packets come. A connection at rest is asked once
//! per interval and reports nothing.

use std::time::{Duration, Instant};

use super::Engine;
use crate::command::PeerId;
use crate::event::Event;
use crate::peer::passage::SENT_MAX;

/// Least time between two checkpoints of a peer, however much happens: a client that makes up
/// streams costs no more than this.
const PAUSE: Duration = Duration::from_millis(50);

impl Engine {
    /// Reports a peer's state now, if it is connected.
    pub(super) fn checkpoint(&mut self, now: Instant, id: PeerId) {
        let interval = self.config.checkpoint_interval;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(snapshot) = peer.transport.export() else {
            return;
        };
        let (mut passage, mut descriptions) = (None, None);
        if self.config.moves {
            passage = peer.passage(now, id, &self.router).map(Box::new);
            descriptions = peer.described.take_new();
            peer.transport.allow(SENT_MAX);
        }
        peer.checkpoint.made = Some((now, peer.transport.progress()));
        peer.checkpoint.due = Some(now + interval);
        if let Some(receiver) = peer.transport.receiver() {
            receiver.take_news();
        }
        let snapshot = Box::new(snapshot);
        self.push_event(Event::Checkpoint {
            peer: id,
            snapshot,
            passage,
            descriptions,
        });
    }

    /// Something came that the last checkpoint does not tell.
    #[cold]
    pub(super) fn hasten_checkpoint(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let made = peer.checkpoint.made.map_or(now, |(at, _)| at + PAUSE);
        let due = made.max(now);
        if peer.checkpoint.due.is_none_or(|known| due < known) {
            peer.checkpoint.due = Some(due);
            peer.checkpoint.is_urgent = true;
            if peer.set_scheduled(due) {
                self.schedule.push(due, id);
            }
        }
    }

    /// Reports a peer's state if it is time and the state has changed.
    pub(super) fn checkpoint_if_due(&mut self, now: Instant, id: PeerId) {
        let interval = self.config.checkpoint_interval;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.checkpoint.due.is_none_or(|due| now < due) {
            return;
        }
        let progress = peer.transport.progress();
        let is_known = peer.checkpoint.made.is_some_and(|(_, at)| at == progress);
        if std::mem::take(&mut peer.checkpoint.is_urgent) || !is_known {
            peer.checkpoint.due = None;
            self.checkpoint(now, id);
        } else {
            peer.checkpoint.due = Some(now + interval);
        }
    }
}
