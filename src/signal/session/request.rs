//! What the client says, request by request. Those with a subject of their own go to its file.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flotilla_model::command::{Command, ParticipantUpdate, Reply};
use flotilla_model::id::TrackSid;
use flotilla_model::participant::LeaveReason;
use flotilla_model::unit::Size;
use livekit_protocol as proto;
use proto::leave_request::Action;
use proto::request_response::{Reason, Request};
use proto::signal_request::Message as Asked;
use proto::signal_response::Message;

use super::core::{Core, Flow};
use super::live::Live;
use super::proposals::Purpose;
use super::{CommitError, leave};
use crate::convert;

/// Longest simulated speech.
const SPEECH_MAX: Duration = Duration::from_secs(60);

impl Live {
    pub(super) fn handle_request(
        &mut self,
        core: &mut Core,
        now: Instant,
        request: proto::SignalRequest,
    ) -> Flow {
        match request.message {
            Some(Asked::Offer(offer)) => self.handle_offer(core, offer),
            Some(Asked::Answer(answer)) => self.handle_answer(core, answer),
            Some(Asked::Trickle(trickle)) => self.handle_trickle(core, &trickle),
            Some(Asked::AddTrack(request)) => self.add_track(core, request),
            Some(Asked::Mute(request)) => self.handle_mute(core, request),
            Some(Asked::Subscription(request)) => self.handle_subscription(core, &request),
            Some(Asked::TrackSetting(request)) => self.handle_track_setting(core, &request),
            Some(Asked::SubscriptionPermission(request)) => {
                self.handle_subscription_permission(core, &request);
            }
            Some(Asked::Leave(_)) => return Flow::Leave(LeaveReason::ClientInitiated),
            Some(Asked::SyncState(state)) => return self.handle_sync_state(core, &state),
            Some(Asked::Simulate(scenario)) => return self.handle_simulate(core, now, scenario),
            Some(Asked::Ping(_)) => {
                let at = convert::millis(core.wall(now));
                core.reply(Message::Pong(at));
            }
            Some(Asked::PingReq(ping)) => {
                let timestamp = convert::millis(core.wall(now));
                core.reply(Message::PongResp(proto::Pong {
                    last_ping_timestamp: ping.timestamp,
                    timestamp,
                }));
            }
            Some(Asked::UpdateMetadata(request)) => self.handle_metadata(core, request),
            Some(Asked::UpdateAudioTrack(request)) => self.handle_audio_track(core, request),
            Some(Asked::UpdateVideoTrack(request)) => self.handle_video_track(core, request),
            #[expect(deprecated, reason = "older clients send it")]
            Some(Asked::UpdateLayers(request)) => self.handle_layers(core, request),
            Some(other) => refuse_unsupported(core, other),
            None => core.discards.unknown_requests += 1,
        }
        Flow::Stay
    }

    fn handle_metadata(&mut self, core: &mut Core, request: proto::UpdateParticipantMetadata) {
        if let Err((reason, text)) = self.check_metadata(core, &request) {
            let id = request.request_id;
            core.respond(id, reason, text, Some(Request::UpdateMetadata(request)));
            return;
        }
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let update = ParticipantUpdate {
            name: some(&request.name),
            metadata: some(&request.metadata),
            attributes: request.attributes.clone().into_iter().collect(),
            permission: None,
        };
        let command = Command::UpdateParticipant {
            room: core.room.clone(),
            identity: core.identity.clone(),
            update,
        };
        if !core.propose(command, Purpose::Metadata(request.clone())) {
            let id = request.request_id;
            let request = Some(Request::UpdateMetadata(request));
            core.respond(
                id,
                Reason::LimitExceeded,
                "too many changes at once",
                request,
            );
        }
    }

    fn check_metadata(
        &self,
        core: &Core,
        request: &proto::UpdateParticipantMetadata,
    ) -> Result<(), (Reason, &'static str)> {
        let limits = &core.config.limits;
        if !self.me.permission.can_update_metadata {
            return Err((Reason::NotAllowed, "may not update own metadata"));
        }
        if request.metadata.len() > limits.metadata_bytes_max {
            return Err((Reason::LimitExceeded, "metadata is too long"));
        }
        if request.name.len() > limits.name_bytes_max {
            return Err((Reason::LimitExceeded, "name is too long"));
        }
        let mut attributes: BTreeMap<&str, &str> = self
            .me
            .attributes
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        for (key, value) in &request.attributes {
            attributes.insert(key, value);
        }
        let bytes: usize = attributes
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if bytes > limits.attributes_bytes_max {
            return Err((Reason::LimitExceeded, "attributes are too long"));
        }
        Ok(())
    }

    fn handle_audio_track(&mut self, core: &mut Core, request: proto::UpdateLocalAudioTrack) {
        let sid = TrackSid(request.track_sid.clone());
        let Some(track) = self.published.get_mut(&sid) else {
            let request = Some(Request::UpdateAudioTrack(request));
            core.respond(0, Reason::NotFound, "no such track", request);
            return;
        };
        let has = |feature: proto::AudioTrackFeature| request.features.contains(&(feature as i32));
        track.stereo = has(proto::AudioTrackFeature::TfStereo);
        track.disable_dtx = has(proto::AudioTrackFeature::TfNoDtx);
        track.audio_features = request.features.iter().copied().take(16).collect();
        self.propose_track(core, &sid, Purpose::AudioTrack(request));
    }

    fn handle_video_track(&mut self, core: &mut Core, request: proto::UpdateLocalVideoTrack) {
        let sid = TrackSid(request.track_sid.clone());
        if self.published.get(&sid).is_none() {
            let request = Some(Request::UpdateVideoTrack(request));
            core.respond(0, Reason::NotFound, "no such track", request);
            return;
        }
        let size = Size {
            width: request.width,
            height: request.height,
        };
        self.set_size(&sid, size);
        self.propose_track(core, &sid, Purpose::VideoTrack(request));
    }

    /// Older clients say so that their layers changed size.
    fn handle_layers(&mut self, core: &mut Core, request: proto::UpdateVideoLayers) {
        let sid = TrackSid(request.track_sid);
        let Some(codec) = self
            .published
            .get_mut(&sid)
            .and_then(|track| track.codecs.first_mut())
        else {
            return;
        };
        for layer in &mut codec.layers {
            let said = request
                .layers
                .iter()
                .find(|said| convert::quality(said.quality) == layer.quality);
            if let Some(said) = said {
                layer.size = Size {
                    width: said.width,
                    height: said.height,
                };
                layer.bitrate_bps = said.bitrate;
            }
        }
        self.propose_track(core, &sid, Purpose::Describe(sid.clone()));
    }

    /// Test hooks of LiveKit's SDKs.
    fn handle_simulate(
        &mut self,
        core: &mut Core,
        now: Instant,
        scenario: proto::SimulateScenario,
    ) -> Flow {
        use proto::simulate_scenario::Scenario;
        match scenario.scenario {
            Some(Scenario::SpeakerUpdate(seconds)) => {
                let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                self.speech_until = Some(now + seconds.min(SPEECH_MAX));
                self.send_own_speech(core, 0.75);
                Flow::Stay
            }
            Some(Scenario::ServerLeave(true)) => {
                leave::send_leave(core, LeaveReason::Unknown as i32, Action::Disconnect);
                Flow::Leave(LeaveReason::Unknown)
            }
            Some(Scenario::LeaveRequestFullReconnect(true)) => {
                leave::expel(core, LeaveReason::Unknown)
            }
            // As if the node went away: the signal connection ends without a word, the client
            // resumes or joins anew.
            Some(Scenario::NodeFailure(true)) => {
                core.close_signal();
                Flow::Leave(LeaveReason::ServerShutdown)
            }
            Some(Scenario::Migration(true)) => {
                let reason = proto::DisconnectReason::Migration as i32;
                leave::send_leave(core, reason, Action::Resume);
                core.close_signal();
                self.wait_for_resume(now + core.config.resume_timeout);
                Flow::Stay
            }
            Some(Scenario::DisconnectSignalOnResume(on)) => {
                self.disconnect_on_resume = on.then_some(super::resume::Disconnect::AfterMessages);
                Flow::Stay
            }
            Some(Scenario::DisconnectSignalOnResumeNoMessages(on)) => {
                self.disconnect_on_resume = on.then_some(super::resume::Disconnect::AtOnce);
                Flow::Stay
            }
            Some(Scenario::SwitchCandidateProtocol(_) | Scenario::SubscriberBandwidth(_)) => {
                core.respond(
                    0,
                    Reason::UnsupportedType,
                    "scenario is not supported",
                    None,
                );
                Flow::Stay
            }
            Some(_) | None => Flow::Stay,
        }
    }
}

fn refuse_unsupported(core: &mut Core, asked: Asked) {
    let (id, request) = match asked {
        Asked::PublishDataTrackRequest(request) => (0, Some(Request::PublishDataTrack(request))),
        Asked::UnpublishDataTrackRequest(request) => {
            (0, Some(Request::UnpublishDataTrack(request)))
        }
        Asked::StoreDataBlobRequest(request) => (request.request_id, None),
        Asked::GetDataBlobRequest(request) => (request.request_id, None),
        // Clients send it on their own; without data tracks there is nothing to do.
        _ => return,
    };
    core.respond(
        id,
        Reason::UnsupportedType,
        "not supported by this server",
        request,
    );
}

pub(super) fn answer_metadata(
    core: &mut Core,
    request: proto::UpdateParticipantMetadata,
    result: Result<Reply, CommitError>,
) {
    let id = request.request_id;
    let request = Some(Request::UpdateMetadata(request));
    match result {
        Ok(_) => core.respond(id, Reason::Ok, "", request),
        Err(error) => core.respond_failed(id, &error, request),
    }
}

pub(super) fn answer_audio_track(
    core: &mut Core,
    request: proto::UpdateLocalAudioTrack,
    result: Result<Reply, CommitError>,
) {
    if let Err(error) = result {
        core.respond_failed(0, &error, Some(Request::UpdateAudioTrack(request)));
    }
}

pub(super) fn answer_video_track(
    core: &mut Core,
    request: proto::UpdateLocalVideoTrack,
    result: Result<Reply, CommitError>,
) {
    if let Err(error) = result {
        core.respond_failed(0, &error, Some(Request::UpdateVideoTrack(request)));
    }
}
