//! `inet_put_port`: a full socket gives its port back. `inet_sock_destruct`: the last that is heard of it.
//!
//! Where a time-wait entry took the port over, putting it means nothing. Otherwise the port is put inside the
//! change to CLOSE, whose events come first; a port that was asked for by number is put later, in CLOSE.

use aya_ebpf::macros::{fentry, kprobe};
use aya_ebpf::programs::{FEntryContext, ProbeContext};
use portwatch_common::counters::hook;
use portwatch_common::wire::reason;

use super::{done, now};
use crate::slot::flags;
use crate::sock::{Sock, state};
use crate::{counters, life};

#[fentry(function = "inet_put_port")]
pub fn inet_put_port_fentry(ctx: FEntryContext) -> i32 {
    put(Sock(ctx.arg(0)));
    0
}

#[kprobe]
pub fn inet_put_port_entry(ctx: ProbeContext) -> u32 {
    done(ctx.arg(0).map(|sk| put(Sock(sk))))
}

#[fentry(function = "inet_sock_destruct")]
pub fn inet_sock_destruct_fentry(ctx: FEntryContext) -> i32 {
    destroyed(Sock(ctx.arg(0)));
    0
}

#[kprobe]
pub fn inet_sock_destruct_entry(ctx: ProbeContext) -> u32 {
    done(ctx.arg(0).map(|sk| destroyed(Sock(sk))))
}

#[inline(always)]
fn put(sk: Sock) {
    let Some(slot) = life::slot_of(sk) else { return };
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::PUT_PORT);
    }
    if slot.flags & flags::HAS_TIME_WAIT != 0 {
        return;
    }
    if sk.state() == Some(state::CLOSE) {
        life::released(sk, slot, reason::CLOSED, now());
    } else {
        slot.flags |= flags::PORT_PUT;
    }
}

#[inline(always)]
fn destroyed(sk: Sock) {
    let Some(slot) = life::slot_of(sk) else { return };
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::SOCK_DESTRUCT);
    }
    slot.flags &= !flags::IN_CONNECT;
    // The end of a UDP socket's port is nothing but its close, however that was missed.
    let reason = if sk.is_udp() { reason::CLOSED } else { reason::UNKNOWN };
    life::released(sk, slot, reason, now());
}
