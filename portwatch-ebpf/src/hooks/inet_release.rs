//! `inet_release`: the last close() of a socket, in the task that does it. The only trustworthy sight of who closed.

use aya_ebpf::macros::{fentry, kprobe};
use aya_ebpf::programs::{FEntryContext, ProbeContext};
use portwatch_common::counters::hook;

use super::done;
use crate::read::kernel_pointer;
use crate::settings::offset;
use crate::slot::flags;
use crate::sock::Sock;
use crate::{counters, life, owner};

#[fentry(function = "inet_release")]
pub fn inet_release_fentry(ctx: FEntryContext) -> i32 {
    done(observe(ctx.arg(0))) as i32
}

#[kprobe]
pub fn inet_release_entry(ctx: ProbeContext) -> u32 {
    done(ctx.arg(0).map(observe))
}

#[inline(always)]
fn observe(socket: u64) -> Option<()> {
    let sk = Sock(kernel_pointer(socket, offset!(socket_sk))?);
    let slot = life::slot_of(sk)?;
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::RELEASE);
    }
    slot.flags |= flags::IS_RELEASED;
    slot.closed_by_tgid = owner::current_ids().0;
    Some(())
}
