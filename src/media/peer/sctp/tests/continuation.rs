//! An association continued by a server that knows only where it stood, against dcsctp. What the
//! former server had received and not acknowledged, and what was on its way, must arrive here.

use super::restart::{BINARY, Browser, DELAY, Link};
use super::*;
use crate::peer::sctp::continuation::Former;
use crate::peer::sctp::packet;
use crate::peer::sctp::wire;

const STREAM: u16 = 2;
const LOSSY: u16 = 3;
/// A message that comes after all others.
const PROBE: u8 = 200;
const CHANNELS: [(Channel, u16); 2] = [(Channel::Reliable, STREAM), (Channel::Lossy, LOSSY)];
/// As long as a client's timer can be at the fourth repetition.
const PATIENCE: Duration = Duration::from_secs(8);

impl Link {
    /// Connected, with one channel open, and nothing under way.
    fn ready() -> Self {
        let mut link = Self::opened();
        link.settle();
        link
    }

    fn standing(&self) -> Standing {
        self.server.standing().cloned().expect("established")
    }

    /// The server dies with all that is under way; another goes on from `standing`. What the former
    /// one received stays received.
    fn kill(&mut self, standing: Standing, sequence: u32) {
        self.flush();
        self.wire.clear();
        self.opened.clear();
        self.server = Sctp::new(ChannelPlan::Client, DataLimits::default());
        let former = Former { standing, sequence };
        self.server.revive(&CHANNELS, Some(former));
    }

    /// Time in which the client hears nothing.
    fn outage(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.browser.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let _ = self.browser.drive(self.now);
        }
        self.now = until;
        self.flush();
        self.wire.clear();
    }

    /// The path is up, and the client goes on.
    fn accept(&mut self) {
        self.server.begin(self.now);
        let took = self.run(PATIENCE, |link| link.opened.len() == 2);
        assert!(took <= 2 * DELAY, "one round trip: {took:?}");
    }

    /// The server dies, nobody answers for a while, another goes on.
    fn take_over(&mut self, standing: Standing, sequence: u32, outage: Duration) {
        self.kill(standing, sequence);
        self.outage(outage);
        self.accept();
    }

    fn say(&mut self, numbers: std::ops::Range<u8>) {
        for number in numbers {
            self.browser.send(STREAM, BINARY, &[number]);
        }
    }

    /// The same as LiveKit's clients number them.
    fn say_numbered(&mut self, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            self.browser.send(STREAM, BINARY, &numbered(number));
        }
    }

    fn heard(&self) -> Vec<u8> {
        let messages = self.received.iter();
        messages
            .filter(|(channel, _)| *channel == Channel::Reliable)
            .map(|(_, message)| message[0])
            .collect()
    }

    /// Numbers of what was heard, of clients that number it.
    fn numbers(&self) -> Vec<u8> {
        let messages = self.received.iter();
        messages.map(|(_, message)| message[2]).collect()
    }

    /// The client has said 1 to 3, which all nodes have, and says this as its server dies.
    fn taken_over_behind_three(last: std::ops::Range<u8>) -> Self {
        let mut link = Self::ready();
        let standing = link.standing();
        link.say_numbered(1..4);
        link.settle();
        link.say_numbered(last);
        link.take_over(standing, 3, Duration::from_millis(100));
        link
    }

    fn hear(&mut self, all: std::ops::Range<u8>) -> Duration {
        let len = all.len();
        let took = self.run(PATIENCE, |link| link.heard().len() >= len);
        assert_eq!(self.heard(), all.collect::<Vec<_>>());
        took
    }

    /// Messages of the client, of which all were acknowledged.
    fn settle(&mut self) {
        let until = self.now + Duration::from_millis(500);
        self.run_until(until);
        self.received.clear();
    }

    fn run_until(&mut self, until: Instant) {
        let limit = until - self.now + DELAY;
        self.browser.wake_at(until);
        self.run(limit, |link| link.now >= until);
    }
}

#[test]
fn what_was_on_its_way_arrives_once_and_in_order() {
    let mut link = Link::ready();
    link.say(0..3);
    link.settle();
    let standing = link.standing();
    link.say(0..5);
    link.take_over(standing, 0, Duration::from_millis(300));
    link.say(5..9);
    link.hear(0..9);
    link.received.clear();
    link.talk();
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn a_checkpoint_may_be_behind() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.say(0..40);
    link.settle();
    // The former server received these and had no time to acknowledge them.
    link.say(40..42);
    link.flush();
    for (_, _, packet) in std::mem::take(&mut link.wire) {
        link.server.handle(link.now, packet).expect("takes");
    }
    while link.server.poll_transmit().is_some() {}
    link.say(42..45);
    link.kill(standing, 0);
    link.outage(Duration::from_millis(200));
    link.received.clear();
    link.accept();
    link.say(45..50);
    link.run(PATIENCE, |link| link.heard().len() >= 10);
    assert_eq!(link.heard(), (40..50).collect::<Vec<_>>());
    assert_eq!(link.browser.restarts, 0);
    link.received.clear();
    link.talk();
}

#[test]
fn an_idle_client_notices_nothing() {
    let mut link = Link::ready();
    link.talk();
    link.settle();
    let standing = link.standing();
    link.take_over(standing, 0, Duration::from_secs(3));
    link.received.clear();
    link.say(0..1);
    let took = link.hear(0..1);
    assert!(took <= DELAY, "at once: {took:?}");
    link.received.clear();
    link.talk();
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn several_servers_die_in_a_row() {
    let mut link = Link::ready();
    let mut next = 0;
    for hop in 0..4 {
        let standing = link.standing();
        link.say(next..next + 4);
        let early = Bytes::from(vec![hop; 2000]);
        link.server
            .send(link.now, Channel::Reliable, early.clone())
            .expect("open or waits");
        link.take_over(standing, 0, Duration::from_millis(150));
        link.server
            .send(link.now, Channel::Reliable, early.clone())
            .expect("open");
        link.say(next + 4..next + 8);
        next += 8;
        link.hear(0..next);
        assert_eq!(link.browser.received.len(), usize::from(hop) + 1);
        assert!(link.browser.received.iter().all(|(id, _)| *id == STREAM));
        assert_eq!(link.browser.restarts, 0);
    }
}

#[test]
fn a_lost_retransmission_is_waited_for() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.say(0..5);
    link.take_over(standing, 0, Duration::from_millis(100));
    link.losses_up = 1;
    link.hear(0..5);
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn a_handshake_that_the_client_has_not_finished_is_finished() {
    let mut link = Link::opened();
    let standing = link.standing();
    link.say(0..3);
    link.browser.send(STREAM, BINARY, &[3; 20_000]);
    link.browser.send(STREAM, BINARY, &[4; 20_000]);
    // The former server had the client's last packet, and its answer is lost.
    link.kill(standing, 0);
    link.server.begin(link.now);
    link.run(PATIENCE, |link| link.opened.len() == 2);
    link.hear(0..5);
    link.received.clear();
    link.talk();
}

#[test]
fn a_lost_skip_is_repeated() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.say(0..5);
    link.kill(standing, 0);
    link.losses = 2;
    link.server.begin(link.now);
    link.run(Duration::from_millis(600), |link| link.opened.len() == 2);
    link.hear(0..5);
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn long_messages_arrive_whole() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.browser.send(STREAM, BINARY, &[0; 20_000]);
    link.browser.send(STREAM, BINARY, &[1; 20_000]);
    link.take_over(standing, 0, Duration::from_millis(100));
    link.hear(0..2);
    assert!(link.received.iter().all(|(_, m)| m.len() == 20_000));
    assert_eq!(link.browser.restarts, 0);
    assert_eq!(link.server.dropped_in(), 0);
}

#[test]
fn the_rest_of_a_torn_message_is_skipped() {
    let mut link = Link::ready();
    link.browser.send(STREAM, BINARY, &[0; 200_000]);
    link.say(1..4);
    // The former server acknowledges the beginning only.
    link.run(PATIENCE, |link| link.wire.iter().any(|(_, up, _)| !up));
    link.run(PATIENCE, |link| link.wire.iter().all(|(_, up, _)| *up));
    assert!(link.heard().is_empty());
    let standing = link.standing();
    link.take_over(standing, 0, Duration::from_millis(100));
    link.run(PATIENCE, |link| link.heard().len() >= 3);
    assert_eq!(link.heard(), [1, 2, 3]);
    assert_eq!(link.server.dropped_in(), 1);
    assert_eq!(link.browser.restarts, 0);
    link.received.clear();
    link.talk();
}

#[test]
fn lossy_messages_that_were_given_up_do_not_block() {
    for reliable_first in [true, false] {
        let mut link = Link::ready();
        let standing = link.standing();
        if reliable_first {
            link.say(0..1);
        }
        for number in 0..5 {
            link.browser.send_lossy(LOSSY, &[number]);
        }
        if !reliable_first {
            link.say(0..1);
        }
        link.take_over(standing, 0, Duration::from_millis(900));
        link.say(1..3);
        link.browser.send_lossy(LOSSY, &[9]);
        link.hear(0..3);
        assert_eq!(link.browser.restarts, 0);
        link.received.clear();
        link.talk();
    }
}

#[test]
fn a_lossy_message_alone_is_given_up_too() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.browser.send_lossy(LOSSY, &[1]);
    link.take_over(standing, 0, Duration::from_millis(600));
    link.say(0..3);
    link.hear(0..3);
    assert_eq!(link.browser.restarts, 0);
}

/// A message as LiveKit's clients number them.
fn numbered(number: u8) -> [u8; 3] {
    [0x80, 1, number]
}

#[test]
fn numbers_show_where_the_client_stands() {
    let mut link = Link::taken_over_behind_three(4..6);
    // The first repetition is enough, though no TSN has come twice.
    link.run(Duration::from_millis(700), |link| link.received.len() == 2);
    assert_eq!(link.received[1].1, numbered(5)[..]);
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn what_an_sdk_sends_again_behind_a_newer_message_does_not_swallow_that() {
    let mut link = Link::taken_over_behind_three(4..5);
    link.say_numbered([5, 4]);
    link.run(Duration::from_millis(700), |link| link.received.len() == 3);
    assert_eq!(link.numbers(), [4, 5, 4]);
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn what_is_lost_as_the_path_changes_is_taken_from_what_an_sdk_sends_again() {
    let mut link = Link::taken_over_behind_three(4..5);
    link.hear(0x80..0x81);
    link.losses_up = 1;
    for number in [5, 6, 5] {
        link.say_numbered([number]);
        link.flush();
    }
    let took = link.run(PATIENCE, |link| link.received.len() == 4);
    assert_eq!(took, DELAY, "nobody waits for a timer");
    assert_eq!(link.numbers(), [4, 5, 6, 5]);
    link.received.clear();
    link.talk();
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn packets_out_of_order_are_no_retransmission() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.say(0..20);
    link.settle();
    link.say(20..22);
    link.kill(standing, 0);
    link.accept();
    // Two new packets, the second first.
    link.say(22..23);
    link.flush();
    link.say(23..24);
    link.flush();
    let mut packets: Vec<_> = link.wire.drain(..).collect();
    packets.reverse();
    link.wire.extend(packets);
    link.run(PATIENCE, |link| link.heard().len() >= 4);
    assert_eq!(link.heard(), [20, 21, 22, 23]);
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn what_the_former_server_had_behind_a_gap_is_not_waited_for_forever() {
    for later in [0, 3] {
        let mut link = Link::ready();
        let standing = link.standing();
        // The first is lost; the others are received and reported.
        link.say(0..1);
        link.losses_up = 1;
        link.flush();
        link.say(1..2);
        link.run(PATIENCE, |link| link.wire.iter().any(|(_, up, _)| !up));
        link.run(PATIENCE, |link| link.wire.iter().all(|(_, up, _)| *up));
        link.say(2..3);
        link.kill(standing, 0);
        link.accept();
        link.say(3..3 + later);
        link.run(PATIENCE, |link| link.browser.restarts == 1);
        link.run(PATIENCE, |link| link.server.is_open(Channel::Reliable));
        assert!(link.heard().starts_with(&[0]), "{:?}", link.heard());
        link.received.clear();
        link.talk();
    }
}

#[test]
fn a_client_that_cannot_skip_begins_anew() {
    let mut link = Link::ready();
    let mut standing = link.standing();
    standing.skips = false;
    link.kill(standing, 0);
    link.server.begin(link.now);
    link.run(PATIENCE, |link| link.opened.len() == 2);
    assert_eq!(link.browser.restarts, 1);
    link.received.clear();
    link.talk();
}

#[test]
fn a_client_that_does_not_know_the_association_begins_anew() {
    let mut link = Link::ready();
    let mut standing = link.standing();
    standing.client_tag ^= 1;
    link.kill(standing, 0);
    link.server.begin(link.now);
    let took = link.run(PATIENCE, |link| link.opened.len() == 2);
    assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(2500));
    assert_eq!(link.browser.restarts, 1);
    link.received.clear();
    link.talk();
}

#[test]
fn a_checkpoint_from_before_the_last_server_is_not_used() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.kill(standing.clone(), 0);
    link.accept();
    link.talk();
    // This server made no checkpoint.
    link.kill(standing, 0);
    link.server.begin(link.now);
    link.run(PATIENCE, |link| link.opened.len() == 2);
    assert_eq!(link.browser.restarts, 1);
    link.received.clear();
    link.talk();
}

#[test]
fn a_client_that_begins_anew_by_itself_is_followed() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.kill(standing, 0);
    link.accept();
    link.browser = Browser::new(link.now);
    link.opened.clear();
    link.open(STREAM);
    link.run(PATIENCE, |link| link.opened == [Channel::Reliable]);
    link.received.clear();
    link.talk();
}

#[test]
fn an_association_that_ends_meanwhile_does_not_stay() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.kill(standing.clone(), 0);
    link.server.begin(link.now);
    let mut abort = wire::Packet::new(standing.our_tag);
    abort.push(wire::ABORT, &[]);
    let abort = abort.seal().expect("has a chunk");
    link.server.handle(link.now, abort).expect("is taken");
    // It tries from the beginning, as long as that makes sense.
    let init = std::iter::from_fn(|| link.server.poll_transmit()).last();
    let init = init.expect("sends");
    let kinds: Vec<_> = wire::chunks(&init).map(|chunk| chunk.kind).collect();
    assert_eq!(kinds, [wire::INIT]);
}

#[test]
fn damaged_packets_change_nothing() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.say(0..3);
    link.kill(standing.clone(), 0);
    link.server.begin(link.now);
    let mut packet = wire::Packet::new(standing.our_tag);
    packet.push(wire::SACK, &[0; 3]);
    packet.push(wire::FORWARD_TSN, &[0; 2]);
    packet.push(wire::DATA, &[0; 5]);
    packet.push(wire::RE_CONFIG, &[0, 13, 0, 5, 0]);
    packet.push(wire::SHUTDOWN, &[]);
    let packet = packet.seal().expect("has chunks");
    let mut wrong = packet.to_vec();
    wrong[9] ^= 1;
    let refused = link.server.handle(link.now, wrong.into());
    assert_eq!(refused, Err(Discard::Malformed));
    // Whether it is refused or of no use.
    let _ = link.server.handle(link.now, packet);
    link.run(PATIENCE, |link| link.opened.len() == 2);
    link.hear(0..3);
    assert_eq!(link.browser.restarts, 0);
}

#[test]
fn a_channel_that_the_client_closes_closes() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.kill(standing, 0);
    link.accept();
    link.say(0..2);
    link.hear(0..2);
    link.browser.reset(STREAM);
    link.run(PATIENCE, |link| !link.server.is_open(Channel::Reliable));
    assert!(link.server.is_open(Channel::Lossy));
    link.run(PATIENCE, |link| link.browser.was_reset(STREAM));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Servers die at any moment, the network loses packets: what the client sends arrives in order,
    /// at one of the servers at least, unless the association had to begin anew.
    #[test]
    fn nothing_is_lost(
        loss in prop_oneof![Just(0.0), 0.0..0.1],
        hops in proptest::collection::vec((0_u64..600, 0_u64..1500, 1_u8..20), 1..4),
        behind in any::<bool>(),
    ) {
        let mut link = Link::ready();
        let mut next = 0;
        let mut standing = link.standing();
        link.loss = loss;
        for (lived, outage, messages) in hops {
            let begun = link.now;
            for number in next..next + messages {
                link.browser.send(STREAM, BINARY, &[number]);
                let until = link.now + Duration::from_millis(lived / u64::from(messages));
                link.run_until(until);
            }
            next += messages;
            // The checkpoint of a server that lived for a moment may be its first.
            if !behind || link.now - begun > Duration::from_millis(500) {
                standing = link.standing();
            }
            link.kill(standing.clone(), 0);
            link.outage(Duration::from_millis(outage));
            link.server.begin(link.now);
            standing = link.standing();
        }
        // Whatever happened, the channel works in the end.
        link.loss = 0.0;
        let begun = link.now;
        while link.heard().iter().all(|number| *number < PROBE) {
            prop_assert!(link.now - begun < Duration::from_secs(30), "{:?}", link.heard());
            link.browser.send(STREAM, BINARY, &[PROBE]);
            link.run_until(link.now + Duration::from_millis(250));
        }
        let mut first = Vec::new();
        for number in link.heard() {
            if !first.contains(&number) {
                first.push(number);
            }
        }
        first.retain(|number| *number < PROBE);
        prop_assert!(first.is_sorted(), "{:?}", first);
        // A server may have had messages behind a gap, which nobody sends again.
        if loss == 0.0 && !behind {
            prop_assert_eq!(link.browser.restarts, 0);
        }
        if loss == 0.0 && link.browser.restarts == 0 {
            prop_assert_eq!(first, (0..next).collect::<Vec<_>>());
        }
    }
}

proptest! {
    /// Whatever a client sends: no panic, and no time that does not pass.
    #[test]
    fn a_client_may_send_anything(
        packets in proptest::collection::vec(
            proptest::collection::vec(
                (
                    proptest::sample::select(vec![0_u8, 3, 4, 10, 130, 192]),
                    any::<u8>(),
                    proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..40),
                    any::<bool>(),
                ),
                1..4,
            ),
            1..12,
        ),
        accepted in any::<bool>(),
    ) {
        let mut link = Link::ready();
        let standing = link.standing();
        link.kill(standing.clone(), 0);
        if accepted {
            link.accept();
        } else {
            link.server.begin(link.now);
        }
        for chunks in packets {
            let mut packet = wire::Packet::new(standing.our_tag);
            for (kind, flags, mut value, is_near) in chunks {
                // A number close to those in use gets farther.
                if is_near {
                    wire::add_u32(&mut value, 0, standing.acknowledged);
                    if let Some(first) = value.get_mut(..2) {
                        first.copy_from_slice(&standing.acknowledged.to_be_bytes()[..2]);
                    }
                }
                let mut chunk = vec![kind, flags, 0, value.len() as u8 + 4];
                chunk.extend(value);
                packet.copy(&chunk);
            }
            let _ = link.server.handle(link.now, packet.seal().expect("has chunks"));
            link.flush();
        }
        while let Some(at) = link.server.deadline().filter(|at| *at < link.now + PATIENCE) {
            link.server.handle_timeout(at);
            while link.server.poll_transmit().is_some() {}
            link.now = link.now.max(at) + Duration::from_millis(1);
        }
    }
}

#[test]
fn checksums_are_those_of_the_wire() {
    let mut link = Link::ready();
    let standing = link.standing();
    link.kill(standing, 0);
    link.server.begin(link.now);
    let packet = link.server.poll_transmit().expect("skips");
    assert!(packet::has_checksum(&packet));
}
