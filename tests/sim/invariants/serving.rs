//! I4: under each epoch one start of one node serves a participant.

use std::collections::BTreeMap;

use flotilla_model::id::{Epoch, ParticipantSid};

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Who served whom.
#[derive(Default)]
pub struct One(BTreeMap<(ParticipantSid, Epoch), u64>);

impl Invariant for One {
    fn name(&self) -> &'static str {
        "one-home"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Serves { node, sid, epoch } = fact else {
            return Ok(());
        };
        let key = ((*sid).clone(), *epoch);
        let first = *self.0.entry(key).or_insert(*node);
        if first == *node {
            return Ok(());
        }
        Err(format!(
            "nodes {first} and {node} both serve {sid} under epoch {epoch}"
        ))
    }
}
