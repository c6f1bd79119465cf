//! `inet_csk_get_port`: bind() and listen() of TCP sockets get their port here.
//!
//! listen() runs it again on a socket that is bound already: same port, state LISTEN, nothing new. Its failures
//! are told by the callers, see `inet_bind`.

use aya_ebpf::macros::{fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FExitContext, ProbeContext, RetProbeContext};
use portwatch_common::counters::hook;
use portwatch_common::wire::how;

use super::{done, enter, leave, now};
use crate::life::{self, Asked};
use crate::maps::scratch;
use crate::slot::flags;
use crate::sock::{Sock, state};
use crate::{counters, kernel_stack};

#[fexit(function = "inet_csk_get_port")]
pub fn inet_csk_get_port_fexit(ctx: FExitContext) -> i32 {
    kernel_stack::note(&ctx, scratch::GET_PORT);
    observe(Sock(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

#[kprobe]
pub fn inet_csk_get_port_entry(ctx: ProbeContext) -> u32 {
    enter(&ctx, hook::GET_PORT)
}

#[kretprobe]
pub fn inet_csk_get_port_return(ctx: RetProbeContext) -> u32 {
    kernel_stack::note(&ctx, scratch::GET_PORT);
    done(leave(&ctx, hook::GET_PORT).map(|args| observe(Sock(args[0]), args[1] as u16, ctx.ret())))
}

#[inline(always)]
fn observe(sk: Sock, requested: u16, ret: i32) {
    let is_listening = sk.state() == Some(state::LISTEN);
    if ret != 0 || (is_listening && requested != 0) || !sk.is_tcp() {
        return;
    }
    let how = if is_listening { how::LISTEN } else { how::BIND };
    let _ = life::asked(
        sk,
        scratch::GET_PORT,
        &Asked { how, requested: None, peer: None, inode: 0, errno: 0 },
        now(),
    );
    if life::slot_of(sk).is_some_and(|slot| slot.flags & flags::IS_SELF != 0) {
        counters::self_test_hit(hook::GET_PORT);
    }
}
