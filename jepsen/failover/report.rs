//! The figures of a run: a table for the terminal and a file of JSON.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::agents::{Kind, Media};
use super::judge::{Counts, Gap, Judgement, Path as Way, Spread};
use crate::clock::Ms;
use crate::say;
use crate::wire::proof::Findings;

/// What the machine does without a fault: the floor under every figure.
#[derive(Serialize)]
pub(crate) struct Quiet {
    seconds: f64,
    /// How late a sleep of 5 ms ended in the judging process.
    timer_late_ms: Option<Spread>,
    streams: Vec<Row>,
    counts: Counts,
}

impl Quiet {
    pub(crate) fn new(seconds: f64, lateness: Vec<Ms>, judgement: &Judgement) -> Self {
        Self {
            seconds,
            timer_late_ms: Spread::of(lateness),
            streams: rows(judgement.gaps.iter(), &[Way::Untouched], Side::Receiver),
            counts: judgement.counts,
        }
    }
}

/// One fault.
#[derive(Serialize)]
pub(crate) struct Round {
    pub(crate) number: u32,
    pub(crate) hit: Option<u64>,
    pub(crate) leader: u64,
    /// Until a survivor noticed.
    pub(crate) detection_ms: Option<Ms>,
    /// Until the clients' front marked the node down.
    pub(crate) front_ms: Option<Ms>,
    pub(crate) judgement: Judgement,
}

impl Round {
    /// Keeps it as JSON in `folder`, if one was asked for.
    pub(crate) fn write(&self, folder: Option<&Path>, name: &str) -> Result<()> {
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder)?;
            let file = folder.join(format!("{name}.json"));
            std::fs::write(file, serde_json::to_vec(self)?)?;
        }
        Ok(())
    }
}

/// Whose kind a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Receiver,
    Publisher,
}

/// Gaps of one sort.
#[derive(Serialize)]
struct Row {
    media: Media,
    way: Way,
    side: Side,
    kind: Kind,
    ms: Spread,
    /// Streams that had not come back when the window ended.
    open: usize,
}

/// All rounds of one fault.
#[derive(Serialize)]
struct Section {
    /// What was done.
    fault: &'static str,
    rounds: usize,
    detection_ms: Option<Spread>,
    front_marks_down_ms: Option<Spread>,
    reconnected_ms: Vec<(Kind, Option<Spread>, usize)>,
    /// Longest silences by the kind of who listens.
    down: Vec<Row>,
    /// The same of the hit node's publishers, by the kind of who publishes.
    up: Vec<Row>,
    counts: Counts,
    wire: Option<Findings>,
}

/// Everything that a run showed.
#[derive(Serialize)]
pub(crate) struct Report {
    quiet: Quiet,
    faults: Vec<Section>,
}

impl Report {
    pub(crate) fn new(quiet: Quiet) -> Self {
        Self {
            quiet,
            faults: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, fault: &'static str, rounds: Vec<Round>, wire: Option<Findings>) {
        let gaps = || rounds.iter().flat_map(|round| &round.judgement.gaps);
        let mut counts = Counts::default();
        for round in &rounds {
            counts.add(&round.judgement.counts);
        }
        let reconnected = Kind::ALL.into_iter().filter_map(|kind| {
            let returns: Vec<_> = rounds
                .iter()
                .flat_map(|round| &round.judgement.returns)
                .filter(|one| one.kind == kind)
                .collect();
            let times = returns.iter().filter_map(|one| one.reconnected_ms);
            let never = returns
                .iter()
                .filter(|one| one.reconnected_ms.is_none())
                .count();
            (!returns.is_empty()).then(|| (kind, Spread::of(times), never))
        });
        let section = Section {
            fault,
            rounds: rounds.len(),
            detection_ms: Spread::of(rounds.iter().filter_map(|round| round.detection_ms)),
            front_marks_down_ms: Spread::of(rounds.iter().filter_map(|round| round.front_ms)),
            reconnected_ms: reconnected.collect(),
            down: rows(
                gaps(),
                &[
                    Way::HitToOthers,
                    Way::OthersToHit,
                    Way::WithinHit,
                    Way::AcrossLink,
                    Way::Untouched,
                ],
                Side::Receiver,
            ),
            up: rows(gaps(), &[Way::HitToOthers], Side::Publisher),
            counts,
            wire,
        };
        self.faults.push(section);
    }

    /// With what in it breaks the promise.
    pub(crate) fn judged(self) -> (Self, Vec<String>) {
        let violations = self.violations();
        (self, violations)
    }

    /// What the promise forbids and the run saw.
    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for section in &self.faults {
            let name = section.fault;
            found.extend(
                section
                    .counts
                    .violated()
                    .iter()
                    .map(|what| format!("{name}: {what}")),
            );
            if let Some(wire) = &section.wire {
                if wire.packets == 0 {
                    found.push(format!(
                        "{name}: the capture holds no packets and proves nothing"
                    ));
                }
                if !wire.hold() {
                    found.push(format!(
                        "{name}: on the wire {} indices reused, {} packets of an older home",
                        wire.index_reused, wire.older_after_newer
                    ));
                    found.extend(wire.told.iter().map(|told| format!("{name}: {told}")));
                }
            }
        }
        found
    }

    /// Writes it as JSON.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

fn rows<'a>(gaps: impl Iterator<Item = &'a Gap>, ways: &[Way], side: Side) -> Vec<Row> {
    let gaps: Vec<&Gap> = gaps.collect();
    let mut rows = Vec::new();
    for way in ways {
        for media in Media::ALL {
            for kind in Kind::ALL {
                let chosen = || {
                    gaps.iter().filter(|gap| {
                        let whose = if side == Side::Receiver {
                            gap.receiver
                        } else {
                            gap.publisher
                        };
                        gap.way() == (*way, media) && whose == kind
                    })
                };
                if let Some(ms) = Spread::of(chosen().map(|gap| gap.ms)) {
                    rows.push(Row {
                        media,
                        way: *way,
                        side,
                        kind,
                        ms,
                        open: chosen().filter(|gap| gap.open).count(),
                    });
                }
            }
        }
    }
    rows
}

impl Gap {
    fn way(&self) -> (Way, Media) {
        (self.path, self.media)
    }
}

/// A line per round, while the run goes on.
pub(crate) fn print_round(fault: &str, round: &Round) {
    let worst = |way: Way| {
        let gaps = round.judgement.gaps.iter();
        let longest = gaps
            .filter(|gap| gap.way() == (way, Media::Audio))
            .map(|gap| gap.ms)
            .reduce(f64::max);
        longest.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"))
    };
    let violated = round.judgement.counts.violated();
    say(&format!(
        "{} {}: node {} (leader {}), noticed {}, longest silence hit->others {} others->hit {} elsewhere {} ms; {}",
        fault,
        round.number + 1,
        round
            .hit
            .map_or_else(|| "-".to_owned(), |id| id.to_string()),
        round.leader,
        round
            .detection_ms
            .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms")),
        worst(Way::HitToOthers),
        worst(Way::OthersToHit),
        worst(Way::Untouched),
        if violated.is_empty() {
            "nothing lost".to_owned()
        } else {
            violated.join(", ")
        },
    ));
    for lost in &round.judgement.lost {
        say(&format!(
            "  lost: message {} of {} to {}, sent {:.0} ms after the fault",
            lost.number, lost.from, lost.to, lost.sent_ms
        ));
    }
}

/// The machine's own share.
pub(crate) fn print_quiet(quiet: &Quiet) {
    say(&format!(
        "quiet phase, {:.0} s without a fault:",
        quiet.seconds
    ));
    line("  a sleep of 5 ms ends late by", quiet.timer_late_ms, 0);
    for row in &quiet.streams {
        line(&format!("  {}", title(row)), Some(row.ms), row.open);
    }
    let violated = quiet.counts.violated();
    if !violated.is_empty() {
        say(&format!("  even without a fault: {}", violated.join(", ")));
    }
}

/// The whole report.
pub(crate) fn print(report: &Report) {
    say("");
    print_quiet(&report.quiet);
    for section in &report.faults {
        say(&format!("\n{} x {}", section.fault, section.rounds));
        line("  noticed by a survivor after", section.detection_ms, 0);
        line(
            "  marked down by the front after",
            section.front_marks_down_ms,
            0,
        );
        for (kind, spread, never) in &section.reconnected_ms {
            line(
                &format!("  {} reconnected after", kind.name()),
                *spread,
                *never,
            );
        }
        for row in section.down.iter().chain(&section.up) {
            line(&format!("  {}", title(row)), Some(row.ms), row.open);
        }
        let counts: Vec<String> = section
            .counts
            .named()
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        say(&format!("  {}", counts.join(", ")));
        match &section.wire {
            None => say("  nothing was captured"),
            Some(wire) => say(&format!(
                "  on the wire: {} packets, {} keys, {} addresses continued a key, {} moves, {} packets on lent paths; {} indices reused, {} packets of an older home, {} whose handshake was not seen, {} reports unread",
                wire.packets,
                wire.generations,
                wire.continued,
                wire.moves,
                wire.lent,
                wire.index_reused,
                wire.older_after_newer,
                wire.unattributed,
                wire.unreadable
            )),
        }
    }
}

fn title(row: &Row) -> String {
    let way = match row.way {
        Way::HitToOthers => "hit node's publishers at others",
        Way::OthersToHit => "others at the hit node's clients",
        Way::WithinHit => "among the hit node's clients",
        Way::AcrossLink => "across the cut link",
        Way::Untouched => "elsewhere",
    };
    let media = match row.media {
        Media::Audio => "audio",
        Media::Video => "video",
    };
    let side = if row.side == Side::Publisher {
        "from"
    } else {
        "at"
    };
    format!("{media} gap, {way}, {side} {}", row.kind.name())
}

fn line(what: &str, spread: Option<Spread>, open: usize) {
    let figures = spread.map_or_else(
        || "never".to_owned(),
        |of| {
            format!(
                "p50 {:>6.0}  p99 {:>6.0}  max {:>6.0} ms  n {}",
                of.p50, of.p99, of.max, of.n
            )
        },
    );
    let open = if open > 0 {
        format!("  ({open} never)")
    } else {
        String::new()
    };
    say(&format!("{what:<66} {figures}{open}"));
}
