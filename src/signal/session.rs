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

use flotilla_model::State;
use flotilla_model::command::{Command, Rejection, Reply};
use flotilla_model::event::RoomEvent;
use flotilla_model::id::{
    Epoch, Identity, ParticipantSid, RequestId, RoomName, TrackSid, UnixMillis,
};
use flotilla_model::participant::LeaveReason;
use flotilla_model::room::Room;
use livekit_protocol::{SignalRequest, SignalResponse};
use thiserror::Error;

use crate::config::SessionConfig;
use crate::connect::{Connect, HttpError, JoinParameters, Reconnect};
use crate::data::DataOut;
use crate::id_source::IdSource;
use crate::media;
use crate::token::Claims;

mod adopt;
mod core;
mod data;
mod early;
mod join;
mod leave;
mod live;
mod negotiate;
mod proposals;
mod publish;
mod request;
mod resume;
mod subscribe;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod update;

use self::adopt::Adoption;
use self::core::{Core, Flow};
use join::Pending;
use leave::Leaving;
use live::Live;
use proposals::{Landed, Purpose};

pub use adopt::{Adopting, Keepsake, may_adopt};
pub use leave::RESUME_SETTLE;
pub use resume::refusal as resume_refusal;

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
        /// The room after the event's entry; `None` if that entry closed it.
        room: Option<&'a Arc<Room>>,
    },
    /// Events were lost: the room as it is now, `None` if it is closed. Events after it go on.
    Snapshot {
        /// The room.
        room: Option<&'a Arc<Room>>,
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
    /// As [`Input::Data`], from somebody who did not know yet that the participant is here and will send it
    /// again in order: taken if it is the next of its sender.
    EarlyData(Arc<DataOut>),
    /// Loudness of tracks of the room, local or not: 0 silent to 1; 0 once when it falls silent.
    Speakers(&'a [(TrackSid, f32)]),
    /// The client is back on a new signal connection, which takes the place of the old one. Only if
    /// [`Session::is_resumable_by`] said so; otherwise answer with [`resume_refusal`] and close.
    Resume(Box<Resuming>),
    /// What is left of the session at its former home and elsewhere: the answer to
    /// [`Output::Claim`].
    Claimed(Box<Claimed>),
    /// The signal connection is gone: the newest one, not one that a resume has replaced.
    SignalClosed,
    /// The node is being emptied: the client is asked to resume, which brings it to another node. The
    /// session goes on until that one has it.
    Drain,
    /// The node may not serve any more, and others may: a client without a connection here, now or later, may be with
    /// one of them, and is sent nothing until it comes back or the node may serve again.
    LeaseLapsed,
    /// The node may serve again, and the participant is its own.
    LeaseHolds,
    /// The node stops.
    Shutdown,
    /// [`Session::deadline`] has been reached.
    Timeout,
}

/// What other nodes still hold of a session that was taken over.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// What the former home kept besides the replicated record; `None` if nobody has it.
    pub keepsake: Option<Keepsake>,
    /// Highest number of the client's reliable messages that every node of the room has: the client
    /// sends again what came after it.
    pub last_sequence: u32,
    /// Highest number that can have been acknowledged to the client: its data channels go on behind it.
    pub acknowledged: u32,
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
    /// This node is the participant's home now: collect what others hold of its session, and make
    /// the former home let go of it; answer with [`Input::Claimed`].
    Claim {
        /// Its new epoch.
        epoch: Epoch,
    },
    /// Tell the engine.
    Media(media::Command),
    /// Hand this to the sessions of the room, here and on other nodes.
    Data(Arc<DataOut>),
    /// The join is refused: answer the upgrade with this. The session's closing follows, at once or,
    /// if the join may still be applied, once it has been undone.
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
    /// The signal connection whose client was told to resume: the client closes it, or it is closed after
    /// a moment. The session lives on as with [`Close::Signal`]. SDKs on native code that see the close
    /// before they have acted on the leave take it for a second loss and join anew.
    Farewell,
    /// The session: its peers in the engine and everything the shell holds for it. Nothing follows.
    Session {
        /// Why it ended.
        reason: LeaveReason,
    },
}

/// What a session threw away, for counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Discards {
    /// Requests without a message that we know.
    pub unknown_requests: u64,
    /// Candidates that are not JSON, and descriptions of the wrong type.
    pub malformed_descriptions: u64,
    /// Data packets that are malformed or too long.
    pub malformed_data: u64,
    /// Data packets that the sender may not send.
    pub refused_data: u64,
    /// Data packets that were sent before.
    pub duplicate_data: u64,
    /// Data packets that waited for a channel until there was no room for them.
    pub overflown_data: u64,
}

impl Discards {
    /// All of them, with the names that metrics give them.
    #[must_use]
    pub const fn by_reason(&self) -> [(&'static str, u64); 6] {
        [
            ("unknown_request", self.unknown_requests),
            ("malformed_description", self.malformed_descriptions),
            ("malformed_data", self.malformed_data),
            ("refused_data", self.refused_data),
            ("duplicate_data", self.duplicate_data),
            ("overflown_data", self.overflown_data),
        ]
    }
}

/// A participant's session.
#[derive(Debug)]
pub struct Session {
    core: Core,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The join has been proposed.
    Joining(Box<Pending>),
    /// Taking over the session of another node's participant.
    Adopting(Box<Adoption>),
    /// In the room.
    Live(Box<Live>),
    /// The departure has been proposed.
    Leaving(Leaving),
    /// Over; every input is ignored. Kept: what goes on at another node.
    Ended(Option<Box<Live>>),
}

impl Session {
    /// Starts to join: the proposal comes out of [`Self::poll`].
    #[must_use]
    pub fn join(now: Instant, joining: Joining) -> Self {
        let Connect { claims, parameters } = joining.connect;
        let mut ids = IdSource::new(joining.seed);
        let sid = ids.participant();
        let identity = Identity(claims.identity().to_owned());
        let room = RoomName(
            claims
                .video
                .as_ref()
                .map(|video| video.room.clone())
                .unwrap_or_default(),
        );
        let mut core = Core::new(
            joining.config,
            ids,
            room,
            (identity, sid),
            claims,
            (now, joining.wall),
        );
        let pending = Pending::propose(&mut core, parameters);
        Self {
            core,
            phase: Phase::Joining(Box::new(pending)),
        }
    }

    /// Takes one input; [`Self::poll`] to the end afterwards.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        let flow = match input {
            Input::Committed { request, result } => self.handle_committed(now, request, result),
            Input::Timeout => self.handle_timeout(now),
            Input::Event { change, room } => self.handle_event(now, change, room),
            Input::SignalClosed => self.handle_signal_closed(now),
            Input::Drain => self.handle_drain(now),
            Input::LeaseLapsed => {
                self.core.lapsed = true;
                Flow::Stay
            }
            Input::LeaseHolds => self.handle_lease_holds(),
            Input::Shutdown => self.handle_shutdown(),
            Input::Resume(resuming) => self.handle_resume(now, *resuming),
            other => match &mut self.phase {
                Phase::Live(live) => live.handle(&mut self.core, now, other),
                Phase::Joining(pending) => {
                    pending.handle(&mut self.core, other);
                    Flow::Stay
                }
                Phase::Adopting(adoption) => match adoption.handle(&mut self.core, now, other) {
                    Ok(flow) => flow,
                    Err((live, flow)) => {
                        self.phase = Phase::Live(live);
                        flow
                    }
                },
                Phase::Leaving(leaving) => leaving.handle(&self.core, &other),
                Phase::Ended(_) => Flow::Stay,
            },
        };
        self.follow(flow);
        self.hush();
    }

    /// A reliable message that the client's connection had acknowledged here before it went on at another node: it is
    /// passed on all the same ([`Output::Data`]), unless the participant has left.
    pub fn take_last_data(&mut self, payload: &[u8]) {
        if let Phase::Live(live) | Phase::Ended(Some(live)) = &mut self.phase {
            live.handle_data(&mut self.core, media::Channel::Reliable, payload);
        }
    }

    /// The next output.
    pub fn poll(&mut self) -> Option<Output> {
        self.core.poll()
    }

    /// When [`Input::Timeout`] is due; `None`: nothing is pending.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let own = match &self.phase {
            Phase::Live(live) => live.deadline(),
            Phase::Adopting(adoption) => Some(adoption.deadline()),
            Phase::Joining(_) | Phase::Leaving(_) => None,
            Phase::Ended(_) => return None,
        };
        own.into_iter().chain(self.core.proposals.deadline()).min()
    }

    /// Whether a change in the participant's name comes too late, as seen from the newest state that this node has: another
    /// node is its home. The session hears so from events that are still on their way to it, and what it asks
    /// for until then (to take back a publication that had been given up, say) is not its to ask any more. The shell
    /// refuses it ([`Rejection::StaleEpoch`]).
    #[must_use]
    pub fn comes_late(&self, command: &Command, state: &State) -> bool {
        // These say themselves which session or home they mean.
        let is_checked = matches!(
            command,
            Command::Join(_)
                | Command::Leave { .. }
                | Command::Depart { .. }
                | Command::Rehome { .. }
        );
        let core = &self.core;
        let room = state.rooms.get(&core.room);
        let present = room.and_then(|room| room.participants.get(&core.identity));
        !is_checked && present.is_some_and(|p| p.sid == core.sid && p.home != core.config.node)
    }

    /// The participant's sid.
    #[must_use]
    pub fn sid(&self) -> &ParticipantSid {
        &self.core.sid
    }

    /// The participant's identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.core.identity
    }

    /// The room's name.
    #[must_use]
    pub fn room(&self) -> &RoomName {
        &self.core.room
    }

    /// What it threw away so far.
    #[must_use]
    pub fn discards(&self) -> Discards {
        self.core.discards
    }

    /// Whether a client with this token may take this session back.
    #[must_use]
    pub fn is_resumable_by(&self, claims: &Claims, reconnect: &Reconnect) -> bool {
        matches!(self.phase, Phase::Live(_) | Phase::Adopting(_))
            && claims.identity() == self.core.identity.as_str()
            && claims.joinable_room(Some(self.core.room.as_str())).is_ok()
            && reconnect
                .sid
                .as_ref()
                .is_none_or(|sid| *sid == self.core.sid)
    }

    fn handle_committed(
        &mut self,
        now: Instant,
        request: RequestId,
        result: Result<Reply, CommitError>,
    ) -> Flow {
        let retry = self.core.config.proposal_retry_interval;
        let landed = self
            .core
            .proposals
            .land(now, request, result.as_ref().err(), retry);
        let flow = match (landed, result) {
            (Landed::Nothing, _) => Flow::Stay,
            (Landed::Decided(proposal), result) => {
                self.handle_decided(now, proposal.purpose, result)
            }
            (Landed::Failed(failed), Err(error)) => {
                for proposal in failed {
                    let flow = self.handle_decided(now, proposal.purpose, Err(error.clone()));
                    if flow != Flow::Stay {
                        return flow;
                    }
                }
                Flow::Stay
            }
            (Landed::Failed(_), Ok(_)) => unreachable!("only an error lets proposals fail"),
        };
        self.core.fly();
        flow
    }

    fn handle_decided(
        &mut self,
        now: Instant,
        purpose: Purpose,
        result: Result<Reply, CommitError>,
    ) -> Flow {
        match (&mut self.phase, purpose) {
            (Phase::Joining(pending), Purpose::Join) => {
                match pending.handle_joined(&mut self.core, now, result) {
                    Ok((live, flow)) => {
                        self.phase = Phase::Live(Box::new(live));
                        flow
                    }
                    Err(flow) => flow,
                }
            }
            (Phase::Adopting(adoption), Purpose::Adopt) => {
                adoption.handle_decided(&mut self.core, result)
            }
            (Phase::Live(live), purpose) => {
                live.handle_decided(&mut self.core, purpose, result);
                Flow::Stay
            }
            // Departed, or nothing to depart from.
            (Phase::Leaving(leaving), Purpose::Leave) => Flow::End(leaving.reason),
            _ => Flow::Stay,
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Flow {
        self.core.proposals.handle_timeout(now);
        self.core.fly();
        match &mut self.phase {
            Phase::Live(live) => live.handle_timeout(&mut self.core, now),
            Phase::Adopting(adoption) => adoption.handle_timeout(&mut self.core, now),
            Phase::Joining(_) | Phase::Leaving(_) | Phase::Ended(_) => Flow::Stay,
        }
    }

    fn handle_event(&mut self, now: Instant, change: &RoomEvent, room: Option<&Arc<Room>>) -> Flow {
        match &mut self.phase {
            Phase::Joining(pending) => {
                pending.handle_event(&self.core, change, room);
                Flow::Stay
            }
            Phase::Adopting(adoption) => adoption.handle_event(&mut self.core, change, room),
            Phase::Live(live) => live.handle_event(&mut self.core, now, change, room),
            Phase::Leaving(leaving) => leaving.handle_event(&self.core, change),
            Phase::Ended(_) => Flow::Stay,
        }
    }

    /// Carries out where an input led.
    fn follow(&mut self, flow: Flow) {
        match flow {
            Flow::Stay => {}
            Flow::Leave(reason) => {
                if !matches!(self.phase, Phase::Leaving(_) | Phase::Ended(_)) {
                    let epoch = self.epoch();
                    self.phase = Phase::Leaving(Leaving::propose(&mut self.core, reason, epoch));
                }
            }
            Flow::End(reason) => {
                if !matches!(self.phase, Phase::Ended(_)) {
                    self.core.close_signal();
                    self.core.proposals.end();
                    self.core.output(Output::Close(Close::Session { reason }));
                    let here = self.core.config.node;
                    self.phase = match std::mem::replace(&mut self.phase, Phase::Ended(None)) {
                        Phase::Live(live) if live.me.home != here => Phase::Ended(Some(live)),
                        _ => Phase::Ended(None),
                    };
                }
            }
        }
    }
}
