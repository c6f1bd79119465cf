//! Programs that need nothing but the kernel, for test machines and for shipping.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::workspace::{self, Workspace};
use crate::{process, static_elf};

/// Static linking of the C library needs a target named explicitly; otherwise cargo applies it to build scripts and
/// procedural macros, which cannot be linked so.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// `portwatch` and the kernel tests for test machines.
pub struct TestPrograms {
    pub portwatch: PathBuf,
    pub kernel_tests: PathBuf,
}

/// Builds `portwatch` in `profile`.
pub fn portwatch(workspace: &Workspace, profile: &str) -> Result<PathBuf> {
    process::run(cargo(workspace, profile, "build").args(["--bin", "portwatch"]))?;
    let path = workspace.target.join(TARGET).join(profile).join("portwatch");
    static_elf::require(&path)?;
    Ok(path)
}

/// Builds what a test machine runs, optimised lightly: the emulated processor is slow, and so is a release build.
pub fn test_programs(workspace: &Workspace) -> Result<TestPrograms> {
    let portwatch = portwatch(workspace, "vm")?;
    let mut cargo = cargo(workspace, "vm", "test");
    cargo.args(["--test", "kernel", "--no-run", "--message-format=json-render-diagnostics"]);
    // Diagnostics go to the terminal; the messages, one JSON object a line, name the file.
    let messages = process::output(cargo.stderr(Stdio::inherit()))?;
    let kernel_tests =
        executable(&messages, "kernel").context("cargo names no executable for the kernel tests")?;
    static_elf::require(&kernel_tests)?;
    Ok(TestPrograms { portwatch, kernel_tests })
}

fn cargo(workspace: &Workspace, profile: &str, verb: &str) -> Command {
    let mut cargo = workspace.cargo();
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static").args([
        verb,
        "--package",
        "portwatch",
        "--target",
        TARGET,
        "--profile",
        profile,
    ]);
    cargo
}

fn executable(messages: &str, test: &str) -> Option<PathBuf> {
    let name = format!("\"name\":\"{test}\"");
    messages
        .lines()
        .filter(|line| line.contains("\"reason\":\"compiler-artifact\"") && line.contains(&name))
        .find_map(|line| workspace::json_string(line, "executable"))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn the_test_program_is_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"portwatch"},"executable":"/t/portwatch"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"kernel"},"executable":"/t/deps/kernel-1a2b","fresh":true}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "kernel").as_deref(), Some("/t/deps/kernel-1a2b".as_ref()));
        assert_eq!(executable(messages, "clients"), None);
    }
}
