//! Plans that once broke an invariant hold it now. One file per bug; its comment says what it was.

use std::fs;
use std::path::Path;

use sim::plan::Plan;
use sim::run::run;

#[test]
fn plans_of_old_bugs_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("is readable").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "plan")
        })
        .collect();
    paths.sort();
    let mut failed = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path).expect("is readable");
        let plan: Plan = text.parse().expect("is a plan");
        if let Some(violation) = run(&plan).violation {
            failed.push(format!("{}: {violation}", path.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
