//! A client that lost its signal connection and comes back for its session.
//!
//! Same node: everything is still here, so the client gets a new connection, the news it missed, and
//! brings its media up again by an offer of its own. A node that takes a session over
//! ([`super::adopt`]) answers the same way, from the replicated record.

use std::time::Instant;

use flotilla_model::id::{ParticipantSid, TrackSid};
use flotilla_model::participant::LeaveReason;
use livekit_protocol as proto;
use proto::SignalResponse;
use proto::leave_request::Action;
use proto::signal_response::Message;

use super::core::{Core, Flow};
use super::live::Live;
use super::{Phase, Resuming, Session, join, leave};
use crate::convert;
use crate::media;

/// What a test has asked for at the next resume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Disconnect {
    AfterMessages,
    AtOnce,
}

/// Receive states looked at in one `sync_state`.
const RECEIVE_STATES_MAX: usize = 4096;

/// First and only message for a client that wants a session back which is not here: it joins anew.
#[must_use]
pub fn refusal() -> SignalResponse {
    SignalResponse {
        message: Some(Message::Leave(proto::LeaveRequest {
            can_reconnect: true,
            reason: LeaveReason::StateMismatch as i32,
            action: Action::Reconnect as i32,
            regions: None,
        })),
    }
}

impl Session {
    /// The client may come back; one that has not joined yet may not.
    pub(super) fn handle_signal_closed(&mut self, now: Instant) -> Flow {
        self.core.connected = false;
        if let Phase::Adopting(_) = &self.phase {
            // Whoever it turns to next takes the participant over from the log's record.
            return Flow::End(LeaveReason::Unknown);
        }
        if let Phase::Live(live) = &mut self.phase {
            let by = now + self.core.config.resume_timeout;
            live.wait_for_resume(by);
        }
        Flow::Stay
    }

    pub(super) fn handle_resume(&mut self, now: Instant, resuming: Resuming) -> Flow {
        // The shell asks `is_resumable_by` first.
        if let Phase::Adopting(adoption) = &mut self.phase {
            self.core.connected = true;
            adoption.replace(resuming);
            return Flow::Stay;
        }
        let Phase::Live(live) = &mut self.phase else {
            return Flow::Stay;
        };
        live.resume(&mut self.core, now, resuming)
    }
}

impl Live {
    pub(super) fn wait_for_resume(&mut self, by: Instant) {
        self.resume_by = Some(self.resume_by.map_or(by, |earlier| earlier.min(by)));
    }

    pub(super) fn resume(&mut self, core: &mut Core, now: Instant, resuming: Resuming) -> Flow {
        core.connected = true;
        self.resume_by = None;
        self.resumed_at = Some(now);
        self.set_quiet(core, false);
        self.drain_at = self.drain_at.map(|_| now + leave::RESUME_SETTLE);
        self.leave_reason = LeaveReason::SignalClose;
        let disconnect = self.disconnect_on_resume.take();
        if disconnect == Some(Disconnect::AtOnce) {
            core.close_signal();
            self.wait_for_resume(now + core.config.resume_timeout);
            return Flow::Stay;
        }
        // The newer token is the one to go on with.
        core.claims.exp = core.claims.exp.max(resuming.claims.exp);
        // Clients drop everything that comes before this.
        core.reply(Message::Reconnect(proto::ReconnectResponse {
            ice_servers: Vec::new(),
            client_configuration: Some(join::client_configuration()),
            server_info: Some(convert::server_info(&core.config)),
            last_message_seq: self.channels.last_sequence(),
        }));
        self.tell_everything(core);
        self.send_room_update(core, now);
        self.refresh_token(core, now);
        self.repeat_published(core);
        if !core.single {
            // Without effect for a session that was just taken over: its peers are still to come.
            core.media(media::Command::RestartIce);
        }
        if disconnect == Some(Disconnect::AfterMessages) {
            core.close_signal();
            self.wait_for_resume(now + core.config.resume_timeout);
            return Flow::Stay;
        }
        match resuming.parameters.sync_state {
            Some(state) => self.handle_sync_state(core, &state),
            None => Flow::Stay,
        }
    }

    /// The client's view of its session. If it publishes what we do not know, it starts over.
    pub(super) fn handle_sync_state(&mut self, core: &mut Core, state: &proto::SyncState) -> Flow {
        let unknown = state
            .publish_tracks
            .iter()
            .filter_map(|published| published.track.as_ref())
            .find(|track| self.published.get(&TrackSid(track.sid.clone())).is_none());
        if let Some(track) = unknown {
            tracing::info!(room = %core.room, participant = %core.sid, track = track.sid, "client publishes an unknown track");
            return leave::expel(core, LeaveReason::StateMismatch);
        }
        if let Some(subscription) = &state.subscription {
            self.handle_synced_subscription(core, subscription);
        }
        self.disable_tracks(core, &state.track_sids_disabled);
        for received in state
            .datachannel_receive_states
            .iter()
            .take(RECEIVE_STATES_MAX)
        {
            let sender = ParticipantSid(received.publisher_sid.clone());
            self.note_received(sender, received.last_seq);
        }
        self.create_peers(core, Some(state));
        Flow::Stay
    }

    /// Only what the room does not know yet is proposed.
    fn handle_synced_subscription(&mut self, core: &mut Core, said: &proto::UpdateSubscription) {
        let wishes = &self.me.subscriptions;
        let changed = said
            .track_sids
            .iter()
            .chain(said.participant_tracks.iter().flat_map(|p| &p.track_sids))
            .take(core.config.limits.tracks_per_request_max)
            .map(|sid| TrackSid(sid.clone()))
            .filter(|sid| self.room.track(sid).is_some())
            .filter(|sid| {
                let known = wishes.explicit.get(sid).copied().unwrap_or(wishes.auto);
                known != said.subscribe
            })
            .map(|sid| (sid, said.subscribe))
            .collect();
        self.propose_subscriptions(core, changed);
    }
}
