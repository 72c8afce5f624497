//! Engine offers, client answers: v0 subscribers.

use std::time::Instant;

use flotilla_model::track::Kind;
use rand::Rng;

use super::{ANSWER_PATIENCE, GATHER, Local, Negotiation, Refusal, Section, Slot, Written, remote};
use crate::command::PeerRole;
use crate::peer::sdp::{self, Direction, Media, Setup, codec, extension};

/// An offer that the client has not answered.
#[derive(Debug)]
pub(super) struct Outstanding {
    id: u32,
    pub(super) until: Instant,
}

/// The section for data channels, always the first.
pub(super) fn data_section() -> Section {
    Section {
        mid: "0".to_owned(),
        media: Media::Application,
        protocol: "UDP/DTLS/SCTP".to_owned(),
        first_format: "webrtc-datachannel".to_owned(),
        rejected: false,
        direction: Direction::SendRecv,
        codecs: Vec::new(),
        extensions: Vec::new(),
        receive: None,
        slot: Slot::Free { since: 0 },
    }
}

fn media_section(mid: String, kind: Kind) -> Section {
    Section {
        mid,
        media: kind.into(),
        protocol: "UDP/TLS/RTP/SAVPF".to_owned(),
        first_format: "0".to_owned(),
        rejected: false,
        direction: Direction::RecvOnly,
        codecs: codec::offer(kind),
        extensions: extension::offer(kind),
        receive: None,
        slot: Slot::Free { since: 0 },
    }
}

impl Negotiation {
    /// Writes the offer that [`super::Due::Offer`] asked for; its number comes with it.
    pub fn write_offer(
        &mut self,
        now: Instant,
        local: &Local<'_>,
        rng: &mut impl Rng,
    ) -> (u32, Written) {
        self.assign(rng);
        self.add_sections();
        self.assign(rng);
        self.version += 1;
        self.negotiate_at = None;
        let id = self.next_offer;
        // 0 means "no number" to clients.
        self.next_offer = self.next_offer.checked_add(1).unwrap_or(1);
        self.outstanding = Some(Outstanding {
            id,
            until: now + ANSWER_PATIENCE,
        });
        (id, self.describe(local, Setup::ActPass))
    }

    /// One section more for each track that finds none.
    fn add_sections(&mut self) {
        let kinds: Vec<Kind> = self.pending().map(|wanted| wanted.kind).collect();
        for kind in kinds {
            if self.sections.len() < self.limits.sections_max {
                let mid = self.fresh_mid();
                self.sections.push(media_section(mid, kind));
            }
        }
    }

    /// The section's place, unless a restored section has that name.
    fn fresh_mid(&self) -> String {
        let is_free = |mid: &String| self.sections.iter().all(|section| section.mid != *mid);
        (self.sections.len()..)
            .map(|number| number.to_string())
            .find(is_free)
            .expect("one of more numbers than sections is free")
    }

    /// Takes the client's answer. `id` 0 stands for whatever is outstanding.
    ///
    /// # Errors
    /// Why it cannot be used; the offer then stays outstanding.
    pub fn handle_answer(&mut self, now: Instant, id: u32, sdp: &str) -> Result<(), Refusal> {
        if self.role != PeerRole::Subscriber {
            return Err(Refusal::WrongDirection("answer"));
        }
        match &self.outstanding {
            Some(offer) if id == offer.id || id == 0 => {}
            _ => return Err(Refusal::NotOutstanding(id)),
        }
        let description = sdp::parse(sdp)?;
        if description.sections.len() != self.sections.len() {
            return Err(Refusal::SectionsVanished {
                expected: self.sections.len(),
                found: description.sections.len(),
            });
        }
        for (index, (ours, theirs)) in self.sections.iter().zip(&description.sections).enumerate() {
            if ours.mid != theirs.mid || ours.media != theirs.media {
                return Err(Refusal::SectionChanged(index));
            }
        }
        let (remote, setup) = remote(&description)?;
        if setup != Some(Setup::Active) {
            return Err(Refusal::Role);
        }
        let known = self.remote.as_ref();
        if known.is_some_and(|known| known.fingerprint != remote.fingerprint) {
            return Err(Refusal::Certificate);
        }
        self.remote = Some(remote);
        self.outstanding = None;
        for (index, theirs) in description.sections.iter().enumerate() {
            self.take_answer(index, theirs);
        }
        if self.pending().next().is_some() {
            self.gather(now);
        }
        Ok(())
    }

    pub(super) fn take_answer(&mut self, index: usize, theirs: &sdp::Section) {
        let section = &mut self.sections[index];
        let Some(kind) = section.media.kind() else {
            section.rejected = section.rejected || theirs.is_rejected();
            return;
        };
        let agreed = codec::accept(theirs, kind);
        if !agreed.is_empty() {
            section.codecs = agreed;
            let extensions = extension::accept(theirs, kind);
            section
                .extensions
                .retain(|extension| extensions.contains(extension));
        }
        section.rejected = section.rejected || theirs.is_rejected();
        let receives = !section.rejected && theirs.direction.receives();
        match &mut section.slot {
            Slot::Bound(assignment) if receives => assignment.settled = true,
            Slot::Bound(assignment) => {
                let track = assignment.track.clone();
                section.slot = Slot::Free {
                    since: self.version,
                };
                for wanted in self
                    .wanted
                    .iter_mut()
                    .filter(|wanted| wanted.track == track)
                {
                    wanted.refused = true;
                }
            }
            Slot::Draining => {
                // Unsubscribed after the offer was written: the next one says so.
                if theirs.direction == Direction::Inactive || section.rejected {
                    section.slot = Slot::Free {
                        since: self.version,
                    };
                }
            }
            Slot::Free { .. } => {}
        }
    }

    /// Whether anything was offered yet.
    pub fn has_offered(&self) -> bool {
        self.outstanding.is_some() || self.remote.is_some()
    }

    /// Offers again, whatever is outstanding: the client comes back on a new signal connection and
    /// the transport has new ICE credentials.
    pub fn restart(&mut self, now: Instant) {
        if self.role == PeerRole::Subscriber {
            self.outstanding = None;
            self.is_held = false;
            self.negotiate_at = Some(now + GATHER);
        }
    }
}
