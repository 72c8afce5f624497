//! Numbering, duplicates, restarts, key frames and metering of one layer.

use super::*;

fn arrival(now: Instant, sequence: u16) -> Arrival {
    Arrival {
        numbering: Numbering::Wire(sequence),
        timestamp: 0,
        marker: false,
        codec: Codec::Vp8,
        clock_rate: 90_000,
        carried: Carried::default(),
        origin: Origin::Unknown,
        arrived: now,
    }
}

fn stream() -> Stream {
    Stream::new(
        Quality::High,
        Reordering {
            time: Duration::from_millis(10),
            packets: 3,
        },
    )
}

const DELTA: [u8; 8] = [0x90, 0x80, 0x05, 0x31, 0, 0, 0, 0];
const KEY: [u8; 8] = [0x90, 0x80, 0x05, 0x30, 0, 0, 0x9d, 0x01];

#[test]
fn numbers_count_on_across_the_wrap_and_gaps_are_noted() {
    let now = crate::test_epoch();
    let mut stream = stream();
    let mut take = |sequence: u16| {
        stream
            .receive(now, &arrival(now, sequence), &DELTA, true)
            .map(|accepted| accepted.sequence)
    };
    assert_eq!(take(65_534), Ok(131_070));
    assert_eq!(take(1), Ok(131_073));
    assert_eq!(take(1), Err(Discard::Duplicate));
    assert_eq!(take(65_535), Ok(131_071));
    assert_eq!(take(65_533), Ok(131_069));
    assert!(stream.lacks(0));
    assert!(!stream.lacks(1));
    assert!(!stream.nack.is_empty());
    assert_eq!(stream.counters.packets, 4);
    assert_eq!(stream.counters.duplicates, 1);
}

#[test]
fn a_repair_fills_the_gap_and_measures_the_round_trip() {
    let now = crate::test_epoch();
    let mut stream = stream();
    for sequence in [10, 12, 13, 14] {
        stream
            .receive(now, &arrival(now, sequence), &DELTA, true)
            .expect("new");
    }
    let mut out = [0; 8];
    let highest = stream.highest().expect("started");
    assert_eq!(
        stream
            .nack
            .due(now, Duration::from_millis(50), highest, &mut out),
        1
    );
    let later = now + Duration::from_millis(33);
    let mut repair = arrival(later, 11);
    repair.origin = Origin::Repair;
    let accepted = stream
        .receive(later, &repair, &DELTA, true)
        .expect("missing");
    assert_eq!(accepted.round_trip, Some(Duration::from_millis(33)));
    assert_eq!(stream.counters.repaired, 1);
    assert!(stream.nack.is_empty());
}

#[test]
fn a_stream_that_starts_anew_is_a_new_generation() {
    let now = crate::test_epoch();
    let mut stream = stream();
    let mut take = |sequence: u16| stream.receive(now, &arrival(now, sequence), &DELTA, true);
    take(10_000).expect("first");
    assert_eq!(take(9_000), Err(Discard::TooOld));
    for _ in 0..STALE_MAX - 1 {
        assert_eq!(take(9_000), Err(Discard::TooOld));
    }
    take(9_000).expect("insists");
    take(9_001).expect("goes on");
    take(20_000).expect("jumps");
    assert_eq!(stream.generation, 2);
    assert!(stream.nack.is_empty());
}

#[test]
fn an_expected_gap_is_not_lost() {
    let now = crate::test_epoch();
    let mut stream = stream();
    let mut numbered = arrival(now, 0);
    numbered.numbering = Numbering::Extended(100_000);
    stream.receive(now, &numbered, &DELTA, true).expect("first");
    stream.expects_gap = true;
    numbered.numbering = Numbering::Extended(200_000);
    stream.receive(now, &numbered, &DELTA, true).expect("far");
    assert!(stream.nack.is_empty());
    assert_eq!(stream.generation, 0);
}

#[test]
fn key_frames_are_found_and_answer_requests() {
    let now = crate::test_epoch();
    let mut stream = stream();
    stream
        .receive(now, &arrival(now, 1), &DELTA, true)
        .expect("new");
    stream.key_frames.want();
    assert!(stream.key_frames.take_due(now));
    let accepted = stream
        .receive(now, &arrival(now, 2), &KEY, true)
        .expect("new");
    assert_eq!(accepted.key_frame_start, Some(accepted.sequence));
    assert_eq!(stream.key_frames.deadline(now), None);
    assert_eq!(stream.counters.key_frames, 1);
}

#[test]
fn an_idr_starts_where_its_frame_starts() {
    let now = crate::test_epoch();
    let mut stream = stream();
    let mut take = |sequence: u16, timestamp: u32, payload: &[u8]| {
        let mut packet = arrival(now, sequence);
        packet.codec = Codec::H264;
        packet.timestamp = timestamp;
        stream
            .receive(now, &packet, payload, true)
            .map(|accepted| (accepted.sequence, accepted.key_frame_start))
            .expect("new")
    };
    take(100, 1, &[0x41, 0]);
    // The slice overtakes its parameter sets: no start until they are here.
    assert_eq!(take(103, 2, &[0x65, 0]).1, None);
    assert_eq!(take(102, 2, &[0x68, 0]).1, None);
    let (sequence, start) = take(101, 2, &[0x67, 0]);
    assert_eq!(start, Some(sequence));
}

#[test]
fn the_ring_grows_with_the_packet_rate_up_to_its_bound() {
    let start = crate::test_epoch();
    let mut stream = stream();
    let mut now = start;
    for sequence in 0..3_000_u16 {
        stream
            .receive(now, &arrival(now, sequence), &DELTA, true)
            .expect("new");
        now += Duration::from_millis(1);
        stream.housekeep(now);
    }
    assert_eq!(stream.ring.capacity(), SLOTS_MAX);
    let expected = 8.0 * DELTA.len() as f64 * 1_000.0;
    assert!((stream.bitrate.0 as f64 / expected - 1.0).abs() < 0.05);
    assert_eq!(
        stream.receive(now, &arrival(now, 9), &[0; 1_500], true),
        Err(Discard::TooLarge)
    );
}
