//! `inet_bind`, `inet6_bind`, `inet_listen`: the calls of TCP and UDP sockets that fail, whatever the reason.

use aya_ebpf::macros::{fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FExitContext, ProbeContext, RetProbeContext};
use portwatch_common::counters::hook;
use portwatch_common::wire::how;

use super::{done, enter, leave, now};
use crate::life::{self, Asked};
use crate::maps::scratch;
use crate::read::kernel_pointer;
use crate::settings::{offset, setting};
use crate::sock::{Sock, Sockaddr};
use crate::{counters, filter, kernel_stack, owner};

/// Key of `inet6_bind` in the map of calls under way.
const V6_CALL: usize = 256 + hook::BIND;

#[fexit(function = "inet_bind")]
pub fn inet_bind_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::BIND_FAILED);
    bind(ctx.arg(0), ctx.arg(1), ctx.arg(3));
    0
}

#[fexit(function = "inet6_bind")]
pub fn inet6_bind_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::BIND_FAILED);
    bind(ctx.arg(0), ctx.arg(1), ctx.arg(3));
    0
}

#[fexit(function = "inet_listen")]
pub fn inet_listen_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::BIND_FAILED);
    listen(ctx.arg(0), ctx.arg(2));
    0
}

#[kprobe]
pub fn inet_bind_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::BIND)
}

#[kretprobe]
pub fn inet_bind_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::BIND_FAILED);
    done(leave(&ctx, hook::BIND).map(|args| bind(args[0], args[1], ctx.ret())))
}

#[kprobe]
pub fn inet6_bind_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, V6_CALL)
}

#[kretprobe]
pub fn inet6_bind_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::BIND_FAILED);
    done(leave(&ctx, V6_CALL).map(|args| bind(args[0], args[1], ctx.ret())))
}

#[kprobe]
pub fn inet_listen_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::LISTEN)
}

#[kretprobe]
pub fn inet_listen_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::BIND_FAILED);
    done(leave(&ctx, hook::LISTEN).map(|args| listen(args[0], ctx.ret())))
}

#[inline(always)]
fn bind(socket: u64, address: u64, ret: i32) -> Option<()> {
    let sk = wanted_sock(socket, hook::BIND)?;
    if ret >= 0 {
        return None;
    }
    let requested = Sockaddr::from_kernel(address)?;
    let asked =
        Asked { how: how::BIND, requested: Some(requested), peer: None, inode: 0, errno: ret.unsigned_abs() };
    life::asked(sk, scratch::BIND_FAILED, &asked, now())
}

#[inline(always)]
fn listen(socket: u64, ret: i32) -> Option<()> {
    let sk = wanted_sock(socket, hook::LISTEN)?;
    if ret >= 0 {
        return None;
    }
    let asked = Asked { how: how::LISTEN, requested: None, peer: None, inode: 0, errno: ret.unsigned_abs() };
    life::asked(sk, scratch::LISTEN_FAILED, &asked, now())
}

#[inline(always)]
fn wanted_sock(socket: u64, hook: usize) -> Option<Sock> {
    let sk = Sock(kernel_pointer(socket, offset!(socket_sk))?);
    if !filter::wants_protocol(sk) {
        return None;
    }
    if owner::current_ids().0 == setting!(self_tgid) {
        counters::self_test_hit(hook);
    }
    Some(sk)
}
