//! I14: nothing is left of what has gone: sessions, peers, proposals, reads, claims and kept parts are those
//! of the people who are there.

use std::collections::BTreeSet;

use super::Invariant;
use crate::time::{ms, secs};
use crate::witness::{Fact, Scene};
use crate::world::World;

/// Counts in the end.
#[derive(Default)]
pub struct None;

impl Invariant for None {
    fn name(&self) -> &'static str {
        "leaks"
    }

    fn see(&mut self, _scene: &Scene, _fact: &Fact<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        for node in world.nodes.values() {
            let Some(process) = &node.process else {
                continue;
            };
            let state = &process.fed_state;
            let people: BTreeSet<_> = state
                .rooms
                .values()
                .flat_map(|room| {
                    room.participants
                        .values()
                        .map(|participant| &participant.sid)
                })
                .collect();
            let id = node.id;
            let strays = process
                .sessions
                .values()
                .filter(|task| task.session.epoch().is_some() && !people.contains(&task.sid))
                .count();
            if strays > 0 {
                return Err(format!(
                    "node {id} has {strays} sessions of people who are gone"
                ));
            }
            let peers = process.engine.peers.keys();
            if let Some(key) = peers
                .into_iter()
                .find(|key| !process.sessions.contains_key(key))
            {
                return Err(format!(
                    "node {id} has a peer of session {key}, which is gone"
                ));
            }
            if process.checkpoints.len() > people.len() {
                return Err(format!(
                    "node {id} keeps parts of {} sessions, {} people are there",
                    process.checkpoints.len(),
                    people.len()
                ));
            }
            if process.rooms.count() > state.rooms.len() + 1 {
                return Err(format!("node {id} keeps {} rooms", process.rooms.count()));
            }
            let old = process
                .pending
                .values()
                .any(|pending| pending.deadline + ms(200) < world.now);
            let reads = process.reads.values();
            let reads = reads
                .into_iter()
                .any(|read| read.deadline + ms(200) < world.now);
            if old || reads {
                return Err(format!(
                    "node {id} has proposals or reads whose time is over"
                ));
            }
            let kept: usize = process.links.values().map(|link| link.kept.len()).sum();
            let quiet = world.now - process.started > secs(5);
            if quiet && kept > 200 {
                return Err(format!("node {id} keeps {kept} frames"));
            }
        }
        Ok(())
    }
}
