//! A session moves from an engine that lives: its path is lent, so that nothing is missed before the client
//! has a path of its own to the new home.

use super::takeover::{self, Call, Kinds};
use super::*;
use crate::reach::Reach;

fn links(world: &mut World) {
    for engine in 0..3 {
        for other in (0..3).filter(|other| *other != engine) {
            let command = Command::SetLink {
                node: NodeId(other as u64 + 1),
                boot: BootId(100 + other as u64),
                address: engine_address(other),
            };
            world.command(engine, command);
        }
    }
}

impl Call {
    /// Both clients' connections go from one engine to another, and their paths are lent.
    fn lend(&mut self, from: usize, to: usize) {
        let now = self.world.now;
        for client in [self.alice, self.bob] {
            let lent =
                self.world.engines[from].lend(now, peer(client), NodeId(to as u64 + 1), false);
            let role = if client == self.alice {
                self.kinds.publisher()
            } else {
                self.kinds.subscriber()
            };
            let order = Command::GoOn {
                peer: peer(client),
                role,
                negotiated_channels: false,
                lender: Some(NodeId(from as u64 + 1)),
                from: Box::new(lent.expect("it is connected")),
            };
            self.world.command(to, order);
        }
        self.publish(to, &["TR_AM", "TR_VC"]);
    }

    fn lent(&self, engine: usize) -> usize {
        self.world.engines[engine].stats(self.world.now).lent
    }
}

fn a_call_moves_on_lent_paths(kinds: Kinds) {
    let mut call = Call::new(kinds);
    links(&mut call.world);
    call.play(0..100);
    call.assert_media();
    let hellos = call.hellos();
    for (hop, (from, to)) in [(0, 1), (1, 2)].into_iter().enumerate() {
        let begin = 100 + 200 * hop as u16;
        call.world.clients[call.bob].rtp.clear();
        call.lend(from, to);
        assert_eq!(call.lent(from), 2);
        call.world.run(Duration::from_millis(5));
        // The clients know nothing: both ways lead by the former home.
        call.play(begin..begin + 100);
        call.assert_media();
        assert_eq!(call.world.engines[from].stats(call.world.now).peers, 0);

        // They come for their session and restart ICE: the paths are given back.
        let sources = call.world.sent_under.len();
        call.move_all(to, true);
        // Unlike real ones these clients leave their old path before they have checked the new.
        call.world.run(Duration::from_millis(200));
        call.play(begin + 100..begin + 150);
        // One stream from the moment of the move on, without a gap.
        call.assert_media();
        call.assert_talk(call.alice, to, 2 * hop as u8);
        call.assert_talk(call.bob, to, 2 * hop as u8 + 1);
        call.world.run(Duration::from_secs(1));
        assert_eq!(call.lent(from), 0, "given back before its time is over");
        assert_eq!(call.world.sent_under.len(), sources, "no other sources");
        call.world.dead.push(from);
        call.play(begin + 150..begin + 200);
        call.assert_media();
        call.world.dead.pop();
    }
    assert_eq!(call.hellos(), hellos, "no handshake");
    let failed = |e: &Event| matches!(e, Event::Failed { .. } | Event::TrackEnded { .. });
    assert_eq!(call.world.happened(failed), 0);
}

#[test]
fn a_v1_call_moves_on_lent_paths() {
    a_call_moves_on_lent_paths(Kinds::V1);
}

#[test]
fn a_v0_call_moves_on_lent_paths() {
    a_call_moves_on_lent_paths(Kinds::V0);
}

/// What a client said to a node that nobody hears is not acknowledged, and said again to whoever is its next home.
#[test]
fn whoever_may_be_cut_off_does_not_lend() {
    let reach = Reach::new(crate::test_epoch());
    let world = World::with(3, |config| {
        config.data.hold_max = Duration::from_millis(100);
        config.data.reach = Some(reach.clone());
    });
    let mut call = Call::within(Kinds::V1, world);
    links(&mut call.world);
    let (at, alice) = (call.world.now, call.alice);
    call.world.clients[alice].data(at, |sctp| sctp.send(at, takeover::RELIABLE, b"last"));
    let lent = |call: &mut Call, client, was_cut_off| {
        let now = call.world.now;
        call.world.engines[0].lend(now, peer(client), NodeId(2), was_cut_off)
    };
    call.world.run(Duration::from_millis(50));
    assert!(lent(&mut call, alice, true).is_err());
    // Its acknowledgement is due after 200 ms, and waits.
    call.world.run(Duration::from_millis(600));
    assert!(lent(&mut call, alice, false).is_err());
    let bob = call.bob;
    assert!(lent(&mut call, bob, true).is_ok(), "he said nothing");

    let last = |(_, event): &(usize, Event)| match event {
        Event::Data { number, .. } => Some(*number),
        _ => None,
    };
    let number = call.world.events.iter().find_map(last).expect("it came");
    let peer = peer(alice);
    call.world.command(0, Command::DataSafe { peer, number });
    assert!(lent(&mut call, alice, true).is_ok(), "others have it");
}

/// A path is lent by whoever has it, to a node that can be reached, for a time.
#[test]
fn what_is_not_there_is_not_lent() {
    let mut call = Call::new(Kinds::V1);
    let now = call.world.now;
    let alice = peer(call.alice);
    let lend =
        |call: &mut Call, engine: usize, to| call.world.engines[engine].lend(now, alice, to, false);
    assert!(lend(&mut call, 0, NodeId(2)).is_err(), "no link");
    links(&mut call.world);
    assert!(lend(&mut call, 1, NodeId(3)).is_err(), "no such peer");
    assert_eq!(call.world.engines[0].stats(now).peers, 2);

    call.play(0..20);
    call.lend(0, 1);
    let now = call.world.now;
    let again = call.world.engines[1].lend(now, alice, NodeId(3), false);
    assert!(again.is_err(), "a loan is not lent on");
    // Nobody but the borrower sends there.
    let before = call.world.clients[call.bob].rtp.len();
    let unknown = |call: &Call| {
        let stats = call.world.engines[0].stats(call.world.now);
        stats.discards.get(Discard::UnknownPeer)
    };
    let discarded = unknown(&call);
    call.world.dead.push(1);
    call.world.run(Duration::from_secs(16));
    assert_eq!(call.world.clients[call.bob].rtp.len(), before);
    assert_eq!(call.lent(0), 0, "it has an end");
    call.play(20..25);
    assert!(unknown(&call) > discarded, "no longer passed on");
}
