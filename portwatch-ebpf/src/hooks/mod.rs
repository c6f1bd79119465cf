//! One file per hooked place: its doors (programs) and its body.

mod inet_bind;
mod inet_csk_get_port;
mod inet_hash_connect;
mod inet_put_port;
mod inet_release;
mod inet_sock_set_state;
mod inet_twsk;
mod sched;
mod syscalls;
mod tcp_connect;
mod udp;
pub mod udp_syscalls;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::maps::IN_CALL;
use crate::slot::InCall;

/// `CLOCK_MONOTONIC`
#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Where a call under way keeps its arguments. The idle tasks all have pid 0, and softirqs run on them: they are told apart by CPU.
#[inline(always)]
fn call_key(hook: usize) -> [u64; 2] {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    [if pid_tgid == 0 { u64::MAX - cpu as u64 } else { pid_tgid }, hook as u64]
}

/// Remembers the arguments of a probed function until its return.
#[inline(always)]
fn enter(ctx: &ProbeContext, hook: usize) -> u32 {
    begin(hook, [ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0), ctx.arg(2).unwrap_or(0)]);
    0
}

/// The arguments of a probed function that returns.
#[inline(always)]
fn leave(_ctx: &RetProbeContext, hook: usize) -> Option<[u64; 3]> {
    end(hook)
}

#[inline(always)]
fn begin(hook: usize, args: [u64; 3]) {
    // Full: the return finds nothing and the call is not seen.
    let _ = IN_CALL.insert(call_key(hook), InCall { args }, 0);
}

#[inline(always)]
fn end(hook: usize) -> Option<[u64; 3]> {
    let key = call_key(hook);
    let args = under_way(hook);
    let _ = IN_CALL.remove(key);
    args
}

/// The arguments of a call that the running task is inside of.
#[inline(always)]
fn under_way(hook: usize) -> Option<[u64; 3]> {
    // SAFETY: the entry belongs to this task and is removed only by it.
    unsafe { IN_CALL.get(call_key(hook)) }.map(|call| call.args)
}

/// For programs whose result nobody reads.
#[inline(always)]
fn done<T>(_: T) -> u32 {
    0
}
