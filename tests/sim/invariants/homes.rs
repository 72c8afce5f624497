//! Homes spread: in the end nobody is at home at a node that does not serve, and everybody's home has the
//! session. Source: `flotilla_model::placement`.

use super::Invariant;
use crate::witness::{Fact, Scene};
use crate::world::World;

/// Compares in the end.
#[derive(Default)]
pub struct Spread;

impl Invariant for Spread {
    fn name(&self) -> &'static str {
        "homes"
    }

    fn see(&mut self, _scene: &Scene, _fact: &Fact<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let newest = world
            .nodes
            .values()
            .max_by_key(|node| node.replica.applied());
        let Some(state) = newest.map(|node| node.replica.state()) else {
            return Ok(());
        };
        for room in state.rooms.values() {
            for participant in room.participants.values() {
                let home = participant.home;
                let record = state.nodes.get(&home);
                if record.is_none_or(|record| record.state.is_lost()) {
                    return Err(format!(
                        "{} is at home at node {home}, which is lost",
                        participant.sid
                    ));
                }
                let process = world
                    .nodes
                    .get(&home.0)
                    .and_then(|node| node.process.as_ref());
                let has = process
                    .is_some_and(|process| process.rooms.has_session(&room.name, &participant.sid));
                if !has {
                    return Err(format!(
                        "{} has no session at its home {home}",
                        participant.sid
                    ));
                }
            }
        }
        Ok(())
    }
}
