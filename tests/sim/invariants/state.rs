//! I13: replicas that have applied equally much of the log have equal states. Source: the state machine is
//! a function of the log (Raft §5.3, "State Machine Safety").

use std::collections::BTreeMap;

use flotilla_model::encoding::state_hash;

use super::Invariant;
use crate::witness::{Fact, Scene};
use crate::world::World;

/// The hashes seen, by place in the log.
#[derive(Default)]
pub struct Equal(BTreeMap<u64, (u64, u64)>);

impl Invariant for Equal {
    fn name(&self) -> &'static str {
        "state-equal"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied {
            node,
            advance,
            hash: Some(hash),
        } = fact
        else {
            return Ok(());
        };
        let index = advance.entry.index;
        let (first, seen) = *self.0.entry(index).or_insert((*node, *hash));
        if seen == *hash {
            return Ok(());
        }
        Err(format!(
            "nodes {first} and {node} differ after entry {index}"
        ))
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let mut hashes = BTreeMap::new();
        for node in world.nodes.values().filter(|node| !node.removed) {
            let hash = state_hash(node.replica.full_state());
            let applied = node.replica.applied();
            let (first, seen) = *hashes.entry(applied).or_insert((node.id, hash));
            if seen != hash {
                return Err(format!("nodes {first} and {} differ in the end", node.id));
            }
        }
        Ok(())
    }
}
