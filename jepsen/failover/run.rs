//! The rounds: everybody at home and heard, a fault, a window in which all is recorded, repair.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Options;
use super::agents::Kind;
use super::detection;
use super::faults::Fault;
use super::judge::Touched;
use super::report::{self, Report, Round};
use super::stage::{BEFORE, LIVE_MAX, Stage, places};
use crate::clock::now_ms;
use crate::lab::{NODES, Names, floating_address, node_address};
use crate::wire::capture::{Capture, Reader};
use crate::wire::proof::{Findings, Proof};
use crate::{Verdict, say};

/// Does all rounds inside the lab.
pub(super) async fn run(options: Options, names: Names, out: Option<PathBuf>) -> Result<Verdict> {
    let faults: Vec<Fault> = options
        .faults
        .iter()
        .copied()
        .filter(|fault| match fault.missing() {
            None => true,
            Some(why) => {
                say(&format!("SKIPPED {}: {why}", fault.name()));
                false
            }
        })
        .collect();
    if faults.is_empty() || options.rounds == 0 {
        return Ok(Verdict::Vacuous("no fault was injected".to_owned()));
    }
    let mut stage = Stage::set(
        options.cast(),
        names,
        &places(names, None, options.floating),
    )
    .await?;
    let outcome = stage.play(&options, &faults, out.as_deref()).await;
    let outcome = outcome.map(Report::judged);
    let wants_logs = out.is_some();
    stage
        .conclude(outcome, &options.json, wants_logs, options.report_only)
        .await
}

impl Stage {
    async fn play(
        &mut self,
        options: &Options,
        faults: &[Fault],
        out: Option<&Path>,
    ) -> Result<Report> {
        self.gather().await?;
        self.wait_until_live(LIVE_MAX).await?;
        let quiet = self.quiet(options.quiet).await?;
        report::print_quiet(&quiet);
        let mut report = Report::new(quiet);
        for fault in faults {
            // Sessions begin within the capture, so that their keys are known from the first packet.
            let capture = if options.no_capture {
                None
            } else {
                let file = self.folder.path().join(format!("{}.pcap", fault.name()));
                Some(Capture::start(self.names, &file)?)
            };
            self.everybody_anew().await?;
            let mut rounds = Vec::new();
            for number in 0..options.rounds {
                let round = self.round(*fault, number).await?;
                report::print_round(fault.name(), &round);
                round.write(out, &format!("failover-{}-{number}", fault.name()))?;
                rounds.push(round);
            }
            let wire = capture.map(|capture| prove(capture, out)).transpose()?;
            report.add(fault.name(), rounds, wire);
        }
        Ok(report)
    }

    /// One fault from a whole cluster to a whole cluster.
    async fn round(&mut self, fault: Fault, number: u32) -> Result<Round> {
        let leader = self.leader()?;
        let touched = fault.target(number, leader);
        self.place_browsers(touched, number);
        self.gather().await?;
        self.wait_until_live(LIVE_MAX).await?;
        tokio::time::sleep(Duration::from_millis(BEFORE as u64)).await;
        self.record_from(now_ms() - BEFORE);
        let at = fault.inject(touched, &mut self.cluster, &self.network)?;
        let mut calm = at;
        if let Some(lasts) = fault.lasts() {
            tokio::time::sleep(lasts).await;
            fault.undo(touched, &mut self.cluster, &self.network)?;
            calm = now_ms();
        }
        let judgement = self.observe(touched, at, calm).await;
        let hit = match touched {
            Touched::Node(id) => Some(id),
            _ => None,
        };
        let logs: Vec<String> = self
            .cluster
            .nodes
            .iter()
            .filter(|node| Some(node.id) != hit)
            .map(|node| node.log())
            .collect();
        let round = Round {
            number,
            hit,
            leader,
            detection_ms: hit.and_then(|id| detection::from_logs(&logs, id, at)),
            front_ms: hit
                .and_then(|id| self.fronts.marked_down_since(id, at))
                .map(|marked| marked - at),
            judgement,
        };
        tokio::task::block_in_place(|| fault.repair(touched, &mut self.cluster, &self.network))?;
        self.wait_until_whole()?;
        Ok(round)
    }

    /// Browsers are few, so they move: the first is on the node that will be hit in two rounds of
    /// three, the others on those after it.
    fn place_browsers(&mut self, touched: Touched, round: u32) {
        let first = match touched {
            Touched::Node(id) | Touched::Link(id, _) => id,
            Touched::None | Touched::All => 1,
        };
        let browsers = self
            .agents
            .iter()
            .filter(|agent| agent.kind == Kind::Chromium);
        let shift = u64::from(round % 3 == 2);
        for (step, agent) in (shift..).zip(browsers) {
            self.homes[agent.index] = (first - 1 + step) % NODES + 1;
        }
    }
}

/// Reads a capture against the promises; keeps its file only where they are broken.
pub(crate) fn prove(capture: Capture, out: Option<&Path>) -> Result<Findings> {
    let file = capture.stop()?;
    let mut reader = Reader::open(&file)?;
    let mut proof = Proof::new(|address| {
        (1..=NODES).any(|id| [node_address(id), floating_address(id)].contains(&address))
    });
    while let Some(datagram) = reader.next()? {
        proof.take(&datagram);
    }
    let findings = proof.findings();
    if let (false, Some(out)) = (findings.hold(), out) {
        std::fs::copy(&file, out.join(file.file_name().context("a file")?))?;
    }
    std::fs::remove_file(&file)?;
    Ok(findings)
}
