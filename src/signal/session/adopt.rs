//! A participant whose session was another node's: this node becomes its home and goes on with it.
//!
//! ```text
//! client's resume ─ Rehome to here ─ the log ─ ParticipantMoved ─ Claim ─ other nodes
//!                                                                   │
//!         reconnect, everybody, room ◄─ live ◄─ Claimed ◄───────────┘
//!         sync_state or offer ─► peers, tracks, subscriptions ─► media
//! ```
//!
//! The log decides who the home is; whoever asks with an epoch that is no longer the present one asks
//! again with the newer. The client keeps its peer connections meanwhile, so the engine's are made
//! only once the client has said what it has. Nobody else in the room sees any of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use flotilla_model::command::{Command, Rehome, Rejection, Reply};
use flotilla_model::event::RoomEvent;
use flotilla_model::id::{Epoch, RoomName, TrackSid, UnixMillis};
use flotilla_model::participant::{LeaveReason, Participant};
use flotilla_model::room::Room;
use livekit_protocol as proto;
use serde::{Deserialize, Serialize};

use super::core::{Core, Flow};
use super::early::Early;
use super::live::Live;
use super::proposals::Purpose;
use super::publish::Published;
use super::subscribe::Wish;
use super::{Claimed, CommitError, Input, Output, Phase, Resuming, Session, join, leave};
use crate::config::SessionConfig;
use crate::connect::Reconnect;
use crate::data::DataOut;
use crate::id_source::IdSource;
use crate::media::{self, Channel, Restore, Target};
use crate::token::Claims;

/// What a session that is taken over starts from.
#[derive(Clone, Debug)]
pub struct Adopting {
    /// The node's configuration.
    pub config: Arc<SessionConfig>,
    /// The client's verified request. [`may_adopt`] has been asked.
    pub resuming: Resuming,
    /// The participant as last seen in the log.
    pub participant: Arc<Participant>,
    /// Randomness for the session's ids.
    pub seed: [u8; 32],
    /// Wall clock at `now`.
    pub wall: UnixMillis,
}

/// What a session holds besides the replicated record, for the node that goes on with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Keepsake {
    /// How the client wants to receive tracks.
    wishes: BTreeMap<TrackSid, Wish>,
}

/// Whether a client with this token may have this participant's session.
#[must_use]
pub fn may_adopt(
    claims: &Claims,
    reconnect: &Reconnect,
    room: &str,
    participant: &Participant,
) -> bool {
    claims.identity() == participant.identity.as_str()
        && claims.joinable_room(Some(room)).is_ok()
        && reconnect
            .sid
            .as_ref()
            .is_none_or(|sid| *sid == participant.sid)
}

/// A takeover on its way.
#[derive(Debug)]
pub(super) struct Adoption {
    resuming: Resuming,
    /// Epoch that the proposal under way names.
    asked: Epoch,
    /// Newest room that an event showed.
    newest: Option<Arc<Room>>,
    /// The claim is under way.
    claiming: bool,
    /// Data for the participant meanwhile. The oldest go first.
    data: VecDeque<Arc<DataOut>>,
    data_bytes: usize,
    /// When the client will have given up.
    until: Instant,
}

/// Channels looked at in one `sync_state`.
const CHANNELS_MAX: usize = 16;

impl Session {
    /// Starts to take a session over: the proposal comes out of [`Self::poll`].
    #[must_use]
    pub fn adopt(now: Instant, adopting: Adopting) -> Self {
        let Adopting {
            config,
            resuming,
            participant,
            seed,
            wall,
        } = adopting;
        let room = resuming.claims.video.as_ref();
        let room = room.map(|video| video.room.clone()).unwrap_or_default();
        let until = now + config.resume_timeout;
        let mut core = Core::new(
            config,
            IdSource::new(seed),
            RoomName(room),
            (participant.identity.clone(), participant.sid.clone()),
            resuming.claims.clone(),
            (now, wall),
        );
        core.know(&participant.client);
        core.peers_pending = true;
        let mut adoption = Adoption {
            resuming,
            asked: participant.epoch,
            newest: None,
            claiming: false,
            data: VecDeque::new(),
            data_bytes: 0,
            until,
        };
        adoption.ask(&mut core, participant.epoch);
        Self {
            core,
            phase: Phase::Adopting(Box::new(adoption)),
        }
    }

    /// What the next home needs besides the record; `None` if there is nothing to go on with.
    #[must_use]
    pub fn keepsake(&self) -> Option<Keepsake> {
        let Phase::Live(live) = &self.phase else {
            return None;
        };
        Some(Keepsake {
            wishes: live.subscribed.wishes().clone(),
        })
    }

    /// Whether [`Self::keepsake`] has changed in what nobody else knows, since this was asked last.
    pub fn take_keepsake_changed(&mut self) -> bool {
        match &mut self.phase {
            Phase::Live(live) => live.subscribed.take_changed(),
            _ => false,
        }
    }

    /// The participant's epoch, while it is in the room.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        match &self.phase {
            Phase::Live(live) => Some(live.me.epoch),
            _ => None,
        }
    }
}

impl Adoption {
    /// The client has come once more, before it was answered.
    pub(super) fn replace(&mut self, resuming: Resuming) {
        self.resuming = resuming;
    }

    pub(super) const fn deadline(&self) -> Instant {
        self.until
    }

    pub(super) fn handle_timeout(&mut self, core: &mut Core, now: Instant) -> Flow {
        if self.until > now {
            return Flow::Stay;
        }
        // The participant stays in the room, for whichever node the client reaches next.
        core.close_signal();
        Flow::End(LeaveReason::SignalClose)
    }

    fn ask(&mut self, core: &mut Core, epoch: Epoch) {
        self.asked = epoch;
        let rehome = Rehome {
            room: core.room.clone(),
            identity: core.identity.clone(),
            sid: core.sid.clone(),
            epoch,
            home: core.config.node,
        };
        let command = Command::Rehome {
            moves: vec![rehome],
        };
        core.propose(command, Purpose::Adopt);
    }

    pub(super) fn handle_decided(
        &mut self,
        core: &mut Core,
        result: Result<Reply, CommitError>,
    ) -> Flow {
        match result {
            // The event says it, in its place among the others.
            Ok(_) => Flow::Stay,
            Err(CommitError::Rejected(Rejection::StaleEpoch)) => {
                // Asked again once the event shows the newer epoch, if it has not come yet.
                self.ask_newest(core);
                Flow::Stay
            }
            // This node was taken for lost and takes nobody before it is back: another one can.
            Err(CommitError::Rejected(Rejection::NodeNotFound)) => {
                core.close_signal();
                Flow::End(LeaveReason::Unknown)
            }
            Err(error) => {
                tracing::info!(room = %core.room, participant = %core.sid, %error, "not taken over");
                leave::send_leave(
                    core,
                    LeaveReason::StateMismatch as i32,
                    proto::leave_request::Action::Reconnect,
                );
                Flow::End(LeaveReason::StateMismatch)
            }
        }
    }

    /// Asks with the newest epoch, unless the log has made this node the home meanwhile: one more epoch
    /// would put the tracks' relays behind it.
    fn ask_newest(&mut self, core: &mut Core) {
        let present = self.present(core);
        let elsewhere = present.filter(|me| me.home != core.config.node);
        let epoch = elsewhere.map(|me| me.epoch);
        if let Some(epoch) = epoch.filter(|epoch| *epoch > self.asked) {
            self.ask(core, epoch);
        }
    }

    fn present(&self, core: &Core) -> Option<&Arc<Participant>> {
        let me = self.newest.as_ref()?.participants.get(&core.identity)?;
        (me.sid == core.sid).then_some(me)
    }

    pub(super) fn handle_event(
        &mut self,
        core: &mut Core,
        change: &RoomEvent,
        room: Option<&Arc<Room>>,
    ) -> Flow {
        if let RoomEvent::ParticipantLeft {
            participant,
            reason,
        } = change
            && participant.sid == core.sid
        {
            return leave::dismiss(core, *reason);
        }
        if let Some(room) = room {
            self.newest = Some(Arc::clone(room));
        }
        if let RoomEvent::ParticipantMoved(participant) = change
            && participant.sid == core.sid
        {
            self.handle_moved(core);
        }
        Flow::Stay
    }

    fn handle_moved(&mut self, core: &mut Core) {
        let Some(me) = self.present(core).map(Arc::clone) else {
            return;
        };
        let is_ours = me.home == core.config.node && me.epoch > self.asked;
        if is_ours && !self.claiming {
            self.claiming = true;
            core.output(Output::Claim { epoch: me.epoch });
        } else if !is_ours && !core.proposals.has(&Purpose::Adopt) {
            self.ask_newest(core);
        }
    }

    /// Goes on, or (`Err`) is done: in the room.
    pub(super) fn handle(
        &mut self,
        core: &mut Core,
        now: Instant,
        input: Input<'_>,
    ) -> Result<Flow, (Box<Live>, Flow)> {
        match input {
            Input::Snapshot { room } => {
                let Some(room) = room.filter(|room| {
                    let me = room.participants.get(&core.identity);
                    me.is_some_and(|me| me.sid == core.sid)
                }) else {
                    return Ok(leave::dismiss(core, LeaveReason::Unknown));
                };
                self.newest = Some(Arc::clone(room));
                self.handle_moved(core);
            }
            Input::Data(message) => {
                self.data_bytes += message.payload.len();
                self.data.push_back(message);
                while self.data_bytes > core.config.limits.data_queue_bytes_max
                    && let Some(oldest) = self.data.pop_front()
                {
                    self.data_bytes -= oldest.payload.len();
                    core.discards.overflown_data += 1;
                }
            }
            Input::Claimed(claimed) => return self.go_live(core, now, *claimed),
            _ => {}
        }
        Ok(Flow::Stay)
    }

    fn go_live(
        &mut self,
        core: &mut Core,
        now: Instant,
        claimed: Claimed,
    ) -> Result<Flow, (Box<Live>, Flow)> {
        let present = self.present(core).map(Arc::clone);
        let (Some(room), Some(me)) = (self.newest.take(), present) else {
            return Ok(leave::dismiss(core, LeaveReason::Unknown));
        };
        if me.home != core.config.node {
            return Ok(leave::hand_over(core));
        }
        let mut live = Live::new(core, now, room, me);
        live.take_over(claimed, std::mem::take(&mut self.data), self.data_bytes);
        live.early = Some(Early::new(now));
        let flow = live.resume(core, now, self.resuming.clone());
        Err((Box::new(live), flow))
    }
}

impl Live {
    fn take_over(&mut self, claimed: Claimed, data: VecDeque<Arc<DataOut>>, bytes: usize) {
        let keepsake = claimed.keepsake.unwrap_or_default();
        self.published = Published::of(&self.me);
        self.subscribed.set_wishes(keepsake.wishes);
        // What was on its way to the client may have been lost with the former home: only the client
        // can say what it has, and does in `sync_state`.
        self.channels
            .go_on(claimed.last_sequence, claimed.acknowledged);
        (self.held, self.held_bytes) = (data, bytes);
    }

    /// Keeps a message until the client has said what it has received.
    pub(super) fn hold(&mut self, core: &mut Core, message: Arc<DataOut>) {
        self.held_bytes += message.payload.len();
        self.held.push_back(message);
        while self.held_bytes > core.config.limits.data_queue_bytes_max
            && let Some(oldest) = self.held.pop_front()
        {
            self.held_bytes -= oldest.payload.len();
            core.discards.overflown_data += 1;
        }
    }

    /// The engine's side of a session that was taken over, once the client has said what it has.
    /// Nothing is left to do for any other session.
    pub(super) fn create_peers(&mut self, core: &mut Core, state: Option<&proto::SyncState>) {
        if !core.peers_pending {
            return;
        }
        core.peers_pending = false;
        let sequence = self.channels.acknowledged();
        core.media(media::Command::CreatePeers {
            single: core.single,
            negotiated_channels: join::negotiates_channels(core),
            restore: Some(Box::new(restore(state, sequence))),
        });
        self.publish_again(core);
        self.subscribed.forget_told();
        self.subscribe_to_all(core);
        if !core.single {
            core.media(media::Command::RestartIce);
        }
        self.held_bytes = 0;
        let mut held: Vec<_> = std::mem::take(&mut self.held).into();
        // What other nodes send again may have come behind what is new, and only what is above the
        // last number of its sender is passed on.
        held.sort_by_key(|message| message.sequence);
        for message in held {
            self.handle_data_of_others(core, &message);
        }
    }
}

fn restore(state: Option<&proto::SyncState>, sequence: u32) -> Restore {
    let Some(state) = state else {
        return Restore {
            sequence,
            ..Restore::default()
        };
    };
    let offer = state.offer.as_ref().map(|offer| offer.sdp.clone());
    let answer = state.answer.as_ref().map(|answer| answer.sdp.clone());
    let descriptions = offer
        .zip(answer)
        .filter(|(offer, answer)| !offer.is_empty() && !answer.is_empty());
    let channels = state.data_channels.iter().take(CHANNELS_MAX);
    Restore {
        descriptions,
        channels: channels.filter_map(channel).collect(),
        sequence,
    }
}

fn channel(info: &proto::DataChannelInfo) -> Option<(Target, Channel, u16)> {
    let channel = match info.label.as_str() {
        "_reliable" => Channel::Reliable,
        "_lossy" => Channel::Lossy,
        "_data_track" => Channel::DataTrack,
        _ => return None,
    };
    let target = match info.target() {
        proto::SignalTarget::Publisher => Target::Publisher,
        proto::SignalTarget::Subscriber => Target::Subscriber,
    };
    Some((target, channel, u16::try_from(info.id).ok()?))
}
