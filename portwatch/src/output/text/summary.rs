//! The end of a run in a few sentences.

use std::collections::BTreeMap;

use super::row::Row;
use super::tally::{Failure, Tally};
use super::words::duration;
use super::{BAD, CODE, DIM, PLAIN, TITLE, WAITING};
use crate::output::{StackShares, Summary, errno, escape};

/// Failures listed by name.
const TOP: usize = 3;

pub(super) fn push(text: &mut String, has_color: bool, summary: &Summary, failures: &Tally) {
    let mut line = |cells: &[(anstyle::Style, String)]| {
        let mut row = Row::new(text, has_color);
        for (style, cell) in cells {
            row.cell(0, *style, cell);
        }
        row.end();
    };

    let traced = format!("-- traced for {}, ended by {}", duration(summary.duration_ns), summary.ended_by);
    line(&[(TITLE, traced)]);
    line(&[(PLAIN, events(&summary.events))]);

    let (top, others) = failures.top(TOP);
    if !top.is_empty() {
        line(&[(PLAIN, "Most frequent failures:".into())]);
    }
    for (failure, count) in &top {
        let mut cells = vec![(BAD, format!("  {} x {}", grouped(*count), words(failure)))];
        if let Some(call_site) = &failure.call_site {
            cells.push((CODE, format!("at {}", escape::printable(call_site))));
        }
        line(&cells);
    }
    if others > 0 {
        line(&[(BAD, format!("  {} of other kinds", grouped(others)))]);
    }

    let lost = lost(&summary.lost);
    match (&lost, summary.is_lower_bound) {
        (Some(lost), _) => {
            line(&[(WAITING, format!("Lost: {lost}; the numbers above are too low by these."))])
        }
        (None, false) => line(&[(PLAIN, "Nothing was lost.".into())]),
        (None, true) => {}
    }
    if summary.is_lower_bound {
        line(&[(
            WAITING,
            "Some losses cannot be counted on this kernel: all numbers are lower bounds.".into(),
        )]);
    }
    if let Some(inferred) = counts(&summary.inferred) {
        line(&[(DIM, format!("Deduced rather than seen: {inferred}."))]);
    }
    if let Some(filtered) = counts(&summary.filtered) {
        line(&[(DIM, format!("Left out by filters: {filtered}."))]);
    }
    if let Some(stacks) = stacks(&summary.stacks) {
        line(&[(DIM, stacks)]);
    }
    if let Some((is_right, audit)) = audit(&summary.stacks) {
        line(&[(if is_right { DIM } else { BAD }, audit)]);
    }
}

fn events(events: &BTreeMap<&'static str, u64>) -> String {
    // In the order of a connection's life, not of the alphabet.
    let order = [
        "port_allocated",
        "established",
        "time_wait",
        "closed",
        "port_released",
        "connect_failed",
        "bind_failed",
    ];
    let told: Vec<String> = order
        .into_iter()
        .filter_map(|name| Some((name, *events.get(name)?)))
        .filter(|&(_, count)| count > 0)
        .map(|(name, count)| format!("{} {name}", grouped(count)))
        .collect();
    if told.is_empty() { "No events.".into() } else { format!("Events: {}.", told.join(", ")) }
}

fn words(failure: &Failure) -> String {
    let call = if failure.is_bind { "bind" } else { "connect" };
    let errno = failure.errno.map_or("given up".into(), errno::name);
    let preposition = if failure.is_bind { "on" } else { "to" };
    let comm = if failure.comm.is_empty() { "?".into() } else { escape::printable(&failure.comm) };
    format!("{errno}: {call} {preposition} {} by {comm}", failure.address)
}

fn lost(lost: &BTreeMap<&'static str, BTreeMap<&'static str, u64>>) -> Option<String> {
    let told: Vec<String> = lost
        .iter()
        .flat_map(|(name, reasons)| reasons.iter().map(move |(reason, &count)| (name, reason, count)))
        .filter(|&(_, _, count)| count > 0)
        .map(|(name, reason, count)| format!("{} {name} ({reason})", grouped(count)))
        .collect();
    (!told.is_empty()).then(|| told.join(", "))
}

fn counts(counts: &BTreeMap<&'static str, u64>) -> Option<String> {
    let told: Vec<String> = counts
        .iter()
        .filter(|&(_, &count)| count > 0)
        .map(|(name, &count)| format!("{} {name}", grouped(count)))
        .collect();
    (!told.is_empty()).then(|| told.join(", "))
}

fn stacks(shares: &StackShares) -> Option<String> {
    let StackShares { complete, partial, none, .. } = *shares;
    let all = complete + partial + none;
    // Rounded down: all of them is all of them.
    let percent = (complete * 100).checked_div(all)?;
    let gaps: Vec<String> =
        shares.gaps.iter().map(|(gap, &count)| format!("{} {}", grouped(count), gap.text())).collect();
    let gaps = if gaps.is_empty() { String::new() } else { format!(" ({})", gaps.join(", ")) };
    let (partial, none) = (grouped(partial), grouped(none));
    Some(format!("Call sites: {percent} % of stacks are complete, {partial} partial, {none} missing{gaps}."))
}

/// How the stacks were come by, and whether those that were looked at twice are right.
fn audit(shares: &StackShares) -> Option<(bool, String)> {
    let audit = shares.audit;
    let checked = audit.checked();
    if shares.walked == 0 {
        return None;
    }
    let (walked, snapshots) = (grouped(shares.walked), grouped(shares.snapshots));
    let how = format!("Stacks: {walked} walked in the kernel, {snapshots} from copies");
    let judged = match (checked, audit.mismatched) {
        (0, _) => "none checked".to_owned(),
        (_, 0) => format!("{} checked, all of them right", grouped(checked)),
        (_, wrong) => format!("{} checked, {} of them WRONG", grouped(checked), grouped(wrong)),
    };
    Some((audit.mismatched == 0, format!("{how}; {judged}.")))
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StackGap;
    use crate::output::StackAudit;

    #[test]
    fn thousands_are_kept_apart() {
        for (number, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn shares_of_no_stacks_are_not_told() {
        assert_eq!(stacks(&StackShares::default()), None);
        assert_eq!(audit(&StackShares::default()), None);
        let almost = StackShares { complete: 999, partial: 1, ..StackShares::default() };
        assert_eq!(
            stacks(&almost).unwrap(),
            "Call sites: 99 % of stacks are complete, 1 partial, 0 missing."
        );
    }

    #[test]
    fn what_is_missing_has_its_reasons() {
        let gaps = [(StackGap::RateLimited, 2), (StackGap::KernelTask, 1)].into();
        let shares = StackShares { complete: 7, partial: 2, none: 1, gaps, ..StackShares::default() };
        assert_eq!(
            stacks(&shares).unwrap(),
            "Call sites: 70 % of stacks are complete, 2 partial, 1 missing \
             (1 kernel or io_uring worker, 2 rate-limited)."
        );
    }

    #[test]
    fn wrong_stacks_stand_out() {
        let audit_of = |matched, mismatched| {
            let audit = StackAudit { matched, mismatched, ..StackAudit::default() };
            super::audit(&StackShares { walked: 5000, snapshots: 3, audit, ..StackShares::default() })
                .unwrap()
        };
        let how = "Stacks: 5,000 walked in the kernel, 3 from copies; ";
        assert_eq!(audit_of(0, 0), (true, format!("{how}none checked.")));
        assert_eq!(audit_of(5, 0), (true, format!("{how}5 checked, all of them right.")));
        assert_eq!(audit_of(4, 1), (false, format!("{how}5 checked, 1 of them WRONG.")));
    }
}
