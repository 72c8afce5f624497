//! Each fault that the check is for, planted into a made-up capture, is seen; sound ones pass.

use super::super::packet::tests::{answer, client_hello, datagram, rtcp, rtp, stun};
use super::*;

fn run(wire: Vec<Datagram>) -> Findings {
    let mut proof = Proof::new(|address| address.octets()[3] < 100);
    for datagram in &wire {
        proof.take(datagram);
    }
    proof.findings()
}

/// The client at `port` connects to a node: an ICE check with its answer and, unless it brings keys, a handshake.
fn connect(node: u8, port: u16, user: &str, handshake: Option<u8>) -> Vec<Datagram> {
    let mut wire = vec![
        datagram(0.0, node, port, false, stun(user, node)),
        datagram(0.0, node, port, true, answer(node)),
    ];
    wire.extend(handshake.map(|random| datagram(0.0, node, port, false, client_hello(random))));
    wire
}

fn media(node: u8, port: u16, ssrc: u32, sequences: std::ops::Range<u32>) -> Vec<Datagram> {
    sequences
        .map(|sequence| {
            let body = [node, 0, (sequence >> 8) as u8, sequence as u8];
            datagram(1.0, node, port, true, rtp(ssrc, sequence as u16, &body))
        })
        .collect()
}

#[test]
fn an_honest_takeover_with_keys_passes() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 65_000..65_600),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 66_600..66_700),
        connect(1, 5002, "c:z", None),
        media(1, 5002, 7, 67_700..67_800),
    ];
    let found = run(wire.concat());
    assert!(found.hold(), "{found:?}");
    assert_eq!((found.generations, found.continued, found.moves), (1, 2, 2));
    assert_eq!((found.unattributed, found.packets), (0, 800));
}

#[test]
fn an_honest_takeover_with_a_fresh_handshake_passes() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        connect(2, 5000, "b:y", Some(2)),
        media(2, 5000, 7, 0..100),
    ];
    let found = run(wire.concat());
    assert!(found.hold(), "{found:?}");
    assert_eq!(found.generations, 2);
}

#[test]
fn a_taker_that_starts_over_under_the_same_key_is_seen() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 90..110),
    ];
    let found = run(wire.concat());
    assert_eq!((found.index_reused, found.older_after_newer), (10, 0));
    assert!(!found.hold());
}

#[test]
fn reuse_on_the_old_address_is_seen_too() {
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.extend(media(1, 5000, 7, 0..10));
    wire.push(datagram(2.0, 1, 5000, true, rtp(7, 5, &[9, 9, 9, 9])));
    assert_eq!(run(wire).index_reused, 1);
}

#[test]
fn the_same_packet_again_is_no_reuse() {
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.extend(media(1, 5000, 7, 0..10));
    wire.extend(media(1, 5000, 7, 5..6));
    assert!(run(wire).hold());
}

#[test]
fn one_index_of_two_rounds_of_the_sequence_is_no_reuse() {
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.extend(media(1, 5000, 7, 0..70_000));
    assert!(run(wire).hold());
}

#[test]
fn a_lost_rollover_counter_is_no_new_index() {
    // Another body under the sequence number that was just sent: the estimate stays in this round.
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.extend(media(1, 5000, 7, 65_500..65_540));
    wire.push(datagram(2.0, 1, 5000, true, rtp(7, 65_535, &[9, 9, 9, 9])));
    assert_eq!(run(wire).index_reused, 1);
}

#[test]
fn a_reused_index_of_a_report_is_seen() {
    let mut wire = connect(1, 5000, "a:x", Some(1));
    for (index, body) in [(1, [1; 20]), (2, [2; 20]), (2, [3; 20])] {
        wire.push(datagram(1.0, 1, 5000, true, rtcp(7, index, &body)));
    }
    assert_eq!(run(wire).index_reused, 1);
}

#[test]
fn an_old_home_that_goes_on_sending_is_seen() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 1000..1100),
        media(1, 5000, 7, 100..103),
    ];
    let found = run(wire.concat());
    assert_eq!((found.older_after_newer, found.index_reused), (3, 0));
}

#[test]
fn an_old_home_that_ends_the_transport_late_is_seen() {
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.extend(media(1, 5000, 7, 0..10));
    wire.extend(connect(2, 5001, "b:y", None));
    wire.extend(media(2, 5001, 7, 1000..1010));
    wire.push(datagram(2.0, 1, 5000, true, vec![21, 0xfe, 0xfd, 0, 1]));
    assert_eq!(run(wire).older_after_newer, 1);
}

#[test]
fn an_address_that_moves_between_nodes_and_an_old_owner_are_told_apart() {
    // Both nodes use one IP address and one ICE session; only the interfaces differ.
    let as_node = |node: u8, mut wire: Vec<Datagram>| {
        for datagram in &mut wire {
            datagram.hardware = Hardware([2, 0, 0, 0, 0, node]);
        }
        wire
    };
    let begun = [connect(1, 5000, "a:x", Some(1)), media(1, 5000, 7, 0..100)].concat();
    let taken = as_node(2, media(1, 5000, 7, 1000..1100));
    let found = run([begun.clone(), taken.clone()].concat());
    assert!(found.hold());
    assert_eq!(found.moves, 1);
    let woken = media(1, 5000, 7, 100..101);
    assert_eq!(run([begun, taken, woken].concat()).older_after_newer, 1);
}

#[test]
fn sessions_whose_handshake_was_not_seen_are_checked_per_client() {
    let found = run(media(1, 5000, 7, 0..10));
    assert_eq!((found.unattributed, found.generations), (10, 0));
    assert!(found.hold());
    // The same stream at another address of that client, another packet under an index.
    let again = datagram(1.0, 1, 5001, true, rtp(7, 9, &[9; 20]));
    let found = run([media(1, 5000, 7, 0..10), vec![again.clone()]].concat());
    assert_eq!(
        (found.unattributed, found.index_reused),
        (11, 1),
        "{found:?}"
    );
    // Another client has other keys.
    let mut other = again;
    other.to = std::net::SocketAddrV4::new([10, 79, 0, 102].into(), 5001);
    assert!(run([media(1, 5000, 7, 0..10), vec![other]].concat()).hold());
    // A session that was seen and goes on at another address on new streams.
    let begun = [connect(1, 5000, "a:x", Some(1)), media(1, 5000, 7, 0..10)].concat();
    let moved = [begun, media(1, 5001, 8, 0..10)].concat();
    assert!(run(moved.clone()).hold());
    let again = datagram(1.0, 1, 5002, true, rtp(8, 9, &[9; 20]));
    assert_eq!(run([moved, vec![again]].concat()).index_reused, 1);
}

#[test]
fn reports_of_a_session_from_before_do_not_pass_for_those_of_a_new_one() {
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.push(datagram(1.0, 1, 5000, true, rtcp(1, 7, &[1; 20])));
    wire.push(datagram(1.0, 1, 4000, true, rtcp(1, 7, &[2; 20])));
    let found = run(wire);
    assert!(found.hold(), "{found:?}");
    assert_eq!((found.continued, found.unattributed), (0, 1));
}

#[test]
fn a_lent_path_is_no_older_home() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        // The newer home's, by way of the older one.
        media(1, 5000, 7, 8300..8350),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 8351..8400),
        // The last of them comes late.
        media(1, 5000, 7, 8350..8351),
    ];
    let found = run(wire.concat());
    assert!(found.hold(), "{found:?}");
    assert_eq!((found.lent, found.moves), (51, 1));
}

#[test]
fn an_old_home_that_sends_itself_beside_a_lent_path_is_seen() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        media(1, 5000, 7, 8300..8350),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 8350..8400),
        media(1, 5000, 7, 100..103),
    ];
    let found = run(wire.concat());
    assert_eq!((found.older_after_newer, found.lent), (3, 50));
}

#[test]
fn an_index_used_on_a_lent_path_and_again_on_the_new_one_is_seen() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        media(1, 5000, 7, 8300..8350),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 8345..8400),
    ];
    assert_eq!(run(wire.concat()).index_reused, 5);
}

#[test]
fn an_address_that_moves_to_an_earlier_home_and_that_home_itself_are_told_apart() {
    let as_node = |node: u8, mut wire: Vec<Datagram>| {
        for datagram in &mut wire {
            datagram.hardware = Hardware([2, 0, 0, 0, 0, node]);
        }
        wire
    };
    let begun = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 200..300),
    ]
    .concat();
    // The second node dies, its address comes to the first, which goes on a step further.
    let taken = as_node(1, media(2, 5001, 7, 8500..8600));
    let found = run([begun.clone(), taken.clone()].concat());
    assert!(found.hold(), "{found:?}");
    assert_eq!((found.moves, found.lent), (2, 0));
    // Without a step it is an earlier home that goes on by itself.
    let woken = as_node(1, media(2, 5001, 7, 300..301));
    assert_eq!(run([begun.clone(), woken].concat()).older_after_newer, 1);
    // And so is the second if it still lives.
    let lives = media(2, 5001, 7, 300..302);
    assert_eq!(run([begun, taken, lives].concat()).older_after_newer, 2);
}

#[test]
fn a_node_that_has_lent_a_path_and_has_the_client_again_is_its_home() {
    let wire = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 0..100),
        media(1, 5000, 7, 8300..8350),
        connect(2, 5001, "b:y", None),
        media(2, 5001, 7, 8350..8400),
        connect(1, 5000, "c:z", None),
        media(1, 5000, 7, 16_600..16_650),
        media(2, 5001, 7, 8400..8404),
    ];
    let found = run(wire.concat());
    assert_eq!((found.older_after_newer, found.lent), (4, 50), "{found:?}");
}

#[test]
fn records_and_reports_tell_a_moved_address_too() {
    let as_node = |node: u8, mut datagram: Datagram| {
        datagram.hardware = Hardware([2, 0, 0, 0, 0, node]);
        datagram
    };
    let record = |number: u64| {
        let mut bytes = vec![23, 0xfe, 0xfd, 0, 1];
        bytes.extend(&number.to_be_bytes()[2..]);
        datagram(1.0, 2, 5001, true, bytes)
    };
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.extend(media(1, 5000, 7, 0..100));
    wire.extend(connect(2, 5001, "b:y", None));
    wire.extend(media(2, 5001, 7, 200..300));
    wire.push(record(5));
    // The second node's address comes to the first.
    let mut taken = wire.clone();
    for index in 1..3 {
        taken.push(as_node(
            1,
            datagram(1.0, 2, 5001, true, rtcp(9, index, &[1; 20])),
        ));
    }
    taken.push(as_node(1, record((1 << 24) + 6)));
    let found = run(taken);
    assert!(found.hold(), "{found:?}");
    assert_eq!(found.moves, 2);
    wire.push(as_node(1, record(6)));
    assert_eq!(run(wire).older_after_newer, 1);
}

#[test]
fn a_check_that_nobody_answers_brings_no_client_back() {
    let honest = [
        connect(1, 5000, "a:x", Some(1)),
        media(1, 5000, 7, 65_000..65_100),
        connect(2, 5000, "b:y", None),
        media(2, 5000, 7, 73_400..73_500),
    ]
    .concat();
    // With the old node's fragment and the client's new one, or all of the new node's.
    for user in ["a:y", "b:y"] {
        let mut wire = honest.clone();
        wire.push(datagram(0.0, 1, 5000, false, stun(user, 9)));
        wire.extend(media(1, 5000, 7, 65_100..65_102));
        wire.extend(media(2, 5000, 7, 73_500..73_600));
        let found = run(wire);
        // Two packets of the former home, none of the present one.
        assert_eq!(
            (found.older_after_newer, found.moves),
            (2, 1),
            "{user}: {found:?}"
        );
    }
    let mut wire = honest;
    wire.extend(connect(1, 5000, "c:z", None));
    wire.extend(media(1, 5000, 7, 81_800..81_900));
    assert!(run(wire).hold());
}

/// A client that was cut off from its former home for a moment asks it in the session by which it came to the next one.
#[test]
fn who_passes_on_a_clients_checks_does_not_have_the_client_back() {
    let record = |node: u8, number: u64| {
        let mut bytes = vec![23, 0xfe, 0xfd, 0, 1];
        bytes.extend(&number.to_be_bytes()[2..]);
        datagram(1.0, node, 5000, true, bytes)
    };
    let mut wire = connect(1, 5000, "a:x", Some(1));
    wire.extend(media(1, 5000, 7, 0..100));
    wire.push(record(1, 5));
    wire.extend(connect(2, 5000, "b:y", None));
    wire.push(record(2, (1 << 24) + 6));
    // By way of the former home, which lends its path: the node's answer, a record, a stream.
    wire.extend(connect(1, 5000, "b:y", None));
    wire.push(record(1, (1 << 24) + 7));
    wire.extend(media(1, 5000, 8, 0..3));
    wire.extend(media(2, 5000, 9, 0..50));
    wire.extend(media(1, 5000, 8, 3..6));
    let found = run(wire.clone());
    assert!(found.hold(), "{found:?}");
    assert_eq!((found.moves, found.lent), (1, 6));
    // What the former home had begun is still its own.
    wire.extend(media(1, 5000, 7, 100..102));
    wire.extend(media(2, 5000, 9, 50..60));
    let found = run(wire.clone());
    assert_eq!((found.older_after_newer, found.moves), (2, 1), "{found:?}");
    assert!(
        found.told[0].contains("10.79.0.2:7882 (2) to port 5000 serves"),
        "{found:?}"
    );
    // The client comes back for good, and asks the node that lends now later.
    wire.truncate(wire.len() - 12);
    wire.extend(connect(1, 5000, "c:z", None));
    wire.extend(connect(2, 5000, "c:z", None));
    wire.extend(media(1, 5000, 7, 8300..8310));
    wire.extend(media(2, 5000, 9, 60..62));
    assert_eq!(run(wire).older_after_newer, 2);
}
