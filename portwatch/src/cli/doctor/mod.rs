//! `portwatch doctor`: what this host can do, what is missing, and how to get it.
//!
//! The answer for each rung comes from doing what `trace` does at its start. [`facts`] asks the host, [`checks`]
//! and [`namespaces`] say what the answers mean, [`text`] shows them to people.

mod checks;
mod facts;
mod namespaces;
mod rungs;
mod text;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::kernel::host;
use crate::output::text::Color;

use checks::Check;
use namespaces::Namespaces;
use rungs::RungReport;

/// Says what this host can do, which rung will be used, what is missing and how to get it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portwatch doctor            for people
  portwatch doctor --json     one JSON object

Loads and attaches each way of observing for a moment, as `trace` would, and changes nothing.
Exit codes: 0 tracing works, 77 no way of tracing works here (as this user).")]
pub struct DoctorArgs {
    /// One JSON object on standard output instead of text.
    #[arg(long)]
    json: bool,
    /// When to use color in text.
    #[arg(long, value_enum, default_value_t)]
    color: Color,
}

/// What `--json` prints, on one line.
#[derive(Debug, Serialize)]
struct Report {
    /// Always `doctor`.
    r#type: &'static str,
    /// Of this format: 1. Fields may be added, never changed.
    version: u32,
    /// portwatch's own version.
    portwatch: &'static str,
    host: String,
    /// As `uname -r`.
    kernel: String,
    arch: &'static str,
    /// The rung that `trace` uses when none is asked for; null when none works.
    rung: Option<&'static str>,
    /// Every way of observing, best first.
    rungs: Vec<RungReport>,
    /// Everything else that was looked at.
    checks: Vec<Check>,
    namespaces: Namespaces,
}

/// Looks at the host and prints the report.
///
/// # Errors
/// When the host cannot be asked at all, for example without /proc, or standard output is gone.
pub fn run(args: DoctorArgs) -> Result<ExitCode> {
    let names = host::names()?;
    let facts = facts::gather(&names.kernel)?;
    let rungs = rungs::report(&facts);
    let report = Report {
        r#type: "doctor",
        version: 1,
        portwatch: env!("CARGO_PKG_VERSION"),
        host: names.host,
        kernel: names.kernel,
        arch: std::env::consts::ARCH,
        rung: rungs.iter().find(|rung| rung.possible && rung.traces).map(|rung| rung.rung),
        checks: checks::checks(&facts),
        rungs,
        namespaces: namespaces::gather()?,
    };
    let mut out = std::io::stdout().lock();
    let text = if args.json {
        serde_json::to_string(&report).context("cannot write the report as JSON")? + "\n"
    } else {
        text::page(&report, args.color.is_on(&out))
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write the report")?;
    Ok(if report.rung.is_some() { ExitCode::SUCCESS } else { ExitCode::from(77) })
}
