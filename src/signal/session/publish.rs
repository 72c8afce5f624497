//! What the client publishes: tracks added, described, muted, watched and ended.
//!
//! A track is announced to the others by the log, once the engine has described it; until then only
//! the client knows of it. The engine is told at once, before the log has decided, because the
//! client's offer may follow on the heels of its request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_model::command::{Command, Reply};
use flotilla_model::id::TrackSid;
use flotilla_model::participant::Participant;
use flotilla_model::placement;
use flotilla_model::track::{Kind, Quality, Track, TrackCodec};
use flotilla_model::unit::Size;
use livekit_protocol as proto;
use proto::request_response::{Reason, Request};
use proto::signal_response::Message;

use super::CommitError;
use super::core::Core;
use super::live::Live;
use super::proposals::Purpose;
use crate::convert;
use crate::media;

/// How long nobody must want a layer before its publisher may drop it (LiveKit's
/// `dynacast_pause_delay`). When it falls, viewers that come and go cost key frames.
const LOWER_AFTER: Duration = Duration::from_secs(5);

/// The client's tracks by sid. The session is their only writer, but for `muted`.
#[derive(Debug, Default)]
pub(super) struct Published {
    tracks: BTreeMap<TrackSid, Own>,
}

#[derive(Debug)]
struct Own {
    track: Track,
    /// By which the client knows it until it has the reply.
    cid: String,
    /// The log has it.
    committed: bool,
    /// The client knows that it has a subscriber.
    subscriber_told: bool,
    /// Best quality that the client has been told to send.
    wanted: Option<Quality>,
    /// A lower one that it will be told when the time has come.
    lower: Option<(Instant, Quality)>,
}

impl Published {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.tracks
            .values()
            .filter_map(|own| own.lower.map(|(at, _)| at))
            .min()
    }

    /// The tracks of a session that was taken over, as the room has them.
    pub(super) fn of(me: &Participant) -> Self {
        let own = |track: &Arc<Track>| Own {
            cid: track
                .codecs
                .iter()
                .map(|codec| codec.cid.clone())
                .find(|cid| !cid.is_empty())
                .unwrap_or_default(),
            track: Track::clone(track),
            committed: true,
            subscriber_told: false,
            wanted: None,
            lower: None,
        };
        let tracks = me.tracks.values();
        Self {
            tracks: tracks
                .map(|track| (track.sid.clone(), own(track)))
                .collect(),
        }
    }

    pub(super) fn get(&self, sid: &TrackSid) -> Option<&Track> {
        self.tracks.get(sid).map(|own| &own.track)
    }

    pub(super) fn get_mut(&mut self, sid: &TrackSid) -> Option<&mut Track> {
        self.tracks.get_mut(sid).map(|own| &mut own.track)
    }
}

impl Live {
    pub(super) fn add_track(&mut self, core: &mut Core, request: proto::AddTrackRequest) {
        if let Err((reason, text)) = self.check_add_track(core, &request) {
            core.respond(0, reason, text, Some(Request::AddTrack(request)));
            return;
        }
        let again = TrackSid(request.sid.clone());
        if self.published.tracks.contains_key(&again) {
            self.add_codecs(core, again, request);
            return;
        }
        let kind = match request.r#type() {
            proto::TrackType::Video => Kind::Video,
            proto::TrackType::Audio | proto::TrackType::Data => Kind::Audio,
        };
        let sid = core.ids.track(kind, convert::source(request.source));
        let track = convert::track_of(&request, sid.clone(), &core.config.enabled_codecs);
        let command = Command::PublishTrack {
            room: core.room.clone(),
            identity: core.identity.clone(),
            sid: core.sid.clone(),
            track: Box::new(track.clone()),
        };
        let purpose = Purpose::Publish {
            track: sid.clone(),
            fresh: true,
            request: Box::new(request.clone()),
        };
        if !core.propose(command, purpose) {
            let request = Some(Request::AddTrack(request));
            core.respond(
                0,
                Reason::LimitExceeded,
                "too many changes at once",
                request,
            );
            return;
        }
        core.media(media::Command::Publish {
            track: Box::new(track.clone()),
            epoch: self.me.epoch,
        });
        let own = Own {
            track,
            cid: request.cid,
            committed: false,
            subscriber_told: false,
            wanted: None,
            lower: None,
        };
        self.published.tracks.insert(sid, own);
    }

    fn check_add_track(
        &self,
        core: &Core,
        request: &proto::AddTrackRequest,
    ) -> Result<(), (Reason, &'static str)> {
        let permission = &self.me.permission;
        let source = convert::source(request.source);
        let sources = &permission.can_publish_sources;
        if !permission.can_publish {
            return Err((Reason::NotAllowed, "may not publish tracks"));
        }
        if !sources.is_empty() && !sources.contains(&source) {
            return Err((Reason::NotAllowed, "may not publish from this source"));
        }
        if request.r#type == proto::TrackType::Data as i32 {
            return Err((
                Reason::UnsupportedType,
                "data is not published as a media track",
            ));
        }
        let limits = &core.config.limits;
        if request.name.len() > limits.name_bytes_max {
            return Err((Reason::LimitExceeded, "track name is too long"));
        }
        if self.published.tracks.len() >= limits.tracks_max {
            return Err((Reason::LimitExceeded, "too many tracks"));
        }
        Ok(())
    }

    /// A backup codec of a track that is published already.
    fn add_codecs(&mut self, core: &mut Core, sid: TrackSid, request: proto::AddTrackRequest) {
        let epoch = self.me.epoch;
        let Some(own) = self.published.tracks.get_mut(&sid) else {
            return;
        };
        for codec in convert::codecs(&request, &core.config.enabled_codecs) {
            let known = own
                .track
                .codecs
                .iter_mut()
                .find(|own| own.mime == codec.mime);
            match known {
                Some(known) => known.cid = codec.cid,
                None => own.track.codecs.push(codec),
            }
        }
        let track = Box::new(own.track.clone());
        core.media(media::Command::Publish {
            track: track.clone(),
            epoch,
        });
        let command = Command::UpdateTrack {
            room: core.room.clone(),
            identity: core.identity.clone(),
            sid: core.sid.clone(),
            track,
        };
        let purpose = Purpose::Publish {
            track: sid,
            fresh: false,
            request: Box::new(request.clone()),
        };
        if !core.propose(command, purpose) {
            let request = Some(Request::AddTrack(request));
            core.respond(
                0,
                Reason::LimitExceeded,
                "too many changes at once",
                request,
            );
        }
    }

    pub(super) fn handle_published(
        &mut self,
        core: &mut Core,
        sid: &TrackSid,
        fresh: bool,
        request: proto::AddTrackRequest,
        result: Result<Reply, CommitError>,
    ) {
        match (result, self.published.tracks.get_mut(sid)) {
            (Ok(_), Some(own)) => {
                own.committed = true;
                send_published(core, request.cid, &own.track);
            }
            // Ended before it began; the log forgets it as well.
            (Ok(_), None) => self.propose_unpublish(core, sid),
            (Err(error), known) => {
                if fresh && known.is_some() {
                    self.forget(core, sid);
                }
                core.respond_failed(0, &error, Some(Request::AddTrack(request)));
            }
        }
    }

    /// The engine knows a track's encodings: others are told of it from now on.
    pub(super) fn handle_track_described(
        &mut self,
        core: &mut Core,
        sid: &TrackSid,
        codecs: Vec<TrackCodec>,
    ) {
        let Some(own) = self.published.tracks.get_mut(sid) else {
            return;
        };
        let mut track = own.track.clone();
        track.announced = true;
        for described in codecs {
            merge(&mut track.codecs, described);
        }
        if track != own.track {
            own.track = track;
            self.propose_track(core, sid, Purpose::Describe(sid.clone()));
        }
    }

    /// Proposes the own record of a track; whether there was room for it.
    pub(super) fn propose_track(
        &mut self,
        core: &mut Core,
        sid: &TrackSid,
        purpose: Purpose,
    ) -> bool {
        let Some(own) = self.published.tracks.get(sid) else {
            return false;
        };
        let command = Command::UpdateTrack {
            room: core.room.clone(),
            identity: core.identity.clone(),
            sid: core.sid.clone(),
            track: Box::new(own.track.clone()),
        };
        core.propose(command, purpose)
    }

    /// The client took a track out of its offer.
    pub(super) fn handle_track_ended(&mut self, core: &mut Core, sid: &TrackSid) {
        if let Some(own) = self.published.tracks.get(sid) {
            let committed = own.committed;
            self.forget(core, sid);
            // If the log does not have it yet, its publication is undone when it is through.
            if committed {
                self.propose_unpublish(core, sid);
            }
        }
    }

    fn propose_unpublish(&mut self, core: &mut Core, sid: &TrackSid) {
        let command = Command::UnpublishTrack {
            room: core.room.clone(),
            identity: core.identity.clone(),
            track: sid.clone(),
        };
        core.propose(command, Purpose::Unpublish(sid.clone()));
    }

    fn forget(&mut self, core: &mut Core, sid: &TrackSid) {
        self.published.tracks.remove(sid);
        core.media(media::Command::Unpublish { track: sid.clone() });
    }

    pub(super) fn handle_mute(&mut self, core: &mut Core, request: proto::MuteTrackRequest) {
        let sid = TrackSid(request.sid.clone());
        let Some(own) = self.published.tracks.get_mut(&sid) else {
            let request = Some(Request::Mute(request));
            core.respond(0, Reason::NotFound, "no such track", request);
            return;
        };
        own.track.muted = request.muted;
        core.media(media::Command::SetMuted {
            track: sid.clone(),
            muted: request.muted,
        });
        let command = Command::SetTrackMuted {
            room: core.room.clone(),
            identity: core.identity.clone(),
            track: sid.clone(),
            muted: request.muted,
        };
        core.propose(command, Purpose::Mute(sid));
    }

    /// The room says how one of the client's own tracks stands.
    pub(super) fn handle_own_track(&mut self, core: &mut Core, track: &Arc<Track>) {
        let Some(own) = self.published.tracks.get_mut(&track.sid) else {
            // Its publication was given up for lack of an answer and went through after all.
            let unpublish = Purpose::Unpublish(track.sid.clone());
            if !core.proposals.has(&unpublish) {
                self.propose_unpublish(core, &track.sid);
            }
            return;
        };
        own.committed = true;
        let mute = Purpose::Mute(track.sid.clone());
        if own.track.muted != track.muted && !core.proposals.has(&mute) {
            own.track.muted = track.muted;
            core.media(media::Command::SetMuted {
                track: track.sid.clone(),
                muted: track.muted,
            });
            core.reply(Message::Mute(proto::MuteTrackRequest {
                sid: track.sid.to_string(),
                muted: track.muted,
            }));
        }
        self.notice_any_subscriber(core);
    }

    /// After events were lost: the client's tracks as the room has them.
    pub(super) fn compare_own_tracks(&mut self, core: &mut Core) {
        let me = Arc::clone(&self.me);
        let gone: Vec<TrackSid> = self
            .published
            .tracks
            .iter()
            .filter(|(sid, own)| own.committed && !me.tracks.contains_key(*sid))
            .map(|(sid, _)| sid.clone())
            .collect();
        for sid in gone {
            handle_own_track_gone(self, core, &sid);
        }
        for track in me.tracks.values() {
            self.handle_own_track(core, track);
        }
    }

    /// Tells the client, once per track, that somebody subscribed to it.
    pub(super) fn notice_subscriber(&mut self, core: &mut Core, subscriber: &Participant) {
        for (sid, own) in &mut self.published.tracks {
            let Some(track) = self.me.tracks.get(sid).filter(|_| !own.subscriber_told) else {
                continue;
            };
            if placement::is_subscribed(subscriber, &self.me, track) {
                own.subscriber_told = true;
                core.reply(Message::TrackSubscribed(proto::TrackSubscribed {
                    track_sid: sid.to_string(),
                }));
            }
        }
    }

    fn notice_any_subscriber(&mut self, core: &mut Core) {
        let room = Arc::clone(&self.room);
        for subscriber in room.participants.values() {
            if self
                .published
                .tracks
                .values()
                .all(|own| own.subscriber_told)
            {
                break;
            }
            self.notice_subscriber(core, subscriber);
        }
    }

    /// Tells the engine, which is new to them, of all tracks.
    pub(super) fn publish_again(&self, core: &mut Core) {
        for own in self.published.tracks.values() {
            core.media(media::Command::Publish {
                track: Box::new(own.track.clone()),
                epoch: self.me.epoch,
            });
            if own.track.muted {
                core.media(media::Command::SetMuted {
                    track: own.track.sid.clone(),
                    muted: true,
                });
            }
        }
    }

    /// More is wanted at once, less after a while.
    pub(super) fn handle_quality_wanted(
        &mut self,
        core: &mut Core,
        now: Instant,
        sid: &TrackSid,
        quality: Quality,
    ) {
        let Some(own) = self.published.tracks.get_mut(sid) else {
            return;
        };
        let before = own.wanted.unwrap_or(Quality::High);
        if rank(quality) < rank(before) {
            let at = own.lower.map_or(now + LOWER_AFTER, |(at, _)| at);
            own.lower = Some((at, quality));
            return;
        }
        own.lower = None;
        if own.wanted != Some(quality) {
            own.wanted = Some(quality);
            send_quality(core, own);
        }
    }

    pub(super) fn lower_qualities(&mut self, core: &mut Core, now: Instant) {
        for own in self.published.tracks.values_mut() {
            if let Some((_, quality)) = own.lower.take_if(|(at, _)| *at <= now) {
                own.wanted = Some(quality);
                send_quality(core, own);
            }
        }
    }

    /// What a client that resumes may have missed: replies to its requests, and what is wanted.
    pub(super) fn repeat_published(&mut self, core: &mut Core) {
        for own in self.published.tracks.values() {
            if own.committed && !own.track.announced {
                send_published(core, own.cid.clone(), &own.track);
            }
            send_quality(core, own);
        }
    }

    pub(super) fn set_size(&mut self, sid: &TrackSid, size: Size) {
        if let Some(track) = self.published.get_mut(sid) {
            track.size = size;
        }
    }
}

/// The room no longer has one of the client's own tracks: an administrator or a permission took it.
pub(super) fn handle_own_track_gone(live: &mut Live, core: &mut Core, sid: &TrackSid) {
    if live.published.tracks.contains_key(sid) {
        live.forget(core, sid);
        core.reply(Message::TrackUnpublished(proto::TrackUnpublishedResponse {
            track_sid: sid.to_string(),
        }));
    }
}

fn send_published(core: &mut Core, cid: String, track: &Track) {
    core.reply(Message::TrackPublished(proto::TrackPublishedResponse {
        cid,
        track: Some(convert::track_info(track)),
    }));
}

/// `Off` is below `Low` here, unlike in its number.
fn rank(quality: Quality) -> u8 {
    match quality {
        Quality::Off => 0,
        Quality::Low => 1,
        Quality::Medium => 2,
        Quality::High => 3,
    }
}

#[expect(deprecated, reason = "older clients read `subscribed_qualities`")]
fn send_quality(core: &mut Core, own: &Own) {
    let Some(wanted) = own.wanted.filter(|_| own.track.kind == Kind::Video) else {
        return;
    };
    let qualities: Vec<proto::SubscribedQuality> = [Quality::Low, Quality::Medium, Quality::High]
        .into_iter()
        .map(|quality| proto::SubscribedQuality {
            quality: quality as i32,
            enabled: rank(quality) <= rank(wanted),
        })
        .collect();
    let codecs = own
        .track
        .codecs
        .iter()
        .filter(|codec| !codec.mime.is_empty());
    core.reply(Message::SubscribedQualityUpdate(
        proto::SubscribedQualityUpdate {
            track_sid: own.track.sid.to_string(),
            subscribed_codecs: codecs
                .map(|codec| proto::SubscribedCodec {
                    codec: short_codec(&codec.mime).to_owned(),
                    qualities: qualities.clone(),
                })
                .collect(),
            subscribed_qualities: qualities,
        },
    ));
}

/// `vp8` of `video/vp8`: how clients name codecs here.
fn short_codec(mime: &str) -> &str {
    mime.split_once('/').map_or(mime, |(_, codec)| codec)
}

/// Takes what the engine knows of an encoding, and keeps what the client announced where it knows
/// nothing.
fn merge(codecs: &mut Vec<TrackCodec>, mut described: TrackCodec) {
    described.mime.make_ascii_lowercase();
    let known = codecs.iter_mut().find(|known| {
        (known.mime.is_empty() || known.mime == described.mime)
            && (known.cid == described.cid || described.cid.is_empty() || known.mid.is_empty())
    });
    let Some(known) = known else {
        codecs.push(described);
        return;
    };
    if described.cid.is_empty() {
        described.cid.clone_from(&known.cid);
    }
    for layer in &mut described.layers {
        let announced = known
            .layers
            .iter()
            .find(|a| a.quality == layer.quality && (a.rid == layer.rid || layer.rid.is_empty()));
        if let Some(announced) = announced {
            if layer.size == Size::default() {
                layer.size = announced.size;
            }
            if layer.bitrate_bps == 0 {
                layer.bitrate_bps = announced.bitrate_bps;
            }
        }
    }
    if described.layers.is_empty() {
        described.layers.clone_from(&known.layers);
    }
    *known = described;
}
