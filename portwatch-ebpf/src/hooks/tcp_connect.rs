//! `tcp_v4_connect`, `tcp_v6_connect`: a whole connect call. Tells the failures that nothing else sees, from
//! before the choice of a port (no route, prohibited) and from after it (no memory for the SYN).
//!
//! `tcp_disconnect`: connect(AF_UNSPEC), which gives the port back while the socket stays open.

use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use portwatch_common::counters::hook;
use portwatch_common::wire::{failed_flags, how, kind, reason};

use super::{done, enter, leave, now};
use crate::maps::scratch;
use crate::slot::flags;
use crate::sock::{AF_INET, AF_INET6, Sock, Sockaddr};
use crate::{counters, emit, kernel_stack, life};

/// Key of `tcp_v6_connect` in the map of calls under way: it calls `tcp_v4_connect` for IPv4-mapped addresses.
const V6_CALL: usize = 256 + hook::TCP_CONNECT;

#[fexit(function = "tcp_v4_connect")]
pub fn tcp_v4_connect_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::CONNECT_FAILED);
    observe(AF_INET, Sock(ctx.arg(0)), ctx.arg(1), ctx.arg(3));
    0
}

#[fexit(function = "tcp_v6_connect")]
pub fn tcp_v6_connect_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::CONNECT_FAILED);
    observe(AF_INET6, Sock(ctx.arg(0)), ctx.arg(1), ctx.arg(3));
    0
}

#[kprobe]
pub fn tcp_v4_connect_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::TCP_CONNECT)
}

#[kretprobe]
pub fn tcp_v4_connect_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::CONNECT_FAILED);
    done(leave(&ctx, hook::TCP_CONNECT).map(|args| observe(AF_INET, Sock(args[0]), args[1], ctx.ret())))
}

#[kprobe]
pub fn tcp_v6_connect_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, V6_CALL)
}

#[kretprobe]
pub fn tcp_v6_connect_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::CONNECT_FAILED);
    done(leave(&ctx, V6_CALL).map(|args| observe(AF_INET6, Sock(args[0]), args[1], ctx.ret())))
}

#[fentry(function = "tcp_disconnect")]
pub fn tcp_disconnect_fentry(ctx: FEntryContext) -> i32 {
    disconnecting(Sock(ctx.arg(0)));
    0
}

#[kprobe]
pub fn tcp_disconnect_entry(ctx: ProbeContext) -> u32 {
    done(ctx.arg(0).map(|sk| disconnecting(Sock(sk))))
}

#[inline(always)]
fn observe(door: u16, sk: Sock, address: u64, ret: i32) {
    // The IPv4 function on an IPv6 socket is the inside of the IPv6 one, which tells the result itself.
    if sk.family() != Some(door) {
        return;
    }
    let now_ns = now();
    if let Some(slot) = life::slot_of(sk) {
        if slot.flags & flags::IS_SELF != 0 {
            counters::self_test_hit(hook::TCP_CONNECT);
        }
        if slot.flags & flags::IN_CONNECT != 0 {
            slot.flags &= !flags::IN_CONNECT;
            if ret != 0 {
                life::connect_failed(slot, ret.unsigned_abs(), 0, now_ns);
                if slot.flags & flags::HAS_PORT == 0 {
                    life::forget(sk);
                } else if slot.flags & flags::PORT_PUT != 0 {
                    life::released(sk, slot, reason::CLOSED, now_ns);
                }
            } else if slot.flags & flags::HAS_PORT == 0 && sk.num() != 0 {
                // The search was not seen: its program did not run.
                life::allocated_late(sk, slot, sk.num(), now_ns);
            }
            return;
        }
        if ret != 0 && slot.flags & flags::AWAITS_PEER == 0 {
            // A bound socket that did not come as far as SYN_SENT. It keeps its port.
            let peer = Sockaddr::from_kernel(address);
            let endpoints = &mut slot.hold.endpoints;
            if let Some(peer) = peer {
                endpoints.port_remote = peer.port;
                endpoints.addr_remote = peer.address;
            }
            emit::failed(slot, kind::CONNECT_FAILED, ret.unsigned_abs(), 0, now_ns);
            return;
        }
    }
    if ret != 0 {
        let _ = failed_early(sk, address, ret.unsigned_abs(), now_ns);
    }
}

/// A connect that failed before it reached SYN_SENT.
#[inline(always)]
fn failed_early(sk: Sock, address: u64, errno: u32, now_ns: u64) -> Option<()> {
    let peer = Sockaddr::from_kernel(address)?;
    let slot = life::describe(sk, scratch::CONNECT_FAILED, how::CONNECT, Some(&peer), now_ns)?;
    if life::wants_addresses(&slot.hold.endpoints) {
        emit::failed(slot, kind::CONNECT_FAILED, errno, failed_flags::FINAL, now_ns);
    }
    Some(())
}

#[inline(always)]
fn disconnecting(sk: Sock) {
    let Some(slot) = life::slot_of(sk) else { return };
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::DISCONNECT);
    }
    // close() with SO_LINGER 0 comes here too, after inet_release.
    if slot.flags & flags::IS_RELEASED == 0 {
        slot.release_reason = reason::DISCONNECTED;
    }
}
