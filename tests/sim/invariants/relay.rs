//! Relays: a track goes from node to node exactly where the log has a route, once, and no longer than
//! somebody behind it wants it. Source: `flotilla_model::placement`.

use std::collections::BTreeSet;

use flotilla_model::id::NodeId;

use super::Invariant;
use crate::witness::{Fact, Scene};
use crate::world::World;

/// Compares in the end; on the way [`super::fence`] looks at what is sent.
#[derive(Default)]
pub struct Needed;

impl Invariant for Needed {
    fn name(&self) -> &'static str {
        "relay-needed"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Relayed { from, to, track } if from == to => {
                Err(format!("node {from} relays {track} to itself"))
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        for node in world.nodes.values() {
            let Some(process) = &node.process else {
                continue;
            };
            let own = NodeId(node.id);
            let (mut outgoing, mut incoming) = (BTreeSet::new(), BTreeSet::new());
            for room in process.fed_state.rooms.values() {
                for (track, routes) in room.routes.iter() {
                    for route in routes {
                        if route.from == own {
                            outgoing.insert((track.clone(), route.to));
                        } else if route.to == own {
                            incoming.insert((track.clone(), route.from, route.epoch));
                        }
                    }
                }
            }
            let engine = &process.engine;
            let sends: BTreeSet<_> = engine
                .outgoing
                .iter()
                .flat_map(|(track, nodes)| nodes.iter().map(|node| (track.clone(), *node)))
                .collect();
            if sends != outgoing {
                let (sends, wanted) = (sends.len(), outgoing.len());
                return Err(format!(
                    "node {} relays {sends} tracks, {wanted} are wanted",
                    node.id
                ));
            }
            let expects: BTreeSet<_> = engine
                .incoming
                .iter()
                .map(|(track, (from, epoch))| (track.clone(), *from, *epoch))
                .collect();
            if !incoming.is_subset(&expects) {
                return Err(format!(
                    "node {} does not expect every track that it is to get",
                    node.id
                ));
            }
        }
        Ok(())
    }
}
