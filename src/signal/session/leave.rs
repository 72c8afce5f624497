//! The end of a session: by the client's wish, by an administrator's, or because the client is gone.

use std::time::{Duration, Instant};

use flotilla_model::command::Command;
use flotilla_model::event::RoomEvent;
use flotilla_model::id::Epoch;
use flotilla_model::participant::LeaveReason;
use livekit_protocol as proto;
use proto::leave_request::Action;
use proto::signal_response::Message;

use super::core::{Core, Flow};
use super::live::Live;
use super::proposals::Purpose;
use super::{Input, Output, Phase, Session};
use crate::connect::HttpError;

/// So long a client is left alone after a resume. SDKs consider one under way until the media has been up
/// for some time, two to four seconds, and take a connection that closes before that for its failure:
/// they join anew.
pub const RESUME_SETTLE: Duration = Duration::from_secs(5);

/// A departure on its way through the log. It is asked for until it is decided; until then the
/// session keeps its place in the shell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    pub(super) reason: LeaveReason,
    /// Whether the participant has been in the room; a join without an answer may still come.
    was_in: bool,
}

impl Leaving {
    /// `epoch` is the participant's as far as it is known here. If it has a newer one, it is served
    /// elsewhere and stays, unless its client wants to go.
    pub(super) fn propose(core: &mut Core, reason: LeaveReason, epoch: Option<Epoch>) -> Self {
        core.close_signal();
        core.proposals.clear();
        let (room, identity) = (core.room.clone(), core.identity.clone());
        let sid = core.sid.clone();
        let command = match epoch.filter(|_| reason != LeaveReason::ClientInitiated) {
            Some(epoch) => Command::Depart {
                room,
                identity,
                sid,
                epoch,
                reason,
            },
            None => Command::Leave {
                room,
                identity,
                sid: Some(sid),
                reason,
                revoke_before: None,
            },
        };
        core.propose(command, Purpose::Leave);
        let was_in = epoch.is_some();
        Self { reason, was_in }
    }

    pub(super) fn handle_event(self, core: &Core, change: &RoomEvent) -> Flow {
        match change {
            RoomEvent::ParticipantLeft { participant, .. } if participant.sid == core.sid => {
                Flow::End(self.reason)
            }
            _ => Flow::Stay,
        }
    }

    /// After a gap of the feed the departure may be over: somebody else has said it, or the client has joined anew.
    pub(super) fn handle(self, core: &Core, input: &Input<'_>) -> Flow {
        let Input::Snapshot { room } = input else {
            return Flow::Stay;
        };
        let present = room.and_then(|room| room.participants.get(&core.identity));
        let is_in = present.is_some_and(|present| present.sid == core.sid);
        if self.was_in && !is_in {
            Flow::End(self.reason)
        } else {
            Flow::Stay
        }
    }
}

/// The room says that this participant is no longer in it: tells the client, and what to do now.
pub(super) fn dismiss(core: &mut Core, reason: LeaveReason) -> Flow {
    let action = match reason {
        LeaveReason::ClientInitiated
        | LeaveReason::DuplicateIdentity
        | LeaveReason::ParticipantRemoved
        | LeaveReason::RoomDeleted
        | LeaveReason::RoomClosed
        | LeaveReason::JoinFailure => Action::Disconnect,
        // The cluster gave up a client that is still here: it may come in again.
        LeaveReason::Unknown
        | LeaveReason::ServerShutdown
        | LeaveReason::StateMismatch
        | LeaveReason::SignalClose
        | LeaveReason::ConnectionTimeout
        | LeaveReason::MediaFailure => Action::Reconnect,
    };
    send_leave(core, reason as i32, action);
    Flow::End(reason)
}

/// Makes the client resume.
pub(super) fn ask_to_resume(core: &mut Core, reason: i32) {
    if core.resumes_on_close {
        core.close_signal();
    } else {
        send_leave(core, reason, Action::Resume);
        core.leave_signal();
    }
}

/// Sends `leave`. Clients that do not know actions yet are told by `can_reconnect`.
pub(super) fn send_leave(core: &mut Core, reason: i32, action: Action) {
    core.reply(Message::Leave(proto::LeaveRequest {
        can_reconnect: action == Action::Reconnect,
        reason,
        action: action as i32,
        regions: None,
    }));
}

/// Another node serves this participant now: the client resumes there, and nothing that would end the
/// session is said to anybody.
pub(super) fn hand_over(core: &mut Core) -> Flow {
    let reason = proto::DisconnectReason::Migration as i32;
    ask_to_resume(core, reason);
    Flow::End(LeaveReason::Unknown)
}

/// Sends the client away to join anew.
pub(super) fn expel(core: &mut Core, reason: LeaveReason) -> Flow {
    send_leave(core, reason as i32, Action::Reconnect);
    Flow::Leave(reason)
}

impl Session {
    /// Asks the client to resume, which it may do elsewhere.
    pub(super) fn handle_drain(&mut self, now: Instant) -> Flow {
        if let Phase::Live(live) = &mut self.phase {
            live.drain(&mut self.core, now);
        }
        Flow::Stay
    }

    pub(super) fn handle_lease_holds(&mut self) -> Flow {
        self.core.lapsed = false;
        if let Phase::Live(live) = &mut self.phase {
            live.set_quiet(&mut self.core, false);
        }
        Flow::Stay
    }

    /// While the node may not serve, nobody here knows who serves a client without a connection, and that one begins
    /// without a word from this session: the client lost its connection or was told to resume, and is sent nothing.
    /// If it finds nobody it comes back, and goes on here.
    pub(super) fn hush(&mut self) {
        if let Phase::Live(live) = &mut self.phase
            && self.core.lapsed
            && !self.core.connected
        {
            live.set_quiet(&mut self.core, true);
        }
    }

    /// The node stops: clients come back through another one.
    pub(super) fn handle_shutdown(&mut self) -> Flow {
        match &self.phase {
            Phase::Live(_) => expel(&mut self.core, LeaveReason::ServerShutdown),
            Phase::Joining(_) => {
                let refusal = HttpError::unavailable("server is shutting down");
                self.core.output(Output::Refuse(refusal));
                self.core.connected = false;
                Flow::Leave(LeaveReason::ServerShutdown)
            }
            // The client tries the next node; the participant stays.
            Phase::Adopting(_) => {
                self.core.close_signal();
                Flow::End(LeaveReason::Unknown)
            }
            Phase::Leaving(_) | Phase::Ended(_) => Flow::Stay,
        }
    }
}

impl Live {
    /// Media goes on meanwhile. A client that does not come back anywhere leaves as others do. One that
    /// has just resumed is asked a little later.
    pub(super) fn drain(&mut self, core: &mut Core, now: Instant) {
        if !core.connected {
            return;
        }
        let settled = self.resumed_at.map(|at| at + RESUME_SETTLE);
        self.drain_at = settled.filter(|settled| *settled > now);
        if self.drain_at.is_none() {
            let reason = proto::DisconnectReason::Migration as i32;
            ask_to_resume(core, reason);
            self.wait_for_resume(now + core.config.resume_timeout);
        }
    }
}
