//! From the ledger to findings: who churns or leaks ports, towards what, how close to the wall, and what to change.
//!
//! As pure as the ledger: no I/O, no clock, and the same ledger gives the same report. Numbers that decide stand in
//! [`thresholds`], words in the advice file.

pub mod advice;
mod bind_conflict;
mod churn;
mod exhaustion;
mod groups;
mod knobs;
mod leak;
pub mod pools;
mod refused;
pub mod report;
#[cfg(test)]
pub(crate) mod scene;
#[cfg(test)]
mod schema_tests;
mod spread;
#[cfg(test)]
mod tests;
pub mod thresholds;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::aggregate::ledger::Ledger;
use crate::aggregate::site::Peer;
use crate::recording::format::Proto;
use groups::Group;
use report::{Evicted, LifetimeNs, Report, Row, Window};

/// All there are, as the contract names them.
pub const VERDICTS: [&str; 7] = [
    "connect-per-request",
    "connection-leak",
    "exhaustion",
    "refused-storm",
    "spread",
    "bind-conflict",
    "udp-per-query",
];

/// Judges what the ledger has.
pub fn diagnose(ledger: &Ledger) -> Report {
    let groups = groups::of(ledger);
    let pools = pools::rows(ledger);
    let context = Context { ledger, pools: &pools, pool_of: fullest(&pools) };
    let mut findings = Vec::new();
    churn::judge(&context, &groups, &mut findings);
    leak::judge(&context, &groups, &mut findings);
    exhaustion::judge(&context, &groups, &mut findings);
    refused::judge(&context, &groups, &mut findings);
    bind_conflict::judge(&context, &groups, &mut findings);
    spread::judge(&context, &groups, &mut findings);
    findings.sort_by(|a, b| {
        (b.severity, b.weight).cmp(&(a.severity, a.weight)).then_with(|| a.verdict.cmp(b.verdict))
    });
    Report {
        r#type: "report",
        version: 1,
        window: window(ledger),
        findings,
        call_sites: rows(ledger, &groups),
        pools,
        lost: ledger.lost.clone(),
        evicted: evicted(ledger),
    }
}

/// What every rule looks at beside the rows.
struct Context<'a> {
    ledger: &'a Ledger,
    pools: &'a [report::Pool],
    /// The fullest pool of each destination.
    pool_of: HashMap<PoolPlace, &'a report::Pool>,
}

/// Host, namespace, protocol and, for TCP, destination.
type PoolPlace = (u32, u32, Proto, Option<(IpAddr, u16)>);

fn fullest(pools: &[report::Pool]) -> HashMap<PoolPlace, &report::Pool> {
    let mut fullest = HashMap::new();
    // They come fullest first.
    for pool in pools {
        fullest.entry((pool.key.0, pool.netns, pool.proto, pool.key.1)).or_insert(pool);
    }
    fullest
}

impl Context<'_> {
    /// The fullest pool towards a row's destination.
    fn pool(&self, group: &Group) -> Option<&report::Pool> {
        let key = &group.key;
        let remote = match (key.proto, key.peer) {
            (Proto::Udp, _) => None,
            (_, Peer::To(address, port)) => Some((address, port)),
            (_, Peer::None | Peer::Others) => return None,
        };
        self.pool_of.get(&(key.host, key.netns, key.proto, remote)).copied()
    }
}

fn window(ledger: &Ledger) -> Window {
    Window {
        started: ledger.started.clone(),
        duration_ns: ledger.duration_ns,
        complete: ledger.is_complete(),
        cut_short: ledger.cut,
        ended_by: ledger.ended_by().map(str::to_owned),
        hosts: ledger.hosts().iter().map(|host| host.name.clone()).collect(),
        rungs: ledger.rungs.clone(),
        events: ledger.events.clone(),
        lower_bound: ledger.is_lower_bound,
        time_wait_now: ledger.waiting_now(),
        time_wait_peak: ledger.waiting_peak(),
    }
}

fn evicted(ledger: &Ledger) -> Evicted {
    let evicted = ledger.evicted();
    Evicted {
        call_sites: evicted.call_sites,
        pools: evicted.pools,
        holds: evicted.holds,
        processes: evicted.processes,
        stacks: evicted.stacks,
    }
}

/// All rows, most port-seconds first.
fn rows(ledger: &Ledger, groups: &[Group]) -> Vec<Row> {
    let now_ns = ledger.now_ns();
    let seconds = (ledger.duration_ns as f64 / 1e9).max(1e-9);
    let mut rows: Vec<(u128, Row)> = groups
        .iter()
        .map(|group| {
            let site = &group.site;
            let port_ns = site.port_ns(now_ns);
            let (pid, children) = group.process();
            let row = Row {
                pid,
                ppid: group.key.program.ppid,
                children,
                processes: site.processes,
                comm: group.comm(),
                exe: group.key.program.exe.as_deref().map(str::to_owned),
                cgroup: group.key.program.cgroup.as_deref().map(str::to_owned),
                container: group.key.program.container.as_deref().map(str::to_owned),
                host: groups::host(ledger, &group.key),
                netns: group.key.netns,
                proto: group.key.proto,
                destination: group.destination(),
                folded_destinations: site.folded,
                call_site: group.key.call_site.as_deref().map(str::to_owned),
                stack: site.stack.as_deref().map(str::to_owned),
                connections: site.connections,
                ports: site.ports,
                failures: site.failures.iter().map(|(errno, &n)| (errno.to_string(), n)).collect(),
                ports_per_s: round(site.ports as f64 / seconds),
                port_seconds: round(port_ns as f64 / 1e9),
                held_now: site.live.now() + site.waiting.now(),
                time_wait_now: site.waiting.now(),
                live_peak: site.live.peak(),
                closers: closers(group),
                lifetime_ns: LifetimeNs { p50: site.lifetimes.at(0.5), p99: site.lifetimes.at(0.99) },
            };
            (port_ns, row)
        })
        .collect();
    // Equal ones stay in the order of their keys.
    rows.sort_by_key(|(port_ns, row)| std::cmp::Reverse((*port_ns, row.ports)));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn closers(group: &Group) -> BTreeMap<&'static str, u64> {
    let closers = group.site.closers;
    [
        ("local", closers.local),
        ("remote", closers.remote),
        ("both", closers.both),
        ("reset", closers.reset),
        ("unknown", closers.unknown),
    ]
    .into()
}

/// Three digits behind the point: more would only be noise.
pub(crate) fn round(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}
