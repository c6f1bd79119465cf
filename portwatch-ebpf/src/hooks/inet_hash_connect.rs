//! `inet_hash_connect`, `inet6_hash_connect`: the search for a local port at connect().
//!
//! IPv4-mapped addresses of an IPv6 socket go through the first, native IPv6 through the second. The search
//! runs between the change to SYN_SENT and its return, in the task that connects.

use aya_ebpf::macros::{fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FExitContext, ProbeContext, RetProbeContext};
use portwatch_common::counters::hook;

use super::{done, enter, leave, now};
use crate::slot::flags;
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
