//! A snapshot as text, 100 columns for IPv4.

use std::fmt::Write as _;
use std::net::IpAddr;

use anstyle::{AnsiColor, Style};

use super::pools::{Holder, Pool, Pools};
use crate::kernel::baseline::Baseline;
use crate::output::escape::printable;

/// From half of the ports on, every connect searches longer.
const FULL: Style = AnsiColor::Red.on_default().bold();

/// Owners that fit behind a destination.
const HOLDERS_SHOWN: usize = 2;

/// How many of `count` are shown when `top` were asked for: 0 is all.
pub fn shown(count: usize, top: usize) -> usize {
    if top == 0 { count } else { count.min(top) }
}

/// The whole page.
pub fn page(baseline: &Baseline, pools: &Pools, top: usize, has_color: bool) -> String {
    let mut page = String::new();
    for settings in &baseline.namespaces {
        let inode = settings.inode;
        let of_namespace: Vec<&Pool> = pools.pools.iter().filter(|pool| pool.key.netns == inode).collect();
        let listeners: Vec<_> = pools.listeners.iter().filter(|listener| listener.netns == inode).collect();
        // Most namespaces of a host with containers have nothing to say.
        if of_namespace.is_empty() && listeners.is_empty() && baseline.namespaces.len() > 1 {
            continue;
        }
        let range = match settings.port_range {
            Some((first, last)) => format!("automatic ports {first}-{last}"),
            None => "its port range cannot be read".to_owned(),
        };
        let _ = writeln!(page, "-- network namespace {inode}: {range}");
        if of_namespace.is_empty() {
            page += "no port of it is in use\n";
        } else {
            table(&mut page, &of_namespace, top, has_color);
        }
        for listener in listeners {
            let who = listener.holder.as_ref().map_or_else(|| "unknown".to_owned(), who);
            let at = endpoint(listener.local, listener.port);
            let _ = writeln!(page, "listener inside the automatic range: {at}  {who}");
        }
    }
    if page.is_empty() {
        page += "no port is in use\n";
    }
    if pools.accepted > 0 {
        let _ = writeln!(page, "-- {} accepted connections, which use their listener's port", pools.accepted);
    }
    page
}

fn table(page: &mut String, pools: &[&Pool], top: usize, has_color: bool) {
    let head = format!(
        "{:>6} {:>6} {:>4} {:>6} {:>9} {:>6}  {:<15} {:<22} {}",
        "IN USE", "OF", "%", "LIVE", "TIME_WAIT", "BOUND", "FROM", "TO", "OWNER"
    );
    let _ = writeln!(page, "{head}");
    let shown = shown(pools.len(), top);
    for pool in &pools[..shown] {
        let row = row(pool);
        let is_alarming = pool.utilization().is_some_and(|share| share >= 0.5);
        let style = if is_alarming && has_color { FULL } else { Style::new() };
        let _ = writeln!(page, "{style}{row}{style:#}");
    }
    let rest = &pools[shown..];
    if !rest.is_empty() {
        let ports: u32 = rest.iter().map(|pool| pool.in_use()).sum();
        let _ = writeln!(page, "and {} more with {ports} ports in use; `--top 0` shows all", rest.len());
    }
}

fn row(pool: &Pool) -> String {
    let number = |number: Option<u32>| number.map_or("?".to_owned(), |number| number.to_string());
    // Below a whole percent it is not nothing.
    let share = match pool.utilization() {
        Some(share) if share > 0.0 && share < 0.01 => "<1".to_owned(),
        Some(share) => format!("{:.0}", share * 100.0),
        None => "?".to_owned(),
    };
    let to = match pool.key.remote {
        Some((address, port)) => endpoint(address, port),
        None => "udp, any".to_owned(),
    };
    let mut who: Vec<_> = pool.holders.iter().take(HOLDERS_SHOWN).map(self::who).collect();
    if pool.holders.len() > HOLDERS_SHOWN {
        who.push(format!("and {} more", pool.holders.len() - HOLDERS_SHOWN));
    }
    let others = if pool.others > 0 { format!("{} on other ports", pool.others) } else { String::new() };
    let who = who.into_iter().chain((!others.is_empty()).then_some(others)).collect::<Vec<_>>().join(", ");
    let row = format!(
        "{:>6} {:>6} {:>4} {:>6} {:>9} {:>6}  {:<15} {:<22} {who}",
        pool.in_use(),
        number(pool.capacity),
        share,
        pool.live,
        pool.time_wait,
        number(pool.bound),
        pool.key.local.to_string(),
        to
    );
    row.trim_end().to_owned()
}

fn who(holder: &Holder) -> String {
    format!("{} {}", printable(&holder.comm), holder.pid)
}

fn endpoint(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}
