//! `exhaustion`: connects and binds that found no port, or will find none soon.

use std::collections::BTreeMap;

use super::groups::{self, Group};
use super::report::{Finding, Pool, Severity};
use super::thresholds::*;
use super::{Context, round};
use crate::aggregate::site::Peer;

pub fn judge(context: &Context, groups: &[Group], findings: &mut Vec<Finding>) {
    let mut told: Vec<&Group> = Vec::new();
    for pool in context.pools {
        let fails = pool.failures > 0;
        if !fails && !runs_out(pool) {
            continue;
        }
        let of_pool: Vec<&Group> = groups.iter().filter(|group| pool.is_of(&group.key)).collect();
        let now_ns = context.ledger.now_ns();
        // Whoever holds most of it; where nobody in the log holds any, whoever failed.
        let by_weight = |group: &&&Group| (group.site.port_ns(now_ns), group.site.searched);
        let Some(&group) = of_pool.iter().max_by_key(by_weight) else { continue };
        told.extend(&of_pool);
        findings.push(finding(context, group, Some(pool)));
    }
    // bind() and listen() without a number, and what belongs to no pool.
    for group in groups.iter().filter(|group| group.site.searched > 0) {
        if !told.iter().any(|other| std::ptr::eq(*other, group)) {
            findings.push(finding(context, group, None));
        }
    }
}

/// Whether a pool is about to be full, by more than a moment's rate.
fn runs_out(pool: &Pool) -> bool {
    let Some(capacity) = pool.capacity.filter(|&capacity| capacity > 0) else { return false };
    let blocked =
        pool.in_use.live + if pool.inputs.time_wait_is_reusable { 0 } else { pool.in_use.time_wait };
    let share = blocked as f64 / capacity as f64;
    let is_soon = pool.exhaustion_in_s.is_some_and(|s| s < EXHAUSTION_SOON_S);
    share >= EXHAUSTION_LOAD || (is_soon && pool.is_forecast_sure && share >= EXHAUSTION_LOAD_MIN)
}

fn finding(context: &Context, group: &Group, pool: Option<&Pool>) -> Finding {
    let site = &group.site;
    let failures = pool.map_or(site.searched, |pool| pool.failures.max(site.searched));
    let mut evidence: BTreeMap<&'static str, f64> = [
        ("failures_no_port", failures as f64),
        ("connections", site.connections as f64),
        ("port_seconds", round(site.port_ns(context.ledger.now_ns()) as f64 / 1e9)),
    ]
    .into();
    let mut bound = 0;
    let mut range = None;
    if let Some(pool) = pool {
        let mut put = |name, value: Option<f64>| value.map(|value| evidence.insert(name, value));
        bound = pool.inputs.bound_ports.max(pool.inputs.bound_ports_at_failure.unwrap_or(0));
        range =
            pool.inputs.port_range.map(|(low, high)| u64::from(high - low) + 1 - pool.inputs.reserved_ports);
        put("capacity", pool.capacity.map(|capacity| capacity as f64));
        put("in_use", Some((pool.in_use.live + pool.in_use.time_wait) as f64));
        put("in_use_peak", Some(pool.peak as f64));
        put("live", Some(pool.in_use.live as f64));
        put("time_wait_now", Some(pool.in_use.time_wait as f64));
        put("bound", Some(bound as f64));
        put("utilization", pool.utilization);
        put("rate_now_per_s", pool.rate_per_s);
        put("sustainable_per_s", pool.sustainable_per_s);
        put("exhaustion_in_s", pool.exhaustion_in_s);
        put("exhaustion_in_s_from", pool.exhaustion_in_s_range.map(|(from, _)| from));
        put("exhaustion_in_s_to", pool.exhaustion_in_s_range.map(|(_, to)| to));
    } else if group.key.peer == Peer::None {
        let namespace = context.ledger.namespace(group.key.host, group.key.netns);
        bound = namespace.map_or(0, |namespace| namespace.bound(group.key.proto).0);
        evidence.insert("bound", bound as f64);
    }
    let is_bound = range.is_some_and(|range| bound * 2 >= range);
    let cause = if is_bound { "bound" } else { "" };
    let certainty = if failures > 0 { 0.97 } else { 0.75 };
    let part = |member: &crate::aggregate::ledger::Member| member.connections + member.failures;
    groups::blame(context, group, ("exhaustion", cause), Severity::Critical, evidence, part)
        .with(certainty, failures + site.connections)
}
