//! What is known of a track's encodings: from the publisher's announcement, from negotiation, and
//! from the packets themselves. Reported whenever it grows, so that other nodes can take over.

use std::collections::VecDeque;

use flotilla_model::track::{Kind, Layer as LayerInfo, Quality, TrackCodec};
use flotilla_model::unit::Size;

use crate::command::PeerId;
use crate::event::Event;
use crate::forward::parameters::ReceiveSection;
use crate::forward::select::LAYERS_MAX;
use crate::forward::track::{Track, quality_of};

/// Takes the announcement of a track, keeping what is already known better.
pub(super) fn merge(track: &mut Track, announced: &[TrackCodec]) {
    if announced.is_empty() {
        return;
    }
    let mut codecs = announced.to_vec();
    for (new, known) in codecs.iter_mut().zip(&track.codecs) {
        for (new, known) in [
            (&mut new.mime, &known.mime),
            (&mut new.fmtp, &known.fmtp),
            (&mut new.mid, &known.mid),
        ] {
            if new.is_empty() {
                new.clone_from(known);
            }
        }
        for layer in &known.layers {
            let same = new
                .layers
                .iter_mut()
                .find(|other| other.quality == layer.quality);
            match same {
                Some(other) => {
                    if other.rid.is_empty() {
                        other.rid.clone_from(&layer.rid);
                    }
                    if layer.ssrc != 0 {
                        other.ssrc = layer.ssrc;
                    }
                    if layer.repair_ssrc != 0 {
                        other.repair_ssrc = layer.repair_ssrc;
                    }
                }
                None => new.layers.push(layer.clone()),
            }
        }
    }
    track.codecs = codecs;
}

/// Takes what a section says into the description and reports it if that is new.
pub(super) fn note_section(
    track: &mut Track,
    peer: PeerId,
    section: &ReceiveSection,
    events: &mut VecDeque<Event>,
) {
    let layers = section_layers(track, section);
    let before = track.codecs.clone();
    if track.codecs.is_empty() {
        track.codecs.push(TrackCodec {
            mime: String::new(),
            fmtp: String::new(),
            cid: String::new(),
            mid: String::new(),
            layers: vec![],
        });
    }
    if let (Some(known), Some(negotiated)) = (track.codecs.first_mut(), section.codecs.first()) {
        // The announced codec, if it was negotiated; else the one the client prefers.
        let chosen = section
            .codecs
            .iter()
            .find(|codec| codec.mime.eq_ignore_ascii_case(&known.mime))
            .unwrap_or(negotiated);
        known.mime = chosen.mime.to_ascii_lowercase();
        known.fmtp.clone_from(&chosen.fmtp);
        known.mid.clone_from(&section.mid);
    }
    for ((rid, layer), declared) in layers.iter().zip(
        section
            .ssrcs
            .iter()
            .map(Some)
            .chain(std::iter::repeat(None)),
    ) {
        track.layers[*layer].is_declared = true;
        track.layers[*layer].rid.clone_from(rid);
        let info = layer_info(track, *layer);
        if let Some(info) = info {
            info.rid.clone_from(rid);
            if let Some((ssrc, repair)) = declared {
                info.ssrc = *ssrc;
                info.repair_ssrc = repair.unwrap_or(0);
            }
        }
    }
    if track.codecs != before {
        events.push_back(Event::TrackDescribed {
            peer,
            track: track.sid.clone(),
            codecs: track.codecs.clone(),
        });
    }
}

/// Takes the SSRC of a layer's stream, seen for the first time, and reports it.
pub(super) fn note_stream(
    track: &mut Track,
    peer: PeerId,
    layer: usize,
    ssrc: u32,
    is_repair: bool,
    events: &mut VecDeque<Event>,
) {
    let Some(info) = layer_info(track, layer) else {
        return;
    };
    let slot = if is_repair {
        &mut info.repair_ssrc
    } else {
        &mut info.ssrc
    };
    if std::mem::replace(slot, ssrc) != ssrc {
        events.push_back(Event::TrackDescribed {
            peer,
            track: track.sid.clone(),
            codecs: track.codecs.clone(),
        });
    }
}

/// The layer's entry in the description of the primary codec; made if it is missing. A track with
/// one entry of another quality is published without simulcast: that entry is meant.
fn layer_info(track: &mut Track, layer: usize) -> Option<&mut LayerInfo> {
    let rid = track.layers.get(layer)?.rid.clone();
    let kind = track.kind;
    let codec = track.codecs.first_mut()?;
    let quality = match kind {
        Kind::Audio => Quality::High,
        Kind::Video => quality_of(layer),
    };
    let same = codec.layers.iter().position(|info| {
        if rid.is_empty() {
            info.quality == quality
        } else {
            info.rid == rid || (info.rid.is_empty() && info.quality == quality)
        }
    });
    let index = match (same, codec.layers.len()) {
        (Some(index), _) => index,
        (None, 1) if rid.is_empty() => 0,
        _ => {
            codec.layers.push(LayerInfo {
                quality,
                size: Size::default(),
                bitrate_bps: 0,
                rid,
                ssrc: 0,
                repair_ssrc: 0,
            });
            codec.layers.sort_by_key(|info| info.quality);
            codec
                .layers
                .iter()
                .position(|info| info.quality == quality)?
        }
    };
    codec.layers.get_mut(index)
}

/// Layers that a section carries: rid and index, lowest first. Rids are placed by what was
/// announced, else by their usual names, else in the order of the section.
pub(super) fn section_layers(track: &Track, section: &ReceiveSection) -> Vec<(String, usize)> {
    if track.kind == Kind::Audio {
        return vec![(String::new(), 0)];
    }
    if section.rids.is_empty() {
        // Without simulcast the one layer is the best; several declared streams are layers too.
        let count = section.ssrcs.len().clamp(1, LAYERS_MAX);
        let first = if count == 1 { LAYERS_MAX - 1 } else { 0 };
        return (first..first + count)
            .map(|layer| (String::new(), layer))
            .collect();
    }
    let announced = track.codecs.first().map_or(&[][..], |codec| &codec.layers);
    let place = |index: usize, rid: &str| {
        let by_announcement = announced
            .iter()
            .find(|info| info.rid == rid)
            .map(|info| info.quality as usize);
        let by_name = match rid {
            "q" => Some(0),
            "h" => Some(1),
            "f" => Some(2),
            _ => None,
        };
        by_announcement
            .or(by_name)
            .filter(|layer| *layer < LAYERS_MAX)
            .unwrap_or(index)
    };
    let mut layers: Vec<(String, usize)> = vec![];
    for (index, rid) in section.rids.iter().take(LAYERS_MAX).enumerate() {
        let mut layer = place(index, rid);
        while layers.iter().any(|(_, taken)| *taken == layer) {
            layer = (layer + 1) % LAYERS_MAX;
        }
        layers.push((rid.clone(), layer));
    }
    layers.sort_by_key(|(_, layer)| *layer);
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::parameters::{ExtensionIds, Feedback, ReceiveCodec};

    fn section(rids: &[&str], ssrcs: &[(u32, Option<u32>)]) -> ReceiveSection {
        ReceiveSection {
            mid: "3".to_owned(),
            track: "TR_a".into(),
            kind: Kind::Video,
            codecs: ["video/vp8", "video/h264"]
                .iter()
                .enumerate()
                .map(|(index, mime)| ReceiveCodec {
                    pt: 96 + index as u8,
                    mime: (*mime).to_owned(),
                    clock_rate: 90_000,
                    ..ReceiveCodec::default()
                })
                .collect(),
            extensions: ExtensionIds::default(),
            rids: rids.iter().map(|rid| (*rid).to_owned()).collect(),
            ssrcs: ssrcs.to_vec(),
            learned: vec![],
            feedback: Feedback::default(),
        }
    }

    fn announced(mime: &str, layers: &[(Quality, &str)]) -> TrackCodec {
        TrackCodec {
            mime: mime.to_owned(),
            fmtp: String::new(),
            cid: "cid".to_owned(),
            mid: String::new(),
            layers: layers
                .iter()
                .map(|(quality, rid)| LayerInfo {
                    quality: *quality,
                    size: Size::default(),
                    bitrate_bps: 1,
                    rid: (*rid).to_owned(),
                    ssrc: 0,
                    repair_ssrc: 0,
                })
                .collect(),
        }
    }

    fn indices(track: &Track, section: &ReceiveSection) -> Vec<usize> {
        section_layers(track, section)
            .iter()
            .map(|(_, layer)| *layer)
            .collect()
    }

    #[test]
    fn rids_find_their_place() {
        let mut track = Track::new("TR_a".into(), Kind::Video);
        assert_eq!(indices(&track, &section(&[], &[])), [2]);
        assert_eq!(
            indices(&track, &section(&[], &[(1, None), (2, None)])),
            [0, 1]
        );
        assert_eq!(indices(&track, &section(&["q", "h", "f"], &[])), [0, 1, 2]);
        assert_eq!(
            section_layers(&track, &section(&["h", "q"], &[])),
            [("q".to_owned(), 0), ("h".to_owned(), 1)]
        );
        assert_eq!(indices(&track, &section(&["1", "2"], &[])), [0, 1]);
        track.codecs = vec![announced("", &[(Quality::Low, "2"), (Quality::High, "1")])];
        assert_eq!(
            section_layers(&track, &section(&["1", "2"], &[])),
            [("2".to_owned(), 0), ("1".to_owned(), 2)]
        );
    }

    #[test]
    fn the_description_grows_and_is_reported_once() {
        let mut track = Track::new("TR_a".into(), Kind::Video);
        let mut events = VecDeque::new();
        merge(
            &mut track,
            &[announced(
                "video/h264",
                &[(Quality::Low, ""), (Quality::High, "")],
            )],
        );
        let peer = PeerId(1);
        let negotiated = section(&["q", "f"], &[]);
        note_section(&mut track, peer, &negotiated, &mut events);
        note_section(&mut track, peer, &negotiated, &mut events);
        assert_eq!(events.len(), 1);
        note_stream(&mut track, peer, 2, 77, false, &mut events);
        note_stream(&mut track, peer, 2, 77, false, &mut events);
        note_stream(&mut track, peer, 2, 78, true, &mut events);
        assert_eq!(events.len(), 3);
        let codec = &track.codecs[0];
        assert_eq!(
            (codec.mime.as_str(), codec.mid.as_str()),
            ("video/h264", "3")
        );
        assert_eq!(codec.layers.len(), 2);
        assert_eq!(codec.layers[1].rid, "f");
        assert_eq!(
            (codec.layers[1].ssrc, codec.layers[1].repair_ssrc),
            (77, 78)
        );
        assert_eq!(codec.layers[1].bitrate_bps, 1);
        // A later announcement without SSRCs does not forget them.
        merge(
            &mut track,
            &[announced("", &[(Quality::Low, ""), (Quality::High, "")])],
        );
        assert_eq!(track.codecs[0].layers[1].ssrc, 77);
        assert_eq!(track.codecs[0].mime, "video/h264");
    }

    #[test]
    fn a_single_layer_keeps_its_announced_entry() {
        let mut track = Track::new("TR_a".into(), Kind::Audio);
        let mut events = VecDeque::new();
        merge(
            &mut track,
            &[announced("audio/opus", &[(Quality::Low, "")])],
        );
        let mut audio = section(&[], &[(5, None)]);
        audio.kind = Kind::Audio;
        note_section(&mut track, PeerId(1), &audio, &mut events);
        assert_eq!(track.codecs[0].layers.len(), 1);
        assert_eq!(track.codecs[0].layers[0].ssrc, 5);
    }
}
