//! Processor time as the kernel tells it, in nanoseconds.

use std::fs;

use anyhow::{Context, Result};

/// Of /proc/stat and /proc/PID/stat: the kernel's USER_HZ is 100 on every architecture that portwatch runs on.
const TICK_NS: u64 = 10_000_000;

/// Time that a process has used, its threads that have ended included.
pub fn process_cpu_ns(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
    // The name may hold spaces and brackets; what follows its last bracket does not.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
    let times = fields.map(|fields| fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()));
    let times: Vec<u64> = times.into_iter().flatten().collect();
    let [user, system] = times[..] else { anyhow::bail!("`{path}` holds no processor times: `{text}`") };
    Ok((user + system) * TICK_NS)
}

/// Time that the processors of this machine were not idle.
pub fn host_busy_ns() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read `/proc/stat`")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("cpu ")).context("`/proc/stat` has no total")?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq; what follows was stolen, or is counted in these already.
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else {
        anyhow::bail!("`/proc/stat` begins with `{line}`");
    };
    Ok((user + nice + system + irq + softirq) * TICK_NS)
}
