//! What the client is told of others: participants, the room, speakers, permissions, its own token.
//!
//! Updates go out at once, except in large rooms, where the comings and goings of people who publish
//! nothing are collected for a while. A participant that publishes is always told before its tracks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use flotilla_model::id::{Identity, ParticipantSid, TrackSid};
use flotilla_model::participant::{LeaveReason, Participant};
use flotilla_model::room::Room;
use livekit_protocol as proto;
use prost::Message as _;
use proto::signal_response::Message;

use super::core::Core;
use super::live::Live;
use super::subscribe::send_subscription_permission;
use crate::convert;
use crate::token;

/// What the client knows, and what waits to be told.
#[derive(Debug)]
pub(super) struct Told {
    /// Version told, per session of a participant that the client thinks present.
    known: BTreeMap<ParticipantSid, Known>,
    /// Updates that are collected, with the reason if it left.
    waiting: BTreeMap<ParticipantSid, (Arc<Participant>, Option<LeaveReason>)>,
    flush_at: Option<Instant>,
    /// When a `room_update` with new counts is due.
    room_at: Option<Instant>,
    room_told: Instant,
    /// Level told last, in eighths, of those who speak.
    speaking: BTreeMap<ParticipantSid, u8>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    version: u32,
}

impl Told {
    /// Nothing is known before the join response.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            known: BTreeMap::new(),
            waiting: BTreeMap::new(),
            flush_at: None,
            room_at: None,
            room_told: now,
            speaking: BTreeMap::new(),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flush_at.into_iter().chain(self.room_at).min()
    }

    fn note(&mut self, participant: &Participant) {
        let known = Known {
            identity: participant.identity.clone(),
            version: participant.version,
        };
        self.known.insert(participant.sid.clone(), known);
    }

    fn knows(&self, participant: &Participant) -> bool {
        self.known
            .get(&participant.sid)
            .is_some_and(|known| known.version >= participant.version)
    }
}

impl Live {
    fn is_visible(&self, participant: &Participant) -> bool {
        !participant.permission.hidden || participant.sid == self.me.sid
    }

    /// Everybody else, for a response that carries them; they count as told.
    pub(super) fn others(&mut self) -> Vec<proto::ParticipantInfo> {
        let room = Arc::clone(&self.room);
        let mut others = Vec::new();
        for participant in room.participants.values() {
            if participant.sid != self.me.sid && self.is_visible(participant) {
                self.told.note(participant);
                others.push(convert::participant_info(participant));
            }
        }
        let me = Arc::clone(&self.me);
        self.told.note(&me);
        others
    }

    pub(super) fn tell_joined(
        &mut self,
        core: &mut Core,
        now: Instant,
        participant: &Arc<Participant>,
    ) {
        self.count_changed(core, now);
        if self.is_large(core) && participant.tracks.is_empty() {
            self.collect(core, now, participant, None);
        } else {
            self.tell(core, participant);
        }
    }

    pub(super) fn tell_updated(
        &mut self,
        core: &mut Core,
        now: Instant,
        participant: &Arc<Participant>,
        before: &Room,
    ) {
        let waits = self.is_large(core)
            && participant.tracks.is_empty()
            && before
                .participants
                .get(&participant.identity)
                .is_some_and(|before| looks_alike(before, participant));
        if waits {
            self.collect(core, now, participant, None);
        } else {
            self.tell(core, participant);
        }
    }

    pub(super) fn tell_left(
        &mut self,
        core: &mut Core,
        now: Instant,
        participant: &Arc<Participant>,
        reason: LeaveReason,
    ) {
        self.count_changed(core, now);
        self.told.speaking.remove(&participant.sid);
        if !core.connected {
            // A resume tells what is missing by then.
            return;
        }
        // These clients see one identity whose sid changes.
        let replaced = reason == LeaveReason::DuplicateIdentity && core.protocol > 11;
        // Version 0: its coming has not been told yet.
        let known = self.told.known.remove(&participant.sid);
        if replaced || known.is_none_or(|known| known.version == 0) {
            self.told.waiting.remove(&participant.sid);
            return;
        }
        if self.is_large(core) && participant.tracks.is_empty() {
            self.collect(core, now, participant, Some(reason));
        } else {
            self.told.waiting.remove(&participant.sid);
            send_updates(core, vec![convert::departed_info(participant, reason)]);
        }
    }

    /// Tells at once, unless it is known.
    pub(super) fn tell(&mut self, core: &mut Core, participant: &Arc<Participant>) {
        if !core.connected || self.told.knows(participant) {
            return;
        }
        self.told.waiting.remove(&participant.sid);
        if self.is_visible(participant) {
            self.told.note(participant);
            send_updates(core, vec![convert::participant_info(participant)]);
        } else if self.told.known.remove(&participant.sid).is_some() {
            // It has become hidden.
            let departed = convert::departed_info(participant, LeaveReason::Unknown);
            send_updates(core, vec![departed]);
        }
    }

    /// Before media or data of a participant arrive.
    pub(super) fn ensure_told(&mut self, core: &mut Core, participant: &Arc<Participant>) {
        if core.connected && self.is_visible(participant) && !self.told.knows(participant) {
            self.told.waiting.remove(&participant.sid);
            self.told.note(participant);
            send_updates(core, vec![convert::participant_info(participant)]);
        }
    }

    fn is_large(&self, core: &Core) -> bool {
        self.room.participants.len() > core.config.update_batch_above
    }

    fn collect(
        &mut self,
        core: &Core,
        now: Instant,
        participant: &Arc<Participant>,
        left: Option<LeaveReason>,
    ) {
        if !core.connected || (left.is_none() && !self.is_visible(participant)) {
            return;
        }
        self.told
            .waiting
            .insert(participant.sid.clone(), (Arc::clone(participant), left));
        self.told
            .flush_at
            .get_or_insert(now + core.config.update_batch_interval);
        if left.is_none() {
            // Only so that a departure is told as well; the version counts when it is sent.
            self.told
                .known
                .entry(participant.sid.clone())
                .or_insert(Known {
                    identity: participant.identity.clone(),
                    version: 0,
                });
        }
    }

    /// Sends what is due.
    pub(super) fn flush_updates(&mut self, core: &mut Core, now: Instant) {
        if self.told.flush_at.take_if(|at| *at <= now).is_some() {
            let waiting = std::mem::take(&mut self.told.waiting);
            let (left, present): (Vec<_>, Vec<_>) = waiting
                .into_values()
                .partition(|(_, reason)| reason.is_some());
            let mut infos = Vec::with_capacity(left.len() + present.len());
            for (participant, reason) in left {
                let reason = reason.unwrap_or(LeaveReason::Unknown);
                infos.push(convert::departed_info(&participant, reason));
            }
            for (participant, _) in present {
                if !self.told.knows(&participant) {
                    self.told.note(&participant);
                    infos.push(convert::participant_info(&participant));
                }
            }
            send_updates(core, infos);
        }
        if self.told.room_at.is_some_and(|at| at <= now) {
            self.send_room_update(core, now);
        }
    }

    /// Everybody, the client itself included, and those it still thinks present although they left.
    /// What a resume and a gap in the events need.
    pub(super) fn tell_everything(&mut self, core: &mut Core) {
        self.told.waiting.clear();
        self.told.flush_at = None;
        let known = std::mem::take(&mut self.told.known);
        let room = Arc::clone(&self.room);
        let mut infos = Vec::new();
        for (sid, known) in known {
            let present = room.participants.get(&known.identity);
            let is_present = present.is_some_and(|p| p.sid == sid && self.is_visible(p));
            let is_replaced = present.is_some() && core.protocol > 11;
            if !is_present && !is_replaced {
                infos.push(departed(&sid, &known));
            }
        }
        infos.extend(self.others());
        infos.push(convert::participant_info(&self.me));
        send_updates(core, infos);
    }

    pub(super) fn send_room_update(&mut self, core: &mut Core, now: Instant) {
        self.told.room_at = None;
        self.told.room_told = now;
        core.reply(Message::RoomUpdate(proto::RoomUpdate {
            room: Some(convert::room(&self.room, &core.config.enabled_codecs)),
        }));
    }

    /// The number of participants or publishers changed.
    fn count_changed(&mut self, core: &Core, now: Instant) {
        let earliest = self.told.room_told + core.config.room_update_interval;
        self.told.room_at.get_or_insert(earliest.max(now));
    }

    /// A track came or went: perhaps there is one publisher more or less.
    pub(super) fn notice_publishers(&mut self, core: &Core, now: Instant, tracks: usize) {
        if tracks <= 1 {
            self.count_changed(core, now);
        }
    }

    pub(super) fn tell_subscription_permission(
        &mut self,
        core: &mut Core,
        publisher: &Identity,
        track: &TrackSid,
        allowed: bool,
    ) {
        if let Some(publisher) = self.room.participants.get(publisher) {
            let publisher = publisher.sid.to_string();
            send_subscription_permission(core, publisher, track, allowed);
        }
    }

    /// Levels by track into levels by participant, those that the client may see, when they changed.
    pub(super) fn handle_speakers(&mut self, core: &mut Core, levels: &[(TrackSid, f32)]) {
        let mut heard: BTreeMap<ParticipantSid, u8> = BTreeMap::new();
        for (track, level) in levels {
            let Some((publisher, _)) = self.room.track(track) else {
                continue;
            };
            let own = publisher.sid == self.me.sid;
            if own || (self.subscribed.contains(track) && self.is_visible(publisher)) {
                let level = eighths(*level);
                let known = heard.entry(publisher.sid.clone()).or_default();
                *known = level.max(*known);
            }
        }
        let mut changed = Vec::new();
        for (sid, level) in heard {
            let before = self.told.speaking.get(&sid).copied().unwrap_or(0);
            if before == level {
                continue;
            }
            changed.push(speaker(&sid, level));
            if level == 0 {
                self.told.speaking.remove(&sid);
            } else {
                self.told.speaking.insert(sid, level);
            }
        }
        send_speakers(core, changed);
    }

    /// Pretends that the client itself speaks.
    pub(super) fn send_own_speech(&mut self, core: &mut Core, level: f32) {
        let speakers = vec![speaker(&self.me.sid, eighths(level))];
        send_speakers(core, speakers);
    }

    /// The client's own record changed: its token may have to say so.
    pub(super) fn handle_own_update(&mut self, core: &mut Core, now: Instant) {
        let me = &self.me;
        let claims = &mut core.claims;
        let same = claims.name == me.name
            && claims.metadata == me.metadata
            && claims.attributes == me.attributes
            && claims.permission() == me.permission;
        if same {
            return;
        }
        claims.name.clone_from(&me.name);
        claims.metadata.clone_from(&me.metadata);
        claims.attributes.clone_from(&me.attributes);
        claims.set_permission(&me.permission);
        self.refresh_token(core, now);
    }

    /// A new token, so that a client that reconnects after hours still has a valid one.
    pub(super) fn refresh_token(&mut self, core: &mut Core, now: Instant) {
        self.refresh_at = now + core.config.refresh_interval;
        let Some((key, secret)) = core.config.keys.first() else {
            return;
        };
        let seconds = core.wall(now).0 / 1000;
        let mut claims = core.claims.clone();
        let exp = seconds.saturating_add(core.config.refresh_lifetime.as_secs());
        claims.exp = Some(exp.max(core.claims.exp.unwrap_or(0)));
        core.identity.as_str().clone_into(&mut claims.sub);
        match token::create(claims, key, secret) {
            Ok(token) => core.reply(Message::RefreshToken(token)),
            Err(error) => tracing::error!(%error, "no token for a client"),
        }
    }
}

/// Whether two records of a participant differ in their state only.
fn looks_alike(one: &Participant, other: &Participant) -> bool {
    one.name == other.name
        && one.metadata == other.metadata
        && one.attributes == other.attributes
        && one.permission == other.permission
}

fn departed(sid: &ParticipantSid, known: &Known) -> proto::ParticipantInfo {
    proto::ParticipantInfo {
        sid: sid.to_string(),
        identity: known.identity.to_string(),
        state: proto::participant_info::State::Disconnected as i32,
        version: known.version.saturating_add(1),
        ..proto::ParticipantInfo::default()
    }
}

/// Sends updates in messages of limited size; one participant is never split.
fn send_updates(core: &mut Core, infos: Vec<proto::ParticipantInfo>) {
    let bytes_max = core.config.limits.update_bytes_max;
    let mut participants = Vec::new();
    let mut bytes = 0;
    for info in infos {
        let info_bytes = info.encoded_len();
        if bytes + info_bytes > bytes_max && !participants.is_empty() {
            let participants = std::mem::take(&mut participants);
            core.reply(Message::Update(proto::ParticipantUpdate { participants }));
            bytes = 0;
        }
        bytes += info_bytes;
        participants.push(info);
    }
    if !participants.is_empty() {
        core.reply(Message::Update(proto::ParticipantUpdate { participants }));
    }
}

/// A level in eighths; whoever is heard at all has at least one.
fn eighths(level: f32) -> u8 {
    if level.is_nan() || level <= 0.0 {
        return 0;
    }
    ((level.min(1.0) * 8.0).round() as u8).max(1)
}

fn speaker(sid: &ParticipantSid, level: u8) -> proto::SpeakerInfo {
    proto::SpeakerInfo {
        sid: sid.to_string(),
        level: f32::from(level) / 8.0,
        active: level > 0,
    }
}

fn send_speakers(core: &mut Core, speakers: Vec<proto::SpeakerInfo>) {
    if !speakers.is_empty() {
        core.reply(Message::SpeakersChanged(proto::SpeakersChanged {
            speakers,
        }));
    }
}
