//! One leader per term. Source: Raft §5.2, "Election Safety".

use std::collections::BTreeMap;

use super::Invariant;
use crate::witness::{Fact, Scene};

/// The leaders seen.
#[derive(Default)]
pub struct One(BTreeMap<u64, u64>);

impl Invariant for One {
    fn name(&self) -> &'static str {
        "one-leader"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Elected { node, term } = fact else {
            return Ok(());
        };
        let first = *self.0.entry(*term).or_insert(*node);
        if first == *node {
            return Ok(());
        }
        Err(format!("nodes {first} and {node} both lead in term {term}"))
    }
}
