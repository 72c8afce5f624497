//! What a run is going to do, drawn from its seed before anything happens: printed, saved, repeatable.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::nemesis::{Class, Role};
use crate::net::emulator::Chance;

/// A fault of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Milliseconds after the beginning of its part.
    pub(crate) at_ms: u64,
    pub(crate) class: Class,
    pub(crate) role: Role,
    pub(crate) lasts_ms: u64,
    /// For what the fault draws by itself.
    pub(crate) seed: u64,
}

/// Faults with one recovery after them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Where they overlap, they do.
    pub(crate) steps: Vec<Step>,
}

/// A whole run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) parts: Vec<Part>,
}

/// Faults that leave no majority, or need every node, are not overlapped with others.
fn stands_alone(class: Class) -> bool {
    matches!(
        class,
        Class::PowerQuorum
            | Class::PowerAll
            | Class::RollingRestart
            | Class::Replace
            | Class::FlippedBit
            | Class::SnapshotCatchUp
            | Class::Drain
            | Class::TornTail
            | Class::LeaderTransfer
    )
}

impl Plan {
    /// Each of these classes so many times, one after the other.
    pub(crate) fn alone(name: &str, seed: u64, nodes: u64, classes: &[Class], times: u32) -> Self {
        let mut chance = Chance(seed);
        let mut parts = Vec::new();
        for class in classes {
            let roles = class.roles();
            for round in 0..times as usize {
                let step = Step {
                    at_ms: 0,
                    class: *class,
                    // Each role comes as often as the others.
                    role: roles[round % roles.len()],
                    lasts_ms: class.lasts_ms() * 3 / 4 + chance.below(class.lasts_ms() / 2),
                    seed: chance.next(),
                };
                parts.push(Part { steps: vec![step] });
            }
        }
        Self {
            name: name.to_owned(),
            seed,
            nodes,
            parts,
        }
    }

    /// Two or three faults at a time, each run with a random subset of the classes (swarm).
    pub(crate) fn combined(seed: u64, nodes: u64, classes: &[Class], parts: u32) -> Self {
        let mut chance = Chance(seed);
        let able: Vec<Class> = classes
            .iter()
            .copied()
            .filter(|class| !stands_alone(*class) && class.missing_with(nodes).is_none())
            .collect();
        let mut swarm = able.clone();
        swarm.retain(|_| chance.below(3) > 0);
        if swarm.len() < 2 {
            swarm = able;
        }
        let parts = (0..parts)
            .map(|_| {
                let count = 2 + chance.below(2);
                let mut steps: Vec<Step> = (0..count)
                    .map(|_| {
                        let class = *chance.pick(&swarm);
                        Step {
                            at_ms: chance.below(1500),
                            class,
                            role: *chance.pick(&Role::ALL),
                            lasts_ms: 500 + chance.below(3000),
                            seed: chance.next(),
                        }
                    })
                    .collect();
                steps.sort_by_key(|step| step.at_ms);
                Part { steps }
            })
            .collect();
        Self {
            name: format!("combined-{seed}"),
            seed,
            nodes,
            parts,
        }
    }

    /// Its faults.
    pub(crate) fn steps(&self) -> impl Iterator<Item = &Step> {
        self.parts.iter().flat_map(|part| &part.steps)
    }

    /// The plan as a person reads it.
    pub(crate) fn told(&self) -> String {
        let mut text = format!(
            "plan {}: seed {}, {} nodes, {} faults in {} parts\n",
            self.name,
            self.seed,
            self.nodes,
            self.steps().count(),
            self.parts.len()
        );
        for (number, part) in self.parts.iter().enumerate() {
            let steps: Vec<String> = part
                .steps
                .iter()
                .map(|step| {
                    format!(
                        "{} of {:?} at {:.1} s for {:.1} s",
                        step.class.name(),
                        step.role,
                        step.at_ms as f64 / 1e3,
                        step.lasts_ms as f64 / 1e3
                    )
                })
                .collect();
            text.push_str(&format!("  {number:3}  {}\n", steps.join(", ")));
        }
        text
    }

    /// Saves it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| path.display().to_string())
    }

    /// Reads a saved one.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        let plan = |seed| Plan::combined(seed, 5, &Class::all(), 10);
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1).parts, plan(2).parts);
        assert!(plan(1).steps().all(|step| !stands_alone(step.class)));
        assert!(plan(1).parts.iter().all(|part| part.steps.len() >= 2));
    }

    #[test]
    fn each_class_comes_as_often_as_asked_and_to_each_role() {
        let plan = Plan::alone("x", 3, 3, &[Class::Kill, Class::Pause], 8);
        assert_eq!(plan.parts.len(), 16);
        for role in Role::ALL {
            let hits = plan.steps().filter(|step| step.role == role).count();
            assert_eq!(hits, 4);
        }
    }

    #[test]
    fn a_saved_plan_is_the_plan() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let file = folder.path().join("plan.json");
        let plan = Plan::combined(9, 3, &Class::all(), 4);
        plan.write(&file)?;
        assert_eq!(Plan::read(&file)?, plan);
        assert!(plan.told().lines().count() == 5);
        Ok(())
    }
}
