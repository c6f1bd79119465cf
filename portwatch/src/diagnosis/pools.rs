//! How full each pool is, how much it can carry, and when it runs out.

use super::report::{InUse, Inputs, Pool as Row};
use super::thresholds::*;
use super::{groups, round};
use crate::aggregate::ledger::{Ledger, Namespace};
use crate::aggregate::pool::{Pool, PoolKey, Rates};
use crate::recording::format::Proto;

/// `TCP_TIMEWAIT_LEN` of the kernel.
pub const TIME_WAIT_S: f64 = 60.0;

/// A pool without a connect for this long, and for ten times the usual distance, has no rate any more.
const SILENCE_MIN_S: f64 = 1.0;

/// Kernels without `tcp_tw_reuse_delay` wait for the next whole second.
const REUSE_DELAY_MS: u32 = 1_000;

/// All pools, fullest first.
pub fn rows(ledger: &Ledger) -> Vec<Row> {
    let mut rows: Vec<(PoolKey, Row)> =
        ledger.pools().map(|(key, pool)| (*key, row(ledger, key, pool))).collect();
    rows.sort_by(|(a_key, a), (b_key, b)| {
        let load = b.load().total_cmp(&a.load());
        load.then_with(|| (b.in_use.live + b.in_use.time_wait).cmp(&(a.in_use.live + a.in_use.time_wait)))
            .then_with(|| b.peak.cmp(&a.peak))
            .then_with(|| a_key.cmp(b_key))
    });
    rows.into_iter().map(|(_, row)| row).collect()
}

fn row(ledger: &Ledger, key: &PoolKey, pool: &Pool) -> Row {
    let namespace = ledger.namespace(key.host, key.netns).cloned().unwrap_or_default();
    let (bound, is_bound_known) = namespace.bound(key.proto);
    let inputs = inputs(&namespace, key, pool, bound, is_bound_known);
    let capacity = namespace.range().map(|(low, high)| {
        (u64::from(high - low) + 1).saturating_sub(namespace.reserved()).saturating_sub(bound)
    });
    let utilization = capacity.filter(|&capacity| capacity > 0).map(|c| pool.in_use() as f64 / c as f64);
    let rates = pool.rates(ledger.now_ns());
    let held_s =
        inputs.lifetime_mean_s.map(|life| life + inputs.time_wait_share.unwrap_or(0.0) * inputs.time_wait_s);
    let sustainable_per_s =
        capacity.zip(held_s).filter(|(_, held)| *held > 0.0).map(|(c, held)| c as f64 / held);
    let is_shown = is_sure(pool, ledger.now_ns(), FORECAST_SHOWN_TAKES_MIN, FORECAST_SHOWN_KNOWN_MIN_S);
    let forecast = capacity
        .zip(rates.filter(|_| is_shown))
        .and_then(|(capacity, rates)| forecast(ledger.now_ns(), pool, &inputs, capacity, rates, held_s));
    Row {
        host: groups::host_name(ledger, key.host),
        netns: key.netns,
        proto: key.proto,
        laddr: key.laddr.to_string(),
        raddr: key.remote.map(|(address, _)| address.to_string()),
        rport: key.remote.map(|(_, port)| port),
        capacity,
        in_use: InUse {
            live: pool.live,
            time_wait: pool.waiting,
            bound: (is_bound_known && capacity.is_some()).then_some(bound),
        },
        utilization: utilization.map(round),
        utilization_peak: capacity
            .filter(|&capacity| capacity > 0)
            .map(|capacity| round(pool.peak as f64 / capacity as f64)),
        peak: pool.peak,
        rate_per_s: rates.map(|rates| round(rates.takes_per_s)),
        sustainable_per_s: sustainable_per_s.map(round),
        exhaustion_in_s: forecast.map(|forecast| round(forecast.in_s)),
        exhaustion_in_s_range: forecast.map(|forecast| (round(forecast.from_s), round(forecast.to_s))),
        past_half: capacity.is_some_and(|capacity| pool.in_use() * 2 >= capacity.max(1)),
        failures: pool.failures,
        inputs,
        is_forecast_sure: is_sure(pool, ledger.now_ns(), FORECAST_TAKES_MIN, FORECAST_KNOWN_MIN_S),
        key: (key.host, key.remote),
    }
}

fn inputs(
    namespace: &Namespace,
    key: &PoolKey,
    pool: &Pool,
    bound_ports: u64,
    is_bound_known: bool,
) -> Inputs {
    let settings = namespace.settings.as_ref();
    let reuse = settings.and_then(|it| it.tcp_tw_reuse);
    let delay_ms = settings.and_then(|it| it.tcp_tw_reuse_delay_ms);
    let timestamps = settings.and_then(|it| it.tcp_timestamps);
    let is_loopback = key.laddr.is_loopback() || key.remote.is_some_and(|(address, _)| address.is_loopback());
    let is_reusable = key.proto == Proto::Tcp
        && timestamps.is_some_and(|on| on != 0)
        && match reuse {
            Some(1) => true,
            Some(2) => is_loopback,
            _ => false,
        };
    let time_wait_s = match key.proto {
        Proto::Udp => 0.0,
        _ if is_reusable => f64::from(delay_ms.unwrap_or(REUSE_DELAY_MS)) / 1e3,
        _ => TIME_WAIT_S,
    };
    Inputs {
        port_range: namespace.range(),
        reserved_ports: namespace.reserved(),
        bound_ports,
        bound_ports_at_failure: pool.bound_at_failure,
        capacity_is_upper_bound: !is_bound_known,
        tcp_tw_reuse: reuse,
        tcp_tw_reuse_delay_ms: delay_ms,
        tcp_timestamps: timestamps,
        tcp_max_tw_buckets: settings.and_then(|it| it.tcp_max_tw_buckets),
        step_width: settings.and_then(|it| it.step_width),
        time_wait_is_reusable: is_reusable,
        time_wait_s,
        lifetime_mean_s: (pool.lives > 0).then(|| pool.lives_ns as f64 / 1e9 / pool.lives as f64),
        time_wait_share: (pool.lives > 0).then(|| pool.waits as f64 / pool.lives as f64),
    }
}

/// Whether a pool was seen often and long enough.
fn is_sure(pool: &Pool, now_ns: i64, takes_min: u64, known_min_s: f64) -> bool {
    let known_s = pool.first_ns.map_or(0.0, |first| (now_ns - first) as f64 / 1e9);
    pool.taken >= takes_min && known_s >= known_min_s
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Forecast {
    in_s: f64,
    from_s: f64,
    to_s: f64,
}

/// When the pool is full if all goes on as it does. `None`: never.
///
/// TIME_WAITs that a connect may take over do not fill it: then only live connections do. Where as many end as begin,
/// the pool levels off at rate × time held, and runs out only if that is more than it has.
fn forecast(
    now_ns: i64,
    pool: &Pool,
    inputs: &Inputs,
    capacity: u64,
    rates: Rates,
    held_s: Option<f64>,
) -> Option<Forecast> {
    // Silence that a steady rate would not have: it is over.
    let silence_s = (now_ns - pool.last_take_ns) as f64 / 1e9;
    if rates.takes == 0 || silence_s > SILENCE_MIN_S.max(10.0 / rates.takes_per_s) {
        return None;
    }
    let is_reusable = inputs.time_wait_is_reusable;
    let mut blocked = pool.live as f64;
    let mut growth_per_s = rates.takes_per_s - rates.ends_per_s;
    if !is_reusable {
        blocked += pool.waiting as f64;
        growth_per_s += rates.entries_per_s - rates.expiries_per_s;
    }
    let free = capacity as f64 - blocked;
    let do_most_end = rates.ends_per_s >= rates.takes_per_s / 2.0;
    let level = held_s.map(|held_s| rates.takes_per_s * held_s);
    if do_most_end && level.is_some_and(|level| level <= capacity as f64) {
        return None;
    }
    if free <= 0.0 {
        return Some(Forecast { in_s: 0.0, from_s: 0.0, to_s: 0.0 });
    }
    if growth_per_s <= rates.takes_per_s * 0.02 {
        return None;
    }
    let in_s = free / growth_per_s;
    // Arrivals scatter by the root of their number; two of these either way.
    let scatter = (2.0 / (rates.takes as f64).sqrt()).min(0.9);
    Some(Forecast { in_s, from_s: in_s / (1.0 + scatter), to_s: in_s / (1.0 - scatter) })
}
