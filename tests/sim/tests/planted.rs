//! Every planted bug is caught by its plan, and the plan passes without it.

use std::path::Path;

use sim::bug::Bug;
use sim::planted::catch;

#[test]
fn every_planted_bug_is_caught() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bugs");
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match catch(&folder, *bug) {
            Ok(caught) => println!("{bug}: {}", caught.violation),
            Err(reason) => missed.push(reason),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
