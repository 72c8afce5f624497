//! Continues what a client agreed on with another node: its sections stay as they are.
//!
//! The client brings the last offer and answer of the connection. What the former home wrote of them
//! names the tracks it sent (`a=msid`), so that each keeps its section; those are `Bound` at once,
//! and released if nobody subscribes to them for a while. Of what the client publishes the record of
//! the track knows section and sources (`publish.rs`). Everything in the descriptions is the client's
//! word: it can spoil its own connection with it, no more.
//!
//! Until the client is back nothing is offered or asked for: to a v0 subscriber before
//! [`Negotiation::restart`], of a v1 client before its next offer.

use std::time::{Duration, Instant};

use flotilla_model::id::TrackSid;
use flotilla_model::track::Kind;
use rand::Rng;

use super::{Assignment, Limits, Negotiation, Refusal, Section, Slot, remote};
use crate::command::PeerRole;
use crate::peer::dtls::Fingerprint;
use crate::peer::passage::SentStream;
use crate::peer::sdp::{self, Description, Direction, Media, Msid, codec, extension};

/// How long a section waits for a subscription to the track that it carried. Subscriptions come with
/// the connection or a moment later; a higher value leaves the sections of tracks that are gone
/// alone for longer.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
/// How long the client of a connection that goes on without its knowing may take to find out. Longer than
/// anybody may be without a signal connection.
const ABSENCE_MAX: Duration = Duration::from_secs(300);

/// The certificate that a client was shown, as the server's description of the two says.
#[must_use]
pub fn shown_fingerprint(role: PeerRole, offer: &str, answer: &str) -> Option<Fingerprint> {
    let ours = match role {
        PeerRole::Subscriber => offer,
        PeerRole::Single | PeerRole::Publisher => answer,
    };
    sdp::parse(ours).ok()?.bundle_transport().fingerprint
}

impl Negotiation {
    /// Continues a connection. `descriptions`: the last offer and answer. `used`: SSRCs that must
    /// not be sent under again.
    ///
    /// # Errors
    /// Why the descriptions cannot be used.
    pub fn restore(
        now: Instant,
        role: PeerRole,
        limits: Limits,
        descriptions: Option<(&str, &str)>,
        used: &[u32],
        rng: &mut impl Rng,
    ) -> Result<Self, Refusal> {
        let mut this = Self::new(now, role, limits, rng);
        this.used_elsewhere = used.to_vec();
        this.is_held = true;
        this.negotiate_at = None;
        if let Some((offer, answer)) = descriptions {
            match role {
                // Its next offer says everything, and no track is sent to it.
                PeerRole::Publisher => {}
                PeerRole::Subscriber => this.restore_offered(offer, answer, rng)?,
                PeerRole::Single => this.restore_answered(now, offer, answer, rng)?,
            }
            this.version = 1;
            this.claim_by = Some(now + CLAIM_PATIENCE);
        }
        Ok(this)
    }

    /// Continues a connection whose client does not know that its home is another: what it was told of
    /// `streams` still holds, and they may flow.
    ///
    /// # Errors
    /// Why the descriptions cannot be used.
    pub fn go_on(
        now: Instant,
        role: PeerRole,
        limits: Limits,
        descriptions: (&str, &str),
        (used, streams): (&[u32], &[SentStream]),
        rng: &mut impl Rng,
    ) -> Result<Self, Refusal> {
        let (offer, answer) = descriptions;
        let theirs = if role == PeerRole::Publisher {
            None
        } else {
            Some(descriptions)
        };
        let mut this = Self::restore(now, role, limits, theirs, used, rng)?;
        if role == PeerRole::Publisher {
            this.restore_answered(now, offer, answer, rng)?;
            this.version = 1;
        }
        let from_client = if role == PeerRole::Subscriber {
            answer
        } else {
            offer
        };
        this.remote = Some(remote(&sdp::parse(from_client)?)?.0);
        for section in &mut this.sections {
            if let Slot::Bound(assignment) = &mut section.slot
                && let Some(stream) = streams.iter().find(|s| s.track == assignment.track)
            {
                assignment.ssrc = stream.ssrc;
                assignment.rtx_ssrc = stream.repair_ssrc;
                assignment.settled = true;
            }
        }
        // Subscriptions that are not gone on with come with the client.
        this.claim_by = Some(now + ABSENCE_MAX);
        Ok(this)
    }

    /// The client of a connection that [`Self::go_on`] went on with is back, with these descriptions
    /// (none: not told). Says whether it has the same sections.
    #[must_use]
    pub fn welcome(&mut self, now: Instant, descriptions: Option<(&str, &str)>) -> bool {
        let has_same = descriptions.is_none_or(|(offer, _)| {
            sdp::parse(offer).is_ok_and(|offer| {
                let theirs = offer.sections.iter().map(|section| &section.mid);
                theirs.eq(self.sections.iter().map(|section| &section.mid))
            })
        });
        self.claim_by = Some(now + CLAIM_PATIENCE);
        has_same
    }

    /// Tracks that have a section, with their stream ids.
    pub fn assigned(&self) -> impl Iterator<Item = (&TrackSid, &str)> {
        self.sections
            .iter()
            .filter_map(|section| match &section.slot {
                Slot::Bound(assignment) => Some((&assignment.track, assignment.stream.as_str())),
                Slot::Free { .. } | Slot::Draining => None,
            })
    }

    /// v0 subscriber: the offer is the former home's. The answer may lack its last sections if the
    /// client was still working on it.
    fn restore_offered(
        &mut self,
        offer: &str,
        answer: &str,
        rng: &mut impl Rng,
    ) -> Result<(), Refusal> {
        let (offer, answer) = (sdp::parse(offer)?, sdp::parse(answer)?);
        self.check_sections(&offer)?;
        if answer.sections.len() > offer.sections.len() {
            return Err(Refusal::SectionsVanished {
                expected: answer.sections.len(),
                found: offer.sections.len(),
            });
        }
        self.sections.clear();
        for (index, ours) in offer.sections.into_iter().enumerate() {
            let theirs = answer.sections.get(index);
            if theirs.is_some_and(|theirs| theirs.mid != ours.mid || theirs.media != ours.media) {
                return Err(Refusal::SectionChanged(index));
            }
            let msid = ours.msid.clone().filter(|_| ours.direction.sends());
            self.sections.push(offered_section(ours));
            self.assume(index, msid, rng);
            if let Some(theirs) = theirs {
                self.take_answer(index, theirs);
            }
            // The client has not been told the new SSRC.
            if let Slot::Bound(assignment) = &mut self.sections[index].slot {
                assignment.settled = false;
            }
        }
        Ok(())
    }

    /// v1: the offer is the client's, and is taken as if it came again.
    fn restore_answered(
        &mut self,
        now: Instant,
        offer: &str,
        answer: &str,
        rng: &mut impl Rng,
    ) -> Result<(), Refusal> {
        let offer = self.read_offer(offer)?.into_description();
        let answer = sdp::parse(answer)?;
        self.check_sections(&offer)?;
        if answer.sections.len() != offer.sections.len() {
            return Err(Refusal::SectionsVanished {
                expected: offer.sections.len(),
                found: answer.sections.len(),
            });
        }
        let theirs = offer.sections.iter().zip(&answer.sections);
        for (index, (theirs, ours)) in theirs.enumerate() {
            if theirs.mid != ours.mid || theirs.media != ours.media {
                return Err(Refusal::SectionChanged(index));
            }
        }
        self.take_over_all(now, offer);
        for (index, ours) in answer.sections.into_iter().enumerate() {
            let msid = ours.msid.filter(|_| ours.direction.sends());
            self.assume(index, msid, rng);
        }
        Ok(())
    }

    fn check_sections(&self, description: &Description) -> Result<(), Refusal> {
        let sections = &description.sections;
        if sections.is_empty() {
            return Err(Refusal::Empty);
        }
        if sections.len() > self.limits.sections_max {
            return Err(Refusal::TooManySections(self.limits.sections_max));
        }
        for (index, section) in sections.iter().enumerate() {
            let is_repeated = sections[..index]
                .iter()
                .any(|other| other.mid == section.mid);
            if is_repeated {
                return Err(Refusal::SectionChanged(index));
            }
        }
        Ok(())
    }

    /// The former home sent a track on this section.
    fn assume(&mut self, index: usize, msid: Option<Msid>, rng: &mut impl Rng) {
        let Some(msid) = msid.filter(|msid| !msid.track.is_empty()) else {
            return;
        };
        let track = TrackSid::from(msid.track.as_str());
        let section = &self.sections[index];
        let fits = section
            .media
            .kind()
            .is_some_and(|kind| section.is_slot(kind));
        if !fits || self.is_assigned(&track) {
            return;
        }
        let (ssrc, rtx_ssrc) = (self.fresh_ssrc(rng), self.fresh_ssrc(rng));
        self.sections[index].slot = Slot::Bound(Assignment {
            track,
            stream: msid.stream,
            ssrc,
            rtx_ssrc,
            settled: false,
        });
    }

    /// The kind of a track that had a section at the former home: it can be subscribed to before
    /// anything else is known of it.
    #[must_use]
    pub fn assumed_kind(&self, track: &TrackSid) -> Option<Kind> {
        self.claim_by?;
        self.sections
            .iter()
            .find(|section| {
                matches!(&section.slot, Slot::Bound(assignment) if assignment.track == *track)
            })
            .and_then(|section| section.media.kind())
    }

    /// Nobody subscribed to what these sections carried: the client is to be told.
    pub(super) fn release_unclaimed(&mut self, now: Instant) {
        if self.claim_by.is_none_or(|at| now < at) {
            return;
        }
        self.claim_by = None;
        let wanted = &self.wanted;
        let mut is_released = false;
        for section in &mut self.sections {
            if let Slot::Bound(assignment) = &section.slot
                && wanted.iter().all(|wanted| wanted.track != assignment.track)
            {
                section.slot = Slot::Draining;
                is_released = true;
            }
        }
        if is_released {
            self.gather(now);
        }
    }
}

/// A section of the former home's offer.
fn offered_section(ours: sdp::Section) -> Section {
    let kind = ours.media.kind();
    let codecs = kind
        .map(|kind| codec::accept(&ours, kind))
        .unwrap_or_default();
    let extensions = kind
        .map(|kind| extension::accept(&ours, kind))
        .unwrap_or_default();
    let is_usable = match kind {
        Some(_) => !codecs.is_empty(),
        None => ours.media == Media::Application,
    };
    Section {
        rejected: ours.is_rejected() || !is_usable,
        mid: ours.mid,
        direction: if kind.is_some() {
            Direction::RecvOnly
        } else {
            Direction::SendRecv
        },
        media: ours.media,
        protocol: ours.protocol,
        first_format: ours
            .formats
            .into_iter()
            .next()
            .unwrap_or_else(|| "0".to_owned()),
        codecs,
        extensions,
        receive: None,
        slot: Slot::Free { since: 0 },
    }
}
