//! Cuts the power under a store that works at full speed, and checks what is left.
//!
//! ```text
//! powercut ── mkfs, mount ──► ext4 on a loop file ◄── powercut child: appends, cuts, purges, votes, snapshots
//!     │  ◄── pipe: what was begun, what was acknowledged ──┘
//!     ├─ shutdown ioctl (nothing that was not synced survives), SIGKILL, umount, mount
//!     └─ powercut inspect: opens what is left and prints it ──► verify
//! ```
//! The shutdown ioctl with the flag "no log flush" drops precisely what no fsync has covered. Nothing
//! acknowledged may be missing, nothing may be half there, and the store must open. With
//! `--broken no-fdatasync` the store acknowledges without an fdatasync of its journal, and the run
//! succeeds only if that loss is found: the test of this test.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

mod child;
mod inspect;
mod verify;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use testkit::disk::{self, Disk};

use crate::verify::{History, Left};

/// How long opening what is left may take.
const INSPECT_MAX: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "Cuts the power under a working store and checks what is left")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// How often to cut the power.
    #[arg(long, default_value_t = 20)]
    cuts: u32,
    /// Chooses operations and moments. A failing run prints its seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Plants a defect; the run then succeeds only if it is found.
    #[arg(long)]
    broken: Option<Broken>,
    /// Where the image of the disk is kept during the run; a temporary folder by default.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Where to put a copy of every store that lost something, as the cut left it.
    #[arg(long)]
    keep: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Broken {
    /// Acknowledge without an fdatasync of the journal.
    NoFdatasync,
}

#[derive(Subcommand)]
enum Part {
    /// Works on a store until it is killed (started by the program itself).
    #[command(hide = true)]
    Child {
        folder: PathBuf,
        seed: u64,
        #[arg(long)]
        no_fdatasync: bool,
    },
    /// Prints what a store holds (started by the program itself).
    #[command(hide = true)]
    Inspect { folder: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.part {
        Some(Part::Child {
            folder,
            seed,
            no_fdatasync,
        }) => child::work(folder, *seed, *no_fdatasync).map(|()| ExitCode::SUCCESS),
        Some(Part::Inspect { folder }) => inspect::print(folder).map(|()| ExitCode::SUCCESS),
        None => {
            if let Err(missing) = disk::available() {
                eprintln!("powercut: CANNOT RUN HERE, NOTHING WAS TESTED: {missing}");
                return ExitCode::from(2);
            }
            campaign(&arguments)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("powercut: {error:#}");
        ExitCode::FAILURE
    })
}

/// What all cuts together came to.
#[derive(Default)]
struct Totals {
    acknowledged: u64,
    lost: u32,
    refused: u32,
    unreached: u32,
}

fn campaign(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let seed = arguments
        .seed
        .unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.context("no temporary folder")?;
    let broken = matches!(arguments.broken, Some(Broken::NoFdatasync));
    println!(
        "powercut: {} cuts, seed {seed}{}",
        arguments.cuts,
        if broken { ", no fdatasync" } else { "" }
    );

    let began = Instant::now();
    let mut totals = Totals::default();
    let mut disk: Option<Disk> = None;
    let mut left = Left::default();
    for cut in 1..=arguments.cuts {
        // Fresh disks show creation, old ones show recovery upon recovery and reuse of space.
        let fresh = disk.is_none() || rng.random_ratio(1, 6);
        if fresh {
            drop(disk.take());
            left = Left::default();
        }
        let mut mounted = match disk.take() {
            Some(disk) => disk,
            None => Disk::create(folder.path())?,
        };
        let as_left = folder.path().join("as-left");
        let keep = arguments.keep.as_ref().map(|_| as_left.as_path());
        let result = one_cut(&mut mounted, &mut left, &mut rng, broken, keep)?;
        if let (Some(keep), Outcome::Lost(_) | Outcome::Refused(_)) =
            (&arguments.keep, &result.outcome)
        {
            disk::copy_folder(&as_left, &keep.join(format!("seed{seed}-cut{cut}")))?;
        }
        let verdict = match &result.outcome {
            Outcome::Intact => "nothing lost".to_owned(),
            Outcome::Unreached => {
                totals.unreached += 1;
                "cut before the store was open, opens cleanly".to_owned()
            }
            Outcome::Lost(what) => {
                totals.lost += 1;
                format!("LOST: {what}")
            }
            Outcome::Refused(what) => {
                totals.refused += 1;
                format!("REFUSED TO OPEN: {what}")
            }
        };
        totals.acknowledged += result.acknowledged;
        println!(
            "cut {cut:>3} {} after {:>4} ms, {:>6} acknowledged, {:>3} in flight: {verdict}",
            if fresh { "new disk" } else { "old disk" },
            result.after.as_millis(),
            result.acknowledged,
            result.in_flight,
        );
        // A store that failed is not built upon.
        if matches!(result.outcome, Outcome::Intact | Outcome::Unreached) {
            disk = Some(mounted);
        }
    }
    println!(
        "powercut: {} cuts in {:.0} s, {} operations acknowledged, {} cuts lost acknowledged work, \
         {} refused to open, {} came before the store was open; seed {seed}",
        arguments.cuts,
        began.elapsed().as_secs_f64(),
        totals.acknowledged,
        totals.lost,
        totals.refused,
        totals.unreached,
    );
    let found = totals.lost + totals.refused > 0;
    if broken {
        println!(
            "powercut: the planted defect was {}",
            if found { "found" } else { "NOT FOUND" }
        );
    }
    Ok(if found == broken {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct CutResult {
    after: Duration,
    acknowledged: u64,
    in_flight: u64,
    outcome: Outcome,
}

enum Outcome {
    Intact,
    /// The power went before the child had opened the store.
    Unreached,
    Lost(String),
    Refused(String),
}

fn one_cut(
    disk: &mut Disk,
    left: &mut Left,
    rng: &mut StdRng,
    broken: bool,
    keep: Option<&Path>,
) -> anyhow::Result<CutResult> {
    let data = disk.mount_point().join("data");
    let mut child = start_child(&data, rng.random(), broken)?;
    let output = child.stdout.take().context("the child has no output")?;
    let (ready_sender, ready) = mpsc::channel();
    let reader = std::thread::spawn(move || read_history(output, &ready_sender));

    // Most cuts fall into the work; some into opening, recovery or creation.
    let early = rng.random_ratio(1, 5);
    if !early && ready.recv_timeout(INSPECT_MAX).is_err() {
        child.kill().ok();
        child.wait()?;
        bail!(
            "the child did not open its store: {}",
            child_errors(&mut child)
        );
    }
    let after = Duration::from_millis(rng.random_range(if early { 0..80 } else { 20..1200 }));
    std::thread::sleep(after);
    disk.cut_power()?;
    // What the child still acknowledges after the cut would be a lie, so leave it time for lies.
    std::thread::sleep(Duration::from_millis(rng.random_range(0..30)));
    child.kill()?;
    child.wait()?;
    let history = match reader.join() {
        Ok(history) => history?,
        Err(_) => bail!("the reader of the child's output panicked"),
    };
    disk.remount()?;
    if let Some(keep) = keep {
        disk::copy_folder(&data, keep)?;
    }

    let acknowledged = history.acknowledged();
    let in_flight = history.begun() - acknowledged;
    let outcome = match inspect(&data)? {
        Err(refusal) => Outcome::Refused(refusal),
        Ok(now) => match verify::check(left, &history, &now) {
            Err(what) => Outcome::Lost(what),
            Ok(()) => {
                *left = now;
                if history.ready {
                    Outcome::Intact
                } else {
                    Outcome::Unreached
                }
            }
        },
    };
    Ok(CutResult {
        after,
        acknowledged,
        in_flight,
        outcome,
    })
}

fn start_child(data: &Path, seed: u64, broken: bool) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
    command.arg("child").arg(data).arg(seed.to_string());
    if broken {
        command.arg("--no-fdatasync");
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().context("cannot start the child")
}

fn child_errors(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut errors) = child.stderr.take() {
        // Only the text for a message; what can be read is enough.
        std::io::Read::read_to_string(&mut errors, &mut text).ok();
    }
    text
}

/// Reads the child's lines until the pipe ends. The last line may be cut short by the kill.
fn read_history(output: impl std::io::Read, ready: &mpsc::Sender<()>) -> anyhow::Result<History> {
    let mut history = History::default();
    let mut lines = BufReader::new(output);
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(history);
        }
        history.read(line.trim_end())?;
        if history.ready {
            // Nobody waits for it in an early cut.
            ready.send(()).ok();
        }
    }
}

/// Opens what is left in a process of its own, which may refuse, panic or hang.
fn inspect(data: &Path) -> anyhow::Result<Result<Left, String>> {
    let mut child = Command::new(std::env::current_exe().context("where is this program?")?)
        .arg("inspect")
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the inspection")?;
    let mut output = child
        .stdout
        .take()
        .context("the inspection has no output")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut output, &mut text).map(|_| text)
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > INSPECT_MAX {
            child.kill()?;
            child.wait()?;
            return Ok(Err(format!(
                "it did not open within {} s",
                INSPECT_MAX.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = match reader.join() {
        Ok(text) => text?,
        Err(_) => bail!("the reader of the inspection panicked"),
    };
    if !status.success() {
        return Ok(Err(child_errors(&mut child).trim().to_owned()));
    }
    Ok(Left::parse(&text).map_err(|error| format!("{error:#}")))
}
