//! What one peer connection has agreed on, and what it must agree on next.
//!
//! The engine feeds offers, answers, publications and subscriptions; it gets back descriptions to
//! send, wishes ([`Due`]) and the sections that the router receives on and sends on. In v1 and for a
//! v0 publisher the client offers (`answer.rs`); to a v0 subscriber the engine offers (`offer.rs`).
//! Published tracks find their sections in `publish.rs`; connections that had another home begin in
//! `restore.rs`. One value per peer, owned by the engine.
//!
//! ```text
//! Subscribe ─► wanted ─► free section of its kind ─► next description carries it ─► router sends
//!                 └─ none free: Due::SectionsNeeded (v1) / a new section (v0)
//! ```
//!
//! Life of a section that the engine sends on: `Free` → `Bound` → `Draining` (unsubscribed, but the
//! client still believes in the track) → a description that says inactive → `Free`. The inactive
//! step is what makes clients drop the old track and notice the next one.

mod answer;
mod offer;
mod publish;
mod restore;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flotilla_model::id::TrackSid;
use flotilla_model::track::Kind;
use rand::Rng;

use crate::command::PeerRole;
use crate::forward::parameters::{ExtensionIds, ReceiveSection, SendSection};
use crate::peer::dtls::Fingerprint;
use crate::peer::sdp::codec::{self, Accepted, Format};
use crate::peer::sdp::extension::Extension;
use crate::peer::sdp::{Direction, Media, Msid, ParseError, Setup};

pub use answer::Offer;
pub use restore::shown_fingerprint;

use publish::{Publication, Receive};

/// How long changes are collected before they are negotiated: joins bring them in bursts. A higher
/// value saves round trips and delays the first picture.
const GATHER: Duration = Duration::from_millis(10);
/// How long a v1 client has to offer the sections it was asked for before it is asked again.
const SECTIONS_PATIENCE: Duration = Duration::from_secs(3);
/// How long a v0 client has to answer; LiveKit's own figure.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);

/// The engine's side of the transport, as it stands in descriptions.
#[derive(Debug)]
pub struct Local<'a> {
    /// ICE user name fragment.
    pub ufrag: &'a str,
    /// ICE password.
    pub pwd: &'a str,
    /// Fingerprint of the cluster's certificate.
    pub fingerprint: Fingerprint,
    /// Where the engine can be reached.
    pub candidates: &'a [std::net::SocketAddr],
    /// SCTP port.
    pub sctp_port: u16,
    /// Largest data-channel message taken, bytes.
    pub message_bytes_max: u64,
}

/// The client's side of the transport.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// ICE user name fragment.
    pub ufrag: String,
    /// ICE password.
    pub pwd: String,
    /// Fingerprint of its certificate.
    pub fingerprint: Fingerprint,
}

/// A description for the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// SDP.
    pub sdp: String,
    /// Section → track sent on it.
    pub mid_to_track: BTreeMap<String, TrackSid>,
}

/// What the negotiation wants to happen now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Due {
    /// v1: ask the client to offer again with this many more receiving sections.
    SectionsNeeded {
        /// Audio.
        audio: u32,
        /// Video.
        video: u32,
    },
    /// v0 subscriber: write the next offer ([`Negotiation::write_offer`]).
    Offer,
    /// Publications were bound to sections by kind; tell the router.
    Bound,
    /// The client left an offer unanswered.
    Unanswered,
}

/// Why a client's description cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Not readable.
    #[error(transparent)]
    Unreadable(#[from] ParseError),
    /// An offer where the engine offers, or an answer where the client does.
    #[error("this peer connection does not take {0}s")]
    WrongDirection(&'static str),
    /// An answer to an offer that is not outstanding.
    #[error("no offer {0} is waiting for an answer")]
    NotOutstanding(u32),
    /// Nothing in it.
    #[error("the description has no media section")]
    Empty,
    /// A section outside the bundle.
    #[error("section {0} is not bundled; all sections must share one transport")]
    NotBundled(String),
    /// A section with RTCP on a port of its own.
    #[error("section {0} does not multiplex RTCP")]
    NotMultiplexed(String),
    /// Transport attribute missing.
    #[error("the description has no {0}")]
    Missing(&'static str),
    /// The engine is always the DTLS server.
    #[error("the client must take the active DTLS role")]
    Role,
    /// Another certificate than before.
    #[error("the certificate fingerprint changed; a new peer connection is needed")]
    Certificate,
    /// Fewer sections than before.
    #[error("the description has {found} sections where at least {expected} are needed")]
    SectionsVanished {
        /// As agreed before.
        expected: usize,
        /// Now.
        found: usize,
    },
    /// Section order or kind changed.
    #[error("section {0} does not match the one agreed on before")]
    SectionChanged(usize),
    /// Too many sections.
    #[error("more than {0} media sections")]
    TooManySections(usize),
}

/// A media section as agreed on.
#[derive(Debug)]
struct Section {
    mid: String,
    media: Media,
    protocol: String,
    /// For a refused section's `m=` line.
    first_format: String,
    rejected: bool,
    /// As the client said it, or would say it, seen from the client.
    direction: Direction,
    codecs: Vec<Accepted>,
    extensions: Vec<(Extension, u8)>,
    /// The client sends here.
    receive: Option<Receive>,
    slot: Slot,
}

/// Whether the engine sends on a section.
#[derive(Debug)]
enum Slot {
    /// Nothing; `since` is the description that first said so (0: it never carried a track).
    Free { since: u64 },
    /// A track.
    Bound(Assignment),
    /// Unsubscribed, but not yet said so in a description.
    Draining,
}

#[derive(Debug)]
struct Assignment {
    track: TrackSid,
    stream: String,
    ssrc: u32,
    rtx_ssrc: u32,
    /// The client has been told (v1) or has agreed (v0): packets may flow.
    settled: bool,
}

/// A track that the peer is to receive.
#[derive(Debug)]
struct Wanted {
    track: TrackSid,
    stream: String,
    kind: Kind,
    /// Known once the publisher's section is negotiated.
    format: Option<Format>,
    /// The client refused the section that carried it.
    refused: bool,
}

/// Limits of one peer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most media sections.
    pub sections_max: usize,
    /// Most tracks published, and most subscribed.
    pub tracks_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sections_max: crate::peer::sdp::SECTIONS_MAX,
            tracks_max: 250,
        }
    }
}

/// A wish for more sections that the client has not fulfilled yet.
#[derive(Debug)]
struct Requested {
    audio_total: usize,
    video_total: usize,
    until: Instant,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Negotiation {
    role: PeerRole,
    limits: Limits,
    session: u64,
    version: u64,
    sections: Vec<Section>,
    published: BTreeMap<TrackSid, Publication>,
    wanted: Vec<Wanted>,
    remote: Option<Remote>,
    /// Something is to be negotiated from this time on.
    negotiate_at: Option<Instant>,
    requested: Option<Requested>,
    next_offer: u32,
    outstanding: Option<offer::Outstanding>,
    /// Publications wait for the time when they may take any section of their kind.
    bind_at: Option<Instant>,
    /// Continues another node's connection and waits for the client to be back.
    is_held: bool,
    /// Until then tracks that another node sent keep their sections without a subscription.
    claim_by: Option<Instant>,
    /// SSRCs that another node sent under with this connection's keys.
    used_elsewhere: Vec<u32>,
}

impl Negotiation {
    /// Starts one. A v0 subscriber has its data section from the beginning and is offered it soon.
    pub fn new(now: Instant, role: PeerRole, limits: Limits, rng: &mut impl Rng) -> Self {
        let mut negotiation = Self {
            role,
            limits,
            session: rng.random_range(1..=i64::MAX.unsigned_abs()),
            version: 0,
            sections: Vec::new(),
            published: BTreeMap::new(),
            wanted: Vec::new(),
            remote: None,
            negotiate_at: None,
            requested: None,
            next_offer: rng.random_range(1..=256),
            outstanding: None,
            bind_at: None,
            is_held: false,
            claim_by: None,
            used_elsewhere: Vec::new(),
        };
        if role == PeerRole::Subscriber {
            negotiation.sections.push(offer::data_section());
            negotiation.negotiate_at = Some(now + GATHER);
        }
        negotiation
    }

    /// The client's transport parameters, once a description brought them.
    pub fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref()
    }

    /// Asks for a track to be sent to the peer. Says `false` when the limit is reached. Repeated, it
    /// changes nothing but a stream id that has not been used yet.
    pub fn subscribe(
        &mut self,
        now: Instant,
        track: &TrackSid,
        stream: &str,
        kind: Kind,
        format: Option<Format>,
    ) -> bool {
        if let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.track == *track) {
            stream.clone_into(&mut wanted.stream);
            wanted.format = format.or(wanted.format);
            wanted.refused = false;
            // A restored section may have been of another kind.
            wanted.kind = kind;
        } else if self.wanted.len() < self.limits.tracks_max {
            self.wanted.push(Wanted {
                track: track.clone(),
                stream: stream.to_owned(),
                kind,
                format,
                refused: false,
            });
        } else {
            return false;
        }
        for section in &mut self.sections {
            if section.media.kind() != Some(kind)
                && matches!(&section.slot, Slot::Bound(assignment) if assignment.track == *track)
            {
                section.slot = Slot::Draining;
            }
        }
        if !self.is_assigned(track) {
            self.gather(now);
        }
        true
    }

    /// A subscribed track's codec became known or changed. Says whether that changes what the
    /// router must know; no negotiation is needed, as sections carry all codecs.
    pub fn set_format(&mut self, track: &TrackSid, format: Format) -> bool {
        let wanted = self.wanted.iter_mut().find(|wanted| wanted.track == *track);
        wanted.is_some_and(|wanted| wanted.format.replace(format) != Some(format))
    }

    /// The peer no longer receives a track.
    pub fn unsubscribe(&mut self, now: Instant, track: &TrackSid) {
        self.wanted.retain(|wanted| wanted.track != *track);
        for section in &mut self.sections {
            if matches!(&section.slot, Slot::Bound(assignment) if assignment.track == *track) {
                section.slot = Slot::Draining;
                self.negotiate_at.get_or_insert(now + GATHER);
            }
        }
    }

    /// What is wanted now, if anything. To be called until `None` whenever the peer's deadline has
    /// come and after every other call.
    pub fn poll_due(&mut self, now: Instant) -> Option<Due> {
        self.release_unclaimed(now);
        if self.bind_at.is_some_and(|at| at <= now) {
            self.bind_at = None;
            if self.bind(now) {
                return Some(Due::Bound);
            }
        }
        if self
            .outstanding
            .as_ref()
            .is_some_and(|offer| offer.until <= now)
        {
            self.outstanding = None;
            return Some(Due::Unanswered);
        }
        if self
            .requested
            .as_ref()
            .is_some_and(|requested| requested.until <= now)
        {
            self.requested = None;
            self.negotiate_at = Some(now);
        }
        if self.is_held || self.negotiate_at.is_none_or(|at| at > now) {
            return None;
        }
        match self.role {
            PeerRole::Publisher => {
                self.negotiate_at = None;
                None
            }
            // The wish stays until the answer to the offer in flight is here.
            PeerRole::Subscriber => self.outstanding.is_none().then_some(Due::Offer),
            PeerRole::Single => self.sections_needed(now),
        }
    }

    /// When to call [`Self::poll_due`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let negotiate_at = match self.role {
            _ if self.is_held => None,
            // Nothing can be done before the answer is here or its time is up.
            PeerRole::Subscriber if self.outstanding.is_some() => None,
            // Before the first offer there is nothing to ask for.
            PeerRole::Single if self.requested.is_some() || self.sections.is_empty() => None,
            _ => self.negotiate_at,
        };
        [
            negotiate_at,
            self.bind_at,
            self.claim_by,
            self.outstanding.as_ref().map(|offer| offer.until),
            self.requested.as_ref().map(|requested| requested.until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The sections that the client sends published tracks on.
    pub fn receive_sections(&self) -> Vec<ReceiveSection> {
        self.sections
            .iter()
            .filter_map(publish::receive_section)
            .collect()
    }

    /// The sections that subscribed tracks are sent on, as far as the client knows of them and the
    /// track's codec is known.
    pub fn send_sections(&self) -> Vec<SendSection> {
        self.sections
            .iter()
            .filter_map(|section| self.send_section(section))
            .collect()
    }

    fn send_section(&self, section: &Section) -> Option<SendSection> {
        let Slot::Bound(assignment) = &section.slot else {
            return None;
        };
        if !assignment.settled {
            return None;
        }
        let wanted = self
            .wanted
            .iter()
            .find(|wanted| wanted.track == assignment.track)?;
        let codec = codec::select(&section.codecs, wanted.format?)?;
        Some(SendSection {
            mid: section.mid.clone(),
            track: assignment.track.clone(),
            kind: wanted.kind,
            pt: codec.pt,
            rtx_pt: codec.rtx_pt,
            ssrc: assignment.ssrc,
            rtx_ssrc: assignment.rtx_ssrc,
            extensions: ExtensionIds {
                twcc: None,
                ..publish::extension_ids(&section.extensions)
            },
            clock_rate: codec.clock_rate,
            mime: codec.format.mime().to_owned(),
            fmtp: codec.plain_fmtp(),
        })
    }

    /// Starts collecting changes, unless that is under way.
    fn gather(&mut self, now: Instant) {
        self.negotiate_at.get_or_insert(now + GATHER);
    }

    /// Wanted tracks without a section.
    fn pending(&self) -> impl Iterator<Item = &Wanted> {
        self.wanted
            .iter()
            .filter(|wanted| !wanted.refused && !self.is_assigned(&wanted.track))
    }

    fn is_assigned(&self, track: &TrackSid) -> bool {
        self.sections.iter().any(
            |section| matches!(&section.slot, Slot::Bound(assignment) if assignment.track == *track),
        )
    }

    fn is_draining(&self) -> bool {
        self.sections
            .iter()
            .any(|section| matches!(section.slot, Slot::Draining))
    }

    /// Gives wanted tracks the free sections of their kind, those that never carried a track first,
    /// then those free for longest: clients have surely dropped what they carried.
    fn assign(&mut self, rng: &mut impl Rng) {
        let pending: Vec<usize> = (0..self.wanted.len())
            .filter(|index| {
                let wanted = &self.wanted[*index];
                !wanted.refused && !self.is_assigned(&wanted.track)
            })
            .collect();
        for index in pending {
            let wanted = &self.wanted[index];
            let free = self
                .sections
                .iter()
                .enumerate()
                .filter_map(|(position, section)| match section.slot {
                    Slot::Free { since } if section.takes(wanted) => Some((since, position)),
                    _ => None,
                });
            if let Some((_, position)) = free.min() {
                let (ssrc, rtx_ssrc) = (self.fresh_ssrc(rng), self.fresh_ssrc(rng));
                let wanted = &self.wanted[index];
                self.sections[position].slot = Slot::Bound(Assignment {
                    track: wanted.track.clone(),
                    stream: wanted.stream.clone(),
                    ssrc,
                    rtx_ssrc,
                    settled: false,
                });
            }
        }
    }

    /// A synchronisation source that nobody on this connection uses. Two drawn in a row may be equal
    /// with a chance of one in four thousand million, as RFC 3550 §8.1 accepts.
    fn fresh_ssrc(&self, rng: &mut impl Rng) -> u32 {
        loop {
            let ssrc = rng.random_range(1..u32::MAX);
            let is_used = self.sections.iter().any(|section| {
                let sent = matches!(&section.slot, Slot::Bound(assignment)
                    if assignment.ssrc == ssrc || assignment.rtx_ssrc == ssrc);
                sent || section
                    .receive
                    .as_ref()
                    .is_some_and(|receive| receive.uses(ssrc))
            });
            if !is_used && !self.used_elsewhere.contains(&ssrc) {
                return ssrc;
            }
        }
    }

    fn mid_to_track(&self) -> BTreeMap<String, TrackSid> {
        let bound = |section: &Section| match &section.slot {
            Slot::Bound(assignment) => Some((section.mid.clone(), assignment.track.clone())),
            Slot::Free { .. } | Slot::Draining => None,
        };
        self.sections.iter().filter_map(bound).collect()
    }
}

impl Section {
    /// The section could carry the track to the client.
    fn takes(&self, wanted: &Wanted) -> bool {
        self.is_slot(wanted.kind) && self.has_codec(wanted.format)
    }

    /// The client receives this kind here, and only receives.
    fn is_slot(&self, kind: Kind) -> bool {
        !self.rejected
            && self.media.kind() == Some(kind)
            && self.direction.receives()
            && self.receive.is_none()
    }

    /// The section can carry this format; any, if it is not known yet.
    fn has_codec(&self, format: Option<Format>) -> bool {
        match format {
            Some(format) => codec::select(&self.codecs, format).is_some(),
            None => !self.codecs.is_empty(),
        }
    }

    /// Payload types as written: the codec of the track it carries first. Subscribers report their
    /// bandwidth by REMB, so transport-cc is agreed only where the client sends. (Its header
    /// extension is agreed everywhere: Chromium drops it from later sections otherwise.)
    fn written_codecs(&self, format: Option<Format>) -> Vec<Accepted> {
        let mut codecs = self.codecs.clone();
        if self.receive.is_none() {
            for codec in &mut codecs {
                codec.feedback.transport_cc = false;
            }
        }
        let first = format
            .and_then(|format| codec::select(&self.codecs, format))
            .map(|c| c.pt);
        codecs.sort_by_key(|codec| Some(codec.pt) != first);
        codecs
    }
}

impl Assignment {
    fn msid(&self) -> Msid {
        Msid {
            stream: self.stream.clone(),
            track: self.track.as_str().to_owned(),
        }
    }

    /// One per participant: the part of the stream id before the track.
    fn cname(&self) -> String {
        self.stream.split('|').next().unwrap_or_default().to_owned()
    }
}

/// What of a client's transport attributes the engine needs.
fn remote(description: &crate::peer::sdp::Description) -> Result<(Remote, Option<Setup>), Refusal> {
    let transport = description.bundle_transport();
    let remote = Remote {
        ufrag: transport.ufrag.ok_or(Refusal::Missing("ice-ufrag"))?,
        pwd: transport.pwd.ok_or(Refusal::Missing("ice-pwd"))?,
        fingerprint: transport
            .fingerprint
            .ok_or(Refusal::Missing("sha-256 fingerprint"))?,
    };
    Ok((remote, transport.setup))
}

#[cfg(test)]
mod tests;
