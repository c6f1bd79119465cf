//! `inet_twsk_alloc`, `inet_twsk_kill`: the life of a time-wait entry.
//!
//! The exit of `inet_twsk_alloc` is entry into TIME_WAIT, overflow, and the link from socket to entry in one place.
//! The ordinary close makes an entry in substate FIN_WAIT2, which holds the port just the same. Both functions run
//! in whatever context received the packet or the timer: nothing here looks at the running task but to see whether
//! it is searching for a port.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use portwatch_common::config::{ABSENT, rung};
use portwatch_common::counters::{hook, miss};
use portwatch_common::wire::{confidence, kind, reason};

use super::{done, enter, inet_hash_connect, leave, now};
use crate::emit::End;
use crate::maps::{PREEXISTING, TIME_WAITS, scratch};
use crate::read::kernel;
use crate::settings::{offset, setting};
use crate::slot::{Slot, TimeWaitSlot, flags};
use crate::sock::Sock;
use crate::{counters, emit, life};

#[fexit(function = "inet_twsk_alloc")]
pub fn inet_twsk_alloc_fexit(ctx: FExitContext) -> i32 {
    allocated(Sock(ctx.arg(0)), ctx.arg(2), ctx.arg(3));
    0
}

#[kprobe]
pub fn inet_twsk_alloc_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::TWSK_ALLOC)
}

#[kretprobe]
pub fn inet_twsk_alloc_return(ctx: RetProbeContext) -> u32 {
    done(leave(&ctx, hook::TWSK_ALLOC).map(|args| allocated(Sock(args[0]), args[2] as i32, ctx.ret())))
}

#[fentry(function = "inet_twsk_kill")]
pub fn inet_twsk_kill_fentry(ctx: FEntryContext) -> i32 {
    killed(Sock(ctx.arg(0)));
    0
}

#[kprobe]
pub fn inet_twsk_kill_entry(ctx: ProbeContext) -> u32 {
    done(ctx.arg(0).map(|tw| killed(Sock(tw))))
}

#[inline(always)]
fn allocated(sk: Sock, substate: i32, tw: u64) {
    let now_ns = now();
    let Some(slot) = life::slot_of(sk).or_else(|| life::adopt(sk, scratch::ADOPT_TIME_WAIT, now_ns)) else {
        return;
    };
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::TWSK_ALLOC);
    }
    if slot.flags & flags::HAS_PORT == 0 {
        return;
    }
    if tw == 0 {
        slot.release_reason = reason::TW_OVERFLOW;
        return;
    }
    emit::time_wait(slot, substate as u8, confidence::EXACT, sk.traffic(), now_ns);
    slot.flags |= flags::HAS_TIME_WAIT;
    let heir = TimeWaitSlot {
        socket_id: slot.hold.socket_id,
        allocated_ns: slot.allocated_ns,
        net: sk.net().unwrap_or(0),
        flags: slot.flags,
        port_local: slot.hold.endpoints.port_local,
        port_remote: slot.hold.endpoints.port_remote,
        addr_remote: slot.hold.endpoints.addr_remote,
    };
    if setting!(rung) == rung::KPROBE || setting!(is_preemptible) != 0 {
        end_stale(tw, now_ns);
    }
    if TIME_WAITS.insert(tw, heir, 0).is_err() && is_told(slot) {
        counters::happened(kind::PORT_RELEASED, false);
        counters::missed(kind::PORT_RELEASED, miss::TABLE_FULL);
    }
}

/// Ends the hold of an entry whose end was not seen: its memory serves another one now. A kprobe's program does not run
/// where it interrupts another, and one that can be preempted not while another task is inside of it.
#[inline(always)]
fn end_stale(tw: u64, now_ns: u64) {
    // SAFETY: an entry is made once; nothing else touches it yet.
    let Some(slot) = (unsafe { TIME_WAITS.get(tw) }) else { return };
    if slot.flags & (flags::IS_SELF | flags::AWAITS_PEER) == 0
        && (emit::wants_releases() || slot.flags & flags::ANNOUNCED != 0)
    {
        let held_ns = emit::held(slot.allocated_ns, now_ns);
        let end = End { socket_id: slot.socket_id, held_ns, reason: reason::UNKNOWN, was_listening: false };
        emit::release(end, emit::wants_releases(), miss::RING_FULL, now_ns);
    }
}

#[inline(always)]
fn is_told(slot: &Slot) -> bool {
    slot.flags & (flags::IS_SELF | flags::AWAITS_PEER) == 0
}

#[inline(always)]
fn killed(tw: Sock) {
    let now_ns = now();
    // SAFETY: an entry is killed once; nothing else touches it any more.
    if let Some(slot) = unsafe { TIME_WAITS.get(tw.0) } {
        if slot.flags & flags::IS_SELF != 0 {
            counters::self_test_hit(hook::TWSK_KILL);
        } else if slot.flags & flags::AWAITS_PEER == 0
            && (emit::wants_releases() || slot.flags & flags::ANNOUNCED != 0)
        {
            let held_ns = emit::held(slot.allocated_ns, now_ns);
            let why = cause(tw, slot);
            // A whole range may expire in one softirq: thousands of records within microseconds.
            let miss = if why == reason::TW_EXPIRED { miss::BURST } else { miss::RING_FULL };
            let end = End { socket_id: slot.socket_id, held_ns, reason: why, was_listening: false };
            emit::release(end, emit::wants_releases(), miss, now_ns);
        }
        let _ = TIME_WAITS.remove(tw.0);
        return;
    }
    let cookie = tw.cookie();
    if cookie == 0 {
        return;
    }
    // SAFETY: written by user space before it could die.
    if let Some(known) = unsafe { PREEXISTING.get(cookie) } {
        let why = if is_expired(tw) { reason::TW_EXPIRED } else { reason::UNKNOWN };
        let end = End { socket_id: known.socket_id, held_ns: 0, reason: why, was_listening: false };
        emit::release(end, emit::wants_releases(), miss::RING_FULL, now_ns);
        let _ = PREEXISTING.remove(cookie);
    }
}

/// Why an entry dies. Its timer tells expiry; inside a search for a port to the same place it is reuse; in a namespace
/// that nobody holds any more it is the end of that; what is left are a RST and, on a listening port, a new SYN.
#[inline(always)]
fn cause(tw: Sock, slot: &TimeWaitSlot) -> u8 {
    if is_expired(tw) {
        return reason::TW_EXPIRED;
    }
    if inet_hash_connect::is_search_for(slot) {
        return reason::TW_REUSED;
    }
    if offset!(net_count) != ABSENT && kernel::<u32>(slot.net, offset!(net_count)) == Some(0) {
        return reason::NETNS_EXIT;
    }
    reason::TW_RESET
}

#[inline(always)]
fn is_expired(tw: Sock) -> bool {
    // SAFETY: no arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    kernel::<u64>(tw.0, offset!(tw_timer_expires))
        .is_some_and(|expires| (jiffies.wrapping_sub(expires) as i64) >= 0)
}
