//! Every plan for a planted bug catches it, and passes without it.

use std::path::Path;

use sim::bug::Bug;
use sim::planted::{catch, plan_of};

#[test]
fn every_planted_bug_is_caught() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bugs");
    let planted = Bug::ALL
        .iter()
        .filter(|bug| plan_of(&folder, **bug).is_ok());
    let mut missed = Vec::new();
    let mut count = 0;
    for bug in planted {
        count += 1;
        match catch(&folder, *bug) {
            Ok(caught) => drop(caught),
            Err(reason) => missed.push(reason),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    assert!(count > 0, "no bug has a plan");
}
