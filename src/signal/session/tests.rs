//! Sessions as state in, outputs out, around a real state machine.

use std::time::Duration;

use flotilla_model::command::{Command, ParticipantUpdate};
use flotilla_model::id::{Identity, RoomName, TrackSid};
use flotilla_model::participant::{LeaveReason, ParticipantState};
use flotilla_model::track::Quality;
use livekit_protocol as proto;
use proto::leave_request::Action;
use proto::request_response::Reason;
use proto::signal_request::Message as Asked;
use proto::signal_response::Message;

use super::testing::{World, camera, claims, config, described, microphone, parameters};
use super::{Close, Input};
use crate::media::{self, Channel, Target};

mod adopt;
mod any;
mod data;
mod join;
mod publish;
mod resume;
mod subscribe;

/// The leave that a seat was told, if any.
fn leave(world: &World, seat: usize) -> Option<&proto::LeaveRequest> {
    world.seats[seat]
        .replies
        .iter()
        .find_map(|reply| match reply {
            Message::Leave(leave) => Some(leave),
            _ => None,
        })
}

fn offer(id: u32) -> proto::SessionDescription {
    proto::SessionDescription {
        r#type: "offer".into(),
        sdp: "v=0".into(),
        id,
        ..proto::SessionDescription::default()
    }
}

fn remove(identity: &str) -> Command {
    Command::Leave {
        room: RoomName::from("room"),
        identity: Identity::from(identity),
        sid: None,
        reason: LeaveReason::ParticipantRemoved,
        revoke_before: None,
    }
}

fn update(identity: &str, update: ParticipantUpdate) -> Command {
    Command::UpdateParticipant {
        room: RoomName::from("room"),
        identity: Identity::from(identity),
        update,
    }
}
