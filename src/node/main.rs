//! `flotilla`: see `flotilla help`.

use std::process::ExitCode;

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
