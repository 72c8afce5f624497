//! LiveKit's `RoomService` over Twirp: request bytes into a command, a query or a message, and what
//! came of it into response bytes.
//!
//! `flotilla-node` checks the token, hands method, body and claims to [`parse`], proposes or reads
//! the state as the [`Call`] says, and finishes with [`Answer::finish`] or [`Query::run`]. Errors are
//! Twirp's: a JSON object and the status that belongs to its code.

use flotilla_model::State;
use flotilla_model::command::{Command, Outcome, ParticipantUpdate, Reply};
use flotilla_model::id::{Identity, ParticipantSid, RoomName, TrackSid, UnixMillis};
use flotilla_model::participant::LeaveReason;
use flotilla_model::room::Room;
use livekit_protocol as proto;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::SessionConfig;
use crate::convert;
use crate::data::{DataOut, content};
use crate::id_source::IdSource;
use crate::media::Channel;
use crate::session::CommitError;
use crate::token::{Claims, VideoGrant};

mod error;

pub use error::{ApiError, Code};

/// How bodies are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `application/protobuf`.
    Protobuf,
    /// `application/json`.
    Json,
}

impl Format {
    /// From a `Content-Type` header.
    ///
    /// # Errors
    /// `bad_route`, as Twirp has it, for anything else.
    pub fn of(content_type: &str) -> Result<Self, ApiError> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/protobuf" => Ok(Self::Protobuf),
            "application/json" => Ok(Self::Json),
            other => Err(ApiError::new(
                Code::BadRoute,
                format!("unexpected Content-Type: {other:?}"),
            )),
        }
    }

    /// `Content-Type` of the response.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/protobuf",
            Self::Json => "application/json",
        }
    }

    fn read<T: Message + Default + DeserializeOwned>(self, body: &[u8]) -> Result<T, ApiError> {
        let malformed = |error: String| ApiError::new(Code::Malformed, error);
        match self {
            Self::Protobuf => T::decode(body).map_err(|error| malformed(error.to_string())),
            Self::Json => {
                serde_json::from_slice(body).map_err(|error| malformed(error.to_string()))
            }
        }
    }

    fn write<T: Message + Serialize>(self, message: &T) -> Result<Vec<u8>, ApiError> {
        match self {
            Self::Protobuf => Ok(message.encode_to_vec()),
            Self::Json => serde_json::to_vec(message)
                .map_err(|error| ApiError::new(Code::Internal, error.to_string())),
        }
    }
}

/// A request with everything that deciding it needs.
#[derive(Clone, Copy, Debug)]
pub struct ApiRequest<'a> {
    /// Method, the last part of the path.
    pub method: &'a str,
    /// How body and response are written.
    pub format: Format,
    /// Body.
    pub body: &'a [u8],
    /// What the token says.
    pub claims: &'a Claims,
    /// The node's configuration.
    pub config: &'a SessionConfig,
    /// Now, and no earlier than anything the node has seen: tokens issued before are revoked by default.
    pub now: UnixMillis,
}

/// What a request comes to.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    /// Ask the log for a change; [`Answer::finish`] makes the response of its outcome.
    Propose {
        /// The change.
        command: Command,
        /// The response to make.
        answer: Answer,
    },
    /// Read the state, up to date; [`Query::run`] makes the response.
    Read(Query),
    /// Send data to participants; [`SendData::message`] and [`SendData::finish`].
    Send(SendData),
}

/// Which response a proposal is answered with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    format: Format,
    shape: Shape,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Shape {
    Room(Vec<crate::config::EnabledCodec>),
    DeleteRoom,
    RemoveParticipant,
    Muted,
    Participant,
    Subscriptions,
}

/// A question to the state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    format: Format,
    what: What,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    Rooms(Vec<String>, Vec<crate::config::EnabledCodec>),
    Participants(RoomName),
    Participant(RoomName, Identity),
}

/// A message for participants.
#[derive(Clone, PartialEq, Debug)]
pub struct SendData {
    format: Format,
    /// Room.
    pub room: RoomName,
    /// For [`crate::data::Nonces`].
    pub nonce: Option<[u8; 16]>,
    request: proto::SendDataRequest,
}

/// Reads a request and checks that the token allows it.
///
/// # Errors
/// An [`ApiError`] that is the response.
pub fn parse(request: &ApiRequest<'_>, ids: &mut IdSource) -> Result<Call, ApiError> {
    match request.method {
        "CreateRoom" => create_room(request, ids),
        "ListRooms" => list_rooms(request),
        "DeleteRoom" => delete_room(request),
        "ListParticipants" => list_participants(request),
        "GetParticipant" => get_participant(request),
        "RemoveParticipant" => remove_participant(request),
        "MutePublishedTrack" => mute_published_track(request),
        "UpdateParticipant" => update_participant(request),
        "UpdateSubscriptions" => update_subscriptions(request),
        "SendData" => send_data(request),
        "UpdateRoomMetadata" => update_room_metadata(request),
        "ForwardParticipant" | "MoveParticipant" | "PerformRpc" => Err(ApiError::new(
            Code::Unimplemented,
            format!("{} is not implemented", request.method),
        )),
        other => Err(ApiError::new(
            Code::BadRoute,
            format!("no handler for method {other:?} of livekit.RoomService"),
        )),
    }
}

impl ApiRequest<'_> {
    fn read<T: Message + Default + DeserializeOwned>(&self) -> Result<T, ApiError> {
        self.format.read(self.body)
    }

    fn require(&self, grant: impl Fn(&VideoGrant) -> bool) -> Result<(), ApiError> {
        if self.claims.video.as_ref().is_some_and(grant) {
            return Ok(());
        }
        Err(ApiError::not_permitted())
    }

    fn require_admin(&self, room: &str) -> Result<RoomName, ApiError> {
        if room.is_empty() {
            return Err(ApiError::missing("room"));
        }
        if !self.claims.administers(room) {
            return Err(ApiError::not_permitted());
        }
        Ok(RoomName(room.to_owned()))
    }

    fn propose(&self, command: Command, shape: Shape) -> Call {
        let format = self.format;
        Call::Propose {
            command,
            answer: Answer { format, shape },
        }
    }

    fn read_state(&self, what: What) -> Call {
        let format = self.format;
        Call::Read(Query { format, what })
    }

    fn room_shape(&self) -> Shape {
        Shape::Room(self.config.enabled_codecs.clone())
    }

    fn check_metadata(&self, metadata: &str) -> Result<(), ApiError> {
        self.check(
            "metadata",
            metadata.len(),
            self.config.limits.metadata_bytes_max,
        )
    }

    fn check(&self, what: &str, bytes: usize, limit: usize) -> Result<(), ApiError> {
        if bytes <= limit {
            return Ok(());
        }
        Err(ApiError::new(
            Code::InvalidArgument,
            format!("{what} of {bytes} bytes is longer than {limit}"),
        ))
    }
}

fn identity(text: &str) -> Result<Identity, ApiError> {
    if text.is_empty() {
        return Err(ApiError::missing("identity"));
    }
    Ok(Identity(text.to_owned()))
}

fn create_room(request: &ApiRequest<'_>, ids: &mut IdSource) -> Result<Call, ApiError> {
    request.require(|video| video.room_create)?;
    let asked: proto::CreateRoomRequest = request.read()?;
    if asked.name.is_empty() {
        return Err(ApiError::missing("name"));
    }
    let limits = &request.config.limits;
    request.check("room name", asked.name.len(), limits.room_name_bytes_max)?;
    request.check_metadata(&asked.metadata)?;
    let command = Command::CreateRoom(flotilla_model::command::CreateRoom {
        options: convert::room_options(&asked, &request.config.room_defaults),
        name: RoomName(asked.name),
        sid: ids.room(),
        metadata: asked.metadata,
    });
    Ok(request.propose(command, request.room_shape()))
}

fn list_rooms(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    request.require(|video| video.room_list)?;
    let asked: proto::ListRoomsRequest = request.read()?;
    Ok(request.read_state(What::Rooms(
        asked.names,
        request.config.enabled_codecs.clone(),
    )))
}

fn delete_room(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    request.require(|video| video.room_create)?;
    let asked: proto::DeleteRoomRequest = request.read()?;
    if asked.room.is_empty() {
        return Err(ApiError::missing("room"));
    }
    let room = RoomName(asked.room);
    Ok(request.propose(Command::DeleteRoom { room }, Shape::DeleteRoom))
}

fn list_participants(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::ListParticipantsRequest = request.read()?;
    let room = request.require_admin(&asked.room)?;
    Ok(request.read_state(What::Participants(room)))
}

fn get_participant(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::RoomParticipantIdentity = request.read()?;
    let room = request.require_admin(&asked.room)?;
    Ok(request.read_state(What::Participant(room, identity(&asked.identity)?)))
}

/// Tokens issued before now are revoked, unless the request names another time; a new one lets the
/// participant in again.
fn remove_participant(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::RoomParticipantIdentity = request.read()?;
    let room = request.require_admin(&asked.room)?;
    let seconds = match u64::try_from(asked.revoke_token_ts) {
        Ok(0) | Err(_) => request.now.0 / 1000,
        Ok(seconds) => seconds,
    };
    let command = Command::Leave {
        room,
        identity: identity(&asked.identity)?,
        sid: None,
        reason: LeaveReason::ParticipantRemoved,
        revoke_before: Some(UnixMillis(seconds.saturating_mul(1000))),
    };
    Ok(request.propose(command, Shape::RemoveParticipant))
}

fn mute_published_track(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::MuteRoomTrackRequest = request.read()?;
    let room = request.require_admin(&asked.room)?;
    if asked.track_sid.is_empty() {
        return Err(ApiError::missing("track_sid"));
    }
    if !asked.muted && !request.config.remote_unmute {
        return Err(ApiError::new(
            Code::FailedPrecondition,
            "remote unmute is not enabled",
        ));
    }
    let command = Command::SetTrackMuted {
        room,
        identity: identity(&asked.identity)?,
        track: TrackSid(asked.track_sid),
        muted: asked.muted,
    };
    Ok(request.propose(command, Shape::Muted))
}

fn update_participant(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::UpdateParticipantRequest = request.read()?;
    let room = request.require_admin(&asked.room)?;
    let limits = &request.config.limits;
    request.check_metadata(&asked.metadata)?;
    request.check("name", asked.name.len(), limits.name_bytes_max)?;
    let bytes = asked
        .attributes
        .iter()
        .map(|(k, v)| k.len() + v.len())
        .sum();
    request.check("attributes", bytes, limits.attributes_bytes_max)?;
    let some = |text: String| (!text.is_empty()).then_some(text);
    let command = Command::UpdateParticipant {
        room,
        identity: identity(&asked.identity)?,
        update: ParticipantUpdate {
            name: some(asked.name),
            metadata: some(asked.metadata),
            attributes: asked.attributes.into_iter().collect(),
            permission: asked.permission.as_ref().map(convert::permission),
        },
    };
    Ok(request.propose(command, Shape::Participant))
}

fn update_subscriptions(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::UpdateSubscriptionsRequest = request.read()?;
    let room = request.require_admin(&asked.room)?;
    let of_participants = asked
        .participant_tracks
        .into_iter()
        .flat_map(|p| p.track_sids);
    let tracks = asked
        .track_sids
        .into_iter()
        .chain(of_participants)
        .take(request.config.limits.tracks_per_request_max)
        .map(|sid| (TrackSid(sid), asked.subscribe))
        .collect();
    let command = Command::UpdateSubscriptions {
        room,
        identity: identity(&asked.identity)?,
        tracks,
    };
    Ok(request.propose(command, Shape::Subscriptions))
}

fn update_room_metadata(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::UpdateRoomMetadataRequest = request.read()?;
    let room = request.require_admin(&asked.room)?;
    request.check_metadata(&asked.metadata)?;
    let command = Command::SetRoomMetadata {
        room,
        metadata: asked.metadata,
    };
    Ok(request.propose(command, request.room_shape()))
}

fn send_data(request: &ApiRequest<'_>) -> Result<Call, ApiError> {
    let asked: proto::SendDataRequest = request.read()?;
    let room = request.require_admin(&asked.room)?;
    let limits = &request.config.limits;
    request.check("data", asked.data.len(), limits.data_message_bytes_max)?;
    let nonce =
        match asked.nonce.len() {
            0 => None,
            _ => Some(<[u8; 16]>::try_from(asked.nonce.as_slice()).map_err(|_| {
                ApiError::new(Code::InvalidArgument, "nonce must be 16 bytes or none")
            })?),
        };
    Ok(Call::Send(SendData {
        format: request.format,
        room,
        nonce,
        request: asked,
    }))
}

impl Answer {
    /// The response to a proposal's outcome.
    ///
    /// # Errors
    /// An [`ApiError`] that is the response.
    pub fn finish(&self, result: Result<&Reply, &CommitError>) -> Result<Vec<u8>, ApiError> {
        let reply = result.map_err(ApiError::from)?;
        let format = self.format;
        match (&self.shape, &reply.outcome) {
            (Shape::Room(codecs), Outcome::Room(room)) => {
                format.write(&convert::room(room, codecs))
            }
            (Shape::DeleteRoom, _) => format.write(&proto::DeleteRoomResponse {}),
            (Shape::RemoveParticipant, _) => format.write(&proto::RemoveParticipantResponse {}),
            (Shape::Subscriptions, _) => format.write(&proto::UpdateSubscriptionsResponse {}),
            (Shape::Muted, Outcome::Track(track)) => format.write(&proto::MuteRoomTrackResponse {
                track: Some(convert::track_info(track)),
            }),
            (Shape::Participant, Outcome::Participant(participant)) => {
                format.write(&convert::participant_info(participant))
            }
            (Shape::Room(_) | Shape::Muted | Shape::Participant, _) => Err(ApiError::new(
                Code::Internal,
                "the change had an unexpected outcome",
            )),
        }
    }
}

impl Query {
    /// The response from a state.
    ///
    /// # Errors
    /// `not_found` if the participant asked for is not there.
    pub fn run(&self, state: &State) -> Result<Vec<u8>, ApiError> {
        match &self.what {
            What::Rooms(names, codecs) => {
                let wanted = |room: &Room| {
                    names.is_empty() || names.iter().any(|name| name == room.name.as_str())
                };
                let rooms = state.rooms.values().filter(|room| wanted(room));
                self.format.write(&proto::ListRoomsResponse {
                    rooms: rooms.map(|room| convert::room(room, codecs)).collect(),
                })
            }
            What::Participants(room) => {
                let room = state.rooms.get(room);
                let participants = room.into_iter().flat_map(|room| room.participants.values());
                self.format.write(&proto::ListParticipantsResponse {
                    participants: participants.map(|p| convert::participant_info(p)).collect(),
                })
            }
            What::Participant(room, identity) => {
                let participant = state
                    .rooms
                    .get(room)
                    .and_then(|room| room.participants.get(identity))
                    .ok_or_else(|| ApiError::new(Code::NotFound, "participant does not exist"))?;
                self.format.write(&convert::participant_info(participant))
            }
        }
    }
}

impl SendData {
    /// The message for the room's sessions.
    #[must_use]
    #[expect(deprecated, reason = "receivers read the deprecated fields")]
    pub fn message(&self, room: &Room) -> DataOut {
        let asked = &self.request;
        let mut destinations: Vec<Identity> = asked
            .destination_identities
            .iter()
            .map(|identity| Identity(identity.clone()))
            .collect();
        let named = |sid: &ParticipantSid| asked.destination_sids.iter().any(|s| s == sid.as_str());
        if !asked.destination_sids.is_empty() {
            let by_sid = room.participants.values().filter(|p| named(&p.sid));
            destinations.extend(by_sid.map(|participant| participant.identity.clone()));
            if destinations.is_empty() {
                // All of them are gone, which must not mean everybody.
                destinations.push(Identity(String::new()));
            }
        }
        let identities: Vec<String> = destinations.iter().map(ToString::to_string).collect();
        let packet = proto::DataPacket {
            kind: asked.kind,
            destination_identities: identities.clone(),
            value: Some(proto::data_packet::Value::User(proto::UserPacket {
                payload: asked.data.clone(),
                destination_sids: asked.destination_sids.clone(),
                destination_identities: identities,
                topic: asked.topic.clone(),
                nonce: asked.nonce.clone(),
                ..proto::UserPacket::default()
            })),
            ..proto::DataPacket::default()
        };
        DataOut {
            from: ParticipantSid(String::new()),
            from_identity: Identity(String::new()),
            channel: match asked.kind() {
                proto::data_packet::Kind::Reliable => Channel::Reliable,
                proto::data_packet::Kind::Lossy => Channel::Lossy,
            },
            destinations,
            sequence: 0,
            content: content::USER,
            payload: packet.encode_to_vec().into(),
        }
    }

    /// The response once it is on its way.
    ///
    /// # Errors
    /// None in practice; the response is empty.
    pub fn finish(&self) -> Result<Vec<u8>, ApiError> {
        self.format.write(&proto::SendDataResponse {})
    }
}

#[cfg(test)]
mod tests;
