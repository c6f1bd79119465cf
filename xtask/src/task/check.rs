//! `check`: what needs no root. Format, lints, unit, replay and command tests.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::expected_skips::ExpectedSkips;
use crate::results::Results;
use crate::summary::Summary;
use crate::task::build;
use crate::workspace::Workspace;
use crate::{process, test_run};

/// Tests that need root or other programs; `cargo xtask test` runs them.
const NOT_HERE: [&str; 3] = ["kernel", "clients", "stacks"];

pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    build::bpf_objects(workspace)?;
    let mut summary = Summary::default();
    lints(workspace, &mut summary);
    tests(workspace, None, &ExpectedSkips::read(workspace)?, &mut summary)?;
    println!("{summary}");
    Ok(if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Format and lints; each is one part of the summary.
pub fn lints(workspace: &Workspace, summary: &mut Summary) {
    for component in ["fmt", "clippy"] {
        if let Err(error) = provision(workspace, component) {
            return summary.add("lints", Results::failure(format!("{error:#}")), None);
        }
    }
    step(summary, "format", workspace.cargo().args(["fmt", "--all", "--check"]));
    let everything = ["clippy", "--all-targets", "--features", "xtask/bench", "--", "--deny=warnings"];
    step(summary, "lints", workspace.cargo().args(everything));
    // Linted as a program for this machine: clippy comes with the usual compiler, not with the one for BPF. An explicit
    // target keeps its flags, and so its files, apart from the rest.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = [&build::bpf_arch_flag(), "-Cpanic=abort"].join("\u{1f}");
    step(
        summary,
        "lints of the kernel programs",
        workspace.cargo().env("CARGO_ENCODED_RUSTFLAGS", flags).args([
            "clippy",
            "--package",
            "portwatch-ebpf",
            "--target",
            &host,
            "--",
            "--deny=warnings",
        ]),
    );
}

/// Unit, replay, command and documentation tests.
pub fn tests(
    workspace: &Workspace,
    filter: Option<&str>,
    expected: &ExpectedSkips,
    summary: &mut Summary,
) -> Result<()> {
    let mut cargo = workspace.cargo();
    // All of them even if one fails: the summary is about the whole.
    cargo.args(["test", "--no-fail-fast", "--lib", "--bins"]);
    for test in workspace.tests()?.iter().filter(|test| !NOT_HERE.contains(&test.as_str())) {
        cargo.args(["--test", test]);
    }
    test_run::part(summary, expected, "unit, replay and command tests", cargo.args(filter));
    test_run::part(
        summary,
        expected,
        "documentation tests",
        workspace.cargo().args(["test", "--no-fail-fast", "--doc"]).args(filter),
    );
    Ok(())
}

/// rustup's minimal profile, usual on servers, comes without these.
fn provision(workspace: &Workspace, component: &str) -> Result<()> {
    if process::output(workspace.cargo().args([component, "--version"])).is_ok() {
        return Ok(());
    }
    let name = if component == "fmt" { "rustfmt" } else { component };
    eprintln!("xtask: adding `{name}` to the toolchain through rustup");
    process::run(Command::new("rustup").args(["component", "add", name]))
        .with_context(|| format!("no `cargo {component}`; install `{name}` for the toolchain in use"))
}

fn step(summary: &mut Summary, name: &str, command: &mut Command) {
    let begun = Instant::now();
    eprintln!("xtask: {name}: {}", process::show(command));
    let results = match process::run(command) {
        Ok(()) => Results::of_step(name, true),
        Err(error) => Results::failure(format!("{error:#}")),
    };
    summary.add(name, results, Some(begun.elapsed()));
}
