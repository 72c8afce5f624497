//! Data messages: the client's out to the room, others' in to the client.
//!
//! What a client sends is stamped with its name and number before it leaves; what others send is
//! filtered and handed to the engine, once per number. Messages that come before the client's
//! channel is open wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use flotilla_model::id::{Identity, ParticipantSid};

use super::Output;
use super::core::Core;
use super::live::Live;
use crate::data::{DataOut, Inspected, Rewrite, content, inspect, rewrite};
use crate::media::{self, Channel, Target};

/// The channels on which the client receives, and the numbers seen.
#[derive(Debug)]
pub(super) struct Channels {
    queues: [Queue; 3],
    queue_bytes_max: usize,
    /// Highest number accepted from the client.
    sequence: u32,
    /// Highest number that a former home can have acknowledged to the client.
    acknowledged: u32,
    /// Highest number handed to the client, per sender.
    received: BTreeMap<ParticipantSid, u32>,
}

/// A channel that is not open yet and what waits for it. The oldest go first.
#[derive(Debug, Default)]
struct Queue {
    open: bool,
    waiting: VecDeque<Bytes>,
    bytes: usize,
}

/// Senders whose numbers are remembered. Beyond it, those that left are forgotten.
const SENDERS_MAX: usize = 1024;

impl Channels {
    pub(super) fn new(queue_bytes_max: usize) -> Self {
        Self {
            queues: Default::default(),
            queue_bytes_max,
            sequence: 0,
            acknowledged: 0,
            received: BTreeMap::new(),
        }
    }

    fn queue(&mut self, channel: Channel) -> &mut Queue {
        let [reliable, lossy, data_track] = &mut self.queues;
        match channel {
            Channel::Reliable => reliable,
            Channel::Lossy => lossy,
            Channel::DataTrack => data_track,
        }
    }

    /// Highest number accepted from the client: from there it sends again after a resume.
    pub(super) fn last_sequence(&self) -> u32 {
        self.sequence
    }

    /// Highest number of a sender's messages that was handed to the client, 0 if none was.
    pub(super) fn last_received(&self, sender: &ParticipantSid) -> u32 {
        self.received.get(sender).copied().unwrap_or_default()
    }

    /// Highest number that the client may have forgotten, since its message was acknowledged.
    pub(super) fn acknowledged(&self) -> u32 {
        self.acknowledged.max(self.sequence)
    }

    /// Goes on where a former home was: with the highest number accepted from the client, and the highest that
    /// can have been acknowledged.
    pub(super) fn go_on(&mut self, sequence: u32, acknowledged: u32) {
        self.sequence = sequence;
        self.acknowledged = acknowledged;
    }
}

impl Live {
    /// The client sends something.
    pub(super) fn handle_data(&mut self, core: &mut Core, channel: Channel, payload: &[u8]) {
        // Frames of data tracks are not packets, and no data track has been published.
        if channel == Channel::DataTrack || !self.me.permission.can_publish_data {
            core.discards.refused_data += 1;
            return;
        }
        if payload.len() > core.config.limits.data_message_bytes_max {
            core.discards.malformed_data += 1;
            return;
        }
        let Ok(seen) = inspect(payload) else {
            core.discards.malformed_data += 1;
            return;
        };
        if !self.may_send(seen.content) {
            core.discards.refused_data += 1;
            return;
        }
        if channel == Channel::Reliable && seen.sequence != 0 {
            if seen.sequence <= self.channels.sequence {
                core.discards.duplicate_data += 1;
                return;
            }
            tracing::trace!(sequence = seen.sequence, "the client sends data");
            let last = std::mem::replace(&mut self.channels.sequence, seen.sequence);
            if last.checked_add(1).is_some_and(|next| next < seen.sequence) {
                tracing::debug!(room = %core.room, participant = %core.sid, last, sequence = seen.sequence,
                    "messages of the client are missing");
            }
        }
        match self.stamp(channel, payload, seen) {
            Some(out) => core.output(Output::Data(Arc::new(out))),
            None => core.discards.malformed_data += 1,
        }
    }

    fn may_send(&self, content: u32) -> bool {
        match content {
            content::SPEAKER => false,
            content::TRANSCRIPTION => self.me.permission.agent,
            _ => true,
        }
    }

    /// The packet as others get it.
    fn stamp(&self, channel: Channel, payload: &[u8], seen: Inspected) -> Option<DataOut> {
        let hidden = self.me.permission.hidden;
        let destinations = self.destinations(&seen);
        // Whoever addresses only people that are not there addresses nobody.
        let to_sids_only = seen.destinations.is_empty() && !seen.destination_sids.is_empty();
        if to_sids_only && destinations.is_empty() {
            return None;
        }
        let identity = match (hidden, self.speaks_for_others(&seen)) {
            (true, _) => "",
            (false, true) => &seen.participant_identity,
            (false, false) => self.me.identity.as_str(),
        };
        let sequence = if hidden || channel != Channel::Reliable {
            0
        } else {
            seen.sequence
        };
        let with = Rewrite {
            lossy: channel != Channel::Reliable,
            identity,
            sid: if hidden { "" } else { self.me.sid.as_str() },
            sequence,
            destinations: &destinations,
        };
        let payload = rewrite(payload, &with).ok()?;
        Some(DataOut {
            from: self.me.sid.clone(),
            from_identity: self.me.identity.clone(),
            channel,
            destinations,
            sequence,
            content: seen.content,
            payload,
        })
    }

    /// Agents write down what others say.
    fn speaks_for_others(&self, seen: &Inspected) -> bool {
        self.me.permission.agent
            && !seen.participant_identity.is_empty()
            && matches!(
                seen.content,
                content::TRANSCRIPTION
                    | content::STREAM_HEADER
                    | content::STREAM_CHUNK
                    | content::STREAM_TRAILER
            )
    }

    fn destinations(&self, seen: &Inspected) -> Vec<Identity> {
        if !seen.destinations.is_empty() || seen.destination_sids.is_empty() {
            return seen.destinations.clone();
        }
        self.room
            .participants
            .values()
            .filter(|p| {
                seen.destination_sids
                    .iter()
                    .any(|sid| sid == p.sid.as_str())
            })
            .map(|participant| participant.identity.clone())
            .collect()
    }

    /// Somebody else sends something.
    pub(super) fn handle_data_of_others(&mut self, core: &mut Core, message: &Arc<DataOut>) {
        if message.from == core.sid || !message.is_for(&core.identity) {
            return;
        }
        if message.content == content::METRICS && !self.me.permission.can_subscribe_metrics {
            return;
        }
        if message.sequence == 0 {
            self.deliver_data(core, message);
        } else if !self.waits_for_older(core, message) {
            self.deliver_data(core, message);
            self.release_next(core, &message.from);
        }
    }

    /// Hands a message to the engine, unless it is a number that the client has.
    pub(super) fn deliver_data(&mut self, core: &mut Core, message: &DataOut) {
        if message.sequence != 0 && !self.accept(message) {
            core.discards.duplicate_data += 1;
            return;
        }
        tracing::trace!(from = %message.from, sequence = message.sequence, "data for the client");
        let sender = self
            .room
            .participants
            .get(&message.from_identity)
            .filter(|sender| sender.sid == message.from);
        if let Some(sender) = sender.map(Arc::clone) {
            self.ensure_told(core, &sender);
        }
        self.send_data(core, message.channel, message.payload.clone());
    }

    /// Whether a numbered message is newer than the last one of its sender.
    fn accept(&mut self, message: &DataOut) -> bool {
        let received = &mut self.channels.received;
        if received.len() >= SENDERS_MAX && !received.contains_key(&message.from) {
            let present: std::collections::BTreeSet<_> =
                self.room.participants.values().map(|p| &p.sid).collect();
            received.retain(|sid, _| present.contains(sid));
        }
        let last = received.entry(message.from.clone()).or_default();
        if message.sequence <= *last {
            return false;
        }
        *last = message.sequence;
        true
    }

    fn send_data(&mut self, core: &mut Core, channel: Channel, payload: Bytes) {
        let bytes_max = self.channels.queue_bytes_max;
        let queue = self.channels.queue(channel);
        if queue.open {
            core.media(media::Command::SendData { channel, payload });
            return;
        }
        queue.bytes += payload.len();
        queue.waiting.push_back(payload);
        while queue.bytes > bytes_max
            && let Some(oldest) = queue.waiting.pop_front()
        {
            queue.bytes -= oldest.len();
            core.discards.overflown_data += 1;
        }
    }

    /// Clients with two connections receive on the subscriber one.
    pub(super) fn handle_channel_open(
        &mut self,
        core: &mut Core,
        target: Target,
        channel: Channel,
    ) {
        if !core.single && target == Target::Publisher {
            return;
        }
        let queue = self.channels.queue(channel);
        tracing::trace!(
            ?channel,
            waiting = queue.waiting.len(),
            "the client's channel is open"
        );
        queue.open = true;
        queue.bytes = 0;
        for payload in std::mem::take(&mut queue.waiting) {
            core.media(media::Command::SendData { channel, payload });
        }
    }

    /// What a resuming client has received already, also from those who have left meanwhile: what they had
    /// sent comes once more.
    pub(super) fn note_received(&mut self, sender: ParticipantSid, sequence: u32) {
        let received = &mut self.channels.received;
        let is_present = || self.room.participants.values().any(|p| p.sid == sender);
        if received.len() < SENDERS_MAX || is_present() {
            let last = received.entry(sender).or_default();
            *last = sequence.max(*last);
        }
    }
}
