//! I11: numbered messages of a sender reach everybody who was there, without a gap and in order, whatever
//! becomes of homes on the way.

use super::Invariant;
use crate::client::Phase;
use crate::witness::{Fact, Scene};
use crate::world::World;

/// Looks at what clients get.
#[derive(Default)]
pub struct ExactlyOnce;

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        "data-once"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Received {
            client,
            sender,
            sequence,
            last: Some(last),
            ..
        } = fact
        else {
            return Ok(());
        };
        if *sequence == last + 1 {
            return Ok(());
        }
        Err(format!(
            "client {client} got message {sequence} of {sender} after {last}"
        ))
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let present = || {
            world
                .clients
                .iter()
                .filter(|client| matches!(client.phase, Phase::In(..)))
        };
        for receiver in present() {
            for sender in present().filter(|other| other.room == receiver.room) {
                let (Some(sid), Some((last, _))) = (&sender.sid, sender.sent.last()) else {
                    continue;
                };
                match receiver.received.get(sid) {
                    Some(got) if got + 2 < *last => {
                        return Err(format!(
                            "client {} has {got} of {last} messages of client {}",
                            receiver.number, sender.number
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
