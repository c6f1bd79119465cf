//! `test`: everything, with the closing line that continuous integration reads.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::apt::{self, Need};
use crate::expected_skips::ExpectedSkips;
use crate::results::Results;
use crate::static_build::{self, TestPrograms};
use crate::summary::Summary;
use crate::task::{build, check, vm};
use crate::vm::{Programs, kernels};
use crate::workspace::Workspace;
use crate::{clients, process, stacks, test_run};

const NEEDS: [Need; 2] =
    [Need { program: "ip", package: "iproute2" }, Need { program: "ss", package: "iproute2" }];

/// Without `--all`: what the other kernels play. It loads and attaches every hook, and judges whole connections,
/// refusals, owners and TIME_WAIT on each rung.
const QUICK_ON_VMS: &str = "connect_v4";

#[derive(clap::Args)]
pub struct Args {
    /// Add what takes long: every scenario on every kernel, more clients.
    #[arg(long)]
    all: bool,
    /// Only tests whose name contains this; format and lints are left out.
    filter: Option<String>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!(
            "the kernel tests need root\n  next: run as root, or `cargo xtask check` for what works without"
        );
    }
    apt::provision(&NEEDS, "the kernel tests")?;
    vm::provision()?;
    let expected = ExpectedSkips::read(workspace)?;
    let mut summary = Summary::default();

    match build::bpf_objects(workspace) {
        Ok(_) => all_tests(workspace, args, &expected, &mut summary)?,
        // Nothing else can be built without them; still a result, not an abort.
        Err(error) => summary.add("kernel programs", Results::failure(format!("{error:#}")), None),
    }
    println!("{summary}");
    Ok(if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn all_tests(
    workspace: &Workspace,
    args: &Args,
    expected: &ExpectedSkips,
    summary: &mut Summary,
) -> Result<()> {
    let filter = args.filter.as_deref();
    if filter.is_none() {
        check::lints(workspace, summary);
    }
    check::tests(workspace, filter, expected, summary)?;
    match static_build::test_programs(workspace) {
        Ok(built) => on_kernels(workspace, args, &built, expected, summary),
        Err(error) => summary.add("static programs", Results::failure(format!("{error:#}")), None),
    }
    Ok(())
}

/// Kernel tests here and on the other kernels, and the real clients.
fn on_kernels(
    workspace: &Workspace,
    args: &Args,
    built: &TestPrograms,
    expected: &ExpectedSkips,
    summary: &mut Summary,
) {
    let filter: Vec<String> = args.filter.iter().cloned().collect();
    let TestPrograms { portwatch, kernel_tests } = built;
    // The rung that works on a locked-down host; the machines below have all of them.
    let mut native = Command::new(kernel_tests);
    native
        .args(&filter)
        .env("PORTWATCH_BIN", portwatch)
        .env("PORTWATCH_RUNGS", "tracepoint")
        .env("PORTWATCH_REQUIRE_KERNEL", "1");
    test_run::part_on(summary, expected, "kernel tests, tracepoint", "native/tracepoint", &mut native);
    if workspace.has_test("clients") {
        clients::run(workspace, args.all, &filter, portwatch, expected, summary);
    }
    if workspace.has_test("stacks") {
        stacks::run(workspace, args.all, &filter, portwatch, expected, summary);
    }
    if filter.is_empty() || has_match(kernel_tests, &filter) {
        let rungs = vm::RUNGS.map(String::from);
        // An emulated processor takes a minute to verify and minutes to play every scenario on every rung.
        let quick = vec![QUICK_ON_VMS.to_owned()];
        let arguments = if args.all || !filter.is_empty() { &filter } else { &quick };
        let programs = Programs { test: kernel_tests, portwatch: Some(portwatch), arguments, rungs: &rungs };
        let series: Vec<String> = kernels::series().map(String::from).collect();
        vm::matrix(workspace, &series, &programs, expected, summary);
    }
}

/// Whether any kernel test on any rung is meant; four machines are not booted to find out.
fn has_match(tests: &Path, filter: &[String]) -> bool {
    let mut list = Command::new(tests);
    list.arg("--list").args(filter).env("PORTWATCH_RUNGS", vm::RUNGS.join(","));
    // If it cannot say, the machines will.
    process::output(&mut list).map_or(true, |names| names.contains(": test"))
}
