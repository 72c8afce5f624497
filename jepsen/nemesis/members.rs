//! Faults that an operator makes: nodes that are stopped, drained, removed, replaced, or away for long.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use testkit::cluster::wait;

use super::{Injected, Undo};
use crate::api::{Answer, Api};
use crate::run::world::{READY_MAX, World};

/// A node has people again only after the others have heard that it takes them.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// Tried meanwhile, so that the others agree on more than a node that goes away may have received of its own.
const ENTRIES: usize = 480;
/// Of them so many are missing at least.
const MISSING_MIN: u64 = 100;
/// Writers that make them.
const WRITERS: usize = 24;

/// What an injection left to be done. Gives remarks for the report.
pub(super) fn undo(undo: Undo, world: &mut World) -> Result<Option<String>> {
    match undo {
        Undo::Resume(id) => {
            world.admin_elsewhere(id, &["resume-node", &id.to_string()])?;
            Ok(None)
        }
        Undo::Restart(id) => {
            let ended = !world.is_running(id);
            world.kill(id)?;
            world.start(id)?;
            Ok(ended.then(|| format!("node {id} had ended by itself")))
        }
        Undo::Rejoin(id) => {
            rejoin(world, id)?;
            Ok(None)
        }
        Undo::StartOrReplace(id) => {
            world.start(id)?;
            if world.wait_until_answers(id).is_ok() {
                return Ok(Some(format!("node {id} starts with a flipped bit")));
            }
            let why = world.last_words(id);
            world.kill(id)?;
            world.admin_elsewhere(id, &["remove-node", &id.to_string()])?;
            rejoin(world, id)?;
            Ok(Some(format!(
                "node {id} refused to start and was replaced: {why}"
            )))
        }
    }
}

fn rejoin(world: &mut World, id: u64) -> Result<()> {
    let at = world.another(id)?;
    world.cluster.join_anew(id, at)?;
    world.start(id)
}

/// Taken out of the cluster; comes back with an empty disk.
pub(super) fn replace(world: &mut World, target: u64) -> Result<Injected> {
    world.kill(target)?;
    let removed = world.admin_elsewhere(target, &["remove-node", &target.to_string()]);
    let mut injected = Injected::of(vec![target], format!("{target} removed, its disk emptied"));
    injected.undo.push(Undo::Rejoin(target));
    removed.context("remove-node")?;
    Ok(injected)
}

/// Away until the others have forgotten what it lacks, and only a snapshot helps it.
pub(super) fn away(world: &mut World, target: u64) -> Result<Injected> {
    world.kill(target)?;
    let mut injected = Injected::of(vec![target], String::new());
    injected.stopped.push(target);
    let others: Vec<u64> = world.ids().filter(|id| *id != target).collect();
    let before = world.applied(others[0])?;
    let urls: Vec<String> = others.iter().map(|id| world.url(*id)).collect();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let url = &urls[writer % urls.len()];
            scope.spawn(move || write_much(url, writer));
        }
    });
    let mut missing = u64::MAX;
    for id in others {
        let built = world.cluster.admin_of(id, &["snapshot", "--purge-log"])?;
        let purged = built["purged"].as_u64().context("purged")?;
        missing = missing.min(purged.saturating_sub(before));
    }
    if missing < MISSING_MIN {
        bail!("node {target} lacks {missing} entries, too few to be sure that it needs a snapshot");
    }
    injected.told = format!("{target} away for {missing} entries that all others have forgotten");
    Ok(injected)
}

fn write_much(url: &str, writer: usize) {
    let api = Api::new(url);
    let room = format!("much-{writer}");
    let mut created = false;
    for number in 0..ENTRIES / WRITERS {
        let (method, body) = if created {
            (
                "UpdateRoomMetadata",
                json!({ "room": room, "metadata": number.to_string() }),
            )
        } else {
            ("CreateRoom", json!({ "name": room, "emptyTimeout": 7200 }))
        };
        created |= matches!(api.call(method, &room, &body), Answer::Done(_));
    }
}

/// One node after the other is asked to stop, and started again when it has.
pub(super) fn rolling_restart(world: &mut World) -> Result<Injected> {
    let ids: Vec<u64> = world.ids().collect();
    for id in &ids {
        world.terminate(*id)?;
        world.start(*id)?;
        world.wait_until_answers(*id)?;
        world.wait_until_whole(READY_MAX)?;
    }
    Ok(Injected::of(ids, "all, one after the other".to_owned()))
}

/// Its people move to others; it takes people again at the end.
pub(super) fn drain(world: &mut World, target: u64) -> Result<Injected> {
    let mut injected = Injected::of(vec![target], format!("{target} drained"));
    injected.undo.push(Undo::Resume(target));
    let id = target.to_string();
    world.admin_elsewhere(target, &["drain-node", &id])?;
    wait(SETTLE_MAX, "a drained node has nobody", || {
        Ok(world.participants_of(target)? == 0)
    })?;
    Ok(injected)
}

/// The next node leads.
pub(super) fn transfer(world: &mut World, target: u64) -> Result<Injected> {
    let to = world.another(target)?;
    world
        .cluster
        .admin_of(target, &["transfer-leader", &to.to_string()])?;
    Ok(Injected::of(
        Vec::new(),
        format!("{target} hands the lead to {to}"),
    ))
}
