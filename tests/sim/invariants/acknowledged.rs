//! I2: what was acknowledged is in the log and stays there, also after every machine has lost its power.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_model::id::RequestId;

use super::Invariant;
use crate::time::{Time, secs};
use crate::witness::{Fact, Scene};
use crate::world::World;

/// Answers given, and what was applied.
#[derive(Default)]
pub struct Kept {
    acknowledged: BTreeMap<RequestId, (u64, u64, Time)>,
    applied: BTreeMap<RequestId, u64>,
    lost: BTreeSet<RequestId>,
}

impl Invariant for Kept {
    fn name(&self) -> &'static str {
        "acknowledged-kept"
    }

    fn see(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Acknowledged {
                node,
                request,
                index,
            } => {
                self.acknowledged
                    .insert(*request, (*node, *index, scene.now));
            }
            Fact::Applied { advance, .. } => {
                for (request, _) in &advance.outcomes {
                    self.applied.insert(*request, advance.entry.index);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let least = world
            .nodes
            .values()
            .filter(|node| !node.removed)
            .map(|node| node.replica.applied())
            .min()
            .unwrap_or(0);
        for (request, (node, index, at)) in &self.acknowledged {
            if !self.applied.contains_key(request) {
                self.lost.insert(*request);
            } else if *index > least && world.now - *at > secs(2) {
                return Err(format!(
                    "what node {node} acknowledged at entry {index} is not everywhere: a node has {least}"
                ));
            }
        }
        if self.lost.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "{} acknowledged changes are not in the log",
                self.lost.len()
            ))
        }
    }
}
