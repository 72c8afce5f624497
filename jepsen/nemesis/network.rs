//! Faults of the network: who hears whom, and how well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Class, Injected};
use crate::net::End;
use crate::net::emulator::{Chance, Control};
use crate::net::impairment::{Impairment, Pairs, between};
use crate::run::world::World;

const MS: u64 = 1_000_000;

/// Puts one of the network's faults into force.
pub(super) fn inject(
    class: Class,
    world: &World,
    target: u64,
    chance: &mut Chance,
) -> Result<Injected> {
    let (pairs, hit, told) = concerned(class, world, target, chance)?;
    let injected = Injected::of(hit, told);
    if class == Class::Flapping {
        let flapper = Flapper::start(world.control.clone(), pairs, chance.next());
        return Ok(injected.holding(flapper));
    }
    let force = world.control.impair(pairs, impairment(class, chance));
    Ok(injected.holding(force))
}

/// What is wrong with the links concerned.
fn impairment(class: Class, chance: &mut Chance) -> Impairment {
    let calm = Impairment::default();
    match class {
        Class::Delay => Impairment {
            delay_ns: (20 + chance.below(80)) * MS,
            ..calm
        },
        Class::Jitter => Impairment {
            delay_ns: 20 * MS,
            jitter_ns: (10 + chance.below(30)) * MS,
            ..calm
        },
        Class::Loss => Impairment {
            loss: 0.02 + chance.share() * 0.18,
            ..calm
        },
        Class::Duplication => Impairment {
            duplicate: 0.05 + chance.share() * 0.3,
            ..calm
        },
        Class::Reorder => Impairment {
            delay_ns: 5 * MS,
            reorder: 0.05 + chance.share() * 0.2,
            ..calm
        },
        Class::Corruption => Impairment {
            corrupt: 0.01 + chance.share() * 0.05,
            ..calm
        },
        Class::Bandwidth => Impairment {
            rate_bps: 300_000 + chance.below(1_700_000),
            ..calm
        },
        _ => Impairment::CUT,
    }
}

/// Which directed links a fault concerns, whom it hits, and what that is in words.
fn concerned(
    class: Class,
    world: &World,
    target: u64,
    chance: &mut Chance,
) -> Result<(Pairs, Vec<u64>, String)> {
    let ids: Vec<u64> = world.ids().collect();
    let end = |ids: &[u64]| -> Vec<End> { ids.iter().map(|id| End::node(*id)).collect() };
    let others: Vec<u64> = ids.iter().copied().filter(|id| *id != target).collect();
    // Those after the target, in a circle.
    let circle: Vec<u64> = (0..ids.len())
        .map(|step| ids[(usize::try_from(target - 1).unwrap_or(0) + step) % ids.len()])
        .collect();
    let minority = ids.len() / 2;
    let clients = world.client_ends();
    Ok(match class {
        Class::Halves => {
            // With the leader on the smaller side, and on the larger one.
            let few = if chance.below(2) == 0 {
                circle[..minority].to_vec()
            } else {
                circle[ids.len() - minority..].to_vec()
            };
            let many: Vec<u64> = ids.iter().copied().filter(|id| !few.contains(id)).collect();
            let told = format!("{few:?} | {many:?}");
            (between(&end(&few), &end(&many)), few, told)
        }
        Class::Ring => {
            let count = circle.len();
            let mut pairs = Pairs::new();
            for one in 0..count {
                for two in one + 1..count {
                    let apart = (two - one).min(count - (two - one));
                    if apart > count / 4 {
                        pairs.extend(between(&end(&[circle[one]]), &end(&[circle[two]])));
                    }
                }
            }
            (pairs, Vec::new(), format!("ring {circle:?}"))
        }
        Class::Bridge => {
            let side = (circle.len() - 1) / 2;
            let (left, right) = (&circle[1..=side], &circle[side + 1..]);
            let told = format!("{left:?} - {target} - {right:?}");
            (between(&end(left), &end(right)), Vec::new(), told)
        }
        Class::OneWay => {
            let pairs = others.iter().map(|id| (End::node(*id), End::node(target)));
            (
                pairs.collect(),
                vec![target],
                format!("{target} hears no node"),
            )
        }
        Class::Link => {
            let other = *chance.pick(&others);
            let pairs = between(&end(&[target]), &end(&[other]));
            (pairs, Vec::new(), format!("{target} -/- {other}"))
        }
        Class::Flapping => {
            let pairs = between(&end(&[target]), &end(&others));
            (pairs, vec![target], format!("{target} comes and goes"))
        }
        Class::ClientCut => {
            // Operators and the server API have another way.
            let people: Vec<End> = clients
                .iter()
                .copied()
                .filter(|end| *end != End::JUDGE)
                .collect();
            let pairs = between(&end(&[target]), &people);
            (pairs, Vec::new(), format!("{target} -/- clients"))
        }
        Class::Bandwidth => {
            let mut all = end(&others);
            all.extend(&clients);
            let pairs = between(&end(&[target]), &all);
            (pairs, vec![target], format!("{target} on a slow line"))
        }
        Class::Delay
        | Class::Jitter
        | Class::Loss
        | Class::Duplication
        | Class::Reorder
        | Class::Corruption => {
            let mut all = end(&ids);
            let mut told = "between nodes".to_owned();
            if chance.below(2) == 0 {
                all.extend(&clients);
                "between all".clone_into(&mut told);
            }
            (between(&end(&ids), &all), Vec::new(), told)
        }
        other => bail!("{} is no fault of the network", other.name()),
    })
}

/// Cuts and heals, again and again, until it ends.
struct Flapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flapper {
    fn start(control: Control, pairs: Pairs, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mut chance = Chance(seed);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let force = control.impair(pairs.clone(), Impairment::CUT);
                std::thread::sleep(Duration::from_millis(50 + chance.below(400)));
                drop(force);
                std::thread::sleep(Duration::from_millis(50 + chance.below(400)));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Flapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
