//! Runs a command, prints its error, and gives its exit code.

use std::process::ExitCode;

use portwatch::cli::{self, failure};

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) if failure::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", failure::message(&error));
            ExitCode::from(failure::code(&error))
        }
    }
}
