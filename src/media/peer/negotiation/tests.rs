//! Offers and answers without a network: what sections carry, when, and what is asked for.

use std::net::SocketAddr;

use flotilla_model::track::{Encryption, Layer, Quality, Source, Track, TrackCodec};
use flotilla_model::unit::Size;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;

use super::*;
use crate::peer::sdp::tests::{captures, mutate};
use crate::peer::sdp::{self, Description};

/// A negotiation with everything it needs, on a clock of its own.
struct Bench {
    now: Instant,
    rng: ChaCha12Rng,
    negotiation: Negotiation,
}

const CANDIDATES: [SocketAddr; 1] = [SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    7882,
)];

fn local() -> Local<'static> {
    Local {
        ufrag: "localufrag",
        pwd: "localpwdlocalpwdlocalpwd",
        fingerprint: Fingerprint([7; 32]),
        candidates: &CANDIDATES,
        sctp_port: 5000,
        message_bytes_max: 65_536,
    }
}

impl Bench {
    fn new(role: PeerRole) -> Self {
        let mut rng = ChaCha12Rng::from_seed([3; 32]);
        let now = crate::test_epoch();
        let negotiation = Negotiation::new(now, role, Limits::default(), &mut rng);
        Self {
            now,
            rng,
            negotiation,
        }
    }

    fn offer(&mut self, sdp: &str) -> (Description, Written) {
        let offer = self
            .negotiation
            .read_offer(sdp)
            .expect("an offer that can be answered");
        let written = self
            .negotiation
            .answer(self.now, offer, &local(), &mut self.rng);
        (sdp::parse(&written.sdp).expect("our own text"), written)
    }

    fn subscribe(&mut self, track: &str, kind: Kind) {
        let format = match kind {
            Kind::Audio => Format::Opus,
            Kind::Video => Format::Vp8,
        };
        let stream = format!("PA_bob|{track}");
        let sid = TrackSid::from(track);
        assert!(
            self.negotiation
                .subscribe(self.now, &sid, &stream, kind, Some(format))
        );
    }

    fn unsubscribe(&mut self, track: &str) {
        self.negotiation
            .unsubscribe(self.now, &TrackSid::from(track));
    }

    /// Lets a moment pass, enough for changes to gather.
    fn due(&mut self) -> Option<Due> {
        self.now += Duration::from_millis(20);
        self.negotiation.poll_due(self.now)
    }

    fn write_offer(&mut self) -> (u32, Description, Written) {
        let (id, written) = self
            .negotiation
            .write_offer(self.now, &local(), &mut self.rng);
        (id, sdp::parse(&written.sdp).expect("our own text"), written)
    }
}

fn track(sid: &str, kind: Kind, cid: &str, qualities: &[Quality]) -> Box<Track> {
    let layer = |quality: &Quality| Layer {
        quality: *quality,
        size: Size {
            width: 320 << (*quality as u32),
            height: 180 << (*quality as u32),
        },
        bitrate_bps: 100_000 << (*quality as u32),
        rid: String::new(),
        ssrc: 0,
        repair_ssrc: 0,
    };
    Box::new(Track {
        sid: sid.into(),
        kind,
        name: String::new(),
        source: Source::Camera,
        muted: false,
        size: Size {
            width: 1280,
            height: 720,
        },
        simulcast: qualities.len() > 1,
        disable_dtx: false,
        stereo: false,
        disable_red: false,
        encryption: Encryption::None,
        stream: String::new(),
        audio_features: Vec::new(),
        backup_codec_policy: 0,
        codecs: vec![TrackCodec {
            mime: String::new(),
            fmtp: String::new(),
            cid: cid.to_owned(),
            mid: String::new(),
            layers: qualities.iter().map(layer).collect(),
        }],
        announced: false,
    })
}

const JS_VIDEO_CID: &str = "1c40ce2e-9acf-467d-b58f-8595be7a2456";
const JS_AUDIO_CID: &str = "bb08be43-dfa6-4423-9113-aa30e25b48f5";

#[test]
fn every_captured_offer_is_answered_in_kind() {
    for (name, sdp) in captures::ALL
        .iter()
        .filter(|(name, _)| name.ends_with("offer"))
    {
        let role = if name.contains("dual_pc") {
            PeerRole::Publisher
        } else {
            PeerRole::Single
        };
        let mut bench = Bench::new(role);
        let offer = sdp::parse(sdp).expect("a capture");
        let (answer, written) = bench.offer(sdp);
        assert!(answer.ice_lite, "{name}");
        assert_eq!(answer.bundle, offer.bundle, "{name}");
        assert_eq!(
            answer.bundle_transport().setup,
            Some(Setup::Passive),
            "{name}"
        );
        assert!(written.mid_to_track.is_empty(), "{name}");
        assert_eq!(answer.sections.len(), offer.sections.len(), "{name}");
        for (theirs, ours) in offer.sections.iter().zip(&answer.sections) {
            assert_eq!(
                (&theirs.mid, &theirs.media),
                (&ours.mid, &ours.media),
                "{name}"
            );
            assert!(!ours.is_rejected(), "{name}");
            if theirs.media.kind().is_none() {
                continue;
            }
            let expected = match theirs.direction {
                Direction::SendOnly => Direction::RecvOnly,
                _ => Direction::Inactive,
            };
            assert_eq!(ours.direction, expected, "{name} {}", ours.mid);
            for extmap in &ours.extensions {
                assert!(theirs.extensions.contains(extmap), "{name} {extmap:?}");
            }
            for codec in &ours.codecs {
                let offered = theirs.codecs.iter().find(|offered| offered.pt == codec.pt);
                let offered = offered.unwrap_or_else(|| panic!("{name}: {codec:?}"));
                assert_eq!(
                    (&offered.name, &offered.fmtp),
                    (&codec.name, &codec.fmtp),
                    "{name}"
                );
            }
            if theirs.media == Media::Audio {
                assert_eq!(ours.formats, ["111"], "{name}");
            } else {
                assert_eq!(ours.formats[0], "96", "{name}");
            }
        }
    }
}

#[test]
fn simulcast_is_agreed_to_in_the_offered_order() {
    let mut bench = Bench::new(PeerRole::Single);
    let (_, written) = bench.offer(captures::PY_V1_BOTH);
    assert!(
        written
            .sdp
            .contains("a=rid:h recv\r\na=rid:q recv\r\na=simulcast:recv h;q\r\n")
    );
}

#[test]
fn a_subscribed_track_takes_a_spare_section() {
    let mut bench = Bench::new(PeerRole::Single);
    bench.offer(captures::JS_V1_JOIN);
    assert_eq!(bench.due(), None);
    bench.subscribe("TR_VC1", Kind::Video);
    bench.subscribe("TR_AM1", Kind::Audio);
    assert_eq!(
        bench.due(),
        Some(Due::SectionsNeeded { audio: 0, video: 0 })
    );
    assert!(bench.negotiation.send_sections().is_empty());
    // One wish at a time, whatever else comes.
    bench.subscribe("TR_VC2", Kind::Video);
    assert_eq!(bench.due(), None);
    let (answer, written) = bench.offer(captures::JS_V1_JOIN);
    let expected: BTreeMap<String, TrackSid> = [("0", "TR_AM1"), ("3", "TR_VC1"), ("4", "TR_VC2")]
        .map(|(mid, track)| (mid.to_owned(), track.into()))
        .into();
    assert_eq!(written.mid_to_track, expected);
    assert_eq!(answer.sections[3].direction, Direction::SendOnly);
    assert_eq!(answer.sections[5].direction, Direction::Inactive);
    let msid = answer.sections[3].msid.clone().expect("an msid");
    assert_eq!(
        (msid.stream.as_str(), msid.track.as_str()),
        ("PA_bob|TR_VC1", "TR_VC1")
    );
    let sent = bench.negotiation.send_sections();
    assert_eq!(sent.len(), 3);
    let video = sent
        .iter()
        .find(|section| section.mid == "3")
        .expect("the video section");
    assert_eq!(
        (video.pt, video.rtx_pt, video.mime.as_str()),
        (96, Some(97), "video/vp8")
    );
    let pair = answer.sections[3].ssrcs[0];
    assert_eq!((video.ssrc, Some(video.rtx_ssrc)), (pair.ssrc, pair.repair));
    assert_eq!(video.extensions.mid, Some(4));
    assert_eq!(video.extensions.twcc, None);
    assert_eq!(bench.due(), None);
    // An identical offer gets the same answer.
    let (again, _) = bench.offer(captures::JS_V1_JOIN);
    assert_eq!(again, answer);
}

#[test]
fn more_sections_are_asked_for_once_and_again_after_a_while() {
    let mut bench = Bench::new(PeerRole::Single);
    bench.offer(captures::PY_V1_JOIN);
    for index in 0..5 {
        bench.subscribe(&format!("TR_VC{index}"), Kind::Video);
    }
    bench.subscribe("TR_AM0", Kind::Audio);
    assert_eq!(
        bench.due(),
        Some(Due::SectionsNeeded { audio: 0, video: 2 })
    );
    // An offer that was under way fills the spare ones, and does not start a second wish.
    let (_, written) = bench.offer(captures::PY_V1_JOIN);
    assert_eq!(written.mid_to_track.len(), 4);
    assert_eq!(bench.due(), None);
    bench.now += SECTIONS_PATIENCE;
    assert!(
        bench
            .negotiation
            .deadline()
            .is_some_and(|at| at <= bench.now)
    );
    assert_eq!(
        bench.due(),
        Some(Due::SectionsNeeded { audio: 0, video: 2 })
    );
    assert_eq!(bench.due(), None);
}

#[test]
fn a_section_is_inactive_once_before_it_carries_another_track() {
    let mut bench = Bench::new(PeerRole::Single);
    for (index, kind) in [Kind::Video; 3].into_iter().enumerate() {
        bench.subscribe(&format!("TR_VC{index}"), kind);
    }
    bench.offer(captures::JS_V1_JOIN);
    let first = bench.negotiation.send_sections();
    assert_eq!(first.len(), 3);
    bench.unsubscribe("TR_VC1");
    bench.subscribe("TR_VC9", Kind::Video);
    assert_eq!(bench.negotiation.send_sections().len(), 2);
    // The section that drains is not spare yet.
    assert_eq!(
        bench.due(),
        Some(Due::SectionsNeeded { audio: 0, video: 1 })
    );
    let (answer, written) = bench.offer(captures::JS_V1_JOIN);
    assert_eq!(answer.sections[4].direction, Direction::Inactive);
    assert!(answer.sections[4].msid.is_none());
    assert!(!written.mid_to_track.contains_key("4"));
    let (answer, written) = bench.offer(captures::JS_V1_JOIN);
    assert_eq!(written.mid_to_track.get("4"), Some(&"TR_VC9".into()));
    let fresh = answer.sections[4].ssrcs[0].ssrc;
    assert!(
        first
            .iter()
            .all(|old| old.ssrc != fresh && old.rtx_ssrc != fresh)
    );
}

#[test]
fn a_codec_the_client_lacks_is_not_asked_for() {
    let mut bench = Bench::new(PeerRole::Single);
    bench.offer(captures::JS_V1_JOIN);
    let sid = TrackSid::from("TR_VC1");
    bench.negotiation.subscribe(
        bench.now,
        &sid,
        "PA_x|TR_VC1",
        Kind::Video,
        Some(Format::Vp9),
    );
    assert_eq!(bench.due(), None);
    bench.offer(captures::JS_V1_JOIN);
    assert!(bench.negotiation.send_sections().is_empty());
    assert_eq!(bench.due(), None);
}

#[test]
fn a_codec_known_late_chooses_the_payload_type_without_another_answer() {
    let mut bench = Bench::new(PeerRole::Single);
    let sid = TrackSid::from("TR_VC1");
    bench
        .negotiation
        .subscribe(bench.now, &sid, "PA_x|TR_VC1", Kind::Video, None);
    let (_, written) = bench.offer(captures::JS_V1_JOIN);
    assert_eq!(written.mid_to_track.len(), 1);
    assert!(bench.negotiation.send_sections().is_empty());
    let h264 = Format::from_mime("video/h264", "packetization-mode=1;profile-level-id=42e01f");
    assert!(bench.negotiation.set_format(&sid, h264.expect("H.264")));
    let sent = bench.negotiation.send_sections();
    assert_eq!((sent[0].pt, sent[0].rtx_pt), (108, Some(109)));
}

#[test]
fn publications_and_sections_meet_in_either_order() {
    let all = [Quality::Low, Quality::Medium, Quality::High];
    let mut bench = Bench::new(PeerRole::Single);
    let video = track("TR_VC", Kind::Video, JS_VIDEO_CID, &all);
    assert!(bench.negotiation.publish(bench.now, video));
    bench.offer(captures::JS_V1_BOTH);
    let audio = track("TR_AM", Kind::Audio, JS_AUDIO_CID, &[]);
    assert_eq!(bench.negotiation.receive_sections().len(), 1);
    assert!(bench.negotiation.publish(bench.now, audio));
    let received = bench.negotiation.receive_sections();
    assert_eq!(received.len(), 2);
    assert_eq!(
        (received[0].mid.as_str(), received[0].track.as_str()),
        ("7", "TR_VC")
    );
    assert_eq!(received[0].rids, ["q", "h", "f"]);
    assert!(received[0].feedback.twcc && received[0].feedback.remb && received[0].feedback.pli);
    assert_eq!(received[0].codecs[0].mime, "video/vp8");
    assert_eq!(received[0].codecs.len(), 1);
    assert_eq!(received[1].ssrcs, [(2_480_357_381, None)]);
    assert_eq!(received[1].extensions.audio_level, Some(1));
    let described: BTreeMap<_, _> = bench.negotiation.take_described().into_iter().collect();
    let codec = &described[&"TR_VC".into()][0];
    assert_eq!(
        (codec.mime.as_str(), codec.mid.as_str()),
        ("video/vp8", "7")
    );
    assert_eq!(codec.fmtp, "");
    let layers: Vec<_> = codec
        .layers
        .iter()
        .map(|l| (l.quality, l.rid.as_str(), l.size.width))
        .collect();
    assert_eq!(
        layers,
        [
            (Quality::Low, "q", 320),
            (Quality::Medium, "h", 640),
            (Quality::High, "f", 1280)
        ]
    );
    let codec = &described[&"TR_AM".into()][0];
    assert_eq!(codec.layers[0].ssrc, 2_480_357_381);
    assert!(codec.fmtp.contains("useinbandfec=1"));
    assert!(bench.negotiation.take_described().is_empty());
}

#[test]
fn sources_found_in_packets_survive_further_offers() {
    let mut bench = Bench::new(PeerRole::Single);
    let sid = TrackSid::from("TR_VC");
    let video = track(
        "TR_VC",
        Kind::Video,
        JS_VIDEO_CID,
        &[Quality::Low, Quality::High],
    );
    bench.negotiation.publish(bench.now, video);
    bench.offer(captures::JS_V1_VIDEO);
    let (_, mut codecs) = bench.negotiation.take_described().remove(0);
    codecs[0].layers[2].ssrc = 4242;
    bench.negotiation.learn(&sid, &codecs);
    assert_eq!(
        bench.negotiation.take_described()[0].1[0].layers[2].ssrc,
        4242
    );
    codecs[0].layers[2].repair_ssrc = 4343;
    bench.negotiation.learn(&sid, &codecs);
    bench.offer(captures::JS_V1_BOTH);
    let (_, codecs) = bench.negotiation.take_described().remove(0);
    assert_eq!(
        (codecs[0].layers[2].ssrc, codecs[0].layers[2].repair_ssrc),
        (4242, 4343)
    );
}

#[test]
fn two_native_layers_are_low_and_medium() {
    let mut bench = Bench::new(PeerRole::Publisher);
    let cid = "587f0e7e-9e0b-4c05-95f2-e027a321beca";
    let video = track("TR_VC", Kind::Video, cid, &[Quality::Low, Quality::Medium]);
    bench.negotiation.publish(bench.now, video);
    bench.offer(captures::PY_V0_OFFER);
    let (_, codecs) = bench.negotiation.take_described().remove(0);
    let layers: Vec<_> = codecs[0]
        .layers
        .iter()
        .map(|l| (l.quality, l.rid.as_str()))
        .collect();
    assert_eq!(layers, [(Quality::Low, "q"), (Quality::Medium, "h")]);
}

#[test]
fn a_nameless_section_is_taken_by_kind_after_a_while() {
    let mut bench = Bench::new(PeerRole::Single);
    bench.offer(captures::JS_V1_BOTH);
    let stranger = track("TR_V1", Kind::Video, "some-other-id", &[Quality::High]);
    bench.negotiation.publish(bench.now, stranger);
    assert!(bench.negotiation.receive_sections().is_empty());
    assert_eq!(bench.due(), None);
    bench.now += FALLBACK_FOR_TESTS;
    assert_eq!(bench.negotiation.poll_due(bench.now), Some(Due::Bound));
    assert_eq!(
        bench.negotiation.receive_sections()[0].track,
        "TR_V1".into()
    );
    // The one that the section names wins it back.
    let named = track("TR_V2", Kind::Video, JS_VIDEO_CID, &[Quality::High]);
    bench.negotiation.publish(bench.now, named);
    assert_eq!(
        bench.negotiation.receive_sections()[0].track,
        "TR_V2".into()
    );
    assert_eq!(bench.negotiation.receive_sections().len(), 1);
}

const FALLBACK_FOR_TESTS: Duration = Duration::from_secs(1);

#[test]
fn a_stopped_section_ends_its_track() {
    let mut bench = Bench::new(PeerRole::Single);
    bench
        .negotiation
        .publish(bench.now, track("TR_AM", Kind::Audio, JS_AUDIO_CID, &[]));
    bench.offer(captures::JS_V1_BOTH);
    assert!(bench.negotiation.take_ended().is_empty());
    let inactive = captures::JS_V1_BOTH.replace("a=sendonly", "a=inactive");
    let (answer, _) = bench.offer(&inactive);
    assert_eq!(answer.sections[8].direction, Direction::Inactive);
    assert_eq!(bench.negotiation.take_ended(), ["TR_AM".into()]);
    assert!(bench.negotiation.take_ended().is_empty());
    assert!(bench.negotiation.receive_sections().is_empty());
    // Sent again under the same name, it is the same track.
    bench.offer(captures::JS_V1_BOTH);
    assert_eq!(bench.negotiation.receive_sections().len(), 1);
    assert_eq!(bench.negotiation.take_described().len(), 1);
    // A stopped transceiver has port 0.
    let (head, tail) = captures::JS_V1_BOTH
        .rsplit_once("m=audio 9")
        .expect("the last section");
    let (answer, _) = bench.offer(&format!("{head}m=audio 0{tail}").replace(" 7 8\r\n", " 7\r\n"));
    assert!(answer.sections[8].is_rejected());
    assert_eq!(bench.negotiation.take_ended(), ["TR_AM".into()]);
}

#[test]
fn a_new_ufrag_restarts_ice_and_a_new_certificate_does_not() {
    let mut bench = Bench::new(PeerRole::Single);
    let first = bench
        .negotiation
        .read_offer(captures::JS_V1_JOIN)
        .expect("an offer");
    assert!(!first.restarts_ice);
    bench.offer(captures::JS_V1_JOIN);
    let restarted = captures::JS_V1_JOIN.replace("gp9F", "Xp9F");
    assert!(
        bench
            .negotiation
            .read_offer(&restarted)
            .expect("an offer")
            .restarts_ice
    );
    let other = captures::JS_V1_JOIN.replace("0D:52:33:61", "0D:52:33:62");
    assert_eq!(
        bench.negotiation.read_offer(&other).err(),
        Some(Refusal::Certificate)
    );
}

#[test]
fn unusable_offers_are_refused_with_a_reason() {
    let bench = Bench::new(PeerRole::Single);
    let refusal = |sdp: &str| bench.negotiation.read_offer(sdp).expect_err("a refusal");
    let join = captures::JS_V1_JOIN;
    assert_eq!(
        refusal(&join.replace("a=setup:actpass", "a=setup:passive")),
        Refusal::Role
    );
    assert_eq!(
        refusal(&join.replace("BUNDLE 0 1 2 3 4 5 6", "BUNDLE 0 1 2 3 4 5")),
        Refusal::NotBundled("6".to_owned())
    );
    assert_eq!(
        refusal(&join.replace("a=rtcp-mux\r\n", "")),
        Refusal::NotMultiplexed("0".to_owned())
    );
    assert_eq!(
        refusal(&join.replace("a=fingerprint:sha-256", "a=fingerprint:sha-1")),
        Refusal::Missing("sha-256 fingerprint")
    );
    assert_eq!(refusal("v=0\r\n"), Refusal::Empty);
    assert!(matches!(refusal("hello"), Refusal::Unreadable(_)));
    let mut bench = bench;
    bench.offer(captures::JS_V1_VIDEO);
    assert_eq!(
        bench.negotiation.read_offer(join).err(),
        Some(Refusal::SectionsVanished {
            expected: 8,
            found: 7
        })
    );
    let swapped = captures::JS_V1_VIDEO.replace("a=mid:3\r\n", "a=mid:x3\r\n");
    let swapped = swapped.replace("BUNDLE 0 1 2 3", "BUNDLE 0 1 2 x3");
    assert_eq!(
        bench.negotiation.read_offer(&swapped).err(),
        Some(Refusal::SectionChanged(3))
    );
    let subscriber = Bench::new(PeerRole::Subscriber);
    assert_eq!(
        subscriber.negotiation.read_offer(join).err(),
        Some(Refusal::WrongDirection("offer"))
    );
}

#[test]
fn a_section_without_a_known_codec_is_refused_alone() {
    let mut bench = Bench::new(PeerRole::Publisher);
    let only_vp9 = captures::PY_V0_OFFER.replace("VP8/90000", "VP9/90000");
    let (answer, _) = bench.offer(&only_vp9);
    assert!(answer.sections[0].is_rejected());
    assert_eq!(answer.bundle, ["1", "2"]);
    assert_eq!(answer.sections[1].direction, Direction::RecvOnly);
}

#[test]
fn a_section_on_which_the_client_sends_carries_nothing_back() {
    let mut bench = Bench::new(PeerRole::Single);
    bench.subscribe("TR_VC1", Kind::Video);
    let (answer, written) = bench.offer(&captures::JS_V0_DATA.replace("a=sendonly", "a=sendrecv"));
    assert_eq!(answer.sections[0].direction, Direction::RecvOnly);
    assert!(written.mid_to_track.is_empty());
    assert_eq!(
        bench.due(),
        Some(Due::SectionsNeeded { audio: 0, video: 1 })
    );
}

/// What a v0 client answers to an offer: everything taken.
fn client_answer(
    offer: &Description,
    written: &str,
    change: impl Fn(usize, &str) -> String,
) -> String {
    let mut text = String::new();
    let mut index = None;
    for line in written.lines() {
        if line.starts_with("m=") {
            index = Some(index.map_or(0, |index: usize| index + 1));
        }
        let line = match line {
            "a=setup:actpass" => "a=setup:active",
            "a=sendonly" => "a=recvonly",
            "a=ice-lite" | "a=end-of-candidates" => continue,
            line if ["a=msid", "a=ssrc", "a=candidate"]
                .iter()
                .any(|p| line.starts_with(p)) =>
            {
                continue;
            }
            line => line,
        };
        text.push_str(&change(index.unwrap_or(0), line));
        text.push_str("\r\n");
    }
    assert_eq!(
        sdp::parse(&text).map(|answer| answer.sections.len()),
        Ok(offer.sections.len())
    );
    text
}

#[test]
fn a_v0_subscriber_is_offered_data_first_and_tracks_as_they_come() {
    let mut bench = Bench::new(PeerRole::Subscriber);
    assert_eq!(bench.negotiation.poll_due(bench.now), None);
    assert_eq!(bench.due(), Some(Due::Offer));
    let (first, offer, _) = bench.write_offer();
    assert!((1..=256).contains(&first));
    assert_eq!(offer.sections.len(), 1);
    assert_eq!(offer.sections[0].media, Media::Application);
    assert_eq!(offer.bundle_transport().setup, Some(Setup::ActPass));
    bench.subscribe("TR_VC1", Kind::Video);
    bench.subscribe("TR_AM1", Kind::Audio);
    // One offer in flight.
    assert_eq!(bench.due(), None);
    let wrong = bench
        .negotiation
        .handle_answer(bench.now, first + 1, captures::JS_V0_ANSWER);
    assert_eq!(wrong, Err(Refusal::NotOutstanding(first + 1)));
    bench
        .negotiation
        .handle_answer(bench.now, first, captures::JS_V0_ANSWER)
        .expect("an answer of Chromium");
    assert_eq!(bench.due(), Some(Due::Offer));
    let (second, offer, written) = bench.write_offer();
    assert_eq!(second, first + 1);
    assert_eq!(offer.sections.len(), 3);
    assert_eq!(offer.sections[1].direction, Direction::SendOnly);
    assert_eq!(written.mid_to_track.len(), 2);
    assert!(bench.negotiation.send_sections().is_empty());
    let answer = client_answer(&offer, &written.sdp, |_, line| line.to_owned())
        .replace("localufrag", "SZ7f");
    let fingerprint = captures::JS_V0_ANSWER
        .lines()
        .find(|line| line.starts_with("a=fingerprint"))
        .expect("a fingerprint");
    let ours = format!("a=fingerprint:sha-256 {}", Fingerprint([7; 32]));
    let answer = answer.replace(&ours, fingerprint);
    // Native clients may leave the number out.
    bench
        .negotiation
        .handle_answer(bench.now, 0, &answer)
        .expect("a good answer");
    let sent = bench.negotiation.send_sections();
    assert_eq!(sent.len(), 2);
    assert_eq!((sent[0].pt, sent[0].rtx_pt), (96, Some(97)));
    assert_eq!(sent[1].pt, 111);
    assert_eq!(bench.due(), None);
}

#[test]
fn a_v0_section_is_reused_with_a_fresh_source() {
    let mut bench = Bench::new(PeerRole::Subscriber);
    bench.subscribe("TR_VC1", Kind::Video);
    let answer = |bench: &mut Bench| {
        assert_eq!(bench.due(), Some(Due::Offer));
        let (id, offer, written) = bench.write_offer();
        let answer = client_answer(&offer, &written.sdp, |_, line| line.to_owned());
        bench
            .negotiation
            .handle_answer(bench.now, id, &answer)
            .expect("a good answer");
        (offer, written)
    };
    let (offer, _) = answer(&mut bench);
    let first = offer.sections[1].ssrcs[0].ssrc;
    bench.unsubscribe("TR_VC1");
    let (offer, written) = answer(&mut bench);
    assert_eq!(offer.sections[1].direction, Direction::Inactive);
    assert!(written.mid_to_track.is_empty());
    bench.subscribe("TR_VC2", Kind::Video);
    let (offer, written) = answer(&mut bench);
    assert_eq!(offer.sections.len(), 2);
    assert_ne!(offer.sections[1].ssrcs[0].ssrc, first);
    assert_eq!(written.mid_to_track.get("1"), Some(&"TR_VC2".into()));
    assert_eq!(bench.negotiation.send_sections()[0].track, "TR_VC2".into());
}

#[test]
fn a_v0_client_that_refuses_a_section_is_not_sent_to() {
    let mut bench = Bench::new(PeerRole::Subscriber);
    bench.subscribe("TR_VC1", Kind::Video);
    bench.subscribe("TR_AM1", Kind::Audio);
    assert_eq!(bench.due(), Some(Due::Offer));
    let (id, offer, written) = bench.write_offer();
    let answer = client_answer(&offer, &written.sdp, |index, line| {
        if index == 1 {
            line.replace("m=video 9", "m=video 0")
        } else {
            line.to_owned()
        }
    });
    bench
        .negotiation
        .handle_answer(bench.now, id, &answer)
        .expect("a good answer");
    let sent = bench.negotiation.send_sections();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].track, "TR_AM1".into());
    assert_eq!(bench.due(), None);
}

#[test]
fn an_unanswered_offer_is_reported_and_a_restart_offers_anew() {
    let mut bench = Bench::new(PeerRole::Subscriber);
    assert_eq!(bench.due(), Some(Due::Offer));
    let (first, ..) = bench.write_offer();
    bench.negotiation.restart(bench.now);
    assert_eq!(bench.due(), Some(Due::Offer));
    let (second, ..) = bench.write_offer();
    assert_eq!(second, first + 1);
    let late = bench
        .negotiation
        .handle_answer(bench.now, first, captures::PY_V0_ANSWER);
    assert_eq!(late, Err(Refusal::NotOutstanding(first)));
    bench.now += ANSWER_PATIENCE;
    assert_eq!(bench.negotiation.poll_due(bench.now), Some(Due::Unanswered));
    assert_eq!(bench.due(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_offers_are_answered_or_refused(
        which in 0..captures::ALL.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 0..6),
        tracks in 0_u8..8,
    ) {
        let mut bench = Bench::new(PeerRole::Single);
        for index in 0..tracks {
            let kind = if index % 2 == 0 { Kind::Audio } else { Kind::Video };
            bench.subscribe(&format!("TR_{index}"), kind);
        }
        for text in [mutate(captures::ALL[which].1, &edits), captures::ALL[which].1.to_owned()] {
            if let Ok(offer) = bench.negotiation.read_offer(&text) {
                let written = bench.negotiation.answer(bench.now, offer, &local(), &mut bench.rng);
                prop_assert!(sdp::parse(&written.sdp).is_ok(), "{}", written.sdp);
                let sent = bench.negotiation.send_sections();
                let mut sources: Vec<u32> =
                    sent.iter().flat_map(|section| [section.ssrc, section.rtx_ssrc]).collect();
                sources.sort_unstable();
                sources.dedup();
                prop_assert_eq!(sources.len(), sent.len() * 2);
            }
            bench.due();
        }
    }
}
