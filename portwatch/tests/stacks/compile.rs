//! Programs in C, built for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Stopped;
use crate::stage::Stage;

/// Small programs, each with its story at its head.
pub const SIMPLE: &str = include_str!("programs/simple.c");
pub const PLUGIN: &str = include_str!("programs/plugin.c");
pub const PLUGINS: &str = include_str!("programs/plugins.c");
pub const FORKS: &str = include_str!("programs/forks.c");
pub const SHELL: &str = include_str!("programs/shell.c");
const COMMON: &str = include_str!("programs/common.h");

/// No frame pointers, and no call that became a jump: such a frame is not on the stack for anybody to find.
const FLAGS: [&str; 6] = [
    "-O2",
    "-fomit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fasynchronous-unwind-tables",
    "-pthread",
    "-w",
];

/// Builds `source` as `DIRECTORY/NAME`, with `flags` behind the usual ones.
pub fn c(directory: &Path, name: &str, source: &str, flags: &[&str]) -> Result<PathBuf, Stopped> {
    c_as(directory, name, name.split('.').next().unwrap_or(name), source, flags)
}

/// The same, where the source's name is another: line tables have it.
pub fn c_as(
    directory: &Path,
    name: &str,
    source_name: &str,
    source: &str,
    flags: &[&str],
) -> Result<PathBuf, Stopped> {
    let source_path = directory.join(format!("{source_name}.c"));
    write(&source_path, source)?;
    write(&directory.join("common.h"), COMMON)?;
    let program = directory.join(name);
    run(Command::new("cc").args(FLAGS).arg("-o").arg(&program).arg(&source_path).args(flags))?;
    Ok(program)
}

/// The same below the stage's directory.
pub fn on_stage(stage: &Stage, name: &str, source: &str, flags: &[&str]) -> Result<PathBuf, Stopped> {
    c(&stage.path(""), name, source, flags)
}

pub fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write `{}`: {error}", path.display()))
}

/// Runs a tool; one that is not installed is a reason to skip.
pub fn run(command: &mut Command) -> Result<(), Stopped> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(Stopped::Failed(format!("{command:?} ended with {}: {stderr}", output.status)))
        }
        Err(_) => Err(Stopped::Skipped(format!("no `{name}` on this machine"))),
    }
}

/// The line, counted from 1, on which a source has `mark`.
pub fn line_of(source: &str, mark: &str) -> usize {
    source.lines().position(|line| line.contains(mark)).expect("the source has the mark") + 1
}
