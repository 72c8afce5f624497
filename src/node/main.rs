//! `flotilla`: see `flotilla help`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A commit allocates some hundred times on each node; see `docs/adr/2026-11-24-allocator.md`.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match flotilla_node::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the command line's own output")]
fn report(error: &anyhow::Error) {
    eprintln!("flotilla: {error:#}");
}
