//! The rare lines, as serde structs. Their fields are fixed by `docs/schema/log.v1.json`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::output;

/// Version of the event log that this writer writes.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
#[serde(tag = "type", rename = "header")]
pub(super) struct Header<'a> {
    schema: &'static str,
    version: u32,
    portwatch: &'static str,
    host: &'a str,
    kernel: &'a str,
    arch: &'a str,
    rung: &'a str,
    started: String,
    /// A string because it passes 2^53 after 104 days of uptime.
    mono_ns: String,
    command: &'a [String],
    filters: &'a BTreeMap<String, serde_json::Value>,
    coverage: &'a BTreeMap<&'static str, &'static str>,
    stack_method: &'a str,
}

impl<'a> Header<'a> {
    pub fn new(header: &'a output::Header, started: String) -> Self {
        Header {
            schema: "portwatch",
            version: VERSION,
            portwatch: env!("CARGO_PKG_VERSION"),
            host: &header.host,
            kernel: &header.kernel,
            arch: header.arch,
            rung: header.rung,
            started,
            mono_ns: header.mono_ns.to_string(),
            command: &header.command,
            filters: &header.filters,
            coverage: &header.coverage,
            stack_method: header.stack_method,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "netns")]
pub(super) struct Netns<'a> {
    time: String,
    mono_ns: i64,
    netns: u32,
    port_range: Option<(u16, u16)>,
    /// Ranges, both ends included.
    reserved: Option<&'a [(u16, u16)]>,
    tcp_tw_reuse: Option<u32>,
    tcp_tw_reuse_delay_ms: Option<u32>,
    tcp_timestamps: Option<u32>,
    tcp_max_tw_buckets: Option<u32>,
    step_width: Option<u32>,
    bind_ports: Option<&'a [u16]>,
}

impl<'a> Netns<'a> {
    pub fn new(netns: &'a output::Netns, time: String, mono_ns: i64) -> Self {
        Netns {
            time,
            mono_ns,
            netns: netns.inode,
            port_range: netns.port_range,
            reserved: netns.reserved.as_deref(),
            tcp_tw_reuse: netns.tcp_tw_reuse,
            tcp_tw_reuse_delay_ms: netns.tcp_tw_reuse_delay_ms,
            tcp_timestamps: netns.tcp_timestamps,
            tcp_max_tw_buckets: netns.tcp_max_tw_buckets,
            step_width: netns.step_width,
            bind_ports: netns.bind_ports.as_deref(),
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "stack")]
pub(super) struct Stack<'a> {
    stack: String,
    frames: Vec<Frame<'a>>,
}

impl<'a> Stack<'a> {
    pub fn new(stack: &'a output::Stack) -> Self {
        Stack { stack: stack.id.0.to_string(), frames: stack.frames.iter().map(Frame::new).collect() }
    }
}

#[derive(Serialize)]
struct Frame<'a> {
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    kind: &'static str,
    inlined: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> Frame<'a> {
    fn new(frame: &'a output::Frame) -> Self {
        Frame {
            function: frame.function.as_deref(),
            file: frame.file.as_deref(),
            line: frame.line,
            module: frame.module.as_deref(),
            build_id: frame.build_id.as_deref(),
            offset: frame.offset,
            kind: frame.kind.name(),
            inlined: frame.is_inlined,
            reason: frame.reason.as_deref(),
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "summary")]
pub(super) struct Summary<'a> {
    events: &'a BTreeMap<&'static str, u64>,
    lost: &'a BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    kernel_totals: &'a BTreeMap<&'static str, u64>,
    /// Only when so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lower_bound: bool,
    inferred: &'a BTreeMap<&'static str, u64>,
    filtered: &'a BTreeMap<&'static str, u64>,
    stacks: Stacks,
    duration_ns: u64,
    ended_by: &'static str,
    complete: bool,
}

#[derive(Serialize)]
struct Stacks {
    complete: u64,
    partial: u64,
    none: u64,
    /// By name, as events have it in `stack_gap`.
    gaps: BTreeMap<&'static str, u64>,
    walked: u64,
    snapshots: u64,
    rate_limited: u64,
    audit: Audit,
}

impl Stacks {
    fn new(shares: &output::StackShares) -> Self {
        Stacks {
            complete: shares.complete,
            partial: shares.partial,
            none: shares.none,
            gaps: shares.gaps.iter().map(|(gap, &count)| (gap.name(), count)).collect(),
            walked: shares.walked,
            snapshots: shares.snapshots,
            rate_limited: shares.rate_limited,
            audit: Audit::new(&shares.audit),
        }
    }
}

#[derive(Serialize)]
struct Audit {
    checked: u64,
    matched: u64,
    /// A part of `matched`.
    matched_in_part: u64,
    mismatched: u64,
    unknown: u64,
    missed: u64,
}

impl Audit {
    fn new(audit: &output::StackAudit) -> Self {
        let &output::StackAudit { matched, matched_in_part, mismatched, unknown, missed } = audit;
        let checked = audit.checked();
        Audit { checked, matched: matched + matched_in_part, matched_in_part, mismatched, unknown, missed }
    }
}

impl<'a> Summary<'a> {
    pub fn new(summary: &'a output::Summary) -> Self {
        Summary {
            events: &summary.events,
            lost: &summary.lost,
            kernel_totals: &summary.kernel_totals,
            lower_bound: summary.is_lower_bound,
            inferred: &summary.inferred,
            filtered: &summary.filtered,
            stacks: Stacks::new(&summary.stacks),
            duration_ns: summary.duration_ns,
            ended_by: summary.ended_by,
            complete: true,
        }
    }
}
