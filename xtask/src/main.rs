//! Tasks of this repository: `cargo xtask TASK`.
//!
//! One file per task under `task/`; what several tasks use lies beside this file. Each task brings what it needs
//! (compiler, packages, kernels) and says what it installs.

mod apt;
mod bpf_linker;
mod bpf_toolchain;
mod process;
mod task;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the portwatch repository", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what building needs, and say what was found.
    Setup,
    /// Build the kernel programs and then the `portwatch` command (target/release/portwatch).
    Build(task::build::Args),
    /// Build, then run `portwatch` with the arguments after `--`.
    Run(task::run::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  cause: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => task::setup::run(&workspace),
        Task::Build(args) => task::build::run(&workspace, &args),
        Task::Run(args) => task::run::run(&workspace, &args),
    }
}
