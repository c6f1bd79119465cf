//! One format each. All of them get the same calls, in the order of the event log.

pub mod errno;
pub mod escape;
pub mod json;
pub mod report;
#[cfg(test)]
pub(crate) mod scene;
pub mod text;

use std::collections::BTreeMap;

use anyhow::Result;

use crate::event::{Comm, Event, Hold, StackGap, StackId};

/// What a tracing command writes to: text for people, JSON Lines for programs.
///
/// Called from one thread, in the order of the event log: header first; a stack before the first event that
/// names it; summary last. An error means that the output is gone, say a full disk or a closed pipe.
pub trait Output: Send {
    fn header(&mut self, header: &Header) -> Result<()>;
    fn netns(&mut self, netns: &Netns) -> Result<()>;
    fn stack(&mut self, stack: &Stack) -> Result<()>;
    /// A parent of an owner, before the first event of that owner. People are told of the owners alone.
    fn process(&mut self, _: &Ancestor) -> Result<()> {
        Ok(())
    }
    /// A socket that was open before the start.
    fn preexisting(&mut self, mono_ns: u64, hold: &Hold, process: &Process, state: &str) -> Result<()>;
    fn event(&mut self, event: &Event, hold: &Hold, process: &Process, call_site: Option<&str>)
    -> Result<()>;
    fn summary(&mut self, summary: &Summary) -> Result<()>;
    /// Everything written so far becomes visible to readers.
    fn flush(&mut self) -> Result<()>;
}

/// What /proc and the cgroup file system say about an owner; whatever could not be learned is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub exe: Option<String>,
    pub cgroup: Option<String>,
    pub container: Option<String>,
    /// Only with `--cmdline`.
    pub cmdline: Option<Vec<String>>,
}

/// First line of an event log.
#[derive(Clone, Debug)]
pub struct Header {
    pub host: String,
    pub kernel: String,
    pub arch: &'static str,
    pub rung: &'static str,
    /// Wall clock at `mono_ns`, since the epoch.
    pub started_wall_ns: i128,
    /// `CLOCK_MONOTONIC` at the start; event times in the log count from here.
    pub mono_ns: u64,
    pub command: Vec<String>,
    /// As typed, by flag name.
    pub filters: BTreeMap<String, serde_json::Value>,
    /// Per event type: `exact`, `inferred` or `absent` on this rung.
    pub coverage: BTreeMap<&'static str, &'static str>,
    /// How the stacks were taken.
    pub stack_method: &'static str,
}

/// A network namespace and what of its settings decides how many ports there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Netns {
    pub mono_ns: u64,
    pub inode: u32,
    pub port_range: Option<(u16, u16)>,
    pub reserved: Option<Vec<(u16, u16)>>,
    pub tcp_tw_reuse: Option<u32>,
    pub tcp_tw_reuse_delay_ms: Option<u32>,
    pub tcp_timestamps: Option<u32>,
    pub tcp_max_tw_buckets: Option<u32>,
    pub step_width: Option<u32>,
    /// Ports in bind-made buckets; `None` where the kernel does not show them.
    pub bind_ports: Option<Vec<u16>>,
}

/// The parent of an owner, or a parent of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    pub mono_ns: u64,
    pub pid: u32,
    pub ppid: Option<u32>,
    pub comm: Option<Comm>,
    pub exe: Option<String>,
}

/// A symbolised stack, innermost frame first.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    pub id: StackId,
    pub frames: Vec<Frame>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// Path as the owner sees it.
    pub module: Option<String>,
    pub build_id: Option<String>,
    /// Address inside the module: its ELF virtual address, of the call.
    pub offset: Option<u64>,
    pub kind: FrameKind,
    pub is_inlined: bool,
    /// Why `function` is unknown.
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameKind {
    Native,
    Python,
    Jit,
    Kernel,
    #[default]
    Unknown,
}

impl FrameKind {
    pub fn name(self) -> &'static str {
        match self {
            FrameKind::Native => "native",
            FrameKind::Python => "python",
            FrameKind::Jit => "jit",
            FrameKind::Kernel => "kernel",
            FrameKind::Unknown => "unknown",
        }
    }
}

/// Last line of an event log.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Lines written of what a hook saw, by type.
    pub events: BTreeMap<&'static str, u64>,
    /// By type and reason.
    pub lost: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// What the kernel side counted, by type. `kernel_totals` = `events` + `lost` + `filtered`.
    pub kernel_totals: BTreeMap<&'static str, u64>,
    /// Some misses cannot be counted on this kernel, or in this run.
    pub is_lower_bound: bool,
    /// Lines written of what was deduced, by type; beside `events`, and in no total.
    pub inferred: BTreeMap<&'static str, u64>,
    /// Dropped by a filter in user space, by type.
    pub filtered: BTreeMap<&'static str, u64>,
    pub stacks: StackShares,
    pub duration_ns: u64,
    pub ended_by: &'static str,
}

/// How many events came with what kind of stack, and how these were come by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StackShares {
    /// Events.
    pub complete: u64,
    pub partial: u64,
    pub none: u64,
    /// Events whose stack is partial or missing, by the reason.
    pub gaps: BTreeMap<StackGap, u64>,
    /// Stacks that the kernel side walked to their end by itself.
    pub walked: u64,
    /// Stacks for which it asked user space.
    pub snapshots: u64,
    /// Stacks for which it would have, if their process had not made it ask too often.
    pub rate_limited: u64,
    pub audit: StackAudit,
}

/// Stacks that the kernel side walked and user space walked again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackAudit {
    pub matched: u64,
    /// As far as the stack was copied.
    pub matched_in_part: u64,
    pub mismatched: u64,
    /// Could not be walked again: the process is gone, or what it has mapped has changed.
    pub unknown: u64,
    /// Had no room in the ring.
    pub missed: u64,
}

impl StackAudit {
    /// Stacks that were compared.
    pub fn checked(&self) -> u64 {
        self.matched + self.matched_in_part + self.mismatched
    }
}
