//! I12: within a bound after everything is healed there is a leader, every node has the whole log, every
//! client that wants to be in is, and hears whom it wants to hear.

use flotilla_model::placement::is_subscribed;

use super::Invariant;
use crate::time::{Time, secs};
use crate::witness::{Fact, Scene};
use crate::world::World;

/// A track that is published is heard at least so often.
const HEARD: u64 = secs(4);
/// Who has been in for less is still settling.
const SETTLED: u64 = secs(6);

/// When all was healed, and what was acknowledged after.
#[derive(Default)]
pub struct Reached {
    healed: Option<Time>,
    wrote: Option<Time>,
}

impl Invariant for Reached {
    fn name(&self) -> &'static str {
        "convergence"
    }

    fn see(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Healed { at } => self.healed = Some(*at),
            Fact::Acknowledged { .. } if self.healed.is_some() => self.wrote = Some(scene.now),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        if self.wrote.is_none() {
            return Err("nothing could be written after the healing".to_owned());
        }
        let present = || world.nodes.values().filter(|node| !node.removed);
        if present().filter(|node| node.replica.leads()).count() != 1 {
            return Err("there is not one leader".to_owned());
        }
        let newest = present()
            .map(|node| node.replica.applied())
            .max()
            .unwrap_or(0);
        for node in present() {
            if node.replica.applied() + 3 < newest {
                let applied = node.replica.applied();
                return Err(format!(
                    "node {} has {applied} of {newest} entries",
                    node.id
                ));
            }
            if !world.may_send(node.id) {
                let process = node.process.as_ref();
                let way = process.map(|process| (process.returning, process.reads.len()));
                return Err(format!(
                    "node {} does not serve: it follows {:?}, way back and reads: {way:?}",
                    node.id,
                    node.replica.leader()
                ));
            }
        }
        let newest = present().max_by_key(|node| node.replica.applied());
        let Some(state) = newest.map(|node| node.replica.state()) else {
            return Ok(());
        };
        for client in &world.clients {
            let is_well = client.is_in() && client.unwell_since.is_none();
            if !is_well {
                let unwell = client.unwell_since.map_or(0, |since| world.now - since);
                if unwell > secs(20) {
                    return Err(format!(
                        "client {} is not in: {:?}",
                        client.number, client.phase
                    ));
                }
                continue;
            }
            let room = state
                .rooms
                .values()
                .find(|room| room.name.as_str() == client.room);
            let me = room.and_then(|room| {
                let mut people = room.participants.values();
                people.find(|participant| Some(&participant.sid) == client.sid.as_ref())
            });
            let (Some(room), Some(me)) = (room, me) else {
                return Err(format!(
                    "client {} is in, but not in the log",
                    client.number
                ));
            };
            if world.now - client.well_since < SETTLED {
                continue;
            }
            for (publisher, track) in room.tracks() {
                let sender = world
                    .clients
                    .iter()
                    .find(|other| other.sid.as_ref() == Some(&publisher.sid));
                let flows = sender.is_some_and(|sender| {
                    let is_well = sender.is_in() && sender.unwell_since.is_none();
                    is_well
                        && world.now - sender.well_since > SETTLED
                        && sender
                            .tracks
                            .get(&track.sid)
                            .is_some_and(|count| *count > 20)
                });
                if !flows || !is_subscribed(me, publisher, track) {
                    continue;
                }
                let heard = client.heard.get(&track.sid);
                if heard.is_none_or(|heard| world.now - *heard > HEARD) {
                    return Err(format!(
                        "client {} does not hear {} of {}",
                        client.number, track.sid, publisher.sid
                    ));
                }
            }
        }
        Ok(())
    }
}
