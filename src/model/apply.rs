//! The state machine: one entry in, events and a reply out, the same on every node.
//!
//! `flotilla-raft` calls [`State::apply`] with committed entries in log order. Each command is
//! checked against the state first and refused without a trace, or carried out by the file named
//! after its subject: [`node`], [`room`], [`join`], [`participant`], [`track`], [`subscription`] or
//! [`expire`]. Changes of a room go through [`edit::Edit`], which keeps version, deadlines, counts
//! and routes true.

mod edit;
mod expire;
mod join;
mod node;
mod participant;
mod room;
mod route;
mod subscription;
#[cfg(test)]
pub(crate) mod tests;
mod track;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::Node;
use crate::command::{Command, Entry, Outcome, Rejection, Reply};
use crate::deadline::{Deadlines, Due};
use crate::encoding::VERSION_MIN;
use crate::event::Event;
use crate::id::{Identity, NodeId, ParticipantSid, Revision, RoomName, UnixMillis, Version};
use crate::map::Map;
use crate::participant::Participant;
use crate::permission::Revocation;
use crate::request::{Answer, Carried, Requests};
use crate::room::Room;

/// Everything one region's group agrees on. A copy costs a few reference counts: readers hold an
/// `Arc<State>` while the next entry is applied to a copy.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
#[serde(from = "Stored")]
pub struct State {
    /// Entries applied.
    pub revision: Revision,
    /// Nodes by id.
    pub nodes: Map<NodeId, Arc<Node>>,
    /// Rooms by name.
    pub rooms: Map<RoomName, Arc<Room>>,
    /// Tokens revoked, per room and identity; they outlive the room.
    pub revocations: Map<(RoomName, Identity), Revocation>,
    /// Requests applied, so that none applies twice.
    pub requests: Requests,
    /// Index of all deadlines; derived.
    #[serde(skip)]
    deadlines: Deadlines,
}

/// A [`State`] as encoded: without what is derived.
#[derive(Deserialize)]
struct Stored {
    revision: Revision,
    nodes: Map<NodeId, Arc<Node>>,
    rooms: Map<RoomName, Arc<Room>>,
    revocations: Map<(RoomName, Identity), Revocation>,
    requests: Requests,
}

/// What applying one entry gave.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Applied {
    /// The answer for whoever asked.
    pub result: Result<Reply, Rejection>,
    /// What changed, in order.
    pub events: Vec<Event>,
}

/// What the handlers share: when the entry was accepted, and the events so far.
struct Context<'a> {
    at: UnixMillis,
    events: &'a mut Vec<Event>,
}

impl State {
    /// Applies one entry. An entry whose request id was applied before changes nothing but the
    /// revision and gets an equivalent answer: the same outcome and version, with the record it is
    /// about as it is now.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        self.revision.0 += 1;
        if let Some(answer) = self.requests.answer(entry.request) {
            return Applied {
                result: self.answer_again(answer, &entry.command),
                events: Vec::new(),
            };
        }
        let mut events = Vec::new();
        let mut context = Context {
            at: entry.at,
            events: &mut events,
        };
        let result = self.run(&mut context, &entry.command);
        assert!(
            result.is_ok() || events.is_empty(),
            "a refused command changes nothing"
        );
        let answer = Answer::of(&result);
        self.requests
            .remember(self.revision, entry.request, entry.at, answer);
        Applied { result, events }
    }

    /// When the next `Expire` is due; `None` if nothing is pending. Costs a look-up.
    #[must_use]
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        self.deadlines.next()
    }

    /// The encoding version that every node reads, and so the newest that may be proposed: the lowest
    /// one registered. It never falls: whoever reads less is not taken in. Costs a look at every node.
    #[must_use]
    pub fn log_version(&self) -> u8 {
        let read = self.nodes.values().map(|node| node.formats().log);
        read.min().unwrap_or(VERSION_MIN)
    }

    /// Whether every node reads an encoding version. Costs nothing for what all programs read.
    #[must_use]
    pub fn all_read(&self, version: u8) -> bool {
        version <= VERSION_MIN || version <= self.log_version()
    }

    /// Whether a token of `identity` for `room`, issued at `issued_at`, has been revoked.
    #[must_use]
    pub fn is_revoked(&self, room: &RoomName, identity: &Identity, issued_at: UnixMillis) -> bool {
        self.revocations
            .get(&(room.clone(), identity.clone()))
            .is_some_and(|revocation| issued_at < revocation.before)
    }

    fn run(&mut self, context: &mut Context<'_>, command: &Command) -> Result<Reply, Rejection> {
        match command {
            Command::PutNode(node) => self.put_node(context, node),
            Command::SetNodeState { node, state } => self.set_node_state(context, *node, *state),
            Command::RemoveNodeV1 { node } => self.remove_node_v1(context, *node),
            Command::NodeLostV1 { node, boot } => self.lose_node_v1(context, *node, *boot),
            Command::RemoveNode { node } => self.remove_node(context, *node),
            Command::NodeLost { node, boot, cause } => {
                self.lose_node(context, *node, *boot, *cause)
            }
            Command::NodeLostTo {
                node,
                boot,
                cause,
                taker,
            } => self.lose_node_to(context, (*node, *boot), *cause, *taker),
            Command::NodeLostIn {
                node,
                stint,
                cause,
                taker,
            } => self.lose_node_in(context, (*node, *stint), *cause, *taker),
            Command::NodeReturns { node, boot } => self.return_node(context, *node, *boot),
            Command::ReleaseAddresses {
                node,
                boot,
                addresses,
            } => self.release_addresses(context, *node, *boot, addresses),
            Command::CreateRoom(create) => self.create_room(context, create),
            Command::DeleteRoom { room } => self.delete_room(context, room),
            Command::SetRoomMetadata { room, metadata } => {
                self.set_room_metadata(context, room, metadata)
            }
            Command::Join(join) => self.join(context, join),
            Command::Activate {
                room,
                identity,
                sid,
            } => self.activate(context, room, identity, sid),
            Command::Leave {
                room,
                identity,
                sid,
                reason,
                revoke_before,
            } => {
                let leave = participant::Leave {
                    sid: sid.as_ref(),
                    reason: *reason,
                    revoke_before: *revoke_before,
                };
                self.leave(context, room, identity, &leave)
            }
            Command::Depart {
                room,
                identity,
                sid,
                epoch,
                reason,
            } => self.depart(context, room, (identity, sid, *epoch), *reason),
            Command::UpdateParticipant {
                room,
                identity,
                update,
            } => self.update_participant(context, room, identity, update),
            Command::PublishTrack {
                room,
                identity,
                sid,
                track,
            } => self.publish_track(context, room, (identity, sid), track),
            Command::UpdateTrack {
                room,
                identity,
                sid,
                track,
            } => self.update_track(context, room, (identity, sid), track),
            Command::UnpublishTrack {
                room,
                identity,
                track,
            } => self.unpublish_track(context, room, identity, track),
            Command::SetTrackMuted {
                room,
                identity,
                track,
                muted,
            } => self.set_track_muted(context, room, (identity, track), *muted),
            Command::UpdateSubscriptions {
                room,
                identity,
                tracks,
            } => self.update_subscriptions(context, room, identity, tracks),
            Command::SetSubscriptionPermission {
                room,
                identity,
                permission,
            } => self.set_subscription_permission(context, room, identity, permission),
            Command::Rehome { moves } => self.rehome(context, moves),
            Command::Expire => Ok(self.expire(context)),
            Command::Noop => Ok(done(Version(0))),
        }
    }

    /// The answer to a command that was applied earlier. What it is about may be gone meanwhile;
    /// then the answer says so.
    fn answer_again(&self, answer: &Answer, command: &Command) -> Result<Reply, Rejection> {
        let (version, carried) = match answer {
            Answer::Refused(rejection) => return Err(rejection.clone()),
            Answer::Done { version, carried } => (*version, *carried),
        };
        let outcome = match carried {
            Carried::Nothing => Outcome::Done,
            Carried::Expired {
                rooms,
                participants,
            } => Outcome::Expired {
                rooms,
                participants,
            },
            Carried::Room => Outcome::Room(Arc::clone(self.room(room_of(command)?)?)),
            Carried::Joined => {
                let Command::Join(join) = command else {
                    return Err(Rejection::StaleSession);
                };
                let (room, participant) = self.session(&join.room, &join.identity, &join.sid)?;
                Outcome::Joined {
                    room: Arc::clone(room),
                    participant: Arc::clone(participant),
                }
            }
            Carried::Participant => {
                let (room, identity) = participant_of(command)?;
                let (_, participant) = self.present(room, identity)?;
                Outcome::Participant(Arc::clone(participant))
            }
            Carried::Track => {
                let (room, identity) = participant_of(command)?;
                let (_, participant) = self.present(room, identity)?;
                let track = match command {
                    Command::PublishTrack { track, .. } | Command::UpdateTrack { track, .. } => {
                        participant.tracks.get(&track.sid)
                    }
                    Command::SetTrackMuted { track, .. } => participant.tracks.get(track),
                    _ => None,
                };
                Outcome::Track(Arc::clone(track.ok_or(Rejection::TrackNotFound)?))
            }
        };
        Ok(Reply { version, outcome })
    }

    fn room(&self, name: &RoomName) -> Result<&Arc<Room>, Rejection> {
        self.rooms.get(name).ok_or(Rejection::RoomNotFound)
    }

    /// A participant that is in a room, whatever its session.
    fn present(
        &self,
        room: &RoomName,
        identity: &Identity,
    ) -> Result<(&Arc<Room>, &Arc<Participant>), Rejection> {
        let room = self.room(room)?;
        let participant = room
            .participants
            .get(identity)
            .ok_or(Rejection::ParticipantNotFound)?;
        Ok((room, participant))
    }

    /// A participant that is in a room in a certain session.
    fn session(
        &self,
        room: &RoomName,
        identity: &Identity,
        sid: &ParticipantSid,
    ) -> Result<(&Arc<Room>, &Arc<Participant>), Rejection> {
        let (room, participant) = self.present(room, identity)?;
        if participant.sid == *sid {
            Ok((room, participant))
        } else {
            Err(Rejection::StaleSession)
        }
    }
}

impl From<Stored> for State {
    fn from(stored: Stored) -> Self {
        let mut deadlines = Deadlines::default();
        for room in stored.rooms.values() {
            deadlines.change(Due::Room(room.name.clone()), None, room.close_at);
            for participant in room.participants.values() {
                let due = Due::Participant(room.name.clone(), participant.identity.clone());
                deadlines.change(due, None, participant.activate_by);
            }
        }
        for ((room, identity), revocation) in &stored.revocations {
            let due = Due::Revocation(room.clone(), identity.clone());
            deadlines.change(due, None, Some(revocation.until));
        }
        Self {
            revision: stored.revision,
            nodes: stored.nodes,
            rooms: stored.rooms,
            revocations: stored.revocations,
            requests: stored.requests,
            deadlines,
        }
    }
}

/// The answer that says no more than that it is done.
const fn done(version: Version) -> Reply {
    Reply {
        version,
        outcome: Outcome::Done,
    }
}

/// The room a command names.
fn room_of(command: &Command) -> Result<&RoomName, Rejection> {
    match command {
        Command::CreateRoom(create) => Ok(&create.name),
        Command::SetRoomMetadata { room, .. } | Command::DeleteRoom { room } => Ok(room),
        _ => Err(Rejection::RoomNotFound),
    }
}

/// The room and the participant a command names.
fn participant_of(command: &Command) -> Result<(&RoomName, &Identity), Rejection> {
    match command {
        Command::Join(join) => Ok((&join.room, &join.identity)),
        Command::Activate { room, identity, .. }
        | Command::UpdateParticipant { room, identity, .. }
        | Command::PublishTrack { room, identity, .. }
        | Command::UpdateTrack { room, identity, .. }
        | Command::SetTrackMuted { room, identity, .. }
        | Command::UpdateSubscriptions { room, identity, .. }
        | Command::SetSubscriptionPermission { room, identity, .. } => Ok((room, identity)),
        _ => Err(Rejection::ParticipantNotFound),
    }
}
