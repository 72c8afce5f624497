//! I1, I15: a linearizable read has everything that was acknowledged anywhere before it began.

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Looks at reads.
#[derive(Default)]
pub struct Fresh;

impl Invariant for Fresh {
    fn name(&self) -> &'static str {
        "read-fresh"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Read {
                node,
                applied,
                floor,
            } if applied < floor => Err(format!(
                "node {node} read entry {applied}, entry {floor} was acknowledged before"
            )),
            _ => Ok(()),
        }
    }
}
