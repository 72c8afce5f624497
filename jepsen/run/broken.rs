//! Trust in the judges: programs that are broken on purpose, each of which a named plan must find out.
//!
//! The program under test is built with the feature `planted-bugs`; `FLOTILLA_PLANTED` chooses the defect. A run that
//! finds nothing, or something else than it should, fails.

use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::plan::Plan;
use super::{Common, carry_out};
use crate::doctor::Doctor;
use crate::lab::{self, Names};
use crate::nemesis::Class;
use crate::{Verdict, outside, say};

/// A defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Plant {
    /// Changes are acknowledged before they are on the disk.
    NoFsync,
    /// A node that others have taken over from goes on sending.
    NoFence,
    /// Who was removed may come back.
    LostRevocation,
}

impl Plant {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The plan that must find it.
    fn plan(self, seed: u64) -> Plan {
        let name = format!("broken-{}", self.name());
        match self {
            Self::NoFsync => Plan::alone(&name, seed, 3, &[Class::PowerAll], 3),
            Self::NoFence => {
                let mut plan = Plan::alone(&name, seed, 3, &[Class::OneWay, Class::Pause], 4);
                for step in plan.parts.iter_mut().flat_map(|part| &mut part.steps) {
                    step.lasts_ms = 4000;
                }
                plan
            }
            Self::LostRevocation => Plan::alone(&name, seed, 3, &[Class::Kill], 2),
        }
    }

    /// Who must find it.
    fn judges(self) -> &'static [&'static str] {
        match self {
            Self::NoFsync => &[
                "registers by version",
                "registers by search",
                "Porcupine",
                "convergence",
                "membership",
                "recovery",
                "panics",
                "feeds",
            ],
            Self::NoFence => &["wire", "ownership", "media integrity"],
            Self::LostRevocation => &["revocation"],
        }
    }
}

/// Options of `chaos broken`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What to draw the plans from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which defects; all without it.
    #[arg(long, value_delimiter = ',')]
    plants: Vec<Plant>,
    /// The one that the process in the namespaces does.
    #[arg(long, hide = true)]
    plant: Option<Plant>,
    #[command(flatten)]
    common: Common,
}

/// Tries all of them, or in the namespaces one.
pub(crate) async fn run(options: Options) -> Result<Verdict> {
    if let (Some(lab), Some(plant)) = (options.common.lab, options.plant) {
        return tokio::task::block_in_place(|| one(&options, plant, Names(lab)));
    }
    outside::build()?;
    let plants = if options.plants.is_empty() {
        Plant::value_variants().to_vec()
    } else {
        options.plants.clone()
    };
    let mut escaped = Vec::new();
    for plant in &plants {
        let begun = Instant::now();
        let more = ["--plant".to_owned(), plant.name()];
        let environment = [("FLOTILLA_PLANTED", plant.name())];
        let verdict = lab::play_bare_with(3, &more, &environment).await?;
        let found = matches!(verdict, Verdict::Told(Some(0)));
        let told = if found { "FOUND" } else { "ESCAPED" };
        say(&format!(
            "{told}: {} within {:.0} s",
            plant.name(),
            begun.elapsed().as_secs_f64()
        ));
        if !found {
            escaped.push(format!("the planted defect {} was not found", plant.name()));
        }
    }
    say(&format!(
        "planted defects found: {}/{}",
        plants.len() - escaped.len(),
        plants.len()
    ));
    Ok(if escaped.is_empty() {
        Verdict::Holds
    } else {
        Verdict::Violated(escaped)
    })
}

fn one(options: &Options, plant: Plant, names: Names) -> Result<Verdict> {
    let doctor = Doctor::examine();
    let outcome = carry_out(plant.plan(options.seed), names, &options.common, &doctor)?;
    let found: Vec<&str> = outcome
        .opinions
        .iter()
        .filter(|opinion| opinion.count > 0)
        .map(|opinion| opinion.judge)
        .collect();
    say(&format!("{}: found by {found:?}", plant.name()));
    if found.iter().any(|judge| plant.judges().contains(judge)) {
        Ok(Verdict::Holds)
    } else {
        Ok(Verdict::Violated(vec![format!("{} escaped", plant.name())]))
    }
}
