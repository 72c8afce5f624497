//! Faults of the disk: without power, torn, flipped, failing, full, slow.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::cluster::wait;

use super::{Class, Injected, Undo};
use crate::net::End;
use crate::net::emulator::Chance;
use crate::net::impairment::{Impairment, between};
use crate::run::world::World;
use crate::shim::{Field, Page};

/// Whether disks can be had whose power can be cut.
///
/// # Errors
/// What is missing.
pub(crate) fn available() -> Result<(), String> {
    testkit::disk::available()
}

/// Nodes lose their power at one moment: the network first, so that no last word gets out; then the
/// disks, which keep only what was synced; then the processes.
pub(super) fn power(world: &mut World, hit: &[u64]) -> Result<Injected> {
    let ends: Vec<End> = hit.iter().map(|id| End::node(*id)).collect();
    let everybody = world.ends();
    let silence = world
        .control
        .impair(between(&ends, &everybody), Impairment::CUT);
    for id in hit {
        world.cut_power(*id)?;
    }
    for id in hit {
        world.kill(*id)?;
    }
    let mut injected =
        Injected::of(hit.to_vec(), format!("{hit:?} without power")).holding(silence);
    injected.stopped.extend(hit);
    injected.dark.extend(hit);
    Ok(injected)
}

/// The next write is torn, and the node gone with it.
pub(super) fn torn_tail(world: &mut World, target: u64, chance: &mut Chance) -> Result<Injected> {
    let page = world.page(target)?;
    page.set(Field::WriteTorn, 1)?;
    let torn = Fault(page, Field::WriteTorn);
    wait(Duration::from_secs(5), "a write is torn", || {
        Ok(!world.is_running(target))
    })?;
    world.kill(target)?;
    let _ = chance.next();
    let mut injected =
        Injected::of(vec![target], format!("{target}: the last write is torn")).holding(torn);
    injected.stopped.push(target);
    Ok(injected)
}

/// A bit flips somewhere in what a stopped node has written.
pub(super) fn flipped_bit(world: &mut World, target: u64, chance: &mut Chance) -> Result<Injected> {
    world.kill(target)?;
    let mut files = Vec::new();
    files_below(&world.data(target), &mut files)?;
    // A file is hit as often as its share of the bytes that are in use.
    for _ in 0..200 {
        let file = chance.pick(&files).clone();
        if let Some(at) = flip(&file, chance)? {
            let name = file
                .strip_prefix(world.data(target))
                .unwrap_or(&file)
                .display();
            let told = format!("{target}: a bit of {name} flipped at {at}");
            let mut injected = Injected::of(vec![target], told);
            injected.undo.push(Undo::StartOrReplace(target));
            return Ok(injected);
        }
    }
    world.start(target)?;
    bail!("node {target} has written nothing yet")
}

/// Flips a bit in a byte that is not zero: where nothing is written yet, nothing can be damaged.
fn flip(path: &Path, chance: &mut Chance) -> Result<Option<u64>> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(None);
    }
    for _ in 0..64 {
        let at = chance.below(length);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        if byte[0] != 0 {
            byte[0] ^= 1 << chance.below(8);
            file.write_all_at(&byte, at)?;
            file.sync_all()?;
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        // Written once, by the command that made the node; losing them is another fault than this.
        let is_identity = path
            .file_name()
            .is_some_and(|name| name == "identity" || name == "lock");
        if path.is_dir() {
            files_below(&path, files)?;
        } else if !is_identity {
            files.push(path);
        }
    }
    Ok(())
}

/// A fault of the page that ends with the value.
struct Fault(Arc<Page>, Field);

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = self.0.set(self.1, 0);
    }
}

/// Writes or syncs fail, or take long. A node whose disk has failed is started again at the end, as an
/// operator would.
pub(super) fn failing(world: &World, target: u64, class: Class) -> Result<Injected> {
    let page = world.page(target)?;
    let (field, value, told) = match class {
        Class::WriteError => (Field::WriteEioPpm, 200_000, "a fifth of the writes fails"),
        Class::SyncError => (Field::SyncEioPpm, 500_000, "half of the syncs fails"),
        Class::SlowDisk => (Field::SyncDelayUs, 80_000, "80 ms more for each sync"),
        Class::StalledDisk => (Field::SyncDelayUs, 600_000_000, "no sync returns"),
        other => bail!("{} is no fault of the disk", other.name()),
    };
    page.set(field, value)?;
    let mut injected =
        Injected::of(vec![target], format!("{target}: {told}")).holding(Fault(page, field));
    if matches!(class, Class::WriteError | Class::SyncError) {
        injected.undo.push(Undo::Restart(target));
    }
    Ok(injected)
}

/// A file that takes all the space there is; gone with the value.
struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// No space is left on the node's disk.
pub(super) fn full(world: &World, target: u64) -> Result<Injected> {
    let path = world.disk(target)?.join("filler");
    let mut file = File::create(&path)?;
    let filler = Filler(path);
    // First what can be had at once, then the rest to the last block.
    let mut step: libc::off_t = 64 << 20;
    let mut length: libc::off_t = 0;
    while step >= 4096 {
        if allocate(&file, length, step) {
            length += step;
        } else {
            step /= 2;
        }
    }
    let _ = std::io::Write::write_all(&mut file, &[0; 4096]);
    let told = format!(
        "{target}: the disk is full ({} MiB of filler)",
        length >> 20
    );
    // What the journal holds in reserve is enough for a while: writes fail as well when it is used up.
    let page = world.page(target)?;
    page.set(Field::WriteEnospc, 1)?;
    let mut injected = Injected::of(vec![target], told)
        .holding(Fault(page, Field::WriteEnospc))
        .holding(filler);
    injected.undo.push(Undo::Restart(target));
    Ok(injected)
}

#[expect(unsafe_code, reason = "fallocate has no safe wrapper")]
fn allocate(file: &File, from: libc::off_t, length: libc::off_t) -> bool {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open during the call.
    unsafe { libc::fallocate(file.as_raw_fd(), 0, from, length) == 0 }
}
