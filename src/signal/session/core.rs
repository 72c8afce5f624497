//! What every phase of a session needs: ids, clock, outputs and the queue of proposals.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use flotilla_model::command::Command;
use flotilla_model::id::{Identity, ParticipantSid, RoomName, UnixMillis};
use flotilla_model::participant::Client;
use livekit_protocol as proto;
use proto::request_response::{Reason, Request};
use proto::signal_response::Message;

use super::proposals::{Proposal, Proposals, Purpose};
use super::{Close, CommitError, Discards, Output};
use crate::config::SessionConfig;
use crate::id_source::IdSource;
use crate::media;
use crate::token::Claims;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: Arc<SessionConfig>,
    pub(super) ids: IdSource,
    pub(super) proposals: Proposals,
    pub(super) room: RoomName,
    pub(super) identity: Identity,
    pub(super) sid: ParticipantSid,
    pub(super) claims: Claims,
    /// Client's signal protocol version.
    pub(super) protocol: u32,
    /// The client resumes when its signal connection closes, and is asked to in no other way.
    pub(super) resumes_on_close: bool,
    pub(super) single: bool,
    /// There is a signal connection; without one replies are dropped, because a resume brings
    /// everything anew.
    pub(super) connected: bool,
    /// The node may not serve at the moment, and others may.
    pub(super) lapsed: bool,
    /// The engine has no peers of this session yet: it would not know what is meant.
    pub(super) peers_pending: bool,
    pub(super) discards: Discards,
    outputs: VecDeque<Output>,
    started: Instant,
    started_wall: UnixMillis,
}

/// Where a session goes after an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Flow {
    /// On as before.
    Stay,
    /// Out of the room: the departure is proposed.
    Leave(flotilla_model::participant::LeaveReason),
    /// Over: the room knows already.
    End(flotilla_model::participant::LeaveReason),
}

impl Core {
    pub(super) fn new(
        config: Arc<SessionConfig>,
        ids: IdSource,
        room: RoomName,
        (identity, sid): (Identity, ParticipantSid),
        claims: Claims,
        (started, started_wall): (Instant, UnixMillis),
    ) -> Self {
        Self {
            proposals: Proposals::new(config.limits.proposals_max),
            config,
            ids,
            room,
            identity,
            sid,
            claims,
            protocol: 0,
            resumes_on_close: false,
            single: false,
            connected: true,
            lapsed: false,
            peers_pending: false,
            discards: Discards::default(),
            outputs: VecDeque::new(),
            started,
            started_wall,
        }
    }

    /// Wall clock at `now`.
    pub(super) fn wall(&self, now: Instant) -> UnixMillis {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        UnixMillis(self.started_wall.0.saturating_add(elapsed))
    }

    pub(super) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Takes note of what the client is.
    pub(super) fn know(&mut self, client: &Client) {
        use proto::client_info::Sdk;

        self.protocol = client.protocol;
        self.single = client.single_peer_connection;
        // SDKs on the Rust core note a connection that closes while they resume, as they themselves close
        // it, for a failure of the resume: the next time they join anew.
        let on_rust = [Sdk::Rust, Sdk::Python, Sdk::Node, Sdk::Cpp, Sdk::Unity];
        self.resumes_on_close =
            client.protocol <= 12 || on_rust.iter().any(|sdk| *sdk as i32 == client.sdk);
    }

    pub(super) fn reply(&mut self, message: Message) {
        if self.connected {
            self.output(Output::Reply(Box::new(proto::SignalResponse {
                message: Some(message),
            })));
        }
    }

    pub(super) fn media(&mut self, command: media::Command) {
        if !self.peers_pending {
            self.output(Output::Media(command));
        }
    }

    /// Closes the signal connection after what was said before.
    pub(super) fn close_signal(&mut self) {
        if self.connected {
            self.output(Output::Close(Close::Signal));
            self.connected = false;
        }
    }

    /// Leaves the signal connection to its client, who was told to resume.
    pub(super) fn leave_signal(&mut self) {
        if self.connected {
            self.output(Output::Close(Close::Farewell));
            self.connected = false;
        }
    }

    /// Queues a change; whether there was room for it.
    pub(super) fn propose(&mut self, command: Command, purpose: Purpose) -> bool {
        let request = self.ids.request();
        let proposal = Proposal {
            request,
            command,
            purpose,
        };
        let queued = self.proposals.push(proposal);
        self.fly();
        queued
    }

    /// Asks for the next change if none is under way.
    pub(super) fn fly(&mut self) {
        if let Some((request, command)) = self.proposals.take_off() {
            self.output(Output::Propose { request, command });
        }
    }

    pub(super) fn respond(
        &mut self,
        request_id: u32,
        reason: Reason,
        message: impl Into<String>,
        request: Option<Request>,
    ) {
        // Older clients know only of failures.
        if reason == Reason::Ok && (request_id == 0 || self.protocol <= 14) {
            return;
        }
        self.reply(Message::RequestResponse(proto::RequestResponse {
            request_id,
            reason: reason as i32,
            message: message.into(),
            request,
        }));
    }

    /// Tells the client why a request came to nothing.
    pub(super) fn respond_failed(
        &mut self,
        request_id: u32,
        error: &CommitError,
        request: Option<Request>,
    ) {
        use flotilla_model::command::Rejection;
        let reason = match error {
            CommitError::Rejected(Rejection::NotPermitted(_)) => Reason::NotAllowed,
            CommitError::Rejected(Rejection::LimitExceeded(_)) => Reason::LimitExceeded,
            CommitError::Rejected(Rejection::TrackNotFound | Rejection::ParticipantNotFound) => {
                Reason::NotFound
            }
            CommitError::Rejected(_) | CommitError::Unavailable(_) => Reason::UnclassifiedError,
        };
        self.respond(request_id, reason, error.to_string(), request);
    }
}
