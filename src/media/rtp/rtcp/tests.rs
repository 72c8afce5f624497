//! Everything written is read back; the `rtc-rtcp` crate agrees; arbitrary bytes do not panic.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn written(build: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut buffer = [0xee; 1_200];
    let mut writer = Writer::new(&mut buffer);
    build(&mut writer);
    let len = writer.len();
    buffer[..len].to_vec()
}

fn read_one(bytes: &[u8]) -> Packet<'_> {
    let mut all = packets(bytes);
    let packet = all.next().expect("one packet").expect("well formed");
    assert!(all.next().is_none());
    packet
}

fn accepted_by_rtc_rtcp(bytes: &[u8]) -> usize {
    let mut bytes = Bytes::copy_from_slice(bytes);
    rtc_rtcp::packet::unmarshal(&mut bytes)
        .expect("another implementation reads it")
        .len()
}

#[test]
fn reports_survive() {
    let block = ReportBlock {
        ssrc: 5,
        fraction_lost: 200,
        packets_lost: -3,
        highest_sequence: 0x1_0005,
        jitter: 77,
        last_report: 0xaabb_ccdd,
        delay: 65_536,
    };
    let info = SenderInfo {
        ntp: 0x0123_4567_89ab_cdef,
        rtp: 90_000,
        packets: 10,
        bytes: 10_000,
    };
    let bytes = written(|writer| {
        assert!(writer.sender_report(9, &info, &[block]));
        assert!(writer.receiver_report(1, &[block, block]));
        assert!(writer.source_description(9, "flotilla"));
        assert!(writer.bye(9));
    });
    assert_eq!(accepted_by_rtc_rtcp(&bytes), 4);
    let all: Vec<Packet<'_>> = packets(&bytes).map(|p| p.expect("well formed")).collect();
    assert!(matches!(
        all[0],
        Packet::SenderReport { ssrc: 9, info: read, blocks }
            if read == info && blocks.eq([block])
    ));
    assert!(matches!(
        all[1],
        Packet::ReceiverReport { ssrc: 1, blocks } if blocks.count() == 2
    ));
    assert!(matches!(all[2], Packet::SourceDescription));
    assert!(matches!(all[3], Packet::Bye(ssrcs) if ssrcs.eq([9])));
}

#[test]
fn feedback_survives() {
    let bytes = written(|writer| {
        assert!(writer.pli(1, 2));
        assert!(writer.remb(1, 1_234_567_890, &[2, 3]));
    });
    assert_eq!(accepted_by_rtc_rtcp(&bytes), 2);
    let all: Vec<Packet<'_>> = packets(&bytes).map(|p| p.expect("well formed")).collect();
    assert!(matches!(all[0], Packet::Pli { media: 2 }));
    let Packet::Remb { bitrate_bps, ssrcs } = all[1] else {
        panic!("{:?}", all[1]);
    };
    assert!((bitrate_bps as f64 / 1_234_567_890.0 - 1.0).abs() < 1e-4);
    assert_eq!(ssrcs.collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_full_intra_request_names_its_streams() {
    let bytes = [
        0x84, 206, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 42, 7, 0, 0, 0,
    ];
    let Packet::Fir(entries) = read_one(&bytes) else {
        panic!("not a FIR");
    };
    assert_eq!(entries.collect::<Vec<_>>(), [42]);
}

#[test]
fn truncated_packets_are_refused() {
    let bytes = written(|writer| {
        writer.receiver_report(1, &[ReportBlock::default()]);
    });
    for len in 1..bytes.len() {
        assert!(packets(&bytes[..len]).any(|packet| packet.is_err()));
    }
    let mut lies = bytes;
    lies[0] = 0x9f; // 31 blocks announced
    assert!(packets(&lies).any(|packet| packet.is_err()));
}

proptest! {
    #[test]
    fn any_nack_list_survives(start in any::<u16>(), steps in proptest::collection::vec(1_u16..40, 1..60)) {
        let mut next = start;
        let mut sequences = vec![];
        for step in steps {
            sequences.push(next);
            next = next.wrapping_add(step);
        }
        let mut taken = 0;
        let bytes = written(|writer| taken = writer.nack(1, 2, &sequences));
        prop_assert!(taken > 0);
        let mut read = vec![];
        let Packet::Nack { media: 2, pairs } = read_one(&bytes) else {
            return Err(TestCaseError::fail("not a NACK"));
        };
        pairs.for_each_sequence(|sequence| read.push(sequence));
        prop_assert_eq!(&read[..], &sequences[..taken]);
        prop_assert_eq!(accepted_by_rtc_rtcp(&bytes), 1);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 200_u8..208) {
        for forced in [false, true] {
            if forced && bytes.len() >= 4 {
                bytes[0] = 0x80 | (bytes[0] & 0x3f);
                bytes[1] = kind;
                let words = (bytes.len() / 4 - 1) as u16;
                bytes[2..4].copy_from_slice(&words.to_be_bytes());
            }
            for packet in packets(&bytes).flatten() {
                match packet {
                    Packet::SenderReport { blocks, .. } | Packet::ReceiverReport { blocks, .. } => { blocks.count(); }
                    Packet::Bye(words) | Packet::Remb { ssrcs: words, .. } => { words.count(); }
                    Packet::Nack { pairs, .. } => pairs.for_each_sequence(|_| ()),
                    Packet::Fir(entries) => { entries.count(); }
                    Packet::Twcc(whole) => { crate::rtp::twcc::read(whole, |_, _| ()); }
                    _ => (),
                }
            }
        }
    }
}
