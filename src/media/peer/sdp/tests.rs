//! Descriptions read and written: the captured ones of LiveKit's clients, and damaged ones.

use proptest::prelude::*;

use super::codec::{self, Format, Profile};
use super::extension::{self, Extension};
use super::write::{Body, MediaBody, Outgoing, OutgoingSection, Source, write};
use super::*;

/// Descriptions of LiveKit's own clients, taken from the wire.
pub(crate) mod captures {
    macro_rules! captures {
        ($($name:ident: $file:literal),+ $(,)?) => {
            $(pub(crate) const $name: &str = include_str!(concat!("captures/", $file, ".sdp"));)+
            pub(crate) const ALL: &[(&str, &str)] = &[$(($file, $name)),+];
        };
    }
    captures! {
        JS_V1_JOIN: "js-happy-01-offer",
        JS_V1_VIDEO: "js-happy-05-offer",
        JS_V1_BOTH: "js-happy-07-offer",
        PY_V1_JOIN: "py-happy-01-offer",
        PY_V1_BOTH: "py-happy-05-offer",
        PY_V1_RESUME: "py-exp_adopt-07-offer",
        NODE_V1_JOIN: "node-happy-01-offer",
        NODE_V1_VIDEO: "node-happy-03-offer",
        NODE_V1_BOTH: "node-happy-05-offer",
        JS_V0_VIDEO: "js-dual_pc-03-offer",
        JS_V0_AUDIO: "js-dual_pc-05-offer",
        JS_V0_DATA: "js-dual_pc-07-offer",
        JS_V0_ANSWER: "js-dual_pc-02-answer",
        PY_V0_OFFER: "py-dual_pc-03-offer",
        PY_V0_ANSWER: "py-dual_pc-02-answer",
        NODE_V0_OFFER: "node-dual_pc-03-offer",
        NODE_V0_ANSWER: "node-dual_pc-02-answer",
    }
}

const HEAD: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n";

fn with(lines: &str) -> Result<Description, ParseError> {
    parse(&format!("{HEAD}{}", lines.replace('\n', "\r\n")))
}

#[test]
fn every_capture_is_read() {
    for (name, sdp) in captures::ALL {
        let description = parse(sdp).unwrap_or_else(|error| panic!("{name}: {error}"));
        let transport = description.bundle_transport();
        assert!(
            transport.ufrag.is_some() && transport.pwd.is_some(),
            "{name}"
        );
        assert!(transport.fingerprint.is_some(), "{name}");
        let expected = if name.ends_with("answer") {
            Setup::Active
        } else {
            Setup::ActPass
        };
        assert_eq!(transport.setup, Some(expected), "{name}");
        for section in &description.sections {
            assert!(!section.is_rejected(), "{name} {}", section.mid);
            assert!(
                description.bundle.contains(&section.mid),
                "{name} {}",
                section.mid
            );
            let Some(kind) = section.media.kind() else {
                assert_eq!(section.sctp_port, Some(5000), "{name}");
                assert_eq!(section.max_message_size, Some(262_144), "{name}");
                continue;
            };
            let codecs = codec::accept(section, kind);
            match kind {
                Kind::Audio => {
                    assert_eq!(codecs.len(), 1, "{name}");
                    assert_eq!(
                        (codecs[0].pt, codecs[0].format),
                        (111, Format::Opus),
                        "{name}"
                    );
                }
                Kind::Video => {
                    assert_eq!(
                        (codecs[0].pt, codecs[0].format),
                        (96, Format::Vp8),
                        "{name}"
                    );
                    let feedback = codecs[0].feedback;
                    assert!(feedback.nack && feedback.pli && feedback.fir, "{name}");
                    assert!(feedback.remb && feedback.transport_cc, "{name}");
                }
            }
            let extensions = extension::accept(section, kind);
            assert!(
                extensions
                    .iter()
                    .any(|(extension, _)| *extension == Extension::Mid),
                "{name}"
            );
        }
    }
}

#[test]
fn a_browsers_publishing_sections_are_understood() {
    let description = parse(captures::JS_V1_BOTH).expect("a capture");
    assert_eq!(description.sections.len(), 9);
    for section in &description.sections[..6] {
        assert_eq!(section.direction, Direction::RecvOnly);
        assert_eq!(section.msid, None);
    }
    assert_eq!(description.sections[6].media, Media::Application);
    let video = &description.sections[7];
    assert_eq!(video.direction, Direction::SendOnly);
    assert_eq!(video.rids, ["q", "h", "f"]);
    assert!(video.ssrcs.is_empty());
    let msid = video.msid.as_ref().expect("an msid");
    assert_eq!(msid.track, "1c40ce2e-9acf-467d-b58f-8595be7a2456");
    let audio = &description.sections[8];
    assert_eq!(
        audio.ssrcs,
        [SsrcPair {
            ssrc: 2_480_357_381,
            repair: None
        }]
    );
}

#[test]
fn native_layers_keep_their_order_and_browsers_their_codecs() {
    let description = parse(captures::PY_V1_BOTH).expect("a capture");
    assert_eq!(description.sections[7].rids, ["h", "q"]);
    let description = parse(captures::JS_V0_VIDEO).expect("a capture");
    let codecs = codec::accept(&description.sections[0], Kind::Video);
    let found: Vec<(u8, Option<u8>, Format)> = codecs
        .iter()
        .map(|codec| (codec.pt, codec.rtx_pt, codec.format))
        .collect();
    assert_eq!(
        found,
        [
            (96, Some(97), Format::Vp8),
            (102, Some(103), Format::H264(Profile::Baseline)),
            (108, Some(109), Format::H264(Profile::ConstrainedBaseline)),
            (116, Some(117), Format::H264(Profile::Main)),
        ]
    );
}

#[test]
fn extensions_follow_the_kind_and_small_numbers() {
    let section = |lines: &str| {
        let text = format!("m=audio 9 UDP/TLS/RTP/SAVPF 111\na=mid:0\n{lines}");
        with(&text).expect("a section").sections.remove(0)
    };
    let audio = section(
        "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level vad=on\n\
         a=extmap:15 urn:ietf:params:rtp-hdrext:sdes:mid\n\
         a=extmap:5/sendonly urn:3gpp:video-orientation\n\
         a=extmap:1 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time\n",
    );
    assert_eq!(
        extension::accept(&audio, Kind::Audio),
        [(Extension::AudioLevel, 1)]
    );
    assert_eq!(
        extension::accept(&audio, Kind::Video),
        [
            (Extension::VideoOrientation, 5),
            (Extension::AbsSendTime, 1)
        ]
    );
}

#[test]
fn repair_sources_stand_beside_what_they_repair() {
    let description = with(
        "m=video 9 UDP/TLS/RTP/SAVPF 96\na=mid:v\na=ssrc-group:FID 10 11\na=ssrc:10 cname:x\n\
         a=ssrc:11 cname:x\na=ssrc:12 cname:x\na=ssrc:10 msid:a b\n",
    );
    let ssrcs = &description.expect("well formed").sections[0].ssrcs;
    assert_eq!(
        ssrcs[..],
        [
            SsrcPair {
                ssrc: 10,
                repair: Some(11)
            },
            SsrcPair {
                ssrc: 12,
                repair: None
            }
        ]
    );
}

#[test]
fn simulcast_takes_first_alternatives_and_known_streams() {
    let description = with(
        "m=video 9 UDP/TLS/RTP/SAVPF 96\na=mid:v\na=rid:a send pt=96\na=rid:b send\na=rid:c recv\n\
         a=simulcast:recv c send ~b,a;a;zzz\n",
    );
    assert_eq!(
        description.expect("well formed").sections[0].rids,
        ["b", "a"]
    );
}

#[test]
fn what_is_wrong_is_said() {
    let cases: &[(&str, &str)] = &[
        (
            "m=audio x UDP/TLS/RTP/SAVPF 111\na=mid:0\n",
            "line 5: malformed port in the m= line",
        ),
        ("m=audio\n", "line 5: malformed m= line"),
        (
            "m=audio 9 UDP/TLS/RTP/SAVPF 111\n",
            "media section 0 has no mid",
        ),
        (
            "m=audio 9 X 0\na=mid:0\nm=audio 9 X 0\na=mid:0\n",
            "two media sections share a mid",
        ),
        (
            "m=audio 9 X 0\na=mid:12345678901234567\n",
            "line 6: malformed mid",
        ),
        (
            "m=audio 9 X 0\na=mid:0\na=rtpmap:300 opus/48000/2\n",
            "line 7: malformed rtpmap",
        ),
        (
            "m=audio 9 X 0\na=mid:0\na=extmap:0 urn:x\n",
            "line 7: malformed extmap",
        ),
        (
            "m=audio 9 X 0\na=mid:0\na=ssrc:abc cname:x\n",
            "line 7: malformed ssrc",
        ),
        ("a=setup:holdconn\n", "line 5: malformed setup"),
        (
            "a=fingerprint:sha-256 AA:BB\n",
            "line 5: malformed fingerprint",
        ),
        ("a=ice-ufrag:a b\n", "line 5: malformed ICE credential"),
        ("a=ice-pwd:short\n", "line 5: malformed ICE credential"),
        (
            "hello\n",
            "line 5: malformed line: expected <letter>=<value>",
        ),
        (
            "a=tool:a\u{0}b\n",
            "line 5: malformed text: control character",
        ),
    ];
    for (lines, message) in cases {
        let error = with(lines).expect_err(lines);
        assert_eq!(error.to_string(), *message, "{lines}");
    }
    assert_eq!(parse(""), Err(ParseError::Version));
    assert_eq!(parse("o=- 1 1 IN IP4 x\n"), Err(ParseError::Version));
}

#[test]
fn sizes_are_limited() {
    assert_eq!(parse(&"a".repeat(BYTES_MAX + 1)), Err(ParseError::TooLong));
    let long = format!("a=x:{}\n", "y".repeat(LINE_BYTES_MAX));
    assert_eq!(
        with(&long),
        Err(ParseError::TooMuch {
            line: 5,
            what: "bytes in a line"
        })
    );
    let many: String = (0..=SECTIONS_MAX)
        .map(|index| format!("m=audio 9 X 0\na=mid:{index}\n"))
        .collect();
    assert_eq!(with(&many), Err(ParseError::TooManySections));
    let lines = format!(
        "m=audio 9 X 0\na=mid:0\n{}",
        "a=x\n".repeat(SECTION_LINES_MAX)
    );
    assert!(matches!(
        with(&lines),
        Err(ParseError::TooMuch {
            what: "lines in a section",
            ..
        })
    ));
    let formats = (0..200).map(|pt| format!(" {pt}")).collect::<String>();
    assert!(matches!(
        with(&format!("m=audio 9 X{formats}\n")),
        Err(ParseError::TooMuch {
            what: "formats in the m= line",
            ..
        })
    ));
}

#[test]
fn h264_profiles_are_matched_by_what_decoders_can_do() {
    let codecs = codec::offer(Kind::Video);
    let pt = |fmtp: &str| {
        let format = Format::from_mime("video/H264", fmtp).expect("H.264");
        codec::select(&codecs, format).map(|codec| codec.pt)
    };
    let id = |id: &str| format!("packetization-mode=1;profile-level-id={id}");
    assert_eq!(pt(&id("42e01f")), Some(102));
    assert_eq!(pt(&id("42001f")), Some(104));
    assert_eq!(pt(&id("4d0032")), Some(106));
    assert_eq!(pt(&id("640c1f")), Some(108));
    assert_eq!(pt(""), Some(102));
    let baseline_only = &codecs[..2];
    let main = Format::H264(Profile::Main);
    assert_eq!(codec::select(baseline_only, main), None);
    let baseline = Format::H264(Profile::Baseline);
    assert_eq!(
        codec::select(baseline_only, baseline).map(|codec| codec.pt),
        Some(102)
    );
    assert_eq!(codec::select(&codecs, Format::Vp9), None);
}

#[test]
fn what_is_written_can_be_read_again() {
    let codecs = codec::offer(Kind::Video);
    let sections = vec![
        OutgoingSection {
            mid: "0".to_owned(),
            body: Body::Data {
                port: 5000,
                message_bytes_max: 65_536,
            },
        },
        OutgoingSection {
            mid: "1".to_owned(),
            body: Body::Media(Box::new(MediaBody {
                media: Media::Video,
                protocol: "UDP/TLS/RTP/SAVPF".to_owned(),
                direction: Direction::SendOnly,
                codecs: codecs.clone(),
                extensions: extension::offer(Kind::Video),
                rids: Vec::new(),
                source: Some(Source {
                    msid: Msid {
                        stream: "PA_x|TR_y".to_owned(),
                        track: "TR_y".to_owned(),
                    },
                    ssrc: 77,
                    repair: Some(78),
                    cname: "PA_x".to_owned(),
                }),
            })),
        },
        OutgoingSection {
            mid: "2".to_owned(),
            body: Body::Rejected {
                media: Media::Other("message".to_owned()),
                protocol: "TCP/MSRP".to_owned(),
                format: "*".to_owned(),
            },
        },
    ];
    let candidates = [
        ([192, 0, 2, 1], 7882).into(),
        "[2001:db8::1]:7882".parse().expect("an address"),
    ];
    let text = write(&Outgoing {
        session: 3,
        version: 4,
        ufrag: "abcd",
        pwd: "0123456789012345678901",
        fingerprint: Fingerprint([0xa5; 32]),
        setup: Setup::ActPass,
        candidates: &candidates,
        sections,
    });
    assert_eq!(text.matches("a=candidate:").count(), 2);
    assert_eq!(text.matches("a=end-of-candidates").count(), 1);
    assert!(text.lines().all(|line| !line.is_empty()));
    let description = parse(&text).expect("our own text");
    assert!(description.ice_lite);
    assert_eq!(description.bundle, ["0", "1"]);
    assert_eq!(
        description.bundle_transport().fingerprint,
        Some(Fingerprint([0xa5; 32]))
    );
    let video = &description.sections[1];
    assert_eq!(video.direction, Direction::SendOnly);
    assert_eq!(
        video.ssrcs,
        [SsrcPair {
            ssrc: 77,
            repair: Some(78)
        }]
    );
    assert_eq!(codec::accept(video, Kind::Video), codecs);
    assert_eq!(
        extension::accept(video, Kind::Video),
        extension::offer(Kind::Video)
    );
    assert!(description.sections[2].is_rejected());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_captures_do_no_harm(
        which in 0..captures::ALL.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..20),
    ) {
        let text = mutate(captures::ALL[which].1, &edits);
        let _ = parse(&text);
    }

    #[test]
    fn arbitrary_lines_do_no_harm(lines in proptest::collection::vec("[a-z]?=[ -~]{0,40}", 0..30)) {
        let _ = parse(&format!("{HEAD}{}", lines.join("\r\n")));
    }
}

/// Replaces, removes, doubles or inserts at places of a text.
pub(crate) fn mutate(text: &str, edits: &[(prop::sample::Index, u8, u8)]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for (place, byte, how) in edits {
        if bytes.is_empty() {
            break;
        }
        let at = place.index(bytes.len());
        match how {
            0 => bytes[at] = *byte,
            1 => drop(bytes.drain(at..(at + usize::from(*byte)).min(bytes.len()))),
            2 => {
                let end = (at + usize::from(*byte)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.insert(at, *byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
