//! I7: a node passes every change on, once and in order, or begins anew from a whole state.

use std::collections::BTreeMap;

use flotilla_model::id::BootId;

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Last revisions passed on.
#[derive(Default)]
pub struct Whole(BTreeMap<(u64, BootId), u64>);

impl Invariant for Whole {
    fn name(&self) -> &'static str {
        "feed-whole"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::FedAnew { node, boot, state } => {
                let last = self.0.entry((*node, *boot)).or_default();
                if state.revision.0 < *last {
                    return Err(format!(
                        "node {node} went back from {last} to {}",
                        state.revision
                    ));
                }
                *last = state.revision.0;
            }
            Fact::Fed { node, boot, change } => {
                let last = self.0.entry((*node, *boot)).or_default();
                if change.revision.0 != *last + 1 {
                    return Err(format!(
                        "node {node} passed on revision {} after {last}",
                        change.revision
                    ));
                }
                *last = change.revision.0;
            }
            _ => {}
        }
        Ok(())
    }
}
