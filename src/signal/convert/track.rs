//! Tracks: `AddTrackRequest` into the model's record, that into `TrackInfo`.

use super::{
    EnabledCodec, Encryption, Kind, Layer, Quality, Size, Source, Track, TrackCodec, TrackSid,
    proto, quality, source,
};

/// Encodings kept of one request.
const CODECS_MAX: usize = 4;
/// Layers kept of one encoding.
const LAYERS_MAX: usize = 4;

/// A track as messages carry it.
#[must_use]
#[expect(deprecated, reason = "older clients read the deprecated fields")]
pub fn track_info(track: &Track) -> proto::TrackInfo {
    let primary = track.codecs.first();
    proto::TrackInfo {
        sid: track.sid.to_string(),
        r#type: match track.kind {
            Kind::Audio => proto::TrackType::Audio as i32,
            Kind::Video => proto::TrackType::Video as i32,
        },
        name: track.name.clone(),
        muted: track.muted,
        width: track.size.width,
        height: track.size.height,
        simulcast: track.simulcast,
        disable_dtx: track.disable_dtx,
        source: track.source as i32,
        layers: primary
            .map(|codec| layers(track, codec))
            .unwrap_or_default(),
        mime_type: primary.map(|codec| codec.mime.clone()).unwrap_or_default(),
        mid: primary.map(|codec| codec.mid.clone()).unwrap_or_default(),
        codecs: track
            .codecs
            .iter()
            .map(|codec| codec_info(track, codec))
            .collect(),
        stereo: track.stereo,
        disable_red: track.disable_red,
        encryption: track.encryption as i32,
        stream: track.stream.clone(),
        version: None,
        audio_features: track.audio_features.clone(),
        backup_codec_policy: track.backup_codec_policy,
        packet_trailer_features: Vec::new(),
    }
}

fn codec_info(track: &Track, codec: &TrackCodec) -> proto::SimulcastCodecInfo {
    use proto::video_layer::Mode;
    let mode = match track.kind {
        Kind::Audio => Mode::Unused,
        Kind::Video if codec.layers.iter().any(|layer| !layer.rid.is_empty()) => {
            Mode::OneSpatialLayerPerStream
        }
        Kind::Video if codec.layers.len() > 1 => Mode::MultipleSpatialLayersPerStream,
        Kind::Video => Mode::OneSpatialLayerPerStream,
    };
    proto::SimulcastCodecInfo {
        mime_type: codec.mime.clone(),
        mid: codec.mid.clone(),
        cid: codec.cid.clone(),
        layers: layers(track, codec),
        video_layer_mode: mode as i32,
        sdp_cid: String::new(),
    }
}

/// Audio has one layer in the model, for its SSRC, and none in messages.
fn layers(track: &Track, codec: &TrackCodec) -> Vec<proto::VideoLayer> {
    if track.kind == Kind::Audio {
        return Vec::new();
    }
    let layer = |(index, layer): (usize, &Layer)| proto::VideoLayer {
        quality: layer.quality as i32,
        width: layer.size.width,
        height: layer.size.height,
        bitrate: layer.bitrate_bps,
        ssrc: layer.ssrc,
        spatial_layer: index as i32,
        rid: layer.rid.clone(),
        repair_ssrc: layer.repair_ssrc,
    };
    codec.layers.iter().enumerate().map(layer).collect()
}

/// The record of a track that a client is about to publish.
#[must_use]
#[expect(deprecated, reason = "older clients set the deprecated fields")]
pub fn track_of(
    request: &proto::AddTrackRequest,
    sid: TrackSid,
    enabled: &[EnabledCodec],
) -> Track {
    let kind = kind(request);
    let source = source(request.source);
    let features = &request.audio_features;
    let has = |feature: proto::AudioTrackFeature| features.contains(&(feature as i32));
    let codecs = codecs(request, enabled);
    let stream = if request.stream.is_empty() {
        default_stream(source, &sid)
    } else {
        request.stream.clone()
    };
    Track {
        kind,
        name: request.name.clone(),
        source,
        muted: request.muted,
        size: Size {
            width: request.width,
            height: request.height,
        },
        simulcast: kind == Kind::Video && codecs.first().is_some_and(|c| c.layers.len() > 1),
        disable_dtx: request.disable_dtx || has(proto::AudioTrackFeature::TfNoDtx),
        stereo: request.stereo || has(proto::AudioTrackFeature::TfStereo),
        disable_red: request.disable_red,
        encryption: match request.encryption {
            1 => Encryption::Gcm,
            2 => Encryption::Custom,
            _ => Encryption::None,
        },
        stream,
        audio_features: features.iter().copied().take(16).collect(),
        backup_codec_policy: request.backup_codec_policy,
        codecs,
        announced: false,
        sid,
    }
}

fn kind(request: &proto::AddTrackRequest) -> Kind {
    if request.r#type == proto::TrackType::Video as i32 {
        Kind::Video
    } else {
        Kind::Audio
    }
}

/// Camera and microphone play in step, and so do a screen and its sound.
fn default_stream(source: Source, sid: &TrackSid) -> String {
    match source {
        Source::Camera | Source::Microphone => "camera".to_owned(),
        Source::ScreenShare | Source::ScreenShareAudio => "screen_share".to_owned(),
        Source::Unknown => sid.to_string(),
    }
}

/// The encodings a request names; at least one. A codec that is not enabled gives way to the first
/// one of its kind that is: the client reads from the reply what to send.
#[must_use]
pub fn codecs(request: &proto::AddTrackRequest, enabled: &[EnabledCodec]) -> Vec<TrackCodec> {
    let kind = kind(request);
    let mut codecs: Vec<TrackCodec> = Vec::new();
    // A backup codec stands in the first request without a cid; it is published by another request.
    let named = request
        .simulcast_codecs
        .iter()
        .filter(|c| !c.cid.is_empty());
    for named in named.take(CODECS_MAX) {
        let wanted = mime(kind, &named.codec);
        let mime = enabled_mime(kind, &wanted, enabled);
        if codecs.iter().any(|codec| codec.mime == mime) {
            continue;
        }
        let layers = if named.layers.is_empty() {
            &request.layers
        } else {
            &named.layers
        };
        let svc = named.video_layer_mode
            == proto::video_layer::Mode::MultipleSpatialLayersPerStream as i32
            && mime == wanted;
        codecs.push(TrackCodec {
            mime,
            fmtp: String::new(),
            cid: named.cid.clone(),
            mid: String::new(),
            layers: layers_of(request, kind, layers, svc),
        });
    }
    if codecs.is_empty() {
        codecs.push(TrackCodec {
            mime: String::new(),
            fmtp: String::new(),
            cid: request.cid.clone(),
            mid: String::new(),
            layers: layers_of(request, kind, &request.layers, false),
        });
    }
    codecs
}

/// `vp8` and `video/VP8` both mean `video/vp8`; nothing said means nothing known.
fn mime(kind: Kind, codec: &str) -> String {
    let codec = codec.to_ascii_lowercase();
    if codec.is_empty() || codec.contains('/') {
        return codec;
    }
    match kind {
        Kind::Audio => format!("audio/{codec}"),
        Kind::Video => format!("video/{codec}"),
    }
}

fn enabled_mime(kind: Kind, mime: &str, enabled: &[EnabledCodec]) -> String {
    if mime.is_empty()
        || enabled
            .iter()
            .any(|codec| codec.mime.eq_ignore_ascii_case(mime))
    {
        return mime.to_owned();
    }
    let prefix = match kind {
        Kind::Audio => "audio/",
        Kind::Video => "video/",
    };
    enabled
        .iter()
        .map(|codec| codec.mime.to_ascii_lowercase())
        .find(|mime| mime.starts_with(prefix))
        .unwrap_or_default()
}

fn layers_of(
    request: &proto::AddTrackRequest,
    kind: Kind,
    announced: &[proto::VideoLayer],
    svc: bool,
) -> Vec<Layer> {
    let whole = Layer {
        quality: Quality::High,
        size: Size {
            width: request.width,
            height: request.height,
        },
        bitrate_bps: 0,
        rid: String::new(),
        ssrc: 0,
        repair_ssrc: 0,
    };
    if kind == Kind::Audio || announced.is_empty() {
        return vec![whole];
    }
    let simulcast = announced.len() > 1 && !svc;
    let mut layers: Vec<Layer> = announced
        .iter()
        .take(LAYERS_MAX)
        .map(|layer| Layer {
            quality: quality(layer.quality),
            size: Size {
                width: layer.width,
                height: layer.height,
            },
            bitrate_bps: layer.bitrate,
            rid: if !layer.rid.is_empty() || !simulcast {
                layer.rid.clone()
            } else {
                default_rid(quality(layer.quality)).to_owned()
            },
            ssrc: layer.ssrc,
            repair_ssrc: layer.repair_ssrc,
        })
        .filter(|layer| layer.quality != Quality::Off)
        .collect();
    layers.sort_by_key(|layer| layer.quality);
    layers.dedup_by_key(|layer| layer.quality);
    if layers.is_empty() {
        vec![whole]
    } else {
        layers
    }
}

/// LiveKit's SDKs name their simulcast streams so.
fn default_rid(quality: Quality) -> &'static str {
    match quality {
        Quality::Low => "q",
        Quality::Medium => "h",
        Quality::High | Quality::Off => "f",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Vec<EnabledCodec> {
        ["video/VP8", "video/H264", "audio/opus"]
            .map(|mime| EnabledCodec {
                mime: mime.into(),
                fmtp: String::new(),
            })
            .to_vec()
    }

    fn layer(quality: i32, width: u32, height: u32) -> proto::VideoLayer {
        proto::VideoLayer {
            quality,
            width,
            height,
            ..proto::VideoLayer::default()
        }
    }

    fn camera(codec: &str) -> proto::AddTrackRequest {
        proto::AddTrackRequest {
            cid: "cid-1".into(),
            r#type: proto::TrackType::Video as i32,
            source: proto::TrackSource::Camera as i32,
            width: 1280,
            height: 720,
            layers: vec![layer(2, 1280, 720), layer(0, 320, 180), layer(1, 640, 360)],
            simulcast_codecs: vec![
                proto::SimulcastCodec {
                    codec: codec.into(),
                    cid: "cid-1".into(),
                    ..proto::SimulcastCodec::default()
                },
                proto::SimulcastCodec {
                    codec: "h264".into(),
                    ..proto::SimulcastCodec::default()
                },
            ],
            ..proto::AddTrackRequest::default()
        }
    }

    #[test]
    fn simulcast_layers_are_ordered_and_named() {
        let track = track_of(&camera("vp8"), "TR_1".into(), &enabled());
        assert!(track.simulcast);
        assert_eq!(track.stream, "camera");
        assert_eq!(track.codecs.len(), 1, "a backup codec comes later");
        assert_eq!(track.codecs[0].mime, "video/vp8");
        let rids: Vec<_> = track.codecs[0]
            .layers
            .iter()
            .map(|l| l.rid.as_str())
            .collect();
        assert_eq!(rids, ["q", "h", "f"]);
    }

    #[test]
    fn a_codec_that_is_not_enabled_gives_way() {
        let mut request = camera("av1");
        request.simulcast_codecs[0].video_layer_mode = 2;
        let track = track_of(&request, "TR_1".into(), &enabled());
        assert_eq!(track.codecs[0].mime, "video/vp8");
        assert_eq!(track.codecs[0].layers[0].rid, "q");
    }

    #[test]
    fn track_info_carries_what_takeover_needs() {
        let mut track = track_of(&camera("vp8"), "TR_1".into(), &enabled());
        track.codecs[0].mid = "7".into();
        track.codecs[0].layers[1].ssrc = 99;
        let info = track_info(&track);
        assert_eq!(
            (info.mid.as_str(), info.mime_type.as_str()),
            ("7", "video/vp8")
        );
        assert_eq!(info.codecs[0].layers[1].ssrc, 99);
        assert_eq!(info.codecs[0].video_layer_mode, 1);
        assert_eq!((info.width, info.height), (1280, 720));
    }

    #[test]
    fn audio_without_codec_is_one_encoding_without_layers() {
        let request = proto::AddTrackRequest {
            cid: "mic".into(),
            source: proto::TrackSource::Microphone as i32,
            audio_features: vec![proto::AudioTrackFeature::TfNoDtx as i32],
            ..proto::AddTrackRequest::default()
        };
        let track = track_of(&request, "TR_2".into(), &enabled());
        assert_eq!((track.kind, track.simulcast), (Kind::Audio, false));
        assert!(track.disable_dtx && !track.stereo);
        assert_eq!(track.codecs[0].cid, "mic");
        let info = track_info(&track);
        assert!(info.codecs[0].layers.is_empty());
    }
}
