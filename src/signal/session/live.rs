//! A participant in its room: its state, and where each input goes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use flotilla_model::command::Reply;
use flotilla_model::event::RoomEvent;
use flotilla_model::id::Version;
use flotilla_model::participant::{LeaveReason, Participant};
use flotilla_model::room::Room;
use flotilla_model::track::Track;

use super::core::{Core, Flow};
use super::data::Channels;
use super::early::Early;
use super::proposals::Purpose;
use super::publish::Published;
use super::subscribe::Subscribed;
use super::update::Told;
use super::{CommitError, Input, leave, negotiate, publish};
use crate::data::DataOut;
use crate::media;

#[derive(Debug)]
pub(super) struct Live {
    /// Its own record, as the room has it.
    pub(super) me: Arc<Participant>,
    /// The newest room seen.
    pub(super) room: Arc<Room>,
    /// Version up to which events were seen before they came.
    seen: Version,
    /// What the client has been told of others.
    pub(super) told: Told,
    /// What the client publishes.
    pub(super) published: Published,
    /// What the engine has been told to send to it.
    pub(super) subscribed: Subscribed,
    /// Data messages both ways.
    pub(super) channels: Channels,
    /// The proposal to become active has been made.
    pub(super) activating: bool,
    /// When its token is renewed.
    pub(super) refresh_at: Instant,
    /// When it is given up, while its signal connection is gone.
    pub(super) resume_by: Option<Instant>,
    /// When it last came back, here or to this node.
    pub(super) resumed_at: Option<Instant>,
    /// When it is to be asked to resume.
    pub(super) drain_at: Option<Instant>,
    /// Nothing is sent to it: it has gone, and this node does not know whether another one serves it.
    quiet: bool,
    /// Why it will have been given up then.
    pub(super) leave_reason: LeaveReason,
    /// A test wants its signal connection closed at the next resume.
    pub(super) disconnect_on_resume: Option<super::resume::Disconnect>,
    /// When its simulated speech ends.
    pub(super) speech_until: Option<Instant>,
    /// Data that came before the peers of a session that was taken over. The oldest go first.
    pub(super) held: VecDeque<Arc<DataOut>>,
    pub(super) held_bytes: usize,
    /// Messages of a session that was taken over which wait for older ones, while it settles.
    pub(super) early: Option<Early>,
}

impl Live {
    pub(super) fn new(core: &Core, now: Instant, room: Arc<Room>, me: Arc<Participant>) -> Self {
        Self {
            told: Told::new(now),
            published: Published::default(),
            subscribed: Subscribed::new(me.client.adaptive_stream),
            channels: Channels::new(core.config.limits.data_queue_bytes_max),
            activating: false,
            refresh_at: now + core.config.refresh_interval,
            resume_by: None,
            resumed_at: None,
            drain_at: None,
            quiet: false,
            leave_reason: LeaveReason::SignalClose,
            disconnect_on_resume: None,
            speech_until: None,
            held: VecDeque::new(),
            held_bytes: 0,
            early: None,
            seen: room.version,
            me,
            room,
        }
    }

    /// Whether the client is sent nothing.
    pub(super) fn set_quiet(&mut self, core: &mut Core, quiet: bool) {
        if std::mem::replace(&mut self.quiet, quiet) != quiet {
            core.media(media::Command::SetQuiet { quiet });
        }
    }

    pub(super) fn handle(&mut self, core: &mut Core, now: Instant, input: Input<'_>) -> Flow {
        match input {
            Input::Request(request) => self.handle_request(core, now, *request),
            Input::Media(event) => self.handle_media(core, now, event),
            Input::EarlyData(message) => {
                let last = self.channels.last_received(&message.from);
                if !core.peers_pending && message.sequence == last.saturating_add(1) {
                    self.handle_data_of_others(core, &message);
                }
                Flow::Stay
            }
            Input::Data(message) if core.peers_pending => {
                self.hold(core, message);
                Flow::Stay
            }
            Input::Data(message) => {
                self.handle_data_of_others(core, &message);
                Flow::Stay
            }
            Input::Speakers(levels) => {
                self.handle_speakers(core, levels);
                Flow::Stay
            }
            Input::Snapshot { room } => self.handle_snapshot(core, now, room),
            // These go by the session.
            Input::Event { .. }
            | Input::Committed { .. }
            | Input::Resume(_)
            | Input::Claimed(_)
            | Input::Drain
            | Input::LeaseLapsed
            | Input::LeaseHolds
            | Input::SignalClosed
            | Input::Shutdown
            | Input::Timeout => Flow::Stay,
        }
    }

    fn handle_media(&mut self, core: &mut Core, now: Instant, event: media::Event) -> Flow {
        use media::Event;
        match event {
            Event::Answer {
                id,
                sdp,
                mid_to_track,
                target: _,
            } => negotiate::send_answer(core, id, sdp, mid_to_track),
            Event::Offer {
                id,
                sdp,
                mid_to_track,
                target: _,
            } => negotiate::send_offer(core, id, sdp, mid_to_track),
            Event::SectionsNeeded { audio, video } => {
                use livekit_protocol::{MediaSectionsRequirement, signal_response::Message};
                core.reply(Message::MediaSectionsRequirement(
                    MediaSectionsRequirement {
                        num_audios: audio,
                        num_videos: video,
                    },
                ));
            }
            Event::DescriptionRefused { reason, target: _ } => {
                return self.handle_description_refused(core, &reason);
            }
            Event::Connected { target } => self.handle_connected(core, target),
            Event::Failed { reason, target } => {
                tracing::info!(room = %core.room, participant = %core.sid, ?target, reason, "media failed");
                return self.handle_failed(core, now);
            }
            Event::Lost => return leave::expel(core, LeaveReason::MediaFailure),
            // The client resumes, here or elsewhere, as if another node had died.
            Event::Restarted => return leave::hand_over(core),
            Event::TrackDescribed { track, codecs } => {
                self.handle_track_described(core, &track, codecs);
            }
            Event::TrackEnded { track } => self.handle_track_ended(core, &track),
            Event::TrackStarted { track } => {
                tracing::debug!(room = %core.room, participant = %core.sid, %track, "track started");
            }
            Event::SubscriptionStarted { track } => {
                tracing::debug!(room = %core.room, participant = %core.sid, %track, "subscription started");
            }
            Event::ChannelOpen { target, channel } => {
                self.handle_channel_open(core, target, channel);
            }
            Event::Data { channel, payload } => self.handle_data(core, channel, &payload),
            Event::QualityWanted { track, quality } => {
                self.handle_quality_wanted(core, now, &track, quality);
            }
        }
        Flow::Stay
    }

    /// Events that the newest room contains already are skipped, except that of the own removal:
    /// that room was seen while the join was on its way.
    pub(super) fn handle_event(
        &mut self,
        core: &mut Core,
        now: Instant,
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
        let before = Arc::clone(&self.room);
        if let Some(room) = room {
            // Several events of one entry come with the same version.
            if room.sid != before.sid || room.version <= self.seen {
                return Flow::Stay;
            }
            self.adopt(core, room);
        }
        self.handle_change(core, now, change, &before)
    }

    /// Takes a newer room; whether this session is still in it.
    pub(super) fn adopt(&mut self, core: &Core, room: &Arc<Room>) -> bool {
        self.room = Arc::clone(room);
        match room.participants.get(&core.identity) {
            Some(me) if me.sid == core.sid => {
                self.me = Arc::clone(me);
                true
            }
            _ => false,
        }
    }

    /// The room after events were lost.
    pub(super) fn handle_snapshot(
        &mut self,
        core: &mut Core,
        now: Instant,
        room: Option<&Arc<Room>>,
    ) -> Flow {
        let Some(room) = room.filter(|room| room.sid == self.room.sid) else {
            return leave::dismiss(core, LeaveReason::Unknown);
        };
        if room.version <= self.seen {
            return Flow::Stay;
        }
        let before = self.me.epoch;
        if !self.adopt(core, room) {
            return leave::dismiss(core, LeaveReason::Unknown);
        }
        self.seen = room.version;
        if self.me.home != core.config.node {
            return leave::hand_over(core);
        }
        self.handle_own_update(core, now);
        self.compare_own_tracks(core);
        if self.me.epoch != before {
            self.publish_again(core);
        }
        self.tell_everything(core);
        self.send_room_update(core, now);
        self.subscribe_to_all(core);
        Flow::Stay
    }

    fn handle_change(
        &mut self,
        core: &mut Core,
        now: Instant,
        change: &RoomEvent,
        before: &Room,
    ) -> Flow {
        match change {
            RoomEvent::Created(_) | RoomEvent::Closed(_) | RoomEvent::RoutesChanged => {}
            RoomEvent::Updated => self.send_room_update(core, now),
            RoomEvent::ParticipantJoined(participant) => {
                self.tell_joined(core, now, participant);
                self.notice_subscriber(core, participant);
            }
            RoomEvent::ParticipantUpdated(participant) => {
                self.tell_updated(core, now, participant, before);
                if participant.sid == core.sid {
                    self.handle_own_update(core, now);
                    self.subscribe_to_all(core);
                }
            }
            RoomEvent::ParticipantLeft {
                participant,
                reason,
            } => {
                self.unsubscribe_from(core, &participant.sid);
                self.tell_left(core, now, participant, *reason);
            }
            RoomEvent::ParticipantMoved(participant) => {
                if participant.sid == core.sid {
                    if participant.home != core.config.node {
                        return leave::hand_over(core);
                    }
                    // The same home under a new epoch: other nodes refuse relays of the old one.
                    self.publish_again(core);
                }
            }
            RoomEvent::TrackPublished { publisher, track }
            | RoomEvent::TrackUpdated { publisher, track } => {
                if publisher.sid == core.sid {
                    self.handle_own_track(core, track);
                }
                if track.announced && is_news(before, track) {
                    self.tell(core, publisher);
                }
                self.subscribe_to(core, publisher);
                self.notice_publishers(core, now, publisher.tracks.len());
            }
            RoomEvent::TrackUnpublished { publisher, track } => {
                if publisher.sid == core.sid {
                    publish::handle_own_track_gone(self, core, &track.sid);
                }
                self.unsubscribe(core, &track.sid);
                if track.announced {
                    self.tell(core, publisher);
                }
                self.notice_publishers(core, now, publisher.tracks.len());
            }
            RoomEvent::SubscriptionsChanged { identity } => {
                if *identity == core.identity {
                    self.subscribe_to_all(core);
                } else if let Some(subscriber) = self.room.participants.get(identity) {
                    let subscriber = Arc::clone(subscriber);
                    self.notice_subscriber(core, &subscriber);
                }
            }
            RoomEvent::SubscriptionPermissionChanged {
                publisher,
                subscriber,
                track,
                allowed,
            } => {
                if *subscriber == core.identity {
                    self.tell_subscription_permission(core, publisher, track, *allowed);
                }
            }
        }
        Flow::Stay
    }

    pub(super) fn handle_decided(
        &mut self,
        core: &mut Core,
        purpose: Purpose,
        result: Result<Reply, CommitError>,
    ) {
        match purpose {
            Purpose::Join | Purpose::Adopt | Purpose::Leave | Purpose::Unpublish(_) => {}
            Purpose::Activate => self.activating = false,
            Purpose::Publish {
                track,
                fresh,
                request,
            } => self.handle_published(core, &track, fresh, *request, result),
            Purpose::Describe(_) | Purpose::Mute(_) => {
                if let Err(error) = result {
                    tracing::debug!(room = %core.room, participant = %core.sid, %error, "track not updated");
                }
            }
            Purpose::Subscriptions | Purpose::SubscriptionPermission => {
                if let Err(error) = result {
                    tracing::info!(room = %core.room, participant = %core.sid, %error, "subscriptions not updated");
                }
            }
            Purpose::Metadata(request) => super::request::answer_metadata(core, request, result),
            Purpose::AudioTrack(request) => {
                super::request::answer_audio_track(core, request, result);
            }
            Purpose::VideoTrack(request) => {
                super::request::answer_video_track(core, request, result);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [
            Some(self.refresh_at),
            self.resume_by,
            self.drain_at,
            self.speech_until,
            self.told.deadline(),
            self.published.deadline(),
            self.early.as_ref().map(Early::deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn handle_timeout(&mut self, core: &mut Core, now: Instant) -> Flow {
        if self.resume_by.is_some_and(|by| by <= now) {
            return Flow::Leave(self.leave_reason);
        }
        if self.refresh_at <= now {
            self.refresh_token(core, now);
        }
        if self.drain_at.take_if(|at| *at <= now).is_some() {
            self.drain(core, now);
        }
        if self.speech_until.take_if(|until| *until <= now).is_some() {
            self.send_own_speech(core, 0.0);
        }
        if self
            .early
            .as_ref()
            .is_some_and(|early| early.deadline() <= now)
        {
            self.settle(core);
        }
        self.flush_updates(core, now);
        self.lower_qualities(core, now);
        Flow::Stay
    }
}

/// Whether a track changed in what others care for. That its streams' numbers became known is not.
fn is_news(before: &Room, track: &Track) -> bool {
    let Some((_, before)) = before.track(&track.sid) else {
        return true;
    };
    let shown = |track: &Track| {
        let mut track = track.clone();
        for codec in &mut track.codecs {
            codec.fmtp.clear();
            codec.mid.clear();
            for layer in &mut codec.layers {
                (layer.ssrc, layer.repair_ssrc) = (0, 0);
            }
        }
        track
    };
    shown(before) != shown(track)
}
