//! The report on one screen.

use anstyle::{AnsiColor, Style};

use super::words::{blamed, duration, evidence, fit, fit_end, grouped, number, percent, seconds, who};
use crate::diagnosis::report::{Finding, Knob, Pool, Report, Row, Severity};
use crate::output::escape::printable;

/// Columns of the screen that it must fit.
const WIDTH: usize = 98;

const TITLE: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const CODE: Style = AnsiColor::Cyan.on_default();
const CRITICAL: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();

struct Page {
    text: String,
    has_color: bool,
}

impl Page {
    fn styled(&mut self, style: Style, text: &str) {
        if self.has_color {
            self.text.push_str(&format!("{style}{text}{style:#}"));
        } else {
            self.text.push_str(text);
        }
    }

    fn line(&mut self, style: Style, text: &str) {
        self.styled(style, text);
        self.text.push('\n');
    }

    /// Words, broken into lines with `indent`; the first one begins with `lead`.
    fn wrapped(&mut self, lead: &str, indent: usize, words: &str) {
        let mut line = lead.to_owned();
        let mut is_empty = true;
        for word in words.split(' ') {
            if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.text.push_str(&line);
                self.text.push('\n');
                line = " ".repeat(indent);
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        self.text.push_str(&line);
        self.text.push('\n');
    }
}

/// `top`: rows of each table.
pub fn text(report: &Report, top: usize, has_color: bool) -> String {
    let mut page = Page { text: String::new(), has_color };
    head(&mut page, report);
    if report.findings.is_empty() {
        page.line(GOOD, "Healthy: no findings.");
    }
    let mut told: Vec<&[Knob]> = Vec::new();
    for finding in report.findings.iter().take(top) {
        page.text.push('\n');
        let is_told = told.contains(&finding.knobs.as_slice());
        told.push(&finding.knobs);
        self::finding(&mut page, finding, if is_told { &[] } else { &finding.knobs });
    }
    more(&mut page, report.findings.len(), top, "findings");
    sites(&mut page, &report.call_sites, top);
    pools(&mut page, &report.pools, top);
    page.text
}

fn head(page: &mut Page, report: &Report) {
    let window = &report.window;
    let hosts = window.hosts.iter().map(printable).collect::<Vec<_>>().join(", ");
    let rungs = window.rungs.iter().map(printable).collect::<Vec<_>>().join(", ");
    let count = |name: &str| window.events.get(name).copied().unwrap_or(0);
    let failures = count("connect_failed") + count("bind_failed");
    let line = format!(
        "{} on {hosts} ({rungs}): {} ports taken, {} connections, {} failures",
        duration(window.duration_ns as f64),
        grouped(count("port_allocated")),
        grouped(count("established")),
        grouped(failures)
    );
    page.line(TITLE, &fit(&line, WIDTH));
    if !window.complete {
        page.line(WARNING, "The log was cut short: what is here is true, more may have happened.");
    }
    let lost: u64 = report.lost.values().flat_map(|reasons| reasons.values()).sum();
    if lost > 0 {
        page.line(WARNING, &format!("{} events were lost: the numbers are too low.", grouped(lost)));
    }
    if window.lower_bound {
        page.line(DIM, "Some losses cannot be counted on that kernel: all numbers are lower bounds.");
    }
    let evicted = report.evicted;
    let given_up = evicted.call_sites + evicted.pools + evicted.holds;
    if given_up > 0 {
        let line = format!(
            "For want of room {} rows were put together, {} pools and {} ports left out.",
            grouped(evicted.call_sites),
            grouped(evicted.pools),
            grouped(evicted.holds)
        );
        page.line(DIM, &line);
    }
}

fn finding(page: &mut Page, finding: &Finding, knobs: &[Knob]) {
    let style = match finding.severity {
        Severity::Info => DIM,
        Severity::Warning => WARNING,
        Severity::Critical => CRITICAL,
    };
    page.styled(style, &format!("{} {}", finding.severity.name(), finding.verdict));
    let to = finding.destination.as_deref().map_or(String::new(), |to| format!(" -> {}", printable(to)));
    page.styled(TITLE, &format!("  {}{to}", blamed(finding)));
    page.line(DIM, &format!("  (confidence {:.2})", finding.confidence));
    if let Some(site) = &finding.call_site {
        page.styled(DIM, "  at  ");
        page.line(CODE, &fit_end(&printable(site), WIDTH - 6));
    }
    if finding.workers.len() > 1 {
        const SHOWN: usize = 6;
        let share = |worker: &crate::diagnosis::report::Worker| {
            let pid = worker.pid.map_or("?".to_owned(), |pid| pid.to_string());
            format!("{pid} {}", percent(worker.share))
        };
        let mut shares: Vec<String> = finding.workers.iter().take(SHOWN).map(share).collect();
        if finding.workers.len() > SHOWN {
            shares.push(format!("{} more", finding.workers.len() - SHOWN));
        }
        page.wrapped("  of  ", 6, &shares.join(", "));
    }
    page.wrapped("  ", 2, &evidence(finding).join("; "));
    if !finding.advice.is_empty() {
        page.wrapped("  do  ", 6, &finding.advice);
    }
    for knob in knobs {
        let then = knob.then.as_deref().map_or(String::new(), |then| format!(" -> {then}"));
        let carries =
            knob.sustainable_per_s.map_or(String::new(), |s| format!(": would carry {}/s", number(s)));
        page.wrapped("  net ", 6, &format!("{} = {}{then}{carries}; {}", knob.sysctl, knob.now, knob.note));
    }
    if let Some(link) = finding.links.first() {
        page.line(DIM, &format!("  see {link}"));
    }
}

fn more(page: &mut Page, all: usize, top: usize, what: &str) {
    if all > top {
        page.line(
            DIM,
            &format!("  and {} more {what}; `--top {all}` shows all", grouped((all - top) as u64)),
        );
    }
}

fn sites(page: &mut Page, rows: &[Row], top: usize) {
    if rows.is_empty() {
        return;
    }
    let head = format!(
        "\n{:>9} {:>7} {:>7} {:>6} {:>6} {:>7}  {:<18} {:<21}",
        "PORT*S", "CONNS", "PORTS/S", "HELD", "FAILED", "P50", "WHO", "TO"
    );
    page.line(TITLE, head.trim_end());
    for row in rows.iter().take(top) {
        let failed: u64 = row.failures.values().sum();
        let p50 = row.lifetime_ns.p50.map_or("-".to_owned(), |ns| duration(ns as f64).replace(' ', ""));
        let to =
            row.destination.as_deref().unwrap_or(if row.folded_destinations > 0 { "(others)" } else { "-" });
        let line = format!(
            "{:>9} {:>7} {:>7} {:>6} {:>6} {:>7}  {:<18} {:<21}",
            number(row.port_seconds),
            grouped(row.connections),
            number(row.ports_per_s),
            grouped(row.held_now),
            grouped(failed),
            p50,
            fit(&who(row), 18),
            printable(to),
        );
        page.line(Style::new(), line.trim_end());
        if let Some(site) = &row.call_site {
            page.line(CODE, &format!("{:>9} at {}", "", fit_end(&printable(site), WIDTH - 13)));
        }
    }
    more(page, rows.len(), top, "call sites");
}

fn pools(page: &mut Page, rows: &[Pool], top: usize) {
    if rows.is_empty() {
        return;
    }
    let head = format!(
        "\n{:>6} {:>6} {:>9} {:>6} {:>8} {:>7} {:>9} {:>9}  FROM -> TO",
        "USED", "LIVE", "TIME_WAIT", "BOUND", "CAPACITY", "RATE/S", "CARRIES/S", "FULL IN"
    );
    page.line(TITLE, &head);
    for pool in rows.iter().take(top) {
        let maybe = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let laddr = if pool.laddr.contains(':') { format!("[{}]", pool.laddr) } else { pool.laddr.clone() };
        let to = match (&pool.raddr, pool.rport) {
            (Some(address), Some(port)) if address.contains(':') => format!("[{address}]:{port}"),
            (Some(address), Some(port)) => format!("{address}:{port}"),
            _ => "any (UDP)".to_owned(),
        };
        let mark = if pool.past_half { "!" } else { "" };
        let line = format!(
            "{:>6} {:>6} {:>9} {:>6} {:>8} {:>7} {:>9} {:>9}  {laddr} -> {to}",
            maybe(pool.utilization.map(|share| format!("{}{mark}", percent(share).replace(' ', "")))),
            grouped(pool.in_use.live),
            grouped(pool.in_use.time_wait),
            maybe(pool.in_use.bound.map(grouped)),
            maybe(pool.capacity.map(grouped)),
            maybe(pool.rate_per_s.map(number)),
            maybe(pool.sustainable_per_s.map(number)),
            maybe(pool.exhaustion_in_s.map(|s| if s == 0.0 { "now".to_owned() } else { seconds(s) })),
        );
        page.line(Style::new(), &line);
    }
    more(page, rows.len(), top, "pools");
    if rows.iter().take(top).any(|pool| pool.past_half) {
        page.line(DIM, "       ! past half: from there on every connect searches longer");
    }
}
