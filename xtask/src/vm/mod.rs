//! Test machines: Debian kernels under qemu's full emulation, which needs no hardware support and no root.

pub mod console;
mod image;
pub mod kernels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use image::Programs;

use self::console::Report;
use self::kernels::Kernel;
use crate::workspace::Workspace;

/// Past this a machine hangs; it is then killed and what it has not said counts as failed.
const TIME_LIMIT: Duration = Duration::from_secs(25 * 60);

/// Two, as on the smallest real host: some orders of events do not happen on one.
const CPUS: &str = "2";
const MEMORY_MIB: &str = "768";

/// Everything qemu can emulate but CMPXCHG16B: qemu 7.2 sometimes leaves garbage in the flags after it, and the slab
/// allocator of 6.5 and later then corrupts memory (4 of 20 boots of 6.12 crashed; without it none of 60). Kernels
/// have another way for processors that lack it.
const CPU: &str = "max,-cx16";

/// One finished run of one kernel.
pub struct Finished {
    pub report: Report,
    /// What the test program said on standard output, among the console's lines.
    pub log: PathBuf,
    /// What it said on standard error.
    pub errors: PathBuf,
    pub took: Duration,
}

/// Boots `kernel`, runs `programs`, and reads what they said. The console goes to `target/vm/SERIES.log` as it comes.
pub fn run(workspace: &Workspace, series: &str, kernel: &Kernel, programs: &Programs) -> Result<Finished> {
    let begun = Instant::now();
    let directory = workspace.target.join("vm").join(series);
    let log = workspace.target.join("vm").join(format!("{series}.log"));
    let errors = workspace.target.join("vm").join(format!("{series}.stderr.log"));
    image::build(&directory, kernel, programs)?;
    let file = fs::File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
    let qemu_errors = file.try_clone().with_context(|| format!("cannot write `{}`", log.display()))?;
    let status = qemu(&kernel.directory.join("vmlinuz"), &directory.join("initrd"), &errors)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(qemu_errors)
        .status()
        .context("cannot start `qemu-system-x86_64`")?;
    let console = fs::read(&log).with_context(|| format!("cannot read `{}`", log.display()))?;
    let mut report =
        console::parse(&String::from_utf8_lossy(&console), programs.rungs, !programs.arguments.is_empty());
    if !status.success() {
        report.trouble.push(match status.code() {
            Some(124 | 137) => format!("still running after {} s, killed", TIME_LIMIT.as_secs()),
            _ => format!("qemu failed: {status}"),
        });
    }
    Ok(Finished { report, log, errors, took: begun.elapsed() })
}

fn qemu(kernel: &Path, initrd: &Path, second_port: &Path) -> Command {
    // `timeout` rather than a thread of ours: it ends the machine even if xtask itself is killed.
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--kill-after=5", &TIME_LIMIT.as_secs().to_string(), "qemu-system-x86_64"])
        .args(["-machine", "q35,accel=tcg", "-cpu", CPU, "-smp", CPUS, "-m", MEMORY_MIB])
        .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
        .arg("-serial")
        .arg(format!("file:{}", second_port.display()))
        .arg("-append")
        .arg("console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off")
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd);
    command
}
