//! `inet_hash_connect`, `inet6_hash_connect`: the search for a local port at connect().
//!
//! IPv4-mapped addresses of an IPv6 socket go through the first, native IPv6 through the second. The search
//! runs between the change to SYN_SENT and its return, in the task that connects.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FExitContext, ProbeContext, RetProbeContext};
use portwatch_common::config::rung;
use portwatch_common::counters::hook;

use super::{done, enter, leave, now};
use crate::maps::{CONNECTING, CONNECTING_PLACES};
use crate::settings::setting;
use crate::slot::{Connecting, TimeWaitSlot, flags};
use crate::sock::Sock;
use crate::{counters, life};

#[fexit(function = "inet_hash_connect")]
pub fn inet_hash_connect_fexit(ctx: FExitContext) -> i32 {
    observe(Sock(ctx.arg(1)), ctx.arg(2), hook::HASH_CONNECT);
    0
}

#[fexit(function = "inet6_hash_connect")]
pub fn inet6_hash_connect_fexit(ctx: FExitContext) -> i32 {
    observe(Sock(ctx.arg(1)), ctx.arg(2), hook::HASH_CONNECT_V6);
    0
}

#[kprobe]
pub fn inet_hash_connect_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::HASH_CONNECT)
}

#[kretprobe]
pub fn inet_hash_connect_return(ctx: RetProbeContext) -> u32 {
    done(leave(&ctx, hook::HASH_CONNECT).map(|args| observe(Sock(args[1]), ctx.ret(), hook::HASH_CONNECT)))
}

#[kprobe]
pub fn inet6_hash_connect_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::HASH_CONNECT_V6)
}

#[kretprobe]
pub fn inet6_hash_connect_return(ctx: RetProbeContext) -> u32 {
    done(
        leave(&ctx, hook::HASH_CONNECT_V6)
            .map(|args| observe(Sock(args[1]), ctx.ret(), hook::HASH_CONNECT_V6)),
    )
}

#[inline(always)]
fn observe(sk: Sock, ret: i32, which: usize) {
    search_ends();
    let Some(slot) = life::slot_of(sk) else { return };
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(which);
    }
    let now_ns = now();
    slot.hold.search_ns = now_ns.wrapping_sub(slot.attempt_ns);
    if ret != 0 {
        // A bound socket keeps its port; its 4-tuple is taken. The others found none.
        life::connect_failed(slot, ret.unsigned_abs(), 0, now_ns);
    } else if slot.flags & flags::HAS_PORT == 0 {
        life::allocated(sk, slot, sk.num(), now_ns);
    }
}

/// The running task begins to search for a port.
#[inline(always)]
pub fn search_begins(sk: Sock) {
    if setting!(rung) == rung::TRACEPOINT {
        // Nothing would say that it ended, and nothing asks.
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    if let Some(place) = place_of(pid_tgid) {
        // SAFETY: a map value of plain numbers. Another task in the same place may write meanwhile: then this search is
        // taken for over, and a reuse for a reset.
        unsafe { place.write(Connecting { pid_tgid, sk: sk.0 }) }
    }
}

#[inline(always)]
fn search_ends() {
    if let Some(place) = place_of(bpf_get_current_pid_tgid()) {
        // SAFETY: as above.
        unsafe { (*place).sk = 0 }
    }
}

#[inline(always)]
fn place_of(pid_tgid: u64) -> Option<*mut Connecting> {
    CONNECTING.get_ptr_mut(pid_tgid as u32 & (CONNECTING_PLACES - 1))
}

/// Whether the running task is searching for a port to where a time-wait entry leads, and has found that of the entry:
/// it takes the port before it ends what held it.
#[inline(always)]
pub fn is_search_for(entry: &TimeWaitSlot) -> bool {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(place) = place_of(pid_tgid) else { return false };
    // SAFETY: as above.
    let connecting = unsafe { place.read() };
    connecting.pid_tgid == pid_tgid
        && connecting.sk != 0
        && Sock(connecting.sk).num() == entry.port_local
        && Sock(connecting.sk).is_towards(entry.addr_remote, entry.port_remote)
}
