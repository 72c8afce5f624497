//! I2 (log): what a leader took for committed, and what a replica applied, is never anything else later.
//! Source: Raft §5.4, "Leader Completeness".

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Invariant;
use crate::raft::Logged;
use crate::witness::{Fact, Scene};

/// The entries seen.
#[derive(Default)]
pub struct Stays(BTreeMap<u64, (u64, u64, Arc<Logged>)>);

impl Invariant for Stays {
    fn name(&self) -> &'static str {
        "log-stays"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let (node, entry) = match fact {
            Fact::Committed { node, entry } => (*node, *entry),
            Fact::Applied { node, advance, .. } => (*node, &advance.entry),
            _ => return Ok(()),
        };
        let index = entry.index;
        let first = || (node, entry.term, Arc::clone(entry));
        let (by, term, known) = self.0.entry(index).or_insert_with(first);
        let requests =
            |entry: &Logged| entry.commands.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        if *term == entry.term && (Arc::ptr_eq(known, entry) || requests(known) == requests(entry))
        {
            return Ok(());
        }
        Err(format!(
            "entry {index} was of term {term} at node {by}, is of term {} at node {node}",
            entry.term
        ))
    }
}
