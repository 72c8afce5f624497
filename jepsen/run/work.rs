//! Everything that goes on in the cluster during a run, started and ended together.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};

use super::Common;
use super::timeline::Fault;
use super::world::World;
use crate::check::Opinion;
use crate::history::{History, Operation};
use crate::workers::Shift;
use crate::workers::registers::{self, Registers};

/// Register workers per node.
const REGISTERS_PER_NODE: u64 = 2;

/// The workers of a run.
pub(crate) struct Work {
    shift: Shift,
    threads: Vec<JoinHandle<()>>,
}

/// What they saw besides the history.
#[derive(Default)]
pub(crate) struct Seen {}

impl Seen {
    /// What the judges of it say.
    pub(crate) fn judge(&self, _operations: &[Operation], _faults: &[Fault]) -> Vec<Opinion> {
        Vec::new()
    }
}

impl Work {
    /// Starts all of it.
    pub(crate) fn start(
        world: &World,
        history: &History,
        _common: &Common,
        seed: u64,
    ) -> Result<Self> {
        let shift = Shift::new(history.clone());
        let prefix = format!("r{seed}");
        let registers = Arc::new(Registers::new(&prefix));
        let threads = registers::start(
            &shift,
            &registers,
            &world.urls(),
            REGISTERS_PER_NODE,
            seed,
        )?;
        Ok(Self { shift, threads })
    }

    /// Ends all of it, each worker after what it is doing.
    pub(crate) fn end(self) -> Result<Seen> {
        self.shift.end();
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a worker panicked"))?;
        }
        Ok(Seen::default())
    }
}
