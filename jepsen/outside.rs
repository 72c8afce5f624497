//! Judges that share nothing with ours: Porcupine, in Go, asked about a sample of a run's keys.
//!
//! Built before a run goes into its namespaces, which have no way to a module proxy.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::check::Opinion;

/// So many keys of a history are judged.
const KEYS: &str = "60";

fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    Ok(own.with_file_name("chaos-porcupine"))
}

/// Builds it beside this program.
///
/// # Errors
/// What Go says; without Go, that.
pub(crate) fn build() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("outside/porcupine");
    let done = Command::new("go")
        .args(["build", "-o"])
        .arg(program()?)
        .arg(".")
        .current_dir(source)
        .output()
        .context("Go is needed for Porcupine, the independent judge")?;
    let told = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "go build: {told}");
    Ok(())
}

/// What it says of a history's registers.
pub(crate) fn judge(history: &Path) -> Opinion {
    let mut opinion = Opinion::new("Porcupine");
    let asked = program().and_then(|program| {
        let mut command = Command::new(program);
        command.args(["-keys", KEYS]).arg(history);
        command.output().context("Porcupine was not built")
    });
    let done = match asked {
        Ok(done) => done,
        Err(failure) => {
            opinion.undecided.push(format!("{failure:#}"));
            return opinion;
        }
    };
    let told = String::from_utf8_lossy(&done.stdout);
    let lines = || told.lines().map(str::to_owned);
    match done.status.code() {
        Some(0) => {
            let judged = told.trim();
            opinion.looked_at = judged
                .strip_prefix("linearizable: ")
                .unwrap_or(judged)
                .to_owned();
        }
        Some(1) => opinion.extend(lines()),
        _ => {
            opinion.undecided.extend(lines());
            let error = String::from_utf8_lossy(&done.stderr);
            opinion.undecided.extend(error.lines().map(str::to_owned));
        }
    }
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, History, Kind};

    fn history(read: &str) -> History {
        let history = History::new();
        let mut action = Action {
            process: "0".to_owned(),
            f: "write",
            key: "room a".to_owned(),
            value: "x".to_owned(),
            node: 1,
        };
        for value in ["x", "y"] {
            value.clone_into(&mut action.value);
            history.invoke(&action);
            history.add(&action, Kind::Ok, None, None);
        }
        action.f = "read";
        action.value.clear();
        history.invoke(&action);
        read.clone_into(&mut action.value);
        history.add(&action, Kind::Ok, None, None);
        history
    }

    /// Go is part of what the tests need: without it this fails.
    #[test]
    fn porcupine_agrees_with_a_sound_history_and_finds_a_stale_read() -> Result<()> {
        build()?;
        let folder = tempfile::TempDir::new()?;
        let file = folder.path().join("history.jsonl");
        history("y").write(&file)?;
        let opinion = judge(&file);
        assert_eq!(
            (opinion.count, opinion.undecided.len()),
            (0, 0),
            "{opinion:?}"
        );
        assert_eq!(opinion.looked_at, "3 operations on 1 keys");
        history("x").write(&file)?;
        assert_eq!(judge(&file).count, 1);
        std::fs::write(&file, "no history")?;
        assert!(!judge(&file).undecided.is_empty());
        Ok(())
    }
}
