//! One connected participant: its requests and the room's events in, answers and changes out.
//!
//! ```text
//! client's SignalRequest ─┐                    ┌─ Reply (to the client)
//! room events of the log ─┤                    ├─ Propose (to the log; comes back as Committed)
//! media events, data ─────┼─ Session::handle ──┼─ Media (to the engine)
//! speakers ───────────────┤    then poll()     ├─ Data (to the room's other sessions)
//! deadline reached ───────┘                    └─ Refuse / Close
//! ```
//!
//! The session's task in `flotilla-node` owns it. Room state is never changed here: a session
//! proposes and learns from events what came of it. LiveKit's signal protocol, versions 0 to 17.

use std::sync::Arc;
use std::time::Instant;

use flotilla_model::command::{Command, Rejection, Reply};
use flotilla_model::event::RoomEvent;
use flotilla_model::id::{Identity, ParticipantSid, RequestId, RoomName, TrackSid, UnixMillis};
use flotilla_model::participant::LeaveReason;
use flotilla_model::room::Room;
use livekit_protocol::{SignalRequest, SignalResponse};
use thiserror::Error;

use crate::config::SessionConfig;
use crate::connect::{Connect, HttpError, JoinParameters};
use crate::data::DataOut;
use crate::media;
use crate::token::Claims;

#[cfg(test)]
pub(crate) mod testing;

/// What a new session starts from.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The node's configuration.
    pub config: Arc<SessionConfig>,
    /// The verified upgrade request.
    pub connect: Connect,
    /// Randomness for the session's ids.
    pub seed: [u8; 32],
    /// Wall clock at `now`; the session counts on from there.
    pub wall: UnixMillis,
}

/// A new signal connection of a client that wants its session back.
#[derive(Clone, Debug)]
pub struct Resuming {
    /// What its token says.
    pub claims: Claims,
    /// What it asks for.
    pub parameters: JoinParameters,
}

/// Something for the session.
#[derive(Debug)]
pub enum Input<'a> {
    /// The client says something.
    Request(Box<SignalRequest>),
    /// Something happened in the room. Events come in log order, none left out, also while the join
    /// is under way; those that the session has seen already are ignored.
    Event {
        /// What happened.
        change: &'a RoomEvent,
        /// The room after the event's entry, or for `Closed` the one the event carries.
        room: &'a Arc<Room>,
    },
    /// Outcome of a [`Output::Propose`].
    Committed {
        /// Its id.
        request: RequestId,
        /// What came of it.
        result: Result<Reply, CommitError>,
    },
    /// The engine says something about this session's peers.
    Media(media::Event),
    /// Another participant of the room, or the API, sent data.
    Data(Arc<DataOut>),
    /// Loudness of tracks of the room, local or not: 0 silent to 1; 0 once when it falls silent.
    Speakers(&'a [(TrackSid, f32)]),
    /// The client is back on a new signal connection, which takes the place of the old one.
    Resume(Box<Resuming>),
    /// The signal connection is gone.
    SignalClosed,
    /// The node stops.
    Shutdown,
    /// [`Session::deadline`] has been reached.
    Timeout,
}

/// Why a proposal came to nothing.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CommitError {
    /// The state machine refused it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No quorum, no leader, overload or no answer in time: it may still be applied later.
    #[error("{0}")]
    Unavailable(String),
}

/// Something for the shell to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send this to the client, on the newest signal connection.
    Reply(Box<SignalResponse>),
    /// Ask for a change; answer with [`Input::Committed`]. One is under way at a time.
    Propose {
        /// Its id; the same one when it is asked for again.
        request: RequestId,
        /// The change.
        command: Command,
    },
    /// Tell the engine.
    Media(media::Command),
    /// Hand this to the sessions of the room, here and on other nodes.
    Data(Arc<DataOut>),
    /// The join is refused: answer the upgrade with this. Nothing follows.
    Refuse(HttpError),
    /// Close something.
    Close(Close),
}

/// What is to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// The signal connection, with code 1000, after what was sent before is flushed. The session
    /// lives on and may be resumed.
    Signal,
    /// The session: its peers in the engine and everything the shell holds for it. Nothing follows.
    Session {
        /// Why it ended.
        reason: LeaveReason,
    },
}

/// A participant's session.
#[derive(Debug)]
pub struct Session {
    outputs: std::collections::VecDeque<Output>,
    sid: ParticipantSid,
    identity: Identity,
    room: RoomName,
}

impl Session {
    /// Starts to join: the proposal comes out of [`Self::poll`].
    #[must_use]
    pub fn join(_now: Instant, joining: Joining) -> Self {
        let mut ids = crate::id_source::IdSource::new(joining.seed);
        let claims = &joining.connect.claims;
        Self {
            outputs: std::collections::VecDeque::new(),
            sid: ids.participant(),
            identity: Identity(claims.identity().to_owned()),
            room: RoomName(
                claims
                    .video
                    .as_ref()
                    .map(|v| v.room.clone())
                    .unwrap_or_default(),
            ),
        }
    }

    /// Takes one input; poll to the end afterwards.
    pub fn handle(&mut self, _now: Instant, _input: Input<'_>) {}

    /// The next output.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The participant's sid.
    #[must_use]
    pub fn sid(&self) -> &ParticipantSid {
        &self.sid
    }

    /// The participant's identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The room's name.
    #[must_use]
    pub fn room(&self) -> &RoomName {
        &self.room
    }
}

/// First and only message for a client that wants a session back which is not here: it joins anew.
#[must_use]
pub fn resume_refusal() -> SignalResponse {
    use livekit_protocol::{DisconnectReason, LeaveRequest, leave_request, signal_response};
    SignalResponse {
        message: Some(signal_response::Message::Leave(LeaveRequest {
            can_reconnect: true,
            reason: DisconnectReason::StateMismatch as i32,
            action: leave_request::Action::Reconnect as i32,
            regions: None,
        })),
    }
}
