//! `connection-leak`: open connections that only become more.
//!
//! A pool grows, too, but then it has what it needs and stops: what matters is that the growth is even, and that it goes
//! on until the end, which is the end of the window or that of the process.

use std::collections::BTreeMap;

use super::groups::{self, Group};
use super::report::{Finding, Severity};
use super::thresholds::*;
use super::{Context, round};
use crate::recording::format::Proto;

#[derive(Debug, PartialEq)]
struct Growth {
    opened: u64,
    ended: u64,
    /// More open at the peak than at first.
    growth: i64,
    /// From the first one to the peak.
    span_s: f64,
    /// From the peak to the end of the window, or to where they were closed together.
    plateau_s: f64,
    /// Every quarter of the span has its share of the opens.
    is_even: bool,
}

pub fn judge(context: &Context, groups: &[Group], findings: &mut Vec<Finding>) {
    for group in groups.iter().filter(|group| group.key.proto == Proto::Tcp && group.destination().is_some())
    {
        let Some(growth) = growth(group, context.ledger.now_ns()) else { continue };
        let is_leak = growth.growth >= LEAK_GROWTH_MIN
            && growth.span_s >= LEAK_SPAN_MIN_S
            && growth.ended as f64 <= LEAK_ENDED_SHARE_MAX * growth.opened as f64
            && growth.plateau_s <= LEAK_PLATEAU_RATIO_MAX * growth.span_s
            && growth.is_even
            && group.site.connections as f64 >= LEAK_CONNECTED_SHARE_MIN * growth.opened as f64;
        if is_leak {
            findings.push(finding(context, group, &growth));
        }
    }
}

fn growth(group: &Group, now_ns: i64) -> Option<Growth> {
    let timeline = &group.site.timeline;
    let slots: Vec<(u32, u32)> = timeline.slots(now_ns).collect();
    let net: i64 = slots.iter().map(|&(opens, ends)| i64::from(opens) - i64::from(ends)).sum();
    // Those that were open before the first slot are in no slot.
    let base = group.site.live.now().cast_signed() - net;
    let mut live = base;
    let mut peak = (base, 0);
    for (at, &(opens, ends)) in slots.iter().enumerate() {
        live += i64::from(opens) - i64::from(ends);
        if live > peak.0 {
            peak = (live, at);
        }
    }
    let up_to = &slots[..=peak.1.min(slots.len().checked_sub(1)?)];
    let opened: u64 = up_to.iter().map(|&(opens, _)| u64::from(opens)).sum();
    let width_s = timeline.width_ns() as f64 / 1e9;
    // Closed together: by the end of the process, say.
    let rest = &slots[peak.1 + 1..];
    let half = (peak.0 - base) / 2;
    let mut gone = 0;
    let closing = rest.iter().position(|&(opens, ends)| {
        gone += i64::from(ends) - i64::from(opens);
        gone >= half
    });
    // The timeline ends with its last slot, the window may go on.
    let all = (now_ns - timeline.start_ns()?).max(0) / timeline.width_ns();
    let until = closing.unwrap_or((all as usize).saturating_sub(peak.1));
    let quarters = up_to.len() / 4;
    let is_even = quarters > 0
        && up_to.chunks(quarters.max(1)).take(4).all(|quarter| {
            let opens: u64 = quarter.iter().map(|&(opens, _)| u64::from(opens)).sum();
            opens as f64 >= LEAK_QUARTER_MIN * opened as f64 / 4.0
        });
    Some(Growth {
        opened,
        ended: up_to.iter().map(|&(_, ends)| u64::from(ends)).sum(),
        growth: peak.0 - base,
        span_s: up_to.len() as f64 * width_s,
        plateau_s: until as f64 * width_s,
        is_even,
    })
}

fn finding(context: &Context, group: &Group, growth: &Growth) -> Finding {
    let site = &group.site;
    let pool = context.pool(group);
    let per_s = growth.growth as f64 / growth.span_s;
    let mut evidence: BTreeMap<&'static str, f64> = [
        ("connections", site.connections as f64),
        ("closed", site.closed as f64),
        ("live_peak", site.live.peak() as f64),
        ("live_now", site.live.now() as f64),
        ("growth_per_s", round(per_s)),
        ("span_s", round(growth.span_s)),
        ("rate_per_s", round(growth.opened as f64 / growth.span_s)),
        ("port_seconds", round(site.port_ns(context.ledger.now_ns()) as f64 / 1e9)),
    ]
    .into();
    let mut is_soon = false;
    if let Some((pool, capacity)) = pool.and_then(|pool| Some((pool, pool.capacity?))) {
        evidence.insert("capacity", capacity as f64);
        if let Some(s) = pool.exhaustion_in_s {
            evidence.insert("exhaustion_in_s", s);
            is_soon = s < EXHAUSTION_SOON_S;
        }
    }
    let severity = if is_soon { Severity::Critical } else { Severity::Warning };
    let many = (growth.growth as f64 / 200.0).min(1.0);
    let long = (growth.span_s / 60.0).min(1.0);
    let closed = growth.ended as f64 / growth.opened.max(1) as f64;
    groups::blame(context, group, ("connection-leak", ""), severity, evidence, |member| member.live_peak)
        .with(0.55 + 0.2 * many + 0.2 * long - 0.2 * closed, site.live.peak())
}
