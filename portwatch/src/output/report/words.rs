//! Numbers and names of a report in the form people read.

use crate::diagnosis::report::{Finding, Parent, Row};
use crate::output::escape::printable;

/// `12,345`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Two or three digits that count.
pub fn number(number: f64) -> String {
    if number.abs() >= 100.0 || number == number.trunc() {
        grouped(number.round().max(0.0) as u64)
    } else if number.abs() >= 10.0 {
        format!("{number:.1}")
    } else {
        format!("{number:.2}")
    }
}

pub fn duration(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns if ns < 120e9 => (ns / 1e9, "s"),
        ns if ns < 7200e9 => (ns / 60e9, "min"),
        ns => (ns / 3600e9, "h"),
    };
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

pub fn seconds(s: f64) -> String {
    duration(s * 1e9)
}

pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 10.0 || percent == 0.0 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// At most `width` characters, with what is cut off marked.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// The end matters more: of paths, and of call sites.
pub fn fit_end(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().skip(count - width.saturating_sub(1)).collect();
    format!("…{kept}")
}

fn name(comm: Option<&str>, exe: Option<&str>) -> String {
    let exe = exe.and_then(|exe| exe.rsplit('/').next());
    comm.filter(|comm| !comm.is_empty()).or(exe).map_or("?".to_owned(), printable)
}

/// `python3 [4711]`, `40 x curl`, `nginx x 4`.
pub fn who(row: &Row) -> String {
    let name = name(row.comm.as_deref(), row.exe.as_deref());
    match (row.pid, row.children) {
        (Some(pid), _) => format!("{name} [{pid}]"),
        (None, Some(children)) => format!("{} x {name}", grouped(children)),
        (None, None) if row.processes > 1 => format!("{name} x {}", row.processes),
        (None, None) => name,
    }
}

/// Whom a finding blames.
pub fn blamed(finding: &Finding) -> String {
    let name = name(finding.comm.as_deref(), finding.exe.as_deref());
    match (finding.pid, finding.children, &finding.parent) {
        (Some(pid), ..) => format!("{name} [{pid}]"),
        (None, Some(children), Some(parent)) => {
            format!("{} ({} x {name})", self::parent(parent), grouped(children))
        }
        (None, Some(children), None) => format!("{} x {name}", grouped(children)),
        (None, None, _) if finding.workers.len() > 1 => {
            format!("{name}, {} processes", finding.workers.len())
        }
        (None, None, _) => name,
    }
}

fn parent(parent: &Parent) -> String {
    format!("{} [{}]", name(parent.comm.as_deref(), parent.exe.as_deref()), parent.pid)
}

/// What a finding rests on, one clause after the other, most telling first.
pub fn evidence(finding: &Finding) -> Vec<String> {
    let of = |key: &str| finding.evidence.get(key).copied();
    let count = |key: &str| of(key).map(|value| grouped(value as u64));
    let mut clauses = Vec::new();
    if let (Some(connections), Some(span), Some(rate)) =
        (count("connections"), of("span_s"), of("rate_per_s"))
    {
        let what = if finding.verdict == "udp-per-query" { "sockets" } else { "connections" };
        // Below a second a rate says nothing.
        let rate = if span >= 1.0 { format!(" ({}/s)", number(rate)) } else { String::new() };
        clauses.push(format!("{connections} {what} in {}{rate}", seconds(span)));
    }
    if let Some(destinations) = count("destinations") {
        clauses.push(format!("{destinations} destinations"));
    }
    if let Some(refused) = count("refused") {
        let (span, rate) = (of("span_s").unwrap_or(0.0), of("rate_per_s").unwrap_or(0.0));
        clauses.push(format!("{refused} failed connects in {} ({}/s)", seconds(span), number(rate)));
    }
    if let Some(live) = count("live_peak") {
        clauses.push(format!("at most {live} open at once"));
    }
    if let Some(live) = count("live_now") {
        clauses.push(format!("{live} open at the end"));
    }
    if let Some(growth) = of("growth_per_s") {
        clauses.push(format!("growing by {}/s", number(growth)));
    }
    if let Some(p50) = of("lifetime_p50_ms") {
        let p99 = of("lifetime_p99_ms").map_or(String::new(), |p99| format!(", p99 {}", duration(p99 * 1e6)));
        clauses.push(format!("lifetime p50 {}{p99}", duration(p50 * 1e6)));
    }
    let closers = [
        ("us", "closed_local"),
        ("peer", "closed_remote"),
        ("both", "closed_both"),
        ("reset", "closed_reset"),
    ];
    let closers: Vec<String> = closers
        .into_iter()
        .filter_map(|(name, key)| Some((name, of(key)? as u64)))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {}", grouped(count)))
        .collect();
    if !closers.is_empty() {
        clauses.push(format!("closed by {}", closers.join(", ")));
    }
    if let Some(conflicts) = count("conflicts") {
        clauses.push(format!("{conflicts} x port taken"));
    }
    if let Some(port) = of("port") {
        clauses.push(format!("port {}", port as u64));
    }
    if let Some(bound) = count("bound_peak") {
        clauses.push(format!("{bound} ports of the range bound"));
    }
    if let Some(failures) = count("failures_no_port").filter(|count| count != "0") {
        clauses.push(format!("{failures} attempts found no port"));
    }
    if let Some(waiting) = of("time_wait_peak").filter(|waiting| *waiting > 0.0) {
        clauses.push(format!("TIME_WAIT up to {}", grouped(waiting as u64)));
    }
    if let (Some(in_use), Some(capacity)) = (count("in_use"), count("capacity")) {
        clauses.push(format!("{in_use} of {capacity} ports in use"));
    } else if let Some(capacity) = count("capacity") {
        clauses.push(format!("pool of {capacity} ports"));
    }
    if let Some(sustainable) = of("sustainable_per_s") {
        clauses.push(format!("which carries {}/s", number(sustainable)));
    }
    if let Some(s) = of("exhaustion_in_s") {
        clauses.push(if s == 0.0 { "full now".to_owned() } else { format!("full in {}", seconds(s)) });
    }
    clauses
}
