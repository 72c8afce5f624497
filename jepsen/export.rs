//! Histories for outside checkers: several files merged into one, as JSON lines or in Clojure's notation.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::history::{self, edn};
use crate::{Verdict, say};

/// Options of `chaos export`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Histories of one run.
    #[arg(required = true)]
    histories: Vec<PathBuf>,
    /// Clojure's notation, as Knossos and Elle read it.
    #[arg(long)]
    edn: bool,
    /// Only operations of these kinds (`f`).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where it goes.
    #[arg(long)]
    to: PathBuf,
}

/// Writes the file.
pub(crate) fn run(options: &Options) -> Result<Verdict> {
    let read: Result<Vec<_>> = options
        .histories
        .iter()
        .map(|path| history::read(path))
        .collect();
    let mut merged = history::merge(read?);
    if !options.only.is_empty() {
        merged.retain(|operation| options.only.iter().any(|f| *f == operation.f));
    }
    ensure!(!merged.is_empty(), "there is nothing to export");
    if options.edn {
        std::fs::write(&options.to, edn::of(&merged))?;
    } else {
        history::write(&options.to, &merged)?;
    }
    say(&format!(
        "{} lines in {}",
        merged.len(),
        options.to.display()
    ));
    Ok(Verdict::Told(Some(0)))
}
