//! An engine goes on in the place of another whose address has moved to it, and no client notices: the
//! path, the keys and the streams are as before, and no index comes twice.

use super::takeover::{Call, Kinds};
use super::*;
use crate::peer::passage::{JUMP, Passage, SENT_MAX};

impl Call {
    /// An engine dies, another takes its address and goes on from the last checkpoints.
    fn go_on(&mut self, from: usize, to: usize) {
        let continuations = [self.alice, self.bob].map(|client| {
            let continuation = self.world.continuation(client);
            (client, continuation.expect("checkpoints say all"))
        });
        self.world.dead.push(from);
        for address in 0..to {
            self.world.moved.insert(address, to);
        }
        for (client, continuation) in continuations {
            let role = if client == self.alice {
                self.kinds.publisher()
            } else {
                self.kinds.subscriber()
            };
            let order = Command::GoOn {
                peer: PeerId(client as u64),
                role,
                negotiated_channels: false,
                lender: None,
                from: Box::new(continuation),
            };
            self.world.command(to, order);
        }
        self.publish(to, &["TR_AM", "TR_VC"]);
    }

    fn sounds(&self) -> impl DoubleEndedIterator<Item = u32> {
        let heard = self.world.clients[self.bob].rtp.iter().map(|p| seen(p));
        let sounds: Vec<_> = heard.filter(|s| s.pt == 111).map(|s| s.timestamp).collect();
        sounds.into_iter()
    }

    fn newest_sound(&self) -> u32 {
        self.sounds().next_back().expect("heard")
    }

    fn oldest_sound(&self) -> u32 {
        self.sounds().next().expect("heard")
    }

    /// Sequence numbers of each stream that Bob has received.
    fn heard(&self) -> std::collections::BTreeMap<u32, Vec<u16>> {
        let mut heard: std::collections::BTreeMap<u32, Vec<u16>> = Default::default();
        for packet in &self.world.clients[self.bob].rtp {
            let seen = seen(packet);
            heard.entry(seen.ssrc).or_default().push(seen.sequence);
        }
        heard
    }
}

fn a_call_goes_on(kinds: Kinds) {
    let mut call = Call::within(kinds, World::moving(3));
    call.play(0..100);
    let mut played = call.world.now;
    call.assert_media();
    call.assert_talk(call.alice, 0, 0);
    let hellos = call.hellos();

    for (hop, (from, to)) in [(0, 1), (1, 2)].into_iter().enumerate() {
        let before = call.heard();
        let clock = call.newest_sound();
        call.world.clients[call.bob].rtp.clear();
        let asked = call.world.clients[call.alice].rtcp.len();
        call.go_on(from, to);
        call.world.run(Duration::from_millis(30));
        let wanted = super::takeover::key_frame_requests(&call.world, call.alice, asked);
        assert!(!wanted.is_empty(), "key frames are asked for at once");
        let begin = 100 + 100 * hop as u16;
        let begun = call.world.now;
        call.play(begin..begin + 100);
        // The clock of the sound has run on, however long ago the checkpoint was.
        let step = call.oldest_sound().wrapping_sub(clock);
        let passed = begun.saturating_duration_since(played).as_millis() as u32 * 48;
        assert!(
            (passed..passed + 960 * 3).contains(&step),
            "{passed} {step}"
        );
        played = call.world.now;
        // The same streams with the same sections, each beyond what was sent before; the client's own
        // window refuses whatever comes twice.
        call.assert_media();
        let after = call.heard();
        assert_eq!(
            before.keys().collect::<Vec<_>>(),
            after.keys().collect::<Vec<_>>(),
            "no client is told of other sources"
        );
        for (ssrc, numbers) in &after {
            let last = *before[ssrc].last().expect("it was heard");
            let step = numbers[0].wrapping_sub(last);
            assert!(step > (JUMP as u16) / 2 && step < 1 << 15, "{ssrc}: {step}");
        }
        let failed = call.world.happened(|e| matches!(e, Event::Failed { .. }));
        assert_eq!(failed, 0);
    }
    assert_eq!(call.hellos(), hellos, "no handshake");

    // The clients come for another signal connection: what flows stays, data goes on.
    call.world.clients[call.bob].rtp.clear();
    let sources = call.world.sent_under.len();
    call.move_all(2, true);
    call.world.run(Duration::from_millis(200));
    call.play(300..400);
    call.assert_media();
    call.assert_talk(call.alice, 2, 1);
    call.assert_talk(call.bob, 2, 1);
    assert_eq!(call.hellos(), hellos, "no handshake");
    assert_eq!(call.world.sent_under.len(), sources, "no other sources");
    assert_eq!(
        call.world.happened(|e| matches!(e, Event::Failed { .. })),
        0
    );
    assert_eq!(
        call.world
            .happened(|e| matches!(e, Event::TrackEnded { .. })),
        0
    );
}

#[test]
fn a_v1_call_goes_on_at_another_engine() {
    a_call_goes_on(Kinds::V1);
}

#[test]
fn a_v0_call_goes_on_at_another_engine() {
    a_call_goes_on(Kinds::V0);
}

/// However much is sent, no more than [`SENT_MAX`] packets go out that the last checkpoint does not tell.
#[test]
fn nothing_is_sent_beyond_what_a_checkpoint_allows() {
    let mut call = Call::within(Kinds::V1, World::moving(1));
    call.play(0..60);
    let bob = PeerId(call.bob as u64);
    let passage = |call: &Call| -> Passage {
        call.world
            .continuation(call.bob)
            .expect("a checkpoint")
            .passage
    };
    let told: Vec<_> = passage(&call)
        .streams
        .iter()
        .map(|s| (s.ssrc, s.index))
        .collect();
    assert_eq!(told.len(), 2, "sound and pictures");
    let engine = &mut call.world.engines[0];
    let peer = engine.peers.get_mut(&bob).expect("it is there");
    let (ssrc, index) = told[0];
    let sender = peer.transport.sender().expect("connected");
    let mut sent = 0;
    for number in 1..=2 * SENT_MAX {
        let mut packet = vec![0x80, 111, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
        packet[2..4].copy_from_slice(
            &(index as u16)
                .wrapping_add(500 + number as u16)
                .to_be_bytes(),
        );
        packet[8..12].copy_from_slice(&ssrc.to_be_bytes());
        packet.resize(64, 0);
        sent += u32::from(sender.protect_rtp(&mut packet, 15).is_some());
    }
    assert!(sent <= SENT_MAX && sent > SENT_MAX / 2, "{sent}");
    let highest = sender.index(ssrc).expect("it was sent under");
    assert!(highest < index + JUMP, "whoever goes on begins beyond it");
}
