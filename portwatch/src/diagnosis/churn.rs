//! `connect-per-request`: connections that a pool would have saved.
//!
//! The measure is how many more connections were made than were ever open at once. It does not ask who closes first:
//! where the server does, the client has no TIME_WAIT, and where it resets, nobody has.

use std::collections::BTreeMap;

use super::groups::{self, Group};
use super::report::{Finding, Severity};
use super::thresholds::*;
use super::{Context, round};
use crate::aggregate::site::{Peer, SiteKey};
use crate::recording::format::Proto;

/// What the rule looks at.
struct Measure {
    is_udp: bool,
    destinations: u64,
    connections: u64,
    live_peak: u64,
    avoidable: u64,
    /// Connections that began and ended within the log.
    ended: u64,
    span_s: f64,
    rate_per_s: f64,
    silence_s: f64,
    lifetime_p50_s: Option<f64>,
    /// Mean number of open connections.
    live_mean: f64,
    sent_mean_bytes: Option<u64>,
    /// Share of the pool that is held, or will be at this rate.
    load: Option<f64>,
}

pub fn judge(context: &Context, groups: &[Group], findings: &mut Vec<Finding>) {
    let mut rest: BTreeMap<(SiteKey, u16), Vec<&Group>> = BTreeMap::new();
    // What was folded is many destinations: nobody knows how many of each.
    let is_judged = |group: &&Group| match group.key.peer {
        Peer::To(..) => true,
        Peer::None => group.key.proto == Proto::Udp,
        Peer::Others => false,
    };
    for group in groups.iter().filter(is_judged) {
        let measure = measure(context, group);
        if measure.is_udp && is_address_choice(group, groups) {
            continue;
        }
        if is_churn(&measure) {
            findings.push(finding(context, group, &measure));
        } else if let Peer::To(_, port) = group.key.peer {
            let key = SiteKey { peer: Peer::Others, ..group.key.clone() };
            rest.entry((key, port)).or_default().push(group);
        }
    }
    // One service behind several addresses: no row alone may be enough.
    for ((key, _), of_service) in rest {
        if !(2..=CHURN_DESTINATIONS_MAX).contains(&of_service.len()) {
            continue;
        }
        let whole = groups::merged(context, key, &of_service);
        let mut measure = measure(context, &whole);
        measure.live_peak = of_service.iter().map(|group| group.site.live.peak()).sum();
        measure.avoidable = measure.connections.saturating_sub(measure.live_peak);
        measure.destinations = of_service.len() as u64;
        let destinations = measure.destinations as f64;
        let is_enough = measure.connections as f64 >= CHURN_PER_DESTINATION_MIN * destinations
            && measure.rate_per_s >= CHURN_PER_DESTINATION_RATE_MIN_PER_S * destinations;
        if is_enough && is_churn(&measure) {
            findings.push(finding(context, &whole, &measure));
        }
    }
}

/// Whether UDP sockets are getaddrinfo()'s way to sort addresses: it connects one to each, sends nothing, and then the
/// program opens its TCP connection there.
fn is_address_choice(group: &Group, groups: &[Group]) -> bool {
    groups.iter().any(|other| {
        other.key.proto == Proto::Tcp
            && other.key.peer == group.key.peer
            && (other.key.netns, other.key.host) == (group.key.netns, group.key.host)
            && other.key.program == group.key.program
    })
}

fn measure(context: &Context, group: &Group) -> Measure {
    let site = &group.site;
    let is_udp = group.key.proto == Proto::Udp;
    let now_ns = context.ledger.now_ns();
    let first_ns = site.first_ns.unwrap_or(now_ns);
    let span_s = ((site.last_ns - first_ns) as f64 / 1e9).max(1e-3);
    // A UDP socket that bound before it sent is one for its query, too.
    let connections = if is_udp { site.ports } else { site.connections };
    // Those that were open before the start are not among the connections.
    let live_peak = site.live.peak().saturating_sub(site.preexisting).max(1);
    // Below a second a rate says nothing.
    let rate_per_s = connections as f64 / span_s.max(1.0);
    let pool = context.pool(group);
    let time_wait_s = pool.map_or(super::pools::TIME_WAIT_S, |pool| pool.inputs.time_wait_s);
    let wait_share = site.time_waits as f64 / site.connections.max(1) as f64;
    let life_s = site.lifetimes.mean().unwrap_or(0.0) / 1e9;
    let load = pool.and_then(|pool| pool.capacity).filter(|&capacity| capacity > 0).map(|capacity| {
        let held = rate_per_s * (life_s + wait_share * time_wait_s);
        (held / capacity as f64).max(pool.and_then(|pool| pool.utilization).unwrap_or(0.0))
    });
    Measure {
        is_udp,
        destinations: 1,
        connections,
        live_peak,
        avoidable: connections.saturating_sub(live_peak),
        ended: site.lifetimes.count(),
        span_s,
        rate_per_s,
        silence_s: (now_ns - site.last_ns).max(0) as f64 / 1e9,
        lifetime_p50_s: site.lifetimes.at(0.5).map(|ns| ns as f64 / 1e9),
        live_mean: site.live.held_ns(now_ns) as f64 / 1e9 / span_s,
        sent_mean_bytes: site.bytes_sent.checked_div(site.traffic_known),
        load,
    }
}

fn is_churn(measure: &Measure) -> bool {
    let share = measure.avoidable as f64 / measure.connections.max(1) as f64;
    if measure.avoidable < CHURN_AVOIDABLE_MIN || share < CHURN_AVOIDABLE_SHARE_MIN {
        return false;
    }
    let is_busy = measure.live_mean >= CHURN_BUSY_LIVE_MIN && measure.rate_per_s >= CHURN_BUSY_RATE_MIN_PER_S;
    let (rate_min_per_s, may_be_slow) =
        if measure.is_udp { (UDP_RATE_MIN_PER_S, false) } else { (CHURN_RATE_MIN_PER_S, is_busy) };
    if measure.rate_per_s < rate_min_per_s && !may_be_slow {
        return false;
    }
    // What is still open may be a pool's.
    if (measure.ended as f64) < CHURN_ENDED_SHARE_MIN * measure.avoidable as f64 {
        return false;
    }
    if measure.lifetime_p50_s.is_some_and(|p50| p50 > CHURN_LIFETIME_MAX_S) {
        return false;
    }
    let is_start_up = measure.connections < BURST_CONNECTIONS_MAX
        && measure.silence_s > BURST_SILENCE_MIN_S.max(BURST_SILENCE_RATIO * measure.span_s);
    if is_start_up {
        return false;
    }
    let sends_much = measure.sent_mean_bytes.is_some_and(|sent| sent > CHURN_SENT_MAX_BYTES);
    !sends_much || measure.load.is_some_and(|load| load >= CHURN_SENT_LOAD_MIN)
}

fn finding(context: &Context, group: &Group, measure: &Measure) -> Finding {
    let ledger = context.ledger;
    let site = &group.site;
    let pool = context.pool(group);
    let mut evidence = BTreeMap::new();
    let mut put = |name: &'static str, value: Option<f64>| {
        if let Some(value) = value {
            evidence.insert(name, round(value));
        }
    };
    put("connections", Some(measure.connections as f64));
    put("destinations", (measure.destinations > 1).then_some(measure.destinations as f64));
    put("connections_avoidable", Some(measure.avoidable as f64));
    put("live_peak", Some(measure.live_peak as f64));
    put("rate_per_s", Some(measure.rate_per_s));
    put("span_s", Some(measure.span_s));
    put("lifetime_p50_ms", measure.lifetime_p50_s.map(|s| s * 1e3));
    put("lifetime_p99_ms", site.lifetimes.at(0.99).map(|ns| ns as f64 / 1e6));
    put("closed_local", Some(site.closers.local as f64));
    put("closed_remote", Some(site.closers.remote as f64));
    put("closed_both", Some(site.closers.both as f64));
    put("closed_reset", Some(site.closers.reset as f64));
    put("time_wait_now", Some(site.waiting.now() as f64));
    put("time_wait_peak", Some(site.waiting.peak() as f64));
    put("port_seconds", Some(site.port_ns(ledger.now_ns()) as f64 / 1e9));
    put("bytes_sent_mean", measure.sent_mean_bytes.map(|bytes| bytes as f64));
    put("capacity", pool.and_then(|pool| pool.capacity).map(|capacity| capacity as f64));
    put("sustainable_per_s", pool.and_then(|pool| pool.sustainable_per_s));
    put("exhaustion_in_s", pool.and_then(|pool| pool.exhaustion_in_s));
    put("failures", Some(site.failure_count() as f64));

    let verdict = if measure.is_udp { "udp-per-query" } else { "connect-per-request" };
    let is_soon = pool
        .filter(|pool| pool.is_forecast_sure)
        .and_then(|pool| pool.exhaustion_in_s)
        .is_some_and(|s| s < EXHAUSTION_SOON_S);
    let is_full = measure.load.is_some_and(|load| load >= LOAD_CRITICAL);
    let severity =
        if is_soon || is_full || site.searched > 0 { Severity::Critical } else { Severity::Warning };
    groups::blame(context, group, (verdict, ""), severity, evidence, |member| {
        // A process that reused its connections has no part in it.
        if group.is_crowd() {
            member.connections
        } else {
            member.connections.saturating_sub(member.live_peak)
        }
    })
    .with(confidence(context, measure), site.connections)
}

/// More connections, more of them avoidable, and short lives make it surer; losses make it less so.
fn confidence(context: &Context, measure: &Measure) -> f64 {
    let many = (measure.avoidable as f64 / 200.0).min(1.0);
    let turnover = (measure.connections as f64 / measure.live_peak as f64 / 20.0).min(1.0);
    let short = measure.lifetime_p50_s.map_or(0.5, |p50| if p50 <= 1.0 { 1.0 } else { 0.3 });
    let small =
        measure.sent_mean_bytes.map_or(0.5, |sent| if sent <= CHURN_SENT_MAX_BYTES { 1.0 } else { 0.0 });
    let whole = if context.ledger.lost.is_empty() { 1.0 } else { 0.95 };
    (0.5 + 0.2 * many + 0.15 * turnover + 0.08 * short + 0.06 * small) * whole
}
