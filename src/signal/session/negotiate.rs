//! Offers, answers and candidates between client and engine, and what becomes of the transports.

use std::collections::BTreeMap;
use std::time::Instant;

use flotilla_model::command::Command;
use flotilla_model::id::TrackSid;
use flotilla_model::participant::{LeaveReason, ParticipantState};
use livekit_protocol as proto;
use proto::signal_response::Message;
use serde::Deserialize;

use super::core::{Core, Flow};
use super::leave;
use super::live::Live;
use super::proposals::Purpose;
use crate::media::{self, Target};

/// The part of `RTCIceCandidateInit` that matters.
#[derive(Deserialize)]
struct CandidateInit {
    #[serde(default)]
    candidate: String,
}

impl Live {
    /// Clients offer on the publisher connection only.
    pub(super) fn handle_offer(&mut self, core: &mut Core, offer: proto::SessionDescription) {
        if offer.r#type != "offer" {
            core.discards.malformed_descriptions += 1;
            return;
        }
        // A client that is taken over says first what it has. One that does not has its peers anew.
        self.create_peers(core, None);
        core.media(media::Command::Offer {
            target: Target::Publisher,
            id: offer.id,
            sdp: offer.sdp,
        });
    }

    /// Clients with two connections answer our offers on the subscriber one.
    pub(super) fn handle_answer(&mut self, core: &mut Core, answer: proto::SessionDescription) {
        if core.single || answer.r#type != "answer" {
            core.discards.malformed_descriptions += 1;
            return;
        }
        core.media(media::Command::Answer {
            target: Target::Subscriber,
            id: answer.id,
            sdp: answer.sdp,
        });
    }

    pub(super) fn handle_trickle(&mut self, core: &mut Core, trickle: &proto::TrickleRequest) {
        let target = match trickle.target() {
            proto::SignalTarget::Subscriber if !core.single => Target::Subscriber,
            _ => Target::Publisher,
        };
        // The last message may say no more than that it is the last.
        if trickle.candidate_init.is_empty() {
            return;
        }
        match serde_json::from_str::<CandidateInit>(&trickle.candidate_init) {
            Ok(init) if init.candidate.is_empty() => {}
            Ok(init) => core.media(media::Command::Candidate {
                target,
                candidate: init.candidate,
            }),
            Err(_) => core.discards.malformed_descriptions += 1,
        }
    }

    /// Which connection makes the participant active.
    fn primary(core: &Core) -> Target {
        if core.single || core.protocol <= 2 {
            Target::Publisher
        } else {
            Target::Subscriber
        }
    }

    pub(super) fn handle_connected(&mut self, core: &mut Core, target: Target) {
        if target != Self::primary(core)
            || self.me.state == ParticipantState::Active
            || self.activating
        {
            return;
        }
        self.activating = true;
        let command = Command::Activate {
            room: core.room.clone(),
            identity: core.identity.clone(),
            sid: core.sid.clone(),
        };
        core.propose(command, Purpose::Activate);
    }

    /// A client that is still here resumes; one that is not has a little time left to come back.
    pub(super) fn handle_failed(&mut self, core: &mut Core, now: Instant) -> Flow {
        let wait_until = now + core.config.media_failed_timeout;
        if core.connected {
            let reason = LeaveReason::MediaFailure as i32;
            leave::ask_to_resume(core, reason);
        }
        self.wait_for_resume(wait_until);
        self.leave_reason = LeaveReason::MediaFailure;
        Flow::Stay
    }

    /// Without a common description there is no media; the client starts over.
    pub(super) fn handle_description_refused(&mut self, core: &mut Core, reason: &str) -> Flow {
        tracing::warn!(room = %core.room, participant = %core.sid, reason, "description refused");
        leave::expel(core, LeaveReason::StateMismatch)
    }
}

pub(super) fn send_answer(
    core: &mut Core,
    id: u32,
    sdp: String,
    mid_to_track: BTreeMap<String, TrackSid>,
) {
    core.reply(Message::Answer(description(
        "answer",
        id,
        sdp,
        mid_to_track,
    )));
}

pub(super) fn send_offer(
    core: &mut Core,
    id: u32,
    sdp: String,
    mid_to_track: BTreeMap<String, TrackSid>,
) {
    core.reply(Message::Offer(description("offer", id, sdp, mid_to_track)));
}

fn description(
    kind: &str,
    id: u32,
    sdp: String,
    mid_to_track: BTreeMap<String, TrackSid>,
) -> proto::SessionDescription {
    proto::SessionDescription {
        r#type: kind.to_owned(),
        sdp,
        id,
        mid_to_track_id: mid_to_track
            .into_iter()
            .map(|(mid, track)| (mid, track.0))
            .collect(),
    }
}
