//! `portwatch report`: findings and ranked call sites, from logs or live.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::args::{FilterArgs, LimitArgs, TraceSetup, replay, request};
use super::failure::Failure;
use crate::aggregate::ledger::Ledger;
use crate::diagnosis::diagnose;
use crate::diagnosis::report::Report;
use crate::output::text::Color;
use crate::output::{Output, report};
use crate::recording::Reader;
use crate::recording::format::{Header, Line};
use crate::recording::live::{Lines, Live};
use crate::session;

/// Findings and ranked call sites, from event logs or live
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch report log.jsonl.zst                 who churns or leaks ports, and from which line
  portwatch report monday.jsonl tuesday.jsonl    several logs as one
  portwatch report -d 10                         what happens here and now, for ten seconds
  portwatch report -- ./client                   a command and its children
  portwatch report --format json log.jsonl | jq '.findings[].verdict'")]
pub struct ReportArgs {
    /// Event logs; `-` is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    form: FormArgs,
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

/// How a report is written.
#[derive(Clone, Debug, Args)]
pub struct FormArgs {
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Rows of each table in text and Markdown
    #[arg(long, value_name = "N", default_value_t = report::TOP)]
    top: usize,
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Colours in text; auto: on a terminal and without NO_COLOR
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs: docs/schema/report.v1.json
    Json,
    /// For tickets
    Markdown,
}

pub fn run(args: ReportArgs) -> Result<ExitCode> {
    let is_live = !args.command.is_empty() || args.limits.has_duration();
    if !args.files.is_empty() {
        if is_live {
            return Err(files_and_live("report"));
        }
        let ledger = read(&args.files, &args.filters)?;
        args.form.write(&diagnose(&ledger))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !is_live {
        return Err(Failure::usage(anyhow::anyhow!(
            "there is nothing to report on\n  next: give a log that `portwatch record` wrote, or `-d SECONDS` for what \
             happens now"
        )));
    }
    let mut request = request(&args.filters, &args.limits, &args.setup, args.command)?;
    request.is_stdout_taken = !args.form.is_to_file();
    let (ledger, outcome) = live(request)?;
    args.form.write(&diagnose(&ledger))?;
    Ok(ExitCode::from(outcome.code()))
}

/// Traces into a ledger, without a log.
pub fn live(request: session::Request) -> Result<(Ledger, session::Outcome)> {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let lines = Feed(Arc::clone(&ledger));
    let outcome = session::run(request, || Ok(Box::new(Live::new(lines)) as Box<dyn Output>))?;
    let mut ledger = std::mem::take(&mut *ledger.lock().unwrap_or_else(PoisonError::into_inner));
    ledger.end();
    Ok((ledger, outcome))
}

/// Lines of a run into the ledger that the caller waits for.
struct Feed(Arc<Mutex<Ledger>>);

impl Lines for Feed {
    fn header(&mut self, header: &Header) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).begin(header);
    }

    fn line(&mut self, line: &Line) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).line(line);
    }
}

pub fn files_and_live(command: &str) -> anyhow::Error {
    Failure::usage(anyhow::anyhow!(
        "`{command}` reads logs or traces, not both at once\n  next: leave out the files, or the duration and the command"
    ))
}

/// Reads logs into one ledger, in the order of their starts.
pub fn read(files: &[PathBuf], filters: &FilterArgs) -> Result<Ledger> {
    let mut filter = replay(filters)?;
    let mut readers: Vec<Reader> = files.iter().map(|file| Reader::open(file)).collect::<Result<_, _>>()?;
    readers.sort_by(|a, b| a.header().started.cmp(&b.header().started));
    let mut ledger = Ledger::default();
    for reader in readers {
        ledger.begin(reader.header());
        for line in reader {
            let line = line?;
            if filter.wants(&line) {
                ledger.line(&line);
            }
        }
        ledger.end();
    }
    Ok(ledger)
}

impl FormArgs {
    /// Whether anything but the defaults was typed.
    pub fn is_asked_for(&self) -> bool {
        self.format != Format::Text || self.output.is_some()
    }

    pub fn is_to_file(&self) -> bool {
        self.output.as_deref().is_some_and(|path| path != Path::new("-"))
    }

    pub fn write(&self, report: &Report) -> Result<()> {
        let has_color = self.output.is_none() && self.color.is_on(&std::io::stdout());
        let text = match self.format {
            Format::Text => report::text(report, self.top, has_color),
            Format::Json => report::json(report)?,
            Format::Markdown => report::markdown(report, self.top),
        };
        match self.output.as_deref().filter(|path| *path != Path::new("-")) {
            Some(path) => std::fs::write(path, text).with_context(|| {
                format!(
                    "cannot write the report to `{}`\n  next: choose a place that can be written",
                    path.display()
                )
            }),
            None => {
                let mut stdout = std::io::stdout().lock();
                stdout
                    .write_all(text.as_bytes())
                    .and_then(|()| stdout.flush())
                    .context("cannot write the report")
            }
        }
    }
}
