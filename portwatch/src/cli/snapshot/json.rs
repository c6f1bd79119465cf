//! A snapshot as one JSON object.

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::pools::{Holder, Listener, Pool, Pools};
use crate::kernel::baseline::Baseline;
use crate::kernel::host;
use crate::output::Netns;

#[derive(Serialize)]
struct Snapshot<'a> {
    /// Always `snapshot`.
    r#type: &'static str,
    /// Of this format: 1. Fields may be added, never changed.
    version: u32,
    portwatch: &'static str,
    host: String,
    kernel: String,
    /// RFC 3339, UTC.
    time: String,
    namespaces: Vec<Namespace<'a>>,
    /// Fullest first.
    pools: Vec<PoolRow<'a>>,
    /// Pools beyond `--top`.
    pools_omitted: usize,
    listeners_in_range: Vec<ListenerRow<'a>>,
    accepted: usize,
    /// What is not known, and why.
    notes: &'a [String],
}

#[derive(Serialize)]
struct Namespace<'a> {
    netns: u32,
    port_range: Option<(u16, u16)>,
    reserved: Option<&'a [(u16, u16)]>,
    tcp_tw_reuse: Option<u32>,
    tcp_tw_reuse_delay_ms: Option<u32>,
    tcp_timestamps: Option<u32>,
    tcp_max_tw_buckets: Option<u32>,
    step_width: Option<u32>,
}

#[derive(Serialize)]
struct PoolRow<'a> {
    netns: u32,
    proto: &'static str,
    laddr: String,
    raddr: Option<String>,
    rport: Option<u16>,
    capacity: Option<u32>,
    in_use: InUse,
    utilization: Option<f64>,
    /// Sockets whose port no automatic choice would have come to.
    other_ports: u32,
    owners: Vec<Owner<'a>>,
}

#[derive(Serialize)]
struct InUse {
    live: u32,
    time_wait: u32,
    bound: Option<u32>,
}

#[derive(Serialize)]
struct Owner<'a> {
    pid: u32,
    comm: &'a str,
    sockets: u32,
}

#[derive(Serialize)]
struct ListenerRow<'a> {
    netns: u32,
    proto: &'static str,
    laddr: String,
    lport: u16,
    pid: Option<u32>,
    comm: Option<&'a str>,
}

/// One line.
pub fn object(baseline: &Baseline, pools: &Pools, top: usize) -> Result<String> {
    let names = host::names()?;
    let shown = super::text::shown(pools.pools.len(), top);
    let snapshot = Snapshot {
        r#type: "snapshot",
        version: 1,
        portwatch: env!("CARGO_PKG_VERSION"),
        host: names.host,
        kernel: names.kernel,
        time: jiff::Timestamp::now().to_string(),
        namespaces: baseline.namespaces.iter().map(namespace).collect(),
        pools: pools.pools[..shown].iter().map(pool).collect(),
        pools_omitted: pools.pools.len() - shown,
        listeners_in_range: pools.listeners.iter().map(listener).collect(),
        accepted: pools.accepted,
        notes: &baseline.notes,
    };
    Ok(serde_json::to_string(&snapshot).context("cannot write the snapshot as JSON")? + "\n")
}

fn namespace(settings: &Netns) -> Namespace<'_> {
    Namespace {
        netns: settings.inode,
        port_range: settings.port_range,
        reserved: settings.reserved.as_deref(),
        tcp_tw_reuse: settings.tcp_tw_reuse,
        tcp_tw_reuse_delay_ms: settings.tcp_tw_reuse_delay_ms,
        tcp_timestamps: settings.tcp_timestamps,
        tcp_max_tw_buckets: settings.tcp_max_tw_buckets,
        step_width: settings.step_width,
    }
}

fn pool(pool: &Pool) -> PoolRow<'_> {
    PoolRow {
        netns: pool.key.netns,
        proto: if pool.key.is_udp { "udp" } else { "tcp" },
        laddr: pool.key.local.to_string(),
        raddr: pool.key.remote.map(|(address, _)| address.to_string()),
        rport: pool.key.remote.map(|(_, port)| port),
        capacity: pool.capacity,
        in_use: InUse { live: pool.live, time_wait: pool.time_wait, bound: pool.bound },
        utilization: pool.utilization(),
        other_ports: pool.others,
        owners: pool.holders.iter().map(owner).collect(),
    }
}

fn owner(holder: &Holder) -> Owner<'_> {
    Owner { pid: holder.pid, comm: &holder.comm, sockets: holder.sockets }
}

fn listener(listener: &Listener) -> ListenerRow<'_> {
    ListenerRow {
        netns: listener.netns,
        proto: "tcp",
        laddr: listener.local.to_string(),
        lport: listener.port,
        pid: listener.holder.as_ref().map(|holder| holder.pid),
        comm: listener.holder.as_ref().map(|holder| holder.comm.as_str()),
    }
}
