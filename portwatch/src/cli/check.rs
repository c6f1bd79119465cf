//! `portwatch check`: budgets and findings as an exit code, for CI.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;

use super::args::{FilterArgs, LimitArgs, TraceSetup, request};
use super::failure::Failure;
use super::report::{self, FormArgs};
use crate::diagnosis::report::{Report, Row, Severity};
use crate::diagnosis::{VERDICTS, diagnose};
use crate::output::escape::printable;

/// Exceeded, or a finding that was not to be.
const EXCEEDED: u8 = 3;
/// Events were lost, so nobody can vouch for a result that looks good.
const NOT_SURE: u8 = 4;

/// Fails when a log, or a command that it runs, opens too many connections or has findings
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch check -- pytest                              fails on any finding of severity warning or worse
  portwatch check --max-connections 10 -- ./client       no call site connects more than ten times to one place
  portwatch check --fail-on connection-leak,exhaustion log.jsonl.zst
  portwatch check --max-utilization 50% -d 30            thirty seconds of this host

Exit codes: the command's own if it is not 0; else 3 a budget is exceeded or a finding above the threshold, 4 events
were lost and the result is not sure, 0 all is well.")]
pub struct CheckArgs {
    /// Event logs; `-` is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    budgets: BudgetArgs,
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

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Budgets (none given: only findings count)")]
pub struct BudgetArgs {
    /// Connections of one call site to one destination
    #[arg(long, value_name = "N")]
    max_connections: Option<u64>,
    /// Ports a second taken by one call site for one destination
    #[arg(long, value_name = "RATE", value_parser = rate)]
    max_ports_per_s: Option<f64>,
    /// Open connections at once, of one call site to one destination
    #[arg(long, value_name = "N")]
    max_live: Option<u64>,
    /// TIME_WAIT entries at once, all together
    #[arg(long, value_name = "N")]
    max_time_wait: Option<u64>,
    /// Largest use of any pool of ports, as in `0.5` or `50%`
    #[arg(long, value_name = "SHARE", value_parser = share)]
    max_utilization: Option<f64>,
    /// Failed connects and binds, all together
    #[arg(long, value_name = "N")]
    max_failures: Option<u64>,
    /// Findings that fail: verdicts, severities from which on (info, warning, critical), or `none`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "warning", value_parser = fail_on)]
    fail_on: Vec<FailOn>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FailOn {
    Verdict(&'static str),
    Severity(Severity),
    None,
}

fn fail_on(text: &str) -> Result<FailOn, String> {
    let verdict = VERDICTS.into_iter().find(|verdict| *verdict == text);
    match (text, verdict) {
        (_, Some(verdict)) => Ok(FailOn::Verdict(verdict)),
        ("info", _) => Ok(FailOn::Severity(Severity::Info)),
        ("warning", _) => Ok(FailOn::Severity(Severity::Warning)),
        ("critical", _) => Ok(FailOn::Severity(Severity::Critical)),
        ("none", _) => Ok(FailOn::None),
        _ => Err(format!(
            "`{}` is neither a verdict nor a severity; use any of {}, info, warning, critical, none",
            text.escape_debug(),
            VERDICTS.join(", ")
        )),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0).ok_or_else(|| {
        format!("`{}` is not a rate; write a number per second, as in `2.5`", text.escape_debug())
    })
}

/// `0.5` or `50%`.
fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let share = number.trim().parse::<f64>().ok().map(|number| number / unit);
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("`{}` is not a share; write one as in `0.5` or `50%`", text.escape_debug()))
}

pub fn run(args: CheckArgs) -> Result<ExitCode> {
    let is_live = !args.command.is_empty() || args.limits.has_duration();
    let (ledger, own) = if args.files.is_empty() {
        if !is_live {
            return Err(Failure::usage(anyhow!(
                "there is nothing to check\n  next: give a log, a command behind `--`, or `-d SECONDS`"
            )));
        }
        let mut request = request(&args.filters, &args.limits, &args.setup, args.command)?;
        // What the command prints is the caller's business, unless a report is wanted there.
        request.is_stdout_taken = args.form.is_asked_for() && !args.form.is_to_file();
        let (ledger, outcome) = report::live(request)?;
        (ledger, outcome.code())
    } else {
        if is_live {
            return Err(report::files_and_live("check"));
        }
        (report::read(&args.files, &args.filters)?, 0)
    };
    let report = diagnose(&ledger);
    if args.form.is_asked_for() {
        args.form.write(&report)?;
    }
    let problems = args.budgets.exceeded(&report);
    let doubts = doubts(&report);
    for line in problems.iter().chain(&doubts) {
        eprintln!("portwatch: check: {line}");
    }
    let code = match (own, problems.is_empty(), doubts.is_empty()) {
        (0, false, _) => EXCEEDED,
        (0, true, false) => NOT_SURE,
        (own, ..) => own,
    };
    if code == 0 {
        eprintln!("portwatch: check: all is well");
    }
    Ok(ExitCode::from(code))
}

impl BudgetArgs {
    /// What is over a limit, and findings that were not to be, each in a line.
    fn exceeded(&self, report: &Report) -> Vec<String> {
        let mut problems = Vec::new();
        for row in &report.call_sites {
            let mut over = |what: &str, value: f64, limit: Option<f64>| {
                if let Some(limit) = limit.filter(|limit| value > *limit) {
                    problems.push(format!("{what} {value} > {limit}: {}", place(row)));
                }
            };
            over("connections", row.connections as f64, self.max_connections.map(|max| max as f64));
            over("ports per second", row.ports_per_s, self.max_ports_per_s);
            over("open connections", row.live_peak as f64, self.max_live.map(|max| max as f64));
        }
        let waiting = report.window.time_wait_peak;
        if let Some(max) = self.max_time_wait.filter(|max| waiting > *max) {
            problems.push(format!("TIME_WAIT entries {waiting} > {max}"));
        }
        let events = |name: &str| report.window.events.get(name).copied().unwrap_or(0);
        let failures = events("connect_failed") + events("bind_failed");
        if let Some(max) = self.max_failures.filter(|max| failures > *max) {
            problems.push(format!("failed connects and binds {failures} > {max}"));
        }
        for pool in &report.pools {
            let used = pool.utilization_peak.unwrap_or(0.0);
            if let Some(max) = self.max_utilization.filter(|max| used > *max) {
                let to = pool.raddr.as_deref().zip(pool.rport);
                let to = to.map_or("any".to_owned(), |(address, port)| format!("{address} port {port}"));
                problems.push(format!("utilization {used} > {max}: {} -> {to}", pool.laddr));
            }
        }
        for finding in &report.findings {
            let is_meant = self.fail_on.iter().any(|fail_on| match fail_on {
                FailOn::Verdict(verdict) => *verdict == finding.verdict,
                FailOn::Severity(severity) => finding.severity >= *severity,
                FailOn::None => false,
            });
            if is_meant {
                let to = finding.destination.as_deref().map_or(String::new(), |to| format!(" -> {to}"));
                let comm = finding.comm.as_deref().map_or("?".to_owned(), printable);
                let at =
                    finding.call_site.as_deref().map_or(String::new(), |at| format!(" at {}", printable(at)));
                problems.push(format!("{} ({}): {comm}{to}{at}", finding.verdict, finding.severity.name()));
            }
        }
        problems
    }
}

fn place(row: &Row) -> String {
    let comm = row.comm.as_deref().map_or("?".to_owned(), printable);
    let to = row.destination.as_deref().map_or(String::new(), |to| format!(" -> {to}"));
    let at = row.call_site.as_deref().map_or(String::new(), |at| format!(" at {}", printable(at)));
    format!("{comm}{to}{at}")
}

/// Why a result that looks good may not be.
fn doubts(report: &Report) -> Vec<String> {
    let mut doubts = Vec::new();
    let lost: u64 = report.lost.values().flat_map(|reasons| reasons.values()).sum();
    if lost > 0 {
        doubts.push(format!("{lost} events were lost: the result is not sure"));
    }
    if !report.window.complete {
        doubts.push("the log was cut short: the result is not sure".to_owned());
    }
    if report.evicted.holds > 0 {
        doubts.push(format!("{} ports were not followed: the result is not sure", report.evicted.holds));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_findings_are_read_as_people_write_them() {
        assert_eq!(share("50%"), Ok(0.5));
        assert_eq!(share("0.25"), Ok(0.25));
        assert_eq!(share("100 %"), Ok(1.0));
        for wrong in ["150%", "2", "-1%", "x", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert_eq!(fail_on("exhaustion"), Ok(FailOn::Verdict("exhaustion")));
        assert_eq!(fail_on("critical"), Ok(FailOn::Severity(Severity::Critical)));
        assert!(fail_on("bad").unwrap_err().contains("udp-per-query"));
    }
}
