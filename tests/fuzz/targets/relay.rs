//! What media engines say to each other, sealed and plain.

use flotilla_media::relay::keys::{DirectionKey, End, HEAD_LEN, ReplayWindow, head};
use flotilla_media::relay::message::{self, Message};
use flotilla_model::id::{BootId, NodeId};

use super::draw::Draw;

/// A plain message: whatever parses is written and read again.
pub(crate) fn plain(bytes: &[u8]) {
    let mut buffer = [0; 4096];
    let Ok(parsed) = message::parse(bytes) else {
        return;
    };
    let written = match parsed {
        Message::Media(media, payload) => {
            if payload.len() > 3000 {
                return;
            }
            message::write_media(&mut buffer, &media, payload)
        }
        Message::Want(wants) => {
            let wants: Vec<_> = wants.take(64).collect();
            message::write_wants(&mut buffer, &wants)
        }
        Message::Nack { sequences, .. } => {
            let mut count = 0u64;
            sequences.for_each(|_| count += 1);
            assert!(count <= bytes.len() as u64 * 33);
            return;
        }
        Message::Status(status) => message::write_status(&mut buffer, &status),
        Message::Ping(number) => message::write_ping(&mut buffer, number),
        Message::Pong(number) => message::write_pong(&mut buffer, number),
        Message::OnLoan(loan, datagram) => {
            if datagram.len() > 3000 {
                return;
            }
            message::write_on_loan(&mut buffer, &loan, datagram)
        }
    };
    assert!(message::parse(&buffer[..written]).is_ok());
}

/// Sealed packets, some of them changed on the way, some of them repeated.
pub(crate) fn sealed(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let end = |node| End {
        node: NodeId(node),
        boot: BootId(node),
    };
    let key = || DirectionKey::derive(&[7; 32], 0, end(1), end(2));
    let (sender, receiver) = (key(), key());
    let mut window = ReplayWindow::default();
    let mut accepted = std::collections::BTreeSet::new();
    for number in 1..=32 {
        if draw.is_empty() {
            break;
        }
        let counter = if draw.flag() {
            number
        } else {
            u64::from(draw.u32())
        };
        let body = draw.bytes().to_vec();
        let mut packet = vec![0; body.len() + 64];
        // The plain text stands where the head leaves off.
        let start = HEAD_LEN;
        packet[start..start + body.len()].copy_from_slice(&body);
        let length = sender.seal(&mut packet, body.len(), counter);
        packet.truncate(length);
        let changed = draw.flag();
        if changed {
            let at = draw.number(packet.len());
            packet[at] ^= draw.byte() | 1;
        }
        let _ = head(&packet);
        match receiver.open(&mut packet) {
            Ok((opened, plain)) => {
                assert!(!changed, "a changed packet was opened");
                assert_eq!((opened, plain), (counter, &body[..]));
                if window.accept(counter).is_ok() {
                    assert!(accepted.insert(counter), "{counter} was taken twice");
                }
            }
            Err(_) => assert!(changed, "an intact packet was refused"),
        }
    }
    let mut rest = draw.rest().to_vec();
    let _ = receiver.open(&mut rest);
}
