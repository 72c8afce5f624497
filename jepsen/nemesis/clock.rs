//! Faults of the wall clock. The monotonic clock is never touched: no kernel does that.

use std::sync::Arc;

use anyhow::Result;

use super::Injected;
use crate::clock::now_ms;
use crate::net::emulator::Chance;
use crate::run::world::World;
use crate::shim::{Field, Page};

/// How far clocks jump, in seconds: a leap, an hour of summer time, a day, each way.
const JUMPS_S: [i64; 8] = [1, -1, 60, -60, 3600, -3600, 86_400, -86_400];
/// How much too fast or slow they go, in millionths: a bad crystal, and far more than any.
const DRIFTS_PPM: [i64; 4] = [5_000, -5_000, 200_000, -200_000];

/// A clock that is wrong as long as the value lives.
struct Wrong(Arc<Page>);

impl Drop for Wrong {
    fn drop(&mut self) {
        let _ = self.0.set(Field::WallDriftPpm, 0);
        let _ = self.0.set(Field::WallOffsetNs, 0);
    }
}

/// The wall clock of a node jumps, and back at the end.
pub(super) fn jump(world: &World, target: u64, chance: &mut Chance) -> Result<Injected> {
    let page = world.page(target)?;
    let by = *chance.pick(&JUMPS_S);
    page.set(Field::WallOffsetNs, by * 1_000_000_000)?;
    Ok(Injected::of(vec![target], format!("{target}: {by:+} s")).holding(Wrong(page)))
}

/// The wall clock of a node is too fast or too slow.
pub(super) fn drift(world: &World, target: u64, chance: &mut Chance) -> Result<Injected> {
    let page = world.page(target)?;
    let ppm = *chance.pick(&DRIFTS_PPM);
    page.set(Field::WallDriftSinceNs, (now_ms() * 1e6) as i64)?;
    page.set(Field::WallDriftPpm, ppm)?;
    Ok(Injected::of(vec![target], format!("{target}: {ppm:+} ppm")).holding(Wrong(page)))
}
