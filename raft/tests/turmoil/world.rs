//! The world: machines, their network, and what goes wrong with them, one simulated millisecond after
//! the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotilla_model::State;
use flotilla_raft::Role;
use flotilla_storage::simulation::{DiskFigures, SimulatedDisk};

use crate::entropy;
use crate::network::host;
use crate::node::{self, Stage};
use crate::plan::{CALM, Event, Fault, Plan, Target};
use crate::record::{Figures, Record};
use crate::trace::Trace;
use crate::work::Change;

const TICK: Duration = Duration::from_millis(1);
/// How long a process takes to be started again.
const RESTART: std::ops::Range<u64> = 20..1500;

/// What came of a run.
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) figures: Figures,
    pub(crate) disk: DiskFigures,
    pub(crate) digest: u64,
    pub(crate) lines: u64,
    pub(crate) simulated: Duration,
}

struct World<'a> {
    sim: turmoil::Sim<'a>,
    stage: Arc<Stage>,
    events: Vec<Event>,
    /// When to undo what.
    undo: Vec<(Duration, Undo)>,
    /// Machines that are off, and when they are on again.
    off: Vec<(u64, Duration)>,
    /// When all disks begin to lie about syncs, if they do.
    lies_from: Option<Duration>,
}

enum Undo {
    Repair(Vec<(u64, u64)>),
    Release(u64, u64),
    Loss,
    Latency,
    Disk(u64),
}

/// Runs a plan to its end, or to the first violation.
pub(crate) fn run(plan: Plan, trace: &Trace, lying_disks: bool) -> Outcome {
    let record = Record::new(trace.clone());
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(plan.seed)
        .tick_duration(TICK)
        .simulation_duration(plan.length + Duration::from_secs(3600))
        .min_message_latency(Duration::from_millis(plan.latency.start))
        .max_message_latency(Duration::from_millis(plan.latency.end))
        .tcp_capacity(4096)
        // A port is never free again if a connection was given up while it was being opened.
        .ephemeral_ports(10_000..=u16::MAX)
        .enable_random_order();
    let mut events = plan.events.clone();
    events.reverse();
    let stage = Arc::new(Stage::new(plan, record));
    let mut world = World {
        sim: builder.build(),
        stage: Arc::clone(&stage),
        events,
        undo: Vec::new(),
        off: Vec::new(),
        lies_from: lying_disks.then_some(CALM),
    };
    for node in 1..=stage.plan.nodes + 1 {
        let stage = Arc::clone(&stage);
        world
            .sim
            .host(host(node), move || node::run(Arc::clone(&stage), node));
    }
    world.play();
    world.outcome(trace)
}

impl World<'_> {
    fn play(&mut self) {
        let plan = self.stage.plan.clone();
        let mut healed = false;
        // Whatever is still under way at the end gets this much longer.
        let patience = plan.length + Duration::from_secs(10);
        while self.stage.record.violations().is_empty() {
            let now = self.sim.elapsed();
            if now >= patience || (now >= plan.length && self.has_converged()) {
                break;
            }
            entropy::set_elapsed(now);
            if self.lies_from.take_if(|from| *from <= now).is_some() {
                self.stage.disks.values().for_each(SimulatedDisk::lie);
            }
            if now >= plan.heal && !healed {
                healed = true;
                self.heal();
            }
            if !healed {
                self.faults(now);
            }
            self.machines(now);
            if let Err(error) = self.sim.step() {
                self.stage
                    .record
                    .violation(format!("a node failed: {error}"));
            }
        }
        if self.stage.record.violations().is_empty() {
            self.last_look();
            self.hear_clients();
        }
    }

    /// Compares what clients believe with the log. A session hears of a change a moment after it, so
    /// what counts is what is still disputed after another while.
    fn hear_clients(&mut self) {
        let first = self.disputed();
        for _ in 0..500 {
            entropy::set_elapsed(self.sim.elapsed());
            if let Err(error) = self.sim.step() {
                let text = format!("a node failed: {error}");
                self.stage.record.violation(text);
                return;
            }
        }
        for text in self.disputed().intersection(&first) {
            self.stage.record.violation(text.clone());
        }
    }

    fn disputed(&self) -> BTreeSet<String> {
        let group = self.stage.cast().groups.values().next().cloned();
        group.map_or_else(BTreeSet::new, |group| {
            self.stage
                .work
                .disputed(&group.state())
                .into_iter()
                .collect()
        })
    }

    /// Lets happen what is due.
    fn faults(&mut self, now: Duration) {
        let mut index = 0;
        while index < self.undo.len() {
            if self.undo[index].0 <= now {
                let (_, undo) = self.undo.swap_remove(index);
                self.undo(undo);
            } else {
                index += 1;
            }
        }
        while self.events.last().is_some_and(|event| event.at <= now) {
            if let Some(event) = self.events.pop() {
                self.happen(&event, now);
            }
        }
    }

    fn happen(&mut self, event: &Event, now: Duration) {
        let record = self.stage.record.clone();
        record.note(format_args!("{:?}", event.fault));
        let until = now + event.lasts;
        let kind = match &event.fault {
            Fault::Kill(target) => {
                let node = self.one(*target);
                self.stage.disks[&node].halt();
                self.take_down(node, until);
                "kill"
            }
            Fault::PowerCut(target) => {
                let node = self.one(*target);
                self.stage.disks[&node].cut();
                self.take_down(node, until);
                "power cut"
            }
            Fault::PowerCutInside(target, operations) => {
                let node = self.one(*target);
                self.stage.disks[&node].cut_after(*operations);
                "power cut inside"
            }
            Fault::PowerCutAll => {
                for node in self.machines_on() {
                    self.stage.disks[&node].cut();
                    self.take_down(node, until);
                }
                "power cut of all"
            }
            Fault::BadSector(target, syncs) => {
                let node = self.one(*target);
                self.stage.cast().excused.insert(node);
                self.stage.disks[&node].fail_sync_after(*syncs);
                "bad sector"
            }
            Fault::SlowDisk(target, millis) => {
                let node = self.one(*target);
                let (least, most) = (millis.start, millis.end);
                self.stage.disks[&node]
                    .set_latency(Duration::from_millis(least), Duration::from_millis(most));
                self.undo.push((until, Undo::Disk(node)));
                "slow disk"
            }
            Fault::Halves(side) => {
                let others = self.all().into_iter().filter(|node| !side.contains(node));
                let others: Vec<u64> = others.collect();
                let pairs = side
                    .iter()
                    .flat_map(|one| others.iter().map(|other| (*one, *other)));
                self.cut(pairs.collect(), until);
                "halves"
            }
            Fault::Isolate(target) => {
                let node = self.one(*target);
                let others = self.all().into_iter().filter(|other| *other != node);
                self.cut(others.map(|other| (node, other)).collect(), until);
                "isolation"
            }
            Fault::Mute(target) => {
                let node = self.one(*target);
                let others: Vec<u64> = self.all().into_iter().filter(|n| *n != node).collect();
                for other in &others {
                    self.sim.partition_oneway(host(node), host(*other));
                }
                let pairs = others.into_iter().map(|other| (node, other)).collect();
                self.undo.push((until, Undo::Repair(pairs)));
                "mute"
            }
            Fault::Link(one, other) => {
                self.cut(vec![(*one, *other)], until);
                "link"
            }
            Fault::Hold(one, other) => {
                self.sim.hold(host(*one), host(*other));
                self.undo.push((until, Undo::Release(*one, *other)));
                "hold"
            }
            Fault::Loss(rate) => {
                self.sim.set_fail_rate(f64::from(*rate) / 1000.0);
                self.undo.push((until, Undo::Loss));
                "loss"
            }
            Fault::Latency(most) => {
                self.sim
                    .set_max_message_latency(Duration::from_millis(*most));
                self.undo.push((until, Undo::Latency));
                "latency"
            }
            Fault::Clock(target, offset) => {
                let node = self.one(*target);
                self.stage.clocks[&node].set_offset(*offset);
                "clock"
            }
            Fault::Transfer => {
                let members: Vec<u64> = self.stage.cast().members.iter().copied().collect();
                let to = members[usize::try_from(now.as_millis()).unwrap_or(0) % members.len()];
                self.stage.work.want(Change::Transfer(to));
                "transfer"
            }
            Fault::Campaign(node) => {
                self.campaign(*node);
                "campaign"
            }
            Fault::Replace => {
                self.replace();
                "replace"
            }
            Fault::Snapshot(node) => {
                let group = self.stage.cast().groups.get(node).cloned();
                if let Some(group) = group {
                    self.on(*node, async move {
                        // A group that stops has nothing to build.
                        let _ = group.trigger_snapshot().await;
                    });
                }
                "snapshot"
            }
        };
        record.seen().fault(kind);
    }

    /// Has a node do something.
    fn on(&mut self, node: u64, task: impl Future<Output = ()> + Send + 'static) {
        self.stage.work.errand(node, Box::pin(task));
    }

    fn campaign(&mut self, node: u64) {
        let group = self.stage.cast().groups.get(&node).cloned();
        if let Some(group) = group
            && let Some(leader) = group.status().leader
        {
            self.on(node, async move {
                // A group that stops stands for nothing.
                let _ = group.campaign(leader).await;
            });
        }
    }

    /// The spare node enters, and somebody else leaves for good.
    fn replace(&mut self) {
        let spare = self.stage.plan.nodes + 1;
        let mut cast = self.stage.cast();
        if cast.members.contains(&spare) || cast.members.len() < 3 {
            return;
        }
        cast.members.insert(spare);
        let gone = cast.members.iter().copied().find(|node| *node != 1);
        drop(cast);
        if let Some(gone) = gone {
            self.stage.work.want(Change::Remove(gone));
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Repair(pairs) => {
                for (one, other) in pairs {
                    self.sim.repair(host(one), host(other));
                }
            }
            Undo::Release(one, other) => self.sim.release(host(one), host(other)),
            Undo::Loss => self.sim.set_fail_rate(0.0),
            Undo::Latency => {
                let most = self.stage.plan.latency.end;
                self.sim
                    .set_max_message_latency(Duration::from_millis(most));
            }
            Undo::Disk(node) => self.stage.disks[&node]
                .set_latency(Duration::from_micros(200), Duration::from_millis(2)),
        }
    }

    fn heal(&mut self) {
        self.stage.record.note(format_args!("heal"));
        self.events.clear();
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.undo(undo);
        }
        let now = self.sim.elapsed();
        for (node, on) in &mut self.off {
            if !self.stage.cast().removed.contains(node) {
                *on = now;
            }
        }
        self.stage.work.end();
    }

    fn cut(&mut self, pairs: Vec<(u64, u64)>, until: Duration) {
        for (one, other) in &pairs {
            self.sim.partition(host(*one), host(*other));
        }
        self.undo.push((until, Undo::Repair(pairs)));
    }

    fn one(&self, target: Target) -> u64 {
        match target {
            Target::Node(node) => node,
            Target::Leader => {
                let cast = self.stage.cast();
                let leads = |(node, group): (&u64, &flotilla_raft::Group)| {
                    (group.status().role == Role::Leader).then_some(*node)
                };
                cast.groups.iter().find_map(leads).unwrap_or(1)
            }
        }
    }

    fn all(&self) -> Vec<u64> {
        (1..=self.stage.plan.nodes + 1).collect()
    }

    fn machines_on(&self) -> Vec<u64> {
        let off: BTreeSet<u64> = self.off.iter().map(|(node, _)| *node).collect();
        let all = self.all().into_iter();
        all.filter(|node| !off.contains(node)).collect()
    }

    /// Ends a machine's process; its disk has been stopped.
    fn take_down(&mut self, node: u64, until: Duration) {
        if self.off.iter().any(|(off, _)| *off == node) {
            return;
        }
        {
            let mut cast = self.stage.cast();
            cast.groups.remove(&node);
            cast.stopped.remove(&node);
            cast.excused.remove(&node);
        }
        self.sim.crash(host(node));
        self.stage.work.died(node);
        self.off.push((node, until));
        self.stage.record.note(format_args!("node {node} is down"));
    }

    /// Starts machines that are due, and ends those whose power went or whose group stopped.
    fn machines(&mut self, now: Duration) {
        for node in self.machines_on() {
            if self.stage.cast().removed.contains(&node) {
                self.stage.disks[&node].halt();
                self.take_down(node, Duration::MAX);
                continue;
            }
            let stopped = self.stage.cast().stopped.contains(&node);
            let dark = !self.stage.disks[&node].is_on();
            if stopped || dark {
                self.stage.disks[&node].halt();
                let millis = self.stage.disks[&node].figures().operations;
                let spread = RESTART.end - RESTART.start;
                let pause = Duration::from_millis(RESTART.start + millis % spread);
                self.take_down(node, now + pause);
            }
        }
        let due = |(_, on): &(u64, Duration)| *on <= now;
        let (due, later) = self.off.drain(..).partition::<Vec<_>, _>(due);
        self.off = later;
        for (node, _) in due {
            self.stage.disks[&node].power_on();
            self.sim.bounce(host(node));
        }
    }

    /// Whether every member has the same, and every write is answered.
    fn has_converged(&self) -> bool {
        let cast = self.stage.cast();
        let revisions: BTreeSet<_> = cast
            .members
            .iter()
            .map(|node| Some(cast.groups.get(node)?.state().revision))
            .collect();
        revisions.len() == 1 && !revisions.contains(&None) && self.stage.work.left() == 0
    }

    /// After everything has healed: all members have the same, and nothing is missing.
    fn last_look(&mut self) {
        let record = &self.stage.record;
        let left = self.stage.work.left();
        if left > 0 {
            let length = self.stage.plan.length;
            record.violation(format!(
                "{left} writes are not answered at {length:?}, {:?} after everything healed",
                length.saturating_sub(self.stage.plan.heal)
            ));
        }
        let cast = self.stage.cast();
        let applied = self.stage.work.applied();
        let mut same: Option<(u64, Arc<State>)> = None;
        for node in &cast.members {
            let Some(group) = cast.groups.get(node) else {
                record.violation(format!("node {node} is not back"));
                continue;
            };
            let state = group.state();
            for (register, count) in &applied {
                record.finish(*node, register, *count, &state);
            }
            match &same {
                None => same = Some((*node, state)),
                Some((other, first)) if first.revision != state.revision => {
                    record.violation(format!(
                        "node {node} is at revision {}, node {other} at {}",
                        state.revision, first.revision
                    ));
                }
                Some(_) => {}
            }
        }
    }

    fn outcome(self, trace: &Trace) -> Outcome {
        let simulated = self.sim.elapsed();
        let mut disk = DiskFigures::default();
        for other in self.stage.disks.values() {
            let figures = other.figures();
            disk.operations += figures.operations;
            disk.cuts += figures.cuts;
            disk.cuts_inside += figures.cuts_inside;
            disk.sectors_lost += figures.sectors_lost;
            disk.sectors_kept += figures.sectors_kept;
            disk.names_lost += figures.names_lost;
            disk.records_lost += figures.records_lost;
        }
        for other in self.stage.disks.values() {
            other.halt();
        }
        self.stage.cast().groups.clear();
        let (digest, lines) = trace.digest();
        let violations = self.stage.record.violations();
        let figures = self.stage.record.seen().figures.clone();
        drop(self.sim);
        Outcome {
            violations,
            figures,
            disk,
            digest,
            lines,
            simulated,
        }
    }
}
