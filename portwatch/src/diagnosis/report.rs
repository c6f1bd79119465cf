//! The report that programs read: `docs/schema/report.v1.json` fixes its names.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::aggregate::site::{Peer, SiteKey};
use crate::recording::format::Proto;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub r#type: &'static str,
    pub version: u32,
    pub window: Window,
    /// Worst first. Empty: healthy.
    pub findings: Vec<Finding>,
    /// Most port-seconds first.
    pub call_sites: Vec<Row>,
    /// Fullest first.
    pub pools: Vec<Pool>,
    /// Events that happened and are not in the log, by type and reason.
    pub lost: BTreeMap<String, BTreeMap<String, u64>>,
    pub evicted: Evicted,
}

#[derive(Clone, Debug, Serialize)]
pub struct Window {
    pub started: Option<String>,
    pub duration_ns: u64,
    /// Every log that was read has its summary.
    pub complete: bool,
    pub cut_short: u64,
    pub ended_by: Option<String>,
    pub hosts: Vec<String>,
    pub rungs: Vec<String>,
    pub events: BTreeMap<&'static str, u64>,
    pub lower_bound: bool,
    pub time_wait_now: u64,
    pub time_wait_peak: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub verdict: &'static str,
    pub severity: Severity,
    /// Null for a crowd of children, and for several workers.
    pub pid: Option<u32>,
    pub ppid: Option<u32>,
    pub comm: Option<String>,
    pub exe: Option<String>,
    pub cgroup: Option<String>,
    pub container: Option<String>,
    pub host: Option<String>,
    pub netns: u32,
    pub proto: Proto,
    /// Whom to blame for a crowd of short-lived children.
    pub parent: Option<Parent>,
    pub children: Option<u64>,
    /// Processes of one service that share the finding.
    pub workers: Vec<Worker>,
    pub destination: Option<String>,
    pub call_site: Option<String>,
    pub stack: Option<String>,
    /// The stack in words, innermost first.
    pub frames: Vec<String>,
    pub evidence: BTreeMap<&'static str, f64>,
    pub confidence: f64,
    pub advice: String,
    pub advice_id: String,
    pub links: Vec<String>,
    /// Settings of this namespace that bear on it, and how much each would help here.
    pub knobs: Vec<Knob>,
    /// What orders findings of one severity.
    #[serde(skip)]
    pub weight: u64,
}

/// A sysctl, as it is and as it could be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Knob {
    pub sysctl: &'static str,
    pub now: String,
    pub then: Option<String>,
    /// Connects a second that the pool would carry; null where the setting changes nothing.
    pub sustainable_per_s: Option<f64>,
    pub note: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parent {
    pub pid: u32,
    pub comm: Option<String>,
    pub exe: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Worker {
    pub pid: Option<u32>,
    pub connections: u64,
    /// Of the finding's connections, 0 to 1.
    pub share: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Null where several processes share the row.
    pub pid: Option<u32>,
    pub ppid: Option<u32>,
    pub children: Option<u64>,
    pub processes: u64,
    pub comm: Option<String>,
    pub exe: Option<String>,
    pub cgroup: Option<String>,
    pub container: Option<String>,
    pub host: Option<String>,
    pub netns: u32,
    pub proto: Proto,
    pub destination: Option<String>,
    pub folded_destinations: u64,
    pub call_site: Option<String>,
    pub stack: Option<String>,
    pub connections: u64,
    pub ports: u64,
    pub failures: BTreeMap<String, u64>,
    pub ports_per_s: f64,
    pub port_seconds: f64,
    pub held_now: u64,
    pub time_wait_now: u64,
    pub live_peak: u64,
    pub closers: BTreeMap<&'static str, u64>,
    pub lifetime_ns: LifetimeNs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LifetimeNs {
    pub p50: Option<u64>,
    pub p99: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Pool {
    pub host: Option<String>,
    pub netns: u32,
    pub proto: Proto,
    pub laddr: String,
    pub raddr: Option<String>,
    pub rport: Option<u16>,
    /// Null: the namespace's range is not in the log.
    pub capacity: Option<u64>,
    pub in_use: InUse,
    pub utilization: Option<f64>,
    pub utilization_peak: Option<f64>,
    pub peak: u64,
    pub rate_per_s: Option<f64>,
    /// Connects a second that the pool carries for ever; null: nothing has ended yet.
    pub sustainable_per_s: Option<f64>,
    /// Null: never at this rate.
    pub exhaustion_in_s: Option<f64>,
    /// From and to: the rate is an estimate.
    pub exhaustion_in_s_range: Option<(f64, f64)>,
    pub past_half: bool,
    /// Connects that found no port.
    pub failures: u64,
    pub inputs: Inputs,
    /// Counted from enough, and from long enough, to act on it.
    #[serde(skip)]
    pub is_forecast_sure: bool,
    #[serde(skip)]
    pub key: (u32, Option<(std::net::IpAddr, u16)>),
}

impl Pool {
    pub fn load(&self) -> f64 {
        self.utilization.unwrap_or(0.0) + self.failures as f64
    }

    /// Whether a row's connects choose from this pool.
    pub fn is_of(&self, site: &SiteKey) -> bool {
        let remote = match site.peer {
            Peer::To(address, port) => Some((address, port)),
            Peer::None | Peer::Others => None,
        };
        let is_there = self.proto == Proto::Udp || self.key.1.is_some() && self.key.1 == remote;
        (self.key.0, self.netns, self.proto) == (site.host, site.netns, site.proto) && is_there
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InUse {
    pub live: u64,
    pub time_wait: u64,
    /// Ports that bind() took from all automatic connects; null where the kernel does not tell.
    pub bound: Option<u64>,
}

/// What the numbers of a pool were calculated from.
#[derive(Clone, Debug, Serialize)]
pub struct Inputs {
    pub port_range: Option<(u16, u16)>,
    pub reserved_ports: u64,
    pub bound_ports: u64,
    /// The same when a connect first found no port.
    pub bound_ports_at_failure: Option<u64>,
    /// Ports bound before the start are not known: the capacity is an upper bound.
    pub capacity_is_upper_bound: bool,
    pub tcp_tw_reuse: Option<u32>,
    pub tcp_tw_reuse_delay_ms: Option<u32>,
    pub tcp_timestamps: Option<u32>,
    pub tcp_max_tw_buckets: Option<u32>,
    pub step_width: Option<u32>,
    /// A connect may take a port over from TIME_WAIT here.
    pub time_wait_is_reusable: bool,
    /// For how long a TIME_WAIT keeps its port from new connects.
    pub time_wait_s: f64,
    pub lifetime_mean_s: Option<f64>,
    /// Of the connections that ended, left a TIME_WAIT on this side.
    pub time_wait_share: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Evicted {
    pub call_sites: u64,
    pub pools: u64,
    pub holds: u64,
    pub processes: u64,
    pub stacks: u64,
}

/// `address:port`, with brackets where the address has colons.
pub fn destination(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
