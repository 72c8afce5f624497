//! From the upgrade request to the join response.
//!
//! The join goes through the log. While it is on its way the room's events pass by already, so the
//! newest room seen decides what the response shows, and nothing is missed or told twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use flotilla_model::command::{Command, CreateRoom, Join, Outcome, Rejection, Reply};
use flotilla_model::event::RoomEvent;
use flotilla_model::id::RoomName;
use flotilla_model::participant::{LeaveReason, Participant};
use flotilla_model::room::{Room, RoomOptions};
use livekit_protocol as proto;
use proto::signal_response::Message;

use super::core::{Core, Flow};
use super::live::Live;
use super::proposals::Purpose;
use super::{CommitError, Input, Output};
use crate::config::PROTOCOL;
use crate::connect::{HttpError, JoinParameters};
use crate::convert;
use crate::data::DataOut;
use crate::media;
use crate::token::RoomConfigClaim;

/// A join on its way through the log.
#[derive(Debug)]
pub(super) struct Pending {
    parameters: JoinParameters,
    /// Newest room that an event showed.
    newest: Option<Arc<Room>>,
    /// An event said that this session is over already.
    removed: Option<LeaveReason>,
    /// Data that came for the participant as soon as the room had it. The oldest go first.
    data: VecDeque<Arc<DataOut>>,
    data_bytes: usize,
}

impl Pending {
    pub(super) fn propose(core: &mut Core, parameters: JoinParameters) -> Self {
        let client = convert::client(&parameters);
        core.know(&client);
        if !parameters.metadata.is_empty() {
            core.claims.metadata.clone_from(&parameters.metadata);
        }
        core.claims.attributes.extend(
            parameters
                .attributes
                .iter()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        let claims = &core.claims;
        let join = Join {
            room: core.room.clone(),
            create: None,
            sid: core.sid.clone(),
            identity: core.identity.clone(),
            name: claims.name.clone(),
            metadata: claims.metadata.clone(),
            attributes: claims.attributes.clone(),
            kind: claims.kind_number(),
            kind_details: claims.kind_detail_numbers(),
            permission: claims.permission(),
            token_issued_at: claims.issued_at(),
            auto_subscribe: parameters.auto_subscribe,
            client,
            home: core.config.node,
        };
        let join = Join {
            create: create_room(core),
            ..join
        };
        core.propose(Command::Join(Box::new(join)), Purpose::Join);
        Self {
            parameters,
            newest: None,
            removed: None,
            data: VecDeque::new(),
            data_bytes: 0,
        }
    }

    pub(super) fn handle_event(
        &mut self,
        core: &Core,
        change: &RoomEvent,
        room: Option<&Arc<Room>>,
    ) {
        if let RoomEvent::ParticipantLeft {
            participant,
            reason,
        } = change
            && participant.sid == core.sid
        {
            self.removed = Some(*reason);
        }
        if let Some(room) = room {
            self.newest = Some(Arc::clone(room));
        }
    }

    /// A client may talk before it has its answer; nothing it could say then makes sense.
    pub(super) fn handle(&mut self, core: &mut Core, input: Input<'_>) {
        match input {
            Input::Snapshot { room: Some(room) } => self.newest = Some(Arc::clone(room)),
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
            _ => {}
        }
    }

    pub(super) fn handle_joined(
        &mut self,
        core: &mut Core,
        now: Instant,
        result: Result<Reply, CommitError>,
    ) -> Result<(Live, Flow), Flow> {
        let (room, me) = match joined(result) {
            Ok(joined) => joined,
            Err(error) => {
                core.output(Output::Refuse(error.refusal));
                core.connected = false;
                // Without an answer it may still be applied, and has to be undone then.
                return Err(if error.decided {
                    Flow::End(LeaveReason::JoinFailure)
                } else {
                    Flow::Leave(LeaveReason::JoinFailure)
                });
            }
        };
        if !core.connected {
            return Err(Flow::Leave(LeaveReason::SignalClose));
        }
        let (room, me) = self.newest_of(room, me);
        let parameters = std::mem::take(&mut self.parameters);
        let mut live = Live::new(core, now, room, me);
        core.reply(Message::Join(live.join_response(core)));
        live.refresh_token(core, now);
        live.start_media(core, parameters);
        for message in std::mem::take(&mut self.data) {
            live.handle_data_of_others(core, &message);
        }
        let flow = match self.removed {
            Some(reason) => super::leave::dismiss(core, reason),
            None => Flow::Stay,
        };
        Ok((live, flow))
    }

    /// The room of the reply or a newer one that an event showed.
    fn newest_of(
        &mut self,
        room: Arc<Room>,
        me: Arc<Participant>,
    ) -> (Arc<Room>, Arc<Participant>) {
        let newer = self
            .newest
            .take()
            .filter(|newest| newest.sid == room.sid && newest.version > room.version);
        let Some(newer) = newer else {
            return (room, me);
        };
        match newer.participants.get(&me.identity) {
            Some(newer_me) if newer_me.sid == me.sid => {
                let me = Arc::clone(newer_me);
                (newer, me)
            }
            _ => (room, me),
        }
    }
}

struct Refused {
    refusal: HttpError,
    decided: bool,
}

fn joined(result: Result<Reply, CommitError>) -> Result<(Arc<Room>, Arc<Participant>), Refused> {
    match result {
        Ok(Reply {
            outcome: Outcome::Joined { room, participant },
            ..
        }) => Ok((room, participant)),
        Ok(_) => Err(Refused {
            refusal: HttpError::unavailable("the join had an unexpected outcome"),
            decided: false,
        }),
        Err(CommitError::Rejected(rejection)) => Err(Refused {
            refusal: HttpError::from(&rejection),
            // A repeated request is answered from the present state; then the session is gone.
            decided: rejection != Rejection::StaleSession,
        }),
        Err(CommitError::Unavailable(text)) => Err(Refused {
            refusal: HttpError::unavailable(text),
            decided: false,
        }),
    }
}

/// The room to create, if rooms come into being by joins.
fn create_room(core: &mut Core) -> Option<CreateRoom> {
    let may_create = core
        .claims
        .video
        .as_ref()
        .is_some_and(|video| video.room_create);
    if !core.config.auto_create && !may_create {
        return None;
    }
    let sid = core.ids.room();
    let claim = core.claims.room_config.as_ref();
    Some(CreateRoom {
        name: RoomName(core.room.0.clone()),
        sid,
        options: options(&core.config.room_defaults, claim),
        metadata: claim
            .and_then(|claim| claim.metadata.clone())
            .unwrap_or_default(),
    })
}

fn options(defaults: &RoomOptions, claim: Option<&RoomConfigClaim>) -> RoomOptions {
    let mut options = defaults.clone();
    let Some(claim) = claim else {
        return options;
    };
    let set = |seconds: Option<u32>| seconds.filter(|s| *s > 0).map(|s| u64::from(s) * 1000);
    options.empty_timeout_ms = set(claim.empty_timeout).unwrap_or(options.empty_timeout_ms);
    options.departure_timeout_ms =
        set(claim.departure_timeout).unwrap_or(options.departure_timeout_ms);
    options.max_participants = claim
        .max_participants
        .filter(|most| *most > 0)
        .unwrap_or(options.max_participants);
    options.min_playout_delay_ms = claim
        .min_playout_delay
        .unwrap_or(options.min_playout_delay_ms);
    options.max_playout_delay_ms = claim
        .max_playout_delay
        .unwrap_or(options.max_playout_delay_ms);
    options.sync_streams = claim.sync_streams.unwrap_or(options.sync_streams);
    options.tags.extend(claim.tags.clone());
    options
}

impl Live {
    fn join_response(&mut self, core: &Core) -> proto::JoinResponse {
        let config = &core.config;
        let subscriber_primary = !core.single && core.protocol > 2;
        proto::JoinResponse {
            room: Some(convert::room(&self.room, &config.enabled_codecs)),
            participant: Some(convert::participant_info(&self.me)),
            other_participants: self.others(),
            server_version: config.server_version.clone(),
            ice_servers: Vec::new(),
            subscriber_primary,
            alternative_url: String::new(),
            client_configuration: Some(client_configuration()),
            server_region: config.region.clone(),
            ping_timeout: config.ping_timeout.as_secs() as i32,
            ping_interval: config.ping_interval.as_secs() as i32,
            server_info: Some(convert::server_info(config)),
            sif_trailer: convert::sif_trailer(&self.room.sid),
            enabled_publish_codecs: config.enabled_codecs.iter().map(convert::codec).collect(),
            // With one connection clients offer at once anyway. SDKs on the Rust core put their offers in a
            // queue then; without it, those from before August 2026 lock themselves up for good when
            // they want to offer again while an answer is on its way.
            fast_publish: self.me.permission.can_publish,
        }
    }

    /// Tracks and subscriptions first, so that the answer to the first offer covers them.
    fn start_media(&mut self, core: &mut Core, parameters: JoinParameters) {
        core.media(media::Command::CreatePeers {
            single: core.single,
            negotiated_channels: negotiates_channels(core),
            restore: None,
        });
        for request in parameters.add_tracks {
            self.add_track(core, request);
        }
        self.subscribe_to_all(core);
        if let Some(offer) = parameters.publisher_offer {
            self.handle_offer(core, offer);
        }
    }
}

/// Data channels by fixed ids, from protocol 18 on.
pub(super) fn negotiates_channels(core: &Core) -> bool {
    core.single && PROTOCOL >= 18 && core.protocol >= 18
}

pub(super) fn client_configuration() -> proto::ClientConfiguration {
    proto::ClientConfiguration {
        resume_connection: proto::ClientConfigSetting::Enabled as i32,
        ..proto::ClientConfiguration::default()
    }
}
