//! I15: whoever is condemned has stopped sending by then, and a process that is taken for crashed is gone.

use flotilla_model::cluster::LossCause;

use super::Invariant;
use crate::witness::{Fact, Scene};

/// Looks at verdicts.
#[derive(Default)]
pub struct Sound;

impl Invariant for Sound {
    fn name(&self) -> &'static str {
        "verdict"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Condemned {
            node,
            cause,
            alive,
            holds,
        } = fact
        else {
            return Ok(());
        };
        if *holds {
            return Err(format!(
                "node {node} is lost ({}) while its lease holds",
                cause.name()
            ));
        }
        if *alive && *cause == LossCause::Crashed {
            return Err(format!(
                "node {node} is taken for crashed while its process lives"
            ));
        }
        Ok(())
    }
}
