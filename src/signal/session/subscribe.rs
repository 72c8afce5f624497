//! What the client receives: its wishes into the log, the log's answer into the engine.
//!
//! What is to be sent is read from the room ([`placement::is_subscribed`]) and compared with what
//! the engine has been told; the difference goes out. So wishes, permissions, tracks that come and
//! go, and a resumed session all end here.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_model::command::Command;
use flotilla_model::id::{ParticipantSid, TrackSid};
use flotilla_model::participant::Participant;
use flotilla_model::placement;
use flotilla_model::track::{Kind, Quality, Track};
use flotilla_model::unit::Size;
use livekit_protocol as proto;
use proto::signal_response::Message;
use serde::{Deserialize, Serialize};

use super::core::Core;
use super::live::Live;
use super::proposals::Purpose;
use crate::convert;
use crate::media::{self, Settings};

#[derive(Debug)]
pub(super) struct Subscribed {
    /// What the engine has been told, per track.
    told: BTreeMap<TrackSid, Told>,
    /// What the client said about tracks, also before it received them.
    wishes: BTreeMap<TrackSid, Wish>,
    /// Starts with the lowest layer, because the client will say how large it shows a track.
    adaptive: bool,
    /// Wishes have changed.
    changed: bool,
}

#[derive(Debug)]
struct Told {
    publisher: ParticipantSid,
    settings: Settings,
}

/// `UpdateTrackSettings` of a track.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Wish {
    enabled: bool,
    quality: Quality,
    size: Size,
    fps_max: u32,
}

/// Wishes kept about tracks that are not received now. Beyond it those are forgotten.
const WISHES_MAX: usize = 4096;

impl Subscribed {
    pub(super) fn new(adaptive: bool) -> Self {
        Self {
            told: BTreeMap::new(),
            wishes: BTreeMap::new(),
            adaptive,
            changed: false,
        }
    }

    pub(super) fn wishes(&self) -> &BTreeMap<TrackSid, Wish> {
        &self.wishes
    }

    pub(super) fn set_wishes(&mut self, wishes: BTreeMap<TrackSid, Wish>) {
        self.wishes = wishes;
        self.changed = true;
    }

    /// The engine was told nothing yet.
    pub(super) fn forget_told(&mut self) {
        self.told.clear();
    }

    /// Whether wishes have changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn contains(&self, track: &TrackSid) -> bool {
        self.told.contains_key(track)
    }

    fn settings(&self, track: &Track) -> Settings {
        match self.wishes.get(&track.sid) {
            Some(wish) => Settings {
                enabled: wish.enabled,
                quality: wish.quality_of(track),
                fps_max: wish.fps_max,
            },
            None => Settings {
                enabled: true,
                quality: if self.adaptive && track.kind == Kind::Video {
                    Quality::Low
                } else {
                    Quality::High
                },
                fps_max: 0,
            },
        }
    }
}

impl Wish {
    /// The lowest layer that fills the size wanted, whichever way up it is.
    fn quality_of(&self, track: &Track) -> Quality {
        let wanted = shorter_side(self.size);
        if wanted == 0 {
            return self.quality;
        }
        let layers = track.codecs.first().map_or(&[][..], |codec| &codec.layers);
        layers
            .iter()
            .filter(|layer| layer.quality != Quality::Off)
            .find(|layer| {
                let size = match shorter_side(layer.size) {
                    0 => shorter_side(track.size) / scale(layer.quality),
                    size => size,
                };
                // Sizes are rounded to even numbers on the way.
                size.saturating_add(2) >= wanted
            })
            .map_or(Quality::High, |layer| layer.quality)
    }
}

fn shorter_side(size: Size) -> u32 {
    size.width.min(size.height)
}

/// By how much a layer is smaller than the whole, where the publisher does not say.
fn scale(quality: Quality) -> u32 {
    match quality {
        Quality::Low => 4,
        Quality::Medium => 2,
        Quality::High | Quality::Off => 1,
    }
}

impl Live {
    /// Brings the engine in line for everybody's tracks.
    pub(super) fn subscribe_to_all(&mut self, core: &mut Core) {
        let room = Arc::clone(&self.room);
        let gone: Vec<TrackSid> = self
            .subscribed
            .told
            .keys()
            .filter(|sid| room.track(sid).is_none())
            .cloned()
            .collect();
        for sid in gone {
            self.unsubscribe(core, &sid);
        }
        for publisher in room.participants.values() {
            self.subscribe_to(core, publisher);
        }
    }

    /// The same for one publisher's.
    pub(super) fn subscribe_to(&mut self, core: &mut Core, publisher: &Arc<Participant>) {
        for track in publisher.tracks.values() {
            let wanted = placement::is_subscribed(&self.me, publisher, track);
            match (wanted, self.subscribed.told.get(&track.sid)) {
                (true, None) => self.subscribe(core, publisher, track),
                (true, Some(_)) => self.adjust(core, track),
                (false, Some(_)) => self.unsubscribe(core, &track.sid),
                (false, None) => {}
            }
        }
    }

    fn subscribe(&mut self, core: &mut Core, publisher: &Arc<Participant>, track: &Track) {
        // The client must know a track before media of it arrives.
        self.ensure_told(core, publisher);
        let settings = self.subscribed.settings(track);
        let told = Told {
            publisher: publisher.sid.clone(),
            settings,
        };
        self.subscribed.told.insert(track.sid.clone(), told);
        core.media(media::Command::Subscribe {
            track: track.sid.clone(),
            stream: format!("{}|{}", publisher.sid, track.sid),
            settings,
        });
    }

    /// A wish or the track's layers changed.
    fn adjust(&mut self, core: &mut Core, track: &Track) {
        let settings = self.subscribed.settings(track);
        if let Some(told) = self.subscribed.told.get_mut(&track.sid)
            && told.settings != settings
        {
            told.settings = settings;
            core.media(media::Command::SetSettings {
                track: track.sid.clone(),
                settings,
            });
        }
    }

    pub(super) fn unsubscribe(&mut self, core: &mut Core, sid: &TrackSid) {
        if self.subscribed.told.remove(sid).is_some() {
            core.media(media::Command::Unsubscribe { track: sid.clone() });
        }
        if self.room.track(sid).is_none() {
            self.subscribed.wishes.remove(sid);
        }
    }

    /// A publisher left; there are no events for its tracks.
    pub(super) fn unsubscribe_from(&mut self, core: &mut Core, publisher: &ParticipantSid) {
        let tracks: Vec<TrackSid> = self
            .subscribed
            .told
            .iter()
            .filter(|(_, told)| told.publisher == *publisher)
            .map(|(sid, _)| sid.clone())
            .collect();
        for sid in tracks {
            self.unsubscribe(core, &sid);
        }
    }

    /// The client wants tracks or does not want them any more.
    pub(super) fn handle_subscription(
        &mut self,
        core: &mut Core,
        request: &proto::UpdateSubscription,
    ) {
        let named = request.track_sids.iter().chain(
            request
                .participant_tracks
                .iter()
                .flat_map(|p| &p.track_sids),
        );
        let mut tracks = BTreeMap::new();
        for sid in named.take(core.config.limits.tracks_per_request_max) {
            let sid = TrackSid(sid.clone());
            match self.room.track(&sid) {
                Some((publisher, _)) if publisher.sid != core.sid => {
                    if request.subscribe && !placement::may_subscribe(&self.me, publisher, &sid) {
                        let publisher = publisher.sid.to_string();
                        send_subscription_permission(core, publisher, &sid, false);
                    }
                    tracks.insert(sid, request.subscribe);
                }
                Some(_) => {}
                None if request.subscribe => send_not_found(core, &sid),
                None => {}
            }
        }
        self.propose_subscriptions(core, tracks);
    }

    pub(super) fn propose_subscriptions(
        &mut self,
        core: &mut Core,
        tracks: BTreeMap<TrackSid, bool>,
    ) {
        if tracks.is_empty() {
            return;
        }
        let request = core.ids.request();
        let waiting = core.proposals.waiting_mut(&Purpose::Subscriptions, request);
        if let Some(Command::UpdateSubscriptions { tracks: known, .. }) = waiting {
            known.extend(tracks);
            let room = &self.room;
            if known.len() > core.config.limits.tracks_per_request_max {
                known.retain(|sid, _| room.track(sid).is_some());
            }
            return;
        }
        let command = Command::UpdateSubscriptions {
            room: core.room.clone(),
            identity: core.identity.clone(),
            tracks,
        };
        core.propose(command, Purpose::Subscriptions);
    }

    /// The client says how it shows tracks.
    pub(super) fn handle_track_setting(
        &mut self,
        core: &mut Core,
        request: &proto::UpdateTrackSettings,
    ) {
        let wish = Wish {
            enabled: !request.disabled,
            quality: convert::quality(request.quality),
            size: Size {
                width: request.width,
                height: request.height,
            },
            fps_max: request.fps,
        };
        let sids = &request.track_sids;
        for sid in sids.iter().take(core.config.limits.tracks_per_request_max) {
            let sid = TrackSid(sid.clone());
            self.set_wish(core, sid, wish);
        }
    }

    /// Tracks that a resuming client has switched off.
    pub(super) fn disable_tracks(&mut self, core: &mut Core, sids: &[String]) {
        for sid in sids.iter().take(core.config.limits.tracks_per_request_max) {
            let sid = TrackSid(sid.clone());
            let wish = self.subscribed.wishes.get(&sid).copied().unwrap_or(Wish {
                enabled: false,
                quality: Quality::High,
                size: Size::default(),
                fps_max: 0,
            });
            let wish = Wish {
                enabled: false,
                ..wish
            };
            self.set_wish(core, sid, wish);
        }
    }

    fn set_wish(&mut self, core: &mut Core, sid: TrackSid, wish: Wish) {
        let room = Arc::clone(&self.room);
        let Some((_, track)) = room.track(&sid) else {
            return;
        };
        if self.subscribed.wishes.len() >= WISHES_MAX {
            self.subscribed
                .wishes
                .retain(|sid, _| room.track(sid).is_some());
        }
        self.subscribed.changed |= self.subscribed.wishes.insert(sid, wish) != Some(wish);
        self.adjust(core, track);
    }

    /// The client says who may subscribe to it.
    pub(super) fn handle_subscription_permission(
        &mut self,
        core: &mut Core,
        request: &proto::SubscriptionPermission,
    ) {
        let command = Command::SetSubscriptionPermission {
            room: core.room.clone(),
            identity: core.identity.clone(),
            permission: convert::subscription_permission(request, &self.room),
        };
        core.propose(command, Purpose::SubscriptionPermission);
    }
}

fn send_not_found(core: &mut Core, track: &TrackSid) {
    core.reply(Message::SubscriptionResponse(proto::SubscriptionResponse {
        track_sid: track.to_string(),
        err: proto::SubscriptionError::SeTrackNotfound as i32,
    }));
}

pub(super) fn send_subscription_permission(
    core: &mut Core,
    publisher: String,
    track: &TrackSid,
    allowed: bool,
) {
    core.reply(Message::SubscriptionPermissionUpdate(
        proto::SubscriptionPermissionUpdate {
            participant_sid: publisher,
            track_sid: track.to_string(),
            allowed,
        },
    ));
}
