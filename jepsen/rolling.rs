//! Plan: one node after the other is stopped and started with another version of the program, under
//! people on three SDKs.
//!
//! Promise: a call survives an upgrade of the whole cluster, and the way back: nobody leaves, nothing is
//! lost, nobody joins anew. At each step all nodes, whichever version they run, have the same state.
//! Judged as [`crate::failover`] judges; runs in the namespaces of a [`crate::lab::Lab`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use testkit::cluster::binary;

use crate::clock::{Ms, now_ms};
use crate::failover::judge::Touched;
use crate::failover::report::{self, Report, Round};
use crate::failover::run::prove;
use crate::failover::stage::{BEFORE, Cast, LIVE_MAX, Stage, places};
use crate::lab::{self, NODES, Names};
use crate::wire::capture::Capture;
use crate::{Verdict, say};

/// Options of the plan.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Program of the version before, with which the nodes begin; without it they restart with the same.
    #[arg(long)]
    old: Option<PathBuf>,
    /// Before that, upgrade all but the last node and go back.
    #[arg(long)]
    back: bool,
    /// Clients on the Python SDK; spread over the nodes, like those of the other kinds.
    #[arg(long, default_value_t = 4)]
    python: usize,
    /// Clients on rtc-node.
    #[arg(long, default_value_t = 4)]
    node: usize,
    /// Clients in Chromium.
    #[arg(long, default_value_t = 2)]
    chromium: usize,
    /// To how many others each client subscribes, 0: to all; decoding is what fills a small machine.
    #[arg(long, default_value_t = 2)]
    hears: usize,
    /// Milliseconds between two messages of a client to all others.
    #[arg(long, default_value_t = 1000)]
    pause: u64,
    /// Seconds without a change at the start, that show what the machine does by itself.
    #[arg(long, default_value_t = 5.0)]
    quiet: f64,
    /// Report violations, but do not fail.
    #[arg(long)]
    report_only: bool,
    /// Where the report goes as JSON.
    #[arg(long, default_value = "artifacts/rolling-upgrade.json")]
    json: PathBuf,
    /// Do not capture packets, and so prove nothing from the wire.
    #[arg(long)]
    no_capture: bool,
    /// Number of the namespaces; given by the process that made them.
    #[arg(long, hide = true)]
    lab: Option<u32>,
}

impl Options {
    fn cast(&self) -> Cast {
        Cast {
            python: self.python,
            node: self.node,
            chromium: self.chromium,
            hears: self.hears,
            pause_ms: self.pause,
        }
    }
}

/// Runs the plan: makes namespaces and starts itself in them, or does the steps.
pub(crate) async fn run(options: Options, out: Option<PathBuf>) -> Result<Verdict> {
    let Some(lab) = options.lab else {
        return lab::play_in(options.cast().clients()).await;
    };
    let new = binary()?;
    let old = options.old.clone().unwrap_or_else(|| new.clone());
    for program in [&old, &new] {
        ensure!(program.is_file(), "there is no {}", program.display());
    }
    let names = Names(lab);
    let mut stage = Stage::set(options.cast(), names, &places(names, Some(&old), false)).await?;
    let outcome = play(&mut stage, &options, &old, &new, out.as_deref()).await;
    let outcome = outcome.map(Report::judged);
    stage
        .conclude(outcome, &options.json, false, options.report_only)
        .await
}

async fn play(
    stage: &mut Stage,
    options: &Options,
    old: &Path,
    new: &Path,
    out: Option<&Path>,
) -> Result<Report> {
    // Sessions begin within the capture, so that their keys are known from the first packet.
    let capture = |name: &str, stage: &Stage| {
        let file = stage.folder.path().join(format!("{name}.pcap"));
        let wanted = !options.no_capture;
        wanted
            .then(|| Capture::start(stage.names, &file))
            .transpose()
    };
    let forth = if options.old.is_some() {
        "upgrade"
    } else {
        "restart"
    };
    let all: Vec<u64> = (1..=NODES).collect();
    let mut ways = vec![(forth, new, all.clone())];
    if options.back {
        // When the last node is upgraded, the log may hold what the version before cannot read.
        let some: Vec<u64> = (1..NODES).collect();
        let back = some.iter().rev().copied().collect();
        ways = vec![
            ("part of an upgrade", new, some),
            ("way back", old, back),
            (forth, new, all),
        ];
    }
    let mut running = capture("0", stage)?;
    stage.gather().await?;
    stage.wait_until_live(LIVE_MAX).await?;
    let quiet = stage.quiet(options.quiet).await?;
    report::print_quiet(&quiet);
    let mut report = Report::new(quiet);
    for (index, (name, program, nodes)) in ways.into_iter().enumerate() {
        if index > 0 {
            running = capture(&index.to_string(), stage)?;
            stage.everybody_anew().await?;
        }
        let mut rounds = Vec::new();
        for (number, id) in (0..).zip(nodes) {
            let round = replace(stage, number, id, program).await?;
            report::print_round(name, &round);
            round.write(out, &format!("rolling-{index}-{id}"))?;
            rounds.push(round);
        }
        let wire = running
            .take()
            .map(|capture| prove(capture, out))
            .transpose()?;
        report.add(name, rounds, wire);
    }
    Ok(report)
}

/// Stops a node as an operator does and starts it with `program`, from a whole cluster to a whole one.
async fn replace(stage: &mut Stage, number: u32, id: u64, program: &Path) -> Result<Round> {
    stage.wait_until_live(LIVE_MAX).await?;
    stage.see_homes()?;
    let leader = stage.leader()?;
    tokio::time::sleep(Duration::from_millis(BEFORE as u64)).await;
    stage.record_from(now_ms() - BEFORE);
    let people = stage.homes.iter().filter(|home| **home == id).count();
    let at = now_ms();
    tokio::task::block_in_place(|| stage.cluster.node(id).terminate())?;
    let stopped = now_ms();
    stage.cluster.node(id).set_binary(program);
    stage.cluster.node(id).start()?;
    tokio::task::block_in_place(|| stage.cluster.wait_until_answers(id))?;
    let answers = now_ms();
    stage
        .wait_until_whole()
        .with_context(|| format!("node {id} runs {} now", program.display()))?;
    let whole = now_ms();
    let judgement = stage.observe(Touched::Node(id), at, whole).await;
    let seconds = |from: Ms, to: Ms| (to - from) / 1e3;
    say(&format!(
        "node {id} with {people} people: stopped after {:.1} s, answers {:.1} s later, whole {:.1} s after that; {}",
        seconds(at, stopped),
        seconds(stopped, answers),
        seconds(answers, whole),
        stage.versions()?
    ));
    Ok(Round {
        number,
        hit: Some(id),
        leader,
        detection_ms: None,
        front_ms: stage
            .fronts
            .marked_down_since(id, at)
            .map(|marked| marked - at),
        judgement,
    })
}

impl Stage {
    /// Takes everybody's home for where it should be.
    fn see_homes(&mut self) -> Result<()> {
        for (identity, home) in self.served()? {
            if let Some(agent) = self.agents.iter().find(|agent| agent.identity == identity) {
                self.homes[agent.index] = home;
            }
        }
        Ok(())
    }

    /// What each node registered.
    fn versions(&self) -> Result<String> {
        let listed = tokio::task::block_in_place(|| self.cluster.admin(&["nodes"]))?;
        let nodes = listed["nodes"].as_array().context("nodes are listed")?;
        let versions = nodes.iter().map(|node| {
            format!(
                "node {} runs {}",
                node["id"],
                node["version"].as_str().unwrap_or("nothing known")
            )
        });
        Ok(versions.collect::<Vec<_>>().join(", "))
    }
}
