//! What the cluster looks like.

use std::sync::Arc;
use std::time::Duration;

use flotilla_model::encoding::state_hash;
use flotilla_model::id::RoomName;
use flotilla_model::room::Room;
use flotilla_raft::{Applied, Change, MemberStatus, Position, Role, Status as GroupView};
use tonic::Status;

use super::live::Live;
use super::page::Pager;
use super::service::{AdminService, needed};
use super::{convert, proto};
use crate::control::takeovers::Takeover;

impl AdminService {
    pub(super) fn status(&self) -> proto::GetStatusResponse {
        proto::GetStatusResponse {
            position: self.position_now(),
            groups: vec![group_status(&self.context.group.status())],
        }
    }

    pub(super) async fn nodes(
        &self,
        request: proto::ListNodesRequest,
    ) -> Result<proto::ListNodesResponse, Status> {
        let applied = self.applied(request.consistency).await?;
        let state = &applied.state;
        Ok(proto::ListNodesResponse {
            position: self.position(&applied),
            nodes: state
                .nodes
                .values()
                .map(|node| convert::node(node, state))
                .collect(),
        })
    }

    pub(super) async fn rooms(
        &self,
        request: proto::ListRoomsRequest,
    ) -> Result<proto::ListRoomsResponse, Status> {
        let pager = Pager::new(request.page.as_ref())?;
        let applied = self.applied(request.consistency).await?;
        let rooms = applied.state.rooms.values();
        let rooms = rooms.filter(|room| pager.is_after(&[room.name.as_str()]));
        let (rooms, next_page_token) =
            pager.take(rooms.map(|room| (vec![room.name.to_string()], convert::room(room))));
        Ok(proto::ListRoomsResponse {
            position: self.position(&applied),
            rooms,
            next_page_token,
        })
    }

    pub(super) async fn room(
        &self,
        request: proto::GetRoomRequest,
    ) -> Result<proto::GetRoomResponse, Status> {
        let name = needed("room", &request.room)?;
        let applied = self.applied(request.consistency).await?;
        Ok(proto::GetRoomResponse {
            position: self.position(&applied),
            room: Some(convert::room(find(&applied, name)?)),
        })
    }

    pub(super) async fn participants(
        &self,
        request: proto::ListParticipantsRequest,
    ) -> Result<proto::ListParticipantsResponse, Status> {
        let name = needed("room", &request.room)?;
        let pager = Pager::new(request.page.as_ref())?;
        let applied = self.applied(request.consistency).await?;
        let room = find(&applied, name)?;
        let present = room.participants.values();
        let present = present.filter(|p| pager.is_after(&[p.identity.as_str()]));
        let (participants, next_page_token) =
            pager.take(present.map(|p| (vec![p.identity.to_string()], convert::participant(p))));
        Ok(proto::ListParticipantsResponse {
            position: self.position(&applied),
            room_version: room.version.0,
            participants,
            next_page_token,
        })
    }

    pub(super) async fn tracks(
        &self,
        request: proto::ListTracksRequest,
    ) -> Result<proto::ListTracksResponse, Status> {
        let name = needed("room", &request.room)?;
        let pager = Pager::new(request.page.as_ref())?;
        let applied = self.applied(request.consistency).await?;
        let room = find(&applied, name)?;
        let live = self.live().await;
        let counters = self.counters(&live);
        let published = room.tracks();
        let published = published.filter(|(_, track)| pager.is_after(&[track.sid.as_str()]));
        let (tracks, next_page_token) = pager.take(published.map(|(publisher, track)| {
            let mut shown = convert::track(publisher, track);
            shown.routes = convert::routes(room, &track.sid, Some(&counters));
            (vec![track.sid.to_string()], shown)
        }));
        Ok(proto::ListTracksResponse {
            position: self.position(&applied),
            room_version: room.version.0,
            tracks,
            next_page_token,
        })
    }

    pub(super) fn takeovers(
        &self,
        request: &proto::ListTakeoversRequest,
    ) -> Result<proto::ListTakeoversResponse, Status> {
        let pager = Pager::new(request.page.as_ref())?;
        // As text the numbers keep their order.
        let key = |takeover: &Takeover| format!("{:020}", takeover.number);
        let all = self.context.takeovers.list(None);
        let all = all
            .iter()
            .filter(|takeover| pager.is_after(&[&key(takeover)]));
        let (takeovers, next_page_token) =
            pager.take(all.map(|takeover| (vec![key(takeover)], convert::takeover(takeover))));
        Ok(proto::ListTakeoversResponse {
            position: self.position_now(),
            takeovers,
            next_page_token,
        })
    }

    pub(super) async fn routes(
        &self,
        request: proto::ListRoutesRequest,
    ) -> Result<proto::ListRoutesResponse, Status> {
        let pager = Pager::new(request.page.as_ref())?;
        let applied = self.applied(request.consistency).await?;
        let (rooms, room_version): (Vec<&Arc<Room>>, u64) = if request.room.is_empty() {
            (applied.state.rooms.values().collect(), 0)
        } else {
            let room = find(&applied, &request.room)?;
            (vec![room], room.version.0)
        };
        let live = self.live().await;
        let counters = self.counters(&live);
        let entries = rooms.into_iter().flat_map(|room| {
            let tracks = room.routes.keys();
            let tracks = tracks.flat_map(|sid| convert::routes(room, sid, Some(&counters)));
            tracks.map(|route| {
                // Numbers of equal length, so that they sort as texts.
                let to = format!("{:020}", route.to);
                (vec![route.room.clone(), route.track.clone(), to], route)
            })
        });
        let entries = entries.filter(|(key, _)| {
            let key: Vec<&str> = key.iter().map(String::as_str).collect();
            pager.is_after(&key)
        });
        let (routes, next_page_token) = pager.take(entries);
        Ok(proto::ListRoutesResponse {
            position: self.position(&applied),
            room_version,
            routes,
            next_page_token,
        })
    }

    pub(super) async fn state_hash(
        &self,
        request: proto::GetStateHashRequest,
    ) -> Result<proto::GetStateHashResponse, Status> {
        let applied = match request.log_index {
            0 => self.context.group.applied(),
            index => self.applied_at(index)?,
        };
        let state = Arc::clone(&applied.state);
        let hash = tokio::task::spawn_blocking(move || state_hash(&state)).await;
        let hash = hash.map_err(|error| Status::internal(format!("hashing ended: {error}")))?;
        Ok(proto::GetStateHashResponse {
            position: self.position(&applied),
            state_hash: format!("{hash:016x}"),
        })
    }

    /// The state after a log entry, if what led to it is kept.
    fn applied_at(&self, index: u64) -> Result<Applied, Status> {
        let newest = self.context.group.applied();
        let newest_index = newest.log_index.unwrap_or(0);
        if index > newest_index {
            return Err(Status::out_of_range(format!(
                "log index {index} is not applied here yet, the newest is {newest_index}"
            )));
        }
        if index == newest_index {
            return Ok(newest);
        }
        let change = self.context.group.change_at(index).ok_or_else(|| {
            Status::out_of_range(format!(
                "the state at log index {index} is no longer kept on this node"
            ))
        })?;
        Ok(as_of(&change, index))
    }

    async fn live(&self) -> Live {
        Live::of(&(self.context.media)().await)
    }

    fn counters<'a>(&self, live: &'a Live) -> convert::Counters<'a> {
        convert::Counters {
            node: self.context.node,
            live,
        }
    }
}

fn as_of(change: &Change, index: u64) -> Applied {
    Applied {
        state: Arc::clone(&change.state),
        log_index: Some(index),
        at: change.at,
    }
}

pub(super) fn find<'a>(applied: &'a Applied, name: &str) -> Result<&'a Arc<Room>, Status> {
    let room = applied.state.rooms.get(&RoomName::from(name));
    room.ok_or_else(|| Status::not_found(format!("room {name:?} does not exist")))
}

pub(super) fn log_id(position: Position) -> proto::LogId {
    proto::LogId {
        term: position.term,
        index: position.index,
    }
}

fn group_status(status: &GroupView) -> proto::GroupStatus {
    proto::GroupStatus {
        cluster: status.cluster.clone().unwrap_or_default(),
        group: status.group.clone(),
        role: match status.role {
            Role::None => proto::GroupRole::None,
            Role::Learner => proto::GroupRole::Learner,
            Role::Follower => proto::GroupRole::Follower,
            Role::Candidate => proto::GroupRole::Candidate,
            Role::Leader => proto::GroupRole::Leader,
            Role::Stopped => proto::GroupRole::Stopped,
        }
        .into(),
        leader: status.leader.map(|leader| leader.0),
        term: status.term,
        last_log_index: status.last_log,
        committed: status.committed.map(log_id),
        applied: status.applied.map(log_id),
        snapshot: status.snapshot.map(log_id),
        purged: status.purged.map(log_id),
        waiting: u32::try_from(status.waiting).unwrap_or(u32::MAX),
        quorum_silent_ms: status.quorum_silent.map(milliseconds),
        fault: status.fault.clone().unwrap_or_default(),
        members: status.members.iter().map(member).collect(),
    }
}

fn member(member: &MemberStatus) -> proto::Member {
    proto::Member {
        node: member.node.0,
        address: member.address.clone(),
        voter: member.voter,
        matched: member.matched.map(log_id),
        lag: member.lag,
        silent_ms: member.silent.map(milliseconds),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
