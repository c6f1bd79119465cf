//! Running test programs on this machine.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::expected_skips::ExpectedSkips;
use crate::process;
use crate::results::{self, Results};
use crate::summary::Summary;

/// Runs `command`, shows its output as it comes, and adds its results to `summary` as `name`.
pub fn part(summary: &mut Summary, expected: &ExpectedSkips, name: &str, command: &mut Command) {
    part_on(summary, expected, name, "native", command);
}

/// As `part`, for skips that are expected on `place` only, such as `native/tracepoint`.
pub fn part_on(
    summary: &mut Summary,
    expected: &ExpectedSkips,
    name: &str,
    place: &str,
    command: &mut Command,
) {
    let begun = Instant::now();
    eprintln!("xtask: {name}: {}", process::show(command));
    let mut results = run(command).unwrap_or_else(|error| Results::failure(format!("{error:#}")));
    expected.judge(place, &mut results);
    summary.add(name, results, Some(begun.elapsed()));
}

fn run(command: &mut Command) -> Result<Results> {
    let line = process::show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        let mut shown = std::io::stdout().lock();
        for chunk in BufReader::new(output).split(b'\n') {
            let chunk = chunk.with_context(|| format!("cannot read the output of `{line}`"))?;
            let chunk = String::from_utf8_lossy(&chunk);
            // A reader of ours that went away must not stop the tests.
            let _ = writeln!(shown, "{chunk}");
            text.push_str(&chunk);
            text.push('\n');
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    Ok(results::parse(text.lines(), status.success()))
}
