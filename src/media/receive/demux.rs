//! Which layer of which section a peer's RTP stream is.
//!
//! One table per publishing peer, asked by the router for every packet. Streams are known by
//! declared SSRC (`a=ssrc`) or learned from the mid and rid extensions (RFC 8843 §9.2, RFC 8852).
//! Clients stop sending those extensions after the first RTCP feedback, so what was learned stays
//! through every renegotiation that keeps the section's track.

use flotilla_model::id::TrackSid;

use crate::codec::Codec;
use crate::discard::Discard;
use crate::forward::parameters::{ExtensionIds, ReceiveSection};
use crate::index::IdMap;
use crate::rtp::extension::Identity;

/// Most streams of one peer: far above what a client publishes, a bound for one that lies.
pub const STREAMS_MAX: usize = 256;

/// What a stream carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Index into [`Demux::sections`].
    pub section: usize,
    /// The router's index of the layer.
    pub layer: usize,
    /// Carries retransmissions of that layer.
    pub is_repair: bool,
}

/// One section with what the router knows of its track.
#[derive(Clone, Debug)]
pub struct Section {
    /// As negotiated.
    pub negotiated: ReceiveSection,
    /// The router's key of the track.
    pub track: usize,
    /// The track's layers, lowest first: rid (empty without simulcast) and index.
    pub layers: Vec<(String, usize)>,
    /// What the negotiated codecs are, in the same order.
    pub codecs: Vec<Codec>,
}

impl Section {
    /// A section of a track.
    #[must_use]
    pub fn new(negotiated: ReceiveSection, track: usize, layers: Vec<(String, usize)>) -> Self {
        let codecs = negotiated
            .codecs
            .iter()
            .map(|codec| Codec::from_mime(&codec.mime))
            .collect();
        Self {
            negotiated,
            track,
            layers,
            codecs,
        }
    }

    /// The codec with this payload type, or whose retransmissions have it; its clock rate, and
    /// whether its retransmissions are told apart.
    #[must_use]
    pub fn codec(&self, payload_type: u8, is_repair: bool) -> Option<(Codec, u32, bool)> {
        let index = self.negotiated.codecs.iter().position(|codec| {
            if is_repair {
                codec.rtx_pt == Some(payload_type)
            } else {
                codec.pt == payload_type
            }
        })?;
        let negotiated = &self.negotiated.codecs[index];
        let has_repair = negotiated.rtx_pt.is_some();
        Some((self.codecs[index], negotiated.clock_rate, has_repair))
    }

    fn layer_of_rid(&self, rid: &[u8]) -> Option<usize> {
        self.layers
            .iter()
            .find(|(known, _)| known.as_bytes() == rid)
            .map(|(_, layer)| *layer)
    }

    fn has_layer(&self, layer: usize) -> bool {
        self.layers.iter().any(|(_, known)| *known == layer)
    }

    fn has_media(&self, pt: u8) -> bool {
        self.negotiated.codecs.iter().any(|codec| codec.pt == pt)
    }

    fn has_repair(&self, pt: u8) -> bool {
        self.negotiated
            .codecs
            .iter()
            .any(|codec| codec.rtx_pt == Some(pt))
    }
}

/// What a packet of a stream not yet known says about itself.
#[derive(Clone, Copy, Debug)]
pub struct Unknown<'a> {
    /// Its SSRC.
    pub ssrc: u32,
    /// Its payload type.
    pub payload_type: u8,
    /// Its extensions.
    pub identity: &'a Identity<'a>,
    /// First two bytes of the payload: the original sequence number if it is a retransmission.
    pub original_sequence: Option<u16>,
}

/// A peer's streams.
#[derive(Default)]
pub struct Demux {
    sections: Vec<Section>,
    streams: IdMap<u32, Binding>,
    extensions: ExtensionIds,
}

impl Demux {
    /// Replaces the sections. Learned streams of sections that still carry the same track in the
    /// same place are kept.
    pub fn set_sections(&mut self, sections: Vec<Section>) {
        let before = std::mem::replace(&mut self.sections, sections);
        let place = |old: usize| {
            let old = &before.get(old)?.negotiated;
            self.sections.iter().position(|section| {
                section.negotiated.mid == old.mid && section.negotiated.track == old.track
            })
        };
        let mut streams: IdMap<u32, Binding> = IdMap::default();
        for (ssrc, binding) in &self.streams {
            if let Some(section) = place(binding.section)
                && self.sections[section].has_layer(binding.layer)
            {
                streams.insert(
                    *ssrc,
                    Binding {
                        section,
                        ..*binding
                    },
                );
            }
        }
        for (index, section) in self.sections.iter().enumerate() {
            for ((_, layer), (ssrc, repair)) in section.layers.iter().zip(&section.negotiated.ssrcs)
            {
                for (ssrc, is_repair) in [(Some(*ssrc), false), (*repair, true)] {
                    let binding = Binding {
                        section: index,
                        layer: *layer,
                        is_repair,
                    };
                    if let Some(ssrc) = ssrc
                        && streams.len() < STREAMS_MAX
                    {
                        streams.insert(ssrc, binding);
                    }
                }
            }
        }
        self.streams = streams;
        self.assume_learned();
        self.extensions = self
            .sections
            .iter()
            .fold(ExtensionIds::default(), |ids, section| {
                ids.or(section.negotiated.extensions)
            });
    }

    /// Takes streams that another node identified. What packets have shown here counts more.
    fn assume_learned(&mut self) {
        for (index, section) in self.sections.iter().enumerate() {
            for (rid, ssrc, repair) in &section.negotiated.learned {
                let Some(layer) = section.layer_of_rid(rid.as_bytes()) else {
                    continue;
                };
                for (ssrc, is_repair) in [(Some(*ssrc), false), (*repair, true)] {
                    let binding = Binding {
                        section: index,
                        layer,
                        is_repair,
                    };
                    if let Some(ssrc) = ssrc
                        && self.streams.len() < STREAMS_MAX
                        && self.streams.values().all(|known| *known != binding)
                    {
                        self.streams.entry(ssrc).or_insert(binding);
                    }
                }
            }
        }
    }

    /// Media streams that are known: SSRC and place.
    pub fn media_streams(&self) -> impl Iterator<Item = (u32, Binding)> + '_ {
        self.streams
            .iter()
            .filter(|(_, binding)| !binding.is_repair)
            .map(|(ssrc, binding)| (*ssrc, *binding))
    }

    /// The track was made anew or is known better: its sections follow.
    pub fn rebind(
        &mut self,
        sid: &TrackSid,
        track: usize,
        layers: impl Fn(&ReceiveSection) -> Vec<(String, usize)>,
    ) {
        for section in &mut self.sections {
            if section.negotiated.track == *sid {
                section.track = track;
                section.layers = layers(&section.negotiated);
            }
        }
    }

    /// The sections.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Ids of header extensions; with BUNDLE they are the same in all sections.
    #[must_use]
    pub fn extensions(&self) -> &ExtensionIds {
        &self.extensions
    }

    /// A known stream.
    #[must_use]
    pub fn get(&self, ssrc: u32) -> Option<Binding> {
        self.streams.get(&ssrc).copied()
    }

    /// Finds the place of a stream not yet known and remembers it. `lacks` tells whether a layer of
    /// a section misses a sequence number: the last resort for retransmissions without a name.
    ///
    /// # Errors
    /// `UnknownStream`, `UnknownPayloadType` or `LimitReached`.
    pub fn learn(
        &mut self,
        packet: Unknown<'_>,
        lacks: impl Fn(&Section, usize, u16) -> bool,
    ) -> Result<Binding, Discard> {
        if self.streams.len() >= STREAMS_MAX {
            return Err(Discard::LimitReached);
        }
        let index = self.section_of(&packet)?;
        let section = &self.sections[index];
        let is_repair =
            packet.identity.repaired_rid.is_some() || !section.has_media(packet.payload_type);
        if is_repair && !section.has_repair(packet.payload_type) {
            return Err(Discard::UnknownPayloadType);
        }
        let named = packet.identity.repaired_rid.or(packet.identity.rid);
        let layer = match named {
            Some(rid) if section.layers.iter().any(|(rid, _)| !rid.is_empty()) => {
                section.layer_of_rid(rid).ok_or(Discard::UnknownStream)?
            }
            _ => match section.layers.as_slice() {
                [(_, layer)] => *layer,
                layers if is_repair => {
                    let original = packet.original_sequence.ok_or(Discard::Truncated)?;
                    layers
                        .iter()
                        .map(|(_, layer)| *layer)
                        .find(|layer| lacks(section, *layer, original))
                        .ok_or(Discard::UnknownStream)?
                }
                _ => return Err(Discard::UnknownStream),
            },
        };
        let binding = Binding {
            section: index,
            layer,
            is_repair,
        };
        // A layer that comes back under a new SSRC replaces the old one.
        self.streams.retain(|_, known| *known != binding);
        self.streams.insert(packet.ssrc, binding);
        Ok(binding)
    }

    fn section_of(&self, packet: &Unknown<'_>) -> Result<usize, Discard> {
        if let Some(mid) = packet.identity.mid {
            return self
                .sections
                .iter()
                .position(|section| section.negotiated.mid.as_bytes() == mid)
                .ok_or(Discard::UnknownStream);
        }
        // Without mid only the payload type is left; it must leave no choice.
        let mut fitting = self.sections.iter().enumerate().filter(|(_, section)| {
            section.has_media(packet.payload_type) || section.has_repair(packet.payload_type)
        });
        match (fitting.next(), fitting.next()) {
            (Some((index, _)), None) => Ok(index),
            (Some(_), Some(_)) => Err(Discard::UnknownStream),
            (None, _) => Err(Discard::UnknownPayloadType),
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_model::track::Kind;

    use super::*;
    use crate::forward::parameters::{Feedback, ReceiveCodec};

    fn section(mid: &str, track: &str, rids: &[&str], ssrcs: &[(u32, Option<u32>)]) -> Section {
        let layers = if rids.is_empty() {
            vec![(String::new(), 0)]
        } else {
            rids.iter()
                .enumerate()
                .map(|(layer, rid)| ((*rid).to_owned(), layer))
                .collect()
        };
        let negotiated = ReceiveSection {
            mid: mid.to_owned(),
            track: track.into(),
            kind: Kind::Video,
            codecs: vec![ReceiveCodec {
                pt: 96,
                rtx_pt: Some(97),
                mime: "video/vp8".to_owned(),
                clock_rate: 90_000,
                ..ReceiveCodec::default()
            }],
            extensions: ExtensionIds {
                mid: Some(4),
                ..ExtensionIds::default()
            },
            rids: rids.iter().map(|rid| (*rid).to_owned()).collect(),
            ssrcs: ssrcs.to_vec(),
            learned: vec![],
            feedback: Feedback::default(),
        };
        Section::new(negotiated, 0, layers)
    }

    fn named<'a>(mid: &'a [u8], rid: Option<&'a [u8]>, repaired: Option<&'a [u8]>) -> Identity<'a> {
        Identity {
            mid: Some(mid),
            rid,
            repaired_rid: repaired,
            twcc: None,
        }
    }

    fn learn(
        demux: &mut Demux,
        ssrc: u32,
        payload_type: u8,
        identity: &Identity<'_>,
    ) -> Result<(usize, usize, bool), Discard> {
        demux
            .learn(
                Unknown {
                    ssrc,
                    payload_type,
                    identity,
                    original_sequence: Some(7),
                },
                |_, layer, sequence| layer == 2 && sequence == 7,
            )
            .map(|binding| (binding.section, binding.layer, binding.is_repair))
    }

    #[test]
    fn simulcast_streams_are_learned_and_survive_a_new_offer() {
        let mut demux = Demux::default();
        let rids = ["q", "h", "f"];
        demux.set_sections(vec![section("1", "TR_a", &rids, &[])]);
        let one = b"1".as_slice();
        assert_eq!(
            learn(&mut demux, 10, 96, &named(one, Some(b"h"), None)),
            Ok((0, 1, false))
        );
        assert_eq!(
            learn(&mut demux, 11, 97, &named(one, None, Some(b"h"))),
            Ok((0, 1, true))
        );
        demux.set_sections(vec![
            section("0", "TR_b", &[], &[(99, None)]),
            section("1", "TR_a", &rids, &[]),
        ]);
        let kept = demux.get(10).expect("kept");
        assert_eq!((kept.section, kept.layer, kept.is_repair), (1, 1, false));
        assert!(demux.get(11).is_some_and(|binding| binding.is_repair));
        assert!(demux.get(99).is_some());
        demux.set_sections(vec![section("1", "TR_c", &rids, &[])]);
        assert_eq!(demux.get(10), None);
    }

    #[test]
    fn a_retransmission_without_rid_goes_to_the_layer_that_lacks_it() {
        let mut demux = Demux::default();
        demux.set_sections(vec![section("1", "TR_a", &["q", "h", "f"], &[])]);
        assert_eq!(
            learn(&mut demux, 20, 97, &named(b"1", None, None)),
            Ok((0, 2, true))
        );
        assert_eq!(
            learn(&mut demux, 21, 96, &named(b"1", None, None)),
            Err(Discard::UnknownStream)
        );
        assert_eq!(
            learn(&mut demux, 21, 96, &named(b"1", Some(b"x"), None)),
            Err(Discard::UnknownStream)
        );
        assert_eq!(
            learn(&mut demux, 21, 96, &named(b"2", Some(b"q"), None)),
            Err(Discard::UnknownStream)
        );
    }

    #[test]
    fn the_payload_type_decides_only_where_it_is_unambiguous() {
        let mut demux = Demux::default();
        let none = Identity::default();
        demux.set_sections(vec![section("1", "TR_a", &[], &[])]);
        assert_eq!(learn(&mut demux, 30, 96, &none), Ok((0, 0, false)));
        assert_eq!(learn(&mut demux, 31, 97, &none), Ok((0, 0, true)));
        assert_eq!(
            learn(&mut demux, 32, 50, &none),
            Err(Discard::UnknownPayloadType)
        );
        demux.set_sections(vec![
            section("1", "TR_a", &[], &[]),
            section("2", "TR_b", &[], &[]),
        ]);
        assert_eq!(
            learn(&mut demux, 33, 96, &none),
            Err(Discard::UnknownStream)
        );
    }

    #[test]
    fn declared_streams_and_replaced_ones() {
        let mut demux = Demux::default();
        demux.set_sections(vec![section("1", "TR_a", &[], &[(40, Some(41))])]);
        assert!(demux.get(40).is_some_and(|binding| !binding.is_repair));
        assert!(demux.get(41).is_some_and(|binding| binding.is_repair));
        assert_eq!(
            learn(&mut demux, 42, 96, &named(b"1", None, None)),
            Ok((0, 0, false))
        );
        assert_eq!(demux.get(40), None);
    }

    #[test]
    fn streams_that_another_node_learned_need_no_name() {
        let mut demux = Demux::default();
        let mut restored = section("1", "TR_a", &["q", "h", "f"], &[]);
        restored.negotiated.learned = vec![
            ("f".to_owned(), 50, Some(51)),
            ("q".to_owned(), 52, None),
            ("x".to_owned(), 53, None),
        ];
        demux.set_sections(vec![restored.clone()]);
        let of = |demux: &Demux, ssrc| demux.get(ssrc).map(|b| (b.layer, b.is_repair));
        assert_eq!(of(&demux, 50), Some((2, false)));
        assert_eq!(of(&demux, 51), Some((2, true)));
        assert_eq!(of(&demux, 52), Some((0, false)));
        assert_eq!(of(&demux, 53), None);
        assert_eq!(demux.media_streams().count(), 2);
        // What packets show replaces it, also when the sections are set again.
        let one = b"1".as_slice();
        let learned = learn(&mut demux, 60, 96, &named(one, Some(b"f"), None));
        assert_eq!(learned, Ok((0, 2, false)));
        demux.set_sections(vec![restored]);
        assert_eq!(of(&demux, 50), None);
        assert_eq!(of(&demux, 60), Some((2, false)));
    }

    #[test]
    fn the_number_of_streams_is_limited() {
        let mut demux = Demux::default();
        let ssrcs: Vec<(u32, Option<u32>)> = (0..300).map(|ssrc| (ssrc, None)).collect();
        let mut wide = section("1", "TR_a", &[], &ssrcs);
        wide.layers = vec![(String::new(), 0); 300];
        demux.set_sections(vec![wide]);
        assert_eq!(
            learn(&mut demux, 1_000, 96, &named(b"1", None, None)),
            Err(Discard::LimitReached)
        );
    }
}
