//! Who is running. Only meaningful in process context: in a connect, bind, listen or close.

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use portwatch_common::limits::{COMM_LEN, PID_NS_LEVELS_MAX};
use portwatch_common::wire::Owner;

use crate::read::{kernel, kernel_pointer};
use crate::settings::{offset, setting};

const PF_IO_WORKER: u32 = 0x0000_0010;
const PF_KTHREAD: u32 = 0x0020_0000;

/// `struct task_struct *` of the running task.
#[inline(always)]
pub fn current_task() -> u64 {
    // SAFETY: no arguments; the address is only ever read through checked reads.
    unsafe { bpf_get_current_task() }
}

/// Process and thread of the running task, numbered in portwatch's PID namespace; 0 where they have no number there.
#[inline(always)]
pub fn current_ids() -> (u32, u32) {
    let pid_tgid = bpf_get_current_pid_tgid();
    if setting!(pid_ns_inum) == 0 {
        return ((pid_tgid >> 32) as u32, pid_tgid as u32);
    }
    let task = current_task();
    let leader = kernel_pointer(task, offset!(task_group_leader)).unwrap_or(0);
    (number_in_own_ns(leader), number_in_own_ns(task))
}

/// The number of a task in portwatch's PID namespace, which is not the initial one; 0 when it has none.
#[inline(always)]
fn number_in_own_ns(task: u64) -> u32 {
    let Some(pid) = kernel_pointer(task, offset!(task_thread_pid)) else { return 0 };
    let level: u32 = kernel(pid, offset!(pid_level)).unwrap_or(0);
    for at in 0..PID_NS_LEVELS_MAX as u32 {
        if at > level {
            break;
        }
        let upid = pid + offset!(pid_numbers) as u64 + at as u64 * offset!(upid_size) as u64;
        let ns = kernel_pointer(upid, offset!(upid_ns)).unwrap_or(0);
        // Not compared as an option: LLVM would look at what was not read, which the verifier refuses.
        let inum: u32 = kernel(ns, offset!(pid_ns_inum)).unwrap_or(0);
        if inum == setting!(pid_ns_inum) {
            return kernel(upid, offset!(upid_nr)).unwrap_or(0);
        }
    }
    0
}

/// The number of a process in its own, innermost PID namespace.
#[inline(always)]
fn innermost_number(leader: u64) -> Option<u32> {
    let pid = kernel_pointer(leader, offset!(task_thread_pid))?;
    let level: u32 = kernel(pid, offset!(pid_level))?;
    let upid = pid + offset!(pid_numbers) as u64 + (level & 31) as u64 * offset!(upid_size) as u64;
    kernel(upid, offset!(upid_nr))
}

/// Describes the running task.
#[inline(always)]
pub fn describe_current(owner: &mut Owner) {
    let task = current_task();
    let leader = kernel_pointer(task, offset!(task_group_leader)).unwrap_or(task);
    let parent = kernel_pointer(task, offset!(task_real_parent)).unwrap_or(0);
    let (tgid, tid) = current_ids();
    owner.tgid = tgid;
    owner.tid = tid;
    owner.ppid = if setting!(pid_ns_inum) == 0 {
        kernel(parent, offset!(task_tgid)).unwrap_or(0)
    } else {
        number_in_own_ns(parent)
    };
    owner.ns_tgid = innermost_number(leader).unwrap_or(tgid);
    owner.uid = bpf_get_current_uid_gid() as u32;
    owner.start_boot_ns = kernel(leader, offset!(task_start_boottime)).unwrap_or(0);
    let flags: u32 = kernel(task, offset!(task_flags)).unwrap_or(0);
    owner.is_kernel = (flags & (PF_KTHREAD | PF_IO_WORKER) != 0) as u32;
    // SAFETY: no arguments.
    owner.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: the buffer is COMM_LEN bytes long and ours.
    unsafe { bpf_get_current_comm(owner.comm.as_mut_ptr().cast(), COMM_LEN as u32) };
}

/// The number of a task's process in portwatch's PID namespace; 0 when it has none.
#[inline(always)]
pub fn number(task: u64) -> u32 {
    if setting!(pid_ns_inum) == 0 {
        return kernel(task, offset!(task_tgid)).unwrap_or(0);
    }
    number_in_own_ns(kernel_pointer(task, offset!(task_group_leader)).unwrap_or(0))
}
