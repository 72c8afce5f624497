//! Carries out a plan.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::Common;
use super::plan::{Part, Plan, Step};
use super::timeline::{Fault, Outcome as Installation};
use super::work::{Seen, Work};
use super::world::{READY_MAX, World};
use crate::check::Opinion;
use crate::check::convergence::{self, Agreement};
use crate::check::coverage::{self, Need};
use crate::check::data;
use crate::check::registers;
use crate::doctor::Doctor;
use crate::history::{Action, History, Kind, Operation};
use crate::lab::Names;
use crate::nemesis::{Class, Injected, Promise, Role};
use crate::net::emulator::{Chance, Stats};
use crate::workers::stream::Probed;
use crate::{Verdict, say};

/// How long the cluster is watched before the first fault.
const BASELINE: Duration = Duration::from_secs(3);
/// Fewer acknowledged operations a second before the first fault mean that the harness is broken.
const BASELINE_RATE_MIN: f64 = 10.0;
/// Between two parts, so that each begins in peace.
const REST: Duration = Duration::from_millis(250);
/// So many keys are judged by search as well.
const SEARCHED: usize = 40;
/// Media that is silent for longer is worth a look into the logs, milliseconds.
const SILENCE_MS: f64 = 10_000.0;

/// What came of a run.
#[derive(Serialize)]
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    pub(crate) faults: Vec<Fault>,
    pub(crate) opinions: Vec<Opinion>,
    pub(crate) network: Stats,
    /// Acknowledged operations a second before the first fault.
    pub(crate) baseline_rate: f64,
    pub(crate) lasted_s: f64,
    /// The longest silence of each media probe around each fault, in milliseconds; same order as the faults.
    pub(crate) gaps_ms: Vec<Vec<f64>>,
    /// Sessions of media probes that resumed, and that had to begin anew.
    pub(crate) resumes: u64,
    pub(crate) rejoins: u64,
    #[serde(skip)]
    pub(crate) probes: Vec<Probed>,
    #[serde(skip)]
    pub(crate) history: History,
    #[serde(skip)]
    pub(crate) operations: Vec<Operation>,
    /// What nodes logged as errors, and how often; disks that fail make some.
    pub(crate) errors: Vec<(String, usize)>,
    /// What this machine cannot inject.
    pub(crate) not_covered: Vec<String>,
}

impl Outcome {
    /// Lets go of what only its own report needs.
    pub(crate) fn forget_details(&mut self) {
        self.probes.clear();
        self.history = History::new();
        // The table needs when writes were acknowledged.
        self.operations
            .retain(|one| one.kind == Kind::Ok && one.f == "write");
    }

    /// What it is worth.
    pub(crate) fn verdict(&self) -> Verdict {
        let told = |judge: &str, what: &String| format!("{judge}: {what}");
        let violations: Vec<String> = self
            .opinions
            .iter()
            .flat_map(|one| one.violations.iter().map(|what| told(one.judge, what)))
            .collect();
        if !violations.is_empty() {
            return Verdict::Violated(violations);
        }
        let undecided: Vec<String> = self
            .opinions
            .iter()
            .flat_map(|one| one.undecided.iter().map(|what| told(one.judge, what)))
            .collect();
        if undecided.is_empty() {
            Verdict::Holds
        } else {
            Verdict::Vacuous(undecided.join("; "))
        }
    }
}

/// Carries out a plan from setup to judgement.
///
/// # Errors
/// What broke in the harness; a broken promise is part of the outcome.
pub(crate) fn conduct(
    plan: &Plan,
    names: Names,
    common: &Common,
    doctor: &Doctor,
    folder: &Path,
) -> Result<Outcome> {
    let begun = Instant::now();
    let history = History::new();
    let mut world = World::new(names, plan.nodes, plan.seed).context("setup")?;
    let work = Work::start(&world, &history, common, plan).context("the workload")?;
    let mut stage = Stage {
        history: history.clone(),
        faults: Vec::new(),
        agreements: Vec::new(),
        liveness: Opinion::new("recovery"),
    };
    let baseline_rate = stage.baseline()?;
    for (number, part) in plan.parts.iter().enumerate() {
        let progress = format!("{}/{}", number + 1, plan.parts.len());
        work.await_media();
        if !stage.part(&mut world, part, doctor, &progress)? {
            say("the cluster did not recover: the rest of the plan is left out");
            break;
        }
    }
    let seen = match work.end(&mut world) {
        Ok(seen) => seen,
        Err(failure) => {
            world.keep_logs(&folder.join("logs"))?;
            return Err(failure.context("the end of the workload"));
        }
    };
    let network = world.control.stats();
    let operations = history.operations();
    let planned: BTreeSet<Class> = plan.steps().map(|step| step.class).collect();
    let mut opinions = stage.judge(&operations, &seen, &planned, baseline_rate);
    let mut panics = Opinion::new("panics");
    let errors = world.errors();
    panics.looked_at = format!("the nodes' logs; {} kinds of errors in them", errors.len());
    panics.extend(world.panics());
    opinions.push(panics);
    let gaps_ms: Vec<Vec<f64>> = stage
        .faults
        .iter()
        .map(|fault| seen.gaps_ms(fault))
        .collect();
    let is_silent = gaps_ms.iter().flatten().any(|gap| *gap > SILENCE_MS);
    // Also those that may be lost, as with a loss of power.
    let mut streams = seen.probes.iter().flat_map(|probe| &probe.data);
    let has_losses = streams.any(data::has_losses);
    if is_silent || has_losses || opinions.iter().any(|one| one.count > 0) {
        world.keep_logs(&folder.join("logs"))?;
    }
    if let Err(failure) = world.stop() {
        say(&format!("stopping: {failure:#}"));
    }
    Ok(Outcome {
        gaps_ms,
        resumes: seen.probes.iter().map(|probe| probe.resumes).sum(),
        rejoins: seen.probes.iter().map(|probe| probe.rejoins).sum(),
        probes: seen.probes,
        plan: plan.clone(),
        faults: stage.faults,
        opinions,
        network,
        baseline_rate,
        lasted_s: begun.elapsed().as_secs_f64(),
        history,
        operations,
        not_covered: doctor.not_covered(),
        errors,
    })
}

/// A fault in force and when it is to end.
struct Running {
    until: Instant,
    injected: Injected,
    fault: Fault,
}

struct Stage {
    history: History,
    faults: Vec<Fault>,
    agreements: Vec<Agreement>,
    liveness: Opinion,
}

impl Stage {
    fn baseline(&self) -> Result<f64> {
        let before = self.history.len();
        let begun = Instant::now();
        std::thread::sleep(BASELINE);
        let done = self.history.since(before);
        let acknowledged = done.iter().filter(|one| one.kind == Kind::Ok).count();
        let rate = acknowledged as f64 / begun.elapsed().as_secs_f64();
        say(&format!(
            "baseline: {rate:.0} operations a second acknowledged"
        ));
        Ok(rate)
    }

    /// Some faults and the recovery from them. False if there was none.
    fn part(
        &mut self,
        world: &mut World,
        part: &Part,
        doctor: &Doctor,
        progress: &str,
    ) -> Result<bool> {
        std::thread::sleep(REST);
        let begun = Instant::now();
        let mut waiting = part.steps.iter().peekable();
        let mut running: Vec<Running> = Vec::new();
        let mut done: Vec<Fault> = Vec::new();
        let combined = part.steps.len() > 1;
        while waiting.peek().is_some() || !running.is_empty() {
            let now = Instant::now();
            if let Some(step) =
                waiting.next_if(|step| begun + Duration::from_millis(step.at_ms) <= now)
            {
                match self.inject(world, step, doctor, combined) {
                    Ok(one) => running.push(one),
                    Err(fault) => done.push(*fault),
                }
                continue;
            }
            if let Some(over) = running.iter().position(|one| one.until <= now) {
                let one = running.remove(over);
                done.push(self.heal(world, one)?);
                continue;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let recovered = world.wait_until_whole(READY_MAX);
        let at = self.history.now();
        for fault in &mut done {
            fault.recovered = at;
        }
        if let Err(failure) = &recovered {
            let told: Vec<&str> = done.iter().map(|fault| fault.told.as_str()).collect();
            self.liveness
                .violated(format!("after {}: {failure:#}", told.join(" + ")));
        } else {
            self.agree(world, &done);
            let left = world.leftovers()?;
            self.liveness.undecided.extend(left);
        }
        for fault in &done {
            say(&told(fault, progress));
        }
        self.faults.extend(done);
        Ok(recovered.is_ok())
    }

    fn agree(&mut self, world: &World, done: &[Fault]) {
        let told: Vec<&str> = done.iter().map(|fault| fault.told.as_str()).collect();
        let when = format!("after {}", told.join(" + "));
        match world.hashes() {
            Ok((index, hashes)) => self.agreements.push(Agreement {
                when,
                index,
                hashes,
            }),
            Err(failure) => self.liveness.violated(format!("{when}: {failure:#}")),
        }
    }

    fn note(&self, step: &Step, value: &str) {
        let action = Action {
            process: "nemesis".to_owned(),
            f: "fault",
            key: step.class.name(),
            value: value.to_owned(),
            node: 0,
        };
        self.history.add(&action, Kind::Info, None, None);
    }

    fn inject(
        &mut self,
        world: &mut World,
        step: &Step,
        doctor: &Doctor,
        combined: bool,
    ) -> Result<Running, Box<Fault>> {
        let mut fault = Fault {
            class: step.class,
            role: step.role,
            hit: Vec::new(),
            leader: world.leader().unwrap_or(0),
            told: step.class.name(),
            outcome: Installation::Installed,
            at: self.history.now(),
            healed: self.history.now(),
            recovered: 0,
            combined,
            remarks: Vec::new(),
        };
        let missing = step
            .class
            .missing_with(world.count())
            .or_else(|| doctor.missing(step.class));
        if let Some(why) = missing {
            fault.outcome = Installation::Missing(why);
            return Err(Box::new(fault));
        }
        self.note(step, "begins");
        fault.at = self.history.now();
        match step.class.inject(step.role, world, &mut Chance(step.seed)) {
            Ok(injected) => {
                fault.hit.clone_from(&injected.hit);
                fault.told = format!("{}: {}", step.class.name(), injected.told);
                Ok(Running {
                    until: Instant::now() + Duration::from_millis(step.lasts_ms),
                    injected,
                    fault,
                })
            }
            Err(failure) => {
                fault.outcome = Installation::Indeterminate(format!("{failure:#}"));
                for id in world.ids() {
                    // Half an injection may have stopped a node.
                    if let Err(failure) = world.start(id) {
                        fault.remarks.push(format!("{failure:#}"));
                    }
                }
                fault.healed = self.history.now();
                Err(Box::new(fault))
            }
        }
    }

    fn heal(&mut self, world: &mut World, one: Running) -> Result<Fault> {
        let Running {
            injected,
            mut fault,
            ..
        } = one;
        fault.healed = self.history.now();
        match injected.heal(world) {
            Ok(remarks) => fault.remarks.extend(remarks),
            Err(failure) => {
                self.liveness
                    .violated(format!("{} could not be undone: {failure:#}", fault.told));
            }
        }
        let action = Action {
            process: "nemesis".to_owned(),
            f: "heal",
            key: fault.class.name(),
            value: fault.told.clone(),
            node: 0,
        };
        self.history.add(&action, Kind::Info, None, None);
        Ok(fault)
    }

    fn judge(
        &mut self,
        operations: &[Operation],
        seen: &Seen,
        planned: &BTreeSet<Class>,
        rate: f64,
    ) -> Vec<Opinion> {
        let mut opinions = Vec::new();
        opinions.extend(registers::judge(operations, SEARCHED));
        opinions.push(convergence::judge(&self.agreements));
        self.bounds(operations);
        self.liveness.looked_at = format!("{} faults", self.faults.len());
        opinions.push(self.liveness.clone());
        opinions.extend(seen.judge(operations, &self.faults));
        opinions.push(self.coverage(operations, seen, planned, rate));
        opinions
    }

    /// Changes went on where a majority was well.
    fn bounds(&mut self, operations: &[Operation]) {
        let mut found = Vec::new();
        for fault in &self.faults {
            let Promise::GoesOn(bound) = fault.class.promise() else {
                continue;
            };
            let longest = Duration::from_nanos(fault.unavailable_during_ns(operations));
            if fault.outcome == Installation::Installed && !fault.combined && longest > bound {
                found.push(format!(
                    "{}: no write was acknowledged for {longest:?}, the bound is {bound:?}",
                    fault.told
                ));
            }
        }
        self.liveness.extend(found);
    }

    fn coverage(
        &self,
        operations: &[Operation],
        seen: &Seen,
        planned: &BTreeSet<Class>,
        rate: f64,
    ) -> Opinion {
        let installed = self
            .faults
            .iter()
            .filter(|fault| fault.outcome == Installation::Installed);
        let during: usize = installed
            .clone()
            .map(|fault| fault.acknowledged_during(operations))
            .sum();
        let on_leader = installed
            .clone()
            .filter(|fault| fault.hit.contains(&fault.leader))
            .count();
        let acknowledged = operations.iter().filter(|one| one.kind == Kind::Ok).count();
        let need = |what: &str, least: u64, seen: usize| Need {
            what: what.to_owned(),
            least,
            seen: seen as u64,
        };
        let mut needs = vec![
            need("faults in force", 1, installed.clone().count()),
            need("operations acknowledged", 200, acknowledged),
            need("operations acknowledged during faults", 1, during),
            need(
                "operations a second before the first fault",
                BASELINE_RATE_MIN as u64,
                rate as usize,
            ),
        ];
        let wants_leader = installed
            .clone()
            .any(|fault| fault.role == Role::Leader && !fault.hit.is_empty());
        if wants_leader {
            needs.push(need("faults hit the leader", 1, on_leader));
        }
        for class in planned {
            let seen = installed.clone().filter(|fault| fault.class == *class);
            needs.push(need(&format!("{} in force", class.name()), 1, seen.count()));
        }
        needs.extend(seen.needs(&self.faults));
        coverage::judge(&needs)
    }
}

fn told(fault: &Fault, progress: &str) -> String {
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    match &fault.outcome {
        Installation::Installed => {
            let mut text = format!(
                "[{progress}] {} for {:.1} s, whole {:.2} s after it",
                fault.told,
                ms(fault.at, fault.healed) / 1e3,
                ms(fault.healed, fault.recovered) / 1e3
            );
            for remark in &fault.remarks {
                text.push_str("; ");
                text.push_str(remark);
            }
            text
        }
        Installation::Missing(why) => format!("[{progress}] {} NOT COVERED: {why}", fault.told),
        Installation::Indeterminate(why) => {
            format!(
                "[{progress}] {} perhaps in force, not counted: {why}",
                fault.told
            )
        }
    }
}
