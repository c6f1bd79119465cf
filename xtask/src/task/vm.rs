//! `vm`: the kernel tests on other kernels.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Result, bail};

use crate::apt::{self, Need};
use crate::expected_skips::{ExpectedSkips, WHOLE_SERIES};
use crate::results::{Results, Skip};
use crate::static_build;
use crate::summary::Summary;
use crate::task::build;
use crate::vm::{self, Finished, Programs, console, kernels};
use crate::workspace::Workspace;

/// Ways of attaching that every one of our kernels can do.
pub const RUNGS: [&str; 3] = ["fentry", "kprobe", "tracepoint"];

/// Machines at a time. One hardly ever keeps both of its processors busy: on two cores all four series take 20 s one
/// by one, 12 s in pairs, and no less in threes or fours.
const AT_A_TIME: usize = 2;

const NEEDS: [Need; 7] = [
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need { program: "busybox", package: "busybox-static" },
    Need { program: "cpio", package: "cpio" },
    Need { program: "dpkg-deb", package: "dpkg" },
    Need { program: "timeout", package: "coreutils" },
    Need { program: "xz", package: "xz-utils" },
    Need { program: "zstd", package: "zstd" },
];

#[derive(clap::Args)]
pub struct Args {
    /// Kernel series such as 6.12 (default: all), and at most one filter on test names.
    #[arg(value_name = "SERIES|FILTER")]
    words: Vec<String>,
    /// Only this rung: fentry, kprobe or tracepoint; can be repeated.
    #[arg(long, value_parser = RUNGS)]
    rung: Vec<String>,
    /// Run this static program instead of the kernel tests.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let (series, filters): (Vec<String>, Vec<String>) =
        args.words.iter().cloned().partition(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    if filters.len() > 1 {
        bail!("one filter at most, not `{}`", filters.join("`, `"));
    }
    let all = |names: &mut dyn Iterator<Item = &'static str>| names.map(String::from).collect::<Vec<_>>();
    let series = if series.is_empty() { all(&mut kernels::series()) } else { series };
    if let Some(unknown) = series.iter().find(|name| !kernels::series().any(|known| known == name.as_str())) {
        bail!("no kernel series `{unknown}`; known: {}", all(&mut kernels::series()).join(", "));
    }
    let rungs = if args.rung.is_empty() { all(&mut RUNGS.into_iter()) } else { args.rung.clone() };

    provision()?;
    let (test, portwatch) = match &args.program {
        Some(program) => (program.clone(), None),
        None => {
            build::bpf_objects(workspace)?;
            let built = static_build::test_programs(workspace)?;
            (built.kernel_tests, Some(built.portwatch))
        }
    };
    let programs =
        Programs { test: &test, portwatch: portwatch.as_deref(), arguments: &filters, rungs: &rungs };
    let mut summary = Summary::default();
    matrix(workspace, &series, &programs, &ExpectedSkips::read(workspace)?, &mut summary);
    println!("{summary}");
    Ok(if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Brings what a machine needs, kernels apart.
pub fn provision() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the test machines are x86_64 and run programs built here, which is another architecture");
    }
    apt::provision(&NEEDS, "the test machines")
}

/// Runs `programs` on every series and adds one part per series and rung to `summary`.
pub fn matrix(
    workspace: &Workspace,
    series: &[String],
    programs: &Programs,
    expected: &ExpectedSkips,
    summary: &mut Summary,
) {
    let next = Mutex::new(series.iter().enumerate());
    let finished = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(series.len()) {
            scope.spawn(|| {
                loop {
                    let taken = next.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
                    let Some((index, name)) = taken else { break };
                    let outcome = one(workspace, name, programs);
                    finished
                        .lock()
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .push((index, name, outcome));
                }
            });
        }
    });
    let mut finished = finished.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    finished.sort_by_key(|(index, ..)| *index);
    for (_, name, outcome) in finished {
        match outcome {
            Ok((release, machine)) => add(summary, expected, name, &release, machine),
            Err(Trouble::NoKernel(error)) => {
                let skip = Skip { test: WHOLE_SERIES.into(), reason: format!("{error:#}") };
                let mut results = Results { skipped: vec![skip], ..Results::default() };
                eprintln!("xtask: SKIP: kernel series {name}: {error:#}");
                expected.judge(name, &mut results);
                summary.add(format!("vm {name}"), results, None);
            }
            Err(Trouble::Machine(error)) => {
                summary.add(format!("vm {name}"), Results::failure(format!("{error:#}")), None)
            }
        }
    }
}

enum Trouble {
    NoKernel(anyhow::Error),
    Machine(anyhow::Error),
}

fn one(workspace: &Workspace, name: &str, programs: &Programs) -> Result<(String, Finished), Trouble> {
    let kernel = kernels::find_or_fetch(workspace, name).map_err(Trouble::NoKernel)?;
    eprintln!("xtask: booting {}", kernel.release);
    let finished = vm::run(workspace, name, &kernel, programs).map_err(Trouble::Machine)?;
    eprintln!(
        "xtask: {} done after {:.0} s, {}",
        kernel.release,
        finished.took.as_secs_f64(),
        finished.log.display()
    );
    Ok((kernel.release, finished))
}

fn add(summary: &mut Summary, expected: &ExpectedSkips, name: &str, release: &str, machine: Finished) {
    let mut went_wrong = !machine.report.trouble.is_empty();
    let mut took = Some(machine.took);
    for (rung, mut results) in machine.report.rungs {
        expected.judge(&format!("{name}/{rung}"), &mut results);
        went_wrong |= !results.failed.is_empty();
        summary.add(format!("vm {release} {rung}"), results, took.take());
    }
    if !machine.report.trouble.is_empty() {
        summary.add(
            format!("vm {release}"),
            Results { failed: machine.report.trouble, ..Results::default() },
            None,
        );
    }
    if went_wrong {
        // Who reads a failed run elsewhere has only this output.
        for path in [&machine.log, &machine.errors] {
            println!("---- {} ----", path.display());
            match std::fs::read(path) {
                Ok(log) => print!("{}", console::readable(&String::from_utf8_lossy(&log))),
                Err(error) => println!("cannot be read: {error}"),
            }
        }
    }
}
