//! Birth, exec and death of processes: `--follow` takes children in at their birth, nobody inherits a dead one's
//! number, and what is known of an address space goes with it.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::{debug, warn};
use portwatch_common::config::{ABSENT, pid_flags};
use portwatch_common::python::ProgramKey;

use crate::maps::{PIDS, PYTHON_ANY, PYTHON_PROGRAMS, PYTHONS, SPACES};
use crate::owner::number;
use crate::read::{kernel, kernel_pointer};
use crate::settings::{offset, setting};

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
    inherit_interpreter(parent_tgid, child);
    // SAFETY: a copy of a plain number.
    let flags = unsafe { PIDS.get(parent_tgid) }.copied().unwrap_or(0);
    if flags & pid_flags::CHILDREN != 0 {
        let child_tgid = number(child);
        if child_tgid != 0 && child_tgid != parent_tgid {
            match PIDS.insert(child_tgid, pid_flags::SELECTED | pid_flags::CHILDREN, 0) {
                Ok(()) => debug!(&ctx, "process {} is followed, a child of {}", child_tgid, parent_tgid),
                Err(_) => warn!(&ctx, "process {} is not followed: the table is full", child_tgid),
            }
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
    if unsafe { PIDS.get(tgid).is_some() || SPACES.get(tgid).is_some() || PYTHONS.get(tgid).is_some() } {
        let live: Option<u32> = kernel_pointer(task, offset!(task_signal))
            .and_then(|signal| kernel(signal, offset!(signal_live)));
        if live == Some(0) {
            let _ = PIDS.remove(tgid);
            let _ = SPACES.remove(tgid);
            let _ = PYTHONS.remove(tgid);
        }
    }
    0
}

/// The address space is a new one, before its first instruction runs.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let tgid = number(task);
    let _ = SPACES.remove(tgid);
    let _ = PYTHONS.remove(tgid);
    let _ = start_interpreter(task, tgid);
    0
}

/// A copy of the address space has its interpreter in the same place.
#[inline(always)]
fn inherit_interpreter(parent_tgid: u32, child: u64) {
    if PYTHON_ANY.get(0).copied() != Some(1) {
        return;
    }
    let child_tgid = number(child);
    if child_tgid == 0 || child_tgid == parent_tgid {
        return;
    }
    // SAFETY: the parent is here, so its entry stays.
    match unsafe { PYTHONS.get(parent_tgid) } {
        Some(python) => {
            let _ = PYTHONS.insert(child_tgid, python, 0);
        }
        // Of one that had the number before, and was gone when user space learned of it.
        None => {
            let _ = PYTHONS.remove(child_tgid);
        }
    }
}

/// A program that is known to be an interpreter has begun: it may connect before user space has heard of it.
#[inline(always)]
fn start_interpreter(task: u64, tgid: u32) -> Option<()> {
    if setting!(stacks) == 0 || offset!(mm_exe_file) == ABSENT || offset!(sb_dev) == ABSENT || tgid == 0 {
        return None;
    }
    let mm = kernel_pointer(task, offset!(task_mm))?;
    let file = kernel_pointer(mm, offset!(mm_exe_file))?;
    let inode = kernel_pointer(file, offset!(file_inode))?;
    let block = kernel_pointer(inode, offset!(inode_sb))?;
    let device: u32 = kernel(block, offset!(sb_dev))?;
    let number: u64 = kernel(inode, offset!(inode_ino))?;
    let key = ProgramKey { device: device as u64, inode: number };
    // SAFETY: changed only by user space, to what is true of the same file.
    let program = unsafe { PYTHON_PROGRAMS.get(key) }?;
    let start: u64 = kernel(mm, offset!(mm_start_code))?;
    // How far from its own addresses the file was loaded.
    let bias = start.wrapping_sub(program.code_start);
    let mut python = program.python;
    python.runtime = python.runtime.wrapping_add(bias);
    python.code_type = python.code_type.wrapping_add(bias);
    PYTHONS.insert(tgid, python, 0).ok()?;
    // SAFETY: a map value; whoever reads it meanwhile finds no interpreter or this one.
    unsafe { PYTHON_ANY.get_ptr_mut(0)?.write(1) };
    Some(())
}
