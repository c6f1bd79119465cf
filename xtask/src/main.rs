//! Tasks of this repository: `cargo xtask TASK`.
//!
//! One file per task under `task/`; what several tasks use lies beside this file. Each task brings what it needs
//! (compiler, packages, kernels) and says what it installs.

mod apt;
mod bench;
mod bpf_linker;
mod bpf_strip;
mod bpf_toolchain;
mod clients;
mod expected_skips;
mod process;
mod results;
mod stacks;
mod static_build;
mod static_elf;
mod summary;
mod task;
mod test_run;
mod vm;
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
    /// All tests: lints, unit tests, kernel tests here and on other kernels, real clients. Needs root.
    Test(task::test::Args),
    /// What needs no root: format, lints, unit, replay and command tests.
    Check,
    /// The kernel tests on other kernels, in emulated machines.
    Vm(task::vm::Args),
    /// What tracing costs a program that only connects and closes, beside other tracers. Needs root.
    Bench(task::bench::Args),
    /// One static file that runs anywhere, in target/dist.
    Dist,
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
        Task::Test(args) => task::test::run(&workspace, &args),
        Task::Check => task::check::run(&workspace),
        Task::Vm(args) => task::vm::run(&workspace, &args),
        Task::Bench(args) => task::bench::run(&workspace, &args),
        Task::Dist => task::dist::run(&workspace),
    }
}
