//! What `make sim-test` runs: seeds, one of them twice, plans of old bugs, planted bugs.

mod planted;
mod regressions;
mod seeds;
