//! UDP: `udp_lib_get_port` gives a socket its port, `udp_lib_unhash` takes it back.
//!
//! Three calls lead to the first: bind(), connect() and the first datagram of a socket without a port. Which one it is
//! tell the calls under way: `inet_dgram_connect`, which then goes on to fail or to find the addresses, and
//! `inet_autobind`. The failures of bind() are told by [`super::inet_bind`]. A socket that has its port passes none of
//! these again, however much it sends.
//!
//! There is no TIME_WAIT and nobody else to ask: once unhashed, the port is free.

use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use portwatch_common::counters::hook;
use portwatch_common::wire::{failed_flags, hold_flags, how, kind, reason};

use super::{begin, done, end, enter, leave, now, under_way};
use crate::life::{self, Asked};
use crate::maps::scratch;
use crate::read::{kernel, kernel_pointer};
use crate::settings::{offset, setting};
use crate::slot::{Slot, flags};
use crate::sock::{Sock, Sockaddr};
use crate::{counters, emit, kernel_stack, owner, registers};

#[fexit(function = "udp_lib_get_port")]
pub fn udp_lib_get_port_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::UDP_GET_PORT);
    done(got_port(Sock(ctx.arg(0)), ctx.arg(1), ctx.arg(3))) as i32
}

#[kprobe]
pub fn udp_lib_get_port_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::UDP_GET_PORT)
}

#[kretprobe]
pub fn udp_lib_get_port_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::UDP_GET_PORT);
    done(leave(&ctx, hook::UDP_GET_PORT).map(|args| got_port(Sock(args[0]), args[1] as u16, ctx.ret())))
}

#[fentry(function = "inet_dgram_connect")]
pub fn inet_dgram_connect_fentry(ctx: FEntryContext) -> i32 {
    let socket = ctx.arg(0);
    if udp_sock(socket).is_some() {
        begin(hook::UDP_CONNECT, [socket, ctx.arg(1), 0]);
    }
    0
}

#[fexit(function = "inet_dgram_connect")]
pub fn inet_dgram_connect_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::UDP_CONNECT);
    done(end(hook::UDP_CONNECT).map(|args| connected(args[0], args[1], ctx.arg(4)))) as i32
}

#[kprobe]
pub fn inet_dgram_connect_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::UDP_CONNECT)
}

#[kretprobe]
pub fn inet_dgram_connect_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::UDP_CONNECT);
    done(leave(&ctx, hook::UDP_CONNECT).map(|args| connected(args[0], args[1], ctx.ret())))
}

#[fentry(function = "inet_autobind")]
pub fn inet_autobind_fentry(ctx: FEntryContext) -> i32 {
    begin(hook::UDP_AUTOBIND, [ctx.arg(0), 0, 0]);
    0
}

#[fexit(function = "inet_autobind")]
pub fn inet_autobind_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::UDP_AUTOBIND);
    done(end(hook::UDP_AUTOBIND).map(|args| autobound(Sock(args[0]), ctx.arg(1)))) as i32
}

#[kprobe]
pub fn inet_autobind_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::UDP_AUTOBIND)
}

#[kretprobe]
pub fn inet_autobind_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::UDP_AUTOBIND);
    done(leave(&ctx, hook::UDP_AUTOBIND).map(|args| autobound(Sock(args[0]), ctx.ret())))
}

#[fentry(function = "udp_lib_unhash")]
pub fn udp_lib_unhash_fentry(ctx: FEntryContext) -> i32 {
    done(unhashed(Sock(ctx.arg(0)))) as i32
}

#[kprobe]
pub fn udp_lib_unhash_entry(ctx: ProbeContext) -> u32 {
    done(ctx.arg(0).map(|sk| unhashed(Sock(sk))))
}

#[inline(always)]
fn udp_sock(socket: u64) -> Option<Sock> {
    let sk = Sock(kernel_pointer(socket, offset!(socket_sk))?);
    sk.is_udp().then_some(sk)
}

/// Whether the running task is inside connect() with this socket.
#[inline(always)]
fn is_connecting(sk: Sock) -> bool {
    let Some(args) = under_way(hook::UDP_CONNECT) else { return false };
    let Some(connecting) = kernel_pointer(args[0], offset!(socket_sk)) else { return false };
    connecting == sk.0
}

#[inline(always)]
fn is_autobinding(sk: Sock) -> bool {
    let Some(args) = under_way(hook::UDP_AUTOBIND) else { return false };
    args[0] == sk.0
}

/// The search for a port ended. Up to 5.10 a failure is 1 and no errno, so the callers tell it.
#[inline(always)]
fn got_port(sk: Sock, requested: u16, ret: i32) -> Option<()> {
    if ret != 0 || !sk.is_udp() {
        return None;
    }
    let mut asked = Asked { how: how::BIND, requested: None, peer: None, inode: 0, errno: 0 };
    if requested == 0 && is_connecting(sk) {
        asked.how = how::CONNECT;
    } else if requested == 0 && is_autobinding(sk) {
        asked.how = how::AUTOBIND;
        asked.peer = destination();
    }
    if owner::current_ids().0 == setting!(self_tgid) {
        counters::self_test_hit(hook::UDP_GET_PORT);
    }
    life::asked(sk, scratch::UDP_GET_PORT, &asked, now())
}

/// Where the datagram that the running task is sending goes.
#[inline(always)]
fn destination() -> Option<Sockaddr> {
    Sockaddr::from_user(registers::destination()?)
}

/// The search for the port of a datagram ended. connect() searches this way, too, and tells its failure itself.
#[inline(always)]
fn autobound(sk: Sock, ret: i32) -> Option<()> {
    if !sk.is_udp() {
        return None;
    }
    if owner::current_ids().0 == setting!(self_tgid) {
        counters::self_test_hit(hook::UDP_AUTOBIND);
    }
    // Two threads may send at once: who is second finds the port of the first.
    if ret == 0 || sk.num() != 0 || is_connecting(sk) {
        return None;
    }
    let peer = destination();
    failed(sk, scratch::UDP_AUTOBIND, how::AUTOBIND, peer.as_ref(), ret)
}

/// connect() ended: the addresses are known, or why there are none.
#[inline(always)]
fn connected(socket: u64, address: u64, ret: i32) -> Option<()> {
    let sk = udp_sock(socket)?;
    let now_ns = now();
    let slot = life::slot_of(sk);
    if owner::current_ids().0 == setting!(self_tgid) {
        counters::self_test_hit(hook::UDP_CONNECT);
    }
    let Some(slot) = slot else {
        if ret == 0 {
            return None;
        }
        let peer = Sockaddr::from_kernel(address)?;
        return failed(sk, scratch::UDP_CONNECT, how::CONNECT, Some(&peer), ret);
    };
    const AF_UNSPEC: u16 = 0;
    if kernel::<u16>(address, 0)? == AF_UNSPEC {
        // Compilers may take a way from there to the end of the port that passes no hook.
        if ret == 0 && sk.num() == 0 {
            life::released(sk, slot, reason::DISCONNECTED, now_ns);
        }
        return Some(());
    }
    let port = slot.hold.endpoints.port_local;
    if ret == 0 {
        let _ = sk.read_endpoints(&mut slot.hold.endpoints);
        slot.hold.endpoints.port_local = port;
    } else {
        let peer = Sockaddr::from_kernel(address)?;
        slot.hold.endpoints.port_remote = peer.port;
        slot.hold.endpoints.addr_remote = peer.address;
    }
    tell_with_peer(slot);
    if ret != 0 {
        emit::failed(slot, kind::CONNECT_FAILED, ret.unsigned_abs(), 0, now_ns);
    }
    Some(())
}

/// Tells of the allocation what waited for the peer, if the peer is a wanted one.
#[inline(always)]
fn tell_with_peer(slot: &mut Slot) {
    if slot.flags & flags::AWAITS_PEER == 0 || !life::wants_addresses(&slot.hold.endpoints) {
        return;
    }
    slot.flags &= !flags::AWAITS_PEER;
    let mut told_ns = slot.allocated_ns;
    if slot.hold.how != how::CONNECT {
        // It was bound before, perhaps long ago.
        slot.hold.flags |= hold_flags::LATE;
        told_ns = now();
    }
    emit::port_allocated(slot, told_ns);
}

/// A connect or a datagram of a socket that is not tracked failed.
#[inline(always)]
fn failed(sk: Sock, place: u32, how: u8, peer: Option<&Sockaddr>, ret: i32) -> Option<()> {
    let now_ns = now();
    let slot = life::describe(sk, place, how, peer, now_ns)?;
    if life::wants_addresses(&slot.hold.endpoints) {
        emit::failed(slot, kind::CONNECT_FAILED, ret.unsigned_abs(), failed_flags::FINAL, now_ns);
    }
    Some(())
}

/// The port is given back: by the last close, or inside connect(AF_UNSPEC).
#[inline(always)]
fn unhashed(sk: Sock) -> Option<()> {
    if owner::current_ids().0 == setting!(self_tgid) && sk.is_udp() {
        counters::self_test_hit(hook::UDP_UNHASH);
    }
    let now_ns = now();
    let slot = match life::slot_of(sk) {
        Some(slot) => slot,
        None if sk.is_udp() => life::adopt(sk, scratch::ADOPT_UDP, now_ns)?,
        None => return None,
    };
    if is_connecting(sk) {
        slot.release_reason = reason::DISCONNECTED;
    }
    life::released(sk, slot, reason::CLOSED, now_ns);
    Some(())
}
