//! Client offers, engine answers: v1 connections and v0 publishers.

use std::time::Instant;

use flotilla_model::track::Kind;
use rand::Rng;

use super::publish::Receive;
use super::{
    Due, Local, Negotiation, Refusal, Remote, Requested, SECTIONS_PATIENCE, Section, Slot, Wanted,
    Written, remote,
};
use crate::command::PeerRole;
use crate::peer::sdp::write::{Body, MediaBody, Outgoing, OutgoingSection, Source, write};
use crate::peer::sdp::{self, Description, Direction, Media, Setup, codec, extension};

/// Transport protocols of media and data sections that are understood.
const MEDIA_PROTOCOLS: [&str; 2] = ["UDP/TLS/RTP/SAVPF", "TCP/TLS/RTP/SAVPF"];
const DATA_PROTOCOLS: [&str; 2] = ["UDP/DTLS/SCTP", "TCP/DTLS/SCTP"];
/// Most simulcast layers of a track.
const LAYERS_MAX: usize = 3;

/// A client's offer that can be answered.
#[derive(Debug)]
pub struct Offer {
    description: Description,
    remote: Remote,
    /// The client restarts ICE: the answer must carry new credentials.
    pub restarts_ice: bool,
}

impl Offer {
    /// The client's side of the transport.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    pub(super) fn into_description(self) -> Description {
        self.description
    }
}

impl Negotiation {
    /// Reads an offer and checks that it can be answered; changes nothing.
    ///
    /// # Errors
    /// Why not.
    pub fn read_offer(&self, sdp: &str) -> Result<Offer, Refusal> {
        if self.role == PeerRole::Subscriber {
            return Err(Refusal::WrongDirection("offer"));
        }
        let description = sdp::parse(sdp)?;
        if description.sections.is_empty() {
            return Err(Refusal::Empty);
        }
        if description.sections.len() > self.limits.sections_max {
            return Err(Refusal::TooManySections(self.limits.sections_max));
        }
        if description.sections.len() < self.sections.len() {
            return Err(Refusal::SectionsVanished {
                expected: self.sections.len(),
                found: description.sections.len(),
            });
        }
        for section in description
            .sections
            .iter()
            .filter(|section| !section.is_rejected())
        {
            if !description.bundle.contains(&section.mid) {
                return Err(Refusal::NotBundled(section.mid.clone()));
            }
            if section.media.kind().is_some() && !section.rtcp_mux {
                return Err(Refusal::NotMultiplexed(section.mid.clone()));
            }
        }
        for (index, (old, new)) in self.sections.iter().zip(&description.sections).enumerate() {
            // A stopped section may be taken over for anything (RFC 8829 §5.2.2).
            if !old.rejected && (old.mid != new.mid || old.media != new.media) {
                return Err(Refusal::SectionChanged(index));
            }
        }
        let (remote, setup) = remote(&description)?;
        if !matches!(setup, Some(Setup::ActPass | Setup::Active)) {
            return Err(Refusal::Role);
        }
        let known = self.remote.as_ref();
        if known.is_some_and(|known| known.fingerprint != remote.fingerprint) {
            return Err(Refusal::Certificate);
        }
        let restarts_ice = known.is_some_and(|known| known.ufrag != remote.ufrag);
        Ok(Offer {
            description,
            remote,
            restarts_ice,
        })
    }

    /// Takes an offer over and writes the answer. Wanted tracks get free sections in it.
    pub fn answer(
        &mut self,
        now: Instant,
        offer: Offer,
        local: &Local<'_>,
        rng: &mut impl Rng,
    ) -> Written {
        self.take_over_all(now, offer.description);
        self.remote = Some(offer.remote);
        self.bind(now);
        self.is_held = false;
        if self.role == PeerRole::Single {
            self.assign(rng);
        }
        self.version += 1;
        let written = self.describe(local, Setup::Passive);
        self.settle_slots();
        self.fulfil_request();
        // Whatever is still missing is asked for when the next changes have gathered.
        if self.role == PeerRole::Single && (self.pending().next().is_some() || self.is_draining())
        {
            self.gather(now);
        }
        written
    }

    /// Updates all sections from an offer.
    pub(super) fn take_over_all(&mut self, now: Instant, description: Description) {
        let mut has_data = false;
        for (index, section) in description.sections.into_iter().enumerate() {
            let takes_data = !has_data;
            has_data |= section.media == Media::Application && !section.is_rejected();
            self.take_over(now, index, section, takes_data);
        }
    }

    /// Updates one section from an offer.
    fn take_over(&mut self, now: Instant, index: usize, offered: sdp::Section, takes_data: bool) {
        let kind = offered.media.kind();
        let understood = match kind {
            Some(_) => MEDIA_PROTOCOLS.contains(&offered.protocol.as_str()),
            None => {
                takes_data
                    && offered.media == Media::Application
                    && DATA_PROTOCOLS.contains(&offered.protocol.as_str())
            }
        };
        let codecs = kind
            .map(|kind| codec::accept(&offered, kind))
            .unwrap_or_default();
        let extensions = kind
            .map(|kind| extension::accept(&offered, kind))
            .unwrap_or_default();
        let rejected =
            offered.is_rejected() || !understood || (kind.is_some() && codecs.is_empty());
        let mut section = Section {
            mid: offered.mid,
            media: offered.media,
            protocol: offered.protocol,
            first_format: offered
                .formats
                .into_iter()
                .next()
                .unwrap_or_else(|| "0".to_owned()),
            rejected,
            direction: offered.direction,
            codecs,
            extensions,
            receive: None,
            slot: Slot::Free { since: 0 },
        };
        let old = self
            .sections
            .get_mut(index)
            .filter(|old| old.mid == section.mid);
        if !rejected && kind.is_some() && offered.direction.sends() {
            // All of a publishing section's payload types belong to the client's first choice, so
            // that a track's codec cannot change under its subscribers.
            let first = section.codecs.first().map(|codec| codec.format.mime());
            section
                .codecs
                .retain(|codec| Some(codec.format.mime()) == first);
            let rids = offered.rids.into_iter().take(LAYERS_MAX).collect();
            let mut receive = Receive::new(now, offered.msid, rids, offered.ssrcs);
            if let Some(known) = old.as_ref().and_then(|old| old.receive.as_ref()) {
                receive.inherit(known);
            }
            section.receive = Some(receive);
        }
        if let Some(old) = old
            && !rejected
        {
            let was = std::mem::replace(&mut old.slot, Slot::Free { since: 0 });
            section.slot = match was {
                // The client no longer receives here: the track must find another place.
                Slot::Bound(_) if !section.direction.receives() || section.receive.is_some() => {
                    Slot::Free {
                        since: self.version,
                    }
                }
                was => was,
            };
        }
        match self.sections.get_mut(index) {
            Some(old) => *old = section,
            None => self.sections.push(section),
        }
    }

    /// Writes all sections as they stand.
    pub(super) fn describe(&self, local: &Local<'_>, setup: Setup) -> Written {
        let sections = self
            .sections
            .iter()
            .map(|section| self.describe_section(section, local));
        let sdp = write(&Outgoing {
            session: self.session,
            version: self.version,
            ufrag: local.ufrag,
            pwd: local.pwd,
            fingerprint: local.fingerprint,
            setup,
            candidates: local.candidates,
            sections: sections.collect(),
        });
        Written {
            sdp,
            mid_to_track: self.mid_to_track(),
        }
    }

    fn describe_section(&self, section: &Section, local: &Local<'_>) -> OutgoingSection {
        let body = if section.rejected {
            Body::Rejected {
                media: section.media.clone(),
                protocol: section.protocol.clone(),
                format: section.first_format.clone(),
            }
        } else if section.media == Media::Application {
            Body::Data {
                port: local.sctp_port,
                message_bytes_max: local.message_bytes_max,
            }
        } else {
            Body::Media(Box::new(self.media_body(section)))
        };
        OutgoingSection {
            mid: section.mid.clone(),
            body,
        }
    }

    /// An audio or video section as the engine describes it.
    fn media_body(&self, section: &Section) -> MediaBody {
        let assignment = match &section.slot {
            Slot::Bound(assignment) => Some(assignment),
            Slot::Free { .. } | Slot::Draining => None,
        };
        let format = assignment
            .and_then(|a| self.wanted.iter().find(|wanted| wanted.track == a.track))
            .and_then(|wanted| wanted.format);
        let source = assignment.map(|assignment| Source {
            msid: assignment.msid(),
            ssrc: assignment.ssrc,
            repair: section
                .codecs
                .iter()
                .any(|codec| codec.rtx_pt.is_some())
                .then_some(assignment.rtx_ssrc),
            cname: assignment.cname(),
        });
        MediaBody {
            media: section.media.clone(),
            protocol: section.protocol.clone(),
            direction: Direction::new(source.is_some(), section.receive.is_some()),
            codecs: section.written_codecs(format),
            extensions: section.extensions.clone(),
            rids: section
                .receive
                .as_ref()
                .map(|r| r.rids.clone())
                .unwrap_or_default(),
            source,
        }
    }

    /// After an answer: the client knows of the tracks it carries and of those it ended.
    fn settle_slots(&mut self) {
        for section in &mut self.sections {
            match &mut section.slot {
                Slot::Bound(assignment) => assignment.settled = true,
                Slot::Draining => {
                    section.slot = Slot::Free {
                        since: self.version,
                    }
                }
                Slot::Free { .. } => {}
            }
        }
    }

    /// Drops the outstanding wish if the client's sections suffice for it.
    fn fulfil_request(&mut self) {
        let (audio, video) = (self.slots(Kind::Audio), self.slots(Kind::Video));
        if self
            .requested
            .as_ref()
            .is_some_and(|wish| audio >= wish.audio_total && video >= wish.video_total)
        {
            self.requested = None;
        }
    }

    /// Sections that the client receives this kind on.
    fn slots(&self, kind: Kind) -> usize {
        self.sections
            .iter()
            .filter(|section| section.is_slot(kind))
            .count()
    }

    /// More sections could carry the track: the client has shown no section of the kind yet, or one
    /// with the codec.
    fn is_possible(&self, wanted: &Wanted) -> bool {
        let mut sections = self
            .sections
            .iter()
            .filter(|section| !section.rejected && section.media.kind() == Some(wanted.kind))
            .peekable();
        let is_new = sections.peek().is_none();
        is_new || sections.any(|section| section.has_codec(wanted.format))
    }

    /// v1: what to ask the client for. One wish at a time.
    pub(super) fn sections_needed(&mut self, now: Instant) -> Option<Due> {
        if self.sections.is_empty() || self.requested.is_some() {
            return None;
        }
        self.negotiate_at = None;
        let mut missing = [0_usize; 2];
        let mut claimed = vec![false; self.sections.len()];
        let mut is_pending = false;
        for wanted in self.pending().filter(|wanted| self.is_possible(wanted)) {
            is_pending = true;
            let free = self
                .sections
                .iter()
                .enumerate()
                .position(|(index, section)| {
                    !claimed[index]
                        && matches!(section.slot, Slot::Free { .. })
                        && section.takes(wanted)
                });
            match free {
                Some(index) => claimed[index] = true,
                None => missing[usize::from(wanted.kind == Kind::Video)] += 1,
            }
        }
        if !is_pending && !self.is_draining() {
            return None;
        }
        let room = self.limits.sections_max.saturating_sub(self.sections.len());
        let audio = missing[0].min(room);
        let video = missing[1].min(room - audio);
        if audio + video == 0
            && missing[0] + missing[1] > 0
            && !claimed.contains(&true)
            && !self.is_draining()
        {
            // Full: nothing the client could do.
            return None;
        }
        self.requested = Some(Requested {
            audio_total: self.slots(Kind::Audio) + audio,
            video_total: self.slots(Kind::Video) + video,
            until: now + SECTIONS_PATIENCE,
        });
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Some(Due::SectionsNeeded {
            audio: count(audio),
            video: count(video),
        })
    }
}
