//! Writes the engine's own descriptions: answers to clients' offers and offers to v0 subscribers.
//!
//! The engine is ICE-lite with all its candidates known from the start, so they stand in the
//! section whose transport serves the bundle, followed by `a=end-of-candidates`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::codec::Accepted;
use super::extension::Extension;
use super::{Direction, Media, Msid, Setup};
use crate::peer::dtls::Fingerprint;
use crate::peer::ice::candidate;

/// A description to be written.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Origin's session id, one per peer connection.
    pub session: u64,
    /// Origin's version, rising by one with each description.
    pub version: u64,
    /// The engine's ICE user name fragment.
    pub ufrag: &'a str,
    /// The engine's ICE password.
    pub pwd: &'a str,
    /// SHA-256 of the cluster's certificate.
    pub fingerprint: Fingerprint,
    /// DTLS role: passive in answers, actpass in offers.
    pub setup: Setup,
    /// Where the engine can be reached, best first.
    pub candidates: &'a [SocketAddr],
    /// Media sections, in order.
    pub sections: Vec<OutgoingSection>,
}

/// A media section to be written.
#[derive(Debug)]
pub struct OutgoingSection {
    /// Its mid.
    pub mid: String,
    /// What it is.
    pub body: Body,
}

/// What a section says.
#[derive(Debug)]
pub enum Body {
    /// Refused: port 0, the rest as offered.
    Rejected {
        /// What it would carry.
        media: Media,
        /// The offer's protocol.
        protocol: String,
        /// The offer's first format.
        format: String,
    },
    /// Data channels.
    Data {
        /// SCTP port.
        port: u16,
        /// Largest message the engine takes, bytes.
        message_bytes_max: u64,
    },
    /// Audio or video.
    Media(Box<MediaBody>),
}

/// Audio or video.
#[derive(Debug)]
pub struct MediaBody {
    /// Audio or video.
    pub media: Media,
    /// The offer's protocol.
    pub protocol: String,
    /// Seen from the engine.
    pub direction: Direction,
    /// Payload types, best first.
    pub codecs: Vec<Accepted>,
    /// Header extensions.
    pub extensions: Vec<(Extension, u8)>,
    /// Simulcast layers that the engine takes, in the offer's order.
    pub rids: Vec<String>,
    /// What the engine sends here.
    pub source: Option<Source>,
}

/// A track sent by the engine.
#[derive(Debug)]
pub struct Source {
    /// Its names.
    pub msid: Msid,
    /// Media source.
    pub ssrc: u32,
    /// Retransmission source.
    pub repair: Option<u32>,
    /// Canonical name; equal for all tracks that play in sync.
    pub cname: String,
}

/// Writes the text, lines ended by CR LF.
#[must_use]
pub fn write(outgoing: &Outgoing<'_>) -> String {
    let mut text = String::with_capacity(512 + outgoing.sections.len() * 1536);
    write_session(&mut text, outgoing);
    let mut candidates = Some(outgoing.candidates);
    for section in &outgoing.sections {
        match &section.body {
            Body::Rejected {
                media,
                protocol,
                format,
            } => {
                line(
                    &mut text,
                    format_args!("m={} 0 {protocol} {format}", media.as_str()),
                );
                line(&mut text, format_args!("c=IN IP4 0.0.0.0"));
                line(&mut text, format_args!("a=mid:{}", section.mid));
                line(&mut text, format_args!("a=inactive"));
            }
            Body::Data {
                port,
                message_bytes_max,
            } => {
                line(
                    &mut text,
                    format_args!("m=application 9 UDP/DTLS/SCTP webrtc-datachannel"),
                );
                write_transport(&mut text, outgoing, &section.mid, candidates.take());
                line(&mut text, format_args!("a=sctp-port:{port}"));
                line(
                    &mut text,
                    format_args!("a=max-message-size:{message_bytes_max}"),
                );
            }
            Body::Media(body) => {
                write_media(&mut text, body);
                write_transport(&mut text, outgoing, &section.mid, candidates.take());
                write_media_attributes(&mut text, body);
            }
        }
    }
    text
}

fn write_session(text: &mut String, outgoing: &Outgoing<'_>) {
    line(text, format_args!("v=0"));
    let (session, version) = (outgoing.session, outgoing.version);
    line(
        text,
        format_args!("o=- {session} {version} IN IP4 127.0.0.1"),
    );
    line(text, format_args!("s=-"));
    line(text, format_args!("t=0 0"));
    line(text, format_args!("a=ice-lite"));
    text.push_str("a=group:BUNDLE");
    for section in &outgoing.sections {
        if !matches!(section.body, Body::Rejected { .. }) {
            text.push(' ');
            text.push_str(&section.mid);
        }
    }
    text.push_str("\r\n");
    line(text, format_args!("a=msid-semantic: WMS *"));
}

fn write_transport(
    text: &mut String,
    outgoing: &Outgoing<'_>,
    mid: &str,
    candidates: Option<&[SocketAddr]>,
) {
    line(text, format_args!("c=IN IP4 0.0.0.0"));
    line(text, format_args!("a=mid:{mid}"));
    line(text, format_args!("a=ice-ufrag:{}", outgoing.ufrag));
    line(text, format_args!("a=ice-pwd:{}", outgoing.pwd));
    line(
        text,
        format_args!("a=fingerprint:sha-256 {}", outgoing.fingerprint),
    );
    line(text, format_args!("a=setup:{}", outgoing.setup.as_str()));
    if let Some(candidates) = candidates {
        for (index, address) in candidates.iter().enumerate() {
            line(text, format_args!("a={}", candidate(index, *address)));
        }
        line(text, format_args!("a=end-of-candidates"));
    }
}

fn write_media(text: &mut String, body: &MediaBody) {
    append(
        text,
        format_args!("m={} 9 {}", body.media.as_str(), body.protocol),
    );
    for codec in &body.codecs {
        append(text, format_args!(" {}", codec.pt));
        if let Some(rtx) = codec.rtx_pt {
            append(text, format_args!(" {rtx}"));
        }
    }
    text.push_str("\r\n");
}

fn write_media_attributes(text: &mut String, body: &MediaBody) {
    for (extension, id) in &body.extensions {
        line(text, format_args!("a=extmap:{id} {}", extension.uri()));
    }
    line(text, format_args!("a={}", body.direction.as_str()));
    if let Some(source) = &body.source {
        let Msid { stream, track } = &source.msid;
        line(text, format_args!("a=msid:{stream} {track}"));
    }
    line(text, format_args!("a=rtcp-mux"));
    line(text, format_args!("a=rtcp-rsize"));
    for codec in &body.codecs {
        write_codec(text, codec);
    }
    if !body.rids.is_empty() {
        for rid in &body.rids {
            line(text, format_args!("a=rid:{rid} recv"));
        }
        line(
            text,
            format_args!("a=simulcast:recv {}", body.rids.join(";")),
        );
    }
    if let Some(source) = &body.source {
        write_source(text, source);
    }
}

fn write_codec(text: &mut String, codec: &Accepted) {
    let Accepted {
        pt,
        name,
        clock_rate,
        ..
    } = codec;
    if codec.channels > 1 {
        line(
            text,
            format_args!("a=rtpmap:{pt} {name}/{clock_rate}/{}", codec.channels),
        );
    } else {
        line(text, format_args!("a=rtpmap:{pt} {name}/{clock_rate}"));
    }
    let feedback = codec.feedback;
    for (agreed, name) in [
        (feedback.remb, "goog-remb"),
        (feedback.transport_cc, "transport-cc"),
        (feedback.fir, "ccm fir"),
        (feedback.nack, "nack"),
        (feedback.pli, "nack pli"),
    ] {
        if agreed {
            line(text, format_args!("a=rtcp-fb:{pt} {name}"));
        }
    }
    if !codec.fmtp.is_empty() {
        line(text, format_args!("a=fmtp:{pt} {}", codec.fmtp));
    }
    if let Some(rtx) = codec.rtx_pt {
        line(text, format_args!("a=rtpmap:{rtx} rtx/{clock_rate}"));
        line(text, format_args!("a=fmtp:{rtx} apt={pt}"));
    }
}

fn write_source(text: &mut String, source: &Source) {
    let Source { ssrc, cname, .. } = source;
    if let Some(repair) = source.repair {
        line(text, format_args!("a=ssrc-group:FID {ssrc} {repair}"));
    }
    for ssrc in [Some(*ssrc), source.repair].into_iter().flatten() {
        let Msid { stream, track } = &source.msid;
        line(text, format_args!("a=ssrc:{ssrc} cname:{cname}"));
        line(text, format_args!("a=ssrc:{ssrc} msid:{stream} {track}"));
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    append(text, arguments);
    text.push_str("\r\n");
}

fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing to a String does not fail");
}
