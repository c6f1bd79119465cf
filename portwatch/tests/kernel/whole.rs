//! What holds for every log as a whole, whatever was traced.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::coverage;
use crate::log::{Line, Log, Summary};
use crate::truth::Kind;

/// How far a line may stand behind a later one: the longest that the reader waits for a late processor.
const ORDER_WINDOW_NS: i64 = 1_000_000_000;

/// The defects of a log, in words.
pub fn log(log: &Log, rung: &str, tracer_pid: u32) -> Vec<String> {
    let mut problems = Vec::new();
    let header = &log.header;
    if (header.schema.as_str(), header.version, header.rung.as_str()) != ("portwatch", 1, rung) {
        problems.push(format!("the header says {header:?}"));
    }
    match &log.summary {
        None => problems.push("there is no summary".to_owned()),
        Some(summary) => totals(log, rung, summary, &mut problems),
    }
    order(&log.lines, &mut problems);
    lives(&log.lines, &mut problems);
    let own = log.lines.iter().filter(|line| line.pid == Some(tracer_pid));
    problems.extend(own.map(|line| format!("the tracer logs itself: {line}")));
    problems.extend(log.defects.iter().cloned());
    problems
}

/// For every type: `kernel_totals` = `events` + `lost` + `filtered`, lines = `events` + `inferred`. Nothing is lost here
/// but what the kernel may skip.
fn totals(log: &Log, rung: &str, summary: &Summary, problems: &mut Vec<String>) {
    if !summary.complete {
        problems.push("the summary is not complete".to_owned());
    }
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for line in &log.lines {
        *counted.entry(&line.kind).or_default() += 1;
    }
    for (_, name) in Kind::ALL {
        let of = |table: &BTreeMap<String, u64>| table.get(name).copied().unwrap_or(0);
        let lost: u64 = summary.lost.get(name).into_iter().flat_map(BTreeMap::values).sum();
        let (events, inferred) = (of(&summary.events), of(&summary.inferred));
        let lines = counted.get(name).copied().unwrap_or(0);
        if events + inferred != lines {
            problems.push(format!(
                "the summary says {events} `{name}` and {inferred} inferred, the log has {lines}"
            ));
        }
        let accounted = events + lost + of(&summary.filtered);
        if of(&summary.kernel_totals) != accounted {
            problems.push(format!("`{name}` does not add up: {summary:?}"));
        }
        // What follows on a line that was skipped may have lost its owner with it.
        let of_reason = |reason| summary.lost.get(name).and_then(|reasons| reasons.get(reason)).copied();
        let skipped = of_reason("not_run").unwrap_or(0) + of_reason("unowned").unwrap_or(0);
        let is_skipped_only = lost == skipped
            && skipped as usize <= coverage::skipped_at_most(rung, of(&summary.kernel_totals) as usize);
        if lost != 0 && !is_skipped_only {
            problems.push(format!("{lost} `{name}` lost: {:?}", summary.lost));
        }
    }
}

fn order(lines: &[Line], problems: &mut Vec<String>) {
    let mut latest_ns = i64::MIN;
    for line in lines {
        latest_ns = latest_ns.max(line.mono_ns);
        if latest_ns - line.mono_ns > ORDER_WINDOW_NS {
            problems.push(format!("{} ns late: {line}", latest_ns - line.mono_ns));
        }
    }
}

/// Per socket: in causal order, and nothing twice that can be only once.
fn lives(lines: &[Line], problems: &mut Vec<String>) {
    let mut last: HashMap<&str, &Line> = HashMap::new();
    let mut once: HashSet<(&str, &str)> = HashSet::new();
    for line in lines {
        let Some(kind) = line.kind() else { continue };
        let may_repeat = matches!(kind, Kind::ConnectFailed);
        if !once.insert((&line.socket, &line.kind)) && !may_repeat {
            problems.push(format!("for the second time: {line}"));
        }
        if let Some(before) = last.insert(&line.socket, line) {
            if before.kind().is_some_and(|before| rank(before) > rank(kind)) {
                problems.push(format!("out of order: {line} after {before}"));
            }
            if before.mono_ns > line.mono_ns {
                problems.push(format!("back in time: {line} after {before}"));
            }
        }
    }
}

fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::PortAllocated => 0,
        Kind::BindFailed | Kind::ConnectFailed | Kind::Established => 1,
        Kind::TimeWait => 2,
        Kind::Closed => 3,
        Kind::PortReleased => 4,
    }
}
