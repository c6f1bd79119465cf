//! `portwatch report`: findings and ranked call sites, from logs or live.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::failure::Failure;
use crate::aggregate::ledger::Ledger;
use crate::diagnosis::diagnose;
use crate::diagnosis::report::Report;
use crate::output::report;
use crate::output::text::Color;
use crate::recording::Reader;

/// Findings and ranked call sites, from event logs or live
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch report log.jsonl.zst                 who churns or leaks ports, and from which line
  portwatch report monday.jsonl tuesday.jsonl    several logs as one
  portwatch report --format json log.jsonl | jq '.findings[].verdict'")]
pub struct ReportArgs {
    /// Event logs; `-` is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    form: FormArgs,
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
    if args.files.is_empty() {
        return Err(no_files());
    }
    let ledger = read(&args.files)?;
    args.form.write(&diagnose(&ledger))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads logs into one ledger, in the order of their starts.
pub fn read(files: &[PathBuf]) -> Result<Ledger> {
    let mut readers: Vec<Reader> = files.iter().map(|file| Reader::open(file)).collect::<Result<_, _>>()?;
    readers.sort_by(|a, b| a.header().started.cmp(&b.header().started));
    let mut ledger = Ledger::default();
    for reader in readers {
        ledger.begin(reader.header());
        for line in reader {
            ledger.line(&line?);
        }
        ledger.end();
    }
    Ok(ledger)
}

impl FormArgs {
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

/// What a command that reads logs says when it is given none.
pub fn no_files() -> anyhow::Error {
    Failure::usage(anyhow::anyhow!(
        "there is nothing to report on\n  next: give a log that `portwatch record` wrote, or `-d SECONDS` for what happens now"
    ))
}
