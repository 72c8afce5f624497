//! Many seeds, each in a process of its own: starts them, reads their reports, sums up.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Options;
use crate::world::Outcome;

/// Longest processor time that a seed may take: a hundred times what they take. A simulation that does not
/// end is a failure.
pub(crate) const PROCESSOR_MAX: Duration = Duration::from_secs(300);
/// Longest time that a seed may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Simulated seconds of the run that is done twice with every log line compared.
const TWICE_SECONDS: u64 = 12;
/// Log lines it has to have at least, or it proves little.
const TWICE_LINES: u64 = 10_000;
/// Seeds with lying disks, of which one at least has to fail.
const LYING: std::ops::Range<u64> = 1..9;
/// Seeds when nothing else is said.
const SEEDS: std::ops::Range<u64> = 1..51;

/// What a seed's process says.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Report {
    seed: u64,
    violations: Vec<String>,
    digest: u64,
    lines: u64,
    simulated_ms: u64,
    processor_ms: u64,
    figures: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn new(seed: u64, outcome: &Outcome, processor: Duration) -> Self {
        let (figures, disk) = (&outcome.figures, &outcome.disk);
        let mut named: BTreeMap<String, u64> = [
            ("writes", figures.writes),
            ("writes of unknown outcome", figures.unknown),
            ("writes refused for certain", figures.refused),
            ("linearizable reads", figures.reads),
            ("reads without an answer", figures.reads_failed),
            ("changes on feeds", figures.changes),
            ("feeds that lagged", figures.lags),
            ("starts of nodes", figures.starts),
            ("leaders", figures.leaders),
            ("leaders of a term that had one", figures.leaders_of_a_term),
            ("members removed", figures.membership),
            ("sessions", figures.sessions),
            ("signal responses", figures.replies),
            ("disk operations", disk.operations),
            ("power cuts", disk.cuts),
            ("power cuts inside an operation", disk.cuts_inside),
            ("unsynced sectors lost", disk.sectors_lost),
            ("unsynced sectors kept", disk.sectors_kept),
            ("unsynced names lost", disk.names_lost),
            ("unsynced records lost", disk.records_lost),
        ]
        .map(|(name, figure)| (name.to_owned(), figure))
        .into();
        for (kind, count) in &figures.faults {
            named.insert(format!("fault: {kind}"), *count);
        }
        Self {
            seed,
            violations: outcome.violations.clone(),
            digest: outcome.digest,
            lines: outcome.lines,
            simulated_ms: millis(outcome.simulated),
            processor_ms: millis(processor),
            figures: named,
        }
    }

    pub(crate) fn to_line(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts are JSON")
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Does what the options say.
pub(crate) fn run(options: &Options) -> ExitCode {
    let good = match &options.seeds {
        Some(seeds) => {
            let reports = sweep(seeds.clone(), options.seconds, options, &[]);
            summary(&reports)
        }
        None => {
            let checks = [same_twice, lying_disks_are_found, default_sweep];
            let passed = checks.iter().filter(|check| check(options)).count();
            let failed = checks.len() - passed;
            say(&format!("{passed} passed; {failed} failed"));
            failed == 0
        }
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The same seed gives the same log lines, at every level, of everything that runs.
fn same_twice(options: &Options) -> bool {
    let seed = SEEDS.start;
    let reports = sweep([seed, seed], TWICE_SECONDS, options, &["--logs"]);
    let [one, two] = &reports[..] else {
        say("determinism: a run did not report");
        return false;
    };
    let same = (one.digest, one.lines) == (two.digest, two.lines);
    let enough = one.lines >= TWICE_LINES;
    say(&format!(
        "determinism: seed {seed} twice, {} and {} lines, digests {:016x} and {:016x}: {}",
        one.lines,
        two.lines,
        one.digest,
        two.digest,
        match (same, enough) {
            (true, true) => "the same",
            (true, false) => "TOO FEW LINES",
            (false, _) => "NOT THE SAME",
        }
    ));
    same && enough && one.violations.is_empty()
}

/// A disk that does not keep what it says it has synced is found out.
fn lying_disks_are_found(options: &Options) -> bool {
    let reports = sweep(LYING, options.seconds, options, &["--lying-disks"]);
    let found: Vec<&Report> = reports
        .iter()
        .filter(|report| !report.violations.is_empty())
        .collect();
    say(&format!(
        "lying disks: found with {} of {} seeds{}",
        found.len(),
        reports.len(),
        found
            .first()
            .and_then(|report| report.violations.first())
            .map(|violation| format!(", first: {violation}"))
            .unwrap_or_default()
    ));
    !found.is_empty()
}

fn default_sweep(options: &Options) -> bool {
    let reports = sweep(SEEDS, options.seconds, options, &[]);
    summary(&reports)
}

/// Runs seeds, several at a time; reports in the order of the seeds.
fn sweep(
    seeds: impl IntoIterator<Item = u64>,
    seconds: u64,
    options: &Options,
    more: &[&str],
) -> Vec<Report> {
    let jobs = options
        .jobs
        .unwrap_or_else(|| thread::available_parallelism().map_or(2, usize::from));
    let waiting: Mutex<VecDeque<u64>> = Mutex::new(seeds.into_iter().collect());
    let (sender, reports) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, waiting) = (sender.clone(), &waiting);
            scope.spawn(move || {
                loop {
                    let next = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(seed) = next else { return };
                    // The receiver lives as long as the scope.
                    let _ = sender.send(child(seed, seconds, options, more));
                }
            });
        }
        drop(sender);
        let mut all: Vec<Report> = reports.iter().inspect(progress).collect();
        all.sort_by_key(|report| report.seed);
        all
    })
}

/// Tells what came of a seed.
fn progress(report: &Report) {
    say(&format!(
        "seed {}: digest {:016x}, {} lines, {:.1} s simulated in {:.1} processor seconds, {} violations",
        report.seed,
        report.digest,
        report.lines,
        report.simulated_ms as f64 / 1000.0,
        report.processor_ms as f64 / 1000.0,
        report.violations.len()
    ));
    for violation in report.violations.iter().take(5) {
        say(&format!("  {violation}"));
    }
}

fn child(seed: u64, seconds: u64, options: &Options, more: &[&str]) -> Report {
    let failed = |why: String| Report {
        seed,
        violations: vec![why],
        digest: 0,
        lines: 0,
        simulated_ms: 0,
        processor_ms: 0,
        figures: BTreeMap::new(),
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return failed(format!("this program is not found: {error}")),
    };
    let mut command = Command::new(program);
    command
        .args(["--child", &seed.to_string()])
        .args(["--seconds", &seconds.to_string()])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if options.logs {
        command.arg("--logs");
    }
    if options.lying_disks {
        command.arg("--lying-disks");
    }
    if let Some(trace) = &options.trace {
        command.arg("--trace").arg(trace);
    }
    let mut process = match command.spawn() {
        Ok(process) => process,
        Err(error) => return failed(format!("no process: {error}")),
    };
    let mut out = process.stdout.take().expect("it is piped");
    let mut err = process.stderr.take().expect("it is piped");
    let reading = thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let complaints = thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match process.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            _ => {
                // It is still there; whether it ends now or did just before is the same.
                let _ = process.kill();
                let _ = process.wait();
                return failed(format!("no end within {PATIENCE:?}"));
            }
        }
    };
    let text = reading.join().unwrap_or_default();
    let complaints = complaints.join().unwrap_or_default();
    let report = text
        .lines()
        .find_map(|line| serde_json::from_str(line).ok());
    report.unwrap_or_else(|| match status.signal() {
        Some(libc::SIGKILL | libc::SIGXCPU) => failed(format!(
            "ended by {status}; it may use {PROCESSOR_MAX:?} of processor time"
        )),
        _ => failed(format!("{status}: {}", complaints.trim())),
    })
}

/// Prints what came of it; whether nothing was violated, and enough happened to mean something.
fn summary(reports: &[Report]) -> bool {
    let mut figures: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut simulated, mut processor) = (0, 0);
    for report in reports {
        simulated += report.simulated_ms;
        processor += report.processor_ms;
        for (name, figure) in &report.figures {
            *figures.entry(name).or_default() += figure;
        }
    }
    let failed: Vec<u64> = reports
        .iter()
        .filter(|report| !report.violations.is_empty())
        .map(|report| report.seed)
        .collect();
    let mut text = format!(
        "{} seeds, {} simulated seconds, {:.1} per processor second, failed: {failed:?}\n",
        reports.len(),
        simulated / 1000,
        simulated as f64 / (processor as f64).max(1.0),
    );
    for (name, figure) in &figures {
        let _ = writeln!(text, "{figure:>10} {name}");
    }
    say(&text);
    let happened = |name: &str| figures.get(name).is_some_and(|figure| *figure > 0);
    let vacuous: Vec<&str> = NEEDED.into_iter().filter(|name| !happened(name)).collect();
    let enough = reports.len() < SEEDS.clone().count() || vacuous.is_empty();
    if !enough {
        say(&format!("this proves nothing: none of {vacuous:?}"));
    }
    failed.is_empty() && enough
}

/// What has to have happened in a whole sweep.
const NEEDED: [&str; 9] = [
    "writes",
    "writes of unknown outcome",
    "linearizable reads",
    "feeds that lagged",
    "members removed",
    "power cuts inside an operation",
    "unsynced sectors lost",
    "fault: halves",
    "fault: power cut of all",
];

#[expect(clippy::print_stdout, reason = "this program talks to a terminal")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
