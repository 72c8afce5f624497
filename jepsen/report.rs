//! What a run was worth: told in the terminal, as Markdown, as one HTML page, and as JSON.

pub(crate) mod html;
pub(crate) mod markdown;
pub(crate) mod table;

use std::path::Path;

use anyhow::{Context, Result};

use crate::run::conduct::Outcome;
use crate::say;

/// Writes all forms of it into a folder.
pub(crate) fn write(folder: &Path, outcome: &Outcome) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())
    };
    write("report.json", &serde_json::to_vec_pretty(outcome)?)?;
    write("report.html", html::of(outcome).as_bytes())?;
    write("report.md", markdown::of(outcome).as_bytes())
}

/// Tells it.
pub(crate) fn print(outcome: &Outcome, folder: &Path) {
    say("");
    say(&table::text(&table::rows(&[outcome])));
    for opinion in &outcome.opinions {
        let judged = match (opinion.count, opinion.undecided.len()) {
            (0, 0) => "holds".to_owned(),
            (0, undecided) => format!("UNDECIDED ({undecided})"),
            (count, _) => format!("VIOLATED ({count})"),
        };
        say(&format!(
            "{:22} {judged:14} {}",
            opinion.judge, opinion.looked_at
        ));
    }
    for (error, times) in &outcome.errors {
        say(&format!("logged as an error, {times} times: {error}"));
    }
    for fault in &outcome.not_covered {
        say(&format!("NOT COVERED here: {fault}"));
    }
    say(&format!("report: {}", folder.display()));
}
