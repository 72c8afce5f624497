//! Numbered messages that overtake older ones of their sender, while a session that has been taken over settles.
//!
//! ```text
//! sender's node ── what is new ────────────────────┐
//! other nodes ──── what was lost with the home ────┴─ session ─ client: in order, or not at all
//! ```
//! Each node sends again what it has, in order, but each on its own way. A client drops what is older than the last
//! message it has, so newer ones wait here for older ones, though not for long: what is missing may have been meant for
//! others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::id::ParticipantSid;

use super::core::Core;
use super::live::Live;
use crate::data::DataOut;

/// For so long after a takeover messages wait for older ones. Rises: more is saved where nodes are slow, and what
/// follows a message for others comes later.
const SETTLES: Duration = Duration::from_millis(700);

/// Messages of a session that settles.
#[derive(Debug)]
pub(super) struct Early {
    until: Instant,
    waiting: BTreeMap<(ParticipantSid, u32), Arc<DataOut>>,
    bytes: usize,
}

impl Early {
    /// The session goes on here from now on.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            until: now + SETTLES,
            waiting: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub(super) const fn deadline(&self) -> Instant {
        self.until
    }

    fn push(&mut self, message: &Arc<DataOut>) {
        let key = (message.from.clone(), message.sequence);
        if self.waiting.insert(key, Arc::clone(message)).is_none() {
            self.bytes += message.payload.len();
        }
    }

    fn take(&mut self, from: &ParticipantSid, sequence: u32) -> Option<Arc<DataOut>> {
        let message = self.waiting.remove(&(from.clone(), sequence))?;
        self.bytes -= message.payload.len();
        Some(message)
    }
}

impl Live {
    /// Lets a message wait if older ones of its sender may still come; whether it waits.
    pub(super) fn waits_for_older(&mut self, core: &mut Core, message: &Arc<DataOut>) -> bool {
        let last = self.channels.last_received(&message.from);
        let Some(early) = &mut self.early else {
            return false;
        };
        if message.sequence <= last.saturating_add(1) {
            return false;
        }
        early.push(message);
        if early.bytes > core.config.limits.data_queue_bytes_max {
            self.settle(core);
        }
        true
    }

    /// Passes on what has waited for the last message of this sender.
    pub(super) fn release_next(&mut self, core: &mut Core, from: &ParticipantSid) {
        while let Some(early) = &mut self.early {
            let next = self.channels.last_received(from).saturating_add(1);
            let Some(message) = early.take(from, next) else {
                return;
            };
            self.deliver_data(core, &message);
        }
    }

    /// What is missing does not come any more.
    pub(super) fn settle(&mut self, core: &mut Core) {
        let waiting = self.early.take().map(|early| early.waiting);
        for message in waiting.into_iter().flatten().map(|(_, message)| message) {
            self.deliver_data(core, &message);
        }
    }
}
