//! The damage: kinds of faults, whom they hit, and how they are undone.
//!
//! [`Class::inject`] gives an [`Injected`]; what holds a fault in force are values in it, so that it ends with them
//! whatever happens to the run. [`Injected::heal`] also starts what the fault has stopped. Faults may overlap: links
//! add up what is wrong with them, and each process is signalled by its own descriptor.

mod clock;
mod disk;
mod members;
mod network;
mod process;

pub(crate) use disk::available as disk_available;
pub(crate) use process::{Controllers, controllers};

use std::any::Any;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::net::emulator::Chance;
use crate::run::world::World;

/// A kind of fault.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    /// SIGKILL.
    Kill,
    /// SIGSTOP and SIGCONT.
    Pause,
    /// The nodes fall into two halves.
    Halves,
    /// Each node sees a majority, no two the same one. Needs five nodes.
    Ring,
    /// Two halves that see each other only through one node.
    Bridge,
    /// One node is heard, but hears nobody.
    OneWay,
    /// Two nodes lose each other.
    Link,
    /// One node comes and goes several times a second.
    Flapping,
    /// Clients lose their node, the nodes do not lose each other.
    ClientCut,
    /// Every packet takes longer.
    Delay,
    /// Some packets take longer than others.
    Jitter,
    /// Packets are lost.
    Loss,
    /// Packets arrive twice.
    Duplication,
    /// Packets overtake each other.
    Reorder,
    /// Bits are flipped.
    Corruption,
    /// The link is slow, and its queue fills.
    Bandwidth,
    /// The wall clock jumps.
    ClockJump,
    /// The wall clock is too fast or too slow.
    ClockDrift,
    /// One node loses its power.
    PowerOne,
    /// A majority loses its power.
    PowerQuorum,
    /// All nodes lose their power.
    PowerAll,
    /// A node loses its power while it writes: the last sectors are torn.
    TornTail,
    /// A bit on a stopped node's disk flips.
    FlippedBit,
    /// Some writes fail.
    WriteError,
    /// Syncs fail.
    SyncError,
    /// The disk is full.
    DiskFull,
    /// Every sync takes longer.
    SlowDisk,
    /// Syncs do not return.
    StalledDisk,
    /// A few hundredths of a core.
    CpuStarved,
    /// Too little memory for a node and its neighbour: the node is killed.
    MemoryStarved,
    /// A node is removed and comes back with an empty disk.
    Replace,
    /// A node is away until the log that it lacks is gone.
    SnapshotCatchUp,
    /// One node after the other is stopped and started.
    RollingRestart,
    /// A node hands its people over and takes them back.
    Drain,
    /// Another node leads.
    LeaderTransfer,
}

/// Which node a fault looks for.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// The Raft leader.
    Leader,
    /// One that does not lead.
    Standby,
    /// The one that serves most participants.
    Home,
    /// One from which a track goes to another node.
    Relay,
}

impl Role {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Leader, Self::Standby, Self::Home, Self::Relay];
}

/// How much of the cluster still has to work during a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Promise {
    /// A majority of the nodes is well and in touch: changes go on within this time.
    GoesOn(Duration),
    /// Only nothing wrong may be answered.
    Safe,
}

/// A fault in force.
#[derive(Default)]
pub(crate) struct Injected {
    /// Whom it hit.
    pub(crate) hit: Vec<u64>,
    /// What it was, in words.
    pub(crate) told: String,
    /// End of these is the end of the fault.
    guards: Vec<Box<dyn Any>>,
    /// Nodes to be started again.
    stopped: Vec<u64>,
    /// Disks to be mounted again before that.
    dark: Vec<u64>,
    /// What else is to be done at the end.
    undo: Vec<Undo>,
}

/// What an injection leaves to be done.
pub(crate) enum Undo {
    /// The node takes people again.
    Resume(u64),
    /// The node, which was removed from the cluster, gets an empty disk and joins anew.
    Rejoin(u64),
    /// The node is started again, whether it still runs or not.
    Restart(u64),
    /// The node may refuse to start with what is on its disk; then it is replaced.
    StartOrReplace(u64),
}

impl Injected {
    fn of(hit: Vec<u64>, told: String) -> Self {
        Self {
            hit,
            told,
            ..Self::default()
        }
    }

    fn holding(mut self, guard: impl Any) -> Self {
        self.guards.push(Box::new(guard));
        self
    }

    /// Undoes it.
    ///
    /// # Errors
    /// What could not be undone.
    pub(crate) fn heal(mut self, world: &mut World) -> Result<Vec<String>> {
        self.guards.clear();
        let mut remarks = Vec::new();
        for id in &self.dark {
            world.remount(*id).context("a disk without power")?;
        }
        for id in &self.stopped {
            world.start(*id)?;
        }
        for undo in std::mem::take(&mut self.undo) {
            remarks.extend(members::undo(undo, world)?);
        }
        Ok(remarks)
    }
}

impl Class {
    /// Its name on the command line and in reports.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// All of them, in the order of the table.
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// How long it lasts, in milliseconds.
    pub(crate) fn lasts_ms(self) -> u64 {
        match self {
            Self::Kill | Self::ClockDrift | Self::Flapping | Self::SlowDisk | Self::CpuStarved => {
                2000
            }
            Self::Pause | Self::StalledDisk | Self::SnapshotCatchUp => 2500,
            Self::PowerOne | Self::PowerQuorum | Self::PowerAll | Self::TornTail => 1000,
            Self::FlippedBit | Self::Replace => 1000,
            Self::RollingRestart | Self::Drain | Self::LeaderTransfer => 500,
            Self::MemoryStarved => 700,
            _ => 1800,
        }
    }

    /// Whether it looks for a node in a role.
    pub(crate) fn roles(self) -> &'static [Role] {
        match self {
            Self::Halves
            | Self::Ring
            | Self::Bridge
            | Self::Delay
            | Self::Jitter
            | Self::Loss
            | Self::Duplication
            | Self::Reorder
            | Self::Corruption
            | Self::PowerQuorum
            | Self::PowerAll
            | Self::RollingRestart
            | Self::LeaderTransfer => &[Role::Leader],
            Self::TornTail | Self::FlippedBit | Self::Replace | Self::SnapshotCatchUp => {
                &[Role::Standby, Role::Leader]
            }
            _ => &Role::ALL,
        }
    }

    /// Whether it leaves a node without the majority, which goes on where it is.
    pub(crate) fn cuts_off(self) -> bool {
        matches!(self, Self::Halves | Self::OneWay | Self::Flapping)
    }

    /// What must go on during it.
    pub(crate) fn promise(self) -> Promise {
        match self {
            Self::PowerQuorum | Self::PowerAll => Promise::Safe,
            // Whoever has the better half may be the one that is slow to notice.
            Self::CpuStarved | Self::Bandwidth | Self::SlowDisk | Self::StalledDisk => {
                Promise::GoesOn(Duration::from_secs(15))
            }
            Self::Loss | Self::Corruption | Self::Delay | Self::Jitter | Self::Flapping => {
                Promise::GoesOn(Duration::from_secs(10))
            }
            _ => Promise::GoesOn(Duration::from_secs(5)),
        }
    }

    /// Why it cannot be had with so many nodes.
    pub(crate) fn missing_with(self, nodes: u64) -> Option<String> {
        match self {
            Self::Ring if nodes < 5 => Some("a majority ring needs five nodes".to_owned()),
            Self::Bridge if nodes < 5 => {
                Some("a bridge between halves needs five nodes".to_owned())
            }
            _ => None,
        }
    }

    /// Puts it into force.
    ///
    /// # Errors
    /// Why it is not, or not for sure.
    pub(crate) fn inject(
        self,
        role: Role,
        world: &mut World,
        chance: &mut Chance,
    ) -> Result<Injected> {
        let target = world.find(role, chance)?;
        match self {
            Self::Kill => process::kill(world, target),
            Self::Pause => process::pause(world, target),
            Self::CpuStarved => process::starve_cpu(world, target, chance),
            Self::MemoryStarved => process::starve_memory(world, target),
            Self::ClockJump => clock::jump(world, target, chance),
            Self::ClockDrift => clock::drift(world, target, chance),
            Self::PowerOne => disk::power(world, &[target]),
            Self::PowerQuorum => {
                let quorum = world.count() / 2 + 1;
                let hit: Vec<u64> = (0..quorum)
                    .map(|step| (target - 1 + step) % world.count() + 1)
                    .collect();
                disk::power(world, &hit)
            }
            Self::PowerAll => {
                let all: Vec<u64> = world.ids().collect();
                disk::power(world, &all)
            }
            Self::TornTail => disk::torn_tail(world, target, chance),
            Self::FlippedBit => disk::flipped_bit(world, target, chance),
            Self::WriteError | Self::SyncError | Self::SlowDisk | Self::StalledDisk => {
                disk::failing(world, target, self)
            }
            Self::DiskFull => disk::full(world, target),
            Self::Replace => members::replace(world, target),
            Self::SnapshotCatchUp => members::away(world, target),
            Self::RollingRestart => members::rolling_restart(world),
            Self::Drain => members::drain(world, target),
            Self::LeaderTransfer => members::transfer(world, target),
            _ => network::inject(self, world, target, chance),
        }
    }
}
