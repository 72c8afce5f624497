//! Strict reader of session descriptions. Fed with clients' text by `peer/negotiation`.
//!
//! What the engine uses must be well formed, else the whole description is refused with the line's
//! number; what it does not know (`a=sctp-init`, `goog-sped-v1`, candidates, …) is passed over.
//! Every count and length is bounded, and nothing of a line that is echoed can hold a line break.

use super::{
    BYTES_MAX, Codec, Description, Direction, Extmap, Feedback, LINE_BYTES_MAX, Media, Msid,
    SECTION_LINES_MAX, SECTIONS_MAX, Section, Setup, SsrcPair, TransportAttributes,
};

/// Most formats of one section; payload types are 7 bits.
const FORMATS_MAX: usize = 128;
/// Most header extensions of one section.
const EXTENSIONS_MAX: usize = 64;
/// Most simulcast layers read of one section; the engine then takes three.
const RIDS_MAX: usize = 8;
/// Most synchronisation sources of one section.
const SSRCS_MAX: usize = 32;
/// Longest mid or rid: what fits into a one-byte header extension.
const NAME_BYTES_MAX: usize = 16;
/// Longest ICE user name fragment and password (RFC 8839 §5.4).
const CREDENTIAL_BYTES_MAX: usize = 256;

/// Why a description cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// More than [`BYTES_MAX`] bytes.
    #[error("the description is longer than {BYTES_MAX} bytes")]
    TooLong,
    /// More than [`SECTIONS_MAX`] sections.
    #[error("the description has more than {SECTIONS_MAX} media sections")]
    TooManySections,
    /// A limit within a section or line.
    #[error("line {line}: more than allowed of {what}")]
    TooMuch {
        /// Line number from 1.
        line: usize,
        /// Of what.
        what: &'static str,
    },
    /// Does not begin with `v=0`.
    #[error("the description does not begin with v=0")]
    Version,
    /// Malformed line.
    #[error("line {line}: malformed {what}")]
    Malformed {
        /// Line number from 1.
        line: usize,
        /// What was expected.
        what: &'static str,
    },
    /// A section without `a=mid`.
    #[error("media section {index} has no mid")]
    NoMid {
        /// Index from 0.
        index: usize,
    },
    /// Two sections with one mid.
    #[error("two media sections share a mid")]
    DuplicateMid,
}

/// Reads a description.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(text: &str) -> Result<Description, ParseError> {
    if text.len() > BYTES_MAX {
        return Err(ParseError::TooLong);
    }
    let mut reader = Reader::default();
    for (index, raw) in text.split('\n').enumerate() {
        let line = raw.strip_suffix('\r').unwrap_or(raw);
        reader.line = index + 1;
        if line.is_empty() {
            continue;
        }
        reader.read_line(line)?;
    }
    reader.finish()
}

#[derive(Default)]
struct Reader {
    line: usize,
    versioned: bool,
    bundle: Vec<String>,
    ice_lite: bool,
    transport: TransportAttributes,
    direction: Direction,
    sections: Vec<Section>,
    current: Option<Draft>,
}

/// A section being read.
struct Draft {
    section: Section,
    lines: usize,
    simulcast: Option<Vec<String>>,
    sources: Vec<u32>,
    repairs: Vec<(u32, u32)>,
    codecs: Vec<Codec>,
    fmtps: Vec<(u8, String)>,
    feedbacks: Vec<(Option<u8>, Feedback)>,
}

impl Reader {
    fn malformed(&self, what: &'static str) -> ParseError {
        ParseError::Malformed {
            line: self.line,
            what,
        }
    }

    fn too_much(&self, what: &'static str) -> ParseError {
        ParseError::TooMuch {
            line: self.line,
            what,
        }
    }

    fn read_line(&mut self, line: &str) -> Result<(), ParseError> {
        if line.len() > LINE_BYTES_MAX {
            return Err(self.too_much("bytes in a line"));
        }
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(self.malformed("text: control character"));
        }
        let Some((key, value)) = line.split_once('=').filter(|(key, _)| key.len() == 1) else {
            return Err(self.malformed("line: expected <letter>=<value>"));
        };
        if !self.versioned {
            if key != "v" || value.trim() != "0" {
                return Err(ParseError::Version);
            }
            self.versioned = true;
            return Ok(());
        }
        match key {
            "m" => self.read_media(value),
            "a" => {
                let (name, value) = value.split_once(':').unwrap_or((value, ""));
                self.read_attribute(name, value.trim())
            }
            // Origin, name, timing, connection and bandwidth mean nothing with ICE.
            _ => Ok(()),
        }
    }

    fn read_media(&mut self, value: &str) -> Result<(), ParseError> {
        self.close_section()?;
        if self.sections.len() >= SECTIONS_MAX {
            return Err(ParseError::TooManySections);
        }
        let mut words = value.split_ascii_whitespace();
        let (Some(media), Some(port), Some(protocol)) = (words.next(), words.next(), words.next())
        else {
            return Err(self.malformed("m= line"));
        };
        // `9/2` (several ports) is legal but useless here; the first counts.
        let port = port.split('/').next().unwrap_or_default();
        let port = port
            .parse()
            .map_err(|_| self.malformed("port in the m= line"))?;
        let formats: Vec<String> = words.take(FORMATS_MAX + 1).map(str::to_owned).collect();
        if formats.len() > FORMATS_MAX {
            return Err(self.too_much("formats in the m= line"));
        }
        let media = match media {
            "audio" => Media::Audio,
            "video" => Media::Video,
            "application" => Media::Application,
            other => Media::Other(other.to_owned()),
        };
        self.current = Some(Draft {
            section: Section {
                media,
                port,
                bundle_only: false,
                protocol: protocol.to_owned(),
                formats,
                mid: String::new(),
                direction: self.direction,
                msid: None,
                codecs: Vec::new(),
                extensions: Vec::new(),
                rids: Vec::new(),
                ssrcs: Vec::new(),
                rtcp_mux: false,
                transport: TransportAttributes::default(),
                sctp_port: None,
                max_message_size: None,
            },
            lines: 0,
            simulcast: None,
            sources: Vec::new(),
            repairs: Vec::new(),
            codecs: Vec::new(),
            fmtps: Vec::new(),
            feedbacks: Vec::new(),
        });
        Ok(())
    }

    fn read_attribute(&mut self, name: &str, value: &str) -> Result<(), ParseError> {
        if let Some(direction) = direction(name) {
            match &mut self.current {
                Some(draft) => draft.section.direction = direction,
                None => self.direction = direction,
            }
            return Ok(());
        }
        if self.read_transport(name, value)? {
            return Ok(());
        }
        let line = self.line;
        match &mut self.current {
            Some(draft) => {
                draft.lines += 1;
                if draft.lines > SECTION_LINES_MAX {
                    return Err(self.too_much("lines in a section"));
                }
                draft.read_attribute(line, name, value)
            }
            None => {
                if name == "group" {
                    let mut words = value.split_ascii_whitespace();
                    if words.next() == Some("BUNDLE") {
                        self.bundle = words.take(SECTIONS_MAX).map(str::to_owned).collect();
                    }
                } else if name == "ice-lite" {
                    self.ice_lite = true;
                }
                Ok(())
            }
        }
    }

    /// Reads what may stand at both levels; says whether it was that.
    fn read_transport(&mut self, name: &str, value: &str) -> Result<bool, ParseError> {
        let malformed = |what| ParseError::Malformed {
            line: self.line,
            what,
        };
        let target = match &mut self.current {
            Some(draft) => &mut draft.section.transport,
            None => &mut self.transport,
        };
        match name {
            "ice-ufrag" | "ice-pwd" => {
                let shortest = if name == "ice-ufrag" { 4 } else { 22 };
                let legal = |b: u8| {
                    b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_' | b'=')
                };
                if value.len() < shortest
                    || value.len() > CREDENTIAL_BYTES_MAX
                    || !value.bytes().all(legal)
                {
                    return Err(malformed("ICE credential"));
                }
                if name == "ice-ufrag" {
                    target.ufrag = Some(value.to_owned());
                } else {
                    target.pwd = Some(value.to_owned());
                }
            }
            "fingerprint" => {
                let (hash, digest) = value
                    .split_once(' ')
                    .ok_or_else(|| malformed("fingerprint"))?;
                // Other hashes may stand beside it.
                if hash.eq_ignore_ascii_case("sha-256") {
                    let digest = digest
                        .trim()
                        .parse()
                        .map_err(|_| malformed("fingerprint"))?;
                    target.fingerprint = Some(digest);
                }
            }
            "setup" => {
                target.setup = Some(match value {
                    "active" => Setup::Active,
                    "passive" => Setup::Passive,
                    "actpass" => Setup::ActPass,
                    _ => return Err(malformed("setup")),
                });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn close_section(&mut self) -> Result<(), ParseError> {
        let Some(draft) = self.current.take() else {
            return Ok(());
        };
        let section = draft.finish();
        if section.mid.is_empty() {
            return Err(ParseError::NoMid {
                index: self.sections.len(),
            });
        }
        if self.sections.iter().any(|other| other.mid == section.mid) {
            return Err(ParseError::DuplicateMid);
        }
        self.sections.push(section);
        Ok(())
    }

    fn finish(mut self) -> Result<Description, ParseError> {
        if !self.versioned {
            return Err(ParseError::Version);
        }
        self.close_section()?;
        Ok(Description {
            bundle: self.bundle,
            ice_lite: self.ice_lite,
            transport: self.transport,
            sections: self.sections,
        })
    }
}

impl Draft {
    fn read_attribute(&mut self, line: usize, name: &str, value: &str) -> Result<(), ParseError> {
        let malformed = |what| ParseError::Malformed { line, what };
        let too_much = |what| ParseError::TooMuch { line, what };
        let section = &mut self.section;
        match name {
            "mid" => {
                if !is_name(value, false) {
                    return Err(malformed("mid"));
                }
                section.mid = value.to_owned();
            }
            "msid" => {
                let mut words = value.split_ascii_whitespace();
                let stream = words.next().ok_or_else(|| malformed("msid"))?;
                if section.msid.is_none() {
                    section.msid = Some(Msid {
                        stream: stream.to_owned(),
                        track: words.next().unwrap_or_default().to_owned(),
                    });
                }
            }
            "rtpmap" => {
                if self.codecs.len() >= FORMATS_MAX {
                    return Err(too_much("rtpmaps"));
                }
                let codec = rtpmap(value).ok_or_else(|| malformed("rtpmap"))?;
                if self.codecs.iter().any(|other| other.pt == codec.pt) {
                    return Err(malformed("rtpmap: payload type given twice"));
                }
                self.codecs.push(codec);
            }
            "fmtp" => {
                // Formats of data sections have names instead of numbers; they do not matter.
                if let Some((pt, parameters)) = value.split_once(' ')
                    && let Some(pt) = payload_type(pt)
                {
                    if self.fmtps.len() >= FORMATS_MAX {
                        return Err(too_much("fmtps"));
                    }
                    self.fmtps.push((pt, parameters.trim().to_owned()));
                }
            }
            "rtcp-fb" => {
                if self.feedbacks.len() >= FORMATS_MAX * 8 {
                    return Err(too_much("rtcp-fbs"));
                }
                let (pt, what) = value.split_once(' ').ok_or_else(|| malformed("rtcp-fb"))?;
                let pt = match pt {
                    "*" => None,
                    pt => Some(payload_type(pt).ok_or_else(|| malformed("rtcp-fb"))?),
                };
                self.feedbacks.push((pt, feedback(what)));
            }
            "extmap" => {
                if section.extensions.len() >= EXTENSIONS_MAX {
                    return Err(too_much("extmaps"));
                }
                section
                    .extensions
                    .push(extmap(value).ok_or_else(|| malformed("extmap"))?);
            }
            "rid" => {
                let mut words = value.split_ascii_whitespace();
                let rid = words.next().filter(|rid| is_name(rid, true));
                let rid = rid.ok_or_else(|| malformed("rid"))?;
                if words.next() == Some("send") {
                    if section.rids.len() >= RIDS_MAX {
                        return Err(too_much("rids"));
                    }
                    if section.rids.iter().any(|other| other == rid) {
                        return Err(malformed("rid: given twice"));
                    }
                    section.rids.push(rid.to_owned());
                }
            }
            "simulcast" => self.simulcast = simulcast_send(value),
            "ssrc" => {
                let ssrc = value
                    .split_ascii_whitespace()
                    .next()
                    .and_then(|ssrc| ssrc.parse().ok());
                let ssrc = ssrc.ok_or_else(|| malformed("ssrc"))?;
                if !self.sources.contains(&ssrc) {
                    if self.sources.len() >= SSRCS_MAX {
                        return Err(too_much("ssrcs"));
                    }
                    self.sources.push(ssrc);
                }
            }
            "ssrc-group" => {
                let mut words = value.split_ascii_whitespace();
                if words.next() == Some("FID") {
                    let mut ssrc = || words.next().and_then(|word| word.parse().ok());
                    let (Some(media), Some(repair)) = (ssrc(), ssrc()) else {
                        return Err(malformed("ssrc-group"));
                    };
                    if self.repairs.len() >= SSRCS_MAX {
                        return Err(too_much("ssrc-groups"));
                    }
                    self.repairs.push((media, repair));
                }
            }
            "rtcp-mux" => section.rtcp_mux = true,
            "bundle-only" => section.bundle_only = true,
            "sctp-port" => {
                section.sctp_port = Some(value.parse().map_err(|_| malformed("sctp-port"))?);
            }
            "max-message-size" => {
                let size = value.parse().map_err(|_| malformed("max-message-size"))?;
                section.max_message_size = Some(size);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Section {
        let mut section = self.section;
        let mut codecs = self.codecs;
        for codec in &mut codecs {
            for (_, parameters) in self.fmtps.iter().filter(|(pt, _)| *pt == codec.pt) {
                if !codec.fmtp.is_empty() {
                    codec.fmtp.push(';');
                }
                codec.fmtp.push_str(parameters);
            }
            for (pt, feedback) in &self.feedbacks {
                if pt.is_none_or(|pt| pt == codec.pt) {
                    codec.feedback = codec.feedback.union(*feedback);
                }
            }
        }
        for format in &section.formats {
            let position =
                payload_type(format).and_then(|pt| codecs.iter().position(|codec| codec.pt == pt));
            if let Some(position) = position {
                section.codecs.push(codecs.swap_remove(position));
            }
        }
        if let Some(order) = self.simulcast {
            let known = std::mem::take(&mut section.rids);
            section.rids = order
                .into_iter()
                .filter(|rid| known.contains(rid))
                .collect();
        }
        let repairs = self.repairs;
        section.ssrcs = self
            .sources
            .into_iter()
            .filter(|ssrc| !repairs.iter().any(|(_, repair)| repair == ssrc))
            .map(|ssrc| SsrcPair {
                ssrc,
                repair: repairs
                    .iter()
                    .find(|(media, _)| *media == ssrc)
                    .map(|(_, repair)| *repair),
            })
            .collect();
        section
    }
}

impl Feedback {
    fn union(self, other: Self) -> Self {
        Self {
            nack: self.nack || other.nack,
            pli: self.pli || other.pli,
            fir: self.fir || other.fir,
            remb: self.remb || other.remb,
            transport_cc: self.transport_cc || other.transport_cc,
        }
    }
}

fn direction(name: &str) -> Option<Direction> {
    Some(match name {
        "sendrecv" => Direction::SendRecv,
        "sendonly" => Direction::SendOnly,
        "recvonly" => Direction::RecvOnly,
        "inactive" => Direction::Inactive,
        _ => return None,
    })
}

/// A mid (any token) or a rid (letters, digits, `-` and `_`).
fn is_name(text: &str, is_rid: bool) -> bool {
    let legal = |b: u8| {
        if is_rid {
            b.is_ascii_alphanumeric() || b == b'-' || b == b'_'
        } else {
            b.is_ascii_graphic()
        }
    };
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(legal)
}

fn payload_type(text: &str) -> Option<u8> {
    text.parse().ok().filter(|pt| *pt < 128)
}

fn rtpmap(value: &str) -> Option<Codec> {
    let (pt, encoding) = value.split_once(' ')?;
    let mut parts = encoding.trim().split('/');
    let name = parts.next().filter(|name| !name.is_empty())?;
    let clock_rate = parts.next()?.parse().ok()?;
    let channels = match parts.next() {
        Some(channels) => channels.parse().ok()?,
        None => 1,
    };
    Some(Codec {
        pt: payload_type(pt)?,
        name: name.to_owned(),
        clock_rate,
        channels,
        fmtp: String::new(),
        feedback: Feedback::default(),
    })
}

fn feedback(what: &str) -> Feedback {
    let mut feedback = Feedback::default();
    match what.trim() {
        "nack" => feedback.nack = true,
        "nack pli" => feedback.pli = true,
        "ccm fir" => feedback.fir = true,
        "goog-remb" => feedback.remb = true,
        "transport-cc" => feedback.transport_cc = true,
        _ => {}
    }
    feedback
}

fn extmap(value: &str) -> Option<Extmap> {
    let (id, rest) = value.split_once(' ')?;
    let id = id.split('/').next()?.parse().ok().filter(|id| *id > 0)?;
    let uri = rest.split_ascii_whitespace().next()?;
    Some(Extmap {
        id,
        uri: uri.to_owned(),
    })
}

/// The `send` list of `a=simulcast`, first alternative of each, paused marks dropped.
fn simulcast_send(value: &str) -> Option<Vec<String>> {
    let mut words = value.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let list = words.next()?;
        if word == "send" {
            let first = |stream: &str| {
                let first = stream.split(',').next().unwrap_or_default();
                first.trim_start_matches('~').to_owned()
            };
            return Some(list.split(';').map(first).take(RIDS_MAX).collect());
        }
    }
    None
}
