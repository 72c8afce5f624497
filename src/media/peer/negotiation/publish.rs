//! Published tracks: which section carries which, and what its encodings are.
//!
//! A publication and its section may come in either order. They belong together when the section's
//! msid names one of the track's client ids; after a while of waiting, any section of the kind that
//! nobody else claims will do. What the sections say becomes the track's [`TrackCodec`]s, into which
//! the router's finds (SSRCs of layers that only packets reveal) are merged.

use std::time::{Duration, Instant};

use flotilla_model::id::TrackSid;
use flotilla_model::track::{Kind, Layer, Quality, Track, TrackCodec};
use flotilla_model::unit::Size;

use super::{Negotiation, Section};
use crate::forward::parameters::{ExtensionIds, Feedback, ReceiveCodec, ReceiveSection};
use crate::peer::sdp::extension::Extension;
use crate::peer::sdp::{Msid, SsrcPair};

/// How long a publication and a section must both have waited before they are put together without
/// a common id. Lower values risk joining a track with another's section whose own publication is
/// still on its way through the log.
const FALLBACK: Duration = Duration::from_millis(500);

/// A track that the peer publishes.
#[derive(Debug)]
pub(super) struct Publication {
    track: Box<Track>,
    since: Instant,
    /// What was last reported of it.
    described: Vec<TrackCodec>,
    home: Home,
}

/// Whether a publication has a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Home {
    /// Not yet.
    Sought,
    /// Yes.
    Found,
    /// No longer: the client has ended the track. Only a section that names it brings it back.
    Lost,
}

/// What a client sends on a section.
#[derive(Debug)]
pub(super) struct Receive {
    msid: Option<Msid>,
    pub(super) rids: Vec<String>,
    ssrcs: Vec<SsrcPair>,
    since: Instant,
    /// The track it carries and which of its codecs this is.
    binding: Option<Binding>,
    /// Sources that packets revealed: rid, media, repair (0: unknown).
    learned: Vec<(String, u32, u32)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Binding {
    track: TrackSid,
    codec: usize,
    /// By a common id, not by kind alone.
    is_exact: bool,
}

impl Receive {
    pub(super) fn new(
        now: Instant,
        msid: Option<Msid>,
        rids: Vec<String>,
        ssrcs: Vec<SsrcPair>,
    ) -> Self {
        Self {
            msid,
            rids,
            ssrcs,
            since: now,
            binding: None,
            learned: Vec::new(),
        }
    }

    /// Keeps what is known from an earlier offer of the same section: clients stop repeating rid
    /// header extensions, so the sources that carried them must not be forgotten.
    pub(super) fn inherit(&mut self, known: &Self) {
        self.since = known.since;
        if self.cid() == known.cid() {
            self.binding.clone_from(&known.binding);
            self.learned = known
                .learned
                .iter()
                .filter(|(rid, ..)| self.has_layer(rid))
                .cloned()
                .collect();
        }
    }

    pub(super) fn uses(&self, ssrc: u32) -> bool {
        self.ssrcs
            .iter()
            .any(|pair| pair.ssrc == ssrc || pair.repair == Some(ssrc))
            || self
                .learned
                .iter()
                .any(|(_, media, repair)| *media == ssrc || *repair == ssrc)
    }

    fn cid(&self) -> Option<&str> {
        self.msid
            .as_ref()
            .map(|msid| msid.track.as_str())
            .filter(|track| !track.is_empty())
    }

    fn has_layer(&self, rid: &str) -> bool {
        if self.rids.is_empty() {
            rid.is_empty()
        } else {
            self.rids.iter().any(|own| own == rid)
        }
    }
}

impl Negotiation {
    /// Expects a track. Says `false` when the limit is reached.
    pub fn publish(&mut self, now: Instant, track: Box<Track>) -> bool {
        if let Some(known) = self.published.get_mut(&track.sid) {
            known.track = track;
        } else if self.published.len() < self.limits.tracks_max {
            let publication = Publication {
                track,
                since: now,
                described: Vec::new(),
                home: Home::Sought,
            };
            self.published
                .insert(publication.track.sid.clone(), publication);
        } else {
            return false;
        }
        self.bind(now);
        true
    }

    /// Forgets a published track; its section stays, for another.
    pub fn unpublish(&mut self, now: Instant, track: &TrackSid) {
        if self.published.remove(track).is_some() {
            for receive in self.sections.iter_mut().filter_map(|s| s.receive.as_mut()) {
                receive.binding.take_if(|binding| binding.track == *track);
            }
            self.bind(now);
        }
    }

    /// Whether the peer publishes this track.
    pub fn publishes(&self, track: &TrackSid) -> bool {
        self.published.contains_key(track)
    }

    /// Puts publications and sections together. Says whether anything changed.
    pub(super) fn bind(&mut self, now: Instant) -> bool {
        let before = self.bindings();
        // What a record from another node says holds until the client's next offer.
        if self.is_held {
            self.bind_by_mid();
        }
        self.bind_by_id();
        if self.is_held {
            self.assume_sources();
        }
        self.bind_by_kind(now);
        before != self.bindings()
    }

    fn bindings(&self) -> Vec<Option<Binding>> {
        let binding = |section: &Section| section.receive.as_ref()?.binding.clone();
        self.sections.iter().map(binding).collect()
    }

    /// For tracks that were negotiated with another node: their record names the section. It does not
    /// count if the section's msid names another track.
    fn bind_by_mid(&mut self) {
        for index in 0..self.sections.len() {
            let section = &self.sections[index];
            let Some(receive) = section.receive.as_ref().filter(|r| r.binding.is_none()) else {
                continue;
            };
            let cid = receive.cid();
            let names_other = |sid: &TrackSid| {
                let mut others = self.published.values().filter(|p| p.track.sid != *sid);
                others.any(|other| {
                    let codecs = &other.track.codecs;
                    codecs.iter().any(|codec| Some(codec.cid.as_str()) == cid)
                })
            };
            let found = self.published.values().find_map(|publication| {
                let track = &publication.track;
                if Some(track.kind) != section.media.kind() || names_other(&track.sid) {
                    return None;
                }
                let codec = track
                    .codecs
                    .iter()
                    .position(|codec| !codec.mid.is_empty() && codec.mid == section.mid)?;
                Some(Binding {
                    track: track.sid.clone(),
                    codec,
                    is_exact: true,
                })
            });
            let Some(binding) = found else {
                continue;
            };
            if let Some(publication) = self.published.get_mut(&binding.track) {
                publication.home = Home::Found;
            }
            if let Some(receive) = &mut self.sections[index].receive {
                receive.binding = Some(binding);
            }
        }
    }

    /// Takes the sources of layers from the record of a track: the client does not name them again.
    fn assume_sources(&mut self) {
        for receive in self.sections.iter_mut().filter_map(|s| s.receive.as_mut()) {
            let Some(binding) = &receive.binding else {
                continue;
            };
            let publication = self.published.get(&binding.track);
            let codec = publication.and_then(|known| known.track.codecs.get(binding.codec));
            // A section without layers that declares its source is right about it.
            let is_declared = receive.rids.is_empty() && !receive.ssrcs.is_empty();
            let Some(codec) = codec.filter(|_| !is_declared) else {
                continue;
            };
            for layer in codec.layers.iter().filter(|layer| layer.ssrc != 0) {
                let is_known = receive.learned.iter().any(|(rid, ..)| *rid == layer.rid);
                if !is_known && receive.has_layer(&layer.rid) {
                    let source = (layer.rid.clone(), layer.ssrc, layer.repair_ssrc);
                    receive.learned.push(source);
                }
            }
        }
    }

    fn bind_by_id(&mut self) {
        for index in 0..self.sections.len() {
            let Some(receive) = &self.sections[index].receive else {
                continue;
            };
            let Some(cid) = receive.cid() else {
                continue;
            };
            let kind = self.sections[index].media.kind();
            // The newest of several publications with one client id is the one that is meant.
            let found = self
                .published
                .values()
                .filter(|publication| Some(publication.track.kind) == kind)
                .filter_map(|publication| {
                    let codecs = &publication.track.codecs;
                    let codec = codecs.iter().position(|codec| codec.cid == cid)?;
                    Some((publication.since, publication.track.sid.clone(), codec))
                })
                .max();
            let Some((_, track, codec)) = found else {
                continue;
            };
            let binding = Binding {
                track,
                codec,
                is_exact: true,
            };
            for other in self.sections.iter_mut().filter_map(|s| s.receive.as_mut()) {
                other.binding.take_if(|held| {
                    held.track == binding.track && (held.codec == binding.codec || !held.is_exact)
                });
            }
            if let Some(publication) = self.published.get_mut(&binding.track) {
                publication.home = Home::Found;
            }
            if let Some(receive) = &mut self.sections[index].receive {
                receive.binding = Some(binding);
            }
        }
    }

    /// Second choice, for clients whose SDP does not name the track as they announced it.
    fn bind_by_kind(&mut self, now: Instant) {
        self.bind_at = None;
        let mut homeless: Vec<(Instant, TrackSid, Kind)> = self
            .published
            .values()
            .filter(|publication| publication.home == Home::Sought)
            .map(|publication| {
                (
                    publication.since,
                    publication.track.sid.clone(),
                    publication.track.kind,
                )
            })
            .collect();
        homeless.sort();
        for (since, track, kind) in homeless {
            let section = self.sections.iter_mut().find_map(|section| {
                let is_kind = section.media.kind() == Some(kind) && !section.rejected;
                section
                    .receive
                    .as_mut()
                    .filter(|receive| is_kind && receive.binding.is_none())
            });
            let Some(receive) = section else {
                continue;
            };
            let ready = since.max(receive.since) + FALLBACK;
            if ready <= now {
                if let Some(publication) = self.published.get_mut(&track) {
                    publication.home = Home::Found;
                }
                receive.binding = Some(Binding {
                    track,
                    codec: 0,
                    is_exact: false,
                });
            } else {
                self.bind_at = Some(self.bind_at.map_or(ready, |at| at.min(ready)));
            }
        }
    }

    /// Takes over what packets revealed of a track's sources.
    pub fn learn(&mut self, track: &TrackSid, codecs: &[TrackCodec]) {
        for section in &mut self.sections {
            let Some(receive) = section.receive.as_mut() else {
                continue;
            };
            if receive
                .binding
                .as_ref()
                .is_none_or(|binding| binding.track != *track)
            {
                continue;
            }
            let found = codecs.iter().filter(|codec| codec.mid == section.mid);
            for layer in found.flat_map(|codec| &codec.layers) {
                if layer.ssrc == 0 || !receive.has_layer(&layer.rid) {
                    continue;
                }
                match receive
                    .learned
                    .iter_mut()
                    .find(|(rid, ..)| *rid == layer.rid)
                {
                    Some((_, ssrc, repair)) => {
                        *ssrc = layer.ssrc;
                        if layer.repair_ssrc != 0 {
                            *repair = layer.repair_ssrc;
                        }
                    }
                    None => {
                        receive
                            .learned
                            .push((layer.rid.clone(), layer.ssrc, layer.repair_ssrc))
                    }
                }
            }
        }
    }

    /// Tracks whose description changed since it was last asked for.
    pub fn take_described(&mut self) -> Vec<(TrackSid, Vec<TrackCodec>)> {
        let sections = &self.sections;
        let mut changed = Vec::new();
        for (sid, publication) in &mut self.published {
            let carriers = carriers(sections, sid);
            if carriers.is_empty() {
                continue;
            }
            let codecs = described_codecs(&publication.track, &carriers);
            if codecs != publication.described {
                publication.described.clone_from(&codecs);
                changed.push((sid.clone(), codecs));
            }
        }
        changed
    }

    /// Tracks that lost their last section since this was last asked.
    pub fn take_ended(&mut self) -> Vec<TrackSid> {
        let sections = &self.sections;
        let ended = |publication: &Publication| {
            publication.home == Home::Found && carriers(sections, &publication.track.sid).is_empty()
        };
        let ended: Vec<TrackSid> = self
            .published
            .iter()
            .filter(|(_, publication)| ended(publication))
            .map(|(sid, _)| sid.clone())
            .collect();
        for sid in &ended {
            if let Some(publication) = self.published.get_mut(sid) {
                publication.home = Home::Lost;
                publication.described.clear();
            }
        }
        ended
    }
}

/// One section that carries a published track.
struct Carrier {
    /// Which of the track's codecs.
    codec: usize,
    mid: String,
    mime: String,
    fmtp: String,
    cid: String,
    rids: Vec<String>,
    /// Rid, media, repair; 0 unknown.
    sources: Vec<(String, u32, u32)>,
}

fn carriers(sections: &[Section], track: &TrackSid) -> Vec<Carrier> {
    sections
        .iter()
        .filter_map(|section| carrier(section, track))
        .collect()
}

fn carrier(section: &Section, track: &TrackSid) -> Option<Carrier> {
    let receive = section.receive.as_ref().filter(|_| !section.rejected)?;
    let binding = receive
        .binding
        .as_ref()
        .filter(|binding| binding.track == *track)?;
    let codec = section.codecs.first()?;
    let mut sources = receive.learned.clone();
    if receive.rids.is_empty() && sources.is_empty() {
        let declared = receive
            .ssrcs
            .iter()
            .map(|pair| (String::new(), pair.ssrc, pair.repair.unwrap_or_default()));
        sources.extend(declared);
    }
    Some(Carrier {
        codec: binding.codec,
        mid: section.mid.clone(),
        mime: codec.format.mime().to_owned(),
        fmtp: codec.plain_fmtp(),
        cid: receive.cid().unwrap_or_default().to_owned(),
        rids: receive.rids.clone(),
        sources,
    })
}

/// A track's encodings: as announced, completed by what its sections say.
fn described_codecs(track: &Track, carriers: &[Carrier]) -> Vec<TrackCodec> {
    let mut codecs = track.codecs.clone();
    for carrier in carriers {
        while codecs.len() <= carrier.codec {
            codecs.push(TrackCodec {
                mime: String::new(),
                fmtp: String::new(),
                cid: carrier.cid.clone(),
                mid: String::new(),
                layers: Vec::new(),
            });
        }
        let codec = &mut codecs[carrier.codec];
        codec.mime.clone_from(&carrier.mime);
        codec.fmtp.clone_from(&carrier.fmtp);
        codec.mid.clone_from(&carrier.mid);
        codec.layers = match track.kind {
            Kind::Audio => layers(&carrier.sources, std::iter::once((Quality::High, ""))),
            Kind::Video if carrier.rids.is_empty() => {
                let announced = codec.layers.iter().map(|layer| layer.quality);
                let quality = announced.max().unwrap_or(Quality::High);
                let found = layers(&carrier.sources, std::iter::once((quality, "")));
                sized(found, track, &codec.layers)
            }
            Kind::Video => {
                let rids = qualities(&carrier.rids, &codec.layers);
                let found = layers(&carrier.sources, rids.into_iter());
                sized(found, track, &codec.layers)
            }
        };
    }
    codecs
}

fn layers<'a>(
    sources: &[(String, u32, u32)],
    rids: impl Iterator<Item = (Quality, &'a str)>,
) -> Vec<Layer> {
    rids.map(|(quality, rid)| {
        let source = sources.iter().find(|(name, ..)| name == rid);
        Layer {
            quality,
            size: Size::default(),
            bitrate_bps: 0,
            rid: rid.to_owned(),
            ssrc: source.map_or(0, |(_, ssrc, _)| *ssrc),
            repair_ssrc: source.map_or(0, |(_, _, repair)| *repair),
        }
    })
    .collect()
}

/// Which quality each rid serves, lowest first: as the publisher announced it, else by LiveKit's
/// names, else by the order of the section, in which unnamed layers rise.
fn qualities<'a>(rids: &'a [String], announced: &[Layer]) -> Vec<(Quality, &'a str)> {
    const RISING: [Quality; 3] = [Quality::Low, Quality::Medium, Quality::High];
    let by_name = |rid: &str| match rid {
        "q" => Some(Quality::Low),
        "h" => Some(Quality::Medium),
        "f" => Some(Quality::High),
        _ => None,
    };
    let by_announcement = |rid: &str| {
        announced
            .iter()
            .find(|layer| layer.rid == rid)
            .map(|layer| layer.quality)
    };
    let known = |rid: &String| by_announcement(rid).or_else(|| by_name(rid));
    let mut found: Vec<(Quality, &str)> = if rids.iter().all(|rid| known(rid).is_some()) {
        rids.iter()
            .filter_map(|rid| Some((known(rid)?, rid.as_str())))
            .collect()
    } else {
        // With fewer than three layers the top one is high.
        let skip = RISING.len().saturating_sub(rids.len());
        let rising = RISING
            .into_iter()
            .skip(if rids.len() == 1 { skip } else { 0 });
        rids.iter()
            .zip(rising)
            .map(|(rid, quality)| (quality, rid.as_str()))
            .collect()
    };
    found.sort();
    found
}

/// Fills in sizes and rates: as announced for the quality, else halved per step from the track's.
fn sized(mut layers: Vec<Layer>, track: &Track, announced: &[Layer]) -> Vec<Layer> {
    let count = layers.len();
    for (index, layer) in layers.iter_mut().enumerate() {
        if let Some(known) = announced
            .iter()
            .find(|known| known.quality == layer.quality)
        {
            layer.size = known.size;
            layer.bitrate_bps = known.bitrate_bps;
        }
        if layer.size == Size::default() {
            let steps = count - 1 - index;
            layer.size = Size {
                width: track.size.width >> steps,
                height: track.size.height >> steps,
            };
        }
    }
    layers
}

/// A section as the router receives it; `None` if no published track is on it.
pub(super) fn receive_section(section: &Section) -> Option<ReceiveSection> {
    let receive = section.receive.as_ref().filter(|_| !section.rejected)?;
    let binding = receive.binding.as_ref()?;
    let kind = section.media.kind()?;
    let feedback = section
        .codecs
        .iter()
        .fold(Feedback::default(), |sum, codec| Feedback {
            nack: sum.nack || codec.feedback.nack,
            pli: sum.pli || codec.feedback.pli || codec.feedback.fir,
            twcc: sum.twcc || codec.feedback.transport_cc,
            remb: sum.remb || codec.feedback.remb,
        });
    let codecs = section.codecs.iter().map(|codec| ReceiveCodec {
        pt: codec.pt,
        rtx_pt: codec.rtx_pt,
        mime: codec.format.mime().to_owned(),
        clock_rate: codec.clock_rate,
        channels: if kind == Kind::Audio {
            codec.channels
        } else {
            0
        },
        fmtp: codec.plain_fmtp(),
    });
    Some(ReceiveSection {
        mid: section.mid.clone(),
        track: binding.track.clone(),
        kind,
        codecs: codecs.collect(),
        extensions: extension_ids(&section.extensions),
        rids: receive.rids.clone(),
        ssrcs: if receive.rids.is_empty() {
            receive
                .ssrcs
                .iter()
                .map(|pair| (pair.ssrc, pair.repair))
                .collect()
        } else {
            Vec::new()
        },
        learned: receive
            .learned
            .iter()
            .map(|(rid, ssrc, repair)| (rid.clone(), *ssrc, (*repair != 0).then_some(*repair)))
            .collect(),
        feedback,
    })
}

/// Agreed extensions in the router's terms.
pub(super) fn extension_ids(extensions: &[(Extension, u8)]) -> ExtensionIds {
    let mut ids = ExtensionIds::default();
    for (extension, id) in extensions {
        let field = match extension {
            Extension::Mid => &mut ids.mid,
            Extension::Rid => &mut ids.rid,
            Extension::RepairedRid => &mut ids.repaired_rid,
            Extension::AudioLevel => &mut ids.audio_level,
            Extension::AbsSendTime => &mut ids.abs_send_time,
            Extension::TransportCc => &mut ids.twcc,
            Extension::PlayoutDelay => &mut ids.playout_delay,
            Extension::VideoOrientation => &mut ids.video_orientation,
        };
        *field = Some(*id);
    }
    ids
}
