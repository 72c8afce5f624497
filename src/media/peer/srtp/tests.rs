//! Both ends against each other and against rtc-srtp; what must be refused; that packets of any
//! content do no harm.

use proptest::prelude::*;
use rtc_crypto::providers::AwsLcRsCrypto;
use rtc_srtp::context::Context;
use rtc_srtp::option::{srtcp_no_replay_protection, srtp_no_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;

use super::*;

const PROFILES: [Profile; 2] = [Profile::Aes128Gcm, Profile::Aes128CmSha1_80];

fn material(profile: Profile) -> Vec<u8> {
    (0..profile.material_len())
        .map(|byte| (byte as u8).wrapping_mul(7))
        .collect()
}

/// Sender of the client and receiver of the server.
fn pair(profile: Profile) -> (SrtpSender, SrtpReceiver) {
    let material = material(profile);
    let (_, receiver) = server_ends(profile, &material).expect("length is right");
    let salt = &material[32..32 + profile.salt_len()];
    let sender = SrtpSender::new(profile, &material[..16], salt).expect("length is right");
    (sender, receiver)
}

fn rtp(ssrc: u32, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x90, 96];
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 1, 0]);
    packet.extend_from_slice(&ssrc.to_be_bytes());
    packet.extend_from_slice(&[0xbe, 0xde, 0, 1, 0x10, 0xff, 0, 0]);
    packet.extend_from_slice(payload);
    packet
}

fn rtcp(ssrc: u32) -> Vec<u8> {
    let mut packet = vec![0x81, 206, 0, 2];
    packet.extend_from_slice(&ssrc.to_be_bytes());
    packet.extend_from_slice(&[9, 9, 9, 9]);
    packet
}

fn seal(sender: &mut SrtpSender, packet: &[u8]) -> Vec<u8> {
    let mut buf = packet.to_vec();
    buf.resize(packet.len() + RTP_OVERHEAD_MAX, 0);
    let len = sender
        .protect_rtp(&mut buf, packet.len())
        .expect("protects");
    buf.truncate(len);
    buf
}

fn seal_rtcp(sender: &mut SrtpSender, packet: &[u8]) -> Vec<u8> {
    let mut buf = packet.to_vec();
    buf.resize(packet.len() + RTCP_OVERHEAD_MAX, 0);
    let len = sender
        .protect_rtcp(&mut buf, packet.len())
        .expect("protects");
    buf.truncate(len);
    buf
}

#[test]
fn packets_survive_rollovers_loss_and_reordering() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let mut held = None;
        let (mut received, mut sequence) = (0, 65_000_u16);
        for count in 0..200_000_u32 {
            let packet = rtp(42, sequence, &count.to_be_bytes());
            let mut sealed = seal(&mut sender, &packet);
            sequence = sequence.wrapping_add(1);
            match count % 10 {
                3 => continue,
                5 => {
                    held = Some((packet, sealed));
                    continue;
                }
                8 => {
                    if let Some((packet, mut sealed)) = held.take() {
                        let len = receiver.unprotect_rtp(&mut sealed).expect("late is fine");
                        assert_eq!(sealed[..len], packet);
                        received += 1;
                    }
                }
                _ => {}
            }
            let len = receiver.unprotect_rtp(&mut sealed).expect("opens");
            assert_eq!(sealed[..len], packet);
            received += 1;
        }
        assert_eq!(received, 180_000);
        assert_eq!(sender.index(42), Some(65_000 + 199_999));
        assert_eq!(receiver.index(42), sender.index(42));
    }
}

#[test]
fn replays_and_forgeries_are_refused() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let sealed = seal(&mut sender, &rtp(1, 10, b"payload"));
        assert!(receiver.unprotect_rtp(&mut sealed.clone()).is_ok());
        assert_eq!(
            receiver.unprotect_rtp(&mut sealed.clone()),
            Err(Discard::Replayed)
        );

        let sealed = seal(&mut sender, &rtp(1, 11, b"payload"));
        for at in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[at] ^= 1;
            assert!(receiver.unprotect_rtp(&mut forged).is_err(), "byte {at}");
            assert!(receiver.unprotect_rtp(&mut sealed[..at].to_vec()).is_err());
        }
        assert!(receiver.unprotect_rtp(&mut sealed.clone()).is_ok());

        let sealed = seal_rtcp(&mut sender, &rtcp(1));
        for at in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[at] ^= 1;
            assert!(receiver.unprotect_rtcp(&mut forged).is_err(), "byte {at}");
            assert!(receiver.unprotect_rtcp(&mut sealed[..at].to_vec()).is_err());
        }
        let mut opened = sealed.clone();
        assert_eq!(receiver.unprotect_rtcp(&mut opened), Ok(12));
        assert_eq!(opened[..12], rtcp(1));
        assert_eq!(
            receiver.unprotect_rtcp(&mut sealed.clone()),
            Err(Discard::Replayed)
        );
    }
}

#[test]
fn no_index_is_sent_twice() {
    let (mut sender, _) = pair(Profile::Aes128Gcm);
    let mut buf = rtp(1, 100, b"first");
    let len = buf.len();
    buf.resize(len + RTP_OVERHEAD_MAX, 0);
    assert!(sender.protect_rtp(&mut buf.clone(), len).is_some());
    assert_eq!(sender.protect_rtp(&mut buf.clone(), len), None);
    buf[2..4].copy_from_slice(&5000_u16.to_be_bytes());
    assert!(sender.protect_rtp(&mut buf.clone(), len).is_some());
    for sequence in [99_u16, 100, 5000] {
        buf[2..4].copy_from_slice(&sequence.to_be_bytes());
        assert_eq!(
            sender.protect_rtp(&mut buf.clone(), len),
            None,
            "{sequence}"
        );
    }
    buf[2..4].copy_from_slice(&5001_u16.to_be_bytes());
    assert!(sender.protect_rtp(&mut buf.clone(), len).is_some());
    assert_eq!(sender.protect_rtp(&mut buf[..len + 15], len), None);

    sender.set_rtcp_index(u32::MAX >> 1);
    let mut buf = rtcp(1);
    buf.resize(12 + RTCP_OVERHEAD_MAX, 0);
    assert_eq!(sender.protect_rtcp(&mut buf, 12), None);
}

#[test]
fn a_repetition_is_the_same_packet_and_never_runs_ahead() {
    for profile in PROFILES {
        let (mut sender, _) = pair(profile);
        let again = |sender: &mut SrtpSender, packet: &[u8]| {
            let mut buf = packet.to_vec();
            buf.resize(packet.len() + RTP_OVERHEAD_MAX, 0);
            let len = sender.repeat_rtp(&mut buf, packet.len())?;
            Some(buf[..len].to_vec())
        };
        let packet = rtp(1, 65_535, b"one");
        assert_eq!(again(&mut sender, &packet), None);
        let first = seal(&mut sender, &packet);
        seal(&mut sender, &rtp(1, 1, b"three"));
        assert_eq!(again(&mut sender, &packet), Some(first));
        assert_eq!(again(&mut sender, &rtp(1, 2, b"four")), None);
        // One that was never sent is used up by it.
        assert!(again(&mut sender, &rtp(1, 0, b"two")).is_some());
        let mut buf = rtp(1, 0, b"2");
        let len = buf.len();
        buf.resize(len + RTP_OVERHEAD_MAX, 0);
        assert_eq!(sender.protect_rtp(&mut buf, len), None);
    }
}

#[test]
fn a_session_continues_at_another_sender_with_new_sources() {
    let (mut old, mut receiver) = pair(Profile::Aes128Gcm);
    for sequence in 65_000..65_500 {
        let mut sealed = seal(&mut old, &rtp(7, sequence, b"x"));
        receiver.unprotect_rtp(&mut sealed).expect("opens");
    }
    let (mut new, _) = pair(Profile::Aes128Gcm);
    new.forbid(&old.ssrcs().collect::<Vec<_>>());
    new.set_rtcp_index(old.rtcp_index() + 100);
    let mut buf = rtp(7, 65_501, b"x");
    let len = buf.len();
    buf.resize(len + RTP_OVERHEAD_MAX, 0);
    assert_eq!(new.protect_rtp(&mut buf.clone(), len), None);
    assert_eq!(new.repeat_rtp(&mut buf, len), None);
    let mut sealed = seal(&mut new, &rtp(8, 65_501, b"x"));
    receiver.unprotect_rtp(&mut sealed).expect("opens");
    assert_eq!(new.ssrcs().collect::<Vec<_>>(), [7, 8]);
    assert_eq!(new.ssrc_count(), 2);
}

/// What another node's sender does when it goes on with a stream, over rollovers, hop after hop: never an
/// index of before, and the receiver follows.
#[test]
fn a_stream_goes_on_at_another_sender_beyond_what_may_have_been_sent() {
    const JUMP: u64 = 1 << 13;
    const ALLOWED: u32 = 1 << 12;
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let mut indices = std::collections::BTreeSet::new();
        let mut sequence = 30_000_u16;
        // The one before the first.
        let mut told = 29_999;
        for _hop in 0..12 {
            sender.allow(ALLOWED);
            told = sender.index(42).unwrap_or(told);
            // More than is allowed: it stops by itself.
            for _ in 0..ALLOWED + 50 {
                let packet = rtp(42, sequence, b"sound");
                let mut buf = packet.clone();
                buf.resize(packet.len() + RTP_OVERHEAD_MAX, 0);
                let Some(len) = sender.protect_rtp(&mut buf, packet.len()) else {
                    break;
                };
                let index = sender.index(42).expect("it was sent under");
                assert!(indices.insert(index), "{index} comes twice");
                let opened = receiver.unprotect_rtp(&mut buf[..len]).expect("it follows");
                assert_eq!(buf[..opened], packet);
                sequence = sequence.wrapping_add(1);
            }
            // Another sender that knows of nothing after the checkpoint.
            let (mut next, _) = pair(profile);
            next.forbid(&[7, 42]);
            next.go_on(42, told + JUMP);
            sequence = ((told + JUMP) as u16).wrapping_add(1);
            sender = next;
        }
        assert!(
            indices.last().is_some_and(|last| last >> 16 > 0),
            "it rolled over"
        );
        let mut other = rtp(7, 1, b"sound");
        other.resize(other.len() + RTP_OVERHEAD_MAX, 0);
        let len = other.len() - RTP_OVERHEAD_MAX;
        assert_eq!(
            sender.protect_rtp(&mut other, len),
            None,
            "it is not gone on with"
        );
    }
}

#[test]
fn a_session_continues_at_another_receiver() {
    let (mut sender, mut old) = pair(Profile::Aes128Gcm);
    let mut last = Vec::new();
    // Over a rollover, so that the count matters.
    for number in 65_000..66_000_u32 {
        last = seal(&mut sender, &rtp(7, number as u16, b"x"));
        old.unprotect_rtp(&mut last.clone()).expect("opens");
        let is_news = number == 65_000 || number == 65_536;
        assert_eq!(old.take_news(), is_news, "{number}");
    }
    let mut report = rtcp(7);
    report.resize(12 + RTCP_OVERHEAD_MAX, 0);
    let len = sender.protect_rtcp(&mut report, 12).expect("seals");
    old.unprotect_rtcp(&mut report[..len].to_vec())
        .expect("opens");

    let (_, mut new) = pair(Profile::Aes128Gcm);
    for (ssrc, index) in old.indices() {
        new.set_index(ssrc, index);
    }
    for (ssrc, index) in old.rtcp_indices() {
        new.set_rtcp_index(ssrc, index);
    }
    assert_eq!(new.unprotect_rtp(&mut last), Err(Discard::Replayed));
    let replayed = new.unprotect_rtcp(&mut report[..len]);
    assert_eq!(replayed, Err(Discard::Replayed));
    for number in 66_000..67_000_u32 {
        let mut sealed = seal(&mut sender, &rtp(7, number as u16, b"x"));
        new.unprotect_rtp(&mut sealed).expect("opens");
    }
    assert!(!new.take_news());
}

#[test]
fn agrees_with_rtc_srtp() {
    for (profile, theirs) in [
        (Profile::Aes128Gcm, ProtectionProfile::AeadAes128Gcm),
        (
            Profile::Aes128CmSha1_80,
            ProtectionProfile::Aes128CmHmacSha1_80,
        ),
    ] {
        let (mut sender, mut receiver) = pair(profile);
        let material = material(profile);
        let mut theirs = Context::new(
            &material[..16],
            &material[32..32 + profile.salt_len()],
            theirs,
            Some(srtp_no_replay_protection()),
            Some(srtcp_no_replay_protection()),
            &AwsLcRsCrypto,
        )
        .expect("length is right");
        let mut sequence = 60_000_u16;
        for count in 0..20_000_u32 {
            let packet = rtp(5, sequence, &count.to_be_bytes());
            sequence = sequence.wrapping_add(1);
            let sealed = seal(&mut sender, &packet);
            let opened = theirs.decrypt_rtp(&sealed).expect("theirs opens ours");
            assert_eq!(opened, packet);
            let mut sealed = theirs.encrypt_rtp(&packet).expect("theirs seals");
            let len = receiver
                .unprotect_rtp(&mut sealed)
                .expect("ours opens theirs");
            assert_eq!(sealed[..len], packet);
        }
        for _ in 0..100 {
            let packet = rtcp(5);
            let sealed = seal_rtcp(&mut sender, &packet);
            assert_eq!(
                theirs.decrypt_rtcp(&sealed).expect("theirs opens ours"),
                packet
            );
            let mut sealed = theirs.encrypt_rtcp(&packet).expect("theirs seals");
            let len = receiver
                .unprotect_rtcp(&mut sealed)
                .expect("ours opens theirs");
            assert_eq!(sealed[..len], packet);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn arbitrary_packets_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), first in 0x80_u8..0xc0) {
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        for profile in PROFILES {
            let (mut sender, mut receiver) = pair(profile);
            prop_assert!(receiver.unprotect_rtp(&mut bytes.clone()).is_err());
            prop_assert!(receiver.unprotect_rtcp(&mut bytes.clone()).is_err());
            let mut buf = bytes.clone();
            buf.resize(bytes.len() + RTCP_OVERHEAD_MAX, 0);
            for len in [0, bytes.len() / 2, bytes.len()] {
                sender.protect_rtp(&mut buf.clone(), len);
                sender.protect_rtcp(&mut buf.clone(), len);
            }
        }
    }
}
