//! `portwatch record`: the event log to a file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::args::{FilterArgs, LimitArgs, TraceSetup, request};
use crate::output::Output;
use crate::output::json::JsonLines;
use crate::{recording, session};

/// Event log to a file, for reports and other programs
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch record -o log.jsonl.zst -d 60        a minute of everything
  portwatch record -o log.jsonl -p 1234          one process, until it ends
  portwatch record -o log.jsonl -- ./client      a command; ends with it, and with its exit code")]
pub struct RecordArgs {
    /// File to write; the extension says how: .jsonl or .jsonl.zst; `-` is standard output, as .jsonl
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite FILE even if it is not empty
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    filters: FilterArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    setup: TraceSetup,
    /// Command to run and to trace with its children
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

pub fn run(args: RecordArgs) -> Result<ExitCode> {
    let mut request = request(&args.filters, &args.limits, &args.setup, args.command)?;
    // Refused before anything is loaded; the file itself is made when tracing works.
    recording::Format::of(&args.output)?;
    request.is_stdout_taken = args.output.as_os_str() == "-";
    let outcome = session::run(request, || {
        let sink = recording::create(&args.output, args.force)?;
        Ok(Box::new(JsonLines::new(sink)) as Box<dyn Output>)
    })?;
    Ok(ExitCode::from(outcome.code()))
}
