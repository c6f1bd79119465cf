//! `bind-conflict`: a port that was asked for by number and is taken, and binds that take the range away from everybody.

use std::collections::BTreeMap;

use super::groups::{self, Group};
use super::report::{Finding, Severity};
use super::thresholds::*;
use super::{Context, round};
use crate::aggregate::site::Peer;

pub fn judge(context: &Context, groups: &[Group], findings: &mut Vec<Finding>) {
    for group in groups {
        taken(context, group, findings);
        hoard(context, group, findings);
    }
}

fn taken(context: &Context, group: &Group, findings: &mut Vec<Finding>) {
    let site = &group.site;
    let conflicts: u64 = site.conflicts.values().sum();
    let Some((&port, _)) =
        site.conflicts.iter().max_by_key(|&(port, count)| (*count, std::cmp::Reverse(*port)))
    else {
        return;
    };
    // A program that looks for a free port, or tries again until it is free, finds one.
    let is_resolved = match group.key.peer {
        Peer::None => site.last_bind_ns > site.last_conflict_ns,
        Peer::To(..) | Peer::Others => conflicts < CONFLICTS_CONNECT_MIN,
    };
    if is_resolved && conflicts < CONFLICTS_RESOLVED_MIN {
        return;
    }
    let evidence: BTreeMap<&'static str, f64> = [
        ("conflicts", conflicts as f64),
        ("port", f64::from(port)),
        ("ports", site.conflicts.len() as f64),
        ("binds", site.binds as f64),
    ]
    .into();
    let severity = if is_resolved { Severity::Info } else { Severity::Warning };
    let finding =
        groups::blame(context, group, ("bind-conflict", ""), severity, evidence, |member| member.failures);
    findings.push(finding.with(if is_resolved { 0.6 } else { 0.85 }, conflicts));
}

fn hoard(context: &Context, group: &Group, findings: &mut Vec<Finding>) {
    let peak = group.site.bound_any.peak();
    let Some(namespace) = context.ledger.namespace(group.key.host, group.key.netns) else { return };
    let Some((low, high)) = namespace.range() else { return };
    let range = (u64::from(high - low) + 1).saturating_sub(namespace.reserved()).max(1);
    let share = peak as f64 / range as f64;
    if peak < HOARD_MIN || share < HOARD_SHARE_MIN {
        return;
    }
    let evidence: BTreeMap<&'static str, f64> = [
        ("bound_peak", peak as f64),
        ("bound_now", group.site.bound_any.now() as f64),
        ("range_ports", range as f64),
        ("range_share", round(share)),
    ]
    .into();
    let severity = if share >= LOAD_CRITICAL { Severity::Critical } else { Severity::Warning };
    let finding = groups::blame(context, group, ("bind-conflict", "hoard"), severity, evidence, |member| {
        member.live_peak.max(1)
    });
    findings.push(finding.with(0.9, peak));
}
