//! I3: a wish has its effect once, however often it is proposed.

use std::collections::BTreeMap;

use flotilla_model::id::RequestId;

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Effects seen, by request.
#[derive(Default)]
pub struct Applied {
    effects: BTreeMap<RequestId, u64>,
    same: BTreeMap<RequestId, RequestId>,
    seen: u64,
}

impl Invariant for Applied {
    fn name(&self) -> &'static str {
        "applied-once"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::SameAs { request, other } => {
                let root = self.same.get(request).copied().unwrap_or(*request);
                self.same.insert(*other, root);
            }
            Fact::Applied { advance, .. } if advance.entry.index > self.seen => {
                self.seen = advance.entry.index;
                for ((request, _), change) in advance.outcomes.iter().zip(&advance.changes) {
                    if change.events.is_empty() {
                        continue;
                    }
                    let root = self.same.get(request).copied().unwrap_or(*request);
                    if let Some(before) = self.effects.insert(root, advance.entry.index) {
                        return Err(format!(
                            "one request took effect with entry {before} and with entry {}",
                            advance.entry.index
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
