//! The command line: one file per command, with what it takes and what it does.

mod args;
mod check;
mod demo;
mod doctor;
mod explain;
pub mod failure;
mod record;
mod report;
mod snapshot;
mod trace;

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// Who is eating this host's ports, and from which line of code.
#[derive(Debug, Parser)]
#[command(
    name = "portwatch",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "\
Examples:
  portwatch doctor                       what this host can do, and what to change
  portwatch trace -p 1234                what process 1234 does to the ports
  portwatch trace -Z                     only connects and binds that fail
  portwatch trace -- curl example.com    a command and its children
  portwatch record -o log.jsonl.zst      everything, to a file
  portwatch report log.jsonl.zst         who churns or leaks ports, and what to change
  portwatch check -- pytest              fails if the tests churn or leak ports
  portwatch snapshot                     ports in use now, without tracing
  portwatch demo churn                   a connect-per-request client, traced

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check failed, 4 a check is not sure, 77 this host cannot run it.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Trace(trace::TraceArgs),
    Record(record::RecordArgs),
    Report(report::ReportArgs),
    Check(check::CheckArgs),
    Explain(explain::ExplainArgs),
    Snapshot(snapshot::SnapshotArgs),
    Demo(demo::DemoArgs),
    Doctor(doctor::DoctorArgs),
}

/// Parses the command line and runs what it says. Wrong usage ends the process with 2, as clap does.
///
/// # Errors
/// Whatever made the command fail; [`failure::code`] knows its exit code.
pub fn run() -> Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => refuse(&error),
    };
    match cli.command {
        Command::Trace(args) => trace::run(args),
        Command::Record(args) => record::run(args),
        Command::Report(args) => report::run(args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Demo(args) => demo::run(args),
    }
}

/// Ends the process with what clap has to say: help, the version, or what is wrong with the command line and what to
/// do next, in the form that all errors have.
fn refuse(error: &clap::Error) -> ! {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.render().to_string();
    // clap's own last line says less: not of which command the help is.
    let what = text.split("\n\nFor more information").next().unwrap_or(&text).trim_end();
    let what: Vec<_> = what.lines().map(failure::printable).collect();
    let subcommand = std::env::args_os().nth(1).and_then(|name| name.into_string().ok());
    let subcommand = subcommand.filter(|name| Cli::command().find_subcommand(name).is_some());
    let help = subcommand.map_or("portwatch --help".to_owned(), |name| format!("portwatch {name} --help"));
    eprintln!("{}\n  next: `{help}` explains the options", what.join("\n"));
    std::process::exit(error.exit_code())
}
