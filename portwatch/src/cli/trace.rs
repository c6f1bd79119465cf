//! `portwatch trace`: live events on standard output.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::args::{FilterArgs, LimitArgs, TraceSetup, request};
use crate::output::Output;
use crate::output::json::JsonLines;
use crate::output::text::{Color, Text};
use crate::recording::Stdout;
use crate::session;

/// Live events: who gets ports, who fails to, what becomes of them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch trace                        everything on this host
  portwatch trace -p 1234 -f             a process and its children
  portwatch trace -Z --dst 10.0.0.0/8    what fails towards 10.0.0.0/8
  portwatch trace --format jsonl -d 10 | jq -c 'select(.type==\"connect_failed\")'
  portwatch trace -- ./client            a command; ends with it, and with its exit code")]
pub struct TraceArgs {
    #[command(flatten)]
    filters: FilterArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    setup: TraceSetup,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Colours in text; auto: on a terminal and without NO_COLOR
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
    /// Command to run and to trace with its children
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// The event log, one JSON object a line
    Jsonl,
}

pub fn run(args: TraceArgs) -> Result<ExitCode> {
    let mut request = request(&args.filters, &args.limits, &args.setup, args.command)?;
    request.is_stdout_taken = args.format == Format::Jsonl;
    let outcome = session::run(request, || {
        Ok(match args.format {
            Format::Text => Box::new(Text::new(std::io::stdout(), args.color.is_on(&std::io::stdout())))
                as Box<dyn Output>,
            Format::Jsonl => Box::new(JsonLines::new(Stdout::new()?)),
        })
    })?;
    Ok(ExitCode::from(outcome.code()))
}
