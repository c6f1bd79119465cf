//! Birth, exec and death of processes: `--follow` takes children in at their birth, nobody inherits a dead one's
//! number, and what is known of an address space goes with it.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use portwatch_common::config::pid_flags;

use crate::maps::{PIDS, SPACES};
use crate::owner::number;
use crate::read::{kernel, kernel_pointer};
use crate::settings::offset;

/// Raw arguments: parent task, child task.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    let (parent, child): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let parent_tgid = number(parent);
    // A copy of the address space has the same code in the same places.
    // SAFETY: a copy of a plain number.
    if let Some(generation) = unsafe { SPACES.get(parent_tgid) }.copied() {
        let child_tgid = number(child);
        if child_tgid != 0 && child_tgid != parent_tgid {
            let _ = SPACES.insert(child_tgid, generation, 0);
        }
    }
    // SAFETY: a copy of a plain number.
    let flags = unsafe { PIDS.get(parent_tgid) }.copied().unwrap_or(0);
    if flags & pid_flags::CHILDREN != 0 {
        let child_tgid = number(child);
        if child_tgid != 0 && child_tgid != parent_tgid {
            let _ = PIDS.insert(child_tgid, pid_flags::SELECTED | pid_flags::CHILDREN, 0);
        }
    }
    0
}

/// Raw argument: task. Runs for every thread; the process is gone when none is left.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let tgid = number(task);
    // SAFETY: only asked whether it is there.
    if unsafe { PIDS.get(tgid).is_some() || SPACES.get(tgid).is_some() } {
        let live: Option<u32> = kernel_pointer(task, offset!(task_signal))
            .and_then(|signal| kernel(signal, offset!(signal_live)));
        if live == Some(0) {
            let _ = PIDS.remove(tgid);
            let _ = SPACES.remove(tgid);
        }
    }
    0
}

/// The address space is a new one, before its first instruction runs.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let _ = SPACES.remove(number(task));
    0
}
