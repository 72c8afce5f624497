//! What has to hold, one file each; the numbers are those of the list of invariants that the project
//! promises (`docs/testing.md`).

use crate::witness::{Fact, Scene};
use crate::world::World;

pub mod acknowledged;
pub mod convergence;
pub mod data;
pub mod election;
pub mod feed;
pub mod fence;
pub mod homes;
pub mod leader;
pub mod leaks;
pub mod log;
pub mod once;
pub mod owner;
pub mod presence;
pub mod read;
pub mod relay;
pub mod revocation;
pub mod room;
pub mod serving;
pub mod sid;
pub mod state;
pub mod time;
pub mod verdict;

/// Something that has to hold.
pub trait Invariant {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Takes a fact.
    ///
    /// # Errors
    /// How it does not hold.
    fn see(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String>;

    /// The run is over and everything has settled.
    ///
    /// # Errors
    /// How it does not hold.
    fn end(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<state::Equal>::default(),
        Box::<log::Stays>::default(),
        Box::<leader::One>::default(),
        Box::<election::Ends>::default(),
        Box::<acknowledged::Kept>::default(),
        Box::<once::Applied>::default(),
        Box::<owner::One>::default(),
        Box::<serving::One>::default(),
        Box::<fence::Order>::default(),
        Box::<verdict::Sound>::default(),
        Box::<feed::Whole>::default(),
        Box::<presence::True>::default(),
        Box::<sid::Stable>::default(),
        Box::<data::ExactlyOnce>::default(),
        Box::<relay::Needed>::default(),
        Box::<revocation::Holds>::default(),
        Box::<room::One>::default(),
        Box::<homes::Spread>::default(),
        Box::<read::Fresh>::default(),
        Box::<time::Rises>::default(),
        Box::<convergence::Reached>::default(),
        Box::<leaks::None>::default(),
    ]
}
